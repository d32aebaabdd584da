"""Training and distilling denoisers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.checkpoint import fingerprint, load_model, structure
from redistill_lib.data import DataSplits, load_data
from redistill_lib.diffusion.denoise import Denoising, blank_inputs, check_denoiser, classes_of, noise_loss
from redistill_lib.diffusion.loop import DiffusionLoop, OnLog
from redistill_lib.diffusion.recipe import DIGITS_UNET, DiffusionRecipe
from redistill_lib.distill import Distillation
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models import create_model
from redistill_lib.runs import Run
from redistill_lib.taps import Tap, map_shapes, match_taps, read_taps
from redistill_lib.train.loop import History, carry_out, open_accelerator

Teacher = Run | str | Path | nn.Module


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
    """Train a denoiser to predict the noise in pictures (DDPM, arXiv 2006.11239). The same call finds its run again.

    Arguments:
        model: a name such as ``"unet-1-22"``, built under `seed` for the data's channels with the options `unet`
            (of `create_model`; ``{}`` is the paper's network, ``{**DIGITS_UNET, "num_classes": 10}`` one that
            learns classes), or a network of your own, called as ``model(x, t)`` and returning the noise or something
            with ``.sample``, such as diffusers' UNet2DModel. With classes it is called ``model(x, t, labels)``, and
            says so by `num_classes` or diffusers' ``num_class_embeds``, which is one more. A copy of it is trained.
        data: what `load_data` returns, or its name; left out, the built-in digits at 16 px.
        on_log: called as ``on_log(history, pictures)`` each `log_every` steps; pictures (uint8) are None where none
            were drawn; called once, with the whole history, for a run found complete.
        runs_dir, mixed_precision, cpu: as for `train_classifier`.

    Returns the complete `Run`, which holds the averaged network and ``samples.png``; its metrics are
    ``validation_loss`` (see `denoising_loss`) of it and, as ``validation_loss_raw``, of the last weights themselves,
    ``parameters``, ``model_bytes``, ``seconds``, ``peak_bytes``, ``peak_at`` and ``peak_bytes_eager`` of one
    denoising pass. A network of your own comes back by ``load_model(run, network)``: of diffusers' UNet2DModel,
    ``load_model(run, UNet2DModel(...)).save_pretrained(folder)`` writes its own format.

    >>> run = train_diffusion("unet-1-22", recipe=DiffusionRecipe(steps=100))                  # doctest: +SKIP
    """
    data, recipe = _data(data), recipe or DiffusionRecipe()
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
    methods: str | Sequence[Method] | None = "red",
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
        methods: as for `Distillation`; ``red``'s alpha is 1 here unless `options` or a tap says otherwise. ``mse`` is
            the distance of the predicted noises (on the layer that ends both networks) unless taps carry it.
        taps: taps, or a YAML file of them; left out, `match_taps` pairs the student with the first teacher.
        distill_weight: a in (1 − a)·task + a·D, or None for the plain sum task + D.

    >>> run = distill_diffusion("unet-2-21", "runs/teacher", methods="red+mse")                # doctest: +SKIP
    """
    data, recipe = _data(data), recipe or DiffusionRecipe()
    several = [teacher] if isinstance(teacher, Run | str | Path | nn.Module) else list(teacher)
    teachers = [copy.deepcopy(t).cpu() if isinstance(t, nn.Module) else load_model(t) for t in several]
    network, spec = _network(student, data, unet, seed)
    for role, model in [("student", network), *(("teacher", t) for t in teachers)]:
        check_denoiser(model, data, role)
        if classes_of(model) != classes_of(network):
            kinds = [f"{c} classes" if (c := classes_of(m)) else "no classes" for m in (network, model)]
            raise ValueError(f"the student learns {kinds[0]} and the teacher {kinds[1]}; give both the same")
    example = blank_inputs(network, data)
    if isinstance(methods, str) and "red" in methods.split("+"):
        options = {**(options or {}), "red": {"alpha": 1.0, **(options or {}).get("red", {})}}
    chosen = None if methods is None else parse_methods(methods, options)
    if isinstance(taps, str | Path):
        taps = read_taps(taps)
    elif taps is None:
        taps = _matched(network, teachers[0], chosen, example)
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
        "teachers": [
            fingerprint(t) if isinstance(t, nn.Module) else t.id if isinstance(t, Run) else Path(t).name
            for t in several
        ],
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
    if isinstance(data, DataSplits):
        return data
    return load_data("digits", image_size=16) if data is None else load_data(data)


def _network(
    model: str | nn.Module, data: DataSplits, unet: Mapping[str, Any], seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model).cpu()  # the caller's stays as it is, so the same call finds the same run
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters()):
            raise ValueError(
                "training starts from float32 weights; give mixed_precision='bf16' instead of a converted network"
            )
        return model, {"name": type(model).__name__, "weights": fingerprint(model), "structure": structure(model)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = create_model(model, in_channels=data.in_channels, **unet)
    return network, {"in_channels": data.in_channels, **unet, "name": network.name}


def _matched(
    student: nn.Module, teacher: nn.Module, methods: Sequence[Method] | None, example: tuple[torch.Tensor, ...]
) -> list[Tap]:
    """`match_taps` for what compares feature maps, and the ends of both networks for ``mse``."""
    features = [m for m in methods or () if m.name != "mse" and not m.on_outputs]
    taps = match_taps(student, teacher, example) if features or methods is None else []
    if methods is None or len(features) == len(methods):
        return taps
    taps = [replace(tap, method=method.name) for method in features for tap in taps]
    if any(m.name == "mse" for m in methods):
        ends = [map_shapes(model, *example)[-1][0].partition(".")[0] for model in (student, teacher)]
        taps.append(Tap(ends[0], "output", ends[1], "output", method="mse"))
    return taps
