"""What a search for plans within a budget found: which fit, which keeps most, and what makes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from redistill_lib.costs import Cost
from redistill_lib.memory import format_size, parse_size
from redistill_lib.memory.profile import place_name
from redistill_lib.sizes import millions, ratio

Blocks = Literal["none", "published", "in place", "narrow", "narrow in place"]
# In words, and what would take less.
FORMS: dict[Blocks, tuple[str, tuple[Blocks, ...]]] = {
    "none": ("without RED blocks", ()),
    "published": ("with RED blocks as published", ("in place", "none")),
    "in place": ("with RED blocks in place", ("none",)),
    "narrow": ("with RED blocks at narrow taps", ("narrow in place", "none")),
    "narrow in place": ("with RED blocks in place at narrow taps", ("none",)),
}


@dataclass(frozen=True)
class Fit:
    """One stride plan in one dtype, and what it needs.

    `published` and `in_place` count RED blocks at the taps of `match_taps` too, and are `plain` for the network's own
    plan, which nothing teaches. They are None where another plan is better even without, or no taps were found.
    """

    plan: str
    dtype: str
    plain: Cost
    published: Cost | None = None
    in_place: Cost | None = None

    def needs(self, blocks: Blocks) -> Cost | None:
        return self.plain if blocks == "none" else self.in_place if "in place" in blocks else self.published

    def peak(self, blocks: Blocks) -> float:
        """What has to fit, in bytes: the arena of a runtime that plans one. Infinite where it is not known."""
        return math.inf if (cost := self.needs(blocks)) is None else cost.needed_bytes


@dataclass(frozen=True)
class BudgetFit:
    """The answer to `fit_to_budget`. `fits` is empty where nothing fits; `closest` then comes nearest."""

    model: str
    budget_bytes: int
    own: tuple[Fit, ...]  # the network as it is, once per dtype
    candidates: tuple[Fit, ...] = field(repr=False)  # every plan looked at
    blocks: Blocks = "published"  # those that have to fit too
    refused: Mapping[str, str] = field(default_factory=dict, repr=False)  # plans that cannot be derived, and why
    untapped: Mapping[str, str] = field(default_factory=dict, repr=False)  # plans without a place for blocks, and why
    convention: str = "fused"
    inputs: tuple[tuple[int, ...], ...] = ()  # the shapes that it was counted on
    built_in: bool = False  # whether `model` is a name that `create_model` takes, with a plan

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Those within the budget, except where another of the same dtype computes as much in as little memory."""
        return self.fits_with(self.blocks)

    def fits_with(self, blocks: Blocks) -> tuple[Fit, ...]:
        """`fits` if these blocks had to fit."""
        least: dict[str, float] = dict.fromkeys((fit.dtype for fit in self.candidates), self.budget_bytes + 1)
        kept = []
        for fit in sorted(self.candidates, key=lambda fit: (-fit.plain.flops, fit.peak(blocks), fit.plan)):
            if fit.peak(blocks) < least[fit.dtype]:
                least[fit.dtype] = fit.peak(blocks)
                kept.append(fit)
        return tuple(kept)

    @property
    def closest(self) -> Fit:
        """The plan that needs the least memory of all."""
        return min(self.candidates, key=lambda fit: (fit.peak(self.blocks), fit.plain.needed_bytes))

    @property
    def best(self) -> Fit:
        """The plan that keeps most within the budget, or else the closest."""
        return next(iter(self.fits), self.closest)

    def within(self, budget: int | str, blocks: Blocks | None = None, dtype: str | None = None) -> BudgetFit:
        """The answer for another budget, no larger than the one that was searched with, without another search.

        Likewise for one dtype alone, and for blocks that ask for less at the same taps.
        """
        own, candidates = (
            tuple(fit for fit in fits if dtype in (None, fit.dtype)) for fits in (self.own, self.candidates)
        )
        forms = blocks or self.blocks
        return replace(self, budget_bytes=parse_size(budget), blocks=forms, own=own, candidates=candidates)

    def sizes(self) -> list[int]:
        """Budgets worth asking for: powers of two and the middles between, from where nothing fits to the teacher."""
        needs = [fit.plain.needed_bytes for fit in (*self.own, *self.candidates)]
        most = max(fit.plain.needed_bytes for fit in self.own)
        steps = [part * 2**k for k in range(2, 60) for part in (2, 3)]
        low, high = (max(k for k, size in enumerate(steps) if size <= end) for end in (min(needs), most - 1))
        return steps[low : high + 2]

    def call(self, fit: Fit) -> str:
        """The code that makes the network of a plan."""
        if self.built_in:
            return f'student = rd.create_model("{self.model}-{fit.plan}")'
        if fit.plan == self.own[0].plan:
            return "student = model  # as it is"
        return f'student, changes = rd.derive_student(model, plan="{fit.plan}", example=x)'

    def to_frame(self) -> pd.DataFrame:
        """`fits` as a table: KiB, multiply-adds in millions, and both as shares of the network as it is.

        Peaks are live bytes; under a runtime that plans an arena, the columns with that word are what has to fit.
        """
        own = {fit.dtype: fit.plain for fit in self.own}
        nothing = Cost(*[math.nan] * 5)  # type: ignore[arg-type]
        rows = [
            {
                "plan": fit.plan,
                "dtype": fit.dtype,
                "peak (KiB)": fit.plain.peak_bytes / 1024,
                "with RED (KiB)": (fit.published or nothing).peak_bytes / 1024,
                "RED in place (KiB)": (fit.in_place or nothing).peak_bytes / 1024,
                **arenas(fit),
                "set by": fit.plain.peak_at,
                "peak ÷ own": fit.plain.peak_bytes / own[fit.dtype].peak_bytes,
                "mult-adds (M)": fit.plain.flops / 2e6,
                "with RED (M)": (fit.published or nothing).flops / 2e6,
                "mult-adds ÷ own": fit.plain.flops / own[fit.dtype].flops,
                "weights (KiB)": fit.plain.weight_bytes / 1024,
                "weights with RED (KiB)": (fit.published or nothing).weight_bytes / 1024,
            }
            for fit in self.fits
        ]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """`fits` for people: what each needs without blocks and with them, where its peak is, what it computes."""
        return pd.DataFrame([self.row(fit) for fit in self.fits])

    def row(self, fit: Fit) -> dict[str, str]:
        """A plan's row of `table`."""
        what = "peak" if fit.plain.arena_bytes is None else "arena"
        needs: dict[str, Blocks] = {what: "none", "with RED": "published", "RED in place": "in place"}
        row = {"plan": fit.plan, "dtype": fit.dtype}
        row |= {name: format_size(cost.needed_bytes) for name, form in needs.items() if (cost := fit.needs(form))}
        row["set by"] = place_name((fit.needs(self.blocks) or fit.plain).peak_at)
        row["multiply-adds"] = f"{millions(fit.plain.flops / 2)} ({self._share(fit, fit.plain)})"
        return row | ({"multiply-adds with RED": millions(fit.published.flops / 2)} if fit.published else {})

    def _own(self, fit: Fit) -> Cost:
        return next(own.plain for own in self.own if own.dtype == fit.dtype)

    def _share(self, fit: Fit, cost: Cost) -> str:
        """Of the network's own multiply-adds."""
        return f"{100 * cost.flops / max(1, self._own(fit).flops):.0f} %"

    @property
    def verdict(self) -> str:
        """One sentence: which plan keeps most, and what it needs beside the teacher, the network as it is."""
        best, words = self.best, FORMS[self.blocks][0]
        needed, plan = best.needs(self.blocks) or best.plain, f"{best.plan} in {best.dtype}"
        budget = format_size(self.budget_bytes) + f" under {self.convention}" * (self.convention != "fused")
        peak = f"peak {format_size(needed.peak_bytes)}"
        if needed.arena_bytes is not None:
            peak = f"arena {format_size(needed.arena_bytes)} (live {peak})"
        peak += f", {ratio(self._own(best).needed_bytes, needed.needed_bytes)} the teacher"
        if not self.fits:
            return f"no plan of {self.model} fits {budget} {words}: the nearest is {plan}, {peak}"
        adds = f"{self._share(best, best.plain)} of the multiply-adds"
        if _price(best.plain, needed):
            adds += f" ({self._share(best, needed)} with them)"
        return f"{self.model} in {budget}: {plan} keeps most {words}, {adds}; {peak}"

    @property
    def remarks(self) -> list[str]:
        """What the blocks of the best plan add, what would fit with less of them, and what was left out."""
        best, lighter = self.best, FORMS[self.blocks][1]
        found = []
        if self.fits:
            found.append(_price(best.plain, best.needs(self.blocks) or best.plain))
        elif not any(self.fits_with(blocks) for blocks in lighter):
            found.append("try a smaller input or width")
        most = best.plain.flops if self.fits else 0
        for blocks in lighter:
            for other in self.fits_with(blocks)[:1]:
                if other.plain.flops > most:
                    most, peak = other.plain.flops, format_size(other.peak(blocks))
                    found.append(f"{FORMS[blocks][0]} {other.plan} in {other.dtype} would fit too, with {peak}")
        for reasons, what in ((self.refused, "more cannot be derived"), (self.untapped, "have no place for blocks")):
            for plan, reason in [*reasons.items()][:1]:
                found.append(f"{len(reasons)} {what}, such as {plan}: {reason}")
        return [*filter(None, found)]

    def __str__(self) -> str:
        return "; ".join([self.verdict, *self.remarks])


def _price(plain: Cost, taught: Cost) -> str:
    """What blocks add to a network, where that is as much as half of it."""
    adds, weights = taught.flops / max(1, plain.flops), taught.weight_bytes / max(1, plain.weight_bytes)
    if max(adds, weights) < 1.5:
        return ""
    return f"its RED blocks make it {adds:.1f} times the multiply-adds and {weights:.1f} times the weights"


def arenas(fit: Fit) -> dict[str, float]:
    """The table's columns of arenas, where the runtime plans one."""
    if fit.plain.arena_bytes is None:
        return {}
    forms = {"arena": fit.plain, "arena with RED": fit.published, "arena, RED in place": fit.in_place}
    return {f"{name} (KiB)": cost.needed_bytes / 1024 if cost else math.nan for name, cost in forms.items()}
