"""The forward process of a diffusion model, what a network is asked about it, and how well it answers."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import hint, is_number, whole
from redistill_lib.data import DataSplits, as_batch
from redistill_lib.data.augment import to_float
from redistill_lib.network import evaluating
from redistill_lib.network.dtypes import dtype_of

SAMPLERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler"}
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# What else a scheduler's configuration can say about the process, and the only value that is followed here.
FIXED = {"trained_betas": None, "rescale_betas_zero_snr": False, "thresholding": False, "clip_sample_range": 1.0}
VALIDATED = 512  # images with noise that a validation loss is the mean of

Inputs = tuple[Tensor, ...]  # x, t and, for a network with classes, labels


@dataclass(frozen=True)
class DiffusionProcess:
    """How images are noised and what a network predicts; the fields are those of diffusers' schedulers.

    `beta_schedule`: "linear" (arXiv 2006.11239), "scaled_linear" (latent diffusion) or "squaredcos_cap_v2", which is
    also known as "cosine" (2102.09672). `prediction_type`: "epsilon", the noise; "sample", the image; or
    "v_prediction", v = √ᾱ·ε − √(1−ᾱ)·x (2202.00512). `clip_sample`: whether images are within −1…1, to which samplers
    then clip; False for latents of an autoencoder. `asdict` makes JSON of it.

    Raises ValueError for a name or number that there is not.

    >>> process = DiffusionProcess("cosine", "v_prediction")
    >>> x, noise, t = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([600])
    >>> noisy, v = process.add_noise(x, noise, t), process.target(x, noise, t)
    >>> torch.allclose(process.start_from(v, noisy, t), x, atol=1e-5)
    True
    """

    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    clip_sample: bool = True

    def __post_init__(self) -> None:
        if self.beta_schedule == "cosine":
            object.__setattr__(self, "beta_schedule", "squaredcos_cap_v2")
        for label, known in (("beta_schedule", SCHEDULES), ("prediction_type", PREDICTIONS)):
            if (word := getattr(self, label)) not in known:
                raise ValueError(f"unknown {label} {word!r}{hint(word, known)} (known: {', '.join(known)})")
        whole("num_train_timesteps", self.num_train_timesteps)
        for label in ("beta_start", "beta_end"):
            if not is_number(beta := getattr(self, label)) or not 0 < beta < 1:
                raise ValueError(f"{label}={beta!r} is not a number between 0 and 1")

    @classmethod
    def from_config(cls, source: Any) -> DiffusionProcess:
        """The process of a diffusers scheduler, of its configuration, or of the folder of either or of a pipeline.

        Raises FileNotFoundError for a folder without one, ValueError for a process of another kind.

        >>> DiffusionProcess.from_config({"beta_schedule": "linear", "prediction_type": "sample"}).prediction_type
        'sample'
        """
        if isinstance(source, str | Path):
            files = [Path(source, name) for name in ("scheduler/scheduler_config.json", "scheduler_config.json")]
            if (file := next((file for file in files if file.is_file()), None)) is None:
                raise FileNotFoundError(f"{source} has no scheduler_config.json; give the folder of a pipeline")
            source = json.loads(file.read_text())
        config = source if isinstance(source, Mapping) else source.config
        own = type(source).__name__ if config is not source else "this configuration"
        name = config.get("_class_name", own)
        if "beta_schedule" not in config:
            raise ValueError(f"{name} has no beta_schedule, so it is of another kind of process than DDPM's")
        for label, value in FIXED.items():
            if config.get(label, value) != value:
                raise ValueError(f"{name} has {label}={config[label]}, which is not supported, only {value}")
        if "learned" in str(config.get("variance_type")):
            raise ValueError(f"{name} is for networks that also predict a variance, which is not supported")
        return cls(**{f.name: config[f.name] for f in fields(cls) if f.name in config})

    def scheduler(self, sampler: str = "ddpm") -> Any:
        """diffusers' scheduler for a pipeline: ``ddim``, ``ddpm`` or ``dpm++`` (2M).

        It starts at the noisiest step ("trailing" spacing, arXiv 2305.08891).
        """
        import diffusers

        check_sampler(sampler)
        ddpm: Any = diffusers.DDPMScheduler(**asdict(self), timestep_spacing="trailing")
        return getattr(diffusers, SAMPLERS[sampler]).from_config(ddpm.config)

    @cached_property
    def _kept(self) -> np.ndarray:  # no tensor, since one made while a network is traced would be a fake one
        steps, first, last = self.num_train_timesteps, self.beta_start, self.beta_end
        match self.beta_schedule:
            case "linear":
                betas = np.linspace(first, last, steps)
            case "scaled_linear":
                betas = np.linspace(first**0.5, last**0.5, steps) ** 2
            case _:  # arXiv 2102.09672, equation 17
                shares = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
                betas = np.minimum(1 - shares[1:] / shares[:-1], 0.999)
        return np.cumprod(1 - betas).astype(np.float32)

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ of each time step, float32: the share of the image in the variance of a noisy one."""
        return torch.tensor(self._kept)

    def _weights(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1−ᾱ_t), the weights of image and noise."""
        kept = self.alphas_cumprod.to(x.device)[t].view(-1, 1, 1, 1)
        return kept.sqrt().to(x.dtype), (1 - kept).sqrt().to(x.dtype)

    def add_noise(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of images B×C×H×W at the time steps B (arXiv 2006.11239, equation 4)."""
        a, s = self._weights(x, t)
        return a * x + s * noise

    def target(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is asked to predict."""
        a, s = self._weights(x, t)
        return {"epsilon": noise, "sample": x, "v_prediction": a * noise - s * x}[self.prediction_type]

    def start_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image that a prediction amounts to."""
        a, s = self._weights(x_t, t)
        match self.prediction_type:
            case "epsilon":
                return (x_t - s * prediction) / a
            case "sample":
                return prediction
        return a * x_t - s * prediction

    def noise_from(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a prediction amounts to."""
        a, s = self._weights(x_t, t)
        match self.prediction_type:
            case "epsilon":
                return prediction
            case "sample":
                return (x_t - a * prediction) / s
        return a * prediction + s * x_t


def check_sampler(sampler: str) -> None:
    if sampler not in SAMPLERS:
        known = ", ".join(SAMPLERS)
        close = hint(str(sampler).replace("pp", "++"), SAMPLERS)
        raise ValueError(f"unknown sampler {sampler!r}{close} (known: {known})")


# ------------------------------------------------------------------------------------------------- asking a network


@dataclass(frozen=True)
class Conditioning:
    """The classes 0 to `classes` − 1 that a network takes labels of, and the label that means no class, if any.

    >>> str(Conditioning(10, None)), str(Conditioning(10, 10))
    ('10 classes', '10 classes and none')
    """

    classes: int
    null: int | None

    def __str__(self) -> str:
        return f"{self.classes} classes" + ("" if self.null is None else " and none")


def conditioning_of(model: nn.Module, num_classes: int | None = None) -> Conditioning | None:
    """What labels a network takes; None where it takes none.

    A network with `num_classes` has one label more, which means no class. One of diffusers has as many as its
    ``config.num_class_embeds``; only where the classes are known to be one fewer, the last label means no class. It
    is told how many they are by the data (`num_classes`) or by ``model.register_to_config(num_classes=10)``.
    """
    config = getattr(model, "config", None)
    embeds = getattr(config, "num_class_embeds", None)
    told = getattr(config, "num_classes", None) or getattr(model, "num_classes", None)
    if not embeds:
        return Conditioning(told, told) if told else None
    return Conditioning(embeds - 1, embeds - 1) if (told or num_classes) == embeds - 1 else Conditioning(embeds, None)


def channels_of(model: nn.Module) -> int | None:
    """Channels of the images a network takes, where it tells."""
    return getattr(getattr(model, "config", model), "in_channels", None)


def noise_of(outputs: Any) -> Tensor:
    """The prediction in what a network returned: the tensor itself, or its ``.sample`` as in diffusers."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the network returns a {type(outputs).__name__}; a denoiser returns the noise as a tensor, "
            "or something with .sample"
        )
    return found


def blank_inputs(model: nn.Module, data: DataSplits, batch: int = 2) -> Inputs:
    """Zeros in the shape of a network's inputs, of the dtype of its weights."""
    x = torch.zeros(batch, data.in_channels, data.image_size, data.image_size, dtype=dtype_of(model))
    t = torch.zeros(batch, dtype=torch.int64)
    return (x, t) if conditioning_of(model) is None else (x, t, t.clone())


def check_times(model: nn.Module, process: DiffusionProcess, role: str = "network") -> None:
    """Raise ValueError where a network knows other time steps than the process has, as far as it tells."""
    told = getattr(getattr(model, "config", None), "num_train_timesteps", None), getattr(model, "T", None)
    steps = next((int(number) for number in told if number is not None), process.num_train_timesteps)
    if steps != process.num_train_timesteps:
        raise ValueError(
            f"the {role} knows {steps} time steps; the schedule has {process.num_train_timesteps}, so give "
            f"process=DiffusionProcess(num_train_timesteps={steps}), or build it with as many"
        )


def check_denoiser(
    model: nn.Module, data: DataSplits, role: str = "network", process: DiffusionProcess | None = None
) -> None:
    """Raise ValueError or TypeError where a network cannot denoise these images."""
    shape = f"{data.in_channels}×{data.image_size}×{data.image_size}"
    channels, labels = channels_of(model), conditioning_of(model, data.num_classes)
    if channels not in (None, data.in_channels):
        raise ValueError(f"the {role} takes images of {channels} channels, but those of {data.name} are {shape}")
    if labels and labels.classes != data.num_classes:
        raise ValueError(f"the {role} takes {labels.classes} classes, but {data.name} has {data.num_classes}")
    check_times(model, process or DiffusionProcess(), role)
    x, *rest = blank_inputs(model, data)
    with evaluating(model):
        try:
            prediction = noise_of(model(x, *rest))
        except RuntimeError as error:
            raise ValueError(f"the {role} does not take images of {shape}: {error}") from error
    if prediction.shape != x.shape:
        raise ValueError(
            f"the {role} returns {tuple(prediction.shape)} for images of {tuple(x.shape)}, not their noise"
        )


def denoising_loss(
    model: nn.Module,
    split: Any,
    *,
    process: DiffusionProcess | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    count: int = VALIDATED,
) -> float:
    """Mean squared error of the noise that a network's predictions amount to, over a split.

    Noise and time steps are always the same: `count` pairs of an image and a time step, which are spread evenly over
    all. It is an error of ε whatever the network predicts, so that curves of teacher and students can be compared.
    A network that predicts no noise at all has a loss of 1. Float images of a split (latents) are taken as they are.
    """
    process = process or DiffusionProcess()
    steps, draws = process.num_train_timesteps, torch.Generator().manual_seed(0)
    order = torch.randperm(len(split), generator=draws).repeat(-(-count // len(split)))[:count]
    times = (torch.arange(count) * steps + steps // 2) // count
    conditional, total = conditioning_of(model) is not None, 0.0
    with evaluating(model):
        for rows, t in zip(order.split(batch_size), times.split(batch_size), strict=True):
            images, labels = as_batch(split.__getitems__(rows.tolist()))
            x = images.float() if images.is_floating_point() else to_float(images)
            noise = torch.randn(x.shape, generator=draws)
            noisy = process.add_noise(x, noise, t)
            inputs = (noisy.to(dtype_of(model)), t, labels) if conditional else (noisy.to(dtype_of(model)), t)
            prediction = noise_of(model(*(value.to(device) for value in inputs))).float()
            found = process.noise_from(prediction, noisy.to(device), t.to(device))
            total += float(F.mse_loss(found, noise.to(device))) * len(rows)
    return total / count


def check_prediction(
    model: nn.Module,
    split: Any,
    process: DiffusionProcess | None = None,
    *,
    role: str = "network",
    device: torch.device | str = "cpu",
) -> float:
    """The denoising loss of a trained network; warns above 1, or where another prediction explains it far better."""
    process = process or DiffusionProcess()
    losses = {
        kind: denoising_loss(model, split, process=replace(process, prediction_type=kind), device=device)
        for kind in PREDICTIONS
    }
    loss, best = losses[process.prediction_type], min(losses, key=losses.__getitem__)
    cause = ""
    if losses[best] < loss / 10:
        cause = f"read as {best!r} it is {losses[best]:.3g}; give DiffusionProcess(prediction_type={best!r})"
    elif not loss <= 1:
        cause = "it predicts something else, or was trained with another schedule or on other images"
    if cause:
        text = f"the {role}'s denoising loss is {loss:.3g}, where predicting no noise at all costs 1: {cause}"
        warnings.warn(text, stacklevel=2)
    return loss


# ------------------------------------------------------------------------------- what the trainer is about to replace

T = 1000


def make_schedule(sampler: str = "ddpm") -> Any:
    return DiffusionProcess().scheduler(sampler)


def classes_of(model: nn.Module) -> int | None:
    embeds = getattr(getattr(model, "config", None), "num_class_embeds", None)
    return embeds - 1 if embeds else getattr(model, "num_classes", None)


class Denoising(nn.Module):
    """A network and its task, in the shape of `Distillation`: what the loop trains when nobody teaches."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, *inputs: Tensor, targets: Tensor) -> tuple[Any, dict[str, Tensor]]:
        outputs = self.student(*inputs)
        loss = noise_loss(outputs, targets)
        return outputs, {"task": loss, "total": loss}

    def graduate(self) -> nn.Module:
        return copy.deepcopy(self.student)


def noise_loss(outputs: Any, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (arXiv 2006.11239, equation 14)."""
    return F.mse_loss(noise_of(outputs).float(), noise)
