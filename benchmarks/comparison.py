"""At one peak of memory: pool or narrow, and what does a teacher add? Every arm within the same processor seconds.

    python benchmarks/comparison.py                     `cluttered`: six hours of one core; finished runs are reused
    python benchmarks/comparison.py --data FOLDER       such as CIFAR-10 in parquet files; --limit takes part of it
    python benchmarks/comparison.py --data pairs        the built-in task that is short of capacity
    python benchmarks/comparison.py --teacher mobilenetv2 --factor 8 --arms "naive;RED;narrow" --seeds 2 --seconds 60

The teacher is ResNet-18 `1-21222` at a quarter of its width, or what --teacher and --width say. Students need one
peak (fp32, `fused`) or less: that of the paper's student, which pools `--factor` times harder in its first layer:

- that student: alone (`naive`), from the teacher's weights, and taught by RED's loss, KD, both and neither, each with
  RED's blocks and without; RED + KD and KD also from the teacher's weights;
- of the ways that `rd.arms_at_peak` finds, the one with most multiply-adds that is as wide (`late`: its last stages
  pool later), that is narrower (`narrow`), and that sees smaller images (`small`); the first two taught, too.

`--extra` takes, in place of these, what RED is made of, all of the paper's student: other kernels and distances,
taps at outputs alone and at narrow places; and another method. (STAGE compares channel by channel, of which this
student has fewer.)

1. Every arm has two candidates (learning rate or weight of its losses), tried with half the seconds on a seed of
   their own; the best on validation is taken.
2. Each seed trains a teacher of 12 epochs, and every arm. Who learns from it pays for it first, and for its share of
   the kept answers to 16 views of each image, which KD and RED read in the teacher's place. `--teacher-epochs 40
   --teacher-share 0` asks what a better teacher adds that is there already.

In every arm the loss is the cross-entropy plus each method's alpha times its loss. One thread per training, `--jobs`
trainings at a time; `--gpu --jobs 12` has twelve of them share a GPU, each for as many epochs as its seconds are
worth alone. Writes redistill_lib/measured/<name>/: what `Comparison.load` reads, with a row per run in runs.csv; and
benchmarks/results/<name>/: two figures (they need Chrome or Chromium); with --output all is there. Prints the table,
and draws comparisons.png of all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import torch

import redistill_lib as rd
from redistill_lib import figures
from redistill_lib.comparison import Comparison
from redistill_lib.comparison.peaks import Way

VIEWS = 16
KD = ("kd(temperature=4.0)", "kd(temperature=4.0, alpha=3.0)")
RED = ("red(alpha=5.0)", "red(alpha=15.0)")
LOSS = tuple(red.replace("red", "red-loss") for red in RED)
LATE = "late with RED + KD from the teacher"
# Of comparisons.png.
WAYS = "KD", "KD from the teacher", "from the teacher", "RED + KD from the teacher", "late", LATE, "narrow", "small"
SIZES = 1, 7 / 8, 3 / 4  # of the images, as shares of their side

Arms = dict[str, list[rd.Arm]]


def taught(model: str, methods: tuple[str, ...], width: float, taps: Any = None, **recipe: Any) -> list[rd.Arm]:
    """Two candidates that differ in the weights of their methods."""
    return [rd.Arm(model, each, width, recipe=rd.Recipe(views=VIEWS, **recipe), taps=taps) for each in methods]


def rated(
    model: str, width: float, methods: str | None = None, image_size: int | None = None, **recipe: Any
) -> list[rd.Arm]:
    """Two candidates that differ in their learning rate, smaller for one that starts from other weights."""
    rates = (0.05, 0.1) if recipe else (0.1, 0.2)
    recipes = [rd.Recipe(learning_rate=rate, **recipe) for rate in rates]
    return [rd.Arm(model, methods, width, image_size, each) for each in recipes]


def main_arms(teacher: rd.Arm, student: str, example: torch.Tensor) -> Arms:
    """The ways to the student's peak, by name, the reference first."""
    width = teacher.width
    arms = {
        "naive": rated(student, width),
        "from the teacher": rated(student, width, init="teacher"),
        "RED loss": taught(student, LOSS, width),
        "KD": taught(student, KD, width),
        "KD from the teacher": taught(student, KD, width, init="teacher"),
        "RED loss + KD": taught(student, added(LOSS, KD[0]), width),
        "RED blocks": rated(student, width, "red-blocks"),
        "RED": taught(student, RED, width),
        "RED blocks + KD": taught(student, added(KD, "red-blocks"), width),
        "RED + KD": taught(student, added(RED, KD[0]), width),
        "RED + KD from the teacher": taught(student, added(RED, KD[0]), width, init="teacher"),
    }
    side, architecture = example.shape[-1], student.partition("-")[0]
    sizes = [round(share * side) for share in SIZES]
    peak = rd.profile_memory(made(student, width, example), example, convention="fused").peak_bytes
    found = rd.arms_at_peak(str(teacher.model), peak, example, width=width, image_sizes=sizes)

    def largest(which: Callable[[Way], bool]) -> Way | None:  # ways come with most multiply-adds first
        own = "naive", student.partition("-")[2]
        return next((way for way in found.fits if which(way) and way.plan not in own), None)

    if late := largest(lambda way: way.width == width and way.image_size == side):
        name = f"{architecture}-{late.plan}"
        arms["late"] = rated(name, width)
        fits = late.published is not None and late.published.peak_bytes <= peak
        methods = added(RED, KD[0]) if fits else KD
        arms[f"late with {'RED + ' * fits}KD from the teacher"] = taught(name, methods, width, init="teacher")
    if narrow := largest(lambda way: way.width < width and way.image_size == side):
        name = f"{architecture}-{narrow.plan}"
        arms["narrow"] = rated(name, narrow.width)
        arms["narrow with KD"] = taught(name, KD, narrow.width)
    if small := largest(lambda way: way.image_size < side):
        arms["small"] = rated(f"{architecture}-{small.plan}", small.width, image_size=small.image_size)
    return arms


