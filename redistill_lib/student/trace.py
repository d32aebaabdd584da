"""Which layer takes a map from which resolution to which, read from one forward pass that computes nothing."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from redistill_lib.network import dtype_of, evaluating
from redistill_lib.network.fakes import quiet_fakes, tensors_in

Size = tuple[int, int]

# The functions that change a map's resolution. What else does (slicing and stacking tokens, as in a Swin merge) shows
# when a student's maps are compared with what they should be.
_CONVOLUTIONS = ("conv2d", "conv_transpose2d")
FITTING = "interpolate to a size"  # which follows the map that it takes the size from
_RESIZERS = (
    *_CONVOLUTIONS, "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "lp_pool2d", "fractional_max_pool2d",
    "interpolate", FITTING, "upsample", "pixel_shuffle", "pixel_unshuffle", "__getitem__",
)  # fmt: skip


class Level(NamedTuple):
    """A resolution of a network. Up to the first convolution, it is the image's own (`raw`)."""

    height: int
    width: int
    raw: bool = False

    @property
    def size(self) -> Size:
        return (self.height, self.width)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a function that convolves or changes resolution, inside the module `path`."""

    path: str
    function: str
    before: Level
    after: Level

    @property
    def convolves(self) -> bool:
        return self.function in _CONVOLUTIONS

    @property
    def resizes(self) -> bool:
        return self.before != self.after


@dataclasses.dataclass(frozen=True)
class Visit:
    """One run of a module that returned a map: its level, and the size it really has."""

    path: str
    level: Level
    size: Size


@dataclasses.dataclass
class Trace:
    """What one forward pass showed; `error` is what broke it off, in the module `inside`."""

    calls: list[Call]
    visits: list[Visit]
    outputs: list[torch.Size]
    error: Exception | None = None
    inside: str = ""


def as_inputs(example: Tensor | Sequence[Any]) -> tuple[Any, ...]:
    return (example,) if isinstance(example, Tensor) else tuple(example)


def image_size(inputs: Sequence[Any]) -> Size:
    """Height and width of the first B×C×H×W input."""
    image = next((x for x in inputs if isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point()), None)
    if image is None:
        raise ValueError("example= needs a float image of shape B×C×H×W among the network's inputs")
    return (image.shape[-2], image.shape[-1])


def trace(model: nn.Module, inputs: tuple[Any, ...]) -> Trace:
    """Follow the image's resolution through the network, in eval mode, without changing or computing anything.

    Where the network decides by its values, one real pass is made instead. Float inputs take the weights' dtype.
    """
    dtype = dtype_of(model)
    inputs = tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    fake = FakeTensorMode()
    with quiet_fakes():
        try:
            with FakeCopyMode(fake):
                twin = copy.deepcopy(model).eval()
            with fake:
                found = _follow(twin, tuple(fake.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs))
        except Exception as error:  # a network that cannot even be copied as fake tensors
            found = Trace([], [], [], error)
    return found if found.error is None else _follow(model, inputs)


def _follow(model: nn.Module, inputs: tuple[Any, ...]) -> Trace:
    watch = _Watch()
    for x in inputs:
        if isinstance(x, Tensor) and x.ndim == 4:
            watch.levels[x] = Level(x.shape[-2], x.shape[-1], raw=True)
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(watch.enter, path)))
        handles.append(module.register_forward_hook(partial(watch.leave, path)))
    found = Trace(watch.calls, watch.visits, [])
    try:
        with evaluating(model), watch:
            output = model(*inputs)
        found.outputs = [x.shape for x in tensors_in(output)]
    except Exception as error:
        found.error, found.inside = error, watch.stack[-1] if watch.stack else ""
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Watch(TorchFunctionMode):
    """Hand each tensor's level on to what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: Any = WeakIdKeyDictionary()
        self.stack: list[str] = []
        self.calls: list[Call] = []
        self.visits: list[Visit] = []

    def enter(self, path: str, module: nn.Module, args: Any) -> None:
        self.stack.append(path)

    def leave(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
        for x in tensors_in(output):
            if x.ndim == 4 and x in self.levels:
                self.visits.append(Visit(path, self.levels[x], _size(x)))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
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
        new, convolves = _size(result), function in _CONVOLUTIONS
        if any(x < 0.75 * y for x, y in zip(_size(source), before.size, strict=True)):
            return before  # a gate's 1×1 map, on its way back to the map it gates
        if before.raw and convolves:
            after = Level(*new)
        elif _same_scale(before.size, new):
            after = before
        else:
            after = Level(*new, raw=before.raw)
        if convolves or after != before:
            self.calls.append(Call(self.stack[-1] if self.stack else "", function, before, after))
        return after


def _size(x: Tensor) -> Size:
    return (x.shape[-2], x.shape[-1])


def _same_scale(a: Sequence[int], b: Sequence[int]) -> bool:
    # Padding and unpadded convolutions add or shave a border; only a real change of scale counts.
    return all(0.75 < x / max(y, 1) < 1.34 for x, y in zip(a, b, strict=True))
