"""The parameters of a notebook: `NAME = literal` in its cell tagged `parameters`, checked before anything runs."""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import nbformat

from redistill_lib.checks import as_path, hint


def notebook_parameters(path: str | Path) -> dict[str, Any]:
    """Names and defaults of a notebook's parameters, in order; FileNotFoundError, or ValueError for other code."""
    # Not by papermill, whose reader drops a line whose comment holds a `=` and cuts a string at a `#`.
    path = as_path("path", path)
    notebook, index = _read(path)
    try:
        statements = ast.parse(notebook.cells[index].source).body
    except SyntaxError as error:
        said = f"{error.msg}, line {error.lineno}"
        raise ValueError(f"{path.name}: the parameters cell is not plain Python: {said}") from None
    defaults: dict[str, Any] = {}
    for statement in statements:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                try:
                    defaults[name] = ast.literal_eval(value)
                except ValueError:
                    got = ast.unparse(value)
                    raise ValueError(f"{path.name}: parameter {name} must be a literal, got '{got}'") from None
            case _:
                got = ast.unparse(statement)
                raise ValueError(f"{path.name}: the parameters cell may hold only NAME = literal, got '{got}'")
    return defaults


def check_parameters(path: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` by `convert` as the types of the notebook's defaults; ValueError for another name or type."""
    defaults, file = notebook_parameters(path), Path(path).name
    for name in given:
        if name not in defaults:
            close = hint(name, defaults) or ";"
            raise ValueError(f"{file} has no parameter {name}{close} it has {', '.join(defaults)}")
    return {name: convert(f"{file}: {name}", value, defaults[name]) for name, value in given.items()}


def convert(name: str, value: Any, default: Any) -> Any:
    """`value` as the type of `default`; text is read the way that type is written in Python.

    A default of None takes any literal, and any other text as it stands.

    >>> convert("EPOCHS", "3", 1), convert("AMP", "no", True), convert("SEEDS", "0, 1", [0])
    (3, False, [0, 1])
    """
    kind, given = type(default), value
    if isinstance(value, str) and kind is not str:
        text = value.strip()
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            value = float(text) if kind is float else ast.literal_eval(text)
        if kind is bool:
            value = ConfigParser.BOOLEAN_STATES.get(text.lower())
    if kind is float and type(value) is int:
        value = float(value)
    if {kind, type(value)} == {list, tuple}:
        value = kind(value)
    if default is not None and type(value) is not kind:
        raise ValueError(f"{name} wants {kind.__name__}, got {given!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} wants a finite float, got {value!r}")
    return value


def with_parameters(path: Path, given: Mapping[str, Any]) -> str:
    """The notebook's JSON, with `given` in a cell of its own (papermill's would turn a tuple into text)."""
    notebook, index = _read(path)
    if given:
        lines = [f"{name} = {value!r}" for name, value in given.items()]
        source = "\n".join(["# Parameters of this run", *lines])
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(index + 1, cell)
    return str(nbformat.writes(notebook))


def _read(path: Path) -> tuple[Any, int]:
    """The notebook and the index of its parameters cell."""
    if not path.is_file():
        beside = [other.name for other in path.parent.glob("*.ipynb")]
        raise FileNotFoundError(f"no notebook at {path}{hint(path.name, beside)}")
    try:
        notebook = nbformat.read(path, as_version=4)
        cells = notebook.cells
    except (ValueError, nbformat.ValidationError, AttributeError, TypeError):
        raise ValueError(f"{path} is not a Jupyter notebook") from None
    for index, cell in enumerate(cells):
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            return notebook, index
    raise ValueError(f"{path.name} has no cell tagged 'parameters'; tag the one that holds its NAME = literal lines")
