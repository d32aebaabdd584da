"""One way to show progress: a widget in a live notebook, a bar on a terminal, lines in a log, nothing in a batch."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


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
