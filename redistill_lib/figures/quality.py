"""How good the generated images are for the memory they take."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from redistill_lib.figures.memory import unit_of
from redistill_lib.figures.theme import INK, MUTED, color, faint, finish, role_trace
from redistill_lib.memory import format_size
from redistill_lib.quality import Quality, QualityComparison, compare_quality
from redistill_lib.results import capital, number

_BESIDE = 0.03  # of the axis: how far students of one memory stand from each other
_LARGEST = 34  # pixels across the bubble of the largest network
_SETTINGS = {  # what the note tells of them
    "n_fake": "{:,.0f} generated", "n_real": "{:,.0f} real images", "image": "{}", "extractor": "by {}",
    "num_features": "{:.0f} features", "extractor_accuracy": "test accuracy {:.1%}", "resize": "resize {}",
    "sampler": "sampler {}", "steps": "{:.0f} steps", "ema": "EMA {}",
}  # fmt: skip
_ALWAYS = ("sampler", "steps", "ema")


def quality_vs_memory(frame: pd.DataFrame, *, floor: Quality | None = None) -> go.Figure:
    """FID and KID over peak memory, lower left is better; the area of a bubble is the network's parameters.

    `frame` and `floor` as for `redistill_lib.quality.compare_quality`, which also says what is refused. A point is a
    role's mean, its line the error, faint dots the single runs; the floor is a dashed line.

    >>> score = Quality(9.0, 8.0, 0.5, 0.009, 0.001, 5.0, 0.1, 0.8, 0.7, {"extractor": "teacher"})
    >>> frame = score.to_frame().assign(role="teacher", peak_bytes=2**20, parameters=10**6)
    >>> quality_vs_memory(frame).layout.title.text.partition("<br>")[0]
    '<b>The lowest FID in one run: teacher 9.0 at 1.00 MiB</b>'
    """
    result = compare_quality(frame, floor)
    table, (unit, scale) = result.table, unit_of(result.table["peak"].max())
    budgets = table.groupby("budget")["peak"]  # their bubbles would hide each other
    rank = (budgets.rank(method="first") - (budgets.transform("size") + 1) / 2).fillna(0)
    table = table.assign(x=(table["peak"] + rank * _BESIDE * table["peak"].max()) / scale)
    thousandths = table["kid"].abs().max() < 0.1  # as through Inception, where it is usually told so
    panels = {"fid": ("FID", 1), "kid": ("KID × 1,000", 1000) if thousandths else ("KID", 1)}
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for column, (score, (name, times)) in enumerate(panels.items(), 1):
        for role, part in table.groupby("role", sort=False):
            for trace in _traces(str(role), part.sort_values("peak"), score, name, times):
                trace.update(showlegend=bool(trace.name) and column == 1)
                trace.marker.sizeref = table["parameters"].max() / _LARGEST**2
                figure.add_trace(trace, row=1, col=column)
        figure.update_yaxes(title=f"{name} (lower is better)", rangemode="tozero", row=1, col=column)
        if floor is not None:
            value = getattr(floor, score) * times
            figure.add_hline(
                value, line={"color": MUTED, "width": 1.5, "dash": "dash"}, row=1, col=column,
                annotation={"text": f"real images {number(value, 1)}", "font": {"color": INK, "size": 12}},
            )  # fmt: skip
    figure.update_xaxes(title=f"peak memory, activations ({unit})", rangemode="tozero")
    return finish(figure, result.headline(), _note(result), plot=330, margins=(64, 8, 24, 60), legend=True)


def _traces(role: str, part: pd.DataFrame, score: str, name: str, times: int) -> list[go.Scatter]:
    tone, values, errors = color(role), times * part[score], times * part[f"{score}_error"]
    detail = [
        f"{number(value, 1)}{'' if math.isnan(half) else f' ± {number(half, 1)}'}, {row.n} run{'s' * (row.n > 1)}"
        f"<br>{format_size(row.peak)} at peak, {row.parameters:,.0f} parameters"
        for value, half, row in zip(values, errors, part.itertuples(), strict=True)
    ]
    silent = {"name": None, "hoverinfo": "skip", "hovertemplate": None}
    bubble = {"color": faint(tone, 0.16), "symbol": "circle", "line": {"color": faint(tone, 0.6)}, "sizemode": "area"}
    bubble["size"] = part["parameters"]
    line = {"color": faint(tone, 0.6), "width": 1.5, "dash": "dot"}
    place = {"x": part["x"], "y": values, "error_y_array": errors, "customdata": detail}
    traces = [
        role_trace(role, "", x=part["x"], y=values, mode="lines+markers", marker=bubble, line=line, **silent),
        role_trace(role, f": {name} %{{customdata}}", mode="markers", **place),
    ]
    runs = part[part["n"] > 1].explode(f"{score}_runs")
    if len(runs):
        dots = {"x": runs["x"], "y": times * runs[f"{score}_runs"].astype(float), "mode": "markers"}
        traces.insert(0, role_trace(role, "", marker={"color": faint(tone), "size": 6}, **dots, **silent))
    return traces


def _note(result: QualityComparison) -> str:
    said = []
    for name, text in _SETTINGS.items():
        if not pd.isna(result.settings.get(name)):  # a frame makes NaN of None
            said.append(text.format(result.settings[name]))
        elif name in _ALWAYS:
            said.append(f"{name} not stated")
    parts = [capital(", ".join(said))]
    if result.table["n"].max() == 1:
        parts.append("Line: 95 % over draws of images (KID: over subsets), not over seeds")
    else:
        parts.append("Line: 95 % t-interval over runs; of a single run, over draws of images")
    sizes = dict.fromkeys(f"{f(result.table['parameters']) / 1e6:.1f} M" for f in (min, max))
    parts.append(f"Area: parameters, {' to '.join(sizes)}")
    if result.table["budget"].dropna().duplicated().any():
        parts.append("Students of about one memory stand side by side")
    if result.floor is not None:
        parts.append("Dashed: real images, one half against the other")
    return f"{'. '.join(parts)}."
