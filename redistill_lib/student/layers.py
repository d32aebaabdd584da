"""Convolutions of a student that do more than stride; parameter names stay those of the teacher's layer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Downsampler = Literal["stride", "max", "avg", "blur", "space_to_depth"]


class SteppedConv2d(nn.Conv2d):
    """A convolution with steps without weights `before` and `behind` it: padding, a pool, space to depth or back.

    The steps stand in tuples, so that they are no layers of the network. Behind space to depth, and before the way
    back, the weight has factor² times the channels that `in_channels` and `out_channels` say.
    """

    before: tuple[nn.Module, ...]
    behind: tuple[nn.Module, ...]

    def forward(self, input: Tensor) -> Tensor:
        for step in self.before:
            input = step(input)
        x = super().forward(input)
        for step in self.behind:
            x = step(x)
        return x

    def extra_repr(self) -> str:
        steps = [*(f"behind {step}" for step in self.before), *(f"then {step}" for step in self.behind)]
        return ", ".join([super().extra_repr(), *steps])


def with_steps(
    conv: nn.Conv2d, before: tuple[nn.Module, ...] = (), behind: tuple[nn.Module, ...] = ()
) -> SteppedConv2d:
    """`conv` with steps around it: the same parameters, hooks and settings."""
    new = SteppedConv2d.__new__(SteppedConv2d)
    new.__dict__.update(conv.__dict__)
    new.before, new.behind = before, behind
    return new


class Blur(nn.Module):
    """Halves a map behind the binomial filter [1, 2, 1]⊗[1, 2, 1]/16 with mirrored borders.

    Source: Zhang, "Making convolutional networks shift-invariant again", arXiv 1904.11486, section 3.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=2, groups=x.shape[1])
