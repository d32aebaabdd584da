"""A notebook's cells executed by papermill in a kernel of their own, which ends with all that it started."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat

from redistill_lib.checks import check_above_zero
from redistill_lib.progress import duration
from redistill_lib.runs import write_text
from redistill_lib.sweep.processes import MARK, end_processes, marked, start_guard

GRACE = 5.0  # seconds that an interrupted cell has to end before its kernel is killed
TICK = 0.2  # seconds between two looks at the clock and at the signals
SAVE = 30.0  # seconds between two saves while one cell runs


@dataclass(frozen=True)
class NotebookError:
    """Where and how a notebook stopped. `cell` is the n of `In [n]`, or None when no cell was to blame."""

    cell: int | None
    ename: str
    evalue: str

    def __str__(self) -> str:
        where = "" if self.cell is None else f"In [{self.cell}]: "
        return f"{where}{self.ename}: {self.evalue}".rstrip(": ")


@dataclass(frozen=True)
class NotebookOptions:
    """How a notebook is executed, whatever its parameters.

    `png` shows figures as images beside their data, for a notebook to be committed; it needs Chrome or Chromium.
    After `timeout` seconds the running cell is interrupted. `on_cell` is called with the number of code cells done,
    their total and the heading above the one that comes next, without one its first line that is no import.
    """

    html: bool = True
    png: bool = False
    progress: bool = False  # a bar of cells on stderr
    timeout: float | None = None
    on_cell: Callable[[int, int, str], object] | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None:
            check_above_zero(timeout=self.timeout)


class Signals:
    """While open, Ctrl-C, SIGTERM and SIGHUP do not end this process: `came` names them, for whoever looks.

    What is ignored stays ignored (`nohup`), and outside the main thread no signal can be heard.
    """

    def __init__(self) -> None:
        self.came: list[str] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)
                if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came.append(signal.Signals(number).name)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def execute(notebook: Path, folder: Path, options: NotebookOptions, signals: Signals) -> NotebookError | None:
    """Execute the file where it is, the kernel working in `folder`; None when every cell succeeded.

    When this returns, the file holds the cells so far and no process of the notebook is left. Raises only OSError,
    where the file could not be written.
    """
    import papermill

    if options.png and (missing := _without_images()):
        return NotebookError(None, "ChromeNotFoundError", missing)
    run = _Execution(notebook, options, signals)
    # Figures are data alone: a page of them shares one plotly.js, and JupyterLab has its own.
    renderer = "plotly_mimetype+png" if options.png else "plotly_mimetype"
    environment = {"PLOTLY_RENDERER": renderer, "REDISTILL_BATCH": "1", MARK: marked(run.token)}
    failure: Exception | None = None
    try:
        papermill.execute_notebook(
            str(notebook).replace("{", "{{").replace("}", "}}"),  # papermill formats it with parameters
            None,  # it would write in place, where a reader could find half a file
            kernel_name="python3",
            progress_bar={"desc": notebook.stem} if options.progress else False,
            # nbclient's way to say cwd: papermill's own would change it for this whole process
            resources={"metadata": {"path": str(folder)}},
            kernel_manager_class=_kernel_manager(run, environment),
            store_widget_state=False,
            iopub_timeout=60,  # of seconds on a machine that is busy
            **{name: getattr(run, name) for name in dir(run) if name.startswith("on_")},
        )
    except Exception as error:  # whatever it is, it is this notebook's end and no other's
        failure = error
    finally:
        run.end()
    run.save()
    return run.outcome(failure)


def first_work(source: str) -> str:
    """The first line of a cell's code that is no import.

    >>> first_work(chr(10).join(["import torch", "from torch import (", "    nn,", ")", "net = nn.Identity()"]))
    'net = nn.Identity()'
    """
    lines = source.strip().splitlines() or [""]
    with contextlib.suppress(SyntaxError, ValueError):  # of a magic, which is its first line then
        for node in ast.parse("\n".join(lines)).body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                return lines[node.lineno - 1].strip()
    return lines[0]


class _Stopped(Exception):
    """No further cell is to run."""


class _Execution:
    """One notebook while it runs: what its kernel and nbclient's hooks tell, and what it is stopped for."""

    def __init__(self, path: Path, options: NotebookOptions, signals: Signals) -> None:
        self.path, self.options, self.signals = path, options, signals
        self.token = uuid.uuid4().hex
        self.begun = self.saved = self.cell_begun = time.monotonic()
        self.notebook: Any = None  # papermill's, once the kernel runs
        self.kernel: subprocess.Popen[bytes] | None = None
        self.guard: subprocess.Popen[bytes] | None = None
        self.total = self.cell = self.saved_cell = 0  # code cells, the latest, and that of the last save
        self.stopped = ""  # by which signal, or "timeout"
        self.stopped_at = 0.0
        self.left = False  # the notebook ended itself

    def on_notebook_start(self, notebook: Any) -> None:
        self.notebook = notebook
        self.total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)

    def on_cell_start(self, cell: Any, cell_index: int) -> None:
        self.look()
        if self.stopped or self.left:
            raise _Stopped

    def on_cell_execute(self, cell: Any, cell_index: int) -> None:
        self.cell, self.cell_begun = self.cell + 1, time.monotonic()
        if self.options.on_cell:
            self.options.on_cell(self.cell - 1, self.total, self._called(cell, cell_index))

    def _called(self, cell: Any, cell_index: int) -> str:
        """The heading of the section that a cell is in, below the notebook's title; else its first line of work."""
        for above in reversed(self.notebook.cells[:cell_index]):
            if above.cell_type == "markdown" and (heads := re.findall(r"^(#+) +(.+?)[# ]*$", above.source, re.M)):
                mark, heading = heads[-1]
                if len(mark) > 1:
                    return str(heading)
                break
        return first_work(cell.source)

    def on_cell_executed(self, cell: Any, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
        told = execute_reply["content"]
        asked = any(each.get("source") == "ask_exit" for each in told.get("payload") or [])  # exit(), quit()
        # papermill takes such a SystemExit for a success
        self.left = asked or (told.get("ename") == "SystemExit" and told.get("evalue") in ("", "0", "None"))

    def save(self) -> None:
        if self.notebook is not None:
            write_text(self.path, nbformat.writes(self.notebook) + "\n")
        self.saved, self.saved_cell = time.monotonic(), self.cell

    def look(self) -> bool:
        """Whether there is a reason to stop that was not there before."""
        if self.stopped:
            return False
        now, limit = time.monotonic(), self.options.timeout
        if self.signals.came:
            self.stopped = self.signals.came[0]
        elif limit is not None and now - self.begun > limit:
            self.stopped = "timeout"
        self.stopped_at = now
        return bool(self.stopped)

    async def watch(self, interrupt: Callable[[], Any]) -> None:
        """Interrupt the cell where there is a reason, and kill its kernel where that is not enough."""
        while True:
            await asyncio.sleep(TICK)
            if self.look() and self.notebook is not None:
                with contextlib.suppress(RuntimeError, OSError):  # the kernel has just died
                    await interrupt()
            if self.stopped and self.has_waited():
                self.kill(grace=0.0)
            late = 1.0 if self.cell > self.saved_cell else SAVE
            if time.monotonic() - self.saved > late:
                with contextlib.suppress(OSError):  # a full disk is told at the end, if it is full then
                    self.save()

    def has_waited(self) -> bool:
        """Whether a stopped kernel has had its time: none before its first cell, none after a second signal."""
        hurried = self.notebook is None or len(self.signals.came) >= (1 if self.stopped == "timeout" else 2)
        return hurried or time.monotonic() - self.stopped_at > GRACE

    def kill(self, grace: float) -> None:
        if self.kernel:
            end_processes(self.token, grace)

    def end(self) -> None:
        self.kill(grace=1.0)
        if self.kernel:
            self.kernel.poll()
        if self.guard:
            with self.guard:
                self.guard.kill()

    def outcome(self, failure: Exception | None) -> NotebookError | None:
        from nbclient.exceptions import DeadKernelError
        from papermill import PapermillExecutionError

        cell = self.cell or None
        if failure:  # a signal to all processes of a job reaches the kernel, too
            self.look()
        if isinstance(failure, PapermillExecutionError):
            cell = failure.exec_count
        if self.stopped == "timeout":
            ran = f"this cell ran for {duration(self.stopped_at - self.cell_begun)}"
            told = f"the notebook took more than {duration(self.options.timeout or 0.0)}; {ran}"
            return NotebookError(cell, "TimeoutError", told)
        if self.stopped:
            return NotebookError(cell, "KeyboardInterrupt", "" if self.stopped == "SIGINT" else self.stopped)
        if self.left:
            return NotebookError(self.cell, "SystemExit", "the notebook ended itself")
        if isinstance(failure, PapermillExecutionError):
            return NotebookError(cell, failure.ename, failure.evalue.strip())
        if isinstance(failure, DeadKernelError) or str(failure).startswith("Kernel died"):
            return NotebookError(cell, "DeadKernelError", self._end_of_kernel())
        return None if failure is None else NotebookError(cell, type(failure).__name__, str(failure).strip())

    def _end_of_kernel(self) -> str:
        code = self.kernel.returncode if self.kernel else None
        if code is None or code >= 0:
            return f"the kernel ended itself with exit code {code}"
        name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        return f"the kernel was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _kernel_manager(run: _Execution, environment: Mapping[str, str]) -> Any:
    """A kernel manager class for one execution, of this interpreter whatever kernels the machine has."""
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class BatchKernelManager(AsyncKernelManager):
        kernel_spec_manager = KernelSpecManager(kernel_dirs=[])  # no folder: this interpreter's ipykernel
        transport_encryption = "auto" if zmq.has("curve") else "disabled"  # the kernel warns of an open one
        watch: asyncio.Task[None] | None = None

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            if run.look():
                raise _Stopped
            await super().start_kernel(env=os.environ | environment, **options)
            assert isinstance(self.provisioner, LocalProvisioner)
            run.kernel = self.provisioner.process
            run.guard = start_guard(run.token)
            self.watch = asyncio.create_task(run.watch(self.interrupt_kernel))

        async def _async_interrupt_kernel(self) -> None:
            """Before a shutdown, where a kernel that is not yet idle logs it as an error; `watch` has its own."""

        async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
            if self.watch:
                self.watch.cancel()
            await super().cleanup_resources(restart)

    return BatchKernelManager


@functools.cache
def _without_images() -> str:
    """Why no image of a figure can be made here, or an empty text; before a training, not after it."""
    import kaleido

    try:
        kaleido.Kaleido()  # looks for a browser, and starts none
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        return f"images of figures need Chrome or Chromium (Debian: apt-get install chromium): {reason}"
    return ""
