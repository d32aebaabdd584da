"""Diffusion models by role: teacher, students and controls, several seeds, equal steps; the README's is of digits.

    python benchmarks/diffusion_table.py --choose   first: how RED is used, on a seed of its own
    python benchmarks/diffusion_table.py            about 40 minutes on two CPU cores; finished runs are reused
    python benchmarks/diffusion_table.py cifar10 --data FOLDER --seeds 1        the paper's U-Nets; wants a GPU

Each seed trains its own teacher, and every student from it, for the same number of steps with the same recipe. All
are drawn with the same sampler from the same noise, as many as there are real images in the half of the training
set (or of 20,000 of it) that they are compared with, by one classifier trained on the same data (its accuracy is
printed); the other half gives the floor. The taps, distance and weight of RED, alone and beside the output's MSE, are
the choice of lowest KID to the validation digits among the four each that the authors' configurations suggest, under
a seed that is not in the table. On CPUs one process per core, one thread each.

Writes benchmarks/results/diffusion.csv (a row per run, with all that its scores were made with) and diffusion.png
(needs Chrome or Chromium), and prints means with 95 % t-intervals; --choose writes diffusion_choice.csv. Files of
cifar10 say so in their name.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd
import torch

import redistill_lib as rd
from redistill_lib.data import DataSplits
from redistill_lib.figures import quality_vs_memory
from redistill_lib.methods import RED
from redistill_lib.quality import Extractor, classifier_extractor, compare_quality, features, floor, halves
from redistill_lib.results import interval
from redistill_lib.runs import Run
from redistill_lib.train import DDPM_CIFAR10, DIGITS_UNET, DiffusionRecipe


@dataclass(frozen=True)
class Setting:
    """A data set, the networks for it and how they are trained."""

    name: str
    data: str
    image_size: int
    teacher: str
    student: str
    unet: Mapping[str, Any]
    recipe: DiffusionRecipe
    judge: str
    judge_recipe: rd.Recipe
    judge_width: float
    log_every: int = 100
    runs: str = "runs/benchmark"
    cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())

    def load(self) -> DataSplits:
        return rd.load_data(self.data, image_size=self.image_size)

    def result(self, what: str) -> Path:
        return RESULTS / f"diffusion{'' if self.name == 'digits' else f'_{self.name}'}{what}"


SETTINGS = {
    "digits": Setting(
        "digits", "digits", 16, "unet-1-22", "unet-2-21", dict(DIGITS_UNET), DiffusionRecipe(),
        judge="resnet18-1-21222", judge_recipe=rd.Recipe(epochs=20), judge_width=0.125, cpu=True,
    ),
    "cifar10": Setting(
        "cifar10", "hf:uoft-cs/cifar10", 32, "unet-1-222", "unet-2-221", {},
        replace(DDPM_CIFAR10, steps=20_000, warmup=1000, ema_decay=0.999),
        judge="resnet18-1-11222", judge_recipe=rd.Recipe(epochs=20), judge_width=1.0, log_every=1000,
    ),
}  # fmt: skip
MOST = 20_000  # real images looked at, in two halves
SAMPLER, DRAW_STEPS = "ddim", 25
CHOICE_SEED = 100
#: The ways of using RED: (taps, distance, alpha); "ends" are the first and the last tap of "all".
WAYS = [("all", "cosine", 1.0), ("all", "cosine", 0.1), ("ends", "mse", 1.0), ("ends", "mse", 0.1)]
CHOSEN = {"red": WAYS[1], "red+mse": WAYS[0]}  # results/diffusion_choice.csv
STUDENTS = (*CHOSEN, "mse", "red-blocks")
MADE_BY = {"ema": True, "sampler": SAMPLER, "steps": DRAW_STEPS}
COSTS = ("validation_loss", "peak_bytes", "parameters")
RESULTS = Path(__file__).parent / "results"


def train(setting: Setting, role: str, seed: int, way: tuple[str, str, float] | None = None) -> Run:
    """The run of one role under one seed; a student finds its seed's teacher in the run store."""
    options = rd.RunOptions(setting.runs, cpu=setting.cpu, progress=not setting.cpu, log_every=setting.log_every)
    common: dict[str, Any] = {"seed": seed, "options": options, "unet": setting.unet}
    common |= {"data": setting.load(), "recipe": setting.recipe}
    if role in ("teacher", "student"):
        return rd.train_diffusion(setting.teacher if role == "teacher" else setting.student, **common)
    teacher = train(setting, "teacher", seed)
    taps = None
    if role in CHOSEN:
        which, distance, alpha = way or CHOSEN[role]
        places = matched(setting, common["data"].in_channels, which)
        taps = [replace(tap, method=RED(distance=distance, alpha=alpha)) for tap in places]
    return rd.distill_diffusion(setting.student, teacher, methods=role, taps=taps, **common)


def matched(setting: Setting, in_channels: int, which: str) -> list[rd.Tap]:
    names = setting.student, setting.teacher
    student, teacher = (rd.create_model(name, in_channels=in_channels, **setting.unet) for name in names)
    example = rd.example_inputs(setting.student, setting.image_size, in_channels=in_channels)
    taps = rd.match_taps(student, teacher, example)
    return taps if which == "all" else [taps[0], taps[-1]]


