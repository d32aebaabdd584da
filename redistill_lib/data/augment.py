"""Augmented images that have names: each is a function of (data, index, view) alone.

`index` is a row of the training split, `view` a number, usually the epoch. Batch size, order, worker, process and
seed of the training do not matter: all students see the same images, and a teacher's maps of them can be kept.

A recipe names the operations in order, as ``"resized_crop+flip+cutmix|mixup"``; ``a|b`` picks one for each image.
Nothing is implicit, not even `flip`: a mirrored digit may be another sign.

- `flip`: mirrored left to right, every second image.
- `crop`: shifted by up to an eighth of the height in both directions, the rest black.
- `resized_crop`: 8 to 100 % of the area, of width / height from 3/4 to 4/3 (log-uniform), stretched to the whole,
  bilinearly. The first of ten proposals that fits; if none does, the first, trimmed.
- `cutout`: a grey square, half the height wide, around a random centre (arXiv 1708.04552).
- `mixup`: λ·image + (1 − λ)·partner, λ ~ Beta(0.2, 0.2) (arXiv 1710.09412).
- `cutmix`: a rectangle of the partner, of the image's proportions and 1 − λ of its area, clipped at the border; the
  label's weight is the area really left (arXiv 1905.04899).

The partner is any row of the split, in its view of the same number. ReDistill's authors draw once per batch instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from redistill_lib.checks import check_type, hint, whole

Numbers = NDArray[np.float64]  # uniform in 0…1: one row per decision, one column per image
_Step = tuple[str, ...]

ALPHA = 0.2  # of mixup and cutmix, as in the paper's STL-10 recipe
STREAM = 2**63  # of sample_rng; small numbers are free for others


def derive_seed(*numbers: int) -> int:
    """One seed from several, far apart for near ones."""
    return int(SeedSequence(numbers).generate_state(1)[0])


def sample_rng(index: int, view: int, stream: int = 0) -> Generator:
    """The random numbers of one view of one image; each `stream` is independent. ValueError for a number below 0.

    >>> sample_rng(7, view=2).random() == sample_rng(7, view=2).random() != sample_rng(7, view=3).random()
    True
    """
    key = whole("index", index, least=0), whole("view", view, least=0)
    counter = 0, 0, 0, whole("stream", stream, least=0)
    return Generator(Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)))


def to_float(images: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1, which is ``(x / 255 − 0.5) / 0.5``. Raises ValueError for any other dtype.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    if check_type("images", images, Tensor).dtype != torch.uint8:
        raise ValueError(f"to_float expects uint8 images, got {images.dtype}; were they converted already?")
    return images.float().div_(127.5).sub_(1)


class Views(Dataset[Any]):
    """A split's augmented images, read as whole batches of (index, view) pairs.

    A batch is images (float32 B×C×H×W, −1…1, on the CPU); labels (int64 B), or probabilities (float32 B×num_classes)
    if the recipe mixes; labels; index and view (int64 B). ValueError for an unknown recipe, a row that the split
    lacks, a negative view.

    >>> from redistill_lib.data import load_data
    >>> views = Views(load_data("digits").train, "crop+mixup", num_classes=10)
    >>> images, targets, labels, index, view = views.__getitems__([(5, 0), (3, 0)])
    >>> tuple(images.shape), tuple(targets.shape), index.tolist()
    ((2, 1, 32, 32), (2, 10), [5, 3])
    """

    def __init__(self, split: Any, recipe: str, num_classes: int) -> None:
        self.split, self.steps, self.num_classes = split, parse_recipe(recipe), num_classes

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        index, view = torch.tensor(pairs).t().contiguous()
        wrong = (index < 0) | (index >= len(self)) | (view < 0)
        if wrong.any():
            asked = int(index[wrong][0]), int(view[wrong][0])
            raise ValueError(f"there is no (index, view) {asked}: index is 0 to {len(self) - 1}, view 0 or more")
        last, numbers = self.steps[-1], _draw(index, view)
        if not set(last) & set(MIXING):
            images, labels = _read(self.split, index, numbers, self.steps)
            return images, labels, labels, index, view
        mixing = numbers[SLOTS["mix"]]
        partner = torch.from_numpy(_below(len(self), mixing[1]))
        numbers = np.concatenate([numbers, _draw(partner, view)], axis=1)
        images, labels = _read(self.split, torch.cat([index, partner]), numbers, self.steps[:-1])
        image, other = images.chunk(2)
        kept, share = _mix(last, mixing, (image.shape[2], image.shape[3]))
        own, others = F.one_hot(labels, self.num_classes).float().chunk(2)
        # Not torch.lerp: how that rounds depends on a pixel's place in the batch.
        image = image.mul_(kept).add_(other.mul_(1 - kept))
        return image, share * own + (1 - share) * others, labels[: len(index)], index, view


def parse_recipe(recipe: str) -> tuple[_Step, ...]:
    """The steps of a recipe, each a tuple of alternatives. ValueError for an unknown, misplaced or repeated word.

    >>> parse_recipe("flip+cutmix|mixup")
    (('flip',), ('cutmix', 'mixup'))
    """
    known = ["none", *OPERATIONS, *MIXING]
    steps = tuple(tuple(word.strip() for word in step.split("|")) for step in recipe.split("+"))
    words = [word for step in steps for word in step]
    for word in words:
        if word not in known:
            known_words = f"(there are {', '.join(known)}){hint(word, known)}"
            raise ValueError(f"Unknown augmentation '{word}' in '{recipe}' {known_words}")
        if word != "none" and words.count(word) > 1:
            raise ValueError(f"'{word}' is named twice in '{recipe}', where it would draw the same numbers twice.")
    for step in steps:
        if set(step) & set(MIXING) and (step is not steps[-1] or set(step) & set(OPERATIONS)):
            last = f"'{'|'.join(step)}' mixes labels, so it has to be the last step of '{recipe}'"
            raise ValueError(f"{last}; only mixup, cutmix and none can be alternatives of one another.")
    return steps


def _draw(index: Tensor, view: Tensor) -> Numbers:
    """All numbers that any operation may need, in the order of `SLOTS`: those of `sample_rng(…, STREAM)`."""
    generator = sample_rng(0, 0, STREAM)  # given each image's key in turn: making one per image is five times slower
    state: Any = generator.bit_generator.state
    drawn = np.empty((len(index), WIDTH))
    for row, *key in zip(drawn, index.tolist(), view.tolist(), strict=True):
        state["state"]["key"][:] = key
        generator.bit_generator.state = state
        generator.random(out=row)
    return np.ascontiguousarray(drawn.T)


def _below(limit: int, numbers: Numbers) -> NDArray[np.int64]:
    return (numbers * limit).astype(np.int64)  # 0 … limit − 1


def _read(split: Any, index: Tensor, numbers: Numbers, steps: Sequence[_Step]) -> tuple[Tensor, Tensor]:
    """The images as float32 after all steps, which do not mix, and their labels."""
    images, labels = split.__getitems__(index.tolist())
    images = to_float(images)
    for step in steps:
        named = [word for word in step if word != "none"]
        for word in named:
            operation, own = OPERATIONS[word], numbers[SLOTS[word]][1:]
            (chosen,) = np.nonzero(_below(len(step), numbers[SLOTS[named[0]]][0]) == step.index(word))
            if len(step) == 1:
                images = operation(images, own)
            elif len(chosen):  # take() keeps the numbers in rows, which [:, chosen] does not
                images[chosen] = operation(images[chosen], own.take(chosen, axis=1))
    return images, labels


def _flip(images: Tensor, numbers: Numbers) -> Tensor:
    mirrored = torch.from_numpy(np.flatnonzero(numbers[0] < 0.5))
    images[mirrored] = images[mirrored].flip(3)
    return images


def _crop(images: Tensor, numbers: Numbers) -> Tensor:
    height, width = images.shape[2:]
    padding = height // 8
    windows = F.pad(images, (padding,) * 4, value=-1).unfold(2, height, 1).unfold(3, width, 1)
    top, left = _below(2 * padding + 1, numbers)
    return windows[torch.arange(len(images)), :, top, left]


def _resized_crop(images: Tensor, numbers: Numbers) -> Tensor:
    height, width = images.shape[2:]
    area = 0.08 + 0.92 * numbers[:10]
    shape = np.exp(np.log(4 / 3) * (2 * numbers[10:20] - 1)) * (height / width)  # wide / tall, as fractions
    wide, tall = np.sqrt(area * shape), np.sqrt(area / shape)
    first = ((wide <= 1) & (tall <= 1)).argmax(0)[None]  # the first proposal if none fits
    wide, tall = (np.take_along_axis(side, first, 0)[0].clip(max=1) for side in (wide, tall))
    # grid_sample's coordinates run from −1 to 1; a crop of size s can have its centre within ±(1 − s).
    x = _along(width, wide, (1 - wide) * (2 * numbers[20] - 1))[:, None, :].expand(-1, height, -1)
    y = _along(height, tall, (1 - tall) * (2 * numbers[21] - 1))[:, :, None].expand(-1, -1, width)
    return F.grid_sample(images, torch.stack([x, y], dim=3), padding_mode="border", align_corners=False)


def _along(length: int, size: Numbers, centre: Numbers) -> Tensor:
    """Where the pixels of a line come from, B×length in grid_sample's coordinates."""
    pixels = (2 * np.arange(length) + 1) / length - 1
    return torch.from_numpy(size[:, None] * pixels + centre[:, None]).float()


