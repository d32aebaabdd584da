"""Sweeps: what is run and what is not, and what is left of it. No kernel starts."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from redistill_lib.cli import main
from redistill_lib.sweep import (
    Point,
    Sweep,
    SweepOptions,
    SweepResult,
    loop,
    manifest,
    run_sweep,
    runner,
    summarise,
    worker,
)
from redistill_lib.sweep.arguments import shard
from redistill_lib.sweep.kernel import NotebookError
from redistill_lib.sweep.notebook import NotebookResult
from redistill_lib.sweep.progress import Progress
from redistill_lib.sweep.workers import Elsewhere

MakeNotebook = Callable[..., Path]


class Inline(Executor):
    """An executor that runs what it is given at once, here."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Notebooks:
    """Stands in for `run_notebook`: what ran, and how each ends."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.errors: dict[str, list[BaseException | NotebookError]] = {}
        self.timeouts: list[float | None] = []

    def __call__(
        self, path: Path, parameters: Mapping[str, Any], folder: Path, *, name: str, timeout: float | None, **_: Any
    ) -> NotebookResult:
        self.ran.append(name)
        self.timeouts.append(timeout)
        error = self.errors[name].pop(0) if self.errors.get(name) else None
        if isinstance(error, BaseException):
            raise error
        file = folder / f"{name}.ipynb"
        file.write_text("x" * 1000)
        status = "ok" if error is None else "failed"
        return NotebookResult(name, status, 1.0, error, dict(parameters), file, None)


@pytest.fixture
def notebooks(monkeypatch: pytest.MonkeyPatch) -> Notebooks:
    found = Notebooks()
    monkeypatch.setattr(worker, "run_notebook", found)
    monkeypatch.setattr(worker, "recorded", lambda _: pd.DataFrame())
    return found


@pytest.fixture
def sweep(make_notebook: MakeNotebook, tmp_path: Path) -> Sweep:
    """Four points: LR × SEED."""
    path = make_notebook("tour", parameters="LR = 0.1\nSEED = 0\nNOTE = ''")
    points = [
        Point(f"tour-LR={rate}-SEED={seed}", (path,), {"NOTE": "n", "LR": rate, "SEED": seed}, f"{rate}-{seed}")
        for rate in (0.1, 0.2)
        for seed in (0, 1)
    ]
    return Sweep("rates", tmp_path / "rates.yaml", (path,), tuple(points), "grid: …")


def run(sweep: Sweep, folder: Path, **options: Any) -> SweepResult:
    return run_sweep(sweep, folder, executor=Inline(), options=SweepOptions(**options))


def names(sweep: Sweep, *numbers: int) -> list[str]:
    return [sweep.points[number].name for number in numbers]


# what is run


def test_done_points_are_not_run_again(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(sweep, tmp_path)
    assert first.ok and first.exit_code == 0
    assert notebooks.ran == list(first.ran) == names(sweep, 0, 1, 2, 3)
    (tmp_path / "rates" / "points" / f"{sweep.points[2].name}.json").unlink()
    capsys.readouterr()
    again = run(sweep, tmp_path)
    assert again.ran == (sweep.points[2].name,)
    assert [status.name for status in again.statuses] == names(sweep, 0, 1, 2, 3)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "rates: 3 of 4 points are done"
    assert told[-1].startswith(f"[4/4] {sweep.points[2].name}: ok, ")
    assert run(sweep, tmp_path, force=True).ran == first.ran
    assert len(notebooks.ran) == 4 + 1 + 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("values", "LR 0.2 → 0.3 changed: tour-LR=0.2-SEED=0, tour-LR=0.2-SEED=1"),
        ("cells", "cells of tour changed: tour-LR=0.1-SEED=0, tour-LR=0.1-SEED=1 and 2 more"),
        (
            "default",
            "a default, a folder or a module of your own changed: tour-LR=0.1-SEED=0, tour-LR=0.1-SEED=1 and 2 more",
        ),
        ("code", "the library's code changed: tour-LR=0.1-SEED=0, tour-LR=0.1-SEED=1 and 2 more"),
    ],
)
def test_changed_points_are_run_again_and_named(
    sweep: Sweep,
    notebooks: Notebooks,
    make_notebook: MakeNotebook,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    told: str,
) -> None:
    run(sweep, tmp_path)
    points = [replace(point, key=f"new {point.key}") for point in sweep.points]
    if change == "cells":
        make_notebook("tour", "1 + 1", parameters="LR = 0.1\nSEED = 0\nNOTE = ''")
    if change == "code":
        for file in (tmp_path / "rates" / "points").glob("*.json"):
            file.write_text(json.dumps({**json.loads(file.read_text()), "versions": {"code": "another"}}))
    if change == "values":
        new = [replace(point, parameters={**point.parameters, "LR": 0.3}) for point in points[2:]]
        points = [*sweep.points[:2], *new]
    capsys.readouterr()
    again = run(replace(sweep, points=tuple(points)), tmp_path)
    assert f"rates: run again, for {told}\n" in capsys.readouterr().err
    assert len(again.ran) == (2 if change == "values" else 4)
    assert all(status.attempts == 1 for status in again.statuses)


def test_only_those_that_failed(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    bad, later = names(sweep, 1, 3)
    notebooks.errors = {bad: [NotebookError(4, "ValueError", "no\nnever")]}
    first = run(replace(sweep, points=sweep.points[:3]), tmp_path)
    assert (first.exit_code, [status.status for status in first.statuses]) == (1, ["ok", "failed", "ok"])
    assert first.statuses[1].error == "In [4]: ValueError: no\nnever"
    again = run(sweep, tmp_path, failed=True)
    assert again.ran == (bad,) and again.ok
    assert again.statuses[1].attempts == 2
    assert later not in notebooks.ran


def test_a_point_that_fails_stops_others_only_where_asked(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    failure = RuntimeError("not of a cell")  # such as papermill does not wrap
    notebooks.errors = {sweep.points[1].name: [failure, failure]}
    assert len(run(sweep, tmp_path / "a").ran) == 4

    class Slow(Inline):
        """The third point waits in a queue, so that it can be taken back."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(fn, *args, **kwargs) if len(notebooks.ran) < 6 else Future()

    result = run_sweep(sweep, tmp_path / "b", executor=Slow(), options=SweepOptions(fail_fast=True))
    assert list(result.ran) == names(sweep, 0, 1)
    assert list(result.left) == names(sweep, 2, 3)
    assert result.exit_code == 1
    assert result.statuses[1].error == "RuntimeError: not of a cell"


