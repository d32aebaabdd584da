"""Memory layer by layer, teacher and students in one image: Figure 7 of arXiv 2406.03744, for any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.memory_names import (
    TICK,
    below_ticks,
    block_names,
    is_red,
    layer_name,
    ratio,
    setting,
    short,
    unit_of,
)
from redistill_lib.figures.theme import (
    INK,
    WIDTH,
    capital,
    color,
    faint,
    finish,
    label,
    listed,
    role_key,
    rows_of_legend,
    symbol,
)
from redistill_lib.memory import Profile, format_size
from redistill_lib.plans import StridePlan

if TYPE_CHECKING:
    import pandas as pd

PLOT = 340  # pixels
_LABELS = {"red": "student + RED", "red in place": "student + RED in place"}


@dataclass(frozen=True)
class Layer:
    """One layer of the network: the most that is alive in it, and in the RED blocks on it (0 without)."""

    name: str
    own_bytes: int
    red_bytes: int

    @property
    def live_bytes(self) -> int:
        return max(self.own_bytes, self.red_bytes)


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
        red = int(not paper and is_red(row))
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
    return {str(role): [float(v) for v in values["mib"]] for role, values in part.groupby("role", sort=False)}


def role_name(role: str) -> str:
    """What a reader calls the role where memory is concerned: RED is blocks in the student.

    >>> role_name("red"), role_name("student")
    ('student + RED', 'naive student')
    """
    return _LABELS.get(role_key(role), label(role))


def memory_by_layer(
    profiles: Mapping[str, Profile],
    *,
    published: Mapping[str, Sequence[float]] | None = None,
    title: str | None = None,
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
    '<b>The naive student cuts the peak 3.1×, from 44.0 KiB to 14.0 KiB, both at layer 0</b>'
    """
    if not profiles:
        raise ValueError("memory_by_layer needs at least one profile")
    if len(conventions := {f"{p.convention}, {p.dtype}" for p in profiles.values()}) > 1:
        raise ValueError(f"one figure needs one convention and dtype, not {' and '.join(sorted(conventions))}")
    layers = {role_key(role): layers_of(profile) for role, profile in profiles.items()}
    places = _aligned(layers)
    if "student" in layers and "paper" in next(iter(conventions)):  # what exceeds the student's is the RED block's
        bare = {layer.name: layer.own_bytes for layer in layers["student"]}
        for role in layers:
            if role.startswith("red"):
                layers[role] = [
                    Layer(e.name, min(e.own_bytes, bare.get(e.name, e.own_bytes)), e.own_bytes) for e in layers[role]
                ]
    unit, scale = unit_of(max(profile.peak_bytes for profile in profiles.values()))
    bars = [role for role in layers if role != "teacher"]
    wide = 0.8 / max(1, len(bars))
    shifts = {role: wide * (k - (len(bars) - 1) / 2) for k, role in enumerate(bars)}
    axes = _Axes({name: k for k, name in enumerate(places)}, {"teacher": 0.0} | shifts, wide, scale)
    figure = go.Figure()
    if "teacher" in layers:
        figure.add_trace(_silhouette(layers["teacher"], axes))
    for role in bars:
        figure.add_traces(_bars(role, layers[role], axes))
    values = {role_key(role): list(row) for role, row in (published or {}).items() if role_key(role) in layers}
    for role, row in values.items():
        figure.add_trace(_markers(role, row, layers[role], next(iter(profiles.values())).convention, axes))
    _annotate(figure, layers, axes, lift=7 if values else 1)
    ticks = [short(name, TICK) for name in places]
    figure.update_xaxes(
        tickvals=list(range(len(places))), ticktext=ticks, tickangle=-60, ticklabelstandoff=4, showgrid=False,
        range=[-0.6, len(places) - 0.4], title="layer, from input to output",
    )  # fmt: skip
    highest = max(layer.live_bytes for entries in layers.values() for layer in entries) / scale
    figure.update_yaxes(title=f"most alive in the layer ({unit})", range=[0, highest * 1.14])
    figure.update_layout(barmode="overlay", hovermode="closest")
    names = [trace.name for trace in figure.data]
    return finish(
        figure, title or _finding(layers, profiles), _note(profiles, layers, values),
        plot=PLOT, margins=(64, 0, 12, below_ticks(ticks)), legend=rows_of_legend(names),
    )  # fmt: skip


