"""Weights as safetensors and JSON: nothing is pickled, every file is replaced in one step."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redistill_lib.models import create_model
from redistill_lib.red import RedBlock, insert_blocks
from redistill_lib.runs import Run, replacing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> None:
    """Tensors and a JSON record in one safetensors file."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(owned, part, {"record": json.dumps(record or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises FileNotFoundError, and ValueError for a file that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
        return load_file(path), record
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); delete the folder of its run and train again"
        ) from error


def structure(model: nn.Module) -> str:
    """Eight hex digits over how a network is built, whatever its weights: what it prints, and diffusers' config."""
    config = getattr(model, "config", None)
    told = {k: v for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}
    return hashlib.sha256(f"{model} {json.dumps(told, sort_keys=True, default=str)}".encode()).hexdigest()[:8]


def load_model(run: Run | str | Path, model: nn.Module | None = None) -> nn.Module:
    """The trained network of a complete run, in eval mode, RED blocks included.

    Built-in networks are built from the run's record. For a network of your own, pass a `model` of the same
    architecture, without blocks; a copy of it is returned. It expects what it was trained on: images through
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
