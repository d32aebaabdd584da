"""Following a network without computing: on a copy whose tensors have no contents."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

Tensors = Literal["fake", "real"]
Found = TypeVar("Found")


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts, and in plain result objects such as dataclasses, in order."""
    found: list[Tensor] = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in(dict(vars(leaf)))
    return found


def held_tensors(model: nn.Module) -> list[Tensor]:
    """Each tensor of a network: parameters, buffers, and attributes, also in lists and dicts."""
    attributes = (tensor for module in model.modules() for tensor in tensors_in(vars(module)))
    return list({id(t): t for t in (*model.parameters(), *model.buffers(), *attributes)}.values())


def real_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that a pass may write to; only the parameters are those of `model` itself."""
    kept = {id(t): t if isinstance(t, nn.Parameter) else t.detach().clone() for t in held_tensors(model)}
    return copy.deepcopy(model, kept).eval()


def follow(model: nn.Module, values: Any, watch: Callable[[nn.Module, Any, Tensors], Found]) -> Found:
    """`watch(model, values, source)` without gradients, on copies in eval mode; raises what the model raises.

    The tensors have no contents (`source` is "fake"). Where a pass depends on values or leaves PyTorch, it is
    computed ("real").
    """
    held = held_tensors(model)
    device = next((tensor.device for tensor in held if not tensor.is_meta), torch.device("cpu"))

    def stand_in(tensor: Tensor) -> Tensor:
        # As `clone` would make it: a view becomes dense.
        if tensor.is_contiguous():
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        else:
            made = torch.empty_like(tensor, device=device)
        return made.requires_grad_() if tensor.requires_grad else made

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad():
        try:
            if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
                raise TypeError("a compiled graph keeps its own weights")
            with _quiet():
                with fake:
                    stand_ins = {id(tensor): stand_in(tensor) for tensor in held}
                twin = copy.deepcopy(model, stand_ins).eval()
                with fake:
                    return watch(twin, tree_map_only(Tensor, stand_in, values), "fake")
        except Exception:
            if any(tensor.is_meta for tensor in (*held, *tensors_in(values))):
                raise  # there is nothing to compute with
        with torch.random.fork_rng(devices=[]):
            return watch(real_copy(model), tree_map_only(Tensor, torch.clone, values), "real")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep fake tensors from logging what they cannot follow."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
