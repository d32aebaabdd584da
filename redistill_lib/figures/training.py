"""How trainings went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import finish, role_trace
from redistill_lib.results import label

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ["epoch", "validation_accuracy", "train_task"]


def curves(histories: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Validation accuracy and task loss on train, epoch by epoch, one colour per role.

    `histories` are what `Run.history()` gives, by role; an empty one draws nothing yet. A marker shows the epoch that
    was kept, the best on validation. The task loss is comparable between methods, the total is not.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"epoch": [1, 2], "validation_accuracy": [0.4, 0.6], "train_task": [1.9, 1.2]})
    >>> curves({"red": rows}).layout.title.text.partition("<br>")[0]
    '<b>Best on validation: RED 60.0 %</b>'
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, horizontal_spacing=0.11)
    longest, best = 1, []
    for role, history in histories.items():
        rows = history.reindex(columns=_COLUMNS)
        kept = rows.nlargest(1, "validation_accuracy") if len(rows) else rows
        if len(rows):
            longest = max(longest, int(rows["epoch"].max()))
            best.append((kept["validation_accuracy"].item(), label(role)))
        at, reached = ", epoch %{x}<br>", {"x": kept["epoch"], "y": 100 * kept["validation_accuracy"]}
        accuracy = {"x": rows["epoch"], "y": 100 * rows["validation_accuracy"]}
        loss = {"x": rows["epoch"], "y": rows["train_task"], "showlegend": False}
        traces = [
            role_trace(role, at + "validation %{y:.1f} %", mode="lines", **accuracy),
            role_trace(role, at + "kept: %{y:.1f} %", mode="markers", marker_size=11, showlegend=False, **reached),
            role_trace(role, at + "task loss %{y:.3f}", mode="lines", **loss),
        ]
        figure.add_traces(traces, rows=[1, 1, 1], cols=[1, 1, 2])
    figure.update_xaxes(title="epoch", range=[0.5, longest + 0.5], dtick=1 if longest <= 10 else None)
    figure.update_yaxes(title="validation accuracy (%)", row=1, col=1)
    figure.update_yaxes(title="training loss (task, nats)", rangemode="tozero", row=1, col=2)
    told = ", ".join(f"{name} {100 * accuracy:.1f} %" for accuracy, name in sorted(best, reverse=True))
    found = f"Best on validation: {told}" if best else "Waiting for the first epoch"
    note = "Marker: the epoch that is kept, the best on validation. One run each."
    return finish(figure, found, note, plot=280, legend=True)
