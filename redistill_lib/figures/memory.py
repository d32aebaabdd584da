"""What is alive at each step of a forward pass, and what makes the peak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.memory_names import (
    TICK,
    below_ticks,
    block_names,
    place_of,
    ratio,
    red_runs,
    setting,
    shape_of,
    short,
    unit_of,
)
from redistill_lib.figures.theme import INK, MUTED, WIDTH, color, faint, finish
from redistill_lib.memory import Bounds, Profile, Row, format_size
from redistill_lib.memory.schedule import Buffer

PLOT = 330  # pixels
ROLES = {  # of a tensor at the peak, each with its colour; its larger tensors are the stronger
    "read": "#0F7B6C",
    "made": "#88672F",
    "held": "#332288",
}
GREYS = ("#D2D7DC", "#E3E6E9", "#C3C9CF")
LOOP = 8  # steps inside one RED block from which on they are slabs, drawn side by side in the width of four steps


def memory_timeline(
    profile: Profile,
    *,
    bounds: Bounds | None = None,
    reference: Profile | None = None,
    title: str | None = None,
    top: int = 8,
) -> go.Figure:
    """Live bytes step by step, stacked by tensor; what is alive at the peak is coloured by why it is there.

    Tensors of the peak are read by that step, made by it, or held for later; at most `top` of them are coloured,
    all others are grey. Each is as wide as the steps from its first to its last. `bounds`
    (`redistill_lib.memory.memory_bounds`) and the peak of `reference`, the teacher's profile, become horizontal
    lines. Raises ValueError for the ``paper`` convention, which knows layers and no tensors.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.MaxPool2d(2))
    >>> figure = memory_timeline(profile_memory(net, torch.zeros(1, 3, 32, 32)))
    >>> figure.layout.title.text.partition("<br>")[0]
    '<b>The peak is 44.0 KiB at layer 0, step 1 of 2</b>'
    """
    if not profile.tensors:
        raise ValueError("the paper's convention counts layers and has no tensors: use memory_by_layer for it")
    unit, scale = unit_of(max(profile.peak_bytes, reference.peak_bytes if reference else 0))
    edges = _edges(profile.rows)
    figure = go.Figure()
    shown = _shown(profile, top)
    for part in shown:
        figure.add_trace(_area(part.name, part.color, *_lifetime(part.tensor), scale, edges))
    taken = {part.tensor.index for part in shown}
    others = [tensor for tensor in profile.tensors if tensor.index not in taken]
    for k, live in enumerate(_shades(profile, others)):
        if live.any():
            name = "every other tensor"
            figure.add_trace(_area(name, GREYS[k], 0, live, scale, edges, shown=k == 0))
    _add_red_blocks(figure, profile.rows, edges)
    figure.add_trace(_hover(profile, edges, scale))
    at = (edges[profile.peak_index] + edges[profile.peak_index + 1]) / 2
    _mark_peak(figure, profile, at, scale, edges[-1])
    lines = _lines(profile, bounds, reference)
    _add_lines(figure, lines, scale, on_left=bool(at > edges[-1] / 2))
    highest = max([profile.peak_bytes, *(value for value, _, _ in lines)]) / scale
    figure.update_yaxes(range=[0, highest * 1.16], title=f"alive ({unit})", showgrid=True)
    ticks = _ticks(profile.rows, edges)
    figure.update_xaxes(
        tickvals=[x for x, _ in ticks], ticktext=[name for _, name in ticks], range=[0.5, edges[-1]], showgrid=False,
        tickangle=-60, ticklabelstandoff=4, title="step of the forward pass, from input to output",
    )  # fmt: skip
    legend = {"entrywidthmode": "fraction", "entrywidth": 0.5, "traceorder": "normal"}
    figure.update_layout(hovermode="x", legend=legend)
    entries = sum(trace.showlegend is not False for trace in figure.data)
    return finish(
        figure, title or _finding(profile, reference), _note(profile, bounds, reference),
        plot=PLOT, margins=(64, 0, 12, below_ticks(name for _, name in ticks)), legend=-(-entries // 2),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ areas


def _name(profile: Profile, tensor: Buffer) -> str:
    if tensor.kind == "input":
        return "the input"
    return tensor.module or profile.rows[tensor.first].op.partition("+")[0]


@dataclass(frozen=True)
class _Part:
    tensor: Buffer
    name: str
    color: str


def _shown(profile: Profile, top: int) -> list[_Part]:
    """The tensors of the peak that are worth a colour, the oldest first, so that it lies at the bottom."""
    step = profile.schedule.steps[profile.peak_index] if profile.schedule else None
    parts, count = [], dict.fromkeys(ROLES, 0)
    for tensor in profile.peak_tensors[:top]:
        if tensor.nbytes < profile.peak_bytes / 200:
            break
        used = step and tensor.index in (*step.reads, *step.overwrites)
        role = "made" if step and tensor.index in step.writes else "read" if used else "held"
        strength = max(0.35, 1 - 0.25 * count[role])
        count[role] += 1
        name = f"{role}: {short(_name(profile, tensor), 26)} {shape_of(tensor.shape)}"
        parts.append(_Part(tensor, f"{name}, <b>{format_size(tensor.nbytes)}</b>", _lighter(ROLES[role], strength)))
    return sorted(parts, key=lambda part: (part.tensor.first, part.tensor.kind != "input", -part.tensor.last))


def _lighter(base: str, strength: float) -> str:
    """Mixed with white: opaque, as what is stacked would otherwise shine through."""
    values = (round(255 + (int(base[k : k + 2], 16) - 255) * strength) for k in (1, 3, 5))
    return "#" + "".join(f"{value:02X}" for value in values)


def _lifetime(tensor: Buffer) -> tuple[int, NDArray[np.float64]]:
    return tensor.first, np.full(tensor.last - tensor.first + 1, float(tensor.nbytes))


def _shades(profile: Profile, tensors: Sequence[Buffer]) -> Iterator[NDArray[np.float64]]:
    """Bytes per step in each grey: a tensor takes the one with the least in it, so that neighbours differ.

    Scratch space, which is no tensor, comes with the last.
    """
    live = np.zeros((len(GREYS), len(profile.rows)))
    for tensor in sorted(tensors, key=lambda tensor: tensor.first):
        shade = int(live[:, tensor.first].argmin())
        live[shade, tensor.first : tensor.last + 1] += tensor.nbytes
    whole = np.array([row.live_bytes for row in profile.rows], float)
    for tensor in profile.tensors:
        whole[tensor.first : tensor.last + 1] -= tensor.nbytes
    live[-1] += whole
    yield from live


def _area(
    name: str,
    fill: str,
    first: int,
    values: NDArray[np.float64],
    scale: int,
    edges: NDArray[np.float64],
    *,
    shown: bool = True,
) -> go.Scatter:
    last = first + len(values)
    if last == len(edges) - 1:  # the last step too has a width
        values, last = np.append(values, values[-1]), last + 1
    return go.Scatter(
        x=_small(edges[first:last]), y=_small(values / scale), name=name, stackgroup="live", mode="lines",
        line={"shape": "hv", "width": 0.5, "color": "white"}, fillcolor=fill, hoverinfo="skip", showlegend=shown,
    )  # fmt: skip


def _small(values: NDArray[np.float64]) -> NDArray[np.float64] | NDArray[np.float32]:
    """In single precision where nothing is lost by it: half the file."""
    single = values.astype(np.float32)
    return single if (single == values).all() else values


def _edges(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Where each step begins, half before its number, and where the last one ends.

    The slabs of an in-place RED block share the width of four steps.
    """
    widths = np.ones(len(rows))
    for start, end in red_runs(rows):
        if end - start > LOOP:
            widths[start:end] = 4 / (end - start)
    return np.concatenate([[0.0], widths.cumsum()]).round(4) + 0.5


