"""Maps that a network holds with channels last or as tokens, and blocks on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import wholes
from redistill_lib.red.block import RedBlock
from redistill_lib.red.layers import Side


def check_grid(label: str, grid: Sequence[int] | None) -> tuple[int, ...] | None:
    """A map's height × width, or a volume's depth × height × width; None is for channels first."""
    if grid is None:
        return None
    sides = wholes(label, grid)
    if len(sides) not in (2, 3):
        raise ValueError(f"{label} is a map's height and width, (14, 14), or a volume's three sides, not {grid}")
    return sides


def tokens_in_front(tokens: int, grid: Sequence[int]) -> int | None:
    """How many of them, such as a class token, stand in front of the pixels; None where the grid is not theirs.

    They are fewer than a row or a column, or a grid that is one too short would be taken for theirs.

    >>> tokens_in_front(1 + 14 * 14, (14, 14)), tokens_in_front(14 * 14, (13, 14))
    (1, None)
    """
    front = tokens - math.prod(grid)
    return front if 0 <= front < min(grid) else None


def as_map(x: Tensor, grid: Sequence[int] | None) -> Tensor:
    """The map B×C×H×W that `x` holds, as a view: B×H×W×C, or tokens B×(n + H·W)×C, row by row behind n others.

    `grid` is H×W, of a volume D×H×W; without, channels are first already. Raises ValueError where it does not fit.

    >>> as_map(torch.zeros(2, 7, 7, 96), (7, 7)).shape, as_map(torch.zeros(2, 1 + 14 * 14, 192), (14, 14)).shape
    (torch.Size([2, 96, 7, 7]), torch.Size([2, 192, 14, 14]))
    """
    if grid is None:
        return x
    if x.ndim == len(grid) + 2 and tuple(x.shape[1:-1]) == tuple(grid):
        return x.movedim(-1, 1)
    if x.ndim == 3 and (front := tokens_in_front(x.shape[1], grid)) is not None:
        return x[:, front:].unflatten(1, list(grid)).movedim(-1, 1)
    sides = "×".join(map(str, grid))
    raise ValueError(
        f"a grid of {sides} does not fit a tensor {tuple(x.shape)}: it has to be B×{sides}×C, or tokens "
        f"B×(n + {math.prod(grid)})×C with n below {min(grid)} in front"
    )


class GridBlock(nn.Module):
    """A block for maps B×C×H×W on one that is held with channels last, or as tokens: see `as_map`.

    Tokens in front pass unchanged. B×H×W×C may be of any size, tokens of that of `grid` alone.

    >>> GridBlock(RedBlock(8), (4, 4))(torch.zeros(2, 1 + 16, 8)).shape
    torch.Size([2, 17, 8])
    """

    def __init__(self, block: nn.Module, grid: Sequence[int]):
        super().__init__()
        self.block, self.grid = block, tuple(grid)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == len(self.grid) + 2:
            last: Tensor = self.block(x.movedim(-1, 1)).movedim(1, -1)
            return last.contiguous()  # it is, after a convolution
        tokens = self.block(as_map(x, self.grid)).flatten(2).transpose(1, 2)
        front = x.shape[1] - tokens.shape[1]
        return torch.cat([x[:, :front], tokens], 1) if front else tokens.contiguous()

    def extra_repr(self) -> str:
        return f"grid={'×'.join(map(str, self.grid))}"


def describe_block(block: nn.Module) -> dict[str, Any] | None:
    """A RED block in JSON's types, for `restore_place`; None for one of another class."""
    if type(block) is GridBlock:
        inner = describe_block(block.block)
        return inner and {**inner, "grid": list(block.grid)}
    return block.options if type(block) is RedBlock else None


def restore_place(record: Mapping[str, Any]) -> tuple[str, Side, nn.Module]:
    """What `insert_blocks` takes, of a record with layer, side and what `describe_block` told; weights are new.

    >>> restore_place({"layer": "conv", "side": "output", **describe_block(GridBlock(RedBlock(8), (4, 4)))})[:2]
    ('conv', 'output')
    """
    own = dict(record)
    layer, side, grid, folded = own.pop("layer"), own.pop("side"), own.pop("grid", None), own.pop("folded", False)
    block = RedBlock(**own)
    block = block.eval().fold() if folded else block
    return layer, side, block if grid is None else GridBlock(block, grid)
