"""Data sets that need no network: handwritten digits, and the same digits small among clutter.

In ``cluttered`` aggressive pooling costs accuracy: strokes are one or two pixels wide, the digit may be anywhere, and
fragments of others lie around it. All random numbers are integers, so a seed gives the same bytes on any machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.checks import check_fields, whole


@dataclass(frozen=True)
class Clutter:
    """What a cluttered image is made of; ValueError when the parts do not fit each other.

    Sides in pixels of the canvas, the digit and fragments of others, the number of these fragments, the standard
    deviation of the noise as a fraction of full scale; and the number of images per split.

    >>> Clutter(distractors=0).canvas
    40
    """

    canvas: int = 40
    digit_size: int = 14
    distractors: int = 3
    fragment_size: int = 6
    noise: float = 0.05
    train_size: int = 6000
    validation_size: int = 1000
    test_size: int = 2000

    def __post_init__(self) -> None:
        check_parts("cluttered", self)
        if not self.fragment_size <= self.digit_size <= self.canvas:
            sizes = f"{self.fragment_size}, digit_size {self.digit_size} and canvas (image_size) {self.canvas} px."
            rule = "fragments are cut from digits, which have to fit the canvas"
            raise ValueError(f"cluttered: {rule}, but fragment_size is {sizes}")


def check_parts(name: str, parts: Any) -> None:
    """ValueError unless sizes and numbers are whole, and the noise from 0 to 1."""
    check_fields(parts)
    for part in vars(parts).keys() - {"noise"}:
        whole(f"{name}: {part}", getattr(parts, part), least=int(part != "distractors"))
    if not 0 <= parts.noise <= 1:
        raise ValueError(f"{name}: noise is {parts.noise}; it is a fraction of full scale, from 0 to 1.")


def read_digits(size: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, resized from 8×8: uint8 N×1×size×size, and int64 labels N.

    >>> images, labels = read_digits(32)
    >>> tuple(images.shape), images.dtype, int(labels.max())
    ((1797, 1, 32, 32), torch.uint8, 9)
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.as_tensor(bunch.images, dtype=torch.float64).unsqueeze(1) * (255 / 16)  # stored as 0…16
    images = F.interpolate(small, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    # In float64 with ties pushed upwards, so that no machine's rounding error can change a byte.
    images = (images + 0.5 + 1e-6).floor().clamp(0, 255).to(torch.uint8)
    return images, torch.as_tensor(bunch.target, dtype=torch.int64)


def compose(
    digits: Tensor, labels: Tensor, count: int, clutter: Clutter, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` cluttered images, uint8 count×1×canvas×canvas, and their labels; the brighter pixel wins.

    ``digits`` (uint8 N×1×digit_size×digit_size) are used equally often (±1), and are the only source of fragments.
    """
    n, side, piece, canvas = len(digits), clutter.digit_size, clutter.fragment_size, clutter.canvas
    draw = partial(torch.randint, generator=generator)
    chosen = take_turns(n, count, generator)
    images = torch.zeros(count, canvas * canvas, dtype=torch.uint8)
    paste(images, digits[chosen, 0], draw(canvas - side + 1, (2, count)), canvas)
    for _ in range(clutter.distractors):
        other = (chosen + 1 + draw(max(n - 1, 1), (count,))) % n
        top, left = draw(side - piece + 1, (2, count))
        pieces = digits[:, 0].unfold(1, piece, 1).unfold(2, piece, 1)[other, top, left]
        paste(images, pieces, draw(canvas - piece + 1, (2, count)), canvas)
    images = add_noise(images, clutter.noise, generator)
    return images.view(count, 1, canvas, canvas), labels[chosen]


def paste(images: Tensor, patches: Tensor, corners: Tensor, canvas: int) -> None:
    """Squares into images (N×canvas², uint8) with their upper left at ``corners`` (2×N: y, x)."""
    step = torch.arange(patches.shape[-1])
    square = (step[:, None] * canvas + step).flatten()
    index = (corners[0] * canvas + corners[1])[:, None] + square
    images.scatter_(1, index, torch.maximum(images.gather(1, index), patches.flatten(1)))


def take_turns(n: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the numbers 0 … n − 1 in random order, each equally often (±1), int64."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-count // n))])[:count]


def add_noise(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """uint8 images with noise of that standard deviation, a fraction of full scale; nothing is drawn for 0.

    It is the centred sum of four random bytes: nearly Gaussian, and exact in integers.
    """
    if not noise:
        return images
    total = torch.full(images.shape, -2 * 255, dtype=torch.int16)
    for _ in range(4):
        total += torch.randint(256, images.shape, dtype=torch.uint8, generator=generator)
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    scale = round(noise * 255 / deviation * 2**16)  # fixed point: no rounding differs between machines
    return (images + ((total.to(torch.int32) * scale) >> 16)).clamp_(0, 255).to(torch.uint8)