@pytest.mark.parametrize(
    ("deaths", "retries", "status"), [(1, 1, "ok"), (2, 1, "died"), (2, 2, "ok"), (1, 0, "died")]
)
def test_dead_kernels_are_tried_again(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, deaths: int, retries: int, status: str
) -> None:
    name = sweep.points[0].name
    notebooks.errors = {name: [NotebookError(None, "DeadKernelError", "Kernel died")] * deaths}
    result = run(sweep, tmp_path, retries=retries)
    assert result.statuses[0].status == status
    assert notebooks.ran.count(name) == min(deaths, retries) + 1 == result.statuses[0].attempts


def test_what_was_killed_took_as_long_as_it_ran(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not until its last cell began, which is all that its worker had told."""
    now = [100.0]
    monkeypatch.setattr("redistill_lib.sweep.progress.time.monotonic", lambda: now[0])
    point = sweep.points[0]

    class Killed(Inline):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            told = manifest.PointStatus(point.name, point.key, "running", args[0].session, cell="7/20", seconds=97.0)
            manifest.write_status(tmp_path / "rates", told)
            self.future = Future[Any]()
            return self.future

    class Watched(loop.Run):
        def _look(self) -> None:
            super()._look()
            if not executor.future.done():
                now[0] += 175.0
                executor.future.set_exception(BrokenProcessPool())

    executor = Killed()
    monkeypatch.setattr(loop, "Workers", lambda jobs: Elsewhere(executor))
    monkeypatch.setattr(runner, "Run", Watched)
    result = run_sweep(replace(sweep, points=(point,)), tmp_path, options=SweepOptions(retries=0))
    (status,) = result.statuses
    assert (status.status, status.seconds, status.error) == ("died", 272.0, "its worker process was killed")
    assert manifest.read_status(tmp_path / "rates", point.name) == status


def test_what_had_not_begun_when_it_was_interrupted_is_left_as_it_was(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with --force and a signal while workers start."""
    before = run(sweep, tmp_path)

    class Starting(Inline):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            signal.raise_signal(signal.SIGINT)
            future = Future[Any]()
            future.set_running_or_notify_cancel()  # so that it cannot be taken back
            return future

    monkeypatch.setattr(loop, "Workers", lambda jobs: Elsewhere(Starting()))
    monkeypatch.setattr(loop, "GRACE", (0.0,))
    result = run_sweep(sweep, tmp_path, options=SweepOptions(force=True))
    assert result.signal == signal.SIGINT and result.ran == () and list(result.left) == names(sweep, 0, 1, 2, 3)
    assert run(sweep, tmp_path).statuses == before.statuses


def test_shares_make_one_table(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    assert list(run(sweep, tmp_path, shard=(1, 3)).ran) == names(sweep, 0, 3)
    assert list(run(sweep, tmp_path, shard=(2, 3)).ran) == names(sweep, 1)
    result = run(sweep, tmp_path, shard=(3, 3))
    assert list(result.ran) == names(sweep, 2)
    assert result.table is not None
    assert pd.read_csv(result.table)["point"].tolist() == names(sweep, 0, 1, 2, 3)


def test_notebooks_run_in_turn_with_their_own_parameters(
    sweep: Sweep, notebooks: Notebooks, make_notebook: MakeNotebook, tmp_path: Path
) -> None:
    second = make_notebook("after", parameters="LR = 0.1")
    point = replace(sweep.points[0], notebooks=(*sweep.notebooks, second))
    given: list[Mapping[str, Any]] = []

    def watched(path: Path, parameters: Mapping[str, Any], *rest: Any, **more: Any) -> NotebookResult:
        given.append(parameters)
        return notebooks(path, parameters, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "run_notebook", watched)
        result = run(replace(sweep, points=(point,)), tmp_path, timeout=60.0)
    assert notebooks.ran == [f"{point.name}-tour", f"{point.name}-after"]
    assert given == [point.parameters, {"LR": 0.1}]
    assert result.statuses[0].bytes == 2000
    assert notebooks.timeouts[0] == pytest.approx(60.0, abs=5.0)


# what is kept


def test_manifest_and_status(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    run(sweep, tmp_path)
    folder = tmp_path / "rates"
    plan = json.loads((folder / "manifest.json").read_text())
    assert plan["file"] == str(sweep.file) and plan["text"] == sweep.text
    assert plan["points"][1] == {
        "name": "tour-LR=0.1-SEED=1",
        "key": "0.1-1",
        "parameters": {"NOTE": "n", "LR": 0.1, "SEED": 1},
    }
    assert set(plan["versions"]) == {"python", "torch", "redistill_lib", "code"}
    status = json.loads((folder / "points" / "tour-LR=0.1-SEED=1.json").read_text())
    assert (status["status"], status["key"], status["attempts"], status["pid"]) == ("ok", "0.1-1", 1, os.getpid())
    assert list((folder / "claims").iterdir()) == []


def test_two_files_of_one_stem_are_not_mixed(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    run(sweep, tmp_path)
    other = replace(sweep, file=tmp_path / "other" / "rates.yaml", text="grid: another")
    with pytest.raises(ValueError, match=r"holds the sweep of .*rates\.yaml, not of .*other.*: give another"):
        run(other, tmp_path)
    assert len(notebooks.ran) == 4
    moved = replace(sweep, file=tmp_path / "moved" / "rates.yaml")  # the same points, elsewhere
    assert run(moved, tmp_path).ran == ()


def test_shrunken_sweeps_leave_files_and_tabulate_their_own(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(sweep, tmp_path)
    capsys.readouterr()
    result = run(replace(sweep, points=sweep.points[1:2]), tmp_path)
    assert "not in the table: 3 points in the folder, of an earlier file or another -p" in capsys.readouterr().err
    assert result.table is not None
    assert pd.read_csv(result.table)["point"].tolist() == names(sweep, 1)
    assert len(list((tmp_path / "rates" / "points").glob("*.json"))) == 4
    assert list(manifest.planned_statuses(tmp_path / "rates") or ()) == names(sweep, 1)


def test_a_full_disk_is_one_sentence(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker.write_status

    def write(folder: Path, status: manifest.PointStatus) -> manifest.PointStatus:
        if status.name == sweep.points[2].name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(folder, status)

    monkeypatch.setattr(worker, "write_status", write)
    result = run(sweep, tmp_path)
    assert result.problem is not None and result.problem.endswith(
        "cannot be written (No space left on device): free some space and start again; what is done is kept"
    )
    assert result.exit_code == 1 and sweep.points[2].name in result.left
    monkeypatch.setattr(worker, "write_status", real)
    assert run(sweep, tmp_path).ok
    assert [notebooks.ran.count(name) for name in names(sweep, 0, 1, 3)] == [1, 1, 1]


def test_a_point_on_a_full_disk_is_counted_as_it_is_written(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path
) -> None:
    full = NotebookError(None, "OSError", "[Errno 28] No space left on device")
    notebooks.errors = {sweep.points[1].name: [full]}
    result = run(replace(sweep, points=sweep.points[:2]), tmp_path)
    assert [status.status for status in result.statuses] == ["ok", "failed"] and result.left == ()
    told = manifest.planned_statuses(tmp_path / "rates") or {}
    assert [status and status.status for status in told.values()] == ["ok", "failed"]
    assert result.problem and result.exit_code == 1


def test_a_folder_that_cannot_be(sweep: Sweep, notebooks: Notebooks, tmp_path: Path) -> None:
    (tmp_path / "rates").touch()
    with pytest.raises(OSError, match="rates cannot be written"):
        run(sweep, tmp_path)
    assert notebooks.ran == []


def test_table(sweep: Sweep, notebooks: Notebooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.DataFrame({"role": ["student", "red"], "accuracy": [0.25, 1 / 3], "LR": [1, 2], "seed": 1})
    monkeypatch.setattr(worker, "recorded", lambda path: rows if "SEED=1" in path.name else pd.DataFrame())
    notebooks.errors = {sweep.points[3].name: [NotebookError(1, "ValueError", "")]}
    result = run(sweep, tmp_path)
    assert result.table is not None
    table = pd.read_csv(result.table)
    assert list(table)[:7] == ["LR", "SEED", "NOTE", "role", "accuracy", "LR_recorded", "seed_recorded"]
    assert len({name.lower() for name in table}) == len(
        table.columns
    )  # as databases and spreadsheets tell them apart
    assert table["point"].tolist() == names(sweep, 0, 1, 1, 2)
    assert table["accuracy"].tolist()[1:3] == [0.25, 1 / 3]
    assert table["role"].isna().tolist() == [True, False, False, True]
    pd.testing.assert_frame_equal(pd.read_parquet(result.table.with_suffix(".parquet")), result.to_frame())


def test_summary_over_seeds() -> None:
    runs = {"LR": [1.0] * 3 + [2.0], "SEED": [0, 1, 2, 0], "role": "red", "accuracy": [1.0, 2.0, 3.0, 5.0]}
    runs |= {"run": ["a", "b", "c", "d"]}  # what is another under each seed keeps no two apart
    runs |= {"seed_recorded": [0, 1, 2, 0], "low": 0.5, "high": [3.0] * 4, "±": 1.0, "loss_low": 0.1}
    found = summarise(pd.DataFrame(runs | {"point": "p", "point_seconds": 4.0, "epoch": [1, 1, 1, 2]}), by=["epoch"])
    first = found[found["metric"] == "accuracy"].iloc[0]
    # of 1, 2, 3: standard error 1/√3, and 4.303 is the 97.5 % point of Student's t with two degrees of freedom
    assert (first["LR"], first["role"], first["epoch"], first["n"]) == (1.0, "red", 1, 3)
    assert [first["mean"], first["low"], first["high"]] == pytest.approx(
        [2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5], abs=1e-3
    )
    single = found[(found["metric"] == "accuracy") & (found["LR"] == 2.0)].iloc[0]
    assert single["mean"] == 5.0 and single[["low", "high"]].isna().all()
    assert set(found["metric"]) == {"accuracy", "point_seconds"}
    with pytest.raises(ValueError, match="no column SEEDS; it has LR, SEED"):
        summarise(pd.DataFrame(runs), over="SEEDS")


# who may run what


def test_a_point_that_another_holds_is_waited_for(
    sweep: Sweep, notebooks: Notebooks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    point = sweep.points[0]
    lease = manifest.claim(tmp_path / "rates", point.name)
    lease.acquire()
    status = manifest.PointStatus(point.name, point.key, "running", "another", pid=7, host="far")
    manifest.write_status(tmp_path / "rates", status)

    class Ending(Inline):
        """The other process ends once all else has run."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if len(notebooks.ran) == 2:
                real_look = loop.Run._look

                def look(self: Any) -> None:
                    real_look(self)
                    if self.held and lease.is_locked:
                        manifest.write_status(tmp_path / "rates", replace(status, status="failed", error="theirs"))
                        lease.release()

                patch.setattr(loop.Run, "_look", look)
            return super().submit(fn, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        result = run_sweep(sweep, tmp_path, executor=Ending())
    assert notebooks.ran == names(sweep, 1, 2, 3)
    assert result.statuses[0].error == "theirs"  # it failed there, and is not tried here, too
    assert f"waiting for {point.name}, run by process 7 on far" in capsys.readouterr().err


def test_which_executors_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="an executor of processes"):
        run_sweep(sweep, tmp_path, executor=threads)
    with ProcessPoolExecutor(1, get_context("fork")) as forks, pytest.raises(ValueError, match="forked"):
        run_sweep(sweep, tmp_path, executor=forks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs=0 is not a whole number of 1 or more"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0.0}, "timeout=0.0 is not a number of seconds above 0"),
        ({"shard": (3, 2)}, "shard=3 is more than the 2"),
        ({"failed": True, "force": True}, "give one of the two"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        SweepOptions(**options)


def test_shares_are_written_as_fractions() -> None:
    assert shard("2/3") == (2, 3)
    for text in ("3/2", "0/2", "2", "a/b"):
        with pytest.raises(Exception, match="is no share"):
            shard(text)


# progress


def test_time_left() -> None:
    progress = Progress("s", 10, 2, jobs=2, earlier=[10.0, 20.0, 30.0])
    assert progress.left == (10 - 2) * 20.0 / 2
    status = manifest.PointStatus("a", "k", "ok", "s", seconds=4.0)
    progress.finished(status)
    assert progress.left == (10 - 3) * 4.0 / 2
    assert Progress("s", 3, 0, jobs=1).left is None


def test_interrupted_points_are_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("s", 6, 3, jobs=2, earlier=[8.0])
    for name, status in (("a", "failed"), ("b", "interrupted"), ("c", "interrupted")):
        progress.finished(manifest.PointStatus(name, "k", status, "s"))
    told = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["[4/6] a", "[4/6] b", "[4/6] c"]


def test_cells_are_told_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("redistill_lib.sweep.progress.time.monotonic", lambda: now[0])
    progress = Progress("s", 2, 0, jobs=1)
    progress.started("a")
    for number in range(1, 9):
        now[0] += 5
        progress.cell("a", f"{number}/8", now[0] - 2)
    assert capsys.readouterr().err.splitlines() == ["[0/2] a: started", "  a: cell 4/8, 18 s", "  a: cell 7/8, 33 s"]


def test_a_terminal_shows_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress("s", 3, 1, jobs=2)
    assert progress.live
    progress.started("point-a")
    progress.cell("point-a", "2/9", 0.0)
    progress.show()
    progress.finished(manifest.PointStatus("point-b", "k", "failed", "s", error="In [1]: ValueError: x\ny"))
    progress.close()
    shown = capsys.readouterr().err
    assert "1 done, 1 running" in shown and "point-a" in shown and "cell 2/9" in shown
    assert "[2/3] point-b: failed, 0 s; In [1]: ValueError: x\n" in shown


def test_a_notebook_shows_a_widget_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill_lib.sweep.progress.is_live", lambda: True)
    monkeypatch.setattr("redistill_lib.sweep.progress.time.monotonic", lambda: 0.0)
    shown = list[Any]()
    monkeypatch.setattr("IPython.display.display", shown.append)
    progress = Progress("a<b", 2, 0, jobs=1)
    progress.started("point")
    progress.cell("point", "2/9 x = 1 < 2", 0.0)
    progress.show()
    (widget,) = shown
    assert "<b>a&lt;b 0/2</b>" in widget.value and "0 done, 1 running" in widget.value
    assert "<code>point  0 s  cell 2/9 x = 1 &lt; 2</code>" in widget.value
    progress.finished(manifest.PointStatus("point", "k", "ok", "s", seconds=4.0))
    assert "1/2" in widget.value and "about 4 s left" in widget.value and "<code>" not in widget.value
    progress.finished(manifest.PointStatus("other", "k", "ok", "s", seconds=4.0))
    progress.close()
    assert shown == [widget] and widget.value.endswith("2 done") and 'value="2"' in widget.value


# the command


@pytest.fixture
def here(make_notebook: MakeNotebook, tmp_path: Path, notebooks: Notebooks, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep of two rates, in which the command runs points in this process."""
    make_notebook("tour")
    (tmp_path / "s.yaml").write_text("notebook: notebooks/tour.ipynb\ngrid: {LR: [0.1, 0.2]}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "Workers", lambda jobs: Elsewhere(Inline()))
    return tmp_path / "runs" / "sweeps" / "s"


def test_command(here: Path, notebooks: Notebooks, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["tour-LR=0.1-EPOCHS=-2", "tour-LR=0.2-EPOCHS=-2"]
    notebooks.errors = {names[1]: [NotebookError(4, "ValueError", "no\nnever")]}
    words = ["sweep", "s.yaml", "-p", "EPOCHS", "-2"]
    assert main([*words, "--index", "runs/index.html"]) == 1
    *told, index = capsys.readouterr().out.splitlines()
    assert told == [
        "tour-LR=0.2-EPOCHS=-2: failed, 1 s; In [4]: ValueError: no",
        f"s, 2 points: 1 ok (0 before), 1 failed; {here / 'table.csv'}",
    ]
    assert Path(index).is_file()
    assert main(words) == 0
    assert capsys.readouterr().out == f"s, 2 points: 2 ok (1 before); {here / 'table.csv'}\n"
    assert notebooks.ran == [*names, names[1]]
    assert pd.read_csv(here / "table.csv")["EPOCHS"].tolist() == [-2, -2]
    (here / "table.csv").unlink()
    assert main([*words, "--table"]) == 0
    assert capsys.readouterr().out == f"{here / 'table.csv'}\n"
    assert len(pd.read_csv(here / "table.csv")) == 2
    assert len(notebooks.ran) == 3


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_are_exit_codes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str, code: int
) -> None:
    class Pressing(Inline):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            signal.raise_signal(getattr(signal, number))
            return future

    monkeypatch.setattr(loop, "Workers", lambda jobs: Elsewhere(Pressing()))
    assert main(["sweep", "s.yaml", "--index", "runs/index.html"]) == code
    assert capsys.readouterr().out.startswith(f"s, 2 points: 1 ok (0 before), 1 left; {here / 'table.csv'}\n")
    assert pd.read_csv(here / "table.csv")["point"].tolist() == ["tour-LR=0.1"] and Path("runs/index.html").exists()


def test_overrides_leave_what_is_done_in_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tabulated() -> list[str]:
        return list(pd.read_csv(here / "table.csv")["point"])

    assert main(["sweep", "s.yaml"]) == 0
    assert main(["sweep", "s.yaml", "-p", "LR", "0.2"]) == 0  # one of its points, which is done
    assert tabulated() == ["tour-LR=0.1", "tour-LR=0.2"]
    assert main(["sweep", "s.yaml", "-p", "LR", "0.3", "-p", "EPOCHS", "1"]) == 0
    new = "tour-LR=0.3-EPOCHS=1"
    assert tabulated() == ["tour-LR=0.1", "tour-LR=0.2", new]
    assert list(manifest.planned_statuses(here) or ()) == ["tour-LR=0.1", "tour-LR=0.2", new]
    capsys.readouterr()
    assert main(["sweep", "s.yaml"]) == 0
    assert "not in the table: 1 point in the folder, of an earlier file or another -p" in capsys.readouterr().err
    assert tabulated() == ["tour-LR=0.1", "tour-LR=0.2"]


def test_dry_run(here: Path, notebooks: Notebooks, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "s.yaml", "--dry-run"]) == 0
    todo = "  to do  tour-LR=0.1\n  to do  tour-LR=0.2\n"
    assert (
        capsys.readouterr().out == f"{todo}2 to do; no point of these notebooks has run, so nothing says how long\n"
    )
    assert notebooks.ran == [] and not here.exists()
    assert main(["sweep", "s.yaml"]) == 0
    status = manifest.read_status(here, "tour-LR=0.2")
    assert status is not None
    for name, seconds in (("tour-LR=0.1", 100.0), ("tour-LR=0.2", 140.0)):
        manifest.write_status(here, replace(status, name=name, seconds=seconds, key=f"another of {name}"))
    (Path("s.yaml")).write_text("notebook: notebooks/tour.ipynb\ngrid: {LR: [0.1, 0.2, 0.3]}\n")
    capsys.readouterr()
    assert main(["sweep", "s.yaml", "--dry-run", "--jobs", "2", "--output", "runs/sweeps"]) == 0
    # three points of 120 s, two at a time, 1000 bytes each
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "3 to do: about 4 min, 2 at a time, and 2.9 KiB, as 2 earlier points took"
    stopped = replace(status, name="tour-LR=0.3", status="interrupted", key="its")
    manifest.write_status(here, stopped)
    assert main(["sweep", "s.yaml", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == (
        "3 to do: about 6 min and 2.9 KiB, as 2 earlier points took; less, as 1 of them was begun before"
    )


def test_two_files_of_one_stem_in_a_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other").mkdir()
    Path("other/s.yaml").write_text("notebook: ../notebooks/tour.ipynb\ngrid: {LR: [0.3]}\n")
    assert main(["sweep", "s.yaml", "other/s.yaml"]) == 2
    assert "several files are sweeps named s: run each with another --output" in capsys.readouterr().err
    assert not here.exists()
