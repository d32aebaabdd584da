"""What a sweep costs beside its notebooks: overhead, restart, workers, pages; and how soon runs are listed.

    python benchmarks/sweep.py

A notebook of one figure and one table is run at the points of a grid, and a notebook that only computes by one worker
and by two, of one thread each, in turn; an idle machine with two cores is meant. Times are of the clock, the best of
`--repeats`: what else runs only adds to them. Prints a line for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat

COLUMNS = {"model.name": "resnet18-4-11221", "model.width": 0.25, "data.name": "cluttered", "data.image_size": 40}
SHOW = """
import plotly.graph_objects as go
from redistill_lib.sweep import record
go.Figure(go.Scatter(y=[SEED * k for k in range(50)])).show()
record({"accuracy": SEED / 100, "peak (KiB)": 16.0})
"""
COMPUTE = """
import time
begin = time.process_time()
while time.process_time() - begin < SECONDS:
    sum(range(10_000))
"""


def notebook(path: Path, parameters: str, code: str) -> None:
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)


def command(*words: object, folder: Path) -> float:
    """Seconds of a `redistill` command."""
    start = time.perf_counter()
    call = [
        sys.executable,
        "-c",
        "import sys; from redistill_lib.cli import main; sys.exit(main())",
        *map(str, words),
    ]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"redistill {' '.join(map(str, words))} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def cell_seconds(path: Path) -> tuple[float, float]:
    """Of an executed notebook: the start of its kernel with papermill's first cell ready, and its cells."""
    times = json.loads(path.read_text())["metadata"]["papermill"]
    cells = [cell["metadata"]["papermill"]["duration"] for cell in json.loads(path.read_text())["cells"]]
    return times["duration"] - sum(cells), sum(cells)


def overhead(folder: Path, points: int) -> None:
    """One sweep, run and restarted."""
    notebook(folder / "show.ipynb", "SEED = 0  # a number", SHOW)
    (folder / "many.yaml").write_text(f"notebook: show.ipynb\ngrid:\n  SEED: {list(range(points))}\n")
    whole = command("sweep", "many.yaml", folder=folder)
    restart = command("sweep", "many.yaml", "--index", "runs/index.html", folder=folder)
    store = folder / "runs" / "sweeps" / "many"
    statuses = [json.loads(file.read_text()) for file in (store / "points").glob("*.json")]
    apart = sorted(store.glob("*.ipynb"))
    kernels, cells = zip(*(cell_seconds(path) for path in apart), strict=True)
    beyond = (whole - sum(kernels) - sum(cells)) / points
    print(f"overhead of a point beyond its kernel's start and its cells: {beyond:.2f} s (goal 1.5)")
    print(f"its kernel's start and end: {sum(kernels) / points:.2f} s, its cells {sum(cells) / points:.2f} s")
    print(f"restart of the finished sweep of {len(statuses)} points, with its report: {restart:.2f} s (goal 5)")
    sizes = [status["bytes"] for status in statuses]
    library, index = folder / "runs" / "plotly.min.js", folder / "runs" / "index.html"
    page = f"{index.stat().st_size / 1e6:.2f} MB for the report, {library.stat().st_size / 1e6:.1f} MB plotly.js"
    print(f"a point's page and notebook: {max(sizes) / 1e6:.2f} MB (goal 1); {page} once a folder", flush=True)


def workers(folder: Path, points: int, seconds: float, repeats: int) -> None:
    notebook(folder / "compute.ipynb", "SEED = 0  # a number\nSECONDS = 1.0  # of the processor", COMPUTE)
    grid = f"notebook: compute.ipynb\nparameters:\n  SECONDS: {seconds}\ngrid:\n  SEED: {list(range(points))}\n"
    (folder / "busy.yaml").write_text(grid)
    took: dict[int, float] = {}
    for _ in range(repeats):
        for jobs in (1, 2):
            now = command("sweep", "busy.yaml", "--force", "--jobs", jobs, folder=folder)
            took[jobs] = min(now, took.get(jobs, now))
    told = f"{points} points of {seconds:g} s: one worker {took[1]:.1f} s, two {took[2]:.1f} s"
    print(f"{told}, {took[1] / took[2]:.2f}× (goal 1.7)", flush=True)


def listing(folder: Path, count: int, repeats: int) -> None:
    store = folder / "store"
    recipe: dict[str, Any] = {f"setting{k}": k for k in range(20)}
    for number in range(count):
        params: dict[str, Any] = {"seed": number % 10, "methods": f"m{number % 7}", "recipe": recipe}
        for name, value in COLUMNS.items():
            outer, _, inner = name.partition(".")
            params.setdefault(outer, {})[inner] = value
        metrics = {"test_accuracy": number / count, "test_loss": 1.0, "seconds": 30.5, "peak_bytes": 19200}
        record = {"params": params, "status": "complete", "metrics": metrics, "environment": {"torch": "2.6"}}
        (store / f"run{number:05d}").mkdir(parents=True)
        (store / f"run{number:05d}" / "run.json").write_text(json.dumps(record, indent=1))
    first = command("runs", store, folder=folder)
    again = min(command("runs", store, "--sort", "-test_accuracy", folder=folder) for _ in range(repeats))
    print(f"{count} runs listed for the first time {first:.2f} s, then {again:.2f} s (goal 1)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the processor, of a point that computes")
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before this began")
    with tempfile.TemporaryDirectory() as folder:
        listing(Path(folder), given.runs, given.repeats)
        overhead(Path(folder), given.points)
        workers(Path(folder), 6, given.seconds, given.repeats)


if __name__ == "__main__":
    main()
