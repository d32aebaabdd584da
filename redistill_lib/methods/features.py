"""Methods that compare feature maps at taps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from redistill_lib.red import DISTANCES, RedBlock, alignment_loss


def check_alpha(alpha: float) -> None:
    if not isinstance(alpha, Real) or not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is a number from 0 up, not {alpha!r}")


@dataclass(frozen=True)
class RED:
    """Residual encoded distillation: a RED block on the student's map, whose output is aligned with the teacher's.

    Needs equal height × width, any channels. Source: arXiv 2406.03744, section 3; alpha 50 as on STL10.
    """

    name: ClassVar[str] = "red"
    on_outputs: ClassVar[bool] = False
    has_block: ClassVar[bool] = True
    kernel_size: int = 3
    distance: str = "cosine"
    alpha: float = 50.0

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"unknown distance {self.distance!r}; choose one of {', '.join(DISTANCES)}")
        check_alpha(self.alpha)

    def block(self, channels: int) -> RedBlock:
        return RedBlock(channels, self.kernel_size)

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return alignment_loss(student, teacher, self.distance)


@dataclass(frozen=True)
class REDBlocks(RED):
    """The control ("Student+" in the paper's terms): RED blocks in the student, their loss weighted 0."""

    name: ClassVar[str] = "red-blocks"
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha:
            raise ValueError(f"red-blocks is RED without its loss, so its alpha stays 0, not {self.alpha}; use red")


@dataclass(frozen=True)
class Stage(RED):
    """The paper's ablation: the same block, but only spatial means (B×C) are compared. Needs equal channels."""

    name: ClassVar[str] = "stage"

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape[:2] != teacher.shape[:2]:
            raise ValueError(
                f"STAGE compares spatial means channel by channel, so channels must be equal, not "
                f"{tuple(student.shape)} from the student and {tuple(teacher.shape)} from the teacher; use red"
            )
        s, t = student.float().flatten(2).mean(2), teacher.float().flatten(2).mean(2)
        if self.distance == "mse":
            return F.mse_loss(s, t)
        return (1 - F.cosine_similarity(s, t, dim=1, eps=1e-8)).mean()


@dataclass(frozen=True)
class MSE:
    """Mean squared error between two equal tensors, without a block: the output distillation of the DDPM configs."""

    name: ClassVar[str] = "mse"
    on_outputs: ClassVar[bool] = False
    has_block: ClassVar[bool] = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)

    def block(self, channels: int) -> None:
        return None

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                f"MSE needs equal tensors, not {tuple(student.shape)} from the student and {tuple(teacher.shape)} "
                "from the teacher"
            )
        return F.mse_loss(student.float(), teacher.float())
