"""Results that a notebook hands to a sweep: tables whose rows are in the executed notebook itself. No torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from redistill_lib.checks import as_path

MIME = "application/vnd.redistill.rows+json"


def record(rows: pd.DataFrame | Mapping[str, Any], show: Sequence[str] | None = None) -> None:
    """Show a table and keep its rows in the output, from where `recorded` and a sweep's table read them.

    `rows` is a DataFrame, or a mapping of names to values for a single row. An index that has a name, or is not of
    numbers, becomes a column. A value is a number (NaN and infinity too), text, a date, None, or a list of
    those; what else a table holds is a ValueError. Outside of Jupyter the table is printed. `show` names the columns
    that are shown, where a reader needs no more; all are kept.

    >>> record({"method": "red", "accuracy": 0.91})
      method  accuracy
    0    red      0.91
    """
    if not isinstance(rows, pd.DataFrame | Mapping):
        raise ValueError(f"record wants a DataFrame or a mapping of names to values, got {type(rows).__name__}")
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame({name: [value] for name, value in rows.items()})
    kept = _to_json(frame)
    if show is not None:
        if unknown := [name for name in show if name not in frame.columns]:
            raise ValueError(f"show names {unknown[0]!r}; the table has {', '.join(map(str, frame.columns))}")
        frame = frame[[*show]]
    ipython = sys.modules.get("IPython")  # not imported: no notebook
    if ipython is None or ipython.get_ipython() is None:
        print(frame.to_string())
        return
    html = frame._repr_html_()  # None where pandas is set to show text
    shown = {"text/plain": repr(frame), MIME: kept} | ({"text/html": html} if html else {})
    ipython.display.display(shown, raw=True)


def recorded(notebook: str | Path) -> pd.DataFrame:
    """The rows that a notebook recorded while it ran, one record below the other; an empty frame where there is none.

    A column that a record lacks is missing (NaN) in its rows. FileNotFoundError or ValueError for no notebook.
    """
    path, frames = as_path("notebook", notebook), list[pd.DataFrame]()
    try:
        for cell in nbformat.read(path, as_version=4).cells:
            outputs = cell.get("outputs", [])
            frames += [_from_json(output.data[MIME]) for output in outputs if MIME in output.get("data", {})]
    except FileNotFoundError:
        raise FileNotFoundError(f"no notebook at {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook, or its rows were changed by hand: {error}") from None
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _to_json(frame: pd.DataFrame) -> dict[str, Any]:
    """Names, dtypes and rows of a frame; what is missing is null, and infinities are text, as JSON has neither."""
    named = any(name is not None for name in frame.index.names)
    if named or not pd.api.types.is_integer_dtype(frame.index.dtype):
        frame = frame.reset_index()
    names = [".".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame.columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the table has several columns {twice[0]!r}: name them apart")
    columns = []
    for position, name in enumerate(names):
        column = frame.iloc[:, position]
        values = [_plain(value, name) for value in column.astype(object)]
        columns.append({"name": name, "dtype": str(column.dtype), "values": values})
    return {"columns": columns}


def _plain(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # of numpy, or a tensor
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, pd.Timestamp | pd.Timedelta | Path) or hasattr(value, "isoformat"):
        return str(value)
    kind = type(value).__name__
    raise ValueError(
        f"column {name!r} holds a {kind}, which a table cannot keep: give numbers, text or lists of them"
    )


def _from_json(kept: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({each["name"]: _column(each["values"], each["dtype"]) for each in kept["columns"]})


def _column(values: Sequence[Any], dtype: str) -> pd.Series:
    try:
        return pd.Series(values, dtype=dtype)
    except (TypeError, ValueError):  # of another pandas, or of a package that is not here
        return pd.Series(values)
