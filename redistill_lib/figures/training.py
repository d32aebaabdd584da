"""How trainings went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import color, finish, rows_of_legend, symbol
from redistill_lib.results import label

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["epoch", "validation_accuracy", "train_task"]


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
        rows = history.reindex(columns=COLUMNS)
        kept = rows.nlargest(1, "validation_accuracy") if len(rows) else rows
        if len(rows):
            longest = max(longest, int(rows["epoch"].max()))
            best.append((kept["validation_accuracy"].item(), label(role)))
        name, hover = label(role), f"<b>{label(role)}</b>, epoch %{{x}}<br>"
        shared = {"name": name, "legendgroup": name}
        line = {"mode": "lines", "line": {"color": color(role), "width": 2.5}} | shared
        marker = {"color": color(role), "size": 11, "symbol": symbol(role), "line": {"color": "white"}}
        figure.add_scatter(
            x=rows["epoch"], y=100 * rows["validation_accuracy"], row=1, col=1,
            hovertemplate=hover + "validation %{y:.1f} %<extra></extra>", **line,
        )  # fmt: skip
        figure.add_scatter(
            x=kept["epoch"], y=100 * kept["validation_accuracy"], row=1, col=1, mode="markers", showlegend=False,
            marker=marker, hovertemplate=hover + "kept: best on validation, %{y:.1f} %<extra></extra>", **shared,
        )  # fmt: skip
        figure.add_scatter(
            x=rows["epoch"], y=rows["train_task"], row=1, col=2, showlegend=False,
            hovertemplate=hover + "task loss %{y:.3f}<extra></extra>", **line,
        )  # fmt: skip
    figure.update_xaxes(title="epoch", range=[0.5, longest + 0.5], dtick=1 if longest <= 10 else None)
    figure.update_yaxes(title="validation accuracy (%)", row=1, col=1)
    figure.update_yaxes(title="training loss (task, nats)", rangemode="tozero", row=1, col=2)
    reached = ", ".join(f"{name} {100 * accuracy:.1f} %" for accuracy, name in sorted(best, reverse=True))
    found = f"Best on validation: {reached}" if best else "Waiting for the first epoch"
    note = "Marker: the epoch that is kept, the best on validation. One run each."
    return finish(figure, found, note, plot=280, legend=rows_of_legend(map(label, histories)))
