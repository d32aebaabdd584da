"""Explorers: nothing in a batch; with a viewer, controls that follow each other and figures redrawn in place."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from redistill_lib import explorers
from redistill_lib.distill import match_taps
from redistill_lib.explorers.pairs import HINT, MapExplorer
from redistill_lib.models import create_model, student_name

ROOT = Path(__file__).parents[1]
IMAGES = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def family(name: str, calls: list[int], trained: tuple[int, ...] = (4,)) -> Callable[[int], Mapping[str, Any]]:
    """Networks as a notebook hands them over; `calls` notes for which factors they were built."""

    def pairs(factor: int) -> Mapping[str, Any]:
        calls.append(factor)
        torch.manual_seed(factor)

        def network(which: str) -> nn.Module:
            return create_model(which, in_channels=1, width=0.125)

        teacher, student = network(name), network(student_name(name, factor))
        taps = match_taps(student, teacher, torch.zeros(1, 1, 32, 32))
        states = ["untrained", *(["naive", "red"] if factor in trained else [])]
        return dict.fromkeys(states, (teacher, student, taps))

    return pairs


@pytest.fixture
def calls() -> list[int]:
    return []


@pytest.fixture
def explorer(calls: list[int]) -> MapExplorer:
    networks = {"ResNet": family("resnet18-1-21222", calls), "MobileNet": family("mobilenetv2-1-1222121", [])}
    return MapExplorer(networks, IMAGES, ["cat", "dog", "owl"], (1, 2, 4, 8), 4, "")


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorers, "is_live", lambda: True)


def title(figure: Any) -> str:
    return " ".join(re.findall(r"<b>(.*?)</b>", figure.layout.title.text))


def test_nothing_is_shown_or_imported_in_a_batch() -> None:
    code = (
        "import sys, torch\nfrom redistill_lib import explorers\n"
        "assert explorers.feature_map_explorer({}, torch.zeros(1)) is None\n"
        "assert explorers.stride_plan('resnet18', 32) is None\n"
        "explorers.live_curves(['teacher']).update('teacher', [{'epoch': 1}])\n"
        "assert not {'ipywidgets', 'plotly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_stride_slider_redraws_in_place(explorer: MapExplorer, calls: list[int]) -> None:
    traces = explorer.figure.data
    assert title(explorer.figure).startswith(
        "At stride ×4 the naive student's map has 8×8 pixels, the teacher's 16×16"
    )
    explorer.stride.value = 8
    assert title(explorer.figure).startswith("At stride ×8 the untrained student's map has 4×4 pixels")
    assert explorer.figure.data[2].z.shape == (4, 4)
    assert all(new is old for new, old in zip(explorer.figure.data, traces, strict=True))
    assert HINT in explorer.status.value
    explorer.stride.value = 4
    explorer.stride.value = 8
    assert calls == [4, 8]


def test_what_was_chosen_by_hand_comes_back(explorer: MapExplorer) -> None:
    explorer.state.value = "red"
    explorer.place.value = ("tap", "layer2.0", "input")
    explorer.stride.value = 2
    assert explorer.state.value == "untrained"
    assert explorer.state.disabled
    explorer.stride.value = 4
    assert (explorer.state.value, explorer.place.value) == ("red", ("tap", "layer2.0", "input"))
    assert explorer.status.value == ""
    assert title(explorer.figure).startswith("At stride ×4 the RED student's map has 8×8 pixels, the teacher's 8×8")


def test_places_are_layers_of_both_and_taps(explorer: MapExplorer) -> None:
    texts = [text for text, _ in explorer.place.options]
    assert {"layer1.0 of both", "conv1 output ← teacher's layer2.0 output"} <= set(texts)
    explorer.model.value = "MobileNet"
    assert not any("layer1" in text for text, _ in explorer.place.options)
    assert explorer.place.value[0] == "both"


def test_channels_are_those_of_the_place(explorer: MapExplorer) -> None:
    explorer.place.value = ("both", "layer4", "output")
    assert [text for text, _ in explorer.channel.options][:3] == ["mean", "0", "1"]
    assert len(explorer.channel.options) == 1 + 64
    explorer.channel.value = 63
    assert "Shown: channel 63" in explorer.figure.layout.title.text
    explorer.place.value = ("both", "conv1", "output")
    assert explorer.channel.value == "mean"
    assert "mean over channels" in explorer.figure.layout.title.text


def test_images_are_named_and_computed_once(explorer: MapExplorer) -> None:
    before = explorer.figure.data[0].source
    explorer.image.value = 2
    assert explorer.image.label == "2 (owl)"
    assert explorer.figure.data[0].source != before
    computed = explorer.compare.cache_info().misses
    explorer.image.value = 0
    assert explorer.compare.cache_info().misses == computed == 2
    assert explorer.figure.data[0].source == before


def test_the_page_does_not_jump_when_a_title_is_shorter(explorer: MapExplorer) -> None:
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


def test_a_stride_that_cannot_be_is_explained(calls: list[int]) -> None:
    networks = {"r": family("resnet18-1-11112", calls)}
    explorer = MapExplorer(networks, IMAGES, None, (1, 8), 8, "")
    assert "×8 cannot be shown here." in explorer.status.value
    assert "cannot be front-loaded" in explorer.status.value
    explorer.stride.value = 1
    assert "cannot" not in explorer.status.value
    assert title(explorer.figure).startswith("At stride ×1")


@pytest.mark.parametrize("error", [KeyError("no run called red"), FileNotFoundError(2, "no run", "red.json")])
def test_what_loading_a_run_says_is_shown(error: Exception) -> None:
    def raising(factor: int) -> Mapping[str, Any]:
        raise error

    explorer = MapExplorer({"r": raising}, IMAGES, None, (1, 4), 4, "")
    assert "no run" in explorer.status.value and "red" in explorer.status.value
    assert explorer.drawn.layout.display == "none"


def test_labels_go_with_images(live: None) -> None:
    with pytest.raises(ValueError, match="3 images but 1 labels"):
        explorers.feature_map_explorer({"r": family("resnet18-1-21222", [])}, IMAGES, ["cat"])


def test_every_control_is_described(explorer: MapExplorer, live: None) -> None:
    assert [c.description for c in explorer.view.children[0].children] == [
        "model", "stride", "state", "image", "place", "channel",
    ]  # fmt: skip
    plan = explorers.stride_plan("resnet18-1-21222", 32)
    assert plan is not None
    assert [c.description for c in plan.children[0].children] == ["stride"]


def test_stride_plan_redraws_chart_and_table(live: None) -> None:
    view = explorers.stride_plan(["resnet18-1-21222", "mobilenetv2-1-1222121"], image_size=40, factors=(1, 4, 32))
    assert view is not None
    (model, stride), (figure, table) = view.children[0].children, view.children[2].children
    assert "10×10 maps from its conv1 on" in title(figure)
    assert table.value.count("<tr") == 8
    stride.value = 1
    assert title(figure).startswith("Teacher and naive student drop resolution at the same places")
    model.value = "mobilenetv2-1-1222121"
    assert "features.2" in table.value
    stride.value = 32
    assert "×32 is not possible here." in view.children[1].value


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


# ------------------------------------------------------------------------------------------------ a real browser

CELL = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from redistill_lib import explorers
from test_explorers import IMAGES, family
explorers.feature_map_explorer({{"ResNet": family("resnet18-1-21222", [])}}, IMAGES)
"""
FLAGS = (
    "--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a JupyterLab of its own, with a notebook `maps.ipynb` in it."""
    cell = nbformat.v4.new_code_cell(CELL.format(root=str(ROOT), tests=str(ROOT / "tests")))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), tmp_path / "maps.ipynb")
    for variable in (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    ):
        monkeypatch.setenv(variable, str(tmp_path / "home" / variable.lower()))
    monkeypatch.delenv("REDISTILL_BATCH", raising=False)
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"ip": "127.0.0.1", "port": port, "ServerApp.root_dir": tmp_path, "IdentityProvider.token": ""}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            for _ in range(150):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/maps.ipynb?reset"
        finally:
            server.send_signal(signal.SIGINT)
            server.send_signal(signal.SIGTERM)
            server.wait(20)


@pytest.mark.browser
def test_moving_the_slider_changes_the_figure_in_jupyterlab(lab: str) -> None:
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        dialog = page.locator(".jp-Dialog")  # a slow machine makes JupyterLab ask about its kernel
        page.add_locator_handler(dialog, lambda: dialog.locator(".jp-mod-accept").click())
        page.goto(lab)
        cell, headline = page.locator(".jp-Notebook .jp-CodeCell").first, page.locator(".gtitle")
        idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        expect(idle).to_be_attached(timeout=60_000)  # a key pressed before the kernel is there is lost
        for _ in range(3):
            cell.click(timeout=40_000)
            page.keyboard.press("Control+Enter")
            with contextlib.suppress(AssertionError):
                expect(headline).to_be_attached(timeout=20_000)
                break
        expect(headline).to_contain_text("At stride ×4 the naive student's map", timeout=40_000)
        stride = page.locator(".widget-inline-hbox", has=page.get_by_text("stride", exact=True))
        stride.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        expect(headline).to_contain_text("At stride ×8 the untrained student's map", timeout=15_000)
        expect(stride).to_contain_text("×8")
        browser.close()
