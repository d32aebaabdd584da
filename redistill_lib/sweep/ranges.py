"""Ranges of a sweep file: ``{from: 0.1, to: 0.5, step: 0.1}``, in exact decimals."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

from redistill_lib.checks import hint, is_number
from redistill_lib.sweep.strict import Node

#: More values, or points of a sweep, are a slip of the pen.
MOST = 100_000


def read_range(node: Node) -> list[int | float]:
    """The numbers from `from` to `to`, by a `step` or so many (`number`; with `scale: log` evenly in the logarithm).

    A step may end before `to`. Between whole numbers, whole ones stay so: from 1 to 100 by ratio are 1, 10, 100.
    ValueError with the line for another mapping.

    >>> def number(value): return Node(value, "a.yaml, line 1")
    >>> read_range(number({"from": number(0.1), "to": number(0.3), "step": number(0.1)}))
    [0.1, 0.2, 0.3]
    """
    _check(node)
    given = {name: entry.value for name, entry in node.value.items()}
    first, last = Fraction(str(given["from"])), Fraction(str(given["to"]))
    if "step" in given:
        step = Fraction(str(given["step"]))
        if step == 0 or (last - first) / step < 0:
            raise node.wrong(f"a step of {given['step']} never gets from {given['from']} to {given['to']}")
        count = (last - first) // step + 1
        _check_count(node, count)
        exact = [first + step * k for k in range(count)]
    else:
        count = given["number"]
        _check_count(node, count)
        steps = count - 1
        if given.get("scale") == "log":
            exact = [first, *(_between(first, last, k, steps) for k in range(1, steps)), last]
        else:
            exact = [first + (last - first) * k / steps for k in range(count)]
    whole = all(isinstance(given[name], int) for name in ("from", "to"))
    return [int(x) if whole and x.denominator == 1 else float(x) for x in exact]


def _between(first: Fraction, last: Fraction, k: int, steps: int) -> Fraction:
    """The `k`-th of `steps` equal ratios from `first` to `last`, to 40 digits: 1e-3 is 0.001."""
    with localcontext(prec=60):
        low, high = (Decimal(x.numerator) / Decimal(x.denominator) for x in (first, last))
        exact = (low.ln() + (high.ln() - low.ln()) * k / steps).exp()
    with localcontext(prec=40):
        return Fraction(+exact)


def _check(node: Node) -> None:
    entries: dict[str, Node] = node.value
    known = ("from", "to", "step", "number", "scale")
    for name, entry in entries.items():
        if name not in known:
            close = hint(name, known) or f"; a range has {', '.join(known)}"
            raise entry.wrong(f"a range has no {name}{close}")
        if name != "scale" and not is_number(entry.value):
            raise entry.wrong(f"{name} of a range wants a number, got {entry}")
    if not {"from", "to"} <= entries.keys() or len(entries.keys() & {"step", "number"}) != 1:
        raise node.wrong("a range has from, to, and either step or number; a list of values stands in [ ]")
    if "scale" in entries:
        if (scale := entries["scale"].value) not in ("log", "linear"):
            raise entries["scale"].wrong(f"scale is log or linear, not {entries['scale']}")
        if "step" in entries:
            raise entries["scale"].wrong("a range with a step has no scale: give number instead of step")
        if scale == "log" and min(entries["from"].value, entries["to"].value) <= 0:
            raise node.wrong("a range in the logarithm has from and to above 0")
    if "number" in entries and (not isinstance(entries["number"].value, int) or entries["number"].value < 2):
        raise entries["number"].wrong(f"number of a range is a whole number of 2 or more, not {entries['number']}")


def _check_count(node: Node, count: int) -> None:
    if count > MOST:
        raise node.wrong(f"a range of {count:,} values; {MOST:,} are the most")
