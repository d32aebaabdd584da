"""The README's diffusion table: teacher, students and controls on the built-in digits, several seeds, equal steps.

    python benchmarks/diffusion_table.py --choose   first: how RED is used, on a seed of its own
    python benchmarks/diffusion_table.py            about 40 minutes on two CPU cores; finished runs are reused

Each seed trains its own teacher, and every student from it, for the same number of steps with the same recipe. All
are drawn with the same sampler from the same noise, as many as half of the real training digits, and compared with
that half by one classifier trained on the same digits (its accuracy is printed); the other half gives the floor.
The taps, distance and weight of RED, alone and beside the output's MSE, are the choice of lowest KID to the
validation digits among the four each that the authors' configurations suggest, under a seed that is not in the table.
One process per core, one thread each.

Writes benchmarks/results/diffusion.csv (one row per run) and prints means with 95 % t-intervals; --choose writes
diffusion_choice.csv.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.data import DataSplits
from redistill_lib.diffusion import DIGITS_UNET
from redistill_lib.figures.comparison import interval
from redistill_lib.quality import Extractor, classifier_extractor, features, floor, halves
from redistill_lib.runs import Run

TEACHER, STUDENT, SIZE = "unet-1-22", "unet-2-21", 16
SAMPLER, STEPS = "ddim", 25
CHOICE_SEED = 100
#: The ways of using RED: (taps, distance, alpha); "ends" are the first and the last tap of "all".
WAYS = [("all", "cosine", 1.0), ("all", "cosine", 0.1), ("ends", "mse", 1.0), ("ends", "mse", 0.1)]
CHOSEN = {"red": WAYS[1], "red+mse": WAYS[0]}  # results/diffusion_choice.csv
STUDENTS = (*CHOSEN, "mse", "red-blocks")
SETTINGS = {"ema": True, "sampler": SAMPLER, "steps": STEPS}
SCORES = ("fid", "fid_limit", "fid_error", "kid", "precision", "recall")
COSTS = ("validation_loss", "peak_bytes", "parameters")
RESULTS = Path(__file__).parent / "results"


def train(role: str, seed: int, runs_dir: str, way: tuple[str, str, float] | None = None) -> Run:
    """The run of one role under one seed; a student finds its seed's teacher in the run store."""
    data = rd.load_data("digits", image_size=SIZE)
    common: dict[str, Any] = {"seed": seed, "runs_dir": runs_dir, "cpu": True}
    if role in ("teacher", "student"):
        return rd.train_diffusion(TEACHER if role == "teacher" else STUDENT, data, progress=False, **common)
    teacher = train("teacher", seed, runs_dir)
    taps = None
    if role in CHOSEN:
        which, distance, alpha = way or CHOSEN[role]
        taps = [replace(tap, method="red", distance=distance, alpha=alpha) for tap in matched(which)]
        if role == "red+mse":
            taps.append(rd.Tap("tail", "output", "tail", "output", method="mse"))
    return rd.distill_diffusion(STUDENT, teacher, data, methods=role, taps=taps, progress=False, **common)


def matched(which: str) -> list[rd.Tap]:
    options: dict[str, Any] = dict(DIGITS_UNET)
    student, teacher = (rd.create_model(name, in_channels=1, **options) for name in (STUDENT, TEACHER))
    taps = rd.match_taps(student, teacher, rd.example_inputs(STUDENT, SIZE, in_channels=1))
    return taps if which == "all" else [taps[0], taps[-1]]


def draw(run: Run, count: int) -> Any:
    return rd.sample(run, count, SIZE, sampler=SAMPLER, steps=STEPS, seed=0, progress=False)


def spread(pool: Any, function: Any, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    return pool.starmap(function, jobs, chunksize=1)


def choose(pool: Any, extractor: Extractor, data: DataSplits, runs_dir: str) -> None:
    """Score every way of using RED against the validation digits, and keep the table."""
    train("teacher", CHOICE_SEED, runs_dir)
    cases = [(role, way) for role in CHOSEN for way in WAYS]
    runs = spread(pool, train, [(role, CHOICE_SEED, runs_dir, way) for role, way in cases])
    real = features(data.validation, extractor, progress=False)
    rows = []
    for (role, (taps, distance, alpha)), fake in zip(
        cases, spread(pool, draw, [(run, len(data.train) // 2) for run in runs]), strict=True
    ):
        score = rd.score_images(fake, real, extractor, settings=SETTINGS, progress=False)
        rows.append({"role": role, "taps": taps, "distance": distance, "alpha": alpha, "kid": score.kid})
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / "diffusion_choice.csv", index=False)
    print(frame.to_string(index=False, float_format="%.4g"))


def table(pool: Any, extractor: Extractor, data: DataSplits, runs_dir: str, seeds: range) -> None:
    """Train, score, keep and print everything."""
    real = features(data.train, extractor, progress=False)
    half = halves(real)[0]
    jobs = [(role, seed, runs_dir) for role in ("teacher", "student") for seed in seeds]
    runs = {job[:2]: run for job, run in zip(jobs, spread(pool, train, jobs), strict=True)}
    jobs = [(role, seed, runs_dir) for seed in seeds for role in STUDENTS]
    runs |= {job[:2]: run for job, run in zip(jobs, spread(pool, train, jobs), strict=True)}
    rows = []
    for (role, seed), fake in zip(runs, spread(pool, draw, [(run, len(half)) for run in runs.values()]), strict=True):
        score = rd.score_images(fake, half, extractor, settings=SETTINGS, progress=False)
        record = {"role": role, "seed": seed, **{name: getattr(score, name) for name in SCORES}}
        rows.append(record | {name: runs[role, seed].metrics[name] for name in COSTS})
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / "diffusion.csv", index=False)
    lowest = floor(real, extractor, progress=False)
    print(f"{len(half)} samples each, {SAMPLER} in {STEPS} steps, averaged weights, {extractor.name}")
    print(f"one half of the real digits against the other: FID {lowest.fid:.2f}, KID {lowest.kid:.4f}")
    summary = frame.groupby("role", sort=False).agg(
        fid=("fid", "mean"),
        fid_95=("fid", lambda values: interval(values.tolist())),
        kid=("kid", "mean"),
        kid_95=("kid", lambda values: interval(values.tolist())),
        validation_loss=("validation_loss", "mean"),
        loss_95=("validation_loss", lambda values: interval(values.tolist())),
        peak_kib=("peak_bytes", lambda values: values.iloc[0] / 1024),
        parameters=("parameters", "first"),
    )
    print(summary.to_string(float_format="%.4g"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", action="store_true", help="try the ways of using RED and stop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", default="runs/benchmark")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    data = rd.load_data("digits", image_size=SIZE)
    judge = rd.train_classifier(
        "resnet18-1-21222", data, rd.Recipe(epochs=20), width=0.125, runs_dir=arguments.runs, cpu=True
    )
    extractor = classifier_extractor(rd.load_model(judge), judge.id, judge.metrics["test_accuracy"])
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        if arguments.choose:
            choose(pool, extractor, data, arguments.runs)
        else:
            table(pool, extractor, data, arguments.runs, range(arguments.seeds))


if __name__ == "__main__":
    main()
