from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from redistill_lib.checks import (
    as_path,
    as_paths,
    check_above_zero,
    check_fields,
    check_type,
    is_number,
    warn,
    whole,
    wholes,
)
from redistill_lib.runs import Run, complete_run


@pytest.mark.parametrize(
    ("value", "kinds", "expected"),
    [
        (np.float32(0.5), (float,), 0.5),
        (np.int64(3), (int, None), 3),
        (np.bool_(True), (bool,), True),
        (np.array(4), (int,), 4),
        (2, (float,), 2.0),
        (2, (int, float), 2),
        (None, (int | None,), None),
        ([1], (list[int] | None,), [1]),
        (Path("x"), (str, Path), Path("x")),
        ("mean", (Literal["mean", "sum"], bool), "mean"),
        (False, (Literal["mean", "sum"], bool), False),
        (object, (Any,), object),
        (len, (Callable[..., int],), len),
    ],
)
def test_a_fitting_value_comes_back_as_plain_python(value: Any, kinds: tuple, expected: Any) -> None:
    found = check_type("x", value, *kinds)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kinds", "message"),
    [
        ("yes", (bool,), "x='yes' is not True or False."),
        (1, (bool,), "x=1 is not True or False."),
        (True, (int, float), "x=True is not a whole number or a number."),
        ("7", (int, None), "x='7' is not a whole number or None."),
        (7.0, (int | None,), "x=7.0 is not a whole number or None."),
        (math.nan, (float,), "x=nan is not a number."),
        (math.inf, (int, float), "x=inf is not a whole number or a number."),
        (10**400, (float,), "is not a number."),
        (3, (str, Path), "x=3 is not text or a path."),
        (np.zeros(2), (float,), "is not a number."),
        ("summ", (Literal["mean", "sum"],), "x='summ' is not 'mean' or 'sum'; did you mean 'sum'?"),
        (1, (Literal[True],), "x=1 is not True."),
    ],
)
def test_another_type_is_refused_in_a_sentence(value: Any, kinds: tuple, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_type("x", value, *kinds)
    assert str(caught.value).endswith(message)


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    steps: int | None = None
    averaged: bool = False
    name: str = "a"

    def __post_init__(self) -> None:
        check_fields(self)


def test_the_fields_of_a_record_are_checked_and_made_plain() -> None:
    settings = Settings(rate=1, steps=np.int32(5))  # type: ignore[arg-type]
    assert settings == Settings(1.0, 5)
    assert type(settings.rate) is float and type(settings.steps) is int
    for wrong in ({"rate": "fast"}, {"steps": 2.5}, {"averaged": "no"}, {"name": None}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* is not"):
            Settings(**wrong)


def test_numbers_have_bounds() -> None:
    assert whole("x", np.int16(4), 4, 4) == 4 and wholes("x", [np.int64(1), 2]) == (1, 2)
    with pytest.raises(ValueError, match="x=5 is more than the 4 it can be at most"):
        whole("x", 5, 0, 4)
    with pytest.raises(ValueError, match=r"x\[1\]=0 is not a whole number of 1 or more"):
        wholes("x", [1, 0])
    with pytest.raises(ValueError, match="rate=0 is not a number above 0"):
        check_above_zero(rate=0)
    assert [is_number(value) for value in (0.5, np.float32(2), 10**400, math.nan, True, "1")] == [True, True] + [
        False
    ] * 4


def test_paths_are_text_or_paths() -> None:
    assert as_path("runs_dir", "runs") == as_path("runs_dir", Path("runs")) == Path("runs")
    assert as_paths("notebooks", ("a", Path("b"))) == [Path("a"), Path("b")] and as_paths("notebooks", "ab") == [
        Path("ab")
    ]
    for wrong in (3, None, b"runs", ["runs"], True):
        with pytest.raises(ValueError, match=r"^runs_dir=.* is not text or a path\.$"):
            as_path("runs_dir", wrong)
    for several in (3, None, [3], b"runs"):
        with pytest.raises(ValueError, match=r"^notebooks=.* is not text or a path\.$"):
            as_paths("notebooks", several)
    with pytest.raises(ValueError, match=r"^runs_dir='my\\x00runs' holds a null character\.$"):
        as_path("runs_dir", "my\0runs")


def test_a_warning_is_at_the_callers_line(tmp_path: Path) -> None:
    """Not in this library, which called itself, nor in Python's own, which called it."""
    record = Run(tmp_path / "run", {}, "failed").save().path / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "later": 1}))
    with pytest.warns(UserWarning, match="whose later this one") as told:
        complete_run(tmp_path / "run")
    stack = contextlib.ExitStack()
    stack.callback(warn, "later")
    with pytest.warns(UserWarning, match="later") as called:
        stack.close()
    assert [each.filename for each in (*told, *called)] == [__file__] * 2
