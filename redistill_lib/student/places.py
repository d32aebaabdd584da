"""Places: where a network downsamples, and by which layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from redistill_lib.network import check_float
from redistill_lib.plans import StridePlan
from redistill_lib.student.trace import Call, Level, Size, Trace, as_inputs, image_size, trace


@dataclass(frozen=True)
class Place:
    """One place where a network downsamples: the layers that carry its stride, all parallel branches together.

    `before` and `after` are height and width of the maps around it. `pool` says that nothing learns between the
    stem and this pool: the place that a ×4 student gives up first.
    """

    layers: tuple[str, ...]
    stride: int
    before: Size
    after: Size
    pool: bool = False

    @property
    def name(self) -> str:
        """Its first layer, e.g. `layer2.0.conv1`."""
        return self.layers[0] or "the network"


@dataclass(frozen=True)
class Layout:
    """The places of a network, and the trace that they were read from."""

    places: tuple[Place, ...]
    levels: tuple[Level, ...]  # behind each place
    found: Trace
    tail: Call | None  # what makes the output image, where only the stem's stride of 1 allows it its size

    @property
    def plan(self) -> StridePlan:
        return StridePlan(self.places[0].stride, tuple(place.stride for place in self.places[1:]))


def find_places(model: nn.Module, example: Tensor | tuple[Any, ...]) -> tuple[Place, ...]:
    """Where a network downsamples, in order: the stem, then every later place with a stride above 1.

    The stem is the first convolution on the image, whatever its stride. `example` is a float image B×C×H×W, or
    the tuple of the network's inputs; nothing is computed. Raises ValueError where the image's size is no multiple of
    the strides, where height and width are treated differently, or where nothing convolves.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1))
    >>> import torch
    >>> [(place.name, place.stride, place.after) for place in find_places(net, torch.zeros(1, 3, 32, 32))]
    [('0', 1, (32, 32)), ('2', 2, (16, 16)), ('3', 2, (8, 8))]
    """
    return find_layout(model, as_inputs(example)).places


def find_layout(model: nn.Module, inputs: tuple[Any, ...]) -> Layout:
    check_float(inputs)
    size = image_size(inputs)
    found = trace(model, inputs)
    if found.error is not None:
        raise found.error
    calls = found.calls
    stems = [call for call in calls if call.before.raw and not call.after.raw]
    if not stems:
        raise ValueError(f"no 2-D convolution of this {type(model).__name__} takes the image, so it has no stem")
    first = stems[0].after
    # An average behind the last convolution, as of older classifiers, is their head's and no place.
    body = calls[:-1] if calls[-1].function == "avg_pool2d" else calls
    down = [c for c in body if c.after.area < c.before.area and not c.before.raw]
    below = {c.after for c in down if c.after.area < first.area}
    levels = sorted({first, *below}, key=lambda level: -level.area)
    places: list[Place] = []
    for before, after in itertools.pairwise([Level(*size, raw=True), *levels]):
        carriers = stems if before.raw else [c for c in down if (c.before, c.after) == (before, after)]
        if not carriers:  # no layer between neighbouring levels: the smaller one is reached from further up only
            carriers = [c for c in down if c.after == after]
        layers = tuple(dict.fromkeys(c.path for c in carriers if c.after == after))
        strides = [round(b / a) for b, a in zip(before.size, after.size, strict=True)]
        if strides[0] != strides[1]:
            raise ValueError(
                f"{layers[0]} strides {strides[0]} down and {strides[1]} across ({_x(before.size)} → "
                f"{_x(after.size)}); a plan has one stride for both"
            )
        since = [c for c in calls[: calls.index(carriers[0]) + 1] if not c.before.raw]
        pool = len(places) == 1 and not any(_learns(model, c) for c in (*since, *carriers))
        places.append(Place(layers, strides[0], before.size, after.size, pool))
    total = math.prod(place.stride for place in places)
    for place in places:
        if any(b != place.stride * a for b, a in zip(place.before, place.after, strict=True)):
            near = _x([max(1, math.ceil(side / total)) * total for side in size])
            raise ValueError(
                f"{place.name} takes {_x(place.before)} to {_x(place.after)}, but stride can move only where it "
                f"divides the maps; try an example of {near} instead of {_x(size)} (without padding, none will do)"
            )
    # A stem of stride 1 leaves the image's size, so only the place of the last call tells the image from a map.
    images = any(tuple(shape[-2:]) == size for shape in found.outputs if len(shape) == 4)
    tail = calls[-1] if images and first.size == size and calls[-1].after == first else None
    return Layout(tuple(places), tuple(levels), found, tail)


def _learns(model: nn.Module, call: Call) -> bool:
    # A fixed filter, as that of a blur pool, is a buffer.
    return call.convolves and any(True for _ in model.get_submodule(call.path).parameters(recurse=False))


def _x(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