# --------------------------------------------------------------------------------------------- marks and words


def _hover(profile: Profile, edges: NDArray[np.float64], scale: int) -> go.Scatter:
    """One invisible point per step, on top of what is alive in it, which tells all; fewer where slabs crowd."""
    most = 4 if len(profile.rows) <= 250 else 2
    sizes = {tensor.index: tensor.nbytes for tensor in profile.tensors}
    names = {t.index: f"{short(_name(profile, t), 20)} {format_size(t.nbytes)}" for t in profile.tensors}
    halves = np.floor(edges * 2)
    kept = [k for k in range(len(edges) - 1) if not k or halves[k] > halves[k - 1] or k == profile.peak_index]
    told = []
    for k in kept:
        row = profile.rows[k]
        alive = sorted(row.alive, key=lambda index: -sizes[index])
        rest = sum(sizes[index] for index in alive[most:])
        text = ", ".join(names[index] for index in alive[:most])
        if rest:
            text += f", {len(alive) - most} more {format_size(rest)}"
        told.append(
            f"<b>{short(row.name, 40)}</b>: {short(row.op, 40)}<br>step {k + 1}, makes {shape_of(row.shape)}<br>"
            f"{format_size(row.live_bytes)} alive: {text}"
        )
    live = np.array([profile.rows[k].live_bytes for k in kept])
    # As text and not by template, so that the axis does not show the place as if it were a step's number.
    return go.Scatter(
        x=_small((edges[:-1] + edges[1:])[kept] / 2), y=_small(live / scale), mode="markers", marker={"opacity": 0},
        showlegend=False, name="alive", hovertext=told, hoverinfo="text",
    )  # fmt: skip


def _add_red_blocks(figure: go.Figure, rows: Sequence[Row], edges: NDArray[np.float64]) -> None:
    """A strip below the axis wherever a RED block works."""
    runs = red_runs(rows)
    for start, end in runs:
        figure.add_shape(
            type="rect", xref="x", yref="paper", x0=float(edges[start]), x1=float(edges[end]), y0=-0.022, y1=-0.002,
            fillcolor=color("red"), line={"width": 0},
        )  # fmt: skip
    if runs:
        marker = {"symbol": "square", "size": 12, "color": color("red")}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name="below: RED blocks"))


