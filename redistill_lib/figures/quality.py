"""How good generated images are, network by network, and the memory that each takes."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from redistill_lib.figures.theme import INK, MUTED, color, faint, finish, muted, name_rows, role_trace
from redistill_lib.memory import format_size
from redistill_lib.quality import Quality, QualityComparison, compare_quality
from redistill_lib.results import capital, label, number

_SETTINGS = {  # what the note tells of them
    "n_fake": "{:,.0f} generated", "n_real": "{:,.0f} real images", "image": "{}", "extractor": "by {}",
    "num_features": "{:.0f} features", "extractor_accuracy": "test accuracy {:.1%}", "resize": "resize {}",
    "sampler": "sampler {}", "steps": "{:.0f} steps", "ema": "EMA {}",
}  # fmt: skip
_ALWAYS = ("sampler", "steps", "ema")


def quality(frame: pd.DataFrame, *, floor: Quality | None = None) -> go.Figure:
    """FID and KID of each network, a row each, the lowest FID above; beside it its peak memory and its parameters.

    `frame` and `floor` as for `redistill_lib.quality.compare_quality`, which also says what is refused. A mark is a
    role's mean, its line the error, faint dots the single runs; the floor is a dashed line.

    >>> score = Quality(9.0, 8.0, 0.5, 0.009, 0.001, 5.0, 0.1, 0.8, 0.7, {"extractor": "teacher"})
    >>> frame = score.to_frame().assign(role="teacher", peak_bytes=2**20, parameters=10**6)
    >>> from redistill_lib.figures import headline
    >>> headline(quality(frame))
    'The lowest FID in one run: teacher 9.0 at 1.00 MiB'
    """
    result = compare_quality(frame, floor)
    table = result.table.sort_values("fid", kind="stable", ignore_index=True)
    thousandths = table["kid"].abs().max() < 0.1  # as through Inception, where it is usually told so
    panels = {"fid": ("FID", 1, 1), "kid": ("KID × 1,000", 1000, 1) if thousandths else ("KID", 1, 2)}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    for column, (score, (name, times, digits)) in enumerate(panels.items(), 1):
        for k, row in table.iterrows():
            value, half = times * row[score], times * row[f"{score}_error"]
            runs = times * row[f"{score}_runs"] if row["n"] > 1 else []
            dots = {"color": faint(color(row["role"])), "size": 6, "symbol": "circle"}
            below = {"y": [k + 0.25] * len(runs), "hoverinfo": "skip", "hovertemplate": None}
            figure.add_trace(role_trace(row["role"], "", x=runs, mode="markers", marker=dots, **below), 1, column)
            told = number(value, digits) + ("" if math.isnan(half) else f" ± {number(half, digits)}")
            hover = f": {name} {told}, {row['n']} run{'s' * (row['n'] > 1)}"
            mean = role_trace(row["role"], hover, x=[value], y=[k], mode="markers", error_x_array=[half])
            figure.add_trace(mean.update(marker_size=13), 1, column)
        figure.update_xaxes(title=f"{name} (lower is better)", rangemode="tozero", row=1, col=column)
        if floor is not None:
            value = getattr(floor, score) * times
            real = {"text": f"real images {number(value, digits)}", "font": {"color": INK, "size": 12}}
            line = {"color": MUTED, "width": 1.5, "dash": "dash"}
            figure.add_vline(value, line=line, row=1, col=column, annotation=real, annotation_position="top")
    columns = {"peak": table["peak"].map(format_size), "parameters": table["parameters"].map("{:,.0f}".format)}
    for (head, cells), shift in zip(columns.items(), (12, 88), strict=True):
        beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": shift}
        figure.add_annotation(**beside, y=1, yref="paper", yanchor="bottom", text=muted(head))
        for k, text in enumerate(cells):
            figure.add_annotation(**beside, y=k, text=text)
    name_rows(figure, [f"<b>{label(role)}</b>" for role in table["role"]])
    return finish(figure, result.headline(), _note(result), plot=20 + 36 * len(table), margins=(124, 24, 164, 56))


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
    if result.table["n"].max() > 1:
        parts.append("Dots: runs")
    parts.append("Peak: of activations")
    if result.floor is not None:
        parts.append("Dashed: real images, one half against the other")
    return f"{'. '.join(parts)}."
