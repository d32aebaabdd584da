"""Teacher and students drawing from the same noise, with sliders for the step and for the number of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from redistill_lib.diffusion import Trajectory, trajectory
from redistill_lib.explorers.controls import Explorer, redraw, slider
from redistill_lib.progress import is_live
from redistill_lib.runs import Run

if TYPE_CHECKING:
    import ipywidgets as widgets

Drawn = nn.Module | Run | str | Path
STEPS = (5, 10, 25, 50, 100)
SEEDS = 8


@dataclass(frozen=True)
class TrajectorySource:
    """Denoisers and the ways of their images, each drawn once: an explorer's memory, free of widgets.

    >>> from redistill_lib.models import create_model
    >>> net = create_model("unet-1-2", ch=8, mult=(1, 2))
    >>> TrajectorySource({"teacher": net}, shape=8, n=2).paths(3, 0)
    {'teacher': Trajectory(2 images at t = 999, 666, 332)}
    """

    models: Mapping[str, Drawn]
    shape: int | Sequence[int] | None = None
    n: int = 9
    drawn: dict[tuple[int, int], dict[str, Trajectory]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("give at least one denoiser, by its role")

    def paths(self, steps: int, seed: int) -> dict[str, Trajectory]:
        """Every step of every role's DDIM sampling from the noise of that seed."""
        if (steps, seed) not in self.drawn:
            options = {"shape": self.shape, "steps": steps, "seed": seed, "progress": False}
            found = {role: trajectory(model, self.n, steps, **options) for role, model in self.models.items()}
            self.drawn[steps, seed] = found
        return self.drawn[steps, seed]


def sampling_trajectories(
    models: Mapping[str, Drawn],
    *,
    shape: int | Sequence[int] | None = None,
    n: int = 9,
    steps: int = 25,
    choices: Sequence[int] = STEPS,
) -> widgets.VBox | None:
    """Choose a step, the number of steps and the noise; see what each network is given there and what it sees in it.

    `models` by role: networks, runs or their folders. `shape` as for `sample`, known for a run. `n` images per role
    are drawn by DDIM, all roles from the same noise. `steps` is what it opens with, `choices` what else there is.
    Returns None outside a live notebook.

    >>> sampling_trajectories({}) is None
    True
    """
    if not is_live():
        return None
    return TrajectoryExplorer(TrajectorySource(models, shape=shape, n=n), steps, choices).view


class TrajectoryExplorer(Explorer):
    """The widgets: they ask the source for trajectories and the figures for their image."""

    def __init__(self, source: TrajectorySource, steps: int = 25, choices: Sequence[int] = STEPS):
        import ipywidgets as widgets

        super().__init__()
        self.source = source
        self.steps = slider("steps", [(str(count), count) for count in sorted({*choices, steps})], steps)
        self.seed = slider("noise", [(str(seed), seed) for seed in range(SEEDS)])
        self.step = slider("step", [("", 0)])
        self.time = 499  # the time step last chosen by hand, to come back to with another number of steps
        self.view = widgets.VBox([self.watch(self.step, self.steps, self.seed), self.figure])

    def show(self) -> None:
        from redistill_lib.figures import trajectory_step

        paths = self.source.paths(self.steps.value, self.seed.value)
        times = next(iter(paths.values())).t
        if (chosen := self.wanted.pop("step", None)) is not None:
            self.time = times[chosen]
        nearest = min(range(len(times)), key=lambda k: abs(times[k] - self.time))
        self.choose(self.step, [(f"{k + 1} of {len(times)}: t = {t}", k) for k, t in enumerate(times)], nearest)
        redraw(self.figure, trajectory_step(paths, nearest))
