"""Executors of other libraries, to which trainings and notebooks are handed."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
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


@functools.cache
def end_with_parent() -> None:
    """End this process when the one that spawned it is gone: a pool's worker would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
