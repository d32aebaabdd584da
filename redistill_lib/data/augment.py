"""Augmentation of whole batches: tensor operations only, each random number from an explicit generator.

A recipe names the operations in order: ``"crop+flip"``, ``"resized_crop+flip+cutmix|mixup"``; ``a|b`` picks
one of the two per batch. The last is the paper's STL-10 recipe (CutMix(0.2) or MixUp(0.2) per batch). Nothing
is implicit: the mirror image of a digit is another sign, so nothing is flipped unless the recipe says so.

Numbers are drawn on the generator's device (usually the CPU) and moved to the images, so a batch is augmented
in the same way on a GPU.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "augment",
    "cutmix",
    "cutout",
    "derive_seed",
    "flip",
    "mixup",
    "parse_recipe",
    "random_crop",
    "random_resized_crop",
    "to_float",
]

BLACK = -1.0  # what to_float makes of 0


def derive_seed(*numbers: int) -> int:
    """One seed from several, far apart for near ones."""
    from numpy.random import SeedSequence

    return int(SeedSequence(numbers).generate_state(1)[0])


def to_float(images: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1, which is ``(x / 255 − 0.5) / 0.5``. Raises ValueError for any other dtype.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_float expects uint8 images, got {images.dtype}; were they converted already?")
    return images.float().div_(127.5).sub_(1)


def augment(
    images: Tensor, labels: Tensor, recipe: str, *, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Apply a recipe to float images B×C×H×W and int64 labels B.

    Returns images of the same shape, and the labels: unchanged, or B×num_classes probabilities if the recipe
    mixes. Raises ValueError for an unknown operation (see ``parse_recipe``) and for images that are not a
    float batch.

    >>> g = torch.Generator().manual_seed(0)
    >>> images, targets = augment(
    ...     torch.zeros(4, 1, 8, 8), torch.arange(4), "crop+mixup", num_classes=10, generator=g
    ... )
    >>> tuple(images.shape), tuple(targets.shape)
    ((4, 1, 8, 8), (4, 10))
    """
    steps = parse_recipe(recipe)
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            f"augment expects a float batch B×C×H×W, got {images.dtype} of shape {tuple(images.shape)}; "
            f"call to_float first."
        )
    for choices in steps:
        operation = choices[0]
        if len(choices) > 1:
            operation = choices[int(torch.randint(len(choices), (), generator=generator, device=generator.device))]
        if operation in IMAGE_OPERATIONS:
            images = IMAGE_OPERATIONS[operation](images, generator)
        elif operation in MIXING_OPERATIONS:
            images, labels = MIXING_OPERATIONS[operation](images, labels, num_classes, generator=generator)
    return images, labels


def parse_recipe(recipe: str) -> tuple[tuple[str, ...], ...]:
    """The steps of a recipe, each a tuple of alternatives; ValueError for an unknown or misplaced operation.

    >>> parse_recipe("flip+cutmix|mixup")
    (('flip',), ('cutmix', 'mixup'))
    """
    known = ["none", *IMAGE_OPERATIONS, *MIXING_OPERATIONS]
    steps = tuple(tuple(word.strip() for word in step.split("|")) for step in recipe.split("+"))
    for word in (word for step in steps for word in step):
        if word not in known:
            close = difflib.get_close_matches(word, known, n=2)
            hint = f" (did you mean {' or '.join(close)}?)" if close else ""
            raise ValueError(f"Unknown augmentation '{word}' in '{recipe}'{hint}; there are {', '.join(known)}.")
    for step in steps[:-1]:
        if any(word in MIXING_OPERATIONS for word in step):
            raise ValueError(
                f"'{'|'.join(step)}' mixes labels, so it has to be the last step of '{recipe}'; "
                f"for one of several per batch write cutmix|mixup."
            )
    return steps


def _uniform(shape: tuple[int, ...], generator: torch.Generator, images: Tensor) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)


def _integers(high: int, shape: tuple[int, ...], generator: torch.Generator, images: Tensor) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=generator.device).to(images.device)


