"""Generated images as bytes and files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.runs import replacing


def to_uint8(images: Tensor) -> Tensor:
    """Images −1…1 as uint8 0…255, on the CPU: the inverse of `redistill_lib.to_float`.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.5])).tolist()
    [0, 128, 255]
    """
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to("cpu", torch.uint8)


def image_grid(images: Tensor, columns: int = 10, gap: int = 2) -> Tensor:
    """uint8 N×C×H×W → one image C×H'×W', row by row, with white gaps.

    >>> image_grid(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), columns=2).shape
    torch.Size([1, 18, 18])
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    missing = rows * columns - len(images)
    grid = F.pad(images, (0, gap, 0, gap, 0, 0, 0, missing), value=255)
    grid = grid.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap]


def save_grid(path: Path, images: Tensor) -> None:
    """A PNG of `image_grid`."""
    from PIL import Image

    grid = image_grid(images).permute(1, 2, 0).numpy()
    with replacing(path) as part:
        Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid).save(part, "png")
