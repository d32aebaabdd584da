"""What networks draw from the same noise, step by step."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
from torch import nn

from redistill_lib.diffusion import trajectory
from redistill_lib.explorers.controls import Explorer, options, slider
from redistill_lib.figures import trajectories
from redistill_lib.runs import Run

Drawn = nn.Module | Run | str | Path
Shape = int | Sequence[int] | None


class TrajectoryExplorer(Explorer):
    """The film of `figures.trajectories`, whose slider is moved here, where keys reach it.

    What is not drawn yet is drawn network by network while the kernel goes on listening; a newer choice ends that.
    """

    def __init__(
        self, models: Mapping[str, Drawn], shape: Shape, n: int, steps: int, choices: Sequence[int], seed: int
    ):
        if not models:
            raise ValueError("give at least one denoiser, by its role")
        self.models, self.how = models, dict[str, Any](n=n, shape=shape, progress=False)
        self.path = functools.cache(self._path)
        self.films: dict[tuple[int, int], go.Figure] = {}
        self.steps = slider("steps", options(sorted({*choices, steps})), steps)
        self.seed = slider("noise", options(sorted({*range(8), seed})), seed)
        self.step, self.play = slider("step"), widgets.Play(interval=250)
        widgets.jslink((self.play, "value"), (self.step, "index"))
        self.drawing: asyncio.Task[None] | None = None
        self.lay_out(self.step, self.steps, self.seed)
        self.view.children[0].children += (self.play,)

    def _path(self, role: str, steps: int, seed: int) -> Any:
        return trajectory(self.models[role], shots=steps, steps=steps, seed=seed, **self.how)

    def draw(self, change: Any = None) -> None:
        if self.busy:
            return
        if self.drawing:
            self.drawing.cancel()
        chosen = self.steps.value, self.seed.value
        if change and chosen not in self.films:
            self.wanted[change["owner"].description] = change["new"]
            self._say(f"<b>Drawing {chosen[0]} steps …</b>")
            self.drawing = asyncio.get_running_loop().create_task(self._draw_later(*chosen))
        elif change and change["owner"] is self.step:  # faster than to draw all of it
            self.wanted["step"] = change["new"]
            with self.figure.batch_update():
                self._move(self.figure)
        else:
            super().draw(change)

    async def _draw_later(self, steps: int, seed: int) -> None:
        for role in self.models:
            await asyncio.sleep(0.05)  # what has been chosen meanwhile is heard here
            with contextlib.suppress(ValueError):  # told by `draw`
                self.path(role, steps, seed)
        super().draw()

    def _move(self, figure: go.Figure) -> None:
        frame = self.films[self.steps.value, self.seed.value].frames[self.step.index]
        for trace, now in zip(figure.data, frame.data, strict=False):  # those that move come first
            trace.update(now)
        figure.layout.images[0].source = frame.layout.images[0].source

    def show(self) -> go.Figure:
        chosen = self.steps.value, self.seed.value
        if chosen not in self.films:
            self.films[chosen] = trajectories({role: self.path(role, *chosen) for role in self.models})
        film = self.films[chosen]
        times = [int(frame.name) for frame in film.frames]
        wanted = self.wanted.get("step", 499)  # the time last chosen by hand, to come back to with other steps
        self.play.max = len(times) - 1
        stops = [(f"{k} of {len(times)}: t = {t}", t) for k, t in enumerate(times, 1)]
        self.choose(self.step, stops, min(times, key=lambda t: abs(t - wanted)))
        figure = go.Figure(film.data, film.layout)
        figure.layout.sliders = figure.layout.updatemenus = ()  # `step` and `play` are here
        self._move(figure)
        return figure
