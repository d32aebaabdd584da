"""Kernels for another stride: their weights resized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_tile(weight: Tensor, size: Sequence[int], gain: float) -> Tensor:
    """A kernel that tiles the map for another stride: its weights averaged or repeated."""
    resize: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    return resize(weight, tuple(size)) * gain


class Upsampling(NamedTuple):
    """Kernel, padding and stride of a transposed convolution along each axis, without dilation."""

    kernel: int
    padding: int
    stride: int

    def at(self, stride: int) -> tuple[Upsampling, int]:
        """The same reach, in pixels of its input, at another stride; and the output padding that makes its map whole.

        >>> Upsampling(4, 1, 2).at(4)
        (Upsampling(kernel=8, padding=2, stride=4), 0)
        """
        left = math.ceil(self.padding * stride / self.stride)
        right = math.ceil((self.kernel - self.padding) * stride / self.stride)
        return Upsampling(left + right, left, stride), stride - right + left

    @property
    def offsets(self) -> Tensor:
        """How far each tap is from the input pixel's centre, in input pixels."""
        return (torch.arange(self.kernel) - self.padding + 0.5) / self.stride - 0.5


def resize_transposed(weight: Tensor, old: Upsampling, new: Upsampling) -> Tensor:
    """The kernel of a transposed convolution for another stride: what is bilinear in it stays so exactly.

    The rest is interpolated. A constant map gives at every pixel what the old kernel gave on average.
    """
    # Along each axis, the taps' values at evenly spaced offsets are read at the new ones, or the border's outside.
    at = ((new.offsets - old.offsets[0]) * old.stride).clamp(0, old.kernel - 1)
    matrix = (1 - (at[:, None] - torch.arange(old.kernel)).abs()).clamp(min=0)
    for start in range(new.stride):  # each pixel of the output sees the taps of one phase
        phase = matrix[start :: new.stride]
        phase += (1 / old.stride - phase.sum(0)) / len(phase)
    if old.kernel == 2 * old.stride == 4 * old.padding:
        before, after = ((1 - grid.offsets.abs()).clamp(min=0) for grid in (old, new))
        matrix += torch.outer(after - matrix @ before, before) / before.square().sum()
    for axis in range(2, weight.ndim):
        weight = (weight.movedim(axis, -1) @ matrix.T.to(weight)).movedim(-1, axis)
    return weight
