"""Distillation methods: a small class each, and their names.

A new method is a frozen dataclass with the members of `Method`; it needs no registration.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from redistill_lib.checks import hint
from redistill_lib.methods.base import Batch, Method, Shape, Weighted, check_loss, make_criterion
from redistill_lib.methods.contrast import CRD
from redistill_lib.methods.features import AB, AT, FT, NST, SRD, VID, FitNet
from redistill_lib.methods.logits import DIST, DKD, KD, LSKD, MLLD, MSE
from redistill_lib.methods.red import RED, REDBlocks, REDLoss, Stage
from redistill_lib.methods.relations import CC, PKT, RKD, SP
from redistill_lib.methods.review import ReviewKD
from redistill_lib.methods.transformers import DeiT, Locality

__all__ = [
    "AB",
    "AT",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "FT",
    "KD",
    "LSKD",
    "METHODS",
    "MLLD",
    "MSE",
    "NST",
    "PKT",
    "RED",
    "RKD",
    "SP",
    "SRD",
    "VID",
    "Batch",
    "DeiT",
    "FitNet",
    "Locality",
    "Method",
    "REDBlocks",
    "REDLoss",
    "ReviewKD",
    "Shape",
    "Stage",
    "Weighted",
    "check_loss",
    "make_criterion",
    "make_method",
    "parse_methods",
]

_MEMBERS = ("name", "reads", "alpha", "block", "criterion")

_CLASSES: tuple[type[Weighted], ...] = (RED, REDBlocks, Stage, KD, DKD, MSE, FitNet, CRD, REDLoss, LSKD, DIST, MLLD)
_CLASSES += (AT, NST, SP, VID, PKT, FT, AB, ReviewKD, SRD, RKD, CC, DeiT, Locality)
METHODS: dict[str, type] = {method.name: method for method in _CLASSES}


def make_method(name: str, **options: Any) -> Method:
    """The method of that name.

    >>> make_method("kd", temperature=4.0)
    KD(temperature=4.0, alpha=1.0)
    """
    if name not in METHODS:
        raise ValueError(f"unknown distillation method {name!r}{hint(name, METHODS)} (known: {', '.join(METHODS)})")
    known = {field.name for field in fields(METHODS[name])}
    if unknown := options.keys() - known:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}")
    method: Method = METHODS[name](**options)
    return method


def parse_methods(methods: str | Method | Sequence[str | Method]) -> tuple[Method, ...]:
    """Methods by name, ``"red+kd"`` or ``"red(alpha=1.0)+kd"``, as a list of names, or already made.

    >>> parse_methods("red(alpha=1.0)+kd")
    (RED(kernel_size=3, distance='cosine', alpha=1.0), KD(temperature=2.0, alpha=1.0))
    """
    made: list[Method] = []
    for given in [methods] if isinstance(methods, str) or not isinstance(methods, Sequence) else methods:
        made += map(_parse, re.split(r"\+(?![^(]*\))", given)) if isinstance(given, str) else [given]
    for method in made:
        lacks = [name for name in _MEMBERS if not hasattr(method, name)]
        if isinstance(method, type) or not is_dataclass(method) or lacks:
            raise TypeError(
                f"a method is a name, such as 'red+kd', or a dataclass with {', '.join(_MEMBERS)}, not {method!r}"
                + (f"; it lacks {', '.join(lacks)}" if is_dataclass(method) and lacks else "")
            )
        if not isinstance(method.name, str) or not method.name:
            raise TypeError(f"{type(method).__name__}.name is a text to call it by, not {method.name!r}")
        if method.reads not in ("maps", "outputs"):
            raise ValueError(f"{method.name} reads 'maps' or 'outputs', not {method.reads!r}")
    names = [method.name for method in made]
    if len(set(names)) < len(names):
        raise ValueError(f"{'+'.join(names)!r} names a method twice")
    blocks = [method.name for method in made if isinstance(method, RED)]
    if len(blocks) > 1 and "red-blocks" in blocks:
        raise ValueError(f"{'+'.join(blocks)} would build the same blocks twice; leave out red-blocks")
    return tuple(made)


def _parse(text: str) -> Method:
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    try:
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body if match else None
        if not (match and isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            raise ValueError
        if any(k.arg is None for k in call.keywords):
            raise ValueError
        options = [(str(k.arg), ast.literal_eval(k.value)) for k in call.keywords]
    except (SyntaxError, TypeError, ValueError, RecursionError):
        why = f"{text.strip()!r} is not a method; write its name, or name and options, "
        raise ValueError(why + "red(alpha=1.0, distance='mse'), and join several by +") from None
    if len(dict(options)) < len(options):
        raise ValueError(f"{text.strip()!r} gives an option twice")
    return make_method(match[1], **dict(options))
