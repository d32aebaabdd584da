"""What the explorers share: controls of one look that follow each other, and a figure redrawn in place."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ipywidgets as widgets
    import pandas as pd
    import plotly.graph_objects as go


def empty_figure() -> go.FigureWidget:
    import plotly.graph_objects as go

    from redistill_lib.figures.theme import TEMPLATE

    return go.FigureWidget(layout={"template": TEMPLATE})


def redraw(shown: go.FigureWidget, figure: go.Figure) -> None:
    """Make the widget show `figure`: in one message, with its traces kept and no less height, so nothing flickers."""
    if (extra := (shown.layout.height or 0) - figure.layout.height) > 0:  # a title of fewer lines
        hanging = (1 - figure.layout.title.y) * figure.layout.height
        figure.update_layout(height=figure.layout.height + extra, margin_t=figure.layout.margin.t + extra)
        figure.layout.title.y = 1 - hanging / figure.layout.height
    layout = _settings(figure.layout)
    gone = dict.fromkeys(_settings(shown.layout).keys() - layout.keys())  # e.g. the lines of another state
    with shown.batch_update():
        if [trace.type for trace in shown.data] != [trace.type for trace in figure.data]:
            shown.data = ()
            shown.add_traces(figure.data)
        else:
            for old, new in zip(shown.data, figure.data, strict=True):
                old.update(_settings(new), overwrite=True)
        shown.layout.update({**gone, **layout}, overwrite=True)


def _settings(part: Any) -> dict[str, Any]:
    values: dict[str, Any] = part.to_plotly_json()
    return {key: value for key, value in values.items() if key not in ("type", "uid", "template")}


def slider(description: str, options: Sequence[tuple[str, Any]], value: Any = None) -> widgets.SelectionSlider:
    import ipywidgets as widgets

    value = options[0][1] if value is None else value
    return widgets.SelectionSlider(options=options, value=value, description=description, **_look())


def dropdown(description: str, options: Sequence[tuple[str, Any]]) -> widgets.Dropdown:
    import ipywidgets as widgets

    return widgets.Dropdown(options=options, description=description, **_look())


def _look() -> dict[str, Any]:
    return {"layout": {"width": "420px"}, "style": {"description_width": "88px"}}


def rows(*controls: Any) -> widgets.Box:
    """Controls side by side as far as there is room."""
    import ipywidgets as widgets

    return widgets.Box(controls, layout={"display": "flex", "flex_flow": "row wrap", "max_width": "900px"})


def as_html(table: pd.DataFrame) -> str:
    numbers = dict.fromkeys(("parameters", "multiply-adds"), "{:,}".format)
    text: str = table.to_html(index=False, border=0, justify="left", formatters=numbers)
    for cell in ("td", "th"):
        text = text.replace(f"<{cell}>", f'<{cell} style="padding:0 16px 0 8px">')
    return text


class Explorer:
    """Widgets whose controls depend on each other; a subclass makes them, calls `watch`, and draws in `show`.

    What was last chosen by hand comes back wherever it is possible again.
    """

    def __init__(self) -> None:
        import ipywidgets as widgets

        self.busy = False
        self.wanted: dict[str, Any] = {}
        self.figure, self.status = empty_figure(), widgets.HTML()

    def watch(self, *controls: Any) -> widgets.Box:
        """Draw now and whenever one of the controls is changed by hand; returns them side by side."""
        self.draw()
        for control in controls:
            control.observe(self.draw, "value")
        return rows(*controls)

    def draw(self, change: Any = None) -> None:
        if self.busy:
            return  # a control changed because another one did
        if change:
            self.wanted[change["owner"].description] = change["new"]
        self.busy = True
        try:
            self.show()
        finally:
            self.busy = False

    def show(self) -> None:
        raise NotImplementedError

    def choose(self, control: Any, options: Sequence[tuple[str, Any]], otherwise: Any) -> Any:
        """Give a control its options and a value; with a single option it can only be read."""
        wanted = self.wanted.get(control.description, otherwise)
        value = wanted if wanted in [value for _, value in options] else otherwise
        if list(control.options) != list(options):
            control.options = options
        if control.value != value:
            control.value = value
        control.disabled = len(options) < 2
        return value

    def say(self, text: str, bold: str = "") -> None:
        bold = f"<b>{bold}</b> " if bold else ""
        self.status.value = f'<p style="margin:4px 8px">{bold}{html.escape(text)}</p>' if text else ""
