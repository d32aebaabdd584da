"""Behind the points of a trade-off: their training, and the choices that lead to each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.theme import INK, finish
from redistill_lib.figures.tradeoffs import OUT
from redistill_lib.looks import colors
from redistill_lib.results import capital, label, listed
from redistill_lib.sizes import parse_size, short_size
from redistill_lib.tradeoffs import Tradeoffs, lesson
from redistill_lib.tradeoffs.result import ACCURACY, Dtype, role


def tradeoff_curves(result: Tradeoffs, name: str) -> go.Figure:
    """Validation accuracy over seconds of a point's trainings, a line per seed, and in grey the others' means.

    Raises ValueError for another name, and for a point whose curves are not kept.
    """
    row = result.row(name)
    curves = result.curves
    own = curves[curves["name"] == name]
    if own.empty:
        raise ValueError(f"no curve of “{name}” is kept with these results")
    figure, tone = go.Figure(), colors(result.frame.apply(role, axis=1))[role(row)]
    for k, (other, part) in enumerate(curves[curves["name"] != name].groupby("name", sort=False)):
        epochs = part.groupby("seed").cumcount()  # of which each seed's may take other seconds
        mean = part.groupby(epochs)[["seconds", "accuracy"]].mean()
        told = f"<b>{escape(str(other))}</b>: %{{y:.1f}} % after %{{x:.0f}} s<extra></extra>"
        line = {"color": "#DDE0E4", "width": 1.2}
        legend = {"name": "the others, means", "legendgroup": "others", "showlegend": k == 0}
        figure.add_scatter(
            x=mean["seconds"], y=mean["accuracy"], mode="lines", line=line, hovertemplate=told, **legend
        )
    for k, (seed, part) in enumerate(own.groupby("seed", sort=False)):
        told = f"seed {seed}: %{{y:.1f}} % after %{{x:.0f}} s<extra></extra>"
        legend = {"name": escape(name), "legendgroup": "own", "showlegend": k == 0}
        line = {"color": tone, "width": 2.2}
        figure.add_scatter(
            x=part["seconds"], y=part["accuracy"], mode="lines", line=line, hovertemplate=told, **legend
        )
    ends = own.groupby("seed")["accuracy"].last()
    low, high = f"{ends.min():.1f}", f"{ends.max():.1f}"
    found = f"“{name}” ends at {low if low == high else f'{low} to {high}'} % on validation"
    figure.update_xaxes(title="processor seconds; of a comparison, the teacher's share included", rangemode="tozero")
    figure.update_yaxes(title="validation accuracy (%)")
    seeds = f"{len(ends)} seed{'s' * (len(ends) > 1)}"
    note = f"Data: {escape(row['data'])}. {capital(seeds)}, a line each; grey: the means of the other points."
    return finish(figure, escape(found, quote=False), note, plot=260, legend=True)


def tradeoff_choices(result: Tradeoffs, budget: int | str | None = None, dtype: Dtype = "fp32") -> go.Figure:
    """Parallel coordinates: a line per point through plan, method, start, width, weights, multiply-adds, peak, score.

    What is alike for all is left out and said in the note. Lines beyond `budget` are grey. Drag along an axis to
    keep a part of the points. Raises ValueError for points that cannot be compared.
    """
    frame = result.own.dropna(subset=["score"])
    names, tones = {role(row): lesson(row) for _, row in frame.iterrows()}, colors(result.frame.apply(role, axis=1))
    model = frame["model"].str.partition("-")
    sized = frame["image_size"].map(lambda side: "full" if pd.isna(side) else f"{side:.0f} px")
    start = frame["init"].map(lambda init: "teacher's" if init == "teacher" else "new")
    kinds = {"architecture": model[0], "plan": _plans(frame), "images": sized, "first weights": start}
    kinds |= {"width": frame["width"].map("×{:g}".format), "method": frame["method"].map(label)}
    axes, same = list[dict[str, Any]](), list[str]()
    for title, values in kinds.items():
        found = sorted(values.unique())
        if len(found) > 1:
            places = values.map({value: k for k, value in enumerate(found)})
            axes.append({"label": title, "values": places, "tickvals": [*range(len(found))], "ticktext": found})
        elif found[0] not in ("full", ""):
            same.append(f"{title} {found[0]}")
    need = result.need(dtype)[frame.index]
    axes += _logarithmic("weights", frame["parameters"], lambda v: f"{v / 1e6:.3g} M")
    axes += _logarithmic("mult-adds", frame["multiply_adds"], lambda v: f"{v / 1e6:.3g} M")
    axes += _logarithmic("peak", need, short_size)
    if budget is not None and axes and axes[-1]["label"] == "peak":
        axes[-1]["constraintrange"] = [math.log2(need.min()) - 0.01, math.log2(parse_size(budget)) + 0.01]
    score = {"label": frame["metric"].iloc[0].replace("test accuracy (%)", "accuracy (%)"), "values": frame["score"]}
    axes.append(score | {"range": sorted((frame["score"].min(), frame["score"].max()), reverse=result.lower)})
    order = [*names]
    steps = [(edge / len(order), tones[name]) for k, name in enumerate(order) for edge in (k, k + 1)]
    line = {
        "color": frame.apply(role, axis=1).map(order.index),
        "colorscale": steps,
        "cmin": -0.5,
        "cmax": len(order) - 0.5,
    }
    figure = go.Figure(
        go.Parcoords(dimensions=axes, line=line, unselected={"line": {"color": OUT, "opacity": 0.35}},
                     labelfont={"size": 13, "color": INK}, tickfont={"size": 11, "color": INK},
                     rangefont={"size": 1, "color": "rgba(0,0,0,0)"})
    )  # fmt: skip
    for name, text in names.items():
        mark = {"color": tones[name], "size": 11, "symbol": "square"}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=escape(text))
    figure.update_xaxes(visible=False).update_yaxes(visible=False)
    told = f"Data: {escape(frame['data'].iloc[0])}. One line per point, coloured by method"
    told += f"; grey: more than {short_size(parse_size(budget))} ({dtype})" if budget is not None else ""
    told += f". The same for all: {escape(listed(same))}" if same else ""
    fit = frame[result.fits(budget or 2**60, dtype)[frame.index]]
    title = escape(_in_common(fit, kinds).replace(" that fit", " that fit" * (budget is not None)), quote=False)
    note = f"{told}. Drag along an axis to keep a part of the lines."
    return finish(figure, title, note, plot=300, margins=(90, 48, 70, 34), legend=True)


def _plans(frame: pd.DataFrame) -> pd.Series[str]:
    """After the networks' names; of one's own, which have none there, how much harder than the teacher they pool."""
    named = frame["model"].mask(frame["model"].str.contains(":"), "").str.partition("-")[2]
    factor = frame["factor"].astype(float).mask(frame["method"] == "teacher", 1.0)
    told = factor.map("×{:g}".format).where(factor.notna() & frame["factor"].notna().any(), "")
    return named.where(named != "", told)


def _in_common(frame: pd.DataFrame, kinds: Mapping[str, pd.Series[str]]) -> str:
    """What the best third share and the others do not."""
    data, lower = frame["data"].iloc[0] if len(frame) else "", len(frame) and frame["metric"].iloc[0] != ACCURACY
    if len(frame) < 3:
        return f"{len(frame)} points fit{f' on {data}' if data else ''}: too few to look for what the best share"
    best = frame.sort_values("score", ascending=bool(lower)).head(max(2, round(len(frame) / 3)))
    shared = [
        f"{title} {values[best.index[0]]}"
        for title, values in kinds.items()
        if values[best.index[0]] and values[best.index].nunique() == 1 < values[frame.index].nunique()
    ]
    told = f"The best {len(best)} of {len(frame)} that fit on {data} share "
    return told + (listed(shared) if shared else "no choice")


def _logarithmic(title: str, values: pd.Series[float], text: Any) -> list[dict[str, Any]]:
    """An axis of powers of two, or none where a value is missing or all are alike."""
    if values.isna().any() or values.nunique() < 2:
        return []
    shown = sorted(values.unique())
    shown = shown if len(shown) <= 6 else [shown[round(k * (len(shown) - 1) / 5)] for k in range(6)]
    ticks: list[float] = []
    for value in shown:  # those that would lie on each other are left out
        if not ticks or math.log(value / ticks[-1]) > 0.05 * math.log(shown[-1] / shown[0]):
            ticks.append(float(value))
    return [{
        "label": title, "values": np.log2(values.astype(float)), "tickvals": [math.log2(v) for v in ticks],
        "ticktext": [text(v) for v in ticks],
    }]  # fmt: skip
