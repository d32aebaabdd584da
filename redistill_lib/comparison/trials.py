"""One training of an arm: made in any process, and what comes of it."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
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
from redistill_lib.distill import Distillation, Objective, match_taps
from redistill_lib.memory import profile_memory
from redistill_lib.methods import KD
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.network import evaluating, output_of
from redistill_lib.runs import Run, damaged, write_text
from redistill_lib.train import RunOptions, distill_classifier, train_classifier
from redistill_lib.train.setup import TeacherLike, open_teacher

PASSES = 21  # of one image, whose middle is the latency


@dataclass(frozen=True)
class Look:
    """What a comparison wants to know of a network that is chosen, beside what its run says."""

    right: NDArray[np.bool_]  # about each test image, in their order
    multiply_adds: float  # for one image, blocks included; NaN where they cannot be counted
    latency: float  # seconds for one image, on one thread of the machine that looked first


@dataclass(frozen=True)
class Trial:
    """A finished training, and a look at its network unless that is still a candidate."""

    run: Run
    history: pd.DataFrame
    look: Look | None


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
    chosen: bool,
) -> Trial:
    """An arm's run on one thread, as found or trained; `data` may be the JSON of `load_data`'s arguments."""
    splits = resized(_loaded(data) if isinstance(data, str) else data, arm.image_size)
    with one_thread():
        run = train_arm(arm, splits, epochs, seed, teacher, options)
        history = run.history()
        if "validation_accuracy" not in history:
            raise ValueError(damaged(run.path / "history.csv", ValueError("it has no epochs")))
        if not chosen and math.isnan(run.metrics.get("validation_accuracy", math.nan)):
            raise FloatingPointError(f"run {run.id} has no validation accuracy; delete {run.path} to train it again")
        look = look_at(run, lambda: _trained(arm, run, teacher, splits), splits) if chosen else None
    return Trial(run, history, look)


def _trained(arm: Arm, run: Run, teacher: TeacherLike | None, data: DataSplits) -> nn.Module:
    """The network of an arm's run, with the blocks of its own methods too, which `load_model` cannot build."""
    network = None if isinstance(arm.model, str) else arm.model
    if teacher is not None and any("class" in block for block in run.blocks):
        with torch.random.fork_rng(devices=[]):
            network = create_model(**run.params["model"]) if network is None else copy.deepcopy(network)
            theirs, image = open_teacher(teacher, data, "classifier")[0], _images(data, 2)
            taps = match_taps(network, theirs, image) if arm.taps is None else arm.taps
            network = Distillation(network, theirs, taps, arm.method_list, example=image).graduate()
    return load_model(run, network)


def _images(data: DataSplits, count: int) -> torch.Tensor:
    return torch.zeros(count, data.in_channels, data.image_size, data.image_size)


def look_at(run: Run, network: Callable[[], nn.Module], data: DataSplits) -> Look:
    """A look at a run's network, kept beside the run: a later call for the same test images finds the same."""
    file, image, test = run.path / "look.json", _images(data, 1), data.test
    told = test.digest + test.labels.numpy().tobytes() + repr((image.shape, run.digests)).encode()
    key = hashlib.sha256(told).hexdigest()
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # missing or damaged
        kept = dict(json.loads(file.read_bytes()))
        if kept["key"] == key:
            right = unpacked(kept["right"], len(test))
            return Look(right, float(kept["multiply_adds"]), float(kept["latency"]))
    model, adds = network(), math.nan
    with contextlib.suppress(Exception):  # as a run is kept whose network cannot be profiled
        adds = profile_memory(model, image).flops // 2
    look = Look(right_about(model, data), float(adds), _latency(model, image))
    with contextlib.suppress(OSError):  # of a store that can only be read
        write_text(file, json.dumps({"key": key, **vars(look), "right": packed(look.right)}))
    return look


def packed(right: NDArray[np.bool_]) -> str:
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> NDArray[np.bool_]:
    """What `packed` made of so many; ValueError for another number."""
    found = np.frombuffer(bytes.fromhex(text), np.uint8)
    if len(found) != -(-count // 8):
        raise ValueError(f"{len(found)} bytes do not hold {count} bits")
    return np.unpackbits(found, count=count).astype(bool)


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
