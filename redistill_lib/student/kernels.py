"""Kernels for another stride: their weights resized."""

from __future__ import annotations

import itertools
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
    axes = weight.ndim - 2
    before, after = _tent(old, axes).to(weight), _tent(new, axes).to(weight)
    bilinear = weight.new_zeros(*weight.shape[:2], *[1] * axes)
    if old.kernel == 2 * old.stride == 4 * old.padding:
        share = (weight * before).flatten(2).sum(2) / before.square().sum()
        bilinear = share.reshape(bilinear.shape)
    rest = weight - bilinear * before
    resized = rest
    step = _interpolation(old.offsets, new.offsets).to(weight)
    for axis in range(2, weight.ndim):
        resized = (resized.movedim(axis, -1) @ step.T).movedim(-1, axis)
    # Each pixel of the output sees the taps of one phase.
    total = rest.flatten(2).sum(2).reshape(bilinear.shape) / old.stride**axes
    for starts in itertools.product(range(new.stride), repeat=axes):
        phase: Any = (..., *(slice(start, None, new.stride) for start in starts))
        seen = resized[phase]
        sums = seen.flatten(2).sum(2).reshape(bilinear.shape)
        resized[phase] = seen + (total - sums) / math.prod(seen.shape[2:])
    return resized + bilinear * after


def _tent(grid: Upsampling, axes: int) -> Tensor:
    line = (1 - grid.offsets.abs()).clamp(min=0)
    tent = line
    for _ in range(axes - 1):
        tent = tent[..., None] * line
    return tent


def _interpolation(old: Tensor, new: Tensor) -> Tensor:
    """The matrix that reads values at evenly spaced `old` positions at `new` ones, or the border's outside."""
    if len(old) == 1:
        return torch.ones(len(new), 1)
    at = ((new - old[0]) / (old[1] - old[0])).clamp(0, len(old) - 1)
    return (1 - (at[:, None] - torch.arange(len(old))).abs()).clamp(min=0)
