"""Code as part of what a run is: what it does, whatever its comments, docstrings and formatting. No torch."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.metadata
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

#: The rooms whose code decides what a training computes: images and their order, networks, losses, updates.
DECIDING = ("data", "diffusion", "distill", "methods", "models", "network", "plans", "red", "student", "train")
#: Modules in these rooms that only look at a network, draw images from it, or read and write files.
OBSERVING = (
    "diffusion/images.py",
    "diffusion/pretrained.py",
    "diffusion/sampling.py",
    "models/saved.py",
    "network/fakes.py",
)


@functools.cache
def code_identity() -> str:
    """Eight hex digits over the code that decides a training's weights: that of `DECIDING`, and torch's release.

    Figures, explorers, the command line, the run store, profiles of memory and checks of arguments do not count:
    they change no weight. Of torch the first two numbers count (2.6): a release may change an initialisation or the
    stream of random numbers, a patch or a build for another device does neither. The full version is in each run's
    environment.
    """
    root = Path(__file__).parent
    files = sorted(
        f.relative_to(root).as_posix()
        for room in DECIDING
        for f in (*root.glob(f"{room}.py"), *root.glob(f"{room}/**/*.py"))
    )
    told = [f"{name} {ast.unparse(parse((root / name).read_bytes()))}" for name in files if name not in OBSERVING]
    release = ".".join(importlib.metadata.version("torch").split(".")[:2])
    return hashlib.sha256("\n".join([*told, f"torch {release}"]).encode()).hexdigest()[:8]


def parse(text: str | bytes) -> ast.Module:
    r"""The syntax tree of a file without its docstrings, for `ast.unparse`, which knows no comments and formatting.

    >>> twice = ast.unparse(parse("def f(x):  # doubles\n    'Twice x.'\n    return (2*x)"))
    >>> twice == ast.unparse(parse("def f(x): return 2 * x")), twice == ast.unparse(parse("def f(x): return 3 * x"))
    (True, False)
    """
    tree = ast.parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def function_code(function: FunctionType) -> str:
    """What a function does: its syntax tree, or its bytecode where its source is not to be had.

    The source must be that of the code that runs: a file edited since its import, or a line with several lambdas,
    gives the bytecode. Cells of notebooks have a source; what `exec` or a prompt defined has none.
    """
    code = function.__code__
    tree, compiled = _parsed(code.co_filename, "".join(linecache.getlines(code.co_filename)))
    if tree is not None and code in compiled:
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        found = [
            node
            for node in ast.walk(tree)
            if isinstance(node, functions)
            and getattr(node, "name", "<lambda>") == code.co_name
            and min(n.lineno for n in (node, *getattr(node, "decorator_list", ()))) == code.co_firstlineno
        ]
        if len(found) == 1:
            return ast.unparse(found[0])
    return _bytecode(code, function.__doc__)


@functools.lru_cache(maxsize=32)
def _parsed(file: str, text: str) -> tuple[ast.Module | None, frozenset[CodeType]]:
    try:
        whole = compile(text, file, "exec", dont_inherit=True)
        return parse(text), frozenset(_nested(whole))
    except (SyntaxError, ValueError):
        return None, frozenset()


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _bytecode(code: CodeType, docstring: str | None = None) -> str:
    told = [code.co_name, code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars]
    for number, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            told.append(_bytecode(constant))
        elif isinstance(constant, frozenset):
            told += sorted(map(repr, constant))
        elif number or constant != docstring:
            told.append(repr(constant))
    return repr(told)


def references(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Name and value of all that a function's code takes from outside: globals, and of a module what is used of it.

    A module that the function itself imports is told as a whole.
    """
    outside = function.__globals__
    for code in _nested(function.__code__):
        steps = list(dis.get_instructions(code))
        for number, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                near = f"{outside.get('__package__')}.{step.argval}"
                yield step.argval, sys.modules.get(step.argval, sys.modules.get(near))
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in outside:
                value = outside[step.argval]
                for after in steps[number + 1 :]:
                    if not isinstance(value, ModuleType) or after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                        break
                    value = getattr(value, after.argval, None)
                yield step.argval, value


@functools.cache
def distribution(module: str) -> str | None:
    """Where a module comes from: None for the user's own code, else the installed distribution and its version.

    An empty string for Python, torch and this library, which `code_identity` and each run's environment tell.

    >>> distribution("torch.nn"), distribution("__main__")
    ('', None)
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "redistill_lib"):
        return ""
    file = getattr(sys.modules.get(module) or sys.modules.get(top), "__file__", None)
    if file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    try:
        return f"{top} {importlib.metadata.version(top)}"
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(top, [])
        return " ".join((top, *(importlib.metadata.version(name) for name in names)))
