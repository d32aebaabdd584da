"""Networks and methods as short hashes; those that compute something else differ."""

from __future__ import annotations

import copy
import copyreg
import functools
import hashlib
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from redistill_lib.source import Imports, bytecode, distribution

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
#: Attributes of every module, and where a network was loaded from.
_COMMON = vars(nn.Module()).keys() | {"_compiled_call_impl", "name_or_path"}

#: Of a class with any members.
_MADE_BY_PYTHON = vars(type("", (), {})).keys() | {
    "__annotations__", "__dataclass_fields__", "__dataclass_params__", "__match_args__", "__slots__", "__hash__",
    "__qualname__", "__parameters__", "__orig_bases__", "__abstractmethods__", "__firstlineno__",
    "__static_attributes__",
}  # fmt: skip


def network_identity(model: nn.Module) -> dict[str, str]:
    """What decides what a network computes and learns, the same in every process and on every device.

    ``structure`` (eight hex digits) is all but the values in the ``state_dict``: modules and their attributes; names,
    shapes and dtypes of tensors, which are shared or frozen; hooks; the user's classes and functions with all that
    they call, as this release of Python compiles them. ``weights`` (eight hex digits) is the values of all parameters
    and buffers. ``packages`` names the installed ones in use, if any. Mode, comments and docstrings do not count.

    >>> relu, tanh = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())
    >>> network_identity(relu) == network_identity(relu.eval()), network_identity(relu) == network_identity(tanh)
    (True, False)
    """
    walk = _Walk(model, model.state_dict(keep_vars=True).values())
    weights = weights_identity(chain(model.named_parameters(), model.named_buffers()))
    packages = {"packages": ", ".join(sorted(walk.packages))} if walk.packages else {}
    return {"structure": walk.short(), "weights": weights, **packages}


def weights_identity(named: Iterable[tuple[str, Tensor]]) -> str:
    """The ``weights`` of `network_identity`, of tensors by name, as a file of weights holds them."""
    told = (
        name.replace("_orig_mod.", "") + _values(tensor) for name, tensor in sorted(named, key=lambda item: item[0])
    )
    return hashlib.sha256("".join(told).encode()).hexdigest()[:8]


def structure(model: nn.Module) -> str:
    """The ``structure`` of `network_identity` alone."""
    return _Walk(model, model.state_dict(keep_vars=True).values()).short()


def object_identity(value: object) -> str:
    """Eight hex digits over an object's fields and the code of its class, as `network_identity` tells them.

    >>> from fractions import Fraction
    >>> object_identity(Fraction(1, 2)) == object_identity(Fraction(2, 4)) != object_identity(Fraction(1, 3))
    True
    """
    walk = _Walk(value)
    walk.add(tuple(sorted(walk.packages)))
    return walk.short()


def _values(tensor: Tensor) -> str:
    if tensor.is_meta or is_lazy(tensor):
        return ""
    values = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous().flatten()
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()


