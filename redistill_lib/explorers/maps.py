"""Feature maps of teacher and student, with a slider for how hard the student pools."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redistill_lib.explorers.controls import choose, dropdown, redraw, rows, slider
from redistill_lib.maps import MapComparison, compare_maps, layer_maps
from redistill_lib.progress import is_live
from redistill_lib.taps import Tap

if TYPE_CHECKING:
    import ipywidgets as widgets
    from torch import Tensor, nn

Pair = tuple["nn.Module", "nn.Module", Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Pair]]]
Option = tuple[str, Any]
UNTRAINED = "untrained"
HINT = "None of these networks is trained yet, so the maps are those of random weights."


class MapSource:
    """Networks, pictures, and what has been computed of them: an explorer's memory, free of widgets.

    >>> source = MapSource({}, None)
    >>> source.comparisons
    {}
    """

    def __init__(self, networks: Networks, images: Tensor | None):
        self.networks, self.images = networks, images
        self.found: dict[tuple[str, int], Mapping[str, Pair]] = {}
        self.layers: dict[tuple[str, int, str], list[str]] = {}
        self.comparisons: dict[tuple[Any, ...], MapComparison] = {}

    def states(self, model: str, factor: int) -> Mapping[str, Pair]:
        """The pairs of networks there are, by state. Raises what the caller's function raises."""
        if (model, factor) not in self.found:
            self.found[model, factor] = self.networks[model](factor)
        return self.found[model, factor]

    def places(self, model: str, factor: int, state: str) -> tuple[list[Option], Any]:
        """Options for where to look (text, (same layer in both?, tap)), and the one to begin with."""
        teacher, student, taps = self.states(model, factor)[state]
        options = [(f"{t.layer} {t.side} ← teacher's {t.teacher_layer} {t.teacher_side}", t) for t in taps]
        theirs = self._layers(model, factor, state, student)
        same = [name for name in self._layers(model, factor, "teacher", teacher) if name in theirs]
        layers = [(f"{name} in both", Tap(name, "output", name, "output")) for name in same]
        blocks = [tap for _, tap in layers if any(name.startswith(f"{tap.layer}.") for name in same)]
        first = next(iter([*blocks, *(tap for _, tap in [*options, *layers])]), None)
        if first is None:
            raise ValueError(f"{model} ×{factor}, {state}: no taps, and no layer with a feature map in both networks")
        return [*layers, *options], first

    def _layers(self, model: str, factor: int, role: str, network: nn.Module) -> list[str]:
        assert self.images is not None
        key = (model, factor, role)
        if key not in self.layers:
            self.layers[key] = [name for name, _ in layer_maps(network, self.images[0])]
        return self.layers[key]

    def compare(
        self, model: str, factor: int, state: str, tap: Tap, picture: int, channel: int | None
    ) -> MapComparison:
        assert self.images is not None
        key = (model, factor, state, tap, picture, channel)
        if key not in self.comparisons:
            teacher, student, _ = self.states(model, factor)[state]
            self.comparisons[key] = compare_maps(teacher, student, tap, self.images[picture], channel, label=state)
        return self.comparisons[key]


def feature_maps(
    networks: Networks,
    images: Tensor,
    labels: Sequence[object] | None = None,
    *,
    factors: Sequence[int] = (1, 2, 4, 8),
    factor: int = 4,
    hint: str = HINT,
) -> widgets.VBox | None:
    """Choose picture, model, stride, state, place and channel; see the teacher's and the student's map.

    `networks` gives, by the name of a model family, a function from pooling factor to the pairs there are: state
    (``untrained``, ``naive``, ``red``, …) → (teacher, student, taps). It is called once per factor; it may raise
    ValueError, whose text is shown. `images` are uint8, N×C×H×W, `labels` their classes. `hint` is shown where
    nothing but ``untrained`` is there: say which notebook trains. None where nobody is looking.

    >>> feature_maps({}, None) is None
    True
    """
    if not is_live():
        return None
    return MapExplorer(MapSource(networks, images), labels, factors, factor, hint).view


class MapExplorer:
    """The widgets: they ask the source for a comparison and the figures for its picture."""

    def __init__(
        self, source: MapSource, labels: Sequence[object] | None, factors: Sequence[int], factor: int, hint: str
    ):
        import ipywidgets as widgets
        import plotly.graph_objects as go

        assert source.images is not None
        self.source, self.hint, self.busy = source, hint, False
        words = [f"{k}" for k in range(len(source.images))]
        if labels is not None:
            words = [f"{k}: {label}" for k, label in zip(words, labels, strict=True)]
        self.picture = slider("picture", [(word, k) for k, word in enumerate(words)])
        self.model = dropdown("model", [(name, name) for name in source.networks])
        self.stride = slider("stride", [(f"×{f}", f) for f in factors], factor if factor in factors else factors[0])
        self.state = dropdown("state", [("", None)])
        self.place = dropdown("place", [("", None)])
        self.channel = slider("channel", [("mean", -1)])
        self.controls = (self.model, self.stride, self.state, self.picture, self.place, self.channel)
        self.figure, self.status = go.FigureWidget(), widgets.HTML()
        self.draw()
        for control in self.controls:
            control.observe(self.draw, "value")
        self.view = widgets.VBox([rows(*self.controls), self.status, self.figure])

    def draw(self, _: Any = None) -> None:
        if self.busy:
            return  # a control changed because another one did
        self.busy = True
        try:
            self._draw()
        except (ValueError, KeyError, FileNotFoundError) as error:
            text = error.args[0] if error.args else error
            self._say(f"<b>×{self.stride.value} cannot be shown here.</b> {html.escape(str(text))}")
        finally:
            self.busy = False

    def _draw(self) -> None:
        from redistill_lib.figures import feature_maps as figure_of
        from redistill_lib.figures.theme import label

        where = (self.model.value, self.stride.value)
        states = self.source.states(*where)
        if not states:
            raise ValueError(self.hint)
        trained = [state for state in states if state != UNTRAINED]
        self._say("" if trained else html.escape(self.hint))
        choose(self.state, [(label(state), state) for state in states], (trained or [UNTRAINED])[-1])
        options, first = self.source.places(*where, self.state.value)
        choose(self.place, options, _nearest(self.place.value, options) or first)
        place = (*where, self.state.value, self.place.value, self.picture.value)
        channel = None if self.channel.value < 0 else self.channel.value
        comparison = self.source.compare(*place, channel)
        most = max(comparison.teacher_channels, comparison.student_channels)
        choose(self.channel, [("mean", -1), *((str(c), c) for c in range(most))])
        if channel is not None and self.channel.value != channel:
            comparison = self.source.compare(*place, None)
        redraw(self.figure, figure_of(comparison))

    def _say(self, text: str) -> None:
        self.status.value = f'<p style="margin:4px 8px">{text}</p>' if text else ""


def _nearest(before: Tap | None, options: Sequence[Option]) -> Tap | None:
    """The option at the same place of the student, where the old one is gone: its teacher's layer may differ."""
    if before is None:
        return None
    own = before.layer != before.teacher_layer  # a tap rather than one layer in both
    found = [t for _, t in options if t.place == before.place and (t.layer != t.teacher_layer) == own]
    return found[0] if found else None
