"""Networks, data and methods that points name, tried before any kernel starts; in a process of its own, for torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from redistill_lib.progress import waiting_bar
from redistill_lib.sweep.keys import notebook_code
from redistill_lib.sweep.places import Written, home_of, missing
from redistill_lib.sweep.spec import Point

#: What parameters of these names are, where a notebook hands them to a function of ``rd`` (METHODS: anywhere).
_KINDS = {"DATA": "data", "TEACHER": "network", "MODEL": "network", "METHODS": "methods"}


def check_given(points: Sequence[Point]) -> None:
    """Raise ValueError for a network, a folder of data or a method that a point gives and its notebook would refuse.

    Of several notebooks in sequence only the first has to find its data: it may be what makes those of the others.
    What is not there is told at once; what takes longer than two seconds is shown on stderr.
    """
    asked: dict[tuple[Path, Path | None], dict[tuple[str, str], str]] = {}  # by where it is tried
    for point, notebook, kind, name, text in _given(points):
        written = point.written.get(name) or Written(point.name, (Path.cwd(),))
        told, place = f"{written.where}: {name}={text!r}", point.located.get(name, text)
        if place == text and (why := missing(name, text, (*written.folders, notebook.parent))):
            raise ValueError(f"{told}: {why}")
        asked.setdefault((notebook.parent, home_of(place)), {}).setdefault((kind, place), told)
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


def _kinds(notebook: Path) -> dict[str, str]:
    """Parameters of that notebook by what they name."""
    code = "\n".join(notebook_code(notebook)[0])
    if "redistill_lib" not in code:
        return {}
    return {n: kind for n, kind in _KINDS.items() if n == "METHODS" or re.search(rf"\brd\.\w+\(\s*{n}\b", code)}


def _tried(folder: Path, asked: Iterable[tuple[str, str]]) -> Iterator[str | None]:
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
