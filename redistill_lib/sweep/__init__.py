"""Notebooks run with papermill, alone or at every point of a sweep. No torch."""

from redistill_lib.sweep.kernel import NotebookError, NotebookOptions
from redistill_lib.sweep.notebook import NotebookResult, run_notebook
from redistill_lib.sweep.runner import run_grids, run_notebooks
from redistill_lib.sweep.spec import read_grid

__all__ = [
    "NotebookError",
    "NotebookOptions",
    "NotebookResult",
    "read_grid",
    "run_grids",
    "run_notebook",
    "run_notebooks",
]
