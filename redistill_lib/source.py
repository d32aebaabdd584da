"""Code as part of a run's identity, without comments, docstrings and formatting. No torch."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

#: The rooms whose code decides what a training computes: images and their order, networks, losses, updates.
DECIDING = ("data", "diffusion", "distill", "methods", "models", "network", "plans", "red", "student", "train")
#: Modules in these rooms that only look at a network, draw images from it, or read and write files. What they find,
#: such as taps, is part of what a run is.
OBSERVING = (
    "diffusion/images.py",
    "diffusion/pretrained.py",
    "diffusion/sampling.py",
    "distill/pairing.py",
    "models/saved.py",
    "network/answer.py",
    "network/fakes.py",
    "network/flow.py",
    "network/grids.py",
    "network/resolution.py",
    "network/steps.py",
)
#: What starts notebooks and lists results: it changes nothing that a notebook computes or shows.
QUEUING = ("cli/", "progress.py", "report/", "store/", "sweep/")


@functools.cache
def code_identity() -> str:
    """Eight hex digits over the code that decides a training's weights: that of `DECIDING`, and torch's release.

    Of torch the first two numbers count (2.6): a patch or another build changes no initialisation or random numbers.
    """
    code_stamp()  # of the files as they are now
    return _identity(_deciding())


@functools.cache
def code_stamp() -> str:
    """Another one whenever `code_identity` may be: by its files' names, times and sizes, without reading them."""
    told = [f"{name} {_stat(name).st_mtime_ns} {_stat(name).st_size}" for name in sorted(_deciding())]
    return hashlib.sha256("\n".join([*told, _torch_release()]).encode()).hexdigest()[:16]


def _stat(name: str) -> os.stat_result:
    return (Path(__file__).parent / name).stat()


def _deciding() -> set[str]:
    root = Path(__file__).parent
    files = [file for room in DECIDING for file in (*root.glob(f"{room}.py"), *root.glob(f"{room}/**/*.py"))]
    return {file.relative_to(root).as_posix() for file in files}.difference(OBSERVING)


@functools.cache
def library_identity() -> str:
    """Eight hex digits over what decides a notebook's figures and tables: code but for `QUEUING`, torch's release.

    >>> len(library_identity())
    8
    """
    root = Path(__file__).parent
    names = {file.relative_to(root).as_posix() for file in root.rglob("*.py")}
    return _identity({name for name in names if not name.startswith(QUEUING)})


def _identity(names: Iterable[str]) -> str:
    told = [f"{name} {syntax(Path(__file__).parent / name)}" for name in sorted(names)]
    return hashlib.sha256("\n".join([*told, _torch_release()]).encode()).hexdigest()[:8]


def _torch_release() -> str:
    return f"torch {'.'.join(importlib.metadata.version('torch').split('.')[:2])}"


def syntax(file: str | Path) -> str:
    """A file's code without comments and docstrings, in one form."""
    tree = ast.parse(Path(file).read_bytes())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def bytecode(code: CodeType, outside: Mapping[str, Any]) -> Iterator[Any]:
    """A function's steps, those of functions inside it, and the values of the globals (`outside`) that it uses.

    Of a module only what the code takes from it counts; one used otherwise, or imported by the code, counts whole,
    as `Imports`.
    """
    yield code.co_name, code.co_varnames, code.co_exceptiontable
    yield code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    yield code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    used: Any = None
    before: list[Any] = [None, None]  # of an import: how many packages it goes up, and the names it takes
    for step in dis.get_instructions(code):
        if isinstance(used, ModuleType) and step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            used = getattr(used, step.argval, None)
        else:
            yield used
            used = outside.get(step.argval) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else None
        if step.opname == "IMPORT_NAME":
            level, names = before
            yield Imports.of("." * level + step.argval, names or (), outside.get("__package__"))
        before = [before[1], step.argval]
        yield step.opname
        if isinstance(step.argval, CodeType):
            yield from bytecode(step.argval, outside)
        else:
            yield step.argval


class Imports(dict[str, str]):
    """Modules by name, with all that they import: the user's with their code, others with their distribution."""

    @classmethod
    def of(cls, module: str, names: Iterable[str] = (), package: str | None = None) -> Imports:
        """What ``from module import names`` reads; a name may be a module too."""
        found = cls()
        waiting = _modules(module, names, package)
        while waiting:
            name, package = waiting.pop()
            try:
                name = importlib.util.resolve_name(name, package)
                spec = importlib.util.find_spec(name)
            except (ImportError, ValueError, AttributeError):  # no module: a name in one
                continue
            if name in found or spec is None or (origin := distribution(name)) == "":
                continue
            found[name] = origin or ""
            if origin is None and spec.origin and spec.origin.endswith(".py"):
                found[name] = syntax(spec.origin)
                package = name if spec.submodule_search_locations else spec.parent
                for node in ast.walk(ast.parse(found[name])):
                    if isinstance(node, ast.Import):
                        waiting += [(alias.name, package) for alias in node.names]
                    elif isinstance(node, ast.ImportFrom):
                        names = [alias.name for alias in node.names]
                        waiting += _modules("." * node.level + (node.module or ""), names, package)
        return found


def _modules(module: str, names: Iterable[str], package: str | None) -> list[tuple[str, str | None]]:
    joint = "" if module.endswith(".") else "."
    return [(module, package), *((f"{module}{joint}{name}", package) for name in names)]


_distributions = functools.cache(importlib.metadata.packages_distributions)


@functools.cache
def distribution(module: str) -> str | None:
    """A module's installed distribution and version; None for the user's code, "" for Python, torch, this library.

    >>> distribution("torch.nn"), distribution("__main__")
    ('', None)
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "redistill_lib"):
        return ""
    if loaded := sys.modules.get(module) or sys.modules.get(top):
        file = getattr(loaded, "__file__", None)
    else:
        file = getattr(importlib.util.find_spec(top), "origin", None) if top else None
    if file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    names = sorted(set(_distributions().get(top, [])))
    return " ".join((top, *map(importlib.metadata.version, names)))
