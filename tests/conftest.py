"""What several test modules share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: xdist already fills the cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup

PARAMETERS = """\
EPOCHS = 3  # the paper has EPOCHS = 300
LR = 0.1
AMP = True
PLAN = "4-11221"
SEEDS = [0, 1]
SIZES = (8, 16)
COLOUR = "#fff"
NOTE = None
"""


@pytest.fixture
def make_notebook(tmp_path: Path) -> Callable[..., Path]:
    """Write `notebooks/<name>.ipynb`: a title, a parameters cell (None: none) and the given code cells."""

    def make(name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {name}")])
        if parameters is not None:
            tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
            notebook.cells.append(tagged)
        notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return make


#: Files of a minute and more, begun first: the last one to begin would keep one core waiting.
LONG = ("test_notebooks", "test_readme", "test_export", "test_memory", "test_fitting", "test_trainer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests stay: a seventh of the time went into searching them for garbage


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("chromium") and not shutil.which("chromium"):
        pytest.skip("needs chromium on the PATH (Debian: apt-get install chromium)")
