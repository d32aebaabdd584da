"""A teacher and its students at every stride: what is read, what is drawn, what the slider changes."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from plotly.offline import get_plotlyjs
from torch import nn
from trainings import options, quick_looks  # noqa: F401

from redistill_lib import figures
from redistill_lib.cli import main
from redistill_lib.data import load_data, to_float
from redistill_lib.exploration import Exploration, explore
from redistill_lib.explorers.exploration import StrideExplorer
from redistill_lib.looks import dark_figures
from redistill_lib.memory import profile_memory
from redistill_lib.models import create_model
from redistill_lib.own import resolve_model, student_of
from redistill_lib.red import insert_blocks
from redistill_lib.student import derive_student
from redistill_lib.train import Recipe, distill_classifier, train_classifier

IMAGES, LABELS = load_data("cluttered", train_size=40).test.head(12)
IMAGES = IMAGES[:, :, 4:36, 4:36]


#: Words, pictures and marks that are not wholly in the page.
OUTSIDE = """() => [...document.querySelectorAll(".main-svg text, .main-svg image, .main-svg .point")]
  .map(each => [each.textContent, each.getBoundingClientRect()])
  .filter(([, box]) => box.width && (box.left < -1 || box.right > document.documentElement.scrollWidth + 1))
  .map(([text, box]) => [text, box.left, box.right])"""


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return create_model("resnet18-1-21222", 10, 1, 0.125).eval()


@pytest.fixture(scope="module")
def found() -> Exploration:
    big = teacher()
    naive = derive_student(big, 4, example=to_float(IMAGES[:1]))[0]
    for parameter in naive.parameters():
        parameter.data.add_(0.01)
    return explore(big, {"naive": naive}, IMAGES, LABELS, classes=[f"digit {k}" for k in range(10)])


def text_of(figure: go.Figure) -> str:
    return " ".join(str(figure.layout.title.text).replace("<br>", " ").split())


def test_what_is_read_is_what_the_networks_say(found: Exploration) -> None:
    assert found.factors == (1, 2, 4, 8) and {role: [*its] for role, its in found.students.items()} == {
        "untrained": [1, 2, 4, 8],
        "naive": [4],
    }
    student = found.students["untrained"][2]
    with torch.no_grad():
        right = (student.network(to_float(IMAGES)).argmax(1) == LABELS).float().mean()
    assert student.accuracy == pytest.approx(100 * float(right))
    assert max(student.live) == profile_memory(student.network, to_float(IMAGES[:1])).peak_bytes
    assert found.students["untrained"][1].correlation == pytest.approx([1.0] * len(found.layers))
    assert all(abs(one) <= 1 for one in student.correlation)


def test_where_sizes_agree_the_correlation_is_that_of_numpy(found: Exploration) -> None:
    student = found.students["naive"][4]
    alike = [k for k, side in enumerate(student.sides) if side == found.teacher.sides[k] > 1]
    assert alike
    for k in alike:
        theirs = [found.teacher.maps(image)[k] for image in IMAGES]
        ours = [student.maps(image)[k] for image in IMAGES]
        known = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True) if a is not None]
        assert student.correlation[k] == pytest.approx(np.mean(known), abs=1e-4)


def pictures(figure: go.Figure) -> list[np.ndarray[Any, Any]]:
    sources = [image.source.partition(",")[2] for image in figure.layout.images if image.source]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGBA")) for source in sources]


def test_the_slider_shows_what_another_opening_would(found: Exploration) -> None:
    shown = figures.exploration(found.show(), 4, budget=8 * 1024)
    assert [step.label for step in shown.layout.sliders[0].steps] == ["×1", "×2", "×4", "×8"]
    for factor, step in zip(found.factors, shown.layout.sliders[0].steps, strict=True):
        data, layout = step.args
        other = figures.exploration(found.show(), factor, budget=8 * 1024)
        assert layout["title.text"] == other.layout.title.text
        for k, trace in enumerate(other.data):
            told = trace.to_plotly_json()
            for key, values in data.items():
                assert str(values[k]) == str(told.get(key)), (factor, k, key)
        one_row = 1 + len(found.layers)
        sources = [image.source or "" for image in other.layout.images]
        assert [layout[f"images[{k}].source"] for k in range(one_row, 3 * one_row)] == sources[one_row:]
    assert len(shown.data) == len(other.data)
    assert [(image.x, image.y) for image in shown.layout.images] == [
        (k, row) for row in range(3) for k in range(one_row)
    ]
    assert {picture.shape for picture in pictures(shown)} == {(112, 112, 4)}  # each has the same place


@pytest.mark.parametrize("layers", [3, 5, 10, 18])
def test_correlations_stand_below_the_maps_whatever_their_size(layers: int) -> None:
    """A map's lower edge is that of its picture; the free strip below it, in pixels, is as high as a line of text."""
    convolutions = [nn.Conv2d(1 if k == 0 else 2, 2, 3, 2 if k < 2 else 1, 1) for k in range(layers)]
    found = explore(nn.Sequential(*convolutions), None, IMAGES[:2], factors=[2])
    figure = figures.exploration(found.show(), 2)
    layout = figure.layout
    (texts,) = (trace for trace in figure.data if trace.yaxis == "y2")
    pictures = [image for image in layout.images if image.y == 1 and image.source]
    assert {image.yanchor for image in pictures} == {"bottom"} and {*texts.y} == {1}
    assert texts.textposition == "bottom center" and texts.marker.size < 6 and all(texts.text)
    low, high = layout.yaxis2.range
    plot = layout.height - layout.margin.t - layout.margin.b
    row = plot * (layout.yaxis2.domain[1] - layout.yaxis2.domain[0]) / (low - high)
    assert 18 <= row * (low - 1) <= 30  # below the last row
    assert row * (1 - pictures[0].sizey) == pytest.approx(row * (low - 1), abs=0.5)  # between two rows


