"""Sweep files: one notebook or several in a row, and the points at which they are executed. See sweeps/README.md."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path
from redistill_lib.sweep.keys import IDLE, told
from redistill_lib.sweep.names import point_names
from redistill_lib.sweep.places import Written
from redistill_lib.sweep.points import Point, Sources
from redistill_lib.sweep.ranges import MOST
from redistill_lib.sweep.sections import (
    Axis,
    Row,
    axes_of,
    converted,
    entries_of,
    entry_of,
    mapping,
    read_sections,
    sources_of,
)
from redistill_lib.sweep.strict import Node, read_strict


@dataclass(frozen=True)
class Sweep:
    """A sweep file as it was read; `points` are in the order in which they are executed."""

    name: str  # of the file, without suffix
    file: Path
    notebooks: tuple[Path, ...]
    points: tuple[Point, ...]
    text: str
    others: tuple[
        Point, ...
    ] = ()  # those of the file that overrides replace or leave out: what is done of them stays

    @property
    def tabulated(self) -> tuple[Point, ...]:
        """All points that have a place in the table and on the page, each name once, those of the file first."""
        return tuple({point.name: point for point in (*self.others, *self.points)}.values())


def read_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """The points of a sweep file; `overrides` replace a fixed parameter or default, or pin one that is swept.

    A path or ``module:function`` in the file counts from the file's folder or, where that has none, from the working
    folder, and one among the overrides from the working folder. FileNotFoundError, or ValueError with the line and
    the cure: nothing is left to be found out by a kernel.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file at {path}")
    node, text = read_strict(path)
    sections = read_sections(node)
    sources = sources_of(path, node, sections)
    parameters = mapping(sections, "parameters")
    fixed = {name: converted(sources, name, entry) for name, entry in parameters.items()}
    axes = axes_of(sections, sources)
    _check_given_once(sections, axes)

    pinned = _pinned(path, sources, overrides or {})
    axes = [_pin(axis, pinned) for axis in axes]
    swept = {name for axis in axes for row in axis for name in row.values}
    before = sources.values(fixed)
    added = {name: value for name, value in pinned.items() if name not in swept}
    decides = (name for name in added if name not in IDLE)
    changed = {name: added[name] for name in decides if sources.values({**fixed, name: added[name]}) != before}
    combinations = _combinations(node, axes)
    combinations = _without(sections, sources, fixed | added, combinations, pinned)

    named = [row.values | changed for row in combinations]
    names = point_names(sources.paths, named)
    beside, typed = (path.parent, Path.cwd()), Written(f"{path}, overrides", (Path.cwd(),))
    points = []
    for name, row in zip(names, combinations, strict=True):
        written = {given: Written(node.where, beside) for given, node in (parameters | row.written).items()}
        written |= dict.fromkeys(pinned, typed)
        points.append(sources.point(name, fixed | added | row.values, written))
    _check_distinct(points, combinations)
    others: tuple[Point, ...] = ()
    with contextlib.suppress(ValueError):  # without the overrides it may have no point
        others = read_sweep(path).points if overrides else ()
    return Sweep(path.stem, path, sources.paths, tuple(points), text, others)


def _check_given_once(sections: Mapping[str, Node], axes: Iterable[Axis]) -> None:
    given = dict.fromkeys(mapping(sections, "parameters"), "parameters")
    for axis in axes:
        for row in axis:
            for name in row.values:
                if given.get(name, row.section) != row.section:
                    raise ValueError(
                        f"{row.where}: {name} is in {given[name]} and in {row.section}: keep one of them"
                    )
        given |= {name: row.section for row in axis for name in row.values}


def _pinned(path: Path, sources: Sources, overrides: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {name: sources.convert(name, value) for name, value in overrides.items()}
    except ValueError as error:
        raise ValueError(f"{path}, overrides: {error}") from None


def _pin(axis: Axis, pinned: Mapping[str, Any]) -> Axis:
    """The axis with what is pinned of it; rows that differed in nothing else become one."""
    names = {name for row in axis for name in row.values} & pinned.keys()
    if not names:
        return axis
    values = {name: pinned[name] for name in names}
    nodes = {name: Node(value, "overrides", str(value)) for name, value in values.items()}
    rows = [replace(row, values=row.values | values, written=row.written | nodes) for row in axis]
    return list({told(row.values): row for row in reversed(rows)}.values())[::-1]


def _combinations(node: Node, axes: Sequence[Axis]) -> list[Row]:
    """One row of each axis; the last axis varies fastest."""
    if (count := math.prod(map(len, axes))) > MOST:
        raise node.wrong(f"a sweep of {count:,} points; {MOST:,} are the most")
    found = []
    for rows in itertools.product(*axes):
        values = {name: value for row in rows for name, value in row.values.items()}
        written = {name: node for row in rows for name, node in row.written.items()}
        found.append(Row(values, written, rows[-1].where if rows else node.where))
    return found


def _without(
    sections: Mapping[str, Node],
    sources: Sources,
    fixed: Mapping[str, Any],
    combinations: list[Row],
    pinned: Mapping[str, Any],
) -> list[Row]:
    """Those that no entry of `exclude` matches; what is pinned may leave an entry nothing to match."""
    if "exclude" not in sections:
        return combinations
    everything = [sources.values({**fixed, **row.values}) for row in combinations]
    excluded: set[int] = set()
    for node in entries_of(sections, "exclude"):
        entry = {name: told(converted(sources, name, value)) for name, value in entry_of("exclude", node).items()}
        matched = {
            number
            for number, values in enumerate(everything)
            if all(any(each.get(name) == text for each in values) for name, text in entry.items())
        }
        if not matched and not entry.keys() & pinned.keys():
            raise node.wrong(f"exclude matches no point with {node}")
        excluded |= matched
    if len(excluded) == len(combinations):
        raise sections["exclude"].wrong("exclude leaves no point")
    return [row for number, row in enumerate(combinations) if number not in excluded]


def _check_distinct(points: Iterable[Point], rows: Iterable[Row]) -> None:
    seen: dict[str, Row] = {}
    for point, row in zip(points, rows, strict=True):
        if (other := seen.setdefault(point.key, row)) is not row:
            raise ValueError(f"{row.where}: the points {other} and {row} are the same: leave one of them out")