class _Walk:
    """A digest over a value and all it refers to; the values of the tensors in `held` do not count."""

    def __init__(self, value: Any, held: Iterable[Tensor] = ()):
        self.held = set(map(id, held))
        self.digest, self.packages = hashlib.sha256(), set[str]()
        self.seen: dict[int, tuple[int, Any]] = {}  # its number, and the object, so that no other takes its id
        self.add(value)

    def short(self) -> str:
        return self.digest.hexdigest()[:8]

    def add(self, value: Any) -> None:
        if isinstance(value, nn.Module):  # compiled, it computes the same
            value = getattr(value, "_orig_mod", value)
        parts: Iterable[Any] = ()
        if type(value) in _PLAIN:
            told = repr(value)
        elif id(value) in self.seen:
            told = f"again {self.seen[id(value)][0]}"
        else:
            if not isinstance(value, tuple | frozenset):  # equal ones may or may not be one object
                self.seen[id(value)] = len(self.seen), value
            parts = tuple(self._parts(value))
            told = f"{len(parts)} parts"
        told = f"{type(value).__qualname__} {told}"
        self.digest.update(f"{len(told)}:{told}".encode())
        for part in parts:
            self.add(part)

    def _parts(self, value: Any) -> Iterable[Any]:
        """What a value consists of, apart from its class's name."""
        match value:
            case Tensor():
                shape = "lazy" if is_lazy(value) else tuple(value.shape)
                values = "" if id(value) in self.held else _values(value)
                return shape, str(value.dtype), value.requires_grad, values
            case torch.jit.ScriptModule():
                scripts = [part.code for part in value.modules() if hasattr(part, "code")]
                return scripts, dict(value.state_dict(keep_vars=True))
            case torch.jit.ScriptFunction():
                return (value.code,)
            case nn.Module():
                return self._module(value)
            case type():
                own, name = self._origin(value.__module__, value.__qualname__)
                counts = _counts if own else _patched
                members = [(k, v) for k, v in sorted(vars(value).items()) if counts(value, k, v)]
                return name, members, value.__bases__
            case types.FunctionType():
                own, name = self._origin(value.__module__, value.__qualname__)
                code = bytecode(value.__code__, value.__globals__) if own else ()
                settings = (value.__defaults__, value.__kwdefaults__, vars(value)) if own else ()
                return name, *code, *settings, *(value.__closure__ or ())
            case types.CellType():
                try:
                    return (value.cell_contents,)
                except ValueError:  # not assigned yet
                    return ()
            case types.MethodType():
                return value.__func__, value.__self__
            case types.ModuleType():
                return value.__name__, Imports.of(value.__name__)
            case Imports():
                for name in value:
                    self._origin(name, "")
                return value.items()
            case property() | staticmethod() | classmethod():
                return [getattr(value, part, None) for part in ("fget", "fset", "fdel", "__func__")]
            case tuple() | list():
                return value
            case dict() | types.MappingProxyType():
                return value.items()
            case set() | frozenset():
                return sorted(map(self._apart, value))
            case RemovableHandle():  # numbered through the process; the hook itself is told with its module
                return ()
            case _:
                return _reduced(value)

    def _apart(self, value: Any) -> str:
        """The digest of an element of a set, whose order says nothing."""
        walk = copy.copy(self)
        walk.digest, walk.seen = hashlib.sha256(), dict(self.seen)
        walk.add(value)
        return walk.digest.hexdigest()

    def _origin(self, module: str | None, name: str) -> tuple[bool, str]:
        """Whether it is the user's code, and its name; the distribution of other code is noted."""
        origin = distribution(module or "")
        if origin:
            self.packages.add(origin)
        return (True, name) if origin is None else (False, f"{module}.{name}")

    def _module(self, module: nn.Module) -> Iterable[Any]:
        attributes = {k: v for k, v in _lasting(module, vars(module)) if k not in _COMMON}
        for name in attributes.keys() & {"config", "_internal_dict"}:  # of transformers and diffusers
            config = attributes[name]
            config = vars(config) if hasattr(config, "__dict__") and not isinstance(config, dict) else config
            if isinstance(config, dict):  # `_` marks where it was read from
                attributes[name] = {k: v for k, v in _lasting(config, config) if not str(k).startswith("_")}
        kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
        hooks = [list(getattr(module, kind).values()) for kind in kinds]
        passing = [name in module._non_persistent_buffers_set for name in module._buffers]
        return type(module), attributes, hooks, passing, module._parameters, module._buffers, module._modules


def _reduced(value: Any) -> Iterable[Any]:
    """An object's class and what pickle would take of it; a lock or a file by its class alone."""
    try:
        registered = copyreg.dispatch_table.get(type(value))
        reduced = registered(value) if registered else value.__reduce_ex__(4)
    except Exception:
        return (type(value),)
    if isinstance(reduced, str):  # a global: its name, and what a cache or another wrapper is around
        return type(value), getattr(value, "__module__", None), reduced, getattr(value, "__wrapped__", None)
    made, args, state, items, pairs = (*reduced, None, None, None)[:5]
    state = _lasting(value, state) if isinstance(state, dict) else state
    return type(value), made, args, state, list(items or ()), list(pairs or ())


def _lasting(value: Any, attributes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Attributes in order, without those that were only computed from the others."""
    cached = functools.cached_property
    kept = [(k, v) for k, v in attributes.items() if not isinstance(getattr(type(value), str(k), None), cached)]
    return sorted(kept, key=lambda item: str(item[0]))


def _counts(kind: type, name: str, member: Any) -> bool:
    """Whether the user wrote a class's member: it is no annotation, no slot and not by `dataclass`."""
    if isinstance(member, types.GetSetDescriptorType | types.MemberDescriptorType) or name.startswith("__annotate"):
        return False
    if isinstance(member, types.FunctionType):
        generated = name.startswith("__") and member.__code__.co_filename == "<string>"
        return not (is_dataclass(kind) and generated)
    return name not in _MADE_BY_PYTHON


def _patched(kind: type, name: str, member: Any) -> bool:
    """Whether a class of another's holds a function of the user's."""
    return isinstance(member, types.FunctionType) and distribution(member.__module__ or "torch") is None