def test_a_row_without_maps_says_so_in_its_middle(found: Exploration) -> None:
    figure = figures.exploration(found.show(), 2)
    (missing,) = (trace for trace in figure.data if "not trained at this stride" in (trace.text or ()))
    assert {*missing.y} == {2 - 0.4}


def test_lines_bars_and_marks_are_explained(found: Exploration) -> None:
    figure = figures.exploration(found.show(), 4)
    assert "Dotted line, pale bars: the teacher; solid line, dark bars: its student." in text_of(figure)
    assert "orange" not in text_of(figure)  # nobody has RED blocks
    dashes = {trace.name: trace.line.dash for trace in figure.data if "'s map" in (trace.name or "")}
    assert dashes == {"teacher's map": "dot", "student's map": "solid"}


def test_it_opens_where_a_student_was_trained() -> None:
    from redistill_lib.explorers import explore as show

    big = teacher()
    students = {factor: derive_student(big, factor, example=to_float(IMAGES[:1]))[0] for factor in (2, 4, 8)}
    for given, factor, opening in [
        ((2,), None, 2), ((8, 2), None, 8), ((4, 8), None, 4), ((), None, 4), ((2,), 8, 8)
    ]:  # fmt: skip
        figure = show(big, {"naive": [students[each] for each in given]}, IMAGES[:2], factor=factor)
        slider = figure.layout.sliders[0]
        assert slider.steps[slider.active].label == f"×{opening}", given
    assert ("not trained" in str(figure.data)) and figures.headline(figure).startswith("Pooled ×8")


def test_the_words_are_those_of_the_stop(found: Exploration) -> None:
    needs, left = (view.profile.peak_bytes for view in (found.teacher, found.students["untrained"][4]))
    text = text_of(figures.exploration(found.show(), 4)).replace("</b> <b>", " ")
    assert f"Pooled ×4 earlier: {needs / left:.1f}× less" in text and found.layers[found.first_block] == "layer1.0"
    one = found.students["untrained"][4]
    assert f"at layer1.0 agree with the teacher's by {one.correlation[found.first_block]:.2f}" in text
    assert f"the cosine, {one.cosine[found.first_block]:.2f} there" in text
    assert "what is left of it" in text_of(figures.exploration(found.show(), 1))
    drawn = figures.exploration(found.show(), 2)
    assert "not trained at this stride" in str(drawn.data) and "naive" not in str(
        [trace.text for trace in drawn.data]
    )


def test_one_network_without_labels_and_one_of_another_family() -> None:
    big = teacher()
    other = create_model("mobilenetv2-2-1222121", 10, 1, 0.25).eval()
    found = explore(big, other, IMAGES[:2])
    assert found.classes is None and found.students["student"].keys() == {2}
    assert np.isnan(found.teacher.accuracy) and len(figures.exploration(found.show(), 2).layout.images) == 3 * (
        1 + len(found.layers)
    )
    view = found.students["student"][2]
    assert view.sides[0] == 0 and view.maps(IMAGES[0])[0] is None  # no map of the teacher's first size
    assert {view.sides[k] for k, tap in enumerate(view.taps) if tap} <= {*found.teacher.sides}
    assert max(view.live) == view.profile.peak_bytes


