"""Notebooks run with papermill, alone or at every point of a sweep. No torch."""

from redistill_lib.sweep.notebook import NotebookError, NotebookResult, run_notebook
from redistill_lib.sweep.runner import run_grids, run_notebooks
from redistill_lib.sweep.spec import Point, Sweep, notebook_point, read_sweep

__all__ = ["NotebookError", "NotebookResult", "Point", "Sweep", "notebook_point", "read_sweep"]
__all__ += ["run_grids", "run_notebook", "run_notebooks"]
