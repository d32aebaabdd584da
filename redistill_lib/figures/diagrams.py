"""Where networks drop resolution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from redistill_lib.distill import Tap
from redistill_lib.figures.theme import INK, color, finish, name_columns, role_trace, short
from redistill_lib.models import place_names, student_name
from redistill_lib.network import MapRef, Resolutions, Step
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


def taps(teacher: Resolutions, student: Resolutions, pairs: Sequence[Tap]) -> go.Figure:
    """Two networks from input to output in pieces of one map size, and an arrow from teacher to student for each tap.

    `teacher` and `student` are what `find_resolutions` found on one image, `pairs` what `match_taps` gives. Lengths
    are shares of the operators that run.

    >>> import torch
    >>> import redistill_lib as rd
    >>> x, names = torch.zeros(1, 3, 32, 32), ("resnet18-1-21222", "resnet18-4-11221")
    >>> networks = [rd.create_model(name, width=0.125) for name in names]
    >>> found = [rd.find_resolutions(network, x) for network in networks]
    >>> from redistill_lib.figures import headline
    >>> headline(taps(*found, rd.match_taps(networks[1], networks[0], x)))
    '5 taps pair maps of one size, which the student has earlier than its teacher'
    """
    networks = {1: teacher, 0: student}  # by row
    sizes = sorted({side for found in networks.values() for _, _, side in _pieces(found)}, reverse=True)
    shades = sample_colorscale("Blues", [0.1 + 0.5 * k / len(sizes) for k in range(len(sizes))])
    figure, half = go.Figure(), 0.16  # of a bar
    for row, found in networks.items():
        starts, stops, sides = zip(*_pieces(found), strict=True)
        lengths = [stop - start for start, stop in zip(starts, stops, strict=True)]
        told = [f"{side}×{side}" for side in sides]
        figure.add_bar(
            x=lengths, base=starts, y=[row] * len(sides), orientation="h", width=2 * half, showlegend=False,
            marker={"color": [shades[sizes.index(side)] for side in sides], "line": {"color": INK, "width": 1}},
            text=[size if length > 0.06 else "" for size, length in zip(told, lengths, strict=True)],
            textangle=0, textposition="inside", insidetextanchor="middle", textfont={"color": INK},
            hovertext=told, hovertemplate="maps of %{hovertext} pixels<extra></extra>",
        )  # fmt: skip
    ends = {1: [(_at(teacher, tap.source), _name(tap.source)) for tap in pairs]}
    ends[0] = [(_at(student, tap.place), _name(tap.place)) for tap in pairs]
    for tap, (source, _), (place, _) in zip(pairs, ends[1], ends[0], strict=True):
        arrow = {"x": place, "y": half, "ax": source, "ay": 1 - half, "axref": "x", "ayref": "y", "arrowhead": 2}
        arrow |= {"arrowwidth": 2, "arrowcolor": color("red"), "hovertext": repr(tap)}
        figure.add_annotation(**arrow, showarrow=True, text="")
    for row, y, anchors in ((1, 1 + half, ("left", "bottom")), (0, -half, ("right", "top"))):
        slant = {"textangle": -40, "xanchor": anchors[0], "yanchor": anchors[1], "font": {"size": 12}}
        for x, text in _apart(ends[row]).items():
            figure.add_annotation(x=x, y=y, text=text, **slant)
    names = ["<b>student</b>", "<b>teacher</b>"]
    figure.update_yaxes(tickvals=[0, 1], ticktext=names, range=[-half, 1 + half], showgrid=False)
    figure.update_xaxes(range=[-0.005, 1.005], showgrid=False, showticklabels=False)
    figure.update_layout(barmode="overlay")
    title = f"{len(pairs)} tap{'s' * (len(pairs) > 1)} pair{'s' * (len(pairs) == 1)} maps of one size"
    if all(place < source for (source, _), (place, _) in zip(ends[1], ends[0], strict=True)):
        title += ", which the student has earlier than its teacher"
    note = (
        "From input (left) to output; a piece has maps of one size, in pixels. Arrow: a tap, where the student gets "
    )
    note += "a RED block whose output is pulled towards the teacher's map."
    above, below = (round(14 + 5 * max(len(name) for _, name in ends[row])) for row in (1, 0))
    return finish(figure, title, note, plot=170, margins=(84, above, 24, below))


def _apart(places: Sequence[tuple[float, str]], least: float = 0.03) -> dict[float, str]:
    """Names by place, from left to right; those that would overlap are one text of several lines."""
    found: dict[float, str] = {}
    for x, name in sorted(places):
        near = next((other for other in found if x - other < least), None)
        if near is None:
            found[x] = name
        elif name not in found[near].split("<br>"):
            found[near] += f"<br>{name}"
    return found


def _pieces(found: Resolutions) -> list[tuple[float, float, int]]:
    """Start, end and height of the maps between two changes of resolution."""
    places = [(place, step.after[0]) for step in found.steps if (place := found.position(step)) is not None]
    starts, sides = zip((0.0, found.image[0]), *places, strict=True)
    return [*zip(starts, [*starts[1:], 1.0], sides, strict=True)]


def _at(found: Resolutions, ref: MapRef) -> float:
    """Where in the pass a map is, from 0 to 1."""
    visit = next(visit for visit in found.flow.visits if visit.run[0] == ref.layer)
    return (visit.first if ref.side == "input" else visit.last) / len(found.flow.calls)


def _name(ref: MapRef) -> str:
    return short(f"{'before ' * (ref.side == 'input')}{ref.layer}", 24)


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
