"""One slider for the stride: maps, memory and accuracy of a teacher and its students, layer by layer."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.exploration import AGREEING, UNTRAINED, Exploration, Shown, View
from redistill_lib.figures.memory import unit_of
from redistill_lib.figures.theme import INK, MUTED, PAGE, color, faint, finish, look, short
from redistill_lib.memory import format_size
from redistill_lib.memory.profile import place_name
from redistill_lib.results import label, number
from redistill_lib.sizes import ratio

_LEFT, _RIGHT = 112, 12  # pixels beside the plot
_SIDE, _FREE, _NAMES = 154, 76, 96  # pixels of the accuracy, free before it, and of the names beside it
_SLIDER, _STEPS, _BARS, _GAP, _WORDS = 62, 90, 150, 26, 22  # pixels: above, of rows, between them, below a map
_CELL = 112  # pixels of a map in the file
_PALETTE = [*map(unlabel_rgb, sample_colorscale("Viridis", np.linspace(0, 1, 254).tolist()))]
_MIDDLE = 0.4  # of a row, from the lower edge of its maps up
_MISSING = "not trained at this stride"

Pictures = list[str]  # the image and the maps, from input to output: addresses of PNGs


class _Stop(NamedTuple):
    """What the slider changes: all traces, the pictures of the students' rows, and words."""

    traces: list[go.Scatter | go.Bar]
    pictures: list[Pictures]
    title: str
    note: str


def exploration(shown: Shown, factor: int = 4, *, budget: int | None = None) -> go.Figure:
    """Layer by layer, from input to output: the size of the maps, the maps themselves, and what is alive in memory.

    `shown` is what `redistill_lib.exploration.explore(…).show(image)` gives. The slider moves the students' stride,
    without a kernel too; it opens at `factor`. Pointing at a layer marks it in every row. `budget` (bytes) draws a
    line into the memory. ValueError for a factor that is not there.

    >>> import torch
    >>> from redistill_lib.exploration import explore
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1))
    >>> found = explore(net, None, torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8), factors=[2])
    >>> [step.label for step in exploration(found.show(), 2).layout.sliders[0].steps]
    ['×1', '×2']
    """
    found, pictures = shown.found, _pictures(shown)
    found.check(factor)
    stops = {each: _stop(shown, each, pictures) for each in found.factors}
    right = _RIGHT + (_NAMES if _accuracies(found) else 0)  # so many at any width of the page
    wide = PAGE - _LEFT - right
    share = 1 - (_SIDE / wide if _accuracies(found) else 0)  # of the width, for the layers
    cell = share * wide / (len(found.layers) + 1)  # pixels from map to map
    heights = _STEPS, (1 + len(found.students)) * (cell + _WORDS), _BARS
    plot = round(sum(heights) + 2 * _GAP)
    margins = (_LEFT, _SLIDER, right, 70)
    drafts = {f: finish(go.Figure(), stop.title, stop.note, plot=plot, margins=margins) for f, stop in stops.items()}
    titles = {f: draft.layout.title.text for f, draft in drafts.items()}
    figure = max(drafts.values(), key=lambda draft: draft.layout.height)  # that of the longest title
    figure.add_traces(stops[factor].traces)
    _axes(figure, found, [height / plot for height in heights], share)
    words = _WORDS / (cell + _WORDS)  # of a row
    figure.update_layout(yaxis2_range=[len(found.students) + words, words - 1])
    place: dict[str, Any] = {"xref": "x", "yref": "y2", "xanchor": "center", "sizing": "contain", "layer": "above"}
    place |= {"yanchor": "bottom", "sizex": 0.88, "sizey": cell / (cell + _WORDS)}
    rows = enumerate([pictures["teacher", 1], *stops[factor].pictures])
    images = [{"source": each, "x": k, "y": row, **place} for row, sources in rows for k, each in enumerate(sources)]
    figure.update_layout(images=images)  # at once: adding one by one is slow
    if budget is not None:
        _add_budget(figure, found, budget)
    steps = [{"label": f"×{f}", "method": "update", "args": _change(stop, titles[f])} for f, stop in stops.items()]
    slider: dict[str, Any] = {
        "x": 0,
        "len": share,
        "y": 1,
        "yanchor": "bottom",
        "pad": {"b": 8, "t": 0},
        "steps": steps,
    }
    slider |= {"active": found.factors.index(factor), "currentvalue": {"prefix": "pooled earlier by "}}
    return figure.update_layout(sliders=[slider], title_text=titles[factor])


