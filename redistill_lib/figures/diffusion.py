"""How images come out of the noise, for a teacher and its students from the same noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from torch import Tensor

from redistill_lib.diffusion import Trajectory, image_grid, to_uint8
from redistill_lib.figures.samples import SIDE, add_text, fit_panels, image_trace
from redistill_lib.figures.theme import MUTED, finish, role_trace
from redistill_lib.results import label, listed, number, paired_difference, role_key, the

if TYPE_CHECKING:
    import pandas as pd

_NAMES = 112  # pixels left of the rows, for their names
_GAP = 2  # pixels between the images of a grid
_TICKS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 1)
_MEASURE = "Difference: root mean square over pixels, where black is −1 and white 1"


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
        losses = {"x": history["step"], "y": history["validation_loss"], "mode": "lines+markers"}
        figure.add_trace(role_trace(role, ", step %{x}<br>validation loss %{y:.4f}", **losses))
    figure.update_xaxes(title="training steps", rangemode="tozero")
    figure.update_yaxes(title="validation loss (MSE of the noise)", type="log", tickvals=_TICKS)
    lasts = (f"{label(role)} {history['validation_loss'].iloc[-1]:.4f}" for role, history in histories.items())
    note = "Averaged weights; noise and time steps are the same in every reading. Logarithmic scale; one run each."
    found = f"Validation loss at the end: {', '.join(lasts)}"
    return finish(figure, found, note, plot=280, legend=True)


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
    first, apart = _checked(paths), _differences({r: torch.cat([p.seen, p.final[None]]) for r, p in paths.items()})
    if not 0 <= image < len(first.final):
        raise ValueError(f"the trajectories have images 0 to {len(first.final) - 1}, not {image}")
    height, width = first.final.shape[-2:]
    across, down = 1.08 * width, 1.3 * height
    figure = go.Figure()
    times = [*(f"t = {t}" for t in first.t), "<b>the end</b>"]
    for k, time in enumerate(times):
        add_text(figure, time, k * across + width / 2, -0.15 * height)
    lines = [(next(iter(paths)), "is given", [*first.noisy[:, image]])]
    lines += [(role, "sees", [*path.seen[:, image], path.final[image]]) for role, path in paths.items()]
    for r, (role, does, shots) in enumerate(lines):
        add_text(figure, f"<b>{label(role)}</b><br>{does}", -0.1 * width, r * down + height / 2, "right")
        for k, shown in enumerate(shots):
            name = f"{label(role)} {does} at {times[k]}" if k < len(first.t) else f"{label(role)} ends in"
            figure.add_trace(image_trace(_pixels(shown), name, k * across, r * down))
            if r and role in apart:
                text = f'<span style="color:{MUTED};font-size:12px">{number(float(apart[role][k, image]))}</span>'
                add_text(figure, text, k * across + width / 2, r * down + 1.14 * height)
    plot = fit_panels(figure, len(times) * across, (-0.3 * height, len(lines) * down), _NAMES)
    note = (
        f"Image {image}. Below students: difference from the teacher's. {_MEASURE}; in the title the mean over "
        f"{len(first.final)} images."
    )
    text = f"{label(next(iter(paths)))} on its way out of the noise"
    if apart:
        starts, ends = (_told({role: values[k] for role, values in apart.items()}) for k in (0, -1))
        text = f"Difference from what the teacher sees: {starts} at t = {first.t[0]}, {ends} at the end"
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
    figure, bottom = go.Figure(), 0.0
    for does, field in (("is given", "noisy"), ("sees", "seen")):
        images = {role: getattr(path, field)[shot] for role, path in paths.items()}
        width, height = _add_grids(figure, images, bottom)
        add_text(figure, f"each<br>{does}", -0.06 * width, bottom + height / 2, "right")
        bottom += 1.06 * height
    plot = fit_panels(figure, 1.06 * width * max(3, len(paths)), (-0.14 * height, bottom), _NAMES)
    text = f"At t = {first.t[shot]}"
    if apart := _differences(images):
        text += f" the difference from what the teacher sees is {_told(apart)}"
    note = f"{_MEASURE}; mean over {len(first.final)} images."
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
    shapes = ["×".join(map(str, images.shape)) for images in samples.values()]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"the samples need one shape, as many of each role, not {', '.join(shapes) or 'none at all'}"
        )
    total = len(next(iter(samples.values())))
    if not total or count < 1:
        raise ValueError(f"there is nothing to show: count={count} of {total} samples")
    if not all(images.is_floating_point() for images in samples.values()):
        raise ValueError("the samples are floats in −1…1, as redistill_lib.sample returns them, not bytes")
    figure = go.Figure()
    width, height = _add_grids(figure, {role: images[:count] for role, images in samples.items()})
    plot = fit_panels(figure, 1.06 * width * max(3, len(samples)), (-0.1 * height, 1.02 * height))
    shown = f"{min(count, total)} of {total} shown; one place, one noise."
    note = f"{shown} {_MEASURE}; mean over {total} images, one run each."
    return finish(figure, _nearest(samples), note, plot=plot, margins=(12, 4, 12, 4))


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = to_uint8(image).permute(1, 2, 0).numpy()
    return pixels


def _add_grids(figure: go.Figure, images: Mapping[str, Tensor], top: float = 0.0) -> tuple[float, float]:
    """A grid of images per role, side by side, named at the top; width and height of one with the gaps around it."""
    for k, (role, batch) in enumerate(images.items()):
        columns = math.ceil(math.sqrt(len(batch)))
        grid = image_grid(to_uint8(batch), columns, _GAP).permute(1, 2, 0).numpy()
        height, width = (size + _GAP for size in grid.shape[:2])
        if not top:
            add_text(figure, f"<b>{label(role).partition(',')[0]}</b>", (1.06 * k + 0.5) * width, -0.055 * height)
        figure.add_trace(image_trace(grid, label(role), 1.06 * k * width, top, most=columns * SIDE))
    return width, height


def _checked(paths: Mapping[str, Trajectory]) -> Trajectory:
    if not paths:
        raise ValueError("there is no trajectory to show")
    first = next(iter(paths.values()))
    for role, path in paths.items():
        if path.t != first.t or path.final.shape != first.final.shape:
            raise ValueError(
                f"the trajectory of {role} is {path}, others are {first}: draw all with the same settings"
            )
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
