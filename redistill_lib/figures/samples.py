"""Images of a data set."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.theme import PAGE, finish

SIDE = 96  # pixels an image is reduced to when it is larger


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
    columns = min(columns, len(array))
    rows = math.ceil(len(array) / columns)
    height, width = array.shape[-2:]
    across, down = 1.12 * width, (1.32 if captions is not None else 1.12) * height
    figure = go.Figure()
    for index, image in enumerate(array):
        x, y = index % columns * across, index // columns * down
        figure.add_trace(image_trace(image.transpose(1, 2, 0), f"image {index}: {words[index]}", x, y))
        if words[index]:
            add_text(figure, words[index], x + width / 2, y + 1.12 * height)
    plot = fit_panels(figure, max(columns, 4) * across, (-0.02 * height, rows * down))
    shape = f"{height}×{width} pixels, {'grey' if array.shape[1] == 1 else 'colour'}"
    found = title or f"{len(array)} images of {shape}"
    return finish(figure, found, shape if title else "", plot=plot, margins=(12, 0, 12, 8))


def image_trace(image: NDArray[np.uint8], name: str, x: float = 0, y: float = 0, most: int = SIDE) -> go.Image:
    """An image (H×W×C) with its corner at (x, y), a unit per pixel; reduced to `most` pixels a side."""
    step = math.ceil(max(image.shape[:2]) / most)
    shown = image[::step, ::step]
    dy, dx = (whole / part for whole, part in zip(image.shape[:2], shown.shape[:2], strict=True))
    place = {"x0": x + dx / 2, "y0": y + dy / 2, "dx": dx, "dy": dy}
    return go.Image(source=_uri(shown), name=name, hovertemplate=f"{name}<extra></extra>", **place)


def add_text(figure: go.Figure, text: str, x: float, y: float, anchor: str = "center") -> None:
    figure.add_annotation(text=text, x=x, y=y, xanchor=anchor, yanchor="middle", align=anchor, showarrow=False)


def fit_panels(figure: go.Figure, width: float, heights: tuple[float, float], names: int = 0) -> int:
    """Show so many units across, right of so many pixels for names; the height in pixels that this takes."""
    scale = (PAGE - 24 - names) / width
    figure.update_xaxes(visible=False, range=[-names / scale, width], constrain="domain")
    figure.update_yaxes(visible=False, range=heights[::-1], scaleanchor="x", constrain="domain")
    return round(scale * (heights[1] - heights[0]))


def _uri(image: NDArray[np.uint8]) -> str:
    """PNG, or JPEG where that would be large."""
    from PIL import Image

    encoded = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for kind in ("png", "jpeg"):
        buffer = io.BytesIO()
        encoded.save(buffer, kind, **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
        if buffer.tell() < 6000:
            break
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
