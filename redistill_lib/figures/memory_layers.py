"""Memory of several networks side by side, layer by layer (Figure 7 of arXiv 2406.03744) and in total."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from redistill_lib.figures.memory import block_names, layer_name, place_of, ratio, setting, short, unit_of
from redistill_lib.figures.theme import INK, MUTED, PAGE, color, faint, finish, name_columns, name_rows, symbol
from redistill_lib.memory import Bounds, Profile, format_size
from redistill_lib.results import capital, label, listed, role_key, the

if TYPE_CHECKING:
    import pandas as pd
    from torchinfo import ModelStatistics

_ROOM = PAGE - 310  # pixels for the longest bar and the text beside it
_BOUNDS = {  # attribute → (what a reader calls it, marker)
    "op_bytes": ("largest step: its input and output", "circle"),
    "order_bytes": ("best order of execution", "diamond"),
    "streaming_bytes": ("first layers streamed by rows", "triangle-up"),
    "in_place_depthwise_bytes": ("depthwise convolutions in place", "square"),
}


def role_name(role: str) -> str:
    """What a reader calls the role where memory is concerned: RED is blocks in the student."""
    return {"red": "student + RED", "red in place": "student + RED in place"}.get(role_key(role), label(role))


def layers_of(profile: Profile) -> dict[str, int]:
    """The most bytes that are alive in each layer of the network and in the RED blocks on it, in order of execution.

    Under the ``paper`` convention these are the authors' entries.
    """
    paper = profile.convention == "paper"
    names = [row.module for row in profile.rows] if paper else block_names(profile.rows)
    most: dict[str, int] = {}
    for name, row in zip(names, profile.rows, strict=True):
        most[name] = max(most.get(name, 0), row.live_bytes)
    return most


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
    block needs beyond the student's layer is hatched. `published` (`published_footprints`) are the authors' values in
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
    values = {role_key(role): row for role, row in (published or {}).items() if role_key(role) in layers}
    if values and profile.convention != "paper":
        found = f"profile with convention='paper', not {profile.convention!r}"
        raise ValueError(f"published values are the authors' estimates: {found}")
    for role, row in values.items():
        if len(row) != len(layers[role]):
            found = f"{len(row)} published values for the {len(layers[role])} layers"
            raise ValueError(f"{found} of the {role_name(role)}")
    highest = max(each.peak_bytes for each in profiles.values())
    unit, scale = unit_of(highest)
    names = list(dict.fromkeys(itertools.chain(*sorted(layers.values(), key=len, reverse=True))))
    bars = [role for role in layers if role != "teacher"]
    wide = 0.8 / max(1, len(bars))
    shift = {role: wide * (k - (len(bars) - 1) / 2) for k, role in enumerate(bars)}
    at = {role: {name: names.index(name) + shift.get(role, 0) for name in live} for role, live in layers.items()}
    figure = go.Figure()
    for role, live in layers.items():
        if role == "teacher":
            _add_silhouette(figure, {name: live.get(name) for name in names}, scale)
        else:
            _add_bars(figure, role, live, layers.get("student", live), at[role], scale)
        layer, size = _peak(live)
        figure.add_annotation(
            x=at[role][layer], y=size / scale, text=f"<b>{format_size(size)}</b>", font_color=color(role),
            textangle=0 if role == "teacher" else -90, yanchor="bottom", yshift=4, showarrow=False,
        )  # fmt: skip
    for role, row in values.items():
        sizes = {name: value * 2**20 for name, value in zip(layers[role], row, strict=True)}
        figure.add_scatter(
            x=[*at[role].values()], y=[size / scale for size in sizes.values()], mode="markers",
            marker={"symbol": f"{symbol(role)}-open", "size": 9, "color": color(role), "line": {"width": 1.5}},
            name=f"{role_name(role)}, published", **_told(f"{role_name(role)} as published", sizes.items()),
        )  # fmt: skip
    below = name_columns(figure, {k: short(name, 16) for k, name in enumerate(names)}, "layer, from input to output")
    figure.update_xaxes(range=[-0.6, len(names) - 0.4])
    figure.update_yaxes(title=f"most alive in the layer ({unit})", range=[0, highest / scale * 1.14])
    figure.update_traces(width=wide, textposition="none", selector={"type": "bar"})
    figure.update_layout(barmode="overlay", hovermode="closest")
    note = f"{listed(dict.fromkeys(p.model for p in profiles.values()))} {setting(profile)}; weights not included."
    if values:
        equal = [b == v * 2**20 for r, row in values.items() for b, v in zip(layers[r].values(), row, strict=True)]
        note += f" Open markers: the authors' values, {sum(equal)} of {len(equal)} equal to ours to the byte."
    return finish(figure, _finding(layers), note, plot=340, margins=(64, 0, 12, below), legend=True)


def _told(role: str, sizes: Iterable[tuple[str, float]]) -> dict[str, Any]:
    text = [f"{name}: <b>{format_size(size)}</b>" for name, size in sizes]
    return {"text": text, "hovertemplate": f"<b>{role}</b>, %{{text}}<extra></extra>"}


def _add_silhouette(figure: go.Figure, sizes: Mapping[str, int | None], scale: int) -> None:
    """Behind the students' bars, as wide as the layers."""
    places = [(k + d, name, size) for k, (name, size) in enumerate(sizes.items()) for d in (-0.5, 0, 0.5)]
    figure.add_scatter(
        x=[x for x, _, _ in places], y=[size and size / scale for _, _, size in places], mode="lines", name="teacher",
        fill="tozeroy", fillcolor=faint(color("teacher"), 0.12), line={"color": color("teacher"), "width": 2},
        **_told("teacher", ((name, size or 0) for _, name, size in places)),
    )  # fmt: skip


