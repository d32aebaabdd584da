"""The summands of a distillation loss: which method acts at which tap, and how they add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from redistill_lib.checks import check_fields, check_type
from redistill_lib.distill.taps import Tap
from redistill_lib.methods import RED, Method, REDBlocks
from redistill_lib.network import MapRef, output_of


def cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of a classifier's outputs (see `output_of`) and class numbers or probabilities."""
    return F.cross_entropy(output_of(outputs), check_type("targets", targets, Tensor))


@dataclass(frozen=True)
class Objective:
    """How the losses add up: ``(1 − w) · task + w · D`` with ``w = distill_weight``; None is the sum ``task + D``.

    D is, by `reduction`, the ``mean`` of ``alpha · loss`` over all terms, input and output taps counted apart and KD
    as one more (arXiv 2406.03744, section 3), or the ``sum`` over the methods of each one's mean over its own taps.
    """

    distill_weight: float | None = 0.5
    reduction: Literal["mean", "sum"] = "mean"
    task_loss: Callable[[Any, Any], Tensor] = field(default=cross_entropy, repr=False)  # (outputs, targets) → scalar

    def __post_init__(self) -> None:
        check_fields(self)
        w = self.distill_weight
        if w is not None and not 0 <= w <= 1:
            raise ValueError(f"distill_weight is a share from 0 to 1, or None for a plain sum, not {w!r}")


@dataclass(frozen=True)
class Term:
    """One summand of the distillation loss: a method at a tap, or a joint method at `tap` and `more`."""

    tap: Tap
    method: Method
    more: tuple[Tap, ...] = ()

    @property
    def taps(self) -> tuple[Tap, ...]:
        return (self.tap, *self.more)

    @property
    def joint(self) -> bool:
        return getattr(self.method, "joint", False)

    @property
    def name(self) -> str:
        place = f"/{self.tap.name}" if self.tap.layer and not self.more else ""
        return f"{self.method.name}{place}" + (f"@{self.tap.teacher}" if self.tap.teacher else "")

    @property
    def source(self) -> tuple[int, MapRef]:
        """The teacher's number and its map, of the first tap."""
        return self.tap.teacher, self.tap.source

    def given(self, pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
        """What the method gets of a pair, student's and teacher's, for each tap: the pair, or if joint two tuples."""
        student, teacher = zip(*pairs, strict=True)
        return (student, teacher) if self.joint else pairs[0]


def plan_terms(taps: Sequence[Tap], methods: Sequence[Method], teachers: int = 1) -> list[Term]:
    """Which method acts at which tap. Raises ValueError where a tap or a method would have no effect.

    A tap keeps its own method, except that ``red-blocks`` among `methods` removes the loss of RED taps. A method on
    the networks' outputs is added for every teacher, unless a tap carries it already. One that taps carry may be
    named beside them, but not with other options.
    """
    control = any(isinstance(method, REDBlocks) for method in methods)
    at_taps = [method for method in methods if method.reads == "maps"]
    terms = []
    for tap in taps:
        if control and isinstance(tap.method, RED) and tap.method.name == RED.name:
            terms.append(Term(tap, REDBlocks(**tap.method.form)))
        elif tap.method is not None:
            terms.append(Term(tap, tap.method))
        elif at_taps:
            terms += [Term(tap, method) for method in at_taps]
        else:
            raise ValueError(f"no method uses tap {tap.name}; add one that does, such as red, or leave the taps out")
    for method in methods:
        if own := [term.method for term in terms if term.method.name == method.name]:
            usual = not any(field.default != getattr(method, field.name) for field in fields(method))
            if method not in own and not usual:
                raise ValueError(f"{method!r} would add nothing: taps carry {own[0]!r}; give its options to the taps")
            continue
        if method.reads == "maps":
            why = "every tap carries another method" if taps else "there are no taps; match_taps finds them"
            raise ValueError(f"{method.name} would add nothing: {why}")
        if not teachers:
            raise ValueError(f"{method.name} compares with a teacher, and there is none; give teacher=")
        head = getattr(method, "layer", "")  # of the student
        terms += [Term(Tap(head, "output", "", "output", teacher=k), method) for k in range(teachers)]
    names = [term.name for term in terms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"the same method is given twice at one place: {', '.join(sorted(twice))}")
    return _joined(terms)


def _joined(terms: Sequence[Term]) -> list[Term]:
    """One term of all those of a joint method and a teacher."""
    found: dict[Any, Term] = {}
    for term in terms:
        key = (term.method.name, term.tap.teacher) if term.joint else term.name
        if (first := found.get(key)) and first.method != term.method:
            raise ValueError(f"{term.method.name} is one loss for all its taps, so give them equal options")
        found[key] = replace(first, more=(*first.more, term.tap)) if first else term
    return list(found.values())
