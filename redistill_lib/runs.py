"""The run store: one folder per training, readable without torch.

``runs/<id>/`` holds ``run.json`` (parameters, environment, status, metrics), ``history.csv`` (one row per epoch),
``model.safetensors`` and, until the run is complete, ``state/`` to resume from. The id is a readable prefix and a
hash of the parameters, so the same parameters find the same run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("running", "complete", "interrupted", "failed")


@dataclass(frozen=True)
class Run:
    """One training and what it left on disk.

    `params` is what the id is a hash of; `metrics` its results (accuracies between 0 and 1, seconds, bytes as their
    names say); `environment` versions, device, threads and processes; `blocks`
    the RED blocks of its network (layer, side, channels, kernel_size); `error` why it failed, if it did.
    """

    path: Path
    params: dict[str, Any]
    status: str = "running"
    metrics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    def history(self) -> pd.DataFrame:
        """One row per finished epoch: losses, accuracies between 0 and 1, learning rate, seconds."""
        import pandas as pd

        path = self.path / "history.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame()

    def save(self) -> Run:
        """Write ``run.json`` in one step: a reader sees the old record or the new one, never half of it."""
        record = {k: v for k, v in vars(self).items() if k != "path"}
        write_text(self.path / "run.json", json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run in that folder. Raises FileNotFoundError where there is none, ValueError for a broken record."""
        path = Path(path)
        try:
            record = json.loads((path / "run.json").read_text())
            return cls(path=path, **record)
        except FileNotFoundError:
            raise FileNotFoundError(f"no run at {path}: it holds no run.json") from None
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{path}/run.json is not a run record ({error}); delete the folder to run it again"
            ) from None

    def __repr__(self) -> str:
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in self.metrics.items()}
        return f"Run({self.id}, {self.status}" + "".join(f", {k}={v}" for k, v in shown.items()) + ")"


def run_id(prefix: str, params: Mapping[str, Any]) -> str:
    """A folder name for these parameters: the prefix made safe, and eight hex digits of their SHA-256.

    >>> run_id("resnet18 ×4", {"seed": 0})
    'resnet18-4-de7d7744'
    """
    text = json.dumps(params, sort_keys=True, ensure_ascii=False)
    safe = re.sub(r"[^A-Za-z0-9_.+]+", "-", prefix).strip("-")
    return f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old one."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the body succeeds it is synced and takes `path`'s place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """``history.csv`` from its rows; columns are those of the first row."""
    columns = list(rows[0])
    lines = [",".join(columns)]
    for row in rows:
        values = [row.get(c, math.nan) for c in columns]
        lines.append(",".join(repr(v) if isinstance(v, float) else str(v) for v in values))
    write_text(path, "\n".join(lines) + "\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run's folder; a second process that wants the same run waits and then finds it complete.

    What a killed process left half-written is removed.
    """
    from filelock import FileLock

    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / ".lock"):
        for part in path.rglob(".*.part"):
            part.unlink()
        yield


def load_runs(root: str | Path = "runs") -> pd.DataFrame:
    """One row per run under `root`: id, status, every parameter and metric by name (nested ones dotted), and path.

    A folder without run.json is not a run. A broken record is a row with status ``unreadable``. Where nothing has
    run yet, the frame is empty.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for record in sorted(Path(root).glob("*/run.json")):
        try:
            run = Run.load(record.parent)
        except ValueError as error:
            rows.append({"id": record.parent.name, "status": "unreadable", "error": str(error)})
            continue
        flat: dict[str, Any] = pd.json_normalize({**run.params, **run.metrics}, max_level=2).to_dict("records")[0]
        rows.append({"id": run.id, "status": run.status, **flat, "error": run.error, "path": str(run.path)})
    return pd.DataFrame(rows)
