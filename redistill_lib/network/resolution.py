"""Where a network changes its maps' resolution: the one record that students, taps, budgets and figures share."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from redistill_lib.checks import check_type
from redistill_lib.network.answer import asking
from redistill_lib.network.flow import (
    CONVOLUTIONS,
    Example,
    Extent,
    Flow,
    arguments_of,
    image_of,
    times,
    trace_flow,
)
from redistill_lib.network.grids import Change, Grids
from redistill_lib.network.hooks import MapRef
from redistill_lib.network.steps import (
    Step,
    Where,
    find_groups,
    find_ref,
    find_shortcut,
    make_step,
    single_visits,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Resize:
    """One call that changes height × width."""

    module: str
    function: str
    line: str  # of the forward that calls it
    before: Extent
    after: Extent
    channels_in: int
    channels_out: int
    learns: bool  # a convolution with weights
    where: Where  # a skip is the shortcut beside another change; a gate's maps only weigh others
    step: int | None  # parallel branches make one step


@dataclass(frozen=True, repr=False)
class Place:
    """One place where a network downsamples: the layers that carry its stride, all parallel branches together."""

    layers: tuple[str, ...]
    stride: int
    total: int  # how many pixels of the image are one behind it, along each side
    before: Extent  # height and width of the maps before it
    after: Extent
    pool: bool  # nothing learns from the stem to here

    @property
    def name(self) -> str:
        """Its first layer, e.g. `layer2.0.conv1`."""
        return self.layers[0] or "the network"

    def __repr__(self) -> str:
        names = ", ".join(name or "the network" for name in self.layers)
        return (
            f"{names}: {'pool' if self.pool else 'stride'} {self.stride} ({times(self.before)} → {times(self.after)})"
        )


@dataclass(frozen=True)
class Resolutions:
    """Where a network changes resolution: its calls, whole steps, and the places that a stride plan sets."""

    changes: tuple[Resize, ...]
    steps: tuple[Step, ...]
    places: tuple[Place, ...]
    grids: Grids = field(repr=False)
    tails: frozenset[int] = field(repr=False)  # the last calls on the way to maps that are returned

    @property
    def flow(self) -> Flow:
        return self.grids.flow

    def narrowest(self) -> tuple[Step, ...]:
        """The steps with the narrowest maps before and after them, of those through which all of the pass goes.

        An inverted residual widens its map to change resolution; around it, the map has fewer channels.
        """
        flow = self.flow
        read = {value: number for number, call in enumerate(flow.calls) for value in call.takes}
        read |= dict.fromkeys(flow.gives, len(flow.calls))
        alone: list[tuple[int, int]] = []  # the call after which a value is all that is left, and that value
        live = set(range(flow.images))
        for number, call in enumerate(flow.calls):
            live = {value for value in (*live, *call.makes) if read.get(value, -1) > number}
            alone += [(number, *live)] if len(live) == 1 and live.isdisjoint(flow.gives) else []  # type: ignore
        found: list[Step] = []
        bounds = [-1, *(number for step in self.steps for number in (step.first, step.last)), len(flow.calls)]
        for k, step in enumerate(self.steps):
            ends: list[tuple[MapRef | None, int, bool]]
            ends = [(step.input, step.channels_in, step.last_in), (step.output, step.channels_out, step.last_out)]
            for side, (low, high) in enumerate((bounds[2 * k : 2 * k + 2], bounds[2 * k + 2 : 2 * k + 4])):
                maps = [
                    (
                        self.grids.channels(value),
                        abs(number - bounds[2 * k + 1 + side]),
                        ref,
                        self.grids.held_last(value),
                    )
                    for number, value in alone
                    if low <= number < high and self.grids.held(value)
                    if self.grids.sides(value) == (step.after if side else step.before)
                    if (ref := find_ref(flow, value)) is not None
                ]
                if maps:
                    channels, _, ref, is_last = min(maps, key=lambda found: found[:2])
                    if channels < ends[side][1]:
                        ends[side] = (ref, channels, is_last)
            (entry, wide, last_in), (exit_, broad, last_out) = ends
            step = replace(step, input=entry, channels_in=wide, last_in=last_in)
            found.append(replace(step, output=exit_, channels_out=broad, last_out=last_out))
        return tuple(found)

    def position(self, step: Step) -> float | None:
        """Where in the pass a step's layer runs, from 0 to 1, be it a step of this network or of another."""
        ref, calls = step.output or step.input, len(self.flow.calls)
        runs = [visit for visit in self.flow.visits if ref is not None and visit.run[0] == ref.layer]
        if not runs or ref is None:
            return step.last / calls if step in self.steps else None
        behind = ref.side == "output"
        return (runs[0].last - 0.5 if behind else runs[0].first - 0.75) / calls

    @property
    def image(self) -> Extent:
        """The sides of the first input image."""
        return self.grids[0].size

    def to_frame(self) -> pd.DataFrame:
        """One row per change: module, function, line, before, after, channels, learns, where, step."""
        import pandas as pd

        return pd.DataFrame([asdict(change) for change in self.changes], columns=list(Resize.__annotations__))


