"""What RED blocks cost a student, before anything is trained: its peak of activations, parameters, multiply-adds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type, warn
from redistill_lib.distill import Tap, match_taps
from redistill_lib.memory import format_size
from redistill_lib.memory.arena import PACKERS, height
from redistill_lib.memory.profile import DTYPES, Dtype, storage_size, weights_of
from redistill_lib.memory.reuse import Runs
from redistill_lib.memory.runtime import FUSED, Runtime
from redistill_lib.memory.schedule import make_schedule
from redistill_lib.memory.splice import Spot, find_spot, map_at, put_in
from redistill_lib.memory.trace import Trace, trace
from redistill_lib.methods import RED
from redistill_lib.network import MapRef, asking, find_layer
from redistill_lib.red import GridBlock, InPlaceRedBlock, RedBlock, as_map, describe_block, restore_place
from redistill_lib.sizes import millions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """What a network needs."""

    peak_bytes: int  # of activations
    peak_at: str  # the layer that sets it
    flops: int  # 2 per multiply-add
    parameters: int
    weight_bytes: int
    arena_bytes: int | None = None  # the one block that a runtime plans for its activations; None where it plans none

    @property
    def needed_bytes(self) -> int:
        """What has to be provisioned for activations: the arena, or else the peak."""
        return self.peak_bytes if self.arena_bytes is None else self.arena_bytes


@dataclass(frozen=True)
class TapCost:
    """A student with the RED block of one tap, or with those of all taps of one choice."""

    taps: str  # the name of the choice
    tap: str  # the student's layer and side, or "all"
    shape: tuple[int, ...]  # of the map, C×H×W; empty for all
    published: Cost  # of the student and the blocks
    in_place: Cost  # with blocks that overwrite their maps, where nothing else reads these
    reasons: tuple[str, ...]  # in which the blocks cost more than the network around them


@dataclass(frozen=True)
class TapCosts:
    """The answer to `tap_costs`."""

    student: Cost  # without blocks
    teacher: Cost
    rows: tuple[TapCost, ...] = field(repr=False)

    @property
    def costly(self) -> tuple[TapCost, ...]:
        """The taps whose block costs more than the network around it."""
        return tuple(row for row in self.rows if row.reasons and row.tap != "all")

    def to_frame(self) -> pd.DataFrame:
        """One row per tap, and one per choice for all of its taps: KiB of the student with blocks; what these add."""
        import pandas as pd

        rows = [
            {
                "taps": row.taps,
                "tap": row.tap,
                "map": "×".join(map(str, row.shape)),
                "peak (KiB)": row.published.peak_bytes / 1024,
                "peak in place (KiB)": row.in_place.peak_bytes / 1024,
                "+ mult-adds (M)": (row.published.flops - self.student.flops) / 2e6,
                "+ parameters (k)": (row.published.parameters - self.student.parameters) / 1e3,
                "more than the network": ", ".join(row.reasons),
            }
            for row in self.rows
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return "\n".join(self._told(row) for row in self.rows if row.tap == "all")

    def _told(self, row: TapCost) -> str:
        own, red, several = self.student, row.published, len({row.taps for row in self.rows}) > 1
        name = f"{row.taps}: " if several else ""
        taps = [other for other in self.rows if other.taps == row.taps and other.tap != "all"]
        peaks = [format_size(cost.peak_bytes) for cost in (own, red, row.in_place)]
        adds = [millions(cost.flops / 2) for cost in (own, red, self.teacher)]
        told = (
            f"{name}RED blocks at {len(taps)} tap{'s' * (len(taps) != 1)} take the student's peak from {peaks[0]} to "
            f"{peaks[1]} (in place {peaks[2]}), its multiply-adds from {adds[0]} to {adds[1]} (teacher {adds[2]}), "
            f"its parameters from {own.parameters:,} to {red.parameters:,}"
        )
        costly = [other for other in taps if other.reasons]
        if costly:
            worst = max(costly, key=lambda other: len(other.reasons))
            more = f" and {len(costly) - 1} more" if len(costly) > 1 else ""
            told += f"; costing more than the network itself: {worst.tap} ({', '.join(worst.reasons)}){more}"
        return told


def tap_costs(
    student: nn.Module,
    teacher: nn.Module,
    taps: Sequence[Tap] | Mapping[str, Sequence[Tap]] | None = None,
    example: Tensor | tuple[Any, ...] = (),
    *,
    dtype: Dtype = None,
) -> TapCosts:
    """What each choice of taps costs a student before anything is trained.

    `taps` are one choice, or several by name; left out, the paper's and the narrow ones of `match_taps`. Each tap's
    block is counted alone, and all of a choice together, in the student as it is: as published (three maps at a time)
    and in place. `example` holds the networks' inputs, `dtype` is that of `profile_memory`. Raises ValueError for a
    tap that takes no block.

    >>> def net(a, b): return nn.Sequential(nn.Conv2d(3, 8, 3, a, 1), nn.Conv2d(8, 8, 3, b, 1), nn.Conv2d(8, 8, 3, 2))
    >>> costs = tap_costs(net(4, 1), net(2, 2), example=torch.zeros(1, 3, 32, 32))
    >>> [(row.tap, row.shape, row.published.parameters - costs.student.parameters) for row in costs.rows[:1]]
    [('0.output', (8, 8, 8), 688)]
    """
    inputs = check_type("example", example, Tensor, tuple)
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    if taps is None:
        wide, narrow = (match_taps(student, teacher, inputs, narrow) for narrow in (False, True))
        taps = {"paper": wide, "narrow": narrow} if narrow != wide else wide
    given = taps if isinstance(taps, Mapping) else {"taps": taps}
    choices = {
        name: [replace(tap, layer=find_layer(student, tap.layer, "student")) for tap in chosen]
        for name, chosen in given.items()
    }
    with asking(inputs, "student"):
        plain = followed(student, inputs)
    with asking(inputs, "teacher"):
        theirs = followed(teacher, inputs).cost(dtype)
    own = plain.cost(dtype)
    rows = []
    for name, chosen in choices.items():
        parts = {str(tap.place): [tap] for tap in chosen}
        for label, some in [*parts.items(), ("all", chosen)]:
            published, in_place = (form.cost(dtype) for form in plain.with_blocks(some))
            at = find_spot(plain.trace, *some[0].place) if label != "all" else None
            shape = tuple(as_map(map_at(plain.trace, at), some[0].grid).shape[1:]) if at else ()
            rows.append(TapCost(name, label, shape, published, in_place, excess(own, published)))
    return TapCosts(own, theirs, tuple(rows))


@dataclass(frozen=True)
class Followed:
    """A network that was followed once, to be counted in any dtype, under any rules, with blocks or without."""

    trace: Trace
    parameters: int
    weight_bytes: int  # as they are stored

    def cost(self, dtype: Dtype = None, runtime: Runtime = FUSED) -> Cost:
        name, size = storage_size(dtype)
        schedule = make_schedule(self.trace, size, runtime.of(name))
        live = schedule.live_bytes()
        at = schedule.steps[live.index(max(live))]
        flops = sum(step.flops for step in schedule.steps)
        weights = self.parameters * DTYPES[name].itemsize if name else self.weight_bytes
        arena = None
        if runtime.plans_arena:
            blocks = schedule.blocks(runtime.alignment)
            arena = height(blocks, PACKERS[runtime.packer](blocks))
        return Cost(max(live), at.module or at.name, flops, self.parameters, weights, arena)

    def with_blocks(self, taps: Sequence[Tap]) -> tuple[Followed, Followed]:
        """With the blocks of `taps`, as published and in place, not followed again. Errors as `find_spot`."""
        published, in_place, placed = self, self, set[MapRef]()
        for tap in taps:
            spot = find_spot(published.trace, *tap.place)
            x = map_at(published.trace, spot)
            try:
                shape = tuple(as_map(x, tap.grid).shape)
            except ValueError as error:
                raise ValueError(f"tap {tap.name}: {error}") from None
            if len(shape) < 4:
                told = f"{tap.place} is {tuple(x.shape)}, not a B×C×H×W map"
                raise ValueError(f"{told}; of tokens give the tap their grid=")
            with torch.device("meta"):
                block = tap.block(tap.method or RED(), shape[1:])
            if block is None or tap.place in placed:
                continue
            placed.add(tap.place)
            inside = _block_trace(block, x)
            if [math.prod(s.shape) for s in inside.storages if s.output] != [x.numel()]:
                raise ValueError(f"the block on {tap.place} changes the shape of its map; a block keeps it")
            sizes = {name: weight.numel() for name, weight in block.named_parameters()}
            published = published._with(spot, inside, sum(sizes.values()))
            spot = find_spot(in_place.trace, *tap.place)
            # With tokens in front, which are read behind it, it stays plain.
            whole = x.numel() == math.prod(shape)
            inner = block.block if isinstance(block, GridBlock) and whole else block
            if type(inner) is RedBlock and inner.axes == 2 and spot.free:
                inside = _block_trace(block, x, InPlaceRedBlock.held_rows(inner, shape[2]))
                sizes = {name: size for name, size in sizes.items() if ".0." in name}  # norms are folded
            in_place = in_place._with(spot, inside, sum(sizes.values()))
        return published, in_place

    def _with(self, spot: Spot, block: Trace, parameters: int) -> Followed:
        width = self.weight_bytes // max(1, self.parameters)
        weights = self.weight_bytes + parameters * width
        return Followed(put_in(self.trace, spot, block), self.parameters + parameters, weights)


def followed(
    model: nn.Module, inputs: tuple[Any, ...], runtime: Runtime = FUSED, runs: Runs | None = None
) -> Followed:
    """Raises what the model raises."""
    as_python = runtime.frees == "as python"
    passed = trace(model, *inputs, fast_attention=as_python, copies_views=runtime.copies_views, runs=runs)
    return Followed(passed, *weights_of(model))


class _Slab(nn.Module):
    """What an in-place block of any weights holds: some rows beside the map, over which it writes."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.cat([x[:, :, :1]] * self.rows, 2)[:, :, :1])


