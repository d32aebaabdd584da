"""The budget as a picture and as an explorer: every plan, the front, and what moves with the budget."""

from __future__ import annotations

import html
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_budget import X, pyramid
from test_figures import seen_by

import redistill_lib as rd
from redistill_lib import explorers, figures
from redistill_lib.budget import Blocks, BudgetFit, fit_to_budget
from redistill_lib.explorers.budget import BOTH, BudgetExplorer
from redistill_lib.figures import headline
from redistill_lib.figures.budget import at_budget, every_plan
from redistill_lib.looks import look
from redistill_lib.memory.profile import DTYPES

ROOT = Path(__file__).parents[1]
BLOCKS: tuple[Blocks, ...] = ("none", "published", "in place")


@pytest.fixture(scope="module")
def found() -> BudgetFit:
    return fit_to_budget(pyramid(), 2**62, X)


# ------------------------------------------------------------------------------------------------ one search for all


@pytest.mark.parametrize("blocks", BLOCKS)
def test_one_search_without_a_limit_answers_for_every_budget(found: BudgetFit, blocks: Blocks) -> None:
    for budget in ("8KB", "40KB", "200KB"):
        own = fit_to_budget(pyramid(), budget, X, blocks=blocks)
        assert found.within(budget, blocks).fits == own.fits
        assert str(found.within(budget, blocks)) == str(own)
    only = found.within("40KB", blocks, "int8")
    assert {fit.dtype for fit in (*only.own, *only.candidates)} == {"int8"}


def test_budgets_worth_asking_for_reach_from_nothing_to_the_teacher(found: BudgetFit) -> None:
    """The teacher holds 80 KiB in int8 and 320 KiB in fp32, so that 384 KiB is the last."""
    sizes = found.sizes()
    assert not any(found.within(sizes[0], blocks).fits for blocks in BLOCKS) and found.within(sizes[1], "none").fits
    assert sizes[-2] < max(own.plain.peak_bytes for own in found.own) <= sizes[-1] == 384 * 1024
    assert {size / 2 ** int(math.log2(size)) for size in sizes} == {1, 1.5}


def test_the_call_makes_the_network(found: BudgetFit) -> None:
    fit = found.within("40KB", dtype="int8")
    names = {"rd": rd, "model": pyramid(), "x": X}
    exec(fit.call(fit.best), names)
    profile = rd.profile_memory(names["student"], X, dtype="int8")  # type: ignore[arg-type]
    assert profile.peak_bytes == fit.best.plain.peak_bytes
    assert found.call(found.own[0]).startswith("student = model")
    named = fit_to_budget("resnet18", "96KB", X, dtypes="int8", plans="8-11221")
    assert named.call(named.best) == 'student = rd.create_model("resnet18-8-11221")'


# ---------------------------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("blocks", BLOCKS)
def test_every_plan_is_there_and_the_front_is_large(found: BudgetFit, blocks: Blocks) -> None:
    fit = found.within("40KB", blocks)
    small, large = (traces[0::2] for traces in (figures.budget(fit).data[:4], figures.budget(fit).data[1:5]))
    assert [trace.name for trace in large] == ["fp32", "int8"]
    spots = [spot for trace in (*small, *large) for spot in zip(trace.x, trace.y, strict=True)]
    wanted = [((one.needs(blocks) or one.plain).needed_bytes, one.plain.flops / 2e6) for one in fit.candidates]
    assert sorted(spots) == sorted(wanted)
    for trace in large:
        assert list(trace.x) == sorted(trace.x) and list(trace.y) == sorted(trace.y) and trace.line.shape == "hv"
    for k, trace in enumerate(small):  # each is beaten by one of the front
        front = list(zip(large[k].x, large[k].y, strict=True))
        assert all(any(a <= x and b >= y for a, b in front) for x, y in zip(trace.x, trace.y, strict=True))


@pytest.mark.parametrize("blocks", BLOCKS)
def test_a_bar_reaches_from_no_blocks_to_blocks_as_published(found: BudgetFit, blocks: Blocks) -> None:
    fit = found.within("40KB", blocks, "int8")
    _, large, *_ = figures.budget(fit).data
    front = fit.within(2**62).fits[::-1]
    reach = zip(large.x, large.error_x.arrayminus, large.error_x.array, strict=True)
    ends = [(x - less, x + more) for x, less, more in reach]
    assert ends == [(one.peak("none"), one.peak("published")) for one in front]
    assert any(more > less for less, more in ends)  # three maps where there were two
    for one, told in zip(front, large.hovertext, strict=True):
        assert f"<b>{one.plan} in int8</b>" in told and f"set by {fit.row(one)['set by']}" in told
        assert all(fit.row(one)[name] in told for name in ("peak", "with RED", "RED in place"))


