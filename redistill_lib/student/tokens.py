"""Transformers: larger patches, positions that are resized, and windows that follow their maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill_lib.network import evaluating
from redistill_lib.network.flow import Extent, times
from redistill_lib.student.edits import Change, change_layer
from redistill_lib.student.ratios import embeds

# Names under which modules keep the sides of a patch, the patches along each side, and how many there are.
_PATCH = ("patch_size",)
_GRID = ("grid_size", "feat_size", "feat_shape", "patch_grid", "patch_shape", "patches_resolution")
_COUNT = ("num_patches", "seq_length", "num_positions", "num_embeddings", "n_patches")
_PREFIX = 16  # class tokens and registers in front of the patches' positions: at most


def resize_patches(model: nn.Module, path: str, factor: int, before: Extent, after: Extent) -> list[Change]:
    """Make the patches that the convolution `path` embeds `factor` times as large, in place.

    `before` and `after` are how many patches there are along each side. Kernel = stride stays so, its weights
    repeated; learned or fixed positions (1×(n+L)×C with n tokens in front, L×C, 1×C×H×W) are resized, bicubically;
    attributes that say the patch or the grid are set. Raises ValueError naming what cannot follow.
    """
    conv: Any = model.get_submodule(path)
    if not embeds(conv):
        raise ValueError(f"{path} is no convolution with kernel = stride, so its patches cannot grow")
    if any(side != factor * less for side, less in zip(before, after, strict=True)):
        raise ValueError(
            f"{path} makes {times(before)} patches, which patches {factor} times as large do not divide; give an "
            f"example whose sides are multiples of {conv.kernel_size[0] * factor}"
        )
    old, new, count = conv.kernel_size[0], conv.kernel_size[0] * factor, math.prod(before)
    _check_relative(model, before)
    changes = [change_layer(path, conv, f"conv{len(before)}d", old, new), *resize_positions(model, {before: after})]
    tokens = {count + n: math.prod(after) + n for n in range(_PREFIX)}
    for module in _around(model, path):
        for holder in (module, getattr(module, "config", None)):
            _follow(holder, _PATCH, {old: new})
            _follow(holder, _GRID, dict(zip(before, after, strict=True)))
            _follow(holder, _COUNT, tokens)
    return changes


def resize_positions(model: nn.Module, sizes: Mapping[Extent, Extent]) -> list[Change]:
    """Resize the tables that hold a position for each point of maps of these sizes, in place."""
    changes: list[Change] = []
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        owner, _, leaf = name.rpartition(".")
        if isinstance(model.get_submodule(owner), nn.Embedding):
            leaf = name
        shape = tuple(value.shape)
        numbers = (*shape, 1) if value.dtype == torch.int64 else shape
        tokens = {grid: 0 if shape[2:] == grid else _prefix(numbers, math.prod(grid)) for grid in sizes}
        known = {grid: front for grid, front in tokens.items() if front is not None}
        if "pos" not in leaf.lower() or _is_relative(name) or not known:
            continue
        before = min(known, key=lambda grid: known[grid])
        after = sizes[before]
        if before == after:
            continue
        resized = _resized(value, before, after)
        if isinstance(value, nn.Parameter):
            resized = nn.Parameter(resized, requires_grad=value.requires_grad)
        setattr(model.get_submodule(owner), name.rpartition(".")[2], resized)
        changes.append(Change(name, "positions", before[0], after[0], f"{times(before)} → {times(after)}"))
    return changes


def _is_relative(name: str) -> bool:
    return any(word in name.lower() for word in ("relative", "rel_pos", "attention_bias", "rope"))


def _check_relative(model: nn.Module, grid: Extent) -> None:
    """Raise ValueError where a table holds an entry for each pair of patches."""
    count = math.prod(grid)
    pairs = math.prod(2 * side - 1 for side in grid)  # of patches, by their distance
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if _is_relative(name) and {*value.shape} & {number + n for number in (pairs, count) for n in range(4)}:
            raise ValueError(
                f"{name} is a table of relative positions for {times(grid)} patches, which is not resized; give a "
                "network with absolute positions, or with windows"
            )


def _prefix(shape: tuple[int, ...], count: int) -> int | None:
    """How many tokens stand in front of the patches; None where the table is not theirs."""
    tokens = shape[-2] if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1) else -1
    return tokens - count if 0 <= tokens - count < _PREFIX else None


def _resized(table: Tensor, before: Extent, after: Extent) -> Tensor:
    table = table.detach()
    mode: Any = {"mode": "bicubic", "antialias": True} if len(before) == 2 else {"mode": "trilinear"}
    if table.dtype == torch.int64:  # a number for each
        tokens = table.shape[-1] - math.prod(before) + math.prod(after)
        return torch.arange(tokens, device=table.device).expand(*table.shape[:-1], -1).clone()
    if tuple(table.shape[2:]) == before:
        return F.interpolate(table, size=list(after), **mode)
    start = _prefix(tuple(table.shape), math.prod(before))
    front, patches = table[..., :start, :], table[..., start:, :]
    maps = patches.reshape(1, *before, -1).movedim(-1, 1)
    maps = F.interpolate(maps.float(), size=list(after), **mode).to(table.dtype)
    lines = maps.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], math.prod(after), -1)
    return torch.cat([front, lines], -2)


def _around(model: nn.Module, path: str) -> Iterator[nn.Module]:
    parts = path.split(".")
    for length in range(len(parts) + 1):
        yield model.get_submodule(".".join(parts[:length]))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "pos" in name.lower():
            yield module


def _follow(holder: Any, names: tuple[str, ...], values: dict[int, int]) -> None:
    """Set the attributes that say an old number, or several, to the new."""
    for name in names:
        said: Any = getattr(holder, name, None)
        each: Any = said if isinstance(said, tuple | list) else [said]
        if each and all(type(value) is int and value in values for value in each):
            new = [values[value] for value in each]
            setattr(holder, name, type(said)(new) if each is said else new[0])


def resize_patch(model: nn.Module, path: str, old: int, new: int) -> None:
    """Tell the module around a convolution with kernel = stride, where it says so, how large its patches are now."""
    _follow(model.get_submodule(path.rpartition(".")[0]), _PATCH, {old: new})


def fit_sizes(model: nn.Module, *args: Any, **kwargs: Any) -> list[Change]:
    """Tell each module that works on maps of one size how large that is now, where it can be told (timm).

    These are blocks that attend in windows, which shrink to maps smaller than they are, and patch embeddings. Runs
    the network once. The changes are of the map's height.
    """
    changes: list[Change] = []

    def tell(path: str, block: Any, inputs: Any) -> None:
        embeds = hasattr(block, "img_size")
        old = tuple(block.img_size if embeds else block.input_resolution)
        new = tuple(inputs[0].shape[2:] if embeds else inputs[0].shape[1:3])
        if old != new:
            told = {"img_size": new} if embeds else {"feat_size": new, "window_size": block.window_size}
            block.set_input_size(**told)
            changes.append(
                Change(path, "map" if embeds else "windows", old[0], new[0], f"{times(old)} → {times(new)}")
            )

    kinds = ("img_size", "grid_size", "proj"), ("input_resolution", "window_size")
    blocks = [
        (path, module)
        for path, module in model.named_modules()
        if hasattr(module, "set_input_size")
        and any(all(getattr(module, name, None) is not None for name in kind) for kind in kinds)
    ]
    if blocks:
        # What breaks for another reason says so when the student is checked.
        with ExitStack() as hooks, evaluating(model), suppress(Exception):
            for path, block in blocks:
                hooks.enter_context(block.register_forward_pre_hook(partial(tell, path)))
            model(*args, **kwargs)
    return changes
