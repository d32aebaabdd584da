"""Where networks drop resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import color, finish, rows_of_legend, symbol
from redistill_lib.models import ARCHITECTURES, student_name
from redistill_lib.plans import StridePlan
from redistill_lib.results import capital, label, the

if TYPE_CHECKING:
    import pandas as pd


def map_sides(plan: StridePlan, image_size: int) -> list[int]:
    """Side in pixels of the image and of the map after each place, as padded convolutions give it.

    >>> map_sides(StridePlan.parse("4-11221"), 40)
    [40, 10, 10, 10, 5, 3, 3]
    """
    sides = [image_size]
    for stride in plan.places:
        sides.append(math.ceil(sides[-1] / stride))
    return sides


def plan_table(
    plans: Mapping[str, StridePlan | str], image_size: int, places: Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per place, and for every role its stride there and the map that leaves it.

    >>> plan_table({"teacher": StridePlan.parse("1-2")}, 8).values.tolist()
    [['image', '', '8×8'], ['stem', 1, '8×8'], ['stage 1', 2, '4×4']]
    """
    import pandas as pd

    plans, places = _read(plans, places)
    columns: dict[str, list[object]] = {"place": list(_names(plans, places))}
    for role, plan in plans.items():
        columns[f"{label(role)}: stride"] = ["", *plan.places]
        columns[f"{label(role)}: map"] = [f"{side}×{side}" for side in map_sides(plan, image_size)]
    longest = max(map(len, columns.values()))
    return pd.DataFrame({name: [*values, *[""] * (longest - len(values))] for name, values in columns.items()})


def _read(
    plans: Mapping[str, StridePlan | str], places: Sequence[str] | None
) -> tuple[dict[str, StridePlan], Sequence[str] | None]:
    """Model names become their plans, and the first one's architecture names the places."""
    for plan in plans.values():
        if isinstance(plan, str) and places is None:
            places = ARCHITECTURES[plan.partition("-")[0]].names
    return {
        role: StridePlan.parse(student_name(plan, 1).partition("-")[2]) if isinstance(plan, str) else plan
        for role, plan in plans.items()
    }, places


def _names(plans: Mapping[str, StridePlan], places: Sequence[str] | None) -> list[str]:
    longest = max(len(plan.places) for plan in plans.values())
    names = ["image", *(places or ["stem"])][: longest + 1]
    return [*names, *(f"stage {k}" for k in range(len(names) - 1, longest))]


def stride_plans(
    plans: Mapping[str, StridePlan | str], image_size: int, *, places: Sequence[str] | None = None
) -> go.Figure:
    """The side of the feature maps in pixels, place by place, for a teacher and its students.

    `plans` by role, the teacher first, as plans or as names of models; `places` names the places of the first plan,
    such as ``("conv1", …)``, which model names do by themselves.

    >>> parse = StridePlan.parse
    >>> stride_plans({"teacher": parse("1-21222"), "student": parse("4-11221")}, 40).data[1].customdata[1]
    ['stem', 10, 4]
    """
    plans, places = _read(plans, places)
    sides = {role: map_sides(plan, image_size) for role, plan in plans.items()}
    names = _names(plans, places)
    figure = go.Figure()
    for k, (role, values) in enumerate(sides.items()):
        strides = [1, *plans[role].places]
        name, dash = f"{label(role)}  {plans[role]}", "dot" if role == "teacher" else "solid"
        shift = 2 ** (0.03 * (k - (len(sides) - 1) / 2))  # so that lines at one size lie side by side
        figure.add_scatter(
            x=list(range(len(values))), y=[v * shift for v in values], name=name,
            line={"color": color(role), "width": 3, "shape": "hv", "dash": dash},
            marker={"size": 9, "symbol": "circle" if role == "teacher" else symbol(role)}, mode="lines+markers",
            customdata=[[names[i], v, s] for i, (v, s) in enumerate(zip(values, strides, strict=True))],
            hovertemplate=f"<b>{label(role)}</b> after %{{customdata[0]}} (stride %{{customdata[2]}}):<br>"
            "map of %{customdata[1]}×%{customdata[1]} pixels<extra></extra>",
        )  # fmt: skip
    sizes = sorted({v for values in sides.values() for v in values})
    figure.update_yaxes(type="log", tickvals=sizes, ticktext=[f"{v}×{v}" for v in sizes], title="map size (pixels)")
    shared = names[1].rpartition(".")[0] + "."
    if len(names) < 10 or not all(name.startswith(shared) for name in names[1:]):
        shared = ""  # only names that would not fit are shortened
    axis = f"place in the network ({shared}N)" if shared else "place in the network"
    ticks = [name.removeprefix(shared) for name in names]
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, title=axis)
    legend = rows_of_legend(f"{label(role)}  {plan}" for role, plan in plans.items())
    return finish(figure, _finding(sides, names), "A step down is a strided layer.", plot=280, legend=legend)


def _finding(sides: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    (first, reference), *others = sides.items()
    if not others:
        return f"The {label(first)} goes from {reference[0]}×{reference[0]} to {reference[-1]}×{reference[-1]}"
    role, values = min(others, key=lambda item: (min(item[1]), sum(item[1])))
    pairs = list(zip(names, reference, values, strict=False))
    place, theirs, ours = max(pairs, key=lambda pair: pair[1] / pair[2])
    if theirs == ours:
        return f"{capital(label(first))} and {label(role)} drop resolution at the same places"
    text = f"{capital(the(role))} works on {ours}×{ours} maps from its {place} on, where {the(first)} still has"
    ends = " and ".join(f"{side}×{side}" for side in dict.fromkeys((values[-1], reference[-1])))
    return f"{text} {theirs}×{theirs}; both end at {ends}"
