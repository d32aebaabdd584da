"""Memory figures: areas that add up to the profile, titles with its numbers, published values as published."""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from test_figures import seen_by
from torch import nn

import redistill_lib as rd
from redistill_lib.distill import match_taps
from redistill_lib.figures import (
    headline,
    memory_bars,
    memory_by_layer,
    memory_table,
    memory_timeline,
    published_footprints,
    theme,
)
from redistill_lib.figures.memory import GREYS, ROLES
from redistill_lib.figures.memory_layers import role_name
from redistill_lib.memory import Profile, Row, format_size, memory_bounds, profile_memory
from redistill_lib.memory.layers import block_names, layers_of, red_runs
from redistill_lib.models import create_model, student_name
from redistill_lib.red import RedBlock, insert_blocks, make_in_place
from redistill_lib.sizes import ratio


def inputs(name: str, size: int) -> tuple[torch.Tensor, ...]:
    x = torch.empty(1, 3, size, size, device="meta")
    return (x, torch.empty(1, dtype=torch.int64, device="meta")) if name.startswith("unet") else (x,)


@functools.cache
def networks(name: str, factor: int, size: int) -> Mapping[str, nn.Module]:
    with torch.device("meta"):
        teacher, student = create_model(student_name(name, 1)), create_model(student_name(name, factor))
        taps = match_taps(student, teacher, inputs(name, size))
        blocks = [(tap.layer, tap.side, RedBlock(tap.channels or 0)) for tap in taps]
    red = insert_blocks(copy.deepcopy(student), blocks)
    in_place, _ = make_in_place(red, *inputs(name, size))
    return {"teacher": teacher, "student": student, "red": red, "red in place": in_place}


@functools.cache
def profiled(name: str, factor: int, size: int, **settings: Any) -> Mapping[str, Profile]:
    return {
        role: profile_memory(model, *inputs(name, size), **settings)
        for role, model in networks(name, factor, size).items()
    }


RESNEXT = ("resnext18-1-21222", 4, 128)
CASES = {
    "resnext": (*RESNEXT, "teacher"),
    "red": (*RESNEXT, "red"),
    "in place": (*RESNEXT, "red in place"),
    "unet in place": ("unet", 2, 32, "red in place"),
    "resnet50": ("resnet50", 4, 224, "teacher"),
    "unet": ("unet", 2, 32, "student"),
}


def profile_of(case: str, **settings: Any) -> Profile:
    name, factor, size, role = CASES[case]
    return profiled(name, factor, size, **settings)[role]


def note(figure: go.Figure) -> str:
    return re.sub("<.*?>", " ", figure.layout.title.text.partition("<span")[2])


def texts(figure: go.Figure) -> list[str]:
    return [re.sub("<.*?>", "", annotation.text) for annotation in figure.layout.annotations]


# ----------------------------------------------------------------------------------------------------- timeline


def stacked(figure: go.Figure, at: np.ndarray) -> np.ndarray:
    """The height of the stack at each step: what a trace has no point for is nothing of it."""
    total = np.zeros(len(at))
    for trace in figure.data:
        if trace.stackgroup:
            assert trace.line.shape == "hv"
            values = dict(zip(trace.x, np.asarray(trace.y, float), strict=True))
            total += [values.get(x, 0.0) for x in at]
    return total


