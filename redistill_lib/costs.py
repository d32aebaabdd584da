"""What RED blocks cost a student, before anything is trained: its peak of activations, parameters, multiply-adds."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.distill import Tap, match_taps
from redistill_lib.memory import format_size
from redistill_lib.memory.profile import Dtype, build_profile
from redistill_lib.memory.splice import find_spot, map_at, put_in
from redistill_lib.memory.trace import Trace, trace
from redistill_lib.methods import RED
from redistill_lib.network import MapRef, asking, find_layer
from redistill_lib.red import GridBlock, InPlaceRedBlock, RedBlock, as_map, describe_block, restore_place

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """What a network needs."""

    peak_bytes: int  # of activations, ``fused``
    peak_at: str  # the layer that sets it
    flops: int  # 2 per multiply-add
    parameters: int
    weight_bytes: int


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
        return "\n".join(self.headline(row) for row in self.rows if row.tap == "all")

    def headline(self, row: TapCost) -> str:
        """What all taps of one choice cost, in a sentence."""
        own, red, several = self.student, row.published, len({row.taps for row in self.rows}) > 1
        name = f"{row.taps}: " if several else ""
        taps = [other for other in self.rows if other.taps == row.taps and other.tap != "all"]
        peaks = [format_size(cost.peak_bytes) for cost in (own, red, row.in_place)]
        adds = [f"{cost.flops / 2e6:,.3g}" for cost in (own, red, self.teacher)]
        told = (
            f"{name}RED blocks at {len(taps)} tap{'s' * (len(taps) != 1)} take the student's peak from {peaks[0]} to "
            f"{peaks[1]} (in place {peaks[2]}), its multiply-adds from {adds[0]} to {adds[1]} M (teacher {adds[2]}), "
            f"its parameters from {own.parameters:,} to {red.parameters:,}"
        )
        costly = [other for other in taps if other.reasons]
        if costly:
            worst = max(costly, key=lambda other: len(other.reasons))
            more = f" and {len(costly) - 1} more" if len(costly) > 1 else ""
            told += f"; more than the network around it costs {worst.tap}{more}: {', '.join(worst.reasons)}"
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
        passed = trace(student, *inputs, fast_attention=False)
    with asking(inputs, "teacher"):
        theirs = cost_of(teacher, trace(teacher, *inputs, fast_attention=False), dtype)
    own = cost_of(student, passed, dtype)
    rows = []
    for name, chosen in choices.items():
        parts = {str(tap.place): [tap] for tap in chosen}
        for label, some in [*parts.items(), ("all", chosen)]:
            published, in_place = with_blocks(passed, some).costs(student, dtype)
            at = find_spot(passed, *some[0].place) if label != "all" else None
            shape = tuple(as_map(map_at(passed, at), some[0].grid).shape[1:]) if at else ()
            rows.append(TapCost(name, label, shape, published, in_place, excess(own, published)))
    return TapCosts(own, theirs, tuple(rows))


def cost_of(model: nn.Module, passed: Trace, dtype: Dtype = None, added: int = 0, **how: bool) -> Cost:
    """Of a traced network with so many parameters `added`; `how` is for `build_profile`."""
    made = build_profile(model, passed, "fused", dtype, **how)
    count, width = made.weight_count + added, made.weight_bytes // max(1, made.weight_count)
    return Cost(made.peak_bytes, made.peak_op.name, made.flops, count, made.weight_bytes + added * width)


class Blocked(NamedTuple):
    """A traced network with RED blocks, as published and in place, and the parameters of these."""

    published: Trace
    in_place: Trace
    parameters: int
    folded: int  # in place, where batch norms are part of the convolutions

    def costs(self, model: nn.Module, dtype: Dtype = None, **how: bool) -> tuple[Cost, Cost]:
        """As published and in place; `model` is the network without blocks."""
        whole = cost_of(model, self.published, dtype, self.parameters, **how)
        return whole, replace(cost_of(model, self.in_place, dtype, self.folded, **how), flops=whole.flops)


def with_blocks(passed: Trace, taps: Sequence[Tap]) -> Blocked:
    """Put the blocks of `taps` into a traced network, which is not traced again. Raises ValueError as `find_spot`."""
    found, placed = Blocked(passed, passed, 0, 0), set[MapRef]()
    for tap in taps:
        place = tap.place
        spot = find_spot(found.published, *place)
        x = map_at(found.published, spot)
        try:
            shape = tuple(as_map(x, tap.grid).shape)
        except ValueError as error:
            raise ValueError(f"tap {tap.name}: {error}") from None
        if len(shape) < 4:
            raise ValueError(f"{place} is {tuple(x.shape)}, not a B×C×H×W map; of tokens give the tap their grid=")
        with torch.device("meta"):
            block = tap.block(tap.method or RED(), shape[1:])
        if block is None or place in placed:
            continue
        placed.add(place)
        alone = _block_trace(block, x)
        if [math.prod(s.shape) for s in alone.storages if s.output] != [x.numel()]:
            raise ValueError(f"the block on {place} changes the shape of its map; a block keeps it")
        published = put_in(found.published, spot, alone)
        sizes = {name: weight.numel() for name, weight in block.named_parameters()}
        parameters, spot, slab = sum(sizes.values()), find_spot(found.in_place, *place), 0
        # With tokens in front, which are read behind it, it stays plain.
        whole = x.numel() == math.prod(shape)
        inner = block.block if isinstance(block, GridBlock) and whole else block
        if type(inner) is RedBlock and inner.axes == 2 and spot.free:
            slab = InPlaceRedBlock.held_rows(inner, shape[2])
            sizes = {name: size for name, size in sizes.items() if ".0." in name}  # norms are folded
        in_place = put_in(found.in_place, spot, _block_trace(block, x, slab))
        found = Blocked(published, in_place, found.parameters + parameters, found.folded + sum(sizes.values()))
    return found


class _Slab(nn.Module):
    """What an in-place block of any weights holds: some rows beside the map, over which it writes."""

    def __init__(self, rows: int):
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(torch.cat([x[:, :, :1]] * self.rows, 2)[:, :, :1])


def _block_trace(block: nn.Module, x: Tensor, slab: int = 0) -> Trace:
    record = describe_block(block)
    if record is not None:  # it says all
        told = tuple((name, tuple(value) if name == "grid" else value) for name, value in record.items())
        return _red_trace(told, tuple(x.shape), x.stride(), x.dtype, slab)
    return trace(block.to(x.dtype), x)


@functools.lru_cache(maxsize=1000)
def _red_trace(
    record: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    slab: int,
) -> Trace:
    with torch.device("meta"):
        _, _, block = restore_place({"layer": "", "side": "output", **dict(record)})
        if slab:
            block = GridBlock(_Slab(slab), block.grid) if isinstance(block, GridBlock) else _Slab(slab)
        return trace(block.to(dtype), torch.empty_strided(shape, stride, dtype=dtype))


def warn_of_costs(student: nn.Module, taps: Sequence[Tap], inputs: tuple[Tensor, ...]) -> None:
    """One warning where the blocks of a student that is about to be trained cost more than itself, for one image."""
    passed = trace(student, *(x[:1] for x in inputs), fast_attention=False)
    own = cost_of(student, passed)
    try:
        published, in_place = with_blocks(passed, taps).costs(student)
    except ValueError:
        return  # what cannot be counted beforehand is trained all the same
    if excess(own, published):
        peaks = [format_size(cost.peak_bytes) for cost in (own, published, in_place)]
        warnings.warn(
            f"RED blocks cost more than the student around them: multiply-adds {own.flops / 2e6:.3g} → "
            f"{published.flops / 2e6:.3g} M, parameters {own.parameters:,} → {published.parameters:,}, peak "
            f"{peaks[0]} → {peaks[1]} (in place {peaks[2]}); rd.match_taps(…, narrow=True) may find cheaper taps, "
            "which rd.tap_costs compares",
            stacklevel=4,
        )


def excess(own: Cost, red: Cost) -> tuple[str, ...]:
    """In what the blocks of a student cost more than itself."""
    found = {
        "multiply-adds": red.flops > 2 * own.flops,
        "parameters": red.parameters > 2 * own.parameters,
        "peak": red.peak_bytes > own.peak_bytes,
    }
    return tuple(name for name, more in found.items() if more)
