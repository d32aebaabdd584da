"""What must be true of a student: it runs, answers as its teacher in shape, and its maps are as they were planned."""

from __future__ import annotations

from fractions import Fraction

from torch import nn

from redistill_lib.network.flow import Example, Flow, trace_flow
from redistill_lib.network.grids import Grids
from redistill_lib.student.calls import edits_of
from redistill_lib.student.places import Layout


def check_outputs(layout: Layout, found: Flow) -> None:
    """Raise ValueError where the student breaks, or answers in other shapes."""
    if found.error is not None:
        inside = found.running
        raise ValueError(f"the student breaks in {inside or 'its forward'}: {found.error}") from found.error
    if found.outputs != layout.found.flow.outputs:
        ours, theirs = ([tuple(shape) for shape in x.outputs] for x in (found, layout.found.flow))
        raise ValueError(f"the student's outputs would be {ours}, not {theirs}: they show a map that shrinks")


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


def check_training(student: nn.Module, example: Example) -> None:
    """Raise ValueError where a forward makes other calls in training than those by which they were numbered."""
    edited = [
        (path, edits_of(module).rewrites) for path, module in student.named_modules() if edits_of(module).rewrites
    ]
    if not edited:
        return
    passes = [trace_flow(student, example, training=training) for training in (False, True)]
    if passes[1].error is not None:
        return  # such as batch norm over a single value, which a larger batch has not
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
