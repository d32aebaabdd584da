"""The quality figure: what the frame holds, a title no stronger than that, and nothing unlike side by side."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from redistill_lib import figures
from redistill_lib.figures import headline
from redistill_lib.looks import look
from redistill_lib.quality import Quality, compare_quality

MIB, NAN = 2**20, float("nan")
BY = {
    "n_fake": 5000, "n_real": 5000, "real": "ab12", "image": "3×32×32", "extractor": "teacher-9f31",
    "extractor_accuracy": 0.941, "num_features": 512, "resize": "none", "ema": True, "sampler": "ddim", "steps": 50,
}  # fmt: skip
ONE = [("teacher", 12.0, 9.0), ("student", 3.0, 15.0), ("kd", 3.0, 13.5), ("red", 3.1, 12.0)]


def quality(fid: float, kid: float | None = None, error: float = 0.4, **settings: Any) -> Quality:
    kid = fid / 1000 if kid is None else kid
    return Quality(fid, fid - 2, error, kid, 0.0011, 7.0, 0.1, 0.7, 0.6, {**BY, **settings})


def scores(rows: list[tuple[Any, ...]], **settings: Any) -> pd.DataFrame:
    """(role, MiB, FID[, KID]) each."""
    frames = [quality(*row[2:], **settings).to_frame().assign(role=row[0], peak_bytes=row[1] * MIB) for row in rows]
    return pd.concat(frames).assign(parameters=[int(1e6 * row[1]) for row in rows])


def note(figure: go.Figure) -> str:
    return re.sub(r"\s*<[^>]*>\s*", " ", figure.layout.title.text.partition("<span")[2])


def marks(figure: go.Figure, panel: str) -> dict[str, list[go.Scatter]]:
    """The means in a panel by name, the upper first."""
    found: dict[str, list[go.Scatter]] = {}
    for trace in figure.data:
        if trace.xaxis == panel and trace.error_x.array is not None:
            found.setdefault(trace.name, []).append(trace)
    return found


def points(figure: go.Figure, panel: str) -> dict[str, go.Scatter]:
    return {name: trace for name, [trace] in marks(figure, panel).items()}


def beside(figure: go.Figure) -> list[list[str]]:
    """What stands at the right of each row, from the upper on."""
    texts: dict[float, list[str]] = {}
    for note in figure.layout.annotations:
        if note.xref == "paper" and note.yref != "paper":
            texts.setdefault(note.y, []).append(note.text)
    return [texts[y] for y in sorted(texts)]


def test_points_and_intervals_are_the_frame_s() -> None:
    figure = figures.quality(scores(ONE))
    fid, kid = points(figure, "x"), points(figure, "x2")
    assert list(fid) == list(kid) == ["teacher", "RED", "KD", "naive student"]  # the lowest FID above
    assert [t.y[0] for t in fid.values()] == [t.y[0] for t in kid.values()] == [0, 1, 2, 3]
    assert {name: t.x[0] for name, t in fid.items()} == {"teacher": 9, "naive student": 15, "KD": 13.5, "RED": 12}
    assert kid["RED"].x[0] == pytest.approx(12) and kid["RED"].error_x.array[0] == pytest.approx(1.1)
    assert fid["RED"].error_x.array[0] == pytest.approx(0.4)
    assert list(figure.layout.yaxis.ticktext) == [f"<b>{name}</b>" for name in fid]
    assert beside(figure)[:2] == [["12.0 MiB", "12,000,000"], ["3.10 MiB", "3,100,000"]]
    assert {(t.marker.color, t.marker.symbol) for t in figure.data if t.name == "RED" and len(t.x)} == {look("red")}


def test_axes_suit_what_they_show() -> None:
    """Through Inception KID is told in thousandths, through a small classifier it may be near one."""
    figure = figures.quality(scores([("teacher", 0.125, 9.0, 0.41), ("student", 0.03125, 15.0, 0.62)]))
    assert [cells[0] for cells in beside(figure)] == ["128 KiB", "32.0 KiB"]
    assert [t.x[0] for t in points(figure, "x2").values()] == [0.41, 0.62]
    assert "0.41 ± 0.00" in points(figure, "x2")["teacher"].hovertemplate
    assert figure.layout.xaxis2.title.text == "KID (lower is better)"
    assert figures.quality(scores(ONE)).layout.xaxis2.title.text == "KID × 1,000 (lower is better)"


def test_the_title_says_who_is_best_and_that_it_is_one_run() -> None:
    figure = figures.quality(scores(ONE))
    expected = "The lowest FID in one run: RED 12.0 (naive student 15.0) at 3.10 MiB; teacher 9.0 at 12.0 MiB"
    assert headline(figure) == expected == compare_quality(scores(ONE)).headline()
    assert "5,000 generated, 5,000 real images, 3×32×32, by teacher-9f31, 512 features, test accuracy 94.1%" in note(
        figure
    )
    assert "resize none, sampler ddim, 50 steps, EMA True." in note(figure)
    assert "Line: 95 % over draws of images" in note(figure) and "not over seeds" in note(figure)
    assert "Dots" not in note(figure)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [*ONE[:3], ("red", 3.1, 13.2)],
            "in one run: RED 13.2 (naive student 15.0; too close to KD to tell) at 3.10 MiB",
        ),
        ([*ONE[:3], ("red", 3.1, 16.0)], "KD 13.5 (naive student 15.0) at 3.00 MiB; teacher 9.0"),
        ([*ONE[:2], ("red", 3.1, 16.0)], "in one run: naive student 15.0 (RED 16.0) at 3.00 MiB"),
        ([*ONE[:3], ("red", 3.1, 12.0, 0.02)], "; by KID KD is ahead)"),
        (ONE[1:], "in one run: RED 12.0 (naive student 15.0) at 3.10 MiB"),
        (ONE[:1], "The lowest FID in one run: teacher 9.0 at 12.0 MiB"),
        (
            [*ONE, ("naive", 6.0, 11.0), ("red", 6.1, 10.8)],
            "The lowest FID in one run: RED 12.0 (naive student 15.0) at 3.10 MiB; "
            "RED 10.8 (naive student 11.0; too close to the naive student to tell) at 6.10 MiB",
        ),
    ],
)
def test_the_title_is_no_stronger_than_the_scores(rows: list[tuple[Any, ...]], expected: str) -> None:
    assert expected in headline(figures.quality(scores(rows)))


def test_runs_are_averaged_and_their_interval_is_over_seeds() -> None:
    rows = [(role, mib, fid + d) for role, mib, fid in ONE for d in (-1.0, 0.0, 1.0)]
    figure = figures.quality(scores(rows))
    trace = points(figure, "x")["RED"]
    assert list(trace.x) == [12.0]
    dots = [t for t in figure.data if t.name == "RED" and t.xaxis == "x" and t is not trace]
    assert sorted(x for t in dots for x in t.x) == [11.0, 12.0, 13.0]
    assert trace.error_x.array[0] == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # t with two degrees of freedom
    assert headline(figure).startswith("The lowest FID on average: RED 12.0 (naive student 15.0; too close to KD to")
    assert "t-interval over runs" in note(figure) and "Dots: runs." in note(figure)


def test_students_of_one_teacher_are_compared_in_pairs() -> None:
    rows = [(role, mib, fid + d) for role, mib, fid in ONE for d in (-4.0, 0.0, 4.0)]
    assert "too close to KD and the naive student to tell" in headline(figures.quality(scores(rows)))
    seeded = scores(rows).assign(seed=[0, 1, 2] * len(ONE))
    assert "RED 12.0 (naive student 15.0) at" in headline(figures.quality(seeded))


def test_seeds_a_few_bytes_apart_are_one_point() -> None:
    """And students of one role at two budgets are two."""
    near = [("red", 2 + 1e-4 * k, 12.0 + k) for k in range(3)]
    figure = figures.quality(scores([("student", 2, 15.0), *near, ("red", 4, 10.0), ("teacher", 9, 9.0)]))
    four, two = marks(figure, "x")["RED"]
    assert (four.x[0], two.x[0]) == (10, 13) and "1 run<" in four.hovertemplate and "3 runs<" in two.hovertemplate
    assert beside(figure)[int(two.y[0])] == ["2.00 MiB", "2,000,100"] and beside(figure)[1][0] == "4.00 MiB"
    alone = figures.quality(scores([("red", 2.0, 12.0), ("red", 2.2, 14.0)]))
    assert points(alone, "x")["RED"].x[0] == 13 and beside(alone) == [["2.10 MiB", "2,100,000"]]


@pytest.mark.parametrize(
    ("column", "rows", "value", "message"),
    [
        ("fid", ["red"], NAN, "the frame has no fid for RED; give"),
        ("kid", ["naive", "red"], NAN, "no kid for naive student and RED; give"),
        ("peak_bytes", ["red"], NAN, "no peak_bytes above 0 for RED; give"),
        (
            "peak_bytes",
            ["teacher", "naive", "kd", "red"],
            0,
            "no peak_bytes above 0 for teacher, naive student, KD and",
        ),
        ("parameters", ["kd"], 0, "no parameters above 0 for KD; give"),
    ],
)
def test_what_is_missing_is_no_finding(column: str, rows: list[str], value: float, message: str) -> None:
    frame = scores([("naive" if role == "student" else role, *rest) for role, *rest in ONE])
    frame[column] = frame[column].where(~frame["role"].isin(rows), value)
    with pytest.raises(ValueError, match=message):
        figures.quality(frame)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ONE, "RED 12.0 (naive student 15.0; too close to KD and the naive student to tell)"),
        (ONE[:2], "teacher 9.0 (naive student 15.0; too close to the naive student to tell) at 12.0 MiB"),
        (
            [*ONE, ("naive", 6.0, 11.0), ("red", 6.1, 5.0)],
            "RED 5.0 (naive student 11.0; too close to the naive student to tell)",
        ),
    ],
)
def test_without_an_interval_nothing_is_decided(rows: list[tuple[Any, ...]], expected: str) -> None:
    figure = figures.quality(scores(rows).assign(fid_error=NAN))
    assert expected in headline(figure)
    assert marks(figure, "x")["teacher"][0].hovertemplate.startswith("<b>teacher</b>: FID 9.0, 1 run<")


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"n_real", "image", "sampler"}, "5,000 real images, 3×32×32, sampler ddim, steps not stated, ema not"),
        ({"extractor", "steps"}, "By teacher-9f31, sampler not stated, 50 steps, ema not stated."),
        ({"ema"}, "Sampler not stated, steps not stated, EMA True."),
    ],
)
def test_the_caption_leaves_out_what_is_not_said(kept: set[str], expected: str) -> None:
    figure = figures.quality(scores(ONE).drop(columns=[f"settings.{name}" for name in BY if name not in kept]))
    assert expected in note(figure) and "generated" not in note(figure)


def test_floor_is_a_line_where_it_belongs() -> None:
    real = dict.fromkeys(("ema", "sampler", "steps"), "real images")
    figure = figures.quality(scores(ONE, guidance=2), floor=quality(2.0, **real))
    assert [shape.x0 for shape in figure.layout.shapes] == [2.0, 2.0]
    assert "real images, one half against the other" in note(figure)
    with pytest.raises(ValueError, match=r"this floor does not belong to these scores: .* n_real is 5000 and 2500"):
        figures.quality(scores(ONE), floor=quality(2.0, n_real=2500, **real))


def test_unlike_scores_get_no_figure() -> None:
    unlike = pd.concat([scores(ONE[:3]), scores(ONE[3:], steps=20)])
    with pytest.raises(ValueError, match="scores 0 and 3 cannot be compared: steps is 50 and 20"):
        figures.quality(unlike)
    with pytest.raises(ValueError, match="the frame lacks peak_bytes, parameters; it has fid"):
        figures.quality(scores(ONE).drop(columns=["peak_bytes", "parameters"]))
    with pytest.raises(ValueError, match="there is no score to show"):
        figures.quality(scores(ONE)[:0])


def test_what_nobody_stated_is_said() -> None:
    figure = figures.quality(scores(ONE, ema=None, sampler=None, steps=None, extractor_accuracy=None))
    expected = "by teacher-9f31, 512 features, resize none, sampler not stated, steps not stated, ema not stated."
    assert expected in note(figure)
