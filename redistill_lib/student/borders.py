"""The sizes of a student's maps, against those that are due: what a layer lost with its stride is made up for."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from torch import nn

from redistill_lib.network.flow import FITTING, Call, Example, Extent, Flow, Run, Visit, times, trace_flow
from redistill_lib.network.grids import is_alike
from redistill_lib.student.checks import check_outputs, check_totals
from redistill_lib.student.edits import Change, restride, settle
from redistill_lib.student.places import Layout


def settle_maps(
    student: nn.Module, layout: Layout, example: Example, totals: list[Fraction], changes: dict[str, Change]
) -> None:
    """Compare every map's size with what it should be; pad the layers that lost a border with their stride."""
    lifted = {path for path, change in changes.items() if change.kind == "inserted"}
    sizes = _sizes(layout, totals, lifted)
    fitting = {call.stack[-1]: call for call in layout.found.flow.calls if call.function == FITTING}
    while True:
        flow = trace_flow(student, example)
        given = {visit.run: flow.shapes[visit.gives[0]][2:] for visit in flow.visits if visit.gives}
        wrong = {run for run, size in given.items() if size not in sizes.get(run, [size])}
        if not wrong:
            break
        for path, run in {run[0]: run for run in reversed(_first(flow, wrong))}.items():  # the first run of each
            size, due = given[run], sizes[run][0]
            change = changes.get(path)
            if change is None and run in fitting and (ratio := _ratio(layout, fitting[run], due, flow, run)):
                changes[path] = restride(student, fitting[run], *ratio, "stride")
                continue
            note = settle(student.get_submodule(path), size, due)
            if change is None and note is not None:  # it shaves the border off a map that is coarser now
                change = Change(path, "border", 1, 1)
            if note is None and is_alike(size, due):  # a border more or less, of which the outputs decide
                del sizes[run]
                continue
            if change is None or note is None:
                what = f", its {change.kind} changed from {change.before} to {change.after}" if change else ""
                cure = (
                    "; let it interpolate to the size of another map, or by a scale_factor" if run in fitting else ""
                )
                raise ValueError(
                    f"{path or 'the network'} gives maps of {times(size)}{what}, not of {times(due)}{cure}"
                )
            changes[path] = replace(change, note=", ".join(filter(None, (change.note, note))))
    check_outputs(layout, flow)
    check_totals(layout, flow, totals)


def _sizes(layout: Layout, totals: list[Fraction], lifted: set[str]) -> dict[Run, list[Extent]]:
    """The maps that each layer which convolves or resizes may give, what is due first: the teacher's of its total."""
    grids, flow = layout.found.grids, layout.found.flow
    known: dict[Fraction, list[Extent]] = {Fraction(1): [layout.image]}
    for grid in grids.grids:
        if not grid.raw:
            known.setdefault(grid.total, []).append(grid.size)
    resizing = {call.path for call in flow.calls if call.kernel or call.scales or call.function == FITTING}
    ends = [flow.calls[number] for number in layout.found.tails]
    ends = [call for call in ends if call.function == FITTING or call.path in lifted]
    wanted = {call.stack[-1]: [flow.shapes[call.makes[0]][2:]] for call in ends}
    for visit in flow.visits:
        value = visit.gives[0] if visit.gives else -1
        if visit.run[0] not in resizing or value in {-1, *layout.behind} or not grids.is_map(value):
            continue
        grid, total = grids[grids.of[value]], totals[grids.of[value]]
        if grids.of[value] in grids.gates or flow.shapes[value][2:] != grid.size:
            continue
        sides = zip(layout.image, grid.size, strict=True)
        exact = all(side % total == 0 and side == own * grid.total for side, own in sides)
        if total in known:
            wanted[visit.run] = known[total]
        elif exact:
            wanted[visit.run] = [tuple(int(side / total) for side in layout.image)]
    return wanted


def _first(flow: Flow, wrong: set[Run]) -> list[Run]:
    """Those of the runs that take nothing which others of them have part in."""
    ends: dict[int, list[Visit]] = {}
    for visit in flow.visits:
        ends.setdefault(visit.last, []).append(visit)
    found: list[Run] = []
    behind = set[int]()
    for number in range(len(flow.calls) + 1):
        for visit in ends.get(number, []):
            if visit.run in wrong:
                found += [] if visit.takes in behind else [visit.run]
                behind.update(visit.gives)
        if number < len(flow.calls) and behind.intersection(flow.calls[number].takes):
            behind.update(flow.calls[number].makes)
    return found


def _ratio(layout: Layout, call: Call, due: Extent, flow: Flow, run: Run) -> tuple[int, int] | None:
    """An interpolation's ratio in the teacher, to a size that its module works out, and that of the student."""
    given = next((c for c in flow.calls if c.stack[-1] == run and c.function == FITTING), None)
    if given is None:
        return None
    took, gave = (layout.found.flow.shapes[value][2] for value in (call.takes[0], call.makes[0]))
    now = flow.shapes[given.takes[0]][2]
    old, new = (gave / took, due[0] / now) if gave > took else (took / gave, now / due[0])
    return (int(old), int(new)) if old >= 1 <= new and old % 1 == new % 1 == 0 else None
