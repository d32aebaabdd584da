"""A budget slider over accuracy and peak memory, and what stands behind the point that is clicked."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go

from redistill_lib.explorers.controls import Explorer, complete, dropdown, empty_figure, options, redraw, slider
from redistill_lib.figures import feature_maps, memory_timeline, stride_plans, tradeoff_curves, tradeoffs
from redistill_lib.sizes import parse_size, short_size
from redistill_lib.tradeoffs import Tradeoffs, call
from redistill_lib.tradeoffs.details import maps_of, plans_of, profile_of
from redistill_lib.tradeoffs.result import SHARE

HIDDEN, SHOWN = "hidden", "shown"


class TradeoffExplorer(Explorer):
    """Profiles and maps are made once for each point that is chosen."""

    def __init__(self, result: Tradeoffs, data: str | None, budget: int | str | None, dtype: Any, image: int):
        result.need(dtype)  # refuses another one
        self.result, self.first, self.image = result, data, image
        self.opening = None if budget is None else parse_size(budget)
        own = (result.frame["source"] == "published").all()
        self.data = dropdown("data", options(result.panels if own else result.shown(False).panels))
        self.budget, self.dtype, self.point = slider("budget"), dropdown("dtype"), dropdown("point")
        self.dtype.options = options(SHARE)
        self.dtype.value, self.dtype.disabled = dtype, False
        both = (result.frame["source"] == "published").any() and not own
        self.published = dropdown("published", options([HIDDEN, SHOWN] if both else [SHOWN if own else HIDDEN]))
        self.published.disabled = not both
        if data is not None and result.panel(data).own["source"].eq("published").all():
            self.published.value = SHOWN
        self.profile, self.maps = functools.cache(self._profile), functools.cache(self._maps)
        self.details = [(empty_figure(), widgets.HTML()) for _ in range(3)]
        self.shells = [widgets.VBox([figure]) for figure, _ in self.details]
        self.lay_out(self.data, self.budget, self.dtype, self.published, self.point)
        for shell, (figure, text) in zip(self.shells, self.details, strict=True):
            complete(figure)
            self.view.children += (shell, text)

    def draw(self, change: Any = None) -> None:
        super().draw(change)
        for trace in self.figure.data:
            trace.on_click(self.click)

    def click(self, trace: Any, points: Any, state: Any = None) -> None:
        """Choose the point that was clicked."""
        if points.point_inds and trace.customdata is not None:
            self.point.value = trace.customdata[points.point_inds[0]]

    def show(self) -> go.Figure:
        self.refusal = "Nothing can be compared here."
        shown = self.result.shown(self.published.value == SHOWN)
        first = self.first if self.first in shown.panels else shown.panels[0]
        self.choose(self.data, options(shown.panels), first)
        panel, dtype = shown.panel(self.data.value), self.dtype.value
        steps = panel.budgets(dtype)
        wanted = self.opening or panel.middle_budget(dtype)
        nearest = min(steps, key=lambda step: abs(step - wanted))
        budget = self.choose(self.budget, [(short_size(step), step) for step in steps], nearest)
        best = panel.best(budget, dtype)
        names = [*panel.frame["name"]]
        chosen = self.choose(self.point, options(names), names[0] if best is None else best["name"])
        self.set_code("" if best is None else call(best))
        row = panel.row(chosen)
        self._detail(0, lambda: tradeoff_curves(panel, chosen))
        self._detail(1, lambda: memory_timeline(self.profile(panel.panels[0], chosen, dtype)))
        self._detail(2, lambda: self.maps(panel.panels[0], chosen) or stride_plans(*plans_of(row)))
        return tradeoffs(panel, budget, dtype, chosen)

    def _row(self, panel: str, name: str) -> Any:
        return self.result.panel(panel).row(name)

    def _profile(self, panel: str, name: str, dtype: Any) -> Any:
        return profile_of(self._row(panel, name), dtype)

    def _maps(self, panel: str, name: str) -> go.Figure | None:
        """The maps, or None where no weights are at hand."""
        row = self._row(panel, name)
        return feature_maps(maps_of(row, self.image)) if row["teacher_run"] else None

    def _detail(self, place: int, make: Callable[[], go.Figure]) -> None:
        figure, text = self.details[place]
        try:
            redraw(figure, make())
            self.shells[place].layout.display, text.value = "", ""
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            told = str(error.args[0] if isinstance(error, KeyError) else error)
            self.shells[place].layout.display = "none"
            text.value = f'<p style="margin:4px 8px">{html.escape(told[:1].upper() + told[1:])}.</p>'
