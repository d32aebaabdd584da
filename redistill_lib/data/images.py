"""From encoded images (files, or rows of a table) to uint8 tensors: decode, resize, keep the result."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from redistill_lib.checks import check_fields
from redistill_lib.progress import progress_bar

EAGER_BYTES = 2**30  # sets that decode to more than this are decoded batch by batch
DECODING = 2  # raised whenever the same bytes decode to other pixels: older caches are not read then
PROBED = 100_000  # of larger sets only a thousand headers are read beforehand, and they count as colour
Parts = Mapping[str, tuple[str, range]]  # part of a table → its name in words, its rows


class Images(Dataset[tuple[Tensor, Tensor]]):
    """What both kinds of split share: ``labels`` int64 N, and ``__getitems__``, which gives a whole batch."""

    labels: Tensor
    __getitems__: Callable[..., tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images, uint8 B×C×H×W, and their labels."""
        return self.__getitems__(range(min(count, len(self))))


@dataclass(eq=False, repr=False)
class TensorImages(Images):
    """Images in memory: ``images`` uint8 N×C×H×W and ``labels`` int64 N; indices give a whole batch.

    >>> TensorImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5)).__getitems__([4, 0])[1]
    tensor([4, 0])
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        check_fields(self)
        kinds = self.images.dtype, self.images.ndim, self.labels.dtype
        if kinds != (torch.uint8, 4, torch.int64) or len(self.labels) != len(self.images):
            found = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in (self.images, self.labels))
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

    ``table``: a Hugging Face ``Dataset`` with one column of ``{"bytes", "path"}``; ``rows``: the rows in use,
    ``labels``: theirs; ``name``: the data set's; ``key``: a hash of its source; ``size``: the side in pixels.
    """

    table: Any
    labels: Tensor
    rows: Tensor
    name: str
    key: str
    parts: Parts
    size: int = 0
    channels: int = 0

    def take(self, rows: Tensor) -> LazyImages:
        return replace(self, labels=self.labels[rows], rows=self.rows[rows])

    def each(self, function: Callable[[Any], Any]) -> Iterator[tuple[int, Any]]:
        """The row and ``function(encoded bytes or path)``, or the error it raises, of each image, on all cores."""
        # Pillow refuses what is really too large; its warning before that is ignored, unless a caller has a filter.
        if not any(category is Image.DecompressionBombWarning for _, _, category, *_ in warnings.filters):
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)

        def attempt(item: dict[str, Any] | None) -> Any:
            try:
                return function(item and (item["bytes"] or item["path"]))
            except Exception as error:  # Pillow's decoders raise nearly anything
                return error

        for chunk in self.rows.split(256):
            rows = chunk.tolist()
            (items,) = self.table[rows].values()
            yield from zip(rows, _threads(os.getpid()).map(attempt, items), strict=True)

    def where(self, row: int) -> str:
        """The name of an image in errors: its path or its row."""
        ((column, item),) = self.table[row].items()
        if item and item["path"] and not item["bytes"]:
            return item["path"]
        part, rows = next(part for part in self.parts.values() if row in part[1])
        return f"row {rows.index(row)} of {part}, column '{column}',"

    def readable(self, results: Iterable[tuple[int, Any]]) -> list[Any]:
        """What `each` gave without the rows, or one ValueError for all errors among it."""
        results = list(results)
        failed = {row: result for row, result in results if isinstance(result, Exception)}
        first = [f"{self.where(row)} cannot be read as an 8-bit image ({failed[row]})" for row in sorted(failed)[:10]]
        if failed:
            more = f"; and {len(failed) - 10:,} more" if len(failed) > 10 else ""
            what = f"{len(failed):,} of the images of {self.name} cannot be read; replace or remove them"
            raise ValueError(f"{what}, or leave them out with skip_unreadable=True: {'; '.join(first)}{more}.")
        return [result for _, result in results]

    def decoded(self) -> Iterator[tuple[int, Any]]:
        return self.each(partial(decode_image, size=self.size, channels=self.channels))

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = self.take(torch.as_tensor(indices, dtype=torch.int64))
        return torch.stack(chosen.readable(chosen.decoded())), chosen.labels

    @cached_property
    def digest(self) -> bytes:
        """A hash of what decides the pixels: side, channels and every encoded byte, read for it once."""

        def hashed(raw: bytes | str) -> bytes:
            return hashlib.sha256(raw if isinstance(raw, bytes) else Path(raw).read_bytes()).digest()

        found = self.readable(self.each(hashed))
        return hashlib.sha256(repr((self.size, self.channels)).encode() + b"".join(found)).digest()

    def __repr__(self) -> str:
        return f"LazyImages({len(self):,} × {self.channels}×{self.size}×{self.size} uint8, decoded on access)"


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """On all cores (Pillow frees the GIL), but one beside a DataLoader's other workers; anew in a forked process."""
    return ThreadPoolExecutor(1 if get_worker_info() else os.cpu_count())


def as_batch(batch: Any) -> Any:
    """``collate_fn`` for a DataLoader over a split, whose ``__getitems__`` already returns a whole batch.

    >>> split = TensorImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    >>> [labels.tolist() for images, labels in torch.utils.data.DataLoader(split, 2, collate_fn=as_batch)]
    [[0, 1], [2, 3]]
    """
    return batch


