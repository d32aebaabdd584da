"""Run several notebooks, or one at every point of a sweep, all checked before the first kernel starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path, as_paths
from redistill_lib.parameters import notebook_parameters
from redistill_lib.sweep.notebook import NotebookResult, output_folder, run_notebook
from redistill_lib.sweep.spec import notebook_point, read_sweep


def run_notebooks(
    paths: Iterable[str | Path],
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    **options: bool,
) -> list[NotebookResult]:
    """`run_notebook` for each in turn, all checked before the first kernel starts; Ctrl-C ends the list there."""
    given, points = parameters or {}, []
    for source in as_paths("notebooks", paths):
        points.append((source, given, output_folder(output_dir, source), notebook_point(source, given).name))
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
        for point in read_sweep(path).points:
            for notebook in point.notebooks:
                known = notebook_parameters(notebook)
                given = {name: value for name, value in point.parameters.items() if name in known}
                name = point.name if len(point.notebooks) == 1 else f"{point.name}-{notebook.stem}"
                points.append((notebook, given, folder / path.stem, name))
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
