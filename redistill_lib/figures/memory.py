"""What is alive at each step of a forward pass, what makes the peak, and how memory figures name things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from redistill_lib.figures.theme import INK, MUTED, NARROW, color, finish, name_columns, short
from redistill_lib.memory import Bounds, Profile, Row, format_size
from redistill_lib.memory.layers import block_names, red_runs
from redistill_lib.memory.profile import place_name
from redistill_lib.memory.schedule import Buffer
from redistill_lib.sizes import ratio

_PLOT = 330  # pixels
_VEIL = "rgba(255,255,255,0.75)"  # behind texts over areas
_COLOURED = 8  # tensors at most
ROLES = {  # of a tensor at the peak, each with its colours; the largest has the first
    "read": ("#0F7B6C", "#4B9C91", "#87BDB5"),
    "made": ("#88672F", "#A68D63", "#C3B397"),
    "held": ("#332288", "#6659A6", "#9990C3"),
}
GREYS = ("#D2D7DC", "#E3E6E9", "#C3C9CF")
_LOOP = 8  # steps inside one RED block from which on they are slabs, drawn side by side in the width of four steps


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
    >>> from redistill_lib.figures import headline
    >>> headline(figure)
    'The peak is 44.0 KiB at layer 0, step 1 of 2'
    """
    if profile.schedule is None:
        raise ValueError("the paper's convention counts layers and has no tensors: use memory_by_layer for it")
    highest = max(profile.peak_bytes, reference.peak_bytes if reference else 0)
    unit, scale = unit_of(highest)
    rows, peak, edges = profile.rows, profile.peak_index, _edges(profile.rows)
    figure = go.Figure()
    for name, fill, live in _areas(profile):
        y = np.append(live, live[-1]) / scale  # the last step too has a width
        alive = slice(np.flatnonzero(y)[0], np.flatnonzero(y)[-1] + 1)
        figure.add_scatter(
            x=edges[alive].astype(np.float32), y=y[alive].astype(np.float32),  # half the file
            stackgroup="live", mode="lines", name=name, fillcolor=fill, hoverinfo="skip",
            line={"shape": "hv", "width": 0.5, "color": "white"}, showlegend=fill not in GREYS[1:],
        )  # fmt: skip
    for k, (start, end) in enumerate(red_runs(rows)):  # a strip below the axis
        figure.add_shape(
            type="rect", x0=edges[start], x1=edges[end], yref="paper", y0=-0.022, y1=-0.002, line_width=0,
            fillcolor=color("red"), name="below: RED blocks", showlegend=not k,
        )  # fmt: skip
    _add_hover(figure, profile, edges, scale)
    at = (edges[peak] + edges[peak + 1]) / 2
    side, other = ("left", "right") if at < 0.5 * edges[-1] else ("right", "left")
    figure.add_annotation(
        x=at, y=profile.peak_bytes / scale, showarrow=True, arrowhead=0, arrowcolor=INK, arrowwidth=1.5, standoff=1,
        text=f"<b>peak {format_size(profile.peak_bytes)}</b> at {short(profile.peak_op.place, 44)}", ay=-16,
        ax=14 if side == "left" else -14, xanchor=side, yanchor="bottom", bgcolor=_VEIL,
    )  # fmt: skip
    lines = {reference.peak_bytes: ["teacher"]} if reference else {}
    for name, value in bound_values(bounds, profile.peak_bytes).items():
        lines.setdefault(value, []).append(name.partition(":")[0])
    if profile.packing:
        lines.setdefault(profile.arena_bytes, []).append("arena")
    highest = max([highest, *lines])
    free = 0.0  # pixels above 0 at which the next text stands clear of the last one
    for value, names in sorted(lines.items()):
        tone, width, dash = (INK, 2, "dash") if "teacher" in names else (MUTED, 1.5, "dot")
        height = value / highest * _PLOT / 1.16
        lift, free = max(0, free - height), max(free, height) + 17
        figure.add_hline(
            value / scale, line={"color": tone, "width": width, "dash": dash}, annotation_position=f"top {other}",
            annotation={"text": f"{', '.join(names)} {format_size(value)}", "yshift": lift + 2, "bgcolor": _VEIL},
            annotation_font={"color": tone, "size": 12},
        )  # fmt: skip
    figure.update_yaxes(range=[0, highest / scale * 1.16], title=f"alive ({unit})")
    below = name_columns(figure, _ticks(profile, edges), "step of the forward pass, from input to output")
    figure.update_xaxes(range=[0.5, edges[-1]])
    figure.update_layout(hovermode="x", legend_traceorder="normal")
    return finish(figure, *_words(profile, bounds, reference), plot=_PLOT, margins=(64, 0, 12, below), legend=True)


def _edges(rows: Sequence[Row]) -> NDArray[np.float64]:
    """Where each step begins, half before its number, and where the last one ends."""
    widths = np.ones(len(rows))
    for start, end in red_runs(rows):
        if end - start > _LOOP:
            widths[start:end] = 4 / (end - start)
    return np.concatenate([[0.0], (widths.cumsum() * 4096).round() / 4096]) + 0.5  # exact in single precision too


