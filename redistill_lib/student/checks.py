"""What must be true of a student: it runs, answers as its teacher in shape, and its maps are as they were planned."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from redistill_lib.network.flow import Example, Flow, times, trace_flow
from redistill_lib.network.grids import Grids
from redistill_lib.student.calls import edits_of
from redistill_lib.student.places import Layout


def check_outputs(layout: Layout, found: Flow) -> None:
    """Raise ValueError where the student breaks, or answers in other shapes."""
    theirs = layout.found.flow
    if found.error is not None:
        taking = {visit.run[0]: visit.takes for visit in theirs.visits if visit.takes >= 0}
        around = next((path for path in _outwards(found.running) if path in taking), None)
        size = "" if around is None else f", whose map was {times(layout.found.grids.at(taking[around]).size)}"
        cure = "sizes have to come from what it gets, and maps that it joins to shrink alike"
        cure = f"; its {cure}; or give plan= with strides that leave that map as it was"
        raise ValueError(
            f"the student breaks in {found.running or 'its forward'}{size}: {found.error}"
            + ("" if isinstance(found.error, ValueError) else cure)  # which says itself what is wrong
        ) from found.error
    if found.outputs != theirs.outputs:
        ours, wanted = ([tuple(shape) for shape in flow.outputs] for flow in (found, theirs))
        unlike = [shape for shape in wanted if shape not in ours]
        found_in = all(shape and shape[0] != theirs.shapes[0][0] for shape in unlike)  # not one for each image
        why = "their number depends on what is in the images" if found_in else "they show a map that shrinks"
        raise ValueError(f"the student's outputs would be {ours}, not {wanted}: {why}")


def _outwards(path: str) -> Iterator[str]:
    """A module's path, and those around it."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def check_totals(layout: Layout, flow: Flow, totals: list[Fraction]) -> None:
    """Raise ValueError where a layer does not run, or works on maps that are shrunk otherwise than was wanted."""
    theirs, ours = layout.found.grids, Grids(flow)
    runs = {visit.run: visit for visit in flow.visits}
    ran = {path for path, _ in runs}
    for visit in layout.found.flow.visits:
        path, value = visit.run[0], visit.takes
        if path not in ran:
            raise ValueError(
                f"{path} runs in the network and not in the student: some forward decides by the size of its maps"
            )
        now = runs[visit.run].takes if visit.run in runs else -1
        if min(value, now) < 0 or not theirs.is_map(value) or theirs.of[value] in theirs.gates:
            continue
        if value in layout.behind:
            continue
        wanted = totals[theirs.of[value]]
        if ours.is_map(now) and not ours.at(now).raw and ours.at(now).total != wanted:
            raise ValueError(
                f"{path} would work on maps shrunk by {ours.at(now).total} instead of {wanted}: a change of their "
                "size before it could not be moved; make it a module with a stride of its own, as nn.MaxPool2d"
            )


def check_training(student: nn.Module, model: nn.Module, layout: Layout, example: Example) -> None:
    """Raise ValueError where a forward, in training, breaks or makes other calls than those that were numbered."""
    modules = list(student.named_modules())
    edited = [(path, rewrites) for path, module in modules if (rewrites := edits_of(module).rewrites)]
    ran = {path for visit in layout.found.flow.visits for path in _outwards(visit.run[0])}
    resting = {
        path for path, module in modules if path and path not in ran and next(module.parameters(), None) is not None
    }
    if not edited and not resting:
        return
    trained = trace_flow(student, example, training=True)
    if trained.error is not None:
        # Batch norm over a single value breaks too, which a larger batch has not.
        twice = tree_map_only(Tensor, lambda x: x.repeat(2, *[1] * (x.ndim - 1)) if x.ndim else x, example)
        ours, theirs = (trace_flow(network, twice, training=True) for network in (student, model))
        if ours.error is not None and theirs.error is None and resting.intersection(_outwards(ours.running)):
            raise ValueError(
                f"{ours.running} runs in training alone and breaks in the student: {ours.error}; build the network "
                "without that branch, or give plan= with strides that leave its map as it was"
            ) from ours.error
        return
    passes = [trace_flow(student, example), trained] if edited else []
    for path, rewrites in edited:
        for function in {rule.function for rule in rewrites}:
            asked = [
                [
                    call.line
                    for call in found.calls
                    if path in [name for name, _ in call.stack] and call.function.split(" ")[0] == function
                ]
                for found in passes
            ]
            if asked[0] != asked[1]:
                raise ValueError(
                    f"{path or 'the network'} calls {function} {len(asked[1])} times in training and {len(asked[0])} "
                    "times in eval mode, so one of them cannot be changed from outside; give it a module of its own"
                )
