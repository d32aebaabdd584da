"""Run one notebook with papermill; what can be checked is checked before a kernel starts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path
from redistill_lib.parameters import check_parameters, with_parameters
from redistill_lib.progress import duration
from redistill_lib.runs import write_text
from redistill_lib.sweep.kernel import NotebookError, NotebookOptions, Signals
from redistill_lib.sweep.kernel import execute as _execute
from redistill_lib.sweep.pages import page_of


@dataclass(frozen=True)
class NotebookResult:
    """One execution of one notebook and the files it left."""

    name: str
    status: str  # "ok" | "failed" | "interrupted"
    seconds: float  # with its page
    error: NotebookError | None
    parameters: dict[str, Any]  # those given; the others ran at the notebook's defaults
    notebook: Path
    html: Path | None
    signal: str | None = None  # that came while this ran: "SIGINT", "SIGTERM", "SIGHUP"

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def interrupted(self) -> bool:
        """Whether nothing further is to run: a signal came, be it that the notebook was already done."""
        return self.status == "interrupted" or self.signal is not None


def run_notebook(
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    *,
    name: str | None = None,
    **options: Any,
) -> NotebookResult:
    """Execute a copy of the notebook in its own folder; `output_dir` gets <name>.ipynb, .html and, last, .json.

    `options` are those of `NotebookOptions`: html, png, progress, timeout, on_cell. Raises ValueError or
    FileNotFoundError, before a kernel starts, for a wrong notebook, parameter, folder or option. Whatever goes wrong
    from then on is a result that is not `ok`: a cell, its kernel, the disk, the clock, a signal. The cells so far are
    kept, no process of the notebook is left, and each file is whole. SIGINT, SIGTERM and SIGHUP interrupt the cell, a
    second signal kills its kernel; outside the main thread none is heard.
    """
    started, path = time.monotonic(), as_path("path", path).resolve()
    how, given = NotebookOptions(**options), check_parameters(path, parameters or {})
    target = output_folder(output_dir, path) / f"{name or path.stem}.ipynb"
    page, status = target.with_suffix(".html"), target.with_suffix(".json")

    def start_and_execute() -> NotebookError | None:
        for stale in (page, status):
            stale.unlink(missing_ok=True)
        write_text(target, with_parameters(path, given))
        return _execute(target, path.parent, how, signals)

    with Signals() as signals:
        error = _attempt(start_and_execute)
        if how.html and os.path.exists(target):
            failure = _attempt(lambda: write_text(page, page_of(target, target.parent)))
            error = error or failure
        outcome = "failed" if error else "ok"
        if error and error.ename == "KeyboardInterrupt":
            outcome = "interrupted"
        shown = page if how.html and os.path.exists(page) else None
        signal, seconds = signals.came[0] if signals.came else None, round(time.monotonic() - started, 2)
        return _told(NotebookResult(target.stem, outcome, seconds, error, given, target, shown, signal))


def _attempt(step: Callable[[], NotebookError | None]) -> NotebookError | None:
    try:
        return step()
    except Exception as failure:
        return NotebookError(None, type(failure).__name__, str(failure).strip())


def _told(result: NotebookResult) -> NotebookResult:
    """The result written beside its notebook; on stderr where that fails, and then it is not ok."""
    status = result.notebook.with_suffix(".json")
    html = result.html.name if result.html else None
    record = asdict(result) | {"notebook": result.notebook.name, "html": html}
    failure = _attempt(lambda: write_text(status, json.dumps(record, indent=1, default=repr) + "\n"))
    if failure is None:
        return result
    print(f"{result.name}: {result.status}, {duration(result.seconds)}; {result.error or failure}", file=sys.stderr)
    return replace(result, status="failed" if result.ok else result.status, error=result.error or failure)


def output_folder(output_dir: str | Path, source: Path) -> Path:
    folder = as_path("output_dir", output_dir).resolve()
    if folder == source.resolve().parent:
        raise ValueError(f"the output folder {output_dir} holds {source.name} itself: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {output_dir} is a file")
    return folder
