"""The stride as a slider: what it does to picture, maps, memory and accuracy, layer by layer."""

from __future__ import annotations

import functools

import plotly.graph_objects as go

from redistill_lib import figures
from redistill_lib.exploration import Exploration
from redistill_lib.explorers.controls import Explorer, options, slider
from redistill_lib.memory import format_size, parse_size

MEAN = "mean"
_IMAGES, _CHANNELS = 24, 16  # to choose from, at most


class StrideExplorer(Explorer):
    """The figure of an exploration, whose slider is moved here, where keys reach it."""

    def __init__(self, found: Exploration, factor: int, image: int, budget: int | str | None):
        self.shown = functools.cache(found.show)
        asked = 0 if budget is None else parse_size(budget)
        names = found.classes or [""] * len(found.images)
        images = [
            (f"{k} ({name})" if name else str(k), k) for k, name in enumerate(names) if k < _IMAGES or k == image
        ]
        powers = (2**k for k in range(10, found.teacher.profile.peak_bytes.bit_length() + 1))
        sizes = [(format_size(size), size) for size in sorted({asked, *powers} - {0})]
        self.stride = slider("stride", options(found.factors, "×{}"), factor)
        self.image = slider("image", images, image)
        self.channel = slider("channel", options([MEAN, *range(_CHANNELS)]))
        self.budget = slider("budget", [("none", 0), *sizes], asked)
        self.lay_out(self.stride, self.image, self.channel, self.budget)

    def show(self) -> go.Figure:
        channel = None if self.channel.value == MEAN else self.channel.value
        shown = self.shown(self.image.value, channel)
        figure = figures.exploration(shown, self.stride.value, budget=self.budget.value or None)
        figure.layout.sliders = ()
        return figure