def _stop(shown: Shown, factor: int, pictures: Mapping[tuple[str, int], Pictures]) -> _Stop:
    found = shown.found
    views = {role: its.get(factor) for role, its in found.students.items()}
    there = {role: view for role, view in views.items() if view}
    first = next(iter(there.values()))
    traces = [*_staircase(found, first), *_agreement(found, views), *_memory(found, there), *_dots(found, factor)]
    nothing = [""] * (1 + len(found.layers))
    title, note = _words(shown, factor, first)
    note += " Dotted line, pale bars: the teacher; solid line, dark bars: its student"
    note += "; orange marks: with RED blocks." if any(_with_blocks(there)[1]) else "."
    return _Stop(traces, [pictures.get((role, factor), nothing) for role in views], title, note)


def _change(stop: _Stop, title: str) -> list[dict[str, Any]]:
    """What plotly's `update` takes: of traces, then of the layout."""
    traces = [trace.to_plotly_json() for trace in stop.traces]
    data = {key: [trace.get(key) for trace in traces] for key in ("x", "y", "text", "hovertext")}
    sources = [source for row in stop.pictures for source in row]
    first = len(sources) // len(stop.pictures)  # the teacher's stay
    return [data, {f"images[{k}].source": source for k, source in enumerate(sources, first)} | {"title.text": title}]


def _axes(figure: go.Figure, found: Exploration, heights: Sequence[float], share: float) -> None:
    """Three rows over one axis of layers, the accuracy beside them. `heights` and `share` are parts of the plot."""
    names = ["image", *(place_name(short(name, 14)) for name in found.layers)]
    steps, _, bars = heights
    between = (1 - sum(heights)) / 2
    rows = ["teacher", *found.students]
    sides = sorted({side for side in (found.images.shape[-2], *found.teacher.sides) if side})
    spike = {"showspikes": True, "spikemode": "across", "spikethickness": 1, "spikedash": "solid"}
    figure.update_layout(
        xaxis={"domain": [0, share], "anchor": "y3", "range": [-0.5, len(names) - 0.5], "showgrid": False}
        | {"tickvals": [*range(len(names))], "ticktext": names, "tickangle": -40}
        | {**spike, "spikecolor": MUTED, "spikesnap": "hovered data"},
        yaxis={"domain": [1 - steps, 1], "type": "log", "title": "map side", "tickvals": sides}
        | {"ticktext": [str(side) for side in sides]},
        yaxis2={"domain": [bars + between, 1 - steps - between], "showgrid": False}
        | {"tickvals": [k - _MIDDLE for k in range(len(rows))]}
        | {"ticktext": [f"<b>{escape(label(role))}</b>" for role in rows]},
        yaxis3={"domain": [0, bars], "title": f"alive ({_unit(found)[0]})", "rangemode": "tozero"},
        hovermode="x unified", hoversubplots="axis", barmode="overlay", bargap=0.25,
    )  # fmt: skip
    if _accuracies(found):
        places = [*range(len(found.factors))]
        figure.update_layout(
            xaxis2={"domain": [share + (1 - share) * _FREE / _SIDE, 1], "anchor": "y4", "showgrid": False}
            | {"tickvals": places, "ticktext": [f"×{f}" for f in found.factors], "range": [-0.4, places[-1] + 0.4]}
            | {"tickfont": {"size": 11}, "tickangle": 0},
            yaxis4={"domain": [0.5, 1], "anchor": "x2", "title": f"accuracy on {len(found.images)} images (%)"},
        )


def _add_budget(figure: go.Figure, found: Exploration, budget: int) -> None:
    end, height = len(found.layers) + 0.5, budget / _unit(found)[1]
    tone = color("kd")
    line = {"type": "line", "x0": -0.5, "x1": end, "y0": height, "y1": height}
    figure.add_shape(**line, xref="x", yref="y3", line={"color": tone, "width": 2, "dash": "dash"})
    text = {"text": f"budget {format_size(budget)}", "font": {"color": tone}, "xanchor": "right", "yanchor": "bottom"}
    figure.add_annotation(x=end, y=height, xref="x", yref="y3", **text)


