"""The search for stride plans within a budget."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from redistill_lib.budget.result import Blocks, BudgetFit, Fit
from redistill_lib.checks import check_type
from redistill_lib.costs import Followed, followed
from redistill_lib.distill.pairing import pair_steps
from redistill_lib.memory import parse_size
from redistill_lib.memory.profile import Convention, runtime_of, storage_size
from redistill_lib.memory.reuse import Runs
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.network import asking, find_resolutions
from redistill_lib.network.fakes import outlines
from redistill_lib.plans import StridePlan
from redistill_lib.progress import progress_bar
from redistill_lib.student.derive import restrided
from redistill_lib.student.places import find_layout
from redistill_lib.student.ratios import embeds

MANY = 500  # plans; more of them are narrowed down to those that nowhere pool later than the network itself


def fit_to_budget(
    model: str | nn.Module,
    budget: int | str,
    *inputs: Tensor,
    dtypes: str | Sequence[str] = ("fp32", "int8"),
    plans: StridePlan | str | Iterable[StridePlan | str] | None = None,
    blocks: Blocks = "published",
    convention: Convention = "fused",
) -> BudgetFit:
    """Which stride plans of a network keep its peak of activations within a budget, and what each costs.

    `model` is a built-in name (with a plan for another total stride) or any network that `derive_student` takes,
    `budget` bytes or ``"256KB"``, `inputs` an example, of which only shapes count. `plans` defaults to those of the
    same total stride: all legal ones of a name (of more than 500, those that nowhere pool later than the network
    itself), or every way of moving a network's strides to the stem. Patches that are all its pooling are tried as
    they are, ×2 and ×4; these students take no blocks. Activations count, not weights, under a `convention` of
    `profile_memory` other than ``paper``: the arena of a runtime that plans one, or else the peak.

    A plan has to fit with the RED blocks that it will be taught with, at the taps of `match_taps`: as `published`,
    ``"in place"`` (see `red.make_in_place`) or ``"none"``; the table shows all three. ``"narrow"`` and ``"narrow in
    place"`` put them at its narrow taps.

    >>> import torch
    >>> fit = fit_to_budget("mobilenetv2", "256KB", torch.zeros(1, 3, 96, 96), plans=["2-1222121", "4-1221121"])
    >>> [(f.plan, f.dtype, f.published.peak_bytes) for f in fit.fits]
    [('4-1221121', 'int8', 165888)]
    """
    check_type("blocks", blocks, Blocks)
    budget_bytes, runtime = parse_size(budget), runtime_of(convention)
    if runtime is None:
        raise ValueError("budgets cannot be counted by paper, which knows layers alone: use fused")
    if len(inputs) == 1 and isinstance(inputs[0], tuple):
        inputs = inputs[0]
    if not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError(
            "fit_to_budget takes tensors in the order of the network's arguments, as fit_to_budget(…, x, t)"
        )
    if not inputs:
        raise ValueError("fit_to_budget needs an example input, such as torch.zeros(1, 3, 224, 224)")
    dtypes = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for dtype in dtypes or [""]:
        storage_size(dtype)
    with asking(inputs):
        name, own, every, build = plans_of(model, inputs) if isinstance(model, str) else _derived(model, inputs)
    given = [plans] if isinstance(plans, (str, StridePlan)) else every if plans is None else plans
    chosen = [StridePlan.parse(plan) if isinstance(plan, str) else plan for plan in given]
    if not chosen:
        raise ValueError('plans is empty: leave it out for all plans, or name some, such as plans=["4-11221"]')
    patches = not own.stages
    blocks = "none" if patches else blocks  # no map of the teacher is as large as one of the student
    for plan in chosen:
        if plan.total % own.total or plan.stages if patches else plan.total != own.total:
            if patches:
                raise ValueError(f"plan {plan} is no patch of {name}: give {own} or a multiple of it")
            raise ValueError(
                f"plan {plan} strides {plan.total} in all where {name} ({own}) strides {own.total}, so its last maps "
                f"would have another size; give plans whose digits multiply to {own.total}"
            )
    # The built-in networks are of the same blocks, and hold no reference cycles.
    runs = Runs() if isinstance(model, str) else None
    networks: dict[StridePlan, nn.Module] = {}
    passes: dict[StridePlan, Followed] = {}
    found: dict[StridePlan, list[Fit]] = {}
    refused, untapped = dict[str, str](), dict[str, str]()
    teacher = build(own)
    theirs = functools.cache(lambda: find_resolutions(teacher, inputs))

    def count_blocks(plan: StridePlan) -> None:
        if found[plan][0].published or str(plan) in untapped or patches:
            return
        student = networks[plan] if plan in networks else build(plan)
        try:
            taps = pair_steps(student, find_resolutions(student, inputs), teacher, theirs(), "narrow" in blocks)
            forms = passes[plan].with_blocks(taps)
        except ValueError as error:
            untapped[str(plan)] = str(error)
            return
        costs = ([form.cost(fit.dtype, runtime) for form in forms] for fit in found[plan])
        found[plan] = [replace(f, published=p, in_place=i) for f, (p, i) in zip(found[plan], costs, strict=True)]

    plans_once = dict.fromkeys((own, *chosen))
    with (
        progress_bar(len(plans_once), f"plans of {name}") as bar,
        uncollected() if runs else contextlib.nullcontext(),
    ):
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
                    passes[plan] = followed(network, inputs, runtime, runs)  # once for all dtypes
                found[plan] = [Fit(str(plan), dtype, passes[plan].cost(dtype, runtime)) for dtype in dtypes]
            bar.update()
        found[own] = [replace(fit, published=fit.plain, in_place=fit.plain) for fit in found[own]]
        plans_found = [plan for plan in dict.fromkeys(chosen) if plan in found] or [own]
        for plan in _worthwhile(found, plans_found, budget_bytes, blocks):
            count_blocks(plan)
    candidates = tuple(fit for plan in plans_found for fit in found[plan])
    shapes = tuple(tuple(x.shape) for x in inputs)
    left = refused, untapped
    return BudgetFit(
        name, budget_bytes, tuple(found[own]), candidates, blocks, *left, runtime.name, shapes, runs is not None
    )


def _worthwhile(
    found: Mapping[StridePlan, list[Fit]], plans: Sequence[StridePlan], budget: int, blocks: Blocks
) -> Iterator[StridePlan]:
    """The plans that no other beats even before their blocks are counted; `found` is read again after each.

    Blocks only add to a peak, and no arena is below it. Where nothing fits with them, all that could come nearest.
    """
    for k in range(len(found[plans[0]])):
        plain = {plan: found[plan][k].plain for plan in plans}
        least: float = budget + 1
        for plan in sorted(plans, key=lambda plan: (-plain[plan].flops, plain[plan].peak_bytes)):
            if plain[plan].peak_bytes < least:
                yield plan
                least = min(least, found[plan][k].peak(blocks))
    peaks = {plan: min(fit.plain.peak_bytes for fit in found[plan]) for plan in plans}
    nearest = min(fit.peak(blocks) for plan in plans for fit in found[plan])
    for plan in sorted(plans, key=peaks.__getitem__):
        if budget < nearest and peaks[plan] < nearest:
            yield plan
            nearest = min(nearest, *(fit.peak(blocks) for fit in found[plan]))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for reference cycles, which takes a third of the time where networks come and go."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# The network's name and plan, the plans to look at, and what builds the network of a plan.
Search = tuple[str, StridePlan, list[StridePlan], Callable[[StridePlan], nn.Module]]


def plans_of(name: str, inputs: tuple[Tensor, ...], **options: Any) -> Search:
    """Of a built-in name; `build` makes networks without contents, with these options of `create_model`."""
    arch = name.partition("-")[0]

    def build(plan: StridePlan) -> nn.Module:
        with outlines():
            return create_model(f"{arch}-{plan}", **options)

    with outlines():
        own: StridePlan = create_model(name, **options).plan
    plans, facts = [], ARCHITECTURES[arch]
    if not own.stages:
        sides = [side // own.stem for side in inputs[0].shape[2:]]
        return arch, own, [p for p in _larger_patches(own, sides) if p.stem in facts.stem], build
    for stages in itertools.product(facts.allowed, repeat=len(own.stages)):
        stem, rest = divmod(own.total, math.prod(stages))
        if not rest and stem in facts.stem:
            plans.append(StridePlan(stem, stages))
    if len(plans) > MANY:
        plans = [plan for plan in plans if all(map(operator.ge, totals(plan), totals(own)))]
    return arch, own, plans, build


def _derived(model: nn.Module, inputs: tuple[Tensor, ...]) -> Search:
    layout, name = find_layout(model, inputs), str(getattr(model, "name", type(model).__name__))
    own = layout.plan
    stem, stages = own.stem, own.stages
    if not stages:
        if stem == 1 or not embeds(model.get_submodule(layout.places[0].name)):
            raise ValueError(
                f"only one layer of this {type(model).__name__} strides or pools, so there is no other plan to search"
            )

        def enlarge(plan: StridePlan) -> nn.Module:
            return model if plan == own else restrided(model, plan.stem // stem, None, inputs, "stride")[0]

        return name, own, _larger_patches(own, layout.places[0].after), enlarge
    choices = [[s for s in range(1, stride + 1) if stride % s == 0] for stride in stages]
    plans = [StridePlan(own.total // math.prod(moved), moved) for moved in itertools.product(*choices)]

    def build(plan: StridePlan) -> nn.Module:
        return model if plan == own else restrided(model, None, plan, inputs, "stride")[0]

    return name, own, plans, build


def _larger_patches(own: StridePlan, sides: Sequence[int]) -> list[StridePlan]:
    """Of a network whose patches, so many a side, are all its pooling: as large, and ×2 and ×4 where these divide."""
    fitting = (times for times in (1, 2, 4) if times == 1 or not any(side % times for side in sides))
    return [StridePlan(own.stem * times, ()) for times in fitting]


def totals(plan: StridePlan) -> list[int]:
    """Image size over that of the map behind each place."""
    return list(itertools.accumulate(plan.places, operator.mul))
