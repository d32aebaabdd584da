"""Several notebooks at a time, each in a process of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from pathlib import Path
from typing import Any

from redistill_lib.sweep.kernel import NotebookError, NotebookOptions
from redistill_lib.sweep.loop import listening
from redistill_lib.sweep.manifest import PointStatus
from redistill_lib.sweep.notebook import NotebookResult
from redistill_lib.sweep.progress import Progress
from redistill_lib.sweep.worker import run_alone
from redistill_lib.sweep.workers import Workers

Todo = tuple[Path, dict[str, Any], Path, str]  # a notebook, its parameters, where its files go, and their name


def run_several(todo: Sequence[Todo], jobs: int, options: Mapping[str, Any]) -> list[NotebookResult]:
    """Results in the order of `todo`. A signal is passed on to what runs, and nothing further is begun."""
    NotebookOptions(**options)  # refused before any process starts
    several = _Several(todo, min(jobs, len(todo)), {**options, "progress": False})
    with listening(several.on_signal):
        try:
            several.loop()
        finally:
            several.workers.close()
            several.progress.close()
    return [several.results[name] for *_, name in todo if name in several.results]


class _Several:
    """Notebooks that wait, that run, and that are done."""

    def __init__(self, todo: Sequence[Todo], jobs: int, options: dict[str, Any]):
        self.waiting, self.options = deque(todo), options
        self.running: dict[Future[NotebookResult], Todo] = {}
        self.results: dict[str, NotebookResult] = {}
        self.signals = self.passed_on = 0
        self.workers = Workers(jobs)
        self.progress = Progress("notebooks", len(todo), 0, jobs=jobs)

    def on_signal(self, *_: Any) -> None:
        self.signals += 1

    def loop(self) -> None:
        while self.running or (self.waiting and not self.signals):
            while self.waiting and self.workers.free and not self.signals:
                self._submit(self.waiting.popleft())
            over = wait(self.running, 0.5, FIRST_COMPLETED).done
            for future in [future for future in self.running if future in over]:
                self._collect(future)
            while self.passed_on < self.signals:
                self.passed_on += 1
                self.workers.interrupt()
            self.progress.show()

    def _submit(self, todo: Todo) -> None:
        self.running[self.workers.submit(run_alone, *todo, self.options)] = todo
        self.progress.started(todo[-1])

    def _collect(self, future: Future[NotebookResult]) -> None:
        _, parameters, folder, name = self.running.pop(future)
        seconds = self.progress.forget(name)
        try:
            result = future.result()
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, it is this notebook's end and no other's
            killed = isinstance(error, BrokenExecutor)
            why = NotebookError(None, type(error).__name__, "its process was killed" if killed else str(error))
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            result = NotebookResult(name, status, round(seconds, 2), why, parameters, folder / f"{name}.ipynb", None)
        finally:
            self.workers.release(future)
        self.results[name] = result
        reason = str(result.error) if result.error else None
        self.progress.finished(PointStatus(name, "", result.status, "", error=reason, seconds=result.seconds))
