"""From encoded images (files, or rows of a table) to uint8 tensors: decode, resize, keep the result."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["EncodedImages", "LazyImages", "TensorImages", "as_batch", "decode_image", "fingerprint"]

EAGER_BYTES = 2**30  # sets that decode to more than this are decoded batch by batch
PROBED = 100_000  # larger sets have only a thousand of their headers read beforehand
GREY = ("1", "L")


class TensorImages(Dataset[tuple[Tensor, Tensor]]):
    """Images in memory: ``images`` uint8 N×C×H×W and ``labels`` int64 N; indices give a whole batch.

    >>> split = TensorImages(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5))
    >>> images, labels = split.__getitems__([4, 0])
    >>> tuple(images.shape), labels.tolist()
    ((2, 1, 8, 8), [4, 0])
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return self.images[chosen], self.labels[chosen]

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images, uint8 B×C×H×W, and their labels."""
        return self.__getitems__(range(min(count, len(self))))

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

    def read(self, indices: Sequence[int]) -> list[tuple[bytes | str, str]]:
        """The encoded images at ``indices`` (bytes, or a path) and how an error should call each."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        if not self.column:
            return [(self.items[row], str(self.items[row])) for row in rows]
        found = []
        for row, item in zip(rows, self.items[rows][self.column], strict=True):
            where = f"row {row} of {self.origin}, column '{self.column}',"
            raw = item and (item.get("bytes") or item.get("path"))
            if not raw:
                raise ValueError(f"{where} holds no image; remove the row.")
            found.append((raw, where))
        return found


class LazyImages(Dataset[tuple[Tensor, Tensor]]):
    """Images decoded when asked for: TensorImages' interface, at the price of decoding every time."""

    def __init__(self, encoded: EncodedImages, size: int, channels: int) -> None:
        self.encoded, self.size, self.channels = encoded, size, channels

    @property
    def labels(self) -> Tensor:
        return self.encoded.labels

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        found = self.encoded.read(chosen.tolist())
        images = torch.stack([decode_image(raw, where, self.size, self.channels) for raw, where in found])
        return images, self.labels[chosen]

    def head(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images, uint8 B×C×H×W, and their labels."""
        return self.__getitems__(range(min(count, len(self))))

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


def decode_image(raw: bytes | str, where: str, size: int, channels: int) -> Tensor:
    """One image as uint8 channels×size×size: the shorter side resized to ``size``, then the centre cropped.

    ``raw`` is the encoded bytes or a path. Raises ValueError, naming ``where``, for anything that does not
    decode.
    """
    from PIL import Image

    with _opened(raw, where) as opened:
        image = opened.convert("RGB" if channels == 3 else "L")
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        wide, high = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.resize((wide, high), Image.Resampling.BILINEAR)  # Pillow filters when it shrinks
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).view(size, size, channels).permute(2, 0, 1).contiguous()


@contextmanager
def _opened(raw: bytes | str, where: str) -> Iterator[Any]:
    """Open an image, turned as its EXIF says; what goes wrong becomes a sentence that names ``where``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw) as image:
            if image.format == "JPEG":
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel; convert it first")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} cannot be read as an 8-bit image ({error}); replace or remove it.") from error


def probe(parts: Iterable[EncodedImages], name: str, size: int | None, channels: int | None) -> tuple[int, int]:
    """The common side and channel number of all images, from their headers alone.

    One channel only if every image is greyscale. Without ``size`` all have to be squares of one side. Of a
    part with more than ``PROBED`` images a thousand are looked at, and it counts as colour.
    """
    grey, first = True, None
    for part in parts:
        if size is not None and channels is not None:
            break
        few = len(part) <= PROBED
        grey &= few
        for chunk in _chunks(range(len(part)) if few else range(0, len(part), max(1, len(part) // 1000))):
            for raw, where in part.read(chunk):
                with _opened(raw, where) as image:
                    grey &= image.mode in GREY
                    shape = image.size
                first = first or (shape, where)
                if size is None and shape != first[0]:
                    raise ValueError(
                        f"The images of {name} differ in size: {first[1]} is {_by(first[0])}, "
                        f"{where} is {_by(shape)}; "
                        f"pass image_size=, for example image_size={min(*shape, *first[0])}."
                    )
    if size is None:
        assert first is not None  # an empty part has been refused before
        if first[0][0] != first[0][1]:
            raise ValueError(
                f"The images of {name} are {_by(first[0])}, not square; pass image_size= (the shorter side "
                f"is resized to it, then the centre cropped), for example image_size={min(first[0])}."
            )
        size = first[0][0]
    return size, channels or (1 if grey else 3)


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}×{shape[1]}"


def _chunks(indices: range, length: int = 256) -> Iterable[range]:
    return (indices[start : start + length] for start in range(0, len(indices), length))


def decode_all(encoded: EncodedImages, size: int, channels: int) -> TensorImages:
    """Decode a whole part; a progress bar appears when it takes more than two seconds."""
    from tqdm.auto import tqdm

    lazy = LazyImages(encoded, size, channels)
    images = torch.empty(len(encoded), channels, size, size, dtype=torch.uint8)
    with tqdm(total=len(encoded), desc=f"decoding {encoded.origin}", unit="image", delay=2, leave=False) as bar:
        for chunk in _chunks(range(len(encoded))):
            images[chunk.start : chunk.stop] = lazy.__getitems__(chunk)[0]
            bar.update(len(chunk))
    return TensorImages(images, encoded.labels)


def fingerprint(*facts: object) -> str:
    """A short name for whatever determines the bytes of a cache.

    >>> fingerprint("a", 1) == fingerprint("a", 1), fingerprint("a", 1) == fingerprint("a", 2)
    (True, False)
    """
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def read_cache(path: Path, parts: dict[str, EncodedImages]) -> dict[str, TensorImages] | None:
    """The decoded parts; None where the file is missing, damaged, or of other parts: it is then rebuilt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        images = load_file(path)
    except (OSError, SafetensorError):
        return None
    if {part: len(images.get(part, ())) for part in parts} != {part: len(encoded) for part, encoded in parts.items()}:
        return None
    return {part: TensorImages(images[part], encoded.labels) for part, encoded in parts.items()}


def make_cache(folder: Path) -> Path:
    """The folder, made if need be, with a .gitignore of its own: caches lie wherever a notebook runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def write_cache(path: Path, parts: dict[str, TensorImages]) -> None:
    """Write beside the target, then rename: a reader never sees half a file."""
    from safetensors.torch import save_file

    partial = make_cache(path.parent) / (f"{path.stem}.{os.getpid()}.partial")
    try:
        save_file({part: images.images for part, images in parts.items()}, partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
