"""Executors of other libraries, to which trainings and notebooks are handed."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from redistill_lib.checks import check_type


def check_executor(executor: Any) -> None:
    """Refuse what would run several trainings or kernels in one process, or hang."""
    check_type("executor", executor, Executor, None)
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError(
            "threads would share one state of random numbers, and do not die alone; "
            "give an executor of processes, or none"
        )
    context = getattr(executor, "_mp_context", None)  # of the standard library's pool
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "processes that are forked hang once torch has run: "
            "ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))"
        )


def submit(executor: Executor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """As the executor's own, to a process that ends with this one, and at Ctrl-C without a traceback of its own."""
    with _interrupts_held():
        return executor.submit(_in_pool, function, *arguments)


def _in_pool(function: Callable[..., Any], *arguments: Any) -> Any:
    _end_with_parent()
    return function(*arguments)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back: processes spawned meanwhile are born deaf to it, until `_end_with_parent` hears it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def _end_with_parent() -> None:
    """End this process, if it is a pool's, with the one that spawned it, for which it would wait for ever, and at
    Ctrl-C, without a traceback: the other one has its own."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
