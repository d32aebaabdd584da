"""From encoded images (files, or rows of a table) to uint8 tensors: decode, resize, keep the result."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from redistill_lib.checks import check_fields
from redistill_lib.progress import progress_bar

__all__ = ["LazyImages", "TensorImages", "as_batch", "decode_image"]

EAGER_BYTES = 2**30  # sets that decode to more than this are decoded batch by batch
PROBED = 100_000  # larger sets have only a thousand of their headers read beforehand
DECODING = 2  # raised whenever the same bytes decode to other pixels: older caches are not read then
Result = TypeVar("Result")
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


@dataclass(eq=False, repr=False)
class TensorImages(Images):
    """Images in memory: ``images`` uint8 N×C×H×W and ``labels`` int64 N; indices give a whole batch.

    >>> split = TensorImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
    >>> images, labels = split.__getitems__([4, 0])
    >>> tuple(images.shape), labels.tolist()
    ((2, 1, 8, 8), [4, 0])
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        images, labels = self.images, self.labels
        right = images.dtype == torch.uint8 and images.ndim == 4 and labels.dtype == torch.int64
        if not right or len(labels) != len(images):
            found = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in (images, labels))
            raise ValueError(f"images are uint8 N×C×H×W and labels int64 N, not {found}.")

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.images.contiguous().numpy().data).digest()

    def take(self, rows: Tensor) -> TensorImages:
        return TensorImages(*self.__getitems__(rows))

    def __repr__(self) -> str:
        return f"TensorImages({len(self):,} × {'×'.join(str(n) for n in self.images.shape[1:])} uint8)"


