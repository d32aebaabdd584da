"""What the view cache saves a sweep: 12 students of one teacher (2 plans × 3 methods × 2 seeds), with and without it.

    python benchmarks/sweep_cache.py

Each student is trained twice in turn, once under a live teacher and once under the cache, every second one the other
way round, so that both meet the same moments of a busy machine; times are of the processor, which waiting for it does
not change. The cache starts empty, and its making counts. Prints the seconds of every student and the ratio of the
sums.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import redistill_lib as rd

PLANS, METHODS, SEEDS = ("4-11221", "8-11121"), ("red", "kd", "red+kd"), (0, 1)


def seconds(*arguments: Any, **given: Any) -> float:
    start = time.process_time()
    rd.distill_classifier(*arguments, **given)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--images", type=int, default=512, help="in the training split")
    parser.add_argument("--pixels", type=int, default=80, help="height and width")
    parser.add_argument("--width", type=float, default=0.25)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = rd.load_data(
        "cluttered", image_size=given.pixels, train_size=given.images, validation_size=256, test_size=256
    )
    teacher = rd.create_model("resnet18-1-21222", num_classes=data.num_classes, in_channels=1, width=given.width)
    recipe = rd.Recipe(given.epochs, views=given.views, augmentation="crop+cutmix|mixup")
    totals = {"live": 0.0, "cached": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        caches = {"live": None, "cached": Path(folder, "cache")}
        for k, (plan, methods, seed) in enumerate(itertools.product(PLANS, METHODS, SEEDS)):
            took = {}
            for name in list(totals)[:: 1 if k % 2 else -1]:
                options = rd.RunOptions(Path(folder, name), cpu=True, progress=False, cache=caches[name])
                same = {"methods": methods, "seed": seed, "width": given.width, "options": options}
                took[name] = seconds(f"resnet18-{plan}", teacher, data, recipe, **same)
                totals[name] += took[name]
            told = ", ".join(f"{name} {took[name]:.1f} s" for name in totals)
            print(f"{plan} {methods} seed {seed}: {told}, {took['cached'] / took['live']:.2f}", flush=True)
        size = sum(file.stat().st_size for file in caches["cached"].rglob("*.npy"))
    print(
        f"{given.images} images of {given.pixels} px, {given.views} views, {given.epochs} epochs: "
        f"live {totals['live']:.0f} s, cached {totals['cached']:.0f} s and {size / 2**20:.1f} MiB, "
        f"ratio {totals['cached'] / totals['live']:.3f}"
    )


if __name__ == "__main__":
    main()
