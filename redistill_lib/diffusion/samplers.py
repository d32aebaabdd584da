"""The step of each sampler: from the images at one time step, and what a network sees in them, to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """x_t, the noise and the image (clipped) that the network sees in it, ᾱ_t, and ᾱ to go to (1 at the end)."""

    x: Tensor
    noise: Tensor
    start: Tensor
    kept: float
    after: float


Before = tuple[Tensor, float] | None  # the image seen a step before with its ᾱ, where it is kept
Draw = Callable[[], Tensor]  # new noise


def ddim(now: Step, before: Before, draw: Draw) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12) with σ = 0."""
    return math.sqrt(now.after) * now.start + math.sqrt(1 - now.after) * now.noise


def ddpm(now: Step, before: Before, draw: Draw) -> Tensor:
    """DDPM (arXiv 2006.11239, equations 6 and 7), where a step over several time steps has the α of them together."""
    x, _, start, kept, after = now
    alpha = kept / after
    mean = (math.sqrt(after) * (1 - alpha) * start + math.sqrt(alpha) * (1 - after) * x) / (1 - kept)
    return mean + math.sqrt((1 - after) * (1 - alpha) / (1 - kept)) * draw()


def dpm_solver(now: Step, before: Before, draw: Draw) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); the first step and the last are of first order."""
    x, _, data, kept, after = now
    noise = math.sqrt((1 - after) / (1 - kept))
    if before is not None and after < 1:
        first, middle, end = (0.5 * math.log(level / (1 - level)) for level in (before[1], kept, after))
        r = (middle - first) / (end - middle)
        data = data + (data - before[0]) / (2 * r)
    return noise * x + (math.sqrt(after) - noise * math.sqrt(kept)) * data


_STEPS = {"ddim": ddim, "ddpm": ddpm, "dpm++": dpm_solver}


def time_steps(steps: int, total: int = 1000) -> list[int]:
    """The times of a sampling, noisiest first, evenly from `total` − 1 down ("trailing" in arXiv 2305.08891).

    >>> time_steps(3)
    [999, 666, 332]
    """
    return [round(total - k * total / steps) - 1 for k in range(steps)]
