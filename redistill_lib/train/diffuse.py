"""Training and distilling denoisers."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.diffusion.noise import check_denoiser, check_prediction, conditioning_of
from redistill_lib.distill import Objective, Tap
from redistill_lib.methods import KD, Method
from redistill_lib.models.unet import UNetConfig
from redistill_lib.runs import Run
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import DIGITS_UNET, DiffusionRecipe
from redistill_lib.train.setup import Lesson, Network, Setup, TeacherLike, differences, train
from redistill_lib.train.tasks import Denoising


def train_diffusion(
    model: str | nn.Module = "unet-1-22",
    data: DataSplits | str | Path | None = None,
    recipe: DiffusionRecipe | None = None,
    *,
    unet: Mapping[str, Any] = DIGITS_UNET,
    seed: int = 0,
    options: RunOptions | None = None,
) -> Run:
    """Train a denoiser (DDPM, arXiv 2006.11239). The same call finds the same run.

    Arguments:
        model: a name such as ``"unet-1-22"``, built under `seed` for the data's channels with the options `unet`
            (of `create_model`; ``{}`` is the paper's network, ``{**DIGITS_UNET, "num_classes": 10}`` one that
            learns classes), or a network of your own, of which a copy is trained: ``model(x, t)`` returns the noise
            or something with ``.sample``, as diffusers' UNet2DModel does. One with `num_classes` or diffusers'
            ``num_class_embeds`` is called ``model(x, t, labels)``.
        data: what `load_data` returns, or its name; left out, the built-in digits at 16 px.
        recipe: its `process` is the noise schedule and the kind of prediction.
        options: where and how to run.

    Returns the complete `Run` with the averaged network and ``samples.png``. Metrics: ``validation_loss`` (see
    `denoising_loss`) and, of the last weights, ``validation_loss_raw``; ``parameters``, ``model_bytes``,
    ``seconds``; ``peak_bytes``, ``peak_at`` and ``peak_bytes_eager`` of one denoising pass.
    `load_model(run, network)` gives a network of your own back; `redistill_lib.diffusion.save_pretrained` writes one
    of diffusers in its format.

    >>> run = train_diffusion("unet-1-22", recipe=DiffusionRecipe(steps=100))                  # doctest: +SKIP
    """
    return train(*_begin(model, data, recipe, unet, seed, options), "diffuse")


def distill_diffusion(
    student: str | nn.Module,
    teacher: TeacherLike | Sequence[TeacherLike],
    data: DataSplits | str | Path | None = None,
    recipe: DiffusionRecipe | None = None,
    *,
    methods: str | Method | Sequence[str | Method] | None = "red",
    taps: Sequence[Tap] | str | Path | None = None,
    objective: Objective | None = None,
    unet: Mapping[str, Any] = DIGITS_UNET,
    seed: int = 0,
    options: RunOptions | None = None,
) -> Run:
    """Distil a student denoiser; otherwise as `train_diffusion`, with as many steps for the same recipe.

    `teacher`, `taps`, `methods` and `objective` are as for `distill_classifier`, but methods that compare classes are
    refused, and ``red`` has an alpha of 1.

    >>> run = distill_diffusion("unet-2-21", "runs/teacher", methods="red+mse")                # doctest: +SKIP
    """
    setup, network, task = _begin(student, data, recipe, unet, seed, options)
    lesson = Lesson.check(setup, "denoiser", teacher, _weighed(methods), taps, objective)
    if wrong := [method.name for method in lesson.all_methods if isinstance(method, KD)]:
        raise ValueError(f"{wrong[0]} compares class probabilities; a denoiser's prediction is compared by mse")
    process, ours = setup.recipe.process, conditioning_of(network[0], setup.data.num_classes)
    for model, run in lesson.teachers:
        check_denoiser(model, setup.data, "teacher", process)
        if run is None:  # nothing says what it has learnt
            check_prediction(model, setup.data.validation, process, role="teacher", count=64)
        else:
            theirs = run.params.get("recipe", {}).get("process", {})
            here = asdict(process)
            if other := differences(theirs, here, "clip_sample"):  # concerns samplers alone
                told = ", ".join(f"{key} is {theirs.get(key)!r} there and {here[key]!r} here" for key in other)
                raise ValueError(f"teacher {run.id} learnt another process: {told}; give the recipe its process")
        if (theirs := conditioning_of(model, setup.data.num_classes)) != ours:
            told = f"the student learns {ours or 'no classes'} and the teacher {theirs or 'no classes'}"
            raise ValueError(f"{told}; give both the same")
    return train(setup, network, task, "distill diffusion", lesson)


def _weighed(methods: Any) -> Any:
    """Methods in which a RED that is only named has an alpha of 1, as in the DDPM configurations."""
    if isinstance(methods, str):
        return re.sub(r"(^|\+)\s*red\s*(?=\+|$)", r"\1red(alpha=1.0)", methods)
    return list(map(_weighed, methods)) if isinstance(methods, Sequence) else methods


def _begin(
    model: Any, data: Any, recipe: Any, unet: Any, seed: Any, options: Any
) -> tuple[Setup[DiffusionRecipe], Network, Denoising]:
    setup = Setup.check(
        DiffusionRecipe, load_data("digits", image_size=16) if data is None else data, recipe, seed, options
    )
    data, recipe = setup.data, setup.recipe
    if not isinstance(unet, Mapping) or not all(isinstance(key, str) for key in unet):
        raise TypeError(f"unet is a dict of options, such as DIGITS_UNET or {{}}, not {reprlib.repr(unet)}")
    if given := unet.keys() & {"name", "in_channels"}:
        raise ValueError(f"leave {' and '.join(given)} out of unet; model is the name, data give the channels")
    defaults = {"in_channels": data.in_channels, "num_classes": None, **asdict(UNetConfig())}
    network = setup.network(model, {**defaults, **unet})
    check_denoiser(network[0], data, "network", recipe.process)
    labels = conditioning_of(network[0], data.num_classes)
    known = (labels.classes, labels.null, recipe.label_dropout) if labels else ()
    shape = (data.in_channels, data.image_size, data.image_size)
    return setup, network, Denoising(recipe.process, shape, *known)
