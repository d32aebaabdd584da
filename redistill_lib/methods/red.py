"""Residual encoded distillation, its control and its ablation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from redistill_lib.checks import whole
from redistill_lib.methods.base import (
    Batch,
    Shape,
    Summary,
    Weighted,
    check_equal,
    check_pattern,
    option,
    spatial_mean,
)
from redistill_lib.red import DISTANCES, OF_TOKENS, RedBlock, alignment_loss, check_distance, check_form, check_maps


class _Aligned(Weighted):
    """Of which the maps, averaged over channels, are brought nearer to each other."""

    summary: ClassVar[Summary] = "channel mean"
    distance: str

    def check(self, student: Shape, teacher: Shape) -> None:
        check_maps(self.name, "C×H×W", student, teacher)
        if self.distance == "cosine":
            check_pattern(self.name, student[1:])

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return alignment_loss(student, teacher, self.distance)


@dataclass(frozen=True, repr=False)
class RED(_Aligned):
    """Residual encoded distillation: a RED block on the student's map, whose output is aligned with the teacher's.

    Needs equal height × width, any channels; of volumes, B×C×D×H×W, equal depth too. `gate`, `shortcut` and `encoder`
    make variants of the block, see `RedBlock`. Source: arXiv 2406.03744, section 3; alpha 50 as on STL10.

    >>> RED(kernel_size=5, gate=False).block((8, 4, 4)).options
    {'channels': 8, 'kernel_size': 5, 'gate': False}
    """

    name = "red"
    kernel_size: int = option(3, whole)
    distance: str = option("cosine", check_distance)
    alpha: float = 50.0
    gate: bool = field(default=True, repr=False)
    shortcut: bool = field(default=True, repr=False)
    encoder: Literal["full", "depthwise"] = field(default="full", repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_form(self.gate, self.shortcut, self.encoder)

    def __repr__(self) -> str:
        """Of a variant all that makes it one."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.repr or getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def form(self) -> dict[str, Any]:
        """The options of its block."""
        return {name: getattr(self, name) for name in ("kernel_size", "gate", "shortcut", "encoder")}

    def block(self, student: Shape) -> nn.Module:
        axes = len(student) - 1 or 2  # where only the channels are known, maps are meant
        if axes == 1:
            raise ValueError(f"{self.name} puts its block behind a map C×H×W, not behind {student}; {OF_TOKENS}")
        return RedBlock(student[0], axes=axes, **self.form)


@dataclass(frozen=True, repr=False)
class REDBlocks(RED):
    """The control ("Student+" in the paper's terms): RED blocks in the student, their loss weighted 0."""

    name = "red-blocks"
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha:
            raise ValueError(f"red-blocks is RED without its loss, so its alpha stays 0, not {self.alpha}; use red")


@dataclass(frozen=True, repr=False)
class Stage(RED):
    """The paper's ablation: the same block, but only spatial means (B×C) are compared. Needs equal channels."""

    name, summary = "stage", "spatial mean"

    def check(self, student: Shape, teacher: Shape) -> None:
        if 2 in (len(student), len(teacher)):
            check_maps(self.name, "C×H×W", student, teacher)
        check_equal(self.name, student[:1], teacher[:1], "it compares channel by channel, so use red")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return DISTANCES[self.distance](spatial_mean(student), spatial_mean(teacher))


@dataclass(frozen=True)
class REDLoss(_Aligned):
    """RED's loss without its block, on the student's own map: what the loss alone does. Options as RED's.

    >>> REDLoss().block((8, 4, 4)) is None
    True
    """

    name = "red-loss"
    distance: str = option("cosine", check_distance)
    alpha: float = 50.0
