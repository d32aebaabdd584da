"""Decoded images kept on disk: the name of a cache, its reading, and its writing where that is possible."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from redistill_lib.data.images import EncodedImages, Failures, TensorImages

__all__ = ["fingerprint", "read_cache", "write_cache", "write_file"]


def fingerprint(*facts: object) -> str:
    """A short name for whatever determines the bytes of a cache.

    >>> fingerprint("a", 1) == fingerprint("a", 1), fingerprint("a", 1) == fingerprint("a", 2)
    (True, False)
    """
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def read_cache(path: Path, parts: dict[str, EncodedImages]) -> tuple[dict[str, TensorImages], Failures] | None:
    """What `decode_all` gave; None where the file is missing, damaged, or of other parts: it is then rebuilt."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
        failures = {part: dict.fromkeys(found[f"{part}.unreadable"].tolist(), "") for part in parts}
        images = {part: TensorImages(found[part], encoded.labels) for part, encoded in parts.items()}
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return images, failures


def write_file(path: Path, write: Callable[[Path], object]) -> bool:
    """Whether ``write(file)`` worked. It writes beside ``path``, then renames: a reader never sees half a file.

    The folder is made, with a .gitignore of its own: caches lie wherever a notebook runs. Where it is full or cannot
    be written to, one warning says that nothing is kept.
    """
    from safetensors import SafetensorError

    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".gitignore").write_text("*\n")
        write(unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"Nothing is kept in the cache {path.parent} ({error}); give another cache_dir=.", stacklevel=2)
        return False
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return True


def write_cache(path: Path, images: dict[str, TensorImages], failures: Failures) -> None:
    from safetensors.torch import save_file

    tensors = {part: split.images for part, split in images.items()}
    bad = {f"{part}.unreadable": torch.tensor(list(found), dtype=torch.int64) for part, found in failures.items()}
    write_file(path, lambda file: save_file(tensors | bad, file))
