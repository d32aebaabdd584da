"""How good the generated images are for the memory they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from redistill_lib.figures.theme import INK, MUTED, color, faint, finish, rows_of_legend, symbol
from redistill_lib.memory import format_size
from redistill_lib.quality import Quality, QualityComparison, compare_quality
from redistill_lib.results import capital, label, number

if TYPE_CHECKING:
    import pandas as pd

APART = 0.03  # of the axis: how far students of one memory stand from each other
LARGEST = 34  # pixels across the bubble of the largest network
SETTINGS = {  # what the note tells of them
    "n_fake": "{:,} generated", "n_real": "{:,} real images", "image": "{}", "extractor": "by {}",
    "num_features": "{} features", "extractor_accuracy": "test accuracy {:.1%}", "resize": "resize {}",
    "sampler": "sampler {}", "steps": "{} steps", "ema": "EMA {}",
}  # fmt: skip
ALWAYS = ("sampler", "steps", "ema")


def quality_vs_memory(frame: pd.DataFrame, *, floor: Quality | None = None) -> go.Figure:
    """FID and KID over peak memory, lower left is better; the area of a bubble is the network's parameters.

    `frame` and `floor` as for `redistill_lib.quality.compare_quality`, which also says what is refused. A point is a
    role's mean, its line the error, faint dots the single runs; the floor is a dashed line.

    >>> import pandas as pd
    >>> from redistill_lib.quality import Quality
    >>> score = Quality(9.0, 8.0, 0.5, 0.009, 0.001, 5.0, 0.1, 0.8, 0.7, {"extractor": "teacher"})
    >>> frame = score.to_frame().assign(role="teacher", peak_bytes=2**20, parameters=10**6)
    >>> quality_vs_memory(frame).layout.title.text.partition("<br>")[0]
    '<b>The lowest FID in one run: teacher 9.0 at 1.00 MiB</b>'
    """
    result = compare_quality(frame, floor)
    table, names = result.table, {"fid": "FID", "kid": "KID"}
    size, unit = (2**20, "MiB") if table["peak"].max() >= 2**20 else (2**10, "KiB")
    table = table.assign(x=_side_by_side(table) / size)
    if thousandths := table["kid"].abs().max() < 0.1:  # as through Inception, where it is usually told so
        names["kid"] += " × 1,000"
    figure = go.Figure()
    for axis, (score, name) in zip(("", "2"), names.items(), strict=True):
        scale = 1000 if score == "kid" and thousandths else 1
        _add_panel(figure, table, (score, name), scale, axis)
        if floor is not None:
            _add_floor(figure, getattr(floor, score) * scale, axis)
        figure.update_layout({f"yaxis{axis}": {"title": f"{name} (lower is better)"}})
    figure.update_layout(
        xaxis={"domain": [0, 0.46]}, xaxis2={"domain": [0.56, 1], "anchor": "y2"}, yaxis2={"anchor": "x2"},
    )  # fmt: skip
    figure.update_xaxes(title=f"peak memory, activations ({unit})", rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    legend = rows_of_legend(map(label, table["role"].unique()))
    return finish(figure, result.headline(), _note(result), plot=330, margins=(64, 8, 24, 60), legend=legend)


def _side_by_side(table: pd.DataFrame) -> pd.Series[float]:
    """Where each stands, in bytes: students of one memory beside each other, as their bubbles hide what is behind."""
    budgets = table.groupby("budget")["peak"]
    rank = budgets.rank(method="first") - (budgets.transform("size") + 1) / 2
    return table["peak"] + rank.fillna(0) * APART * table["peak"].max()


def _add_panel(figure: go.Figure, table: pd.DataFrame, shown: tuple[str, str], scale: int, axis: str) -> None:
    score, name = shown
    axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    for role, part in table.groupby("role", sort=False):
        part, hue = part.sort_values("peak"), color(str(role))
        runs = part[part["n"] > 1].explode(f"{score}_runs")
        if len(runs):
            figure.add_scatter(
                x=runs["x"], y=scale * runs[f"{score}_runs"].astype(float), mode="markers", showlegend=False,
                marker={"color": faint(hue), "size": 6}, hoverinfo="skip", **axes,
            )  # fmt: skip
        values, errors = scale * part[score], scale * part[f"{score}_error"]
        detail = [
            f"{number(value, 1)}{'' if math.isnan(half) else f' ± {number(half, 1)}'}, {row.n} run{'s' * (row.n > 1)}"
            f"<br>{format_size(row.peak)} at peak, {row.parameters:,.0f} parameters"
            for value, half, row in zip(values, errors, part.itertuples(), strict=True)
        ]
        shared = {"x": part["x"], "y": values, "legendgroup": str(role), **axes}
        bubble = {
            "color": faint(hue, 0.16), "symbol": "circle", "line": {"color": faint(hue, 0.6), "width": 1},
            "size": part["parameters"], "sizemode": "area", "sizeref": table["parameters"].max() / LARGEST**2,
        }  # fmt: skip
        figure.add_scatter(
            mode="lines+markers" if len(part) > 1 else "markers", marker=bubble, showlegend=False, hoverinfo="skip",
            line={"color": faint(hue, 0.6), "width": 1.5, "dash": "dot"}, **shared,
        )  # fmt: skip
        figure.add_scatter(
            mode="markers", name=label(str(role)), showlegend=not axis, customdata=detail,
            marker={"color": hue, "symbol": symbol(str(role)), "size": 9},
            error_y={"array": errors, "color": hue, "thickness": 1.5, "width": 4},
            hovertemplate=f"<b>{label(str(role))}</b>: {name} %{{customdata}}<extra></extra>", **shared,
        )  # fmt: skip


def _add_floor(figure: go.Figure, value: float, axis: str) -> None:
    place = {"xref": f"x{axis} domain", "yref": f"y{axis}"}
    line = {"color": MUTED, "width": 1.5, "dash": "dash"}
    figure.add_shape(type="line", x0=0, x1=1, y0=value, y1=value, line=line, **place)
    figure.add_annotation(
        x=0.995, xanchor="right", y=value, yanchor="bottom", text=f"real images {number(value, 1)}", showarrow=False,
        font={"color": INK, "size": 12}, **place,
    )  # fmt: skip


def _note(result: QualityComparison) -> str:
    parts = [capital(", ".join(_said(result.settings))) + "."]
    if result.table["n"].max() == 1:
        parts.append("Line: 95 % over draws of images (KID: over subsets), not over seeds.")
    else:
        parts.append("Line: 95 % t-interval over runs; of a single run, over draws of images.")
    small, large = (_count(value) for value in (result.table["parameters"].min(), result.table["parameters"].max()))
    parts.append(f"Area: parameters, {small}{f' to {large}' * (small != large)}.")
    if result.table["budget"].dropna().duplicated().any():
        parts.append("Students of about one memory stand side by side.")
    if result.floor is not None:
        parts.append("Dashed: real images, one half against the other.")
    return " ".join(parts)


def _said(settings: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, text in SETTINGS.items():
        value: Any = settings.get(name)
        value = value.item() if hasattr(value, "item") else value
        if value is None or value != value:  # a frame makes NaN of None
            parts += [f"{name} not stated"] if name in ALWAYS else []
            continue
        whole = isinstance(value, float) and value.is_integer() and name != "extractor_accuracy"
        parts.append(text.format(int(value) if whole else value))
    return parts


def _count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e3 else f"{value:.0f}"
