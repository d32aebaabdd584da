"""Images through the eyes of a network: features, and what is needed to tell one set of them from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from redistill_lib.checks import whole
from redistill_lib.data.augment import to_float
from redistill_lib.identity import network_identity
from redistill_lib.network import MapRef, dtype_of, evaluating, reading
from redistill_lib.progress import progress_bar

TOLERANCE = 1e-3  # how far outside −1…1 a float image may be
# More than this share of images −1…1 is below that. Images 0…1 that were noised or resized have a few such values.
SHARE, BELOW = 1e-3, -0.1
FIXES = {"DataSplits": "; give one split, such as data.train", "ndarray": "; torch.from_numpy makes it a tensor"}


def by(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


class Extractor(nn.Module):
    """uint8 images B×C×H×W → (features B×num_features, logits B×classes or None).

    `network` is called with float images −1…1 of `channels` channels and the dtype of its weights. It returns such a
    pair, or features alone. `accuracy` (0…1) is a classifier's on its own test split. A network that resizes images
    says how in an attribute `resize`, a text.

    >>> eye = Extractor(nn.Flatten(), "pixels", num_features=16, channels=1)
    >>> seen, logits = eye(torch.zeros(5, 1, 4, 4, dtype=torch.uint8))
    >>> tuple(seen.shape), logits, eye.settings["extractor"]
    ((5, 16), None, 'pixels')
    """

    def __init__(
        self, network: nn.Module, name: str, *, num_features: int, channels: int, accuracy: float | None = None
    ) -> None:
        super().__init__()
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise ValueError(f"the accuracy of {name} is {accuracy}; it is a fraction between 0 and 1")
        self.network, self.name, self.accuracy = network, name, accuracy
        self.num_features, self.channels = num_features, channels

    @property
    def weights(self) -> str:
        """A hash of the network as it is at this moment: whoever built it may train it on."""
        return network_identity(self.network)["weights"]

    @property
    def settings(self) -> dict[str, Any]:
        """What a score has to say about the network it is made with."""
        return {
            "extractor": self.name,
            "extractor_weights": self.weights,
            "extractor_accuracy": self.accuracy,
            "num_features": self.num_features,
            "resize": getattr(self.network, "resize", "none"),
        }

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != self.channels:
            raise ValueError(f"{self.name} takes {self.channels}-channel images, these have {images.shape[1]}")
        found = self.network(to_float(images).to(dtype_of(self.network)))
        seen, logits = found if isinstance(found, tuple) else (found, None)
        wanted = (len(images), self.num_features)
        if seen.shape != wanted:
            raise ValueError(f"{self.name} gives features of shape {by(seen.shape)}, not {by(wanted)}")
        return seen, logits


def check_extractor(extractor: object) -> None:
    if not isinstance(extractor, Extractor):
        raise TypeError(f"a {type(extractor).__name__} is no extractor; classifier_extractor makes one of a network")


def classifier_extractor(model: nn.Module, name: str, accuracy: float | None) -> Extractor:
    """A trained classifier as an extractor: features are what its last linear layer reads, logits what it gives.

    `model` is what `load_model(run)` returns, `name` the run's id and `accuracy` its test accuracy (0…1, None if
    unknown): all scores made with it carry both. It should be trained on the data that the generator imitates; its
    FID is on a scale of its own.

    Raises ValueError for a network without a convolution or whose output is not that of a linear layer.

    >>> from redistill_lib.models import create_model
    >>> classifier_extractor(create_model("resnet18", in_channels=1, width=0.125), "teacher-1a2b", 0.97).num_features
    64
    """
    linears = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if not linears or convolution is None:
        kind = f"{type(model).__name__} without a {'convolution' if linears else 'linear layer'}"
        raise ValueError(f"{name} is a {kind}, no image classifier; build an Extractor of it")
    path, linear = linears[-1]
    sizes = {"num_features": linear.in_features, "channels": convolution.in_channels}
    return Extractor(_Penultimate(model, path, name), name, **sizes, accuracy=accuracy)


class _Penultimate(nn.Module):
    """A classifier that also returns what its last linear layer reads."""

    def __init__(self, model: nn.Module, path: str, name: str) -> None:
        super().__init__()
        self.model, self.path, self.name = model, path, name

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        read, made = list[Tensor](), list[Tensor]()
        visits = {MapRef(self.path, "input"): read.append, MapRef(self.path, "output"): made.append}
        with reading(self.model, visits):
            logits = self.model(images)
        if len(made) != 1 or made[0] is not logits:
            raise ValueError(f"{self.name}: the output is not that of its last linear layer, {self.path or 'itself'}")
        return read[0], logits


@dataclass(frozen=True, repr=False, eq=False)
class Features:
    """What an extractor makes of a set of images.

    `values` float32 N×num_features, `logits` float32 N×classes or None, both on the CPU; `digests` int64 N, a hash
    of each image; `shape` C×H×W of the images; `extractor` its `Extractor.settings`. `mean` (num_features) and `cov`
    (unbiased) are float64; `fingerprint` is eight hex digits over the set, in whatever order.
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
        return self.values.double().mean(0)

    @cached_property
    def cov(self) -> Tensor:
        return torch.cov(self.values.double().T)

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.digests.sort().values.numpy().tobytes()).hexdigest()[:8]

    def take(self, rows: Tensor) -> Features:
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
    one, other = order[: len(order) // 2 * 2].chunk(2)
    return real.take(one), real.take(other)


def _levels(images: Any, size: int) -> Iterator[Tensor]:
    """uint8 batches B×C×H×W; ValueError after the last if all were 0…1, as the images of one batch may well be."""
    low, count = 0, 0
    for rows in torch.arange(len(images)).split(size):
        batch = images[rows] if isinstance(images, Tensor) else images.__getitems__(rows.tolist())[0]
        yield _as_levels(batch)
        if batch.is_floating_point():
            low, count = low + int((batch < BELOW).sum()), count + batch.numel()
    if low < SHARE * count:
        fix = "−1…1 is expected: images * 2 - 1, or (images * 255).round().byte(); give bright ones −1…1 as bytes"
        raise ValueError(f"only {low:,} of the {count:,} values are below {BELOW}, so they look like 0…1; {fix}")


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
