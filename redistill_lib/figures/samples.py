"""Images side by side: of a data set, on their way out of the noise, generated."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from redistill_lib.diffusion import Trajectory, image_grid, to_uint8
from redistill_lib.figures.theme import MUTED, NARROW, PAGE, finish, role_trace
from redistill_lib.results import label, listed, number, paired_difference, role_key, the

SIDE = 96  # pixels an image is reduced to when it is larger
_SHOWN, _BETWEEN = 4, 6  # images of a film's row, and pixels between what is given and what is seen
_NAMES, _FAR = 124, 48  # pixels left and right of it
_MEASURE = "Difference: root mean square over pixels, where black is −1 and white 1"
Panel = tuple[go.Image | go.Heatmap | None, str, str]  # what is shown, the text above it, the text below it
Rows = Sequence[Sequence[Panel]]


def images(
    images: Any, captions: Sequence[object] | None = None, *, title: str | None = None, columns: int = 8
) -> go.Figure:
    """A grid of images (uint8, N×C×H×W; one or three channels) with a caption below each.

    Raises ValueError for other arrays, or when captions and images differ in number.

    >>> len(images(np.zeros((3, 1, 8, 8), np.uint8), ["a", "b", "c"]).data)
    3
    """
    array = np.asarray(images)
    if array.ndim != 4 or array.dtype != np.uint8 or array.shape[1] not in (1, 3):
        raise ValueError(f"images are uint8, N×C×H×W, C 1 or 3, not {array.dtype} {array.shape}")
    words = [str(c) for c in captions] if captions is not None else [""] * len(array)
    if len(words) != len(array):
        raise ValueError(f"{len(array)} images but {len(words)} captions; give one per image")
    shown = [
        (image_trace(image, f"image {k}: {word}"), "", word)
        for k, (image, word) in enumerate(zip(array, words, strict=True))
    ]
    height, width = array.shape[-2:]
    shape = f"{height}×{width} pixels, {'grey' if array.shape[1] == 1 else 'colour'}"
    found = title or f"{len(array)} images of {shape}"
    rows = [shown[k : k + columns] for k in range(0, len(shown), columns)]
    return panels(rows, (height, width), found, shape if title else "")


def trajectories(paths: Mapping[str, Trajectory], step: int | None = None) -> go.Figure:
    """Out of the noise, step by step: x_t, which each network is given, and the image that it sees in it.

    `paths` (`redistill_lib.diffusion.trajectory`) by role, all from the same noise at the same time steps: a row each
    of its first four images. Slider and buttons need no kernel; it opens at `step`, by default half way. How far
    students are from the teacher stands beside their rows and in the chart. A step of four networks that draw 16×16
    grey pixels takes 7 kB. Raises ValueError for paths that differ in time steps or size, and for another step.

    >>> path = Trajectory((999, 499), *torch.zeros(2, 2, 4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    >>> [stop.label for stop in trajectories({"teacher": path, "student": path}).layout.sliders[0].steps]
    ['999', '499']
    """
    first, leader = _checked(paths), next(iter(paths))
    times, last = [str(t) for t in first.t], len(first.t) - 1
    step = len(times) // 2 if step is None else step
    if not 0 <= step <= last:
        raise ValueError(f"the trajectories have {len(times)} steps, counted from 0; there is no step {step}")
    apart = {role: far.mean(1) for role, far in _differences({r: path.seen for r, path in paths.items()}).items()}
    beside = [[number(float(apart[role][k])) if role in apart else "" for role in paths] for k in range(len(times))]
    sheets = [_sheet(paths, k) for k in range(len(times))]
    frames = [_frame(t, sheets[k], k, beside[k]) for k, t in enumerate(times)]
    height, width = sheets[0].shape[1:]
    middles = [height * (k + 0.5) / len(paths) for k in range(len(paths))]
    figure = go.Figure(layout=frames[step].layout, frames=frames)
    numbers = {"x": [width] * len(paths), "y": middles, "text": beside[step], "textposition": "middle right"}
    figure.add_scatter(**numbers, mode="text", cliponaxis=False)
    figure.add_scatter(x=[step, step], y=[0, 1], mode="lines", line_color=MUTED, xaxis="x2", yaxis="y3")
    figure.update_traces(hoverinfo="skip", showlegend=False)
    for role, far in apart.items():
        told = {"x": [*range(len(times))], "y": far.tolist(), "text": times, "mode": "lines+markers"}
        figure.add_trace(role_trace(role, ": %{y:.2f} at t = %{text}", **told, xaxis="x2", yaxis="y2"))
    wide, chart = PAGE - _NAMES - _FAR, 150 if apart else 0
    tall = wide * height / width
    for role, y in zip(paths, middles, strict=True):
        figure.add_annotation(text=f"<b>{label(role)}</b>", x=0, xshift=-8, xanchor="right", y=y)
    for head, x in (("is given (x<sub>t</sub>)", 0), ("sees in it", (width + _BETWEEN) / 2)):
        figure.add_annotation(text=head, x=x, xanchor="left", y=0, yanchor="bottom")
    plot = tall + 20 + chart
    edge = 10 * last / (wide - 20)  # the slider keeps 10 pixels free at its ends, the chart above it the same
    figure.update_layout(
        xaxis={"visible": False, "range": [0, width], "constrain": "domain", "constraintoward": "left"},
        yaxis={"visible": False, "range": [height, 0], "domain": [1 - tall / plot, 1], "scaleanchor": "x"}
        | {"constrain": "domain", "constraintoward": "top"},
        xaxis2={
            "range": [-edge, last + edge],
            "anchor": "y2",
            "showticklabels": False,
            "tickvals": [*range(last + 1)],
        },
        yaxis2={"domain": [0, chart / plot], "title": "difference", "rangemode": "tozero"},
        yaxis3={
            "overlaying": "y2",
            "anchor": "x2",
            "visible": False,
            "range": [0, 1],
        },  # of the line through the chart
        **_controls(times, step),
    )
    note = "In what it is given a network sees an image, early on a guess."
    text = f"{label(leader)} on its way out of the noise"
    if apart:
        note += f" {_MEASURE}; beside the rows and below, mean over {len(first.final)} images."
        starts, ends = (_told({role: far[k] for role, far in apart.items()}) for k in (0, -1))
        text = f"Difference from what the teacher sees: {starts} at t = {times[0]}, {ends} at the end"
    return finish(figure, text, note, plot=round(plot), margins=(_NAMES, 22, _FAR, 96), legend=bool(apart))


def _frame(name: str, sheet: Tensor, k: int, beside: Sequence[str]) -> go.Frame:
    """What changes from step to step: the picture, the numbers beside its rows, and where the chart is looked at."""
    from PIL import Image

    _, height, width = sheet.shape
    few = Image.fromarray(sheet.permute(1, 2, 0).squeeze(-1).numpy()).quantize(16 if len(sheet) == 1 else 64)
    png = _address(few, "png", optimize=True)
    sharp = "style='image-rendering:pixelated'"  # browsers blur what they enlarge
    drawn = f"<image width='{width}' height='{height}' href='{png}' {sharp}/>"
    framed = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'>{drawn}</svg>"
    place = {"x": 0, "y": 0, "xref": "x", "yref": "y", "sizex": width, "sizey": height, "sizing": "stretch"}
    layout = {"images": [{"source": "data:image/svg+xml," + quote(framed, "/+=;:,' "), **place}]}
    return go.Frame(name=name, traces=[0, 1], data=[go.Scatter(text=beside), go.Scatter(x=[k, k])], layout=layout)


def _sheet(paths: Mapping[str, Trajectory], k: int) -> Tensor:
    """A step in 16 greys, to be small: left what the networks are given, right what they see, a row each."""
    halves = []
    for shots in ([path.noisy[k] for path in paths.values()], [path.seen[k] for path in paths.values()]):
        chosen = torch.cat([shot[:_SHOWN] for shot in shots])
        halves.append(image_grid(to_uint8(chosen), len(chosen) // len(shots)))
    between = torch.full_like(halves[0][..., :_BETWEEN], 255)
    return torch.cat([halves[0], between, halves[1]], -1).div(17).round().mul(17).byte()


def _controls(times: Sequence[str], step: int) -> dict[str, Any]:
    """Slider and buttons of a film whose frames have these names."""
    now, slow = (
        {"mode": "immediate", "frame": {"duration": ms, "redraw": True}, "transition": {"duration": 0}}
        for ms in (0, 250)
    )
    stops = [{"label": t, "method": "animate", "args": [[t], now]} for t in times]
    slider = {"steps": stops, "active": step, "x": 0, "len": 1, "y": 0, "currentvalue": {"prefix": "t = "}}
    play = {"label": "play", "method": "animate", "args": [None, {"fromcurrent": True, **slow}]}
    pause = {"label": "pause", "method": "animate", "args": [[None], now]}
    place = {"x": 0, "xanchor": "right", "y": 0, "yanchor": "top", "pad": {"t": 20, "r": 12}}
    buttons = {"type": "buttons", "direction": "left", "showactive": False, "buttons": [play, pause], **place}
    return {"sliders": [slider], "updatemenus": [buttons]}


def sample_grids(samples: Mapping[str, Tensor], *, count: int = 16) -> go.Figure:
    """Generated images of each role side by side, place by place from the same noise.

    `samples` (what `redistill_lib.sample` returns: N×C×H×W, −1…1) by role; the first `count` are shown. The title
    says how far each role's images are from the teacher's, image by image, over all N, and whether a paired 95 %
    t-interval over images tells the nearest from the others. Raises ValueError for samples of unlike shape.

    >>> teacher = torch.zeros(9, 1, 8, 8)
    >>> figure = sample_grids({"teacher": teacher, "student": teacher + 0.5, "red": teacher + 0.25})
    >>> from redistill_lib.figures import headline
    >>> headline(figure)
    "Difference from the teacher's images: 0.25 (RED) and 0.50 (naive student)"
    """
    shapes = ["×".join(map(str, images.shape)) for images in samples.values()]
    if len(set(shapes)) != 1:
        raise ValueError(f"the samples need one shape and one number, not {', '.join(shapes) or 'none at all'}")
    total = len(next(iter(samples.values())))
    if not total or count < 1:
        raise ValueError(f"there is nothing to show: count={count} of {total} samples")
    if not all(images.is_floating_point() for images in samples.values()):
        raise ValueError("the samples are floats in −1…1, as redistill_lib.sample returns them, not bytes")
    row, extent = _grids({role: images[:count] for role, images in samples.items()})
    shown = f"{min(count, total)} of {total} shown; one place, one noise."
    note = f"{shown} {_MEASURE}; mean over {total} images, one run each."
    return panels([row], extent, _nearest(samples), note)


def panels(
    rows: Rows, extent: Sequence[int], title: str, note: str, names: Sequence[str] = (), right: int = 12
) -> go.Figure:
    """A figure of images or maps in rows, each over `extent` (height, width), with names left of the rows.

    At least `right` pixels stay free beside them.
    """
    height, width = extent
    columns, left = max(map(len, rows)), 124 if names else 12
    wide = PAGE - left - right
    side = min(250, wide // columns, max(110, 800 // len(rows)))  # pixels from panel to panel
    unit = 1.1 * width / side  # of the axes, per pixel
    room = unit * wide / (NARROW - left - right)  # the same at the least width, where words are as high as ever
    figure, across, above = go.Figure(), side * unit, 0.0
    for row, name in zip(rows, names or [""] * len(rows), strict=True):
        top = above + room * 17 * max(1 + head.count("<br>") if head else 0 for _, head, _ in row)
        for k, (trace, head, word) in enumerate(row):
            if trace:
                figure.add_trace(trace.update(x0=trace.x0 + k * across, y0=trace.y0 + top))
            for text, y, edge in ((head, top, "bottom"), (word, top + height, "top")):
                if text:
                    figure.add_annotation(text=text, x=k * across + width / 2, y=y, yanchor=edge)
        if name:
            figure.add_annotation(text=name, x=0, xshift=-8, xanchor="right", y=top + height / 2, align="right")
        above = top + height + (room * 24 if any(word for _, _, word in row) else unit * 8)
    figure.update_annotations(font_size=12)
    figure.update_layout(
        xaxis={"range": [0, columns * across], "domain": [0, columns * side / wide], "constraintoward": "left"},
        yaxis={"range": [above, 0], "scaleanchor": "x", "constraintoward": "top"},
    )
    figure.update_xaxes(visible=False, constrain="domain").update_yaxes(visible=False, constrain="domain")
    return finish(figure, title, note, plot=round(above / unit), margins=(left, 4, right, 4))


def image_trace(image: Any, name: str, *, most: int = SIDE, extent: Sequence[int] = ()) -> go.Image:
    """An image (uint8, C×H×W) over `extent` (height, width), by default its own; reduced to `most` pixels a side."""
    from PIL import Image

    pixels = np.asarray(image).transpose(1, 2, 0)
    step = math.ceil(max(pixels.shape[:2]) / most)
    shown = pixels[::step, ::step]
    picture = Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown)
    source = _address(picture, "png", optimize=True)
    if len(source) > 8000:  # as of a photograph
        source = _address(picture, "jpeg", quality=88)
    height, width = extent or pixels.shape[:2]
    dy, dx = height / shown.shape[0], width / shown.shape[1]
    place = {"x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy}
    return go.Image(source=source, name=name, hovertemplate=f"{name}<extra></extra>", **place)


def _address(picture: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _grids(images: Mapping[str, Tensor]) -> tuple[list[Panel], Sequence[int]]:
    """A panel per role with all its images, and the height and width of each."""
    found = []
    for role, batch in images.items():
        columns = math.ceil(math.sqrt(len(batch)))
        grid = image_grid(to_uint8(batch), columns)
        head = f"<b>{label(role).partition(',')[0]}</b>"
        found.append((image_trace(grid, label(role), most=columns * SIDE), head, ""))
    return found, grid.shape[1:]


def _checked(paths: Mapping[str, Trajectory]) -> Trajectory:
    if not paths:
        raise ValueError("there is no trajectory to show")
    first = next(iter(paths.values()))
    for role, path in paths.items():
        if (path.t, path.final.shape) != (first.t, first.final.shape):
            raise ValueError(f"the trajectory of {role} is {path}, others are {first}: use the same settings for all")
    return first


def _differences(images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By student: the root mean square difference of each image from the teacher's; nothing without a teacher."""
    if "teacher" not in images:
        return {}
    students = {role: shown for role, shown in images.items() if role_key(role) != "teacher"}
    return {r: (shown - images["teacher"]).square().mean((-3, -2, -1)).sqrt() for r, shown in students.items()}


def _told(values: Mapping[str, Tensor]) -> str:
    return listed(f"{number(float(value.mean()))} ({label(role)})" for role, value in values.items())


def _nearest(samples: Mapping[str, Tensor]) -> str:
    """The mean differences from the teacher's images, the least first, and from whom the images cannot tell it."""
    values = dict(sorted(_differences(samples).items(), key=lambda item: float(item[1].mean())))
    if not values:
        return f"{len(next(iter(samples.values())))} images each of {listed(map(label, samples))}"
    best, *others = values
    text = f"Difference from the teacher's images: {_told(values)}"
    gaps = {role: paired_difference(values[role].tolist(), values[best].tolist()) for role in others}
    near = [the(role) for role, gap in gaps.items() if not gap.decided]
    return f"{text}; these images cannot tell {the(best)} from {listed(near)}" if near else text
