"""Peaks and weights of several networks, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.memory_layers import role_name
from redistill_lib.figures.memory_names import place_of, ratio, setting, unit_of
from redistill_lib.figures.theme import INK, MUTED, WIDTH, capital, color, finish, rows_of_legend
from redistill_lib.memory import Bounds, Profile, format_size

if TYPE_CHECKING:
    import pandas as pd
    from torchinfo import ModelStatistics

SIDES = (180, 130)  # pixels left and right of the plot
BOUNDS = {  # attribute → (what a reader calls it, marker)
    "op_bytes": ("largest step: its input and output", "circle"),
    "order_bytes": ("best order of execution", "diamond"),
    "streaming_bytes": ("first layers streamed by rows", "triangle-up"),
    "in_place_depthwise_bytes": ("depthwise convolutions in place", "square"),
}


def memory_bars(
    profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds] | None = None, *, title: str | None = None
) -> go.Figure:
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
    figure, reach = go.Figure(), 0.0
    for k, (role, profile) in enumerate(profiles.items()):
        figure.add_trace(
            go.Bar(
                x=[profile.peak_bytes / scale], y=[k], orientation="h", width=0.6, name=role_name(role),
                marker={"color": color(role), "line": {"width": 0}}, showlegend=False,
                hovertemplate=f"<b>{role_name(role)}</b>: {format_size(profile.peak_bytes)}<br>at "
                f"{profile.peak_op.name} ({profile.peak_op.op})<br>{setting(profile)}<extra></extra>",
            )
        )  # fmt: skip
        words = [format_size(profile.peak_bytes), f"at {place_of(profile.peak_op)}"]
        figure.add_annotation(
            x=profile.peak_bytes / scale, y=k, xanchor="left", xshift=8, showarrow=False,
            text=f"<b>{words[0]}</b> <span style='color:{MUTED}'>{words[1]}</span>",
        )  # fmt: skip
        room = WIDTH - sum(SIDES)  # pixels; bar and text share them
        reach = max(reach, profile.peak_bytes / scale * room / (room - 24 - 7 * len(" ".join(words))))
        figure.add_annotation(
            x=1.02, xref="paper", xanchor="left", y=k, text=format_size(profile.weight_bytes), showarrow=False
        )
    named = _add_bounds(figure, profiles, bounds or {}, scale)
    figure.add_annotation(
        x=1.02, xref="paper", xanchor="left", y=1, yref="paper", yanchor="bottom", text="weights, beside it",
        showarrow=False, font={"color": MUTED},
    )  # fmt: skip
    names = [f"<b>{role_name(role)}</b><br>{_model(profile)}" for role, profile in profiles.items()]
    count = len(names)
    figure.update_yaxes(tickvals=list(range(count)), ticktext=names, range=[count - 0.5, -0.5], showgrid=False)
    figure.update_xaxes(title=f"peak of live activations ({unit})", range=[0, reach])
    figure.update_layout(barmode="overlay")
    return finish(
        figure, title or _finding(profiles), _note(profiles), plot=18 + 58 * len(profiles),
        margins=(SIDES[0], 22, SIDES[1], 56), legend=rows_of_legend(named) if named else 0,
    )  # fmt: skip


def _model(profile: Profile) -> str:
    name = profile.model if len(profile.model) <= 22 else f"{profile.model[:21]}…"
    return f"<span style='color:{MUTED}'>{name}</span>"


def _add_bounds(
    figure: go.Figure, profiles: Mapping[str, Profile], bounds: Mapping[str, Bounds], scale: int
) -> list[str]:
    """Marks on the bars; returns the names that need a legend."""
    shown = []
    for attribute, (name, marker) in BOUNDS.items():
        marks = [
            (getattr(bounds[role], attribute), k)
            for k, role in enumerate(profiles)
            if role in bounds and getattr(bounds[role], attribute) != profiles[role].peak_bytes
        ]
        if not marks:
            continue
        if attribute == "order_bytes" and not all(limit.order_exact for limit in bounds.values()):
            name = "no order of execution needs less"
        shown.append(name)
        figure.add_trace(
            go.Scatter(
                x=[value / scale for value, _ in marks], y=[k for _, k in marks], mode="markers", name=name,
                marker={"symbol": marker, "size": 11, "color": "white", "line": {"width": 1.5, "color": INK}},
                hovertemplate=f"<b>{name}</b>: %{{text}}<extra></extra>",
                text=[format_size(value) for value, _ in marks],
            )
        )  # fmt: skip
    return shown


def _finding(profiles: Mapping[str, Profile]) -> str:
    (first, reference), *others = profiles.items()
    if not others:
        return f"{capital(role_name(first))}: {format_size(reference.peak_bytes)} at its peak"
    role, best = min(others, key=lambda item: item[1].peak_bytes)
    text = f"{capital(role_name(role))}: {format_size(best.peak_bytes)} at its peak"
    return f"{text}, {ratio(reference.peak_bytes, best.peak_bytes)} the {role_name(first)}"


def _note(profiles: Mapping[str, Profile]) -> str:
    inputs = list(dict.fromkeys(setting(profile).partition(" on ")[2] for profile in profiles.values()))
    return f"Input {' and '.join(inputs)}. Weights are in another memory, or read from flash: never part of the bar."


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
            "role": role_name(role),
            "model": profile.model,
            "peak": format_size(profile.peak_bytes),
            "where": profile.peak_op.name,
            "weights": format_size(profile.weight_bytes),
            "parameters": profile.weight_count,
        }
        if profile.convention != "paper":  # which counts no steps
            row |= {"multiply-adds": profile.flops // 2, "steps": len(profile.rows)}
        if torchinfo and role in torchinfo:
            found = torchinfo[role]
            row |= {
                "torchinfo: parameters": found.total_params,
                "torchinfo: mult-adds": found.total_mult_adds,
                "torchinfo: all outputs": format_size(found.total_output_bytes),
            }
        rows.append(row)
    return pd.DataFrame(rows)
