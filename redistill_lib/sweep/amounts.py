"""Numbers and sizes of memory that every notebook understands alike, checked before anything runs. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from redistill_lib.checks import is_number
from redistill_lib.parameters import notebook_parameters
from redistill_lib.sizes import parse_size
from redistill_lib.sweep.keys import notebook_code
from redistill_lib.sweep.places import Written
from redistill_lib.sweep.points import Point


def check_amounts(points: Sequence[Point]) -> None:
    """Raise ValueError, with where it stands, for an amount that no notebook of this library can take.

    Parameters of notebooks that do not import it may mean anything, and None is what a notebook allows it to be.
    """
    known = {path: _amounts(path) for path in {path for point in points for path in point.notebooks}}
    for point in points:
        for name, value in point.parameters.items():
            if value is not None and any(name in known[path] for path in point.notebooks):
                alone = name == "SEEDS" or not isinstance(value, list | tuple)
                for each in (value,) if alone else value:
                    if why := _CHECKS[name](each):
                        written = point.written.get(name) or Written(point.name, (Path.cwd(),))
                        raise ValueError(f"{written.where}: {name}={each!r}: {why}")


def _amounts(notebook: Path) -> set[str]:
    """Its parameters that are checked here."""
    code = "\n".join(notebook_code(notebook)[0])
    return _CHECKS.keys() & notebook_parameters(notebook).keys() if "redistill_lib" in code else set()


def _count(value: Any) -> str | None:
    return None if is_number(value) and isinstance(value, int) and value >= 1 else "write a whole number of 1 or more"


def _above(value: Any) -> str | None:
    return None if is_number(value) and value > 0 else "write a number above 0"


def _seeds(value: Any) -> str | None:
    """How many, or which: 0 may be one of a list."""
    if isinstance(value, list | tuple):
        return None if value else "write one seed or more"
    return _count(value)


def _memory(value: Any) -> str | None:
    try:
        parse_size(value)
    except ValueError as error:
        return str(error).rstrip(".")
    return None


#: Each says what is wrong with a value, and None where nothing is.
_CHECKS: dict[str, Callable[[Any], str | None]] = {"SEEDS": _seeds, "PEAK": _memory, "BUDGET": _memory}
_CHECKS |= dict.fromkeys(("EPOCHS", "TEACHER_EPOCHS", "JUDGE_EPOCHS", "STEPS", "DRAW_STEPS", "JOBS"), _count)
_CHECKS |= dict.fromkeys(("IMAGE_SIZE", "BUDGET_SIZE", "PATCH", "BATCH", "BATCH_SIZE", "FACTOR"), _count)
_CHECKS |= dict.fromkeys(("TRAIN_SIZE", "LIMIT", "SAMPLES", "IMAGES"), _count)
_CHECKS |= dict.fromkeys(("SECONDS", "WIDTH", "LEARNING_RATE", "TEMPERATURE"), _above)
