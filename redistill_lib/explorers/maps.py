"""The plans and the feature maps of teacher and student, with a slider for how hard the student pools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor, nn

from redistill_lib.distill import Tap
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures import feature_maps, plan_table, stride_plans
from redistill_lib.maps import compare_maps, first_block, layer_maps
from redistill_lib.models import student_name
from redistill_lib.results import label

Compared = tuple[nn.Module, nn.Module, Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Compared]]]
Labels = Sequence[object] | None
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
        places = {
            ("both", name, "output"): (f"{name} of both", Tap(name, "output", name, "output")) for name in shared
        }
        for t in taps:
            text = f"{t.layer} {t.side} ← teacher's {t.teacher_layer} {t.teacher_side}"
            places["tap", t.layer, t.side] = text, t
        if not places:
            raise ValueError(
                f"{self.model.value}, {state}: no taps, and no layer with a feature map in both networks"
            )
        first = ("both", first_block(shared), "output") if shared else next(iter(places))
        place = self.choose(self.place, [(text, key) for key, (text, _) in places.items()], first)
        pair = teacher, student, places[place][1], self.images[self.image.value]
        comparison = self.compare(*pair, None, state)
        most = max(comparison.teacher_channels, comparison.student_channels)
        channel = self.choose(self.channel, options([MEAN, *range(most)]), MEAN)
        self.note = "" if trained else self.hint
        return feature_maps(comparison if channel == MEAN else self.compare(*pair, channel, state))
