"""Weights as safetensors and JSON: nothing is pickled, every file is replaced in one step."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.identity import structure
from redistill_lib.models import create_model
from redistill_lib.red import insert_blocks, inserted_blocks, restore_place
from redistill_lib.runs import Run, damaged, replacing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> None:
    """Tensors and a JSON record in one safetensors file."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(owned, part, {"record": json.dumps(record or {})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tensors` wrote. Raises FileNotFoundError for a missing file, ValueError for a damaged one."""
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
        return load_file(path), record
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {path}; delete {path.parent} to train again") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(damaged(path, error)) from None


def load_model(
    run: Run | str | Path, model: nn.Module | str | None = None, weights: Literal["best", "last"] = "best"
) -> nn.Module:
    """The trained network of a complete run, in eval mode, with its RED blocks; it expects images through `to_float`.

    Of a network of your own, pass a `model` without blocks, which is copied; where a method of your own has left
    blocks, one that carries them, as `Distillation.graduate` gives it. Of a built-in one its name may stand there, as
    `resolve_model` gives either. `weights`: ``best`` (a classifier's best epoch on validation, a denoiser's average)
    or ``last`` (after the last step).

    Raises FileNotFoundError for a missing run or missing weights, ValueError for an unfinished run, damaged weights
    or a network that is built otherwise.
    """
    check_type("weights", weights, Literal["best", "last"])
    run = check_type("run", run, Run, str, Path)
    run = run if isinstance(run, Run) else Run.load(run)
    if not run.complete:
        raise ValueError(f"run {run.id} is {run.status}, not complete; train it to its end with the same parameters")
    spec = run.params.get("model")
    if not isinstance(spec, dict) or not all(isinstance(block, dict) for block in run.blocks):
        raise ValueError(damaged(run.path / "run.json", TypeError("no network is recorded")))
    check_type("model", model, nn.Module, str, None)
    if isinstance(model, str):
        with torch.device("meta"):
            name = create_model(model).name
        if name != spec.get("name"):
            raise ValueError(f"run {run.id} trained {spec.get('name')}, not {name}")
        model = None
    if model is None and "weights" in spec:
        raise ValueError(
            f"run {run.id} trained a network of your own ({spec['name']}), which only you can build: "
            "load_model(run, network) puts the weights into it, and what that returns can also be a teacher"
        )
    own = [block["class"] for block in run.blocks if "class" in block]
    if model is not None and not own and "weights" not in spec:
        raise ValueError(
            f"run {run.id} is of the built-in {spec['name']}: load_model(run) builds it, leave out yours"
        )
    if own and (model is None or len(inserted_blocks(model)) != len(run.blocks)):
        raise ValueError(
            f"run {run.id} has blocks of your own ({own[0]}), which only you can build: load_model(run, network) "
            "with Distillation(student, teacher, taps, methods).graduate() as the network"
        )
    if model is not None and not own and structure(model) != spec.get("structure", structure(model)):
        raise ValueError(
            f"this {type(model).__name__} is not built as the {spec['name']} of run {run.id} was: give the same "
            "class with the same code and options under the same release of Python, frozen and derived in the same "
            "way, as newly built and without RED blocks"
        )
    file = run.path / ("model.safetensors" if weights == "best" else "last.safetensors")
    if weights == "last" and not file.exists():
        raise FileNotFoundError(f"run {run.id} kept no last weights; load_model(run) gives its result")
    run.verify(file.name)
    tensors = read_tensors(file)[0]
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        try:
            model = create_model(**spec) if model is None else copy.deepcopy(model)
            if not own:
                insert_blocks(model, map(restore_place, run.blocks))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(damaged(run.path / "run.json", error)) from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(damaged(file, error)) from None
    return model.eval()
