"""One way to show progress: a widget in a live notebook, a bar on a terminal, lines in a log, nothing in a batch."""

from __future__ import annotations

import os
import sys
from typing import Any


def is_live() -> bool:
    """Whether this is a notebook that can show widgets: a kernel that no batch runner started."""
    ipython = sys.modules.get("IPython")  # not imported: no notebook
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") and not _in_batch()


def _in_batch() -> bool:
    return os.environ.get("REDISTILL_BATCH") == "1"


def progress_bar(total: int, description: str, enabled: bool = True) -> Any:
    """A tqdm bar over `total` steps; off a terminal a line every ten seconds, in batch runs none."""
    from tqdm import tqdm
    from tqdm.notebook import tqdm_notebook

    if is_live():
        return tqdm_notebook(total=total, desc=description, leave=False, disable=not enabled)
    terminal = sys.stderr.isatty()
    pace = {"leave": False} if terminal else {"mininterval": 10.0, "maxinterval": 10.0, "delay": 2.0}
    return tqdm(total=total, desc=description, disable=not enabled or _in_batch(), **pace)