def decode_image(raw: bytes | str | None, size: int, channels: int) -> Tensor:
    """One image (encoded bytes, or a path) as uint8 channels×size×size: the square at its centre, resized.

    It is turned as its EXIF says, whatever its format, and what is transparent shows white.
    """
    with _opened(raw) as image:
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
def _opened(raw: bytes | str | None) -> Iterator[Any]:
    if not raw:
        raise ValueError("it holds no image")
    with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it first")
        yield image


def _probed(encoded: LazyImages, size: int | None, source: Any) -> tuple[LazyImages, dict[int, Any]]:
    """The images with their common side and channel number, from the headers alone, and the headers or errors."""

    def header(raw: Any) -> tuple[tuple[int, int], bool]:
        with _opened(raw) as image:
            return image.size, image.mode in ("1", "L", "LA", "La")

    grey = few = len(encoded) <= PROBED
    step = 1 if few or source.skip_unreadable else len(encoded) // 1000 or 1
    headers = dict(encoded.take(torch.arange(0, len(encoded), step)).each(header))
    shapes: dict[tuple[int, int], int] = {}  # shape → row of the first image of it
    for row, found in headers.items():
        if not isinstance(found, Exception):
            shapes.setdefault(found[0], row)
            grey &= found[1]
    if not shapes:
        encoded.readable(headers.items())
    if size is None and (len(shapes) > 1 or len(set(next(iter(shapes)))) > 1):
        seen = ", ".join(f"{encoded.where(row)} is {w}×{h}" for (w, h), row in islice(shapes.items(), 2))
        example = f"for example image_size={min(map(min, shapes))}"
        what = f"The images of {encoded.name} are not squares of one size: {seen}"
        raise ValueError(f"{what}; pass image_size= (the square at their centre is resized to it), {example}.")
    channels = source.channels or (1 if grey else 3)
    return replace(encoded, size=size or next(iter(shapes))[0], channels=channels), headers


def read_splits(pool: LazyImages, splits: Mapping[str, LazyImages], size: int | None, source: Any) -> dict[str, Any]:
    """Each split of the images ``pool`` from the cache, decoded, or lazy where that is too large."""
    images: Any
    cache = found = None
    if source.cache_dir is not None and source.lazy is not True:
        readable = re.sub(r"\W+", "-", Path(pool.name.removeprefix("hf:")).name)[:40]
        stamp = fingerprint(pool.key, size, source.channels, source.skip_unreadable, DECODING)
        cache = Path(source.cache_dir) / f"{readable}-{stamp}.safetensors"
        with suppress(OSError, SafetensorError, KeyError, ValueError):  # missing or damaged: it is then rebuilt
            kept = load_file(cache)
            found = TensorImages(kept["images"], pool.labels[kept["rows"]]), kept["rows"]
    if found is None:
        used = pool.take(torch.cat([split.rows for split in splits.values()]))
        whole = len(used) == int((pool.labels >= 0).sum())
        used, results = _probed(used, size, source)
        lazy = len(used) * used.channels * used.size**2 > EAGER_BYTES if source.lazy is None else source.lazy
        if not lazy or source.skip_unreadable:  # a header may be whole where the image is not
            with progress_bar(len(used), f"decoding {used.name}") as bar:
                for row, image in used.decoded():
                    results[row] = image if not lazy or isinstance(image, Exception) else None
                    bar.update()
        good = [k for k, row in enumerate(used.rows.tolist()) if not isinstance(results.get(row), Exception)]
        if not source.skip_unreadable or not good:
            used.readable(results.items())
        images = used = used.take(torch.tensor(good, dtype=torch.int64))
        if not lazy:
            images = TensorImages(torch.stack([results.pop(row) for row in used.rows.tolist()]), used.labels)
            if cache and whole:  # part of a data set is not worth keeping
                kept_in(cache.parent, partial(_write_cache, cache, images, used.rows))
        found = images, used.rows
    images, rows = found
    if isinstance(images, TensorImages):
        pixels = images.images.flatten(2)
        if flat := int((pixels.amax(2) == pixels.amin(2)).all(1).sum()):
            what = f"{flat:,} of {len(images):,} images of {pool.name}"
            warnings.warn(f"{what} are of one flat colour at this size; look at them.", stacklevel=2)
    place = torch.full((len(pool),), -1).index_copy_(0, rows, torch.arange(len(rows)))
    picked = {}
    for split, part in splits.items():
        at = place[part.rows]
        picked[split] = images.take(at[at >= 0])
        if not len(picked[split]):
            raise ValueError(f"No image of {split} can be read.")
    return picked


def fingerprint(*facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def kept_in(folder: Path, write: Callable[[], Any]) -> Any:
    """``write()``, which writes into the cache ``folder``; one warning and None where that is full or read-only."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n")  # caches lie wherever a notebook runs
        return write()
    except Exception as error:
        reason = error.__cause__ or error  # `datasets` hides it
        if not isinstance(reason, OSError | SafetensorError):
            raise
        warnings.warn(f"Nothing is kept in the cache {folder} ({reason}); give another cache_dir=.", stacklevel=2)


def _write_cache(path: Path, images: TensorImages, rows: Tensor) -> None:
    with TemporaryDirectory(dir=path.parent) as scratch:  # a reader never sees half a file
        save_file({"images": images.images, "rows": rows}, Path(scratch) / path.name)
        os.replace(Path(scratch) / path.name, path)
