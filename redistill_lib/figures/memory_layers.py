"""Memory of several networks side by side, layer by layer (Figure 7 of arXiv 2406.03744) and in total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.memory import (
    TICK,
    below_ticks,
    block_names,
    layer_name,
    place_of,
    ratio,
    red_place,
    setting,
    short,
    unit_of,
)
from redistill_lib.figures.theme import INK, MUTED, WIDTH, color, faint, finish, rows_of_legend, symbol
from redistill_lib.memory import Bounds, Profile, format_size
from redistill_lib.results import capital, label, listed, role_key, the

if TYPE_CHECKING:
    import pandas as pd
    from torchinfo import ModelStatistics

SIDES = (180, 130)  # pixels left and right of the bars
BOUNDS = {  # attribute → (what a reader calls it, marker)
    "op_bytes": ("largest step: its input and output", "circle"),
    "order_bytes": ("best order of execution", "diamond"),
    "streaming_bytes": ("first layers streamed by rows", "triangle-up"),
    "in_place_depthwise_bytes": ("depthwise convolutions in place", "square"),
}


def role_name(role: str) -> str:
    """What a reader calls the role where memory is concerned: RED is blocks in the student.

    >>> role_name("red"), role_name("student")
    ('student + RED', 'naive student')
    """
    return {"red": "student + RED", "red in place": "student + RED in place"}.get(role_key(role), label(role))


# -------------------------------------------------------------------------------------------------- layer by layer


@dataclass(frozen=True)
class Layer:
    """One layer of the network: the most that is alive in it, and in the RED blocks on it (0 without)."""

    name: str
    own_bytes: int
    red_bytes: int

    @property
    def live_bytes(self) -> int:
        return max(self.own_bytes, self.red_bytes)

    def __str__(self) -> str:
        return f"{format_size(self.live_bytes)} at {layer_name(self.name)}"


def layers_of(profile: Profile) -> list[Layer]:
    """The most that is alive in each layer of the network, in order of execution.

    Under the ``paper`` convention these are the authors' entries, in which RED blocks cannot be told apart.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
    >>> layers_of(profile_memory(net, torch.zeros(1, 3, 32, 32)))
    [Layer(name='0', own_bytes=45056, red_bytes=0)]
    """
    paper = profile.convention == "paper"
    names = [row.module for row in profile.rows] if paper else block_names(profile.rows)
    most: dict[str, list[int]] = {}
    for name, row in zip(names, profile.rows, strict=True):
        pair = most.setdefault(name, [0, 0])
        red = int(not paper and bool(red_place(row)[1]))
        pair[red] = max(pair[red], row.live_bytes)
    return [Layer(name, own, red) for name, (own, red) in most.items()]


def published_footprints(frame: pd.DataFrame, panel: str) -> dict[str, list[float]]:
    """The authors' values of one panel of their Figure 7: MiB per layer, by role.

    `frame` is data/published/footprints.csv as pandas reads it. Raises ValueError for a panel that it lacks.

    >>> import pandas as pd
    >>> row = {"panel": "p", "role": "teacher", "index": 0, "mib": 2.0}
    >>> published_footprints(pd.DataFrame([row, {**row, "index": 1, "mib": 4.0}]), "p")
    {'teacher': [2.0, 4.0]}
    """
    part = frame[frame["panel"] == panel].sort_values("index", kind="stable")
    if part.empty:
        raise ValueError(f"no published values for {panel!r}: choose from {', '.join(frame['panel'].unique())}")
    return {str(role): values["mib"].tolist() for role, values in part.groupby("role", sort=False)}


def memory_by_layer(
    profiles: Mapping[str, Profile], *, published: Mapping[str, Sequence[float]] | None = None
) -> go.Figure:
    """The most that is alive in each layer: the teacher as a silhouette, students as bars before it.

    `profiles` by role: ``teacher``, ``student``, ``red``, ``red in place``; all under one convention. What a RED
    block needs beyond its layer is hatched on top. `published` (`published_footprints`) are the authors' values in
    MiB, as open markers; they are estimates of the ``paper`` convention and need profiles of it.

    Raises ValueError for profiles of unlike conventions, and for published values that do not fit the layers.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> def net(s): return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, s, 1), torch.nn.Conv2d(8, 8, 3, 2, 1))
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> figure = memory_by_layer({"teacher": profile_memory(net(1), x), "student": profile_memory(net(4), x)})
    >>> figure.layout.title.text.partition("<br>")[0]
    '<b>Naive student: the peak is 14.0 KiB at layer 0, 3.1× less than the teacher (44.0 KiB at layer 0)</b>'
    """
    if not profiles:
        raise ValueError("memory_by_layer needs at least one profile")
    if len(conventions := {f"{p.convention}, {p.dtype}" for p in profiles.values()}) > 1:
        raise ValueError(f"one figure needs one convention and dtype, not {' and '.join(sorted(conventions))}")
    profile = next(iter(profiles.values()))
    layers = {role_key(role): layers_of(each) for role, each in profiles.items()}
    if profile.convention == "paper" and "student" in layers:
        layers |= {role: _beyond(layers[role], layers["student"]) for role in layers if role.startswith("red")}
    values = {role_key(role): row for role, row in (published or {}).items() if role_key(role) in layers}
    _check_published(values, layers, profile.convention)
    unit, scale = unit_of(max(each.peak_bytes for each in profiles.values()))
    names = _aligned(layers)
    bars = [role for role in layers if role != "teacher"]
    wide = 0.8 / max(1, len(bars))
    shift = {role: wide * (k - (len(bars) - 1) / 2) for k, role in enumerate(bars)}
    at = {role: [names.index(each.name) + shift.get(role, 0) for each in layers[role]] for role in layers}
    figure = go.Figure()
    if "teacher" in layers:
        _add_silhouette(figure, {each.name: each.live_bytes for each in layers["teacher"]}, names, scale)
    for role in bars:
        _add_bars(figure, role, layers[role], at[role], wide, scale)
    for role, row in values.items():
        sizes = [value * 2**20 for value in row]
        figure.add_scatter(
            x=at[role], y=[size / scale for size in sizes], mode="markers", name=f"{role_name(role)}, published",
            marker={"symbol": f"{symbol(role)}-open", "size": 9, "color": color(role), "line": {"width": 1.5}},
            text=[f"{e.name}: <b>{format_size(size)}</b>" for e, size in zip(layers[role], sizes, strict=True)],
            hovertemplate=f"<b>{role_name(role)}</b> as published, %{{text}}<extra></extra>",
        )  # fmt: skip
    _mark_peaks(figure, layers, at, scale, lift=7 if values else 1)
    ticks = [short(name, TICK) for name in names]
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=ticks, tickangle=-60, ticklabelstandoff=4, showgrid=False,
        range=[-0.6, len(names) - 0.4], title="layer, from input to output",
    )  # fmt: skip
    highest = max(each.live_bytes for entries in layers.values() for each in entries) / scale
    figure.update_yaxes(title=f"most alive in the layer ({unit})", range=[0, highest * 1.14])
    figure.update_layout(barmode="overlay", hovermode="closest")
    note = f"{listed(dict.fromkeys(p.model for p in profiles.values()))} {setting(profile)}; weights not included."
    if values:
        equal = [e.live_bytes == v * 2**20 for r, row in values.items() for e, v in zip(layers[r], row, strict=True)]
        note += f" Open markers: the authors' values, {sum(equal)} of {len(equal)} equal to ours to the byte."
    return finish(
        figure, _finding(layers), note, plot=340, margins=(64, 0, 12, below_ticks(ticks)),
        legend=rows_of_legend(trace.name for trace in figure.data),
    )  # fmt: skip


def _beyond(layers: Sequence[Layer], student: Sequence[Layer]) -> list[Layer]:
    """Under the ``paper`` convention, what exceeds the student's own layer is the RED block's."""
    bare = {layer.name: layer.own_bytes for layer in student}
    return [
        Layer(each.name, min(each.own_bytes, bare.get(each.name, each.own_bytes)), each.own_bytes) for each in layers
    ]


def _check_published(
    values: Mapping[str, Sequence[float]], layers: Mapping[str, Sequence[Layer]], convention: str
) -> None:
    for role, row in values.items():
        if convention != "paper":
            raise ValueError(
                f"published values are the authors' estimates: profile with convention='paper', not {convention!r}"
            )
        if len(row) != len(layers[role]):
            count = f"{len(row)} published values for the {len(layers[role])} layers"
            raise ValueError(f"{count} of the {role_name(role)}")


def _aligned(layers: Mapping[str, Sequence[Layer]]) -> list[str]:
    """All layers in an order that every network agrees with: one that only some have follows the one before it."""
    places: list[str] = []
    for entries in layers.values():
        after = 0
        for layer in entries:
            if layer.name not in places:
                places.insert(after, layer.name)
            after = places.index(layer.name) + 1
    return places


def _add_silhouette(figure: go.Figure, live: Mapping[str, int], names: Sequence[str], scale: int) -> None:
    """Behind the students' bars, as wide as the layers."""
    sizes = [live.get(name) for name in names]
    figure.add_scatter(
        x=[k + d for k in range(len(names)) for d in (-0.5, 0, 0.5)],
        y=[size if size is None else size / scale for size in sizes for _ in range(3)], mode="lines",
        name="teacher", fill="tozeroy", fillcolor=faint(color("teacher"), 0.12),
        line={"color": color("teacher"), "width": 2},
        text=[f"{name}: <b>{format_size(live.get(name, 0))}</b>" for name in names for _ in range(3)],
        hovertemplate="<b>teacher</b>, %{text}<extra></extra>",
    )  # fmt: skip


