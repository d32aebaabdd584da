"""What is alive at each step of a forward pass, what makes the peak, and how memory figures name things."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.theme import INK, MUTED, WIDTH, color, faint, finish
from redistill_lib.memory import Bounds, Profile, Row, format_size
from redistill_lib.memory.schedule import Buffer

PLOT = 330  # pixels
TICK = 16  # characters of a name on an axis
COLOURED = 8  # tensors at most
ROLES = {  # of a tensor at the peak, each with its colour; its larger tensors are the stronger
    "read": "#0F7B6C",
    "made": "#88672F",
    "held": "#332288",
}
GREYS = ("#D2D7DC", "#E3E6E9", "#C3C9CF")
LOOP = 8  # steps inside one RED block from which on they are slabs, drawn side by side in the width of four steps


def memory_timeline(profile: Profile, *, bounds: Bounds | None = None, reference: Profile | None = None) -> go.Figure:
    """Live bytes step by step, stacked by tensor; what is alive at the peak is coloured by why it is there.

    Tensors of the peak are read by that step, made by it, or held for later; the largest are coloured, all others
    grey. Each is as wide as the steps from its first to its last. `bounds` (`redistill_lib.memory.memory_bounds`) and
    the peak of `reference`, the teacher's profile, become horizontal lines. Raises ValueError for the ``paper``
    convention, which knows layers and no tensors.

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
    shown = _shown(profile)
    for tensor, name, fill in shown:
        live = np.zeros(len(profile.rows))
        live[tensor.first : tensor.last + 1] = tensor.nbytes
        _add_area(figure, live / scale, edges, name=name, fillcolor=fill, showlegend=True)
    taken = {tensor.index for tensor, _, _ in shown}
    for k, live in enumerate(_shades(profile, [tensor for tensor in profile.tensors if tensor.index not in taken])):
        if live.any():
            _add_area(figure, live / scale, edges, name="every other tensor", fillcolor=GREYS[k], showlegend=not k)
    runs = red_runs(profile.rows)
    for start, end in runs:  # a strip below the axis
        figure.add_shape(
            type="rect", xref="x", yref="paper", x0=float(edges[start]), x1=float(edges[end]), y0=-0.022, y1=-0.002,
            fillcolor=color("red"), line={"width": 0},
        )  # fmt: skip
    if runs:
        marker = {"symbol": "square", "size": 12, "color": color("red")}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name="below: RED blocks")
    _add_hover(figure, profile, edges, scale)
    at = (edges[profile.peak_index] + edges[profile.peak_index + 1]) / 2
    side = "left" if at < 0.5 * edges[-1] else "right"
    figure.add_annotation(
        x=at, y=profile.peak_bytes / scale, showarrow=True, arrowhead=0, arrowcolor=INK, arrowwidth=1.5, standoff=1,
        text=f"<b>peak {format_size(profile.peak_bytes)}</b> at {place_of(profile.peak_op)}",
        ax=14 if side == "left" else -14, ay=-16, xanchor=side, yanchor="bottom", bgcolor=faint("#FFFFFF", 0.8),
    )  # fmt: skip
    lines = _lines(profile, bounds, reference)
    _add_lines(figure, lines, scale, "left" if side == "right" else "right")
    highest = max([profile.peak_bytes, *lines]) / scale
    figure.update_yaxes(range=[0, highest * 1.16], title=f"alive ({unit})", showgrid=True)
    ticks = _ticks(profile.rows, edges)
    figure.update_xaxes(
        tickvals=list(ticks), ticktext=list(ticks.values()), range=[0.5, edges[-1]], showgrid=False,
        tickangle=-60, ticklabelstandoff=4, title="step of the forward pass, from input to output",
    )  # fmt: skip
    legend = {"entrywidthmode": "fraction", "entrywidth": 0.5, "traceorder": "normal"}
    figure.update_layout(hovermode="x", legend=legend)
    entries = sum(trace.showlegend is not False for trace in figure.data)
    return finish(
        figure, _finding(profile, reference), _note(profile, bounds),
        plot=PLOT, margins=(64, 0, 12, below_ticks(ticks.values())), legend=-(-entries // 2),
    )  # fmt: skip


def _edges(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Where each step begins, half before its number, and where the last one ends.

    The slabs of an in-place RED block share the width of four steps.
    """
    widths = np.ones(len(rows))
    for start, end in red_runs(rows):
        if end - start > LOOP:
            widths[start:end] = 4 / (end - start)
    return np.concatenate([[0.0], widths.cumsum()]).round(4) + 0.5


def _shown(profile: Profile) -> list[tuple[Buffer, str, str]]:
    """The tensors of the peak that get a colour, each with name and colour; the oldest, at the bottom, first."""
    step = profile.schedule.steps[profile.peak_index] if profile.schedule else None
    parts, count = [], dict.fromkeys(ROLES, 0)
    for tensor in profile.peak_tensors[:COLOURED]:
        if tensor.nbytes < profile.peak_bytes / 200:
            break
        used = step and tensor.index in (*step.reads, *step.overwrites)
        role = "made" if step and tensor.index in step.writes else "read" if used else "held"
        strength = max(0.35, 1 - 0.25 * count[role])
        count[role] += 1
        name = f"{role}: {short(_name(profile, tensor), 24)} {_shape(tensor.shape)}"
        parts.append((tensor, f"{name}, <b>{format_size(tensor.nbytes)}</b>", _lighter(ROLES[role], strength)))
    return sorted(parts, key=lambda part: (part[0].first, part[0].kind != "input", -part[0].last))


def _name(profile: Profile, tensor: Buffer) -> str:
    if tensor.kind == "input":
        return "the input"
    return tensor.module or profile.rows[tensor.first].op.partition("+")[0]


def _shape(shape: Sequence[int]) -> str:
    """Channels × height × width; the batch only where it is more than one image."""
    return "×".join(map(str, shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape))


def _lighter(base: str, strength: float) -> str:
    """Mixed with white: opaque, as what is stacked would otherwise shine through."""
    values = (round(255 + (int(base[k : k + 2], 16) - 255) * strength) for k in (1, 3, 5))
    return "#" + "".join(f"{value:02X}" for value in values)


def _shades(profile: Profile, tensors: Sequence[Buffer]) -> NDArray[np.float64]:
    """Bytes per step in each grey: a tensor takes the one with the least in it, so that neighbours differ.

    Scratch space, which is no tensor, comes with the last.
    """
    live = np.zeros((len(GREYS), len(profile.rows)))
    for tensor in sorted(tensors, key=lambda tensor: tensor.first):
        live[live[:, tensor.first].argmin(), tensor.first : tensor.last + 1] += tensor.nbytes
    live[-1] += [row.live_bytes for row in profile.rows]
    for tensor in profile.tensors:
        live[-1, tensor.first : tensor.last + 1] -= tensor.nbytes
    return live


def _add_area(figure: go.Figure, values: NDArray[np.float64], edges: NDArray[np.float64], **look: Any) -> None:
    there = np.flatnonzero(values)
    first, last = there[0], there[-1] + 1
    x, y = edges[first:last], values[first:last]
    if last == len(values):  # the last step too has a width
        x, y = edges[first:], np.append(y, y[-1])
    figure.add_scatter(
        x=_small(x), y=_small(y), stackgroup="live", mode="lines", hoverinfo="skip",
        line={"shape": "hv", "width": 0.5, "color": "white"}, **look,
    )  # fmt: skip


def _small(values: NDArray[np.float64]) -> NDArray[np.float64] | NDArray[np.float32]:
    """In single precision where nothing is lost by it: half the file."""
    single = values.astype(np.float32)
    return single if (single == values).all() else values


def _add_hover(figure: go.Figure, profile: Profile, edges: NDArray[np.float64], scale: int) -> None:
    """One invisible point per step, on top of what is alive in it, that tells all; fewer where slabs crowd."""
    most = 4 if len(profile.rows) <= 250 else 2
    names = {t.index: f"{short(_name(profile, t), 20)} {format_size(t.nbytes)}" for t in profile.tensors}
    sizes = {t.index: t.nbytes for t in profile.tensors}
    halves = np.floor(edges * 2)
    kept = [k for k in range(len(profile.rows)) if not k or halves[k] > halves[k - 1] or k == profile.peak_index]
    told = []
    for k in kept:
        row = profile.rows[k]
        alive = sorted(row.alive, key=lambda index: -sizes[index])
        rest = sum(sizes[index] for index in alive[most:])
        told.append(
            f"<b>{short(row.name, 40)}</b>: {short(row.op, 40)}<br>step {k + 1}, makes {_shape(row.shape)}<br>"
            f"{format_size(row.live_bytes)} alive: {', '.join(names[index] for index in alive[:most])}"
            + f", {len(alive) - most} more {format_size(rest)}"
            * bool(rest)
        )
    live = np.array([profile.rows[k].live_bytes for k in kept]) / scale
    # As text and not by template, so that the axis does not show the place as if it were a step's number.
    figure.add_scatter(
        x=_small((edges[:-1] + edges[1:])[kept] / 2), y=_small(live), mode="markers", marker={"opacity": 0},
        showlegend=False, name="alive", hovertext=told, hoverinfo="text",
    )  # fmt: skip


def _lines(profile: Profile, bounds: Bounds | None, reference: Profile | None) -> dict[int, str]:
    """The text of each horizontal line by its height in bytes, the lowest first; equal ones are one line."""
    found: dict[int, list[str]] = {}
    if bounds:
        order = "best order" if bounds.order_exact else "any order ≥"
        for value, name in (
            (bounds.order_bytes, order),
            (bounds.op_bytes, "largest step"),
            (bounds.in_place_depthwise_bytes, "depthwise in place"),
            (bounds.streaming_bytes, "streamed by rows"),
        ):
            if value != profile.peak_bytes:
                found.setdefault(value, []).append(name)
    if reference:
        found.setdefault(reference.peak_bytes, []).append("teacher")
    return {value: f"{', '.join(found[value])} {format_size(value)}" for value in sorted(found)}


def _add_lines(figure: go.Figure, lines: Mapping[int, str], scale: int, side: str) -> None:
    """Each line with its text above it, on the side where the peak is not."""
    free = 0.0
    for value, text in lines.items():
        tone, width, dash = (INK, 2, "dash") if "teacher" in text else (MUTED, 1.5, "dot")
        line = {"color": tone, "width": width, "dash": dash}
        figure.add_shape(type="line", xref="paper", x0=0, x1=1, y0=value / scale, y1=value / scale, line=line)
        at = max(value, free)
        free = at + max(lines) * 20 / PLOT  # the next text stands clear of this one
        figure.add_annotation(
            x=0.005 if side == "left" else 0.995, xref="paper", xanchor=side, y=at / scale, yanchor="bottom",
            yshift=2, text=text, showarrow=False, font={"color": tone, "size": 12}, borderpad=1,
            bgcolor=faint("#FFFFFF", 0.75),
        )  # fmt: skip


def _ticks(rows: Sequence[Row], edges: NDArray[np.float64]) -> dict[float, str]:
    """The first step of each layer of the network, as far as names have room; the peak's layer always has."""
    names = block_names(rows)
    room = 20 * edges[-1] / (WIDTH - 90)
    peak = names[max(range(len(rows)), key=lambda k: rows[k].live_bytes)]
    kept: list[int] = []
    for k in range(len(rows)):
        if k and names[k] == names[k - 1]:
            continue
        if kept and edges[k] - edges[kept[-1]] < room:
            if names[k] != peak:
                continue
            kept.pop()
        kept.append(k)
    texts = {k: short(names[k], TICK) for k in kept}
    return {float(edges[k]) + 0.5: f"<b>{text}</b>" if names[k] == peak else text for k, text in texts.items()}


def _finding(profile: Profile, reference: Profile | None) -> str:
    text = f"The peak is {format_size(profile.peak_bytes)} at {place_of(profile.peak_op)}"
    if reference:
        text += f", {ratio(reference.peak_bytes, profile.peak_bytes)} the teacher's"
    else:
        text += f", step {profile.peak_index + 1} of {len(profile.rows)}"
    held = profile.peak_op.held_bytes
    return (
        f"{text}; {format_size(held)} of it is only held for later steps" if 3 * held >= profile.peak_bytes else text
    )


def _note(profile: Profile, bounds: Bounds | None) -> str:
    parts = [
        f"{profile.model} {setting(profile)}; weights ({format_size(profile.weight_bytes)}) not included.",
        "In colour: what is alive at the peak, read or made by that step or held for a later one.",
    ]
    if bounds and bounds.order_bytes == profile.peak_bytes:
        parts.append("No other order of execution needs less.")
    if profile.unfused:
        parts.append(f"Taken to need input and output side by side: {', '.join(profile.unfused)}.")
    return " ".join(parts)


# ------------------------------------------------------------------------------------------------ names and amounts


def unit_of(nbytes: float) -> tuple[str, int]:
    """The unit of an axis that reaches to so many bytes."""
    return ("MiB", 2**20) if nbytes >= 2**20 else ("KiB", 2**10)


def red_place(row: Row) -> tuple[str, str]:
    """The layer that carries the RED block of this step, and its side, before or after; "" outside RED blocks."""
    found = re.fullmatch(r"(?:(.*?)\.)?(before|after)(?:\..*)?", row.module)
    return (found[1] or "", found[2]) if found else (row.module, "")


def block_names(rows: Sequence[Row]) -> list[str]:
    """The layer of the network that each row belongs to: ``layer1.0`` for ``layer1.0.conv2`` and its RED blocks.

    What is computed outside any module, as the concatenations of a U-Net, belongs to the layer that follows.

    >>> rows = [Row("op", path, (), 0, 0, 0, 0) for path in ("conv1", "", "up.0.a", "tail.2")]
    >>> block_names(rows)
    ['conv1', 'up.0', 'up.0', 'tail']
    """
    inside: dict[str, list[list[str]]] = {}
    for row in rows:
        if row.module and not red_place(row)[1]:
            first, *rest = row.module.split(".")
            inside.setdefault(first, []).append(rest)
    flat = {  # a short sequence of single operators is one layer: the head of a classifier, the tail of a U-Net
        first
        for first, rest in inside.items()
        if len(inside) > 1 and len({path[0] for path in rest if path}) <= 3 and max(map(len, rest)) < 2
    }
    names: list[str] = []
    for row in reversed(rows):
        first, *rest = row.module.split(".")
        deeper = rest[:1] if rest and rest[0].isdigit() and first not in flat else []
        names.append(".".join([first, *deeper]) or (names[-1] if names else ""))
    names.reverse()
    last = next((name for name in reversed(names) if name), "")
    return [name or last or row.op for name, row in zip(names, rows, strict=True)]


def layer_name(path: str) -> str:
    """A bare number, as the layers of a sequence have it, is said to be a layer's."""
    return f"layer {path}" if path.isdigit() else path


def place_of(row: Row) -> str:
    """What a reader calls the place of a step: its module, or the RED block that it belongs to.

    >>> place_of(Row("conv", "conv1.after.logit.0", (), 0, 0, 0, 0))
    'the RED block after conv1'
    """
    layer, side = red_place(row)
    return f"the RED block {side} {layer}" if side else layer_name(short(row.name, 36))


def short(name: str, most: int) -> str:
    """A module's path with its middle left out where it is too long.

    >>> short("conv1.after.residual_encoder.0", 20)
    'conv1.af…l_encoder.0'
    """
    return name if len(name) <= most else f"{name[: most - 12]}…{name[-11:]}"


def below_ticks(names: Iterable[str]) -> int:
    """Pixels that an axis needs below the plot for names at a slant, and its title."""
    return 56 + 6 * min(TICK, max(len(re.sub("<.*?>", "", name)) for name in names))


def setting(profile: Profile) -> str:
    """The input and how memory is counted: what every number here depends on."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in profile.inputs)
    return f"on {shapes}, {profile.dtype}, {profile.convention} convention"


def ratio(reference: float, value: float) -> str:
    """How much less, or more, than a reference.

    >>> ratio(10, 4), ratio(4, 5), ratio(1000, 999)
    ('2.5× less than', '1.25× more than', 'about as much as')
    """
    times = max(reference, value) / min(reference, value)
    if times < 1.005:
        return "about as much as"
    return f"{times:.{2 if times < 1.995 else 1}f}× {'less' if value < reference else 'more'} than"


def red_runs(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """First step of each RED block, and the step after its last."""
    runs: list[tuple[int, int]] = []
    for place, steps in itertools.groupby(range(len(rows)), key=lambda k: red_place(rows[k])):
        if place[1]:
            first, *_ = found = list(steps)
            runs.append((first, first + len(found)))
    return runs
