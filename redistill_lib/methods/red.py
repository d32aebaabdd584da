"""Residual encoded distillation, its control and its ablation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from redistill_lib.checks import whole
from redistill_lib.methods.base import Batch, Shape, Summary, Weighted, check_equal, option, spatial_mean
from redistill_lib.red import DISTANCES, RedBlock, alignment_loss, check_distance, check_maps


@dataclass(frozen=True)
class RED(Weighted):
    """Residual encoded distillation: a RED block on the student's map, whose output is aligned with the teacher's.

    Needs equal height × width, any channels. Source: arXiv 2406.03744, section 3; alpha 50 as on STL10.

    >>> RED(kernel_size=5).block((8, 4, 4)).channels
    8
    """

    name = "red"
    summary: ClassVar[Summary] = "channel mean"
    kernel_size: int = option(3, whole)
    distance: str = option("cosine", check_distance)
    alpha: float = 50.0

    def block(self, student: Shape) -> nn.Module:
        return RedBlock(student[0], self.kernel_size)

    def check(self, student: Shape, teacher: Shape) -> None:
        check_maps(self.name, "C×H×W", student, teacher)
        if student[1:] == (1, 1) and self.distance == "cosine":
            raise ValueError(
                f"{self.name} compares patterns, and a 1×1 map has none: its loss would always be 0; leave this tap "
                "out, or give larger images"
            )

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return alignment_loss(student, teacher, self.distance)


@dataclass(frozen=True)
class REDBlocks(RED):
    """The control ("Student+" in the paper's terms): RED blocks in the student, their loss weighted 0."""

    name = "red-blocks"
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha:
            raise ValueError(f"red-blocks is RED without its loss, so its alpha stays 0, not {self.alpha}; use red")


@dataclass(frozen=True)
class Stage(RED):
    """The paper's ablation: the same block, but only spatial means (B×C) are compared. Needs equal channels."""

    name, summary = "stage", "spatial mean"

    def check(self, student: Shape, teacher: Shape) -> None:
        check_equal(self.name, student[:1], teacher[:1], "it compares channel by channel, so use red")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return DISTANCES[self.distance](spatial_mean(student), spatial_mean(teacher))
