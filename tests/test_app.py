"""The app: the networks of the tour, behind a token, on a page that a kernel moves."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from redistill_lib.parameters import notebook_parameters

ROOT = Path(__file__).parents[1]


def test_its_networks_are_those_of_the_tour() -> None:
    from redistill_lib.explorers.app import TOUR

    assert notebook_parameters(ROOT / "notebooks" / "00_tour.ipynb").items() >= TOUR.items()


def test_the_networks_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redistill_lib.comparison import lengths
    from redistill_lib.explorers.app import TOUR, tour

    monkeypatch.setattr(lengths, "_measure", lambda *_: lengths.EpochCost(0.5))  # not by training, which takes longer
    monkeypatch.setattr(lengths, "_memory", lambda *_: 0.0)
    small = TOUR | {"TRAIN_SIZE": 128, "TEACHER_EPOCHS": 1, "SECONDS": 0.5}
    folders = tour(str(tmp_path), small)
    times = [(Path(folder) / "run.json").stat().st_mtime_ns for folder in folders]
    assert len(folders) == 3 and tour(str(tmp_path), small) == folders
    assert [(Path(folder) / "run.json").stat().st_mtime_ns for folder in folders] == times


def test_a_wrong_name_is_told_before_anything_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    from redistill_lib.cli import main

    assert main(["app", "resnet19", "--no-browser"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of an app of two untrained networks, with its token, and the file of what its terminal shows."""
    from jupyter import free_port, said, started

    folder = tmp_path_factory.mktemp("app")
    words = ["app", "resnet18-1-21222", "resnet18-4-11221", "--images", "8", "--no-browser"]
    words += ["--port", str(free_port())]
    command = [sys.executable, "-c", f"import sys; from redistill_lib.cli import main; sys.exit(main({words!r}))"]
    with started(command, folder) as server:
        yield said(*server, r"http://127\.0\.0\.1:\d+/\?token=\w+"), server[1]


@pytest.fixture
def address(served: tuple[str, Path]) -> str:
    return served[0]


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.chromium
def test_the_page_wants_its_token(address: str) -> None:
    bare = address.partition("?")[0]
    assert [status(bare), status(f"{bare}?token=wrong"), status(f"{bare}voila/api/shutdown/x")] == [403, 403, 403]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(bare, timeout=60)
    assert refused.value.read().decode() == "Open the address with its token, as the terminal shows it."


@pytest.mark.chromium
def test_the_page_moves_and_hides_its_code(served: tuple[str, Path]) -> None:
    from jupyter import Sheet, chromium

    address, log = served
    with chromium() as browser:
        sheet = Sheet(browser)
        sheet.page.goto(address, timeout=180_000)
        stride = sheet.control(sheet.page.locator("body"), "stride")
        stride.wait_for(timeout=120_000)
        plot = sheet.page.locator(".js-plotly-plot .gtitle")
        plot.wait_for(timeout=60_000)
        before = sheet.shown(sheet.page.locator("body"))
        assert "Pooled ×4" in str(plot.text_content())
        stride.focus()
        sheet.page.keyboard.press("End")
        assert sheet.changed(sheet.page.locator("body"), before)
        assert "Pooled ×8" in str(plot.text_content())
        text = sheet.page.locator("body").inner_text()
        assert "import os" not in text and "resnet18-1-21222: what pooling earlier does to it" in text
        unreachable = "ERR_NAME_NOT_RESOLVED"  # Voilà's template asks the network for what the page can do without
        assert [error for error in sheet.errors if unreachable not in error] == []
        sheet.shoot("app")
        sheet.page.set_viewport_size({"width": 620, "height": 1000})
        sheet.page.wait_for_timeout(1000)
        assert sheet.page.evaluate("document.documentElement.scrollWidth") == 620
    told = log.read_text()
    assert not [words for words in ("Traceback", "is not trusted", "without encryption") if words in told], told
