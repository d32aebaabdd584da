"""What the explorers share: controls of one look that follow each other, and a figure redrawn in place."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.theme import LINE, TEMPLATE
from redistill_lib.looks import dark_figures

Options = Sequence[tuple[str, Any]]  # what is shown, and the value it stands for
_LOOK = {"layout": {"width": "420px"}, "style": {"description_width": "88px"}}
_ROWS = {"display": "flex", "flex_flow": "row wrap", "max_width": "900px"}  # side by side as far as there is room


def options(values: Iterable[Any], text: str = "{}") -> Options:
    return [(text.format(value), value) for value in values]


def _named(description: str) -> dict[str, Any]:
    """Without a tooltip a label is titled "null"."""
    return {"description": description, "tooltip": description, **_LOOK}


def slider(description: str, options: Options = (("", 0),), value: Any = None) -> widgets.SelectionSlider:
    """It opens at `value`, or at the first option where that is none."""
    value = value if value in [known for _, known in options] else options[0][1]
    return widgets.SelectionSlider(options=options, value=value, **_named(description))


def dropdown(description: str, options: Options = (("", 0),)) -> widgets.Dropdown:
    return widgets.Dropdown(options=options, **_named(description))


def empty_figure() -> go.FigureWidget:
    return go.FigureWidget(layout={"template": TEMPLATE})


def in_the_dark() -> widgets.HTML:
    """What makes the notebook's figures follow JupyterLab's theme; nothing is seen of it."""
    rule = dark_figures('[data-jp-theme-light="false"]')
    return widgets.HTML(f"<style>{rule}</style>", layout={"display": "none"})


def redraw(shown: go.FigureWidget, figure: go.Figure) -> None:
    """Make the widget show `figure`: in one message, with traces kept and hardly less height: nothing flickers."""
    if 0 < (extra := (shown.layout.height or 0) - figure.layout.height) <= 3 * LINE:  # a title of fewer lines
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


def complete(shown: go.FigureWidget) -> None:
    """Before a figure inside a box is displayed: let the page have all that it holds by now.

    What changed since it was made is lost on a page that is slower, unless plotly brings the widget's state up to
    date, which it does only for figures that are displayed themselves.
    """
    shown._repr_mimebundle_()


def _settings(part: Any) -> dict[str, Any]:
    return {key: value for key, value in part.to_plotly_json().items() if key not in ("type", "uid", "template")}


class Explorer:
    """Controls that depend on each other, over a figure and perhaps a table.

    A subclass makes the controls, calls `lay_out` with them, and draws in `show`. What was last chosen by hand comes
    back wherever it is possible again.
    """

    refusal = "This cannot be shown."
    note = ""

    def show(self) -> go.Figure:
        """The figure, and besides, if wanted, `set_code`, `set_table`, `note`, and `refusal` in case of an error."""
        raise NotImplementedError

    def lay_out(self, *controls: Any) -> None:
        """Draw now and whenever one of the controls is changed by hand."""
        self.busy = False
        self.wanted: dict[str, Any] = {}
        self.figure, (self.status, self.code, self.table) = empty_figure(), (widgets.HTML() for _ in range(3))
        self.drawn = widgets.VBox([self.figure, self.code, self.table])
        self.view = widgets.VBox([widgets.Box(controls, layout=_ROWS), self.status, self.drawn, in_the_dark()])
        self.draw()
        complete(self.figure)
        for control in controls:
            control.observe(self.draw, "value")

    def draw(self, change: Any = None) -> None:
        if self.busy:
            return  # a control changed because another one did
        if change:
            self.wanted[change["owner"].description] = change["new"]
        self.busy = True
        try:
            redraw(self.figure, self.show())
            self._say(html.escape(self.note))
            self.drawn.layout.display = ""
        except (ValueError, KeyError, FileNotFoundError) as error:
            text = error.args[0] if isinstance(error, KeyError) else error
            self._say(f"<b>{self.refusal}</b> {html.escape(str(text))}")
            self.drawn.layout.display = "none"  # a figure that is taken out of the page does not come back whole
        finally:
            self.busy = False

    def _say(self, text: str) -> None:
        self.status.value = f'<p style="margin:4px 8px">{text}</p>' if text else ""

    def set_table(self, table: pd.DataFrame) -> None:
        text = table.to_html(index=False, border=0, justify="left")
        self.table.value = re.sub("<(t[dh])>", r'<\1 style="padding:0 16px 0 8px;text-align:left">', text)

    def set_code(self, code: str) -> None:
        """Below the figure, as text that can be selected at a click; above the table, if that is set."""
        box = "margin:4px 8px;padding:8px;border:1px solid #8A8F96;user-select:all;white-space:pre-wrap"
        self.code.value = f'<pre style="{box}">{html.escape(code)}</pre>' if code else ""

    def choose(self, control: Any, options: Options, otherwise: Any) -> Any:
        """Give a control its options and a value; with a single option it can only be read."""
        wanted = self.wanted.get(control.description, otherwise)
        value = wanted if wanted in [value for _, value in options] else otherwise
        if list(control.options) != list(options):
            control.options = options
        if control.value != value:
            control.value = value
        control.disabled = len(options) < 2
        return value
