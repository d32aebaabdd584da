"""Digits in pairs, a bright one and a dark one over each other: 100 classes and nothing fine, without a download.

In ``pairs`` strokes are four pixels wide, so that pooling loses little, but both digits have to be read in one place.
As in ``cluttered`` all random numbers are integers, so a seed gives the same bytes on any machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from redistill_lib.data.clutter import add_noise, check_parts, paste, take_turns


@dataclass(frozen=True)
class Pairs:
    """What an image of two digits is made of; ValueError when the parts do not fit each other.

    Sides in pixels of the canvas and the digits, the standard deviation of the noise as a fraction of full scale; and
    the number of images per split.

    >>> Pairs(noise=0).digit_size
    28
    """

    canvas: int = 32
    digit_size: int = 28
    noise: float = 0.02
    train_size: int = 6000
    validation_size: int = 1000
    test_size: int = 2000

    def __post_init__(self) -> None:
        check_parts("pairs", self)
        if self.digit_size > self.canvas:
            sizes = f"digit_size is {self.digit_size} and canvas (image_size) {self.canvas} px."
            raise ValueError(f"pairs: digits have to fit the canvas, but {sizes}")


def compose_pairs(
    digits: Tensor, labels: Tensor, count: int, pairs: Pairs, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """``count`` images of two digits, uint8 count×1×canvas×canvas, and their labels: ten times the bright one's plus
    the dark one's.

    ``digits`` (uint8 N×1×digit_size×digit_size) are bright equally often (±1), each with any other. On a grey of 128
    one adds half its brightness, the other takes half of its own away.
    """
    n, side, canvas = len(digits), pairs.digit_size, pairs.canvas
    draw = partial(torch.randint, generator=generator)
    bright = take_turns(n, count, generator)
    dark = (bright + 1 + draw(max(n - 1, 1), (count,))) % n  # not itself, which would leave nothing of both
    layers = torch.zeros(2, count, canvas**2, dtype=torch.uint8)
    for layer, chosen in zip(layers, (bright, dark), strict=True):
        paste(layer, digits[chosen, 0], draw(canvas - side + 1, (2, count)), canvas)
    images = add_noise(128 + layers[0] // 2 - layers[1] // 2, pairs.noise, generator)
    return images.view(count, 1, canvas, canvas), 10 * labels[bright] + labels[dark]