@dataclass(frozen=True)
class _Axes:
    at: Mapping[str, int]  # layer → its place on the x axis
    shift: Mapping[str, float]  # role → where its bars are, from that place
    width: float  # of a bar
    scale: int  # bytes of the y axis' unit

    def x(self, role: str, layers: Sequence[Layer]) -> list[float]:
        return [self.at[layer.name] + self.shift[role] for layer in layers]


def _aligned(layers: Mapping[str, Sequence[Layer]]) -> list[str]:
    """All layers in an order that every network agrees with: one that only some have follows the one before it."""
    places: list[str] = []
    for entries in layers.values():
        after = 0
        for layer in entries:
            if layer.name in places:
                after = places.index(layer.name) + 1
            else:
                places.insert(after, layer.name)
                after += 1
    return places


def _silhouette(layers: Sequence[Layer], axes: _Axes) -> go.Scatter:
    """Behind the students' bars, as wide as the layers."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    known = {axes.at[layer.name]: layer for layer in layers}
    for place in range(len(axes.at)):
        layer = known.get(place)
        x += [place - 0.5, place, place + 0.5] if layer else [None]
        y += [layer.live_bytes / axes.scale] * 3 if layer else [None]
        text += [f"{layer.name}: <b>{format_size(layer.live_bytes)}</b>"] * 3 if layer else [""]
    return go.Scatter(
        x=x, y=y, mode="lines", name=role_name("teacher"), fill="tozeroy", fillcolor=faint(color("teacher"), 0.12),
        line={"color": color("teacher"), "width": 2}, text=text,
        hovertemplate="<b>teacher</b>, %{text}<extra></extra>",
    )  # fmt: skip


def _bars(role: str, layers: Sequence[Layer], axes: _Axes) -> list[go.Bar]:
    name, tone = role_name(role), color(role)
    more = [layer for layer in layers if layer.red_bytes > layer.own_bytes]
    bar = go.Bar(
        x=axes.x(role, layers), y=[layer.own_bytes / axes.scale for layer in layers], width=axes.width, name=name,
        marker={"color": tone, "line": {"width": 0}}, textposition="none",
        text=[f"{layer.name}: <b>{format_size(layer.own_bytes)}</b>" for layer in layers],
        hovertemplate=f"<b>{name}</b>, %{{text}}<extra></extra>",
    )  # fmt: skip
    if not more:
        return [bar]
    pattern = {"shape": "/", "fgcolor": tone, "bgcolor": "white", "size": 5, "solidity": 0.45}
    added = go.Bar(
        x=axes.x(role, more), base=[layer.own_bytes / axes.scale for layer in more], width=axes.width,
        y=[(layer.red_bytes - layer.own_bytes) / axes.scale for layer in more], name="what its RED block adds",
        marker={"pattern": pattern, "color": tone, "line": {"width": 1, "color": tone}}, textposition="none",
        text=[f"{layer.name}: <b>{format_size(layer.red_bytes)}</b>" for layer in more],
        hovertemplate=f"<b>{name}</b>, RED block on %{{text}}<extra></extra>",
    )  # fmt: skip
    return [bar, added]


def _markers(role: str, values: Sequence[float], layers: Sequence[Layer], convention: str, axes: _Axes) -> go.Scatter:
    if convention != "paper":
        raise ValueError(
            f"the published values are the authors' estimates per layer: profile with convention='paper', "
            f"not {convention!r}"
        )
    if len(values) != len(layers):
        raise ValueError(f"{len(values)} published values for the {len(layers)} layers of the {role_name(role)}")
    return go.Scatter(
        x=axes.x(role, layers), y=[value * 2**20 / axes.scale for value in values],
        mode="markers", name=f"{role_name(role)}, published",
        marker={"symbol": f"{symbol(role)}-open", "size": 9, "color": color(role), "line": {"width": 1.5}},
        text=[f"{layer.name}: <b>{format_size(v * 2**20)}</b>" for layer, v in zip(layers, values, strict=True)],
        hovertemplate=f"<b>{role_name(role)}</b> as published, %{{text}}<extra></extra>",
    )  # fmt: skip


def peak_of(layers: Sequence[Layer]) -> Layer:
    """The first layer with the most alive."""
    return max(layers, key=lambda layer: layer.live_bytes)


def _annotate(figure: go.Figure, layers: Mapping[str, Sequence[Layer]], axes: _Axes, *, lift: int) -> None:
    """Each network's peak, written above its bar; one text where several have the same."""
    same: dict[tuple[str, int], list[str]] = {}
    for role, entries in layers.items():
        peak = peak_of(entries)
        same.setdefault((peak.name, peak.live_bytes), []).append(role)
    line = max(value for _, value in same) * 0.075
    slots = len(axes.at) * 72 / (WIDTH - 80)  # places that a text covers
    placed: list[tuple[float, float]] = []
    for (name, value), roles in sorted(same.items(), key=lambda item: item[0][1]):
        x = axes.at[name] + sum(axes.shift[role] for role in roles) / len(roles)
        x = min(max(x, slots / 2 - 0.5), len(axes.at) - 0.5 - slots / 2)
        y = float(value)
        for other_x, other_y in sorted(placed, key=lambda p: p[1]):
            if abs(other_x - x) < slots and abs(other_y - y) < line:
                y = other_y + line
        placed.append((x, y))
        tone = color(roles[0]) if len(roles) == 1 and roles[0] != "student" else INK
        figure.add_annotation(
            x=x, y=y / axes.scale, yanchor="bottom", yshift=lift, text=f"<b>{format_size(value)}</b>",
            font={"color": tone}, showarrow=False, bgcolor=faint("#FFFFFF", 0.7), borderpad=0,
        )  # fmt: skip


