"""One execution of notebooks, with what, and what decides its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redistill_lib.checks import as_path, hint
from redistill_lib.parameters import convert, notebook_parameters
from redistill_lib.source import library_identity
from redistill_lib.sweep.keys import IDLE, digest_of, named_modules, notebook_code, own_code, told
from redistill_lib.sweep.names import point_names
from redistill_lib.sweep.places import Written, home_of, located


@dataclass(frozen=True)
class Point:
    """What is executed once, and what it is known by.

    `notebooks` are absolute and executed in this order, each with those of `parameters` that it has. `parameters` are
    those given, as the types of the notebooks' defaults, `located` the absolute form of those that name a path or
    a module, with which the notebooks are executed, and `written` where they stand. `key` is 16 hex digits over all
    parameters but `IDLE` ones (the defaults too), the notebooks' other code cells, the library's code, and modules of
    one's own that a notebook imports or a parameter names (``my_net:make``): while it stays, so does the result.
    """

    name: str  # of files; one of its kind in its sweep, the same whatever other points there are
    notebooks: tuple[Path, ...]
    parameters: Mapping[str, Any] = field(hash=False)
    key: str
    located: Mapping[str, str] = field(default_factory=dict, hash=False)
    written: Mapping[str, Written] = field(default_factory=dict, hash=False, compare=False)


def notebook_point(notebook: str | Path, parameters: Mapping[str, Any]) -> Point:
    """One notebook with what is given, all of which is in the name, so that no run hides another.

    Paths and ``module:function`` count from the working folder.

    >>> point = notebook_point("notebooks/02_peak_memory.ipynb", {"FACTOR": "8", "BUDGET": "512KB"})
    >>> point.name, point.parameters, len(point.key)
    ('02_peak_memory-FACTOR=8-BUDGET=512KB', {'FACTOR': 8, 'BUDGET': '512KB'}, 16)
    """
    sources = Sources.read([as_path("path", notebook).resolve()])
    given = {name: sources.convert(name, value) for name, value in parameters.items()}
    written = dict.fromkeys(given, Written(sources.paths[0].name, (Path.cwd(),)))
    return sources.point(point_names(sources.paths, [given])[0], given, written)


@dataclass(frozen=True)
class Sources:
    """The notebooks, the defaults of each, and digests of all other code that decides what they show."""

    paths: tuple[Path, ...]
    defaults: tuple[dict[str, Any], ...]
    code: str
    modules: dict[Any, str] = field(default_factory=dict)  # filled as points name them

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Sources:
        defaults = tuple(notebook_parameters(path) for path in paths)
        cells = [notebook_code(path) for path in paths]
        return cls(tuple(paths), defaults, digest_of([cells, library_identity()]))

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for defaults in self.defaults for name in defaults))

    def convert(self, name: str, value: Any) -> Any:
        """`value` as the type of that parameter; ValueError where no notebook has it, or two take it differently."""
        if name not in self.names:
            files = " and ".join(path.name for path in self.paths)
            verb, they = ("have", "they have") if len(self.paths) > 1 else ("has", "it has")
            close = hint(name, self.names) or ";"
            raise ValueError(f"{files} {verb} no parameter {name}{close} {they} {', '.join(self.names)}")
        taken = {}
        for path, defaults in zip(self.paths, self.defaults, strict=True):
            if name in defaults:
                try:
                    taken[path.name] = convert(f"{path.name}: {name}", value, defaults[name])
                except ValueError as error:
                    cure = ": put it in quotes" if isinstance(defaults[name], str) else ""
                    raise ValueError(f"{error}{cure}") from None
        if len({told(value) for value in taken.values()}) > 1:
            said = " and ".join(f"{value!r} to {file}" for file, value in taken.items())
            raise ValueError(f"{name} is {said}: give it in sweeps of one notebook each")
        return next(iter(taken.values()))

    def values(self, given: Mapping[str, Any]) -> list[dict[str, str]]:
        """All parameters of each notebook, as text that is equal for equal values."""
        return [
            {name: told(given.get(name, default)) for name, default in defaults.items()} for defaults in self.defaults
        ]

    def point(self, name: str, given: dict[str, Any], written: Mapping[str, Written]) -> Point:
        places, decides, here = dict[str, str](), dict(given), (Path.cwd(),)
        for each, value in given.items():
            folders = written[each].folders if each in written else here
            *beside, typed = (located(each, value, folder) for folder in folders)
            if place := next(filter(None, (*beside, typed)), None):
                places[each] = place
                decides[each] = value if any(beside) else place  # as the same file means the same
        values = [{n: text for n, text in own.items() if n not in IDLE} for own in self.values(decides)]
        key = digest_of([self.code, values, self._modules(given | places)])
        return Point(name, self.paths, given, key[:16], places, written)

    def _modules(self, given: Mapping[str, Any]) -> list[str]:
        """Digests of one's own modules that parameters name."""
        found = {}
        for name, own in (item for defaults in self.defaults for item in defaults.items()):
            value = given.get(name, own)
            home = home_of(value)
            for module in named_modules([value]):
                folders = (home,) if home else tuple(path.parent for path in self.paths)
                if (module, folders) not in self.modules:
                    code = [own_code(module, folder) for folder in folders]
                    self.modules[module, folders] = digest_of(code)
                found[module, folders] = self.modules[module, folders]
        return sorted(found.values())