def flip(images: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror each image left to right with the given probability."""
    mirrored = _uniform((len(images), 1, 1, 1), generator, images) < probability
    return torch.where(mirrored, images.flip(3), images)


def random_crop(
    images: Tensor, generator: torch.Generator, padding: int | None = None, fill: float = BLACK
) -> Tensor:
    """Shift each image by up to ``padding`` pixels (default: height // 8), filling the rest."""
    batch, channels, height, width = images.shape
    padding = height // 8 if padding is None else padding
    padded = F.pad(images, (padding,) * 4, value=fill)
    top, left = _integers(2 * padding + 1, (2, batch, 1), generator, images)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    image = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def random_resized_crop(
    images: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut out a random rectangle of each image and stretch it to the full size, bilinearly.

    ``scale``: range of the rectangle's area as a fraction of the image's; ``ratio``: range of width / height,
    drawn log-uniformly. Of ten proposals the first that fits is taken; if none does, the first, trimmed to
    the image.
    """
    _, _, height, width = images.shape
    draws = _uniform((4, 10, len(images)), generator, images)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * draws[1]) * (height / width)  # width / height in fractions of the image
    wide, tall = (area * shape).sqrt(), (area / shape).sqrt()
    first = ((wide <= 1) & (tall <= 1)).int().argmax(0, keepdim=True)  # the first proposal if none fits
    wide, tall = wide.gather(0, first)[0].clamp(max=1), tall.gather(0, first)[0].clamp(max=1)
    # grid_sample's coordinates run from −1 to 1; a crop of size s can have its centre within ±(1 − s).
    centre_x, centre_y = (1 - wide) * (2 * draws[2, 0] - 1), (1 - tall) * (2 * draws[3, 0] - 1)
    zero = torch.zeros_like(wide)
    theta = torch.stack([wide, zero, centre_x, zero, tall, centre_y], dim=1).view(-1, 2, 3).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def cutout(images: Tensor, generator: torch.Generator, size: int | None = None, fill: float = 0.0) -> Tensor:
    """Blank one square per image (default side: half its height) around a random centre; it may stick out."""
    batch, _, height, width = images.shape
    size = height // 2 if size is None else size
    top = _integers(height, (batch, 1, 1, 1), generator, images) - size // 2
    left = _integers(width, (batch, 1, 1, 1), generator, images) - size // 2
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    inside = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
    return images.masked_fill(inside, fill)


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float = 0.2, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blend each image with another of the batch: λ·x + (1 − λ)·x′, λ ~ Beta(alpha, alpha), one λ per batch.

    Returns the images and B×num_classes probabilities blended in the same way (Zhang et al., 2018, arXiv
    1710.09412).
    """
    weight = _beta(alpha, generator)
    other = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    return weight * images + (1 - weight) * images[other], _blend(labels, other, weight, num_classes)


def cutmix(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float = 0.2, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image of the batch into each image (Yun et al., 2019, arXiv 1905.04899).

    The rectangle has the image's proportions, covers 1 − λ of it with λ ~ Beta(alpha, alpha), and is clipped
    at the border; the label's weight is the area that is really left. One rectangle per batch.
    """
    height, width = images.shape[2:]
    side = math.sqrt(1 - _beta(alpha, generator))
    other = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    top, bottom = _interval(height, side, generator)
    left, right = _interval(width, side, generator)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    weight = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, _blend(labels, other, weight, num_classes)


def _interval(length: int, fraction: float, generator: torch.Generator) -> tuple[int, int]:
    """A stretch of ``fraction`` of ``length`` around a random centre, clipped to the image."""
    size = round(length * fraction)
    start = int(torch.randint(length, (), generator=generator, device=generator.device)) - size // 2
    return max(start, 0), min(start + size, length)


def _blend(labels: Tensor, other: Tensor, weight: float, num_classes: int) -> Tensor:
    targets = F.one_hot(labels, num_classes).float()
    return weight * targets + (1 - weight) * targets[other]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw from Beta(alpha, alpha) by Jöhnk's rejection, in logarithms lest a small alpha underflow.

    torch's own sampler takes no generator. The acceptance rate falls with alpha: 95 % at 0.2, 50 % at 1, 1 %
    at 4.
    """
    if not 0 < alpha <= 4:
        raise ValueError(f"alpha is {alpha}; mixup and cutmix take 0 < alpha ≤ 4.")
    while True:
        draws = torch.rand(2, 64, generator=generator, device=generator.device, dtype=torch.float64)
        x, y = draws.log() / alpha
        total = torch.logaddexp(x, y)
        accepted = (total <= 0).nonzero()
        if len(accepted):
            first = int(accepted[0])
            return float((x[first] - total[first]).exp())


IMAGE_OPERATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "flip": flip,
    "crop": random_crop,
    "resized_crop": random_resized_crop,
    "cutout": cutout,
}
MIXING_OPERATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mixup": mixup, "cutmix": cutmix}
