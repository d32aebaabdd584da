"""Taps: which student feature map is paired with which teacher feature map, and their official YAML schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill_lib.network import Place
from redistill_lib.red import Side


@dataclass(frozen=True)
class Tap:
    """A student layer's input or output, paired with a teacher's.

    `layer` and `teacher_layer` are module paths (an empty path is the whole network). What is left at None is
    decided by `Distillation`: `channels` (of the student's map) from its example, `method` and the method's
    options (`alpha`, `distance`, `kernel_size`, `temperature`) from its methods.

    >>> Tap("conv1", "output", "layer2.0", "output", channels=64)
    Tap(conv1 output ← layer2.0 output, channels=64)
    """

    layer: str
    side: Side
    teacher_layer: str
    teacher_side: Side
    teacher: int = 0
    method: str | None = None
    channels: int | None = None
    alpha: float | None = None
    distance: str | None = None
    kernel_size: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for side in (self.side, self.teacher_side):
            if side not in ("input", "output"):
                raise ValueError(f"a tap sits on the 'input' or the 'output' of a layer, not on {side!r}")

    @property
    def place(self) -> Place:
        return (self.layer, self.side)

    @property
    def name(self) -> str:
        return f"{self.layer or 'network'}.{self.side}"

    def __repr__(self) -> str:
        teacher = f"teacher {self.teacher}: " if self.teacher else ""
        source = f"{teacher}{self.teacher_layer or '(network)'} {self.teacher_side}"
        pair = f"{self.layer or '(network)'} {self.side} ← {source}"
        names = ("method", "channels", "alpha", "distance", "kernel_size", "temperature")
        given = [f"{n}={getattr(self, n)!r}" for n in names if getattr(self, n) is not None]
        return f"Tap({', '.join([pair, *given])})"


_KWARGS = {
    "cs": "channels",
    "alpha": "alpha",
    "distance": "distance",
    "res_ks": "kernel_size",
    "T": "temperature",
}


def read_taps(source: str | Path | Mapping[str, Any]) -> list[Tap]:
    """Taps from a configuration in the authors' YAML schema, in file order, input before output.

    Each entry is ``<student layer>: {t_layers: [for its input, for its output], modules: [RED | STAGE | KD | MSE |
    null, …], kwargs: [{cs, alpha, distance, res_ks}, …]}`` with teacher layers written ``tid_<teacher>=<layer>``.
    A ``net.`` prefix is accepted on both sides and dropped.

    >>> read_taps({"net.conv1": {"t_layers": [None, "tid_0=layer2.0"], "modules": [None, "RED"],
    ...                          "kwargs": [None, {"cs": 64, "alpha": 50.0, "distance": "cosine", "res_ks": 3}]}})
    [Tap(conv1 output ← layer2.0 output, method='red', channels=64, alpha=50.0, distance='cosine', kernel_size=3)]
    """
    if isinstance(source, Mapping):
        where, entries = "taps", source
    else:
        import yaml

        where = str(source)
        try:
            entries = yaml.safe_load(Path(source).read_text())
        except yaml.YAMLError as error:
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
        raise ValueError(
            f"{where}: expected t_layers and modules, each a list of two (for the input, for the output)"
        )
    lists = {key: entry.get(key) or [None, None] for key in ("t_layers", "modules", "kwargs")}
    for key, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise ValueError(f"{where}: {key} must be a list of two (for the input, for the output), not {value!r}")
    sides: tuple[Side, Side] = ("input", "output")
    for side, target, module, kwargs in zip(sides, lists["t_layers"], lists["modules"], lists["kwargs"], strict=True):
        if (target is None) != (module is None):
            raise ValueError(f"{where}: on the {side}, t_layers says {target!r} but modules says {module!r}")
        if target is None:
            continue
        match = re.fullmatch(r"tid_(\d+)=(.+)", str(target))
        if match is None:
            raise ValueError(f"{where}: teacher layer {target!r} is not of the form tid_<teacher number>=<layer>")
        if module not in ("RED", "STAGE", "KD", "MSE"):
            raise ValueError(f"{where}: unknown module {module!r}; choose RED, STAGE, KD, MSE or null")
        if unknown := set(kwargs or {}) - set(_KWARGS):
            raise ValueError(f"{where}: unknown kwargs {sorted(unknown)}; the schema has {', '.join(_KWARGS)}")
        options = {_KWARGS[key]: value for key, value in (kwargs or {}).items()}
        yield Tap(
            layer.removeprefix("net."),
            side,
            match[2].removeprefix("net."),
            side,
            int(match[1]),
            module.lower(),
            **options,
        )
