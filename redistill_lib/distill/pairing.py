"""Pairing a student's layers with its teacher's by resolution."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from torch import nn

from redistill_lib.checks import check_type
from redistill_lib.distill.taps import Tap
from redistill_lib.network import MapRef, Resolutions, Step, find_layer, find_resolutions
from redistill_lib.network.flow import Example, Extent, times
from redistill_lib.network.grids import is_alike
from redistill_lib.red import Side


def match_taps(student: nn.Module, teacher: nn.Module, example: Example, narrow: bool = False) -> list[Tap]:
    """Pair student and teacher wherever they change resolution in the same way, from the earliest to the deepest.

    The student's first downsampling layer gives its output; each later one gives input and output, paired with the
    teacher's layer that goes from and to the same height × width; of several, with the one in the same order. Where
    unpadded layers leave another border at one end, the other end alone is paired. Upsampling to the image at the end
    gives its input alone. A pool right after a tapped layer is not tapped, nor is a map of 1×1. Maps with channels
    last and tokens, as a transformer's patches are held, are paired too; their taps say so (`Tap.grid`). For the
    paper's pairs these are the paper's taps (arXiv 2406.03744 and its published configurations). With `narrow` each
    tap is instead at the narrowest map before or behind that layer, as at the ends of an inverted residual;
    `redistill_lib.costs.tap_costs` compares the two. Raises ValueError where nothing matches.

    >>> import torch
    >>> def net(a, b): return nn.Sequential(nn.Conv2d(3, 8, 3, a, 1), nn.Conv2d(8, 8, 3, b, 1), nn.Conv2d(8, 8, 3, 2))
    >>> match_taps(net(4, 1), net(2, 2), torch.zeros(1, 3, 32, 32))
    [Tap(0 output ← 1 output, channels=8), Tap(2 input ← 2 input, channels=8), Tap(2 output ← 2 output, channels=8)]
    """
    check_type("student", student, nn.Module)
    check_type("teacher", teacher, nn.Module)
    ours, theirs = find_resolutions(student, example, "student"), find_resolutions(teacher, example, "teacher")
    return pair_steps(student, ours, teacher, theirs, narrow)


def pair_steps(
    student: nn.Module, ours: Resolutions, teacher: nn.Module, theirs: Resolutions, narrow: bool = False
) -> list[Tap]:
    """`match_taps` of two networks that were followed before."""
    image, taps = ours.image, list[Tap]()
    own, others = (found.narrowest() if narrow else found.steps for found in (ours, theirs))
    seen = Counter[tuple[Extent, Extent]]()
    for step in own:
        ends = step.before, step.after
        exact = [t for t in others if (t.before, t.after) == ends]
        alike = exact[min(seen[ends], len(exact) - 1) :] or [
            t for t in others if t.down == step.down and all(map(is_alike, (t.before, t.after), ends))
        ]
        seen[ends] += 1
        if not step.learns:
            continue
        pairs: list[tuple[Side, list[Step]]]
        if step.down and step.before == image:
            pairs = [("output", [t for t in others if t.down and t.after == step.after])]
        elif not step.down and step.after == image:
            step = _widest(ours, step)
            pairs = [("input", [t for t in others if not t.down and t.before == step.before])]
        else:
            pairs = [
                ("input", [t for t in alike if t.before == step.before]),
                ("output", [t for t in alike if t.after == step.after]),
            ]
        for side, sources in pairs:
            place, channels, grid = step.end(side)
            source, _, teacher_grid = next((end for t in sources if (end := t.end(side))[0]), (None, 0, None))
            sides = step.before if side == "input" else step.after
            if place is None or source is None or set(sides) == {1}:
                continue
            layers = find_layer(student, place.layer), find_layer(teacher, source.layer)
            tap = Tap(layers[0], place.side, layers[1], source.side, channels=channels, grid=grid)
            tap = replace(tap, teacher_grid=teacher_grid, volume=grid is None and len(sides) == 3)
            if tap.place not in [other.place for other in taps]:
                taps.append(tap)
    if not taps:
        sizes = [" → ".join(map(times, (s.before, s.after))) for s in (*ours.steps, *theirs.steps)]
        raise ValueError(
            f"no student and teacher layers change resolution alike at input {times(image)} "
            f"(student and teacher: {', '.join(sizes) or 'no change at all'}); "
            "give both the same total stride, or taps by hand: at and locality take maps of any two sizes (of tokens "
            "with grid= and teacher_grid=); methods on outputs, such as kd, need none"
        )
    return taps


def _widest(found: Resolutions, step: Step) -> Step:
    """The largest module that ends the network with this step: its input is the last map before normalisation."""
    if step.input is None:
        return step
    visits = {visit.run[0]: visit for visit in found.flow.visits}
    parts = step.input.layer.split(".")
    outer = (".".join(parts[: k + 1]) for k in range(len(parts)))
    path = next(path for path in outer if path in visits)
    value = visits[path].takes
    shape = found.flow.shapes[value]
    if value < 0 or not found.grids.is_map(value) or shape[2:] != step.before:
        return step
    return replace(step, input=MapRef(path, "input"), channels_in=shape[1], last_in=False)
