"""Faults of sweeps for real, with counts: the command in a process of its own, whose workers run no kernels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from redistill_lib.sweep import Point
from redistill_lib.sweep.worker import Task, run_point, stop_file

MakeNotebook = Callable[..., Path]

SCRIPT = r"""
import os, signal, sys, time
from pathlib import Path
from redistill_lib.sweep import worker
from redistill_lib.sweep.kernel import NotebookError
from redistill_lib.sweep.notebook import NotebookResult

def sleep(path, parameters, folder, *, name, html, timeout, on_cell):
    with open("executions", "a") as file:
        file.write(f"{name} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    error, killed = None, Path("killed")
    try:
        if name == os.environ.get("KILLED") and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while Path(f"hold {name}").exists():
            time.sleep(0.05)
    except KeyboardInterrupt:
        error = NotebookError(None, "KeyboardInterrupt", "")
    file = folder / f"{name}.ipynb"
    file.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    return NotebookResult(name, "interrupted" if error else "ok", 0.1, error, parameters, file, None)

worker.run_notebook = sleep
if __name__ == "__main__":
    from redistill_lib.cli import main
    sys.exit(main())
"""
ONCE = {f"tour-LR={rate}": 1 for rate in (1, 2, 3, 4)}


class Command:
    """`redistill sweep` of four points in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "script.py").write_text(SCRIPT)
        (folder / "s.yaml").write_text("notebook: notebooks/tour.ipynb\ngrid: {LR: [1.0, 2.0, 3.0, 4.0]}\n")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "script.py", "sweep", "s.yaml", "--no-html", *words]
        path = {"PYTHONPATH": str(Path(__file__).parents[1])}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=self.folder, env=os.environ | path | environment, **pipes)
        self.started.append(process)
        return process

    @property
    def executions(self) -> list[list[str]]:
        """Name, process and threads of each."""
        file = self.folder / "executions"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def counts(self) -> dict[str, int]:
        ran = [name for name, *_ in self.executions]
        return {name: ran.count(name) for name in sorted(ran)}

    @property
    def statuses(self) -> list[str]:
        found = [json.loads(file.read_text()) for file in sorted(self.folder.glob("runs/sweeps/s/points/*.json"))]
        return [status["status"] for status in found]

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def hold(self, *rates: int) -> None:
        """These points run until they are interrupted or let go."""
        for rate in rates:
            (self.folder / f"hold tour-LR={rate}").touch()

    def let_go(self) -> None:
        for file in self.folder.glob("hold *"):
            file.unlink()

    def left_behind(self) -> list[int]:
        """Workers that are still there some seconds after."""
        workers = {int(pid) for _, pid, _ in self.executions}
        deadline = time.monotonic() + 30
        while (left := [pid for pid in workers if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@pytest.fixture
def command(make_notebook: MakeNotebook, tmp_path: Path) -> Iterator[Command]:
    make_notebook("tour")
    found = Command(tmp_path)
    yield found
    found.let_go()
    for process in found.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_killed_worker_costs_its_point_an_attempt(command: Command) -> None:
    done = command.start("--jobs", "2", KILLED="tour-LR=2")
    out, err = done.communicate(timeout=200)
    assert done.returncode == 0
    assert command.counts == ONCE | {"tour-LR=2": 2}
    assert "tour-LR=2: its worker process was killed; it is tried again" in err
    assert command.statuses == ["ok"] * 4
    assert out.startswith("s, 4 points: 4 ok (0 before); ")
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {int(threads) for *_, threads in command.executions} == {min(share, int(os.environ["OMP_NUM_THREADS"]))}
    assert command.left_behind() == []


def test_a_killed_sweep_goes_on_where_it_was(command: Command) -> None:
    command.hold(3)
    sweep = command.start()
    command.until(lambda: len(command.executions) == 3)
    sweep.kill()
    assert command.left_behind() == []
    assert command.statuses == ["ok", "ok", "interrupted"]  # its worker has seen that it is alone
    command.let_go()
    again = command.start()
    _, told = again.communicate(timeout=200)
    assert again.returncode == 0
    assert told.startswith("s: 2 of 4 points are done\n")
    assert command.statuses == ["ok"] * 4
    assert command.counts == ONCE | {"tour-LR=3": 2}


def test_a_signal_ends_it_in_order(command: Command) -> None:
    command.hold(2, 3)
    sweep = command.start("--index", "runs/index.html", "--jobs", "2")
    command.until(lambda: sorted(command.statuses) == ["ok", "running", "running"])
    sweep.send_signal(signal.SIGHUP)
    out, told = sweep.communicate(timeout=60)
    assert sweep.returncode == 129
    assert command.left_behind() == []
    assert command.statuses == ["ok", "interrupted", "interrupted"]
    assert command.counts == {"tour-LR=1": 1, "tour-LR=2": 1, "tour-LR=3": 1}
    assert (command.folder / "runs" / "index.html").exists()
    table = pd.read_csv(command.folder / "runs" / "sweeps" / "s" / "table.csv")
    assert table["point"].tolist() == ["tour-LR=1"]
    assert "s, 4 points: 1 ok (0 before), 2 interrupted, 1 left; " in out
    assert (out + told).count("tour-LR=2: interrupted") == 1  # each is told once


def test_two_sweeps_at_once_share_the_points(command: Command) -> None:
    both = [command.start(), command.start()]
    for sweep in both:
        sweep.communicate(timeout=200)
    assert [sweep.returncode for sweep in both] == [0, 0]
    assert command.counts == ONCE
    assert command.statuses == ["ok"] * 4
    assert len(pd.read_csv(command.folder / "runs" / "sweeps" / "s" / "table.csv")) == 4


def test_outside_a_main_thread_a_point_has_a_process_of_its_own(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    """Two kernels. So it is on a Dask worker, which gets no signals."""
    path = make_notebook("tour", "import time; open('begun', 'a').write('x'); time.sleep(60 * EPOCHS)")
    points = [Point(f"tour-EPOCHS={n}", (path,), {"EPOCHS": n}, f"key {n}") for n in (0, 1)]
    first, second = (Task(point, tmp_path, "session", html=False) for point in points)
    before = psutil.Process().children(recursive=True)  # of other tests
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run_point, first).result().status == "ok"
        running = threads.submit(run_point, second)
        deadline = time.monotonic() + 100
        while (path.parent / "begun").read_text() != "xx":
            assert time.monotonic() < deadline and not running.done()
            time.sleep(0.1)
        stop_file(tmp_path, "session").touch()
        assert running.result(timeout=60).status == "interrupted"
        assert threads.submit(run_point, second).result().status == "interrupted"  # and begins no more
    assert (path.parent / "begun").read_text() == "xx"
    assert list((tmp_path / "claims").glob("*.lock")) == []
    assert not {*psutil.Process().children(recursive=True)} - {*before}
