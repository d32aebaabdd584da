"""States of unfinished trainings that are put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from redistill_lib.train.state import load_state, save_state


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_a_fused_optimizer_goes_on_where_it_was(make: Any, tmp_path: Path) -> None:
    """Weights are channels last; a file knows no layout."""
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    gradients = torch.randn(3, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))

    def begin() -> dict[str, Any]:
        torch.manual_seed(1)
        conv = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return {"trainee": conv, "optimizer": make(conv.parameters(), 0.1, fused=True, **options)}

    def step(parts: dict[str, Any], k: int) -> None:
        parts["trainee"].weight.grad = gradients[k].contiguous(memory_format=torch.channels_last)
        parts["optimizer"].step()

    straight, stopped, resumed = begin(), begin(), begin()
    for k in range(3):
        step(straight, k)
    step(stopped, 0), step(stopped, 1)
    save_state(tmp_path / "state.safetensors", stopped, {"step": 2})
    assert load_state(tmp_path / "state.safetensors", resumed) == {"step": 2}
    step(resumed, 2)
    assert torch.equal(resumed["trainee"].weight, straight["trainee"].weight)
