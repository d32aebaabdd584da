"""Notebooks run with papermill, alone or at every point of a sweep, by any number of workers. No torch.

Names are imported on first use: a command that runs nothing waits for none of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "NotebookError": "kernel",
    "NotebookOptions": "kernel",
    "NotebookResult": "notebook",
    "run_notebook": "notebook",
    "record": "rows",
    "recorded": "rows",
    "SweepOptions": "options",
    "SweepResult": "options",
    "run_notebooks": "runner",
    "run_sweep": "runner",
    "Point": "points",
    "Sweep": "spec",
    "notebook_point": "points",
    "read_sweep": "spec",
    "summarise": "table",
    "sweep_table": "table",
}
__all__ = [*_HOMES]

if TYPE_CHECKING:
    from redistill_lib.sweep import command, loop, notebook, runner, spec
    from redistill_lib.sweep.kernel import NotebookError, NotebookOptions
    from redistill_lib.sweep.notebook import NotebookResult, run_notebook
    from redistill_lib.sweep.options import SweepOptions, SweepResult
    from redistill_lib.sweep.points import Point, notebook_point
    from redistill_lib.sweep.rows import record, recorded
    from redistill_lib.sweep.runner import run_notebooks, run_sweep
    from redistill_lib.sweep.spec import Sweep, read_sweep
    from redistill_lib.sweep.table import summarise, sweep_table


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in (*_HOMES.values(), "command", "loop"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
