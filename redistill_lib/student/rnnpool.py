"""A pool that learns: recurrent cells read each patch of a map, by rows and by columns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from redistill_lib.checks import whole


class FastGRNN(nn.Module):
    """A recurrent cell whose gate z and update u share their weights: h ← (1 − z) ⊙ u + z ⊙ h.

    z = σ(a + b) and u = tanh(a) of a = W x + U h + c; `x` and `h` are inputs×N and hidden×N. Source: Kusupati et al.,
    "FastGRNN", NeurIPS 2018, arXiv 1901.02358, with ζ = 1 and ν = 0: RNNPool's authors start both where a sigmoid is
    flat, so that they stay there.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.empty(hidden, inputs + hidden))  # W beside U
        self.bias = nn.Parameter(torch.empty(hidden, 1))  # c
        self.gate = nn.Parameter(torch.empty(hidden, 1))  # b
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Large, so that patches differ: from small weights some students never leave chance.
        inputs = self.weight.shape[1] - self.hidden
        with torch.no_grad():
            nn.init.normal_(self.weight[:, :inputs], std=1 / math.sqrt(inputs))
            nn.init.orthogonal_(self.weight[:, inputs:])
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.gate)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        a = torch.addmm(self.bias, self.weight, torch.cat((x, h)))
        update = torch.tanh(a)
        return update + torch.sigmoid(a + self.gate) * (h - update)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1] - self.hidden}, {self.hidden}"


class RNNPool(nn.Module):
    """Makes a map B×channels×H×W one of B×(4·hidden)×⌈H/factor⌉×⌈W/factor⌉, whose pixels each sum up a patch.

    A first cell runs along every row and every column of the patch; a second one runs over the rows' last states, and
    over the columns', in both directions. Its four last states are the pixel's channels. Patches are `patch` pixels
    wide and high (2·factor unless given), overlap, and reach into zeros around the map.

    In eval mode `rows` rows of outputs are made at a time, so that next to nothing is held beside the two maps; in
    training all at once. The results are the same up to rounding.

    Source: Saha et al., "RNNPool: Efficient non-linear pooling for RAM constrained inference", NeurIPS 2020,
    arXiv 2002.11921, section 3. `first` and `hidden` are the sizes of its two cells: half of the authors' smallest,
    as theirs stand behind a convolution and not in front of one, where 4·8 channels would set the peak.

    >>> RNNPool(3, 4)(torch.zeros(2, 3, 32, 30)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self, channels: int, factor: int, hidden: int = 4, first: int = 4, patch: int | None = None, rows: int = 1
    ) -> None:
        super().__init__()
        self.factor, self.rows = whole("factor", factor), whole("rows", rows)
        self.patch = 2 * factor if patch is None else whole("patch", patch, factor)
        self.along = FastGRNN(whole("channels", channels), whole("first", first))
        self.across = FastGRNN(first, whole("hidden", hidden))

    @property
    def channels(self) -> int:
        """Of the map that it makes."""
        return 4 * self.across.hidden

    def forward(self, x: Tensor) -> Tensor:
        if has_torch_function_unary(x):  # to who follows the image it is one step
            return handle_torch_function(_pooled, (x,), x, self.factor, self)
        return _pooled(x, self.factor, self)

    def pool(self, x: Tensor) -> Tensor:
        height, width = (math.ceil(side / self.factor) for side in x.shape[2:])
        before = (self.patch - self.factor) // 2
        lines = [(n - 1) * self.factor + self.patch - before for n in (height, width)]
        sides = before, lines[1] - x.shape[3], before, lines[0] - x.shape[2]
        if self.training:
            return self.summed(F.pad(x, sides))
        pooled = x.new_empty(x.shape[0], self.channels, height, width)
        for row in range(0, height, self.rows):
            count = min(self.rows, height - row)
            start = row * self.factor - before
            stop = start + (count - 1) * self.factor + self.patch
            inside = x[:, :, max(0, start) : stop]
            above = max(0, -start)
            strip = F.pad(inside, (*sides[:2], above, stop - start - above - inside.shape[2]))
            pooled.narrow(2, row, count).copy_(self.summed(strip))
        return pooled

    def summed(self, x: Tensor) -> Tensor:
        """Of all patches in a map, or in a few rows of it, with its border."""
        batch, _, *sides = x.shape
        height, width = ((side - self.patch) // self.factor + 1 for side in sides)
        x = x.transpose(0, 1)  # channels first, then the batch
        # Patches share lines: each stretch of a row is summed up once, and so is each of a column.
        ends = [batch * sides[0] * width, batch * height * sides[1]]
        state = x.new_zeros(self.along.hidden, sum(ends))
        for k in range(self.patch):
            pixels = self.every(x, 3, k, width), self.every(x, 2, k, height)
            state = self.along(torch.cat(pixels, 1), state)
        rows, columns = state.split(ends, 1)
        first = self.along.hidden
        rows = rows.view(first, batch, sides[0], width)
        columns = columns.view(first, batch, height, sides[1])
        lines = [
            torch.cat((self.every(rows, 2, k, height), self.every(columns, 3, k, width)), 1)
            for k in range(self.patch)
        ]
        state = x.new_zeros(self.across.hidden, 4 * batch * height * width)
        for pair in zip(lines, reversed(lines), strict=True):
            state = self.across(torch.cat(pair, 1), state)
        state = state.view(self.across.hidden, 4, batch, height * width)
        return state.permute(2, 1, 0, 3).reshape(batch, self.channels, height, width)

    def every(self, x: Tensor, axis: int, start: int, count: int) -> Tensor:
        """The lines of a map at `start` in each patch along an axis, all of a channel side by side."""
        lines = slice(start, start + (count - 1) * self.factor + 1, self.factor)
        return (x[:, :, lines] if axis == 2 else x[..., lines]).flatten(1)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, patch={self.patch}" + (f", rows={self.rows}" if self.rows > 1 else "")


def _pooled(x: Tensor, factor: int, pool: RNNPool) -> Tensor:
    return pool.pool(x)


# By this name the image is known to shrink: `factor` squared pixels become channels, as these do.
_pooled.__name__ = "pixel_unshuffle"
