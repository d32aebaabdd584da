"""The budget slider: what it greys out and names, and what a click shows."""

from __future__ import annotations

import html
import math
import re
from types import SimpleNamespace

import pytest
from test_tradeoffs import made

from redistill_lib import explorers
from redistill_lib.explorers.tradeoffs import TradeoffExplorer
from redistill_lib.figures import headline
from redistill_lib.figures.tradeoffs import OUT
from redistill_lib.tradeoffs import Tradeoffs, call, read_tradeoffs


@pytest.fixture(scope="module")
def everything() -> Tradeoffs:
    return read_tradeoffs(published=True)


@pytest.fixture
def explorer(everything: Tradeoffs) -> TradeoffExplorer:
    return TradeoffExplorer(everything, "cifar10", "16KB", "fp32", 3)


def text(value: str) -> str:
    return html.unescape(re.sub("<.*?>", " ", value))


def grey(explorer: TradeoffExplorer) -> set[str]:
    return {
        name
        for trace in explorer.figure.data
        if trace.customdata is not None and trace.text is not None
        for name, tone in zip(trace.customdata, trace.marker.color, strict=True)
        if tone == OUT
    }


def test_it_opens_with_the_best_within_the_budget(explorer: TradeoffExplorer) -> None:
    assert "Within 16 KiB (fp32) “small” does best on cifar10" in headline(explorer.figure)
    assert (explorer.budget.label, explorer.point.value, grey(explorer)) == ("16 KiB", "small", {"teacher"})
    best = explorer.result.panel("cifar10").row("small")
    assert text(explorer.code.value).strip() == call(best) and "user-select:all" in explorer.code.value


def test_moving_the_budget(explorer: TradeoffExplorer) -> None:
    """14 KiB holds the narrow network alone, 80 KiB all; each opens behind its best."""
    steps = dict(explorer.budget.options)
    explorer.budget.value = steps["12 KiB"]
    assert headline(explorer.figure).startswith("Nothing fits 12 KiB") and len(grey(explorer)) == 8
    assert explorer.code.value == ""
    explorer.budget.value = steps["96 KiB"]
    assert "all 8 fit" in headline(explorer.figure) and grey(explorer) == set()
    assert all(re.fullmatch(r"[\d.]+ [KM]iB", label) for label in steps)


def test_int8_is_a_quarter(explorer: TradeoffExplorer) -> None:
    explorer.dtype.value = "int8"
    explorer.budget.value = dict(explorer.budget.options)["4 KiB"]
    assert "Within 4 KiB (int8) “small”" in headline(explorer.figure) and grey(explorer) == {"teacher"}
    assert "3.9 KiB" in headline(explorer.details[1][0])  # a quarter of 15.75


def test_a_click_shows_what_is_behind_the_point(explorer: TradeoffExplorer) -> None:
    trace = next(t for t in explorer.figure.data if t.text is not None and "late" in t.customdata)
    explorer.click(trace, SimpleNamespace(point_inds=[[*trace.customdata].index("late")]))
    assert explorer.point.value == "late"
    curves, memory, plans = (headline(figure) for figure, _ in explorer.details)
    assert curves.startswith("“late” ends at") and "The peak is 16.0 KiB" in memory and "8×8 maps" in plans
    explorer.budget.value = explorer.budget.options[-1][1]
    assert explorer.point.value == "late", "what was chosen by hand stays"
    front = next(t for t in explorer.figure.data if t.name == "Pareto front")
    explorer.click(front, SimpleNamespace(point_inds=[0]))
    assert explorer.point.value == "late"


def test_every_trace_can_be_clicked_after_a_redraw(
    explorer: TradeoffExplorer,
) -> None:
    """As the browser calls it, through the callbacks of the traces that are there after another panel was drawn."""
    from plotly.callbacks import InputDeviceState, Points

    explorer.data.value = "digits: FID"
    trace = next(t for t in explorer.figure.data if t.text is not None and "RED" in t.customdata)
    xs, ys = [trace.x[0]], [trace.y[0]]
    trace._dispatch_on_click(Points([0], xs, ys, trace.name, trace_index=0), InputDeviceState(button=0, buttons=0))
    assert explorer.point.value == trace.customdata[0] == "RED"
    assert "no curve" in text(explorer.details[0][1].value).lower() and explorer.shells[0].layout.display == "none"
    assert "34.2 KiB" in headline(explorer.details[1][0])


def test_the_authors_points_are_there_on_request(explorer: TradeoffExplorer) -> None:
    assert "stl10" not in [label for label, _ in explorer.data.options]
    explorer.published.value = "shown"
    explorer.data.value = "imagenet"
    assert "imagenet" in headline(explorer.figure)
    explorer.published.value = "hidden"
    assert explorer.data.value == "cifar10"


def test_points_without_teacher_or_images_say_so() -> None:
    explorer = TradeoffExplorer(made(("a", 4, 80.0, 1.0), data="faces", channels=math.nan), None, None, "fp32", 0)
    curves, memory, plans = (text(told.value) for _, told in explorer.details)
    assert "No curve of “a” is kept" in curves and "size of the images of faces" in memory and "faces" in plans
    assert explorer.published.disabled and explorer.budget.label == "4 KiB"


def test_nothing_is_shown_in_a_batch(everything: Tradeoffs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explorers.tradeoff_explorer(everything) is None
    monkeypatch.setattr(explorers, "is_live", lambda: True)
    view = explorers.tradeoff_explorer(everything, "digits: KID", dtype="int8")
    assert view is not None
    names = [control.description for control in view.children[0].children]
    assert names == ["data", "budget", "dtype", "published", "point"]
    assert view.children[0].children[0].value == "digits: KID"


def test_each_panel_can_be_opened(everything: Tradeoffs) -> None:
    """By the name that notebook 08 has of it; several are of one data set, in other seconds."""
    for name in everything.panels:
        explorer = TradeoffExplorer(everything, everything.panel(name).panels[0], None, "fp32", 0)
        told = [text(told.value) for _, told in explorer.details]
        assert explorer.data.value == name and not any("no points of" in each for each in told), told


def test_it_opens_with_what_is_asked_for(everything: Tradeoffs) -> None:
    explorer = TradeoffExplorer(everything, "imagenet", "1MB", "fp32", 0)
    assert explorer.published.value == "shown" and "Within 1 MiB (fp32) “RED resnet18" in headline(explorer.figure)
    with pytest.raises(ValueError, match="no points of 'cifar'"):
        TradeoffExplorer(everything, "cifar", None, "fp32", 0)
    with pytest.raises(ValueError, match="dtype='int4' is not"):
        TradeoffExplorer(everything, "cifar10", None, "int4", 0)
    with pytest.raises(ValueError, match="'much' is not an amount of memory"):
        TradeoffExplorer(everything, "cifar10", "much", "fp32", 0)
