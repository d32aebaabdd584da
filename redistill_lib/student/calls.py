"""Changing a module's forward from outside: the strides of functions called in it, and steps before and behind it."""

from __future__ import annotations

import functools
import inspect
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from redistill_lib.network.flow import FITTING, Call
from redistill_lib.red import inserted_blocks
from redistill_lib.student.kernels import each, lines_for, resize_tile, tiles


class Rewrite(NamedTuple):
    """One call in a module's forward whose ratio of `old` becomes `new`; `number` counts the function's calls."""

    function: str
    number: int
    old: int
    new: int
    rounding: Literal["", "down", "up"] = ""  # of the sides that it divides, where the border it loses is made up for

    def scaled(self, value: int) -> int:
        """A stride of the call for the new ratio; RuntimeError where it cannot have had the old one."""
        scaled, rest = divmod(value * self.new, self.old)
        if rest or not value:
            raise RuntimeError(
                f"call {self.number} of {self.function} strides {value}, which is no multiple of {self.old}: this "
                "pass goes another way than the one by which the student was derived"
            )
        return scaled

    def divided(self, side: int) -> int:
        return -(-side // self.new) if self.rounding != "down" else side // self.new

    def __str__(self) -> str:
        return f"{self.function} no. {self.number}: {self.old} → {self.new}"


def rewrite_call(
    model: nn.Module,
    call: Call,
    old: int,
    new: int,
    shared: Collection[str] = (),
    sides: tuple[Sequence[int], Sequence[int]] | None = None,
) -> str:
    """Let the call behind `call` change its map by `new` instead of `old`, in place; a note that says where it is.

    The innermost module around it that is not in `shared` (paths of modules that also run elsewhere) changes its call
    from then on. `sides` are those of the maps that the call took and gave; without them a pass has to show whether
    they were divided. Raises ValueError with the cure where that is impossible.
    """
    rounding: Literal["", "down", "up"] = ""
    if sides is not None:
        pairs = list(zip(*sides, strict=True))
        rounding = (
            "up"
            if all(b == -(-a // old) for a, b in pairs)
            else "down"
            if all(b == a // old for a, b in pairs)
            else ""
        )
    function = "interpolate" if call.function == FITTING else call.function  # which count as one
    if _kind_of(function) not in _EDITS:
        raise ValueError(
            f"{_where(model, call)}, whose stride cannot be changed there; make it a convolution or a pool, or "
            "give it a module with a stride of its own, as nn.MaxPool2d"
        )
    runs = zip(call.stack, call.numbers, strict=True)
    path, number = [(path, number) for (path, _), number in runs if path not in shared][-1]
    module = model.get_submodule(path)
    if why := _closed(module):
        raise ValueError(f"{_where(model, call)}, which cannot be changed from outside, as {path or 'it'} {why}")
    edit(module, rewrites=(Rewrite(function, number, old, new, rounding),))
    return f"{call.function} in {call.line}"


def _where(model: nn.Module, call: Call) -> str:
    what = "slices" if call.function == "__getitem__" else f"calls {call.function}"
    name = type(model.get_submodule(call.path)).__name__
    return f"{call.path or 'the network'} ({name}) {what} at {call.line}"


def _closed(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        return "is a compiled graph; derive from the network that it was made of"
    return "has a forward of its own instance; derive before that is set" if "forward" in vars(module) else ""


def edit(
    module: nn.Module,
    before: Iterable[nn.Module] = (),
    behind: Iterable[nn.Module] = (),
    rewrites: Iterable[Rewrite] = (),
) -> None:
    """Add steps before and behind a module that are no layers, and calls that its forward makes otherwise, in place.

    The module keeps its parameters, hooks and settings; its class becomes one derived from its own.
    """
    found = edits_of(module)
    if "_edits" not in vars(module):
        kind: Any = type(module)
        module.__class__ = _edited(kind)
    rules = {rule[:2]: rule for rule in found.rewrites}
    for rule in rewrites:  # a call that was changed before is changed from what it was at first
        rules[rule[:2]] = rule._replace(old=rules.get(rule[:2], rule).old)
    changed = tuple(rule for rule in rules.values() if rule.old != rule.new)
    edits = Edits((*before, *found.before), (*found.behind, *behind), changed)
    vars(module)["_edits"] = edits


class Edits(NamedTuple):
    """What an edited module does otherwise than its class."""

    before: tuple[nn.Module, ...] = ()
    behind: tuple[nn.Module, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()


def edits_of(module: nn.Module) -> Edits:
    edits: Edits = vars(module).get("_edits", Edits())
    return edits


@functools.cache
def _edited(kind: Any) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        edits = self._edits
        if edits.before:
            key = None if args else next(iter(kwargs))
            x = args[0] if key is None else kwargs[key]
            for step in edits.before:
                x = step(x)
            args, kwargs = ((x, *args[1:]), kwargs) if key is None else ((), {**kwargs, key: x})
        if edits.rewrites:
            with ExitStack() as stack:
                counting = stack.enter_context(Rewriting(edits.rewrites))
                for _, _, block in inserted_blocks(self):  # which were not there when the calls were numbered
                    counting.thread = threading.get_ident()
                    stack.enter_context(block.register_forward_pre_hook(counting.pause))
                    stack.enter_context(block.register_forward_hook(counting.go_on))
                output = kind.forward(self, *args, **kwargs)
        else:
            output = kind.forward(self, *args, **kwargs)
        for step in edits.behind:
            output = step(output)
        return output

    def extra_repr(self: Any) -> str:
        before, behind, rewrites = self._edits
        steps = [*(f"behind {x}" for x in before), *map(str, rewrites), *(f"then {x}" for x in behind)]
        return ", ".join(filter(None, (kind.extra_repr(self), *steps)))

    def reduce(self: Any) -> Any:
        # A class made here has no name by which pickle could find it.
        return _blank, (kind,), self.__getstate__()

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    members = {"forward": forward, "extra_repr": extra_repr, "__reduce__": reduce, "__module__": __name__}
    return type(kind.__name__, (kind,), members)


def _blank(kind: Any) -> nn.Module:
    edited: Any = _edited(kind)
    return edited.__new__(edited)


class Rewriting(TorchFunctionMode):
    """While on, counts the calls of each function and changes those named. Modes further out count the same calls."""

    def __init__(self, rewrites: tuple[Rewrite, ...]) -> None:
        super().__init__()
        self.rewrites = rewrites
        self.counts: dict[str, int] = dict.fromkeys((rule.function for rule in rewrites), 0)
        self.paused, self.thread = 0, 0

    def pause(self, *args: Any) -> None:
        self.paused += threading.get_ident() == self.thread  # hooks are called in all threads

    def go_on(self, *args: Any) -> None:
        self.paused -= threading.get_ident() == self.thread

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        if self.paused or name not in self.counts:
            return func(*args, **kwargs)
        number = self.counts[name]
        self.counts[name] = number + 1
        kind = _kind_of(name)
        for rule in self.rewrites:
            if rule.function == name and rule.number == number:
                change, names = _EDITS[kind]
                return change(func, rule, {**dict(zip(names, args, strict=False)), **kwargs})
        return func(*args, **kwargs)


def function_name(func: Any) -> str:
    """The name under which a pass counts a function."""
    name: str = getattr(func, "__name__", "")
    return "__getitem__" if name == "getitem" else name  # as compilers call it


def _kind_of(function: str) -> str:
    """A function's name without its number of axes."""
    return re.sub(r"[123]d", "", function)


def _passed(function: str) -> Callable[..., Tensor]:
    """What stands for a function that became the identity: modes further out see it called."""

    def passed(x: Tensor, **given: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(passed, (x,), x, **given)
        return x

    passed.__name__ = function
    return passed


def _convolve(func: Any, rule: Rewrite, given: dict[str, Any]) -> Tensor:
    x, weight = given.pop("input"), given.pop("weight")
    kernel = tuple(weight.shape[2:])
    old, dilation = each(given.get("stride", 1), len(kernel)), each(given.get("dilation", 1), len(kernel))
    stride = tuple(map(rule.scaled, old))
    padding = given.get("padding", 0)
    if tiles(kernel, old, padding, dilation):
        weight = resize_tile(weight, stride, math.prod(kernel) / math.prod(stride))
    else:
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        if padding == "same":  # which only stride 1 may have
            padding = tuple((r - 1) // 2 for r in reach)
        padding = each(0 if padding == "valid" else padding, len(kernel))
        given["padding"] = padding
        if any(pads := _missing(rule, x.shape[2:], reach, padding, old)):
            x = F.pad(x, pads)
    return func(x, weight, **{**given, "stride": stride})


def _pool(func: Any, rule: Rewrite, given: dict[str, Any]) -> Any:
    x = given.pop("input")
    kernel = each(given["kernel_size"], x.ndim - 2)
    old, padding, dilation = (
        each(given.get(name) or default, len(kernel))
        for name, default in (("stride", kernel), ("padding", 0), ("dilation", 1))
    )
    stride = tuple(map(rule.scaled, old))
    indices = rule.function.endswith("_with_indices")
    if tiles(kernel, old, padding, dilation):
        if norm := given.get("norm_type"):  # which adds up what is in the window
            x = x * (math.prod(kernel) / math.prod(stride)) ** (1 / float(norm))
        if math.prod(stride) == 1 and not norm and not indices:
            return _passed(rule.function)(x, kernel_size=stride, stride=stride)
        kernel = stride
    else:
        reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
        pads = _missing(rule, x.shape[2:], reach, padding, old, given.get("ceil_mode", False))
        given["ceil_mode"] = given.get("ceil_mode", False) and not pads
        if any(pads):
            if indices:
                raise RuntimeError(
                    f"{rule.function} with kernel {kernel[0]} cannot keep its indices at stride {stride[0]}"
                )
            x = F.pad(x, pads, value=-math.inf) if "max" in rule.function else F.pad(x, pads, mode="replicate")
    return func(x, **{**given, "kernel_size": kernel, "stride": stride})


def _missing(
    rule: Rewrite,
    sides: Sequence[int],
    reach: Sequence[int],
    padding: Sequence[int],
    old: Sequence[int],
    up: bool = False,
) -> list[int]:
    """The lines to add (as F.pad takes them) to have the sides divided at the new stride too; [] if they are not."""
    pads: list[int] = []
    for side, r, p, stride in zip(sides, reach, padding, old, strict=True):
        room = side + 2 * p - r
        if not rule.rounding and (-(-room // stride) if up else room // stride) + 1 != -(-side // rule.old):
            return []
        pads = [*lines_for(rule.divided(side), side + 2 * p, r, rule.scaled(stride)), *pads]
    return pads


def _unpool(func: Any, rule: Rewrite, given: dict[str, Any]) -> Any:
    kernel = given["kernel_size"]
    stride = given.get("stride") or kernel
    new = tuple(map(rule.scaled, each(stride, given["input"].ndim - 2)))
    given["stride"] = new
    if tiles(kernel, stride, given.get("padding", 0)):
        given["kernel_size"] = new
    return func(given.pop("input"), given.pop("indices"), **given)


def _interpolate(func: Any, rule: Rewrite, given: dict[str, Any]) -> Tensor:
    x = given.pop("input")
    sides, size, scale = x.shape[2:], given.get("size"), given.get("scale_factor")
    up = each(scale, 1)[0] >= 1 if size is None else each(size, 1)[0] >= sides[0]
    if rule.new == 1:
        return _passed(rule.function)(x, scale_factor=1.0)
    if size is None:
        given["scale_factor"] = float(rule.new) if up else 1 / rule.new
    else:  # as large as the ratio makes it: the old size may have been computed or given
        given["size"] = [side * rule.new if up else side // rule.new for side in sides]
    return func(x, **given)


def _slice(func: Any, rule: Rewrite, given: dict[str, Any]) -> Tensor:
    def scaled(index: Any) -> Any:
        if not isinstance(index, slice) or index.step in (None, 1):
            return index
        # What is left out at the start are pixels of a map that the student has at another resolution.
        start = None if index.start is None else index.start * rule.new // rule.old
        return slice(start, index.stop, rule.scaled(index.step))

    index = given["index"] if isinstance(given["index"], tuple) else (given["index"],)
    new = tuple(map(scaled, index))
    if all(a is b for a, b in zip(index, new, strict=True)):
        rule.scaled(0)  # it takes no steps
    return func(given["input"], new)


def _shuffle(func: Any, rule: Rewrite, given: dict[str, Any]) -> Tensor:
    x, factor = given["input"], given["upscale_factor"]
    return func(_regroup(x, factor, rule.scaled(factor)), rule.scaled(factor))


def _unshuffle(func: Any, rule: Rewrite, given: dict[str, Any]) -> Tensor:
    factor = given["downscale_factor"]
    new = rule.scaled(factor)
    return _regroup(func(given["input"], new), new, factor)


def _regroup(x: Tensor, old: int, new: int) -> Tensor:
    """Channels that stand for old × old pixels each, made to stand for new × new: averaged or repeated."""
    if old == new:
        return x
    common = math.gcd(old, new)
    batch, sides = x.shape[0], x.shape[-2:]
    x = x.reshape(batch, -1, common, old // common, common, old // common, *sides).mean((3, 5), keepdim=True)
    x = x.expand(-1, -1, -1, new // common, -1, new // common, -1, -1)
    return x.reshape(batch, -1, *sides)


_WINDOW = "kernel_size stride padding dilation ceil_mode return_indices"
_EDITS: dict[str, tuple[Callable[[Any, Rewrite, dict[str, Any]], Any], list[str]]] = {
    kind: (change, f"input {arguments}".split())
    for change, arguments, kinds in (
        (_convolve, "weight bias stride padding dilation groups", "conv"),
        (_pool, _WINDOW, "max_pool"),
        (_pool, _WINDOW, "max_pool_with_indices"),
        (_pool, "kernel_size stride padding ceil_mode count_include_pad divisor_override", "avg_pool"),
        (_pool, "norm_type kernel_size stride ceil_mode", "lp_pool"),
        (_unpool, "indices kernel_size stride padding output_size", "max_unpool"),
        (_interpolate, "size scale_factor mode align_corners", "interpolate"),
        (_slice, "index", "__getitem__"),
        (_shuffle, "upscale_factor", "pixel_shuffle"),
        (_unshuffle, "downscale_factor", "pixel_unshuffle"),
    )
    for kind in [kinds]
}
