"""The run store: one folder per training, readable without torch.

``runs/<id>/`` holds ``run.json`` (parameters, environment, status, metrics), ``history.csv``, ``model.safetensors``
and, until the run is complete, ``state/`` to resume from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from redistill_lib import __version__
from redistill_lib.checks import as_path, check_fields, warn
from redistill_lib.source import code_identity, code_stamp


def interrupt(message: str) -> KeyboardInterrupt:
    """An interrupt of which a notebook shows this message alone, not the lines that it came upon.

    >>> print(*interrupt("stopped after 3 of 7 steps")._render_traceback_())
    KeyboardInterrupt: stopped after 3 of 7 steps
    """
    error = KeyboardInterrupt(message)
    vars(error)["_render_traceback_"] = lambda: [f"KeyboardInterrupt: {message}"]  # which IPython asks for
    return error


@dataclass(frozen=True)
class Run:
    """One training and what it left on disk."""

    path: Path
    params: dict[str, Any]  # what the id is a hash of
    status: str = "running"  # or "complete", "interrupted", "failed"
    metrics: dict[str, Any] = field(default_factory=dict)  # accuracies between 0 and 1, seconds, bytes
    environment: dict[str, Any] = field(default_factory=dict)  # versions, device, threads and processes
    blocks: list[dict[str, Any]] = field(default_factory=list)  # RED's: layer, side, channels, kernel_size
    digests: dict[str, str] = field(default_factory=dict)  # SHA-256 of its files of weights
    error: str | None = None  # why it failed
    code: str | None = None  # the `code_identity` of the library that trained it
    name: str | None = None  # what the user calls it
    reused_by: list[str] = field(default_factory=list)  # `code` of others for which the caller took it
    version: str = __version__
    unknown: dict[str, Any] = field(default_factory=dict)  # what a newer version has added to the record

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def plan(self) -> str:
        """Where the network downsamples: as recorded of a user's, or in a built-in network's name."""
        model = self.params.get("model")
        model = model if isinstance(model, dict) else {}
        return str(model.get("plan", "")) if "structure" in model else str(model.get("name")).partition("-")[2]

    @property
    def role(self) -> str:
        """``student`` with teachers; else ``naive`` for a network of the user's with a plan, else ``plain``."""
        if self.params.get("teachers"):
            return "student"
        return "naive" if self.plan and "structure" in self.params["model"] else "plain"

    @property
    def note(self) -> str:
        """Which fields of a newer version's record are ignored, if any."""
        names = ", ".join(self.unknown)
        told = f"written by version {self.version} of redistill_lib, whose {names} this one ({__version__}) ignores"
        return told if names else ""

    def history(self) -> pd.DataFrame:
        """One row per finished epoch: losses, accuracies between 0 and 1, learning rate, seconds."""
        path = self.path / "history.csv"
        try:
            return pd.read_csv(path) if path.exists() else pd.DataFrame()
        except ValueError as error:  # pandas' own are ValueErrors, as bytes that are no text are
            raise ValueError(damaged(path, error)) from None

    def save(self) -> Run:
        """Write ``run.json``, replacing the old one in one step."""
        record = {k: v for k, v in vars(self).items() if k not in ("path", "unknown")} | self.unknown
        write_text(self.path / "run.json", json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
        return self

    def finished(self, metrics: Mapping[str, Any], blocks: Sequence[dict[str, Any]] = ()) -> Run:
        """This run with its results, not saved: failed where a metric is NaN or infinite, else complete."""
        wrong = [f"{k} is {v}" for k, v in metrics.items() if isinstance(v, float) and not math.isfinite(v)]
        status = "failed" if wrong else "complete"
        error = f"the trained network cannot be evaluated: {', '.join(wrong)}" if wrong else None
        digests = {file.name: _digest(file) for file in sorted(self.path.glob("*.safetensors"))}
        found = replace(self, metrics=dict(metrics), blocks=list(blocks), digests=digests)
        return replace(found, status=status, error=error)

    def verify(self, name: str) -> None:
        """Raise ValueError for weights that this run did not write; a run of an older version does not know."""
        file = self.path / name
        if name in self.digests and file.exists() and _digest(file) != self.digests[name]:
            raise ValueError(damaged(file, ValueError("its SHA-256 is another than run.json records")))

    def stopped(self, error: BaseException) -> Run:
        """Record that `error` stopped the training. Never raises: a full disk becomes a note on `error`."""
        interrupted = isinstance(error, KeyboardInterrupt)
        said = None if interrupted else str(error) or type(error).__name__
        run = replace(self, status="interrupted" if interrupted else "failed", error=said)
        try:
            run.save()
        except OSError as failure:
            error.add_note(f"{self.path}/run.json could not be written either: {failure}")
        return run

    def reused(self, code: str) -> Run:
        """Record that other code took this run; a read-only store stays as it is."""
        run = replace(self, reused_by=list(dict.fromkeys([*self.reused_by, code])))
        with contextlib.suppress(OSError):
            run.save()
        return run

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run in that folder; warns of unknown fields. FileNotFoundError or, for a bad record, ValueError."""
        run = cls._read(as_path("path", path))
        if run.note:
            warn(f"{run.path}/run.json was {run.note}")
        return run

    @classmethod
    def _read(cls, path: Path) -> Run:
        try:
            record = json.loads((path / "run.json").read_bytes())
            names = {field.name for field in fields(cls)} - {"path", "unknown"}
            known = {name: record.pop(name) for name in names & dict(record).keys()}
            check_fields(run := cls(path=path, **{"version": "unknown", **known}, unknown=record))
            return run
        except FileNotFoundError:
            near = Path("runs", path.name)
            told = f"; {near} does" if near != path and (near / "run.json").exists() else ""
            raise FileNotFoundError(f"no run at {path}: it holds no run.json{told}") from None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            told = f"{path}/run.json is not a run record ({error}); delete the folder to run it again"
            raise ValueError(told) from None

    def __repr__(self) -> str:
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in self.metrics.items()}
        return f"Run({self.id}, {self.status}" + "".join(f", {k}={v}" for k, v in shown.items()) + ")"


def canonical(value: Any, where: str = "params") -> Any:
    """Nested parameters in one form: keys sorted, whole floats as ints, tuples as lists, numpy's scalars as Python's.

    Raises ValueError for NaN and infinity, TypeError for what JSON cannot say; both name the parameter.

    >>> canonical({"rate": 1.0, "betas": (0.9, 1)}) == canonical({"betas": [0.9, 1.0], "rate": 1})
    True
    """
    if isinstance(value, Mapping):
        items = sorted((str(key), item) for key, item in value.items())
        return {key: canonical(item, f"{where}.{key}") for key, item in items}
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "tolist"):
        return canonical(value.tolist(), where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; parameters are finite numbers")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, bool | int | str | Path):
        return value.as_posix() if isinstance(value, Path) else value
    raise TypeError(f"{where} is {value!r}, which JSON cannot say; give numbers, text, lists and dicts of them")


def run_id(prefix: str, params: Mapping[str, Any], code: str = "") -> str:
    """A folder name: the safe prefix, eight hex digits of the parameters' SHA-256, and the code's identity.

    >>> run_id("resnet18 ×4", {"seed": 0}, "1f3a9c02")
    'resnet18-4-de7d7744-1f3a9c02'
    """
    text = json.dumps(canonical(params), ensure_ascii=False)
    safe = re.sub(r"[^A-Za-z0-9_.+]+", "-", prefix).strip("-")[:100]  # a folder's name has 255 letters at most
    return "-".join(filter(None, (safe, hashlib.sha256(text.encode()).hexdigest()[:8], code)))


def find_run(root: str | Path, prefix: str, params: Mapping[str, Any], code: str) -> tuple[Path, list[Run]]:
    """The folder of these parameters and this code, and undamaged complete runs by other code, oldest first."""
    folder = as_path("runs_dir", root) / run_id(prefix, params, code)
    others = []
    for record in sorted(folder.parent.glob(f"*{run_id('', params)}*/run.json"), key=os.path.getmtime):
        with contextlib.suppress(ValueError, FileNotFoundError):
            if record.parent != folder and (run := complete_run(record.parent)):
                others.append(run)
    return folder, others


def complete_run(path: str | Path) -> Run | None:
    """The complete run in that folder, else None; ValueError for a damaged record, missing or damaged weights."""
    path = as_path("path", path)
    if not (path / "run.json").exists() or not (run := Run.load(path)).complete:
        return None
    try:
        with safe_open(path / "model.safetensors", "np"):  # compares the header with the file's size
            run.verify("model.safetensors")
            return run
    except (OSError, SafetensorError) as error:
        raise ValueError(damaged(path / "model.safetensors", error)) from None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path} is cut short or not what this library wrote ({reason}); delete {path.parent} to train again"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old one."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the body succeeds it is synced and takes `path`'s place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``history.csv`` from its rows; columns are those of the first row."""
    write_text(path, pd.DataFrame(rows, columns=list(rows[0])).to_csv(index=False, na_rep="nan"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a run's folder and remove what a killed process left half-written; a second process waits and says so.

    On file systems without locks (some NFS mounts) the file ``.lock`` stays after a kill. Raises OSError where the
    folder cannot be written.
    """
    lock, holder, who = FileLock(path / ".lock"), path / ".holder", "another process"
    try:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            with contextlib.suppress(OSError):
                who = holder.read_text(errors="replace")
            told = f"waiting for a training that is under way: {path.name}, by {who}"
            print(f"{told}; if that is gone, delete {path / '.lock'}", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        told = f"run {path.name} cannot be trained in {path.parent}: {error}; give another runs_dir"
        raise OSError(told) from error
    try:
        for part in path.rglob(".*.part"):
            part.unlink(missing_ok=True)
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


def load_runs(root: str | Path = "runs") -> pd.DataFrame:
    """One row per run under `root`: id, name, status, role, plan, code, parameters, metrics, error, note and path.

    Nested names are dotted; `code` is ``present`` for runs of the library's present code, else ``other``; a broken
    record has the status ``unreadable``, one whose process was killed on this machine ``interrupted``.
    ``.index.json`` keeps what was read, so that only changed records are read again. Raises NotADirectoryError for a
    file.
    """
    root = as_path("root", root)
    if root.is_file():
        raise NotADirectoryError(f"{root} is a file; give the folder that holds the runs")
    index, kept, found = root / ".index.json", dict[str, Any](), dict[str, Any]()
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        kept = dict(json.loads(index.read_bytes()))
    known = kept["rows"] if isinstance(kept.get("rows"), dict) else {}
    for folder in os.scandir(root) if root.is_dir() else ():
        with contextlib.suppress(OSError):
            told = os.stat(f"{folder.path}/run.json")
            stamp = f"{_FORM} {told.st_mtime_ns} {told.st_size} {told.st_ino} {folder.name}"
            row = known.get(stamp)
            whole = isinstance(row, dict) and row.keys() >= {"id", "status", "code"}
            found[stamp] = row if whole else _row(Path(folder.path))
    code = kept.get("code")  # the present one's identity, which takes longer to find than 5,000 runs
    if not (isinstance(code, dict) and code.get("stamp") == code_stamp() and isinstance(code.get("identity"), str)):
        code = {"identity": code_identity(), "stamp": code_stamp()}
    if found and {"code": code, "rows": found} != kept:
        with contextlib.suppress(OSError):
            write_text(index, json.dumps({"code": code, "rows": found}, default=str))
    rows = sorted(found.values(), key=lambda row: row["id"])
    for row in rows:
        row["code"] = "present" if row["code"] == code["identity"] else "other"
        row["path"] = str(root / row["id"])
        if row["status"] == "running" and _is_gone(root / row["id"]):
            row["status"] = "interrupted"
    return pd.DataFrame(rows)


def _is_gone(path: Path) -> bool:
    """Whether the process that trains this run, as `locked` notes it, was of this machine and is no more."""
    told = ""
    with contextlib.suppress(OSError):
        told = (path / ".holder").read_text(errors="replace")
    holder = re.match(r"process (\d+) on (\S+) since ", told)
    return bool(holder and holder[2] == socket.gethostname() and not psutil.pid_exists(int(holder[1])))


_FORM = 4  # another number for another form of rows


def _row(path: Path) -> dict[str, Any]:
    try:
        run = Run._read(path)
    except ValueError as error:
        return {"id": path.name, "status": "unreadable", "code": None, "error": str(error)}
    own = {name: getattr(run, name) or None for name in ("id", "name", "status", "role", "plan", "code")}
    # `own` comes first in the table, and no parameter or metric of such a name hides it.
    return own | _flat(run.params | run.metrics) | own | {"error": run.error, "note": run.note or None}


def _flat(values: Mapping[str, Any], prefix: str = "", depth: int = 2) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and depth
        flat |= _flat(value, f"{prefix}{key}.", depth - 1) if nested else {f"{prefix}{key}": value}
    return flat
