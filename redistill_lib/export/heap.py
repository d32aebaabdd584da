"""What a call takes from the heap, natively too, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any


def heap_peak(call: Callable[[], Any], warm: bool = True) -> int:
    """The most bytes that `call` holds at once of what it allocates; `warm`: not those of its first time."""
    import memray

    if warm:
        call()
    with TemporaryDirectory() as folder:
        record = Path(folder, "heap")
        with memray.Tracker(record):
            call()
        return int(memray.FileReader(record).metadata.peak_memory)


def median_seconds(call: Callable[[], Any], least: float = 0.5) -> float:
    """Of the processor, as of three or more calls within `least` seconds of the clock, after a first one."""
    call()
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begun < least:
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return median(taken)
