"""``load_data``: one call, three splits of uint8 images."""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redistill_lib.checks import check_fields, check_type, hint, whole
from redistill_lib.data.clutter import Clutter, compose, read_digits
from redistill_lib.data.images import LazyImages, Parts, TensorImages, read_splits
from redistill_lib.data.pairs import Pairs, compose_pairs
from redistill_lib.data.sources import BUILT_IN, Source, find_images

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")
Split = TensorImages | LazyImages
# Options of what is made here, and how some of them are composed of digits
KINDS: dict[str, Any] = {"digits": make_dataclass("Digits", ()), "cluttered": Clutter, "pairs": Pairs}
COMPOSED: dict[Any, Any] = {Clutter: compose, Pairs: compose_pairs}
ELPV_SIZE = 128  # of 300: smaller images keep less of the cracks


@dataclass(frozen=True, repr=False, eq=False)
class DataSplits:
    """Three splits of one data set.

    Each has ``len()``, ``[i]`` → (uint8 C×H×W, int64 scalar), ``.labels``, and ``__getitems__(indices)`` → (uint8
    B×C×H×W, int64 B); ``image_size`` is the side H = W in pixels. ``origin`` says where validation and test come
    from, and how many images were left out. ``params`` are JSON: ``load_data(**params)`` gives the same images again,
    and ``load_data(**params, **reading)`` reads and keeps them in the same way.
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
    reading: dict[str, Any] = field(default_factory=dict)

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
            digest.update(split.labels.contiguous().numpy().tobytes() + split.digest)
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
        name: ``cluttered``, ``pairs``, ``digits``, ``elpv``, ``hf:<repository>[:<configuration>]``, or a folder of
            parquet files or images
        image_size: to which the square at an image's centre is resized; None keeps it (digits and pairs 32, cluttered
            40; elpv is resized to 128)
        validation, test: fractions of train to hold out, stratified by class, where the source has no such split
        seed: of the data; it is not the seed of a training
        limit: at most this many images per split, stratified; each class keeps one where the limit allows it
        options: the fields of `Clutter` for ``cluttered``, of `Pairs` for ``pairs``, of `Source` for what is read

    ``cluttered`` and ``pairs`` divide the 1,797 *source* digits first and compose each split from its own, fragments
    included. ``elpv`` reads the package elpv-dataset, an extra of this one.
    Raises ValueError or FileNotFoundError, saying what to change, before any decoding where it can.

    >>> load_data("cluttered", train_size=60, validation_size=20, test_size=20)  # doctest: +ELLIPSIS
    DataSplits('cluttered': 60 train · 20 validation · 20 test; 10 classes; 1×40×40 uint8; ...)
    """
    name = str(os.fspath(check_type("name", name, str, os.PathLike)))
    if name == "elpv" and image_size is None:
        image_size = ELPV_SIZE
    request = _Request(name, image_size, validation, test, seed, limit)
    kind = KINDS.get(name, Source)
    if kind is not Source:
        options.pop("cache_dir", None)
    if kind in COMPOSED and image_size is not None and options.setdefault("canvas", image_size) != image_size:
        raise ValueError(f"canvas={options['canvas']} and image_size={image_size} differ; give one of them.")
    known = [option.name for option in fields(kind)]
    if unknown := [option for option in options if option not in known]:
        has = f"it has {', '.join([*known, 'image_size'])} and the like{hint(unknown[0], known) or '.'}"
        raise ValueError(f"'{name}' has no option '{unknown[0]}'; {has}")
    settings = kind(**options)
    pool: Any
    if isinstance(settings, Source):
        pool, classes = find_images(name, settings)
        parts = pool.parts
    else:
        side = getattr(settings, "digit_size", request.image_size or 32)
        pool = TensorImages(*read_digits(side))
        classes = tuple(f"{n:02}" for n in range(100)) if kind is Pairs else tuple("0123456789")
        parts = {"train": ("the digits", range(len(pool)))}
    chosen, origin = _divide(pool.labels, parts, request)
    splits: dict[str, Any] = {split: pool.take(rows) for split, rows in chosen.items()}
    if kind in COMPOSED:
        origin = f"each split composed from its own digits, {origin}"
        for stream, (split, digits) in enumerate(splits.items(), start=10):
            count, generator = getattr(settings, f"{split}_size"), _generator(request.seed, stream)
            splits[split] = TensorImages(*COMPOSED[kind](digits.images, digits.labels, count, settings, generator))
    splits = {s: its.take(_spread(its.labels, request.limit, request.seed, each=1)) for s, its in splits.items()}
    if isinstance(settings, Source):
        count = sum(map(len, splits.values()))
        splits = read_splits(pool, splits, request.image_size, settings)
        if left_out := count - sum(map(len, splits.values())):
            origin += f"; {left_out:,} unreadable left out"
    channels, size, _ = splits["train"][0][0].shape
    present = set(splits["train"].labels.tolist())
    if limit is not None and (absent := [word for number, word in enumerate(classes) if number not in present]):
        warnings.warn(f"limit={limit} leaves no training image of {', '.join(absent[:10])}; raise it.", stacklevel=2)
    same_images = ("canvas", "lazy", "cache_dir")  # image_size, and what only says when and where to keep them
    reading = {k: v for k, v in vars(settings).items() if k in ("lazy", "cache_dir")}
    if reading.get("cache_dir") is not None:
        reading["cache_dir"] = os.path.abspath(reading["cache_dir"])
    changed = {k: v for k, v in vars(settings).items() if v != getattr(kind, k) and k not in same_images}
    folder = name not in BUILT_IN and os.path.isdir(name)  # which is the same one from wherever it is named
    params = {**asdict(request), "name": os.path.abspath(name) if folder else name, "image_size": size, **changed}
    facts: Any = {"num_classes": len(classes), "in_channels": channels, "image_size": size, "classes": classes}
    return DataSplits(**splits, **facts, name=name, origin=origin, params=params, reading=reading)


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
        for argument, value in vars(self).items():
            if argument in ("validation", "test") and not 0 < value < 1:
                raise ValueError(f"{argument} is {value}; it is a fraction of train, between 0 and 1.")
            if argument in ("image_size", "limit") and value is not None:
                whole(argument, value)
        whole("seed", self.seed, 0, 2**48)


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


def _divide(labels: Tensor, parts: Parts, request: _Request) -> tuple[dict[str, Tensor], str]:
    """Which rows make up each split, and that in words."""
    origin, its = parts["train"]
    left = torch.arange(its.start, its.stop)
    present, chosen, words = set(labels[left].tolist()), {}, []
    for stream, split, fraction in ((1, "test", request.test), (2, "validation", request.validation)):
        if split in parts:
            part, rows = parts[split]
            chosen[split] = torch.arange(rows.start, rows.stop)
            words.append(f"{split}: {part}")
            continue
        held = left[_spread(labels[left], round(fraction * len(its)), request.seed, stream)]
        if not len(held):
            raise ValueError(f"{split}={fraction} of {len(its)} images ({origin}) is an empty split; raise it.")
        chosen[split] = held
        words.append(f"{split}: {fraction:.0%} of {origin}")
        left = left[~torch.isin(left, held)]
    chosen["train"] = left
    if missing := present - set(labels[left].tolist()):
        what = f"Class {min(missing)} has too few images in {origin} to be split: none is left"
        raise ValueError(f"{what}; lower validation= and test=, or add images.")
    return {split: chosen[split] for split in SPLITS}, f"{', '.join(reversed(words))} (seed {request.seed})"
