"""Where a network downsamples, and by which layers, read from one forward pass that computes nothing."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from redistill_lib.checks import check_type
from redistill_lib.network import check_float, dtype_of
from redistill_lib.network.fakes import Tensors, follow, tensors_in
from redistill_lib.plans import StridePlan
from redistill_lib.student.calls import function_name

Extent = tuple[int, int]

# The functions that change a map's resolution; others show when a student's maps are compared with the expected.
_CONVOLUTIONS = ("conv2d", "conv_transpose2d")
FITTING = "interpolate to a size"  # which follows the map that it takes the size from
_RESIZERS = (
    *_CONVOLUTIONS, "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "lp_pool2d", "fractional_max_pool2d",
    "interpolate", FITTING, "upsample", "max_unpool2d", "pixel_shuffle", "pixel_unshuffle", "__getitem__",
)  # fmt: skip


class Level(NamedTuple):
    """A resolution of a network; `raw` up to the first convolution."""

    size: Extent
    raw: bool = False

    @property
    def area(self) -> int:
        return math.prod(self.size)


class MapCall(NamedTuple):
    """One call of a function that convolves or changes resolution, inside the module `path`."""

    path: str
    function: str
    before: Level
    after: Level
    stack: tuple[tuple[str, int], ...] = (("", 0),)
    numbers: tuple[int, ...] = (0,)
    line: str = ""


@dataclass(frozen=True)
class Place:
    """One place where a network downsamples: the layers that carry its stride, all parallel branches together."""

    layers: tuple[str, ...]
    stride: int
    before: Extent  # height and width of the maps before it
    after: Extent
    pool: bool  # nothing learns from the stem to here

    @property
    def name(self) -> str:
        """Its first layer, e.g. `layer2.0.conv1`."""
        return self.layers[0] or "the network"


@dataclass(frozen=True)
class Places:
    """The places of a network, and the trace that they were read from."""

    places: tuple[Place, ...]
    inputs: tuple[Any, ...]
    image: Extent
    found: LevelTrace
    tail: MapCall | None  # what makes the output image, where only the stem's stride of 1 allows it its size

    @property
    def plan(self) -> StridePlan:
        return StridePlan(self.places[0].stride, tuple(place.stride for place in self.places[1:]))

    def sizes(self, target: StridePlan) -> Callable[[Level], Extent]:
        """The height and width that a student of plan `target` has at each of the teacher's levels."""
        image, known, total = self.image, dict[Level, Extent](), 1
        for place, stride in zip(self.places, target.places, strict=True):
            total *= stride
            if any(side % total for side in image):
                raise ValueError(
                    f"a student of plan {target} divides its images by {total} or more, which an example of "
                    f"{times(image)} does not allow"
                )
            known[Level(place.after)] = (image[0] // total, image[1] // total)
        least, shrink = math.prod(self.places[0].after), target.stem / self.plan.stem

        def size(level: Level) -> Extent:
            if level in known:
                return known[level]
            if level.raw or not least < level.area < math.prod(image):
                return level.size  # the image's, or that of a gate or a head
            # A level of the way up alone shrinks with the stem's: what leads back to the image grows by the factor.
            return (round(level.size[0] / shrink), round(level.size[1] / shrink))

        return size


def find_places(model: nn.Module, example: Tensor | tuple[Any, ...]) -> tuple[Place, ...]:
    """Where a network downsamples, in order: the stem, then every later place with a stride above 1.

    The stem is the first convolution on the image. `example` is a float image B×C×H×W, or the tuple of the network's
    inputs. Raises ValueError where the strides do not divide the image, or differ in height and width.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1))
    >>> import torch
    >>> [(place.name, place.stride, place.after) for place in find_places(net, torch.zeros(1, 3, 32, 32))]
    [('0', 1, (32, 32)), ('2', 2, (16, 16)), ('3', 2, (8, 8))]
    """
    return find_layout(model, example).places


def find_layout(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Places:
    check_type("model", model, nn.Module)
    inputs = (example,) if isinstance(example, Tensor) else tuple(check_type("example", example, Tensor, Iterable))
    check_float(inputs)
    image = next((x for x in inputs if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()), None)
    if image is None:
        raise ValueError("example= needs a float image of shape B×C×H×W among the network's inputs")
    size = _size(image)
    found = trace_levels(model, inputs)
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
    places: list[Place] = []
    # A fixed filter, as that of a blur pool, is a buffer.
    convolutions = (c for c in calls if c.function in _CONVOLUTIONS)
    learning = {c for c in convolutions if [*model.get_submodule(c.path).parameters(recurse=False)]}
    levels = sorted({first, *below}, key=lambda level: -level.area)
    for before, after in itertools.pairwise([Level(size, raw=True), *levels]):
        reaching = [c for c in (stems if before.raw else down) if c.after == after]
        # Where no layer is between neighbouring levels, the smaller one is reached from further up only.
        carriers = [c for c in reaching if before.raw or c.before == before] or reaching
        layers = tuple(dict.fromkeys(c.path for c in carriers))
        strides = [round(b / a) for b, a in zip(before.size, after.size, strict=True)]
        if strides[0] != strides[1]:
            raise ValueError(
                f"{layers[0]} strides {strides[0]} down and {strides[1]} across ({times(before.size)} → "
                f"{times(after.size)}); a plan has one stride for both"
            )
        since = (c for c in calls[: calls.index(carriers[0]) + 1] if not c.before.raw)
        pool = len(places) == 1 and learning.isdisjoint((*since, *carriers))
        places.append(Place(layers, strides[0], before.size, after.size, pool))
    total = math.prod(place.stride for place in places)
    for place in places:
        if any(b != place.stride * a for b, a in zip(place.before, place.after, strict=True)):
            near = times([max(1, math.ceil(side / total)) * total for side in size])
            raise ValueError(
                f"{place.name} takes {times(place.before)} to {times(place.after)}, but stride can move only where "
                f"it divides the maps; try an example of {near} instead of {times(size)} (without padding, none will "
                "do)"
            )
    # A stem of stride 1 leaves the image's size, so only the place of the last call tells the image from a map.
    images = any(tuple(shape[-2:]) == size for shape in found.outputs if len(shape) == 4)
    tail = calls[-1] if images and first.size == size and calls[-1].after == first else None
    return Places(tuple(places), inputs, size, found, tail)


def times(size: Iterable[int]) -> str:
    return "×".join(map(str, size))


def trace_levels(model: nn.Module, inputs: tuple[Any, ...]) -> LevelTrace:
    """Follow the image's resolution through the network, computing only where it decides by its values."""
    dtype = dtype_of(model)
    inputs = tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    found = LevelTrace()

    def watch(twin: nn.Module, inputs: tuple[Any, ...], source: Tensors) -> None:
        nonlocal found
        found = LevelTrace()
        for x in inputs:
            if isinstance(x, Tensor) and x.ndim == 4:
                found.levels[x] = Level(_size(x), raw=True)
        for path, module in twin.named_modules():
            module.register_forward_pre_hook(partial(found.enter, path))
            module.register_forward_hook(partial(found.leave, path))
        with found:
            found.outputs = [x.shape for x in tensors_in(twin(*inputs))]

    try:
        follow(model, inputs, watch)
    except Exception as error:
        found.error = error
    return found


class LevelTrace(TorchFunctionMode):
    """What one forward pass shows. Hands each tensor's level on to what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: Any = WeakIdKeyDictionary()
        self.runs = Counter[str]()
        self.frames: list[tuple[str, int, Counter[str]]] = [("", 0, Counter())]
        self.now: tuple[int, ...] = ()
        self.stack = [""]  # of the modules that run; after an error the last one is where it came from
        self.calls: list[MapCall] = []
        # What each module returned, by its path and the number of the run: the map's level and its true size.
        self.visits: dict[tuple[str, int], tuple[Level, Extent]] = {}
        self.outputs: list[torch.Size] = []
        self.error: Exception | None = None

    def enter(self, path: str, module: nn.Module, args: Any) -> None:
        self.stack.append(path)
        if path:
            self.frames.append((path, self.runs[path], Counter()))
            self.runs[path] += 1

    def leave(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
        if path:
            self.frames.pop()
        for x in tensors_in(output):
            if x.ndim == 4 and x in self.levels:
                number = next(k for k in itertools.count() if (path, k) not in self.visits)
                self.visits[path, number] = self.levels[x], _size(x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        counted = function_name(func)
        self.now = tuple(frame[2][counted] for frame in self.frames)
        for frame in self.frames:
            frame[2][counted] += 1
        if name == "interpolate" and (kwargs.get("size") is not None or (len(args) > 1 and args[1] is not None)):
            name = FITTING
        results = tensors_in(output) if isinstance(output, (Tensor, tuple, list)) else []
        if results and (sources := [x for x in tensors_in((args, kwargs)) if x in self.levels]):
            for result in results:
                self.levels[result] = self._level(name, sources, result)
        return output

    def _level(self, function: str, sources: list[Tensor], result: Tensor) -> Level:
        source = next((x for x in sources if x.ndim == 4 and not self.levels[x].raw), sources[0])
        before: Level = self.levels[source]
        if function not in _RESIZERS or source.ndim != 4 or result.ndim != 4:
            return before
        if any(x < 0.75 * y for x, y in zip(_size(source), before.size, strict=True)):
            return before  # a gate's 1×1 map, on its way back to the map it gates
        new, convolves = _size(result), function in _CONVOLUTIONS
        # Padding and unpadded convolutions add or shave a border; only a real change of scale counts.
        kept = all(0.75 < x / max(y, 1) < 1.34 for x, y in zip(before.size, new, strict=True))
        stem = before.raw and convolves
        after = before if kept and not stem else Level(new, raw=before.raw and not convolves)
        if convolves or after != before:
            stack = tuple(frame[:2] for frame in self.frames)
            self.calls.append(MapCall(self.stack[-1], function, before, after, stack, self.now, _line()))
        return after


def _line() -> str:
    frame = sys._getframe()
    while frame.f_back and any(part in frame.f_code.co_filename for part in ("/torch/", "redistill_lib")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"


def _size(x: Tensor) -> Extent:
    return (x.shape[-2], x.shape[-1])
