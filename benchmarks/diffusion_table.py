"""The README's diffusion table: teacher, students and controls on the built-in digits, several seeds, equal steps.

    python benchmarks/diffusion_table.py            about 20 minutes on two CPU cores; finished runs are reused

Each seed trains its own teacher, and every student from it, for the same number of steps with the same recipe. All
are drawn with the same sampler from the same noise, as many as half of the real training digits, and compared with
that half by one classifier trained on the same digits (its accuracy is in the heading); the other half gives the
floor. Hardly tuned: RED has alpha 1; RED + MSE has alpha 0.1 beside the output's MSE, chosen by looking at samples of
seed 0, which is one of the seeds. One process per core, one thread each.

Writes benchmarks/results/diffusion.csv (one row per run) and prints means with 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.figures.comparison import interval
from redistill_lib.quality import classifier_extractor, features, floor, halves
from redistill_lib.runs import Run

TEACHER, STUDENT, SIZE = "unet-1-22", "unet-2-21", 16
SAMPLER, STEPS = "ddim", 25
STUDENTS: dict[str, dict[str, Any]] = {
    "red": {"red": {"alpha": 1.0}},
    "red+mse": {"red": {"alpha": 0.1}},
    "mse": {},
    "red-blocks": {},
}
SCORES = ("fid", "fid_limit", "fid_error", "kid", "precision", "recall")
COSTS = ("validation_loss", "peak_bytes", "parameters", "seconds")
RESULTS = Path(__file__).parent / "results"


def train(role: str, seed: int, runs_dir: str) -> Run:
    """The run of one role under one seed; a student finds its seed's teacher in the run store."""
    data, common = rd.load_data("digits", image_size=SIZE), {"seed": seed, "runs_dir": runs_dir, "cpu": True}
    if role in ("teacher", "student"):
        return rd.train_diffusion(TEACHER if role == "teacher" else STUDENT, data, progress=False, **common)
    teacher = train("teacher", seed, runs_dir)
    return rd.distill_diffusion(
        STUDENT, teacher, data, methods=role, options=STUDENTS[role], progress=False, **common
    )


def draw(run: Run, count: int) -> Any:
    return rd.sample(run, count, SIZE, sampler=SAMPLER, steps=STEPS, seed=0, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs/benchmark")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    data, seeds = rd.load_data("digits", image_size=SIZE), range(arguments.seeds)
    judge = rd.train_classifier(
        "resnet18-1-21222", data, rd.Recipe(epochs=20), width=0.125, runs_dir=arguments.runs, cpu=True
    )
    accuracy = judge.metrics["test_accuracy"]
    extractor = classifier_extractor(rd.load_model(judge), judge.id, accuracy)
    real = features(data.train, extractor, progress=False)
    half = halves(real)[0]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        jobs = [(role, seed, arguments.runs) for role in ("teacher", "student") for seed in seeds]
        runs = {job[:2]: run for job, run in zip(jobs, pool.starmap(train, jobs, chunksize=1), strict=True)}
        jobs = [(role, seed, arguments.runs) for seed in seeds for role in STUDENTS]
        runs |= {job[:2]: run for job, run in zip(jobs, pool.starmap(train, jobs, chunksize=1), strict=True)}
        wanted = [(run, len(half)) for run in runs.values()]
        pictures = dict(zip(runs, pool.starmap(draw, wanted, chunksize=1), strict=True))
    settings = {"ema": True, "sampler": SAMPLER, "steps": STEPS}
    rows = []
    for (role, seed), fake in pictures.items():
        score = rd.score_images(fake, half, extractor, settings=settings, progress=False)
        record = {"role": role, "seed": seed, **{name: getattr(score, name) for name in SCORES}}
        rows.append(record | {name: runs[role, seed].metrics[name] for name in COSTS})
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / "diffusion.csv", index=False)
    lowest = floor(real, extractor, progress=False)
    print(f"{len(half)} samples each, {SAMPLER} in {STEPS} steps, averaged weights, {accuracy:.1%} classifier")
    print(f"one half of the real digits against the other: FID {lowest.fid:.2f}, KID {lowest.kid:.4f}")
    table = frame.groupby("role", sort=False).agg(
        fid=("fid", "mean"),
        fid_95=("fid", lambda values: interval(values.tolist())),
        kid=("kid", "mean"),
        kid_95=("kid", lambda values: interval(values.tolist())),
        validation_loss=("validation_loss", "mean"),
        peak_kib=("peak_bytes", lambda values: values.iloc[0] / 1024),
        parameters=("parameters", "first"),
        seconds=("seconds", "mean"),
    )
    print(table.to_string(float_format="%.4g"))


if __name__ == "__main__":
    main()
