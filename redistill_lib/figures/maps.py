"""Feature maps side by side, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.samples import Panel, image_trace, panels
from redistill_lib.figures.theme import GRID, finish, muted, name_rows, role_trace
from redistill_lib.maps import MapComparison
from redistill_lib.results import capital, label, listed, number

_CELLS = 36_000  # of all maps of a figure; larger maps are averaged down, so that it stays below 60 KB
_SCALE = "colour: activation ÷ root mean square of its map (correlation ignores strength); one scale per row"


def feature_maps(comparisons: MapComparison | Sequence[MapComparison] | Mapping[str, MapComparison]) -> go.Figure:
    """The image, the teacher's map, and the map of each student, on the grid of the image.

    Comparisons with one teacher map share a row: give a tap before and after distillation, and they stand side by
    side. Other taps or images make further rows. A mapping's keys are the students' roles, else each comparison's
    label. Each map is divided by its root mean square, since a correlation disregards strength, and
    coloured on one scale per row.

    >>> m = np.ones((4, 4), np.float32)
    >>> c = MapComparison(np.zeros((8, 8, 1), np.uint8), m, m, "a output", "b output", 1.0, 1.0, None, 4, 4, 2)
    >>> len(feature_maps(c).data)
    3
    """
    if isinstance(comparisons, MapComparison):
        comparisons = [comparisons]
    named = comparisons.items() if isinstance(comparisons, Mapping) else [(c.label, c) for c in comparisons]
    told = [(label(role) if role else "student", c) for role, c in named]
    if not told:
        raise ValueError("feature_maps needs at least one comparison")
    groups: dict[tuple[object, ...], list[tuple[str, MapComparison]]] = {}
    for name, c in told:
        key = (c.teacher_place, c.student_place, c.teacher.shape, c.teacher.tobytes(), c.image.tobytes())
        groups.setdefault(key, []).append((name, c))
    budget = max(16, math.isqrt(_CELLS // (len(told) + len(groups))))
    first, rows = told[0][1], []
    extent = first.image.shape[:2]
    for group in groups.values():
        image, teacher, place = group[0][1].image, group[0][1].teacher, group[0][1].teacher_place
        scores = ["", *(f"<br>correlation <b>{number(c.score)}</b>" for _, c in group)]
        places = [("teacher", place), *((name, c.student_place) for name, c in group)]
        levels = _levels([teacher, *(c.student for _, c in group)])
        trace = image_trace(image.transpose(2, 0, 1), "the image", extent=extent)
        row: list[Panel] = [(trace, _head("image", image), "")]
        for (name, place), level, score in zip(places, levels, scores, strict=True):
            trace = _heatmap(level, extent, f"{name}, {place}", budget)
            row.append((trace, _head(name, level, f"<br>{place}{score}"), ""))
        rows.append(row)
    note = f"Shown: {first.shown}{'' if first.channel is None else ', correlation is of the means'}; {_SCALE}"
    if any(c.resized for _, c in told):
        note += "; correlation of maps of unequal size: after resizing the student's to the teacher's"
    cosines = listed(f"{number(c.cosine)} ({name.partition(',')[0]})" for name, c in told[:4])
    note += f". RED's loss sees the cosine, in which the mean counts, with its sign: {cosines}"
    figure = panels(rows, extent, _finding(told, len(rows)), f"{note}.", right=76)
    bar = {
        "thickness": 10,
        "tickvals": [3, 97],
        "ticktext": ["weak", "strong"],
        "x": figure.layout.xaxis.domain[1] + 0.01,
    }
    return figure.update_layout(coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 100, "colorbar": bar})


def _head(name: str, shown: NDArray[Any], text: str = "") -> str:
    return f"<b>{name.partition(',')[0]}</b><br>{muted(f'{shown.shape[0]}×{shown.shape[1]}{text}')}"


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


def _finding(told: Sequence[tuple[str, MapComparison]], rows: int) -> str:
    who, first = told[0]
    at = f"At stride ×{first.stride} " if first.stride else ""
    if len(told) == 1:
        t, s = ("×".join(map(str, m.shape)) for m in (first.teacher, first.student))
        who = who.partition(",")[0]
        who = who if who.endswith("student") else f"{who} student"
        return capital(f"{at}the {who}'s map has {s} pixels, the teacher's {t}: correlation {number(first.score)}")
    scores = pd.Series([c.score for _, c in told], index=[name for name, _ in told])
    what = "correlation with the teacher's map" if rows == 1 else "mean correlation with the teacher's maps"
    means = scores.groupby(level=0, sort=False).mean()
    return capital(f"{at}{what} is {listed(f'{number(mean)} ({name})' for name, mean in means.items())}")


def tap_scores(frame: pd.DataFrame) -> go.Figure:
    """What `redistill_lib.maps.score_taps` returns: one row of dots per tap, one colour per student.

    >>> row = {"tap": "a output", "teacher_tap": "b output", "student": "red", "score": 0.9, "low": 0.8, "high": 1.0}
    >>> tap_scores(pd.DataFrame([{**row, "n": 8}])).data[0].name
    'RED'
    """
    places, roles = frame.drop_duplicates("tap"), list(dict.fromkeys(frame["student"]))
    ticks = [f"<b>{t}</b><br>← teacher's {u}" for t, u in zip(places["tap"], places["teacher_tap"], strict=True)]
    order = {tap: k for k, tap in enumerate(places["tap"])}
    hover = ": %{x:.3f} (95 %: %{customdata[0]:.3f} to %{customdata[1]:.3f})"
    figure = go.Figure()
    for k, role in enumerate(roles):
        part = frame[frame["student"] == role]
        shift = min(0.13, 0.8 / len(roles)) * (k - (len(roles) - 1) / 2)
        dots = {"x": part["score"], "y": part["tap"].map(order) + shift, "mode": "markers", "marker_size": 11}
        dots |= {"error_x_array": part["high"] - part["score"], "error_x_width": 0}
        figure.add_trace(role_trace(role, hover, **dots, customdata=part[["low", "high"]]))
    name_rows(figure, ticks)
    figure.update_yaxes(minor={"tickvals": [k + 0.5 for k in order.values()], "showgrid": True, "gridcolor": GRID})
    figure.update_xaxes(rangemode="tozero", title="correlation with the teacher's map (1 = the same pattern)")
    means = frame.groupby("student", sort=False)["score"].mean().sort_values(ascending=False)
    told = ", ".join(f"{label(str(role))} {number(mean)}" for role, mean in means.items())
    found = f"Mean correlation with the teacher's maps: {told}"
    note = f"Mean over {int(frame['n'].max())} images; lines: 95 % interval over images."
    return finish(figure, found, note, plot=20 + 58 * len(ticks), legend=True, margins=(190, 8, 24, 56))
