"""Which method makes the best student, and by how much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import INK, MUTED, color, faint, finish, symbol
from redistill_lib.results import summarize

if TYPE_CHECKING:
    import pandas as pd


def accuracies(frame: pd.DataFrame) -> go.Figure:
    """Test accuracy per role: a dot for the mean, a line for its 95 % t-interval, faint dots for the single runs.

    `frame` as for `redistill_lib.results.summarize`. The teacher is a reference line. The title says who won, by how
    much, and whether the seeds can tell.

    >>> import pandas as pd
    >>> runs = pd.DataFrame({"role": ["teacher", "student", "red"], "test_accuracy": [0.9, 0.8, 0.85]})
    >>> accuracies(runs).layout.title.text.partition("<br>")[0]
    '<b>RED does best in one run: 85.0 %, 5.0 points above the naive student; teacher 90.0 %</b>'
    """
    summary = summarize(frame)
    students, figure = summary.students, go.Figure()
    for k, row in students.iterrows():
        role, several = row["role"], row["n"] > 1
        tone, lines, count = color(role), [f"<b>{row['label']}</b>: {row['mean']:.2f} %", "one run"], ""
        if several:
            figure.add_scatter(
                x=summary.runs[role], y=[k] * row["n"], mode="markers", showlegend=False, name=row["label"],
                marker={"color": faint(tone), "size": 8},
                hovertemplate=f"<b>{row['label']}</b>, one run: %{{x:.1f}} %<extra></extra>",
            )  # fmt: skip
            lines[1] = f"95 %: {row['low']:.2f} to {row['high']:.2f} %, {row['n']} runs"
            count = f" <span style='color:{MUTED}'>n={row['n']}</span>"
        if not math.isnan(row["gap_recovered"]):
            lines.append(f"recovers {row['gap_recovered']:.0f} % of the gap between naive student and teacher")
        half = row["high"] - row["mean"]
        figure.add_scatter(
            x=[row["mean"]], y=[k], mode="markers", showlegend=False, name=row["label"],
            marker={"color": tone, "size": 14, "symbol": symbol(role), "line": {"color": tone}},
            error_x={"array": [half], "color": tone, "thickness": 2, "width": 5} if several else None,
            hovertemplate="<br>".join(lines) + "<extra></extra>",
        )  # fmt: skip
        text = f"<b>{row['mean']:.1f} %</b>{count}"
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=k, text=text, showarrow=False)
    if not math.isnan(summary.teacher):
        text = f"teacher {summary.teacher:.1f} %"
        figure.add_vline(summary.teacher, line={"color": INK, "width": 2, "dash": "dash"})
        figure.add_annotation(x=summary.teacher, y=1, yref="paper", yanchor="bottom", text=text, showarrow=False)
    figure.update_yaxes(
        tickvals=list(range(len(students))), ticktext=[f"<b>{name}</b>" for name in students["label"]],
        range=[len(students) - 0.5, -0.5], showgrid=False,
    )  # fmt: skip
    figure.update_xaxes(title="test accuracy (%)")
    note = "Large marker: mean over runs (seeds); line: 95 % t-interval; small dots: single runs."
    if summary.table["n"].max() == 1:
        note = "One run per method: another seed may move each by a point or more."
    plot = 16 + 46 * len(students)
    return finish(figure, summary.headline(), note, plot=plot, margins=(170, 26, 110, 56))