def _block_trace(block: nn.Module, x: Tensor, slab: int = 0) -> Trace:
    """Of the block itself, or in place with so many rows beside the map."""
    record = describe_block(block)
    if record is not None:  # it says all
        told = tuple((name, tuple(value) if name == "grid" else value) for name, value in record.items())
        return _red_trace(told, slab, x.dtype, tuple(x.shape), x.stride())
    return trace(block.to(x.dtype), x)


@functools.lru_cache(maxsize=1000)
def _red_trace(record: tuple[tuple[str, Any], ...], slab: int, dtype: torch.dtype, *layout: tuple[int, ...]) -> Trace:
    with torch.device("meta"):
        x = torch.empty_strided(*layout, dtype=dtype)
        _, _, block = restore_place({"layer": "", "side": "output", **dict(record)})
        if not slab:
            return trace(block.to(dtype), x)
        rows = GridBlock(_Slab(slab), block.grid) if isinstance(block, GridBlock) else _Slab(slab)
        passed = trace(rows.to(dtype), x)
    flops = sum(op.flops for op in _red_trace(record, 0, dtype, *layout).ops)
    first, *others = (op._replace(flops=0) for op in passed.ops)
    return replace(passed, ops=(first._replace(flops=flops), *others))


def warn_of_costs(student: nn.Module, taps: Sequence[Tap], inputs: tuple[Tensor, ...]) -> None:
    """One warning where the blocks of a student that is about to be trained cost more than itself, for one image."""
    plain = followed(student, tuple(x[:1] for x in inputs))
    own = plain.cost()
    try:
        published, in_place = (form.cost() for form in plain.with_blocks(taps))
    except ValueError:
        return  # what cannot be counted beforehand is trained all the same
    if excess(own, published):
        peaks = [format_size(cost.peak_bytes) for cost in (own, published, in_place)]
        warn(
            f"RED blocks cost more than the student around them: multiply-adds {millions(own.flops / 2)} → "
            f"{millions(published.flops / 2)}, parameters {own.parameters:,} → {published.parameters:,}, peak "
            f"{peaks[0]} → {peaks[1]} (in place {peaks[2]}); rd.match_taps(…, narrow=True) may find cheaper taps, "
            "which rd.tap_costs compares"
        )


def excess(own: Cost, red: Cost) -> tuple[str, ...]:
    """In what the blocks of a student cost more than itself."""
    found = {
        "multiply-adds": red.flops > 2 * own.flops,
        "parameters": red.parameters > 2 * own.parameters,
        "peak": red.peak_bytes > own.peak_bytes,
    }
    return tuple(name for name, more in found.items() if more)
