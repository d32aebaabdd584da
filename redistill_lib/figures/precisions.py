"""What fewer bits save and cost, beside other ways to less memory."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.theme import MUTED, colors, finish, role_trace, size_axis
from redistill_lib.results import capital, label, number, over_seeds, the
from redistill_lib.sizes import format_size

SYMBOLS = {"fp32": "circle", "bf16": "diamond", "int8": "square"}


def precisions(frame: pd.DataFrame, score: str = "accuracy", unit: str = "points") -> go.Figure:
    """Each network over its peak, from float32 to int8; whiskers are for other seeds.

    `frame` as of `export.precisions`, the network that the others come from first. Another `score`, such as FID, is
    one of which less is better.
    """
    missing = {"network", "seed", "dtype", "peak_bytes", score} - {*frame.columns}
    if missing or frame.empty:
        raise ValueError(f"the table has no {' and no '.join(sorted(missing)) or 'rows'}; export.precisions makes it")
    figure, means = go.Figure(), dict[tuple[str, str], tuple[float, float]]()
    tones = colors(frame["network"].unique())
    for name, its in frame.groupby("network", sort=False):
        found = {str(dtype): over_seeds(rows[score].tolist()) for dtype, rows in its.groupby("dtype", sort=False)}
        peaks = {dtype: float(its.loc[its["dtype"] == dtype, "peak_bytes"].iloc[0]) for dtype in found}
        means |= {(str(name), dtype): (peaks[dtype], found[dtype].value) for dtype in found}
        halves = [0 if math.isnan(each.half) else each.half for each in found.values()]
        trace = role_trace(
            str(name), ", %{text}: %{y:.1f}", x=[*peaks.values()], y=[each.value for each in found.values()],
            text=[f"{dtype}, {format_size(peak)}" for dtype, peak in peaks.items()], mode="lines+markers",
            marker={"symbol": [SYMBOLS[dtype] for dtype in found], "size": 10, "color": tones[name]},
            line={"color": tones[name], "width": 1.5}, error_y={"array": halves, "color": tones[name]},
        )  # fmt: skip
        figure.add_trace(trace)
    for dtype in frame["dtype"].unique():
        look = {"symbol": SYMBOLS[dtype], "color": MUTED, "size": 10}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=str(dtype), marker=look)
    low, high = frame["peak_bytes"].min(), frame["peak_bytes"].max()
    figure.update_xaxes(title="peak of activations", **size_axis(low / 1.3, high * 1.3))
    figure.update_yaxes(title="test accuracy (%)" if score == "accuracy" else score)
    seeds = frame["seed"].nunique()
    note = f"Means of {seeds} seeds, with 95 % intervals for others." if seeds > 1 else "One seed."
    note += f" Peaks of one image, fused; {'accuracies' if score == 'accuracy' else score} as PyTorch rounds."
    return finish(figure, _finding(means, score, unit), note, plot=360, margins=(64, 8, 24, 56), legend=True)


def _finding(means: dict[tuple[str, str], tuple[float, float]], score: str, unit: str) -> str:
    """What int8 saves and costs, and what the second network does against the first."""
    sign = 1 if score == "accuracy" else -1
    names = list(dict.fromkeys(name for name, _ in means))
    told = []
    if (names[0], "int8") in means:
        losses = {n: sign * (means[n, "fp32"][1] - means[n, "int8"][1]) for n in names if (n, "int8") in means}
        worst = max(losses, key=losses.__getitem__)
        factor = means[names[0], "fp32"][0] / means[names[0], "int8"][0]
        told.append(f"int8 needs {factor:.1f} times less and costs at most {number(losses[worst], 1)} {unit}")
    if len(names) > 1:
        (big, best), (small, second) = means[names[0], "fp32"], means[names[1], "fp32"]
        lost = sign * (best - second)
        change = f"{'costs' if lost >= 0 else 'gains'} {number(abs(lost), 1)}" if round(lost, 1) else "costs nothing"
        told.append(f"{the(names[1])} needs {big / small:.1f} times less and {change}")
    return capital("; ".join(told) or label(names[0]))
