"""One way to show progress: a widget in a live notebook, a line on a terminal, nothing in a batch."""

from __future__ import annotations

import os
import sys
from typing import Any


def is_live() -> bool:
    """Whether somebody is looking at a notebook that can show widgets: a kernel that no batch runner started."""
    ipython = sys.modules.get("IPython")  # not imported: nobody sits in a notebook
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel") and os.environ.get("REDISTILL_BATCH") != "1"


def progress_bar(total: int, description: str, enabled: bool = True) -> Any:
    """A tqdm bar over `total` steps that leaves nothing behind. Batch runs and redirected output get none."""
    from tqdm import tqdm
    from tqdm.notebook import tqdm_notebook

    if is_live():
        return tqdm_notebook(total=total, desc=description, leave=False, disable=not enabled)
    return tqdm(total=total, desc=description, leave=False, disable=None if enabled else True)
