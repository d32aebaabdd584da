"""Training and distilling classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from redistill_lib.checks import check_type
from redistill_lib.data import DataSplits
from redistill_lib.distill import Objective, Tap
from redistill_lib.methods import Method
from redistill_lib.models import ARCHITECTURES
from redistill_lib.network import answer
from redistill_lib.runs import Run
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import Recipe
from redistill_lib.train.setup import Lesson, Network, Setup, TeacherLike, train
from redistill_lib.train.tasks import Classification


def train_classifier(
    model: str | nn.Module,
    data: DataSplits | str | Path = "cluttered",
    recipe: Recipe | None = None,
    *,
    width: float = 1.0,
    seed: int = 0,
    options: RunOptions | None = None,
) -> Run:
    """Train a classifier, choose its epoch on validation, read test once. The same call finds the same run.

    Arguments:
        model: a name such as ``"resnet18-1-21222"``, built under `seed` for the data's classes and channels at
            `width`, or a network of your own, of which a copy is trained; `load_model(run, network)` gives it back.
        data: what `load_data` returns, or its name.
        seed: of new weights, the order of images and dropout, not of augmentations.
        options: where and how to run.

    Returns the complete `Run`. Metrics: ``validation_accuracy`` and ``test_accuracy`` of the best epoch on
    validation, ``test_accuracy_last``, ``best_epoch``, ``parameters``, ``seconds``, ``peak_bytes`` (activations of
    one image in fp32, ``fused`` convention; ``peak_bytes_eager`` is PyTorch's), ``peak_at``. Under ``torchrun`` the
    batch is shared among the processes.

    >>> run = train_classifier("mobilenetv3_small", load_data("digits"), Recipe(epochs=1))    # doctest: +SKIP
    """
    return train(*_begin(model, data, recipe, width, seed, options), "classify")


def distill_classifier(
    student: str | nn.Module,
    teacher: TeacherLike | Sequence[TeacherLike],
    data: DataSplits | str | Path = "cluttered",
    recipe: Recipe | None = None,
    *,
    methods: str | Method | Sequence[str | Method] | None = "red",
    taps: Sequence[Tap] | str | Path | None = None,
    objective: Objective | None = None,
    width: float = 1.0,
    seed: int = 0,
    options: RunOptions | None = None,
) -> Run:
    """Distil a student classifier; otherwise as `train_classifier`, with as many steps for the same recipe.

    Arguments:
        teacher: one or several of: a run, its folder, a network (frozen and put into eval mode).
        taps: taps, or a YAML file of them; left out, `match_taps` pairs the student with the first teacher.
        methods, objective: as for `Distillation`.

    >>> run = distill_classifier("resnet18-4-11221", "runs/teacher", methods="red+kd")         # doctest: +SKIP
    """
    setup, network, task = _begin(student, data, recipe, width, seed, options)
    lesson = Lesson.check(setup, "classifier", teacher, methods, taps, objective)
    for model, _ in lesson.teachers:
        answer(model, task.example(setup.data, 2), "teacher")
    return train(setup, network, task, "distill", lesson)


def _begin(
    model: Any, data: Any, recipe: Any, width: Any, seed: Any, options: Any
) -> tuple[Setup[Recipe], Network, Classification]:
    setup = Setup.check(Recipe, data, recipe, seed, options)
    data = setup.data
    size = {"num_classes": data.num_classes, "in_channels": data.in_channels}
    if isinstance(model, str) and (facts := ARCHITECTURES.get(model.partition("-")[0])) and facts.sized:
        size["image_size"] = data.image_size
    network = setup.network(model, {**size, "width": check_type("width", width, float)})
    task = Classification(setup.recipe.label_smoothing)
    logits = answer(network[0], task.example(data, 2))
    if not logits.is_floating_point() or logits.ndim != 2 or len(logits) != 2 or logits.shape[1] < data.num_classes:
        raise ValueError(
            f"the network answers {tuple(logits.shape)} for two images of {data.num_classes} classes; a classifier "
            f"answers (2, {data.num_classes}) in floating point"
        )
    return setup, network, task
