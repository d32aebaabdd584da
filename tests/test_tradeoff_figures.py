"""Figures of trade-offs: every point where it belongs, no two marks alike, words that say what is drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest
from test_tradeoffs import KB, made

from redistill_lib.figures import tradeoff_choices, tradeoff_curves, tradeoffs
from redistill_lib.figures.placing import name_places
from redistill_lib.figures.tradeoffs import OUT, shapes_of
from redistill_lib.looks import color, colors
from redistill_lib.tradeoffs import Tradeoffs, read_tradeoffs
from redistill_lib.tradeoffs.result import SHARE, Dtype, role


@pytest.fixture(scope="module")
def everything() -> Tradeoffs:
    return read_tradeoffs(published=True)


def points(figure: go.Figure) -> dict[str, dict[str, Any]]:
    """Each point's place and look, by name, of the traces that have hover texts."""
    found = {}
    for trace in figure.data:
        if trace.customdata is not None and trace.text is not None:
            for k, name in enumerate(trace.customdata):
                look = trace.marker.color[k], trace.marker.symbol[k]
                half = trace.error_y.array[k]
                found[name] = {"x": trace.x[k], "y": trace.y[k], "look": look, "half": half, "text": trace.text[k]}
    return found


def test_points_stand_at_their_peak_and_score() -> None:
    result = made(("a", 4, 80.0, 1.0), ("b", 16, 90.0, 2.0))
    found = points(tradeoffs(result))
    assert (found["a"]["x"], found["a"]["y"], found["a"]["half"]) == (4 * KB, 80.0, 1.0)
    assert points(tradeoffs(result, dtype="int8"))["b"]["x"] == 4 * KB
    assert "quarter of the bytes" in tradeoffs(result, dtype="int8").layout.title.text


def test_what_does_not_fit_is_grey_and_the_best_that_does_is_ringed() -> None:
    result = made(("a", 4, 80.0, 1.0), ("b", 8, 85.0, 1.0), ("c", 16, 90.0, 2.0))
    figure = tradeoffs(result, "8KB", chosen="a")
    found = points(figure)
    assert [found[name]["look"][0] == OUT for name in "abc"] == [False, False, True]
    assert math.isnan(found["c"]["half"])
    rings = [trace for trace in figure.data if trace.marker.symbol == "circle-open" and trace.hoverinfo == "skip"]
    assert [(ring.x[0], ring.y[0]) for ring in rings] == [(8 * KB, 85.0), (4 * KB, 80.0)]
    assert {text.text for text in figure.layout.annotations} >= {"<b>8 KiB</b>", "a", "b", "c"}
    line = next(shape for shape in figure.layout.shapes if shape.type == "line")
    assert line.x0 == 8 * KB
    without = tradeoffs(result, "1KB")
    assert not any(len(trace.x) and trace.hoverinfo == "skip" and trace.mode == "markers" for trace in without.data)


def test_what_cannot_be_drawn_is_told() -> None:
    result = made(("a", 4, 80.0, 1.0), ("b", 8, 85.0, 1.0))
    with pytest.raises(ValueError, match="there is no point 'c'; there are a and b"):
        tradeoffs(result, "8KB", chosen="c")
    for draw in (tradeoffs, tradeoff_choices):
        with pytest.raises(ValueError, match="dtype='int4' is not"):
            draw(result, "8KB", "int4")  # type: ignore[arg-type]


def test_bubbles_have_the_area_of_multiply_adds(everything: Tradeoffs) -> None:
    panel = everything.panel("cifar10")
    bubbles = [trace for trace in tradeoffs(panel).data if trace.marker.sizemode == "area"]
    sizes = {name: size for trace in bubbles for name, size in zip(trace.customdata, trace.marker.size, strict=True)}
    assert sizes == dict(zip(panel.frame["name"], panel.frame["multiply_adds"], strict=True))
    assert len({trace.marker.sizeref for trace in bubbles}) == 1


