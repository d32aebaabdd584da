"""Which method makes the best student, and by how much."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import pandas as pd

from redistill_lib.results.statistics import interval, run_difference
from redistill_lib.results.words import capital, label, listed, number, role_key, the


@dataclass(frozen=True, repr=False, eq=False)
class Summary:
    """`runs` are the accuracies in % by role, indexed by seed if told; `table` has a row per role.

    ``gap_recovered`` is (mean − naive) / (teacher − naive), in %: NaN without a teacher better than the naive
    student. ``low`` and ``high`` are NaN for one run.
    """

    table: pd.DataFrame
    runs: dict[str, pd.Series[float]]

    @property
    def students(self) -> pd.DataFrame:
        """The rows of the students, the best first."""
        table = self.table[self.table["role"] != "teacher"]
        return table.sort_values("mean", ascending=False, ignore_index=True)

    @property
    def teacher(self) -> float:
        """Its mean, or NaN."""
        return float(self.table.loc[self.table["role"] == "teacher", "mean"].mean())

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def headline(self) -> str:
        """Who is best, by how much, and from whom the runs cannot tell it."""
        if self.students.empty:
            return f"The teacher reaches {self.teacher:.1f} %"
        end = "" if math.isnan(self.teacher) else f"; teacher {self.teacher:.1f} %"
        best, *others = self.students.to_dict("records")
        name, reached = capital(best["label"]), f"{best['mean']:.1f} %"
        if not others:
            return f"{name} reaches {reached}{end}"
        gaps = {row["role"]: run_difference(self.runs[best["role"]], self.runs[row["role"]]) for row in others}
        rival = "student" if "student" in gaps else others[0]["role"]
        spread = "" if math.isnan(gaps[rival].half) else f" ± {number(gaps[rival].half, 1)}"
        text = f"{reached}, {number(gaps[rival].value, 1)}{spread} points above {the(rival)}"
        if self.students["n"].max() == 1:
            return f"{name} does best in one run: {text}{end}"
        if near := [the(role) for role, gap in gaps.items() if not gap.decided]:
            return f"{name} leads: {text}; the seeds cannot tell it from {listed(near)}{end}"
        return f"{name} is the best student: {text}{end}"

    def __repr__(self) -> str:
        return f"Summary({self.headline()})"


def summarize(frame: pd.DataFrame) -> Summary:
    """Test accuracies by role, with 95 % t-intervals over runs and the share of the gap that each recovers.

    `frame` has a row per run with ``role`` and ``test_accuracy`` (0…1). With a column ``seed``, two roles that have
    the same seeds are compared in pairs. Raises ValueError for a missing column or a frame without runs.

    >>> summarize(pd.DataFrame({"role": ["teacher", "student", "red"], "test_accuracy": [0.9, 0.8, 0.85]}))
    Summary(RED does best in one run: 85.0 %, 5.0 points above the naive student; teacher 90.0 %)
    """
    if missing := {"role", "test_accuracy"} - set(frame.columns):
        raise ValueError(f"the frame lacks {', '.join(sorted(missing))}; it has {', '.join(map(str, frame.columns))}")
    frame = frame.dropna(subset=["test_accuracy"])
    if frame.empty:
        raise ValueError("no run in the frame has a test_accuracy")
    indexed = frame.set_index("seed") if "seed" in frame else frame.reset_index(drop=True)
    parts = (100 * indexed["test_accuracy"]).groupby(indexed["role"].map(role_key), sort=False)
    runs = {str(role): part for role, part in parts}
    rows = [(role, label(role), *astuple(interval(part.tolist())), len(part)) for role, part in runs.items()]
    table = pd.DataFrame(rows, columns=["role", "label", "mean", "low", "high", "n"])
    naive, teacher = table.set_index("role")["mean"].reindex(["student", "teacher"])
    gap = teacher - naive if teacher > naive else math.nan
    return Summary(table.assign(gap_recovered=100 * (table["mean"] - naive) / gap), runs)
