"""Teacher and student side by side: their plans, their feature maps, and what they draw from the same noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go
from torch import Tensor, nn

from redistill_lib.diffusion import Trajectory, trajectory
from redistill_lib.distill import Tap
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures import feature_maps, plan_table, stride_plans, trajectory_step
from redistill_lib.maps import compare_maps, first_block, layer_maps, shared_tap
from redistill_lib.models import student_name
from redistill_lib.red import Side
from redistill_lib.results import label
from redistill_lib.runs import Run

Compared = tuple[nn.Module, nn.Module, Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Compared]]]
Labels = Sequence[object] | None
Drawn = nn.Module | Run | str | Path
Shape = int | Sequence[int] | None
UNTRAINED, MEAN = "untrained", "mean"
HINT = "No student is trained at this stride yet: only the untrained one can be shown."


class PlanExplorer(Explorer):
    """The plans of a teacher and its student, as a chart and a table."""

    def __init__(self, teachers: Sequence[str], image_size: int, factors: Sequence[int], factor: int):
        self.image_size = image_size
        self.model = dropdown("teacher", options(teachers))
        self.stride = slider("stride", options(factors, "×{}"), factor)
        self.lay_out(*([self.model] if len(teachers) > 1 else []), self.stride)

    def show(self) -> go.Figure:
        self.refusal = f"×{self.stride.value} is not possible here."
        plans = {"teacher": self.model.value, "student": student_name(self.model.value, self.stride.value)}
        self.set_table(plan_table(plans, self.image_size))
        return stride_plans(plans, self.image_size)


class MapExplorer(Explorer):
    """Networks, places and comparisons are made once each."""

    def __init__(
        self, networks: Networks, images: Tensor, labels: Labels, factors: Sequence[int], factor: int, hint: str
    ):
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"{len(images)} images but {len(labels)} labels; give one per image")
        names = [str(k) if labels is None else f"{k} ({labels[k]})" for k in range(len(images))]
        self.images, self.hint = images.unbind(), hint or HINT
        self.states = functools.cache(lambda model, factor: networks[model](factor))
        self.layers = functools.cache(lambda network: [name for name, _ in layer_maps(network, images[0])])
        self.shared = functools.cache(functools.partial(shared_tap, image=images[0]))
        self.compare = functools.cache(compare_maps)
        self.image = slider("image", [(name, k) for k, name in enumerate(names)])
        self.model = dropdown("model", options(networks))
        self.stride = slider("stride", options(factors, "×{}"), factor)
        self.state, self.place, self.channel = dropdown("state"), dropdown("place"), slider("channel")
        self.lay_out(self.model, self.stride, self.state, self.image, self.place, self.channel)

    def show(self) -> go.Figure:
        self.refusal = f"×{self.stride.value} cannot be shown here."
        states = self.states(self.model.value, self.stride.value)
        if not states:
            raise ValueError(self.hint)
        trained = [state for state in states if state != UNTRAINED]
        state = self.choose(self.state, [(label(s), s) for s in states], (trained or [UNTRAINED])[0])
        teacher, student, taps = states[state]
        shared = [name for name in self.layers(teacher) if name in self.layers(student)]
        places: dict[tuple[str, str, Side], tuple[str, Tap | None]]
        places = {("both", name, "output"): (f"{name} of both", None) for name in shared}
        for t in taps:
            text = f"{t.layer} {t.side} ← teacher's {t.teacher_layer} {t.teacher_side}"
            places["tap", t.layer, t.side] = text, t
        if not places:
            raise ValueError(
                f"{self.model.value}, {state}: no taps, and no layer with a feature map in both networks"
            )
        first = ("both", first_block(shared), "output") if shared else next(iter(places))
        place = self.choose(self.place, [(text, key) for key, (text, _) in places.items()], first)
        tap = places[place][1] or self.shared(teacher, student, place[1])
        pair = teacher, student, tap, self.images[self.image.value]
        comparison = self.compare(*pair, None, state)
        most = max(comparison.teacher_channels, comparison.student_channels)
        channel = self.choose(self.channel, options([MEAN, *range(most)]), MEAN)
        self.note = "" if trained else self.hint
        return feature_maps(comparison if channel == MEAN else self.compare(*pair, channel, state))


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
