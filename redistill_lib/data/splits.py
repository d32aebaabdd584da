"""``load_data``: one call, three splits of uint8 images."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redistill_lib.checks import check_fields, check_type, hint, whole
from redistill_lib.data.clutter import Clutter, compose, read_digits
from redistill_lib.data.images import (
    DECODING,
    EAGER_BYTES,
    Failures,
    LazyImages,
    TensorImages,
    check_readable,
    decode_all,
    fingerprint,
    probe,
    read_cache,
    warn_of_flat,
    write_cache,
)
from redistill_lib.data.sources import Source, find_parts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DataSplits", "load_data"]

SPLITS = ("train", "validation", "test")
Split = TensorImages | LazyImages
Loaded = tuple[dict[str, Split], tuple[str, ...], str]  # splits, class names, origin
Choice = dict[str, tuple[str, Tensor]]  # split → (part of the source, rows of it)


@dataclass(frozen=True, repr=False, eq=False)
class DataSplits:
    """Three splits of one data set.

    Each has ``len()``, ``[i]`` → (uint8 C×H×W, int64 scalar), ``.labels``, and ``__getitems__(indices)`` →
    (uint8 B×C×H×W, int64 B); ``image_size`` is the side H = W in pixels. All of it can be pickled. ``origin`` says in
    words where validation and test come from, and how many images were left out. ``params`` are JSON and load the
    same images again: ``load_data(**splits.params)``. Both belong into a run's record.
    """

    train: Split
    validation: Split
    test: Split
    num_classes: int
    in_channels: int
    image_size: int
    classes: tuple[str, ...]
    name: str
    origin: str = ""
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("num_classes", "in_channels", "image_size"):
            whole(name, getattr(self, name))

    def __repr__(self) -> str:
        sizes = " · ".join(f"{len(getattr(self, split)):,} {split}" for split in SPLITS)
        shape = f"{self.in_channels}×{self.image_size}×{self.image_size}"
        return f"DataSplits({self.name!r}: {sizes}; {self.num_classes} classes; {shape} uint8; {self.origin})"

    def fingerprint(self) -> str:
        """Eight hex digits over labels and images; of those decoded on access, over their encoded bytes."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(split.labels.contiguous().numpy().tobytes())
            digest.update(split.digest)
        return digest.hexdigest()[:8]

    def to_frame(self) -> pd.DataFrame:
        """One row per class, one column per split: how many images."""
        import pandas as pd

        counts = {s: torch.bincount(getattr(self, s).labels, minlength=self.num_classes).tolist() for s in SPLITS}
        return pd.DataFrame(counts, index=pd.Index(self.classes, name="class"))


