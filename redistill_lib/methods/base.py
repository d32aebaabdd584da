"""What a distillation method is: the block it leaves in the student, and the loss it is trained with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import is_number

#: A map's or an output's shape without its batch, such as (C, H, W); empty where no example told it.
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One step's data: the networks' inputs, and targets (class numbers B, probabilities B×classes, or noise).

    `index` is each image's row in the training split, `view` which of its augmentations it is.
    """

    inputs: tuple[Tensor, ...]
    targets: Any = None
    index: Tensor | None = None
    view: Tensor | None = None


class Method(Protocol):
    """One distillation loss: a frozen dataclass, whose fields are what a run records of it.

    `reads` says whether it compares feature maps at taps or the networks' outputs. `block` makes what stays in the
    student at a tap (RED), or None. `criterion` makes the loss of one tap, a module that is called
    ``(student, teacher, batch)`` → scalar: its parameters (projectors) are trained with the student, its buffers
    (memory banks of `samples` entries) saved with the training, and it is gone after `graduate`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    reads: ClassVar[Literal["maps", "outputs"]]

    @property
    def alpha(self) -> float: ...
    def block(self, student: Shape) -> nn.Module | None: ...
    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module: ...


class Weighted:
    """What the methods here have in common: a checked weight, and no block."""

    name: ClassVar[str]
    reads: ClassVar[Literal["maps", "outputs"]] = "maps"
    alpha: float

    def __post_init__(self) -> None:
        if not is_number(self.alpha) or self.alpha < 0:
            raise ValueError(f"alpha is a number from 0 up, not {self.alpha!r}")

    def block(self, student: Shape) -> nn.Module | None:
        return None


class Compare(nn.Module):
    """A criterion without parameters: ``function(student, teacher)``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.function(student, teacher)


def check_equal(method: str, student: Shape, teacher: Shape, advice: str) -> None:
    """Raise ValueError where a method that needs equal shapes gets unequal ones."""
    if tuple(student) != tuple(teacher):
        raise ValueError(
            f"{method} needs equal shapes, not {tuple(student)} from the student and {tuple(teacher)} from the "
            f"teacher; {advice}"
        )


def class_probabilities(batch: Batch, classes: int, method: str) -> Tensor:
    """The batch's targets, class numbers or probabilities, as probabilities B×classes."""
    targets = batch.targets
    if not isinstance(targets, Tensor):
        raise ValueError(f"{method} needs the targets of each batch; call the distillation with targets=")
    if targets.is_floating_point() and targets.shape[1:] == (classes,):
        return targets
    if targets.is_floating_point() or targets.ndim != 1:
        raise ValueError(f"{method} needs targets B or B×{classes}, not {targets.dtype} {tuple(targets.shape)}")
    return F.one_hot(targets.long(), classes).float()
