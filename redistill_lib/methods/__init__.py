"""Distillation methods: one small class each, one table of them all."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from redistill_lib.methods.features import MSE, RED, REDBlocks, Stage
from redistill_lib.methods.logits import KD

__all__ = ["KD", "METHODS", "MSE", "RED", "Method", "REDBlocks", "Stage", "make_method", "parse_methods"]


class Method(Protocol):
    """One distillation loss, a frozen dataclass; `block` makes what it puts into the student at a tap."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    name: ClassVar[str]
    on_outputs: ClassVar[bool]  # compares the networks' outputs when no tap carries it; otherwise it wants taps
    has_block: ClassVar[bool]

    @property
    def alpha(self) -> float: ...
    def block(self, channels: int) -> nn.Module | None: ...
    def loss(self, student: Tensor, teacher: Tensor) -> Tensor: ...


METHODS: dict[str, type] = {m.name: m for m in (RED, REDBlocks, KD, Stage, MSE)}


def make_method(name: str, **options: Any) -> Method:
    """The method of that name; options that are None keep the method's default.

    >>> make_method("kd", temperature=4.0)
    KD(temperature=4.0, alpha=1.0)
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown distillation method {name!r}{hint} (known: {', '.join(METHODS)})")
    known = {field.name for field in fields(METHODS[name])}
    if unknown := {key for key, value in options.items() if value is not None} - known:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    method: Method = METHODS[name](**{key: value for key, value in options.items() if value is not None})
    return method


def parse_methods(
    methods: str | Sequence[str | Method], options: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Method, ...]:
    """``"red+kd"`` or ``["red", "kd"]`` → its methods, with ``options`` by name; methods already made pass through.

    >>> parse_methods("red+kd", {"red": {"alpha": 1.0}})
    (RED(kernel_size=3, distance='cosine', alpha=1.0), KD(temperature=2.0, alpha=1.0))
    """
    if isinstance(methods, str):
        methods = methods.split("+")
    names = [m.strip() for m in methods if isinstance(m, str)]
    made = tuple(m for m in methods if not isinstance(m, str | type) and hasattr(m, "on_outputs"))
    if len(methods) not in (len(names), len(made)):
        raise TypeError(f"methods are all names, such as 'red+kd', or all method objects, not {methods!r}")
    if not names:
        if options:
            raise ValueError("options go with method names; set them on the method objects or the taps instead")
        return made
    text = "+".join(names)
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} names a method twice")
    if unknown := set(options or {}) - set(names):
        raise ValueError(f"options given for {', '.join(sorted(unknown))}, which {text!r} does not use")
    return tuple(make_method(name, **(options or {}).get(name, {})) for name in names)
