"""One hash for a whole network, for the loops that still want one."""

from __future__ import annotations

from torch import Tensor, nn

from redistill_lib.identity import network_identity


def fingerprint(model: nn.Module, example: Tensor | None = None) -> str:
    """Structure and weights of `network_identity` in one word."""
    identity = network_identity(model)
    return identity["structure"] + identity["weights"]
