"""The stride as a slider: what it does to picture, maps, memory and accuracy, layer by layer."""

from __future__ import annotations

import plotly.graph_objects as go

from redistill_lib import figures
from redistill_lib.exploration import Exploration
from redistill_lib.explorers.controls import Explorer, options, slider
from redistill_lib.memory import format_size, parse_size

MEAN, NONE = "mean", "none"
_CHANNELS = 16


class StrideExplorer(Explorer):
    """The figure of an exploration, whose slider is moved here, where keys reach it."""

    def __init__(self, found: Exploration, factor: int, budget: int | str | None):
        self.found = found
        names = [
            f"{k}" if found.classes is None else f"{k} ({name})"
            for k, name in enumerate(found.classes or range(min(24, len(found.images))))
        ][:24]
        peak = found.teacher.profile.peak_bytes
        sizes = sorted(
            {*([] if budget is None else [parse_size(budget)]), *(2**k for k in range(10, peak.bit_length() + 1))}
        )
        self.stride = slider("stride", options(found.factors, "×{}"), factor)
        self.image = slider("image", [(name, k) for k, name in enumerate(names)])
        self.channel = slider("channel", options([MEAN, *range(_CHANNELS)]))
        self.budget = slider(
            "budget",
            [(NONE, None), *((format_size(size), size) for size in sizes)],
            None if budget is None else parse_size(budget),
        )
        self.lay_out(self.stride, self.image, self.channel, self.budget)

    def show(self) -> go.Figure:
        channel = None if self.channel.value == MEAN else self.channel.value
        figure = figures.exploration(
            self.found, self.stride.value, image=self.image.value, channel=channel, budget=self.budget.value
        )
        return figure.update_layout(sliders=[])