def _mark_peak(figure: go.Figure, profile: Profile, at: float, scale: int, end: float) -> None:
    peak = profile.peak_bytes / scale
    side = "left" if at < 0.5 * end else "right"
    text = f"<b>peak {format_size(profile.peak_bytes)}</b> at {place_of(profile.peak_op)}"
    figure.add_annotation(
        x=at, y=peak, text=text, showarrow=True, arrowhead=0, arrowcolor=INK, arrowwidth=1.5, standoff=1,
        ax=14 if side == "left" else -14, ay=-16, xanchor=side, yanchor="bottom", bgcolor=faint("#FFFFFF", 0.8),
    )  # fmt: skip


def _lines(profile: Profile, bounds: Bounds | None, reference: Profile | None) -> list[tuple[float, str, str]]:
    """(bytes, text, dash) of each horizontal line, with one line for equal values."""
    peak = profile.peak_bytes
    found: dict[float, list[str]] = {}
    if bounds:
        order = "best order" if bounds.order_exact else "any order ≥"
        for value, name in (
            (bounds.order_bytes, order),
            (bounds.op_bytes, "largest step"),
            (bounds.in_place_depthwise_bytes, "depthwise in place"),
            (bounds.streaming_bytes, "streamed by rows"),
        ):
            if value != peak:
                found.setdefault(value, []).append(name)
    lines = [(value, f"{', '.join(names)} {format_size(value)}", "dot") for value, names in found.items()]
    if reference:
        lines.append((reference.peak_bytes, f"teacher {format_size(reference.peak_bytes)}", "dash"))
    return sorted(lines)


def _add_lines(figure: go.Figure, lines: Sequence[tuple[float, str, str]], scale: int, *, on_left: bool) -> None:
    """Each line with its text above it, on the side where the peak is not."""
    lowest = 0.0
    for value, text, dash in lines:
        tone = INK if dash == "dash" else MUTED
        figure.add_shape(
            type="line", xref="paper", yref="y", x0=0, x1=1, y0=value / scale, y1=value / scale,
            line={"color": tone, "width": 2 if dash == "dash" else 1.5, "dash": dash},
        )  # fmt: skip
        at = max(value, lowest)
        lowest = at + lines[-1][0] * 20 / PLOT  # the next text stands clear of this one
        figure.add_annotation(
            x=0.005 if on_left else 0.995, xref="paper", xanchor="left" if on_left else "right",
            y=at / scale, yanchor="bottom", text=text, showarrow=False, font={"color": tone, "size": 12}, yshift=2,
            bgcolor=faint("#FFFFFF", 0.75), borderpad=1,
        )  # fmt: skip


def _ticks(rows: Sequence[Row], edges: NDArray[np.float64]) -> list[tuple[float, str]]:
    """The first step of each layer of the network, as far as names have room; the peak's layer always has."""
    names = block_names(rows)
    starts = [k for k in range(len(rows)) if not k or names[k] != names[k - 1]]
    room = 20 * edges[-1] / (WIDTH - 90)
    peak = names[max(range(len(rows)), key=lambda k: rows[k].live_bytes)]
    kept: list[int] = []
    for k in starts:
        if kept and edges[k] - edges[kept[-1]] < room:
            if names[k] != peak:
                continue
            kept.pop()
        kept.append(k)
    texts = [short(names[k], TICK) for k in kept]
    return [
        (float(edges[k]) + 0.5, f"<b>{text}</b>" if names[k] == peak else text)
        for k, text in zip(kept, texts, strict=True)
    ]


def _finding(profile: Profile, reference: Profile | None) -> str:
    steps, peak = len(profile.rows), profile.peak_bytes
    text = f"The peak is {format_size(peak)} at {place_of(profile.peak_op)}"
    if reference and reference.peak_bytes != peak:
        text += f", {ratio(reference.peak_bytes, peak)} the teacher's"
    elif reference:
        text += ", as much as the teacher's"
    else:
        text += f", step {profile.peak_index + 1} of {steps}"
    if 3 * profile.peak_op.held_bytes >= peak:
        return f"{text}; {format_size(profile.peak_op.held_bytes)} of it is only held for later steps"
    half = sum(2 * row.live_bytes < peak for row in profile.rows)
    if 2 * half < steps or steps < 3 or any(end - start > LOOP for start, end in red_runs(profile.rows)):
        return text
    return f"{text}; {half} of {steps} steps need less than half of it"


def _note(profile: Profile, bounds: Bounds | None, reference: Profile | None) -> str:
    parts = [
        f"{setting(profile)}; weights ({format_size(profile.weight_bytes)}) not included.",
        "In colour: what is alive at the peak, read or made by that step or held for a later one.",
    ]
    if bounds and bounds.order_bytes == profile.peak_bytes:
        parts.append("No other order of execution needs less.")
    if bounds and bounds.op_bytes == profile.peak_bytes:
        parts.append("The step at the peak needs all of it for its own input and output.")
    if profile.unfused:
        parts.append(f"Taken to need input and output side by side: {', '.join(profile.unfused)}.")
    return " ".join(parts)