def test_the_title_is_the_finding_and_the_ring_is_at_it(found: BudgetFit) -> None:
    """×2 in the stem holds two maps of 16·32·32 bytes; the teacher one of 16·64·64 and the next one, 80 KiB."""
    figure = figures.budget(found.within("40KB", "in place", "int8"))
    title = "Sequential in 40.0 KiB: 2-122 in int8 keeps most with RED blocks in place, "
    assert headline(figure).startswith(title)
    assert headline(figure).endswith("; peak 32.0 KiB, 2.5× less than the teacher")
    assert list(figure.data[-1].x) == [32 * 1024]
    veil, line = figure.layout.shapes
    assert line.x0 == line.x1 == 40 * 1024 < veil.x0 < 44 * 1024 and veil.x1 > max(figure.data[1].x)
    texts = [note.text for note in figure.layout.annotations]
    assert texts == ["<b>budget 40 KiB</b>", "<b>2-122</b><br>int8, 32.0 KiB", "teacher"]
    assert 'rd.derive_student(model, plan="2-122", example=x)' in figure.layout.title.text.replace("<br>", " ")
    assert headline(figures.budget(found.within("1KB"))).startswith("no plan of Sequential fits 1.0 KiB")


def test_the_slider_needs_no_kernel(found: BudgetFit) -> None:
    """Each of its steps holds all that another budget changes."""
    figure = figures.budget(found.within("40KB"), found.sizes())
    slider = figure.layout.sliders[0]
    assert [step.label for step in slider.steps].count("40 KiB") == 1
    assert slider.steps[slider.active].label == "40 KiB"
    assert len(slider.steps) == len(found.sizes()) + 1
    for size, step in zip(sorted({*found.sizes(), 40 * 1024}), slider.steps, strict=True):
        fresh = figures.budget(found.within(size))
        ring, layout, traces = step.args
        assert list(traces) == [len(figure.data) - 1]
        assert list(fresh.data[-1].x) == list(ring["x"][0]) and list(fresh.data[-1].y) == list(ring["y"][0])
        assert layout["title.text"] == fresh.layout.title.text
        assert layout["shapes[0].x0"] > layout["shapes[1].x0"] == layout["shapes[1].x1"] == size
        assert layout["annotations[1].text"] == fresh.layout.annotations[1].text
    assert len(figure.to_json()) < 60_000


def test_a_moved_budget_is_that_drawn_anew(found: BudgetFit) -> None:
    moved = every_plan(found)
    for size in (*found.sizes(), 40 * 1024):
        assert at_budget(moved, found.within(size)) == figures.budget(found.within(size))


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
def test_dtypes_stay_apart(blindness: str) -> None:
    tones = {dtype: look(dtype) for dtype in DTYPES}
    assert len({symbol for _, symbol in tones.values()}) == len(DTYPES)
    for (one, _), (other, _) in itertools.combinations(tones.values(), 2):
        assert np.linalg.norm(seen_by(one, blindness) - seen_by(other, blindness)) > 18


# --------------------------------------------------------------------------------------------------- the explorer


@pytest.fixture
def explorer(found: BudgetFit) -> BudgetExplorer:
    return BudgetExplorer(found, sorted({*found.sizes(), 40 * 1024}), 40 * 1024)


def test_the_budget_moves_title_ring_call_and_table(explorer: BudgetExplorer, found: BudgetFit) -> None:
    assert (explorer.budget.label, explorer.dtype.value, explorer.blocks.label) == ("40 KiB", BOTH, "as published")
    for size in (32 * 1024, 40 * 1024, 96 * 1024):
        explorer.budget.value = size
        fit = found.within(size)
        assert headline(explorer.figure) == fit.verdict and list(explorer.figure.data[-1].x) == [
            fit.best.peak("published")
        ]
        assert fit.call(fit.best) in html.unescape(explorer.code.value)
        assert explorer.table.value.count("<tr") == len(fit.fits) + 1
    explorer.dtype.value, explorer.blocks.value = "fp32", "in place"
    fit = found.within(96 * 1024, "in place", "fp32")
    assert headline(explorer.figure) == fit.verdict and " in fp32 " in fit.verdict
    explorer.budget.value = found.sizes()[0]
    assert headline(explorer.figure).startswith("no plan of Sequential fits") and explorer.code.value == ""


def test_it_is_a_figure_in_a_batch_and_widgets_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, torch\nfrom redistill_lib import explorers\n"
        "net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, stride, 1) for stride in (1, 2, 2)))\n"
        "page = explorers.budget_explorer(net, example=torch.zeros(1, 3, 32, 32))\n"
        "assert len(page.layout.sliders) == 1 and 'redistill_lib.explorers.controls' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    monkeypatch.setattr(explorers, "is_live", lambda: True)
    view = explorers.budget_explorer(pyramid(), example=X, budget="40KB")
    assert [each.description for each in view.children[0].children] == ["budget", "dtype", "RED blocks"]
    with pytest.raises(ValueError, match="together with example="):
        explorers.budget_explorer(pyramid())


def test_a_transformer_takes_no_blocks() -> None:
    found = fit_to_budget("vit_pico", 2**62, torch.zeros(1, 3, 64, 64))
    explorer = BudgetExplorer(found, found.sizes(), found.sizes()[2])
    assert [value for _, value in explorer.blocks.options] == ["none"]
    assert "without RED blocks" in headline(explorer.figure)