def _unit(found: Exploration) -> tuple[str, int]:
    return unit_of(found.teacher.profile.peak_bytes)


def _accuracies(found: Exploration) -> dict[str, dict[int, float]]:
    """In %, by role and factor; nothing without labels."""
    if math.isnan(found.teacher.accuracy):
        return {}
    return {role: {f: view.accuracy for f, view in views.items()} for role, views in found.students.items()}


def _staircase(found: Exploration, student: View) -> list[go.Scatter]:
    traces = []
    for role, view, dash in (("teacher", found.teacher, "dot"), ("student", student, "solid")):
        sides = [found.images.shape[-2], *view.sides]
        told = {"text": [f"{side}×{side}" for side in sides], "hovertemplate": "%{text}", "name": f"{role}'s map"}
        line = {"color": color(role), "width": 3, "shape": "hvh", "dash": dash}
        steps = {"x": [*range(len(sides))], "y": [side or None for side in sides], "mode": "lines", "line": line}
        traces.append(go.Scatter(**steps, **told, showlegend=False))
    return traces


def _agreement(found: Exploration, views: Mapping[str, View | None]) -> list[go.Scatter]:
    """The correlation below each map, row by row; the marks that carry it, at the maps' lower edges, are not seen."""
    traces, places = [], [*range(1, len(found.layers) + 1)]
    for row, (role, view) in enumerate(views.items(), 1):
        text, told, y = [""] * len(places), [_MISSING] * len(places), float(row)
        if view is None:
            text[len(places) // 2], y = _MISSING, row - _MIDDLE
        else:
            pairs = [*zip(view.correlation, view.cosine, strict=True)]
            text = ["" if math.isnan(one) else number(one) for one, _ in pairs]
            told = [f"correlation {number(one)}, cosine {number(two)}" for one, two in pairs]
        traces.append(
            go.Scatter(
                x=places, y=[y] * len(places), yaxis="y2", mode="markers+text", text=text, hovertext=told,
                textposition="bottom center", textfont={"size": 12}, hovertemplate="%{hovertext}",
                marker={"size": 4, "opacity": 0, "color": color(role)}, name=escape(label(role)), showlegend=False,
            )
        )  # fmt: skip
    return traces


def _memory(found: Exploration, views: Mapping[str, View]) -> list[go.Bar | go.Scatter]:
    """Bars of the teacher and of its students, and beyond these what RED blocks need."""
    _, scale = _unit(found)
    places = [*range(1, len(found.layers) + 1)]
    plain, with_blocks = _with_blocks(views)
    traces, tops = list[go.Bar | go.Scatter](), list[tuple[int, float, str]]()
    bars = {"yaxis": "y3", "hovertemplate": "%{hovertext}", "showlegend": False}
    for role, view, tone in (("teacher", found.teacher, faint(INK, 0.2)), ("student", plain, color("student"))):
        told = [format_size(live) for live in view.live]
        heights = [live / scale for live in view.live]
        traces.append(go.Bar(x=places, y=heights, hovertext=told, marker_color=tone, name=f"{role}'s memory", **bars))
        k = max(range(len(places)), key=view.live.__getitem__)
        tops.append((places[k], heights[k], f"<b>{told[k]}</b>"))
    mark = {"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": color("red")}}
    told = ["" if live is None else format_size(live) for live in with_blocks]
    over = [None if live is None else live / scale for live in with_blocks]
    blocks = {"x": places, "y": over, "hovertext": told, "mode": "markers", "marker": mark}
    traces.append(go.Scatter(**blocks, name="with RED blocks", **bars))
    x, y, text = ([*each] for each in zip(*tops, strict=True))
    above = {"mode": "text", "textposition": "top center", "hoverinfo": "skip", "showlegend": False, "yaxis": "y3"}
    return [*traces, go.Scatter(x=x, y=y, text=text, **above, cliponaxis=False)]


def _with_blocks(views: Mapping[str, View]) -> tuple[View, list[int | None]]:
    """The student that needs least, and the most alive in each layer of any other, where that is more."""
    plain = min(views.values(), key=lambda view: view.profile.peak_bytes)
    most = [max(each) for each in zip(plain.live, *(view.live for view in views.values()), strict=True)]
    return plain, [live if live > base else None for live, base in zip(most, plain.live, strict=True)]