def test_the_front_is_a_stair(everything: Tradeoffs) -> None:
    panel = everything.panel("imagenet")
    front = next(trace for trace in tradeoffs(panel).data if trace.name == "Pareto front")
    assert list(front.y) == panel.front()["score"].tolist() and front.line.shape == "hv"


@pytest.mark.parametrize("name", ["cifar10", "digits: FID", "imagenet", "stl10"])
def test_no_two_marks_are_alike(everything: Tradeoffs, name: str) -> None:
    frame = everything.panel(name).frame
    tones, shapes = colors(frame.apply(role, axis=1)), shapes_of(frame)
    assert len(set(tones.values())) == len(tones) and len(set(shapes.values())) == len(shapes)
    assert OUT not in tones.values()
    assert all(tones[role] == color(role) for role in ("teacher", "student", "red", "kd") if role in tones)


def test_lower_is_better_is_drawn_above(everything: Tradeoffs) -> None:
    low, high = tradeoffs(everything.panel("digits: FID")).layout.yaxis.range
    assert low > high


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_points_and_budget_stand_where_they_are(everything: Tradeoffs, dtype: Dtype) -> None:
    for name in everything.panels:
        panel = everything.panel(name)
        figure = tradeoffs(panel, panel.middle_budget(dtype), dtype)
        need = panel.frame.set_index("name")["peak_bytes"] * SHARE[dtype]
        assert {name: point["x"] for name, point in points(figure).items()} == need.to_dict()
        lines = [shape.x0 for shape in figure.layout.shapes if shape.type == "line"]
        assert lines in ([], [panel.middle_budget(dtype)])
        widths = [trace.error_y.width for trace in figure.data if trace.error_y.array is not None]
        assert len(set(widths)) == len(widths)  # intervals of one peak lie on one line


def test_places_of_names() -> None:
    assert [place and place.anchor for place in name_places([(50, 50)], [200], 120, 100)] == [None]
    led = name_places([(50, 50), (66, 50), (50, 66), (50, 34), (34, 50)], [20] * 5, 200, 200)
    assert led[0] is not None and led[0].led


def test_hover_and_note_name_what_is_drawn(everything: Tradeoffs) -> None:
    figure = tradeoffs(everything.panel("cifar10"), "16KB")
    text = points(figure)["small"]["text"]
    assert "66.4 ± 0.8, 3 seeds" in text and "resnet18-2-21122 ×0.25 at 24 px" in text and "15.75 KiB at peak" in text
    title = figure.layout.title.text
    assert "Data: cifar10, 3 seeds; peaks: “fused”" in title and "95 % intervals" in title
    assert "best epoch on test" in tradeoffs(everything.panel("stl10")).layout.title.text.replace("<br>", " ")
    assert figure.layout.xaxis.type == "log" and "16 KiB" in figure.layout.xaxis.ticktext


def test_several_panels_are_refused(everything: Tradeoffs) -> None:
    for draw in (tradeoffs, tradeoff_choices):
        with pytest.raises(ValueError, match="cannot be compared"):
            draw(everything)


def test_curves_of_a_point(everything: Tradeoffs) -> None:
    panel = everything.panel("cifar10")
    figure = tradeoff_curves(panel, "late")
    own = [trace for trace in figure.data if trace.legendgroup == "own"]
    assert len(own) == 3 and all(trace.x[-1] <= 300 for trace in own)
    ends = sorted(float(trace.y[-1]) for trace in own)
    assert f"ends at {ends[0]:.1f} to {ends[-1]:.1f} % on validation" in figure.layout.title.text
    sweep = everything.panel(
        "cluttered, 60 seconds"
    )  # each seed took other seconds: the mean is over epochs, in their order
    for trace in tradeoff_curves(sweep, "teacher").data:
        assert list(trace.x) == sorted(trace.x)
    assert len(tradeoff_curves(sweep, "naive 4-11221").data[0].x) == 12  # the teacher's epochs
    with pytest.raises(ValueError, match="no curve of “MSE” is kept"):
        tradeoff_curves(everything.panel("digits: FID"), "MSE")
    with pytest.raises(ValueError, match=r"there is no point 'lat'; .* did you mean"):
        tradeoff_curves(panel, "lat")