def _areas(profile: Profile) -> list[tuple[str, str, NDArray[np.float64]]]:
    """Name, colour and bytes per step of what is stacked, from the bottom; the oldest coloured tensor is first."""
    assert profile.schedule is not None
    step, found, count = profile.schedule.steps[profile.peak_index], {}, Counter[str]()
    for tensor in [t for t in profile.peak_tensors if t.nbytes >= profile.peak_bytes / 200][:_COLOURED]:
        used = tensor.index in (*step.reads, *step.overwrites)
        role = "made" if tensor.index in step.writes else "read" if used else "held"
        name = f"{role}: {short(_name(profile, tensor), 24)} {_shape(tensor.shape)}"
        found[tensor.index] = f"{name}, <b>{format_size(tensor.nbytes)}</b>", ROLES[role][min(count[role], 2)]
        count[role] += 1
    areas, greys = [], np.zeros((len(GREYS), len(profile.rows)))
    greys[0] = [row.live_bytes for row in profile.rows]  # with scratch space, which is no tensor
    for tensor in sorted(profile.tensors, key=lambda t: (t.first, t.kind != "input", -t.last)):
        live = np.zeros(len(profile.rows))
        live[tensor.first : tensor.last + 1] = tensor.nbytes
        greys[0] -= live
        if tensor.index in found:
            areas.append((*found[tensor.index], live))
        else:  # in the grey with the least in it, so that neighbours differ
            greys[greys[:, tensor.first].argmin()] += live
    rest = zip(GREYS, greys, strict=True)
    return [*areas, *(("every other tensor", grey, live) for grey, live in rest if live.any())]


def _name(profile: Profile, tensor: Buffer) -> str:
    if tensor.kind == "input":
        return "the input"
    return place_name(tensor.module) or profile.rows[tensor.first].op.partition("+")[0]


def _shape(shape: Sequence[int]) -> str:
    """Channels × height × width; the batch only where it is more than one image."""
    return "×".join(map(str, shape[1:] if shape[:1] == (1,) and len(shape) > 1 else shape))


def _add_hover(figure: go.Figure, profile: Profile, edges: NDArray[np.float64], scale: int) -> None:
    """An invisible point per step, on top of what is alive in it; fewer where slabs crowd."""
    rows, halves = profile.rows, np.floor(edges * 2)
    kept = [k for k in range(len(rows)) if not k or halves[k] > halves[k - 1] or k == profile.peak_index]
    tensors, told = {tensor.index: tensor for tensor in profile.tensors}, []
    for k in kept:
        row = rows[k]
        alive = sorted((tensors[index] for index in row.alive), key=lambda tensor: -tensor.nbytes)
        names = [f"{short(_name(profile, t), 20)} {format_size(t.nbytes)}" for t in alive[:3]]
        told.append(
            f"<b>{short(row.place, 40)}</b>: {short(row.op, 40)}<br>step {k + 1}, makes {_shape(row.shape)}<br>"
            f"{format_size(row.live_bytes)} alive: {', '.join([*names, '…'][: len(alive)])}"
        )
    # As text and not by template, so that the axis does not show the place as if it were a step's number.
    figure.add_scatter(
        x=(edges[:-1] + edges[1:])[kept] / 2, y=[rows[k].live_bytes / scale for k in kept], mode="markers",
        marker={"opacity": 0}, showlegend=False, name="alive", hovertext=told, hoverinfo="text",
    )  # fmt: skip


def _ticks(profile: Profile, edges: NDArray[np.float64]) -> dict[float, str]:
    """The first step of each layer of the network, as far as names have room; the peak's layer always has."""
    names = block_names(profile.rows)
    starts = [k for k, name in enumerate(names) if not k or name != names[k - 1]]
    peak = max(k for k in starts if k <= profile.peak_index)
    room, kept = 20 * edges[-1] / (NARROW - 90), [peak]
    for k in starts:
        if all(abs(edges[k] - edges[other]) >= room for other in kept):
            kept.append(k)
    texts = {k: short(names[k], 16) for k in sorted(kept)}
    return {float(edges[k]) + 0.5: f"<b>{text}</b>" if k == peak else text for k, text in texts.items()}


def _words(profile: Profile, bounds: Bounds | None, reference: Profile | None) -> tuple[str, str]:
    """The finding, and what one has to know to read the figure."""
    text = f"The peak is {format_size(profile.peak_bytes)} at {short(profile.peak_op.place, 44)}"
    if reference:
        text += f", {ratio(reference.peak_bytes, profile.peak_bytes)} the teacher's"
    else:
        text += f", step {profile.peak_index + 1} of {len(profile.rows)}"
    held = profile.peak_op.held_bytes
    if 3 * held >= profile.peak_bytes:
        text += f"; {format_size(held)} of it is only held for later steps"
    text += profile.packing
    note = f"{profile.model} {setting(profile)}; weights ({format_size(profile.weight_bytes)}) not included. "
    note += "In colour: what is alive at the peak, read or made by that step or held for a later one."
    if bounds and bounds.order_bytes == profile.peak_bytes:
        note += " No other order of execution needs less."
    if profile.unfused:
        note += f" Taken to need input and output side by side: {', '.join(profile.unfused)}."
    return text, note


def bound_values(bounds: Bounds | None, peak: int) -> dict[str, int]:
    """What the network could do with otherwise, by the name that a reader has for it, where that is not the peak."""
    if bounds is None:
        return {}
    found = {
        "largest step: its input and output": bounds.op_bytes,
        "best order of execution" if bounds.order_exact else "any order needs at least": bounds.order_bytes,
        "first layers streamed by rows": bounds.streaming_bytes,
        "depthwise convolutions in place": bounds.in_place_depthwise_bytes,
    }
    return {name: value for name, value in found.items() if value != peak}


def unit_of(nbytes: float) -> tuple[str, int]:
    """The unit of an axis that reaches to so many bytes."""
    return ("MiB", 2**20) if nbytes >= 2**20 else ("KiB", 2**10)


def setting(profile: Profile) -> str:
    """The input and how memory is counted: what every number here depends on."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in profile.inputs)
    return f"on {shapes}, {profile.dtype}, {profile.convention} convention"
