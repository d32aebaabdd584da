"""The sections of a sweep file: the notebooks, what is fixed, and the axes of what is swept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redistill_lib.checks import hint
from redistill_lib.parameters import notebook_parameters
from redistill_lib.sweep.points import Sources
from redistill_lib.sweep.ranges import MOST, read_range
from redistill_lib.sweep.strict import Node


@dataclass(frozen=True)
class Row:
    """A place on an axis: parameters with their values, how they are written, where."""

    values: dict[str, Any]
    written: dict[str, Node]
    where: str = ""
    section: str = ""

    def __str__(self) -> str:
        return ", ".join(f"{name}={node}" for name, node in self.written.items()) or "{}"


Axis = list[Row]


def read_sections(node: Node) -> dict[str, Node]:
    known = ["notebook", "notebooks", "parameters", *_AXES, "exclude"]
    if not isinstance(node.value, dict):
        raise node.wrong(f"a sweep file is a mapping of {', '.join(known)}")
    for name, entry in node.value.items():
        if name not in known:
            close = hint(name, known) or f"; it has {', '.join(known)}"
            cure = ": parameters stand below parameters or grid" if name.isupper() else close
            raise entry.wrong(f"a sweep file has no {name}{cure}")
    return dict(node.value)


def sources_of(path: Path, node: Node, sections: Mapping[str, Node]) -> Sources:
    """The notebooks are relative to the file."""
    if len(sections.keys() & {"notebook", "notebooks"}) != 1:
        raise node.wrong("a sweep file has either notebook: FILE or notebooks: [FILE, FILE]")
    one = "notebook" in sections
    entries = [sections["notebook"]] if one else entries_of(sections, "notebooks")
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
    return Sources.read(paths)


def _grid(sections: Mapping[str, Node], sources: Sources) -> list[Axis]:
    return [
        [_row("grid", sources, {name: entry}) for entry in _values(name, values)]
        for name, values in mapping(sections, "grid").items()
    ]


def _zip(sections: Mapping[str, Node], sources: Sources) -> list[Axis]:
    columns = {name: _values(name, values) for name, values in mapping(sections, "zip").items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise sections["zip"].wrong(f"zip wants lists of one length, got {said}")
    rows = [dict(zip(columns, entries, strict=True)) for entries in zip(*columns.values(), strict=True)]
    return [[_row("zip", sources, row) for row in rows]]


def _points(sections: Mapping[str, Node], sources: Sources) -> list[Axis]:
    entries = entries_of(sections, "points")
    return [[replace(_row("points", sources, entry_of("points", e)), where=e.where) for e in entries]]


def _seeds(sections: Mapping[str, Node], sources: Sources) -> list[Axis]:
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


def axes_of(sections: Mapping[str, Node], sources: Sources) -> list[Axis]:
    """What is swept, in the order of the file."""
    axes = [axis for section, read in _AXES.items() if section in sections for axis in read(sections, sources)]
    order = list(sections)
    return sorted(axes, key=lambda axis: order.index(axis[0].section))  # stable: within a section as written


def _row(section: str, sources: Sources, entries: Mapping[str, Node]) -> Row:
    values = {name: converted(sources, name, entry) for name, entry in entries.items()}
    return Row(values, dict(entries), next((entry.where for entry in entries.values()), ""), section)


def converted(sources: Sources, name: str, entry: Node) -> Any:
    try:
        return sources.convert(name, entry.plain())
    except ValueError as error:
        raise entry.wrong(str(error)) from None


def mapping(sections: Mapping[str, Node], section: str) -> dict[str, Node]:
    return entry_of(section, sections[section]) if section in sections else {}


def entry_of(section: str, node: Node) -> dict[str, Node]:
    if not isinstance(node.value, dict) or not (node.value or section == "points"):
        raise node.wrong(f"{section} wants parameters with their values, such as {{SEED: …}}, got {node}")
    return node.value


def entries_of(sections: Mapping[str, Node], section: str) -> list[Node]:
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
