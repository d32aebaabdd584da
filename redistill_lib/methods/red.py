"""Residual encoded distillation, its control and its ablation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.methods.base import Compare, Shape, Weighted, check_equal
from redistill_lib.red import DISTANCES, RedBlock, alignment_loss


@dataclass(frozen=True)
class RED(Weighted):
    """Residual encoded distillation: a RED block on the student's map, whose output is aligned with the teacher's.

    Needs equal height × width, any channels. Source: arXiv 2406.03744, section 3; alpha 50 as on STL10.

    >>> RED(distance="mse").criterion((8, 4, 4), (16, 4, 4), samples=0)
    Compare()
    """

    name = "red"
    kernel_size: int = 3
    distance: str = "cosine"
    alpha: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance not in DISTANCES:
            raise ValueError(f"unknown distance {self.distance!r}; choose one of {', '.join(DISTANCES)}")

    def block(self, student: Shape) -> nn.Module:
        return RedBlock(student[0], self.kernel_size)

    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module:
        if student:
            self._check(student, teacher)
        return Compare(self._loss)

    def _check(self, student: Shape, teacher: Shape) -> None:
        if len(student) != 3 or len(teacher) != 3 or student[1:] != teacher[1:]:
            raise ValueError(
                f"{self.name} needs C×H×W maps of equal height × width, not {student} from the student and {teacher} "
                "from the teacher"
            )
        if student[1:] == (1, 1) and self.distance == "cosine":
            raise ValueError(
                f"{self.name} compares patterns, and a 1×1 map has none: its loss would always be 0; leave this tap "
                "out, or give larger images"
            )

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        self._check(tuple(student.shape[1:]), tuple(teacher.shape[1:]))
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

    name = "stage"

    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module:
        check_equal(self.name, student[:1], teacher[:1], "it compares channel by channel, so use red")
        return Compare(self._loss)

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = student.flatten(2).mean(2), teacher.flatten(2).mean(2)
        if self.distance == "mse":
            return F.mse_loss(s, t)
        return (1 - F.cosine_similarity(s, t, dim=1, eps=1e-8)).mean()
