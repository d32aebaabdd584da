"""How images come out of the noise, for a teacher and its students from the same noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from torch import Tensor

from redistill_lib.diffusion import Trajectory, image_grid, to_uint8
from redistill_lib.figures.samples import SIDE, image_trace
from redistill_lib.figures.theme import MUTED, WIDTH, color, finish, rows_of_legend, symbol
from redistill_lib.results import label, listed, number, paired_difference, role_key, the

if TYPE_CHECKING:
    import pandas as pd

NAMES = 112  # pixels left of the rows, for their names
GAP = 2  # pixels between the images of a grid
TICKS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1)
APART = "Difference: root mean square over pixels, where black is −1 and white 1"


def denoising_curves(histories: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Validation loss of the averaged weights (mean squared error of the noise) over steps, one colour per role.

    `histories` are what `Run.history()` gives of diffusion runs, by role. The loss is that of
    `redistill_lib.diffusion.denoising_loss`, the same task for teacher and students. The scale is logarithmic.

    Raises ValueError for no history at all.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"step": [100, 200], "validation_loss": [0.2, 0.1]})
    >>> denoising_curves({"teacher": rows, "student": rows + 0.02}).layout.title.text.partition("<br>")[0]
    '<b>Validation loss at the end: teacher 0.1000, naive student 0.1200</b>'
    """
    if not histories:
        raise ValueError("there is no history to show")
    figure = go.Figure()
    for role, history in histories.items():
        figure.add_scatter(
            x=history["step"], y=history["validation_loss"], name=label(role), mode="lines+markers",
            line={"color": color(role), "width": 2.5}, marker={"symbol": symbol(role), "size": 7},
            hovertemplate=f"<b>{label(role)}</b>, step %{{x}}<br>validation loss %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    lasts = {role: float(history["validation_loss"].iloc[-1]) for role, history in histories.items()}
    figure.update_xaxes(title="training steps", rangemode="tozero")
    figure.update_yaxes(title="validation loss (MSE of the noise)", type="log", tickvals=TICKS)
    found = f"Validation loss at the end: {', '.join(f'{label(r)} {number(v, 4)}' for r, v in lasts.items())}"
    note = "Averaged weights; noise and time steps are the same in every reading. Logarithmic scale; one run each."
    legend = rows_of_legend(map(label, histories))
    return finish(figure, found, note, plot=280, legend=legend)


def trajectories(paths: Mapping[str, Trajectory], *, image: int = 0) -> go.Figure:
    """One image on its way out of the noise, from left to right in time: a row per role.

    `paths` (`redistill_lib.diffusion.trajectory`) by role, all from the same noise at the same time steps. First row:
    x_t, what the first of the networks is given; then the image that each sees in what it is given; last column:
    where it ends. Below a student's images stands how far they are from the teacher's, for this image; the title
    has the means over all images of the trajectories.

    Raises ValueError for paths that differ in time steps or size, and for an image they do not have.

    >>> import torch
    >>> path = Trajectory((999, 499), *torch.zeros(2, 2, 4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    >>> len(trajectories({"teacher": path, "student": path}).data)
    8
    """
    first = _checked(paths)
    if not 0 <= image < len(first.final):
        raise ValueError(f"the trajectories have images 0 to {len(first.final) - 1}, not {image}")
    height, width = first.final.shape[-2:]
    across, down = 1.08 * width, 1.3 * height
    figure = go.Figure()
    lines = [(next(iter(paths)), "is given", [*first.noisy[:, image]])]
    lines += [(role, "sees", [*path.seen[:, image], path.final[image]]) for role, path in paths.items()]
    for r, (role, does, shots) in enumerate(lines):
        for k, shown in enumerate(shots):
            when = f"{does} at t = {first.t[k]}" if k < len(first.t) else "ends in"
            _add_image(figure, shown, f"{label(role)} {when}", k * across, r * down)
        _add_text(figure, f"<b>{label(role)}</b><br>{does}", -0.1 * width, r * down + height / 2, "right")
        if r and role_key(role) != "teacher" and "teacher" in paths:
            for k, step in enumerate([*range(len(first.t)), None]):
                value = float(_differences(paths, step)[role][image])
                text = f'<span style="color:{MUTED};font-size:12px">{number(value)}</span>'
                _add_text(figure, text, k * across + width / 2, r * down + 1.14 * height, "center")
    for k, t in enumerate([f"t = {t}" for t in first.t] + ["<b>the end</b>"]):
        _add_text(figure, t, k * across + width / 2, -0.15 * height, "center")
    columns = (len(first.t) + 1) * across
    plot = _fit(figure, (NAMES, columns), (-0.3 * height, len(lines) * down), WIDTH)
    note = (
        f"Image {image}. Below students: difference from the teacher's. {APART}; in the title the mean over "
        f"{len(first.final)} images."
    )
    text = f"{label(next(iter(paths)))} on its way out of the noise"
    if ends := _differences(paths, None):
        starts = _differences(paths, 0)
        text = f"Difference from what the teacher sees: {_told(starts)} at t = {first.t[0]}, {_told(ends)} at the end"
    return finish(figure, text, note, plot=plot, margins=(12, 4, 12, 4))


def trajectory_step(paths: Mapping[str, Trajectory], shot: int) -> go.Figure:
    """All images of each role at one shot: above what the networks are given, below what they see in it.

    `paths` as for `trajectories`; `shot` counts from 0, −1 is the last. One column per role.

    >>> import torch
    >>> path = Trajectory((999, 499), *torch.zeros(2, 2, 4, 1, 8, 8), torch.zeros(4, 1, 8, 8))
    >>> trajectory_step({"teacher": path, "red": path}, 1).layout.title.text.partition("<br>")[0]
    '<b>At t = 499 the difference from what the teacher sees is 0.00 (RED)</b>'
    """
    first = _checked(paths)
    if not -len(first.t) <= shot < len(first.t):
        raise ValueError(f"the trajectories have {len(first.t)} shots, counted from 0; there is no shot {shot}")
    figure = go.Figure()
    bottom = 0.0
    for does, field in (("is given", "noisy"), ("sees", "seen")):
        images = {role: getattr(path, field)[shot] for role, path in paths.items()}
        width, height = _add_grids(figure, images, top=bottom)
        _add_text(figure, f"each<br>{does}", -0.06 * width, bottom + height / 2, "right")
        bottom += 1.06 * height
    plot = _fit(figure, (NAMES, 1.06 * width * max(3, len(paths))), (-0.14 * height, bottom), WIDTH)
    text = f"At t = {first.t[shot]}"
    if apart := _differences(paths, shot):
        text += f" the difference from what the teacher sees is {_told(apart)}"
    note = f"{APART}; mean over {len(first.final)} images."
    return finish(figure, text, note, plot=plot, margins=(12, 4, 12, 4))


def sample_grids(samples: Mapping[str, Tensor], *, count: int = 16) -> go.Figure:
    """Generated images of each role side by side, place by place from the same noise.

    `samples` (what `redistill_lib.sample` returns: N×C×H×W, −1…1) by role; the first `count` are shown. The title
    says how far each role's images are from the teacher's, image by image, over all N, and whether a paired 95 %
    t-interval over images tells the nearest from the others.

    Raises ValueError for samples of unlike shape.

    >>> import torch
    >>> teacher = torch.zeros(9, 1, 8, 8)
    >>> figure = sample_grids({"teacher": teacher, "student": teacher + 0.5, "red": teacher + 0.25})
    >>> figure.layout.title.text.partition("<br>")[0]
    "<b>Difference from the teacher's images: 0.25 (RED) and 0.50 (naive student)</b>"
    """
    if len({tuple(images.shape) for images in samples.values()}) != 1:
        shapes = ", ".join("×".join(map(str, images.shape)) for images in samples.values())
        raise ValueError(f"the samples need one shape, as many of each role, not {shapes or 'none at all'}")
    total = len(next(iter(samples.values())))
    if not total or count < 1:
        raise ValueError(f"there is nothing to show: count={count} of {total} samples")
    if not all(images.is_floating_point() for images in samples.values()):
        raise ValueError("the samples are floats in −1…1, as redistill_lib.sample returns them, not bytes")
    figure = go.Figure()
    width, height = _add_grids(figure, {role: images[:count] for role, images in samples.items()})
    plot = _fit(figure, (0, 1.06 * width * max(3, len(samples))), (-0.1 * height, 1.02 * height), WIDTH)
    shown = f"{min(count, total)} of {total} shown; one place, one noise."
    note = f"{shown} {APART}; mean over {total} images, one run each."
    return finish(figure, _nearest(samples), note, plot=plot, margins=(12, 4, 12, 4))


# ----------------------------------------------------------------------------------------------------- drawing, words


def _add_image(figure: go.Figure, image: Tensor, name: str, x: float, y: float) -> None:
    shown = to_uint8(image) if image.is_floating_point() else image
    trace = image_trace(shown.permute(1, 2, 0).numpy(), (shown.shape[-2], shown.shape[-1]), x, y)
    figure.add_trace(trace.update(name=name, hovertemplate=f"{name}<extra></extra>"))


def _add_text(figure: go.Figure, text: str, x: float, y: float, anchor: str) -> None:
    figure.add_annotation(text=text, x=x, y=y, xanchor=anchor, yanchor="middle", align=anchor, showarrow=False)


def _add_grids(figure: go.Figure, images: Mapping[str, Tensor], top: float = 0.0) -> tuple[float, float]:
    """A grid of images per role, side by side, named at the top; width and height of one with the gaps around it."""
    for k, (role, batch) in enumerate(images.items()):
        columns = math.ceil(math.sqrt(len(batch)))
        down, across = (size + GAP for size in batch.shape[-2:])
        left, high = k * 1.06 * columns * across, math.ceil(len(batch) / columns) * down
        if not top:
            name = f"<b>{label(role).partition(',')[0]}</b>"
            _add_text(figure, name, left + columns * across / 2, -0.055 * high, "center")
        grid = image_grid(to_uint8(batch), columns, GAP)
        if max(grid.shape) <= SIDE:  # one trace is much smaller than many
            _add_image(figure, grid, label(role), left, top)
            continue
        for index, image in enumerate(batch):
            row, column = divmod(index, columns)
            name = f"{label(role)}, image {index}"
            _add_image(figure, image, name, left + column * across, top + row * down)
    return columns * across, high


def _fit(figure: go.Figure, widths: tuple[float, float], heights: tuple[float, float], outer: int) -> int:
    """Show so many pixels of names and, right of them, so many units; the height in pixels that this takes."""
    names, units = widths
    scale = (outer - 24 - names) / units
    figure.update_xaxes(visible=False, range=[-names / scale, units], constrain="domain")
    figure.update_yaxes(visible=False, range=heights[::-1], scaleanchor="x", constrain="domain")
    return round(scale * (heights[1] - heights[0]))


def _checked(paths: Mapping[str, Trajectory]) -> Trajectory:
    """The first path, after a look at whether all go the same way."""
    if not paths:
        raise ValueError("there is no trajectory to show")
    first = next(iter(paths.values()))
    for role, path in paths.items():
        if path.t != first.t or path.final.shape != first.final.shape:
            raise ValueError(
                f"the trajectory of {role} is {path}, others are {first}: draw all with the same settings"
            )
    return first


def _rms(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square difference, image by image: …×C×H×W → …"""
    return (a - b).square().mean((-3, -2, -1)).sqrt()


def _differences(paths: Mapping[str, Trajectory], shot: int | None) -> dict[str, Tensor]:
    """By student and image: how far what it sees at a shot is from what the teacher sees; None: where it ends."""
    if "teacher" not in paths:
        return {}
    at = {role: path.final if shot is None else path.seen[shot] for role, path in paths.items()}
    return {role: _rms(images, at["teacher"]) for role, images in at.items() if role_key(role) != "teacher"}


def _told(values: Mapping[str, Tensor]) -> str:
    return listed(f"{number(float(value.mean()))} ({label(role)})" for role, value in values.items())


def _nearest(samples: Mapping[str, Tensor]) -> str:
    """The mean differences from the teacher's images, the least first, and from whom the images cannot tell it."""
    if "teacher" not in samples or len(samples) < 2:
        return f"{len(next(iter(samples.values())))} images each of {listed(map(label, samples))}"
    values = {role: _rms(p, samples["teacher"]) for role, p in samples.items() if role_key(role) != "teacher"}
    values = dict(sorted(values.items(), key=lambda item: float(item[1].mean())))
    best, *others = values
    text = f"Difference from the teacher's images: {_told(values)}"
    gaps = {role: paired_difference(values[role].tolist(), values[best].tolist()) for role in others}
    near = [the(role) for role, gap in gaps.items() if not gap.decided]
    return f"{text}; these images cannot tell {the(best)} from {listed(near)}" if near else text