def find_resolutions(model: nn.Module, example: Example, role: str = "network") -> Resolutions:
    """Follow one forward pass in eval mode, on tensors without contents, and note where its maps change size.

    Only what descends from an image counts, also as tokens or with channels last; padding, unpadded convolutions and
    pooling to one pixel do not. `example` is a float image B×C×H×W or volume B×C×D×H×W, the tuple of the network's
    inputs, or a dict of named ones. Raises ValueError where the network, called `role` then, does not take it.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
    >>> found = find_resolutions(net, torch.zeros(1, 3, 32, 32))
    >>> [(change.module, change.function, change.before, change.after, change.where) for change in found.changes]
    [('0', 'conv2d', (32, 32), (16, 16), 'trunk'), ('2', 'max_pool2d', (16, 16), (8, 8), 'trunk')]
    """
    check_type("model", model, nn.Module)
    image_of(example)
    if any(isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule) for module in model.modules()):
        raise ValueError(f"the {role} is or holds a compiled graph, whose layers cannot be told; give the original")
    flow = trace_flow(model, example)
    if flow.error is not None:
        args, kwargs = arguments_of(example)
        with asking((*args, *kwargs.values()), role):
            raise flow.error
    grids = Grids(flow)
    # A fixed filter, as that of a blur pool, is a buffer.
    learning = [
        number
        for number, call in enumerate(flow.calls)
        if call.function in CONVOLUTIONS and next(model.get_submodule(call.path).parameters(), None) is not None
    ]
    # A merging of patches ends with a linear layer on each pixel.
    linear = [k for k, call in enumerate(flow.calls) if call.function == "linear" and grids.held_last(call.takes[0])]
    where = _where(grids)
    steps: list[Step] = []
    for group in find_groups(model, grids, where):
        since = steps[-1].last if steps else -1
        steps.append(make_step(model, grids, group, [n for n in (*learning, *linear) if n > since]))
        if len(group) > 1 and (shortcut := find_shortcut(grids, group)):
            where[shortcut.number] = "skip"
    step_of = {change.number: k for k, group in enumerate(find_groups(model, grids, where)) for change in group}
    changes = [
        _resize(grids, change, where[change.number], change.number in learning, step_of.get(change.number))
        for change in grids.changes
        if change.resizes
    ]
    places = tuple(_places(grids, where, set(learning)))
    return Resolutions(tuple(changes), tuple(steps), places, grids, _tails(grids))


class MapShape(NamedTuple):
    """A module that takes a map to a map."""

    layer: str
    channels: int  # of its output
    sides: Extent
    grid: Extent | None  # these sides again, where the output has its channels last


def map_shapes(model: nn.Module, *inputs: Any) -> list[MapShape]:
    """The output of every module that takes a map to one, in order of completion.

    A module that runs more than once per pass has no shape of its own and is left out.
    """
    flow = trace_flow(model, inputs)
    if flow.error is not None:
        raise flow.error
    grids, found = Grids(flow), list[MapShape]()
    for visit in single_visits(flow):
        if visit.takes >= 0 and visit.single and visit.gives and grids.held(visit.takes):
            value = visit.gives[0]
            if grids.held(value):
                sides, last = grids.sides(value), grids.held_last(value)
                found.append(MapShape(visit.run[0], grids.channels(value), sides, sides if last else None))
    return found


