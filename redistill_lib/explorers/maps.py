"""Feature maps of teacher and student, with a slider for how hard the student pools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor, nn

from redistill_lib.distill import Tap
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures import feature_maps
from redistill_lib.maps import MapComparison, compare_maps, first_block, layer_maps
from redistill_lib.results import label

Compared = tuple[nn.Module, nn.Module, Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Compared]]]
Spot = tuple[str, str, str]  # "both" or "tap", the student's layer, its side
UNTRAINED, MEAN = "untrained", "mean"
HINT = "No student is trained at this stride yet: only the untrained one can be shown."


class MapExplorer(Explorer):
    """Networks, places and comparisons are made once each."""

    def __init__(
        self,
        networks: Networks,
        images: Tensor,
        labels: Sequence[object] | None,
        factors: Sequence[int],
        factor: int,
        hint: str,
    ):
        count = len(images)
        if labels is not None and len(labels) != count:
            raise ValueError(f"{count} images but {len(labels)} labels; give one per image")
        names = [str(k) if labels is None else f"{k} ({labels[k]})" for k in range(count)]
        self.images, self.hint = images, hint or HINT
        self.states = functools.cache(lambda model, factor: networks[model](factor))
        self.spots = functools.cache(self._spots)
        self.compare = functools.cache(self._compare)
        self.image = slider("image", [(name, k) for k, name in enumerate(names)])
        self.model = dropdown("model", options(networks))
        self.stride = slider("stride", options(factors, "×{}"), factor)
        self.state, self.place, self.channel = dropdown("state"), dropdown("place"), slider("channel")
        self.lay_out(self.model, self.stride, self.state, self.image, self.place, self.channel)

    def _spots(self, model: str, factor: int, state: str) -> dict[Spot, tuple[str, Tap]]:
        """Where to look: every layer that both networks have, then the taps, each with its text."""
        teacher, student, taps = self.states(model, factor)[state]
        ours = dict(layer_maps(student, self.images[0]))
        found: dict[Spot, tuple[str, Tap]] = {
            ("both", name, "output"): (f"{name} of both", Tap(name, "output", name, "output"))
            for name, _ in layer_maps(teacher, self.images[0])
            if name in ours
        }
        for t in taps:
            text = f"{t.layer} {t.side} ← teacher's {t.teacher_layer} {t.teacher_side}"
            found["tap", t.layer, t.side] = text, t
        if not found:
            raise ValueError(f"{model}, {state}: no taps, and no layer with a feature map in both networks")
        return found

    def _compare(
        self, model: str, factor: int, state: str, spot: Spot, image: int, channel: int | None = None
    ) -> MapComparison:
        teacher, student, _ = self.states(model, factor)[state]
        tap = self.spots(model, factor, state)[spot][1]
        return compare_maps(teacher, student, tap, self.images[image], channel, label=state)

    def show(self) -> go.Figure:
        model, factor = self.model.value, self.stride.value
        self.refusal = f"×{factor} cannot be shown here."
        states = self.states(model, factor)
        if not states:
            raise ValueError(self.hint)
        trained = [state for state in states if state != UNTRAINED]
        state = self.choose(self.state, [(label(s), s) for s in states], (trained or [UNTRAINED])[0])
        spots = self.spots(model, factor, state)
        shared = [layer for kind, layer, _ in spots if kind == "both"]
        first = ("both", first_block(shared), "output") if shared else next(iter(spots))
        spot = self.choose(self.place, [(text, key) for key, (text, _) in spots.items()], first)
        where = (model, factor, state, spot, self.image.value)
        comparison = self.compare(*where)
        most = max(comparison.teacher_channels, comparison.student_channels)
        channel = self.choose(self.channel, options([MEAN, *range(most)]), MEAN)
        self.note = "" if trained else self.hint
        return feature_maps(comparison if channel == MEAN else self.compare(*where, channel))
