"""Sweep files: a notebook and the points of its parameters."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from redistill_lib.checks import as_path
from redistill_lib.parameters import check_parameters


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
        name = point_name(notebook, point)
        if name in points:
            raise ValueError(f"{path}: two points of the grid are both named {name}")
        points[name] = check_parameters(notebook, fixed | point)
    return notebook, points


def point_name(notebook: Path, given: Mapping[str, Any]) -> str:
    """``04_distill_student-FACTOR=8``: what was given is in the name, so that no run hides another."""
    return re.sub(r"[^\w.=+-]+", "_", "-".join([notebook.stem, *(f"{key}={value}" for key, value in given.items())]))


@dataclass(frozen=True)
class Point:
    """One set of parameters for the notebooks of a sweep, run in turn."""

    name: str
    notebooks: tuple[Path, ...]
    parameters: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read."""

    name: str
    file: Path
    notebooks: tuple[Path, ...]
    points: tuple[Point, ...]
    text: str


def read_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """The file's points; `overrides` are the same at all."""
    path = as_path("path", path)
    notebook, grid = read_grid(path)
    cells = notebook.read_text()
    points = []
    for name, values in grid.items():
        given = check_parameters(notebook, {**values, **(overrides or {})})
        key = hashlib.sha256(f"{given} {cells}".encode()).hexdigest()[:16]
        points.append(Point(name, (notebook,), given, key))
    return Sweep(path.stem, path.resolve(), (notebook,), tuple(points), path.read_text())