def _resize(grids: Grids, change: Change, where: Where, learns: bool, step: int | None) -> Resize:
    call = grids.flow.calls[change.number]
    return Resize(
        module=call.path,
        function=call.function,
        line=call.line,
        before=grids[change.before].size,
        after=grids[change.after].size,
        channels_in=grids.channels(change.source),
        channels_out=grids.channels(change.result),
        learns=learns,
        where=where,
        step=step,
    )


def _where(grids: Grids) -> dict[int, Where]:
    """By the call of each change; what is a skip only its step tells."""
    gates = grids.gates
    # An average behind the last convolution is the head's, and before convolutions of 1×1 where no map is returned.
    maps = any(grids.is_map(value) for value in grids.flow.gives)
    convolutions = [
        number
        for number, call in enumerate(grids.flow.calls)
        if call.function in CONVOLUTIONS and (maps or math.prod(call.kernel) > 1)
    ]
    last = max(convolutions, default=-1)
    where: dict[int, Where] = {}
    levels = Counter((grids[c.before].total, grids[c.after].total) for c in grids.changes)
    for change in grids.changes:
        alone = levels[grids[change.before].total, grids[change.after].total] == 1  # no shortcut of another layer
        ends = alone and grids.flow.calls[change.number].function.startswith("avg_pool") and change.number > last
        where[change.number] = "gate" if change.after in gates else "head" if ends else "trunk"
    return where


def _places(grids: Grids, where: dict[int, Where], learning: set[int]) -> Iterator[Place]:
    """The stem, and then each level of fewer pixels that the trunk comes down to."""
    calls = grids.flow.calls
    trunk = [c for c in grids.changes if where[c.number] in ("trunk", "skip") and not grids[c.after].raw]
    stems = [c for c in trunk if grids[c.before].raw]
    if not stems:
        return
    first = grids[stems[0].after].total
    down = [c for c in trunk if not grids[c.before].raw and grids[c.after].total > grids[c.before].total]
    totals = sorted({first, *(grids[c.after].total for c in down if grids[c.after].total > first)})
    for number, (before, after) in enumerate(itertools.pairwise([Fraction(1), *totals])):
        reaching = [c for c in (down if number else stems) if grids[c.after].total == after]
        # Where no layer is between neighbouring levels, the smaller one is reached from further up only.
        carriers = [c for c in reaching if not number or grids[c.before].total == before] or reaching
        layers = tuple(dict.fromkeys(calls[c.number].path for c in carriers))
        since = range(stems[0].number + 1, carriers[0].number + 1)
        raw = {c.number for c in stems}
        pool = number == 1 and learning.isdisjoint({*since, *(c.number for c in carriers)} - raw)
        sizes = grids[carriers[0].before].size, grids[carriers[0].after].size
        yield Place(layers, int(after / before), int(after), *sizes, pool)


def _tails(grids: Grids) -> frozenset[int]:
    """The last convolution or change on the way to each map that the network returns, where nothing else needs it."""
    flow = grids.flow
    maker = {value: k for k, call in enumerate(flow.calls) for value in call.makes}
    readers: dict[int, set[int]] = {}
    for k, call in enumerate(flow.calls):
        for value in call.takes:
            readers.setdefault(value, set()).add(k)
    changing = {change.number for change in grids.changes}
    growing = {c.number for c in grids.changes if c.factors and c.factors[0] < 1}
    ends, behind = set[int](), set[int]()
    queue = [value for value in flow.gives if grids.is_map(value) and not grids.at(value).raw]
    while queue:
        queue.remove(value := max(queue))  # the last one made
        number, after = maker.get(value, -1), readers.get(value, set())
        if value in flow.gives and after <= behind | (ends & growing):
            behind |= after  # a map that is returned, and once more when it has grown
            ends -= after
        if number < 0 or not after <= behind:
            continue
        if number in changing or flow.calls[number].function in CONVOLUTIONS:
            ends.add(number)
        elif number not in behind:
            behind.add(number)
            queue += [v for v in flow.calls[number].takes if not grids.at(v).raw]
    return frozenset(ends)