def _finding(layers: Mapping[str, Sequence[Layer]], profiles: Mapping[str, Profile]) -> str:
    peaks = {role: peak_of(entries) for role, entries in layers.items()}
    (first, high), *others = peaks.items()
    start = _where(high)
    if not others:
        return f"{capital(role_name(first))}: the peak is {start}"
    base, low = next(((role, peak) for role, peak in others if role == "student"), others[0])
    subject = _factor(profiles, first, base) or f"the {role_name(base).removesuffix(' student')} student"
    change = f"from {start} to {_where(low)}"
    if high.name == low.name:
        change = f"from {format_size(high.live_bytes)} to {_where(low).replace(' at ', ', both at ')}"
    if high.live_bytes == low.live_bytes:
        text = f"{subject} leaves the peak at {start}"
    else:
        verb = "cuts" if low.live_bytes < high.live_bytes else "raises"
        times = ratio(high.live_bytes, low.live_bytes).partition(" ")[0]
        text = f"{subject} {verb} the peak {times}, {change}"
    about = [_about_red(role, peak, low) for role, peak in others if role.startswith("red") and role != base]
    if len(about) > 1 and len(set(about)) == 1:
        about = [f"{about[0]}, plain or in place"]
    elif len(about) > 1:
        about = [about[0], f"in place, {about[1]}"]
    return capital("; ".join([text, *about]))


def _factor(profiles: Mapping[str, Profile], teacher: str, student: str) -> str:
    """ "×4 pooling" where the names of two models tell it."""
    named = {role_key(role): profile.model.partition("-") for role, profile in profiles.items()}
    try:
        (arch, _, usual), (same, _, moved) = named[teacher], named[student]
        factor = StridePlan.parse(moved).stem / StridePlan.parse(usual).stem
    except ValueError:
        return ""
    return f"×{factor:g} pooling" if arch == same and factor > 1 else ""


def _about_red(role: str, peak: Layer, low: Layer) -> str:
    if peak.live_bytes <= low.live_bytes:
        return "RED adds nothing to it"
    if peak.red_bytes > peak.own_bytes:
        return f"RED blocks set the peak ({_where(peak)})"
    return f"RED raises it to {_where(peak)}"


def _where(peak: Layer) -> str:
    return f"{format_size(peak.live_bytes)} at {layer_name(peak.name)}"


def _note(
    profiles: Mapping[str, Profile], layers: Mapping[str, Sequence[Layer]], published: Mapping[str, Sequence[float]]
) -> str:
    first, *others = profiles.values()
    models = list(dict.fromkeys(profile.model for profile in (first, *others)))
    parts = [f"{listed(models)}{setting(first).removeprefix(first.model)}; weights not included."]
    if published:
        pairs = [
            (layer.live_bytes, value * 2**20)
            for role, values in published.items()
            for layer, value in zip(layers[role], values, strict=True)
        ]
        equal = sum(ours == theirs for ours, theirs in pairs)
        parts.append(f"Open markers: the authors' values, {equal} of {len(pairs)} equal to ours to the byte.")
    return " ".join(parts)
