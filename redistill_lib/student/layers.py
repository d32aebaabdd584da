"""Convolutions of a student that do more than stride; parameter names stay those of the teacher's layer."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Literal["max", "avg", "blur"]
Downsampler = Literal["stride", "max", "avg", "blur", "space_to_depth"]
DOWNSAMPLERS: tuple[Downsampler, ...] = get_args(Downsampler)

Conv = TypeVar("Conv", bound=nn.Conv2d)


def become(conv: nn.Conv2d, kind: type[Conv], **attributes: Any) -> Conv:
    """`conv` as another kind of convolution: the same parameters, hooks and settings, and more `attributes`."""
    new = kind.__new__(kind)
    new.__dict__.update(conv.__dict__)
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


class PooledConv2d(nn.Conv2d):
    """A convolution at its old stride, then a pool of `factor`: B×C×H×W → B×C'×H/(stride·factor)×W/(…).

    `blur` halves as often as needed, each time behind the binomial filter [1, 2, 1]⊗[1, 2, 1]/16 with mirrored
    borders (Zhang, "Making convolutional networks shift-invariant again", arXiv 1904.11486, section 3.2).
    """

    pool: Pool
    factor: int

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input)
        if self.pool == "max":
            return F.max_pool2d(x, self.factor)
        if self.pool == "avg":
            return F.avg_pool2d(x, self.factor)
        for _ in range(self.factor.bit_length() - 1):
            x = _blur(x)
        return x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, then {self.pool} pool {self.factor}"


def _blur(x: Tensor) -> Tensor:
    line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
    weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
    mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=2, groups=x.shape[1])


class UnshuffledConv2d(nn.Conv2d):
    """Space to depth, then the convolution: each `factor`×`factor` square of pixels becomes channels.

    `in_channels` are those it is given; its weight has factor² times as many.
    """

    factor: int

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(input, self.factor))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, behind space to depth {self.factor}"


class ShuffledConv2d(nn.Conv2d):
    """The convolution to factor²-fold channels, then depth to space: the way back to the image's size.

    `out_channels` are those it returns; its weight has factor² times as many.
    """

    factor: int

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(input), self.factor)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, then depth to space {self.factor}"


class PaddedConv2d(nn.Conv2d):
    """A convolution behind zero padding that may differ by side: `border` is left, right, top, bottom."""

    border: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.border))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, border={self.border}"
