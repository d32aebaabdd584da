"""Which method makes the best student, and by how much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import INK, MUTED, color, faint, finish, name_rows, role_trace
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
    note = "One run per method: another seed may move each by a point or more."
    for k, row in students.iterrows():
        role, hover = row["role"], f": {row['mean']:.2f} %<br>n={row['n']}"
        if row["n"] > 1:
            note = "Large marker: mean over runs (seeds); line: 95 % t-interval; small dots: single runs."
            hover += f", 95 %: {row['low']:.2f} to {row['high']:.2f} %"
            single = {
                "x": summary.runs[role],
                "y": [k] * row["n"],
                "marker": {"color": faint(color(role)), "size": 8},
            }
            figure.add_trace(role_trace(role, ", one run: %{x:.1f} %", mode="markers", **single))
        if not math.isnan(row["gap_recovered"]):
            hover += f"<br>recovers {row['gap_recovered']:.0f} % of the gap between naive student and teacher"
        mean = {"x": [row["mean"]], "y": [k], "marker_size": 14, "error_x_array": [row["high"] - row["mean"]]}
        figure.add_trace(role_trace(role, hover, mode="markers", **mean))
        text = f"<b>{row['mean']:.1f} %</b> <span style='color:{MUTED}'>n={row['n']}</span>"
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=k, text=text, showarrow=False)
    if not math.isnan(summary.teacher):
        line, text = {"color": INK, "width": 2, "dash": "dash"}, f"teacher {summary.teacher:.1f} %"
        figure.add_vline(summary.teacher, line=line, annotation_text=text, annotation_position="top")
    name_rows(figure, [f"<b>{name}</b>" for name in students["label"]])
    figure.update_xaxes(title="test accuracy (%)")
    return finish(figure, summary.headline(), note, plot=16 + 46 * len(students), margins=(170, 26, 110, 56))
