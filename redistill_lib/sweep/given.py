"""Networks, their students, data and methods that points name, tried before any kernel starts.

In a process of its own, for torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from redistill_lib.parameters import notebook_parameters
from redistill_lib.progress import waiting_bar
from redistill_lib.sweep.amounts import check_amounts
from redistill_lib.sweep.keys import notebook_code
from redistill_lib.sweep.places import Written, home_of, missing
from redistill_lib.sweep.points import Point

#: What parameters of these names are, where a notebook hands them to a function of ``rd`` (METHODS: anywhere).
_KINDS = {"DATA": "data", "TEACHER": "network", "MODEL": "network", "METHODS": "methods"}
_STUDENT = re.compile(r"\brd\.(?:student_name|student_of|derive_student)\(\s*\w+,\s*FACTOR\b")
_Asked = dict[tuple[Path, Path | None], dict[tuple[Any, ...], str]]  # by where it is tried: what, and who says it


def check_given(points: Sequence[Point], *, in_turn: bool = False) -> None:
    """Raise ValueError for a number, a network, its student at a factor, a folder of data or a method that a point
    gives and its notebook would refuse.

    Of several notebooks in sequence only the first has to find its data: it may be what makes those of the others; so
    with the points themselves where they run `in_turn`. What is not there is told at once; what takes longer than two
    seconds is shown on stderr.
    """
    check_amounts(points)
    asked: _Asked = {}
    for point, notebook, kind, name, text in _given(points):
        if kind == "data" and in_turn and point is not points[0]:
            continue
        where, folders = _said(point, name)
        told, place = f"{where}: {name}={text!r}", point.located.get(name, text)
        if place == text and (why := missing(name, text, (*folders, notebook.parent))):
            raise ValueError(f"{told}: {why}")
        asked.setdefault((notebook.parent, home_of(place)), {}).setdefault((kind, place), told)
    for notebook, question, told in _students(points):
        asked.setdefault((notebook.parent, home_of(question[1])), {}).setdefault(question, told)
    with waiting_bar(sum(map(len, asked.values())), "trying what points name") as bar:
        for (folder, _), group in asked.items():
            for told, why in zip(group.values(), _tried(folder, group), strict=False):
                if why:
                    raise ValueError(f"{told}: {why.rstrip('.')}")
                bar.update()


def _given(points: Sequence[Point]) -> Iterator[tuple[Point, Path, str, str, str]]:
    """Each text that names something: its point, the notebook that gets it, its kind, and its parameter."""
    kinds = {path: _kinds(path) for path in {path for point in points for path in point.notebooks}}
    for point in points:
        for path in point.notebooks:
            for name, value in point.parameters.items():
                kind = kinds[path].get(name)
                if kind is not None and (kind != "data" or path == point.notebooks[0]):
                    texts = value if isinstance(value, list | tuple) else [value]
                    yield from ((point, path, kind, name, text) for text in texts if isinstance(text, str))


def _said(point: Point, name: str) -> tuple[str, tuple[Path, ...]]:
    """Where a parameter's value is written, and the folders from which it counts."""
    written = point.written.get(name) or Written(point.name, (Path.cwd(),))
    return written.where, written.folders


def _students(points: Sequence[Point]) -> Iterator[tuple[Path, tuple[Any, ...], str]]:
    """Each student that a notebook makes at `FACTOR`, where that or its network is given: the notebook, what is asked
    (``student``, the network, the factor, the side of its images or None), and who says it."""
    paths = {path for point in points for path in point.notebooks}
    networks = {path: next((n for n, kind in _kinds(path).items() if kind == "network"), "") for path in paths}
    makes = {path: networks[path] and _STUDENT.search(_code(path)) for path in paths}
    for point in points:
        for path in filter(makes.get, point.notebooks):
            name = networks[path]
            values = {**notebook_parameters(path), **point.parameters}
            factor, network, side = values.get("FACTOR"), values[name], values.get("IMAGE_SIZE")
            given = next((each for each in ("FACTOR", name) if each in point.parameters), None)
            if given and isinstance(factor, int) and isinstance(network, str):
                place = point.located.get(name, network)
                question = ("student", place, factor, side if isinstance(side, int) else None)
                yield path, question, f"{_said(point, given)[0]}: {given}={values[given]!r}"


def _code(notebook: Path) -> str:
    return "\n".join(notebook_code(notebook)[0])


def _kinds(notebook: Path) -> dict[str, str]:
    """Parameters of that notebook by what they name."""
    code = _code(notebook)
    if "redistill_lib" not in code:
        return {}
    return {n: kind for n, kind in _KINDS.items() if n == "METHODS" or re.search(rf"\brd\.\w+\(\s*{n}\b", code)}


def _tried(folder: Path, asked: Iterable[tuple[Any, ...]]) -> Iterator[str | None]:
    """Why each is refused in that folder, None where it is not; fewer without an answer: a kernel says it."""
    command, pipe = [sys.executable, "-m", "redistill_lib.own"], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            json.dump([*asked], process.stdin)
            process.stdin.close()
            yield from map(json.loads, process.stdout)
        finally:
            process.kill()  # also where nobody wants the other answers
