"""One tidy table per sweep, and means with intervals over its seeds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from redistill_lib.runs import replacing
from redistill_lib.sweep.manifest import PointStatus, read_status
from redistill_lib.sweep.spec import Sweep

#: Columns about a row's execution, after its parameters and metrics.
ABOUT = ("point", "point_seconds", "started", "python", "torch", "redistill_lib", "code")

_INTERVAL = r"(.*[ _])?(low|high|±)(_recorded)?"


def sweep_table(folder: Path, sweep: Sweep) -> pd.DataFrame:
    """A row for each that a done point recorded, or one for a point that recorded none.

    Columns: the parameters that vary, the other ones, what was recorded, and those of `ABOUT`. A recorded column
    that is named as one of the others but for capitals, which databases and spreadsheets take for the same, gets
    ``_recorded``. Lists and dicts are text.
    """
    keys = {point.name: point.key for point in sweep.tabulated}
    planned = [read_status(folder, name) for name in keys]
    return status_table(status for status in planned if status and status.ok and status.key == keys[status.name])


def status_table(statuses: Iterable[PointStatus]) -> pd.DataFrame:
    """`sweep_table` of statuses at hand."""
    done = [*statuses]
    names = list(dict.fromkeys(name for status in done for name in status.parameters))
    values = {name: {repr(status.parameters.get(name)) for status in done} for name in names}
    names = [name for name in names if len(values[name]) > 1] + [name for name in names if len(values[name]) == 1]
    rows, taken = list[dict[str, Any]](), {name.lower() for name in (*names, *ABOUT)}
    for status in done:
        about = {"point": status.name, "point_seconds": status.seconds, "started": status.started, **status.versions}
        for recorded in status.rows or [{}]:
            own = {f"{name}_recorded" if name.lower() in taken else name: v for name, v in recorded.items()}
            rows.append({**status.parameters, **own, **about})
    found = pd.DataFrame(rows)
    metrics = [name for name in found.columns if name not in names and name not in ABOUT]
    return found.reindex(columns=[*names, *metrics, *ABOUT]).apply(_plain)


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column as a file can hold it: what is not of one simple kind as text."""
    if column.dtype != object or column.isna().all():
        return column
    kinds = {type(value) for value in column.dropna()}
    return column if kinds <= {bool} or kinds <= {str} else column.map(str, na_action="ignore")


def write_table(folder: Path, table: pd.DataFrame) -> Path:
    """``table.parquet`` and ``table.csv``, which is returned; each takes the place of the old one in one step."""
    with replacing(folder / "table.parquet") as part:
        table.to_parquet(part, index=False)
    with replacing(folder / "table.csv") as part:
        table.to_csv(part, index=False)
    return folder / "table.csv"


def summarise(table: pd.DataFrame, over: str = "SEED", by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean and 95 % t-interval of each metric over the seeds, a row for each metric and group.

    Intervals of single runs, in columns that are called low, high or ± or end so, are no metrics.

    Groups are equal in all parameters (columns in capitals) but `over`, in recorded texts, such as a role (but `run`,
    which is another under each seed), and in `by`, for recorded numbers that are none to average, such as an epoch.
    ``low`` and ``high`` are NaN where ``n`` is 1. Raises ValueError where the table has no column `over`.

    >>> runs = pd.DataFrame({"SEED": [0, 1, 2], "FACTOR": 4, "accuracy": [1.0, 2.0, 3.0]})
    >>> summarise(runs).round(2)
       FACTOR    metric  mean   low  high  n
    0       4  accuracy   2.0 -0.48  4.48  3
    """
    for name in (over, *by):
        if name not in table:
            raise ValueError(f"the table has no column {name}; it has {', '.join(map(str, table.columns))}")
    aside = {over, over.lower(), f"{over.lower()}_recorded", "run", *ABOUT}
    rest = [name for name in table.columns if name not in aside and not re.fullmatch(_INTERVAL, name)]
    number = {n for n in rest if pd.api.types.is_numeric_dtype(table[n]) and not pd.api.types.is_bool_dtype(table[n])}
    groups = [name for name in rest if name.isupper() or name in by or name not in number]
    metrics = [name for name in rest if name not in groups] + ["point_seconds"] * ("point_seconds" in table)
    from redistill_lib.results import interval  # scipy is slow to import, and a restart needs none

    rows = []
    parts = table.groupby(groups, sort=False, dropna=False) if groups else [((), table)]
    for key, part in parts:
        for metric in metrics:
            values = part[metric].dropna().tolist()
            if values:
                mean = interval(values)
                told = {"metric": metric, "mean": mean.value, "low": mean.low, "high": mean.high, "n": len(values)}
                rows.append(dict(zip(groups, key, strict=True)) | told)
    return pd.DataFrame(rows, columns=[*groups, "metric", "mean", "low", "high", "n"])
