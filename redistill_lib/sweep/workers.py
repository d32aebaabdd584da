"""Processes of this machine that run notebooks, each on its share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

from redistill_lib.sweep.worker import begin, block_signals, unblock_signals


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """One process, spawned on first use and again when it has died."""

    def __init__(self, threads: int):
        self.threads = threads
        self.pool: ProcessPoolExecutor | None = None
        self.process: BaseProcess | None = None

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:
        if self.pool is None or self.process is None or not self.process.is_alive():
            self.close()
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, spawn, initializer=begin, initargs=(self.threads,))
        others = {process.pid for process in multiprocessing.active_children()}
        block_signals()  # it is born deaf to Ctrl-C: before it can ignore it, it would die of it
        try:
            future = self.pool.submit(call, *given)
        finally:
            unblock_signals()
        new = [process for process in multiprocessing.active_children() if process.pid not in others]
        self.process = new[0] if new else self.process
        return future

    def interrupt(self) -> None:
        if self.process is not None and self.process.pid and self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def close(self, at_work: bool = False) -> None:
        """End it; what a killed one has started is ended by the guard of its kernel."""
        if at_work and self.process is not None and self.process.is_alive():
            self.process.kill()
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
        self.pool = self.process = None


class Workers:
    """`jobs` processes with cores // jobs threads each. The death of one ends no other, as in a shared pool it would.

    >>> Workers(1).free
    1
    """

    def __init__(self, jobs: int):
        threads = max(1, cores() // jobs)
        self._idle = [_Worker(threads) for _ in range(jobs)]
        self._at_work: dict[Future[Any], _Worker] = {}

    @property
    def free(self) -> int:
        return len(self._idle)

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:
        worker = self._idle.pop()
        future = worker.submit(call, *given)
        self._at_work[future] = worker
        return future

    def release(self, future: Future[Any]) -> None:
        """What `future` stands for is over, so that its worker is free; what a dead one has left is ended."""
        worker = self._at_work.pop(future)
        if future.cancelled() or future.exception():
            worker.close()
        self._idle.append(worker)

    def interrupt(self) -> None:
        for worker in self._at_work.values():
            worker.interrupt()

    def close(self) -> None:
        for worker in self._at_work.values():
            worker.close(at_work=True)
        for worker in self._idle:
            worker.close()


class Elsewhere:
    """Workers behind an executor that is somebody else's: all points are handed over at once."""

    def __init__(self, executor: Executor):
        self.executor = executor
        self.free = 1

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:
        return self.executor.submit(call, *given)

    def release(self, future: Future[Any]) -> None:
        pass

    def interrupt(self) -> None:
        pass  # by the stop file

    def close(self) -> None:
        pass
