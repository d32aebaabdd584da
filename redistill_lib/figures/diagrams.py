"""Where networks drop resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import pandas as pd
import plotly.graph_objects as go

from redistill_lib.figures.theme import finish, name_columns, role_trace
from redistill_lib.models import place_names, student_name
from redistill_lib.plans import StridePlan
from redistill_lib.results import capital, label, listed, the


def map_sides(plan: StridePlan, image_size: int) -> list[int]:
    """Side in pixels of the image and of the map after each place, as padded convolutions give it."""
    return list(accumulate(plan.places, lambda side, stride: math.ceil(side / stride), initial=image_size))


def plan_table(models: Mapping[str, str], image_size: int) -> pd.DataFrame:
    """One row per place, and for every role its stride there and the map that leaves it.

    >>> plan_table({"teacher": "resnet18-1-21222"}, 8).head(3).values.tolist()
    [['image', '', '8×8'], ['conv1', 1, '8×8'], ['maxpool', 2, '4×4']]
    """
    plans, names = _read(models)
    columns: dict[str, list[object]] = {"place": [*names]}
    for role, plan in plans.items():
        columns[f"{label(role)}: stride"] = ["", *plan.places]
        columns[f"{label(role)}: map"] = [f"{side}×{side}" for side in map_sides(plan, image_size)]
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()}).fillna("")


def _read(models: Mapping[str, str]) -> tuple[dict[str, StridePlan], list[str]]:
    """The plans, and the names of the image and of every place, as the network with the most places has them."""
    plans = {role: StridePlan.parse(student_name(name, 1).partition("-")[2]) for role, name in models.items()}
    return plans, ["image", *max(map(place_names, models.values()), key=len)]


def stride_plans(models: Mapping[str, str], image_size: int) -> go.Figure:
    """The side of the feature maps in pixels, place by place, for a teacher and its students.

    `models` are names of networks by role, the teacher first.

    >>> stride_plans({"teacher": "resnet18-1-21222", "student": "resnet18-4-11221"}, 40).data[1].customdata[1]
    ['conv1', 10, 4]
    """
    plans, names = _read(models)
    sides = {role: map_sides(plan, image_size) for role, plan in plans.items()}
    figure = go.Figure()
    for k, (role, values) in enumerate(sides.items()):
        shift = 2 ** (0.03 * (k - (len(sides) - 1) / 2))  # so that lines at one size lie side by side
        hover = " after %{customdata[0]} (stride %{customdata[2]}):<br>%{customdata[1]}×%{customdata[1]} pixels"
        steps = {"x": list(range(len(values))), "y": [v * shift for v in values], "mode": "lines+markers"}
        steps["line"] = {"width": 3, "shape": "hv", "dash": "dot" if role == "teacher" else "solid"}
        steps["customdata"] = list(zip(names, values, [1, *plans[role].places], strict=False))
        figure.add_trace(role_trace(role, hover, name=f"{label(role)}  {plans[role]}", **steps))
    sizes = sorted({v for values in sides.values() for v in values})
    figure.update_yaxes(type="log", tickvals=sizes, ticktext=[f"{v}×{v}" for v in sizes], title="map size (pixels)")
    below = name_columns(figure, dict(enumerate(names)), "place in the network")
    note = "A step down is a strided layer."
    return finish(figure, _finding(sides, names), note, plot=280, margins=(64, 8, 24, below), legend=True)


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
