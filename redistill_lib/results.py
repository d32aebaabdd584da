"""Results in numbers and words: intervals, differences between methods, tables and headlines, without torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

_LABELS = {"teacher": "teacher", "student": "naive student"}
_PARTS = {"red-blocks": "RED blocks", "red-loss": "RED loss", "ls-kd": "LS-KD", "fitnet": "FitNet"}
_PARTS |= {"reviewkd": "ReviewKD", "deit": "DeiT", "locality": "locality guidance"}
_CAPITALS = "red kd mse stage dkd crd dist mlld at nst sp vid pkt ft ab srd rkd cc"
_PARTS |= {name: name.upper() for name in _CAPITALS.split()}
_KEYS = {name.lower(): key for key, name in _PARTS.items()}


def role_key(role: str) -> str:
    """One spelling per role: ``naive`` is the undistilled ``student``, and ``kd+red`` is ``red+kd``.

    >>> role_key("KD+RED"), role_key("naive"), role_key("RED blocks")
    ('red+kd', 'student', 'red-blocks')
    """
    role = role.strip().lower()
    if role in ("naive", "naive student", "none", "baseline"):
        return "student"
    parts = (_KEYS.get(part.strip(), part.strip()) for part in role.split("+"))
    return "+".join(sorted(parts, key=lambda p: (not p.startswith("red"), p)))


def label(role: str) -> str:
    """The role as a reader calls it.

    >>> label("student"), label("red+kd"), label("red-blocks"), label("RED blocks + kd")
    ('naive student', 'RED + KD', 'RED blocks', 'RED blocks + KD')
    >>> label("red(alpha=0.5) + kd")
    'RED(alpha=0.5) + KD'
    """
    key = role_key(role)
    if key in _LABELS:
        return _LABELS[key]
    known = set(key.split("+")) <= _PARTS.keys()
    parts = (part.strip().partition("(") for part in (key if known else role).split("+"))
    return " + ".join(_PARTS.get(name.lower(), name) + bracket + options for name, bracket, options in parts)


def the(role: str) -> str:
    """The role inside a sentence.

    >>> the("naive"), the("red")
    ('the naive student', 'RED')
    """
    name = label(role)
    return f"the {name}" if name in ("teacher", "naive student") else name


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign.

    >>> number(-0.461), number(-0.0001)
    ('−0.46', '0.00')
    """
    return f"{value:z.{digits}f}".replace("-", "−")


def capital(text: str) -> str:
    """The text as a sentence begins: unlike `str.capitalize`, all but its first letter stays as it is."""
    return text[0].upper() + text[1:]


def listed(words: Iterable[str]) -> str:
    """``a, b and c``."""
    *head, last = words
    return f"{', '.join(head)} and {last}" if head else last


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, and its 95 % interval; the ends are NaN where there are too few values for one."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return self.high - self.value

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0; never without an interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return number(self.value) if math.isnan(self.half) else f"{number(self.value)} ± {number(self.half)}"


def interval(values: Sequence[float]) -> Estimate:
    """The mean and its t-interval over runs.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.00 ± 2.48
    """
    from scipy import stats  # here, as it is slow to import

    return _estimate(float(np.mean(values)), stats.ttest_1samp, values, 0.0)


def over_seeds(values: Sequence[float], images: Iterable[float] = ()) -> Estimate:
    """`interval`, but nowhere narrower than that of one run over test images, of which `images` are half the widths.

    Two seeds may agree by chance, and one has no interval of its own.

    >>> print(over_seeds([80.0, 80.0], [1.5, 1.7]), "|", over_seeds([80.0], [1.5]), "|", over_seeds([80.0]))
    80.00 ± 1.60 | 80.00 ± 1.50 | 80.00
    """
    mean, known = interval(values), [half for half in images if not math.isnan(half)]
    halves = [half for half in (mean.half, np.mean(known) if known else math.nan) if not math.isnan(half)]
    half = float(max(halves, default=math.nan))
    return Estimate(mean.value, mean.value - half, mean.value + half)


def whiskers(
    score: pd.Series[float], half: pd.Series[float], most: float
) -> tuple[pd.Series[float], pd.Series[float]]:
    """How far intervals reach up and down within what a score can be: from 0 to `most`."""
    return half.clip(upper=(most - score).clip(lower=0)), half.clip(upper=score.clip(lower=0))


def score_range(
    score: pd.Series[float], half: pd.Series[float], seeds: pd.Series[int], most: float
) -> tuple[float, float]:
    """Ends of an axis that holds all points and their `whiskers`, but no longer than a few times as far as the points
    lie apart, and once where one or two seeds say little of an interval's length.

    >>> score = pd.Series([90.0, 92.0])
    >>> [round(end, 1) for end in score_range(score, score * 0 + 60, pd.Series([2, 2]), 100)]
    [87.9, 94.2]
    """
    spread = max(score.max() - score.min(), 0.02 * abs(score.mean()), 1e-9)
    up, down = (ends.fillna(0).clip(upper=spread * np.where(seeds > 2, 6, 1)) for ends in whiskers(score, half, most))
    return float((score - down).min() - 0.07 * spread), float((score + up).max() + 0.09 * spread)


