"""The state of an unfinished training, as tensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.runs import damaged

if TYPE_CHECKING:
    from torch.amp import GradScaler
    from torch.optim.lr_scheduler import LRScheduler


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler | None,
    record: Mapping[str, Any],
) -> None:
    """Write all of this to one file; modules' names hold no dots, teachers do not change and are left out."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in _trained(module, True).items()}
    states = [optimizer.state_dict(), scheduler.state_dict(), scaler.state_dict() if scaler else {}]
    leaves, spec = tree_flatten(states)
    tensors |= {f"states.{n}": leaf for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    save_tensors(path, tensors, {"record": record, "states": plain, "tree": treespec_dumps(spec)})


def load_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler | None,
) -> dict[str, Any]:
    """Put back in place what `save_state` wrote and return the record. Raises ValueError for a damaged file."""
    tensors, told = read_tensors(path)
    try:
        for name, module in modules.items():
            weights = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            module.load_state_dict(weights | _trained(module, False))
        leaves = [tensors.get(f"states.{n}", leaf) for n, leaf in enumerate(told["states"])]
        optimizing, scheduling, scaling = tree_unflatten(leaves, treespec_loads(told["tree"]))
        optimizer.load_state_dict(optimizing)
        scheduler.load_state_dict(scheduling)
        if scaler:
            scaler.load_state_dict(scaling)
        return dict(told["record"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(damaged(path, error)) from None


def _trained(module: nn.Module, trained: bool) -> dict[str, Tensor]:
    """A module's state without its teachers, or only the teachers'."""
    return {k: v for k, v in module.state_dict().items() if k.startswith("teachers.") != trained}
