"""How a network is trained: length, optimizer, schedule, augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from redistill_lib.checks import check_above_zero, check_fields, whole, wholes
from redistill_lib.data.augment import parse_recipe
from redistill_lib.diffusion import DiffusionProcess


@dataclass(frozen=True)
class Recipe:
    """How long and how a network is trained. The defaults are the quick scale: minutes on two CPU cores.

    The length is a number of `epochs` or of `steps`; left out, `LENGTH`. `schedule` is ``onecycle`` (warm up, then
    anneal to 0 along a cosine), ``cosine`` (the same, but the warm-up starts near 0), ``step`` (divide by `divide_by`
    after each epoch in `milestones`) or ``constant``. `warmup` is a share of all steps, or from 1 up their number.
    `augmentation` is read by `data.augment`. With `views`, an image has as many; epoch e shows view e mod `views`;
    left out, each epoch shows another. A denoiser's noise and time steps are the view's too. With `ema_decay` the
    result is the moving average of the weights. A network of your own starts by `init`: from its weights (``given``)
    or from new ones under the seed (``scratch``). With ``teacher`` any student starts from its first teacher's
    weights, which fit where only strides differ.

    >>> Recipe(epochs=3).epochs
    3
    """

    LENGTH: ClassVar[tuple[str, int]] = ("epochs", 12)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-3
    momentum: float = 0.9
    amsgrad: bool = False
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    warmup: float = 0.15
    milestones: Sequence[int] = ()
    divide_by: float = 10.0
    augmentation: str = "crop"
    views: int | None = None
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    init: Literal["given", "scratch", "teacher"] = "given"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs is self.steps is None:
            object.__setattr__(self, *self.LENGTH)
        elif self.epochs is not None and self.steps is not None:
            raise ValueError(f"give epochs or steps, and None for the other, not {self.epochs!r} and {self.steps!r}")
        for name, least in (("epochs", 1), ("steps", 1), ("views", 1), ("batch_size", 2)):  # batch norm wants two
            if (value := getattr(self, name)) is not None:
                whole(name, value, least)
        object.__setattr__(self, "milestones", wholes("milestones", self.milestones, 0))
        check_above_zero(learning_rate=self.learning_rate, divide_by=self.divide_by)
        if self.clip_norm is not None:
            check_above_zero(clip_norm=self.clip_norm)
        for name in ("weight_decay", "warmup"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} is a number from 0 up, not {value!r}")
        for name in ("momentum", "label_smoothing", "ema_decay", "label_dropout"):  # the last is a denoiser's
            if (value := getattr(self, name, None)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is a share from 0 to below 1, not {value!r}")
        parse_recipe(self.augmentation)

    def settings(self, images: int) -> dict[str, Any]:
        """For the record of a run on so many images: what decides its weights, each in one form."""
        unread = {"epochs", "amsgrad" if self.optimizer == "sgd" else "momentum"}
        unread |= {"warmup"} if self.schedule == "step" else {"milestones", "divide_by"}
        if self.schedule == "constant" and self.warmup < 1:
            unread |= {"warmup"}
        operations = ["|".join(step) for step in parse_recipe(self.augmentation) if step != ("none",)]
        steps = self.total_steps(per_epoch := self.steps_per_epoch(images))
        if self.views is None or self.views * per_epoch >= steps:  # no view comes twice
            unread |= {"views"}
        told = {**asdict(self), "steps": steps, "batch_size": min(self.batch_size, images)}
        told["augmentation"] = "+".join(operations) or "none"
        return {name: value for name, value in told.items() if name not in unread}

    def steps_per_epoch(self, images: int) -> int:
        """A last, smaller batch is left out; fewer images than a batch are one."""
        return max(1, images // self.batch_size)

    def total_steps(self, per_epoch: int) -> int:
        return self.steps if self.epochs is None else self.epochs * per_epoch  # type: ignore[return-value]

    def view_of(self, epoch: int) -> int:
        return epoch if self.views is None else epoch % self.views

    def learning_rate_at(self, step: int, per_epoch: int) -> float:
        total = self.total_steps(per_epoch)
        warm = max(1, round(self.warmup * total)) if self.warmup < 1 else int(self.warmup)
        if self.schedule == "step":
            share = float(self.divide_by ** -sum(step // per_epoch >= m for m in self.milestones))
        elif self.schedule == "constant":
            share = min(1.0, (step + 1) / self.warmup) if self.warmup >= 1 else 1.0
        elif step >= warm:
            share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
        else:
            share = 0.04 + 0.96 * step / warm if self.schedule == "onecycle" else (step + 1) / warm
        return self.learning_rate * share


#: Fused: one pass over the weights instead of one for each operation.
OPTIMIZERS: dict[str, Callable[[Recipe, list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda r, p: torch.optim.AdamW(
        p, r.learning_rate, weight_decay=r.weight_decay, amsgrad=r.amsgrad, fused=True
    ),
    "adam": lambda r, p: torch.optim.Adam(
        p, r.learning_rate, weight_decay=r.weight_decay, amsgrad=r.amsgrad, fused=True
    ),
    "sgd": lambda r, p: torch.optim.SGD(
        p, r.learning_rate, momentum=r.momentum, weight_decay=r.weight_decay, fused=True
    ),
}


@dataclass(frozen=True)
class DiffusionRecipe(Recipe):
    """How a denoiser is trained: Adam on the mean squared error of what `process` asks for (DDPM, arXiv 2006.11239,
    algorithm 1). The defaults are the quick scale: digits at 16 px in minutes on two CPU cores.

    The averaged weights are the result; `ema_decay` is at most (1 + k) / (10 + k) at step k, for short trainings.
    `label_dropout` is how often a network with classes learns without its label.

    >>> DiffusionRecipe(steps=200).steps
    200
    """

    LENGTH: ClassVar[tuple[str, int]] = ("steps", 1000)
    batch_size: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    schedule: Literal["onecycle", "cosine", "step", "constant"] = "cosine"
    warmup: float = 50
    augmentation: str = "none"
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.99
    label_dropout: float = 0.1
    process: DiffusionProcess = field(default_factory=DiffusionProcess)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(word in self.augmentation for word in ("mixup", "cutmix")):
            raise ValueError("a denoiser learns images as they are; leave mixup and cutmix out of its augmentation")


#: The authors' recipe for STL-10 at 128 px (method 5): SGD, 300 epochs, CutMix or MixUp on every image.
STL10 = Recipe(
    epochs=300, batch_size=8, optimizer="sgd", learning_rate=1e-2, weight_decay=0.0, schedule="step",
    milestones=(180, 240, 270), divide_by=5.0, augmentation="resized_crop+flip+cutmix|mixup",
)  # fmt: skip

_PAPER: dict[str, Any] = {
    "batch_size": 128, "learning_rate": 2e-4, "warmup": 5000, "schedule": "constant", "ema_decay": 0.9999,
    "augmentation": "flip",
}  # fmt: skip
#: The paper's recipes (DDPM's, with the lengths of ReDistill, arXiv 2406.03744), for ``unet={}``.
DDPM_CIFAR10 = DiffusionRecipe(steps=800_000, **_PAPER)
DDPM_CELEBA64 = DiffusionRecipe(steps=500_000, **_PAPER)

#: A U-Net of three levels for the built-in digits at 16 px.
DIGITS_UNET = MappingProxyType({"ch": 16, "mult": (1, 2, 4), "attention": (2,), "res_blocks": 1, "dropout": 0.0})