@pytest.mark.parametrize("convention", ["fused", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_areas_add_up_to_live_bytes(case: str, convention: str) -> None:
    profile = profile_of(case, convention=convention)
    figure = memory_timeline(profile)
    scale = 2**20 if profile.peak_bytes >= 2**20 else 2**10
    longest = max((trace for trace in figure.data if trace.stackgroup), key=lambda trace: len(trace.x))
    steps = np.asarray(longest.x, float)
    assert len(steps) == len(profile.rows) + 1  # where each begins, and the last one's end
    height = stacked(figure, steps) * scale
    assert height[:-1].tolist() == [row.live_bytes for row in profile.rows]
    assert height[-1] == height[-2]
    hover = figure.data[-1]
    live = dict(zip(((steps[:-1] + steps[1:]) / 2).round(3).tolist(), height, strict=False))
    told = zip(np.asarray(hover.x, float).round(3).tolist(), hover.y, hover.hovertext, strict=True)
    assert all(y * scale == live[x] and f"<br>{format_size(live[x])} alive" in words for x, y, words in told)
    assert profile.peak_bytes == max(hover.y) * scale
    assert len(hover.x) == len(profile.rows) or "in place" in case
    assert len(figure.to_json()) < (150_000 if len(profile.rows) < 1100 else 200_000)


def test_scratch_space_is_part_of_the_stack() -> None:
    with torch.device("meta"):
        model = create_model("mobilenetv2-1-1222121")
    profile = profile_memory(model, torch.empty(1, 3, 32, 32, device="meta"), in_place_depthwise=True)
    assert any(
        row.live_bytes > sum(t.nbytes for t in profile.tensors if t.index in row.alive) for row in profile.rows
    )
    figure = memory_timeline(profile)
    steps = np.asarray(figure.data[-1].x) - 0.5
    scale = 2**20 if profile.peak_bytes >= 2**20 else 2**10
    assert (stacked(figure, steps) * scale).tolist() == [row.live_bytes for row in profile.rows]


@pytest.mark.parametrize("case", ["resnext", "resnet50", "unet"])
def test_the_peak_is_named_where_it_is(case: str) -> None:
    profile = profile_of(case)
    figure = memory_timeline(profile)
    (mark,) = (text for text in texts(figure) if text.startswith("peak"))
    assert mark == f"peak {format_size(profile.peak_bytes)} at {profile.peak_op.module}"
    assert f"{format_size(profile.peak_bytes)} at {profile.peak_op.module}" in headline(figure)
    at = figure.layout.annotations[[text.startswith("peak") for text in texts(figure)].index(True)]
    assert at.x == profile.peak_index + 1
    assert at.y * 2**20 == profile.peak_bytes
    bold = [text for text in figure.layout.xaxis.ticktext if text.startswith("<b>")]
    assert bold == [f"<b>{block_names(profile.rows)[profile.peak_index]}</b>"]


def test_tensors_of_the_peak_are_coloured_by_why_they_are_there() -> None:
    figure = memory_timeline(profile_of("resnext"))
    colours = {trace.name: trace.fillcolor for trace in figure.data if trace.stackgroup and trace.showlegend}
    assert colours["read: conv1 64×128×128, <b>4.00 MiB</b>"] == ROLES["read"][0]
    assert colours["made: maxpool 64×64×64, <b>1.00 MiB</b>"] == ROLES["made"][0]
    names = [trace.name for trace in memory_timeline(profile_of("unet")).data if trace.stackgroup]
    assert any(name.startswith("held: head 128×16×16") for name in names)
    assert any(name.startswith("held: cat 384×16×16") for name in names)


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_reasons_stay_apart(blindness: str) -> None:
    shades = [*(colours[:2] for colours in ROLES.values()), [min(GREYS)]]
    for one, other in itertools.combinations(shades, 2):
        for a, b in itertools.product(one, other):
            assert np.linalg.norm(seen_by(a, blindness) - seen_by(b, blindness)) > 18


def test_an_input_is_read_also_by_the_first_step() -> None:
    profile = profile_memory(nn.Conv2d(3, 8, 3, padding=1), torch.empty(1, 3, 32, 32, device="meta"))
    names = [trace.name for trace in memory_timeline(profile).data if trace.stackgroup]
    assert names[0].startswith("read: the input 3×32×32")
    assert names[1].startswith("made: conv 8×32×32")


def test_what_is_only_held_is_told() -> None:
    assert "held" not in headline(memory_timeline(profile_of("resnext")))
    held = profile_of("unet").peak_op.held_bytes
    assert f"{format_size(held)} of it is only held" in headline(memory_timeline(profile_of("unet")))


def test_bounds_and_the_teacher_are_lines() -> None:
    ours, teacher = profile_of("unet"), profiled("unet", 2, 32)["teacher"]
    bounds = memory_bounds(networks("unet", 2, 32)["student"], *inputs("unet", 32))
    figure = memory_timeline(ours, bounds=bounds, reference=teacher)
    lines = {shape.y0 * 2**20 for shape in figure.layout.shapes if shape.type == "line"}
    assert lines == {bounds.order_bytes, bounds.op_bytes, teacher.peak_bytes} - {ours.peak_bytes}
    assert f"teacher {format_size(teacher.peak_bytes)}" in texts(figure)
    assert f"largest step {format_size(bounds.op_bytes)}" in texts(figure)
    assert f"{teacher.peak_bytes / ours.peak_bytes:.1f}× less than the teacher's" in headline(figure)
    assert figure.layout.yaxis.range[1] * 2**20 > teacher.peak_bytes


def test_red_blocks_are_marked_below_the_axis() -> None:
    profile = profile_of("red")
    assert [block for block, _ in red_runs(profile.rows)] == [1, 8, 13, 17, 22]
    figure = memory_timeline(profile)
    strips = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert [(strip.x0 - 0.5, strip.x1 - 0.5) for strip in strips] == red_runs(profile.rows)
    assert {strip.fillcolor for strip in strips} == {theme.color("red")}
    assert "at RED block after conv1" in headline(figure)


def test_slabs_are_drawn_narrow() -> None:
    profile = profile_of("in place")
    figure = memory_timeline(profile)
    strips = [shape.x1 - shape.x0 for shape in figure.layout.shapes if shape.type == "rect"]
    assert strips == pytest.approx([4.0] * 5, abs=1e-3)


def test_ticks_have_room() -> None:
    for case in CASES:
        figure = memory_timeline(profile_of(case))
        axis = figure.layout.xaxis
        apart = np.diff(axis.tickvals) * 770 / axis.range[1]
        assert apart.min() > 12, case


def test_layers_have_no_timeline() -> None:
    with pytest.raises(ValueError, match="use memory_by_layer"):
        memory_timeline(profile_of("resnext", convention="paper"))


# --------------------------------------------------------------------------------------------------- by layer


def rows_of(*modules: str) -> list[Row]:
    return [Row("op", module, (1, 1), 0, 0, 0, 0) for module in modules]


def test_rows_belong_to_layers() -> None:
    names = block_names(rows_of("conv1", "layer1.0.conv1", "layer1.0", "layer1.1.conv2", "", "fc"))
    assert names == ["conv1", "layer1.0", "layer1.0", "layer1.1", "fc", "fc"]
    assert block_names(rows_of("0", "2", "")) == ["0", "2", "2"]
    assert block_names(rows_of("conv1.after.logit.0", "tail.before.logit.0", "tail.0", "tail.2", "x.0.y")) == [
        "conv1", "tail", "tail", "tail", "x.0",
    ]  # fmt: skip
    assert block_names(rows_of("features.0", "features.1", "features.2", "features.3", "head"))[1] == "features.1"
    assert block_names(rows_of("")) == ["op"]


def test_each_layer_shows_the_most_that_is_alive_in_it() -> None:
    profiles = profiled(*RESNEXT)
    figure = memory_by_layer(profiles)
    names = list(figure.layout.xaxis.ticktext)
    expected: dict[str, int] = {}
    for name, row in zip(block_names(profiles["student"].rows), profiles["student"].rows, strict=True):
        expected[name] = max(expected.get(name, 0), row.live_bytes)
    assert list(expected) == names
    (bar,) = (trace for trace in figure.data if trace.name == "naive student")
    assert [y * 2**20 for y in bar.y] == list(expected.values())
    teacher = figure.data[0]
    assert teacher.name == "teacher"
    assert max(y for y in teacher.y if y is not None) * 2**20 == profiles["teacher"].peak_bytes
    assert len(figure.to_json()) < 40_000


def test_the_title_tells_what_pooling_and_red_do() -> None:
    profiles = profiled(*RESNEXT)
    teacher, student = profiles["teacher"].peak_bytes, profiles["student"].peak_bytes
    title = headline(memory_by_layer(profiles))
    assert title == (
        f"Naive student: the peak is {format_size(student)} at layer1.0, {teacher / student:.1f}× less than the "
        f"teacher ({format_size(teacher)} at maxpool); RED adds nothing to the naive student's"
    )
    other = {"deit": profiles["teacher"], "red": profiles["red"]}  # a larger network between student and RED
    assert headline(memory_bars({"student": profiles["student"], **other})) == (
        f"DeiT: the peak is {format_size(teacher)}, {teacher / student:.1f}× more than the naive student "
        f"({format_size(student)}); RED adds nothing to the naive student's"
    )
    assert headline(memory_bars({**other, "student": profiles["student"]})).endswith("nothing to the naive student's")
    alone = {"teacher": profiles["teacher"], "red-blocks": profiles["red"], "red": profiles["red"]}
    assert "RED adds" not in headline(memory_bars(alone))  # to what, nobody can see
    wide = profiled("resnet50", 4, 224)
    title = headline(memory_by_layer(wide))
    assert title.endswith(f"; student + RED {format_size(wide['red'].peak_bytes)} at layer2.0")  # not in place


def test_what_red_blocks_need_is_hatched_on_top() -> None:
    profiles = profiled("resnet50", 4, 224)
    figure = memory_by_layer(profiles)
    (added,) = (trace for trace in figure.data if trace.name.startswith("what its RED block"))
    tops = [(base + y) * 2**20 for base, y in zip(added.base, added.y, strict=True)]
    assert max(tops) == profiles["red"].peak_bytes == layers_of(profiles["red"])["layer2.0"]
    assert {base * 2**20 for base in added.base} <= set(layers_of(profiles["student"]).values())
    assert added.marker.color == theme.color("red")
    assert format_size(profiles["red"].peak_bytes) in texts(figure)


def test_published_values_are_those_of_the_csv() -> None:
    frame = rd.published("footprints")
    published = published_footprints(frame, "stl10-MobileNetV2")
    csv = frame[(frame["panel"] == "stl10-MobileNetV2") & (frame["role"] == "student")]
    assert published["student"] == csv.sort_values("index")["mib"].tolist()
    profiles = dict(profiled("mobilenetv2-1-1222121", 8, 128, convention="paper"))
    del profiles["red in place"]
    figure = memory_by_layer(profiles, published=published)
    theirs = (trace for trace in figure.data if trace.name.endswith(", published"))
    overlay = {trace.name: [y / 2**20 for y in trace.y] for trace in theirs}
    assert overlay == {f"{role_name(role)}, published": values for role, values in published.items()}
    assert all("-open" in trace.marker.symbol for trace in figure.data if trace.name.endswith(", published"))
    count = sum(map(len, published.values()))
    assert f"{count} of {count} equal to ours to the byte" in note(figure)
    published["teacher"][0] += 1
    assert f"{count - 1} of {count} equal" in note(memory_by_layer(profiles, published=published))
    with pytest.raises(ValueError, match="17 published values for the 18 layers of the teacher"):
        memory_by_layer(profiles, published={"teacher": published["teacher"][1:]})
    with pytest.raises(ValueError, match="profile with convention='paper'"):
        memory_by_layer(profiled("mobilenetv2-1-1222121", 8, 128), published=published)
    with pytest.raises(ValueError, match="choose from stl10-MobileNetV2"):
        published_footprints(frame, "MobileNetV2")


def test_red_is_told_apart_under_the_paper_convention_too() -> None:
    profiles = profiled("mobilenetv2-1-1222121", 8, 128, convention="paper")
    figure = memory_by_layer({role: profiles[role] for role in ("teacher", "student", "red")})
    (added,) = (trace for trace in figure.data if trace.name.startswith("what its RED block"))
    (top,) = (base + y for base, y in zip(added.base, added.y, strict=True))
    (row,) = (row for row in profiles["red"].rows if row.module == "features.2")
    assert top == row.live_bytes


def test_a_student_of_a_tenth_can_still_be_read() -> None:
    """MobileNetV2 at ×8 needs 1/14.8: on a linear axis its bars are a line."""
    profiles = profiled("mobilenetv2-1-1222121", 8, 128)
    figure, axis = memory_by_layer(profiles), memory_by_layer(profiles).layout.yaxis
    sizes = [size for profile in profiles.values() for size in layers_of(profile).values()]
    assert axis.type == "log" and axis.range[0] < np.log10(min(sizes)) < np.log10(max(sizes)) < axis.range[1]
    assert "512 KiB" in axis.ticktext or "256 KiB" in axis.ticktext
    (peak,) = (each for each in figure.layout.annotations if each.text == "<b>7.50 MiB</b>")
    assert 10**peak.y == pytest.approx(profiles["teacher"].peak_bytes)
    assert texts(figure).count("520 KiB") == 1  # that of student and RED at one place
    assert memory_by_layer(profiled(*RESNEXT)).layout.yaxis.type is None


def test_unlike_profiles_are_refused() -> None:
    a, b = profile_of("resnext"), profile_of("resnext", convention="eager")
    with pytest.raises(ValueError, match="one convention and dtype, not eager, fp32 and fused, fp32"):
        memory_by_layer({"teacher": a, "student": b})
    for function in (memory_by_layer, memory_bars):
        with pytest.raises(ValueError, match="needs at least one profile"):
            function({})


def test_networks_without_plans_and_with_other_layers_fit_too() -> None:
    x = torch.empty(1, 3, 32, 32, device="meta")
    a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1))
    b = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 1, 1))
    figure = memory_by_layer({"teacher": profile_memory(a, x), "student": profile_memory(b, x)})
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2"]
    assert list(figure.data[0].x) == [0, 1]  # nothing where the teacher has no layer
    assert headline(figure).startswith("Naive student: the peak is 20.0 KiB at layer 0, 2.2× less than the teacher")
    alone = memory_by_layer({"student": profile_memory(b, x)})
    assert headline(alone) == "Naive student: the peak is 20.0 KiB at layer 0"
    same = memory_by_layer({"teacher": profile_memory(a, x), "student": profile_memory(a, x)})
    assert (
        headline(same)
        == "Naive student: the peak is 44.0 KiB at layer 0, about as much as the teacher (44.0 KiB at layer 0)"
    )


