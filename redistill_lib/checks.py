"""What a caller gives, refused in one sentence where it cannot be meant."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any


def hint(word: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """What a misspelt word may have meant, as the end of a sentence; nothing where no known word is close.

    >>> hint("digit", ["digits", "cluttered"])
    "; did you mean 'digits'?"
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(folded[match]) for match in close)}?" if close else ""


def whole(label: str, value: Any, least: int = 1) -> int:
    """`value` as an int from `least` up, or a ValueError. 4.0 is refused: runs of 4 and of 4.0 would be two."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{label}={value!r} is not a whole number of {least} or more.")
    return int(value)


def wholes(label: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """`values` as a tuple of ints from `least` up, or a ValueError that names the wrong one."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{label}={values!r} is not a sequence of whole numbers, such as (1, 2).")
    return tuple(whole(f"{label}[{index}]", value, least) for index, value in enumerate(values))


def is_number(value: Any) -> bool:
    """Whether it is a real, finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_above_zero(**values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name}={value!r} is not a number above 0.")