@dataclass(frozen=True, eq=False, repr=False)
class LazyImages(Images):
    """Images decoded when asked for: TensorImages' interface, at the price of decoding every time.

    ``table``: a Hugging Face ``Dataset`` with one column of ``{"bytes", "path"}``; ``rows``: the numbers of the
    images in use, ``labels``: theirs; ``origin`` names the table in errors. ``size`` (the side in pixels) and
    ``channels`` are needed for decoding only.
    """

    table: Any
    labels: Tensor
    rows: Tensor
    origin: str
    size: int = 0
    channels: int = 0

    def take(self, rows: Tensor) -> LazyImages:
        return replace(self, labels=self.labels[rows], rows=self.rows[rows])

    def each(
        self, function: Callable[..., Any], failures: dict[int, str], indices: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """The index and ``function(encoded bytes or path, its name in errors)`` of these images, on all cores.

        Images for which it raises a ValueError are missing, and in ``failures`` instead.
        """
        # Pillow refuses what is really too large; its warning before that is ignored, unless a caller has a filter.
        if not any(category is Image.DecompressionBombWarning for _, _, category, *_ in warnings.filters):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        (column,) = self.table.column_names

        def attempt(item: dict[str, Any] | None, row: int) -> Any:
            raw = item and (item["bytes"] or item["path"])
            where = raw if isinstance(raw, str) else f"row {row} of {self.origin}, column '{column}',"
            try:
                return function(raw, where)
            except ValueError as error:
                return error

        indices = range(len(self)) if indices is None else indices
        for start in range(0, len(indices), 256):
            chunk = indices[start : start + 256]
            rows = self.rows[list(chunk)].tolist()
            results = _threads(os.getpid()).map(attempt, self.table[rows][column], rows)
            for index, result in zip(chunk, results, strict=True):
                if isinstance(result, ValueError):
                    failures[index] = str(result)
                else:
                    yield index, result

    def decoded(self, failures: dict[int, str], indices: Sequence[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        return self.each(partial(decode_image, size=self.size, channels=self.channels), failures, indices)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        failures: dict[int, str] = {}
        images = [image for _, image in self.decoded(failures, chosen.tolist())]
        check_readable({"": failures}, self.origin)
        return torch.stack(images), self.labels[chosen]

    @cached_property
    def digest(self) -> bytes:
        """A hash of what decides the pixels: side, channels and every encoded byte, read for it once."""

        def hashed(raw: bytes | str, where: str) -> bytes:
            return hashlib.sha256(raw if isinstance(raw, bytes) else Path(raw).read_bytes()).digest()

        total = hashlib.sha256(repr((self.size, self.channels)).encode())
        for _, found in self.each(hashed, {}):
            total.update(found)
        return total.digest()

    def __repr__(self) -> str:
        return f"LazyImages({len(self):,} × {self.channels}×{self.size}×{self.size} uint8, decoded on access)"


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """On all cores (Pillow frees the GIL), but one beside a DataLoader's other workers; anew in a forked process."""
    return ThreadPoolExecutor(1 if get_worker_info() else os.cpu_count())


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
    with _opened(raw, where) as image:
        image.load()
        with suppress(SyntaxError):  # an EXIF block that cannot be parsed turns nothing
            ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if channels == 3 else "L")
        # It cuts out first: a long thin image is not resized to a huge one. Pillow filters when it shrinks.
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1).contiguous()


@contextmanager
def _opened(raw: bytes | str | None, where: str) -> Iterator[Any]:
    """Open an image; whatever goes wrong with it becomes a ValueError that names ``where``."""
    if not raw:
        raise ValueError(f"{where} holds no image")
    try:
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it first")
            yield image
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise ValueError(f"{where} cannot be read as an 8-bit image ({error})") from error


def _header(raw: bytes | str | None, where: str) -> tuple[tuple[int, int], bool, str]:
    with _opened(raw, where) as image:
        return image.size, image.mode in ("1", "L", "LA", "La"), where


def check_readable(failures: Failures, name: str) -> None:
    """Raise one ValueError for all images that cannot be read."""
    if reasons := [reason for found in failures.values() for reason in found.values()]:
        more = f"; and {len(reasons) - 10:,} more" if len(reasons) > 10 else ""
        raise ValueError(
            f"{len(reasons):,} of the images of {name} cannot be read; replace or remove them, or leave them out "
            f"with skip_unreadable=True: {'; '.join(reasons[:10])}{more}."
        )


def probe(
    parts: Mapping[str, LazyImages], name: str, size: int | None, channels: int | None, every: bool
) -> tuple[int, int, Failures]:
    """The common side and channel number of all images, from their headers alone, and which cannot be read.

    One channel only if every image is greyscale. Without ``size`` all have to be squares of one side. Of a
    part with more than ``PROBED`` images a thousand are looked at unless ``every``, and it counts as colour.
    """
    grey, shapes = True, dict[tuple[int, int], str]()  # shape → the first image of it
    failures: Failures = {part: {} for part in parts}
    for part, encoded in parts.items():
        few = len(encoded) <= PROBED
        grey &= few
        indices = range(0, len(encoded), 1 if few or every else len(encoded) // 1000 or 1)
        for _, (shape, is_grey, where) in encoded.each(_header, failures[part], indices):
            grey &= is_grey
            shapes.setdefault(shape, where)
    if not shapes:
        check_readable(failures, name)
    if size is None and (len(shapes) > 1 or len(set(next(iter(shapes)))) > 1):
        seen = ", ".join(f"{where} is {shape[0]}×{shape[1]}" for shape, where in islice(shapes.items(), 2))
        raise ValueError(
            f"The images of {name} are not squares of one size: {seen}; pass image_size= (the square at their centre "
            f"is resized to it), for example image_size={min(map(min, shapes))}."
        )
    return size or next(iter(shapes))[0], channels or (1 if grey else 3), failures


def decode_all(parts: Mapping[str, LazyImages], name: str) -> tuple[dict[str, TensorImages], Failures]:
    """Decode whole parts on all cores, and say which images cannot be read and why: they stay black."""
    images, failures = {}, {part: dict[int, str]() for part in parts}
    with progress_bar(sum(map(len, parts.values())), f"decoding {name}") as bar:
        for part, lazy in parts.items():
            pixels = torch.zeros(len(lazy), lazy.channels, lazy.size, lazy.size, dtype=torch.uint8)
            for index, image in lazy.decoded(failures[part]):
                pixels[index] = image
                bar.update()
            images[part] = TensorImages(pixels, lazy.labels)
    return images, failures


def warn_of_flat(splits: Mapping[str, Any], name: str) -> None:
    """One warning with the number of images in memory that are of one colour throughout: mostly a decoding fault."""
    loaded = [split.images.flatten(2) for split in splits.values() if isinstance(split, TensorImages)]
    if flat := sum(int((images.amax(2) == images.amin(2)).all(1).sum()) for images in loaded):
        what = f"{flat:,} of {sum(map(len, loaded)):,} images of {name}"
        warnings.warn(f"{what} are of one flat colour at this size; look at them.", stacklevel=2)


def fingerprint(*facts: object) -> str:
    """A short name for whatever determines the bytes of a cache."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def kept_in(folder: Path, write: Callable[[], Result]) -> Result | None:
    """``write()``, which writes into the cache ``folder``; one warning and None where that is full or read-only.

    The folder is made, with a .gitignore of its own: caches lie wherever a notebook runs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")
        return write()
    except Exception as error:
        reason = error.__cause__ or error  # `datasets` hides it
        if not isinstance(reason, OSError | SafetensorError):
            raise
        warnings.warn(f"Nothing is kept in the cache {folder} ({reason}); give another cache_dir=.", stacklevel=2)
        return None


def read_cache(path: Path, parts: Mapping[str, LazyImages]) -> tuple[dict[str, TensorImages], Failures] | None:
    """What `decode_all` gave; None where the file is missing, damaged, or of other parts: it is then rebuilt."""
    try:
        found = load_file(path)
        failures = {part: dict.fromkeys(found[f"{part}.unreadable"].tolist(), "") for part in parts}
        images = {part: TensorImages(found[part], encoded.labels) for part, encoded in parts.items()}
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return images, failures


def write_cache(path: Path, images: Mapping[str, TensorImages], failures: Failures) -> None:
    tensors = {part: split.images for part, split in images.items()}
    tensors |= {f"{part}.unreadable": torch.tensor(list(bad), dtype=torch.int64) for part, bad in failures.items()}

    def write() -> None:
        with TemporaryDirectory(dir=path.parent) as scratch:  # a reader never sees half a file
            save_file(tensors, Path(scratch) / path.name)
            os.replace(Path(scratch) / path.name, path)

    kept_in(path.parent, write)
