"""Where folders, files and modules are that a parameter names: they count from where they are written. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

BUILT_IN = ("cluttered", "pairs", "digits", "elpv")  # data sets, whatever folders there are
_OWN = re.compile(r"(?:(?P<folder>.+)/)?(?P<module>[^\W\d]\w*(?:\.\w+)*):[^\W\d]\w*")


def located(name: str, value: Any, folder: Path) -> str | None:
    """The absolute form of what `value` names in `folder`: a path or a ``module:function``; None where it is neither.

    A path is there already, but for RUNS, which a notebook makes. A word without a slash is a path in DATA alone.
    """
    if not isinstance(value, str) or not value or os.path.isabs(value):
        return None
    value = os.path.expanduser(value)
    if own := _OWN.fullmatch(value):
        home = os.path.abspath(folder / (own["folder"] or ""))
        found = own["module"] != "hf" and holds(Path(home), own["module"])
        return f"{home}/{value.rpartition('/')[2]}" if found else None
    plain = "/" in value or os.sep in value or value in (".", "..")
    named = plain or (name == "DATA" and value not in BUILT_IN)
    path = os.path.abspath(folder / value)
    return path if name == "RUNS" or (named and os.path.exists(path)) else None


def holds(folder: Path, module: str) -> bool:
    """Whether a module of one's own lies there."""
    top = folder / module.partition(".")[0]
    return top.with_suffix(".py").is_file() or top.is_dir()


def home_of(value: Any) -> Path | None:
    """The folder in an absolute ``folder/module:function``."""
    own = _OWN.fullmatch(value) if isinstance(value, str) else None
    return Path(own["folder"]) if own and own["folder"] and os.path.isabs(own["folder"]) else None
