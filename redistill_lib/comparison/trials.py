"""One training of an arm: made in any process, and what comes of it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from redistill_lib.comparison.arms import Arm
from redistill_lib.data import DataSplits, LazyImages, TensorImages, load_data, to_float
from redistill_lib.data.splits import SPLITS, Split
from redistill_lib.distill import Objective
from redistill_lib.memory import profile_memory
from redistill_lib.methods import KD
from redistill_lib.models.saved import load_model
from redistill_lib.network import evaluating, output_of
from redistill_lib.runs import Run
from redistill_lib.train import RunOptions, distill_classifier, train_classifier
from redistill_lib.train.setup import TeacherLike

PASSES = 21  # of one image, whose middle is the latency


@dataclass(frozen=True)
class Trial:
    """A finished training, and whether it is right about each test image, in their order."""

    run: Run
    history: pd.DataFrame
    right: NDArray[np.bool_]
    multiply_adds: float  # for one image, blocks included; NaN where they cannot be counted
    latency: float  # seconds for one image, on one thread of the machine that trained it


def train_arm(
    arm: Arm, data: DataSplits, epochs: int, seed: int, teacher: TeacherLike | None, options: RunOptions
) -> Run:
    """An arm's run of so many epochs. The cross-entropy and each method keep their weights in every sum."""
    data = resized(data, arm.image_size)
    recipe = replace(arm.recipe, epochs=epochs, steps=None)
    common: dict[str, Any] = {"width": arm.width, "seed": seed, "options": options}
    if teacher is None or not arm.needs_teacher:
        return train_classifier(arm.model, data, recipe, **common)
    methods = arm.method_list or (KD(alpha=0.0),)  # which asks the teacher nothing
    objective = Objective(distill_weight=None, reduction="sum")
    lesson: dict[str, Any] = {"methods": methods, "taps": arm.taps, "objective": objective}
    return distill_classifier(arm.model, teacher, data, recipe, **lesson, **common)


def try_arm(
    arm: Arm,
    data: DataSplits | str,
    epochs: int,
    seed: int,
    teacher: TeacherLike | None,
    options: RunOptions,
) -> Trial:
    """An arm's run on one thread, as found or trained; `data` may be the JSON of `load_data`'s arguments."""
    splits = resized(_loaded(data) if isinstance(data, str) else data, arm.image_size)
    with one_thread():
        run = train_arm(arm, splits, epochs, seed, teacher, options)
        model = load_model(run, None if isinstance(arm.model, str) else arm.model)
        image = torch.zeros(1, splits.in_channels, splits.image_size, splits.image_size)
        adds = math.nan
        with contextlib.suppress(Exception):  # as a run is kept whose network cannot be profiled
            adds = profile_memory(model, image).flops // 2
        return Trial(run, run.history(), right_about(model, splits), adds, _latency(model, image))


@functools.lru_cache(2)
def _loaded(arguments: str) -> DataSplits:
    return load_data(**json.loads(arguments))


def resized(data: DataSplits, side: int | None) -> DataSplits:
    """The same images at another side in pixels."""
    if side in (None, data.image_size):
        return data

    def at(split: Split) -> Split:
        if isinstance(split, LazyImages):
            return replace(split, size=side)
        images = F.interpolate(split.images.float(), (side, side), mode="bilinear", antialias=True)
        return TensorImages(images.round().clamp(0, 255).to(torch.uint8), split.labels)

    splits: Any = {name: at(getattr(data, name)) for name in SPLITS}
    return replace(data, **splits, image_size=side, params={**data.params, "resized": side})


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def right_about(model: nn.Module, data: DataSplits) -> NDArray[np.bool_]:
    with evaluating(model):
        batches = map(data.test.__getitems__, torch.arange(len(data.test)).split(256))
        found = [output_of(model(to_float(images))).argmax(1) == labels for images, labels in batches]
    return torch.cat(found).numpy()


def _latency(model: nn.Module, image: torch.Tensor) -> float:
    seconds = []
    with evaluating(model):
        for _ in range(PASSES):
            start = time.process_time()
            model(image)
            seconds.append(time.process_time() - start)
    return statistics.median(seconds)
