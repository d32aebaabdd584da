"""From encoded images (files, or rows of a table) to uint8 tensors: decode, resize, keep the result."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from redistill_lib.checks import check_type
from redistill_lib.progress import progress_bar

__all__ = ["EncodedImages", "LazyImages", "TensorImages", "as_batch", "decode_image"]

EAGER_BYTES = 2**30  # sets that decode to more than this are decoded batch by batch
PROBED = 100_000  # larger sets have only a thousand of their headers read beforehand
GREY = ("1", "L", "LA", "La")
DECODING = 2  # raised whenever the same bytes decode to other pixels: older caches are not read then
Failures = dict[str, dict[int, str]]  # part → index of an image that cannot be read → why


class Images(Dataset[tuple[Tensor, Tensor]]):
    """What both kinds of split share: ``labels`` int64 N, and ``__getitems__``, which gives a whole batch."""

    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images, uint8 B×C×H×W, and their labels."""
        return self.__getitems__(range(min(count, len(self))))


class TensorImages(Images):
    """Images in memory: ``images`` uint8 N×C×H×W and ``labels`` int64 N; indices give a whole batch.

    >>> split = TensorImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
    >>> images, labels = split.__getitems__([4, 0])
    >>> tuple(images.shape), labels.tolist()
    ((2, 1, 8, 8), [4, 0])
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        check_type("images", images, Tensor)
        check_type("labels", labels, Tensor)
        right = images.dtype == torch.uint8 and images.ndim == 4 and labels.dtype == torch.int64
        if not right or len(labels) != len(images):
            raise ValueError(
                f"images are uint8 N×C×H×W and labels int64 N, not {images.dtype} {tuple(images.shape)} "
                f"and {labels.dtype} {tuple(labels.shape)}."
            )
        self.images, self.labels = images, labels

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]

    def fingerprint(self) -> bytes:
        return hashlib.sha256(self.images.contiguous().numpy().data).digest()

    def take(self, rows: Tensor) -> TensorImages:
        return TensorImages(*self.__getitems__(rows))

    def __repr__(self) -> str:
        return f"TensorImages({len(self):,} × {'×'.join(str(n) for n in self.images.shape[1:])} uint8)"


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """One part of a data set before decoding.

    ``items`` is a list of file paths, or a Hugging Face ``Dataset`` whose ``column`` holds ``{"bytes",
    "path"}``; ``rows`` are the numbers of the images in use, ``labels`` theirs; ``origin`` names the part
    in errors.
    """

    items: Any
    column: str
    labels: Tensor
    rows: Tensor
    origin: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> EncodedImages:
        return EncodedImages(self.items, self.column, self.labels[rows], self.rows[rows], self.origin)

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | str | None, str]]:
        """The encoded images at ``indices`` (bytes, a path, or None) and how an error should call each."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        if not self.column:
            return [(self.items[row], str(self.items[row])) for row in rows]
        return [
            (item and (item.get("bytes") or item.get("path")), f"row {row} of {self.origin}, column '{self.column}',")
            for row, item in zip(rows, self.items[rows][self.column], strict=True)
        ]


class LazyImages(Images):
    """Images decoded when asked for: TensorImages' interface, at the price of decoding every time."""

    def __init__(self, encoded: EncodedImages, size: int, channels: int) -> None:
        self.encoded, self.labels, self.size, self.channels = encoded, encoded.labels, size, channels

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        decode = partial(decode_image, size=self.size, channels=self.channels)
        with _decoding() as pool:
            images = list(pool.map(decode, *zip(*self.encoded.read(chosen.tolist()), strict=True)))
        return torch.stack(images), self.labels[chosen]

    def fingerprint(self) -> bytes:
        """A hash of what decides the pixels: side, channels and every encoded byte, which are all read for it."""

        def hashed(raw: bytes | str, where: str) -> bytes:
            return hashlib.sha256(raw if isinstance(raw, bytes) else Path(raw).read_bytes()).digest()

        digest = hashlib.sha256(repr((self.size, self.channels)).encode())
        with ThreadPoolExecutor() as pool:
            for _, found in _each(pool, hashed, self.encoded):
                digest.update(found)
        return digest.digest()

    def take(self, rows: Tensor) -> LazyImages:
        return LazyImages(self.encoded.take(rows), self.size, self.channels)

    def __repr__(self) -> str:
        return f"LazyImages({len(self):,} × {self.channels}×{self.size}×{self.size} uint8, decoded on access)"


def as_batch(batch: Any) -> Any:
    """``collate_fn`` for a DataLoader over a split, whose ``__getitems__`` already returns a whole batch.

    >>> split = TensorImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    >>> loader = torch.utils.data.DataLoader(split, batch_size=2, collate_fn=as_batch)
    >>> [labels.tolist() for images, labels in loader]
    [[0, 1], [2, 3]]
    """
    return batch


def decode_image(raw: bytes | str | None, where: str, size: int, channels: int) -> Tensor:
    """One image as uint8 channels×size×size: the square at its centre, resized.

    It is turned as its EXIF says, whatever its format, and what is transparent shows white. ``raw`` is the encoded
    bytes or a path. Raises ValueError, naming ``where``, for anything that does not decode.
    """
    from PIL import Image, ImageOps

    with _opened(raw, where) as image:
        image.load()
        with suppress(SyntaxError):  # an EXIF block that cannot be parsed turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if channels == 3 else "L")
        side, (width, height) = min(image.size), image.size
        if (width, height) != (size, size):
            left, top = (width - side) / 2, (height - side) / 2
            # Cut out first, or a long thin image would be resized to a huge one. Pillow filters when it shrinks.
            box = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1).contiguous()


