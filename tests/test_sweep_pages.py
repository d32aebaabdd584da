"""Pages of executed notebooks: what they hold, what they share, and that their figures are drawn."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import plotly
import pytest

from redistill_lib.sweep import pages

LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
TITLE = "1 < 2 </script><b>& more"
FIGURE = {"data": [{"type": "scatter", "y": [1, 4, 9]}], "layout": {"title": {"text": TITLE}}}
SHOWN = {pages.FIGURE: FIGURE, "image/png": "iVBORw0KGgo="}


def write(path: Path, *bundles: dict[str, Any], text: str = "# Title") -> Path:
    code = nbformat.v4.new_code_cell("show()")
    code.outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), code]), path)
    return path


def test_figures_are_data_and_share_one_library(tmp_path: Path) -> None:
    page = pages.page_of(write(tmp_path / "a.ipynb", SHOWN, SHOWN), tmp_path)
    assert page.count('class="plotly-graph-div"') == 2
    assert page.count('src="plotly.min.js"') == 1
    assert SHOWN["image/png"] not in page
    assert len(page) < 350_000
    assert (tmp_path / "plotly.min.js").read_bytes() == LIBRARY.read_bytes()
    data = page.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(data) == FIGURE

    below = pages.page_of(write(tmp_path / "points" / "b.ipynb", SHOWN), tmp_path)
    assert 'src="../plotly.min.js"' in below
    assert [file.name for file in (tmp_path / "points").iterdir()] == ["b.ipynb"]


def test_nothing_is_loaded_that_the_notebook_does_not_need(tmp_path: Path) -> None:
    page = pages.page_of(write(tmp_path / "a.ipynb"), tmp_path)
    assert "<script" not in page
    assert not (tmp_path / "plotly.min.js").exists()
    page = pages.page_of(write(tmp_path / "a.ipynb", text="$x^2$"), tmp_path)
    assert page.count("<script async") == 1 and "mathjax" in page


def test_the_library_is_whole_whoever_copies_it(tmp_path: Path) -> None:
    target, sizes, done = tmp_path / "plotly.min.js", set[int](), threading.Event()
    target.write_text("of another plotly")

    def read() -> None:
        while not done.is_set():
            sizes.add(len(target.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(pages.shared_library, [tmp_path] * 8))
    done.set()
    reader.join()
    assert sizes <= {len("of another plotly"), LIBRARY.stat().st_size}
    assert [file.name for file in tmp_path.iterdir()] == ["plotly.min.js"]
    assert target.read_bytes() == LIBRARY.read_bytes()
    before = target.stat().st_mtime_ns
    pages.shared_library(tmp_path)
    assert target.stat().st_mtime_ns == before  # not copied again


def test_links_between_pages_stay_among_pages(tmp_path: Path) -> None:
    page = pages.page_of(write(tmp_path / "a.ipynb", text="[next](01_next.ipynb) [all](README.md)"), tmp_path)
    assert 'href="01_next.html"' in page
    assert 'href="../index.html"' in page


@pytest.mark.chromium
def test_figures_are_drawn_without_a_network(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    assert browser
    notebook = write(tmp_path / "a.ipynb", SHOWN)
    page = notebook.with_suffix(".html")
    page.write_text(pages.page_of(notebook, tmp_path), encoding="utf-8")

    def seen(*flags: str) -> str:
        offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        options = ["--headless", "--no-sandbox", "--disable-gpu", profile, "--virtual-time-budget=10000", *offline]
        command = [browser, *options, *flags, "--dump-dom", page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    assert seen().count('class="main-svg"') == 3  # plotly's layers of one figure
    (tmp_path / "plotly.min.js").unlink()
    assert "needs the file plotly.min.js, which is not there" in seen()


@pytest.mark.chromium
def test_figures_have_room_in_a_narrow_window(tmp_path: Path) -> None:
    """600 pixels in one of 620; what was stored wider can be scrolled, and the page stays as it is."""
    from jupyter import chromium

    wide = {pages.FIGURE: {**FIGURE, "layout": {**FIGURE["layout"], "width": 840}}}
    notebook = write(tmp_path / "a.ipynb", SHOWN, wide)
    page = tmp_path / "a.html"
    page.write_text(pages.page_of(notebook, tmp_path), encoding="utf-8")
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 620, "height": 900})
        tab.goto(page.as_uri())
        tab.locator(".gtitle").nth(1).wait_for()
        sizes = (
            "[...document.querySelectorAll('.plotly-graph-div')].map(each => [each.clientWidth, each.scrollWidth])"
        )
        (room, drawn), (_, stored) = tab.evaluate(sizes)
        assert 600 <= room == drawn and stored == 840
        scrolled = "place => { place.scrollLeft = 840; return place.scrollLeft; }"
        assert tab.locator(".plotly-graph-div").nth(1).evaluate(scrolled) == 840 - room
        assert tab.evaluate("document.documentElement.scrollWidth") == 620