def _add_bars(
    figure: go.Figure, role: str, layers: Sequence[Layer], at: Sequence[float], width: float, scale: int
) -> None:
    name, tone = role_name(role), color(role)
    figure.add_bar(
        x=at, y=[layer.own_bytes / scale for layer in layers], width=width, name=name, textposition="none",
        marker={"color": tone, "line": {"width": 0}},
        text=[f"{layer.name}: <b>{format_size(layer.own_bytes)}</b>" for layer in layers],
        hovertemplate=f"<b>{name}</b>, %{{text}}<extra></extra>",
    )  # fmt: skip
    more = [(x, layer) for x, layer in zip(at, layers, strict=True) if layer.red_bytes > layer.own_bytes]
    if more:
        pattern = {"shape": "/", "fgcolor": tone, "bgcolor": "white", "size": 5, "solidity": 0.45}
        figure.add_bar(
            x=[x for x, _ in more], base=[layer.own_bytes / scale for _, layer in more], width=width,
            y=[(layer.red_bytes - layer.own_bytes) / scale for _, layer in more], name="what its RED block adds",
            marker={"pattern": pattern, "color": tone, "line": {"width": 1, "color": tone}}, textposition="none",
            text=[f"{layer.name}: <b>{format_size(layer.red_bytes)}</b>" for _, layer in more],
            hovertemplate=f"<b>{name}</b>, RED block on %{{text}}<extra></extra>",
        )  # fmt: skip


