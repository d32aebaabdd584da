"""A trace with a block put in at a tap, as if the network had been traced with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from redistill_lib.memory.trace import Shape, Trace
from redistill_lib.red import Side


class Spot(NamedTuple):
    """Where a trace has the map on one side of a layer."""

    layer: str
    side: Side
    at: int  # the operator before which a block would run
    storage: int  # of the map
    shape: Shape  # of the map; its storage may have been made in another, as by a channel shuffle
    readers: tuple[int, ...]  # operators that would read what the block makes of it
    free: bool  # nothing else reads the map from there on, and the network made it: a block may overwrite it


def find_spot(passed: Trace, layer: str, side: Side) -> Spot:
    """Raises ValueError where no operator of the layer makes or reads the whole map."""
    inside = [k for k, op in enumerate(passed.ops) if f"{op.module}.".startswith(f"{layer}.")]
    shape = passed.calls.get(layer, ((), ()))[side == "output"]
    touched: Iterable[int] = ()
    if inside and side == "output":
        touched = (*passed.ops[inside[-1]].writes, *passed.ops[inside[-1]].mutates)
    elif inside:
        read = (index for k in inside for index in passed.ops[k].reads)
        touched = (index for index in read if passed.storages[index].born < inside[0])
    shapes = {index: passed.storages[index].shape for index in touched}
    whole = [index for index, made in shapes.items() if math.prod(made) == math.prod(shape)]
    found = next(iter(sorted(whole, key=lambda index: shapes[index] != shape)), None)
    if found is None or len(shape) < 3:
        raise ValueError(f"what a block on the {side} of {layer!r} costs is not known: no operator there has its map")
    at, map_ = inside[0] if side == "input" else inside[-1] + 1, passed.storages[found]
    later = [k for k, op in enumerate(passed.ops) if k >= at and found in (*op.reads, *op.mutates)]
    readers = tuple(later if side == "output" else set(later).intersection(inside))
    alone = len(readers) == len(later) and not (map_.output and side == "input")
    return Spot(layer, side, at, found, shape, readers, map_.kind == "activation" and alone)


def map_at(passed: Trace, spot: Spot) -> Tensor:
    """The map, without contents."""
    found = passed.storages[spot.storage]
    if found.shape != spot.shape:
        return torch.empty(spot.shape, dtype=found.dtype, device="meta")
    return torch.empty_strided(found.shape, found.stride, dtype=found.dtype, device="meta")


def put_in(passed: Trace, spot: Spot, block: Trace) -> Trace:
    """The trace with that of a block, run on `map_at`, at its spot."""
    at, count, end = spot.at, len(block.ops), len(passed.storages) - 1
    number = {s.index: s.index + end if s.index else spot.storage for s in block.storages}  # its storage 0 is the map
    made = number[next(s.index for s in block.storages if s.output)]
    source = passed.storages[spot.storage]
    path = f"{spot.layer}.{'before' if spot.side == 'input' else 'after'}"  # as in a network with blocks

    def inside(module: str) -> str:
        return f"{path}.{module}".rstrip(".")

    def moved(k: int) -> int:
        return k + count * (k > at)

    inner = [op.moved(number.__getitem__, inside(op.module)) for op in block.ops]
    ops = list(passed.ops)
    for k in spot.readers:
        ops[k] = ops[k].moved(lambda i: made if i == spot.storage else i, ops[k].module)
    storages = [s._replace(born=s.born + count * (s.born >= at), died=moved(s.died)) for s in passed.storages]
    storages += (
        s._replace(index=number[s.index], module=inside(s.module), born=at + s.born, died=at + s.died, output=False)
        for s in block.storages[1:]
    )
    if made != spot.storage:  # the block's own map takes over what the other was for
        leaves = source.output and spot.side == "output"
        storages[made] = storages[made]._replace(died=source.died + count, output=leaves)
        if spot.side == "output":
            storages[spot.storage] = storages[spot.storage]._replace(died=at + count, output=False)
    return replace(passed, ops=(*ops[:at], *inner, *ops[at:]), storages=tuple(storages))