def load_data(
    name: str | os.PathLike[str] = "cluttered",
    *,
    image_size: int | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
    **options: Any,
) -> DataSplits:
    """Load a data set by name as train, validation and test.

    Args:
        name: ``cluttered``, ``digits``, ``hf:<repository>[:<configuration>]``, or a folder of parquet files or of
            images.
        image_size: side in pixels; the square at an image's centre is resized to it. None keeps the size
            (``digits``: 32, ``cluttered``: a canvas of 40).
        validation, test: fractions of the training part to hold out, stratified by class and drawn with `seed`;
            used only where the source has no such split of its own.
        seed: of the data; it is not the seed of a training.
        limit: at most this many images per split, stratified; each class keeps one where the limit allows it.
        options: the fields of `Clutter` for ``cluttered``; those of `Source` for what is not built in, such as
            ``cache_dir``, which the built-in sets do not need and ignore.

    ``cluttered`` divides the 1,797 *source* digits first and composes each split from its own, fragments included,
    so no stroke of a test image has been seen in training.

    Images are turned as their EXIF says, and what is transparent shows white. One warning counts images of one flat
    colour. Raises ValueError or FileNotFoundError, saying what to change, before any decoding where it can.

    >>> load_data("cluttered", train_size=60, validation_size=20, test_size=20)  # doctest: +ELLIPSIS
    DataSplits('cluttered': 60 train · 20 validation · 20 test; 10 classes; 1×40×40 uint8; ...)
    """
    name = str(os.fspath(check_type("name", name, str, os.PathLike)))
    request = _Request(name, image_size, validation, test, seed, limit)
    kind = {"digits": Digits, "cluttered": Clutter}.get(name, Source)
    if kind is not Source:
        options.pop("cache_dir", None)
    if name == "cluttered" and image_size is not None and options.setdefault("canvas", image_size) != image_size:
        raise ValueError(f"canvas={options['canvas']} and image_size={image_size} differ; give one of them.")
    known = [option.name for option in fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"'{name}' has no option '{option}'; it has {', '.join([*known, 'image_size'])} and the like"
                f"{hint(option, known) or '.'}"
            )
    settings = kind(**options)
    images, classes, origin = (_from_source if kind is Source else _built_in)(request, settings)
    channels, size, _ = images["train"][0][0].shape
    present = set(images["train"].labels.tolist())
    if limit is not None and (absent := [word for number, word in enumerate(classes) if number not in present]):
        warnings.warn(f"limit={limit} leaves no training image of {', '.join(absent[:10])}; raise it.", stacklevel=2)
    changed = {key: value for key, value in vars(settings).items() if value != getattr(kind, key)}
    for same_images in ("canvas", "lazy", "cache_dir"):  # image_size, and what only says when and where to keep them
        changed.pop(same_images, None)
    return DataSplits(
        **images,
        num_classes=len(classes),
        in_channels=channels,
        image_size=size,
        classes=classes,
        name=name,
        origin=origin,
        params={**asdict(request), "image_size": size, **changed},
    )


@dataclass(frozen=True)
class Digits:
    """The options of ``digits``: none."""


@dataclass(frozen=True)
class _Request:
    """The arguments common to all data sets, checked."""

    name: str
    image_size: int | None
    validation: float
    test: float
    seed: int
    limit: int | None

    def __post_init__(self) -> None:
        check_fields(self)
        for argument, value in (("validation", self.validation), ("test", self.test)):
            if not 0 < value < 1:
                raise ValueError(f"{argument} is {value}; it is a fraction of train, between 0 and 1.")
        for argument in ("image_size", "limit"):
            if getattr(self, argument) is not None:
                whole(argument, getattr(self, argument))
        whole("seed", self.seed, 0, 2**48)


def _built_in(request: _Request, options: Digits | Clutter) -> Loaded:
    clutter = options if isinstance(options, Clutter) else None
    digits, labels = read_digits(clutter.digit_size if clutter else request.image_size or 32)
    chosen, origin = _divide({"train": labels}, {"train": "the digits"}, request)
    splits: dict[str, Split] = {}
    for stream, (split, (_, rows)) in enumerate(chosen.items()):
        images, numbers = digits[rows], labels[rows]
        if clutter:
            generator = _generator(request.seed, 10 + stream)
            images, numbers = compose(images, numbers, getattr(clutter, f"{split}_size"), clutter, generator)
        kept = _spread(numbers, request.limit, request.seed, each=1)
        splits[split] = TensorImages(images[kept], numbers[kept])
    return splits, tuple("0123456789"), f"each split composed from its own digits, {origin}" if clutter else origin


def _from_source(request: _Request, source: Source) -> Loaded:
    parts, classes, key = find_parts(request.name, source)
    labels = {part: encoded.labels for part, encoded in parts.items()}
    chosen, origin = _divide(labels, {part: encoded.origin for part, encoded in parts.items()}, request)
    for split, (part, rows) in chosen.items():
        chosen[split] = part, rows[_spread(labels[part][rows], request.limit, request.seed, each=1)]
    splits, left_out = _read(parts, chosen, request, source, key)
    warn_of_flat(splits, request.name)
    return splits, classes, f"{origin}; {left_out:,} unreadable left out" if left_out else origin


def _generator(seed: int, stream: int) -> torch.Generator:
    """Independent streams per purpose, so that one more draw in one of them changes nothing elsewhere."""
    return torch.Generator().manual_seed(100 * seed + stream)


