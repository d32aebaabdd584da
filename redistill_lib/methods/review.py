"""The review of knowledge: a method that needs all its taps together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import whole
from redistill_lib.methods.base import Batch, Shape, Weighted, batch_norm, check_same_size, convolution, option


@dataclass(frozen=True)
class ReviewKD(Weighted):
    """Knowledge review: from the deepest tap to the earliest, what the student's later stages hold is fused into each
    stage by attention, and each fused map is compared with the teacher's of that stage, at several sizes.

    One loss for all taps, which are given from early to deep: at least two, each pair of equal height × width. Only
    the student's own fused maps are resized, to the next earlier stage (nearest neighbour): that is the method. Both
    networks' maps are also averaged to 4×4, 2×2 and 1×1, at half the weight each time. Source: Chen et al., arXiv
    2104.09044, section 3 (fusion and hierarchical context loss); width at most 512 and weight 5 as in most of the
    authors' CIFAR-100 scripts.

    >>> shapes = ((8, 8, 8), (16, 4, 4))
    >>> criterion = ReviewKD().criterion(shapes, ((4, 8, 8), (32, 4, 4)), samples=0)
    >>> [fused.shape[1:] for fused in criterion.parts.review([torch.rand(2, *shape) for shape in shapes])]
    [torch.Size([4, 8, 8]), torch.Size([32, 4, 4])]
    """

    name = "reviewkd"
    joint = True
    width: int = option(512, whole)
    alpha: float = 5.0

    def check(self, student: Sequence[Shape], teacher: Sequence[Shape]) -> None:
        if len(student) < 2:
            raise ValueError(f"{self.name} fuses later stages into earlier ones, so it needs at least two taps")
        for ours, theirs in zip(student, teacher, strict=True):
            check_same_size(self.name, ours, theirs)
        if len({len(shape) for shape in student}) > 1:
            raise ValueError(f"{self.name} needs maps alone or volumes alone, not {', '.join(map(str, student))}")
        for earlier, later in pairwise(student):
            if any(side > before for side, before in zip(later[1:], earlier[1:], strict=True)):
                raise ValueError(f"{self.name} takes its taps from early to deep, but {later} comes behind {earlier}")

    def parts(self, student: Sequence[Shape], teacher: Sequence[Shape], samples: int) -> dict[str, nn.Module]:
        return {"review": Review(student, [shape[0] for shape in teacher], min(self.width, student[-1][0]))}

    def loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor], batch: Batch, review: nn.Module) -> Tensor:
        pairs = zip(review(student), teacher, strict=True)
        return torch.stack([pyramid_loss(fused, other) for fused, other in pairs]).sum()


class Review(nn.Module):
    """The student's maps, fused from the deepest on, in the teacher's channels."""

    def __init__(self, shapes: Sequence[Shape], channels: Sequence[int], width: int):
        super().__init__()
        inner, both = [(k * width, *shapes[0][1:]) for k in (1, 2)]
        self.reduce, self.attend, self.expand = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for shape, made in zip(shapes, channels, strict=True):
            narrow = convolution(shape, width, bias=False)
            wide = convolution(inner, made, kernel_size=3, bias=False)
            for weight in (*narrow.parameters(), *wide.parameters()):
                nn.init.kaiming_uniform_(weight, a=1)
            self.reduce.append(nn.Sequential(narrow, batch_norm(shape, width)))
            self.expand.append(nn.Sequential(wide, batch_norm(shape, made)))
        self.attend.extend(nn.Sequential(convolution(both, 2), nn.Sigmoid()) for _ in shapes[1:])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        fused = self.reduce[-1](maps[-1])
        made = [self.expand[-1](fused)]
        for k in reversed(range(len(maps) - 1)):
            own = self.reduce[k](maps[k])
            later = F.interpolate(fused, own.shape[2:], mode="nearest")
            share = self.attend[k](torch.cat([own, later], 1))
            fused = own * share[:, :1] + later * share[:, 1:]
            made.insert(0, self.expand[k](fused))
        return made


def pyramid_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the mean squared errors at full size (weight 1), 4×4 (½), 2×2 (¼) and 1×1 (⅛); no size above the map's.

    >>> pyramid_loss(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
    tensor(1.)
    """
    losses, weights = [F.mse_loss(a, b)], [1.0]
    for side in (4, 2, 1):
        if side < min(a.shape[2:]):
            size = [side] * (a.ndim - 2)
            small, other = (F.interpolate(x, size, mode="area") for x in (a, b))
            losses.append(F.mse_loss(small, other))
            weights.append(weights[-1] / 2)
    total = torch.stack(losses) @ torch.tensor(weights, dtype=a.dtype, device=a.device)
    return total / sum(weights)
