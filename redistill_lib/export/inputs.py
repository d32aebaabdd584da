"""What a network is called with: images one at a time, or noisy ones with the time step."""

from __future__ import annotations

import torch
from torch import Tensor

from redistill_lib.data.augment import to_float
from redistill_lib.diffusion.noise import DiffusionProcess
from redistill_lib.export.formats import Inputs


def calls_on(images: Tensor, process: DiffusionProcess | None = None) -> list[Inputs]:
    """A call for each image of uint8 B×C×H×W; under `process` with noise, at time steps spread over all it has.

    >>> calls = calls_on(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), DiffusionProcess())
    >>> [(tuple(x.shape), t.item()) for x, t in calls]
    [((1, 1, 8, 8), 0), ((1, 1, 8, 8), 500), ((1, 1, 8, 8), 999)]
    """
    x = to_float(images)
    if process is None:
        return [(each,) for each in x.split(1)]
    t = torch.linspace(0, process.num_train_timesteps - 1, len(x)).round().long()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return [*zip(process.add_noise(x, noise, t).split(1), t.split(1), strict=True)]