def test_blocks_count_and_are_drawn() -> None:
    from redistill_lib.distill import match_taps
    from redistill_lib.methods import RED

    big = teacher()
    student = derive_student(big, 4, example=to_float(IMAGES[:1]))[0]
    taps = match_taps(student, big, to_float(IMAGES[:1]))
    made = [(tap.layer, tap.side, tap.block(RED())) for tap in taps]
    student = insert_blocks(
        student, [(layer, side, block) for layer, side, block in made if block is not None]
    ).eval()
    found = explore(big, {"RED": student}, IMAGES[:2])
    plain, blocks = found.students["untrained"][4], found.students["RED"][4]
    assert sum(a > b for a, b in zip(blocks.live, plain.live, strict=True)) >= 1
    figure = figures.exploration(found.show(), 4)
    assert "orange marks: with RED blocks." in text_of(figure)
    [drawn] = [trace for trace in figure.data if trace.name == "with RED blocks"]
    assert [None if y is None else round(y * 1024) for y in drawn.y] == [
        a if a > b else None for a, b in zip(blocks.live, plain.live, strict=True)
    ]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (IMAGES.float(), "float32"),
        (IMAGES[0], "uint8"),
        (IMAGES[:0], "uint8"),
        (IMAGES.float() / 255 - 0.5, "float32"),
    ],
)
def test_other_images_are_refused(images: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"images are N×C×H×W, one or more, uint8 or floats from 0 to 1, .*{told}"):
        explore(teacher(), None, images)


def test_images_from_0_to_1_and_half_precision() -> None:
    plain = explore(teacher(), None, IMAGES[:4], factors=[2]).students["untrained"][2]
    for network, images in ((teacher(), IMAGES[:4] / 255), (teacher().bfloat16(), IMAGES[:4])):
        view = explore(network, None, images, factors=[2]).students["untrained"][2]
        assert view.sides == plain.sides and view.correlation == pytest.approx(plain.correlation, abs=0.03)


def test_what_is_not_there_is_refused(found: Exploration) -> None:
    with pytest.raises(ValueError, match="there is no ×3; there are ×1, ×2, ×4, ×8"):
        figures.exploration(found.show(), 3)
    with pytest.raises(ValueError, match="there are 12 images, counted from 0; there is no image 12"):
        found.show(12)
    with pytest.raises(ValueError, match="12 images but 3 labels"):
        explore(teacher(), None, IMAGES, [1, 2, 3])
    with pytest.raises(ValueError, match="two networks are red at ×1; give each a role of its own"):
        explore(teacher(), {"red": [teacher(), teacher()]}, IMAGES)
    with pytest.raises(ValueError, match="an image is of class 9, but there are 3 names of classes"):
        explore(teacher(), None, IMAGES[:1], [9], classes=["a", "b", "c"])
    colour = create_model("resnet18-4-11221", width=0.125)
    with pytest.raises(ValueError, match=r"^red cannot be run on these images: .*expected input"):
        explore(teacher(), {"red": colour}, IMAGES)
    with pytest.raises(ValueError, match="no layer with a feature map"):
        explore(nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), None, IMAGES)


def test_every_control_changes_the_figure(found: Exploration) -> None:
    explorer = StrideExplorer(found, 4, 3, "16KB")
    assert (explorer.budget.value, explorer.image.value) == (16 * 1024, 3) and explorer.image.options[0][
        0
    ].startswith("0 (digit ")
    for control in (explorer.stride, explorer.image, explorer.channel, explorer.budget):
        for value in (control.options[-1][1], control.options[0][1]):
            before = explorer.figure.to_json()
            if control.value != value:
                control.value = value
                assert explorer.figure.to_json() != before, control.description
    assert explorer.status.value == "" and not explorer.figure.layout.sliders


