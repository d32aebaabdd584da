"""What a run is: everything that decides its weights, as short hashes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from redistill_lib.models.saved import structure
from redistill_lib.network import map_shapes


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
