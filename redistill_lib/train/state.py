"""The state of a training as tensors and JSON: enough to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

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
    """Write modules (by names without dots), optimizer, scheduler, scaler and a JSON record to one file.

    Teachers (``teachers.`` in a module's state) do not change and are left out. The record may not use the keys
    ``optimizer``, ``scheduler`` and ``scaler``.
    """
    tensors, packed = pack_optimizer(optimizer)
    for name, module in modules.items():
        tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items() if not k.startswith("teachers.")}
    own = {"optimizer": packed, "scheduler": scheduler.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
    save_tensors(path, tensors, {**record, **own})


def load_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    scaler: GradScaler | None,
) -> dict[str, Any]:
    """The inverse of `save_state`: all is put back in place, and the record is returned.

    Raises ValueError with what to delete for a file that is cut short, of another training or not a state.
    """
    tensors, record = read_tensors(path)
    try:
        for name, module in modules.items():
            weights = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            teachers = {k: v for k, v in module.state_dict().items() if k.startswith("teachers.")}
            module.load_state_dict(weights | teachers)
        unpack_optimizer(optimizer, tensors, record.pop("optimizer"))
        scheduler.load_state_dict(record.pop("scheduler"))
        scaling = record.pop("scaler")
        if scaler:
            scaler.load_state_dict(scaling)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(damaged(path, error)) from None
    return record


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and a JSON record; `unpack_optimizer` is its inverse."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, {"param_groups": state["param_groups"], "scalars": scalars}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in record["scalars"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": record["param_groups"]})
