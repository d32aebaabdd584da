"""Which method makes the best student, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import INK, MUTED, capital, color, faint, finish, label, listed, role_key, symbol

if TYPE_CHECKING:
    import pandas as pd


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Per role: mean test accuracy in %, its 95 % t-interval over runs, n, and the share of the gap it recovers.

    `frame` has a row per run (seed) with ``role`` and ``test_accuracy`` (0…1). ``gap_recovered`` is (mean − naive) /
    (teacher − naive), in %: NaN without a teacher better than the naive student. With one run there is no interval
    (NaN). Raises ValueError for a missing column or an empty frame.

    >>> import pandas as pd
    >>> runs = pd.DataFrame({"role": ["teacher", "student", "red"], "test_accuracy": [0.9, 0.8, 0.85]})
    >>> summary_table(runs)[["label", "mean", "gap_recovered"]].round(1).values.tolist()
    [['teacher', 90.0, 100.0], ['naive student', 80.0, 0.0], ['RED', 85.0, 50.0]]
    """
    import pandas as pd

    if missing := {"role", "test_accuracy"} - set(frame.columns):
        raise ValueError(f"the frame lacks {', '.join(sorted(missing))}; it has {', '.join(map(str, frame.columns))}")
    frame = frame.dropna(subset=["test_accuracy"])
    if frame.empty:
        raise ValueError("no run in the frame has a test_accuracy")
    rows = []
    for role, accuracy in (100 * frame["test_accuracy"]).groupby(frame["role"].map(role_key), sort=False):
        mean, half = float(accuracy.mean()), interval(accuracy.tolist())
        row = {"role": role, "label": label(role), "mean": mean, "low": mean - half, "high": mean + half}
        rows.append(row | {"n": len(accuracy)})
    table = pd.DataFrame(rows)
    means = dict(zip(table["role"], table["mean"], strict=True))
    naive, teacher = means.get("student", math.nan), means.get("teacher", math.nan)
    gap = teacher - naive if teacher > naive else math.nan
    return table.assign(gap_recovered=100 * (table["mean"] - naive) / gap)


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % t-interval of a mean; NaN for a single value.

    >>> round(interval([1.0, 2.0, 3.0]), 2)
    2.48
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(a) − mean(b) and half the width of its 95 % interval (Welch); NaN where either has a single value."""
    from scipy.special import stdtrit

    means, errors = [], []
    for values in (a, b):
        mean = sum(values) / len(values)
        means.append(mean)
        n = len(values)
        errors.append(sum((v - mean) ** 2 for v in values) / (n - 1) / n if n > 1 else math.nan)
    delta, squared = means[0] - means[1], sum(errors)
    if math.isnan(squared) or squared == 0:
        return delta, squared
    freedom = squared**2 / sum(e**2 / (len(v) - 1) for e, v in zip(errors, (a, b), strict=True))
    return delta, float(stdtrit(freedom, 0.975)) * math.sqrt(squared)


def accuracies(frame: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Test accuracy per role: a dot for the mean, a line for its 95 % t-interval, faint dots for the single runs.

    `frame` as for `summary_table`. The teacher is a reference line. The title says who won, by how much, and whether
    the seeds can tell.

    >>> import pandas as pd
    >>> runs = pd.DataFrame({"role": ["teacher", "student", "red"], "test_accuracy": [0.9, 0.8, 0.85]})
    >>> accuracies(runs).layout.title.text.partition("<br>")[0]
    '<b>RED does best in one run: 85.0 %, 5.0 points above the naive one; teacher 90.0 %</b>'
    """
    table = summary_table(frame)
    runs = (100 * frame.dropna(subset=["test_accuracy"])["test_accuracy"]).groupby(frame["role"].map(role_key))
    values = {str(role): list(part) for role, part in runs}
    students = table[table["role"] != "teacher"].sort_values("mean", ascending=False, ignore_index=True)
    figure = go.Figure()
    for k, row in students.iterrows():
        role = row["role"]
        several = row["n"] > 1
        if several:
            figure.add_trace(
                go.Scatter(
                    x=values[role], y=[k] * row["n"], mode="markers", showlegend=False,
                    marker={"color": faint(color(role)), "size": 8}, name=row["label"],
                    hovertemplate=f"<b>{row['label']}</b>, one run: %{{x:.1f}} %<extra></extra>",
                )
            )  # fmt: skip
        gap = row["gap_recovered"]
        lines = [f"<b>{row['label']}</b>: {row['mean']:.2f} %"]
        if several:
            lines.append(f"95 %: {row['low']:.2f} to {row['high']:.2f} %, {row['n']} runs")
        else:
            lines.append("one run")
        if not math.isnan(gap):
            lines.append(f"recovers {gap:.0f} % of the gap between naive student and teacher")
        half = 0 if math.isnan(row["high"]) else row["high"] - row["mean"]
        figure.add_trace(
            go.Scatter(
                x=[row["mean"]], y=[k], mode="markers", showlegend=False, name=row["label"],
                marker={"color": color(role), "size": 14, "symbol": symbol(role), "line": {"color": color(role)}},
                error_x={"array": [half], "color": color(role), "thickness": 2, "width": 5} if several else None,
                hovertemplate="<br>".join(lines) + "<extra></extra>",
            )
        )  # fmt: skip
        count = f" <span style='color:{MUTED}'>n={row['n']}</span>" if several else ""
        text = f"<b>{row['mean']:.1f} %</b>{count}"
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=k, text=text, showarrow=False)
    if (teacher := table[table["role"] == "teacher"]).size:
        mean = float(teacher["mean"].iloc[0])
        figure.add_vline(mean, line={"color": INK, "width": 2, "dash": "dash"})
        text = f"teacher {mean:.1f} %"
        figure.add_annotation(x=mean, y=1, yref="paper", yanchor="bottom", text=text, showarrow=False)
    figure.update_yaxes(
        tickvals=list(range(len(students))), ticktext=[f"<b>{name}</b>" for name in students["label"]],
        range=[len(students) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    figure.update_xaxes(title="test accuracy (%)")
    return finish(
        figure, title or _finding(students, table, values), _caution(table),
        plot=16 + 46 * len(students), margins=(170, 26, 110, 56),
    )  # fmt: skip


def _finding(students: pd.DataFrame, table: pd.DataFrame, values: dict[str, list[float]]) -> str:
    means = dict(zip(table["role"], table["mean"], strict=True))
    if students.empty:
        return f"The teacher reaches {means['teacher']:.1f} %"
    best = students.iloc[0]
    end = f"; teacher {means['teacher']:.1f} %" if "teacher" in means else ""
    if "student" not in means or len(students) == 1:
        return f"{capital(best['label'])} reaches {best['mean']:.1f} %{end}"
    if best["role"] == "student":
        second = students.iloc[1]
        return (
            f"No method beats the naive student: {best['mean']:.1f} %, {second['label']} {second['mean']:.1f} %{end}"
        )
    delta, half = difference(values[best["role"]], values["student"])
    verb = "is the best student" if best["n"] > 1 else "does best in one run"
    lead = f"{capital(best['label'])} {verb}: {best['mean']:.1f} %, {delta:.1f} points"
    if half >= delta:
        return f"{lead} above the naive one, within what the seeds leave open (±{half:.1f}){end}"
    near = [
        row["label"] for _, row in students.iloc[1:].iterrows() if _open(values[best["role"]], values[row["role"]])
    ]
    if near:
        lead = lead.replace(verb, "leads")
        return f"{lead} above the naive student; the seeds cannot tell it from {listed(near)}{end}"
    return f"{lead} above the naive one{end}"


def _open(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether the seeds leave open which mean is the higher; False where there are too few to say."""
    delta, half = difference(a, b)
    return half >= delta


def _caution(table: pd.DataFrame) -> str:
    least, most = int(table["n"].min()), int(table["n"].max())
    if most == 1:
        return "One run per method: another seed may move each by a point or more."
    runs = f"{least}" if least == most else f"{least} to {most}"
    return f"Large marker: mean of {runs} runs (seeds); line: 95 % t-interval; small dots: single runs."
