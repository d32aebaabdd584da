"""One way to show progress: a widget in a live notebook, a bar on a terminal, lines in a log, nothing in a batch.

And one way to say how long something took.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any


def duration(seconds: float) -> str:
    """A length of time as a person says it.

    >>> duration(4.21), duration(51.3), duration(840), duration(7300)
    ('4.2 s', '51 s', '14 min', '2 h 2 min')
    """
    if seconds < 99.5:
        return f"{round(seconds, 1):.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def is_live() -> bool:
    """Whether this is a notebook that can show widgets: a kernel that no batch runner started."""
    ipython = sys.modules.get("IPython")  # not imported: no notebook
    return hasattr(ipython and ipython.get_ipython(), "kernel") and os.environ.get("REDISTILL_BATCH") != "1"


class _Lines(io.TextIOBase):
    """A terminal writes each state of a bar over the last one; here each is a line of stderr."""

    def write(self, text: str) -> int:
        return sys.stderr.write(f"{text.strip()}\n") if text.strip() else 0


def progress_bar(total: int, description: str, enabled: bool = True) -> Any:
    """A tqdm bar over `total` steps; off a terminal a line every ten seconds, in batch runs none."""
    from tqdm import tqdm
    from tqdm.notebook import tqdm_notebook

    if is_live():
        return tqdm_notebook(total=total, desc=description, leave=False, disable=not enabled)
    terminal = sys.stderr.isatty()
    log = {"file": _Lines(), "mininterval": 10.0, "maxinterval": 10.0, "delay": 2.0}
    shown = enabled and os.environ.get("REDISTILL_BATCH") != "1"
    return tqdm(total=total, desc=description, disable=not shown, **({"leave": False} if terminal else log))


@contextlib.contextmanager
def waiting_bar(total: int, description: str) -> Iterator[Any]:
    """`progress_bar` of steps that may take minutes each: after two seconds it is shown, though nothing has moved."""
    lines = not (is_live() or sys.stderr.isatty())
    pause = 10.0 if lines else 1.0
    over, shown = threading.Event(), threading.Event()

    def show() -> None:
        wait = 2.0
        while not over.wait(wait):
            bar.refresh()
            shown.set()
            wait = pause

    with progress_bar(total, description) as bar:
        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield bar
            if lines and shown.is_set():  # a line that says 1 of 4 does not stay the last
                bar.refresh()
        finally:
            over.set()
            thread.join()
