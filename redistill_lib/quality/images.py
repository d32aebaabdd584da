"""From images to features: read once, checked, kept with what is needed to tell one set from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from redistill_lib.checks import whole
from redistill_lib.network import evaluating
from redistill_lib.progress import progress_bar
from redistill_lib.quality.extractors import Extractor, by, check_extractor

TOLERANCE = 1e-3  # how far outside −1…1 a float image may be
# More than this share of images −1…1 is below that. Images 0…1 that were noised or resized have a few such values.
SHARE, BELOW = 1e-3, -0.1
FIXES = {"DataSplits": "; give one split, such as data.train", "ndarray": "; torch.from_numpy makes it a tensor"}


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
        name = self.extractor["extractor"]
        return f"Features({len(self):,} × {self.values.shape[1]} of {by(self.shape)} images by {name})"


def features(
    images: Tensor | Dataset[Any], extractor: Extractor, *, batch_size: int = 256, progress: bool = True
) -> Features:
    """Features and logits of all images: N×C×H×W, uint8 or float −1…1, or a split of `load_data`.

    Float images are rounded to the 256 levels of an image file. Grey ones are repeated where the extractor takes
    three channels. It works on the device it is on.

    Raises ValueError for an empty set, images of another dtype, range or number of channels, and values that are not
    finite; TypeError for what is neither a tensor nor a split.

    >>> eye = Extractor(torch.nn.Flatten(), "pixels", num_features=4, channels=1)
    >>> features(-torch.ones(3, 1, 2, 2), eye).values[0].tolist()
    [-1.0, -1.0, -1.0, -1.0]
    """
    if not isinstance(images, Tensor) and not hasattr(images, "__getitems__"):
        kind = type(images).__name__
        raise TypeError(f"images are a tensor or a split of load_data, not a {kind}{FIXES.get(kind, '')}")
    whole("batch_size", batch_size)
    check_extractor(extractor)
    count = len(images)  # type: ignore[arg-type]
    if not count:
        raise ValueError("there are no images to look at: the set is empty")
    device = next((tensor.device for tensor in extractor.state_dict().values()), torch.device("cpu"))
    batches: Iterable[Tensor] = _levels(images, batch_size)
    if isinstance(images, Tensor):  # all there already, so checked before a long pass
        batches = list(batches)
    seen, logits, digests = [], [], []
    with evaluating(extractor), progress_bar(count, f"features by {extractor.name}", progress) as bar:
        for levels in batches:
            values, scores = extractor(levels.to(device))
            seen.append(values.float().cpu())
            logits += [] if scores is None else [scores.float().cpu()]
            hashes = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8) for image in levels.cpu()]
            digests += [int.from_bytes(each.digest(), "big", signed=True) for each in hashes]
            bar.update(len(levels))
    values, shape = torch.cat(seen), tuple(levels.shape[1:])
    if not values.isfinite().all():
        row = int((~values.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"{extractor.name} gives features that are not finite, for image {row} first")
    return Features(values, torch.cat(logits) if logits else None, torch.tensor(digests), shape, extractor.settings)


def halves(real: Features, seed: int = 0) -> tuple[Features, Features]:
    """Two halves of a set, drawn with `seed`."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(whole("seed", seed, least=0)))
    middle = len(real) // 2
    return real.take(order[:middle]), real.take(order[middle : 2 * middle])


def _levels(images: Any, size: int) -> Iterator[Tensor]:
    """uint8 batches B×C×H×W; ValueError after the last if all were 0…1, as the images of one batch may well be."""
    low, count = 0, 0
    for rows in torch.arange(len(images)).split(size):
        batch = images[rows] if isinstance(images, Tensor) else images.__getitems__(rows.tolist())[0]
        yield _as_levels(batch)
        if batch.is_floating_point():
            low, count = low + int((batch < BELOW).sum()), count + batch.numel()
    if low < SHARE * count:
        raise ValueError(
            f"only {low:,} of the {count:,} values of these float images are below {BELOW}, so they look like 0…1; "
            "−1…1 is expected: images * 2 - 1, or (images * 255).round().byte(); images −1…1 that are so bright "
            "are taken as uint8 (redistill_lib.diffusion.to_uint8)"
        )


def _as_levels(images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise ValueError(f"images are a batch N×C×H×W, these have the shape {by(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images are uint8 0…255 or floats −1…1, these are {images.dtype}")
    if not images.isfinite().all():
        row = int((~images.isfinite().flatten(1).all(1)).nonzero()[0])
        kind = "nan" if images.isnan().any() else "inf"
        raise ValueError(f"{kind} in the images, in image {row} of its batch first: model or sampler diverged")
    low, high = map(float, images.aminmax())
    if low < -1 - TOLERANCE or high > 1 + TOLERANCE:
        hint = "they look like 0…255: make them uint8" if low >= 0 and high > 2 else "images.clamp(-1, 1) cuts them"
        raise ValueError(f"float images are −1…1, these go from {low:.3g} to {high:.3g}; {hint}")
    return (images.float().clamp(-1, 1) + 1).mul(127.5).round().byte()
