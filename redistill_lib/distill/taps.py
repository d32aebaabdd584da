"""Taps: which student feature map is paired with which teacher feature map, and their official YAML schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from redistill_lib.checks import check_type, whole
from redistill_lib.methods import Method, Shape, make_method, parse_methods
from redistill_lib.network import MapRef
from redistill_lib.red import GridBlock, Side, as_map, check_grid


@dataclass(frozen=True)
class Tap:
    """A student layer's input or output, paired with a teacher's.

    `layer` and `teacher_layer` are module paths (empty: the whole network), `teacher` is the teacher's number. A tap
    without a `method` takes part in all methods that compare maps; `channels` are those of the student's map, and
    `volume` says that it is B×C×D×H×W. A map that is held as B×H×W×C, or as tokens B×(n + H·W)×C behind n others,
    needs its height and width: `grid` where it is the student's, `teacher_grid` where it is the teacher's.

    >>> Tap("conv1", "output", "layer2.0", "output", channels=64)
    Tap(conv1 output ← layer2.0 output, channels=64)
    >>> Tap("blocks.2", "output", "layer3", "output", grid=(14, 14))
    Tap(blocks.2 output ← layer3 output, grid=(14, 14))
    """

    layer: str
    side: Side
    teacher_layer: str
    teacher_side: Side
    teacher: int = 0
    method: Method | None = None
    channels: int | None = None
    grid: tuple[int, ...] | None = None
    teacher_grid: tuple[int, ...] | None = None
    volume: bool = False

    def __post_init__(self) -> None:
        check_type("layer", self.layer, str)
        check_type("teacher_layer", self.teacher_layer, str)
        for side in (self.side, self.teacher_side):
            check_type("a tap's side", side, Side)
        whole("teacher", self.teacher, 0)
        if self.channels is not None:
            whole("channels", self.channels)
        check_type("volume", self.volume, bool)
        for name in ("grid", "teacher_grid"):
            object.__setattr__(self, name, check_grid(name, getattr(self, name)))
        if isinstance(self.method, str):
            methods = parse_methods(self.method)
            if len(methods) != 1:
                raise ValueError(f"a tap carries one method, not {self.method!r}; make a tap for each")
            object.__setattr__(self, "method", methods[0])

    @property
    def place(self) -> MapRef:
        """The student's map."""
        return MapRef(self.layer, self.side)

    @property
    def source(self) -> MapRef:
        """The teacher's map."""
        return MapRef(self.teacher_layer, self.teacher_side)

    @property
    def held(self) -> dict[str, list[int]]:
        """The grids of maps that are not B×C×H×W, by name: part of what a run is."""
        grids = {"grid": self.grid, "teacher_grid": self.teacher_grid}
        return {name: list(grid) for name, grid in grids.items() if grid}

    @property
    def name(self) -> str:
        return str(self.place)

    def maps(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's map as B×C×H×W. Raises ValueError where a grid does not fit."""
        return as_map(student, self.grid), as_map(teacher, self.teacher_grid)

    def block(self, method: Method, shape: Shape = ()) -> nn.Module | None:
        """What a method leaves in the student here, on a map of `shape`, C×H×W, or else of the tap's own channels.

        Raises IndexError where a method needs channels and none are known.
        """
        if not shape and self.channels is not None:
            shape = (self.channels, *(self.grid or (1, 1, 1) * self.volume))
        block: object = method.block(shape)
        return GridBlock(block, self.grid) if self.grid and isinstance(block, nn.Module) else block  # type: ignore

    def __repr__(self) -> str:
        teacher = f"teacher {self.teacher}: " if self.teacher else ""
        source = f"{teacher}{self.teacher_layer or '(network)'} {self.teacher_side}"
        pair = f"{self.layer or '(network)'} {self.side} ← {source}"
        usual = {"method": None, "channels": None, "grid": None, "teacher_grid": None, "volume": False}
        given = [f"{name}={value!r}" for name in usual if (value := getattr(self, name)) != usual[name]]
        return f"Tap({', '.join([pair, *given])})"


#: The schema's names of options, where ours are others; any other option is a field of the method.
_OPTIONS = {"res_ks": "kernel_size", "T": "temperature"}


def read_taps(source: str | Path | Mapping[str, Any]) -> list[Tap]:
    """Taps from a configuration in the authors' YAML schema, in file order, input before output.

    Each entry is ``<student layer>: {t_layers: [for its input, for its output], modules: [RED | KD | … | null, …],
    kwargs: [{cs, alpha, …}, …]}`` with teacher layers written ``tid_<teacher>=<layer>``. A module is the name of a
    method in upper or lower case; ``cs`` are the student's channels, ``grid``, ``teacher_grid`` and ``volume`` as in
    `Tap`, the other options are the method's. A ``net.`` prefix is dropped on both sides.

    >>> read_taps({"net.conv1": {"t_layers": [None, "tid_0=layer2.0"], "modules": [None, "RED"],
    ...                          "kwargs": [None, {"cs": 64, "alpha": 5.0, "distance": "mse", "res_ks": 3}]}})
    [Tap(conv1 output ← layer2.0 output, method=RED(kernel_size=3, distance='mse', alpha=5.0), channels=64)]
    """
    if isinstance(source, Mapping):
        where, entries = "taps", source
    else:
        import yaml

        where = str(source)
        try:
            entries = yaml.safe_load(Path(check_type("source", source, str, Path, Mapping)).read_bytes())
        except OSError as error:
            raise type(error)(f"taps cannot be read from {source}: {error.strerror}") from None
        except (yaml.YAMLError, ValueError) as error:  # the second for a date that there is not
            raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(f"{where}: expected a mapping of student layers to t_layers, modules and kwargs")
    taps = [tap for layer, entry in entries.items() for tap in _entry_taps(where, str(layer), entry)]
    if not taps:
        raise ValueError(f"{where}: every entry is null, so there is no tap")
    return taps


def _entry_taps(where: str, layer: str, entry: Any) -> Iterator[Tap]:
    where = f"{where}, {layer}"
    if not isinstance(entry, Mapping) or not {"t_layers", "modules"} <= set(entry):
        raise ValueError(f"{where}: expected t_layers and modules, each a list of two, for the input and the output")
    lists = {key: entry.get(key) or [None, None] for key in ("t_layers", "modules", "kwargs")}
    for key, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise ValueError(f"{where}: {key} must be a list of two (for the input, for the output), not {value!r}")
    for side, target, module, kwargs in zip(get_args(Side), *lists.values(), strict=True):
        if (target is None) != (module is None):
            raise ValueError(f"{where}: on the {side}, t_layers says {target!r} but modules says {module!r}")
        if target is None:
            continue
        match = re.fullmatch(r"tid_(\d+)=(.+)", str(target))
        if match is None:
            raise ValueError(f"{where}: teacher layer {target!r} is not of the form tid_<teacher number>=<layer>")
        if not isinstance(kwargs or {}, Mapping):
            raise ValueError(f"{where}: on the {side}, kwargs is a mapping of options or null, not {kwargs!r}")
        options = {_OPTIONS.get(key, key): value for key, value in (kwargs or {}).items() if value is not None}
        channels = options.pop("cs", None)
        held = {name: options.pop(name) for name in ("grid", "teacher_grid", "volume") if name in options}
        try:
            method = make_method(str(module).lower().replace("_", "-"), **options)
            names = [name.removeprefix("net.") for name in (layer, match[2])]
            tap = Tap(names[0], side, names[1], side, int(match[1]), method, channels, **held)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        yield tap
