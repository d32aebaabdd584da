"""Training and distilling classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.distill import Distillation, Tap, match_taps, read_taps
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models import create_model
from redistill_lib.models.saved import structure
from redistill_lib.runs import Run
from redistill_lib.train.arguments import Teacher, check_settings, check_splits, copy_to_train, open_teachers
from redistill_lib.train.identity import fingerprint
from redistill_lib.train.loop import History, Supervised, fit
from redistill_lib.train.recipe import Recipe


def train_classifier(
    model: str | nn.Module,
    data: DataSplits | str | Path = "cluttered",
    recipe: Recipe | None = None,
    *,
    width: float = 1.0,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    mixed_precision: str = "no",
    cpu: bool = False,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train a classifier, choose its epoch on validation, read test once. The same call finds its run again.

    Arguments:
        model: a name such as ``"resnet18-1-21222"``, built under `seed` for the data's classes and channels at
            `width`, or a network of your own, of which a copy is trained from the weights it has;
            `load_model(run, network)` then gives the result.
        data: what `load_data` returns, or its name.
        runs_dir: the run store; an unfinished run there with the same parameters is resumed.
        mixed_precision: ``no``, ``bf16`` or, on a GPU, ``fp16``; cpu: stay on the CPU where there is a GPU.
        on_epoch: called with the history so far after each epoch; once, with all of it, for a run found complete.

    Returns the complete `Run`: metrics ``validation_accuracy``, ``test_accuracy`` (both at the best epoch on
    validation), ``test_accuracy_last``, ``best_epoch``, ``parameters``, ``seconds``, ``peak_bytes`` (activations of
    one image in fp32, ``fused`` convention; ``peak_bytes_eager`` is PyTorch's) and ``peak_at``. Under ``torchrun``
    or ``accelerate.notebook_launcher`` the batch is shared among the processes.

    >>> run = train_classifier("mobilenetv3_small", load_data("digits"), Recipe(epochs=1))    # doctest: +SKIP
    """
    recipe = recipe or Recipe()
    seed = check_settings(recipe, Recipe, seed)
    data = _data(data)
    network, spec = _network(model, data, width, seed)
    params = {"task": "classify", "model": spec, "data": data.params, "recipe": asdict(recipe), "seed": seed}
    trainee = Supervised(network, nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing))
    return fit(trainee, params, data, recipe, Path(runs_dir), mixed_precision, cpu, on_epoch, progress)


def distill_classifier(
    student: str | nn.Module,
    teacher: Teacher | Sequence[Teacher],
    data: DataSplits | str | Path = "cluttered",
    recipe: Recipe | None = None,
    *,
    methods: str | Sequence[str | Method] | None = "red",
    taps: Sequence[Tap] | str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    distill_weight: float | None = 0.5,
    width: float = 1.0,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    mixed_precision: str = "no",
    cpu: bool = False,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = True,
) -> Run:
    """Distil a student classifier; otherwise as `train_classifier`, with the same budget for the same recipe.

    Arguments:
        teacher: one or several of: a run, its folder, a network (frozen and put into eval mode).
        taps: taps, or a YAML file of them; left out, `match_taps` pairs the student with the first teacher.
        methods, options, distill_weight: as for `Distillation`.

    >>> run = distill_classifier("resnet18-4-11221", "runs/teacher", methods="red+kd")         # doctest: +SKIP
    """
    recipe = recipe or Recipe()
    seed = check_settings(recipe, Recipe, seed)
    data = _data(data)
    teachers, names = open_teachers(teacher, data, "classifier")
    network, spec = _network(student, data, width, seed)
    example = _example(data)
    if isinstance(taps, str | Path):
        taps = read_taps(taps)
    elif taps is None:
        taps = match_taps(network, teachers[0], example) if _wants_taps(methods) else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # the blocks' weights, whatever was drawn before
        trainee = Distillation(
            network, teachers, taps, methods, options=options, distill_weight=distill_weight, example=example,
            task_loss=nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing),
        )  # fmt: skip
    params = {
        "task": "distill",
        "model": spec,
        "methods": methods
        if isinstance(methods, str)
        else "+".join(dict.fromkeys(t.method.name for t in trainee.terms)),
        "teachers": names,
        **trainee.settings(),
        "data": data.params,
        "recipe": asdict(recipe),
        "seed": seed,
    }
    return fit(trainee, params, data, recipe, Path(runs_dir), mixed_precision, cpu, on_epoch, progress)


def _data(data: DataSplits | str | Path) -> DataSplits:
    return check_splits(data if isinstance(data, DataSplits) else load_data(data), "train", "validation", "test")


def _network(model: str | nn.Module, data: DataSplits, width: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    if isinstance(model, nn.Module):
        model = copy_to_train(model)
        prints = {"weights": fingerprint(model, _example(data)), "structure": structure(model)}
        return model, {"name": type(model).__name__, **prints}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(model, num_classes=data.num_classes, in_channels=data.in_channels, width=width)
    return network, {
        "name": network.name,
        "num_classes": data.num_classes,
        "in_channels": data.in_channels,
        "width": width,
    }


def _example(data: DataSplits) -> torch.Tensor:
    return torch.zeros(2, data.in_channels, data.image_size, data.image_size)


def _wants_taps(methods: str | Sequence[str | Method] | None) -> bool:
    return methods is None or any(not m.on_outputs for m in parse_methods(methods))
