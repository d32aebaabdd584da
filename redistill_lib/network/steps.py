"""Whole changes of resolution: parallel branches together, and where their maps before and after are found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from redistill_lib.network.flow import Extent, Flow, Visit
from redistill_lib.network.grids import JOINS, Change, Grids
from redistill_lib.network.hooks import MapRef
from redistill_lib.red import Side

Where = Literal["trunk", "skip", "gate", "head"]


@dataclass(frozen=True)
class Step:
    """One whole change of resolution, parallel branches together, and where its maps before and after are found."""

    before: Extent
    after: Extent
    input: MapRef | None
    output: MapRef | None
    channels_in: int
    channels_out: int
    learns: bool  # it convolves, or something has since the step before; ResNet's max pool after conv1 does not
    first: int  # the numbers of its first and its last call
    last: int
    last_in: bool = False  # whether channels come last in the map before it, B×H×W×C or tokens B×(n + H·W)×C
    last_out: bool = False

    @property
    def name(self) -> str:
        """Where its maps are found: behind a module, or before or after one."""
        if self.output is not None and self.output.side == "output":
            return self.output.layer
        if self.output is not None:
            return f"before {self.output.layer}"
        return f"after {self.input.layer}" if self.input else f"call {self.last}"

    def end(self, side: Side) -> tuple[MapRef | None, int, Extent | None]:
        """Where the map on one side is found, its channels, and its height × width where channels come last."""
        if side == "input":
            return self.input, self.channels_in, self.before if self.last_in else None
        return self.output, self.channels_out, self.after if self.last_out else None

    @property
    def down(self) -> bool:
        return math.prod(self.after) < math.prod(self.before)


def find_groups(model: nn.Module, grids: Grids, where: dict[int, Where]) -> Iterator[list[Change]]:
    """The changes of the trunk: parallel branches together, and all that one layer does."""
    calls = grids.flow.calls
    group: list[Change] = []
    for change in grids.changes:
        if not change.resizes or where[change.number] in ("gate", "head"):
            continue
        totals = [(grids[c.before].total, grids[c.after].total) for c in (*group[:1], change)]
        layer = model.get_submodule(calls[change.number].path)
        within = group and calls[group[-1].number].stack == calls[change.number].stack and not any(layer.children())
        if group and (totals[0] == totals[1] or within):
            group.append(change)
        else:
            if group:
                yield group
            group = [change]
    if group:
        yield group


def find_shortcut(grids: Grids, group: list[Change]) -> Change | None:
    """The branch with the fewest calls before the branches meet, if there is one."""
    depth = dict.fromkeys(range(grids.flow.images), 0)
    for call in grids.flow.calls:
        depth |= dict.fromkeys(call.makes, 1 + max(depth[value] for value in call.takes))

    def length(change: Change) -> int:
        end = change.result
        for call in grids.flow.calls[change.number + 1 :]:
            if end in call.takes:
                if call.function in JOINS and len(call.takes) > 1:
                    break
                end = call.makes[0]
        return depth[end]

    first, second = sorted(group, key=length)[:2]
    return first if length(first) < length(second) else None


def make_step(model: nn.Module, grids: Grids, group: list[Change], learning: list[int]) -> Step:
    flow, visits = grids.flow, single_visits(grids.flow)
    before, after = grids[group[0].before].total, grids[group[-1].after].total
    first, last = group[0].number, group[-1].number

    def is_whole(visit: Visit) -> bool:
        if not (visit.first <= first and last < visit.last and visit.takes >= 0 and visit.single and visit.gives):
            return False
        ends = visit.takes, visit.gives[0]
        return all(map(grids.held, ends)) and [grids.at(v).total for v in ends] == [before, after]

    whole = min(filter(is_whole, visits), key=lambda visit: visit.last - visit.first, default=None)
    if whole is not None:
        source, result, path = whole.takes, whole.gives[0], whole.run[0]
        mapping = [visit for visit in visits if visit.single and visit.takes >= 0 and visit.gives]
        ran = {visit.run[0] for visit in mapping if grids.is_map(visit.takes) and grids.is_map(visit.gives[0])}
        while (parent := path.rpartition(".")[0]) in ran and len(list(model.get_submodule(parent).children())) == 1:
            path = parent  # a module around one layer is that layer, under the name people know
        entry: MapRef | None = MapRef(path, "input")
        exit_: MapRef | None = MapRef(path, "output")
        last = whole.last - 1
    else:  # a function that the network calls itself, or branches of it: as the modules around see them
        source = next((c.source for c in group if c.source in grids.convolved), group[0].source)
        result = _meeting(grids, group)
        entry, exit_ = find_ref(flow, source), find_ref(flow, result)
    if (padding := grids.padded_from(source)) != source:
        source, entry = padding, find_ref(flow, padding)
    # Blocks and losses are for maps, not for the image, shrunken or not.
    ends = ((entry, source), (exit_, result))
    entry, exit_ = (ref if grids.held(v) and v in grids.convolved else None for ref, v in ends)
    sizes, channels = [grids.sides(v) for v in (source, result)], [grids.channels(v) for v in (source, result)]
    learns = any(number <= last for number in learning)
    last_in, last_out = map(grids.held_last, (source, result))
    return Step(sizes[0], sizes[1], entry, exit_, channels[0], channels[1], learns, first, last, last_in, last_out)


def _meeting(grids: Grids, group: list[Change]) -> int:
    """The first map that all branches of a step have part in."""
    inside = {change.result: {k} for k, change in enumerate(group)}
    for call in grids.flow.calls[group[0].number + 1 :]:
        branches = set().union(*(inside.get(v, set()) for v in call.takes))
        if branches:
            inside |= dict.fromkeys(call.makes, branches)
        if len(branches) == len(group) > 1:
            return call.makes[0]
    return group[-1].result


def find_ref(flow: Flow, value: int) -> MapRef | None:
    """The module that gives a value, the outermost of several, or else the one that takes it, if no other does."""
    visits = single_visits(flow)
    giving = [visit.run[0] for visit in visits if visit.single and visit.gives == (value,)]
    if giving:
        return MapRef(giving[-1], "output")
    readers = [number for number, call in enumerate(flow.calls) if value in call.takes]
    taking = [
        visit.run[0]
        for visit in visits
        if visit.takes == value and all(visit.first <= number < visit.last for number in readers)
    ]
    return MapRef(taking[-1], "input") if taking and value not in flow.gives else None


def single_visits(flow: Flow) -> list[Visit]:
    """The runs of modules that run once; the network itself is none of them."""
    runs = Counter(visit.run[0] for visit in flow.visits)
    return [visit for visit in flow.visits if visit.run[0] and runs[visit.run[0]] == 1]
