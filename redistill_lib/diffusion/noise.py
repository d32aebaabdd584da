"""The forward process, and what any noise predictor is asked: ``network(x, t)`` or ``network(x, t, labels)``."""

from __future__ import annotations

import copy
import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.data import DataSplits, as_batch
from redistill_lib.data.augment import to_float
from redistill_lib.network import evaluating

T = 1000  # time steps of DDPM
SCHEDULE: dict[str, Any] = {"num_train_timesteps": T, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SAMPLERS = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler"}
VALIDATED = 512  # images with noise that a validation loss is the mean of

Inputs = tuple[Tensor, ...]  # x, t and, for a network with classes, labels


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


def noise_of(outputs: Any) -> Tensor:
    """The predicted noise in what a network returned: the tensor itself, or its ``.sample`` as in diffusers."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "sample", None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the network returns a {type(outputs).__name__}; a denoiser returns the noise as a tensor, "
            "or something with .sample"
        )
    return found


def make_schedule(sampler: str = "ddpm") -> Any:
    """DDPM's noise schedule with diffusers' sampler of that name: ``ddim``, ``ddpm`` or ``dpm++`` (2M).

    β is linear from 1e-4 to 0.02 over 1000 steps (arXiv 2006.11239, section 4); ``schedule.add_noise(x, noise, t)``
    is equation 4. Samplers start at the noisiest step ("trailing" spacing, arXiv 2305.08891).

    >>> schedule = make_schedule()
    >>> round(schedule.add_noise(torch.ones(1), torch.zeros(1), torch.tensor([0])).item() ** 2, 6)      # 1 − β_0
    0.9999
    """
    import diffusers

    if sampler not in SAMPLERS:
        near = difflib.get_close_matches(str(sampler).lower().replace("pp", "++"), SAMPLERS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown sampler {sampler!r}{hint} (known: {', '.join(SAMPLERS)})")
    return getattr(diffusers, SAMPLERS[sampler])(**SCHEDULE, timestep_spacing="trailing")


def classes_of(model: nn.Module) -> int | None:
    """How many classes a network takes labels of; its label of that number means no class. None: it takes none.

    Told by its `num_classes`; a diffusers network has one more in its ``config.num_class_embeds``.
    """
    embeds = getattr(getattr(model, "config", None), "num_class_embeds", None)
    return embeds - 1 if embeds else getattr(model, "num_classes", None)


def channels_of(model: nn.Module) -> int | None:
    """Channels of the images a network takes, where it tells."""
    return getattr(getattr(model, "config", model), "in_channels", None)


def check_times(model: nn.Module, role: str = "network") -> None:
    """Raise ValueError where a network knows other time steps than the schedule has, as far as it tells."""
    told = getattr(getattr(model, "config", None), "num_train_timesteps", None), getattr(model, "T", None)
    steps = next((int(number) for number in told if number is not None), T)
    if steps < T:
        raise ValueError(f"the {role} knows {steps} time steps; the schedule has {T}, so build it with as many")


def blank_inputs(model: nn.Module, data: DataSplits, batch: int = 2) -> Inputs:
    """Zeros in the shape of a network's inputs."""
    x = torch.zeros(batch, data.in_channels, data.image_size, data.image_size)
    t = torch.zeros(batch, dtype=torch.int64)
    return (x, t) if classes_of(model) is None else (x, t, t.clone())


def check_denoiser(model: nn.Module, data: DataSplits, role: str) -> None:
    """Raise ValueError or TypeError where a network cannot denoise these images."""
    shape = f"{data.in_channels}×{data.image_size}×{data.image_size}"
    channels, classes = channels_of(model), classes_of(model)
    if channels not in (None, data.in_channels):
        raise ValueError(f"the {role} takes images of {channels} channels, but those of {data.name} are {shape}")
    if classes not in (None, data.num_classes):
        raise ValueError(f"the {role} takes {classes} classes, but {data.name} has {data.num_classes}")
    check_times(model, role)
    x, *rest = blank_inputs(model, data)
    with evaluating(model):
        try:
            noise = noise_of(model(x, *rest))
        except RuntimeError as error:
            raise ValueError(f"the {role} does not take images of {shape}: {error}") from error
    if noise.shape != x.shape:
        raise ValueError(f"the {role} returns {tuple(noise.shape)} for images of {tuple(x.shape)}, not their noise")


def denoising_loss(
    model: nn.Module, split: Any, *, device: torch.device | str = "cpu", batch_size: int = 256, count: int = VALIDATED
) -> float:
    """Mean squared error of the predicted noise over a split, with noise and time steps that are always the same.

    `count` pairs of an image and a time step; these are spread evenly over 0…999. Equal for networks of any kind
    on equal images, so that curves of teacher and students can be compared.
    """
    draws = torch.Generator().manual_seed(0)
    order = torch.randperm(len(split), generator=draws).repeat(-(-count // len(split)))[:count]
    times = (torch.arange(count) * T + T // 2) // count
    classes, total = classes_of(model), 0.0
    schedule = make_schedule()
    with evaluating(model):
        for rows, t in zip(order.split(batch_size), times.split(batch_size), strict=True):
            images, labels = as_batch(split.__getitems__(rows.tolist()))
            x = to_float(images)
            noise = torch.randn(x.shape, generator=draws)
            noisy = schedule.add_noise(x, noise, t)
            inputs = (noisy, t) if classes is None else (noisy, t, labels)
            predicted = noise_of(model(*(value.to(device) for value in inputs))).float()
            total += float(F.mse_loss(predicted, noise.to(device))) * len(rows)
    return total / count
