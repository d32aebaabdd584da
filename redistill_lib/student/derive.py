"""Derive a student with aggressive pooling from any network."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from fractions import Fraction
from typing import TypeVar, get_args

from torch import nn

from redistill_lib.checks import check_type
from redistill_lib.memory import format_size, profile_memory
from redistill_lib.network.fakes import copy_network
from redistill_lib.network.flow import FITTING, Call, Example, Extent, arguments_of, cast_arguments, times, trace_flow
from redistill_lib.plans import StridePlan
from redistill_lib.student.borders import settle_maps
from redistill_lib.student.checks import check_training
from redistill_lib.student.edits import Change, Downsampler, lift, reconnect, restride
from redistill_lib.student.places import Layout, find_layout, plan_totals
from redistill_lib.student.ratios import embeds
from redistill_lib.student.tokens import fit_sizes, resize_patch, resize_patches, resize_positions

_Model = TypeVar("_Model", bound=nn.Module)


def derive_student(
    model: _Model,
    factor: int | None = None,
    *,
    plan: StridePlan | str | None = None,
    example: Example,
    downsampler: Downsampler = "stride",
) -> tuple[_Model, tuple[Change, ...]]:
    """A copy of `model` that pools its maps earlier, and the list of what was changed. `model` is left as it is.

    Give `factor` (2, 4, 8, …): the stem's stride is multiplied by it and given back from the last place backwards;
    a student of ×4 and more gives up a pool right behind the stem first (ReDistill, arXiv 2406.03744, section 4).
    Or give `plan`: one stride per place of `find_places`; a built-in network also takes its own notation, stride-1
    places included. `example` is a float image B×C×H×W, or the network's inputs, as (x, t); only its shape matters.

    Parallel branches, skip connections and upsampling follow, and so does a last convolution that returns an image:
    the student's outputs have the teacher's shapes. Weights are the teacher's. Kernels stay, except where kernel =
    stride, which stays so: their weights are averaged or repeated, and a pool becomes the identity at stride 1;
    transposed convolutions reach as far as before. Calls in a module's own forward are changed there. A transformer
    of one map gets larger patches. Positions are resized with their maps, and what is told a map's size is told anew.
    `downsampler`: convolutions that get more stride reduce by "stride" as in the paper, by a "max", "avg" or "blur"
    pool (anti-aliased, arXiv 1904.11486) behind them, or by "space_to_depth" before them. So does "rnnpool", in front
    of a convolution that reads the image and of no other: an `RNNPool` (arXiv 2002.11921), which learns and is a part
    of that convolution, whose weights fit no more. Both are drawn anew, by torch's random numbers.

    A student whose peak of activations is no lower, or whose plan has another total stride, is warned of. Raises
    ValueError where the stride cannot be moved, naming the layer and the reason.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
    >>> student, changes = derive_student(net, 4, example=torch.zeros(1, 3, 32, 32))
    >>> changes
    (0: conv stride 2 → 8, 1: max pool 2 → 1, 2: conv stride 2 → 1)
    """
    student, changes = restrided(model, factor, plan, example, downsampler)
    if changes:
        args, kwargs = cast_arguments(model, example)
        try:
            ours, theirs = (profile_memory(network, *args, kwargs=kwargs) for network in (student, model))
        except Exception as error:  # a profile is not what was asked for
            warnings.warn(f"what this student saves could not be profiled: {error}", stacklevel=2)
        else:
            if ours.peak_bytes >= theirs.peak_bytes:
                warnings.warn(
                    f"this student saves no memory: it needs {format_size(ours.peak_bytes)} at {ours.peak_op.name}, "
                    f"the network itself {format_size(theirs.peak_bytes)}; that layer's maps are no smaller",
                    stacklevel=2,
                )
    return student, changes


def restrided(
    model: _Model, factor: int | None, plan: StridePlan | str | None, example: Example, downsampler: Downsampler
) -> tuple[_Model, tuple[Change, ...]]:
    """`derive_student` without a look at what is saved."""
    if downsampler not in get_args(Downsampler):
        raise ValueError(f"downsampler={downsampler!r} is not one of {', '.join(get_args(Downsampler))}")
    layout = find_layout(model, example)
    grown = factor if plan is None else _growth(layout, StridePlan.parse(str(plan))) if factor is None else None
    if grown and (found := _larger_patches(model, layout, grown, example)):
        if downsampler != "stride":
            raise ValueError(f"larger patches pool nothing, so that downsampler={downsampler!r} cannot: leave it out")
        return found
    target = _target(model, layout, factor, plan)
    try:
        student, changes = _moved(model, layout, example, plan_totals(layout, target.places), downsampler)
    except ValueError as error:
        # A way up that meets nothing may as well stay as it is: its first map is of the teacher's size.
        totals = plan_totals(layout, target.places, mirror=False)
        if totals == plan_totals(layout, target.places):
            raise
        try:
            student, changes = _moved(model, layout, example, totals, downsampler)
        except ValueError:
            raise error from None
    _rename(student, layout, target, downsampler)
    if callable(register := getattr(student, "register_to_config", None)):
        # A diffusers network keeps in its config how it was derived, which `diffusion.load_pretrained` does again.
        own = {"plan": str(target), "downsampler": downsampler, "image_size": list(layout.image)}
        register(derived=[*student.config.get("derived", []), own])  # type: ignore[union-attr, operator]
    return student, tuple(changes.values())


def _growth(layout: Layout, plan: StridePlan) -> int:
    """By how much a plan of one place alone enlarges it; 0 where it does not."""
    times, rest = divmod(plan.stem, layout.places[0].stride)
    return 0 if plan.stages or rest else times


def _larger_patches(
    model: _Model, layout: Layout, factor: int, example: Example
) -> tuple[_Model, tuple[Change, ...]] | None:
    """A transformer of one map whose patches, which are its only pooling, are `factor` times as large."""
    (stem, *later), flow = layout.places, layout.found.flow
    if later or stem.stride == 1 or not embeds(model.get_submodule(stem.name)):
        return None
    student = copy_network(model)
    after = tuple(side // factor for side in stem.after)
    changes = resize_patches(student, stem.layers[0], factor, stem.after, after)
    found = trace_flow(student, example)
    if found.error is not None:
        raise ValueError(
            f"the student of {times(after)} patches breaks in {found.running or 'its forward'}, which may take "
            f"exactly {times(stem.after)}: {found.error}; the patches of a network that mixes them by weights, "
            "or holds their number, cannot grow"
        ) from found.error
    if found.outputs != flow.outputs:
        ours, theirs = ([tuple(shape) for shape in x.outputs] for x in (found, flow))
        raise ValueError(f"the student's outputs would be {ours}, not {theirs}: they have one entry per patch")
    _rename(student, layout, StridePlan(stem.stride * factor, ()), "stride")
    return student, tuple(changes)


def _moved(
    model: _Model, layout: Layout, example: Example, totals: list[Fraction], downsampler: Downsampler
) -> tuple[_Model, dict[str, Change]]:
    student = copy_network(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        student.requires_grad_()  # a teacher is frozen, its student is to learn
    changes: dict[str, Change] = {}
    tails = {layout.found.flow.calls[number] for number in layout.found.tails}
    flow, grids = layout.found.flow, layout.found.grids
    channels = {
        visit.run[0]: (grids.channels(visit.takes), grids.channels(visit.gives[0]))
        for visit in flow.visits
        if visit.takes >= 0 and visit.gives and all(map(grids.is_map, (visit.takes, visit.gives[0])))
    }
    stems = {flow.calls[c.number] for c in layout.found.grids.changes if layout.found.grids[c.before].raw}
    fitted = resize_positions(student, _resized(layout, totals))
    for call, old, new, shared in _due(layout, totals):
        if call in stems and call.path not in shared and embeds(student.get_submodule(call.path)) and new % old == 0:
            after = flow.shapes[call.makes[0]][2:]
            smaller = tuple(side * old // new for side in after)
            changes |= {c.layer: c for c in resize_patches(student, call.path, new // old, after, smaller)}
        elif call in tails and old == 1 and call.function in ("conv2d", "conv3d"):
            changes[call.path] = lift(call.path, student.get_submodule(call.path), new)
        else:
            if downsampler == "rnnpool" and call not in stems and new > old and call.function == "conv2d":
                raise ValueError(
                    f"{call.path or 'the network'} gets stride {new} instead of {old} and does not read the image, "
                    "where an RNNPool can stand; another downsampler can take this"
                )
            change = restride(student, call, old, new, downsampler, shared, _floors(layout, call, old))
            name = call.path
            while name in changes and change.kind == "call":  # several that a module makes itself
                name += "'"
            changes[name] = change
            if change.kind == "patch embed":
                resize_patch(student, call.path, old, new)
            if new == 1 and (joined := reconnect(student, call.path, channels)):
                changes[joined.layer] = joined
    args, kwargs = arguments_of(example)
    changes |= {change.layer: change for change in (*fitted, *fit_sizes(student, *args, **kwargs))}
    settle_maps(student, layout, example, totals, changes)
    check_training(student, model, layout, example)
    return student, changes


def _resized(layout: Layout, totals: list[Fraction]) -> dict[Extent, Extent]:
    """The sizes of maps in the student, by those in the network, of sizes whose maps all become one size."""
    sizes: dict[Extent, set[Extent]] = {}
    for grid, total in zip(layout.found.grids.grids, totals, strict=True):
        if not grid.raw:
            sizes.setdefault(grid.size, set()).add(tuple(math.ceil(side * grid.total / total) for side in grid.size))
    return {before: after.pop() for before, after in sizes.items() if len(after) == 1}


def _target(model: nn.Module, layout: Layout, factor: int | None, plan: StridePlan | str | None) -> StridePlan:
    factor = check_type("factor", factor, int, None)
    if (factor is None) == (plan is None):
        raise ValueError("give derive_student either factor= or plan=")
    if len(layout.places) == 1:
        patches = plan is not None and layout.plan.stem > 1 and embeds(model.get_submodule(layout.places[0].name))
        raise ValueError(
            f"only {layout.places[0].name} strides in this {type(model).__name__}: no later layer strides or pools "
            "that could give it back" + "; larger patches are made with factor=2" * patches
        )
    if factor is not None:
        return layout.plan.front_loaded(factor, first=(1,) if factor >= 4 and layout.places[1].pool else ())
    plan = StridePlan.parse(str(plan))
    own = getattr(model, "plan", None)
    if isinstance(own, StridePlan) and len(own.places) == len(plan.places) != len(layout.places):
        kept = _kept(own)
        if any(stride > 1 for k, stride in enumerate(plan.places) if k not in kept):
            raise ValueError(f"plan {plan} strides where {own} has stride 1; a student can only change strides")
        plan = StridePlan(plan.stem, tuple(plan.places[k] for k in kept[1:]))
    if len(plan.places) != len(layout.places):
        names = ", ".join(place.name for place in layout.places)
        raise ValueError(
            f"plan {plan} has {len(plan.places)} place{'s' * (len(plan.places) > 1)} where "
            f"this {type(model).__name__} has {len(layout.places)}: {names}; its own plan is {layout.plan}"
        )
    if plan.total != layout.plan.total:
        warnings.warn(
            f"plan {plan} strides {plan.total} in all where {layout.plan} strides {layout.plan.total}: the student's "
            "last maps have another size than the teacher's",
            stacklevel=4,
        )
    return plan


def _kept(own: StridePlan) -> list[int]:
    # The places of a built-in network that count here: the stem and strides above 1.
    return [k for k, stride in enumerate(own.places) if k == 0 or stride > 1]


def _floors(layout: Layout, call: Call, old: int) -> bool:
    """Whether a call divides the sides of a map that was not padded for it, and rounds down."""
    flow, grids = layout.found.flow, layout.found.grids
    took, gave = (flow.shapes[values[0]][2:] for values in (call.takes, call.makes))
    return took == grids.at(call.takes[0]).size and gave == tuple(side // old for side in took)


def _due(layout: Layout, totals: list[Fraction]) -> list[tuple[Call, int, int, set[str]]]:
    """Each call whose ratio changes, with its ratio before and after (above 1 both ways), once per layer.

    Where a layer's runs change unlike, each of their calls, and the paths of all modules that run more than once.
    """
    grids, tails = layout.found.grids, layout.found.tails
    ends = {c.number: (c.before, c.after) for c in grids.changes} | {
        number: (here := grids.of[layout.found.flow.calls[number].takes[0]], here)
        for number in tails - {c.number for c in grids.changes}
    }
    wanted: dict[tuple[str, str, int], list[tuple[Call, int, int]]] = {}
    for number, (before, after) in sorted(ends.items()):
        call = layout.found.flow.calls[number]
        if call.function == FITTING or (before == after and number not in tails) or call.takes[0] in layout.behind:
            continue
        own = grids[after].total / grids[before].total
        ratio = totals[after] / totals[before]
        kept = grids[after].total / totals[before]  # which gives a map that is returned its size
        if number in tails and 1 in (kept.numerator, kept.denominator):
            ratio = kept
        up = own < 1 or (own == 1 and ratio < 1)
        old, new = (1 / own, 1 / ratio) if up else (own, ratio)
        if new.denominator > 1 or old.denominator > 1:
            if old == new or number in tails:  # of what is returned the shapes tell
                continue
            raise ValueError(
                f"{call.path or 'the network'} would have to change resolution by {float(new):g}, which is no whole "
                f"stride ({call.line})"
            )
        wanted.setdefault((call.path, call.function, call.numbers[-1]), []).append((call, int(old), int(new)))
    runs = Counter(visit.run[0] for visit in layout.found.flow.visits)
    several = {path for path, count in runs.items() if count > 1}
    dues: list[tuple[Call, int, int, set[str]]] = []
    for calls in wanted.values():
        alike = len({due[1:] for due in calls}) == 1
        dues += [(*due, set() if alike else several) for due in (calls[:1] if alike else calls) if due[1] != due[2]]
    return dues


def _rename(student: nn.Module, layout: Layout, target: StridePlan, downsampler: Downsampler) -> None:
    own, name = getattr(student, "plan", None), getattr(student, "name", None)
    if not isinstance(own, StridePlan) or not isinstance(name, str) or len(_kept(own)) != len(target.places):
        return
    stem, *stages = (dict(enumerate(own.places)) | dict(zip(_kept(own), target.places, strict=True))).values()
    plan = StridePlan(stem, tuple(stages))
    marker = "" if downsampler == "stride" else f"-{downsampler}"
    student.plan, student.name = plan, name.removesuffix(str(own)) + str(plan) + marker  # type: ignore[assignment]


def draw_weights(network: nn.Module) -> list[str]:
    """Draw new weights in place, by each module's `reset_parameters` and then the network's `_init_weights`.

    Returns the names of the parameters that neither reaches, which keep their values. Outer modules come last.

    >>> draw_weights(nn.Sequential(nn.Linear(2, 2), nn.PReLU()))
    []
    """
    reached: set[int] = set()
    for module in reversed(list(network.modules())):
        if callable(reset := getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))):
            reset()
            reached.update(id(p) for p in module.parameters(recurse=False))
    if callable(init := getattr(network, "_init_weights", None)):
        network.apply(init) if inspect.signature(init).parameters else init()
        return []
    return [name for name, p in network.named_parameters() if id(p) not in reached]
