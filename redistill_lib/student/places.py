"""The places that a stride plan has digits for, and what a plan makes of every map of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from torch import nn

from redistill_lib.network import Place, Resolutions, find_resolutions
from redistill_lib.network.flow import Example, Extent, times
from redistill_lib.plans import StridePlan


@dataclass(frozen=True)
class Layout:
    """A network's resolutions, its plan, and the image that it was followed with."""

    found: Resolutions
    image: Extent

    @property
    def places(self) -> tuple[Place, ...]:
        return self.found.places

    @property
    def plan(self) -> StridePlan:
        return StridePlan(self.places[0].stride, tuple(place.stride for place in self.places[1:]))

    @cached_property
    def behind(self) -> set[int]:
        """The values behind the calls that make what is returned."""
        flow = self.found.flow
        behind = {value for number in self.found.tails for value in flow.calls[number].makes}
        for call in flow.calls:
            behind.update(call.makes if behind.intersection(call.takes) else ())
        return behind


def find_places(model: nn.Module, example: Example) -> tuple[Place, ...]:
    """Where a network downsamples, in order: the stem, then every later place with a stride above 1.

    The stem is the first convolution on the image. `example` is a float image B×C×H×W (or volume B×C×D×H×W), the
    tuple of the network's inputs, or a dict of named ones. Raises ValueError where no convolution takes the image, or
    strides differ in height and width.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1))
    >>> import torch
    >>> [(place.name, place.stride, place.after) for place in find_places(net, torch.zeros(1, 3, 32, 32))]
    [('0', 1, (32, 32)), ('2', 2, (16, 16)), ('3', 2, (8, 8))]
    """
    return find_layout(model, example).places


def find_layout(model: nn.Module, example: Example) -> Layout:
    found = find_resolutions(model, example)
    if not found.places:
        raise ValueError(f"no convolution of this {type(model).__name__} takes the image, so it has no stem")
    for change in found.grids.changes:
        if len(set(change.factors)) > 1 and not found.grids[change.after].raw:
            strides = " and ".join(map(str, change.factors))
            path = found.flow.calls[change.number].path or "the network"
            raise ValueError(
                f"{path} strides by {strides} along the sides of its maps; a plan has one stride for all"
            )
    return Layout(found, found.image)


def plan_totals(layout: Layout, strides: Sequence[int], mirror: bool = True) -> list[Fraction]:
    """By grid, how many pixels of the image are one of its maps in a student with these strides at its places.

    On the way up, maps that meet those of the way down follow them; so do others where `mirror`, or nothing moves.
    """
    known, total = dict[Fraction, Fraction](), Fraction(1)
    for place, stride in zip(layout.places, strides, strict=True):
        total *= stride
        known[Fraction(place.total)] = total
    if any(total > side for side in layout.image):
        raise ValueError(
            f"a student with strides {', '.join(map(str, strides))} divides its images by {total}, which an example "
            f"of {times(layout.image)} does not allow"
        )
    grids = layout.found.grids
    deepest, stem = max(known), Fraction(strides[0], layout.places[0].stride)
    totals: list[Fraction] = []
    inside: dict[tuple[int, Fraction], Fraction] = {}  # of gates, by the map that they weigh and their own total
    roots: list[int] = []
    free = set[int]()
    for number, grid in enumerate(grids.grids):
        gate = number in grids.gates and grid.parent != number
        gate &= number not in grids.unused or grid.total not in known
        if not (mirror or number in grids.meets) and (grid.parent in free or grid.total < grids[grid.parent].total):
            free.add(number)
        roots.append(roots[grid.parent] if gate else number)
        if gate:
            key, ratio = (roots[number], grid.total), grid.total / grids[grid.parent].total
            inside[key] = inside.get(key) or _follow(layout.image, totals[grid.parent], ratio)
            totals.append(inside[key])
        elif grid.raw:
            totals.append(grid.total)
        elif number in free:
            totals.append(totals[grid.parent] * grid.total / grids[grid.parent].total)
        elif grid.total in known:
            totals.append(known[grid.total])
        elif grid.total > deepest:  # a head
            totals.append(grid.total * known[deepest] / deepest)
        else:
            # A level of the way up alone shrinks with the stem's: what leads back to the image grows by the factor.
            totals.append(grid.total * stem if grid.total > 1 else grid.total)
        inside[number, grid.total] = totals[-1]
    return totals


def _follow(image: Extent, total: Fraction, ratio: Fraction) -> Fraction:
    """The total behind a gate's stride, or behind as much of it as still divides the map."""
    sides = [math.ceil(side / total) for side in image]
    if ratio > 1 and ratio.denominator == 1:
        kept = (k for k in range(int(ratio), 0, -1) if ratio % k == 0 and not any(side % k for side in sides))
        ratio = Fraction(next(kept))
    return total * ratio
