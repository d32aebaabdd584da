"""Results: intervals as scipy gives them, students of one teacher in pairs, headlines no stronger than the seeds."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from redistill_lib.results import (
    Estimate,
    crossed_interval,
    difference,
    interval,
    paired_difference,
    pareto_front,
    run_difference,
    summarize,
)

A, B = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8]


def runs(seeded: bool = False, **accuracies: float | list[float]) -> pd.DataFrame:
    """Runs by role; ``red_kd`` is red+kd."""
    rows = [
        {"role": role.replace("_", "+"), "test_accuracy": value, "seed": seed}
        for role, values in accuracies.items()
        for seed, value in enumerate(values if isinstance(values, list) else [values])
    ]
    frame = pd.DataFrame(rows)
    return frame if seeded else frame.drop(columns="seed")


def test_intervals_are_those_of_the_textbook() -> None:
    mean, half = np.mean(A), stats.t.ppf(0.975, len(A) - 1) * stats.sem(A)
    assert (interval(A).low, interval(A).high) == pytest.approx((mean - half, mean + half))
    found = difference(A, B)
    variances = np.var(A, ddof=1) / len(A), np.var(B, ddof=1) / len(B)
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (A, B), strict=True))
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)))
    assert found.value == pytest.approx(mean - np.mean(B))
    paired = stats.ttest_rel(A, B[:6]).confidence_interval()
    assert (paired_difference(A, B[:6]).low, paired_difference(A, B[:6]).high) == pytest.approx(tuple(paired))
    with pytest.raises(ValueError, match="zip"):
        paired_difference(A, B)


def test_too_few_or_equal_values_are_no_trouble() -> None:
    for alone in (interval([3.0]), difference([1.0], A), difference(A, [1.0]), paired_difference([2.0], [1.0])):
        assert math.isnan(alone.low) and math.isnan(alone.high) and not alone.decided
    assert interval([5.0, 5.0]) == Estimate(5.0, 5.0, 5.0)
    assert not difference([2.0, 2.0], [2.0, 2.0]).decided
    assert difference([2.0, 2.0], [1.0, 1.0]).decided
    assert difference([2.0, 2.0, 2.0], A).high == pytest.approx(2 - interval(A).low)
    assert interval([0.1, 0.1 + 1e-17, 0.1 + 2e-17]).half < 1e-12


def test_a_crossed_interval_by_hand() -> None:
    """Means of runs are 2, 4 and 6, of images 1, 4 and 7: a variance of 4/3 + 9/3."""
    found = crossed_interval(np.add.outer([-2.0, 0.0, 2.0], [1.0, 4.0, 7.0]))
    freedom = (13 / 3) ** 2 / ((4 / 3) ** 2 / 2 + 3**2 / 2)  # 3.48: Satterthwaite, of two and two
    assert found.value == 4
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * (13 / 3) ** 0.5)
    agreeing = crossed_interval([[2.0] * 50, [4.0] * 50, [6.0] * 50])
    assert agreeing.half == pytest.approx(4.3027 * (4 / 3) ** 0.5, 1e-4)  # Student's 97.5 % for two degrees


@pytest.mark.parametrize(("runs", "images", "both"), [(1.0, 0.0, 0.1), (0.0, 1.0, 0.1), (0.1, 1.0, 1.0)])
def test_a_crossed_interval_holds_the_true_mean_for_other_runs_and_images(
    runs: float, images: float, both: float
) -> None:
    draws = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        parts = [
            scale * draws.normal(size=size) for scale, size in ((runs, (3, 1)), (images, (1, 100)), (both, (3, 100)))
        ]
        found = crossed_interval(sum(parts))
        held += found.low <= 0 <= found.high
    assert 0.93 < held / 600 < 0.99  # of 95 %, whose spread over 600 draws is 0.9 %; a residual counts twice


def test_runs_of_the_same_seeds_are_paired() -> None:
    def series(values: list[float], seeds: list[int]) -> pd.Series:
        return pd.Series(values, pd.Index(seeds, name="seed"))

    a, b = series([0.9, 0.5, 0.7], [3, 1, 2]), series([0.69, 0.49, 0.88], [2, 1, 3])
    found = run_difference(a, b)
    assert found.half == pytest.approx(interval([0.02, 0.01, 0.01]).half)
    assert found.half < difference(a.tolist(), b.tolist()).half / 10
    unlike = [series([0.5, 0.69, 0.88], [1, 2, 4]), series([0.5, 0.69, 0.88], [1, 1, 3]), series([0.5, 0.9], [1, 2])]
    for other in [*unlike, pd.Series([0.5, 0.69, 0.88])]:
        assert run_difference(a, other) == difference(a.tolist(), other.tolist())
    twice = series([0.5, 0.6, 0.69, 0.88], [1, 1, 2, 3])
    assert run_difference(a, twice) == difference(a.tolist(), twice.tolist())


@pytest.mark.parametrize(
    ("frame", "finding"),
    [
        (
            runs(teacher=0.928, naive=0.779, red=0.84, red_kd=0.854),
            "RED + KD does best in one run: 85.4 %, 7.5 points above the naive student; teacher 92.8 %",
        ),
        (
            runs(teacher=0.928, naive=0.85, red=0.84),
            "Naive student does best in one run: 85.0 %, 1.0 points above RED; teacher 92.8 %",
        ),
        (
            runs(naive=[0.80, 0.84, 0.82], red=[0.81, 0.85, 0.83]),
            "RED leads: 83.0 %, 1.0 ± 4.5 points above the naive student; "
            "the seeds cannot tell it from the naive student",
        ),
        (
            runs(naive=[0.80, 0.81, 0.82], red=[0.91, 0.92, 0.93], teacher=[0.9, 0.9, 0.9]),
            "RED is the best student: 92.0 %, 11.0 ± 2.3 points above the naive student; teacher 90.0 %",
        ),
        (
            runs(naive=[0.80, 0.81, 0.82], red=[0.91, 0.92, 0.93], kd=[0.90, 0.91, 0.92], teacher=0.95),
            "RED leads: 92.0 %, 11.0 ± 2.3 points above the naive student; "
            "the seeds cannot tell it from KD; teacher 95.0 %",
        ),
        (
            runs(naive=[0.80, 0.81, 0.82], red=0.93),
            "RED leads: 93.0 %, 12.0 points above the naive student; the seeds cannot tell it from the naive student",
        ),
        (runs(red=0.8), "RED reaches 80.0 %"),
        (runs(teacher=0.8), "The teacher reaches 80.0 %"),
    ],
)
def test_the_headline_is_honest_whoever_wins(frame: pd.DataFrame, finding: str) -> None:
    assert summarize(frame).headline() == finding
    assert finding in repr(summarize(frame))


def test_a_lead_that_every_teacher_repeats_is_told() -> None:
    """Seeds differ more than methods do: only in pairs does the lead show."""
    values = {"naive": [0.70, 0.80, 0.90], "red": [0.72, 0.82, 0.93]}
    assert "cannot tell it from the naive student" in summarize(runs(**values)).headline()
    paired = summarize(runs(seeded=True, **values)).headline()
    assert paired == "RED is the best student: 82.3 %, 2.3 ± 1.4 points above the naive student"


def test_summary_counts_seeds_and_the_gap() -> None:
    table = summarize(runs(teacher=0.9, student=[0.7, 0.8], kd=[0.80, 0.81, 0.82])).to_frame().set_index("role")
    assert table["n"].to_dict() == {"teacher": 1, "student": 2, "kd": 3}
    assert table.loc["kd", "gap_recovered"] == pytest.approx(40)
    assert table.loc["kd", "mean"] - table.loc["kd", "low"] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
    assert np.isnan(table.loc["teacher", "low"])
    assert summarize(runs(student=0.7, kd=0.8)).table["gap_recovered"].isna().all()
    assert summarize(runs(student=0.7, teacher=0.6)).table["gap_recovered"].isna().all()
    with pytest.raises(ValueError, match="lacks test_accuracy; it has role, accuracy"):
        summarize(pd.DataFrame({"role": ["kd"], "accuracy": [1.0]}))
    with pytest.raises(ValueError, match="no run"):
        summarize(runs(kd=float("nan")))


@pytest.mark.parametrize("lower", [False, True])
def test_the_front_is_what_no_other_row_beats(lower: bool) -> None:
    """By its definition, pair by pair; whole numbers, so that some rows are equal in one or both."""
    draw = np.random.default_rng(0)
    sign, peaks = -1 if lower else 1, draw.integers(0, 12, 60)
    frame = pd.DataFrame({"peak": peaks, "score": sign * peaks + draw.integers(0, 6, 60), "name": "x"})
    rows = [(peak, sign * score) for peak, score in zip(frame["peak"], frame["score"], strict=True)]
    beaten = [any(p <= peak and s >= score and (p, s) != (peak, score) for p, s in rows) for peak, score in rows]
    front = pareto_front(frame, "peak", "score", lower=lower)
    assert sorted(front.index) == [k for k, lost in enumerate(beaten) if not lost]
    assert 4 < len(front) < 40 and front.duplicated().any()
    assert front["peak"].is_monotonic_increasing and [*front.columns] == [*frame.columns]


def test_rows_that_are_not_known_are_on_no_front() -> None:
    frame = pd.DataFrame({"peak": [1.0, math.nan, 3.0], "score": [math.nan, 0.9, 0.5]})
    assert [*pareto_front(frame, "peak", "score").index] == [2]
    assert pareto_front(frame.head(0), "peak", "score").empty
    with pytest.raises(ValueError, match="the frame lacks accuracy; it has peak, score"):
        pareto_front(frame, "peak", "accuracy")
