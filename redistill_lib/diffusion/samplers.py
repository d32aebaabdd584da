"""The step of each sampler: from the images at one time step, and what a network sees in them, to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """A step's x_t, the noise and the image (clipped) that the network sees in it, and ᾱ_t."""

    x: Tensor
    noise: Tensor
    start: Tensor
    kept: float


# A sampler takes what is seen now, the image seen a step before with its ᾱ (where it is kept), ᾱ of the time step to
# go to (1 at the end) and a source of noise.
Before = tuple[Tensor, float] | None


def ddim(now: Seen, before: Before, after: float, draw: Callable[[], Tensor]) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12) with σ = 0."""
    return math.sqrt(after) * now.start + math.sqrt(1 - after) * now.noise


def ddpm(now: Seen, before: Before, after: float, draw: Callable[[], Tensor]) -> Tensor:
    """DDPM (arXiv 2006.11239, equations 6 and 7), where a step over several time steps has the α of them together."""
    alpha = now.kept / after
    mean = math.sqrt(after) * (1 - alpha) * now.start + math.sqrt(alpha) * (1 - after) * now.x
    return mean / (1 - now.kept) + math.sqrt((1 - after) * (1 - alpha) / (1 - now.kept)) * draw()


def dpm_solver(now: Seen, before: Before, after: float, draw: Callable[[], Tensor]) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); the first step and the last are of first order."""
    data, noise = now.start, math.sqrt((1 - after) / (1 - now.kept))
    if before is not None and after < 1:
        first, middle, end = (0.5 * math.log(kept / (1 - kept)) for kept in (before[1], now.kept, after))
        r = (middle - first) / (end - middle)
        data = data + (data - before[0]) / (2 * r)
    return noise * now.x + (math.sqrt(after) - noise * math.sqrt(now.kept)) * data


STEPS = {"ddim": ddim, "ddpm": ddpm, "dpm++": dpm_solver}


def time_steps(steps: int, total: int = 1000) -> list[int]:
    """The times of a sampling, noisiest first, evenly from `total` − 1 down ("trailing" in arXiv 2305.08891).

    >>> time_steps(3)
    [999, 666, 332]
    """
    return [round(total - k * total / steps) - 1 for k in range(steps)]
