"""Trainings of a second or less, of both tasks, for several test modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.diffusion import denoising_loss, sample
from redistill_lib.memory import profile_memory
from redistill_lib.models.saved import read_tensors
from redistill_lib.runs import Run
from redistill_lib.train import (
    DiffusionRecipe,
    Recipe,
    RunOptions,
    distill_classifier,
    distill_diffusion,
    tasks,
    train_classifier,
    train_diffusion,
    trainer,
)

TASKS = ("classifier", "denoiser")
PLANS = {"classifier": ("resnet18-1-21222", "resnet18-4-11221"), "denoiser": ("unet-1-22", "unet-2-21")}
RECIPES = {
    "classifier": Recipe(epochs=3, batch_size=32),
    "denoiser": DiffusionRecipe(steps=3, batch_size=16, warmup=1),
}
DOORS: dict[str, Any] = {
    "classifier": (train_classifier, distill_classifier),
    "denoiser": (train_diffusion, distill_diffusion),
}
WIDTH = 0.125
UNET: dict[str, Any] = {"ch": 8, "mult": (1, 2, 2), "attention": (2,), "res_blocks": 1, "dropout": 0.1}
COUNT = 24  # images that a denoiser's validation loss is read from here


@pytest.fixture(autouse=True, scope="module")
def quick_looks() -> Iterator[None]:
    """Denoisers are validated on few images and draw in few steps, and equal networks are profiled once.

    To be imported by each module that trains.
    """
    known: dict[Any, Any] = {}

    def profile(model: nn.Module, *inputs: Tensor, convention: str) -> Any:
        key = repr(model), tuple(x.shape for x in inputs), convention
        if key not in known:
            known[key] = profile_memory(model, *inputs, convention=convention)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "profile_memory", profile)
        patch.setattr(tasks, "denoising_loss", partial(denoising_loss, count=COUNT))
        patch.setattr(tasks, "sample", partial(sample, steps=2, batch_size=8))
        yield


def digits(task: str = "classifier", **kwargs: Any) -> DataSplits:
    size = {"image_size": 16, "limit": 96} if task == "classifier" else {"image_size": 8, "limit": 40}
    return load_data("digits", **{**size, "cache_dir": None} | kwargs)


def recipe_of(task: str, **changes: Any) -> Any:
    return replace(RECIPES[task], **changes)


def options(root: Path, **changes: Any) -> RunOptions:
    common: dict[str, Any] = {"cpu": True, "progress": False, "log_every": 1, "samples": 2}
    return RunOptions(runs_dir=root, **common | changes)


def call(task: str, door: int, root: Path, *networks: Any, **given: Any) -> Run:
    """A door, with small networks and data unless they are given; options of running are told by their names."""
    running = {key: given.pop(key) for key in RunOptions.__dataclass_fields__.keys() & given.keys()}
    small = {"width": WIDTH} if task == "classifier" else {"unet": UNET}
    common = {"data": digits(task), "recipe": RECIPES[task], "options": options(root, **running), **small}
    run: Run = DOORS[task][door](*networks, **common | given)
    return run


def train(task: str, root: Path, model: str | nn.Module | None = None, **given: Any) -> Run:
    return call(task, 0, root, model or PLANS[task][0], **given)


def distill(task: str, root: Path, teacher: Any, student: str | nn.Module | None = None, **given: Any) -> Run:
    return call(task, 1, root, student or PLANS[task][1], teacher, **given)


def weights(run: Run, name: str = "model") -> dict[str, Tensor]:
    return read_tensors(run.path / f"{name}.safetensors")[0]


def equal(a: Run, b: Run) -> bool:
    """Whether the results, the last weights and all that was noted but time are the same to the bit."""
    for name in ("model", "last"):
        ours, theirs = weights(a, name), weights(b, name)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
            return False
    return noted(a) == noted(b)


def noted(run: Run) -> tuple[str, dict[str, Any]]:
    """The history and the metrics without seconds."""
    metrics = {name: value for name, value in run.metrics.items() if name != "seconds"}
    return run.history().drop(columns=["seconds", "processor_seconds"]).to_csv(), metrics


class Stop:
    """Watches a training (`on_log`), and presses Ctrl-C after as many rows."""

    def __init__(self, rows: int = 10**9) -> None:
        self.rows = rows
        self.seen: list[int] = []

    def __call__(self, history: list[dict[str, float]], images: Tensor | None) -> None:
        self.seen.append(len(history))
        if len(history) == self.rows:
            raise KeyboardInterrupt