# ---------------------------------------------------------------------------------------------- bars and table


def test_bars_are_peaks_with_weights_beside() -> None:
    profiles = profiled(*RESNEXT)
    figure = memory_bars(profiles)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.x[0] * 2**20 for bar in bars] == [profile.peak_bytes for profile in profiles.values()]
    assert [bar.marker.color for bar in bars] == [theme.color(role) for role in profiles]
    for profile in profiles.values():
        assert format_size(profile.weight_bytes) in texts(figure)
    assert "6.7× less than the teacher" in headline(figure)
    assert figure.layout.showlegend is False


def test_bounds_are_marked_where_they_differ_from_the_peak() -> None:
    profiles, models = profiled("unet", 2, 32), networks("unet", 2, 32)
    bounds = {role: memory_bounds(models[role], *inputs("unet", 32)) for role in ("teacher", "student")}
    figure = memory_bars(profiles, bounds)
    marks = {trace.name: trace for trace in figure.data if trace.type == "scatter"}
    steps = marks["largest step: its input and output"]
    assert [x * 2**20 for x in steps.x] == [limit.op_bytes for limit in bounds.values()]
    assert list(steps.y) == [0, 1]
    assert figure.layout.showlegend
    same = [limit.in_place_depthwise_bytes == profiles[role].peak_bytes for role, limit in bounds.items()]
    assert ("depthwise convolutions in place" in marks) is not all(same)