def test_the_page_needs_no_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new folder" / "page.html"
    wanted = ["explore", "resnet18-1-21222", "resnet18-4-11221", "--data", "digits", "--images", "8"]
    assert main([*wanted, "--budget", "200KB", "--html", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    page = file.read_text(encoding="utf-8")
    assert len(page) < 3 * 2**20 and "src=" not in page and dark_figures() in page
    library = re.findall(r'id="library">(.*?)</script>', page)[0]
    assert gzip.decompress(base64.b64decode(library)).decode() == get_plotlyjs()
    figure = go.Figure(json.loads(re.findall(r'id="data">(.*?)</script>', page)[0]))
    assert [step.label for step in figure.layout.sliders[0].steps] == ["×1", "×2", "×4", "×8"]
    assert "budget 200 KiB" in [note.text for note in figure.layout.annotations]
    assert "yaxis4" not in figure.layout  # whose weights are drawn at random has no accuracy


def test_the_page_of_a_run_knows_its_data_and_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, settings = Recipe(epochs=1), {"width": 0.125, "options": options(tmp_path / "runs")}
    big = train_classifier("resnet18-1-21222", "digits", recipe, **settings)
    taught = distill_classifier("resnet18-4-11221", big, "digits", recipe, methods="kd", **settings)
    assert main(["explore", str(big.path), str(taught.path), "--images", "8"]) == 0
    page = (tmp_path / "resnet18-1-21222-explored.html").read_text(encoding="utf-8")
    figure = go.Figure(json.loads(re.findall(r'id="data">(.*?)</script>', page)[0]))
    assert [*figure.layout.yaxis2.ticktext] == ["<b>teacher</b>", "<b>untrained</b>", "<b>KD</b>"]
    assert figure.layout.yaxis4.title.text == "accuracy on 8 images (%)" and "image" in figure.layout.xaxis.ticktext


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["resnet18-9"], "Plan 9"),
        (["resnet18-1-21222", "--factor", "3"], "×"),
        (["resnet18-1-21222", "--images", "0"], "images"),
        (["resnet18-1-21222", "--budget", "much"], "much"),
        (["runs"], "run.json"),
    ],
)
def test_what_cannot_be_explored_is_one_sentence(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert main(["explore", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("redistill: ") and told in error
    assert not [*tmp_path.glob("*.html")]


def test_runs_of_ones_own_network_are_explored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_explored.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    recipe, running = Recipe(epochs=1), options(tmp_path / "runs")
    big = resolve_model("my_explored:make")
    small = student_of(big, 2, torch.zeros(2, 1, 32, 32))
    runs = [train_classifier(net, "digits", recipe, options=running) for net in (big, small)]
    paths = [str(run.path) for run in runs]
    assert main(["explore", *paths, "--images", "8"]) == 2
    assert "--network my_net:make" in capsys.readouterr().err
    assert main(["explore", *paths, "--images", "8", "--network", "my_explored:make"]) == 0
    file = Path(capsys.readouterr().out.strip())
    page = file.read_text(encoding="utf-8")
    assert file.name == "Sequential-explored.html" and "<title>Sequential: what pooling earlier does to it<" in page
    figure = go.Figure(json.loads(re.findall(r'id="data">(.*?)</script>', page)[0]))
    assert [step.label for step in figure.layout.sliders[0].steps] == ["×1", "×2"] and "yaxis4" in figure.layout
    assert main(["explore", paths[0], "--images", "8", "--network", "torch.nn:Identity"]) == 2
    assert "neither torch.nn:Identity nor a student of it" in capsys.readouterr().err


@pytest.mark.chromium
def test_the_page_is_as_wide_as_the_window(found: Exploration, tmp_path: Path) -> None:
    from jupyter import chromium

    from redistill_lib.explorers.page import write_page

    page = write_page(figures.exploration(found.show(), 4), tmp_path / "page.html", "a page")
    with chromium() as browser:
        for window, wide in {500: 600, 620: 620, 800: 800, 1280: 840}.items():
            tab = browser.new_page(viewport={"width": window, "height": 900})
            tab.goto(page.as_uri())
            tab.locator(".gtitle").wait_for()
            assert tab.evaluate("document.querySelector('.main-svg').getBoundingClientRect().width") == wide
            assert tab.evaluate("document.documentElement.scrollWidth") == max(window, 600)
            edges = tab.evaluate(OUTSIDE)
            assert edges == [], window
            tab.set_viewport_size({"width": 700, "height": 900})  # and follows it
            tab.wait_for_function("document.querySelector('.main-svg').getBoundingClientRect().width == 700")
            tab.close()
