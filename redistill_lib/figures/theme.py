"""What all figures share: the template, titles, lines in the look of a role."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from html import unescape
from typing import Any

import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from redistill_lib.looks import SPARE as SPARE
from redistill_lib.looks import color as color
from redistill_lib.looks import colors as colors
from redistill_lib.looks import look as look
from redistill_lib.results import label
from redistill_lib.sizes import short_size

NBSP = "\u00a0"
LINE = 22  # pixels from line to line in a title of size 17
Box = tuple[int, int, int, int]
PAGE = 840  # pixels of a figure where nothing else says how wide it is, as in a file
NARROW = 600  # the least width that titles, legends and what stands beside a plot have room in
INK, MUTED, GRID = "#1F2328", "#59636E", "#E6E8EB"

_AXIS = {"gridcolor": GRID, "zeroline": False, "title": {"font": {"size": 13}, "standoff": 8}}
TEMPLATE = go.layout.Template(
    layout={
        "width": PAGE,
        "font": {"family": "Inter, 'Segoe UI', Roboto, Arial, sans-serif", "size": 13, "color": INK},
        "title": {"font": {"size": 17}, "x": 0, "xanchor": "left", "yanchor": "top", "pad": {"l": 12}},
        "hoverlabel": {"bgcolor": "white", "bordercolor": GRID, "font": {"size": 13, "color": INK}, "align": "left"},
        "legend": {"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container", "itemsizing": "constant"},
        "xaxis": _AXIS,
        "yaxis": _AXIS | {"automargin": "left+width"},
        "annotationdefaults": {"showarrow": False},
        "modebar": {"remove": ["select", "lasso", "zoomin", "zoomout", "autoscale"]},  # it covers titles
    }
)


def faint(color: str, opacity: float = 0.35) -> str:
    """The same colour, see-through."""
    return "rgba({},{},{},{:g})".format(*hex_to_rgb(color), opacity)


def muted(text: str) -> str:
    """Text in grey, inside a title, a name or an annotation."""
    return f'<span style="color:{MUTED}">{text}</span>'


def short(name: str, most: int) -> str:
    """A module's path with its middle left out where it is too long."""
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"


def role_trace(role: str, hover: str, **settings: Any) -> go.Scatter:
    """Lines or markers in the look of a role; the hover text is its name, followed by `hover`.

    `settings` as of `plotly.graph_objects.Scatter`; they may change a part of the look.
    """
    (tone, symbol), name = look(role), label(role)
    trace = go.Scatter(
        name=name, legendgroup=name, line={"color": tone, "width": 2.5},
        marker={"color": tone, "symbol": symbol, "size": 9},
        error_x={"color": tone, "thickness": 1.5, "width": 4},
        error_y={"color": tone, "thickness": 1.5, "width": 4},
        hovertemplate=f"<b>{name}</b>{hover}<extra></extra>",
    )  # fmt: skip
    return trace.update(settings)


def name_rows(figure: go.Figure, names: Sequence[str]) -> None:
    """Give the y axis one row per name, at 0, 1, … from the top."""
    figure.update_yaxes(tickvals=[*range(len(names))], ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False)


def name_columns(figure: go.Figure, names: Mapping[float, str], title: str) -> int:
    """Name places of the x axis at a slant; the pixels that this needs below the plot, title included."""
    figure.update_xaxes(tickvals=[*names], ticktext=[*names.values()], tickangle=-60, showgrid=False, title=title)
    return 44 + 6 * max(len(re.sub("<.*?>", "", name)) for name in names.values())


def powers(low: float, high: float, most: int = 10) -> list[float]:
    """Ticks of a logarithmic axis of bytes: powers of two, or in between where these are few."""
    found = [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
    if len(found) < 3:
        found = sorted(part * 2.0**k for part in (1, 1.25, 1.5) for k in range(60) if low <= part * 2.0**k <= high)
    return found[:: math.ceil(len(found) / most) or 1]


def size_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis from so many bytes to so many."""
    ticks = powers(low, high)
    text = [short_size(tick) for tick in ticks]
    return {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": ticks, "ticktext": text}


def finish(
    figure: go.Figure, title: str, note: str = "", *, plot: int, margins: Box = (64, 8, 24, 56), legend: bool = False
) -> go.Figure:
    """Give a figure the template, its height, and its title: the finding, then what one has to know to read it.

    The width is that of where it is shown. `plot` is the height of the plot area and `margins` what is around it
    (left, above, right, below) without title and legend, all in pixels.
    """
    # No line break before a number, %, = or a bracket, inside short brackets, nor inside a role's name.
    joined = re.sub(r"(?<![,;:]) (?=[\d−×±(%+=]|blocks)|(?<=\+) ", NBSP, title)
    joined = re.sub(r"\([^()]{,30}\)", lambda found: found[0].replace(" ", NBSP), joined)
    lines, small = _lines(joined, 66), _lines(note, 92)
    text = [f"<b>{line.replace(NBSP, ' ')}</b>" for line in lines]
    if small:  # in the title's text: plotly misplaces a title's own subtitle when the title has several lines
        text.append(f'<span style="font-size:13px;color:{MUTED}">{"<br>".join(small)}</span>')
    left, above, right, below = margins
    top = 26 + LINE * (len(lines) + len(small)) + above
    bottom = below + (26 * _legend_rows(figure, NARROW - left - right) if legend else 0)
    height = top + plot + bottom
    return figure.update_layout(
        template=TEMPLATE, height=height, showlegend=legend,
        margin={"l": left, "t": top, "r": right, "b": bottom},
        title={"text": "<br>".join(text), "y": 1 - 20 / height},
    )  # fmt: skip


def headline(figure: go.Figure) -> str:
    """What a figure finds: its title on one line, without the note below it.

    >>> headline(finish(go.Figure(), "Less memory", "One run.", plot=100))
    'Less memory'
    """
    return unescape(" ".join(re.findall("<b>(.*?)</b>", figure.layout.title.text or "")))


def _lines(text: str, most: int) -> list[str]:
    """As few lines of at most so many characters as there can be, of about one length."""
    wrap = partial(textwrap.wrap, text, break_on_hyphens=False)  # names of networks have some
    found = wrap(most)
    tries = (wrap(width) for width in range(most * 3 // 4, most))
    return next((lines for lines in tries if len(lines) == len(found)), found)


def _legend_rows(figure: go.Figure, width: int) -> int:
    parts = [part for part in (*figure.data, *figure.layout.shapes) if part.name and part.showlegend is not False]
    wide = [44 + 6.4 * len(re.sub("<.*?>", "", part.name)) for part in parts]
    return 1 if sum(wide) <= width else math.ceil(len(wide) / max(1, int(width // max(wide))))
