"""Accuracy, or FID, over peak memory: the front, what a budget allows, and the choices behind each point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.placing import name_places
from redistill_lib.figures.theme import GRID, INK, MUTED, NARROW, faint, finish, powers
from redistill_lib.looks import colors
from redistill_lib.results import listed, score_range, whiskers
from redistill_lib.sizes import parse_size, short_size
from redistill_lib.tradeoffs import Tradeoffs, lesson
from redistill_lib.tradeoffs.result import Dtype, digits, role

OUT = "#B4BAC2"  # of what does not fit
_PLOT, _MARGINS = 430, (64, 14, 24, 56)
_WIDE = NARROW - _MARGINS[0] - _MARGINS[2]  # pixels of the plot, at least
_LARGEST = 40  # pixels across the largest bubble
_FRONT = "Pareto front"
_SHAPES = {
    "resnet18": "circle", "resnext18": "square", "mobilenetv2": "triangle-up", "mobilenetv3_small": "triangle-down",
    "resnet50": "diamond", "unet": "hexagon", "vit_pico": "pentagon", "deit_pico": "star", "mobilenetv1": "x",
    "resnet152": "star-diamond",
}  # fmt: skip
_SPARE = ("cross", "hourglass", "bowtie", "star-square", "triangle-left", "triangle-right", "hexagram", "octagon")


def tradeoffs(
    result: Tradeoffs, budget: int | str | None = None, dtype: Dtype = "fp32", chosen: str | None = None
) -> go.Figure:
    """Score over peak memory, of one panel: colour is the method, shape the architecture, area multiply-adds.

    Within `budget` (``"512KB"``) the best has a ring, and what needs more is grey; the line joins the points that no
    other beats in both. `chosen` is the name of a point to mark. Intervals of one peak lie on one line and have caps
    of unlike widths. Each point's ``customdata`` is its name. Raises ValueError for points that cannot be compared.

    >>> from redistill_lib.tradeoffs import read_tradeoffs
    >>> figure = tradeoffs(read_tradeoffs().panel("cifar10"), "16KB")
    >>> from redistill_lib.figures import headline
    >>> headline(figure).partition(", ")[0]
    'Within 16 KiB (fp32) “small” does best on cifar10: 66.4 ± 0.8 %'
    """
    result.front()  # refuses several panels
    if chosen is not None:
        result.row(chosen)  # refuses another name
    limit = None if budget is None else float(parse_size(budget))
    frame = result.frame.assign(need=result.need(dtype)).dropna(subset=["score", "need"])
    frame = frame.assign(fits=frame["need"] <= (math.inf if limit is None else limit))
    up, down = whiskers(frame["score"], frame["half"], result.most)
    frame = frame.assign(up=up, down=down)
    low, high = _x_range(frame["need"], limit)
    decades, ends = _y_range(frame, result)
    on_axis = (math.log10(ends[0]), math.log10(ends[1])) if decades else ends
    frame = frame.assign(height=frame["score"].map(math.log10) if decades else frame["score"])
    tones, shapes = colors(frame.apply(role, axis=1)), shapes_of(frame)
    figure = go.Figure()
    _add_front(figure, result, frame)
    _add_points(figure, frame, tones, shapes)
    best = None if budget is None else result.best(budget, dtype)
    for name, tone, ring in ((best["name"] if best is not None else None, INK, 26), (chosen, "#D6006C", 32)):
        spot = frame[frame["name"] == name]
        mark = {"symbol": "circle-open", "size": ring, "color": tone, "line": {"width": 2, "color": tone}}
        point = {"x": spot["need"], "y": spot["score"], "mode": "markers", "marker": mark}
        figure.add_scatter(**point, hoverinfo="skip", showlegend=False)
    if limit is not None and low < limit < high:
        figure.add_vrect(limit, high, fillcolor=GRID, opacity=0.45, line_width=0, layer="below")
        figure.add_vline(limit, line={"color": INK, "width": 1.5}, layer="below")
        text = {"text": f"<b>{short_size(limit)}</b>", "font": {"color": INK}, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(x=math.log10(limit), y=0, yref="paper", xshift=4, **text)
    _add_names(figure, frame, (low, high), on_axis)
    steps = powers(low, high)
    figure.update_xaxes(
        type="log", range=[math.log10(low), math.log10(high)], tickvals=steps, ticktext=[*map(short_size, steps)],
        title=f"peak memory of activations, {dtype}, one image",
    )  # fmt: skip
    metric = result.frame["metric"].iloc[0]
    better = f" (lower is better, so above{', log scale' * decades})" * result.lower
    figure.update_yaxes(title=f"{metric}{better}", range=on_axis)
    if decades:
        figure.update_yaxes(type="log", tickvals=[k * 10**p for p in range(-6, 6) for k in (1, 2, 5)])
    _explain(figure, frame, tones, shapes)
    title = escape(result.headline(budget, dtype), quote=False)
    note = _note(result, frame, dtype, limit is not None, ends)
    return finish(figure, title, note, plot=_PLOT, margins=_MARGINS, legend=True)


def shapes_of(frame: pd.DataFrame) -> dict[str, str]:
    """A marker for each architecture, the same in every panel for those that our results have."""
    found: dict[str, str] = {}
    for arch in dict.fromkeys(frame["model"].str.partition("-")[0]):
        free = (shape for shape in _SPARE if shape not in found.values())
        found[arch] = _SHAPES.get(arch) or next(free, "circle")
    return found


def _add_front(figure: go.Figure, result: Tradeoffs, frame: pd.DataFrame) -> None:
    front = frame[frame["name"].isin(result.front()["name"])].sort_values("need")
    line = {"color": MUTED, "width": 1.5, "dash": "dot", "shape": "hv"}
    figure.add_scatter(
        x=front["need"], y=front["score"], mode="lines", line=line, name=_FRONT, hoverinfo="skip", legendrank=2000
    )


def _add_points(figure: go.Figure, frame: pd.DataFrame, tones: Mapping[str, str], shapes: Mapping[str, str]) -> None:
    """A bubble for multiply-adds below, and the point with its interval above, a pair of traces per method."""
    most = frame["multiply_adds"].max()
    roles = frame.apply(role, axis=1)
    for k, (name, rows) in enumerate(frame.groupby(roles, sort=False)):
        tone = [tones[str(name)] if fits else OUT for fits in rows["fits"]]
        open_ = ["-open" if source == "published" else "" for source in rows["source"]]
        symbol = [shapes[arch] + o for arch, o in zip(rows["model"].str.partition("-")[0], open_, strict=True)]
        place = {"x": rows["need"], "y": rows["score"], "mode": "markers", "customdata": rows["name"]}
        sizes = rows["multiply_adds"].where(rows["fits"]).fillna(0)
        bubble = {"size": sizes, "sizemode": "area", "sizeref": (most if most > 0 else 1) / _LARGEST**2, "sizemin": 0}
        bubble |= {
            "color": [faint(t, 0.18) for t in tone],
            "line": {"width": 1, "color": [faint(t, 0.5) for t in tone]},
        }
        figure.add_scatter(**place, marker=bubble, hoverinfo="none", showlegend=False)
        edges = [t if hollow else "white" for t, hollow in zip(tone, open_, strict=True)]
        mark = {"color": tone, "symbol": symbol, "size": [12 if fits else 8 for fits in rows["fits"]]}
        mark |= {"line": {"width": 1.5, "color": edges}}
        spread = {"array": rows["up"].where(rows["fits"]), "arrayminus": rows["down"].where(rows["fits"])}
        spread |= {"symmetric": False, "color": faint(tones[str(name)], 0.75), "thickness": 1.4, "width": 3 + 2 * k}
        texts = [_hover(row) for _, row in rows.iterrows()]
        figure.add_scatter(**place, marker=mark, error_y=spread, text=texts, hovertemplate="%{text}<extra></extra>",
                           showlegend=False)  # fmt: skip


def _hover(row: Mapping[str, Any]) -> str:
    score = f"{row['score']:.{digits(row)}f}" + (
        "" if math.isnan(row["half"]) else f" ± {row['half']:.{digits(row)}f}"
    )
    adds = "" if math.isnan(row["multiply_adds"]) else f", {row['multiply_adds'] / 1e6:.1f} M mult-adds"
    weights = "" if math.isnan(row["parameters"]) else f", {row['parameters'] / 1e6:.2f} M weights"
    wide = "" if row["width"] == 1 else f" ×{row['width']:g}"
    sized = "" if math.isnan(row["image_size"]) else f" at {row['image_size']:.0f} px"
    seeds = f"{row['seeds']:.0f} seed{'s' * (row['seeds'] != 1)}"
    network = f"{escape(row['model'])}{wide}{sized}, {escape(lesson(row))}"
    needs = f"{short_size(row['need'])} at peak ({row['convention']}){adds}{weights}"
    return f"<b>{escape(row['name'])}</b>: {score}, {seeds}<br>{network}<br>{needs}"


def _spots(
    x: Iterable[float], y: Iterable[float], xs: tuple[float, float], ys: tuple[float, float]
) -> list[tuple[float, float]]:
    """Places in pixels."""
    across, up = _WIDE / math.log(xs[1] / xs[0]), _PLOT / (ys[1] - ys[0])
    return [(math.log(a / xs[0]) * across, (b - ys[0]) * up) for a, b in zip(x, y, strict=True)]


def _add_names(figure: go.Figure, frame: pd.DataFrame, xs: tuple[float, float], ys: tuple[float, float]) -> None:
    """Names beside the points where there is room, those that fit and are best first; others tell theirs on hover."""
    frame = frame.sort_values(["fits", "score"], ascending=[False, ys[0] > ys[1]])
    texts = frame["name"].str.replace(" (published)", "")
    names = [name if len(name) <= 38 else f"{name[:37]}…" for name in texts]
    spots = _spots(frame["need"], frame["height"], xs, ys)
    places = name_places(spots, [6.3 * len(name) for name in names], _WIDE, _PLOT)
    for name, place, (_, row) in zip(names, places, frame.iterrows(), strict=True):
        if place is not None:
            tone = INK if row["fits"] else MUTED
            at: dict[str, Any] = {"x": math.log10(row["need"]), "y": row["height"], "xanchor": place.anchor}
            if place.led:
                at |= {"ax": place.right, "ay": -place.above, "showarrow": True, "arrowhead": 0, "arrowwidth": 0.8}
                at |= {"arrowcolor": MUTED, "standoff": 7}
            else:
                at |= {"xshift": place.right, "yshift": place.above}
            font, veil = {"size": 12, "color": tone}, "rgba(255,255,255,0.7)"
            figure.add_annotation(**at, yanchor="middle", text=escape(name), font=font, bgcolor=veil, borderpad=0)


def _x_range(need: pd.Series[float], limit: float | None) -> tuple[float, float]:
    low, high = need.min(), need.max()
    if limit is not None and low / 4 <= limit <= 4 * high:
        low, high = min(low, limit), max(high, limit)
    room = max(0.22 * math.log10(high / low), 0.12)
    return 10 ** (math.log10(low) - room / 2), 10 ** (math.log10(high) + room)


def _y_range(frame: pd.DataFrame, result: Tradeoffs) -> tuple[bool, tuple[float, float]]:
    """Whether the axis is logarithmic, as one point far off would squash all others, and its ends from below."""
    score = frame["score"]
    lowest, highest = float((score - frame["half"].fillna(0)).min()), float((score + frame["up"].fillna(0)).max())
    if decades := bool(result.lower and lowest > 0 and score.max() > 8 * score.min()):
        bottom, top = lowest / 1.1, highest * 1.2
    else:
        bottom, top = score_range(score, frame["half"], frame["seeds"], result.most)
    return decades, (top, bottom) if result.lower else (bottom, top)


def _explain(figure: go.Figure, frame: pd.DataFrame, tones: Mapping[str, str], shapes: Mapping[str, str]) -> None:
    """The legend: what colours and shapes mean."""
    for name, text in {role(row): lesson(row) for _, row in frame.iterrows()}.items():
        mark = {"color": tones[name], "size": 12, "symbol": "square"}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=escape(text), legendrank=1)
    for arch in shapes:
        mark = {"color": INK, "size": 11, "symbol": f"{shapes[arch]}-open", "line": {"width": 2}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=mark, name=escape(arch), legendrank=3000)


def _note(result: Tradeoffs, frame: pd.DataFrame, dtype: Dtype, limited: bool, ends: tuple[float, float]) -> str:
    own, adds = result.own, frame["multiply_adds"].dropna() / 1e6
    seeds = sorted({int(n) for n in own["seeds"]})
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    conventions = listed(f"“{name}”" for name in dict.fromkeys(own["convention"]))
    told = [f"Data: {escape(frame['data'].iloc[0])}, {many} seed{'s' * (seeds != [1])}"]
    told[0] += f"; peaks: {conventions}, KB = 1,024 bytes"
    told += ["Lines: 95 % intervals"] if own["half"].notna().any() else ["No intervals: one run each"]
    if (frame["score"] + frame["up"] > max(ends)).any() or (frame["score"] - frame["down"] < min(ends)).any():
        told[-1] += ", some cut at the edge"
    told += [f"Area: multiply-adds, {adds.min():.3g} to {adds.max():.3g} M"] if len(adds) else []
    told += ["Grey: needs more; ring: the best that fits"] if limited else []
    if dtype != "fp32":
        share = {"int8": "a quarter", "fp16": "half"}[dtype]
        told.append(
            f"In {dtype} activations take {share} of the bytes; scores are those in fp32, nothing is quantised"
        )
    if (frame["source"] == "published").any():
        test = "; on STL-10 the best epoch on test" if frame["data"].iloc[0] == "stl10" else ""
        told.append(f"Hollow: the authors' numbers, one run each, peaks by their own estimate{test}")
    return ". ".join(told) + "."