@contextmanager
def _opened(raw: bytes | str | None, where: str) -> Iterator[Any]:
    """Open an image; whatever goes wrong with it becomes a ValueError that names ``where``."""
    from PIL import Image

    if not raw:
        raise ValueError(f"{where} holds no image")
    try:
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it first")
            yield image
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise ValueError(f"{where} cannot be read as an 8-bit image ({error})") from error


@contextmanager
def _decoding() -> Iterator[Executor]:
    """Threads to decode on all cores (Pillow frees the GIL), without its warnings of large images that do decode.

    One thread in a DataLoader's worker, beside which others work.
    """
    from PIL import Image

    threads = 1 if get_worker_info() else os.cpu_count()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield pool


def _each(
    pool: Executor, function: Callable[..., Any], encoded: EncodedImages, step: int = 1
) -> Iterator[tuple[int, Any]]:
    """The index and ``function(raw, where)`` of every ``step``-th image, or the ValueError it raises."""

    def attempt(raw: bytes | str | None, where: str) -> Any:
        try:
            return function(raw, where)
        except ValueError as error:
            return error

    for chunk in _chunks(range(0, len(encoded), step)):
        yield from zip(chunk, pool.map(attempt, *zip(*encoded.read(chunk), strict=True)), strict=True)


def _header(raw: bytes | str | None, where: str) -> tuple[tuple[int, int], bool, str]:
    with _opened(raw, where) as image:
        return image.size, image.mode in GREY, where


def check_readable(failures: Failures, name: str) -> None:
    """Raise one ValueError for all images that cannot be read; ``failures``: part → index → why."""
    reasons = [reason for found in failures.values() for reason in found.values()]
    if reasons:
        more = f"; and {len(reasons) - 10:,} more" if len(reasons) > 10 else ""
        raise ValueError(
            f"{len(reasons):,} of the images of {name} cannot be read; replace or remove them, or leave them out "
            f"with skip_unreadable=True: {'; '.join(reasons[:10])}{more}."
        )


def probe(
    parts: dict[str, EncodedImages], name: str, size: int | None, channels: int | None, every: bool
) -> tuple[int, int, Failures]:
    """The common side and channel number of all images, from their headers alone, and which cannot be read.

    One channel only if every image is greyscale. Without ``size`` all have to be squares of one side. Of a
    part with more than ``PROBED`` images a thousand are looked at unless ``every``, and it counts as colour.
    """
    grey, first = True, None
    failures: Failures = {part: {} for part in parts}
    with _decoding() as pool:
        for part, encoded in parts.items():
            few = len(encoded) <= PROBED
            grey &= few
            step = 1 if few or every else max(1, len(encoded) // 1000)
            for index, header in _each(pool, _header, encoded, step):
                if isinstance(header, ValueError):
                    failures[part][index] = str(header)
                    continue
                shape, is_grey, where = header
                grey &= is_grey
                first = first or (shape, where)
                if size is None and shape != first[0]:
                    raise ValueError(
                        f"The images of {name} differ in size: {first[1]} is {_by(first[0])}, {where} is "
                        f"{_by(shape)}; pass image_size=, for example image_size={min(*shape, *first[0])}."
                    )
    if first is None:
        check_readable(failures, name)
        raise ValueError(f"{name} holds no images.")
    if size is None and first[0][0] != first[0][1]:
        raise ValueError(
            f"The images of {name} are {_by(first[0])}, not square; pass image_size= (the square at their centre "
            f"is resized to it), for example image_size={min(first[0])}."
        )
    return size or first[0][0], channels or (1 if grey else 3), failures


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _chunks(indices: range, length: int = 256) -> Iterable[range]:
    return (indices[start : start + length] for start in range(0, len(indices), length))


def decode_all(
    parts: dict[str, EncodedImages], name: str, size: int, channels: int
) -> tuple[dict[str, TensorImages], Failures]:
    """Decode whole parts on all cores, and say which images cannot be read and why: they stay black."""
    images, failures = {}, {part: dict[int, str]() for part in parts}
    decode = partial(decode_image, size=size, channels=channels)
    with progress_bar(sum(map(len, parts.values())), f"decoding {name}") as bar, _decoding() as pool:
        for part, encoded in parts.items():
            images[part] = TensorImages(
                torch.zeros(len(encoded), channels, size, size, dtype=torch.uint8), encoded.labels
            )
            for index, image in _each(pool, decode, encoded):
                if isinstance(image, ValueError):
                    failures[part][index] = str(image)
                else:
                    images[part].images[index] = image
                bar.update()
    return images, failures


def warn_of_flat(splits: Mapping[str, Any], name: str) -> None:
    """One warning with the number of images in memory that are of one colour throughout: mostly a decoding fault."""
    flat, total = 0, 0
    for images in (split.images.flatten(2) for split in splits.values() if isinstance(split, TensorImages)):
        flat += int((images.amax(-1) == images.amin(-1)).all(1).sum())
        total += len(images)
    if flat:
        warnings.warn(
            f"{flat:,} of {total:,} images of {name} are of one flat colour at this size; look at them.", stacklevel=2
        )
