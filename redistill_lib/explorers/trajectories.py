"""What networks draw from the same noise, step by step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from torch import nn

from redistill_lib.diffusion import Trajectory, trajectory
from redistill_lib.explorers.controls import Explorer, options, slider
from redistill_lib.figures import trajectory_step
from redistill_lib.runs import Run

Drawn = nn.Module | Run | str | Path
Shape = int | Sequence[int] | None


def draw_paths(models: Mapping[str, Drawn], shape: Shape, n: int, steps: int, seed: int) -> dict[str, Trajectory]:
    """Every step of every role's DDIM sampling from the noise of that seed.

    >>> from redistill_lib.models import create_model
    >>> draw_paths({"teacher": create_model("unet-1-2", ch=8, mult=(1, 2))}, shape=8, n=2, steps=3, seed=0)
    {'teacher': Trajectory(2 images at t = 999, 666, 332)}
    """
    settings = {"shape": shape, "steps": steps, "seed": seed, "progress": False}
    return {role: trajectory(model, n, steps, **settings) for role, model in models.items()}


class TrajectoryExplorer(Explorer):
    """What each network is given and sees at a step; trajectories are drawn once per number of steps and noise."""

    def __init__(self, models: Mapping[str, Drawn], shape: Shape, n: int, steps: int, choices: Sequence[int]):
        if not models:
            raise ValueError("give at least one denoiser, by its role")
        self.paths = functools.cache(functools.partial(draw_paths, models, shape, n))
        self.steps = slider("steps", options(sorted({*choices, steps})), steps)
        self.seed = slider("noise", options(range(8)))
        self.step = slider("step")
        self.time = 499  # the time step last chosen by hand, to come back to with another number of steps
        self.lay_out(self.step, self.steps, self.seed)

    def show(self) -> go.Figure:
        paths = self.paths(self.steps.value, self.seed.value)
        times = next(iter(paths.values())).t
        if (chosen := self.wanted.pop("step", None)) is not None:
            self.time = times[chosen]
        nearest = min(range(len(times)), key=lambda k: abs(times[k] - self.time))
        self.choose(self.step, [(f"{k + 1} of {len(times)}: t = {t}", k) for k, t in enumerate(times)], nearest)
        return trajectory_step(paths, nearest)
