"""Run notebooks with papermill, alone or at every point of a grid; what can be checked is checked first. No torch."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from redistill_lib.checks import as_path, as_paths
from redistill_lib.parameters import check_parameters, with_parameters
from redistill_lib.runs import write_text


@dataclass(frozen=True)
class NotebookError:
    """Where and how a notebook stopped. `cell` is the n of `In [n]`, or None when the kernel itself died."""

    cell: int | None
    ename: str
    evalue: str

    def __str__(self) -> str:
        where = "kernel" if self.cell is None else f"In [{self.cell}]"
        return f"{where}: {self.ename}: {self.evalue}".rstrip(": ")


@dataclass(frozen=True)
class NotebookResult:
    """One execution of one notebook and the files it left."""

    name: str
    status: str  # "ok" | "failed"
    seconds: float
    error: NotebookError | None
    parameters: dict[str, Any]  # those given; the others ran at the notebook's defaults
    notebook: Path
    html: Path | None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def interrupted(self) -> bool:
        return self.error is not None and self.error.ename == "KeyboardInterrupt"


def run_notebook(
    path: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    *,
    name: str | None = None,
    html: bool = True,
    png: bool = False,
    progress: bool = False,
) -> NotebookResult:
    """Execute a copy of the notebook in its own folder; `output_dir` gets <name>.ipynb, .html and .json.

    `png` shows figures as images, beside their data, for a notebook to be committed; it needs Chrome or Chromium.
    A failing cell, a dead kernel or Ctrl-C is a result with status "failed", and the cells so far are kept. Raises
    ValueError or FileNotFoundError, before a kernel starts, for a wrong notebook, parameter or folder.
    """
    path = as_path("path", path).resolve()
    given = check_parameters(path, parameters or {})
    target = _output_folder(output_dir, path) / f"{name or path.stem}.ipynb"
    page, status = target.with_suffix(".html"), target.with_suffix(".json")
    page.unlink(missing_ok=True)
    status.unlink(missing_ok=True)
    write_text(target, with_parameters(path, given))

    started = time.monotonic()
    error = _execute(target, path.parent, progress, png)
    seconds, outcome = round(time.monotonic() - started, 2), "failed" if error else "ok"
    result = NotebookResult(target.stem, outcome, seconds, error, given, target, page if html else None)
    if html:
        write_text(page, _html(target))
    record = asdict(result) | {"notebook": target.name, "html": page.name if html else None}
    write_text(status, json.dumps(record, indent=1, default=repr) + "\n")
    return result


def run_notebooks(
    paths: Iterable[str | Path],
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    **options: bool,
) -> list[NotebookResult]:
    """`run_notebook` for each in turn, all checked before the first kernel starts; Ctrl-C ends the list there."""
    given, points = parameters or {}, []
    for source in as_paths("notebooks", paths):
        check_parameters(source, given)
        points.append((source, given, _output_folder(output_dir, source), _point_name(source, given)))
    stems = [source.stem for source, *_ in points]
    if len(set(stems)) < len(stems):
        twin = max(stems, key=stems.count)
        raise ValueError(f"several notebooks are named {twin}: run them into different output folders")
    return _in_turn(points, options)


def run_grids(
    paths: Iterable[str | Path], output_dir: str | Path = "runs/sweeps", **options: bool
) -> list[NotebookResult]:
    """`run_notebook` for every point of every sweep file into `output_dir/<file>/`, all checked beforehand."""
    folder, points = as_path("output_dir", output_dir), []
    for path in as_paths("grids", paths):
        notebook, grid = read_grid(path)
        points += [(notebook, point, folder / path.stem, name) for name, point in grid.items()]
    return _in_turn(points, options)


def _in_turn(points: Iterable[tuple[Any, ...]], options: Mapping[str, bool]) -> list[NotebookResult]:
    results: list[NotebookResult] = []
    for source, given, folder, name in points:
        result = run_notebook(source, given, folder, name=name, **options)
        results.append(result)
        if not options.get("progress"):  # off a terminal, where no bar shows the cells
            print(f"{result.name}: {result.status} after {result.seconds:.0f} s", file=sys.stderr)
        if result.interrupted:
            break
    return results


def _output_folder(output_dir: str | Path, source: Path) -> Path:
    folder = as_path("output_dir", output_dir).resolve()
    if folder == source.resolve().parent:
        raise ValueError(f"the output folder {output_dir} holds {source.name} itself: choose another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {output_dir} is a file")
    return folder


def _execute(notebook: Path, folder: Path, progress: bool, png: bool = False) -> NotebookError | None:
    """Execute the file where it is, the kernel working in `folder`; None when every cell succeeded."""
    import papermill

    # Figures that need no network: plotly.js is in the page (5 MB), or they are images.
    renderer = "plotly_mimetype+png" if png else "plotly_mimetype+notebook"
    manager = _kernel_manager({"PLOTLY_RENDERER": renderer, "REDISTILL_BATCH": "1"})
    try:
        papermill.execute_notebook(
            str(notebook),
            str(notebook),
            kernel_name="python3",
            progress_bar={"desc": notebook.stem} if progress else False,
            # nbclient's way to say cwd: papermill's own would change it for this whole process
            resources={"metadata": {"path": str(folder)}},
            kernel_manager_class=manager,
            store_widget_state=False,
        )
    except papermill.PapermillExecutionError as error:
        return NotebookError(error.exec_count, error.ename, error.evalue)
    except RuntimeError as error:  # the kernel died, or never answered
        if not manager.interrupted:
            return NotebookError(None, type(error).__name__, str(error))
    # Also where a cell caught the interrupt and the notebook went on: what followed is not the notebook's result.
    return NotebookError(None, "KeyboardInterrupt", "") if manager.interrupted else None


def _kernel_manager(environment: Mapping[str, str]) -> Any:
    """A kernel manager class for one execution, of this interpreter whatever kernels the machine has."""
    import asyncio

    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class BatchKernelManager(AsyncKernelManager):
        interrupted = False
        kernel_spec_manager = KernelSpecManager(kernel_dirs=[])  # no folder: this interpreter's ipykernel
        transport_encryption = "auto" if zmq.has("curve") else "disabled"  # the kernel warns of an open one

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            # nbclient kills the kernel on Ctrl-C; interrupting it first lets the cell say where it stopped.
            # Outside the main thread and on Windows there are no signals, and nbclient's way stays.
            loop = asyncio.get_running_loop()
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGINT, lambda: loop.create_task(self._on_interrupt()))
            await super().start_kernel(env=os.environ | environment, **options)

        async def _on_interrupt(self) -> None:
            again, BatchKernelManager.interrupted = BatchKernelManager.interrupted, True
            await (self.shutdown_kernel(now=True) if again else self.interrupt_kernel())

    return BatchKernelManager


def _html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(template_name="lab").from_filename(str(notebook))
    pages = re.sub(r'href="(\w+)\.ipynb"', r'href="\1.html"', str(body))  # the neighbours are pages here, too
    return pages.replace('href="README.md"', 'href="../index.html"')


def read_grid(path: str | Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A sweep file's notebook (relative to it) and its points, name → parameters.

    There is one point for each combination of values in `grid`; `parameters` (optional) are the same at all.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file at {path}")
    try:
        text = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    known = ("notebook", "grid", "parameters")
    if not isinstance(text, dict) or not {"notebook", "grid"} <= text.keys() <= set(known):
        raise ValueError(f"{path} must be a mapping of {', '.join(known)} (the last one optional) and nothing else")
    grid, fixed = text["grid"], text.get("parameters") or {}
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ValueError(f"{path}: grid must map each parameter to a list of values")
    notebook = (path.parent / as_path(f"{path}: notebook", text["notebook"])).resolve()
    points: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = _point_name(notebook, point)
        if name in points:
            raise ValueError(f"{path}: two points of the grid are both named {name}")
        points[name] = check_parameters(notebook, fixed | point)
    return notebook, points


def _point_name(notebook: Path, given: Mapping[str, Any]) -> str:
    """``04_distill_student-FACTOR=8``: what was given is in the name, so that no run hides another."""
    return re.sub(r"[^\w.=+-]+", "_", "-".join([notebook.stem, *(f"{key}={value}" for key, value in given.items())]))
