"""Every notebook as a reader meets it: JupyterLab in Chromium, at smoke scale, each control moved by the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from smoke import NOTEBOOKS

#: Controls that leave the picture as it is, and why.
IDLE = {"08_tradeoffs": {"published": "it adds to what `data` offers; nothing was published on the data shown first"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[str]:
    from jupyter import jupyterlab

    with jupyterlab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from jupyter import chromium

    with chromium() as browser:
        yield browser


each_notebook = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.chromium, pytest.mark.browser]) for path in NOTEBOOKS
]


@pytest.fixture(scope="module", params=each_notebook)
def opened(request: pytest.FixtureRequest, folder: Path, lab: str, browser: Any) -> Iterator[Any]:
    """A notebook that has run from top to bottom, without its committed outputs."""
    from jupyter import Notebook, write_notebook

    path: Path = request.param
    opened = Notebook(browser, lab, write_notebook(path, folder))
    try:
        opened.run_all(600)
        opened.shoot_all(path.stem)
        yield opened
    finally:
        opened.close()


def test_it_runs_and_complains_of_nothing(opened: Any) -> None:
    assert opened.complaints() == []


def test_no_output_is_wider_than_its_cell(opened: Any) -> None:
    """At 1280 pixels, with the side bar open."""
    assert opened.page.locator(".jp-FileBrowser").is_visible()
    assert opened.too_wide() == []


def test_every_figure_is_drawn(opened: Any) -> None:
    """Live curves, too, which have had their epochs."""
    plots = opened.drawn()
    assert plots and all(plots.values()), plots
    assert "Waiting" not in " ".join(opened.page.locator(".gtitle").all_text_contents())


def test_each_control_is_named_and_moves_the_picture_by_keys_alone(
    opened: Any, request: pytest.FixtureRequest
) -> None:
    idle = IDLE.get(request.node.callspec.id, {})
    for explorer in opened.explorers():
        explorer.focus()
        found = {}
        for k, description in enumerate(opened.descriptions(explorer)):
            control = opened.control(explorer, description)
            assert opened.press_tab_until(control, 5 if k else 40), f"the tab key does not lead to {description}"
            assert opened.control_label(explorer, description).get_attribute("title") in (None, description)
            found[description] = opened.moves(explorer, control, description in idle)
        assert found == {description: description not in idle for description in found}
