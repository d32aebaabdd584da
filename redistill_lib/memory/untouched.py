"""Leave a network as it was, whatever its forward pass does to itself."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.network import evaluating

_CONTAINERS = (dict, OrderedDict, list, set)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every attribute of every module is again the object it was.

    Lists, dicts and sets among the attributes have their contents back too: caches, registered hooks. What a pass
    writes into the *values* of tensors is undone by `values_kept`, or does not happen, as traces run on stand-ins.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    before = [(module.__dict__, dict(module.__dict__)) for module in modules]
    contents: dict[int, tuple[Any, Any]] = {}
    for _, attributes in before:
        _note(attributes, contents)
    try:
        with evaluating(model):
            yield
    finally:
        for own, attributes in before:
            own.clear()
            own.update(attributes)
        for container, content in contents.values():
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _note(value: Any, contents: dict[int, tuple[Any, Any]]) -> None:
    """Copies of all containers inside a value, by identity."""
    for inner in value.values() if isinstance(value, dict) else value:
        if type(inner) in _CONTAINERS and id(inner) not in contents:
            contents[id(inner)] = inner, inner.copy()
            _note(inner, contents)


def exchange_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Put another tensor in the place of each one that is a plain attribute, neither parameter nor buffer.

    To be used inside `untouched`, which puts the old ones back. Returns the new ones.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, Tensor):
                made.setdefault(id(value), make(value))
                module.__dict__[name] = made[id(value)]
    return list(made.values())


@contextlib.contextmanager
def values_kept(model: nn.Module) -> Iterator[list[Tensor]]:
    """Afterwards the buffers, and tensors that are plain attributes, hold the values they held, also when resized.

    Yields the copies that stand in for the plain attributes meanwhile.
    """
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    plain = exchange_tensors(model, torch.clone)
    try:
        with torch.random.fork_rng(devices=[]):
            yield plain
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                if buffer.shape != value.shape:
                    buffer.resize_(value.shape)
                buffer.copy_(value)
