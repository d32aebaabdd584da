"""One point in one process: claimed, executed, recorded."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import Timeout

from redistill_lib.parameters import notebook_parameters
from redistill_lib.sweep.manifest import (
    PointStatus,
    cells_digest,
    claim,
    now,
    plain,
    read_status,
    versions,
    write_status,
)
from redistill_lib.sweep.notebook import NotebookResult, run_notebook
from redistill_lib.sweep.points import Point
from redistill_lib.sweep.rows import recorded

CELL_SECONDS = 5.0  # how often at most it is told which cell runs


@dataclass(frozen=True)
class Task:
    """What a worker is told."""

    point: Point
    folder: Path
    session: str
    seen: str = ""  # the stamp of its status when it was planned
    html: bool = True
    timeout: float | None = None  # seconds


def run_point(task: Task) -> PointStatus:
    """Execute a point unless another process runs it ("busy") or has run it (its status is returned).

    Outside of a main thread, where no signal arrives, it is executed in a process of its own. OSError where the
    folder cannot be written; whatever else fails is a status.
    """
    if threading.current_thread() is not threading.main_thread():
        return _run_apart(task)
    point, lease = task.point, claim(task.folder, task.point.name)
    if stop_file(task.folder, task.session).exists():
        return PointStatus(point.name, point.key, "interrupted", task.session)
    try:
        lease.acquire(blocking=False)
    except Timeout:
        return PointStatus(point.name, point.key, "busy", task.session)
    try:
        before = read_status(task.folder, point.name)
        if before and before.settles(point.key, task.seen):
            return before
        attempts = before.attempts + 1 if before and before.key == point.key else 1
        return _execute(task, attempts)
    finally:
        lease.release()


def _execute(task: Task, attempts: int) -> PointStatus:
    point = task.point
    cells = {path.stem: cells_digest(path) for path in point.notebooks}
    facts: dict[str, Any] = {"parameters": plain(point.parameters), "notebooks": cells, "versions": versions()}
    facts |= {"attempts": attempts, "started": now()}
    running = write_status(task.folder, PointStatus(point.name, point.key, "running", task.session, **facts))
    begun = told = time.monotonic()

    def on_cell(done: int, count: int, line: str = "") -> None:
        nonlocal told
        if time.monotonic() - told >= CELL_SECONDS:
            told, cell = time.monotonic(), f"{done + 1}/{count} {line[:60]}".strip()
            with contextlib.suppress(OSError):
                write_status(task.folder, replace(running, cell=cell, seconds=told - begun))

    status, error, rows, size, seconds = "ok", None, list[dict[str, Any]](), 0, 0.0
    unwritable: OSError | None = None
    with _interruptible(task):
        try:
            for path in point.notebooks:
                result = _run_notebook(task, path, begun, on_cell)
                seconds += result.seconds
                files = filter(None, (result.notebook, result.html))
                size += sum(file.stat().st_size for file in files if file.exists())
                if not result.ok or (result.interrupted and path != point.notebooks[-1]):
                    status, error = _outcome(result), str(result.error or "") or None
                    unwritable = _unwritable(result)
                    break
                rows += _rows(result.notebook)
        except KeyboardInterrupt:
            status, seconds = "interrupted", time.monotonic() - begun
        except Exception as failure:
            status, error, seconds = "failed", f"{type(failure).__name__}: {failure}", time.monotonic() - begun
    done = replace(running, status=status, error=error, seconds=round(seconds, 2), rows=rows, bytes=size)
    write_status(task.folder, done)
    if unwritable:  # the folder, not a file of a cell's: no other point could be kept either
        raise unwritable
    return done


def _run_notebook(task: Task, path: Path, begun: float, on_cell: Callable[..., None]) -> NotebookResult:
    point = task.point
    alone = len(point.notebooks) == 1
    names = point.parameters if alone else notebook_parameters(path)
    given = {name: value for name, value in {**point.parameters, **point.located}.items() if name in names}
    left = None if task.timeout is None else max(task.timeout - (time.monotonic() - begun), 1.0)
    name = point.name if alone else f"{point.name}-{path.stem}"
    how: dict[str, Any] = {"html": task.html, "timeout": left, "on_cell": on_cell}
    return run_notebook(path, given, task.folder, name=name, **how)


def _outcome(result: NotebookResult) -> str:
    if result.interrupted:
        return "interrupted"
    return "died" if result.error and result.error.ename == "DeadKernelError" else "failed"


def _unwritable(result: NotebookResult) -> OSError | None:
    """A full disk or a read-only folder, where it is no cell that says so."""
    if result.error is None or result.error.cell is not None:
        return None
    told = re.match(r"\[Errno (\d+)\]", result.error.evalue)
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def _rows(notebook: Path) -> list[dict[str, Any]]:
    frame = recorded(notebook)
    # Not by to_json, which keeps fifteen digits of a float at most.
    return [{str(k): _value(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _value(value: Any) -> Any:
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _interruptible(task: Task) -> Iterator[None]:
    """Within it SIGINT is a KeyboardInterrupt, and so is the stop file."""
    over, stop = threading.Event(), stop_file(task.folder, task.session)

    def watch() -> None:
        while not over.wait(1.0):
            if stop.exists():
                os.kill(os.getpid(), signal.SIGINT)
                over.wait(5.0)

    threading.Thread(target=watch, daemon=True).start()
    try:
        with _at_work():
            yield
    finally:
        over.set()


@contextlib.contextmanager
def _at_work() -> Iterator[None]:
    """Within it SIGINT is a KeyboardInterrupt, also in a worker."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    _BUSY.set()
    try:
        yield
    finally:
        _BUSY.clear()
        signal.signal(signal.SIGINT, before)


