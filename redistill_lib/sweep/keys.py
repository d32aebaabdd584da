"""What decides a notebook's result, as digests. No torch."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import pprint
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat

from redistill_lib.source import Imports
from redistill_lib.sweep.places import holds

#: Parameters that say where trainings are kept and how many run at a time: they decide no result.
IDLE = ("JOBS", "RUNS")


def told(value: Any) -> str:
    """Equal for equal values of one type, and only for them: sets and dicts in one order.

    >>> told({"b": 1, "a": 1.0}) == told({"a": 1.0, "b": 1}), told(1) == told(1.0)
    (True, False)
    """
    return pprint.pformat(value, width=2**31, compact=True)


def digest_of(value: Any) -> str:
    """64 hex digits of `told`."""
    return hashlib.sha256(told(value).encode()).hexdigest()


def notebook_code(path: Path) -> list[Any]:
    """What a notebook executes: its code cells, the one of its parameters apart, and modules in its own folder."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])]
    sources = [cell.source.rstrip() for cell in code]
    imported = sorted({module for source in sources for module in _imports(source)})
    return [sources, [own_code(module, path.parent) for module in imported]]


def named_modules(values: Iterable[Any]) -> list[str]:
    """The modules that values may name.

    >>> named_modules(["my_net:make", "my_losses:Mine+kd", 3])
    ['my_losses', 'my_net']
    """
    return sorted(set(re.findall(r"(?<![\w.])([^\W\d]\w*(?:\.\w+)*):\w", told(list(values)))))


def _imports(source: str) -> Iterator[str]:
    with contextlib.suppress(SyntaxError):  # of a magic: it has no module that could be followed
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield str(node.module)


def own_code(module: str, folder: Path) -> dict[str, str]:
    """A module of one's own and what it imports, by name: code, of others' a version; nothing if not in `folder`."""
    if not holds(folder, module):
        return {}
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        return Imports.of(module)
    except Exception:  # a package of one's own may do anything when it is imported; its error is said in the notebook
        return {}
    finally:
        sys.path.remove(str(folder))
