"""What a network or a method is, as short hashes: nothing that computes otherwise has the same."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection
from dataclasses import is_dataclass
from itertools import chain
from pathlib import Path
from types import FunctionType, GetSetDescriptorType, MappingProxyType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from redistill_lib.source import distribution, function_code, parse, references

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
#: Attributes that every module has, and names that follow from where a network was loaded from.
_COMMON = vars(nn.Module()).keys() | {"_compiled_call_impl", "name_or_path"}


def network_identity(model: nn.Module) -> dict[str, str]:
    """What decides what a network computes and learns, the same in every process and on every device.

    ``structure`` (eight hex digits) is everything but the values that a ``state_dict`` brings back: modules and their
    attributes, whatever these hold (functions, dicts, objects, constant tensors and non-persistent buffers); names,
    shapes and dtypes of tensors, which of them are shared or frozen; hooks; and the code of classes and functions
    that are the user's own, with all that this code calls. ``weights`` (eight hex digits) is the values of all
    parameters and buffers. ``packages``, where there are some, names the versions of the installed ones that the
    network is made of. Train or eval mode, comments and docstrings do not count.

    >>> relu, tanh = nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())
    >>> network_identity(relu) == network_identity(relu.eval()), network_identity(relu) == network_identity(tanh)
    (True, False)
    """
    walk = _walk(model)
    weights = hashlib.sha256()
    for name, tensor in sorted(chain(model.named_parameters(), model.named_buffers())):
        weights.update(name.replace("_orig_mod.", "").encode())
        _update(weights, tensor)
    packages = {"packages": ", ".join(sorted(walk.packages))} if walk.packages else {}
    return {"structure": walk.short(), "weights": weights.hexdigest()[:8], **packages}


def structure(model: nn.Module) -> str:
    """Only the ``structure`` of `network_identity`: whether a trained network's weights belong into this one."""
    return _walk(model).short()


def object_identity(value: object) -> str:
    """Eight hex digits over an object's fields and the code of its class, as `network_identity` tells them.

    >>> from fractions import Fraction
    >>> object_identity(Fraction(1, 2)) == object_identity(Fraction(2, 4)) != object_identity(Fraction(1, 3))
    True
    """
    walk = _Walk()
    walk.add(value)
    walk.tell(*sorted(walk.packages))
    return walk.short()


def _walk(model: nn.Module) -> _Walk:
    walk = _Walk({id(tensor) for tensor in model.state_dict(keep_vars=True).values()})
    walk.add(model)
    return walk


def _update(digest: Any, tensor: Tensor) -> None:
    if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
        return
    values = tensor.detach().cpu().to_dense().resolve_conj().contiguous().flatten()
    digest.update(values.view(torch.uint8).numpy().data)


