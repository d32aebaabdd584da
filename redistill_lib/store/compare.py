"""What differs between runs: settings first, then scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from redistill_lib.runs import Run

MOST_TERMS = 6
_ABOUT = ("status", "name", "code", "version", "error")


def differences(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each setting, score or version that is not alike in all runs, and a column for each run.

    Of many terms of the loss that differ, their numbers are told.
    Columns are the ids; of two runs `difference` is the second number less the first. What a run lacks is None.
    """
    rows: dict[str, list[Any]] = {}
    for part in zip(*map(_facts, runs), strict=True):  # what they are, their settings, where they ran, their scores
        names = list(dict.fromkeys(name for facts in part for name in facts))
        values = {name: [facts.get(name) for facts in part] for name in names}
        rows |= {name: each for name, each in values.items() if any(_unlike(value, each[0]) for value in each)}
    if len(terms := [name for name in rows if name.startswith("terms.")]) > MOST_TERMS:
        rows = {name: values for name, values in rows.items() if name not in terms}
        rows["terms"] = [len(run.params.get("terms", ())) for run in runs]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[run.id for run in runs], dtype=object)
    if len(runs) == 2:
        table["difference"] = pd.Series({name: _difference(*values) for name, values in rows.items()}, dtype=object)
    return table


def _facts(run: Run) -> tuple[dict[str, Any], ...]:
    about = {name: getattr(run, name) for name in _ABOUT} | {"role": run.role, "plan": run.plan or None}
    settings = {name: value for name, value in _flat(run.params).items() if not name.startswith("method_code")}
    return about, settings, _flat(run.environment), _flat(run.metrics)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Names and numbers of nested values, joined by dots."""
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), each) for number, each in enumerate(value)]
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in items:
        found |= _flat(each, f"{name}.{key}" if name else key)
    return found


def _unlike(first: Any, second: Any) -> bool:
    both_nan = first != first and second != second  # as the losses of two trainings that failed
    return bool(first != second) and not both_nan


def _difference(first: Any, second: Any) -> Any:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (first, second))
    return second - first if numbers else None
