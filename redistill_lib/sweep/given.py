"""Networks, data and methods that points name, tried before any kernel starts; in a process of its own, for torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from redistill_lib.sweep.keys import notebook_code
from redistill_lib.sweep.places import home_of
from redistill_lib.sweep.spec import Point

#: What parameters of these names are, where a notebook hands them to a function of ``rd`` (METHODS: anywhere).
_KINDS = {"DATA": "data", "TEACHER": "network", "MODEL": "network", "METHODS": "methods"}


def check_given(points: Sequence[Point]) -> None:
    """Raise ValueError for a network, a folder of data or a method that a point gives and its notebook would refuse.

    Of several notebooks in sequence only the first has to find its data: it may be what makes those of the others.
    """
    kinds = {path: _kinds(path) for path in {path for point in points for path in point.notebooks}}
    asked: dict[tuple[Path, Path | None], dict[tuple[str, str], tuple[str, str]]] = {}  # by where it is tried
    for point in points:
        for path in point.notebooks:
            for name, value in point.parameters.items():
                kind = kinds[path].get(name)
                if kind is None or (kind == "data" and path != point.notebooks[0]):
                    continue
                for text in value if isinstance(value, list | tuple) else [value]:
                    if isinstance(text, str):
                        place = point.located.get(name, text)
                        beside = place == text and kind != "methods" and re.search("[/:]", text) is not None
                        cure = "; it counts from the sweep file, the working folder or the notebook" * beside
                        group = asked.setdefault((path.parent, home_of(place)), {})
                        group.setdefault((kind, place), (f"{point.name}: {name}={text!r}", cure))
    for (folder, _), group in asked.items():
        if refused := _refused(folder, group):
            number, why = refused
            told, cure = [*group.values()][number]
            raise ValueError(f"{told}: {why.rstrip('.')}{cure}")


def _kinds(notebook: Path) -> dict[str, str]:
    """Parameters of that notebook by what they name."""
    code = "\n".join(notebook_code(notebook)[0])
    if "redistill_lib" not in code:
        return {}
    return {n: kind for n, kind in _KINDS.items() if n == "METHODS" or re.search(rf"\brd\.\w+\(\s*{n}\b", code)}


def _refused(folder: Path, asked: Iterable[tuple[str, str]]) -> tuple[int, str] | None:
    """The number of the first that is refused in that folder, and why; None without an answer: a kernel says it."""
    command = [sys.executable, "-m", "redistill_lib.own"]
    done = subprocess.run(command, cwd=folder, input=json.dumps([*asked]), capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout else None
    return answer and (answer[0], answer[1])