class _Walk:
    """A digest over values and all they refer to, each object once; `held` are tensors whose values do not count."""

    def __init__(self, held: Collection[int] = ()):
        self.digest, self.held = hashlib.sha256(), held
        self.packages: set[str] = set()
        self.seen: dict[int, tuple[int, Any]] = {}  # its number, and the object, so that no other takes its id

    def short(self) -> str:
        return self.digest.hexdigest()[:8]

    def tell(self, *words: object) -> None:
        for word in map(str, words):
            self.digest.update(f"{len(word)}:{word}".encode())

    def add(self, value: Any) -> None:
        if isinstance(value, nn.Module):  # compiled, it computes the same
            value = getattr(value, "_orig_mod", value)
        if type(value) in _PLAIN:
            self.tell(type(value).__name__, repr(value))
        elif isinstance(value, tuple):  # equal ones may or may not be one object
            self.tell(type(value).__qualname__, len(value))
            for item in value:
                self.add(item)
        elif id(value) in self.seen:
            self.tell("again", self.seen[id(value)][0])
        else:
            self.seen[id(value)] = len(self.seen), value
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        match value:
            case Tensor():
                self._add_tensor(value)
            case nn.Module():
                self._add_module(value)
            case type():
                self._add_class(value)
            case FunctionType():
                self._add_function(value)
            case MethodType():
                self.add((value.__func__, value.__self__))
            case ModuleType():
                if self._is_own(value.__name__, value.__name__) and value.__file__:
                    self.tell(ast.unparse(parse(Path(value.__file__).read_bytes())))
            case property():
                self.add((value.fget, value.fset, value.fdel))
            case staticmethod() | classmethod():
                self.add(value.__func__)
            case list():
                self.add(tuple(value))
            case dict() | MappingProxyType():
                self.add(tuple(value.items()))
            case set() | frozenset():
                self.tell("set", *sorted(map(self._apart, value)))
            case RemovableHandle():  # numbered through the process; the hook itself is told with its module
                self.tell("handle")
            case _:
                self._add_reduced(value)

    def _apart(self, value: Any) -> str:
        """The digest of an element of a set, whose order says nothing."""
        walk = _Walk(self.held)
        walk.seen, walk.packages = dict(self.seen), self.packages
        walk.add(value)
        return walk.digest.hexdigest()

    def _add_tensor(self, tensor: Tensor) -> None:
        shape = "lazy" if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)
        self.tell(type(tensor).__name__, shape, tensor.dtype, tensor.requires_grad)
        if id(tensor) not in self.held:
            _update(self.digest, tensor)

    def _add_module(self, module: nn.Module) -> None:
        self.add(type(module))
        if isinstance(module, torch.jit.ScriptModule):
            self.tell(*(part.code for part in module.modules() if hasattr(part, "code")))
            return self.add(tuple(module.state_dict(keep_vars=True).items()))
        for name, value in _attributes(module):
            if name in (
                "config",
                "_internal_dict",
            ):  # of diffusers and transformers; `_` marks where it was read from
                items = value.items() if isinstance(value, dict) else _attributes(value)
                value = {key: item for key, item in items if not key.startswith("_")}
            self.tell(name)
            self.add(value)
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        passing = module._non_persistent_buffers_set
        parts = chain(module._parameters.items(), module._buffers.items(), module._modules.items())
        self.add((hooks, [name in passing for name in module._buffers], tuple(parts)))
        return None

    def _is_own(self, module: str | None, name: str) -> bool:
        """Whether it is the user's code; otherwise its name is told and its distribution noted."""
        origin = distribution(module or "")
        if origin:
            self.packages.add(origin)
        self.tell(name if origin is None else f"{module}.{name}")
        return origin is None

    def _add_class(self, kind: type) -> None:
        if not self._is_own(kind.__module__, kind.__qualname__):
            members = []
        else:
            members = [(name, member) for name, member in sorted(vars(kind).items()) if _counts(kind, name, member)]
        for name, member in members:
            self.tell(name)
            self.add(member)
        for base in kind.__bases__:
            self.add(base)

    def _add_function(self, function: FunctionType) -> None:
        if self._is_own(function.__module__, function.__qualname__):
            self.tell(function_code(function))
            self.add((function.__defaults__, function.__kwdefaults__, vars(function)))
            for name, value in references(function):
                self.tell(name)
                self.add(value)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not assigned yet
                self.tell("empty")

    def _add_reduced(self, value: Any) -> None:
        """Any other object by its class and what pickle would take of it; a lock or a file by its class alone."""
        self.add(type(value))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:
            return
        if isinstance(reduced, str):  # a global: its name, and what a cache or another wrapper is around
            self.tell(getattr(value, "__module__", None), reduced)
            self.add(getattr(value, "__wrapped__", None))
            return
        made, args, state, items, pairs = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            state = [(k, v) for k, v in sorted(state.items(), key=repr) if not _is_cached(value, k)]
        self.add((made, args, state, list(items or ()), list(pairs or ())))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """An object's own attributes but for what every module has and what was only computed from the others."""
    own = getattr(value, "__dict__", {}).items()
    return sorted((k, v) for k, v in own if k not in _COMMON and not _is_cached(value, k))


def _is_cached(value: Any, name: str) -> bool:
    return isinstance(getattr(type(value), str(name), None), functools.cached_property)


def _counts(kind: type, name: str, member: Any) -> bool:
    """Whether a class's member is the user's: not an annotation, a slot or what `dataclass` wrote."""
    if isinstance(member, GetSetDescriptorType | MemberDescriptorType) or name.startswith("__annotate"):
        return False
    if isinstance(member, FunctionType):
        return not (is_dataclass(kind) and member.__code__.co_filename == "<string>")
    return not name.startswith("__") or isinstance(member, staticmethod | classmethod | property)
