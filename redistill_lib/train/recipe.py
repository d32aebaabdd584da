"""What decides how a network is trained, apart from the network and the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from redistill_lib.checks import check_above_zero, is_number, whole, wholes
from redistill_lib.data.augment import parse_recipe


@dataclass(frozen=True)
class Recipe:
    """How long and how a network is trained. The defaults are the quick scale: minutes on two CPU cores.

    `schedule` is ``onecycle`` (warm up over `warmup` of all steps, then anneal to 0 along a cosine), ``step`` (divide
    by `divide_by` after each epoch in `milestones`) or ``constant``. `augmentation` is read by
    `data.augment`. `workers` are processes that decode images on the fly, without effect on data
    in memory; as they are spawned, a script that uses them keeps its calls under ``if __name__ == "__main__":``.

    >>> Recipe(epochs=3).epochs
    3
    """

    epochs: int = 12
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 1e-3
    momentum: float = 0.9
    amsgrad: bool = False
    schedule: str = "onecycle"
    warmup: float = 0.15
    milestones: tuple[int, ...] = ()
    divide_by: float = 10.0
    augmentation: str = "crop"
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("workers", 0)):  # batch norm wants two images
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        object.__setattr__(self, "milestones", wholes("milestones", self.milestones, 0))
        check_above_zero(learning_rate=self.learning_rate, divide_by=self.divide_by)
        if self.clip_norm is not None:
            check_above_zero(clip_norm=self.clip_norm)
        if not is_number(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(f"weight_decay is a number from 0 up, not {self.weight_decay!r}")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a number from 0 to 1, not {getattr(self, name)!r}")
        parse_recipe(self.augmentation)
        for value, allowed in ((self.optimizer, OPTIMIZERS), (self.schedule, SCHEDULES)):
            if value not in allowed:
                raise ValueError(f"unknown {value!r} in the recipe; choose one of {', '.join(allowed)}")


def _onecycle(recipe: Recipe, step: int, steps: int) -> float:
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return 0.04 + 0.96 * step / rise
    return 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * (step - rise) / max(1, steps - rise)))))


def _steps(recipe: Recipe, step: int, steps: int) -> float:
    epoch = step * recipe.epochs // steps
    return recipe.divide_by ** -sum(epoch >= m for m in recipe.milestones)


SCHEDULES: dict[str, Callable[[Recipe, int, int], float]] = {
    "onecycle": _onecycle,
    "step": _steps,
    "constant": lambda recipe, step, steps: 1.0,
}
OPTIMIZERS: dict[str, Callable[[Recipe, list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda r, p: torch.optim.AdamW(p, r.learning_rate, weight_decay=r.weight_decay, amsgrad=r.amsgrad),
    "adam": lambda r, p: torch.optim.Adam(p, r.learning_rate, weight_decay=r.weight_decay, amsgrad=r.amsgrad),
    "sgd": lambda r, p: torch.optim.SGD(p, r.learning_rate, momentum=r.momentum, weight_decay=r.weight_decay),
}

#: The authors' recipe for STL-10 at 128 px (method 5): SGD, 300 epochs, CutMix or MixUp on every batch.
STL10 = Recipe(
    epochs=300, batch_size=8, optimizer="sgd", learning_rate=1e-2, weight_decay=0.0, schedule="step",
    milestones=(180, 240, 270), divide_by=5.0, augmentation="resized_crop+flip+cutmix|mixup", workers=2,
)  # fmt: skip
