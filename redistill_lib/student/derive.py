"""Derive a student with aggressive pooling from any network."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar, get_args

from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.network import map_shapes
from redistill_lib.plans import StridePlan
from redistill_lib.student.edits import Change, Downsampler, lift, reconnect, restride, settle
from redistill_lib.student.places import FITTING, MapCall, Places, find_layout, times, trace_levels

_Model = TypeVar("_Model", bound=nn.Module)


def derive_student(
    model: _Model,
    factor: int | None = None,
    *,
    plan: StridePlan | str | None = None,
    example: Tensor | tuple[Any, ...],
    downsampler: Downsampler = "stride",
) -> tuple[_Model, tuple[Change, ...]]:
    """A copy of `model` that pools its maps earlier, and the list of what was changed. `model` is left as it is.

    Give `factor` (2, 4, 8, …): the stem's stride is multiplied by it and given back from the last place backwards;
    a student of ×4 and more gives up a pool right behind the stem first (ReDistill, arXiv 2406.03744, section 4).
    Or give `plan`: one stride per place of `find_places`; a built-in network also takes its own notation, stride-1
    places included. `example` is a float image B×C×H×W, or the network's inputs, as (x, t); only its shape matters.

    Parallel branches, skip connections and upsampling follow, and so does a last convolution that returns an image:
    the student's outputs have the teacher's shapes. Weights are the teacher's. Kernels stay, except where kernel =
    stride, which stays so: their weights are averaged or repeated, and a pool becomes the identity at stride 1.
    `downsampler`: convolutions that get more stride reduce by "stride" as in the paper, by a "max", "avg" or "blur"
    pool (anti-aliased, arXiv 1904.11486) behind them, or by "space_to_depth" before them.

    Raises ValueError where the stride cannot be moved, naming the layer and the reason.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
    >>> student, changes = derive_student(net, 4, example=torch.zeros(1, 3, 32, 32))
    >>> changes
    (0: conv stride 2 → 8, 1: max pool 2 → 1, 2: conv stride 2 → 1)
    """
    if downsampler not in get_args(Downsampler):
        raise ValueError(f"downsampler={downsampler!r} is not one of {', '.join(get_args(Downsampler))}")
    layout = find_layout(model, example)
    target = _target(model, layout, factor, plan)
    student = copy.deepcopy(model)
    channels = {path: (x[1], y[1]) for path, x, y in map_shapes(model, *layout.inputs)}
    changes: dict[str, Change] = {}
    for call, old, new, shared in _due(model, layout, target):
        if call is layout.tail and old == 1 and call.function == "conv2d":
            changes[call.path] = lift(call.path, student.get_submodule(call.path), new)
        else:
            change = restride(student, call, old, new, downsampler, shared)
            changes[f"{call.path} {call.stack[-1][1]}" if shared else call.path] = change
            if new == 1 and (added := reconnect(student, call.path, channels)):
                changes[added.layer] = added
    _settle(student, layout, target, changes)
    _rename(student, layout, target, downsampler)
    if callable(register := getattr(student, "register_to_config", None)):
        # A diffusers network keeps in its config how it was derived, which `diffusion.load_pretrained` does again.
        own = {"plan": str(target), "downsampler": downsampler, "image_size": list(layout.image)}
        register(derived=[*student.config.get("derived", []), own])  # type: ignore[union-attr, operator]
    return student, tuple(changes.values())


def _target(model: nn.Module, layout: Places, factor: int | None, plan: StridePlan | str | None) -> StridePlan:
    factor = check_type("factor", factor, int, None)
    if (factor is None) == (plan is None):
        raise ValueError("give derive_student either factor= or plan=")
    if len(layout.places) == 1:
        raise ValueError(
            f"only {layout.places[0].name} strides in this {type(model).__name__}: no later layer strides or pools "
            "that could give it back (a transformer's patches keep their grid, or are merged by slicing)"
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
            f"plan {plan} has {len(plan.places)} places where this {type(model).__name__} has {len(layout.places)}: "
            f"{names}; its own plan is {layout.plan}"
        )
    return plan


def _kept(own: StridePlan) -> list[int]:
    # The places of a built-in network that count here: the stem and strides above 1.
    return [k for k, stride in enumerate(own.places) if k == 0 or stride > 1]


def _due(model: nn.Module, layout: Places, target: StridePlan) -> Iterator[tuple[MapCall, int, int, set[str]]]:
    """Each call whose ratio changes, once per layer, with its ratio before and after (above 1 both ways)."""
    size, image = layout.sizes(target), layout.image
    wanted: dict[tuple[str, str, int], list[tuple[MapCall, int, int]]] = {}
    for call in layout.found.calls:
        if call.function == FITTING or (call is not layout.tail and call.before == call.after):
            continue
        before = call.before.size, call.after.size
        after = size(call.before), image if call is layout.tail else size(call.after)
        ratios = [max(x[0] / y[0], y[0] / x[0]) for x, y in (before, after)]
        old, new = map(round, ratios)
        if abs(new - ratios[1]) > 1e-6:
            raise ValueError(
                f"{call.path} would have to change resolution by {ratios[1]:g}, which is no whole stride"
            )
        wanted.setdefault((call.path, call.function, call.numbers[-1]), []).append((call, old, new))
    for dues in wanted.values():
        if len({due[1:] for due in dues}) == 1:
            dues = dues[:1]
        for call, old, new in dues:
            if old != new:
                yield (
                    call,
                    old,
                    new,
                    {path for path, count in layout.found.runs.items() if count > 1 and len(dues) > 1},
                )


def _settle(student: nn.Module, layout: Places, target: StridePlan, changes: dict[str, Change]) -> None:
    """Compare every map's size with what it should be; pad the layers that lost a border with their stride."""
    size_at = layout.sizes(target)
    resizing = {call.path for call in layout.found.calls}  # other modules may hold maps in another order of axes
    end = layout.tail.path if layout.tail else None  # from the last layer on, the map is the image's size
    visits = itertools.takewhile(lambda visit: visit[0][0] != end, layout.found.visits.items())
    wanted = {run: size_at(level) for run, (level, size) in visits if run[0] in resizing and level.size == size}
    for _ in range(len(changes) + 1):
        found = trace_levels(student, layout.inputs)
        wrong = next((run for run, (_, size) in found.visits.items() if wanted.get(run, size) != size), None)
        if wrong is None:
            break
        path, size, due = wrong[0], found.visits[wrong][1], wanted[wrong]
        change = changes.get(path)
        note = settle(student.get_submodule(path), size, due) if change else None
        if change is None or note is None:
            _check_effect(layout, change)
            what = f", its {change.kind} changed from {change.before} to {change.after}" if change else ""
            raise ValueError(f"{path or 'the network'} gives maps of {times(size)}{what}, not of {times(due)}")
        changes[path] = replace(change, note=", ".join(filter(None, (change.note, note))))
    if found.error is not None:
        inside = found.stack[-1]
        _check_effect(layout, changes.get(inside))
        raise ValueError(f"the student breaks in {inside or 'its forward'}: {found.error}") from found.error
    if found.outputs != layout.found.outputs:
        ours, theirs = ([tuple(shape) for shape in x.outputs] for x in (found, layout.found))
        raise ValueError(f"the student's outputs would be {ours}, not {theirs}: they show a map that shrinks")


def _check_effect(layout: Places, change: Change | None) -> None:
    if change is not None and change.kind == "attribute":
        calls = layout.found.calls
        function = next(call.function for call in calls if call.path == change.layer and call.before != call.after)
        raise ValueError(
            f"{change.layer} calls {function} in its own forward, which cannot be changed from outside: its "
            f"attribute {change.note!r} was set to {change.after}, without effect"
        )


def _rename(student: nn.Module, layout: Places, target: StridePlan, downsampler: Downsampler) -> None:
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
