"""Changing a module's forward from outside: the strides of functions called in it, and steps before and behind it."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from redistill_lib.network.flow import Call
from redistill_lib.red import inserted_blocks
from redistill_lib.student.ratios import Window, filling, is_idle, kind_of
from redistill_lib.student.steps import add_lines


class Rewrite(NamedTuple):
    """One call in a module's forward whose ratio of `old` becomes `new`; `number` counts the function's calls."""

    function: str
    number: int
    old: int
    new: int
    down: bool = False  # whether it divides sides and rounds down, so that the border it loses is made up for

    def __str__(self) -> str:
        return f"{self.function} no. {self.number}: {self.old} → {self.new}"


def rewrite_call(
    model: nn.Module, call: Call, old: int, new: int, shared: Collection[str] = (), down: bool = False
) -> str:
    """Let the call behind `call` change its map by `new` instead of `old`, in place; a note that says where it is.

    The innermost module around it that is not in `shared` (paths of modules that also run elsewhere) changes its call
    from then on. `down`: it divides sides and rounds down; whether it rounds up, each pass shows. Raises ValueError
    with the cure where that is impossible.
    """
    runs = zip(call.stack, call.numbers, strict=True)
    path, number = [(path, number) for (path, _), number in runs if path not in shared][-1]
    module, why = model.get_submodule(path), ""
    if kind_of(call.function) is None:
        why = "stride cannot be changed there; make it a convolution, a pool, or a module of its own, as nn.MaxPool2d"
    elif isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
        why = "module is a compiled graph; derive from the network that it was made of"
    elif "forward" in vars(module):
        why = "module has a forward of its own instance; derive before that is set"
    if why:
        what = "slices" if call.function == "__getitem__" else f"calls {call.function}"
        name = type(model.get_submodule(call.path)).__name__
        raise ValueError(f"{call.path or 'the network'} ({name}) {what} at {call.line}, whose {why}")
    # Interpolations of both kinds count as one.
    edit(module, rewrites=(Rewrite(call.function.partition(" ")[0], number, old, new, down),))
    return f"{call.function} in {call.line}"


def edit(
    module: nn.Module,
    before: Iterable[nn.Module | str] = (),
    behind: Iterable[nn.Module] = (),
    rewrites: Iterable[Rewrite] = (),
) -> None:
    """Add steps before and behind a module that are no layers, and calls that its forward makes otherwise, in place.

    The module keeps its parameters, hooks and settings; its class becomes one derived from its own. A step that has
    weights is a child of the module and is given by its name, so that they are among the module's.
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

    before: tuple[nn.Module | str, ...] = ()
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
                # As a part of this layer, not one of its own: who looks for layers that stride finds this one.
                x = getattr(self, step).forward(x) if isinstance(step, str) else step(x)
            args, kwargs = ((x, *args[1:]), kwargs) if key is None else ((), {**kwargs, key: x})
        with ExitStack() as stack:
            if edits.rewrites:
                counting = stack.enter_context(Rewriting(edits.rewrites))
                for _, _, block in inserted_blocks(self):  # which were not there when the calls were numbered
                    counting.thread = threading.get_ident()
                    stack.enter_context(block.register_forward_pre_hook(counting.pause))
                    stack.enter_context(block.register_forward_hook(counting.go_on))
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
        for rule in self.rewrites:
            if rule.function == name and rule.number == number:
                return _rewritten(func, rule, args, kwargs)
        return func(*args, **kwargs)


def function_name(func: Any) -> str:
    """The name under which a pass counts a function."""
    name: str = getattr(func, "__name__", "")
    return "__getitem__" if name == "getitem" else name  # as compilers call it


def _passed(function: str) -> Callable[..., Tensor]:
    """What stands for a function that became the identity: modes further out see it called."""

    def passed(x: Tensor, **given: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(passed, (x,), x, **given)
        return x

    passed.__name__ = function
    return passed


def _rewritten(func: Any, rule: Rewrite, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call gives at its new ratio."""
    function, number, old, new, down = rule
    kind: Any = kind_of(function)
    names = ["input", *kind.arguments.split()]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    try:
        changed = kind.settings(given, old, new)
    except ValueError as error:
        raise RuntimeError(
            f"call {number} of {function} {error}: this pass goes another way than the one by which the student "
            "was derived"
        ) from None
    x = given["input"]
    if is_idle(function, changed):
        return _passed(function)(x, **changed)
    if "upscale_factor" in given:
        x = _regroup(x, old, new)
    elif "norm_type" in given and "kernel_size" in changed:  # which adds up what is in the window
        x = x * (old / new) ** ((x.ndim - 2) / given["norm_type"])
    elif function.startswith(("conv", "max_pool", "avg_pool", "lp_pool")) and "transpose" not in function:
        lines = Window.of(given, x.ndim - 2).missing(x.shape[2:], old, new, given.get("ceil_mode", False), down)
        changed |= {"ceil_mode": False} if lines and "ceil_mode" in given else {}
        if any(map(any, lines)):
            if "indices" in function:
                raise RuntimeError(f"{function} cannot keep its indices at stride {changed['stride']}")
            x = add_lines(x, lines, filling(function))
    given |= {**changed, "input": x}
    first = [given.pop(name) for name in names[: len(args)]]  # as some functions take no names
    output = func(*first, *args[len(names) :], **given)
    return _regroup(output, new, old) if "downscale_factor" in changed else output


def _regroup(x: Tensor, old: int, new: int) -> Tensor:
    """Channels that stand for old × old pixels each, made to stand for new × new: averaged or repeated."""
    if old == new:
        return x
    common = math.gcd(old, new)
    batch, sides = x.shape[0], x.shape[-2:]
    x = x.reshape(batch, -1, common, old // common, common, old // common, *sides).mean((3, 5), keepdim=True)
    x = x.expand(-1, -1, -1, new // common, -1, new // common, -1, -1)
    return x.reshape(batch, -1, *sides)
