"""Two things that a method is made of, apart and together: what is each of them worth?"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go

from redistill_lib.comparison import Comparison
from redistill_lib.figures.comparison import in_points
from redistill_lib.figures.theme import GRID, MUTED, finish, look
from redistill_lib.results import listed

_DASHES, _STEP = ("dot", "solid", "dash"), 0.09


def factorial(result: Comparison, arms: Mapping[str, Mapping[str, str]]) -> go.Figure:
    """Test accuracy of arms that combine two things: a line for each row of `arms`, along its columns.

    `arms` names one arm for each row and column, as ``{"no blocks": {"no loss": "naive", "KD": "KD"}, "blocks": …}``;
    all rows have the same columns. The title says what the last row is worth beside the first, and what each column
    is worth beside the first one, over all others, in pairs of one teacher and one test image. Colour and mark are
    the method's. ValueError where a row lacks a column.
    """
    names = [*arms]
    first = arms[names[0]]
    for name, row in arms.items():
        if {*row} != {*first}:
            raise ValueError(f"{name} needs the columns {listed(first)}, not {listed(row)}")
    columns, figure = [*first], go.Figure()
    for k, (name, row) in enumerate(arms.items()):
        reached = {column: result.accuracy(row[column]) for column in columns}
        places = [x + _STEP * (k - (len(arms) - 1) / 2) for x in range(len(columns))]
        line = {"color": MUTED, "width": 2, "dash": _DASHES[k % len(_DASHES)]}
        values = [reached[column].value for column in columns]
        figure.add_scatter(x=places, y=values, mode="lines", line=line, name=escape(name), hoverinfo="skip")
        for x, column in zip(places, columns, strict=True):
            arm, found = row[column], reached[column]
            tone, symbol = look(result.methods(arm) or "student")
            spread = {"array": [found.half], "color": tone, "thickness": 1.5, "width": 4}
            told = f"<b>{escape(arm)}</b>: {found.value:.1f} %, 95 %: {found.low:.1f} to {found.high:.1f} %"
            figure.add_scatter(
                x=[x], y=[found.value], mode="markers", marker={"color": tone, "symbol": symbol, "size": 13},
                error_y=spread, hovertemplate=told + "<extra></extra>", showlegend=False,
            )  # fmt: skip
        end = {"x": places[-1], "xshift": 16, "xanchor": "left", "showarrow": False}
        figure.add_annotation(**end, y=values[-1], text=f"<b>{escape(name)}</b>")
    rows = result.difference([*arms[names[-1]].values()], [*first.values()])
    worth = [f"{escape(names[-1])} {in_points(rows.value, rows.half)}"]
    for column in columns[1:]:
        gain = result.difference([row[column] for row in arms.values()], [row[columns[0]] for row in arms.values()])
        worth.append(f"{escape(column)} {in_points(gain.value, gain.half)}")
    figure.update_xaxes(tickvals=[*range(len(columns))], ticktext=[f"<b>{escape(column)}</b>" for column in columns])
    figure.update_xaxes(range=[-0.4, len(columns) - 0.3], showgrid=False, linecolor=GRID)
    figure.update_yaxes(title="test accuracy (%)")
    title = f"What each is worth in {result.budget}, in points: {', '.join(worth)}"
    note = f"Data: {escape(result.name)}. Each beside “{escape(names[0])}” or “{escape(columns[0])}”, over all others"
    note += f"; {result.seeds} seeds, in pairs; lines and ±: 95 % interval for other seeds and other test images."
    return finish(figure, title, note, plot=320, margins=(64, 8, 150, 40))
