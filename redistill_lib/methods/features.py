"""Methods that compare feature maps and leave nothing in the student."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.methods.base import Batch, Shape, Weighted, check_equal


@dataclass(frozen=True)
class FitNet(Weighted):
    """Hints: mean squared error between the teacher's map and the student's, projected to as many channels.

    Needs equal height × width. Source: Romero et al., arXiv 1412.6550, equation 3; weight 100 as in RepDistiller.

    >>> FitNet().criterion((8, 4, 4), (16, 4, 4), samples=0).parts.project.weight.shape
    torch.Size([16, 8, 1, 1])
    """

    name = "fitnet"
    alpha: float = 100.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_equal(self.name, student[1:], teacher[1:], "choose maps of equal height × width")
        if len(student) == 1:
            raise ValueError(f"{self.name} needs maps C×H×W, not {student}")

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        return {"project": nn.Conv2d(student[0], teacher[0], 1)}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, project: nn.Module) -> Tensor:
        return F.mse_loss(project(student), teacher)