def _add_bars(
    figure: go.Figure,
    role: str,
    live: Mapping[str, int],
    bare: Mapping[str, int],
    at: Mapping[str, float],
    scale: int,
) -> None:
    """A bar per layer; what is more than in the `bare` student is hatched."""
    own = {layer: min(size, bare.get(layer, size)) for layer, size in live.items()}
    more = {layer: size for layer, size in live.items() if size > own[layer]}
    name, tone = role_name(role), color(role)
    figure.add_bar(
        x=[*at.values()], y=[size / scale for size in own.values()], name=name,
        marker={"color": tone, "line": {"width": 0}}, **_told(name, own.items()),
    )  # fmt: skip
    if more:
        pattern = {"shape": "/", "fgcolor": tone, "bgcolor": "white", "size": 5, "solidity": 0.45}
        figure.add_bar(
            x=[at[layer] for layer in more], base=[own[layer] / scale for layer in more],
            y=[(size - own[layer]) / scale for layer, size in more.items()], name="what its RED block adds",
            marker={"pattern": pattern, "color": tone, "line": {"width": 1, "color": tone}},
            **_told(f"{name}, RED block", more.items()),
        )  # fmt: skip


def _peak(live: Mapping[str, int]) -> tuple[str, int]:
    return max(live.items(), key=lambda item: item[1])


def _finding(layers: Mapping[str, Mapping[str, int]]) -> str:
    peaks = {role: _peak(live) for role, live in layers.items()}
    told = {role: f"{format_size(size)} at {layer_name(layer)}" for role, (layer, size) in peaks.items()}
    first, *others = peaks
    base = "student" if "student" in others else [*others, first][0]
    text = f"{capital(role_name(base))}: the peak is {told[base]}"
    if others:
        text += f", {ratio(peaks[first][1], peaks[base][1])} {the(first)} ({told[first]})"
    red = [role for role in others if role.startswith("red") and role != base]
    higher = [f"{role_name(role)} {told[role]}" for role in red if peaks[role][1] > peaks[base][1]]
    return "; ".join([text, *(higher or ["RED adds nothing to it"] * bool(red))])


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
    figure, reach, names = go.Figure(), 0.0, []
    beside = {"x": 1.02, "xref": "paper", "xanchor": "left", "showarrow": False}
    for k, (role, profile) in enumerate(profiles.items()):
        peak, where = format_size(profile.peak_bytes), f"at {place_of(profile.peak_op)}"
        reach = max(reach, profile.peak_bytes / scale * _ROOM / (_ROOM - 31 - 7 * len(peak + where)))
        figure.add_bar(
            x=[profile.peak_bytes / scale], y=[k], orientation="h", width=0.6, name=role_name(role), showlegend=False,
            marker={"color": color(role), "line": {"width": 0}}, textposition="outside", cliponaxis=False,
            text=f" <b>{peak}</b> <span style='color:{MUTED}'>{where}</span>",
            hovertemplate=f"<b>{role_name(role)}</b>: {peak}<br>at {profile.peak_op.name} ({profile.peak_op.op})<br>"
            f"{profile.model} {setting(profile)}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(y=k, text=format_size(profile.weight_bytes), **beside)
        model = f"<span style='color:{MUTED}'>{short(profile.model, 22)}</span>"
        names.append(f"<b>{role_name(role)}</b><br>{model}")
    figure.add_annotation(text="weights, beside it", y=1, yref="paper", yanchor="bottom", **beside)
    _add_bounds(figure, profiles, bounds or {}, scale)
    name_rows(figure, names)
    figure.update_xaxes(title=f"peak of live activations ({unit})", range=[0, reach])
    figure.update_layout(barmode="overlay")
    (first, reference), *others = profiles.items()
    role, best = min(others or [(first, reference)], key=lambda item: item[1].peak_bytes)
    found = f"{capital(role_name(role))}: {format_size(best.peak_bytes)} at its peak"
    if others:
        found += f", {ratio(reference.peak_bytes, best.peak_bytes)} the {role_name(first)}"
    inputs = listed(dict.fromkeys(setting(profile).removeprefix("on ") for profile in profiles.values()))
    note = f"Input {inputs}. Weights are in another memory, or read from flash: never part of the bar."
    plot, legend = 18 + 58 * len(names), len(figure.data) > len(profiles)
    return finish(figure, found, note, plot=plot, margins=(180, 22, 130, 56), legend=legend)


def _add_bounds(figure: go.Figure, profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds], scale: int) -> None:
    for attribute, (name, marker) in _BOUNDS.items():
        values = {k: getattr(bounds[role], attribute) for k, role in enumerate(profiles) if role in bounds}
        peaks = [profile.peak_bytes for profile in profiles.values()]
        marks = {k: value for k, value in values.items() if value != peaks[k]}
        if attribute == "order_bytes" and not all(limit.order_exact for limit in bounds.values()):
            name = "no order of execution needs less"
        if marks:
            figure.add_scatter(
                x=[value / scale for value in marks.values()], y=list(marks), mode="markers", name=name,
                marker={"symbol": marker, "size": 11, "color": "white", "line": {"width": 1.5, "color": INK}},
                hovertemplate=f"<b>{name}</b>: %{{text}}<extra></extra>", text=[*map(format_size, marks.values())],
            )  # fmt: skip


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
