"""Every notebook in notebooks/, found by glob: its form, its committed outputs, and one run at smoke scale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from smoke import NOTEBOOKS, SMOKE, smoke_values

from redistill_lib.parameters import notebook_parameters
from redistill_lib.report import outputs_match_source
from redistill_lib.sweep import run_notebook

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def code_lines(source: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def test_there_are_notebooks_and_each_has_smoke_values() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SMOKE) and len(NOTEBOOKS) >= 4


@each_notebook
def test_form(path: Path) -> None:
    """Opening with question, sights, time and needs; literal parameters with a comment each; takeaways; links."""
    texts, codes = cells(path, "markdown"), cells(path, "code")
    opening = texts[0].source
    assert opening.startswith("# ")
    assert all(word in opening for word in ("**Question.**", "**You will see**", "**Time:**", "**Needs**")), opening
    lines = codes[0].source.splitlines()
    assert codes[0].metadata["tags"] == ["parameters"]
    assert all(re.fullmatch(r"[A-Z][A-Z_0-9]* = .*\S +# .*\w.*", line) for line in lines), lines
    assert notebook_parameters(path)  # nothing but literals
    closing = "\n".join(cell.source for cell in texts[-2:])
    assert "## Takeaways" in closing and "**Limits.**" in closing
    assert "[contents](README.md)" in texts[-1].source


@each_notebook
def test_code_is_short_and_in_the_library(path: Path) -> None:
    counts = [code_lines(cell.source) for cell in cells(path, "code")]
    assert sum(counts) <= 120 and max(counts) <= 20
    assert not any(re.search(r"^class ", cell.source, re.M) for cell in cells(path, "code"))


@each_notebook
def test_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    assert f"({path.name})" in (path.parent / "README.md").read_text()


@each_notebook
def test_what_it_reads_does_not_depend_on_where_it_lies(path: Path) -> None:
    """Of paths only that of the run store, which a notebook writes, is relative."""
    lines = [line for cell in cells(path, "code") for line in cell.source.splitlines()]
    assert [line for line in lines if re.search(r"[\"']\.\.?/", line) and not line.startswith("RUNS = ")] == []


@each_notebook
def test_committed_outputs(path: Path) -> None:
    """Executed at its defaults from the source as it stands, without errors, widgets or the author's paths."""
    assert outputs_match_source(path), f"the source of {path.name} changed: make notebooks"
    assert path.stat().st_size <= 500_000
    text = path.read_text()
    assert "application/vnd.jupyter.widget" not in text
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)
    counts = []
    for cell in cells(path, "code"):
        counts.append(cell.execution_count)
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            if "application/vnd.plotly.v1+json" in output.get("data", {}):
                assert "image/png" in output.data, "a figure without an image cannot be read on a code host"
                assert "text/html" not in output.data
    assert counts == list(range(1, len(counts) + 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run store for all notebooks, as in a real series: what one trained the next finds."""
    return tmp_path_factory.mktemp("runs")


@each_notebook
def test_runs_at_smoke_scale(path: Path, runs: Path) -> None:
    result = run_notebook(path, smoke_values(path, runs), runs / "notebooks")
    assert result.ok, result.error
    assert result.html is not None and "plotly" in result.html.read_text()
    assert json.loads(result.notebook.with_suffix(".json").read_text())["status"] == "ok"
