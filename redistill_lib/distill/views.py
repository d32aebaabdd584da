"""What teachers answer to each view of each training image, kept on disk: asked once, read by every student.

An image's views have names, (index, view), that no batch, seed or student changes, and so have the answers. Of a map
only what the methods read of it is kept (`Method.summary`), in fp16 with an exponent for each image. A folder holds
the answers of all teachers::

    teacher-1f3a9c02/key.json                    what decides the answers; another teacher has another folder
    teacher-1f3a9c02/layer1.output-…/000003.npy  one tensor of all images in view 3, a row for each
    teacher-1f3a9c02/layer1.output-…/000003.part the same while it is made: its length says how far it is

A file of rows is written in the order of images, in batches that are always the same, and named ``.npy`` when it is
whole: a kill loses the batch at work, nothing half-written is read, and whoever makes the answers, they are the same.
Processes make different views at the same time; each view has a lock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor, nn

from redistill_lib.checks import as_path
from redistill_lib.distill.terms import Term
from redistill_lib.methods import Batch, Shape
from redistill_lib.methods.base import Summary, spatial_mean
from redistill_lib.network import MapRef
from redistill_lib.runs import canonical, run_id, write_text

Rows = NDArray[np.float16]  # one for each image: an exponent, then the values divided by 2 to its power
#: Answers to batches of (index, view), in their order.
Ask = Callable[[Sequence[Sequence[tuple[int, int]]]], Iterator[Mapping[MapRef, Tensor]]]

BATCH = 64  # images that a teacher is asked about at once, whatever the students' batches are

LAST_MEAN = "last mean"  # over the channels of tokens and of maps with channels last
SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda x: x,
    "channel mean": lambda x: x.mean(1, keepdim=True),
    "spatial mean": lambda x: spatial_mean(x)[(...,) + (None,) * (x.ndim - 2)],
    LAST_MEAN: lambda x: x.mean(-1, keepdim=True),
}


def summaries_of(terms: Iterable[Term]) -> dict[tuple[int, MapRef], str]:
    """What is kept for these terms, by teacher and place. ValueError where one compares a whole map.

    >>> from redistill_lib.distill import Tap
    >>> from redistill_lib.methods import RED
    >>> summaries_of([Term(Tap("stem", "output", "layer1", "output"), RED())])
    {(0, MapRef(layer='layer1', side='output')): 'channel mean'}
    """
    found: dict[tuple[int, MapRef], str] = {}
    for term, tap in ((each, tap) for each in terms for tap in each.taps):
        name, answer = term.method.name, tap.source == MapRef("", "output")
        summary: str = "whole" if answer else getattr(term.method, "summary", "whole")
        if summary not in get_args(Summary):
            raise ValueError(f"{name}.summary is {summary!r}, not one of {', '.join(get_args(Summary))}")
        if tap.teacher_grid and not answer:
            summary = LAST_MEAN if summary == "channel mean" else "whole"
        if summary == "whole" and not answer:
            raise ValueError(f"{name} compares whole maps ({tap.source}), and none are kept")
        if found.setdefault((tap.teacher, tap.source), summary) != summary:
            raise ValueError(f"{name} and another method read {tap.source} in different ways")
    return found


class ViewStore:
    """One teacher's answers to views of `images` training images, at the places of `summaries`.

    `key` (JSON) is all that decides the answers, apart from index and view; `example` is an answer to any batch, for
    the shapes. ValueError where the folder of this key is another's.
    """

    def __init__(
        self,
        root: str | Path,
        key: Mapping[str, Any],
        summaries: Mapping[MapRef, str],
        example: Mapping[MapRef, Tensor],
        images: int,
    ) -> None:
        self.root, self.summaries, self.images = as_path("cache", root), summaries, images
        self.record = json.dumps(canonical(key), indent=1, ensure_ascii=False)
        self.folder = self.root / run_id("teacher", key)
        self.shapes: dict[MapRef, Shape] = {}
        self.places: dict[MapRef, Path] = {}
        for ref, summary in summaries.items():
            self.shapes[ref] = tuple(SUMMARIES[summary](example[ref]).shape[1:])
            name = {"at": str(ref), "summary": summary, "shape": self.shapes[ref], "images": images}
            self.places[ref] = self.folder / run_id(str(ref), name)
        if (file := self.folder / "key.json").exists() and file.read_text(encoding="utf-8") != self.record:
            raise ValueError(f"{file} is of another teacher or of other images; delete {self.folder}")

    def missing(self, views: Iterable[int]) -> dict[int, int]:
        """The views that are still to be made, and the bytes of each."""
        gaps = {view: [ref for ref in self.places if not self._file(ref, view).exists()] for view in views}
        return {view: self.images * sum(map(self._row, refs)) for view, refs in gaps.items() if refs}

    def told(self, views: Sequence[int]) -> str:
        """What these views take on disk, in words."""
        row, missing = sum(map(self._row, self.places)), sum(self.missing(views).values())
        size = self.images * len(views) * row
        sizes = f"{self.images:,} images × {len(views)} views × {row:,} bytes = {_mib(size)}"
        return f"a teacher's answers in {self.folder}: {sizes}, {_mib(missing)} of it to be made now"

    def fill(self, views: Sequence[int], ask: Ask, progress: Callable[[int], object]) -> KeptTeacher:
        """Make what is missing of these views, and return the teacher that answers with them.

        Views that another process makes at the moment come last. `progress` is told of images made. OSError where
        they cannot be written.
        """
        kept: dict[int, dict[MapRef, Rows]] = {}
        try:
            for patience in (0, -1):
                if patience and len(kept) < len(views):
                    told = f"if none is at work, delete {self.root / '.locks'}"  # as some network folders keep locks
                    print(f"waiting for another process to make a teacher's answers; {told}", file=sys.stderr)
                for view in [view for view in views if view not in kept]:
                    if (rows := self._obtain(view, patience, ask, progress)) is not None:
                        kept[view] = rows
        except OSError as error:
            what = f"a teacher's answers cannot be made and kept in {self.root}: {error}; what was finished stays"
            raise OSError(what) from error
        return KeptTeacher(kept, self.shapes)

    def _obtain(
        self, view: int, patience: float, ask: Ask, progress: Callable[[int], object]
    ) -> dict[MapRef, Rows] | None:
        """A view as found or made; None where another process holds it for longer than `patience` (−1: for ever)."""
        if found := self._open(view):
            return found
        lock = lock_of(self.folder / f"any/{view:06}.npy")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Timeout), FileLock(lock, timeout=patience):
            return self._open(view) or self._make(view, ask, progress)
        return None

    def _file(self, ref: MapRef, view: int) -> Path:
        return self.places[ref] / f"{view:06}.npy"

    def _shape(self, ref: MapRef) -> tuple[int, int]:
        """Of a file: a row has an exponent and the values."""
        return self.images, 1 + math.prod(self.shapes[ref])

    def _row(self, ref: MapRef) -> int:
        """Bytes of an image."""
        return 2 * self._shape(ref)[1]

    def _read(self, ref: MapRef, view: int) -> Rows | None:
        """The rows at one place, or None where they are missing or not what was written: then they are made again."""
        path = self._file(ref, view)
        try:
            rows = np.load(path, mmap_mode="r")  # compares the header with the file's size
        except (FileNotFoundError, ValueError, EOFError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it is in use; a folder that cannot be written is not cleared either
        return np.asarray(rows) if rows.shape == self._shape(ref) else None

    def _open(self, view: int) -> dict[MapRef, Rows] | None:
        found = {ref: rows for ref in self.places if (rows := self._read(ref, view)) is not None}
        return found if found.keys() == self.places.keys() else None

    def _make(self, view: int, ask: Ask, progress: Callable[[int], object]) -> dict[MapRef, Rows]:
        if not (file := self.folder / "key.json").exists():
            write_text(file, self.record)
        missing = [ref for ref in self.places if self._read(ref, view) is None]
        with contextlib.ExitStack() as opened:
            parts = {ref: opened.enter_context(self._part(ref, view)) for ref in missing}
            starts = {ref: part.tell() for ref, part in parts.items()}
            made = ((os.fstat(part.fileno()).st_size - starts[ref]) // self._row(ref) for ref, part in parts.items())
            first = min(self.images, *made) // BATCH * BATCH
            for ref, part in parts.items():
                part.seek(starts[ref] + first * self._row(ref))
                part.truncate()
            batches = [
                [(row, view) for row in range(start, min(start + BATCH, self.images))]
                for start in range(first, self.images, BATCH)
            ]
            progress(first)
            for batch, answer in zip(batches, ask(batches), strict=True):
                for ref, part in parts.items():
                    part.write(_packed(answer[ref], self.summaries[ref], str(ref)).tobytes())
                    part.flush()
                progress(len(batch))
            for part in parts.values():
                os.fsync(part)
        for ref in missing:
            self._file(ref, view).with_suffix(".part").replace(self._file(ref, view))
        found = self._open(view)
        assert found is not None, "files that were just written"
        return found

    def _part(self, ref: MapRef, view: int) -> IO[bytes]:
        """A file that is being made, open behind its header."""
        path = self._file(ref, view).with_suffix(".part")
        path.parent.mkdir(exist_ok=True)
        path.touch()
        part = path.open("r+b")
        header = {"descr": "<f2", "fortran_order": False, "shape": self._shape(ref)}
        np.lib.format.write_array_header_1_0(part, header)
        part.flush()
        return part


def lock_of(path: Path) -> Path:
    """Of the view that a file is of, at whatever place. Never deleted: that would make two locks of one."""
    folder = path.parents[1]
    return folder.parent / ".locks" / f"{folder.name}-{path.stem}.lock"


def make_room(stores: Sequence[ViewStore], views: Sequence[int], limit: int) -> None:
    """Delete files of one cache, least recently used first, until what these stores lack of these views fits below
    `limit` bytes.

    Neither theirs nor what other processes write at the moment is deleted. ValueError, before anything is, where that
    would not be enough, or the disk is too small.
    """
    root, wanted = stores[0].root, sum(sum(store.missing(views).values()) for store in stores)
    if not wanted:
        return
    root.mkdir(parents=True, exist_ok=True)
    found = {path: path.stat() for path in root.glob("teacher-*/*/*.*") if path.exists()}
    total = sum(told.st_size for told in found.values())
    own = {store._file(ref, view) for store in stores for ref in store.places for view in views}
    others = {path: told for path, told in found.items() if path.with_suffix(".npy") not in own}
    free = total + shutil.disk_usage(root).free
    if (least := total + wanted - sum(told.st_size for told in others.values())) > min(limit, free):
        cause, cure = f"cache_limit allows {_mib(limit)}", "raise RunOptions(cache_limit=…)"
        if free < limit:
            cause, cure = f"the disk of {root} has room for {_mib(free)}", "make some"
        raise ValueError(
            f"a teacher's answers to {len(views)} views of {stores[0].images:,} images are {_mib(least)}, "
            f"but {cause}; give fewer by Recipe(views=…), or {cure}"
        )
    for path in sorted(others, key=lambda path: others[path].st_mtime):
        if total + wanted <= min(limit, free):
            return
        with contextlib.suppress(Timeout), FileLock(lock_of(path), timeout=0):
            path.unlink(missing_ok=True)
            total -= others[path].st_size


class KeptTeacher(nn.Module):
    """A teacher that is not run: it answers, in float32, with what a `ViewStore` has kept of each view.

    A summary stands for the map: 1×H×W of a mean over channels, C×1×1 of one over space.
    """

    def __init__(self, views: Mapping[int, Mapping[MapRef, Rows]], shapes: Mapping[MapRef, Shape]):
        super().__init__()
        self._views, self._shapes = views, shapes

    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        if batch.index is None or batch.view is None:
            raise ValueError("kept answers are found by name; call the distillation with index= and view=")
        names, device = list(zip(batch.index.tolist(), batch.view.tolist(), strict=True)), batch.inputs[0].device
        found = {}
        for ref in dict.fromkeys(refs):
            rows = np.stack([self._views[view][ref][index] for index, view in names])
            scales = np.ldexp(np.float32(1), rows[:, :1].astype(np.int32))
            values = torch.from_numpy(rows).to(device)[:, 1:].float() * torch.from_numpy(scales).to(device)
            found[ref] = values.view(-1, *self._shapes[ref])
        return found


def _packed(x: Tensor, summary: str, place: str) -> Rows:
    """The summary of a batch of maps as rows; FloatingPointError for NaN and infinity."""
    values = SUMMARIES[summary](x.float()).flatten(1).cpu().numpy()
    if not np.isfinite(values).all():
        raise FloatingPointError(f"the teacher's map {place} holds NaN or infinity; train or load it again")
    exponents = np.frexp(np.abs(values).max(1, keepdims=True))[1] - 1  # the largest value becomes 1 to 2
    return np.concatenate([exponents, np.ldexp(values, -exponents)], axis=1).astype("<f2")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.4g} MiB"
