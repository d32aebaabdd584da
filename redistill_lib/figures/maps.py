"""Feature maps side by side, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.samples import image_trace
from redistill_lib.figures.theme import GRID, MUTED, WIDTH, color, finish, rows_of_legend, symbol
from redistill_lib.maps import MapComparison
from redistill_lib.results import capital, label, listed, number

if TYPE_CHECKING:
    import pandas as pd

CELLS = 36_000  # of all maps of a figure; larger maps are averaged down, so that it stays below 60 KB
HEAD = 62  # pixels above each panel, for its name
SCALE = "colour: activation ÷ root mean square of its map (similarity ignores strength); one scale per row"
FLOOR = "Maps without negative values are alike to begin with: compare students, not single numbers."


def feature_maps(comparisons: MapComparison | Sequence[MapComparison] | Mapping[str, MapComparison]) -> go.Figure:
    """The image, the teacher's map, and the map of each student, on the grid of the image.

    Comparisons with one teacher map share a row: give a tap before and after distillation, and they stand side by
    side. Other taps or images make further rows. A mapping's keys are the students' roles, else each comparison's
    label. Each map is divided by its root mean square, since the similarity (a cosine) disregards strength, and
    coloured on one scale per row.

    >>> from redistill_lib.maps import MapComparison
    >>> m = np.ones((4, 4), np.float32)
    >>> c = MapComparison(np.zeros((8, 8, 1), np.uint8), m, m, "a output", "b output", 1.0, None, 4, 4, "T", "S", 2)
    >>> len(feature_maps(c).data)
    3
    """
    if isinstance(comparisons, MapComparison):
        comparisons = [comparisons]
    elif isinstance(comparisons, Mapping):
        comparisons = [replace(c, label=role) for role, c in comparisons.items()]
    if not comparisons:
        raise ValueError("feature_maps needs at least one comparison")
    rows = _rows(comparisons)
    columns = 2 + max(len(row) for row in rows)
    side = max(110, min(250, (WIDTH - 88) // columns, 800 // len(rows)))
    narrow = side < 170
    figure = _panels(len(rows), columns, side)
    budget = max(16, math.isqrt(CELLS // sum(len(row) + 1 for row in rows)))
    for r, row in enumerate(rows):
        first = row[0]
        maps = [("teacher", first.teacher), *((c.label, c.student) for c in row)]
        levels = _levels([values for _, values in maps])
        extent = (first.image.shape[0], first.image.shape[1])
        figure.add_trace(image_trace(first.image, extent), row=r + 1, col=1)
        figure.data[-1].update(hovertemplate="the image: row %{y:.0f}, column %{x:.0f}<extra></extra>")
        _head(figure, r, 0, columns, "image", f"{extent[0]}×{extent[1]} pixels")
        for k, ((role, values), level) in enumerate(zip(maps, levels, strict=True)):
            place = row[k - 1].student_place if k else first.teacher_place
            figure.add_trace(_heatmap(level, extent, f"{_label(role)}, {place}", budget), row=r + 1, col=k + 2)
            size, score = f"{values.shape[0]}×{values.shape[1]}", f"similarity <b>{number(row[k - 1].score)}</b>"
            detail = size if not k else score if narrow else f"{size} · {score}"
            name = _label(role).partition(",")[0] if narrow else _label(role)
            _head(figure, r, k + 1, columns, name, f"{place}<br>{detail}")
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(visible=False, constrain="domain")
    figure.update_layout(
        coloraxis={
            "colorscale": "Viridis", "cmin": 0, "cmax": 100,
            "colorbar": {
                "thickness": 10, "lenmode": "pixels", "len": side, "y": 1, "yanchor": "top", "ypad": 0, "x": 1.01,
                "tickvals": [3, 97], "ticktext": ["weak", "strong"],
            },
        }
    )  # fmt: skip
    notes = [f"Shown: {comparisons[0].shown}", SCALE]
    if any(c.resized for c in comparisons):
        notes.append("similarity of maps of unequal size: after resizing the student's to the teacher's")
    right = max(76, 660 - 12 - side * columns)
    return finish(
        figure, _finding(rows), "; ".join(notes) + ".",
        plot=len(rows) * (side + HEAD) - HEAD, width=12 + side * columns + right, margins=(12, HEAD, right, 12),
    )  # fmt: skip


def _rows(comparisons: Sequence[MapComparison]) -> list[list[MapComparison]]:
    rows: list[list[MapComparison]] = []
    for c in comparisons:
        for row in rows:
            same = (row[0].teacher_place, row[0].student_place) == (c.teacher_place, c.student_place)
            if same and np.array_equal(row[0].teacher, c.teacher) and np.array_equal(row[0].image, c.image):
                row.append(c)
                break
        else:
            rows.append([c])
    return rows


def _panels(rows: int, columns: int, side: int) -> go.Figure:
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows, columns, horizontal_spacing=8 / (side * columns), vertical_spacing=HEAD / (rows * (side + HEAD) - HEAD)
    )
    for index in range(rows * columns):
        suffix = "" if index == 0 else str(index + 1)
        figure.update_layout({f"yaxis{suffix}": {"scaleanchor": f"x{suffix}", "autorange": "reversed"}})
    return figure


def _head(figure: go.Figure, row: int, column: int, columns: int, name: str, detail: str) -> None:
    axis = row * columns + column + 1
    suffix = "" if axis == 1 else str(axis)
    text = f'<b>{name}</b><br><span style="color:{MUTED};font-size:12px">{detail}</span>'
    figure.add_annotation(
        text=text, x=0, xref=f"x{suffix} domain", xanchor="left", y=1, yref=f"y{suffix} domain", yanchor="bottom",
        align="left", showarrow=False,
    )  # fmt: skip


def _levels(maps: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """Each map over its root mean square, in percent of the range that all of them span (1st to 99th percentile)."""
    scaled = [m / (float(np.sqrt(np.mean(np.square(m, dtype=np.float64)))) or 1.0) for m in maps]
    low = min(float(np.percentile(m, 1)) for m in scaled)
    high = max(float(np.percentile(m, 99)) for m in scaled)
    span = high - low or 1.0
    return [np.clip(100 * (m - low) / span, 0, 100).round().astype(np.uint8) for m in scaled]


def _heatmap(level: NDArray[np.uint8], extent: tuple[int, int], name: str, budget: int) -> go.Heatmap:
    step = math.ceil(max(level.shape) / budget)
    height, width = (size // step for size in level.shape)
    shown = level[: height * step, : width * step].reshape(height, step, width, step).mean((1, 3))
    dy, dx = extent[0] / height, extent[1] / width
    averaged = f" (shown {height}×{width}, averaged)" if step > 1 else ""
    size = f"{level.shape[0]}×{level.shape[1]}{averaged}"
    hover = f"<b>{name}</b>, {size}<br>strength %{{z}} of 100<extra></extra>"
    return go.Heatmap(
        z=shown.round().astype(np.uint8), x0=dx / 2, dx=dx, y0=dy / 2, dy=dy, name=name, coloraxis="coloraxis",
        hovertemplate=hover,
    )  # fmt: skip


def _finding(rows: Sequence[Sequence[MapComparison]]) -> str:
    first, every = rows[0][0], [c for row in rows for c in row]
    at = f"At stride ×{first.stride} " if first.stride else ""
    if len(every) == 1:
        t, s = ("×".join(map(str, m.shape)) for m in (first.teacher, first.student))
        text = (
            f"{at}the {_who(first.label)}'s map has {s} pixels, the teacher's {t}: similarity {number(first.score)}"
        )
        return capital(text)
    means = {
        role: np.mean([c.score for c in every if c.label == role]) for role in dict.fromkeys(c.label for c in every)
    }
    parts = [f"{number(float(mean))} ({_label(role)})" for role, mean in means.items()]
    what = "similarity to the teacher's map" if len(rows) == 1 else "mean similarity to the teacher's maps"
    return capital(f"{at}{what} is {listed(parts)}")


def _label(role: str | None) -> str:
    return label(role) if role else "student"


def _who(role: str | None) -> str:
    name = _label(role).partition(",")[0]
    return name if name.endswith("student") else f"{name} student"


def tap_scores(frame: pd.DataFrame) -> go.Figure:
    """What `redistill_lib.maps.tap_scores` returns: one row of dots per tap, one colour per student.

    >>> import pandas as pd
    >>> row = {"tap": "a output", "teacher_tap": "b output", "student": "red", "score": 0.9, "low": 0.8, "high": 1.0}
    >>> tap_scores(pd.DataFrame([{**row, "n": 8}])).data[0].name
    'RED'
    """
    places = frame.drop_duplicates("tap")
    ticks = [f"<b>{t}</b><br>← teacher's {u}" for t, u in zip(places["tap"], places["teacher_tap"], strict=True)]
    order = {tap: k for k, tap in enumerate(places["tap"])}
    roles = list(dict.fromkeys(frame["student"]))
    figure = go.Figure()
    for k, role in enumerate(roles):
        part = frame[frame["student"] == role]
        shift = min(0.13, 0.8 / len(roles)) * (k - (len(roles) - 1) / 2)
        half = (part["high"] - part["score"]).fillna(0)
        detail = np.stack([part["tap"], part["teacher_tap"], part["low"], part["high"], part["n"]], axis=-1)
        figure.add_scatter(
            x=part["score"], y=[order[tap] + shift for tap in part["tap"]], name=label(role), mode="markers",
            marker={"color": color(role), "size": 11, "symbol": symbol(role), "line": {"width": 1.5}},
            error_x={"array": half, "color": color(role), "thickness": 1.5, "width": 0}, customdata=detail,
            hovertemplate=f"<b>{label(role)}</b> at %{{customdata[0]}} ← %{{customdata[1]}}<br>similarity "
            "%{x:.3f} (95 %: %{customdata[2]:.3f} to %{customdata[3]:.3f})<br>%{customdata[4]} images"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.5, -0.5], showgrid=False
    )
    for k in range(1, len(ticks)):
        figure.add_hline(k - 0.5, line={"width": 1, "color": GRID})
    least = min(0.0, float(frame[["score", "low"]].min().min())) - 0.05
    figure.update_xaxes(range=[least, 1.03], title="cosine similarity to the teacher's map (1 = the same pattern)")
    means = frame.groupby("student", sort=False)["score"].mean().sort_values(ascending=False)
    found = ", ".join(f"{label(str(role))} {number(mean)}" for role, mean in means.items())
    note = f"Mean over {int(frame['n'].max())} images; lines: 95 % interval over images. {FLOOR}"
    return finish(
        figure, f"Mean similarity to the teacher's maps: {found}", note,
        plot=20 + 58 * len(ticks), legend=rows_of_legend(map(label, roles)), margins=(190, 8, 24, 56),
    )  # fmt: skip
