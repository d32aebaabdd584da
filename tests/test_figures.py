"""Figures: titles that state what the data say, one colour per role, small JSON, nothing but plotly."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from test_results import runs
from torch import nn

from redistill_lib import figures
from redistill_lib.distill import Tap, match_taps
from redistill_lib.figures import headline, theme
from redistill_lib.figures.diagrams import map_sides
from redistill_lib.maps import MapComparison
from redistill_lib.methods import METHODS
from redistill_lib.models import create_model
from redistill_lib.network import find_resolutions
from redistill_lib.plans import StridePlan
from redistill_lib.results import interval, label, summarize
from redistill_lib.student import derive_student

ROLES = ["teacher", "student", "kd", "red", "red+kd", "red-blocks", "red-blocks+kd"]
RNG = np.random.default_rng(0)


def note(figure: go.Figure) -> str:
    return re.sub("<.*?>", " ", figure.layout.title.text.partition("<span")[2])


def comparison(side: int = 20, ours: int = 10, score: float = 0.414, **changes: object) -> MapComparison:
    teacher, student = (RNG.random((s, s), dtype=np.float32) for s in (side, ours))
    image = RNG.integers(0, 256, (40, 40, 1), dtype=np.uint8)
    place = "layer1 output"
    known = MapComparison(image, teacher, student, place, place, score, score / 2, None, 16, 16, 4)
    return replace(known, **changes)  # type: ignore[arg-type]


def test_figures_take_results_and_run_no_network() -> None:
    rooms = {"network", "student", "distill", "red", "train", "methods"}
    for file in Path(figures.__file__).parent.glob("*.py"):
        code = file.read_text(encoding="utf-8")
        for names in ("network import MapRef, Resolutions, Step", "distill import Tap"):  # results
            code = code.replace(f"from redistill_lib.{names}\n", "")
        found = re.findall(r"(?:from|import) redistill_lib\.(\w+)", code)
        assert not rooms & set(found), file.name


# ------------------------------------------------------------------------------------------------------- theme


def seen_by(hex_color: str, blindness: str) -> np.ndarray:
    """A colour in CIE Lab, as somebody with a severe dichromacy sees it (Machado et al. 2009, severity 1)."""
    matrices = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    rgb = np.array([int(hex_color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(matrices[blindness]) @ linear, 0, 1)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ linear
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_colours_stay_apart(blindness: str) -> None:
    colors = {role: seen_by(theme.color(role), blindness) for role in ROLES}
    near = {pair: np.linalg.norm(colors[pair[0]] - colors[pair[1]]) for pair in itertools.combinations(ROLES, 2)}
    assert min(near.values()) > 18, min(near, key=lambda pair: near[pair])
    assert all(value[0] < 80 for value in colors.values())  # against white


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_every_method_has_its_own_look(blindness: str) -> None:
    looks = {role: theme.look(role) for role in dict.fromkeys([*ROLES, "red+mse", "red-loss+kd", *METHODS])}
    for (one, (tone, symbol)), (other, (tone2, symbol2)) in itertools.combinations(looks.items(), 2):
        if symbol == symbol2:
            assert np.linalg.norm(seen_by(tone, blindness) - seen_by(tone2, blindness)) > 18, (one, other)
    unknown = theme.look("no such method")
    assert unknown == theme.look("no such method") and unknown[1] not in [symbol for _, symbol in looks.values()]


def test_every_method_has_a_name_as_its_paper_writes_it() -> None:
    names = {name: label(name) for name in METHODS}
    assert not [name for name in METHODS if names[name] == name]
    assert len(set(names.values())) == len(METHODS)
    assert [names[name] for name in ("at", "ls-kd", "reviewkd", "fitnet", "dist", "rkd")] == [
        "AT", "LS-KD", "ReviewKD", "FitNet", "DIST", "RKD",
    ]  # fmt: skip
    assert label("at+kd") == "AT + KD"


@pytest.mark.parametrize(
    ("told", "plain"),
    [("red(alpha=0.5)", "red"), ("kd(temperature=4.0)", "kd"), ("kd(temperature=4.0) + red(alpha=0.5)", "red+kd")],
)
def test_a_method_with_options_looks_as_the_method(told: str, plain: str) -> None:
    assert theme.look(told) == theme.look(plain)
    row = {"tap": "a output", "teacher_tap": "b output", "student": told, "score": 0.9, "low": 0.8, "high": 1.0}
    (dots,) = figures.tap_scores(pd.DataFrame([{**row, "n": 8}])).data
    assert dots.marker.color == theme.color(plain) and dots.name == label(told) != label(plain)
    two = theme.colors(["red(alpha=0.5)", "red(alpha=5.0)"])  # in one figure they are told apart
    assert two["red(alpha=0.5)"] == theme.color("red") != two["red(alpha=5.0)"]


def test_unknown_names_of_one_figure_have_different_colours() -> None:
    names = [f"patch {k}" for k in (8, 4, 5, 10, 20)]
    assert len({theme.color(name) for name in names}) < len(names)  # by themselves some are alike
    found = theme.colors(["teacher", *names])
    assert len(set(found.values())) == len(names) + 1 and found["teacher"] == theme.color("teacher")
    several = theme.colors(["mine", *METHODS])  # what is known comes first; blue, orange and 14 others
    assert len(set(several.values())) == 2 + 14 and several["kd"] == theme.color("kd")


def test_roles_have_one_spelling_one_colour_and_a_name() -> None:
    assert theme.color("naive") == theme.color("student")
    assert theme.color("kd+red") == theme.color("RED+KD")
    assert theme.color("fitnet") == theme.color("fitnet") not in [theme.color(r) for r in (*ROLES, "red+mse")]
    assert [label(role) for role in ROLES] == [
        "teacher", "naive student", "KD", "RED", "RED + KD", "RED blocks", "RED blocks + KD",
    ]  # fmt: skip
    assert label("untrained") == "untrained"


def test_long_titles_make_room_for_themselves() -> None:
    short = theme.finish(go.Figure(), "A finding", plot=100)
    long = theme.finish(go.Figure(), "A finding of RED + KD at 85.4 % " * 12, plot=100)
    lines = long.layout.title.text.split("<br>")
    assert len(lines) > 2
    assert not any(re.search(r"\+</b>$|^<b>[+%]", line) for line in lines)
    for figure in (short, long):
        assert figure.layout.height - figure.layout.margin.t - figure.layout.margin.b == 100
    assert long.layout.margin.t - short.layout.margin.t == theme.LINE * (len(lines) - 1)


def test_titles_break_evenly_and_not_inside_brackets() -> None:
    words = "The difference from what the teacher sees is 0.90 (naive), 0.80 (RED + KD) and 0.70 (MSE + KD) at t = 9"
    first, second = theme.finish(go.Figure(), words, plot=100).layout.title.text.split("<br>")
    assert len(second) > 30
    assert first.count("(") == first.count(")") and not second.startswith(("<b>(", "<b>="))
    names = theme.finish(go.Figure(), "RED blocks + KD 0.92, " * 12, plot=100).layout.title.text
    assert all(line.startswith("<b>RED blocks + KD 0.92") for line in names.split("<br>"))


# ------------------------------------------------------------------------------------------------------- maps


def test_feature_maps_say_what_pooling_did() -> None:
    figure = figures.feature_maps(comparison())
    expected = "At stride ×4 the student's map has 10×10 pixels, the teacher's 20×20: correlation 0.41"
    assert headline(figure) == expected
    assert [trace.type for trace in figure.data] == ["image", "heatmap", "heatmap"]
    assert "after resizing" in note(figure)
    assert "mean over channels" in note(figure)
    heads = [a.text for a in figure.layout.annotations]
    assert "20×20" in heads[1]
    assert "correlation <b>0.41</b>" in heads[2]


def test_maps_of_unequal_size_cover_the_same_image() -> None:
    figure = figures.feature_maps(comparison())
    top = figure.data[0].y0 - figure.data[0].dy / 2
    for trace in figure.data[1:]:
        cells = trace.z.shape[0]
        assert trace.y0 - trace.dy / 2 == top
        assert trace.y0 + (cells - 0.5) * trace.dy == top + 40
    assert [trace.z.shape for trace in figure.data[1:]] == [(20, 20), (10, 10)]


def test_strength_is_disregarded_but_level_is_not() -> None:
    m = RNG.random((10, 10), dtype=np.float32)
    louder = figures.feature_maps(comparison(teacher=m, student=7 * m))
    np.testing.assert_array_equal(louder.data[1].z, louder.data[2].z)
    lifted = figures.feature_maps(comparison(teacher=m, student=m + 5))
    assert lifted.data[2].z.std() < lifted.data[1].z.std() / 4
    flat = figures.feature_maps(
        comparison(teacher=np.zeros((4, 4), np.float32), student=np.zeros((4, 4), np.float32))
    )
    assert not flat.data[1].z.any()


def test_students_of_one_map_share_a_row() -> None:
    first = comparison(10, score=-0.4)
    both = figures.feature_maps({"naive": first, "red": replace(first, score=0.976)})
    assert headline(both) == "At stride ×4 correlation with the teacher's map is −0.40 (naive student) and 0.98 (RED)"
    assert len(both.data) == 4
    other = comparison(5, 5, teacher_place="layer3.0 output", label="red")
    grid = figures.feature_maps([replace(first, label="red"), other])
    assert len(grid.data) == 6
    assert headline(grid) == "At stride ×4 mean correlation with the teacher's maps is 0.01 (RED)"
    three = figures.feature_maps({"untrained": first, "kd": first, "red": replace(first, score=0.9)})
    assert headline(three).endswith("is −0.40 (untrained), −0.40 (KD) and 0.90 (RED)")
    square = figures.feature_maps([replace(c, label=role) for role in ("naive", "red") for c in (first, other)])
    assert len(square.data) == 8
    assert (
        headline(square)
        == "At stride ×4 mean correlation with the teacher's maps is 0.01 (naive student) and 0.01 (RED)"
    )
    with pytest.raises(ValueError, match="at least one"):
        figures.feature_maps([])


@pytest.mark.parametrize("side", [40, 128, 224])
def test_map_figures_stay_small(side: int) -> None:
    image = RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)  # noise: the worst case for PNG and JPEG
    figure = figures.feature_maps([comparison(side, side // 4, image=image)] * 2)
    assert len(figure.to_json()) < 60_000


def test_tap_scores_name_both_places_and_the_means() -> None:
    rows = [
        {"tap": f"layer{k} output", "teacher_tap": f"layer{k + 1} output", "student": role, "score": score}
        for k in (1, 2)
        for role, score in (("naive", 0.6), ("red", 0.97))
    ]
    frame = pd.DataFrame(rows).assign(low=0.5, high=1.0, n=20)
    figure = figures.tap_scores(frame)
    assert headline(figure) == "Mean correlation with the teacher's maps: RED 0.97, naive student 0.60"
    assert figure.layout.yaxis.ticktext[0] == "<b>layer1 output</b><br>← teacher's layer2 output"
    assert [trace.marker.color for trace in figure.data] == [theme.color("naive"), theme.color("red")]
    worse = frame.assign(score=[0.9, 0.5, 0.9, 0.5])
    assert headline(figures.tap_scores(worse)).endswith("naive student 0.90, RED 0.50")


# ---------------------------------------------------------------------------------------------------- trainings


def history(top: float, epochs: int = 4) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    return pd.DataFrame({"epoch": epoch, "validation_accuracy": top * epoch / epochs, "train_task": 2.3 / epoch})


def test_curves_share_colours_between_panels() -> None:
    histories = {"teacher": history(0.93), "naive": history(0.78), "red": history(0.84), "kd": pd.DataFrame()}
    figure = figures.curves(histories)
    assert headline(figure) == "Best on validation: teacher 93.0 %, RED 84.0 %, naive student 78.0 %"
    assert len(figure.data) == 12
    for role, k in (("teacher", 0), ("red", 6)):
        assert {figure.data[k].line.color, figure.data[k + 2].line.color} == {theme.color(role)}
    assert figure.data[7].x == (4,)  # the epoch kept
    assert max(figure.data[6].y) == pytest.approx(84)
    assert headline(figures.curves({"teacher": pd.DataFrame()})) == "Waiting for the first epoch"


# --------------------------------------------------------------------------------------------------- comparison


def test_accuracies_show_seeds_teacher_and_gap() -> None:
    figure = figures.accuracies(runs(teacher=0.9, naive=[0.7, 0.8], red=[0.85, 0.87]))
    assert headline(figure) == summarize(runs(teacher=0.9, naive=[0.7, 0.8], red=[0.85, 0.87])).headline()
    big = [trace for trace in figure.data if trace.marker.size == 14]
    assert [trace.name for trace in big] == ["RED", "naive student"]
    assert big[0].error_x.array[0] == pytest.approx(interval([85, 87]).half)
    assert "recovers 73 % of the gap" in big[0].hovertemplate
    assert sorted(figure.data[0].x) == pytest.approx([85, 87])
    assert figure.layout.shapes[0].x0 == pytest.approx(90)
    assert "One run per method" in note(figures.accuracies(runs(naive=0.7, red=0.8)))


# ------------------------------------------------------------------------------------------ images and diagrams


def test_images_are_laid_out_with_their_captions() -> None:
    images = RNG.integers(0, 256, (10, 3, 12, 12), dtype=np.uint8)
    figure = figures.images(images, range(10), title="Ten", columns=4)
    assert headline(figure) == "Ten"
    assert [a.text for a in figure.layout.annotations] == [str(k) for k in range(10)]
    corners = {(trace.x0, trace.y0) for trace in figure.data}
    assert len(corners) == 10
    assert len({x for x, _ in corners}) == 4
    with pytest.raises(ValueError, match="10 images but 2 captions"):
        figures.images(images, ["a", "b"])
    with pytest.raises(ValueError, match="uint8, N×C×H×W"):
        figures.images(images.astype(float))


def test_stride_plans_find_where_resolution_goes() -> None:
    models = {"teacher": "resnet18-1-21222", "student": "resnet18-4-11221"}
    figure = figures.stride_plans(models, 40)
    expected = (
        "The naive student works on 10×10 maps from its conv1 on, where the teacher still has 40×40; both end at 3×3"
    )
    assert headline(figure) == expected
    plan = StridePlan.parse("4-11221")
    assert [c[1] for c in figure.data[1].customdata] == map_sides(plan, 40) == [40, 10, 10, 10, 5, 3, 3]
    same = figures.stride_plans(dict.fromkeys(models, "resnet18"), 8)
    assert headline(same) == "Teacher and naive student drop resolution at the same places"


def test_resolutions_of_any_networks_share_an_axis() -> None:
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1))
    image = torch.zeros(1, 3, 64, 64)
    student, _ = derive_student(teacher, 2, example=image)
    figure = figures.resolutions(
        {"teacher": find_resolutions(teacher, image), "naive": find_resolutions(student, image)}
    )
    assert list(figure.layout.xaxis.ticktext) == ["image", "0", "1", "2"]
    assert [row[1:] for row in figure.data[0].customdata] == [[64, 1], [32, 2], [16, 2], [8, 2]]
    assert [row[1:] for row in figure.data[1].customdata] == [[64, 1], [16, 4], [8, 2], [8, 1]]
    assert "works on 16×16 maps from its 0 on, where the teacher still has 32×32" in headline(figure)


def test_taps_are_arrows_between_maps_of_one_size() -> None:
    image = torch.zeros(1, 1, 40, 40)
    student, teacher = (
        create_model(name, width=0.125, in_channels=1) for name in ("resnet18-4-11221", "resnet18-1-21222")
    )
    pairs = match_taps(student, teacher, image)
    found = {"teacher": find_resolutions(teacher, image), "student": find_resolutions(student, image)}
    figure = figures.taps(*found.values(), pairs)
    assert headline(figure) == "5 taps pair maps of one size, which the student has earlier than its teacher"
    bars = dict(zip(found, figure.data, strict=True))
    assert [*bars["teacher"].hovertext] == ["40×40", "20×20", "10×10", "5×5", "3×3"]
    assert [*bars["student"].hovertext] == ["40×40", "10×10", "5×5", "3×3"]

    def size(role: str, place: float) -> str:
        return [text for start, text in zip(bars[role].base, bars[role].hovertext, strict=True) if start < place][-1]

    arrows = [note for note in figure.layout.annotations if note.showarrow]
    assert [size("teacher", arrow.ax) for arrow in arrows] == [size("student", arrow.x) for arrow in arrows]
    assert [arrow.hovertext for arrow in arrows] == [repr(tap) for tap in pairs]
    names = [note.text for note in figure.layout.annotations if not note.showarrow]
    assert names[:2] == ["layer2.0", "before layer3.0"] and names[5:7] == ["conv1", "before layer2.0"]
    late = figures.taps(found["student"], found["teacher"], [Tap("layer2.0", "output", "conv1", "output")])
    assert headline(late) == "1 tap pairs maps of one size"


def test_the_title_of_resolutions_is_true_of_one_network_and_of_unlike_ends() -> None:
    image = torch.zeros(1, 3, 64, 64)
    found = find_resolutions(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(4)), image)
    assert headline(figures.resolutions(found)) == "The network drops most resolution at its 1: 32×32 → 8×8"
    assert headline(figures.resolutions({"my net": found})).startswith("My net drops most resolution at its 1")
    flat = find_resolutions(nn.Conv2d(3, 8, 3, 1, 1), image)
    assert headline(figures.resolutions(flat)) == "The network works on 64×64 maps throughout"
    patches = {f"×{k}": nn.Conv2d(3, 8, 8 * k, 8 * k) for k in (1, 2)}
    figure = figures.resolutions({role: find_resolutions(net, image) for role, net in patches.items()})
    assert "works on 4×4 maps" in headline(figure) and headline(figure).endswith("where ×1 has 8×8")
    assert "strided layer or pool" in figure.layout.title.text
    slow, fast = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2)), nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1))
    figure = figures.resolutions({"a": find_resolutions(slow, image), "b": find_resolutions(fast, image)})
    assert headline(figure).endswith("where a still has 32×32; they end at 8×8 and 16×16")


def test_resolutions_of_a_way_up_are_in_the_order_of_the_pass() -> None:
    """Steps that no module makes are told by the modules around them; the student's last layer comes last."""

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e1, self.e2, self.e3 = (nn.Conv2d(i, 8, 3, 1, 1) for i in (3, 8, 8))
            self.d2, self.out = nn.Conv2d(16, 8, 3, 1, 1), nn.Conv2d(16, 2, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.e1(x)
            b = self.e2(nn.functional.max_pool2d(a, 2))
            c = nn.functional.interpolate(self.e3(nn.functional.max_pool2d(b, 2)), scale_factor=2)
            d = nn.functional.interpolate(self.d2(torch.cat([c, b], 1)), scale_factor=2)
            return self.out(torch.cat([d, a], 1))

    image, teacher = torch.zeros(1, 3, 96, 96), UNet()
    student, _ = derive_student(teacher, 4, example=image)
    networks = {"teacher": teacher, "naive": student}
    figure = figures.resolutions({role: find_resolutions(network, image) for role, network in networks.items()})
    assert list(figure.layout.xaxis.ticktext) == [
        "image", "e1", "before e2", "before e3", "after e3", "after d2", "out",
    ]  # fmt: skip
    assert [row[1] for row in figure.data[0].customdata] == [96, 96, 48, 24, 48, 96, 96]
    assert [row[1] for row in figure.data[1].customdata] == [96, 24, 24, 24, 24, 24, 96]


def test_places_are_named_by_the_network_that_has_the_most() -> None:
    models = {"teacher": "resnet18", "student": "mobilenetv3_large"}
    figure = figures.stride_plans(models, 64)
    assert list(figure.layout.xaxis.ticktext) == ["image", *(f"features.{k}" for k in range(16))]
    assert [row[1] for row in figure.data[0].customdata] == [64, 32, 16, 16, 8, 4, 2]


def test_confusions_leave_out_what_is_right() -> None:
    labels, answers = [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 2, 2, 2, 2]
    figure = figures.confusions(labels, answers, ["cat", "<b>", "owl"])
    assert headline(figure) == "3 of 8 images are answered wrongly; most often cat is taken for <b>: 2 of 3"
    assert "&lt;b&gt;" in figure.layout.title.text
    [cells] = figure.data
    assert np.argwhere(~np.isnan(cells.z)).tolist() == [[0, 1], [1, 2]]
    assert cells.z[0, 1] == pytest.approx(200 / 3) and cells.z[1, 2] == 50
    assert cells.text[0, 1] == "2" and cells.text[0, 0] == ""
    assert headline(figures.confusions([0, 1], [0, 1], ["a", "b"])) == "0 of 2 images are answered wrongly"
    assert figures.confusions([0], [99], [str(k) for k in range(100)]).data[0].text is None
