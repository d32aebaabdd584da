"""Weights and training state as safetensors and JSON: nothing is pickled, every file is replaced in one step."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redistill_lib.models import create_model
from redistill_lib.red import RedBlock, insert_blocks
from redistill_lib.runs import Run, replacing
from redistill_lib.taps import map_shapes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> None:
    """Tensors and a JSON record in one safetensors file."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(owned, part, {"record": json.dumps(record or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote."""
    with safe_open(path, "pt") as file:
        record = json.loads((file.metadata() or {}).get("record", "{}"))
    return load_file(path), record


def structure(model: nn.Module) -> str:
    """Eight hex digits over how a network is built, whatever its weights: what it prints, and diffusers' config."""
    config = getattr(model, "config", None)
    told = {k: v for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}
    return hashlib.sha256(f"{model} {json.dumps(told, sort_keys=True, default=str)}".encode()).hexdigest()[:8]


def fingerprint(model: nn.Module, example: Tensor | None = None) -> str:
    """Eight hex digits over what a network is: its structure, every module's class and plain attributes (strides are
    among them), the shapes of its maps on an `example`, and every tensor's name and values.
    """
    digest = hashlib.sha256(structure(model).encode())
    for path, module in model.named_modules():
        plain = {
            k: v for k, v in vars(module).items() if isinstance(v, str | int | float | tuple) and k != "training"
        }
        digest.update(f"{path} {type(module).__qualname__} {sorted(plain.items())}".encode())
    if example is not None:
        digest.update(repr(map_shapes(model, example)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8]


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


def load_model(run: Run | str | Path, model: nn.Module | None = None) -> nn.Module:
    """The trained network of a complete run, in eval mode, RED blocks included.

    Built-in networks are built from the run's record. For a network of your own, pass a `model` of the same
    architecture, without blocks; a copy of it is returned. It expects what it was trained on: pictures through
    `to_float`, −1…1.

    Raises FileNotFoundError for a missing run, ValueError for an unfinished one, and for a network that is built
    otherwise than the one that was trained.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    if not run.complete:
        raise ValueError(
            f"run {run.id} is {run.status}, not complete; train it to its end with the same parameters first"
        )
    spec = run.params["model"]
    if model is None and "weights" in spec:
        raise ValueError(
            f"run {run.id} trained a network of your own ({spec['name']}), which only you can build: "
            "load_model(run, network) puts the weights into it, and what that returns can also be a teacher"
        )
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"load_model takes a run and, for a network of your own, that network, not {model!r}")
    if model is not None and structure(model) != spec.get("structure", structure(model)):
        raise ValueError(
            f"this {type(model).__name__} is not built as the {spec['name']} of run {run.id} was: "
            "give the same class, widths, strides and options, derived in the same way, without RED blocks"
        )
    with torch.random.fork_rng(devices=[]):  # weights about to be replaced cost the caller no random numbers
        model = create_model(**spec) if model is None else copy.deepcopy(model)
        blocks = [(b["layer"], b["side"], RedBlock(b["channels"], b["kernel_size"])) for b in run.blocks]
    insert_blocks(model, blocks)
    model.load_state_dict(read_tensors(run.path / "model.safetensors")[0])
    return model.eval()