def _spread(labels: Tensor, count: int | None, seed: int, stream: int = 0, each: int = 0) -> Tensor:
    """Sorted indices of ``count`` items in which each class keeps its share to within one; `each` come first."""
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=_generator(seed, stream))
    order = order[torch.argsort(labels[order], stable=True)]  # class by class, shuffled within each
    sizes = torch.bincount(labels)
    rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    position = (rank.double() + 0.5) / sizes.repeat_interleave(sizes)  # each class spread evenly over 0…1
    position[rank < each] -= 1
    return order[torch.argsort(position, stable=True)[:count]].sort().values


def _divide(labels: dict[str, Tensor], origins: dict[str, str], request: _Request) -> tuple[Choice, str]:
    """Which rows of which part make up each split, and that in words; ``origins`` names the parts."""
    train, origin = labels["train"], origins["train"]
    left, words = torch.arange(len(train)), []
    chosen: Choice = {}
    for stream, split, fraction in ((1, "test", request.test), (2, "validation", request.validation)):
        if split in labels:
            chosen[split] = split, torch.arange(len(labels[split]))
            words.append(f"{split}: {origins[split]}")
            continue
        held = _spread(train[left], round(fraction * len(train)), request.seed, stream)
        if not len(held):
            raise ValueError(f"{split}={fraction} of {len(train)} images ({origin}) is an empty split; raise it.")
        chosen[split] = "train", left[held]
        words.append(f"{split}: {fraction:.0%} of {origin}")
        left = left[~torch.isin(torch.arange(len(left)), held)]
    chosen["train"] = "train", left
    if missing := set(train.tolist()) - set(train[left].tolist()):
        raise ValueError(
            f"Class {min(missing)} has too few images in {origin} to be split: none is left; "
            f"lower validation= and test=, or add images."
        )
    return {split: chosen[split] for split in SPLITS}, f"{', '.join(reversed(words))} (seed {request.seed})"


def _read(
    parts: dict[str, LazyImages], chosen: Choice, request: _Request, source: Source, key: str
) -> tuple[dict[str, Split], int]:
    """Each split: from the cache, decoded, or lazy where that is too large; and how many images were left out."""
    cache = None
    if source.cache_dir is not None and source.lazy is not True:
        readable = re.sub(r"\W+", "-", request.name.removeprefix("hf:").rstrip("/").rpartition("/")[2])
        stamp = fingerprint(key, sorted(parts), request.image_size, source.channels, source.skip_unreadable, DECODING)
        cache = Path(source.cache_dir) / f"{readable}-{stamp}.safetensors"
        if cached := read_cache(cache, parts):
            return _pick(*cached, chosen)
    used = {split: parts[part].take(rows) for split, (part, rows) in chosen.items()}
    size, lazy = request.image_size, source.lazy
    channels: int | None = source.channels
    if size is None or channels is None or lazy is not False:
        size, channels, failures = probe(used, request.name, size, channels, source.skip_unreadable)
    if lazy is None:
        lazy = sum(map(len, used.values())) * channels * size * size > EAGER_BYTES
    keep = cache is not None and not lazy and request.limit is None  # part of a data set is not worth keeping
    if not keep:
        parts, chosen = used, {split: (split, torch.arange(len(part))) for split, part in used.items()}
    images: dict[str, Any] = {part: replace(encoded, size=size, channels=channels) for part, encoded in parts.items()}
    if not lazy:
        images, failures = decode_all(images, request.name)
    if not source.skip_unreadable:
        check_readable(failures, request.name)
    if cache is not None and keep:
        write_cache(cache, images, failures)
    return _pick(images, failures, chosen)


def _pick(images: Mapping[str, Split], failures: Failures, chosen: Choice) -> tuple[dict[str, Split], int]:
    """The rows of each split, less those that cannot be read, and the number of these."""
    picked, left_out = {}, 0
    for split, (part, rows) in chosen.items():
        good = rows[~torch.isin(rows, torch.tensor(list(failures[part]), dtype=torch.int64))]
        if not len(good):
            raise ValueError(f"No image of {split} can be read.")
        picked[split] = images[part].take(good)
        left_out += len(rows) - len(good)
    return picked, left_out