def level_with(best: Any, score: pd.Series[float], half: pd.Series[float]) -> pd.Series[bool]:
    """Whose interval overlaps that of the row `best`; of nobody without one, and not of itself."""
    return ((score - score[best]).abs() <= half + half[best]) & (score.index != best)


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """mean(a) − mean(b) with Welch's interval, for independent runs."""
    from scipy import stats

    return _estimate(float(np.mean(a) - np.mean(b)), partial(stats.ttest_ind, equal_var=False), a, b)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """mean(a − b) with its t-interval, for values that belong together one by one, such as students of one teacher.

    What both share cancels, so that the interval is narrower. Raises ValueError where the numbers of values differ.

    >>> red, naive = [0.9, 0.7, 0.8], [0.8, 0.6, 0.69]
    >>> print(paired_difference(red, naive), "|", difference(red, naive))
    0.10 ± 0.01 | 0.10 ± 0.23
    """
    return interval([x - y for x, y in zip(a, b, strict=True)])


def run_difference(a: pd.Series[float], b: pd.Series[float]) -> Estimate:
    """`paired_difference` where both are indexed by the same seeds, each once, otherwise `difference`.

    >>> seeds = pd.Index([0, 1, 2], name="seed")
    >>> print(run_difference(pd.Series([0.9, 0.7, 0.8], seeds), pd.Series([0.8, 0.6, 0.69], seeds)))
    0.10 ± 0.01
    """
    seeded = a.index.name == b.index.name == "seed" and a.index.is_unique and b.index.is_unique
    if seeded and set(a.index) == set(b.index):
        return paired_difference(a.tolist(), b[a.index].tolist())
    return difference(a.tolist(), b.tolist())


def crossed_interval(values: ArrayLike) -> Estimate:
    """The mean over runs × test images, and its 95 % interval for other runs and other images.

    Its variance adds those of the runs' means and of the images' means, each by its number, which counts twice what
    a run and an image have to themselves (A. B. Owen, The pigeonhole bootstrap, 2007), with Satterthwaite's degrees
    of freedom; but it is nowhere narrower than `interval` over runs. One run says nothing of others.

    >>> right = [[1, 0, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0]]
    >>> print(crossed_interval(right), "|", interval([sum(run) / 4 for run in right]))
    0.58 ± 0.76 | 0.58 ± 0.36
    """
    from scipy import stats

    table = np.asarray(values, float)
    runs = table.mean(1)
    parts = [(means.var(ddof=1) / len(means), len(means) - 1) for means in (runs, table.mean(0)) if len(means) > 1]
    value, variance = float(table.mean()), sum(part for part, _ in parts)
    if not variance:
        return Estimate(value, value, value) if parts else Estimate(value, math.nan, math.nan)
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    over_runs = interval(runs.tolist()).half
    half = max(float(stats.t.ppf(0.975, freedom) * math.sqrt(variance)), 0.0 if math.isnan(over_runs) else over_runs)
    return Estimate(value, value - half, value + half)


def _estimate(value: float, test: Callable[..., Any], *samples: Any) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, about too few or nearly equal values
        low, high = test(*samples).confidence_interval()
    return Estimate(value, float(low), float(high))


def pareto_front(frame: pd.DataFrame, cost: str, score: str, *, lower: bool = False) -> pd.DataFrame:
    """The rows that no other row beats, the cheapest first: one that costs no more, scores as well, and is not equal.

    `cost` and `score` name columns of numbers; the better score is the higher one, with `lower` the lower one, as
    FID. Rows that are equal in both stay, rows that lack one go. The index is the frame's. ValueError for a missing
    column.

    >>> points = pd.DataFrame({"KiB": [4, 2, 3, 1], "accuracy": [0.9, 0.8, 0.7, 0.5]}, index=[*"abcd"])
    >>> [*pareto_front(points, "KiB", "accuracy").index]
    ['d', 'b', 'a']
    """
    if missing := {cost, score} - set(frame.columns):
        raise ValueError(f"the frame lacks {', '.join(sorted(missing))}; it has {', '.join(map(str, frame.columns))}")
    known = frame.dropna(subset=[cost, score]).sort_values([cost, score], ascending=[True, lower], kind="stable")
    better = known[score].astype(float) * (-1 if lower else 1)
    best_before = better.groupby(known[cost]).max().cummax().shift(fill_value=-math.inf)  # of all that cost less
    best_here = better.groupby(known[cost]).transform("max")
    return known[(better == best_here) & (better > known[cost].map(best_before))]


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
