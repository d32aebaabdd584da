"""What a sweep planned, and what became of each point: small JSON files, each replaced in one step.

``<folder>/manifest.json`` is the plan, ``<folder>/points/<name>.json`` a point's last execution, and
``<folder>/claims/<name>.lock`` is there while a process runs the point.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import SoftFileLease

from redistill_lib import __version__
from redistill_lib.runs import canonical, write_text
from redistill_lib.source import library_identity
from redistill_lib.sweep.keys import digest_of, notebook_code
from redistill_lib.sweep.points import Point
from redistill_lib.sweep.spec import Sweep

#: Seconds without a sign of life after which a claim of another machine is taken for dead.
LEASE = 60.0


@dataclass(frozen=True)
class PointStatus:
    """The last execution of one point."""

    name: str
    key: str  # of what was executed: values, cells and the library's code
    status: str  # "running", "ok", "failed", "died" (its kernel or its process) or "interrupted"
    session: str  # which call of `run_sweep` it belongs to
    parameters: dict[str, Any] = field(default_factory=dict)
    notebooks: dict[str, str] = field(default_factory=dict)  # stem → digest of its cells
    attempts: int = 1  # executions under this key, also by earlier calls
    started: str = ""
    seconds: float = 0.0  # of this execution: its notebooks', or until it was told, interrupted or killed
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    versions: dict[str, str] = field(default_factory=dict)
    cell: str = ""  # while it runs: "7/20 student = derive_student(…"
    error: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # what its notebooks recorded
    bytes: int = 0  # of its files

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def broken(self) -> bool:
        """Whether it ended badly, and not by the user's hand."""
        return self.status in ("failed", "died")

    @property
    def stamp(self) -> str:
        """Another after each execution."""
        return f"{self.session} {self.attempts} {self.status}"

    def settles(self, key: str, seen: str) -> bool:
        """Whether it is the end of an execution of `key` that nobody knew of when its status was `seen`."""
        return self.key == key and self.status in ("ok", "failed") and self.stamp != seen


@functools.cache
def versions() -> dict[str, str]:
    """What ran: of torch the installed release, without importing it."""
    told = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    return told | {"redistill_lib": __version__, "code": library_identity()}


def now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")


def status_file(folder: Path, name: str) -> Path:
    return folder / "points" / f"{name}.json"


def read_status(folder: Path, name: str) -> PointStatus | None:
    """None where there is none, or nothing that this library wrote."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        record = json.loads(status_file(folder, name).read_bytes())
        known = {each.name for each in fields(PointStatus)}
        return PointStatus(**{key: value for key, value in record.items() if key in known})
    return None


def write_status(folder: Path, status: PointStatus) -> PointStatus:
    text = json.dumps(asdict(status), indent=1, ensure_ascii=False, default=str) + "\n"
    write_text(status_file(folder, status.name), text)
    return status


def claim_file(folder: Path, name: str) -> Path:
    return folder / "claims" / f"{name}.lock"


def claim(folder: Path, name: str) -> SoftFileLease:
    """The lock of a point, not acquired yet: a file, so that it holds on any shared folder, NFS without locks too.

    It names its process and machine and is touched every 20 seconds. That of a killed process is taken over at once
    on the same machine; from another one, when nothing has touched it for `LEASE` seconds of the waiting one's clock.
    """
    path = claim_file(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return SoftFileLease(path, lease_duration=LEASE, thread_local=False)


def sweep_folder(output_dir: Path, sweep: Sweep) -> Path:
    """The sweep's folder; ValueError where it is another sweep's, so that two files of one name are never mixed."""
    folder = output_dir.resolve() / sweep.name
    manifest = _read(folder)
    # A moved project, or the same share on another machine, has other paths and the same points.
    same = manifest.get("file") == str(sweep.file.resolve()) or (
        manifest.get("text") == sweep.text and manifest.get("points") == _planned(sweep)
    )
    if manifest and not same:
        raise ValueError(
            f"{folder} holds the sweep of {manifest.get('file')}, not of {sweep.file.resolve()}: "
            "give another --output, or rename one of the two files"
        )
    return folder


def write_manifest(folder: Path, sweep: Sweep) -> None:
    known = {"file": str(sweep.file.resolve()), "text": sweep.text, "points": _planned(sweep)}
    record = {"name": sweep.name, **known, "versions": versions()}
    record |= {"host": socket.gethostname(), "started": now()}
    write_text(folder / "manifest.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def planned_statuses(folder: Path) -> dict[str, PointStatus | None] | None:
    """The points that the sweep in this folder has now, in its order, and how each stands; None where no sweep is.

    A point that has not been executed as it is now has None. One whose process was killed is ``interrupted``.
    """
    try:
        keys = {point["name"]: point["key"] for point in _read(folder)["points"]}
    except (KeyError, TypeError):  # it has no manifest, or another tool's
        return None
    found = {name: read_status(folder, name) for name in keys}
    return {name: _seen(folder, s) if s and s.key == keys[name] else None for name, s in found.items()}


def _seen(folder: Path, status: PointStatus) -> PointStatus:
    if status.status != "running":
        return status
    touched = 0.0
    with contextlib.suppress(OSError):
        touched = claim_file(folder, status.name).stat().st_mtime
    here = status.host == socket.gethostname()
    alive = time.time() - touched < LEASE and (not here or psutil.pid_exists(status.pid))
    return status if alive else replace(status, status="interrupted")


def file_of(folder: Path) -> Path | None:
    """The sweep's file, as its folder knows it."""
    name = _read(folder).get("file")
    return Path(name) if isinstance(name, str) else None


