"""The state of an unfinished training, as tensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten, treespec_dumps, treespec_loads

from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.runs import damaged


def save_state(path: Path, parts: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write each part's ``state_dict`` to one file, without teachers, which do not change."""
    states = {
        part: {key: value for key, value in owner.state_dict().items() if not key.startswith("teachers.")}
        for part, owner in parts.items()
    }
    found, spec = tree_flatten_with_path(states)
    leaves = {keystr(keys): leaf for keys, leaf in found}
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    plain = {name: None if name in tensors else leaf for name, leaf in leaves.items()}
    save_tensors(path, tensors, {"record": record, "states": plain, "tree": treespec_dumps(spec)})


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put back in place what `save_state` wrote and return the record. Raises ValueError for a damaged file."""
    tensors, told = read_tensors(path)
    try:
        leaves = [tensors.get(name, leaf) for name, leaf in told["states"].items()]
        states = tree_unflatten(leaves, treespec_loads(told["tree"]))
        for part, owner in parts.items():
            owner.load_state_dict({**owner.state_dict(), **states[part]})
            if part == "optimizer":
                lay_out(owner)
        return dict(told["record"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(damaged(path, error)) from None


def lay_out(optimizer: Any) -> None:
    """Let what an optimizer remembers of each weight lie in memory as the weight does.

    Loaded, it lies as in the file; PyTorch's fused optimizers read both in one order without a look at their strides.
    """
    for weight, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                held[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
