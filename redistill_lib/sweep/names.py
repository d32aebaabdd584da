"""What a point of a sweep is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redistill_lib.sweep.keys import digest_of

LONGEST = 120  # bytes of a name: the folder before it, and a suffix, have to fit too


def point_names(paths: Sequence[Path], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """``04_distill_student-FACTOR=8``; what is too long or cannot be in a file's name makes room for a digest.

    It does not depend on the other points, so that a sweep that grows keeps its names. Only names that differ in
    nothing but case, or in the types of values, have a digest because of one another.

    >>> point_names([Path("tour.ipynb")], [{"LR": 0.5}, {"PLAN": "a/b"}])
    ['tour-LR=0.5', 'tour-PLAN=a_b-1c5f6040']
    """
    stem = "+".join(path.stem for path in paths)
    names = [_name(stem, point) for point in points]
    often = Counter(name.casefold() for name in names)
    return [
        name if often[name.casefold()] == 1 else _name(stem, point, distinct=True)
        for name, point in zip(names, points, strict=True)
    ]


def _name(stem: str, given: Mapping[str, Any], distinct: bool = False) -> str:
    full = "".join(f"-{name}={_short(value)}" for name, value in given.items())
    safe = re.sub(r"[^\w.,=+()-]+", "_", full, flags=re.ASCII)
    name = (stem + safe).encode()
    if safe == full and len(name) <= LONGEST and not distinct:
        return stem + full
    digest = digest_of([stem, dict(given)])[:8]
    return f"{name[: LONGEST - 9].decode(errors='ignore')}-{digest}"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_short, value))
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
