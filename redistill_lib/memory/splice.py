"""A trace with a block put in at a tap, as if the network had been traced with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redistill_lib.memory.trace import Op, Trace
from redistill_lib.red import Side

_INDICES = ("reads", "writes", "mutates", "aligned")  # of storages


class Spot(NamedTuple):
    """Where a trace has the map on one side of a layer."""

    layer: str
    side: Side
    at: int  # the operator before which a block would run
    storage: int  # of the map
    readers: tuple[int, ...]  # operators that would read what the block makes of it
    free: bool  # nothing else reads the map from there on, and the network made it: a block may overwrite it


def find_spot(passed: Trace, layer: str, side: Side) -> Spot:
    """Raises ValueError where the map is a view, or no operator of the layer makes or reads it."""
    inside = [k for k, op in enumerate(passed.ops) if f"{op.module}.".startswith(f"{layer}.")]
    shape = passed.calls.get(layer, ((), ()))[side == "output"]
    touched: Iterable[int] = ()
    if inside and side == "output":
        touched = (*passed.ops[inside[-1]].writes, *passed.ops[inside[-1]].mutates)
    elif inside:
        touched = (index for k in inside for index in passed.ops[k].reads)
    found = next((index for index in touched if passed.storages[index].shape == shape), None)
    if found is None or len(shape) != 4:
        raise ValueError(f"what a block on the {side} of {layer!r} costs is not known: no operator there has its map")
    at, map_ = inside[0] if side == "input" else inside[-1] + 1, passed.storages[found]
    later = [k for k, op in enumerate(passed.ops) if k >= at and found in (*op.reads, *op.mutates)]
    readers = tuple(later if side == "output" else set(later).intersection(inside))
    alone = len(readers) == len(later) and not (map_.output and side == "input")
    return Spot(layer, side, at, found, readers, map_.kind == "activation" and alone)


def map_at(passed: Trace, spot: Spot) -> Tensor:
    """The map, without contents."""
    found = passed.storages[spot.storage]
    return torch.empty_strided(found.shape, found.stride, dtype=found.dtype, device="meta")


def put_in(passed: Trace, spot: Spot, block: Trace) -> Trace:
    """The trace with that of a block, run on `map_at`, at its spot."""
    at, count, end = spot.at, len(block.ops), len(passed.storages) - 1
    number = {s.index: s.index + end if s.index else spot.storage for s in block.storages}  # its storage 0 is the map
    made = number[next(s.index for s in block.storages if s.output)]
    source = passed.storages[spot.storage]
    path = f"{spot.layer}.{'before' if spot.side == 'input' else 'after'}"  # as in a network with blocks

    def renumbered(op: Op, number: dict[int, int]) -> Op:
        fields: Any = {name: tuple(number.get(i, i) for i in getattr(op, name)) for name in _INDICES}
        return replace(op, **fields)

    def moved(k: int) -> int:
        return k + count * (k > at)

    inner = [replace(renumbered(op, number), module=f"{path}.{op.module}".rstrip(".")) for op in block.ops]
    ops = [renumbered(op, {spot.storage: made}) if k in spot.readers else op for k, op in enumerate(passed.ops)]
    storages = [replace(s, born=s.born + count * (s.born >= at), died=moved(s.died)) for s in passed.storages]
    for s in block.storages[1:]:
        module = f"{path}.{s.module}".rstrip(".")
        storages.append(
            replace(s, index=number[s.index], module=module, born=at + s.born, died=at + s.died, output=False)
        )
    if made != spot.storage:  # the block's own map takes over what the other was for
        leaves = source.output and spot.side == "output"
        storages[made] = replace(storages[made], died=source.died + count, output=leaves)
        if spot.side == "output":
            storages[spot.storage] = replace(storages[spot.storage], died=at + count, output=False)
    return replace(passed, ops=(*ops[:at], *inner, *ops[at:]), storages=tuple(storages))