def _peak(layers: Sequence[Layer]) -> Layer:
    return max(layers, key=lambda layer: layer.live_bytes)


def _mark_peaks(
    figure: go.Figure, layers: Mapping[str, Sequence[Layer]], at: Mapping[str, Sequence[float]], scale: int, lift: int
) -> None:
    """Each network's peak, written above its bar; one text where several have the same, and none over another."""
    same: dict[Layer, list[str]] = {}
    for role, entries in layers.items():
        peak = _peak(entries)
        same.setdefault(Layer(peak.name, peak.live_bytes, 0), []).append(role)
    line = max(peak.live_bytes for peak in same) * 0.075
    count = max(map(len, layers.values()))
    slots = count * 72 / (WIDTH - 80)  # layers that a text covers
    placed: list[tuple[float, float]] = []
    for peak, roles in sorted(same.items(), key=lambda item: item[0].live_bytes):
        places = [at[role][[each.name for each in layers[role]].index(peak.name)] for role in roles]
        x = min(max(sum(places) / len(places), slots / 2 - 0.5), count - 0.5 - slots / 2)
        y = float(peak.live_bytes)
        for other_x, other_y in sorted(placed, key=lambda p: p[1]):
            if abs(other_x - x) < slots and abs(other_y - y) < line:
                y = other_y + line
        placed.append((x, y))
        tone = color(roles[0]) if len(roles) == 1 and roles[0] != "student" else INK
        figure.add_annotation(
            x=x, y=y / scale, yanchor="bottom", yshift=lift, text=f"<b>{format_size(peak.live_bytes)}</b>",
            font={"color": tone}, showarrow=False, bgcolor=faint("#FFFFFF", 0.7), borderpad=0,
        )  # fmt: skip


