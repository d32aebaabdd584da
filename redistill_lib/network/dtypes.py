"""The dtype that a network computes in."""

from __future__ import annotations

import torch
from torch import nn


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of float inputs that a network takes: that of its weights; float32 where it has none.

    >>> dtype_of(nn.Linear(2, 2).half())
    torch.float16
    """
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
