"""Explorers: nothing in a batch; with a viewer, controls that follow each other and figures redrawn in place."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from redistill_lib import explorers, figures
from redistill_lib.exploration import explore
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.explorers.exploration import StrideExplorer
from redistill_lib.models import create_model

ROOT = Path(__file__).parents[1]
IMAGES = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def networks() -> tuple[nn.Module, nn.Module]:
    """A teacher and a student of it that pools four times harder."""
    torch.manual_seed(0)
    return tuple(
        create_model(name, in_channels=1, width=0.125).eval() for name in ("resnet18-1-21222", "resnet18-4-11221")
    )


@pytest.fixture
def explorer() -> StrideExplorer:
    teacher, student = networks()
    found = explore(teacher, {"naive": student}, IMAGES, [0, 1, 2], classes=["cat", "dog", "owl"])
    return StrideExplorer(found, 4, 0, None)


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorers, "is_live", lambda: True)


def title(figure: Any) -> str:
    return " ".join(re.findall(r"<b>(.*?)</b>", figure.layout.title.text))


def test_nothing_is_shown_or_imported_in_a_batch() -> None:
    code = (
        "import sys, torch\nfrom redistill_lib import explorers\n"
        "assert explorers.memory_explorer() is None\n"
        "explorers.live_curves(['teacher']).update('teacher', [{'epoch': 1}])\n"
        "assert not {'ipywidgets', 'plotly'} & set(sys.modules)\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1))\n"
        "explorers.explore(net, None, torch.ones(1, 1, 8, 8, dtype=torch.uint8))\n"
        "assert 'redistill_lib.explorers.controls' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_stride_slider_redraws_in_place(explorer: StrideExplorer) -> None:
    traces = explorer.figure.data
    assert title(explorer.figure).startswith("Pooled ×4 earlier")
    explorer.stride.value = 8
    assert title(explorer.figure).startswith("Pooled ×8 earlier")
    assert all(new is old for new, old in zip(explorer.figure.data, traces, strict=True))
    assert len(explorer.figure.layout.images) == 2 * 3 and not explorer.figure.layout.images[5].source
    explorer.stride.value = 4
    assert explorer.figure.layout.images[5].source


def test_a_page_that_opens_late_has_the_figure(explorer: StrideExplorer) -> None:
    """The state that a widget is made from in the browser, which plotly leaves as it was when the figure was made."""
    assert len(explorer.figure._widget_data) == len(explorer.figure.data) > 0
    assert explorer.figure._widget_layout["title"]["text"] == explorer.figure.layout.title.text


def test_images_are_named(explorer: StrideExplorer) -> None:
    before = explorer.figure.layout.images[0].source
    explorer.image.value = 2
    assert explorer.image.options[2] == ("2 (owl)", 2) and "image 2: class owl" in explorer.figure.layout.title.text
    assert explorer.figure.layout.images[0].source != before


def test_the_page_does_not_jump_when_a_title_is_shorter(explorer: StrideExplorer) -> None:
    before = explorer.figure.layout
    tall, plot = before.height + 22, before.height - before.margin.t - before.margin.b
    explorer.figure.layout.height = tall
    explorer.image.value = 1
    layout = explorer.figure.layout
    assert layout.height == tall
    assert layout.height - layout.margin.t - layout.margin.b == plot
    explorer.figure.layout.height = tall + 200  # as of another network: no gap of that size is kept
    explorer.image.value = 2
    assert explorer.figure.layout.height == tall - 22


class Failing(Explorer):
    """One control, whose second choice cannot be shown."""

    refusal = "This is not possible here."

    def __init__(self, error: Exception | None = None):
        self.error, self.choice = error, dropdown("choice", options(["good", "bad"]))
        self.other = slider("other")
        self.lay_out(self.choice, self.other)

    def show(self) -> Any:
        wide = self.choice.value == "good"
        self.chosen = self.choose(self.other, options(range(3 if wide else 1)), 0)
        if self.error and not wide:
            raise self.error
        return figures.images(IMAGES)


@pytest.mark.parametrize(
    "error", [ValueError("no <run> red"), KeyError("no <run> red"), FileNotFoundError(2, "no <run>", "red")]
)
def test_what_cannot_be_shown_is_explained(error: Exception) -> None:
    explorer = Failing(error)
    assert explorer.status.value == "" and explorer.drawn.layout.display == ""
    explorer.choice.value = "bad"
    assert "<b>This is not possible here.</b>" in explorer.status.value
    assert "no &lt;run&gt;" in explorer.status.value and "red" in explorer.status.value
    assert explorer.drawn.layout.display == "none"
    explorer.choice.value = "good"
    assert explorer.status.value == "" and explorer.drawn.layout.display == ""


def test_what_was_chosen_by_hand_comes_back() -> None:
    explorer = Failing()
    explorer.other.value = 2
    explorer.choice.value = "bad"
    assert explorer.chosen == 0 and explorer.other.disabled
    explorer.choice.value = "good"
    assert explorer.chosen == explorer.other.value == 2 and not explorer.other.disabled


def test_every_control_is_described(explorer: StrideExplorer, live: None) -> None:
    controls = ["stride", "image", "channel", "budget"]
    assert [each.description for each in explorer.view.children[0].children] == controls
    teacher, _ = networks()
    view = explorers.explore(teacher, None, IMAGES, budget="16KB")
    assert [each.description for each in view.children[0].children] == controls
    with pytest.raises(ValueError, match="there is no ×3"):
        explorers.explore(teacher, None, IMAGES, factor=3)


def test_live_curves_grow(live: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    curves = explorers.live_curves(["teacher", "red"])
    assert shown == [curves.shown]
    assert title(curves.shown) == "Waiting for the first epoch"
    rows = [{"epoch": k, "validation_accuracy": 0.1 * k, "train_task": 2.0 / k} for k in (1, 2, 3)]
    traces = curves.shown.data
    for k in (1, 2, 3):
        curves.update("red", rows[:k])
        assert len(curves.shown.data[3].x) == k
    assert title(curves.shown) == "Best on validation: RED 30.0 %"
    assert all(new is old for new, old in zip(curves.shown.data, traces, strict=True))
    curves.update("teacher", pd.DataFrame(rows))
    assert "teacher 30.0 %" in title(curves.shown)
