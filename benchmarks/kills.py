"""Kill trainings at random times, resume them, and compare their ends with one that was left alone, bit for bit.

    python benchmarks/kills.py --kills 20

A classifier and a denoiser are distilled, on one thread, with all that a state has to hold: averaged weights,
optimizers, dropout, mixed images, blocks, a projector and a memory bank. Every second kill waits until a file is
being written. Prints the counts; fails at the first difference.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from redistill_lib import create_model, load_data
from redistill_lib.runs import Run
from redistill_lib.train import DiffusionRecipe, Recipe, RunOptions, distill_classifier, distill_diffusion

TASKS = ("classifier", "denoiser")
PART = ".*.part"  # a file that is being written
UNET = {"ch": 8, "mult": (1, 2, 2), "attention": (2,), "res_blocks": 1, "dropout": 0.1}


PRELOADED = [
    "accelerate",
    "diffusers.schedulers.scheduling_ddim",
    "diffusers.schedulers.scheduling_ddpm",
    "pandas",
    "redistill_lib.train.trainer",
    "sklearn.datasets",
    "torch._dynamo",
]


def train(task: str, root: str) -> Run:
    warnings.simplefilter("ignore")  # the teachers have learnt nothing
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load_data("digits", image_size=8 if task == "denoiser" else 16, limit=160, cache_dir=None)
    options = RunOptions(runs_dir=root, cpu=True, progress=False, log_every=3, sample_every=6, samples=1)
    common: dict[str, Any] = {"batch_size": 16, "augmentation": "crop", "ema_decay": 0.9}
    if task == "denoiser":
        teacher = create_model("unet-1-22", in_channels=1, **UNET)
        recipe = DiffusionRecipe(**common, steps=15, warmup=2)
        return distill_diffusion(
            "unet-2-21", teacher, data, recipe, methods="red+mse+fitnet", unet=UNET, options=options
        )
    teacher = create_model("resnet18-1-21222", num_classes=data.num_classes, in_channels=1, width=0.25)
    recipe = Recipe(**common | {"augmentation": "crop+cutmix|mixup"}, steps=27, epochs=None)
    methods = "red+kd+fitnet+crd(dim=8)"
    return distill_classifier("resnet18-4-11221", teacher, data, recipe, methods=methods, width=0.25, options=options)


def start(target: Callable[..., Any], *args: str) -> Any:
    context = get_context("forkserver")  # a server that has imported all and computed nothing
    context.set_forkserver_preload(PRELOADED)
    child = context.Process(target=target, args=args)
    child.start()
    return child


def finish(child: Any) -> None:
    child.join()
    assert child.exitcode == 0, f"the training ended with {child.exitcode}"


def left_alone(task: str, root: Path) -> tuple[dict[str, Any], float]:
    """What a training leaves that nobody kills, and its seconds."""
    finish(start(str))  # the server is there, so that most kills are not in vain
    begin = time.monotonic()
    finish(start(train, task, str(root / "whole")))
    return outcome(root / "whole"), time.monotonic() - begin


def killed(
    task: str, root: Path, seconds: float, draw: random.Random, most: int
) -> tuple[dict[str, Any], Counter[str]]:
    """What a training leaves that is killed up to `most` times within `seconds`, and when it was killed."""
    hits: Counter[str] = Counter()
    while hits.total() < most:
        left, writing = set(root.rglob(PART)), hits.total() % 2  # what the last kill left
        child = start(train, task, str(root))
        child.join(draw.uniform(0, 0.9 * seconds))
        while writing and child.is_alive() and set(root.rglob(PART)) <= left:
            time.sleep(0.0002)
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        hits["while writing" if set(root.rglob(PART)) - left else "between"] += 1
    finish(start(train, task, str(root)))
    return outcome(root), hits


def outcome(root: Path) -> dict[str, Any]:
    """All that a complete run's folder holds but what differs by the clock."""
    (record,) = root.glob("*/run.json")
    run = Run.load(record.parent)
    assert run.complete, run
    files = {path.name: path.read_bytes() for path in run.path.iterdir() if path.suffix in (".safetensors", ".png")}
    metrics = {name: value for name, value in run.metrics.items() if name != "seconds"}
    history = run.history().drop(columns=["seconds", "processor_seconds"]).to_csv()
    return {"id": run.id, "metrics": metrics, "history": history, **files}


def check(task: str, kills: int, root: Path, draw: random.Random, most: int = 4) -> Counter[str]:
    """Kill trainings until there were so many kills, up to `most` each. Raises AssertionError for unequal ends."""
    expected, seconds = left_alone(task, root)
    hits: Counter[str] = Counter()
    numbers = itertools.count()
    while hits.total() < kills:
        wanted = min(most, kills - hits.total())
        found, new = killed(task, root / f"killed-{next(numbers)}", seconds, draw, wanted)
        hits += new
        different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        assert not different, f"{task}: {', '.join(different)} differ after {dict(new)}"
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="for each task")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for task in TASKS:
        with tempfile.TemporaryDirectory() as folder:
            hits = check(task, options.kills, Path(folder), random.Random(options.seed))
        when = ", ".join(f"{count} {name}" for name, count in sorted(hits.items()))
        print(f"{task}: {hits.total()} kills ({when}), every end equal to the bit", flush=True)


if __name__ == "__main__":
    main()
