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

from redistill_lib.figures.theme import WIDTH, finish

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
        row, column = divmod(index, columns)
        trace = image_trace(image.transpose(1, 2, 0), (height, width), x=column * across, y=row * down)
        trace.update(hovertemplate=f"image {index}: {words[index]}<extra></extra>", name=words[index])
        figure.add_trace(trace)
        if words[index]:
            x, y = column * across + width / 2, row * down + 1.02 * height
            figure.add_annotation(x=x, y=y, text=words[index], yanchor="top", showarrow=False)
    shape = f"{height}×{width} pixels, {'grey' if array.shape[1] == 1 else 'colour'}"
    figure.update_xaxes(visible=False, range=[-0.02 * width, columns * across], constrain="domain")
    figure.update_yaxes(visible=False, range=[rows * down, -0.02 * height], scaleanchor="x", constrain="domain")
    tall = rows * down * (WIDTH - 24) / max(columns * across, 4 * across)
    note = shape if title else ""
    title = title or f"{len(array)} images of {shape}"
    return finish(figure, title, note, plot=round(tall), margins=(12, 0, 12, 8))


def image_trace(image: NDArray[np.uint8], extent: tuple[int, int], x: float = 0, y: float = 0) -> go.Image:
    """One image (H×W×C) as a trace that covers `extent` (height, width) from the corner (x, y)."""
    step = math.ceil(max(image.shape[:2]) / SIDE)
    shown = image[::step, ::step] if step > 1 else image
    dy, dx = extent[0] / shown.shape[0], extent[1] / shown.shape[1]
    return go.Image(source=_uri(shown), x0=x + dx / 2, y0=y + dy / 2, dx=dx, dy=dy)


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
