"""Scores of several networks beside the memory they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from redistill_lib.memory import format_size
from redistill_lib.quality.scores import Quality, check_comparable
from redistill_lib.results import interval, label, listed, role_key, run_difference, the

_LEAST = {"peak_bytes": 0.0, "parameters": 0.0, "fid": -math.inf, "kid": -math.inf}  # what values are above
_ERRORS = {"fid": "fid_error", "kid": "kid_std"}  # of a single run
_BUDGET = 1.15  # peaks within this factor are the same memory: RED blocks need a little


@dataclass(frozen=True, repr=False, eq=False)
class QualityComparison:
    """`table` has a row per role and memory: ``n`` runs, the means of ``peak``, ``parameters``, ``fid`` and ``kid``,
    ``fid_error`` and ``kid_error``, the scores of its runs, and ``budget``, the number of the students of about the
    same memory, from the least (NaN for the teacher). `settings` are what all scores were made with.
    """

    table: pd.DataFrame
    settings: dict[str, Any]
    floor: Quality | None = None

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def headline(self) -> str:
        """Who has the lowest FID among students of one memory, and from whom the scores cannot tell it."""
        once = "in one run" if self.table["n"].min() == 1 else "on average"
        budgets = [part for _, part in self.table.groupby("budget") if len(part) > 1]
        parts = [_lead(part) for part in budgets or [self.table]]
        if budgets:
            teachers = self.table[self.table["role"] == "teacher"]
            parts += [f"teacher {row['fid']:.1f} at {format_size(row['peak'])}" for _, row in teachers.iterrows()]
        return f"The lowest FID {once}: {'; '.join(parts)}"

    def __repr__(self) -> str:
        return f"QualityComparison({self.headline()})"


def compare_quality(frame: pd.DataFrame, floor: Quality | None = None) -> QualityComparison:
    """Means, intervals and who is ahead, by FID.

    `frame` has a row per trained network: `Quality.to_frame()` of its score, and columns ``role``, ``peak_bytes`` and
    ``parameters``. Rows of one role whose peaks are within 15 % are runs; a column ``seed`` pairs those of two roles.
    The error of several runs is half the 95 % t-interval of their mean; of a single run, half its FID's 95 % interval
    over draws of images, or its KID's spread over subsets. `floor` is what `redistill_lib.quality.floor` gives.

    Raises ValueError for a missing column or value, an empty frame, a peak or parameters of 0, and scores or a floor
    that are not made in the same way.

    >>> def row(role, mib, fid):
    ...     score = Quality(fid, fid - 1, 0.5, fid / 1000, 0.001, 5.0, 0.1, 0.8, 0.7, {"extractor": "teacher"})
    ...     return score.to_frame().assign(role=role, peak_bytes=mib * 2**20, parameters=10**6)
    >>> compare_quality(pd.concat([row("teacher", 8, 9.0), row("student", 2, 15.0), row("red", 2, 12.0)])).headline()
    'The lowest FID in one run: RED 12.0 (naive student 15.0) at 2.00 MiB; teacher 9.0 at 8.00 MiB'
    """
    if missing := [name for name in ("role", *_LEAST, *_ERRORS.values()) if name not in frame.columns]:
        raise ValueError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError("the frame has no row: there is no score to show")
    for name, least in _LEAST.items():
        good = pd.to_numeric(frame[name], errors="coerce").between(least, math.inf, inclusive="neither")
        if roles := list(dict.fromkeys(frame["role"][~good].map(label))):
            wanted = f"{name} above 0" if least == 0 else name
            raise ValueError(f"the frame has no {wanted} for {listed(roles)}; give it or leave the row out")
    check_comparable(frame)
    settings = {name.removeprefix("settings."): frame[name].iloc[0] for name in frame.filter(regex=r"^settings\.")}
    if floor is not None:
        ignore = [name for name, value in floor.settings.items() if value == "real images"]
        ignore += settings.keys() - floor.settings.keys()
        try:
            check_comparable(pd.concat([frame.head(1), floor.to_frame()]), ignore=ignore)
        except ValueError as error:
            raise ValueError(f"this floor does not belong to these scores: {error}") from None
    return QualityComparison(_table(frame), settings, floor)


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(role=frame["role"].map(role_key)).reset_index(drop=True)
    alike = frame.groupby("role")["peak_bytes"].transform(_budgets)
    rows = []
    for (role, _), runs in frame.groupby(["role", alike], sort=False):
        runs = runs.set_index("seed") if "seed" in runs else runs
        peak, parameters = runs["peak_bytes"].mean(), runs["parameters"].mean()
        row: dict[str, Any] = {"role": role, "n": len(runs), "peak": peak, "parameters": parameters}
        for score, error in _ERRORS.items():
            found = interval(runs[score].tolist())
            half = found.half if len(runs) > 1 else runs[error].iloc[0]
            row |= {score: found.value, f"{score}_error": half, f"{score}_runs": runs[score]}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(budget=_budgets(table["peak"][table["role"] != "teacher"]))


def _budgets(peaks: pd.Series[float]) -> pd.Series[int]:
    """Which of them have about the same memory: equal numbers, 0 for the least."""
    found, first = {}, math.nan
    for index, peak in peaks.sort_values().items():
        if not peak <= _BUDGET * first:
            first = peak
        found[index] = first
    return pd.Series(found, dtype=float).rank(method="dense").sub(1).reindex(peaks.index)


def _lead(part: pd.DataFrame) -> str:
    (_, best), *others = part.sort_values("fid").iterrows()
    rivals = [row for _, row in others if row["role"] != best["role"]]
    words = []
    if rivals:
        rival = next((row for row in rivals if row["role"] == "student"), rivals[0])
        words.append(f"{label(rival['role'])} {rival['fid']:.1f}")
    if near := dict.fromkeys(the(row["role"]) for row in rivals if not _decided(best, row)):
        words.append(f"too close to {listed(near)} to tell")
    if (ahead := part.loc[part["kid"].idxmin(), "role"]) != best["role"]:
        words.append(f"by KID {label(ahead)} is ahead")
    detail = f" ({'; '.join(words)})" if words else ""
    return f"{label(best['role'])} {best['fid']:.1f}{detail} at {format_size(best['peak'])}"


def _decided(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the lower FID is lower over seeds, or over draws of images where a run is single."""
    if min(best["n"], other["n"]) > 1:
        return run_difference(other["fid_runs"], best["fid_runs"]).decided
    decided: bool = math.hypot(best["fid_error"], other["fid_error"]) < other["fid"] - best["fid"]
    return decided  # not with a missing error
