"""Where networks drop resolution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import plotly.graph_objects as go

from redistill_lib.figures.theme import finish, name_columns, role_trace
from redistill_lib.models import place_names, student_name
from redistill_lib.network import Resolutions, Step
from redistill_lib.plans import StridePlan
from redistill_lib.results import capital, label, listed, the


def map_sides(plan: StridePlan, image_size: int) -> list[int]:
    """Side in pixels of the image and of the map after each place, as padded convolutions give it."""
    return list(accumulate(plan.places, lambda side, stride: math.ceil(side / stride), initial=image_size))


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
    return _staircase(sides, names, {role: str(plan) for role, plan in plans.items()}, "place in the network")


def resolutions(networks: Mapping[str, Resolutions] | Resolutions) -> go.Figure:
    """The height of the feature maps in pixels behind each layer that changes it, for a teacher and its students.

    `networks` by role, the teacher first: what `find_resolutions` found, of any networks on one image, or of one
    network alone. Parallel branches are one layer; gates and heads are left out, which `Resolutions.to_frame` lists.

    >>> import torch
    >>> import redistill_lib as rd
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.MaxPool2d(2))
    >>> resolutions({"teacher": rd.find_resolutions(net, torch.zeros(1, 3, 32, 32))}).data[0].customdata
    (['image', 32, 1], ['0', 16, 2], ['1', 8, 2])
    """
    networks = {"the network": networks} if isinstance(networks, Resolutions) else networks
    after = {role: {name: step.after[0] for name, step in _named(found)} for role, found in networks.items()}
    # In the order of the first network that has the layer, also where it keeps the size there.
    place: dict[str, float] = {}
    for network in networks.values():
        for name, step in (named for found in networks.values() for named in _named(found)):
            if name not in place and (position := network.position(step)) is not None:
                place[name] = position
    names = ["image", *sorted(place, key=place.__getitem__)]
    sides = {}
    for role, steps in after.items():
        side = [networks[role].image[0]]
        for name in names[1:]:
            side.append(steps.get(name, side[-1]))
        sides[role] = side
    return _staircase(sides, names, dict.fromkeys(sides, ""), "layer that changes the resolution")


def _named(found: Resolutions) -> Iterator[tuple[str, Step]]:
    """Each step with a name of its own: several may be told by one layer alone."""
    seen: Counter[str] = Counter()
    for step in found.steps:
        seen[step.name] += 1
        yield step.name + "′" * (seen[step.name] - 1), step


def _staircase(
    sides: Mapping[str, Sequence[int]], names: Sequence[str], notes: Mapping[str, str], below: str
) -> go.Figure:
    figure = go.Figure()
    for k, (role, values) in enumerate(sides.items()):
        shift = 2 ** (0.03 * (k - (len(sides) - 1) / 2))  # so that lines at one size lie side by side
        hover = " after %{customdata[0]} (stride %{customdata[2]}):<br>%{customdata[1]}×%{customdata[1]} pixels"
        steps = {"x": list(range(len(values))), "y": [v * shift for v in values], "mode": "lines+markers"}
        steps["line"] = {"width": 3, "shape": "hv", "dash": "dot" if role == "teacher" else "solid"}
        strides = [1, *(max(1, round(a / b)) for a, b in pairwise(values))]
        steps["customdata"] = [list(row) for row in zip(names, values, strides, strict=False)]
        figure.add_trace(role_trace(role, hover, name=f"{label(role)}  {notes[role]}".rstrip(), **steps))
    sizes = sorted({v for values in sides.values() for v in values})
    figure.update_yaxes(type="log", tickvals=sizes, ticktext=[f"{v}×{v}" for v in sizes], title="map size (pixels)")
    room = name_columns(figure, dict(enumerate(names)), below)
    up = any(later > earlier for values in sides.values() for earlier, later in pairwise(values))
    note = "A step down is a strided layer or pool" + (", a step up one that enlarges its map." if up else ".")
    return finish(figure, _finding(sides, names), note, plot=280, margins=(64, 8, 24, room), legend=True)


def _finding(sides: Mapping[str, Sequence[int]], names: Sequence[str]) -> str:
    (first, reference), *others = sides.items()
    if not others:
        least = min(reference)
        if reference[0] == least:
            return f"{capital(the(first))} works on {least}×{least} maps throughout"
        sizes = [f"{side}×{side}" for side in reference]
        k = max(range(1, len(reference)), key=lambda k: reference[k - 1] / reference[k])
        return f"{capital(the(first))} drops most resolution at its {names[k]}: {sizes[k - 1]} → {sizes[k]}"
    role, values = min(others or [(first, reference)], key=lambda item: (min(item[1]), sum(item[1])))
    pairs = zip(names, reference, values, strict=False)
    place, theirs, ours = max(pairs, key=lambda pair: pair[1] / pair[2])
    if theirs == ours:
        who = listed(label(role) for role in dict.fromkeys((first, role)))
        return f"{capital(who)} drop resolution at the same places"
    text = f"{capital(the(role))} works on {ours}×{ours} maps from its {place} on, where {the(first)} still has"
    if values[-1] == reference[-1]:
        return f"{text} {theirs}×{theirs}; both end at {values[-1]}×{values[-1]}"
    if (ours, theirs) == (values[-1], reference[-1]):
        return f"{text.replace(' still has', ' has')} {theirs}×{theirs}"
    return f"{text} {theirs}×{theirs}; they end at {values[-1]}×{values[-1]} and {reference[-1]}×{reference[-1]}"
