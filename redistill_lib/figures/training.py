"""How trainings went, and which method makes the best student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from redistill_lib.figures.theme import INK, finish, muted, name_rows, role_trace
from redistill_lib.results import label, summarize

_TICKS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1)


def accuracies(frame: pd.DataFrame) -> go.Figure:
    """Test accuracy per role: a dot for the mean, a line for its 95 % t-interval, faint dots for the single runs.

    `frame` as for `redistill_lib.results.summarize`. The teacher is a reference line. The title says who won, by how
    much, and whether the seeds can tell.

    >>> runs = pd.DataFrame({"role": ["teacher", "student", "red"], "test_accuracy": [0.9, 0.8, 0.85]})
    >>> from redistill_lib.figures import headline
    >>> headline(accuracies(runs))
    'RED does best in one run: 85.0 %, 5.0 points above the naive student; teacher 90.0 %'
    """
    summary = summarize(frame)
    students, figure = summary.students, go.Figure()
    note = "One run per method: another seed may move each by a point or more."
    for k, row in students.iterrows():
        role, hover = row["role"], f": {row['mean']:.2f} %<br>n={row['n']}"
        if row["n"] > 1:
            note = "Large marker: mean over runs (seeds); line: 95 % t-interval; small dots: single runs."
            hover += f", 95 %: {row['low']:.2f} to {row['high']:.2f} %"
            dots = {"x": summary.runs[role], "y": [k] * row["n"], "marker_size": 8}
            figure.add_trace(role_trace(role, ", one run: %{x:.1f} %", mode="markers", opacity=0.35, **dots))
        if not math.isnan(row["gap_recovered"]):
            hover += f"<br>recovers {row['gap_recovered']:.0f} % of the gap between naive student and teacher"
        mean = {"x": [row["mean"]], "y": [k], "marker_size": 14, "error_x_array": [row["high"] - row["mean"]]}
        figure.add_trace(role_trace(role, hover, mode="markers", **mean))
        text = f"<b>{row['mean']:.1f} %</b> {muted('n=' + str(row['n']))}"
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=k, text=text)
    if not math.isnan(summary.teacher):
        line, text = {"color": INK, "width": 2, "dash": "dash"}, f"teacher {summary.teacher:.1f} %"
        figure.add_vline(summary.teacher, line=line, annotation_text=text, annotation_position="top")
    name_rows(figure, [f"<b>{name}</b>" for name in students["label"]])
    figure.update_xaxes(title="test accuracy (%)")
    return finish(figure, summary.headline(), note, plot=16 + 46 * len(students), margins=(170, 26, 110, 56))


def confusions(labels: Sequence[int], answers: Sequence[int], classes: Sequence[str]) -> go.Figure:
    """Which classes a classifier takes for which: a row per class, a column per answer, in % of the row.

    Right answers stay empty, so that the others are seen; the title names the commonest mistake.

    >>> from redistill_lib.figures import headline
    >>> headline(confusions([0, 0, 1, 1], [0, 1, 1, 1], ["cat", "dog"]))
    '1 of 4 images are answered wrongly; most often cat is taken for dog: 1 of 2'
    """
    from sklearn.metrics import confusion_matrix  # here, as it is slow to import

    counts = confusion_matrix(labels, answers, labels=range(len(classes)))
    totals, wrong = counts.sum(1, keepdims=True), counts - np.diag(np.diag(counts))
    text = f"{wrong.sum():,} of {counts.sum():,} images are answered wrongly"
    if wrong.any():
        row, column = np.unravel_index(wrong.argmax(), wrong.shape)
        text += (
            f"; most often {classes[row]} is taken for {classes[column]}: {wrong[row, column]} of {totals[row, 0]}"
        )
    shown = np.where(wrong > 0, 100 * wrong / np.maximum(totals, 1), np.nan)
    names = [escape(name) for name in classes]
    hover = "<b>%{y}</b> is taken for <b>%{x}</b>:<br>%{customdata} images, %{z:.1f} %<extra></extra>"
    cells = {"x": names, "y": names, "z": shown, "customdata": wrong, "hovertemplate": hover, "xgap": 1, "ygap": 1}
    if len(names) <= 16:
        cells |= {"text": np.where(wrong > 0, wrong.astype(str), ""), "texttemplate": "%{text}"}
    figure = go.Figure(go.Heatmap(**cells, colorscale="Oranges", zmin=0, colorbar={"title": "% of the class"}))
    figure.update_xaxes(title="the answer", type="category", showgrid=False)
    figure.update_yaxes(title="the class", type="category", autorange="reversed", showgrid=False)
    return finish(figure, escape(text, quote=False), plot=420, margins=(90, 8, 24, 56))


def curves(histories: Mapping[str, pd.DataFrame], epochs: int | None = None) -> go.Figure:
    """Validation accuracy and task loss on train, epoch by epoch, one colour per role.

    `histories` are what `Run.history()` gives, by role; an empty one draws nothing yet. A marker shows the epoch that
    was kept, the best on validation. The task loss is comparable between methods, the total is not. While trainings
    go on, `epochs` says how many there will be, so that the axes stand still.

    >>> rows = pd.DataFrame({"epoch": [1, 2], "validation_accuracy": [0.4, 0.6], "train_task": [1.9, 1.2]})
    >>> from redistill_lib.figures import headline
    >>> headline(curves({"red": rows}))
    'Best on validation: RED 60.0 %'
    """
    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    longest, best, at = 1, [], ", epoch %{x}<br>"
    for role, history in histories.items():
        rows = history.reindex(columns=["epoch", "validation_accuracy", "train_task"])
        x, accuracy = rows["epoch"], 100 * rows["validation_accuracy"]
        kept = accuracy[accuracy == accuracy.max()].head(1)
        longest = max([longest, *x])
        best += [(value, label(role)) for value in kept]
        mark = {"x": x[kept.index], "y": kept, "mode": "markers", "marker_size": 11, "showlegend": False}
        traces = [
            role_trace(role, at + "validation %{y:.1f} %", x=x, y=accuracy, mode="lines"),
            role_trace(role, at + "kept: %{y:.1f} %", **mark),
            role_trace(role, at + "task loss %{y:.3f}", x=x, y=rows["train_task"], mode="lines", showlegend=False),
        ]
        figure.add_traces(traces, rows=[1, 1, 1], cols=[1, 1, 2])
    longest = max(longest, epochs or 1)
    figure.update_xaxes(title="epoch", range=[0.5, longest + 0.5], dtick=1 if longest <= 10 else None)
    figure.update_yaxes(title="validation accuracy (%)", range=[0, 100] if epochs else None, row=1, col=1)
    figure.update_yaxes(title="training loss (task, nats)", rangemode="tozero", row=1, col=2)
    told = ", ".join(f"{name} {value:.1f} %" for value, name in sorted(best, reverse=True))
    found = f"Best on validation: {told}" if best else "Waiting for the first epoch"
    note = "Marker: the epoch that is kept, the best on validation. One run each."
    return finish(figure, found, note, plot=280, legend=True)


def denoising_curves(histories: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Validation loss of the averaged weights (mean squared error of the noise) over steps, one colour per role.

    `histories` are what `Run.history()` gives of diffusion runs, by role. The loss is that of
    `redistill_lib.diffusion.denoising_loss`, the same task for teacher and students; its scale is logarithmic.
    Raises ValueError for no history at all.

    >>> rows = pd.DataFrame({"step": [100, 200], "validation_loss": [0.2, 0.1]})
    >>> from redistill_lib.figures import headline
    >>> headline(denoising_curves({"teacher": rows, "student": rows + 0.02}))
    'Validation loss at the end: teacher 0.1000, naive student 0.1200'
    """
    if not histories:
        raise ValueError("there is no history to show")
    figure, lasts = go.Figure(), []
    for role, history in histories.items():
        losses = {"x": history["step"], "y": history["validation_loss"], "mode": "lines+markers"}
        figure.add_trace(role_trace(role, ", step %{x}<br>validation loss %{y:.4f}", **losses))
        lasts.append(f"{label(role)} {history['validation_loss'].iloc[-1]:.4f}")
    figure.update_xaxes(title="training steps", rangemode="tozero")
    figure.update_yaxes(title="validation loss (MSE of the noise)", type="log", tickvals=_TICKS)
    note = "Averaged weights; noise and time steps are the same in every reading. Logarithmic scale; one run each."
    return finish(figure, f"Validation loss at the end: {', '.join(lasts)}", note, plot=280, legend=True)
