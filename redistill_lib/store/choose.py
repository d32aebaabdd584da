"""Which runs are meant: conditions on their columns, an order, ids or parts of them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from redistill_lib.checks import hint
from redistill_lib.store.tables import MAIN

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
# A value that begins with one of these signs is a slip, as in "seed=<3", and what it would choose might be deleted.
_CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(==?|!=|<=|>=|<|>|~)\s*(?![=!<>~\s])(.*?)\s*", re.DOTALL)


def where(runs: pd.DataFrame, conditions: Iterable[str]) -> pd.DataFrame:
    """The runs for which all conditions hold: ``seed<3``, ``status=complete``, ``methods!=red``, ``id~resnet``.

    ``~`` is for a part of the text, in any case. Numbers are compared as numbers; a run that lacks the value is equal
    to nothing at all (``methods=``). ValueError for a column that is not there, or < and > of what is no number.

    >>> runs = pd.DataFrame({"id": ["a", "b", "c"], "seed": [0, 1, 10], "methods": ["red", None, "red+kd"]})
    >>> [*where(runs, ["seed<9", "methods~RED"]).id], [*where(runs, ["methods="]).id]
    (['a'], ['b'])
    """
    for condition in conditions:
        found = _CONDITION.fullmatch(condition)
        if found is None:
            raise ValueError(f"{condition!r} is no condition: write a column, one of = != < <= > >= ~ and a value")
        name, sign, value = found.groups()
        runs = runs[_holds(runs[column(runs, name)], sign.replace("==", "="), value, condition)]
    return runs


def _holds(values: pd.Series[Any], sign: str, text: str, condition: str) -> pd.Series[bool]:
    words = values.map(_word).astype(str)  # of no runs, too
    if sign == "~":
        return words.str.casefold().str.contains(text.casefold(), regex=False)
    numbers = pd.to_numeric(words.where(words != ""), errors="coerce")
    try:
        number = float(text)
        if math.isnan(number):  # nothing is equal to it, and so all would be unequal
            raise ValueError
    except ValueError:
        if sign not in ("=", "!="):
            raise ValueError(f"{condition!r}: {text!r} is no number, which {sign} compares") from None
        return _OPERATORS[sign](words.str.casefold(), text.casefold())
    if sign in ("=", "!="):
        equal = (numbers == number) | (words == text)
        return equal if sign == "=" else ~equal
    return _OPERATORS[sign](numbers, number)


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def ordered(runs: pd.DataFrame, names: str) -> pd.DataFrame:
    """The runs in the order of columns: ``plan,-test_accuracy`` has the best of each plan first. What lacks a value
    comes last.

    >>> runs = pd.DataFrame({"id": ["a", "b", "c"], "test_accuracy": [0.5, None, 0.9]})
    >>> [*ordered(runs, "-test_accuracy").id]
    ['c', 'a', 'b']
    """
    for name in reversed(names.split(",")):  # each sort is stable
        values = runs[column(runs, name.strip().removeprefix("-"))]
        numbers = pd.to_numeric(values, errors="coerce")
        keys = numbers if numbers.notna().equals(values.notna()) else values.map(_word).where(values.notna())
        up = not name.strip().startswith("-")
        runs = runs.loc[keys.sort_values(ascending=up, kind="stable", na_position="last").index]
    return runs


def column(runs: pd.DataFrame, name: str) -> str:
    """The name of a column, as a table may show it too; ValueError for none.

    A notebook's parameter is no column: its word is looked for in them, ``WIDTH`` in ``model.width``.
    """
    plain = name.strip().removesuffix(" (fp32)")
    if plain in runs:
        return plain
    told = f"no run here has a column {name!r}"
    if plain.upper() in ("FACTOR", "STRIDE", "STRIDES") and "plan" in runs:
        plans = ", ".join(sorted(map(str, runs["plan"].dropna().unique())))
        raise ValueError(f"{told}: a network's strides are its plan, here {plans or 'empty'}; write plan=…")
    if alike := [each for each in runs if each.rpartition(".")[2] == plain.lower()]:
        raise ValueError(f"{told}; did you mean {' or '.join(map(repr, alike))}?")
    known = ", ".join(each for each in MAIN if each.removesuffix(" (fp32)") in runs)
    raise ValueError(told + (hint(name, runs) or f": it has {known}, and with --columns all more"))


def by_id(runs: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """The run of each id; a part of one that no other id has will do. ValueError for none, or several.

    >>> runs = pd.DataFrame({"id": ["net-1f3a-c0", "net-77aa-c0"]})
    >>> [*by_id(runs, ["77aa"]).id]
    ['net-77aa-c0']
    """
    places = []
    ids = runs["id"] if "id" in runs else pd.Series(dtype=str)
    for word in wanted:
        if not word:
            raise ValueError("an id is empty: a part of one has a letter or more")
        exact = ids.index[ids == word]
        part = exact if len(exact) else ids.index[ids.str.contains(word, regex=False)]
        if len(part) != 1:
            several = f"is in several ids: {', '.join(ids[part][:4])}{' and more' * (len(part) > 4)}"
            raise ValueError(f"{word!r} {several if len(part) else f'is no run here{hint(word, ids)}'}")
        places += [*part]
    return runs.loc[list(dict.fromkeys(places))]