def test_choices_have_an_axis_for_what_differs(everything: Tradeoffs) -> None:
    figure = tradeoff_choices(everything.panel("cifar10"), "16KB")
    axes = {axis.label: axis for axis in figure.data[0].dimensions}
    assert [*axes] == [
        "plan", "images", "first weights", "width", "method", "weights", "mult-adds", "peak", "accuracy (%)",
    ]  # fmt: skip
    assert axes["peak"].constraintrange[1] == pytest.approx(14.01)  # 2¹⁴ bytes
    assert "architecture resnet18" in figure.layout.title.text.replace("<br>", " ")
    assert "The best 2 of 7 that fit on cifar10 share width ×0.25" in figure.layout.title.text
    plans = [axes["plan"].ticktext[int(k)] for k in axes["plan"].values]
    assert plans == everything.panel("cifar10").frame["model"].str.partition("-")[2].tolist()
    alone = tradeoff_choices(made(("a", 4, 80.0, 1.0), ("b", 8, 85.0, 1.0)))
    assert "2 points fit on cluttered: too few" in alone.layout.title.text


def test_choices_of_ones_own_networks_are_told_by_their_factor() -> None:
    """Their names have no plan; the two that score best of six are both ×2."""
    points = [(f"p{k}", 4 + k, score, 1.0) for k, score in enumerate((90.0, 89.0, 70.0, 71.0, 72.0, 73.0))]
    result = made(*points, model="Net")
    frame = result.frame.assign(factor=[2, 2, 4, 4, 8, math.nan], method=["student"] * 5 + ["teacher"])
    figure = tradeoff_choices(replace(result, frame=frame))
    assert "The best 2 of 6 on cluttered share plan ×2" in figure.layout.title.text
    (plan,) = (axis for axis in figure.data[0].dimensions if axis.label == "plan")
    assert [plan.ticktext[int(k)] for k in plan.values] == ["×2", "×2", "×4", "×4", "×8", "×1"]
    nothing_known = tradeoff_choices(result).layout.title.text.replace("<br>", " ")
    assert "plan" not in nothing_known and "architecture Net, images 40 px" in nothing_known


def test_names_are_escaped() -> None:
    figure = tradeoffs(made(("a<b>", 4, 80.0, 1.0), ("c", 8, 85.0, 1.0)), "4KB")
    assert "a&lt;b&gt;" in figure.layout.title.text
    assert "a&lt;b&gt;" in [text.text for text in figure.layout.annotations]


def test_intervals_are_shown_whole_or_said_to_be_cut() -> None:
    whole = tradeoffs(made(("a", 4, 80.0, 5.0), ("b", 8, 81.6, 5.0)))
    low, high = whole.layout.yaxis.range
    assert low < 75.0 and high > 86.6 and "cut at the edge" not in whole.layout.title.text
    cut = tradeoffs(made(("a", 4, 80.0, 40.0), ("b", 8, 81.6, 5.0)))
    assert "some cut at the edge" in cut.layout.title.text.replace("<br>", " ")


def test_intervals_of_two_seeds_stretch_nothing_and_leave_what_can_be() -> None:
    """Lines end at 0 and 100 %, the axis once as far beyond the points as these lie apart."""
    figure = tradeoffs(made(("a", 4, 90.0, 135.0), ("b", 8, 86.0, 5.0), seeds=2))
    low, high = figure.layout.yaxis.range
    assert 81 < low < 86 and 94 < high < 95
    ends = next(trace.error_y for trace in figure.data if trace.error_y.array is not None)
    assert list(ends.array) == [10.0, 5.0] and list(ends.arrayminus) == [90.0, 5.0]
