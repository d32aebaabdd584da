"""Where networks drop resolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from redistill_lib.figures.theme import finish, role_trace
from redistill_lib.models import ARCHITECTURES, student_name
from redistill_lib.plans import StridePlan
from redistill_lib.results import capital, label, listed, the

if TYPE_CHECKING:
    import pandas as pd


def map_sides(plan: StridePlan, image_size: int) -> list[int]:
    """Side in pixels of the image and of the map after each place, as padded convolutions give it."""
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

    plans, names = _read(plans, places)
    columns: dict[str, list[object]] = {"place": [*names]}
    for role, plan in plans.items():
        columns[f"{label(role)}: stride"] = ["", *plan.places]
        columns[f"{label(role)}: map"] = [f"{side}×{side}" for side in map_sides(plan, image_size)]
    return pd.DataFrame(itertools.zip_longest(*columns.values(), fillvalue=""), columns=list(columns))


def _read(
    plans: Mapping[str, StridePlan | str], places: Sequence[str] | None
) -> tuple[dict[str, StridePlan], list[str]]:
    """The plans, and the name of the image and of every place: by the first model's architecture if not given."""
    found = {}
    for role, plan in plans.items():
        if isinstance(plan, str):
            places = places or ARCHITECTURES[plan.partition("-")[0]].names
            plan = StridePlan.parse(student_name(plan, 1).partition("-")[2])
        found[role] = plan
    longest = max(len(plan.places) for plan in found.values())
    names = ["image", *(places or ["stem"])][: longest + 1]
    return found, [*names, *(f"stage {k}" for k in range(len(names) - 1, longest))]


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
    plans, names = _read(plans, places)
    sides = {role: map_sides(plan, image_size) for role, plan in plans.items()}
    figure = go.Figure()
    for k, (role, values) in enumerate(sides.items()):
        shift = 2 ** (0.03 * (k - (len(sides) - 1) / 2))  # so that lines at one size lie side by side
        hover = (
            " after %{customdata[0]} (stride %{customdata[2]}):<br>map of %{customdata[1]}×%{customdata[1]} pixels"
        )
        steps = {"x": list(range(len(values))), "y": [v * shift for v in values], "mode": "lines+markers"}
        steps["line"] = {"width": 3, "shape": "hv", "dash": "dot" if role == "teacher" else "solid"}
        steps["customdata"] = list(zip(names, values, [1, *plans[role].places], strict=False))
        figure.add_trace(role_trace(role, hover, name=f"{label(role)}  {plans[role]}", **steps))
    sizes = sorted({v for values in sides.values() for v in values})
    figure.update_yaxes(type="log", tickvals=sizes, ticktext=[f"{v}×{v}" for v in sizes], title="map size (pixels)")
    shared = names[1].rpartition(".")[0] + "."
    if len(names) < 10 or not all(name.startswith(shared) for name in names[1:]):
        shared = ""  # only names that would not fit are shortened
    axis = f"place in the network ({shared}N)" if shared else "place in the network"
    ticks = [name.removeprefix(shared) for name in names]
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=ticks, title=axis)
    return finish(figure, _finding(sides, names), "A step down is a strided layer.", plot=280, legend=True)


def _finding(sides: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    (first, reference), *others = sides.items()
    role, values = min(others or [(first, reference)], key=lambda item: (min(item[1]), sum(item[1])))
    pairs = zip(names, reference, values, strict=False)
    place, theirs, ours = max(pairs, key=lambda pair: pair[1] / pair[2])
    if theirs == ours:
        who = listed(label(role) for role in dict.fromkeys((first, role)))
        return f"{capital(who)} drop resolution at the same places"
    text = f"{capital(the(role))} works on {ours}×{ours} maps from its {place} on, where {the(first)} still has"
    ends = " and ".join(f"{side}×{side}" for side in dict.fromkeys((values[-1], reference[-1])))
    return f"{text} {theirs}×{theirs}; both end at {ends}"
