"""Sweep files: one notebook or several in a row, and the points at which they are executed. See sweeps/README.md."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path, hint
from redistill_lib.parameters import convert, notebook_parameters
from redistill_lib.source import library_identity
from redistill_lib.sweep.keys import IDLE, digest_of, named_modules, notebook_code, own_code, told
from redistill_lib.sweep.names import point_names
from redistill_lib.sweep.places import Written, home_of, located
from redistill_lib.sweep.ranges import MOST, read_range
from redistill_lib.sweep.strict import Node, read_strict


@dataclass(frozen=True)
class Point:
    """What is executed once, and what it is known by.

    `notebooks` are absolute and executed in this order, each with those of `parameters` that it has. `parameters` are
    those given, as the types of the notebooks' defaults, `located` the absolute form of those that name a path or
    a module, with which the notebooks are executed, and `written` where they stand. `key` is 16 hex digits over all
    parameters but `IDLE` ones (the defaults too), the notebooks' other code cells, the library's code, and modules of
    one's own that a notebook imports or a parameter names (``my_net:make``): while it stays, so does the result.
    """

    name: str  # of files; one of its kind in its sweep, the same whatever other points there are
    notebooks: tuple[Path, ...]
    parameters: Mapping[str, Any] = field(hash=False)
    key: str
    located: Mapping[str, str] = field(default_factory=dict, hash=False)
    written: Mapping[str, Written] = field(default_factory=dict, hash=False, compare=False)


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
    sections = _sections(node)
    sources = _sources(path, node, sections)
    parameters = _mapping(sections, "parameters")
    fixed = {name: _converted(sources, name, entry) for name, entry in parameters.items()}
    axes = [axis for section, read in _AXES.items() if section in sections for axis in read(sections, sources)]
    order = list(sections)
    axes.sort(key=lambda axis: order.index(axis[0].section))  # stable: within a section as written
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


def notebook_point(notebook: str | Path, parameters: Mapping[str, Any]) -> Point:
    """One notebook with what is given, all of which is in the name, so that no run hides another.

    Paths and ``module:function`` count from the working folder.

    >>> point = notebook_point("notebooks/02_peak_memory.ipynb", {"FACTOR": "8", "BUDGET": "512KB"})
    >>> point.name, point.parameters, len(point.key)
    ('02_peak_memory-FACTOR=8-BUDGET=512KB', {'FACTOR': 8, 'BUDGET': '512KB'}, 16)
    """
    sources = _Sources.read([as_path("path", notebook).resolve()])
    given = {name: sources.convert(name, value) for name, value in parameters.items()}
    written = dict.fromkeys(given, Written(sources.paths[0].name, (Path.cwd(),)))
    return sources.point(point_names(sources.paths, [given])[0], given, written)


@dataclass(frozen=True)
class _Sources:
    """The notebooks, the defaults of each, and digests of all other code that decides what they show."""

    paths: tuple[Path, ...]
    defaults: tuple[dict[str, Any], ...]
    code: str
    modules: dict[Any, str] = field(default_factory=dict)  # filled as points name them

    @classmethod
    def read(cls, paths: Sequence[Path]) -> _Sources:
        defaults = tuple(notebook_parameters(path) for path in paths)
        cells = [notebook_code(path) for path in paths]
        return cls(tuple(paths), defaults, digest_of([cells, library_identity()]))

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for defaults in self.defaults for name in defaults))

    def convert(self, name: str, value: Any) -> Any:
        """`value` as the type of that parameter; ValueError where no notebook has it, or two take it differently."""
        if name not in self.names:
            files = " and ".join(path.name for path in self.paths)
            verb, they = ("have", "they have") if len(self.paths) > 1 else ("has", "it has")
            close = hint(name, self.names) or ";"
            raise ValueError(f"{files} {verb} no parameter {name}{close} {they} {', '.join(self.names)}")
        taken = {}
        for path, defaults in zip(self.paths, self.defaults, strict=True):
            if name in defaults:
                try:
                    taken[path.name] = convert(f"{path.name}: {name}", value, defaults[name])
                except ValueError as error:
                    cure = ": put it in quotes" if isinstance(defaults[name], str) else ""
                    raise ValueError(f"{error}{cure}") from None
        if len({told(value) for value in taken.values()}) > 1:
            said = " and ".join(f"{value!r} to {file}" for file, value in taken.items())
            raise ValueError(f"{name} is {said}: give it in sweeps of one notebook each")
        return next(iter(taken.values()))

    def values(self, given: Mapping[str, Any]) -> list[dict[str, str]]:
        """All parameters of each notebook, as text that is equal for equal values."""
        return [
            {name: told(given.get(name, default)) for name, default in defaults.items()} for defaults in self.defaults
        ]

    def point(self, name: str, given: dict[str, Any], written: Mapping[str, Written]) -> Point:
        places, decides, here = dict[str, str](), dict(given), (Path.cwd(),)
        for each, value in given.items():
            folders = written[each].folders if each in written else here
            *beside, typed = (located(each, value, folder) for folder in folders)
            if place := next(filter(None, (*beside, typed)), None):
                places[each] = place
                decides[each] = value if any(beside) else place  # as the same file means the same
        values = [{n: text for n, text in own.items() if n not in IDLE} for own in self.values(decides)]
        key = digest_of([self.code, values, self._modules(given | places)])
        return Point(name, self.paths, given, key[:16], places, written)

    def _modules(self, given: Mapping[str, Any]) -> list[str]:
        """Digests of one's own modules that parameters name."""
        found = {}
        for name, own in (item for defaults in self.defaults for item in defaults.items()):
            value = given.get(name, own)
            home = home_of(value)
            for module in named_modules([value]):
                folders = (home,) if home else tuple(path.parent for path in self.paths)
                if (module, folders) not in self.modules:
                    code = [own_code(module, folder) for folder in folders]
                    self.modules[module, folders] = digest_of(code)
                found[module, folders] = self.modules[module, folders]
        return sorted(found.values())


