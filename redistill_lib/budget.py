"""Which stride plans and dtypes fit a device's memory."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from redistill_lib.memory import DTYPES, format_size, parse_size
from redistill_lib.memory.profile import build_profile
from redistill_lib.memory.trace import Trace, trace
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.plans import StridePlan
from redistill_lib.progress import progress_bar
from redistill_lib.student import derive_student, find_places

if TYPE_CHECKING:
    import pandas as pd

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
    inputs: tuple[tuple[int, ...], ...]
    own: tuple[Fit, ...]  # the network as it is, once per dtype
    candidates: tuple[Fit, ...] = field(repr=False)  # every plan looked at
    refused: Mapping[str, str] = field(default_factory=dict, repr=False)  # plans that cannot be derived, and why

    @property
    def fits(self) -> tuple[Fit, ...]:
        """The fitting plans worth a look, the one that computes most first.

        Computation stands for the resolution that a plan keeps: a plan is left out where another one of the same
        dtype needs no more memory and computes no less. Plans equal in both are one, the first in plan order.
        """
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
        import pandas as pd

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

    `model` is a built-in name (``"mobilenetv2"``, with a plan for another total stride) or any network that
    `derive_student` can handle; `budget` is bytes or ``"256KB"``; `inputs` an example, of which only shapes count.
    Looked at are all plans with the network's own total stride: for a name every legal one (where these are more
    than 500, those that nowhere pool later than the network itself), for a network every way of moving its strides
    to the stem; or the `plans` given. Peaks follow the ``fused`` convention; weights are beside them. Nothing is
    computed or trained: which of the plans learns best is for training to tell.

    >>> fit = fit_to_budget("mobilenetv2", "256KB", torch.zeros(1, 3, 96, 96), plans=["2-1222121", "4-1221121"])
    >>> [(f.plan, f.dtype) for f in fit.fits]
    [('4-1221121', 'int8')]
    """
    budget_bytes = parse_size(budget)
    if not inputs:
        raise ValueError("fit_to_budget needs an example input, such as torch.zeros(1, 3, 224, 224)")
    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    plans = [plans] if isinstance(plans, (str, StridePlan)) else plans
    if wrong := [dtype for dtype in dtypes or [""] if dtype not in DTYPES]:
        raise ValueError(f"unknown dtype {wrong[0]!r}: choose from {', '.join(DTYPES)}")
    builder = _Named(model) if isinstance(model, str) else _Derived(model, inputs)
    if plans is None:
        chosen = list(builder.plans())
    else:
        chosen = [StridePlan.parse(plan) if isinstance(plan, str) else plan for plan in plans]
    if not chosen:
        raise ValueError('plans is empty: leave it out for all plans, or name some, such as plans=["4-11221"]')
    found: dict[StridePlan, list[Fit]] = {}
    refused: dict[str, str] = {}
    plans_once = dict.fromkeys((builder.own, *chosen))
    with progress_bar(len(plans_once), f"plans of {builder.name}", enabled=progress) as bar:
        for plan in plans_once:
            try:
                network = builder.build(plan)
            except ValueError as error:
                if plans is not None or plan == builder.own:
                    raise
                refused[str(plan)] = str(error)  # one plan that cannot be had is no reason to keep the others back
            else:
                passed = trace(network, *inputs, fast_attention=False)  # once for all dtypes
                found[plan] = [_fit(network, passed, plan, dtype, in_place_depthwise) for dtype in dtypes]
            bar.update()
    candidates = [fit for plan in dict.fromkeys(chosen) for fit in found.get(plan, ())]
    own, shapes = tuple(found[builder.own]), tuple(tuple(tensor.shape) for tensor in inputs)
    return BudgetFit(builder.name, budget_bytes, shapes, own, tuple(candidates) or own, refused)


def _fit(model: nn.Module, passed: Trace, plan: StridePlan, dtype: str, in_place_depthwise: bool) -> Fit:
    made = build_profile(model, passed, "fused", dtype, in_place_depthwise=in_place_depthwise)
    return Fit(str(plan), dtype, made.peak_bytes, made.peak_op.name, made.flops, made.weight_bytes)


class _Named:
    """A built-in architecture: every legal plan."""

    def __init__(self, name: str):
        with torch.device("meta"):
            self.own: StridePlan = create_model(name).plan
        self.name, _, _ = name.partition("-")
        self.facts = ARCHITECTURES[self.name]

    def plans(self) -> Iterator[StridePlan]:
        total, found = self.own.total, []
        for stages in itertools.product(self.facts.allowed, repeat=len(self.own.stages)):
            stem, rest = divmod(total, math.prod(stages))
            if not rest and stem in self.facts.stem:
                found.append(StridePlan(stem, stages))
        here = _totals(self.own)
        for plan in found:
            if len(found) <= MANY or all(map(int.__ge__, _totals(plan), here)):
                yield plan

    def build(self, plan: StridePlan) -> nn.Module:
        with torch.device("meta"):
            return create_model(f"{self.name}-{plan}")


class _Derived:
    """Any network: every way of moving the strides that it has to its stem."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...]):
        self.name = str(getattr(model, "name", type(model).__name__))
        strides = [place.stride for place in find_places(model, inputs)]
        if len(strides) < 2:
            raise ValueError(
                f"only one layer of this {type(model).__name__} strides or pools, so there is no other plan to search"
            )
        self.model, self.inputs = model, inputs
        if trace(model, *inputs).source == "fake":
            # Only shapes count, and a copy per plan then costs nothing.
            self.model, self.inputs = copy.deepcopy(model).to("meta"), tuple(tensor.to("meta") for tensor in inputs)
        self.own = StridePlan(strides[0], tuple(strides[1:]))

    def plans(self) -> Iterator[StridePlan]:
        choices = [[s for s in range(1, stride + 1) if stride % s == 0] for stride in self.own.stages]
        for stages in itertools.product(*choices):
            yield StridePlan(self.own.total // math.prod(stages), stages)

    def build(self, plan: StridePlan) -> nn.Module:
        if plan == self.own:
            return self.model
        return derive_student(self.model, plan=plan, example=self.inputs)[0]


def _totals(plan: StridePlan) -> list[int]:
    """Image size over map size behind each place."""
    return list(itertools.accumulate(plan.places, int.__mul__))
