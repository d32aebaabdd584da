"""What decides how a denoiser is trained, apart from the network and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from redistill_lib.checks import check_above_zero, is_number, whole


@dataclass(frozen=True)
class DiffusionRecipe:
    """How long and how a denoiser is trained: Adam on the mean squared error of the predicted noise (DDPM, arXiv
    2006.11239, algorithm 1). The defaults are the quick scale: digits at 16 px in minutes on two CPU cores.

    The learning rate rises linearly over `warmup` steps, then stays (``constant``) or falls to 0 along a cosine.
    `ema_decay` is that of the averaged weights, which are the result; early on it is lower, (1 + k) / (10 + k) at
    step k, so that short trainings are not held back by their start. Gradients are clipped to a norm of `clip_norm`.
    `flip` mirrors half of the images (not of digits). `label_dropout` is how often a network with classes learns
    without its label. Every `log_every` steps the losses are noted, the state is saved and validation is read;
    every `sample_every` of them (a multiple; 0: only at the end) `samples` images are drawn. `workers` as in
    `redistill_lib.Recipe`.

    >>> DiffusionRecipe(steps=200).steps
    200
    """

    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    schedule: str = "cosine"
    clip_norm: float | None = 1.0
    ema_decay: float = 0.99
    flip: bool = False
    label_dropout: float = 0.1
    log_every: int = 100
    sample_every: int = 0
    samples: int = 40
    workers: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("steps", "batch_size", "log_every", "samples"), 1)
        for name in (*least, "warmup", "sample_every", "workers"):
            object.__setattr__(self, name, whole(name, getattr(self, name), least.get(name, 0)))
        check_above_zero(learning_rate=self.learning_rate)
        if self.clip_norm is not None:
            check_above_zero(clip_norm=self.clip_norm)
        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"unknown schedule {self.schedule!r} in the recipe; choose constant or cosine")
        for name in ("ema_decay", "label_dropout"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share from 0 to below 1, not {getattr(self, name)!r}")
        if self.sample_every % self.log_every:
            near = max(1, round(self.sample_every / self.log_every)) * self.log_every
            raise ValueError(
                f"sample_every is a multiple of log_every ({self.log_every}), such as {near}, not {self.sample_every}"
            )

    def learning_rate_at(self, step: int) -> float:
        """The share of `learning_rate` that step (from 0) takes."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


_PAPER: dict[str, Any] = {
    "batch_size": 128, "learning_rate": 2e-4, "warmup": 5000, "schedule": "constant", "ema_decay": 0.9999,
    "flip": True, "log_every": 1000, "sample_every": 10_000, "samples": 64, "workers": 2,
}  # fmt: skip
#: The paper's recipes (DDPM's, with the lengths of ReDistill, arXiv 2406.03744), for ``unet={}``.
DDPM_CIFAR10 = DiffusionRecipe(steps=800_000, **_PAPER)
DDPM_CELEBA64 = DiffusionRecipe(steps=500_000, **_PAPER)

#: A U-Net of three levels for the built-in digits at 16 px.
DIGITS_UNET = MappingProxyType({"ch": 16, "mult": (1, 2, 4), "attention": (2,), "res_blocks": 1, "dropout": 0.0})
