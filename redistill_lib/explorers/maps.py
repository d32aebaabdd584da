"""Feature maps of teacher and student, with a slider for how hard the student pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from redistill_lib.distill import Tap
from redistill_lib.explorers.controls import Explorer, dropdown, redraw, slider
from redistill_lib.maps import MapComparison, compare_maps, first_block, layer_maps
from redistill_lib.progress import is_live
from redistill_lib.results import label

if TYPE_CHECKING:
    import ipywidgets as widgets

Pair = tuple[nn.Module, nn.Module, Sequence[Tap]]  # teacher, student, taps
Networks = Mapping[str, Callable[[int], Mapping[str, Pair]]]
Place = tuple[str, str, str]  # "both" or "tap", the student's layer, its side
UNTRAINED, MEAN = "untrained", "mean"
HINT = "No student is trained at this stride yet: only the untrained one can be shown."


class MapSource:
    """Networks, images, and what has been computed of them: an explorer's memory, free of widgets.

    >>> import torch
    >>> MapSource({}, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).comparisons
    {}
    """

    def __init__(self, networks: Networks, images: Tensor):
        self.networks, self.images = networks, images
        self.pairs: dict[tuple[str, int], Mapping[str, Pair]] = {}
        self.lists: dict[tuple[str, int, str], dict[Place, tuple[str, Tap]]] = {}
        self.comparisons: dict[tuple[Any, ...], MapComparison] = {}

    def states(self, model: str, factor: int) -> Mapping[str, Pair]:
        """The pairs of networks there are, by state. Raises what the caller's function raises."""
        if (model, factor) not in self.pairs:
            self.pairs[model, factor] = self.networks[model](factor)
        return self.pairs[model, factor]

    def places(self, model: str, factor: int, state: str) -> dict[Place, tuple[str, Tap]]:
        """Where to look: every layer that both networks have, then the taps, each with its text."""
        if (model, factor, state) not in self.lists:
            teacher, student, taps = self.states(model, factor)[state]
            theirs = [name for name, _ in layer_maps(teacher, self.images[0])]
            ours = {name for name, _ in layer_maps(student, self.images[0])}
            both: dict[Place, tuple[str, Tap]] = {
                ("both", name, "output"): (f"{name} of both", Tap(name, "output", name, "output"))
                for name in theirs
                if name in ours
            }
            tapped: dict[Place, tuple[str, Tap]] = {
                ("tap", t.layer, t.side): (f"{t.layer} {t.side} ← teacher's {t.teacher_layer} {t.teacher_side}", t)
                for t in taps
            }
            if not (both or tapped):
                raise ValueError(f"{model}, {state}: no taps, and no layer with a feature map in both networks")
            self.lists[model, factor, state] = {**both, **tapped}
        return self.lists[model, factor, state]

    def compare(
        self, model: str, factor: int, state: str, tap: Tap, image: int, channel: int | None
    ) -> MapComparison:
        key = (model, factor, state, tap, image, channel)
        if key not in self.comparisons:
            teacher, student, _ = self.states(model, factor)[state]
            self.comparisons[key] = compare_maps(teacher, student, tap, self.images[image], channel, label=state)
        return self.comparisons[key]


def first_place(places: Mapping[Place, Any]) -> Place:
    """The first block that both networks have; where they share no layer, the first tap."""
    names = [layer for kind, layer, _ in places if kind == "both"]
    return ("both", first_block(names), "output") if names else next(iter(places))


def feature_maps(
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
    nothing but ``untrained`` is there: say which notebook trains. None where nobody is looking.

    >>> import torch
    >>> feature_maps({}, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)) is None
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
        from redistill_lib.figures import feature_maps as figure_of

        states = self.source.states(model, factor)
        if not states:
            raise ValueError(self.hint)
        trained = [state for state in states if state != UNTRAINED]
        state = self.choose(self.state, [(label(s), s) for s in states], (trained or [UNTRAINED])[0])
        places = self.source.places(model, factor, state)
        place = self.choose(self.place, [(text, key) for key, (text, _) in places.items()], first_place(places))
        where = (model, factor, state, places[place][1], self.image.value)
        comparison = self.source.compare(*where, None)
        most = max(comparison.teacher_channels, comparison.student_channels)
        channel = self.choose(self.channel, [(MEAN, MEAN), *((str(c), c) for c in range(most))], MEAN)
        if channel != MEAN:
            comparison = self.source.compare(*where, channel)
        redraw(self.figure, figure_of(comparison))
        self.say("" if trained else self.hint)