@dataclass(frozen=True)
class _Row:
    """A place on an axis: parameters with their values, how they are written, where."""

    values: dict[str, Any]
    written: dict[str, Node]
    where: str = ""
    section: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name}={node}" for name, node in self.written.items()) or "{}"


_Axis = list[_Row]


def _sections(node: Node) -> dict[str, Node]:
    known = ["notebook", "notebooks", "parameters", *_AXES, "exclude"]
    if not isinstance(node.value, dict):
        raise node.wrong(f"a sweep file is a mapping of {', '.join(known)}")
    for name, entry in node.value.items():
        if name not in known:
            close = hint(name, known) or f"; it has {', '.join(known)}"
            cure = ": parameters stand below parameters or grid" if name.isupper() else close
            raise entry.wrong(f"a sweep file has no {name}{cure}")
    return dict(node.value)


def _sources(path: Path, node: Node, sections: Mapping[str, Node]) -> _Sources:
    """The notebooks are relative to the file."""
    if len(sections.keys() & {"notebook", "notebooks"}) != 1:
        raise node.wrong("a sweep file has either notebook: FILE or notebooks: [FILE, FILE]")
    one = "notebook" in sections
    entries = [sections["notebook"]] if one else _list(sections, "notebooks")
    paths: list[Path] = []
    for entry in entries:
        if not isinstance(entry.value, str) or "\0" in entry.value:
            cure = ": several notebooks are notebooks: [FILE, FILE]" if isinstance(entry.value, list) else ""
            raise entry.wrong(f"notebook wants the path of a file, got {entry}{cure}")
        found = (path.parent / entry.value).resolve()
        if found.stem in [other.stem for other in paths]:
            raise entry.wrong(f"two notebooks are named {found.stem}: their results would have one name")
        try:
            notebook_parameters(found)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{entry.where}: {error}") from None
        paths.append(found)
    return _Sources.read(paths)


def _grid(sections: Mapping[str, Node], sources: _Sources) -> list[_Axis]:
    return [
        [_row("grid", sources, {name: entry}) for entry in _values(name, values)]
        for name, values in _mapping(sections, "grid").items()
    ]


