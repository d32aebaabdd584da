"""Where folders, files and modules are that a parameter names: they count from where they are written. No torch."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILT_IN = ("cluttered", "pairs", "digits", "elpv")  # data sets, whatever folders there are
_OWN = re.compile(r"(?:(?P<folder>.+)/)?(?P<module>[^\W\d]\w*(?:\.\w+)*):[^\W\d]\w*")


@dataclass(frozen=True)
class Written:
    """Where a parameter's value is written, and the folders from which it may count, the working folder last."""

    where: str  # "a.yaml, line 4"
    folders: tuple[Path, ...]


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


def missing(name: str, value: str, folders: Iterable[Path]) -> str | None:
    """What is said of a module that none of these folders has and that is not installed, or of a folder of DATA that
    is in none of them; None for all else."""
    value, places = os.path.expanduser(value), list(dict.fromkeys(map(os.path.abspath, folders)))
    among = f"{', '.join(places[:-1])} or {places[-1]}" if len(places) > 1 else places[0]
    if os.path.isabs(value):
        return None
    if name == "DATA":
        there = "/" not in value or value.startswith("hf:") or any(os.path.exists(f"{f}/{value}") for f in places)
        return None if there else f"there is no folder {value} in {among}"
    own = _OWN.fullmatch(value)
    if own is None or any(holds(Path(folder, own["folder"] or ""), own["module"]) for folder in places):
        return None
    if own["folder"]:
        return f"there is no module {own['folder']}/{own['module']} in {among}"
    installed = importlib.util.find_spec(own["module"].partition(".")[0])
    return None if installed else f"there is no module {own['module']} in {among}, nor is one installed"


def home_of(value: Any) -> Path | None:
    """The folder in an absolute ``folder/module:function``."""
    own = _OWN.fullmatch(value) if isinstance(value, str) else None
    return Path(own["folder"]) if own and own["folder"] and os.path.isabs(own["folder"]) else None
