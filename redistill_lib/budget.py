"""Which stride plans and dtypes fit a device's memory."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor, nn

from redistill_lib.memory import format_size, parse_size
from redistill_lib.memory.profile import build_profile, storage_size
from redistill_lib.memory.reuse import Runs
from redistill_lib.memory.trace import Trace, trace
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.network.fakes import outlines
from redistill_lib.plans import StridePlan
from redistill_lib.progress import progress_bar
from redistill_lib.student import derive_student, find_places

MANY = 500  # plans; more of them are narrowed down to those that nowhere pool later than the network itself


@dataclass(frozen=True)
class Fit:
    """One stride plan in one dtype, and what it needs."""

    plan: str
    dtype: str
    peak_bytes: int  # activations, weights apart
    peak_at: str  # the layer that sets it
    flops: int  # 2 per multiply-add
    weight_bytes: int


@dataclass(frozen=True)
class BudgetFit:
    """The answer to `fit_to_budget`. `fits` is empty where nothing fits; `closest` then comes nearest."""

    model: str
    budget_bytes: int
    own: tuple[Fit, ...]  # the network as it is, once per dtype
    candidates: tuple[Fit, ...] = field(repr=False)  # every plan looked at
    refused: Mapping[str, str] = field(default_factory=dict, repr=False)  # plans that cannot be derived, and why

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Those within the budget, except where another of the same dtype computes as much in as little memory."""
        least = dict.fromkeys((fit.dtype for fit in self.candidates), self.budget_bytes + 1)
        kept = []
        for fit in sorted(self.candidates, key=lambda fit: (-fit.flops, fit.peak_bytes, fit.plan)):
            if fit.peak_bytes < least[fit.dtype]:
                least[fit.dtype] = fit.peak_bytes
                kept.append(fit)
        return tuple(kept)

    @property
    def closest(self) -> Fit:
        """The plan that needs the least memory of all."""
        return min(self.candidates, key=lambda fit: fit.peak_bytes)

    def to_frame(self) -> pd.DataFrame:
        """`fits` as a table: KiB, multiply-adds in millions, and both as shares of the network as it is."""
        own = {fit.dtype: fit for fit in self.own}
        rows = [
            {
                "plan": fit.plan,
                "dtype": fit.dtype,
                "peak (KiB)": fit.peak_bytes / 1024,
                "set by": fit.peak_at,
                "peak ÷ own": fit.peak_bytes / own[fit.dtype].peak_bytes,
                "mult-adds (M)": fit.flops / 2e6,
                "mult-adds ÷ own": fit.flops / own[fit.dtype].flops,
                "weights (KiB)": fit.weight_bytes / 1024,
            }
            for fit in self.fits
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        budget, near = format_size(self.budget_bytes), self.closest
        if not self.fits:
            answer = (
                f"no plan of {self.model} fits {budget}: the nearest, {near.plan} in {near.dtype}, "
                f"needs {format_size(near.peak_bytes)} at {near.peak_at}; try a smaller input or width"
            )
        else:
            best, count = self.fits[0], len(self.fits)
            answer = (
                f"{self.model} in {budget}: {best.plan} in {best.dtype} keeps most, peak "
                f"{format_size(best.peak_bytes)} at {best.peak_at} ({count} plan{'s' * (count > 1)} worth a look)"
            )
        if self.refused:
            plan, reason = next(iter(self.refused.items()))
            answer += f"; {len(self.refused)} more cannot be derived, such as {plan}: {reason}"
        return answer


def fit_to_budget(
    model: str | nn.Module,
    budget: int | str,
    *inputs: Tensor,
    dtypes: str | Sequence[str] = ("fp32", "int8"),
    plans: StridePlan | str | Iterable[StridePlan | str] | None = None,
    in_place_depthwise: bool = False,
    progress: bool = True,
) -> BudgetFit:
    """Which stride plans of a network keep its peak of activations within a budget, and what each costs.

    `model` is a built-in name (with a plan for another total stride) or any network that `derive_student` takes,
    `budget` bytes or ``"256KB"``, `inputs` an example, of which only shapes count. `plans` defaults to those of the
    same total stride: all legal ones of a name (of more than 500, those that nowhere pool later than the network
    itself), or every way of moving a network's strides to the stem. Peaks are ``fused``, without weights.

    >>> fit = fit_to_budget("mobilenetv2", "256KB", torch.zeros(1, 3, 96, 96), plans=["2-1222121", "4-1221121"])
    >>> [(f.plan, f.dtype) for f in fit.fits]
    [('4-1221121', 'int8')]
    """
    budget_bytes = parse_size(budget)
    if not inputs:
        raise ValueError("fit_to_budget needs an example input, such as torch.zeros(1, 3, 224, 224)")
    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for dtype in dtypes or [""]:
        storage_size(dtype)
    name, own, every, build = _named(model) if isinstance(model, str) else _derived(model, inputs)
    given = [plans] if isinstance(plans, (str, StridePlan)) else every if plans is None else plans
    chosen = [StridePlan.parse(plan) if isinstance(plan, str) else plan for plan in given]
    if not chosen:
        raise ValueError('plans is empty: leave it out for all plans, or name some, such as plans=["4-11221"]')
    found: dict[StridePlan, list[Fit]] = {}
    refused: dict[str, str] = {}
    # The built-in networks are of the same blocks, and hold no reference cycles.
    runs, pause = (Runs(), _without_collector()) if isinstance(model, str) else (None, contextlib.nullcontext())
    plans_once = dict.fromkeys((own, *chosen))
    with progress_bar(len(plans_once), f"plans of {name}", enabled=progress) as bar, pause:
        for plan in plans_once:
            try:
                network = build(plan)
            except ValueError as error:
                if plans is not None or plan == own:
                    raise
                refused[str(plan)] = str(error)
            else:
                passed = trace(network, *inputs, fast_attention=False, runs=runs)  # once for all dtypes
                found[plan] = [_fit(network, passed, plan, dtype, in_place_depthwise) for dtype in dtypes]
            bar.update()
    candidates = [fit for plan in dict.fromkeys(chosen) for fit in found.get(plan, ())] or found[own]
    return BudgetFit(name, budget_bytes, tuple(found[own]), tuple(candidates), refused)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Spare the search for reference cycles, which takes a third of the time where networks come and go."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _fit(model: nn.Module, passed: Trace, plan: StridePlan, dtype: str, in_place_depthwise: bool) -> Fit:
    made = build_profile(model, passed, "fused", dtype, in_place_depthwise=in_place_depthwise)
    return Fit(str(plan), dtype, made.peak_bytes, made.peak_op.name, made.flops, made.weight_bytes)


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
        return model if plan == own else derive_student(model, plan=plan, example=inputs)[0]

    return str(getattr(model, "name", type(model).__name__)), own, plans, build


def _totals(plan: StridePlan) -> list[int]:
    return list(itertools.accumulate(plan.places, operator.mul))
