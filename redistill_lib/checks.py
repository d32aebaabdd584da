"""What a caller gives, refused in one sentence (a ValueError) where it cannot be meant, or warned of."""

from __future__ import annotations

import difflib
import functools
import math
import os
import reprlib
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "True or False", NoneType: "None"}
_WORDS |= {str: "text", Path: "a path", PathLike: "a path", Callable: "a function"}
_WORDS |= {Mapping: "a dict", Sequence: "a list", Iterable: "a list"}


def hint(word: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """What a misspelt word may have meant, as the end of a sentence; nothing where no known word is close.

    >>> hint("digit", ["digits", "cluttered"])
    "; did you mean 'digits'?"
    """
    folded = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=3, cutoff=cutoff)
    return f"; did you mean {' or '.join(repr(folded[match]) for match in close)}?" if close else ""


def whole(label: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int from `least` to `most`, or a ValueError. 4.0 is refused: it would make another run."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{label}={reprlib.repr(value)} is not a whole number of {least} or more.")
    if most is not None and int(value) > most:
        raise ValueError(f"{label}={value} is more than the {most} it can be at most.")
    return int(value)


def wholes(label: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """`values` as a tuple of ints from `least` up, or a ValueError that names the wrong one."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"{label}={reprlib.repr(values)} is not a sequence of whole numbers, such as (1, 2).")
    return tuple(whole(f"{label}[{index}]", value, least) for index, value in enumerate(values))


def is_number(value: Any) -> bool:
    """Whether it is a real number that a float can hold: not infinite, not NaN, not True or False."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_above_zero(**values: Any) -> None:
    for name, value in values.items():
        if not is_number(value) or value <= 0:
            raise ValueError(f"{name}={reprlib.repr(value)} is not a number above 0.")


def check_type(label: str, value: Any, *kinds: Any) -> Any:
    """`value` if it is of one of `kinds` (classes, None, unions, Literals), or a ValueError.

    Numpy's scalars come back as Python's, and a whole number as a float where a float is meant. Text is never taken
    for a bool, a bool never for a number; numbers are finite, and text that may be a path has no null byte. Of
    ``tuple[int, ...]`` only the tuple is checked.

    >>> check_type("amsgrad", "no", bool, None)
    Traceback (most recent call last):
        ...
    ValueError: amsgrad='no' is not True or False or None.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    words: list[Any] = []  # of Literals
    classes: list[type] = []
    for kind in get_args(Union[(*kinds, Literal[()])]):  # typing flattens unions; the empty Literal makes one of any
        if get_origin(kind) is Literal:
            words += get_args(kind)
        elif kind is Any or not isinstance(kind := get_origin(kind) or kind, type):
            return value  # nothing to hold it against
        else:
            classes.append(kind)
    fits = type(value) in classes if isinstance(value, int) else isinstance(value, tuple(classes))
    if isinstance(value, str | Path) and "\0" in str(value):  # no file, folder or option is called so
        raise ValueError(f"{label}={reprlib.repr(str(value))} holds a null character.")
    fits |= any(value == word and type(value) is type(word) for word in words)
    if fits and (not isinstance(value, float) or math.isfinite(value)):
        return value
    if float in classes and is_number(value):
        return float(value)
    allowed = [*map(repr, words), *(_WORDS.get(kind) or _called(kind) for kind in classes)]
    close = hint(value, [word for word in words if isinstance(word, str)]) if isinstance(value, str) else ""
    raise ValueError(f"{label}={reprlib.repr(value)} is not {' or '.join(allowed)}{close or '.'}")


def _called(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def as_path(label: str, value: Any) -> Path:
    """`value` as a Path, or a ValueError where it is neither text nor a path."""
    return Path(check_type(label, value, str, PathLike))


def as_paths(label: str, values: Any) -> list[Path]:
    """`as_path` of each, or of one that stands alone."""
    alone = isinstance(values, str) or not isinstance(values, Iterable)
    return [as_path(label, value) for value in ([values] if alone else values)]


_hints = functools.cache(get_type_hints)  # slow, beside the checks themselves


def check_fields(record: Any) -> None:
    """`check_type` for every field of a dataclass by its annotation, to be called first in its `__post_init__`."""
    hints = _hints(record.__class__)
    for field in fields(record):
        value = check_type(field.name, getattr(record, field.name), hints[field.name])
        object.__setattr__(record, field.name, value)  # a frozen one refuses a plain assignment


_INSIDE = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parent, sysconfig.get_path("stdlib")))


def warn(message: str) -> None:
    """A UserWarning at the caller's line, however many calls of this library and of Python's own lie between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
