"""Run several notebooks, or one at every point of a sweep, all checked before the first kernel starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path, as_paths
from redistill_lib.parameters import check_parameters
from redistill_lib.sweep.notebook import NotebookResult, output_folder, run_notebook
from redistill_lib.sweep.spec import point_name, read_grid


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
        points.append((source, given, output_folder(output_dir, source), point_name(source, given)))
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
