"""Steps that stand before or behind a layer and learn nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def add_lines(x: Tensor, lines: Sequence[tuple[int, int]], fill: float | None) -> Tensor:
    """A map with lines around it, (first, last) per axis, of `fill` or of the border's values; negative: without."""
    flat = [line for pair in reversed(lines) for line in pair]
    return F.pad(x, flat, mode="replicate") if fill is None else F.pad(x, flat, value=fill)


class Border(nn.Module):
    """Adds lines around a map, or takes them away, as `add_lines`."""

    def __init__(self, lines: Sequence[tuple[int, int]], fill: float | None = 0.0) -> None:
        super().__init__()
        self.lines, self.fill = tuple(lines), fill

    def forward(self, x: Tensor) -> Tensor:
        return add_lines(x, self.lines, self.fill)

    def extra_repr(self) -> str:
        names = ("front", "back", "top", "bottom", "left", "right")[-2 * len(self.lines) :]
        sides = list(zip(sum(self.lines, ()), names, strict=True))
        added, taken = (", ".join(f"{abs(n)} {name}" for n, name in sides if n * sign > 0) for sign in (1, -1))
        return "; ".join(part for part in (added and f"padded by {added}", taken and f"cropped by {taken}") if part)


class Repeat(nn.Module):
    """Repeats each pixel of a map with `channels` channels, first or last, `factor` times along each side.

    In front of a module that merges squares of pixels, all of a square are one pixel: it keeps its map.
    """

    def __init__(self, factor: int, channels: int) -> None:
        super().__init__()
        self.factor, self.channels = factor, channels

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 4 or self.channels not in (x.shape[1], x.shape[-1]):
            raise ValueError(
                f"patches of {self.channels} channels are merged from a tensor {tuple(x.shape)}, which is no map: a "
                "merging of sequences cannot keep its map; take a network that merges maps B×H×W×C, as timm's Swin"
            )
        first = 1 if x.shape[-1] == self.channels else 2
        for axis in range(first, first + x.ndim - 2):
            x = x.repeat_interleave(self.factor, axis)
        return x

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class DepthToSpace(nn.Module):
    """Shuffles channels into `factor` times a map's sides, as nn.PixelShuffle, with any number of axes."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        axes = x.ndim - 2
        x = x.unflatten(1, (-1, *[self.factor] * axes))
        order = [place for axis in range(axes) for place in (2 + axes + axis, 2 + axis)]
        sides = [side * self.factor for side in x.shape[-axes:]]
        return x.permute(0, 1, *order).reshape(*x.shape[:2], *sides)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class Blur(nn.Module):
    """Halves a map behind the binomial filter [1, 2, 1]⊗[1, 2, 1]/16 with mirrored borders.

    Source: Zhang, "Making convolutional networks shift-invariant again", arXiv 1904.11486, section 3.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=2, groups=x.shape[1])
