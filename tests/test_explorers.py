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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from torch import nn

from redistill_lib import explorers, figures
from redistill_lib.exploration import explore
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.explorers.exploration import StrideExplorer
from redistill_lib.figures import headline
from redistill_lib.looks import dark_figures
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


def test_nothing_is_shown_or_imported_in_a_batch() -> None:
    code = (
        "import sys, torch\nfrom redistill_lib import explorers\n"
        "assert explorers.tradeoff_explorer(None) is None\n"
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
    assert headline(explorer.figure).startswith("Pooled ×4 earlier")
    explorer.stride.value = 8
    assert headline(explorer.figure).startswith("Pooled ×8 earlier")
    assert all(new is old for new, old in zip(explorer.figure.data, traces, strict=True))
    rows = {y: [each.source for each in explorer.figure.layout.images if each.y == y] for y in (0, 1, 2)}
    assert len({len(row) for row in rows.values()}) == 1 and all(rows[0]) and all(rows[1]) and not any(rows[2])
    explorer.stride.value = 4
    assert all(each.source for each in explorer.figure.layout.images)


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
    monkeypatch.setattr("IPython.display.display", lambda *widgets: shown.extend(widgets))
    curves = explorers.live_curves(["teacher", "red"])
    assert shown[0] is curves.shown and dark_figures('[data-jp-theme-light="false"]') in shown[1].value
    assert headline(curves.shown) == "Waiting for the first epoch"
    rows = [{"epoch": k, "validation_accuracy": 0.1 * k, "train_task": 2.0 / k} for k in (1, 2, 3)]
    traces = curves.shown.data
    for k in (1, 2, 3):
        curves.update("red", rows[:k])
        assert len(curves.shown.data[3].x) == k
    assert headline(curves.shown) == "Best on validation: RED 30.0 %"
    assert all(new is old for new, old in zip(curves.shown.data, traces, strict=True))
    curves.update("teacher", pd.DataFrame(rows))
    assert "teacher 30.0 %" in headline(curves.shown)


def test_axes_of_live_curves_stand_still_where_the_end_is_known(live: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("IPython.display.display", lambda *widgets: None)
    curves = explorers.live_curves(["red"], epochs=4)
    ranges = []
    for last in (1, 2, 3, 4):
        rows = [{"epoch": k, "validation_accuracy": 0.1 * k, "train_task": 2.0 / k} for k in range(1, last + 1)]
        curves.update("red", rows)
        ranges.append((curves.shown.layout.xaxis.range, curves.shown.layout.yaxis.range))
    assert set(ranges) == {((0.5, 4.5), (0, 100))}


# ------------------------------------------------------------------------------------------------ a real browser

CELL = """\
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from redistill_lib import explorers
from test_explorers import IMAGES, networks
teacher, student = networks()
explorers.explore(teacher, {{"naive": student}}, IMAGES)
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


@pytest.mark.chromium
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
        expect(headline).to_contain_text("Pooled ×4 earlier", timeout=40_000)
        stride = page.locator(".widget-inline-hbox", has=page.get_by_text("stride", exact=True))
        stride.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        expect(headline).to_contain_text("Pooled ×8 earlier", timeout=15_000)
        expect(stride).to_contain_text("×8")
        drawn = page.locator(".main-svg").first
        expect(drawn).to_have_css("filter", "none")
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")  # as JupyterLab's dark theme does
        expect(drawn).to_have_css("filter", re.compile(r"invert\(0\.93\)"))
        browser.close()
