"""Runs as tables for a reader: what differs in columns, what is alike in a line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd

from redistill_lib.runs import load_runs

MOST = 14  # columns that a reader takes in
#: What is shown where more than `MOST` columns differ.
MAIN = (
    "id", "name", "status", "network", "plan", "methods", "data.name", "data.image_size", "recipe.steps",
    "recipe.init", "seed", "test_accuracy", "validation_loss", "fid", "seconds", "peak_bytes (fp32)", "error",
)  # fmt: skip
# What tells runs apart for the store, and says nothing to a reader.
_IDENTITIES = r"(method_code|images$|version$|model\.(structure|weights|packages)|recipe\.process)"


@dataclass(frozen=True)
class RunTable:
    """Runs of one kind."""

    runs: pd.DataFrame  # what a run lacks is an empty text
    same: Mapping[str, Any]  # name → value of what is alike in all
    more: tuple[str, ...] = ()  # columns that differ too, and are left out


def listed_runs(root: str | Path) -> pd.DataFrame:
    """`load_runs` with a column `network`: its name, and for those of one's own that are of one class, but built
    otherwise, the first digits of their `structure`.
    """
    runs = load_runs(root)
    if "model.name" not in runs:
        return runs
    network = runs["model.name"].astype(object)
    if "model.structure" in runs:
        structures = runs.groupby("model.name")["model.structure"].transform("nunique")
        several = (structures > 1) & runs["model.structure"].notna()
        network = network.where(~several, network + " " + runs["model.structure"].astype(str).str[:4])
    runs.insert(runs.columns.get_loc("plan") if "plan" in runs else 2, "network", network)
    return runs


def run_tables(runs: pd.DataFrame, most: int | None = MOST) -> dict[str, RunTable]:
    """Runs made readable, classifiers and denoisers apart, since they have other settings and other scores.

    Each table has the columns in which its runs differ; where those are more than `most`, `MAIN` ones alone. Empty
    columns, paths, lists and mappings are left out; `id`, `name` and `status` stay, and all of a single run but its
    recipe and data. Peaks are named as trainings measure them: fp32.

    >>> runs = pd.DataFrame({"id": ["a", "b"], "status": "complete", "seed": [0, 1], "data": "digits"})
    >>> run_tables(runs)
    {'Training runs': RunTable(runs=  id    status seed
    0  a  complete    0
    1  b  complete    1, same={'data': 'digits'}, more=())}
    """
    if runs.empty:
        return {}
    diffuse = runs["task"].astype(str).str.contains("diffus") if "task" in runs else runs["id"].isna()
    kinds = {"Training runs of classifiers": runs[~diffuse], "Training runs of denoisers": runs[diffuse]}
    if diffuse.all() or not diffuse.any():
        kinds = {"Training runs": runs}
    return {kind: _compared(group, most) for kind, group in kinds.items()}


def _compared(runs: pd.DataFrame, most: int | None) -> RunTable:
    hidden = _IDENTITIES if len(runs) > 1 else _IDENTITIES + r"|recipe\.|data\."
    own = "model.structure" in runs and runs.loc[runs["model.structure"].notna(), "plan"].notna().any()
    runs = runs.drop(columns=["path"], errors="ignore").dropna(axis="columns", how="all")
    runs = runs.drop(columns=["model.name"] if "network" in runs else [])
    texts = [name for name, kind in runs.dtypes.items() if kind.kind == "O"]
    nested = [n for n in texts if runs[n].map(lambda value: isinstance(value, Mapping | list | tuple)).any()]
    runs = runs.loc[:, ~(runs.columns.isin(nested) | runs.columns.str.match(hidden))]
    runs = runs.rename(columns={name: f"{name} (fp32)" for name in ("peak_bytes", "peak_bytes_eager")})
    shown = ("id", "name", "status", "test_accuracy", "validation_loss")
    alike = [n for n in runs.columns if n not in shown and runs[n].nunique(dropna=False) == 1]
    same = readable(runs[alike].head(1)).iloc[0].to_dict() if len(runs) > 1 else {}
    runs = runs.drop(columns=same)
    more: tuple[str, ...] = ()
    if most is not None and len(runs.columns) > most:
        main = [name for name in MAIN if name in runs and (name != "plan" or own)]
        more = tuple(name for name in runs.columns if name not in main)
        runs, same = runs[main], {}
    return RunTable(readable(runs), same, more)


def readable(runs: pd.DataFrame) -> pd.DataFrame:
    """What a run lacks as an empty text, and numbers whole where all of a column are."""
    floats = runs.select_dtypes("float")
    whole = ((floats % 1 == 0) & (floats.abs() < 2**53) | floats.isna()).all()
    runs = runs.astype(dict.fromkeys(floats.columns[whole], "Int64"))  # whole, also where a run lacks them
    return runs.astype(object).where(runs.notna(), "")


def column_texts(values: Iterable[Any]) -> list[str]:
    """The cells of a column as a reader sees them: all floats with the decimals that one needs for four digits.

    Where that were more than eight, each has its own.

    >>> column_texts([0.5, 0.91234, 3, "", None]), column_texts([1e-12, 46.25])
    (['0.5000', '0.9123', '3', '', ''], ['1e-12', '46.25'])
    """
    found = list(values)
    floats = [value for value in found if isinstance(value, float) and math.isfinite(value)]
    needed = [-int(Decimal(f"{value:.4g}").normalize().as_tuple().exponent) for value in floats]
    digits = max([0, *needed])
    form = f"z.{digits}f" if digits <= 8 else ".4g"
    return ["" if v is None or v != v else f"{v:{form}}" if isinstance(v, float) else str(v) for v in found]
