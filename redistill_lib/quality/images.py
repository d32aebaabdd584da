"""From images to features: read once, checked, kept with what is needed to tell one set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from redistill_lib.checks import whole
from redistill_lib.data import as_batch
from redistill_lib.network import evaluating
from redistill_lib.progress import progress_bar
from redistill_lib.quality.extractors import Extractor, check_extractor

TOLERANCE = 1e-3  # how far outside −1…1 a float image may be
# Of images −1…1 more than this share of the values is below that. One value says nothing: images 0…1 that were noised
# or resized have a few, and many just below 0.
SHARE, BELOW = 1e-3, -0.1


@dataclass(frozen=True, repr=False, eq=False)
class Features:
    """What an extractor makes of a set of images.

    `values` float32 N×num_features, `logits` float32 N×classes or None, both on the CPU; `digests` int64 N, a hash
    of each image; `shape` C×H×W of the images; `extractor` its `Extractor.settings`.
    """

    values: Tensor
    logits: Tensor | None
    digests: Tensor
    shape: tuple[int, ...]
    extractor: dict[str, Any]

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def mean(self) -> Tensor:
        """float64, num_features."""
        return self.values.double().mean(0)

    @cached_property
    def cov(self) -> Tensor:
        """Unbiased covariance, float64, num_features×num_features."""
        return torch.cov(self.values.double().T)

    @cached_property
    def fingerprint(self) -> str:
        """Eight hex digits over the set of images, in whatever order."""
        return hashlib.sha256(self.digests.sort().values.numpy().tobytes()).hexdigest()[:8]

    def take(self, rows: Tensor) -> Features:
        """Those images."""
        logits = None if self.logits is None else self.logits[rows]
        return Features(self.values[rows], logits, self.digests[rows], self.shape, self.extractor)

    def __repr__(self) -> str:
        shape, by = "×".join(map(str, self.shape)), self.extractor["extractor"]
        return f"Features({len(self):,} × {self.values.shape[1]} of {shape} images by {by})"


def features(
    images: Tensor | Dataset[Any], extractor: Extractor, *, batch_size: int = 256, progress: bool = True
) -> Features:
    """Features and logits of all images: N×C×H×W, uint8 or float −1…1, or a split of `load_data`.

    Float images are rounded to the 256 levels an image file has, so that an image counts the same in whichever
    form it comes. Grey ones are repeated where the extractor takes three channels. The extractor works on the
    device it is on.

    Raises ValueError for an empty set, another dtype, values that are not finite or outside −1…1, floats that look
    like 0…1, a number of channels that the extractor does not take, and a `batch_size` below 1; TypeError for what
    is neither a tensor nor a split.

    >>> eye = Extractor(torch.nn.Flatten(), "pixels", num_features=4, channels=1)
    >>> features(torch.zeros(3, 1, 2, 2), eye).values[0].tolist()  # −1…1 in steps of 1/127.5: no level is 0
    [0.003921627998352051, 0.003921627998352051, 0.003921627998352051, 0.003921627998352051]
    """
    if not isinstance(images, Tensor) and not hasattr(images, "__getitems__"):
        kind = type(images).__name__
        hints = {
            "DataSplits": "; give one split of it, such as data.train",
            "ndarray": "; torch.from_numpy makes it a tensor",
        }
        raise TypeError(f"images are a tensor or a split of load_data, not a {kind}{hints.get(kind, '')}")
    whole("batch_size", batch_size)
    check_extractor(extractor)
    count = len(images)  # type: ignore[arg-type]
    if not count:
        raise ValueError("there are no images to look at: the set is empty")
    state = next((t for t in (*extractor.parameters(), *extractor.buffers())), torch.empty(0))
    batches = _levels(images, batch_size)
    if isinstance(images, Tensor):  # all there already: say what is wrong with it before a long pass
        batches = iter(list(batches))
    seen, logits, digests = [], [], []
    shape: tuple[int, ...] = ()
    with evaluating(extractor), progress_bar(count, f"features by {extractor.name}", progress) as bar:
        for levels in batches:
            shape = tuple(levels.shape[1:])
            values, scores = extractor(levels.to(state.device))
            seen.append(values.float().cpu())
            logits.append(None if scores is None else scores.float().cpu())
            digests += [_digest(image) for image in levels.cpu()]
            bar.update(len(levels))
    values = torch.cat(seen)
    if not values.isfinite().all():
        row = int((~values.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{extractor.name} gives features that are not finite, for image {row} first")
    given = [part for part in logits if part is not None]
    return Features(values, torch.cat(given) if given else None, torch.tensor(digests), shape, extractor.settings)


def halves(real: Features, seed: int = 0) -> tuple[Features, Features]:
    """Two halves of a set, drawn with `seed`: what one is to the other is the floor of any score."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(whole("seed", seed, least=0)))
    middle = len(real) // 2
    return real.take(order[:middle]), real.take(order[middle : 2 * middle])


def _batches(images: Tensor | Dataset[Any], size: int) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield from images.split(size)
    else:
        for batch, _ in DataLoader(images, batch_size=size, collate_fn=as_batch):
            yield batch


def _levels(images: Tensor | Dataset[Any], size: int) -> Iterator[Tensor]:
    """uint8 batches B×C×H×W; ValueError after the last if all were 0…1, as the images of one batch may well be."""
    low, count, first, differ = 0, 0, torch.empty(0), False
    for batch in _batches(images, size):
        levels = _as_levels(batch)
        if batch.is_floating_point():
            low, count = low + int((batch < BELOW).sum()), count + batch.numel()
        first = first if len(first) else levels[:1]
        differ = differ or levels.shape[1:] != first.shape[1:] or bool((levels != first).any())
        yield levels
    if low < SHARE * count and differ:
        raise ValueError(
            f"only {low:,} of the {count:,} values of these float images are below {BELOW}, so they look like 0…1; "
            "−1…1 is expected: images * 2 - 1, or (images * 255).round().byte(); images −1…1 that are so bright "
            "are taken as uint8 (redistill_lib.diffusion.to_uint8)"
        )


def _as_levels(images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise ValueError(f"images are a batch N×C×H×W, these have the shape {'×'.join(map(str, images.shape))}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are uint8 0…255 or floats −1…1, these are {images.dtype}")
    if not images.isfinite().all():
        row = int((~images.isfinite().flatten(1).all(1)).nonzero()[0])
        raise ValueError(
            f"{'nan' if images.isnan().any() else 'inf'} in the images, in image {row} of its batch first: "
            "the model or its sampler diverged"
        )
    low, high = float(images.min()), float(images.max())
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        hint = "they look like 0…255: make them uint8" if low >= 0 and high > 2 else "images.clamp(-1, 1) cuts them"
        raise ValueError(f"float images are −1…1, these go from {low:.3g} to {high:.3g}; {hint}")
    return (images.float().clamp(-1, 1) + 1).mul(127.5).round().byte()


def _digest(image: Tensor) -> int:
    digest = hashlib.blake2b(image.contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
