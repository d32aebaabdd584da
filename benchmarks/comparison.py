"""At one peak of memory: pool or narrow, and what does a teacher add? Every arm within the same processor seconds.

    python benchmarks/comparison.py                     `cluttered`: five hours of one core; finished runs are reused
    python benchmarks/comparison.py --data FOLDER       such as CIFAR-10 in parquet files; --limit takes part of it
    python benchmarks/comparison.py --data pairs        the built-in task that is short of capacity
    python benchmarks/comparison.py --arms "naive;narrow, KD" --seeds 2 --seconds 60

The teacher is ResNet-18 `1-21222` at a quarter of its width, or at `--width`. Students need one peak (fp32, `fused`):

- `4-11221` of the same width, pooled four times harder in its first layer, as in the paper: alone (`naive`), from the
  teacher's weights, and taught by KD, RED, both, another method, and RED's block without its loss;
- `4-11212`, whose last stages pool later (`late`): alone, and taught by what the paper would take;
- `2-21122` at half the width (`narrow`): alone and taught, without RED's blocks, which would double its peak.

1. Every arm has two candidates (learning rate or weight of its losses), tried with half the seconds on a seed of
   their own; the best on validation is taken.
2. Each seed trains a teacher of 12 epochs, and every arm. Who learns from it pays for it first, and for its share of
   the kept answers to 16 views of each image, which KD and RED read in the teacher's place.

In every arm the loss is the cross-entropy plus each method's alpha times its loss. One thread per training, `--jobs`
trainings at a time. Writes benchmarks/results/<data>/: what `Comparison.load` reads, with a row per run in runs.csv,
and two figures (they need Chrome or Chromium), and prints the table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import redistill_lib as rd
from redistill_lib import figures

TEACHER, POOLED, LATE, NARROW = (f"resnet18-{plan}" for plan in ("1-21222", "4-11221", "4-11212", "2-21122"))
VIEWS = 16
KD = ("kd(temperature=4.0)", "kd(temperature=4.0, alpha=3.0)")
RED = ("red(alpha=5.0)", "red(alpha=15.0)")
BOTH = tuple(f"{red}+kd(temperature=4.0)" for red in RED)
LOSS = tuple(f"{red.replace('red', 'red-loss')}+kd(temperature=4.0)" for red in RED)


def arms(width: float) -> dict[str, list[rd.Arm]]:
    """The ways to one peak, by name, the reference first; two candidates of each."""

    def taught(model: str, methods: tuple[str, ...], width: float = width, **recipe: Any) -> list[rd.Arm]:
        return [rd.Arm(model, each, width, recipe=rd.Recipe(views=VIEWS, **recipe)) for each in methods]

    def rated(model: str, width: float = width, methods: str | None = None, **recipe: Any) -> list[rd.Arm]:
        rates = (0.05, 0.1) if recipe else (0.1, 0.2)
        return [rd.Arm(model, methods, width, recipe=rd.Recipe(learning_rate=rate, **recipe)) for rate in rates]

    half = width / 2
    return {
        "naive": rated(POOLED),
        "from the teacher": rated(POOLED, init="teacher"),
        "RED blocks": rated(POOLED, methods="red-blocks"),
        "KD": taught(POOLED, KD),
        "RED": taught(POOLED, RED),
        "RED blocks + KD": taught(POOLED, tuple(f"red-blocks+{kd}" for kd in KD)),
        "RED + KD": taught(POOLED, BOTH),
        "DIST": taught(POOLED, ("dist", "dist(alpha=0.3)")),
        "KD, from the teacher": taught(POOLED, KD, init="teacher"),
        "RED + KD, from the teacher": taught(POOLED, BOTH, init="teacher"),
        "late": rated(LATE),
        "late, RED + KD, from the teacher": taught(LATE, BOTH, init="teacher"),
        "narrow": rated(NARROW, half),
        "narrow, KD": taught(NARROW, KD, half),
        "narrow, RED loss + KD": taught(NARROW, LOSS, half),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cluttered")
    parser.add_argument("--limit", type=int, help="images of each split")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="some of them, by name, with semicolons between")
    parser.add_argument("--runs", default="runs/comparison")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    every = arms(given.width)
    names = [*every] if given.arms is None else [name.strip() for name in given.arms.split(";")]
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {', '.join(every)}")
    data = rd.load_data(given.data, limit=given.limit, image_size=given.image_size)
    options = rd.RunOptions(given.runs, cpu=True, cache=f"{given.runs}/cache", cache_limit="20GB")
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        budget = rd.Budget(seconds=given.seconds, trial_share=0.5)
        common: dict[str, Any] = {"seeds": given.seeds, "options": options, "executor": pool}
        chosen = {name: every[name] for name in names}
        found = rd.compare(rd.Arm(TEACHER, width=given.width), chosen, data, budget=budget, **common)
    folder = found.save(given.output / Path(given.data).name)
    print(found.headline())
    print(found.table.round(2).to_string(index=False))
    figures.comparison(found).write_image(folder / "comparison.png", scale=2)
    figures.comparison_curves(found).write_image(folder / "curves.png", scale=2)


if __name__ == "__main__":
    main()