def _cutout(images: Tensor, numbers: Numbers) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = _stretch(height, height // 2, numbers[0]), _stretch(width, height // 2, numbers[1])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def _stretch(length: int, size: Any, numbers: Numbers) -> Tensor:
    """Which pixels of a line lie in a stretch of `size` around a random one, bool B×length; it may stick out."""
    start = _below(length, numbers) - size // 2
    pixels = np.arange(length)[:, None]
    return torch.from_numpy(((pixels >= start) & (pixels < start + size)).T)


def _mix(step: _Step, numbers: Numbers, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much of each pixel is the image's own, float32 B×1×H×W, and how much of the label, B×1."""
    from scipy.special import betaincinv

    word = np.array(step)[_below(len(step), numbers[0])]
    drawn = betaincinv(ALPHA, ALPHA, numbers[2])  # the inverse of Beta's distribution function
    sides = (np.rint(length * np.sqrt(1 - drawn)).astype(np.int64) for length in size)
    rows, columns = (_stretch(length, side, n) for length, side, n in zip(size, sides, numbers[3:], strict=True))
    cut, blend = (torch.from_numpy(word == name)[:, None] for name in ("cutmix", "mixup"))
    weight = torch.from_numpy(drawn).float()[:, None]
    left = 1 - rows.sum(1, keepdim=True) * columns.sum(1, keepdim=True) / (size[0] * size[1])
    share = torch.where(cut, left, torch.where(blend, weight, 1.0))
    pasted = rows[:, None, :, None] & columns[:, None, None, :] & cut[:, :, None, None]
    return torch.where(pasted, 0.0, torch.where(blend, weight, 1.0)[:, :, None, None]), share


OPERATIONS = {"flip": _flip, "crop": _crop, "resized_crop": _resized_crop, "cutout": _cutout}
MIXING = ("mixup", "cutmix")

# The numbers of each operation; the first of them picks among alternatives. Every operation has its place whether or
# not a recipe names it, so that none changes what another draws: a new one belongs at the end.
SLOTS = {"flip": slice(2), "crop": slice(2, 5), "resized_crop": slice(5, 28), "cutout": slice(28, 31)}
SLOTS["mix"] = slice(31, 36)
WIDTH = 36
