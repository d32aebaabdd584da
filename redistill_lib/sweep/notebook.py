"""Run one notebook with papermill; what can be checked is checked before a kernel starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path
from redistill_lib.parameters import check_parameters, with_parameters
from redistill_lib.runs import write_text


@dataclass(frozen=True)
class NotebookError:
    """Where and how a notebook stopped. `cell` is the n of `In [n]`, or None when the kernel itself died."""

    cell: int | None
    ename: str
    evalue: str

    def __str__(self) -> str:
        where = "kernel" if self.cell is None else f"In [{self.cell}]"
        return f"{where}: {self.ename}: {self.evalue}".rstrip(": ")


@dataclass(frozen=True)
class NotebookResult:
    """One execution of one notebook and the files it left."""

    name: str
    status: str  # "ok" | "failed"
    seconds: float
    error: NotebookError | None
    parameters: dict[str, Any]  # those given; the others ran at the notebook's defaults
    notebook: Path
    html: Path | None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def interrupted(self) -> bool:
        return self.error is not None and self.error.ename == "KeyboardInterrupt"


def run_notebook(
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    *,
    name: str | None = None,
    html: bool = True,
    png: bool = False,
    progress: bool = False,
    timeout: float | None = None,
    on_cell: Callable[..., None] | None = None,
) -> NotebookResult:
    """Execute a copy of the notebook in its own folder; `output_dir` gets <name>.ipynb, .html and .json.

    `png` shows figures as images, beside their data, for a notebook to be committed; it needs Chrome or Chromium.
    A failing cell, a dead kernel or Ctrl-C is a result with status "failed", and the cells so far are kept. Raises
    ValueError or FileNotFoundError, before a kernel starts, for a wrong notebook, parameter or folder.
    """
    path = as_path("path", path).resolve()
    given = check_parameters(path, parameters or {})
    target = output_folder(output_dir, path) / f"{name or path.stem}.ipynb"
    page, status = target.with_suffix(".html"), target.with_suffix(".json")
    page.unlink(missing_ok=True)
    status.unlink(missing_ok=True)
    write_text(target, with_parameters(path, given))

    started = time.monotonic()
    error = _execute(target, path.parent, progress, png)
    seconds, outcome = round(time.monotonic() - started, 2), "failed" if error else "ok"
    result = NotebookResult(target.stem, outcome, seconds, error, given, target, page if html else None)
    if html:
        write_text(page, _html(target))
    record = asdict(result) | {"notebook": target.name, "html": page.name if html else None}
    write_text(status, json.dumps(record, indent=1, default=repr) + "\n")
    return result


def output_folder(output_dir: str | Path, source: Path) -> Path:
    folder = as_path("output_dir", output_dir).resolve()
    if folder == source.resolve().parent:
        raise ValueError(f"the output folder {output_dir} holds {source.name} itself: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {output_dir} is a file")
    return folder


def _execute(notebook: Path, folder: Path, progress: bool, png: bool = False) -> NotebookError | None:
    """Execute the file where it is, the kernel working in `folder`; None when every cell succeeded."""
    import papermill

    # Figures that need no network: plotly.js is in the page (5 MB), or they are images.
    renderer = "plotly_mimetype+png" if png else "plotly_mimetype+notebook"
    manager = _kernel_manager({"PLOTLY_RENDERER": renderer, "REDISTILL_BATCH": "1"})
    try:
        papermill.execute_notebook(
            str(notebook),
            str(notebook),
            kernel_name="python3",
            progress_bar={"desc": notebook.stem} if progress else False,
            # nbclient's way to say cwd: papermill's own would change it for this whole process
            resources={"metadata": {"path": str(folder)}},
            kernel_manager_class=manager,
            store_widget_state=False,
        )
    except papermill.PapermillExecutionError as error:
        return NotebookError(error.exec_count, error.ename, error.evalue)
    except RuntimeError as error:  # the kernel died, or never answered
        if not manager.interrupted:
            return NotebookError(None, type(error).__name__, str(error))
    # Also where a cell caught the interrupt and the notebook went on: what followed is not the notebook's result.
    return NotebookError(None, "KeyboardInterrupt", "") if manager.interrupted else None


def _kernel_manager(environment: Mapping[str, str]) -> Any:
    """A kernel manager class for one execution, of this interpreter whatever kernels the machine has."""
    import asyncio

    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class BatchKernelManager(AsyncKernelManager):
        interrupted = False
        kernel_spec_manager = KernelSpecManager(kernel_dirs=[])  # no folder: this interpreter's ipykernel
        transport_encryption = "auto" if zmq.has("curve") else "disabled"  # the kernel warns of an open one

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # nbclient kills the kernel on Ctrl-C; interrupting it first lets the cell say where it stopped.
            # Outside the main thread and on Windows there are no signals, and nbclient's way stays.
            loop = asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGINT, lambda: loop.create_task(self._on_interrupt()))
            await super().start_kernel(env=os.environ | environment, **options)

        async def _on_interrupt(self) -> None:
            again, BatchKernelManager.interrupted = BatchKernelManager.interrupted, True
            await (self.shutdown_kernel(now=True) if again else self.interrupt_kernel())

    return BatchKernelManager


def _html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_filename(str(notebook))
    pages = re.sub(r'href="(\w+)\.ipynb"', r'href="\1.html"', str(body))  # the neighbours are pages here, too
    return pages.replace('href="README.md"', 'href="../index.html"')