def _zip(sections: Mapping[str, Node], sources: _Sources) -> list[_Axis]:
    columns = {name: _values(name, values) for name, values in _mapping(sections, "zip").items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise sections["zip"].wrong(f"zip wants lists of one length, got {said}")
    rows = [dict(zip(columns, entries, strict=True)) for entries in zip(*columns.values(), strict=True)]
    return [[_row("zip", sources, row) for row in rows]]


def _points(sections: Mapping[str, Node], sources: _Sources) -> list[_Axis]:
    entries = _list(sections, "points")
    return [[replace(_row("points", sources, _entry("points", e)), where=e.where) for e in entries]]


def _seeds(sections: Mapping[str, Node], sources: _Sources) -> list[_Axis]:
    """Of SEED a point each. A notebook that has only SEEDS trains them all itself: it gets their number or list."""
    node, names = sections["seeds"], sources.names
    if "SEED" not in names and "SEEDS" not in names:
        files = " and ".join(path.name for path in sources.paths)
        raise node.wrong(f"no SEED or SEEDS among the parameters of {files}; there are {', '.join(names)}")
    count = node.value if type(node.value) is int else None
    if count is not None and not 1 <= count <= MOST:
        raise node.wrong(f"seeds is a number from 1 to {MOST:,} or a list, not {node}")
    if count is None:
        entries = _values("seeds", node)
    else:
        entries = [Node(seed, node.where, str(seed)) for seed in range(count)]
    if "SEED" in names:
        return [[_row("seeds", sources, {"SEED": entry}) for entry in entries]]
    counted = any(type(defaults.get("SEEDS")) is int for defaults in sources.defaults)
    if counted and count is None:
        raise node.wrong("the notebook takes the number of its seeds: write seeds: 3")
    return [[_row("seeds", sources, {"SEEDS": node if counted else Node(entries, node.where)})]]


_AXES = {"grid": _grid, "zip": _zip, "points": _points, "seeds": _seeds}


def _row(section: str, sources: _Sources, entries: Mapping[str, Node]) -> _Row:
    values = {name: _converted(sources, name, entry) for name, entry in entries.items()}
    return _Row(values, dict(entries), next((entry.where for entry in entries.values()), ""), section)


def _converted(sources: _Sources, name: str, entry: Node) -> Any:
    try:
        return sources.convert(name, entry.plain())
    except ValueError as error:
        raise entry.wrong(str(error)) from None


def _mapping(sections: Mapping[str, Node], section: str) -> dict[str, Node]:
    return _entry(section, sections[section]) if section in sections else {}


def _entry(section: str, node: Node) -> dict[str, Node]:
    if not isinstance(node.value, dict) or not (node.value or section == "points"):
        raise node.wrong(f"{section} wants parameters with their values, such as {{SEED: …}}, got {node}")
    return node.value


def _list(sections: Mapping[str, Node], section: str) -> list[Node]:
    node = sections[section]
    if not isinstance(node.value, list) or not node.value:
        raise node.wrong(f"{section} wants a list of one or more, got {node}")
    return node.value


def _values(name: str, node: Node) -> list[Node]:
    """Those of one parameter: a list or a range."""
    if isinstance(node.value, dict):
        return [Node(value, node.where, str(value)) for value in read_range(node)]
    if not isinstance(node.value, list) or not node.value:
        raise node.wrong(
            f"{name} wants a list of values, [1, 2], or a range, {{from: 1, to: 4, step: 1}}, got {node}"
        )
    return node.value


def _check_given_once(sections: Mapping[str, Node], axes: Iterable[_Axis]) -> None:
    given = dict.fromkeys(_mapping(sections, "parameters"), "parameters")
    for axis in axes:
        for row in axis:
            for name in row.values:
                if given.get(name, row.section) != row.section:
                    raise ValueError(
                        f"{row.where}: {name} is in {given[name]} and in {row.section}: keep one of them"
                    )
        given |= {name: row.section for row in axis for name in row.values}


def _pinned(path: Path, sources: _Sources, overrides: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {name: sources.convert(name, value) for name, value in overrides.items()}
    except ValueError as error:
        raise ValueError(f"{path}, overrides: {error}") from None


def _pin(axis: _Axis, pinned: Mapping[str, Any]) -> _Axis:
    """The axis with what is pinned of it; rows that differed in nothing else become one."""
    names = {name for row in axis for name in row.values} & pinned.keys()
    if not names:
        return axis
    values = {name: pinned[name] for name in names}
    nodes = {name: Node(value, "overrides", str(value)) for name, value in values.items()}
    rows = [replace(row, values=row.values | values, written=row.written | nodes) for row in axis]
    return list({told(row.values): row for row in reversed(rows)}.values())[::-1]


def _combinations(node: Node, axes: Sequence[_Axis]) -> list[_Row]:
    """One row of each axis; the last axis varies fastest."""
    if (count := math.prod(map(len, axes))) > MOST:
        raise node.wrong(f"a sweep of {count:,} points; {MOST:,} are the most")
    found = []
    for rows in itertools.product(*axes):
        values = {name: value for row in rows for name, value in row.values.items()}
        written = {name: node for row in rows for name, node in row.written.items()}
        found.append(_Row(values, written, rows[-1].where if rows else node.where))
    return found


def _without(
    sections: Mapping[str, Node],
    sources: _Sources,
    fixed: Mapping[str, Any],
    combinations: list[_Row],
    pinned: Mapping[str, Any],
) -> list[_Row]:
    """Those that no entry of `exclude` matches; what is pinned may leave an entry nothing to match."""
    if "exclude" not in sections:
        return combinations
    everything = [sources.values({**fixed, **row.values}) for row in combinations]
    excluded: set[int] = set()
    for node in _list(sections, "exclude"):
        entry = {name: told(_converted(sources, name, value)) for name, value in _entry("exclude", node).items()}
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


def _check_distinct(points: Iterable[Point], rows: Iterable[_Row]) -> None:
    seen: dict[str, _Row] = {}
    for point, row in zip(points, rows, strict=True):
        if (other := seen.setdefault(point.key, row)) is not row:
            raise ValueError(f"{row.where}: the points {other} and {row} are the same: leave one of them out")