def run_alone(path: Path, parameters: dict[str, Any], folder: Path, name: str, options: Any) -> NotebookResult:
    """`run_notebook` in a worker, which gives it up when nobody waits for it any more."""
    with _at_work():
        return run_notebook(path, parameters, folder, name=name, **options)


_BUSY = threading.Event()  # whether this process executes a notebook


def stop_file(folder: Path, session: str) -> Path:
    """While it is there, workers of that call interrupt what they run; for those that no signal reaches."""
    return folder / "claims" / f"{session}.stop"


def begin(threads: int) -> None:
    """Make this process a worker of the process that spawned it, with which it ends."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C and a closed terminal reach the sweep alone, which tells its workers once
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    unblock_signals()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        given = os.environ.get(name, "")
        os.environ[name] = str(min(threads, int(given)) if given.isdecimal() and int(given) else threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.join,), daemon=True).start()


_SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}


def block_signals() -> None:
    """Of this thread, and of processes that it starts."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def unblock_signals() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _follow(wait: Callable[[], object]) -> None:
    """When `wait` returns, nobody wants a result any more: interrupt the point, so that it is told, and end."""
    wait()
    for _ in range(2):  # the second time its kernel is killed
        if _BUSY.is_set():
            os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5.0
        while _BUSY.is_set() and time.monotonic() < deadline:
            time.sleep(0.1)
    time.sleep(0.2)  # for the claim
    os._exit(1)  # also where a kernel hangs, which its guard ends


def _run_apart(task: Task) -> PointStatus:
    """`run_point` in a process of its own, which ends when this one does."""
    command = [sys.executable, "-m", "redistill_lib.sweep.worker"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        pickle.dump(task, process.stdin)
        process.stdin.flush()  # and not closed, which would interrupt it
        answer = process.stdout.read()
    if not answer:
        name, key = task.point.name, task.point.key
        return PointStatus(name, key, "died", task.session, error=f"its process ended with code {process.returncode}")
    outcome = pickle.loads(answer)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def main() -> None:
    """A task comes on stdin, which stays open as long as somebody waits for the answer on stdout."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what is printed is not the answer
    task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_follow, args=(sys.stdin.buffer.read,), daemon=True).start()
    outcome: PointStatus | BaseException
    try:
        outcome = run_point(task)
    except OSError as error:
        outcome = error
    with contextlib.suppress(BrokenPipeError), os.fdopen(answer, "wb") as file:  # who waited may be gone
        pickle.dump(outcome, file)
        file.flush()
    os._exit(0)  # the thread that reads stdin holds its lock


if __name__ == "__main__":
    main()
