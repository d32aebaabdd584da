"""Weights from other programs' files."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from redistill_lib.checks import hint

_Model = TypeVar("_Model", bound=nn.Module)

# Keys that hold the weights, the first that is there. Of a denoiser's two sets the averaged one is the better.
WRAPPERS = ("state_dict", "model_state_dict", "ema_model", "net_model", "model", "net")
# DistributedDataParallel, the authors' distiller, their ensembles, Lightning, torch.compile
PREFIXES = ("module.", "student.", "net.", "model.", "_orig_mod.")
BLOCKS = "dist_modules."  # RED blocks in the authors' files, in tap order
SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt")


def load_checkpoint(
    model: _Model, source: str | Path | Mapping[str, object], blocks: Iterable[nn.Module] = ()
) -> _Model:
    """Load weights into `model`, strictly and in place, and return it.

    `source` is a `.safetensors` file, a `.pt`, `.pth`, `.pth.tar` or `.ckpt` file (read with `weights_only=True`), or
    a mapping of tensors, also under a key of `WRAPPERS` and with names that begin with one of `PREFIXES`. What does
    not belong to the network, such as the teachers in a distiller's file, is left out with a warning.
    `blocks` are RED blocks in tap order, such as `distillation.blocks`, loaded from a distiller's file too.

    Raises FileNotFoundError, or ValueError naming the first misfits; model and blocks are then untouched.

    >>> net = nn.Linear(2, 3)
    >>> twin = load_checkpoint(nn.Linear(2, 3), {"net": {f"module.{k}": v for k, v in net.state_dict().items()}})
    >>> torch.equal(twin.weight, net.weight)
    True
    """
    given: dict[str, object] = dict(source if isinstance(source, Mapping) else _read(Path(source)))
    while inner := next((given[key] for key in WRAPPERS if isinstance(given.get(key), Mapping)), None):
        given = dict(inner)  # type: ignore[call-overload]
    given, others = _unwrap(given, model.state_dict())
    wanted, found = nn.ModuleList(blocks), dict[str, object]()
    if len(wanted):
        found = {name.removeprefix(BLOCKS): others.pop(name) for name in list(others) if name.startswith(BLOCKS)}
    _check(model, getattr(model, "name", type(model).__name__), given)
    _check(wanted, "the RED blocks", found)
    model.load_state_dict(given)
    wanted.load_state_dict(found)
    if others:
        kinds = ", ".join(dict.fromkeys(name.partition(".")[0] for name in others))
        warnings.warn(
            f"left out of the checkpoint: {len(others)} tensors that are not the network's ({kinds})", stacklevel=2
        )
    return model


def _unwrap(given: dict[str, object], own: Mapping[str, Tensor]) -> tuple[dict[str, object], dict[str, object]]:
    """Take prefixes off until the network's own names appear; what lacks a prefix that others have is set aside."""
    aside: dict[str, object] = {}
    foreign = [prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in own)]
    while foreign and given and not own.keys() & given.keys():
        prefix = max(foreign, key=lambda p: sum(name.startswith(p) for name in given))
        if not any(name.startswith(prefix) for name in given):
            break
        aside |= {name: value for name, value in given.items() if not name.startswith(prefix)}
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    return given, aside


def _check(module: nn.Module, label: str, given: Mapping[str, object]) -> None:
    own = module.state_dict()
    shapes = {name: value.shape for name, value in given.items() if isinstance(value, Tensor)}
    found = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "not a tensor:": [name for name in own if name in given and name not in shapes],
        "of another shape:": [
            f"{name} ({'×'.join(map(str, shapes[name]))}, here {'×'.join(map(str, own[name].shape))})"
            for name in own
            if name in shapes and shapes[name] != own[name].shape
        ],
    }
    problems = []
    for what, names in found.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(names[:3])}{more}")
    if problems:
        raise ValueError(f"The checkpoint does not fit {label}: {'; '.join(problems)}.")


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"No checkpoint at {path}{hint(path.name, beside)}")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"Checkpoint {path.name} is of an unknown kind: use {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"Checkpoint {path.name} holds more than tensors: save the model's state_dict() instead."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"Checkpoint {path.name} is cut short or damaged ({error}); fetch it again.") from error
    if isinstance(loaded, Mapping):
        return loaded
    raise ValueError(f"Checkpoint {path.name} holds a {type(loaded).__name__}, not a mapping of tensors.")
