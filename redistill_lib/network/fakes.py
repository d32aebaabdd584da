"""What following a network without computing needs: its tensors, wherever they are kept, and silence."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts, and in plain result objects such as dataclasses, in order.

    >>> import torch
    >>> [tensor.item() for tensor in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), None]})]
    [1, 2]
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif dataclasses.is_dataclass(leaf):
            found += tensors_in(dict(vars(leaf)))
    return found


@contextlib.contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep fake tensors from logging what they cannot follow: it is run for real, or told by who asked."""
    log = logging.getLogger(FakeTensorMode.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