def _finding(layers: Mapping[str, Sequence[Layer]]) -> str:
    (first, high), *others = ((role, _peak(entries)) for role, entries in layers.items())
    base, low = next((item for item in others if item[0] == "student"), others[0] if others else (first, high))
    text = f"{capital(role_name(base))}: the peak is {low}"
    if others:
        text += f", {ratio(high.live_bytes, low.live_bytes)} {the(first)} ({high})"
    red = [(role, peak) for role, peak in others if role.startswith("red") and role != base]
    higher = [f"{role_name(role)} {peak}" for role, peak in red if peak.live_bytes > low.live_bytes]
    return "; ".join([text, *(higher or ["RED adds nothing to it"] * bool(red))])


# -------------------------------------------------------------------------------------------------- bars and table


def memory_bars(profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds] | None = None) -> go.Figure:
    """The peak of each network as a bar, its weights as a number beside: two memories that never add up.

    `profiles` by role; `bounds` by role are marked on the bars, those that differ from the peak alone.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> def net(s): return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, s, 1), torch.nn.Conv2d(8, 8, 3, 2, 1))
    >>> x = torch.zeros(1, 3, 32, 32)
    >>> figure = memory_bars({"teacher": profile_memory(net(1), x), "student": profile_memory(net(4), x)})
    >>> figure.layout.title.text.partition("<br>")[0]
    '<b>Naive student: 14.0 KiB at its peak, 3.1× less than the teacher</b>'
    """
    if not profiles:
        raise ValueError("memory_bars needs at least one profile")
    unit, scale = unit_of(max(profile.peak_bytes for profile in profiles.values()))
    figure, reach, room = go.Figure(), 0.0, WIDTH - sum(SIDES)  # pixels that bar and text share
    beside = {"x": 1.02, "xref": "paper", "xanchor": "left", "showarrow": False}
    for k, (role, profile) in enumerate(profiles.items()):
        peak, where = format_size(profile.peak_bytes), f"at {place_of(profile.peak_op)}"
        figure.add_bar(
            x=[profile.peak_bytes / scale], y=[k], orientation="h", width=0.6, name=role_name(role),
            marker={"color": color(role), "line": {"width": 0}}, showlegend=False,
            hovertemplate=f"<b>{role_name(role)}</b>: {peak}<br>at {profile.peak_op.name} ({profile.peak_op.op})<br>"
            f"{profile.model} {setting(profile)}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            x=profile.peak_bytes / scale, y=k, xanchor="left", xshift=8, showarrow=False,
            text=f"<b>{peak}</b> <span style='color:{MUTED}'>{where}</span>",
        )  # fmt: skip
        reach = max(reach, profile.peak_bytes / scale * room / (room - 31 - 7 * len(peak + where)))
        figure.add_annotation(y=k, text=format_size(profile.weight_bytes), **beside)
    heading = {"y": 1, "yref": "paper", "yanchor": "bottom", "font": {"color": MUTED}}
    figure.add_annotation(text="weights, beside it", **heading, **beside)
    named = _add_bounds(figure, profiles, bounds or {}, scale)
    names = [
        f"<b>{role_name(role)}</b><br><span style='color:{MUTED}'>{short(profile.model, 22)}</span>"
        for role, profile in profiles.items()
    ]
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=names, range=[len(names) - 0.5, -0.5], showgrid=False
    )
    figure.update_xaxes(title=f"peak of live activations ({unit})", range=[0, reach])
    figure.update_layout(barmode="overlay")
    (first, reference), *others = profiles.items()
    role, best = min(others or [(first, reference)], key=lambda item: item[1].peak_bytes)
    found = f"{capital(role_name(role))}: {format_size(best.peak_bytes)} at its peak"
    if others:
        found += f", {ratio(reference.peak_bytes, best.peak_bytes)} the {role_name(first)}"
    inputs = listed(dict.fromkeys(setting(profile).removeprefix("on ") for profile in profiles.values()))
    return finish(
        figure, found, f"Input {inputs}. Weights are in another memory, or read from flash: never part of the bar.",
        plot=18 + 58 * len(names), margins=(SIDES[0], 22, SIDES[1], 56), legend=rows_of_legend(named) if named else 0,
    )  # fmt: skip


