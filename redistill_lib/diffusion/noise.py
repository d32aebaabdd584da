"""The forward process of a diffusion model, what a network is asked about it, and how well it answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import hint, is_number, whole
from redistill_lib.data import DataSplits
from redistill_lib.data.augment import to_float
from redistill_lib.network import answer, dtype_of, evaluating, output_of

SAMPLERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler"}
SCHEDULES = ("linear", "scaled_linear", "cosine", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What else a scheduler's configuration can say about the process, and the only value that is followed here.
FIXED = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False, "clip_sample_range": 1.0}


@dataclass(frozen=True)
class DiffusionProcess:
    """How images are noised and what a network predicts; the fields are those of diffusers' schedulers.

    `beta_schedule`: "linear" (arXiv 2006.11239), "scaled_linear" (latent diffusion) or "squaredcos_cap_v2", also
    given as "cosine" (2102.09672). `prediction_type`: "epsilon", the noise; "sample", the image; or "v_prediction",
    v = √ᾱ·ε − √(1−ᾱ)·x (2202.00512). `clip_sample`: whether images are within −1…1, to which samplers then clip;
    False for latents of an autoencoder. Raises ValueError for an unknown name and for a number out of range.

    >>> DiffusionProcess("cosine", "v_prediction").alphas_cumprod[500]
    tensor(0.4923)
    """

    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    clip_sample: bool = True

    def __post_init__(self) -> None:
        check_known("beta_schedule", self.beta_schedule, SCHEDULES)
        if self.beta_schedule == "cosine":
            object.__setattr__(self, "beta_schedule", "squaredcos_cap_v2")
        check_known("prediction_type", self.prediction_type, PREDICTIONS)
        whole("num_train_timesteps", self.num_train_timesteps)
        for label in ("beta_start", "beta_end"):
            if not is_number(beta := getattr(self, label)) or not 0 < beta < 1:
                raise ValueError(f"{label}={beta!r} is not a number between 0 and 1")

    @classmethod
    def from_config(cls, source: Any) -> DiffusionProcess:
        """The process of a diffusers scheduler, of its configuration, or of the folder of either or of a pipeline.

        Raises FileNotFoundError for a folder without one, ValueError for a process of another kind.
        """
        if isinstance(source, str | Path):
            files = [Path(source, name) for name in ("scheduler/scheduler_config.json", "scheduler_config.json")]
            if (file := next((file for file in files if file.is_file()), None)) is None:
                raise FileNotFoundError(f"{source} has no scheduler_config.json; give the folder of a pipeline")
            source = json.loads(file.read_text())
        config = source if isinstance(source, Mapping) else source.config
        name = config.get("_class_name") or type(source).__name__
        if "beta_schedule" not in config:
            raise ValueError(f"{name} has no beta_schedule, so it is of another kind of process than DDPM's")
        for label, value in FIXED.items():
            if config.get(label, value) != value:
                raise ValueError(f"{name} has {label}={config[label]}, which is not supported, only {value}")
        if "learned" in str(config.get("variance_type")):
            raise ValueError(f"{name} is for networks that also predict a variance, which is not supported")
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    def scheduler(self, sampler: str = "ddpm") -> Any:
        """diffusers' scheduler for a pipeline: ``ddim``, ``ddpm`` or ``dpm++`` (2M), with "trailing" time steps."""
        import diffusers

        check_known("sampler", sampler, SAMPLERS)
        ddpm: Any = diffusers.DDPMScheduler(**asdict(self), timestep_spacing="trailing")
        return getattr(diffusers, SAMPLERS[sampler]).from_config(ddpm.config)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each time step, float32: the share of the image in the variance of a noisy one."""
        steps = self.num_train_timesteps
        if self.beta_schedule == "squaredcos_cap_v2":  # arXiv 2102.09672, equation 17
            shares = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - shares[1:] / shares[:-1], 0.999)
        else:
            root = 0.5 if self.beta_schedule == "scaled_linear" else 1
            betas = np.linspace(self.beta_start**root, self.beta_end**root, steps) ** (1 / root)
        return torch.tensor(np.cumprod(1 - betas), dtype=torch.float32)

    def _weights(self, x: Tensor, t: Tensor) -> tuple[Any, Any, Any, Any]:
        """The weights of image and noise in x_t, √ᾱ_t and √(1−ᾱ_t), and in what is predicted."""
        kept = self.alphas_cumprod.to(x.device)[t].view(-1, 1, 1, 1)
        a, s = kept.sqrt().to(x.dtype), (1 - kept).sqrt().to(x.dtype)
        return a, s, *{"epsilon": (0, 1), "sample": (1, 0), "v_prediction": (-s, a)}[self.prediction_type]

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of images B×C×H×W at the time steps B (arXiv 2006.11239, equation 4)."""
        a, s, _, _ = self._weights(x, t)
        return a * x + s * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is asked to predict."""
        _, _, of_image, of_noise = self._weights(x, t)
        return of_image * x + of_noise * noise

    def start_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image that a prediction amounts to: `add_noise` and `target` solved for it."""
        a, s, of_image, of_noise = self._weights(x_t, t)
        return (of_noise * x_t - s * prediction) / (a * of_noise - s * of_image)

    def noise_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction amounts to."""
        a, s, of_image, of_noise = self._weights(x_t, t)
        return (a * prediction - of_image * x_t) / (a * of_noise - s * of_image)


def check_known(label: str, word: Any, known: Iterable[str]) -> None:
    if word not in tuple(known):
        close = hint(str(word).replace("pp", "++"), known)  # of DPM++
        raise ValueError(f"unknown {label} {word!r}{close} (known: {', '.join(known)})")


@dataclass(frozen=True)
class Conditioning:
    """The classes 0 to `classes` − 1 that a network takes labels of, and the label that means no class, if any."""

    classes: int
    null: int | None

    def __str__(self) -> str:
        return f"{self.classes} classes" + ("" if self.null is None else " and none")


def told(model: nn.Module, name: str) -> Any:
    """What a network tells of itself, in its config, as those of diffusers, or as an attribute."""
    config = getattr(model, "config", None)
    return getattr(config if hasattr(config, name) else model, name, None)


def conditioning_of(model: nn.Module, num_classes: int | None = None) -> Conditioning | None:
    """What labels a network takes; None where it takes none.

    A network with `num_classes` has one label more, which means no class. One of diffusers has as many as its
    ``config.num_class_embeds``; the last means no class only where the classes are known to be one fewer, from the
    data (`num_classes`) or from ``model.register_to_config(num_classes=10)``.
    """
    embeds, classes = told(model, "num_class_embeds"), told(model, "num_classes")
    if not embeds:
        return Conditioning(classes, classes) if classes else None
    null = embeds - 1
    return Conditioning(null, null) if (classes or num_classes) == null else Conditioning(embeds, None)


def check_call(
    model: nn.Module, shape: Sequence[int], labelled: bool, process: DiffusionProcess, role: str = "network"
) -> None:
    """Raise ValueError or TypeError where a network predicts nothing of images C×H×W, or knows other time steps."""
    expected = process.num_train_timesteps
    steps = int(told(model, "num_train_timesteps") or told(model, "T") or expected)
    if steps != expected:
        fix = f"give process=DiffusionProcess(num_train_timesteps={steps}), or build it with as many"
        raise ValueError(f"the {role} knows {steps} time steps; the schedule has {expected}; {fix}")
    device = next(model.parameters(), torch.zeros(0)).device
    x = torch.zeros(2, *shape, dtype=dtype_of(model), device=device)
    t = torch.zeros(2, dtype=torch.int64, device=device)
    inputs, called = ((x, t, t), "images, t, labels") if labelled else ((x, t), "images, t")
    prediction = answer(model, inputs, role, called=called)
    if prediction.shape != x.shape:
        raise ValueError(f"the {role} returns {tuple(prediction.shape)} for {tuple(x.shape)}, not their noise")


def check_denoiser(
    model: nn.Module, data: DataSplits, role: str = "network", process: DiffusionProcess | None = None
) -> None:
    """Raise ValueError or TypeError where a network cannot denoise these images."""
    channels, labels = told(model, "in_channels"), conditioning_of(model, data.num_classes)
    if channels not in (None, data.in_channels):
        raise ValueError(f"the {role} takes {channels} channels, but images of {data.name} have {data.in_channels}")
    if labels and labels.classes != data.num_classes:
        raise ValueError(f"the {role} takes {labels.classes} classes, but {data.name} has {data.num_classes}")
    shape = data.in_channels, data.image_size, data.image_size
    check_call(model, shape, labels is not None, process or DiffusionProcess(), role)


def denoising_loss(
    model: nn.Module,
    split: Any,
    *,
    process: DiffusionProcess | None = None,
    device: torch.device | str = "cpu",
    count: int = 512,
) -> float:
    """Mean squared error of the noise that a network's predictions amount to, over a split.

    Noise and time steps are always the same: `count` pairs of an image and a time step, spread evenly over all. It is
    an error of ε whatever the network predicts, so that networks can be compared; predicting no noise costs 1. Float
    images of a split (latents) are taken as they are.
    """
    process = process or DiffusionProcess()
    steps, draws = process.num_train_timesteps, torch.Generator().manual_seed(0)
    order = torch.randperm(len(split), generator=draws).repeat(-(-count // len(split)))[:count]
    times = (torch.arange(count) * steps + steps // 2) // count
    conditional, total = conditioning_of(model) is not None, 0.0
    with evaluating(model):
        for rows, t in zip(order.split(256), times.split(256), strict=True):
            images, labels = split.__getitems__(rows.tolist())
            x = images.float() if images.is_floating_point() else to_float(images)
            noise = torch.randn(x.shape, generator=draws)
            noisy, noise, t = process.add_noise(x, noise, t).to(device), noise.to(device), t.to(device)
            known = (labels.to(device),) if conditional else ()
            prediction = output_of(model(noisy.to(dtype_of(model)), t, *known)).float()
            total += float(F.mse_loss(process.noise_from(prediction, noisy, t), noise)) * len(rows)
    return total / count


def check_prediction(
    model: nn.Module, split: Any, process: DiffusionProcess, *, role: str = "network", count: int = 512
) -> float:
    """`denoising_loss`, with a warning where it is above 1 or another kind of prediction explains it far better."""
    kinds = {kind: replace(process, prediction_type=kind) for kind in PREDICTIONS}
    losses = {kind: denoising_loss(model, split, process=each, count=count) for kind, each in kinds.items()}
    loss, best, cause = losses[process.prediction_type], min(losses, key=losses.__getitem__), ""
    if losses[best] < loss / 10:
        cause = f"read as {best!r} it is {losses[best]:.3g}; give DiffusionProcess(prediction_type={best!r})"
    elif not loss <= 1:
        cause = "it predicts something else, or was trained with another schedule or on other images"
    if cause:
        text = f"the {role}'s denoising loss is {loss:.3g}, where predicting no noise at all costs 1: {cause}"
        warnings.warn(text, stacklevel=2)
    return loss