def _dots(found: Exploration, factor: int) -> list[go.Scatter]:
    """Accuracy over the stride, role by role; what the slider shows is large and named."""
    traces, at = [], {each: k for k, each in enumerate(found.factors)}
    common: dict[str, Any] = {"xaxis": "x2", "yaxis": "y4", "showlegend": False}
    points = {"teacher": {1: found.teacher.accuracy}, **_accuracies(found)} if _accuracies(found) else {}
    for role, reached in points.items():
        tone, symbol = look(role)
        mark: dict[str, Any] = {"color": tone, "symbol": symbol}
        line = {"x": [at[f] for f in reached], "y": [*reached.values()], "mode": "lines+markers", "line_color": tone}
        hover = {"name": escape(label(role)), "hovertemplate": "%{y:.1f} %"}
        traces.append(go.Scatter(**line, marker={**mark, "size": 9}, **hover, **common))
        here = None if (role, factor) == (UNTRAINED, 1) else reached.get(factor)  # which is the teacher
        text = "" if here is None else f"  {escape(label(role).partition(' student')[0])} {here:.0f} %  "
        large = {
            "x": [at[factor]],
            "y": [here],
            "mode": "markers+text",
            "text": [text],
            "textposition": "middle right",
            "textfont": {"size": 12},
        }
        mark = {**mark, "size": 15, "line": {"color": INK, "width": 2}}
        traces.append(go.Scatter(**large, marker=mark, hoverinfo="skip", **common, cliponaxis=False))
    return traces


def _words(shown: Shown, factor: int, student: View) -> tuple[str, str]:
    """The finding at this stride, and how to read the figure."""
    found, image = shown.found, shown.image
    needs, left, k = found.teacher.profile.peak_bytes, student.profile.peak_bytes, found.first_block
    which = "" if found.classes is None else f", image {image}: class {escape(found.classes[image])}"
    note = f"{escape(found.teacher.profile.model)}{which}. Below a map: its correlation with the teacher's, "
    note += f"pixel by pixel, mean of {min(AGREEING, len(found.images))} images."
    if factor == 1:
        return f"The teacher needs {format_size(needs)}: what is left of it when it pools earlier?", note
    text = f"Pooled ×{factor} earlier: {ratio(needs, left)} the teacher's memory ({format_size(needs)} → "
    text += f"{format_size(left)})"
    if not math.isnan(student.correlation[k]):
        text += f", and its maps at {found.layers[k]} agree with the teacher's by {number(student.correlation[k])}"
        note += f" RED's loss sees the cosine, {number(student.cosine[k])} there."
    return text, note


def _pictures(shown: Shown) -> dict[tuple[str, int], Pictures]:
    """By role and factor. A map is divided by its root mean square; a layer's maps share a scale at all strides."""
    found, maps = shown.found, shown.maps
    image = found.images[shown.image]
    sides = {(role, f): view.first for role, its in found.students.items() for f, view in its.items()}
    sides["teacher", 1] = found.teacher.first
    pictures = {key: [_thumbnail(image, sides[key])] for key in maps}
    for k in range(len(found.layers)):
        scaled = {
            key: x / (np.sqrt(np.mean(np.square(x))) or 1) for key, its in maps.items() if (x := its[k]) is not None
        }
        low, high = np.percentile(np.concatenate([x.ravel() for x in scaled.values()]), [1, 99])
        for key, its in pictures.items():
            its.append(_map((scaled[key] - low) / ((high - low) or 1)) if key in scaled else "")
    return pictures


def _thumbnail(image: Tensor, side: int) -> str:
    """The image with as many pixels as the first map has."""
    height, width = image.shape[-2:]
    size = side, max(1, round(side * width / height))
    small = F.adaptive_avg_pool2d(image.float(), size).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(small[..., 0] if small.shape[-1] == 1 else small[..., :3])
    return _png(picture.resize((_CELL, _CELL), Image.Resampling.NEAREST))


def _map(shares: NDArray[np.floating[Any]]) -> str:
    """A map in colours, from 0 to 1."""
    levels = (np.clip(shares, 0, 1) * (len(_PALETTE) - 1)).round().astype(np.uint8)
    picture = Image.fromarray(levels).resize((_CELL, _CELL), Image.Resampling.NEAREST)
    picture.putpalette([round(part) for tone in _PALETTE for part in tone])
    return _png(picture)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
