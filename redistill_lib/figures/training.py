"""How trainings went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import color, finish, label, role_key, rows_of_legend, symbol

if TYPE_CHECKING:
    import pandas as pd


def curves(histories: Mapping[str, pd.DataFrame], *, title: str | None = None) -> go.Figure:
    """Validation accuracy and task loss on train, epoch by epoch, one colour per role.

    `histories` are what `Run.history()` gives, by role; an empty one draws nothing yet. A marker shows the epoch that
    was kept, the best on validation. The task loss is comparable between methods, the total is not.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"epoch": [1, 2], "validation_accuracy": [0.4, 0.6], "train_task": [1.9, 1.2]})
    >>> curves({"red": rows}).layout.title.text.partition("<br>")[0]
    '<b>RED reaches 60.0 % on validation, at epoch 2 of 2</b>'
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    for role, history in histories.items():
        name, line = label(role), {"color": color(role), "width": 2.5}
        empty = history.empty
        epochs = [] if empty else history["epoch"]
        accuracy = [] if empty else 100 * history["validation_accuracy"]
        loss = [] if empty else history["train_task"]
        best = [] if empty else [int(history["validation_accuracy"].idxmax())]
        hover = f"<b>{name}</b>, epoch %{{x}}<br>"
        style = {"mode": "lines", "name": name, "line": line, "legendgroup": name}
        figure.add_trace(
            go.Scatter(x=epochs, y=accuracy, hovertemplate=hover + "validation %{y:.1f} %<extra></extra>", **style),
            row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[history["epoch"].loc[k] for k in best],
                y=[100 * history["validation_accuracy"].loc[k] for k in best],
                mode="markers", showlegend=False, legendgroup=name, name=name,
                marker={"color": color(role), "size": 11, "symbol": symbol(role), "line": {"color": "white"}},
                hovertemplate=hover + "kept: best on validation, %{y:.1f} %<extra></extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=epochs, y=loss, showlegend=False, hovertemplate=hover + "task loss %{y:.3f}<extra></extra>", **style
            ),
            row=1, col=2,
        )  # fmt: skip
    longest = max((_last(history) for history in histories.values() if not history.empty), default=1)
    figure.update_xaxes(title="epoch", range=[0.5, longest + 0.5], dtick=1 if longest <= 10 else None)
    figure.update_yaxes(title="validation accuracy (%)", row=1, col=1)
    figure.update_yaxes(title="training loss (task, nats)", rangemode="tozero", row=1, col=2)
    note = "Marker: the epoch that is kept, the best on validation."
    legend = rows_of_legend(map(label, histories))
    return finish(figure, title or _finding(histories), note, plot=280, legend=legend)


def _finding(histories: Mapping[str, pd.DataFrame]) -> str:
    best = {role: h.loc[h["validation_accuracy"].idxmax()] for role, h in histories.items() if not h.empty}
    if not best:
        return "Waiting for the first epoch"
    percent = {role: f"{100 * row['validation_accuracy']:.1f} %" for role, row in best.items()}
    students = {role: row for role, row in best.items() if role != "teacher"} or best
    lead = max(students, key=lambda role: float(students[role]["validation_accuracy"]))
    name = label(lead)[0].upper() + label(lead)[1:]
    reach = f"{name} reaches {percent[lead]} on validation"
    if len(best) == 1:
        return f"{reach}, at epoch {int(best[lead]['epoch'])} of {_last(histories[lead])}"
    known = [role for role in best if role != lead and role_key(role) in ("student", "teacher")]
    ends = [f"{label(role)} {percent[role]}" for role in known]
    if len(students) == 1:
        return "; ".join([reach, *ends])
    return "; ".join([f"{name} leads the students on validation with {percent[lead]}", *ends])


def _last(history: pd.DataFrame) -> int:
    return int(history["epoch"].max())
