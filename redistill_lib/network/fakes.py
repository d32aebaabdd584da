"""Copying a network, and following it without computing: on a copy whose tensors have no contents."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._pytree import SUPPORTED_NODES, tree_leaves, tree_map_only

Tensors = Literal["fake", "real"]
Found = TypeVar("Found")
Network = TypeVar("Network", bound=nn.Module)
_PLAIN = frozenset((bool, int, float, str, set, type(None), torch.dtype, torch.device))
_DICTS = (dict, OrderedDict)
_OWN = ("_parameters", "_buffers", "_modules")


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts, and in plain result objects such as dataclasses, in order."""
    found: list[Tensor] = []
    _gather(values, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    kind = type(value)
    if isinstance(value, Tensor):
        found.append(value)
    elif kind in _PLAIN or isinstance(value, nn.Module):
        return
    elif kind in (tuple, list):
        for item in value:
            _gather(item, found)
    elif isinstance(value, Mapping):
        for item in value.values():
            _gather(item, found)
    elif isinstance(value, tuple) or kind in SUPPORTED_NODES:
        leaves = tree_leaves(value)
        _gather([] if leaves == [value] else leaves, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _gather([getattr(value, field.name, None) for field in dataclasses.fields(value)], found)


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Each tensor of a network: parameters, buffers, and attributes, also in lists and dicts."""
    found: list[Tensor] = []
    for module in model.modules():
        found += (
            tensor for own in (module._parameters, module._buffers) for tensor in own.values() if tensor is not None
        )
        for name, value in vars(module).items():
            kind = type(value)
            if kind not in _PLAIN and (kind not in _DICTS or value) and name not in _OWN:
                _gather(value, found)
    return list({id(tensor): tensor for tensor in found}.values())


class _Detached(TorchFunctionMode):
    """Copy what was computed with gradients as what it is, a tensor, wherever deepcopy meets it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, known = args
            return known.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def copy_network(model: Network, known: Mapping[int, Any] | None = None) -> Network:
    """A deep copy of a network, whatever it holds, with its hooks, modes and shared parts.

    Tensors that were computed with gradients, such as an activation kept from the last pass or a weight made by an
    old ``weight_norm``, are detached in the copy; objects that cannot be copied, such as locks, are shared. `known`
    maps the `id` of parts to what stands for them in the copy.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> net.last = net(torch.zeros(1, 2))
    >>> copy_network(net).last.requires_grad
    False
    """
    if known and _is_built_in(model):
        return _rewired(model, known)
    values = [value for module in model.modules() for value in vars(module).values()]
    # Most of what a network consists of are empty dicts for hooks: deepcopy would take its time for each.
    memo = {id(value): type(value)() for value in values if type(value) in _DICTS and not value}
    memo |= known or {}
    with torch.inference_mode(False), _Detached():
        try:
            return copy.deepcopy(model, dict(memo))
        except Exception:
            shared = {id(value): value for value in values if not _is_copyable(value)}
            if not shared:
                raise
            return copy.deepcopy(model, shared | memo)


def _is_built_in(model: nn.Module) -> bool:
    """Whether the network is as this library made it, so that a pass changes no part of it."""
    return type(model).__module__.startswith("redistill_lib.models.") and all(
        type(part).__module__.startswith(("torch.nn.modules.", "redistill_lib."))
        and not part._forward_hooks
        and not part._forward_pre_hooks
        for part in model.modules()
    )


def _rewired(model: Network, known: Mapping[int, Any]) -> Network:
    """The same parts holding other tensors; `deepcopy` takes five times as long."""
    twins: dict[Any, Any] = {part: object.__new__(type(part)) for part in model.modules()}
    for part, twin in twins.items():
        own = vars(twin)
        own |= {name: value.copy() if type(value) in _DICTS else value for name, value in vars(part).items()}
        for held in (own["_parameters"], own["_buffers"]):
            held |= {name: known.get(id(tensor), tensor) for name, tensor in held.items()}
        own["_modules"] |= {name: twins.get(child) for name, child in part._modules.items()}
    return cast(Network, twins[model])


def _is_copyable(value: Any) -> bool:
    if not isinstance(value, (nn.Module, Tensor, Mapping, list, tuple, set)):
        try:
            copy.deepcopy(value)
        except Exception:
            return False
    return True


def real_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that a pass may write to; only the parameters are those of `model` itself."""
    kept = {id(t): t if isinstance(t, nn.Parameter) else t.detach().clone() for t in held_tensors(model)}
    return copy_network(model, kept).eval()


class _Outlines(DeviceContext):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "zero_", "fill_"):
            return args[0] if args else kwargs["tensor"]
        return super().__torch_function__(func, types, args, kwargs)


@contextlib.contextmanager
def outlines() -> Iterator[None]:
    """Networks made inside are on the meta device, and soon: nothing is spent on initial values.

    >>> with outlines():
    ...     net = nn.Linear(1000000, 1000000)
    >>> net.weight.is_meta
    True
    """
    with _Outlines(torch.device("meta")):
        yield


@contextlib.contextmanager
def step_by_step() -> Iterator[None]:
    """Without gradients, but not in inference mode, where operators stay whole; and without compiling anything."""
    with torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


def follow(model: nn.Module, values: Any, watch: Callable[[nn.Module, Any, Tensors], Found]) -> Found:
    """`watch(model, values, source)` without gradients, on copies in eval mode; raises what the model raises.

    The tensors have no contents (`source` is "fake"). Where a pass depends on values or leaves PyTorch, it is
    computed ("real").
    """
    held = held_tensors(model)
    empty = any(tensor.is_meta for tensor in (*held, *tensors_in(values)))  # nothing to compute with
    device = next((tensor.device for tensor in held if not tensor.is_meta), torch.device("cpu"))

    built_in, alike = _is_built_in(model), dict[Any, Tensor]()

    def weight(tensor: Tensor) -> Tensor:
        """Of a built-in network, which writes to none of its weights, one stands for all of the same layout."""
        if not built_in:
            return stand_in(tensor)
        key = tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad
        if key not in alike:
            alike[key] = stand_in(tensor)
        return alike[key]

    def stand_in(tensor: Tensor) -> Tensor:
        # As `clone` would make it: a view becomes dense.
        if tensor.is_contiguous():
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            made: Tensor = FakeTensor(fake, empty, device)
        else:
            with fake:
                made = torch.empty_like(tensor, device=device)
        return made.requires_grad_() if tensor.requires_grad else made

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with step_by_step():
        try:
            kinds = set(map(type, model.modules()))
            if any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds):
                raise TypeError("a compiled graph keeps its own weights")
            if not empty and any(map(_asks, kinds)):
                raise TypeError("who asks must not see a fake")
            with _unnoticed():
                known = {id(tensor): weight(tensor) for tensor in held}
                twin = (_rewired if built_in else copy_network)(model, known).eval()
                given = tree_map_only(Tensor, stand_in, values)
                with fake:
                    return watch(twin, given, "fake")
        except Exception:
            if empty:
                raise
        with torch.random.fork_rng(devices=[]):
            return watch(real_copy(model), tree_map_only(Tensor, torch.clone, values), "real")


class _OnlyPyTorchAsks(type):
    """What stands for `FakeTensor` meanwhile: to others than PyTorch a fake tensor is a tensor like any."""

    def __instancecheck__(cls, instance: Any) -> bool:
        asking: str = sys._getframe(1).f_globals.get("__name__", "")
        return asking.startswith("torch.") and isinstance(instance, FakeTensor)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, FakeTensor)


class _Fake(metaclass=_OnlyPyTorchAsks):
    pass


@contextlib.contextmanager
def _unnoticed() -> Iterator[None]:
    """Keep fake tensors from logging what they cannot follow, and networks from seeing that they are given some."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    torch._subclasses.FakeTensor = _Fake  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        log.disabled = before
        torch._subclasses.FakeTensor = FakeTensor  # type: ignore[misc]


@functools.lru_cache(maxsize=1024)
def _asks(kind: type) -> bool:
    """Whether a module's class, or a function of its file, knows fake tensors by a name that cannot be hidden."""
    own = (base for base in kind.__mro__ if not base.__module__.startswith(("torch.", "builtins")))
    functions = [method for base in own for method in vars(base).values() if isinstance(method, FunctionType)]
    for function in functions:  # it grows
        function = inspect.unwrap(function)
        names = set(function.__code__.co_names)
        used = [function.__globals__[name] for name in names & function.__globals__.keys()]
        if any(value is FakeTensor for value in used) or names & {"fake_tensor", FakeTensor.__module__}:
            return True
        near = (v for v in used if isinstance(v, FunctionType) and v.__module__ == kind.__module__)
        functions += (helper for helper in near if helper not in functions)
    return False
