"""Feature maps of teacher and student, with a slider for how hard the student pools."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from redistill_lib.distill import Tap
from redistill_lib.explorers.controls import Explorer, dropdown, redraw, slider
from redistill_lib.maps import MapComparison, compare_maps, first_block, layer_maps
from redistill_lib.progress import is_live
from redistill_lib.results import label

if TYPE_CHECKING:
    import ipywidgets as widgets

Compared = tuple[nn.Module, nn.Module, Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Compared]]]
Spot = tuple[str, str, str]  # "both" or "tap", the student's layer, its side
UNTRAINED, MEAN = "untrained", "mean"
HINT = "No student is trained at this stride yet: only the untrained one can be shown."


class MapSource:
    """Networks, images, and what is computed of them, each once: an explorer's memory, free of widgets."""

    def __init__(self, networks: Networks, images: Tensor):
        self.networks, self.images = networks, images
        self.states = functools.cache(self._states)
        self.spots = functools.cache(self._spots)
        self.compare = functools.cache(self._compare)

    def _states(self, model: str, factor: int) -> Mapping[str, Compared]:
        return self.networks[model](factor)

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


def feature_map_explorer(
    networks: Networks,
    images: Tensor,
    labels: Sequence[object] | None = None,
    *,
    factors: Sequence[int] = (1, 2, 4, 8),
    factor: int = 4,
    hint: str = HINT,
) -> widgets.VBox | None:
    """Choose image, model, stride, state, place and channel; see the teacher's and the student's map.

    `networks` gives, by the name of a model family, a function from pooling factor to the pairs there are: state
    (``untrained``, ``naive``, ``red``, …) → (teacher, student, taps). It is called once per factor; it may raise
    ValueError, whose text is shown. `images` are uint8, N×C×H×W, `labels` their classes. `hint` is shown where
    nothing but ``untrained`` is there: say which notebook trains. Returns None outside a live notebook.

    >>> import torch
    >>> feature_map_explorer({}, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)) is None
    True
    """
    if not is_live():
        return None
    return MapExplorer(MapSource(networks, images), labels, factors, factor, hint).view


class MapExplorer(Explorer):
    """The widgets: they ask the source for a comparison and the figures for its image."""

    def __init__(
        self, source: MapSource, labels: Sequence[object] | None, factors: Sequence[int], factor: int, hint: str
    ):
        import ipywidgets as widgets

        super().__init__()
        count = len(source.images)
        if labels is not None and len(labels) != count:
            raise ValueError(f"{count} images but {len(labels)} labels; give one per image")
        names = [str(k) if labels is None else f"{k} ({labels[k]})" for k in range(count)]
        self.source, self.hint = source, hint
        self.image = slider("image", [(name, k) for k, name in enumerate(names)])
        self.model = dropdown("model", [(name, name) for name in source.networks])
        self.stride = slider("stride", [(f"×{f}", f) for f in factors], factor if factor in factors else factors[0])
        self.state = dropdown("state", [("", None)])
        self.place = dropdown("place", [("", None)])
        self.channel = slider("channel", [(MEAN, MEAN)])
        controls = self.watch(self.model, self.stride, self.state, self.image, self.place, self.channel)
        self.view = widgets.VBox([controls, self.status, self.figure])

    def show(self) -> None:
        try:
            self._show(self.model.value, self.stride.value)
        except (ValueError, KeyError, FileNotFoundError) as error:
            text = str(error.args[0] if error.args else error)
            self.say(text, bold=f"×{self.stride.value} cannot be shown here.")

    def _show(self, model: str, factor: int) -> None:
        from redistill_lib.figures import feature_maps

        states = self.source.states(model, factor)
        if not states:
            raise ValueError(self.hint)
        trained = [state for state in states if state != UNTRAINED]
        state = self.choose(self.state, [(label(s), s) for s in states], (trained or [UNTRAINED])[0])
        spots = self.source.spots(model, factor, state)
        shared = [layer for kind, layer, _ in spots if kind == "both"]
        first = ("both", first_block(shared), "output") if shared else next(iter(spots))
        spot = self.choose(self.place, [(text, key) for key, (text, _) in spots.items()], first)
        where = (model, factor, state, spot, self.image.value)
        comparison = self.source.compare(*where)
        most = max(comparison.teacher_channels, comparison.student_channels)
        channel = self.choose(self.channel, [(MEAN, MEAN), *((str(c), c) for c in range(most))], MEAN)
        if channel != MEAN:
            comparison = self.source.compare(*where, channel)
        redraw(self.figure, feature_maps(comparison))
        self.say("" if trained else self.hint)