def command_of(folder: Path) -> str:
    """What goes on with the sweep in this folder, to be typed in the working folder."""
    place = os.path.relpath(folder.parent)
    words = ["redistill", "sweep", os.path.relpath(_read(folder)["file"])]
    return shlex.join(words if place == os.path.join("runs", "sweeps") else [*words, "--output", place])


def _read(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, NotADirectoryError):
        return dict(json.loads((folder / "manifest.json").read_bytes()))
    return {}


def _planned(sweep: Sweep) -> list[dict[str, Any]]:
    return [{"name": p.name, "key": p.key, "parameters": plain(p.parameters)} for p in sweep.tabulated]


def plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as a JSON file gives them back."""
    return {name: canonical(value, name) for name, value in parameters.items()}


def cells_digest(notebook: Path) -> str:
    """Eight hex digits over the code cells that no parameter changes."""
    return digest_of(notebook_code(notebook))[:8]


@dataclass(frozen=True)
class Plan:
    """What there is to do of a sweep."""

    todo: tuple[Point, ...]
    done: tuple[PointStatus, ...]
    changed: dict[str, str]  # name of a point that ran as another → what is new
    seen: dict[str, str]  # name of a point to do → the stamp of its status, "" without one
    others: int  # points in the folder that the sweep no longer has

    def told(self, total: int) -> list[str]:
        """What is not obvious, in sentences."""
        lines = []
        if self.done:
            share = len(self.todo) + len(self.done)
            are = "is" if len(self.done) == 1 else "are"
            lines.append(f"{len(self.done)} of {share} points {are} done{f', of {total} in all' * (share < total)}")
        for reason in dict.fromkeys(self.changed.values()):
            names = [name for name, why in self.changed.items() if why == reason]
            more = f" and {len(names) - 2} more" if len(names) > 3 else ""
            lines.append(f"run again, for {reason} changed: {', '.join(names[: 2 if more else 3])}{more}")
        if self.others:
            points = f"{self.others} point{'s' * (self.others > 1)}"
            lines.append(f"not in the table: {points} in the folder, of an earlier file or another -p")
        return lines


def make_plan(folder: Path, sweep: Sweep, *, failed: bool, force: bool, shard: tuple[int, int] | None) -> Plan:
    """Which points to run: all but those that are done, of `shard` (k, n) every n-th from the k-th."""
    first, step = shard or (1, 1)
    todo, done = list[Point](), list[PointStatus]()
    changed, seen = dict[str, str](), dict[str, str]()
    digests = {path: cells_digest(path) for path in {path for p in sweep.points for path in p.notebooks}}
    for point in sweep.points[first - 1 :: step]:
        status = read_status(folder, point.name)
        if status and status.ok and status.key == point.key and not force:
            done.append(status)
        elif not failed or (status and status.broken):
            todo.append(point)
            seen[point.name] = status.stamp if status else ""
            if status and status.key != point.key:
                changed[point.name] = _what_changed(point, status, digests)
    names = {point.name for point in sweep.tabulated}
    others = sum(path.stem not in names for path in (folder / "points").glob("*.json"))
    return Plan(tuple(todo), tuple(done), changed, seen, others)


def _what_changed(point: Point, status: PointStatus, digests: Mapping[Path, str]) -> str:
    given, before = plain(point.parameters), status.parameters
    differ = [name for name in {**before, **given} if given.get(name, digests) != before.get(name, digests)]
    if differ:
        shown = (f"{n} {before.get(n, 'by default')} → {given.get(n, 'by default')}" for n in differ)
        return ", ".join(shown)
    cells = [p.stem for p in point.notebooks if status.notebooks.get(p.stem) != digests[p]]
    if cells:
        return f"cells of {', '.join(cells)}"
    other = status.versions.get("code") != library_identity()
    return "the library's code" if other else "a default, a folder or a module of your own"
