"""Sweeps on a Dask cluster whose worker is killed half-way, or its scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

pytest.importorskip("distributed", reason="needs the extra dask")

CELL = """
import os, time
from pathlib import Path
with open("../executions", "a") as file:
    file.write(f"{EPOCHS} {os.getpid()}\\n")
while Path("../hold").exists() or Path(f"../hold {EPOCHS}").exists():
    time.sleep(0.05)
"""
POINTS = [f"tour-EPOCHS={n}" for n in range(1, 4)]


class Cluster:
    """A scheduler and workers of one thread, and a sweep of three points whose kernels wait for each other."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.file = folder, folder / "scheduler.json"
        (folder / "s.yaml").write_text("notebook: notebooks/tour.ipynb\ngrid: {EPOCHS: [1, 2, 3]}\n")
        self.hold = folder / "hold"
        self.hold.touch()
        self.started: list[subprocess.Popen[str]] = []
        self.scheduler = self.start("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard")
        alone = "--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder / "dask")
        self.workers = [self.start("distributed.cli.dask_worker", *alone) for _ in range(workers)]
        self.until(self.file.exists)

    def start(self, module: str, *words: str) -> subprocess.Popen[str]:
        return self._run("-m", module, "--host", "127.0.0.1", "--scheduler-file", str(self.file), *words)

    def sweep(self) -> subprocess.Popen[str]:
        address = json.loads(self.file.read_text())["address"]
        main = "import sys; from redistill_lib.cli import main; sys.exit(main())"
        return self._run("-c", main, "sweep", "s.yaml", "--no-html", "--scheduler", address)

    def _run(self, *words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"log {len(self.started)}").open("w") as log:
            where = {"cwd": self.folder, "env": environment, "stdout": log, "stderr": log}
            self.started.append(subprocess.Popen([sys.executable, *words], text=True, **where))
        return self.started[-1]

    @property
    def executions(self) -> list[tuple[str, int]]:
        """The point and the kernel's process of each."""
        file = self.folder / "executions"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(point, int(pid)) for point, pid in (line.split() for line in lines)]

    @property
    def table(self) -> list[str]:
        return pd.read_csv(self.folder / "runs" / "sweeps" / "s" / "table.csv")["point"].tolist()

    def until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self.hold.unlink(missing_ok=True)
        for process in reversed(self.started):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(make_notebook: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    make_notebook("tour", CELL)
    found = Cluster(tmp_path, getattr(request, "param", 2))
    yield found
    found.close()


def test_a_killed_dask_worker_costs_its_point_an_attempt_and_nothing_else(cluster: Cluster) -> None:
    sweep = cluster.sweep()
    cluster.until(lambda: len(cluster.executions) == 2)  # one on each worker
    first, second = cluster.executions
    owners = [worker.pid for worker in cluster.workers if first[1] in _below(worker.pid)]
    assert len(owners) == 1
    psutil.Process(owners[0]).kill()
    cluster.until(lambda: not psutil.pid_exists(first[1]), 30)  # its kernel goes with it
    cluster.hold.unlink()
    assert sweep.wait(200) == 0
    ran = [point for point, _ in cluster.executions]
    assert sorted(ran) == sorted([*"123", first[0]])
    assert sorted(cluster.table) == POINTS
    assert second[0] != first[0]
    assert not [pid for _, pid in cluster.executions if psutil.pid_exists(pid)]


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_without_its_scheduler_a_sweep_ends_and_keeps_what_is_done(cluster: Cluster) -> None:
    late = [cluster.folder / f"hold {epochs}" for epochs in (2, 3)]
    for file in late:
        file.touch()
    cluster.hold.unlink()
    sweep = cluster.sweep()
    points = cluster.folder / "runs" / "sweeps" / "s" / "points"
    cluster.until(lambda: sum('"ok"' in file.read_text() for file in points.glob("*.json")) == 1)
    cluster.scheduler.kill()
    assert sweep.wait(120) == 1
    log = (cluster.folder / f"log {len(cluster.started) - 1}").read_text()
    assert "Traceback" not in log
    assert sorted(cluster.table) == POINTS[:1]
    for file in late:
        file.unlink()


def _below(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}
