"""Feature maps side by side, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from redistill_lib.figures.samples import image_trace
from redistill_lib.figures.theme import GRID, INK, MUTED, PAGE, finish, name_rows, role_trace
from redistill_lib.maps import MapComparison
from redistill_lib.results import capital, label, listed, number

if TYPE_CHECKING:
    import pandas as pd

_CELLS = 36_000  # of all maps of a figure; larger maps are averaged down, so that it stays below 60 KB
_HEAD = 62  # pixels above each panel, for its name
_SCALE = "colour: activation ÷ root mean square of its map (similarity ignores strength); one scale per row"
_FLOOR = "Maps without negative values are alike to begin with: compare students, not single numbers."


def feature_maps(comparisons: MapComparison | Sequence[MapComparison] | Mapping[str, MapComparison]) -> go.Figure:
    """The image, the teacher's map, and the map of each student, on the grid of the image.

    Comparisons with one teacher map share a row: give a tap before and after distillation, and they stand side by
    side. Other taps or images make further rows. A mapping's keys are the students' roles, else each comparison's
    label. Each map is divided by its root mean square, since the similarity (a cosine) disregards strength, and
    coloured on one scale per row.

    >>> from redistill_lib.maps import MapComparison
    >>> m = np.ones((4, 4), np.float32)
    >>> c = MapComparison(np.zeros((8, 8, 1), np.uint8), m, m, "a output", "b output", 1.0, None, 4, 4, 2)
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
    side = max(110, min(250, (PAGE - 88) // columns, 800 // len(rows)))
    high = len(rows) * (side + _HEAD) - _HEAD
    figure = make_subplots(
        len(rows), columns, horizontal_spacing=8 / (side * columns), vertical_spacing=_HEAD / high,
        subplot_titles=[text for row in rows for text in _heads(row, columns)],
    )  # fmt: skip
    budget = max(16, math.isqrt(_CELLS // sum(len(row) + 1 for row in rows)))
    for r, row in enumerate(rows, 1):
        image, levels = row[0].image, _levels([row[0].teacher, *(c.student for c in row)])
        names = [f"teacher, {row[0].teacher_place}", *(f"{_label(c.label)}, {c.student_place}" for c in row)]
        figure.add_trace(image_trace(image, "the image"), row=r, col=1)
        for k, (level, name) in enumerate(zip(levels, names, strict=True), 2):
            figure.add_trace(_heatmap(level, image.shape[:2], name, budget), row=r, col=k)
    figure.update_annotations(font_size=12, font_color=MUTED, align="center")
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain", autorange="reversed")
    figure.for_each_yaxis(lambda axis: axis.update(scaleanchor=axis.anchor))
    bar = {"thickness": 10, "tickvals": [3, 97], "ticktext": ["weak", "strong"], "x": 1.01}
    figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 100, "colorbar": bar})
    note = f"Shown: {comparisons[0].shown}; {_SCALE}"
    if any(c.resized for c in comparisons):
        note += "; similarity of maps of unequal size: after resizing the student's to the teacher's"
    right = max(76, 660 - 12 - side * columns)
    width, margins = 12 + side * columns + right, (12, _HEAD, right, 12)
    return finish(figure, _finding(rows), f"{note}.", plot=high, width=width, margins=margins)


def _rows(comparisons: Sequence[MapComparison]) -> list[list[MapComparison]]:
    """Those of one image and one teacher map together."""
    rows: dict[tuple[object, ...], list[MapComparison]] = {}
    for c in comparisons:
        key = (c.teacher_place, c.student_place, c.teacher.shape, c.teacher.tobytes(), c.image.tobytes())
        rows.setdefault(key, []).append(c)
    return list(rows.values())


def _heads(row: Sequence[MapComparison], columns: int) -> list[str]:
    told: list[tuple[str, NDArray[Any], str]] = [
        ("image", row[0].image, " <br> "),
        ("teacher", row[0].teacher, f"{row[0].teacher_place}<br> "),
    ]
    for c in row:
        place = f"{c.student_place}<br>similarity <b>{number(c.score)}</b>"
        told.append((_label(c.label).partition(",")[0], c.student, place))
    texts = [f'<b style="color:{INK}">{name}</b> {m.shape[0]}×{m.shape[1]}<br>{place}' for name, m, place in told]
    return texts + [""] * (columns - len(texts))


def _levels(maps: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """Each map over its root mean square, in percent of the range that all of them span (1st to 99th percentile)."""
    scaled = [m / (float(np.sqrt(np.mean(np.square(m, dtype=np.float64)))) or 1.0) for m in maps]
    low = min(float(np.percentile(m, 1)) for m in scaled)
    high = max(float(np.percentile(m, 99)) for m in scaled)
    span = high - low or 1.0
    return [np.clip(100 * (m - low) / span, 0, 100).round().astype(np.uint8) for m in scaled]


def _heatmap(level: NDArray[np.uint8], extent: Sequence[int], name: str, budget: int) -> go.Heatmap:
    step = math.ceil(max(level.shape) / budget)
    height, width = (size // step for size in level.shape)
    shown = level[: height * step, : width * step].reshape(height, step, width, step).mean((1, 3))
    dy, dx = extent[0] / height, extent[1] / width
    averaged = f" (shown {height}×{width}, averaged)" if step > 1 else ""
    hover = f"<b>{name}</b>, {level.shape[0]}×{level.shape[1]}{averaged}<br>strength %{{z}} of 100<extra></extra>"
    place = {"x0": dx / 2, "dx": dx, "y0": dy / 2, "dy": dy}
    return go.Heatmap(z=shown.round().astype(np.uint8), coloraxis="coloraxis", hovertemplate=hover, **place)


def _finding(rows: Sequence[Sequence[MapComparison]]) -> str:
    first, every = rows[0][0], [c for row in rows for c in row]
    at = f"At stride ×{first.stride} " if first.stride else ""
    if len(every) == 1:
        t, s = ("×".join(map(str, m.shape)) for m in (first.teacher, first.student))
        who = _label(first.label).partition(",")[0]
        who = who if who.endswith("student") else f"{who} student"
        return capital(f"{at}the {who}'s map has {s} pixels, the teacher's {t}: similarity {number(first.score)}")
    roles = dict.fromkeys(_label(c.label) for c in every)
    means = {role: float(np.mean([c.score for c in every if _label(c.label) == role])) for role in roles}
    what = "similarity to the teacher's map" if len(rows) == 1 else "mean similarity to the teacher's maps"
    return capital(f"{at}{what} is {listed(f'{number(mean)} ({role})' for role, mean in means.items())}")


def _label(role: str | None) -> str:
    return label(role) if role else "student"


def tap_scores(frame: pd.DataFrame) -> go.Figure:
    """What `redistill_lib.maps.score_taps` returns: one row of dots per tap, one colour per student.

    >>> import pandas as pd
    >>> row = {"tap": "a output", "teacher_tap": "b output", "student": "red", "score": 0.9, "low": 0.8, "high": 1.0}
    >>> tap_scores(pd.DataFrame([{**row, "n": 8}])).data[0].name
    'RED'
    """
    places, roles = frame.drop_duplicates("tap"), list(dict.fromkeys(frame["student"]))
    ticks = [f"<b>{t}</b><br>← teacher's {u}" for t, u in zip(places["tap"], places["teacher_tap"], strict=True)]
    order = {tap: k for k, tap in enumerate(places["tap"])}
    hover = (
        " at %{customdata[0]} ← %{customdata[1]}<br>similarity %{x:.3f} (95 %: %{customdata[2]:.3f} to "
        "%{customdata[3]:.3f})<br>%{customdata[4]} images"
    )
    figure = go.Figure()
    for k, role in enumerate(roles):
        part = frame[frame["student"] == role]
        shift = min(0.13, 0.8 / len(roles)) * (k - (len(roles) - 1) / 2)
        dots = role_trace(
            role, hover, x=part["score"], y=part["tap"].map(order) + shift, mode="markers", marker_size=11,
            error_x_array=part["high"] - part["score"], error_x_width=0,
            customdata=part[["tap", "teacher_tap", "low", "high", "n"]],
        )  # fmt: skip
        figure.add_trace(dots)
    name_rows(figure, ticks)
    for k in range(1, len(ticks)):
        figure.add_hline(k - 0.5, line={"width": 1, "color": GRID})
    least = min(0.0, float(frame[["score", "low"]].min().min())) - 0.05
    figure.update_xaxes(range=[least, 1.03], title="cosine similarity to the teacher's map (1 = the same pattern)")
    means = frame.groupby("student", sort=False)["score"].mean().sort_values(ascending=False)
    found = ", ".join(f"{label(str(role))} {number(mean)}" for role, mean in means.items())
    found = f"Mean similarity to the teacher's maps: {found}"
    note = f"Mean over {int(frame['n'].max())} images; lines: 95 % interval over images. {_FLOOR}"
    return finish(figure, found, note, plot=20 + 58 * len(ticks), legend=True, margins=(190, 8, 24, 56))
