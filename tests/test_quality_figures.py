"""The quality figure: what the frame holds, a title no stronger than that, and nothing unlike side by side."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from redistill_lib.figures import quality_vs_memory
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


def headline(figure: go.Figure) -> str:
    return " ".join(re.findall(r"<b>(.*?)</b>", figure.layout.title.text))


def note(figure: go.Figure) -> str:
    return re.sub(r"\s*<[^>]*>\s*", " ", figure.layout.title.text.partition("<span")[2])


def points(figure: go.Figure, panel: str) -> dict[str, go.Scatter]:
    return {t.name: t for t in figure.data if t.name and t.yaxis == panel}


def test_points_and_intervals_are_the_frame_s() -> None:
    figure = quality_vs_memory(scores(ONE))
    fid, kid = points(figure, "y"), points(figure, "y2")
    assert list(fid) == list(kid) == ["teacher", "naive student", "KD", "RED"]
    assert {name: t.y[0] for name, t in fid.items()} == {"teacher": 9, "naive student": 15, "KD": 13.5, "RED": 12}
    assert kid["RED"].y[0] == pytest.approx(12) and kid["RED"].error_y.array[0] == pytest.approx(1.1)
    assert fid["RED"].error_y.array[0] == pytest.approx(0.4)
    assert fid["teacher"].x[0] == 12 and "12.0 MiB at peak, 12,000,000 parameters" in fid["teacher"].customdata[0]
    assert "3.10 MiB at peak" in fid["RED"].customdata[0]
    assert fid["naive student"].x[0] < fid["KD"].x[0] < fid["RED"].x[0]  # side by side
    bubbles = [t.marker for t in figure.data if not t.name and t.yaxis == "y"]
    assert [m.sizemode for m in bubbles] == ["area"] * 4
    assert [list(m["size"]) for m in bubbles] == [[12e6], [3e6], [3e6], [3.1e6]]


def test_axes_suit_what_they_show() -> None:
    """Through Inception KID is told in thousandths, through a small classifier it may be near one."""
    figure = quality_vs_memory(scores([("teacher", 0.125, 9.0, 0.41), ("student", 0.03125, 15.0, 0.62)]))
    assert figure.layout.xaxis.title.text == "peak memory, activations (KiB)"
    assert [t.x[0] for t in points(figure, "y").values()] == [128, 32]
    assert [t.y[0] for t in points(figure, "y2").values()] == [0.41, 0.62]
    assert figure.layout.yaxis2.title.text == "KID (lower is better)"
    other = quality_vs_memory(scores(ONE)).layout
    assert "MiB" in other.xaxis.title.text and other.yaxis2.title.text == "KID × 1,000 (lower is better)"


def test_the_title_says_who_is_best_and_that_it_is_one_run() -> None:
    figure = quality_vs_memory(scores(ONE))
    expected = "The lowest FID in one run: RED 12.0 (naive student 15.0) at 3.10 MiB; teacher 9.0 at 12.0 MiB"
    assert headline(figure) == expected == compare_quality(scores(ONE)).headline()
    assert "5,000 generated, 5,000 real images, 3×32×32, by teacher-9f31, 512 features, test accuracy 94.1%" in note(
        figure
    )
    assert "resize none, sampler ddim, 50 steps, EMA True." in note(figure)
    assert "Line: 95 % over draws of images" in note(figure) and "not over seeds" in note(figure)
    assert "Area: parameters, 3.0 M to 12.0 M." in note(figure)


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
    assert expected in headline(quality_vs_memory(scores(rows)))


def test_runs_are_averaged_and_their_interval_is_over_seeds() -> None:
    rows = [(role, mib, fid + d) for role, mib, fid in ONE for d in (-1.0, 0.0, 1.0)]
    figure = quality_vs_memory(scores(rows))
    trace = points(figure, "y")["RED"]
    assert list(trace.y) == [12.0]
    assert trace.error_y.array[0] == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # t with two degrees of freedom
    assert headline(figure).startswith("The lowest FID on average: RED 12.0 (naive student 15.0; too close to KD to")
    assert "t-interval over runs" in note(figure)


def test_students_of_one_teacher_are_compared_in_pairs() -> None:
    rows = [(role, mib, fid + d) for role, mib, fid in ONE for d in (-4.0, 0.0, 4.0)]
    assert "too close to KD and the naive student to tell" in headline(quality_vs_memory(scores(rows)))
    seeded = scores(rows).assign(seed=[0, 1, 2] * len(ONE))
    assert "RED 12.0 (naive student 15.0) at" in headline(quality_vs_memory(seeded))


def test_seeds_a_few_bytes_apart_are_one_point() -> None:
    """And students of one role at two budgets are two."""
    near = [("red", 2 + 1e-4 * k, 12.0 + k) for k in range(3)]
    figure = quality_vs_memory(scores([("student", 2, 15.0), *near, ("red", 4, 10.0), ("teacher", 9, 9.0)]))
    trace = points(figure, "y")["RED"]
    assert list(trace.y) == [13, 10] and "3 runs<br>2.00 MiB at peak, 2,000,100 parameters" in trace.customdata[0]
    assert "1 run<br>4.00 MiB" in trace.customdata[1]
    alone = quality_vs_memory(scores([("red", 2.0, 12.0), ("red", 2.2, 14.0)]))
    assert points(alone, "y")["RED"].x[0] == pytest.approx(2.1, abs=1e-6)


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
        quality_vs_memory(frame)


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
    figure = quality_vs_memory(scores(rows).assign(fid_error=NAN))
    assert expected in headline(figure)
    assert points(figure, "y")["teacher"].customdata[0].startswith("9.0, 1 run<br>")


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({"n_real", "image", "sampler"}, "5,000 real images, 3×32×32, sampler ddim, steps not stated, ema not"),
        ({"extractor", "steps"}, "By teacher-9f31, sampler not stated, 50 steps, ema not stated."),
        ({"ema"}, "Sampler not stated, steps not stated, EMA True."),
    ],
)
def test_the_caption_leaves_out_what_is_not_said(kept: set[str], expected: str) -> None:
    figure = quality_vs_memory(scores(ONE).drop(columns=[f"settings.{name}" for name in BY if name not in kept]))
    assert expected in note(figure) and "generated" not in note(figure)


def test_floor_is_a_line_where_it_belongs() -> None:
    real = dict.fromkeys(("ema", "sampler", "steps"), "real images")
    figure = quality_vs_memory(scores(ONE, guidance=2), floor=quality(2.0, **real))
    assert [shape.y0 for shape in figure.layout.shapes] == [2.0, 2.0]
    assert "real images, one half against the other" in note(figure)
    with pytest.raises(ValueError, match=r"this floor does not belong to these scores: .* n_real is 5000 and 2500"):
        quality_vs_memory(scores(ONE), floor=quality(2.0, n_real=2500, **real))


def test_unlike_scores_get_no_figure() -> None:
    unlike = pd.concat([scores(ONE[:3]), scores(ONE[3:], steps=20)])
    with pytest.raises(ValueError, match="scores 0 and 3 cannot be compared: steps is 50 and 20"):
        quality_vs_memory(unlike)
    with pytest.raises(ValueError, match="the frame lacks peak_bytes, parameters; it has fid"):
        quality_vs_memory(scores(ONE).drop(columns=["peak_bytes", "parameters"]))
    with pytest.raises(ValueError, match="there is no score to show"):
        quality_vs_memory(scores(ONE)[:0])


def test_what_nobody_stated_is_said() -> None:
    figure = quality_vs_memory(scores(ONE, ema=None, sampler=None, steps=None, extractor_accuracy=None))
    expected = "by teacher-9f31, 512 features, resize none, sampler not stated, steps not stated, ema not stated."
    assert expected in note(figure)