def draw(setting: Setting, run: Run, count: int) -> Any:
    model = rd.load_model(run).to("cpu" if setting.cpu else "cuda")
    shape = setting.image_size
    return rd.sample(model, count, shape, sampler=SAMPLER, steps=DRAW_STEPS, seed=0, progress=not setting.cpu)


def spread(pool: Any, function: Any, jobs: Sequence[tuple[Any, ...]]) -> list[Any]:
    return pool.starmap(function, jobs, chunksize=1) if pool else [function(*job) for job in jobs]


def choose(pool: Any, setting: Setting, extractor: Extractor) -> None:
    """Score every way of using RED against the validation images, and keep the table."""
    data = setting.load()
    train(setting, "teacher", CHOICE_SEED)
    cases = [(role, way) for role in CHOSEN for way in WAYS]
    runs = spread(pool, train, [(setting, role, CHOICE_SEED, way) for role, way in cases])
    real = features(data.validation, extractor, progress=False)
    fakes = spread(pool, draw, [(setting, run, min(MOST, len(data.train)) // 2) for run in runs])
    rows = []
    for (role, (taps, distance, alpha)), fake in zip(cases, fakes, strict=True):
        score = rd.score_images(fake, real, extractor, settings=MADE_BY, progress=False)
        rows.append({"role": role, "taps": taps, "distance": distance, "alpha": alpha, "kid": score.kid})
    frame = pd.DataFrame(rows)
    frame.to_csv(setting.result("_choice.csv"), index=False)
    print(frame.to_string(index=False, float_format="%.4g"))


def table(pool: Any, setting: Setting, extractor: Extractor, seeds: range) -> None:
    """Train, score, keep and print everything."""
    data = setting.load()
    real = features(data.train.head(min(MOST, len(data.train)))[0], extractor, progress=False)
    half = halves(real)[0]
    jobs = [(setting, role, seed) for role in ("teacher", "student") for seed in seeds]
    runs = {job[1:]: run for job, run in zip(jobs, spread(pool, train, jobs), strict=True)}
    jobs = [(setting, role, seed) for seed in seeds for role in STUDENTS]
    runs |= {job[1:]: run for job, run in zip(jobs, spread(pool, train, jobs), strict=True)}
    fakes = spread(pool, draw, [(setting, run, len(half)) for run in runs.values()])
    frames = []
    for (role, seed), fake in zip(runs, fakes, strict=True):
        score = rd.score_images(fake, half, extractor, settings=MADE_BY, progress=False)
        costs = {name: runs[role, seed].metrics[name] for name in COSTS}
        frames.append(pd.concat([pd.DataFrame([{"role": role, "seed": seed, **costs}]), score.to_frame()], axis=1))
    frame = pd.concat(frames)
    frame.to_csv(setting.result(".csv"), index=False)
    lowest = floor(real, extractor, progress=False)
    quality_vs_memory(frame, floor=lowest).write_image(setting.result(".png"), scale=2)
    print(f"every network: {setting.recipe.steps:,} steps of {setting.recipe.batch_size} images, averaged weights;")
    print(f"{len(half):,} samples, {SAMPLER} in {DRAW_STEPS} steps, scored by {extractor.name}")
    print(f"one half of the real images against the other: FID {lowest.fid:.2f}, KID {lowest.kid:.4f}")
    print(compare_quality(frame, lowest).headline())
    print(summary(frame).to_string(float_format="%.4g"))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and half the widths of their 95 % t-intervals."""
    measured = {"fid": "fid", "kid": "kid", "validation_loss": "loss"}
    columns: dict[str, tuple[str, Any]] = {}
    for name, short in measured.items():
        columns |= {short: (name, "mean"), f"{short} ±": (name, lambda values: interval(values.tolist()).half)}
    columns["peak KiB"] = "peak_bytes", lambda values: values.iloc[0] / 1024
    columns["parameters"] = "parameters", "first"
    return frame.groupby("role", sort=False).agg(**columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?", choices=SETTINGS, default="digits")
    parser.add_argument("--choose", action="store_true", help="try the ways of using RED and stop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", help="what load_data takes, in place of the setting's own")
    parser.add_argument("--steps", type=int, help="of training, in place of the setting's own")
    parser.add_argument("--runs", default="runs/benchmark")
    arguments = parser.parse_args()
    setting = replace(SETTINGS[arguments.setting], runs=arguments.runs)
    if arguments.data:
        setting = replace(setting, data=arguments.data)
    if arguments.steps:
        setting = replace(setting, recipe=replace(setting.recipe, steps=arguments.steps))
    RESULTS.mkdir(exist_ok=True)
    judge = rd.train_classifier(
        setting.judge, setting.load(), setting.judge_recipe, width=setting.judge_width,
        options=rd.RunOptions(setting.runs, cpu=setting.cpu),
    )  # fmt: skip
    extractor = classifier_extractor(rd.load_model(judge), judge.id, judge.metrics["test_accuracy"])
    workers = (os.cpu_count() or 1) if setting.cpu else 0  # one GPU takes one training after the other
    with multiprocessing.get_context("spawn").Pool(workers) if workers else contextlib.nullcontext() as pool:
        if arguments.choose:
            choose(pool, setting, extractor)
        else:
            table(pool, setting, extractor, range(arguments.seeds))


if __name__ == "__main__":
    main()
