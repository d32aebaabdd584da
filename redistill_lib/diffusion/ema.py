"""The moving average of a network's weights: what a diffusion training hands out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def decay_at(step: int, decay: float) -> float:
    """The decay of step 1, 2, …: it rises to `decay`, so that an average of few steps forgets its random start."""
    return min(decay, (1 + step) / (10 + step))


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """An average that starts as a copy of `network`; ``update_parameters(network)`` after each step keeps it.

    Parameters and floating-point buffers are averaged (statistics of batch norm then fit the averaged weights),
    integer buffers copied. The averaged network is its ``module``; its ``state_dict`` holds all it needs to go on.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> average = average_of(net, 0.5)
    >>> _ = net.weight.data.add_(1.1), average.update_parameters(net)
    >>> round((net.weight - average.module.weight).item(), 4)           # 2/11 of the way is left
    0.2
    """

    def step(averages: Any, values: Any, count: Tensor | int) -> None:
        kept = decay_at(int(average.n_averaged), decay) if averages[0].is_floating_point() else 0.0
        get_ema_multi_avg_fn(kept)(averages, values, count)

    average = AveragedModel(network, multi_avg_fn=step, use_buffers=True)
    average.update_parameters(network)  # counts the start as the first value
    return average.requires_grad_(False)
