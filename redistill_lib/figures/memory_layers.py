"""Memory of several networks side by side, layer by layer (Figure 7 of arXiv 2406.03744) and in total."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.memory import bound_values, setting, unit_of
from redistill_lib.figures.theme import (
    INK,
    NARROW,
    color,
    colors,
    faint,
    finish,
    look,
    muted,
    name_columns,
    name_rows,
    short,
    size_axis,
)
from redistill_lib.memory import Bounds, Profile, format_size
from redistill_lib.memory.layers import layers_of
from redistill_lib.memory.profile import place_name
from redistill_lib.results import capital, label, listed, role_key, the
from redistill_lib.sizes import millions, ratio

if TYPE_CHECKING:
    from torchinfo import ModelStatistics

Sizes = Mapping[str, float]  # bytes by layer
_MARKERS = ("circle", "diamond", "triangle-up", "square", "pentagon")
_ROOM = NARROW - 310  # pixels for the longest bar and the text beside it


def role_name(role: str) -> str:
    """What a reader calls the role where memory is concerned: RED is blocks in the student."""
    return {"red": "student + RED", "red in place": "student + RED in place"}.get(role_key(role), label(role))


def published_footprints(frame: pd.DataFrame, panel: str) -> dict[str, list[float]]:
    """The authors' values of one panel of their Figure 7: MiB per layer, by role.

    `frame` is `redistill_lib.published("footprints")`. Raises ValueError for a panel that it lacks.

    >>> row = {"panel": "p", "role": "teacher", "index": 0, "mib": 2.0}
    >>> published_footprints(pd.DataFrame([row, {**row, "index": 1, "mib": 4.0}]), "p")
    {'teacher': [2.0, 4.0]}
    """
    part = frame[frame["panel"] == panel].sort_values("index", kind="stable")
    if part.empty:
        raise ValueError(f"no published values for {panel!r}: choose from {', '.join(frame['panel'].unique())}")
    return part.groupby("role", sort=False)["mib"].agg(list).to_dict()


def memory_by_layer(
    profiles: Mapping[str, Profile], *, published: Mapping[str, Sequence[float]] | None = None
) -> go.Figure:
    """The most that is alive in each layer: the teacher as a silhouette, students as bars before it.

    `profiles` by role: ``teacher``, ``student``, ``red``, ``red in place``; all under one convention. What a RED
    block needs beyond the student's layer is hatched. Where the peaks are a decade apart the axis is logarithmic.
    `published` (`published_footprints`) are the authors' values in MiB, as open markers; they are estimates of the
    ``paper`` convention and need profiles of it.

    Raises ValueError for profiles of unlike conventions, and for published values that do not fit the layers.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> def profile(s): return profile_memory(torch.nn.Conv2d(3, 8, 3, s, padding=1), torch.zeros(1, 3, 32, 32))
    >>> from redistill_lib.figures import headline
    >>> headline(memory_by_layer({"teacher": profile(1), "student": profile(4)}))
    'Naive student: the peak is 14.0 KiB at conv, 3.1× less than the teacher (44.0 KiB at conv)'
    """
    if not profiles:
        raise ValueError("memory_by_layer needs at least one profile")
    if len(conventions := {f"{p.convention}, {p.dtype}" for p in profiles.values()}) > 1:
        raise ValueError(f"one figure needs one convention and dtype, not {' and '.join(sorted(conventions))}")
    profile = next(iter(profiles.values()))
    layers = {role_key(role): layers_of(each) for role, each in profiles.items()}
    values = {role_key(role): row for role, row in (published or {}).items() if role_key(role) in layers}
    for role, row in values.items():
        if profile.convention != "paper":
            raise ValueError("published values are the authors' estimates: profile with convention='paper'")
        if len(row) != len(layers[role]):
            raise ValueError(f"{len(row)} published values for the {len(layers[role])} layers of the {label(role)}")
    names = list(dict.fromkeys(name for live in sorted(layers.values(), key=len, reverse=True) for name in live))
    peaks = {role: max(live.items(), key=lambda item: item[1]) for role, live in layers.items()}
    highest = max(size for _, size in peaks.values())
    decades = highest >= 10 * min(size for _, size in peaks.values())
    unit, scale = ("log scale", 1) if decades else unit_of(highest)
    students = [role for role in layers if role != "teacher"]
    wide, figure, equal = 0.8 / max(1, len(students)), go.Figure(), []
    told: list[tuple[str, int]] = []
    for role, live in layers.items():
        shift = wide * (students.index(role) - (len(students) - 1) / 2) if role in students else 0
        at = {name: names.index(name) + shift for name in live}
        bare = layers.get("student", live) if role in students else live
        figure.add_traces(_bars(role, live, bare, at, scale))
        layer, size = peaks[role]
        if peaks[role] not in told:  # else the label beside it says so
            figure.add_annotation(
                x=at[layer], y=math.log10(size) if decades else size / scale, text=f"<b>{format_size(size)}</b>",
                textangle=-90 if len(students) > 1 and role in students else 0,
                yanchor="bottom", yshift=8 if role in values else 4,
            )  # fmt: skip
        told.append(peaks[role])
        if role in values:
            sizes = {name: mib * 2**20 for name, mib in zip(live, values[role], strict=True)}
            equal += [sizes[name] == size for name, size in live.items()]
            tone, symbol = look(role)
            marker = {"symbol": f"{symbol}-open", "size": 9, "color": tone, "line": {"width": 1.5}}
            points = _told(f"{role_name(role)}, published", sizes, at, scale)
            figure.add_scatter(**points, mode="markers", marker=marker)
    figure.update_traces(width=wide, selector={"type": "bar"})
    figure.update_traces(width=1, selector={"name": "teacher"})
    below = name_columns(figure, {k: short(name, 16) for k, name in enumerate(names)}, "layer, from input to output")
    figure.update_xaxes(range=[-0.6, len(names) - 0.4])
    figure.update_yaxes(title=f"most alive in the layer ({unit})", range=[0, highest / scale * 1.14])
    if decades:
        lowest = min(size for live in layers.values() for size in live.values())
        figure.update_yaxes(size_axis(lowest / 1.5, highest * (highest / lowest) ** 0.12))
    figure.update_layout(barmode="overlay", hovermode="closest")
    note = f"{listed(dict.fromkeys(p.model for p in profiles.values()))} {setting(profile)}; weights not included."
    if values:
        note += f" Open markers: the authors' values, {sum(equal)} of {len(equal)} equal to ours to the byte."
    return finish(figure, _finding(peaks), note, plot=340, margins=(64, 0, 12, below), legend=True)


def _told(name: str, sizes: Sizes, at: Mapping[str, float], scale: int) -> dict[str, Any]:
    text = [f"{layer}: <b>{format_size(size)}</b>" for layer, size in sizes.items()]
    hover = {"hovertext": text, "hovertemplate": f"<b>{name}</b>, %{{hovertext}}<extra></extra>"}
    return {"name": name, "x": [at[layer] for layer in sizes], "y": [s / scale for s in sizes.values()], **hover}


def _bars(role: str, live: Sizes, bare: Sizes, at: Mapping[str, float], scale: int) -> list[go.Bar]:
    """A bar per layer; what is more than in the `bare` student is hatched."""
    own = {layer: min(size, bare.get(layer, size)) for layer, size in live.items()}
    more = {layer: size for layer, size in live.items() if size > own[layer]}
    tone = color(role)
    line = {"width": 1, "color": tone}
    fill = {"color": faint(tone, 0.15), "line_width": 0} if role == "teacher" else {"color": tone, "line": line}
    bars = [go.Bar(**_told(role_name(role), own, at, scale), marker=fill)]
    if more:
        hatch = {"shape": "/", "fgcolor": tone, "bgcolor": "white", "size": 5, "solidity": 0.45}
        told = _told("what its RED block adds", more, at, scale)
        told |= {"y": [(more[layer] - own[layer]) / scale for layer in more], "base": [own[k] / scale for k in more]}
        bars.append(go.Bar(**told, marker={"pattern": hatch, "color": tone, "line": line}))
    return bars


def _finding(peaks: Mapping[str, tuple[str, float]]) -> str:
    told = {
        role: f"{format_size(size)}{layer and f' at {place_name(layer)}'}" for role, (layer, size) in peaks.items()
    }
    first, *others = peaks
    base = "student" if "student" in others else [*others, first][0]
    text = f"{capital(role_name(base))}: the peak is {told[base]}"
    if others:
        text += f", {ratio(peaks[first][1], peaks[base][1])} {the(first)} ({told[first]})"
    bare = "student" if "student" in peaks else base
    red = [role for role in others if role.startswith("red") and not bare.startswith("red")]
    higher = [f"{role_name(role)} {told[role]}" for role in red if peaks[role][1] > peaks[bare][1]]
    return "; ".join([text, *(higher or [f"RED adds nothing to {the(bare)}'s"] * bool(red))])


def memory_bars(profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds] | None = None) -> go.Figure:
    """The peak of each network as a bar, its weights as a number beside: two memories that never add up.

    `profiles` by role; `bounds` by role are marked on the bars, those that differ from the peak alone.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> profile = profile_memory(torch.nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 32, 32))
    >>> from redistill_lib.figures import headline
    >>> headline(memory_bars({"teacher": profile}))
    'Teacher: the peak is 44.0 KiB'
    """
    if not profiles:
        raise ValueError("memory_bars needs at least one profile")
    unit, scale = unit_of(max(profile.peak_bytes for profile in profiles.values()))
    figure, reach, names = go.Figure(), 0.0, []
    marks: dict[str, dict[int, int]] = {}
    tones = colors(profiles)
    beside = {"x": 1.02, "xref": "paper", "xanchor": "left"}
    for k, (role, profile) in enumerate(profiles.items()):
        peak, where = format_size(profile.peak_bytes), f"at {short(profile.peak_op.place, 20)}"
        where += f", arena {format_size(profile.arena_bytes)}" * bool(profile.packing)
        reach = max(reach, profile.peak_bytes / scale * _ROOM / (_ROOM - 31 - 7 * max(len(peak), len(where))))
        figure.add_bar(
            x=[profile.peak_bytes / scale], y=[k], orientation="h", width=0.6, name=role_name(role), showlegend=False,
            marker={"color": tones[role], "line": {"width": 0}}, textposition="outside", cliponaxis=False,
            text=f" <b>{peak}</b><br> {muted(where)}",
            hovertemplate=f"<b>{role_name(role)}</b>, {profile.model}: %{{text}}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(y=k, text=format_size(profile.weight_bytes), **beside)
        names.append(f"<b>{role_name(role)}</b><br>{muted(short(profile.model, 22))}")
        for name, value in bound_values((bounds or {}).get(role), profile.peak_bytes).items():
            marks.setdefault(name, {})[k] = value
    figure.add_annotation(text="weights", y=1, yref="paper", yanchor="bottom", **beside)
    for marker, (name, values) in zip(_MARKERS, marks.items(), strict=False):
        figure.add_scatter(
            x=[value / scale for value in values.values()], y=list(values), mode="markers", name=name,
            marker={"symbol": marker, "size": 11, "color": "white", "line": {"width": 1.5, "color": INK}},
            hovertemplate=f"<b>{name}</b>: %{{text}}<extra></extra>", text=[*map(format_size, values.values())],
        )  # fmt: skip
    name_rows(figure, names)
    figure.update_xaxes(title=f"peak of live activations ({unit})", range=[0, reach])
    inputs = listed(dict.fromkeys(setting(profile).removeprefix("on ") for profile in profiles.values()))
    note = f"Input {inputs}. Weights are in another memory, or read from flash: never part of the bar."
    plot, legend = 18 + 58 * len(names), bool(marks)
    found = _finding({role_key(role): ("", p.peak_bytes) for role, p in profiles.items()})  # the bars tell where
    return finish(figure, found, note, plot=plot, margins=(180, 22, 130, 56), legend=legend)


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
    [['teacher', '44.0 KiB', '224', '0.221 M']]
    """
    rows = []
    for role, profile in profiles.items():
        row: dict[str, object] = {
            "role": role_name(role), "model": profile.model, "peak": format_size(profile.peak_bytes),
            "where": profile.peak_op.place, "weights": format_size(profile.weight_bytes),
            "parameters": f"{profile.weight_count:,}",
        }  # fmt: skip
        if any(each.packing for each in profiles.values()):
            row["arena"] = format_size(profile.arena_bytes)
        if profile.convention != "paper":  # which counts no steps
            row |= {"multiply-adds": millions(profile.flops / 2), "steps": len(profile.rows)}
        if torchinfo and role in torchinfo:
            found = torchinfo[role]
            row["torchinfo: mult-adds"] = millions(found.total_mult_adds)
            row["torchinfo: all outputs"] = format_size(found.total_output_bytes)
        rows.append(row)
    return pd.DataFrame(rows)
