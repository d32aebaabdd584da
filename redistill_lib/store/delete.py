"""Runs deleted: what would go, and how it goes, so that no half of a run is ever read."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

#: Where folders lie while their files are deleted: nothing reads runs from there.
TRASH = ".deleted"


@dataclass(frozen=True)
class Doomed:
    """A run that is to be deleted."""

    path: Path
    status: str
    bytes: int
    holder: str | None  # the process that trains it now: then it stays
    students: tuple[str, ...]  # ids of runs that it taught and that are to stay

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def told(self) -> str:
        """What is not obvious about it."""
        if self.holder:
            return f"being trained by {self.holder}: it stays"
        more = f" and {len(self.students) - 2} more" if len(self.students) > 2 else ""
        return f"teacher of {', '.join(self.students[:2])}{more}" if self.students else ""


def doomed(root: Path, ids: Iterable[str], statuses: Iterable[str]) -> list[Doomed]:
    """What deleting these runs would mean."""
    chosen = dict(zip(ids, statuses, strict=True))
    taught = _students(root, chosen)
    found = []
    for name, status in chosen.items():
        path = root / name
        stay = tuple(student for student in taught.get(name, []) if student not in chosen)
        with _held(path) as holder:
            found.append(Doomed(path, status, _size(path), holder, stay))
    return found


def delete(run: Doomed) -> bool:
    """Delete a run's folder: renamed first, in one step, so that it is there whole or not at all.

    False where a process trains it. OSError where the folder cannot be renamed. What a killed process left of earlier
    deletions goes, too.
    """
    trash = run.path.parent / TRASH
    with _held(run.path) as holder:
        if holder:
            return False
        trash.mkdir(exist_ok=True)
        run.path.rename(trash / f"{run.id}-{uuid.uuid4().hex[:8]}")
    shutil.rmtree(trash, ignore_errors=True)
    return True


@contextlib.contextmanager
def _held(path: Path) -> Iterator[str | None]:
    """Who trains it now; within it nobody begins to, if nobody does."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = (path / ".holder").read_text(errors="replace")
        yield holder
        return
    except OSError:  # a folder that cannot be written: renaming says so
        yield None
        return
    try:
        yield None
    finally:
        lock.release()


def _students(root: Path, chosen: Iterable[str]) -> dict[str, list[str]]:
    """Of each run that taught, the ids of its students: their records name it or, where a network was handed over and
    no run, the weights that it had. By weights only those of `chosen` are looked for."""
    found: dict[str, list[str]] = {}
    by_weights: dict[str, list[str]] = {}
    for record in sorted(root.glob("*/run.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            run = json.loads(record.read_bytes())
            named, teachers = run["environment"].get("teacher_runs") or [], run["params"].get("teachers") or []
            for teacher in named:
                found.setdefault(teacher, []).append(record.parent.name)
            for teacher in teachers if len(named) < len(teachers) else []:
                by_weights.setdefault(teacher["weights"], []).append(record.parent.name)
    for name in chosen if by_weights else ():
        known = found.setdefault(name, [])
        known += [student for student in by_weights.get(_weights(root / name), []) if student not in {*known, name}]
    return found


def _weights(run: Path) -> str:
    """The identity of what a run has trained, of which other records may speak; empty where there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from redistill_lib.identity import weights_identity

    try:
        return weights_identity(load_file(run / "model.safetensors").items())
    except (OSError, SafetensorError):
        return ""


def points_with(root: Path, ids: Iterable[str]) -> dict[str, list[str]]:
    """The points of sweeps that recorded these runs, by sweep: of those beside the runs, and of ``runs/sweeps``."""
    chosen, found = set(ids), dict[str, list[str]]()
    folders = {folder.resolve() for place in (root, Path("runs")) for folder in place.glob("sweeps/*/points")}
    for file in sorted(file for folder in folders for file in folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            if any(row.get("run") in chosen for row in json.loads(file.read_bytes())["rows"]):
                found.setdefault(file.parents[1].name, []).append(file.stem)
    return found


def _size(folder: Path) -> int:
    """Bytes of all files below it."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total
