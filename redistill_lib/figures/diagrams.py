"""Where networks drop resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from redistill_lib.figures.theme import color, finish, label, rows_of_legend, symbol
from redistill_lib.plans import StridePlan


def map_sides(plan: StridePlan, image_size: int) -> list[int]:
    """Side in pixels of the image and of the map after each place, as padded convolutions give it.

    >>> map_sides(StridePlan.parse("4-11221"), 40)
    [40, 10, 10, 10, 5, 3, 3]
    """
    sides = [image_size]
    for stride in plan.places:
        sides.append(math.ceil(sides[-1] / stride))
    return sides


def stride_plans(
    plans: Mapping[str, StridePlan],
    image_size: int,
    *,
    places: Sequence[str] | None = None,
    title: str | None = None,
) -> go.Figure:
    """The side of the feature maps in pixels, place by place, for a teacher and its students.

    `plans` by role, the teacher first; `places` names the places of the first plan, such as ``("conv1", …)``.

    >>> parse = StridePlan.parse
    >>> stride_plans({"teacher": parse("1-21222"), "student": parse("4-11221")}, 40).layout.title.text
    '<b>The student works on 10×10 maps from its stem on, where the teacher still has 40×40; both end at 3×3</b>'
    """
    sides = {role: map_sides(plan, image_size) for role, plan in plans.items()}
    longest = max(len(values) for values in sides.values())
    names = ["image", *(places or ["stem", *(f"stage {k}" for k in range(1, longest - 1))])]
    names += [f"stage {k}" for k in range(len(names) - 1, longest - 1)]
    figure = go.Figure()
    for k, (role, values) in enumerate(sides.items()):
        strides = [1, *plans[role].places]
        name = f"{label(role)}  {plans[role]}"
        figure.add_trace(
            go.Scatter(
                x=list(range(len(values))), y=[v * 2 ** (0.03 * (k - (len(sides) - 1) / 2)) for v in values], name=name,
                line={"color": color(role), "width": 3, "shape": "hv", "dash": "dot" if role == "teacher" else "solid"},
                marker={"size": 9, "symbol": "circle" if role == "teacher" else symbol(role)}, mode="lines+markers",
                customdata=[[names[i], v, s] for i, (v, s) in enumerate(zip(values, strides, strict=True))],
                hovertemplate=f"<b>{label(role)}</b> after %{{customdata[0]}} (stride %{{customdata[2]}}):<br>"
                "map of %{customdata[1]}×%{customdata[1]} pixels<extra></extra>",
            )
        )  # fmt: skip
    ticks = sorted({v for values in sides.values() for v in values})
    figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{v}×{v}" for v in ticks], title="map size (pixels)")
    figure.update_xaxes(tickvals=list(range(longest)), ticktext=names[:longest], title="after")
    legend = rows_of_legend(f"{label(role)}  {plan}" for role, plan in plans.items())
    return finish(figure, title or _finding(sides, names), "A step down is a strided layer.", plot=280, legend=legend)


def _finding(sides: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    (first, reference), *others = sides.items()
    if not others:
        return f"The {label(first)} goes from {reference[0]}×{reference[0]} to {reference[-1]}×{reference[-1]}"
    role, values = min(others, key=lambda item: min(item[1]) * 1e6 + sum(item[1]))
    pairs = list(zip(reference, values, strict=False))
    place = max(range(len(pairs)), key=lambda k: pairs[k][0] / pairs[k][1])
    theirs, ours = pairs[place]
    if theirs == ours:
        return f"{label(first).capitalize()} and {label(role)} drop resolution at the same places"
    who = "student" if role == "student" else label(role)
    end = f"both end at {values[-1]}×{values[-1]}" if values[-1] == reference[-1] else ""
    end = end or f"they end at {values[-1]}×{values[-1]} and {reference[-1]}×{reference[-1]}"
    return f"The {who} works on {ours}×{ours} maps from its {names[place]} on, where the {label(first)} still has {theirs}×{theirs}; {end}"
