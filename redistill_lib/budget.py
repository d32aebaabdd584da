"""Which stride plans and dtypes fit a device's memory."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.costs import Cost, cost_of, with_blocks
from redistill_lib.distill.pairing import pair_steps
from redistill_lib.memory import format_size, parse_size
from redistill_lib.memory.profile import storage_size
from redistill_lib.memory.reuse import Runs
from redistill_lib.memory.trace import Trace, trace
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.network import Resolutions, asking, find_resolutions
from redistill_lib.network.fakes import outlines
from redistill_lib.plans import StridePlan
from redistill_lib.progress import progress_bar
from redistill_lib.student import find_places
from redistill_lib.student.derive import restrided

MANY = 500  # plans; more of them are narrowed down to those that nowhere pool later than the network itself


Blocks = Literal["none", "published", "in place"]


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
        return {"none": self.plain, "published": self.published, "in place": self.in_place}[blocks]

    def peak(self, blocks: Blocks) -> float:
        """In bytes; infinite where it is not known."""
        return math.inf if (cost := self.needs(blocks)) is None else cost.peak_bytes


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
        return min(self.candidates, key=lambda fit: (fit.peak(self.blocks), fit.plain.peak_bytes))

    def to_frame(self) -> pd.DataFrame:
        """`fits` as a table: KiB, multiply-adds in millions, and both as shares of the network as it is."""
        own = {fit.dtype: fit.plain for fit in self.own}
        nothing = Cost(*[math.nan] * 5)  # type: ignore[arg-type]
        rows = [
            {
                "plan": fit.plan,
                "dtype": fit.dtype,
                "peak (KiB)": fit.plain.peak_bytes / 1024,
                "with RED (KiB)": (fit.published or nothing).peak_bytes / 1024,
                "RED in place (KiB)": (fit.in_place or nothing).peak_bytes / 1024,
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

    def __str__(self) -> str:
        budget, fits = format_size(self.budget_bytes), self.fits
        if not fits:
            near = self.closest
            needed = near.needs(self.blocks) or near.plain
            answer = (
                f"no plan of {self.model} fits {budget}{_with(self.blocks)}: the nearest, {near.plan} in "
                f"{near.dtype}, needs {format_size(needed.peak_bytes)} at {needed.peak_at}"
            )
            others = [fit for blocks in _LIGHTER[self.blocks] for fit in self.fits_with(blocks)[:1]]
            answer += "" if others else "; try a smaller input or width"
        else:
            best, count = fits[0], len(fits)
            needed = best.needs(self.blocks) or best.plain
            answer = (
                f"{self.model} in {budget}: {best.plan} in {best.dtype} keeps most{_with(self.blocks)}, peak "
                f"{format_size(needed.peak_bytes)} at {needed.peak_at} ({count} plan{'s' * (count > 1)} worth a look)"
            )
        most = fits[0].plain.flops if fits else 0
        for blocks in _LIGHTER[self.blocks]:
            best, *_ = (*self.fits_with(blocks), None)
            if best and best.plain.flops > most:
                most, peak = best.plain.flops, format_size(best.peak(blocks))
                answer += f"; {_with(blocks).strip()} {best.plan} in {best.dtype} would fit too, with {peak}"
        for reasons, what in ((self.refused, "more cannot be derived"), (self.untapped, "have no place for blocks")):
            if reasons:
                plan, reason = next(iter(reasons.items()))
                answer += f"; {len(reasons)} {what}, such as {plan}: {reason}"
        return answer


_LIGHTER: dict[Blocks, tuple[Blocks, ...]] = {
    "published": ("in place", "none"), "in place": ("none",), "none": ()
}  # fmt: skip


def _with(blocks: Blocks) -> str:
    words = {"none": "without RED blocks", "published": "with RED blocks as published"}
    return f" {words.get(blocks, 'with RED blocks in place')}"


def fit_to_budget(
    model: str | nn.Module,
    budget: int | str,
    *inputs: Tensor,
    dtypes: str | Sequence[str] = ("fp32", "int8"),
    plans: StridePlan | str | Iterable[StridePlan | str] | None = None,
    blocks: Blocks = "published",
    in_place_depthwise: bool = False,
    progress: bool = True,
) -> BudgetFit:
    """Which stride plans of a network keep its peak of activations within a budget, and what each costs.

    `model` is a built-in name (with a plan for another total stride) or any network that `derive_student` takes,
    `budget` bytes or ``"256KB"``, `inputs` an example, of which only shapes count. `plans` defaults to those of the
    same total stride: all legal ones of a name (of more than 500, those that nowhere pool later than the network
    itself), or every way of moving a network's strides to the stem. Peaks are ``fused``, without weights.

    A plan has to fit with the RED blocks that it will be taught with, at the taps of `match_taps`: as `published`,
    ``"in place"`` (see `red.make_in_place`) or ``"none"``. The table shows all three.

    >>> import torch
    >>> fit = fit_to_budget("mobilenetv2", "256KB", torch.zeros(1, 3, 96, 96), plans=["2-1222121", "4-1221121"])
    >>> [(f.plan, f.dtype, f.published.peak_bytes) for f in fit.fits]
    [('4-1221121', 'int8', 165888)]
    """
    check_type("blocks", blocks, Blocks)
    budget_bytes = parse_size(budget)
    if not inputs:
        raise ValueError("fit_to_budget needs an example input, such as torch.zeros(1, 3, 224, 224)")
    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for dtype in dtypes or [""]:
        storage_size(dtype)
    with asking(inputs):
        name, own, every, build = _named(model) if isinstance(model, str) else _derived(model, inputs)
    given = [plans] if isinstance(plans, (str, StridePlan)) else every if plans is None else plans
    chosen = [StridePlan.parse(plan) if isinstance(plan, str) else plan for plan in given]
    if not chosen:
        raise ValueError('plans is empty: leave it out for all plans, or name some, such as plans=["4-11221"]')
    for plan in chosen:
        if plan.total != own.total:
            raise ValueError(
                f"plan {plan} strides {plan.total} in all where {name} ({own}) strides {own.total}, so its last maps "
                f"would have another size; give plans whose digits multiply to {own.total}"
            )
    how = {"in_place_depthwise": in_place_depthwise}
    networks: dict[StridePlan, nn.Module] = {}
    traces: dict[StridePlan, Trace] = {}
    found: dict[StridePlan, list[Fit]] = {}
    refused: dict[str, str] = {}
    # The built-in networks are of the same blocks, and hold no reference cycles.
    runs = Runs() if isinstance(model, str) else None
    plans_once = dict.fromkeys((own, *chosen))
    with progress_bar(len(plans_once), f"plans of {name}", enabled=progress) as bar, _collecting(runs is None):
        for plan in plans_once:
            try:
                network = build(plan)
            except ValueError as error:
                if plans is not None or plan == own:
                    raise
                refused[str(plan)] = str(error)
            else:
                if runs is not None:
                    networks[plan] = network  # without contents
                with asking(inputs):
                    traces[plan] = trace(network, *inputs, fast_attention=False, runs=runs)  # once for all dtypes
                costs = [cost_of(network, traces[plan], dtype, **how) for dtype in dtypes]
                found[plan] = [Fit(str(plan), dtype, cost) for dtype, cost in zip(dtypes, costs, strict=True)]
            bar.update()
    found[own] = [replace(fit, published=fit.plain, in_place=fit.plain) for fit in found[own]]
    plans_found = [plan for plan in dict.fromkeys(chosen) if plan in found] or [own]
    teacher, untapped = build(own), dict[str, str]()
    theirs: Resolutions | None = None
    with _collecting(runs is None):
        for plan in _worthwhile(found, plans_found, budget_bytes, blocks):
            if found[plan][0].published or str(plan) in untapped:
                continue
            student = networks[plan] if plan in networks else build(plan)
            try:
                ours, theirs = find_resolutions(student, inputs), theirs or find_resolutions(teacher, inputs)
                blocked = with_blocks(traces[plan], pair_steps(student, ours, teacher, theirs))
            except ValueError as error:
                untapped[str(plan)] = str(error)
                continue
            for k, fit in enumerate(found[plan]):
                published, in_place = blocked.costs(student, fit.dtype, **how)
                found[plan][k] = replace(fit, published=published, in_place=in_place)
    candidates = tuple(fit for plan in plans_found for fit in found[plan])
    return BudgetFit(name, budget_bytes, tuple(found[own]), candidates, blocks, refused, untapped)


def _worthwhile(
    found: Mapping[StridePlan, list[Fit]], plans: Sequence[StridePlan], budget: int, blocks: Blocks
) -> Iterator[StridePlan]:
    """The plans that no other beats even before their blocks are counted; `found` is read again after each.

    Blocks only add to a peak. Where nothing fits with them, all that could come nearest.
    """
    rows = [(plan, k) for plan in plans for k in range(len(found[plan]))]

    def plain(row: tuple[StridePlan, int]) -> Cost:
        return found[row[0]][row[1]].plain

    least: dict[int, float] = {}
    for plan, k in sorted(rows, key=lambda row: (-plain(row).flops, plain(row).peak_bytes)):
        if plain((plan, k)).peak_bytes < least.get(k, budget + 1):
            yield plan
            least[k] = min(found[plan][k].peak(blocks), least.get(k, budget + 1))
    nearest = min(found[plan][k].peak(blocks) for plan, k in rows)
    for plan, k in sorted(rows, key=lambda row: plain(row).peak_bytes):
        if nearest > budget and plain((plan, k)).peak_bytes < nearest:
            yield plan
            nearest = min(nearest, found[plan][k].peak(blocks))


@contextlib.contextmanager
def _collecting(as_before: bool) -> Iterator[None]:
    """Or without the search for reference cycles, which takes a third of the time where networks come and go."""
    enabled = gc.isenabled()
    if not as_before:
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# The network's name and plan, the plans to look at, and what builds the network of a plan.
_Search = tuple[str, StridePlan, list[StridePlan], Callable[[StridePlan], nn.Module]]


def _named(name: str) -> _Search:
    arch = name.partition("-")[0]

    def build(plan: StridePlan) -> nn.Module:
        with outlines():
            return create_model(f"{arch}-{plan}")

    with outlines():
        own: StridePlan = create_model(name).plan
    plans, facts = [], ARCHITECTURES[arch]
    for stages in itertools.product(facts.allowed, repeat=len(own.stages)):
        stem, rest = divmod(own.total, math.prod(stages))
        if not rest and stem in facts.stem:
            plans.append(StridePlan(stem, stages))
    if len(plans) > MANY:
        plans = [plan for plan in plans if all(map(operator.ge, _totals(plan), _totals(own)))]
    return arch, own, plans, build


def _derived(model: nn.Module, inputs: tuple[Tensor, ...]) -> _Search:
    stem, *stages = (place.stride for place in find_places(model, inputs))
    if not stages:
        raise ValueError(
            f"only one layer of this {type(model).__name__} strides or pools, so there is no other plan to search"
        )
    own = StridePlan(stem, tuple(stages))
    choices = [[s for s in range(1, stride + 1) if stride % s == 0] for stride in stages]
    plans = [StridePlan(own.total // math.prod(moved), moved) for moved in itertools.product(*choices)]

    def build(plan: StridePlan) -> nn.Module:
        return model if plan == own else restrided(model, None, plan, inputs, "stride")[0]

    return str(getattr(model, "name", type(model).__name__)), own, plans, build


def _totals(plan: StridePlan) -> list[int]:
    return list(itertools.accumulate(plan.places, operator.mul))