def extra_arms(teacher: rd.Arm, student: str, example: torch.Tensor) -> Arms:
    """What RED is made of: one thing changed in each, of the paper's student."""
    width = teacher.width
    of = made(student, width, example), made(str(teacher.model), width, example)
    outputs = [tap for tap in rd.match_taps(*of, example) if tap.side == "output"]
    arms = {
        "RED": taught(student, RED, width),
        "RED with 1×1 kernel": taught(student, changed("kernel_size=1"), width),
        "RED with 5×5 kernel": taught(student, changed("kernel_size=5"), width),
        "RED with MSE": taught(student, changed("distance='mse'"), width),
        "DIST": taught(student, ("dist", "dist(alpha=0.3)"), width),
        "RED at outputs": taught(student, RED, width, outputs),
        "naive": rated(student, width),
    }
    narrow = rd.match_taps(*of, example, narrow=True)
    if narrow != rd.match_taps(*of, example):
        arms["RED at narrow places"] = taught(student, RED, width, narrow)
    return arms


def added(methods: tuple[str, ...], other: str) -> tuple[str, ...]:
    return tuple(f"{method}+{other}" for method in methods)


def changed(option: str) -> tuple[str, ...]:
    return tuple(red.replace("red(", f"red({option}, ") for red in RED)


def made(name: str, width: float, example: torch.Tensor) -> torch.nn.Module:
    sized = {"image_size": example.shape[-1]} if name.startswith(("vit", "deit")) else {}
    return rd.create_model(name, width=width, in_channels=example.shape[1], **sized)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cluttered")
    parser.add_argument("--limit", type=int, help="images of each split")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--teacher", default="resnet18-1-21222")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--teacher-share", type=float, default=1.0, help="of its training that each taught arm pays")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--extra", action="store_true", help="what RED is made of")
    parser.add_argument("--batch-size", type=int, default=rd.Recipe.batch_size)
    parser.add_argument("--augmentation", default=rd.Recipe.augmentation)
    parser.add_argument("--gpu", action="store_true", help="seconds of its clock; teachers answer as they are asked")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="some of them, by name, with semicolons between")
    parser.add_argument("--list", action="store_true", help="say which arms there are, and stop")
    parser.add_argument("--runs", default="runs/comparison")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--name", help="of the folder that is written; left out, that of the data")
    parser.add_argument("--output", type=Path, default=rd.measured())
    given = parser.parse_args()
    data = rd.load_data(given.data, limit=given.limit, image_size=given.image_size)
    example = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    common = {"batch_size": given.batch_size, "augmentation": given.augmentation}  # of every recipe
    teacher = rd.Arm(given.teacher, width=given.width, recipe=rd.Recipe(given.teacher_epochs, **common))
    every = (extra_arms if given.extra else main_arms)(teacher, rd.student_name(given.teacher, given.factor), example)
    for name, tried in every.items():
        every[name] = [replace(arm, recipe=replace(arm.recipe, **common)) for arm in tried]
    names = [*every] if given.arms is None else [name.strip() for name in given.arms.split(";")]
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {'; '.join(every)}")
    if given.list:
        for name in names:
            arm = every[name][0]
            print(f"{name}: {arm.model} ×{arm.width:g}" + f" at {arm.image_size} px" * bool(arm.image_size))
        return
    cache = None if given.gpu else f"{given.runs}/cache"
    options = rd.RunOptions(given.runs, cpu=not given.gpu, cache=cache, cache_limit="20GB")
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        budget = rd.Budget(seconds=given.seconds, teacher_share=given.teacher_share, trial_share=0.5)
        arms = {name: every[name] for name in names}
        found = rd.compare(teacher, arms, data, budget=budget, seeds=given.seeds, options=options, executor=pool)
    found = replace(found, name=given.name or Path(given.data).name)
    found.save(given.output / found.name)
    pictures = Path(__file__).parent / "results" if given.output == rd.measured() else given.output
    folder = pictures / found.name
    folder.mkdir(parents=True, exist_ok=True)
    print(found.headline())
    print(found.table.round(2).to_string(index=False))
    figures.comparison(found).write_image(folder / "comparison.png", scale=2)
    figures.comparison_curves(found).write_image(folder / "curves.png", scale=2)
    if given.output != rd.measured():
        return
    kept = sorted(file.parent for file in given.output.glob("*/comparison.json"))
    every = {folder.name: Comparison.load(folder) for folder in kept}
    every = {name: each for name, each in every.items() if each.reference == "naive"}
    ways = [way for way in WAYS if any(way in each.arms for each in every.values())]
    figures.comparisons(every, ways).write_image(pictures / "comparisons.png", scale=2)


if __name__ == "__main__":
    main()
