"""What the training and distilling calls are given, checked before any work: settings, images, networks."""

from __future__ import annotations

import copy
import reprlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.checks import whole
from redistill_lib.data import DataSplits
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.train.identity import fingerprint

Teacher = Run | str | Path | nn.Module
TASKS = {"classify": "classifier", "distill": "classifier", "diffuse": "denoiser", "distill diffusion": "denoiser"}


def check_settings(recipe: Any, kind: type, seed: int) -> int:
    """Raise where a recipe is of another kind; the seed, a whole number from 0 up."""
    if not isinstance(recipe, kind):
        raise TypeError(f"this training takes a {kind.__name__} as its recipe, not a {type(recipe).__name__}")
    return whole("seed", seed, 0)


def check_splits(data: DataSplits, *splits: str) -> DataSplits:
    for split in splits:
        if not len(getattr(data, split)):
            raise ValueError(f"the {split} split of {data.name} is empty; give it at least one image")
    return data


def copy_to_train(model: nn.Module) -> nn.Module:
    """A copy on the CPU: the caller's network stays as it is, so that the same call finds the same run."""
    model = copy.deepcopy(model).cpu()
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError(
            "training starts from float32 weights; give mixed_precision='bf16' instead of a converted network"
        )
    return model


def open_teachers(given: Any, data: DataSplits, kind: str) -> tuple[list[nn.Module], list[str]]:
    """The teachers' networks in float32, and what a record calls them: a run's id, a network's fingerprint.

    Raises for anything but teachers and for runs of another `kind` (``classifier`` or ``denoiser``); warns of a run
    that was trained on other images than `data`.
    """
    several = [given] if isinstance(given, Teacher) else list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(teacher, Teacher) for teacher in several):
        raise TypeError(
            "teacher is a run, its folder or a network, or a list of at least one of these, "
            f"not {reprlib.repr(given)}"
        )
    models, names = [], []
    for teacher in several:
        if isinstance(teacher, nn.Module):
            models.append(copy.deepcopy(teacher).cpu().float())
            names.append(fingerprint(teacher))
            continue
        run = teacher if isinstance(teacher, Run) else Run.load(teacher)
        if (its := TASKS.get(run.params.get("task", ""), kind)) != kind:
            raise ValueError(f"teacher {run.id} is a {its}; a {kind} learns from a {kind}'s run")
        models.append(load_model(run))
        names.append(run.id)
        if other := _differences(run.params.get("data"), data.params):
            warnings.warn(
                f"teacher {run.id} was trained on other images than the student gets: {other} differ", stacklevel=3
            )
    return models, names


def _differences(theirs: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """What the parameters of two data sets differ in, as far as both are known; a limit takes part of the same."""
    if not theirs or not ours:
        return ""
    return ", ".join(key for key in {**theirs, **ours} if key != "limit" and theirs.get(key) != ours.get(key))
