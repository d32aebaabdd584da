"""What fits a budget: every stride plan by what it needs and what it computes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from redistill_lib.budget import FORMS, Blocks, BudgetFit, Fit
from redistill_lib.figures.theme import INK, MUTED, faint, finish, look, size_axis
from redistill_lib.sizes import format_size, short_size

# Over what does not fit, which turns grey without being drawn anew; it spares a plan that needs all of the budget.
_VEIL = "rgba(247,248,249,0.8)"
_ENDS: tuple[Blocks, ...] = "published", "none"


def budget(fit: BudgetFit, budgets: Sequence[int] = ()) -> go.Figure:
    """Each plan that `fit_to_budget` looked at: its multiply-adds over what it needs with its blocks.

    Right of the budget is grey; of the rest the plan that keeps most has a ring. Large are plans that no other of
    their dtype beats, on the dotted line; the bar through such a plan reaches from its peak without RED blocks to
    that with blocks as published. With `budgets` (bytes) a slider moves the budget, without a kernel too; `fit` is
    then one that was searched with the largest of them.

    >>> import torch
    >>> from redistill_lib.budget import fit_to_budget
    >>> fit = fit_to_budget("mobilenetv2", "256KB", torch.zeros(1, 3, 96, 96), plans=["2-1222121", "4-1221121"])
    >>> from redistill_lib.figures import headline
    >>> headline(budget(fit)).partition(" with")[0]
    'mobilenetv2 in 256 KiB: 4-1221121 in int8 keeps most'
    """
    stops = {size: fit.within(size) for size in sorted({fit.budget_bytes, *budgets})}
    layouts = {size: _finish(go.Figure(), stop, bool(budgets)).layout for size, stop in stops.items()}
    tallest = max(stops, key=lambda size: layouts[size].height)
    figure = _finish(every_plan(fit), stops[tallest], bool(budgets))
    _move(figure, *(changes := {k: _change(stops[k], layouts[k].title.text) for k in stops})[fit.budget_bytes])
    if budgets:
        last = [len(figure.data) - 1]  # the ring, the only trace that changes
        steps = [{"label": short_size(k), "method": "update", "args": [*changes[k], last]} for k in stops]
        slider: dict[str, Any] = {"steps": steps, "active": [*stops].index(fit.budget_bytes), "y": 1}
        slider |= {"yanchor": "bottom", "pad": {"b": 32, "t": 0}, "currentvalue": {"prefix": "budget "}}
        figure.update_layout(sliders=[slider])
    return figure


def at_budget(figure: go.Figure, fit: BudgetFit) -> go.Figure:
    """What `every_plan` drew, moved to the budget of `fit`; much faster than to draw it."""
    _finish(figure, fit, False)
    _move(figure, *_change(fit, figure.layout.title.text))
    return figure


def every_plan(fit: BudgetFit) -> go.Figure:
    """All that does not depend on the budget."""
    figure = go.Figure()
    for dtype in dict.fromkeys(each.dtype for each in fit.candidates):
        figure.add_traces(_plans(fit.within(2**62, dtype=dtype), dtype))
    figure.add_traces(_marks(fit))
    _lay_out(figure, fit)
    return figure


def _finish(figure: go.Figure, fit: BudgetFit, slider: bool) -> go.Figure:
    return finish(figure, fit.verdict, _note(fit), plot=380, margins=(78, 90 if slider else 22, 24, 56), legend=True)


def _move(figure: go.Figure, ring: dict[str, Any], layout: dict[str, Any]) -> None:
    figure.data[-1].update({key: value[0] for key, value in ring.items()})
    figure.update_layout(layout)


def _plans(fit: BudgetFit, dtype: str) -> list[go.Scatter]:
    """The plans of one dtype, below those on the front of all of them."""
    (tone, symbol), front = look(dtype), fit.fits[::-1]
    spots = {"x": [_need(fit, each) for each in front], "y": [_adds(each) for each in front]}
    ends = [[abs(each.peak(form) - x) for each, x in zip(front, spots["x"], strict=True)] for form in _ENDS]
    bar = {"array": ends[0], "arrayminus": ends[1], "symmetric": False, "color": tone, "width": 5}
    mark = {"color": tone, "symbol": symbol, "line": {"color": "white", "width": 1}, "size": 11}
    line = {"color": tone, "width": 1.5, "dash": "dot", "shape": "hv"}
    large = {**spots, "mode": "lines+markers", "name": dtype, "marker": mark, "line": line, "error_x": bar}
    ahead = {each.plan for each in front}
    others = [each for each in fit.candidates if each.plan not in ahead]
    spots = {"x": [_need(fit, each) for each in others], "y": [_adds(each) for each in others]}
    small = {**spots, "mode": "markers", "marker": {"color": faint(tone, 0.45), "size": 5}, "showlegend": False}
    told = ([_hover(fit, each) for each in part] for part in (others, front))
    return [go.Scatter(each, hovertext=next(told), hoverinfo="text") for each in (small, large)]


def _marks(fit: BudgetFit) -> list[go.Scatter]:
    """The teacher in each dtype, and the ring, whose place follows from the budget."""
    own, common = fit.own, {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    shape = {"symbol": [f"{look(each.dtype)[1]}-open" for each in own], "size": 16, "color": INK, "line_width": 2}
    place = {"x": [each.plain.needed_bytes for each in own], "y": [_adds(each) for each in own]}
    ring = {"symbol": "circle-open", "size": 26, "color": INK, "line": {"color": INK, "width": 3}}
    return [go.Scatter(**place, marker=shape, **common), go.Scatter(marker=ring, **common)]


def _need(fit: BudgetFit, one: Fit) -> float:
    """What has to fit, in bytes; without blocks where these were not counted, as another plan is better anyway."""
    return (one.needs(fit.blocks) or one.plain).needed_bytes


def _adds(one: Fit) -> float:
    return one.plain.flops / 2e6


def _hover(fit: BudgetFit, one: Fit) -> str:
    row = fit.row(one)
    sizes = ", ".join(f"{name} {row[name]}" for name in ("peak", "arena", "with RED", "RED in place") if name in row)
    more = f", with RED {taught}" if (taught := row.get("multiply-adds with RED")) else ""
    told = f"<b>{row['plan']} in {row['dtype']}</b><br>{sizes}<br>set by {escape(row['set by'], quote=False)}"
    return f"{told}<br>multiply-adds {row['multiply-adds']}{more}"


def _lay_out(figure: go.Figure, fit: BudgetFit) -> None:
    """Axes, and what the budget moves: veil and line, its name and that of the best plan."""
    everyone = (*fit.own, *fit.candidates)
    needs, adds = [_need(fit, each) for each in everyone], [_adds(each) for each in everyone]
    low, high = min(needs) / 2.5, max(needs) * 1.3  # with room for a name on the left
    what = "arena" if fit.own[0].plain.arena_bytes else "peak"
    figure.update_xaxes(size_axis(low, high), title=f"{what} of activations {FORMS[fit.blocks][0]}, log scale")
    ticks = [part * 10.0**k for k, part in itertools.product(range(-3, 8), (1, 2, 5))]
    ends = [math.log10(min(adds) / 1.25), math.log10(max(adds) * 1.25)]
    figure.update_yaxes(type="log", title="multiply-adds, log scale", range=ends)
    figure.update_yaxes(tickvals=ticks, ticktext=[f"{tick:,g} M" for tick in ticks])
    tall = {"yref": "paper", "y0": 0, "y1": 1}
    veil = {"type": "rect", **tall, "x1": high, "fillcolor": _VEIL, "line_width": 0}
    line = {"type": "line", **tall, "line": {"color": INK, "width": 2, "dash": "dash"}}
    name = {"y": 1, "yref": "paper", "yanchor": "bottom", "font": {"color": INK}}
    best = {"ax": -24, "ay": -26, "showarrow": True, "arrowhead": 0, "standoff": 13, "xanchor": "right"}
    figure.update_layout(shapes=[veil, line], annotations=[name, best])
    for own in fit.own:
        at = {"x": math.log10(own.plain.needed_bytes), "y": math.log10(_adds(own))}
        figure.add_annotation(**at, text="teacher", yshift=-18, font={"color": MUTED})


def _change(fit: BudgetFit, title: str) -> list[dict[str, Any]]:
    """What plotly's `update` takes, of the ring and then of the layout."""
    best, edge = fit.best, fit.budget_bytes
    x, y = _need(fit, best), _adds(best)
    text = f"<b>{best.plan}</b><br>{best.dtype}, {format_size(x)}"
    at = {"annotations[1].x": math.log10(x), "annotations[1].y": math.log10(y), "annotations[1].text": text}
    at |= {"annotations[0].x": math.log10(edge), "annotations[0].text": f"<b>budget {short_size(edge)}</b>"}
    at |= {"shapes[0].x0": edge * 1.06, "shapes[1].x0": edge, "shapes[1].x1": edge}
    return [{"x": [[x]], "y": [[y]]}, at | {"title.text": title}]


def _note(fit: BudgetFit) -> str:
    """How to read the figure, and the call that makes what it recommends."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in fit.inputs)
    count = len({each.plan for each in fit.candidates})
    note = f"{count} stride plans on {shapes}, {fit.convention} convention. Grey: needs more. "
    if any(each.published for each in fit.candidates if each.plan != fit.own[0].plan):
        note += "Bar: from no RED blocks to blocks as published. "
    note += "Small: another plan computes as much in less. "
    return f"{note}To make it: {escape(fit.call(fit.best), quote=False)}"