def _add_bounds(
    figure: go.Figure, profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds], scale: int
) -> list[str]:
    """Marks on the bars; returns the names that need a legend."""
    shown = []
    for attribute, (name, marker) in BOUNDS.items():
        values = {k: getattr(bounds[role], attribute) for k, role in enumerate(profiles) if role in bounds}
        peaks = [profile.peak_bytes for profile in profiles.values()]
        marks = {k: value for k, value in values.items() if value != peaks[k]}
        if not marks:
            continue
        if attribute == "order_bytes" and not all(limit.order_exact for limit in bounds.values()):
            name = "no order of execution needs less"
        shown.append(name)
        figure.add_scatter(
            x=[value / scale for value in marks.values()], y=list(marks), mode="markers", name=name,
            marker={"symbol": marker, "size": 11, "color": "white", "line": {"width": 1.5, "color": INK}},
            hovertemplate=f"<b>{name}</b>: %{{text}}<extra></extra>", text=[*map(format_size, marks.values())],
        )  # fmt: skip
    return shown


def memory_table(
    profiles: Mapping[str, Profile], torchinfo: Mapping[str, ModelStatistics] | None = None
) -> pd.DataFrame:
    """One row per network: its peak and where it is, its weights, parameters, multiply-adds and steps.

    `torchinfo`, what `torchinfo.summary` returned by role, puts that tool's numbers beside ours: its
    "forward/backward pass size" adds up the outputs of all layers, which inference never holds together.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> profile = profile_memory(torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 32, 32))
    >>> memory_table({"teacher": profile})[["role", "peak", "parameters", "multiply-adds"]].values.tolist()
    [['teacher', '44.0 KiB', 224, 221184]]
    """
    import pandas as pd

    rows = []
    for role, profile in profiles.items():
        row: dict[str, object] = {
            "role": role_name(role), "model": profile.model, "peak": format_size(profile.peak_bytes),
            "where": profile.peak_op.name, "weights": format_size(profile.weight_bytes),
            "parameters": profile.weight_count,
        }  # fmt: skip
        if profile.convention != "paper":  # which counts no steps
            row |= {"multiply-adds": profile.flops // 2, "steps": len(profile.rows)}
        if torchinfo and role in torchinfo:
            found = torchinfo[role]
            row |= {"torchinfo: parameters": found.total_params, "torchinfo: mult-adds": found.total_mult_adds}
            row["torchinfo: all outputs"] = format_size(found.total_output_bytes)
        rows.append(row)
    return pd.DataFrame(rows)
