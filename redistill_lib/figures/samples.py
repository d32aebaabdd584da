"""Images side by side: of a data set, on their way out of the noise, generated."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from torch import Tensor

from redistill_lib.diffusion import Trajectory, image_grid, to_uint8
from redistill_lib.figures.theme import PAGE, finish, muted
from redistill_lib.results import label, listed, number, paired_difference, role_key, the

SIDE = 96  # pixels an image is reduced to when it is larger
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


def trajectories(paths: Mapping[str, Trajectory]) -> go.Figure:
    """The first image on its way out of the noise, from left to right in time: a row per role.

    `paths` (`redistill_lib.diffusion.trajectory`) by role, all from the same noise at the same time steps. First row:
    x_t, what the first of the networks is given; then the image that each sees in what it is given; last column:
    where it ends. Below a student's images stands how far they are from the teacher's; the title has the means over
    all images of the trajectories. Raises ValueError for paths that differ in time steps or size.

    >>> path = Trajectory((999, 499), *torch.zeros(2, 2, 4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    >>> len(trajectories({"teacher": path, "student": path}).data)
    8
    """
    first, leader = _checked(paths), next(iter(paths))
    seen = {role: torch.cat([path.seen, path.final[None]]) for role, path in paths.items()}
    apart, times = _differences(seen), [f"t = {t}" for t in first.t]
    lines = [(leader, "is given", first.noisy), *((role, "sees", shots) for role, shots in seen.items())]
    rows: list[list[Panel]] = [[] for _ in lines]
    for r, (role, does, shots) in enumerate(lines):
        for k, shown in enumerate(shots[:, 0]):
            name = f"{label(role)} ends in" if k == len(times) else f"{label(role)} {does} at {times[k]}"
            far = number(float(apart[role][k, 0])) if r and role in apart else ""
            rows[r].append((image_trace(to_uint8(shown), name), "" if r else times[k], far and muted(far)))
    rows[0].append((None, "<b>the end</b>", ""))  # nothing is given there
    note = f"Below students: difference from the teacher's. {_MEASURE}; title: mean over {len(first.final)} images."
    text = f"{label(leader)} on its way out of the noise"
    if apart:
        starts, ends = (_told({role: values[k] for role, values in apart.items()}) for k in (0, -1))
        text = f"Difference from what the teacher sees: {starts} at t = {first.t[0]}, {ends} at the end"
    names = [f"<b>{label(role)}</b><br>{does}" for role, does, _ in lines]
    return panels(rows, first.final.shape[-2:], text, note, names=names)


def trajectory_step(paths: Mapping[str, Trajectory], shot: int) -> go.Figure:
    """All images of each role at one shot: above what the networks are given, below what they see in it.

    `paths` as for `trajectories`; `shot` counts from 0, −1 is the last. One column per role.

    >>> path = Trajectory((999, 499), *torch.zeros(2, 2, 4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    >>> trajectory_step({"teacher": path, "red": path}, 1).layout.title.text.partition("<br>")[0]
    '<b>At t = 499 the difference from what the teacher sees is 0.00 (RED)</b>'
    """
    first = _checked(paths)
    if not -len(first.t) <= shot < len(first.t):
        raise ValueError(f"the trajectories have {len(first.t)} shots, counted from 0; there is no shot {shot}")
    given, extent = _grids({role: path.noisy[shot] for role, path in paths.items()})
    images = {role: path.seen[shot] for role, path in paths.items()}
    text = f"At t = {first.t[shot]}"
    if apart := _differences(images):
        text += f" the difference from what the teacher sees is {_told(apart)}"
    note = f"{_MEASURE}; mean over {len(first.final)} images."
    names = ["each<br>is given", "each<br>sees"]
    return panels([given, _grids(images)[0]], extent, text, note, names=names)


def sample_grids(samples: Mapping[str, Tensor], *, count: int = 16) -> go.Figure:
    """Generated images of each role side by side, place by place from the same noise.

    `samples` (what `redistill_lib.sample` returns: N×C×H×W, −1…1) by role; the first `count` are shown. The title
    says how far each role's images are from the teacher's, image by image, over all N, and whether a paired 95 %
    t-interval over images tells the nearest from the others. Raises ValueError for samples of unlike shape.

    >>> teacher = torch.zeros(9, 1, 8, 8)
    >>> figure = sample_grids({"teacher": teacher, "student": teacher + 0.5, "red": teacher + 0.25})
    >>> figure.layout.title.text.partition("<br>")[0]
    "<b>Difference from the teacher's images: 0.25 (RED) and 0.50 (naive student)</b>"
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
    side = min(250, (PAGE - left - right) // columns, max(110, 800 // len(rows)))  # pixels from panel to panel
    unit = 1.1 * width / side  # of the axes, per pixel
    figure, across, above = go.Figure(), side * unit, 0.0
    for row, name in zip(rows, names or [""] * len(rows), strict=True):
        top = above + unit * 18 * max(1 + head.count("<br>") if head else 0 for _, head, _ in row)
        for k, (trace, head, word) in enumerate(row):
            if trace:
                figure.add_trace(trace.update(x0=trace.x0 + k * across, y0=trace.y0 + top))
            for text, y in ((head, above), (word, top + height)):
                if text:
                    figure.add_annotation(text=text, x=k * across + width / 2, y=y, yanchor="top")
        if name:
            figure.add_annotation(text=name, x=0, xshift=-8, xanchor="right", y=top + height / 2, align="right")
        above = top + height + unit * (26 if any(word for _, _, word in row) else 8)
    figure.update_annotations(font_size=12)
    figure.update_xaxes(visible=False, range=[0, columns * across], constrain="domain")
    figure.update_yaxes(visible=False, range=[above, 0], scaleanchor="x", constrain="domain")
    margins = (left, 4, PAGE - left - columns * side, 4)
    return finish(figure, title, note, plot=round(above / unit), margins=margins)


def image_trace(image: Any, name: str, *, most: int = SIDE, extent: Sequence[int] = ()) -> go.Image:
    """An image (uint8, C×H×W) over `extent` (height, width), by default its own; reduced to `most` pixels a side."""
    from PIL import Image

    pixels = np.asarray(image).transpose(1, 2, 0)
    step = math.ceil(max(pixels.shape[:2]) / most)
    shown = pixels[::step, ::step]
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):  # JPEG where PNG would be large
        buffer = io.BytesIO()
        Image.fromarray(shown[..., 0] if shown.shape[-1] == 1 else shown).save(buffer, kind, **options)
        if buffer.tell() < 6000:
            break
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    height, width = extent or pixels.shape[:2]
    dy, dx = height / shown.shape[0], width / shown.shape[1]
    place = {"x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy}
    return go.Image(source=source, name=name, hovertemplate=f"{name}<extra></extra>", **place)


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
