"""Training and distilling denoisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.diffusion.noise import Denoising, blank_inputs, check_denoiser, classes_of, noise_loss
from redistill_lib.distill import Distillation, Tap, match_taps, read_taps
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models import create_model
from redistill_lib.models.saved import structure
from redistill_lib.network import map_shapes
from redistill_lib.runs import Run
from redistill_lib.train.arguments import Teacher, check_settings, check_splits, copy_to_train, open_teachers
from redistill_lib.train.diffusion_loop import DiffusionLoop, OnLog
from redistill_lib.train.diffusion_recipe import DIGITS_UNET, DiffusionRecipe
from redistill_lib.train.identity import fingerprint
from redistill_lib.train.loop import History, carry_out, open_accelerator


def train_diffusion(
    model: str | nn.Module = "unet-1-22",
    data: DataSplits | str | Path | None = None,
    recipe: DiffusionRecipe | None = None,
    *,
    unet: Mapping[str, Any] = DIGITS_UNET,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    mixed_precision: str = "no",
    cpu: bool = False,
    on_log: OnLog | None = None,
    progress: bool = True,
) -> Run:
    """Train a denoiser to predict the noise in images (DDPM, arXiv 2006.11239). The same call finds its run again.

    Arguments:
        model: a name such as ``"unet-1-22"``, built under `seed` for the data's channels with the options `unet`
            (of `create_model`; ``{}`` is the paper's network, ``{**DIGITS_UNET, "num_classes": 10}`` one that
            learns classes), or a network of your own, called as ``model(x, t)`` and returning the noise or something
            with ``.sample``, such as diffusers' UNet2DModel. With classes it is called ``model(x, t, labels)``, and
            says so by `num_classes` or diffusers' ``num_class_embeds``, which is one more. A copy of it is trained.
        data: what `load_data` returns, or its name; left out, the built-in digits at 16 px.
        on_log: called as ``on_log(history, images)`` each `log_every` steps; images (uint8) are None where none
            were drawn; called once, with the whole history, for a run found complete.
        runs_dir, mixed_precision, cpu: as for `train_classifier`.

    Returns the complete `Run`, which holds the averaged network and ``samples.png``; its metrics are
    ``validation_loss`` (see `denoising_loss`) of it and, as ``validation_loss_raw``, of the last weights themselves,
    ``parameters``, ``model_bytes``, ``seconds``, ``peak_bytes``, ``peak_at`` and ``peak_bytes_eager`` of one
    denoising pass. A network of your own comes back by ``load_model(run, network)``, and one of diffusers can then be
    written in its own format (`redistill_lib.diffusion.save_pretrained`).

    >>> run = train_diffusion("unet-1-22", recipe=DiffusionRecipe(steps=100))                  # doctest: +SKIP
    """
    recipe = recipe or DiffusionRecipe()
    seed = check_settings(recipe, DiffusionRecipe, seed)
    data = _data(data)
    network, spec = _network(model, data, unet, seed)
    check_denoiser(network, data, "network")
    params = {"task": "diffuse", "model": spec, "data": data.params, "recipe": asdict(recipe), "seed": seed}
    return _fit(Denoising(network), params, data, recipe, runs_dir, mixed_precision, cpu, on_log, progress)


def distill_diffusion(
    student: str | nn.Module,
    teacher: Teacher | Sequence[Teacher],
    data: DataSplits | str | Path | None = None,
    recipe: DiffusionRecipe | None = None,
    *,
    methods: str | Sequence[str | Method] | None = "red",
    taps: Sequence[Tap] | str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    distill_weight: float | None = 0.5,
    unet: Mapping[str, Any] = DIGITS_UNET,
    seed: int = 0,
    runs_dir: str | Path = "runs",
    mixed_precision: str = "no",
    cpu: bool = False,
    on_log: OnLog | None = None,
    progress: bool = True,
) -> Run:
    """Distil a student denoiser; otherwise as `train_diffusion`, with the same budget for the same recipe.

    Arguments:
        teacher: one or several of: a run, its folder, a network (frozen and put into eval mode).
        methods: as for `Distillation`, without ``kd``; ``red``'s alpha is 1 here unless `options`, a tap or a method
            object says otherwise. ``mse`` is the distance of the predicted noises (on the layer that ends both
            networks) unless taps carry it.
        taps: taps, or a YAML file of them; left out, `match_taps` pairs the student with the first teacher.
        distill_weight: a in (1 − a)·task + a·D, or None for the plain sum task + D.

    >>> run = distill_diffusion("unet-2-21", "runs/teacher", methods="red+mse")                # doctest: +SKIP
    """
    recipe = recipe or DiffusionRecipe()
    seed = check_settings(recipe, DiffusionRecipe, seed)
    taps = read_taps(taps) if isinstance(taps, str | Path) else taps
    chosen = _methods(methods, options, taps)
    data = _data(data)
    teachers, teacher_names = open_teachers(teacher, data, "denoiser")
    network, spec = _network(student, data, unet, seed)
    for role, model in [("student", network), *(("teacher", t) for t in teachers)]:
        check_denoiser(model, data, role)
        if classes_of(model) != classes_of(network):
            kinds = [f"{c} classes" if (c := classes_of(m)) else "no classes" for m in (network, model)]
            raise ValueError(f"the student learns {kinds[0]} and the teacher {kinds[1]}; give both the same")
    example = blank_inputs(network, data)
    if taps is None:
        taps = _matched(network, teachers[0], chosen, example)
    elif not any(m.name == "red" for m in chosen):
        taps = [replace(tap, alpha=1.0) if tap.method == "red" and tap.alpha is None else tap for tap in taps]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # the blocks' weights, whatever was drawn before
        trainee = Distillation(
            network, teachers, taps, chosen, distill_weight=distill_weight, example=example, task_loss=noise_loss
        )
    names = dict.fromkeys(term.method.name for term in trainee.terms)
    params = {
        "task": "distill diffusion",
        "model": spec,
        "methods": methods if isinstance(methods, str) else "+".join(names),
        "teachers": teacher_names,
        **trainee.settings(),
        "data": data.params,
        "recipe": asdict(recipe),
        "seed": seed,
    }
    return _fit(trainee, params, data, recipe, runs_dir, mixed_precision, cpu, on_log, progress)


def _fit(
    trainee: Denoising | Distillation,
    params: dict[str, Any],
    data: DataSplits,
    recipe: DiffusionRecipe,
    runs_dir: str | Path,
    mixed_precision: str,
    cpu: bool,
    on_log: OnLog | None,
    progress: bool,
) -> Run:
    accelerator = open_accelerator(mixed_precision, cpu)

    def begin(run: Run) -> DiffusionLoop:
        return DiffusionLoop(trainee, data, recipe, run, accelerator, on_log, progress)

    def found(history: History) -> None:
        if on_log:
            on_log(history, None)

    return carry_out(params, data, Path(runs_dir), accelerator, begin, found)


def _data(data: DataSplits | str | Path | None) -> DataSplits:
    if not isinstance(data, DataSplits):
        data = load_data("digits", image_size=16) if data is None else load_data(data)
    return check_splits(data, "train", "validation")


def _network(
    model: str | nn.Module, data: DataSplits, unet: Mapping[str, Any], seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if isinstance(model, nn.Module):
        model = copy_to_train(model)
        return model, {"name": type(model).__name__, "weights": fingerprint(model), "structure": structure(model)}
    if given := unet.keys() & {"name", "in_channels"}:
        raise ValueError(f"leave {' and '.join(given)} out of unet; model is the name, data give the channels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(model, in_channels=data.in_channels, **unet)
    return network, {"in_channels": data.in_channels, **unet, "name": network.name}


def _methods(
    methods: str | Sequence[str | Method] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
    taps: Sequence[Tap] | None,
) -> tuple[Method, ...]:
    """The methods as `Distillation` chooses them, with an alpha of 1 for a RED that is only named."""
    if methods is None:
        methods = () if taps and all(tap.method for tap in taps) else "red"
    made = parse_methods(methods, options)
    if "kd" in {*(method.name for method in made), *(tap.method for tap in taps or ())}:
        raise ValueError("kd compares class probabilities; a denoiser's prediction is compared by mse")
    if made == tuple(methods) or (options or {}).get("red", {}).get("alpha") is not None:
        return made
    return tuple(replace(method, alpha=1.0) if method.name == "red" else method for method in made)


def _matched(
    student: nn.Module, teacher: nn.Module, methods: Sequence[Method], example: tuple[torch.Tensor, ...]
) -> list[Tap]:
    """`match_taps` for what compares feature maps, and the ends of both networks for ``mse``."""
    features = [m for m in methods if m.name != "mse" and not m.on_outputs]
    taps = match_taps(student, teacher, example) if features else []
    if len(features) == len(methods):
        return taps
    taps = [replace(tap, method=method.name) for method in features for tap in taps]
    if any(m.name == "mse" for m in methods):
        ends = [map_shapes(model, *example)[-1][0].partition(".")[0] for model in (student, teacher)]
        taps.append(Tap(ends[0], "output", ends[1], "output", method="mse"))
    return taps