def test_the_table_has_our_numbers_and_torchinfos() -> None:
    import torchinfo

    torch.manual_seed(0)
    model = create_model("resnet18", width=0.25)
    x = torch.zeros(1, 3, 64, 64)
    profile = profile_memory(model, x)
    found = torchinfo.summary(model, input_data=x, verbose=0)
    table = memory_table({"student": profile, "red": profile_of("red")}, torchinfo={"student": found})
    first, second = table.to_dict("records")
    weights = f"{sum(p.numel() for p in model.parameters()):,}"
    assert first["parameters"] == f"{found.total_params:,}" == weights
    ours, theirs = (float(first[name].removesuffix(" M")) for name in ("multiply-adds", "torchinfo: mult-adds"))
    assert ours == pytest.approx(profile.flops / 2e6, rel=0.01) == pytest.approx(theirs, rel=0.02)
    assert first["peak"] == format_size(profile.peak_bytes)
    assert first["where"] == profile.peak_op.module
    assert first["steps"] == len(profile.rows)
    assert first["torchinfo: all outputs"] == format_size(found.total_output_bytes)
    assert second["role"] == "student + RED"
    assert pd.isna(second["torchinfo: mult-adds"])
    assert "torchinfo: mult-adds" not in memory_table({"student": profile})
    assert "steps" not in memory_table({"teacher": profile_of("resnext", convention="paper")})


def test_a_ratio_is_never_rounded_to_nothing() -> None:
    assert [ratio(10, 4), ratio(4, 5), ratio(100, 99.8), ratio(199.6, 100)] == [
        "2.5× less than", "1.25× more than", "about as much as", "2.0× less than",
    ]  # fmt: skip
