"""Run several notebooks, or the points of a sweep on any number of workers, all checked before a kernel starts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from filelock import Timeout

from redistill_lib.checks import as_path, as_paths, check_type, whole
from redistill_lib.executors import check_executor
from redistill_lib.progress import duration
from redistill_lib.sweep.amounts import check_amounts
from redistill_lib.sweep.given import check_given
from redistill_lib.sweep.loop import Run, listening, unwritable
from redistill_lib.sweep.manifest import Plan, claim, make_plan, sweep_folder, write_manifest
from redistill_lib.sweep.notebook import NotebookResult, output_folder, run_notebook
from redistill_lib.sweep.options import SweepOptions, SweepResult
from redistill_lib.sweep.points import notebook_point
from redistill_lib.sweep.several import run_several
from redistill_lib.sweep.spec import Sweep
from redistill_lib.sweep.table import sweep_table, write_table


def run_notebooks(
    paths: Iterable[str | Path],
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    *,
    jobs: int = 1,
    **options: Any,
) -> list[NotebookResult]:
    """`run_notebook` for each in turn, all checked before the first kernel starts; Ctrl-C ends the list there.

    Or several at a time, `jobs`, in processes that share the cores; what is trained in one the others wait for and
    find. Results are in the order of `paths`, without those that were not begun.

    Paths and ``module:function`` among `parameters` count from the working folder, where they are there. ValueError
    also where another process executes one of them into the same files, and, as of a sweep, for numbers, networks,
    data and methods among `parameters` that the notebooks would refuse.
    """
    jobs, given, points, told = whole("jobs", jobs), parameters or {}, [], []
    for source in as_paths("notebooks", paths):
        point = notebook_point(source, given)
        points.append((source, {**given, **point.located}, output_folder(output_dir, source), point.name))
        told.append(point)
    stems = [source.stem for source, *_ in points]
    if len(set(stems)) < len(stems):
        twin = max(stems, key=stems.count)
        raise ValueError(f"several notebooks are named {twin}: run them into different output folders")
    check_given(told, in_turn=True)
    results: list[NotebookResult] = []
    with contextlib.ExitStack() as claims:
        for _, _, folder, name in points:
            claims.enter_context(_claimed(folder, name))
        if jobs > 1:
            return run_several(points, jobs, options)
        for source, placed, folder, name in points:
            result = run_notebook(source, placed, folder, name=name, **options)
            results.append(result)
            if not options.get("progress"):  # off a terminal, where no bar shows the cells
                print(f"{result.name}: {result.status}, {duration(result.seconds)}", file=sys.stderr)
            if result.interrupted:
                break
    return results


@contextlib.contextmanager
def _claimed(folder: Path, name: str) -> Iterator[None]:
    """While it lasts no other call writes the files of that name."""
    try:
        lease = claim(folder, name)
        lease.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another process executes {name} into {folder}: wait for it, or give another --output"
        ) from None
    except OSError:  # a folder that cannot be written is told by the notebook's result
        yield
        return
    try:
        yield
    finally:
        lease.release()
        with contextlib.suppress(OSError):  # others are claimed
            (folder / "claims").rmdir()


def run_sweep(
    sweep: Sweep,
    output_dir: str | Path = "runs/sweeps",
    *,
    executor: Executor | None = None,
    options: SweepOptions | None = None,
) -> SweepResult:
    """Run the points of a sweep into ``<output_dir>/<name>/``, all but those that are done.

    `executor` is anything of `concurrent.futures` that runs several points at a time in processes of their own, on
    machines that share `output_dir`; left out, `options.jobs` processes here. Each point is claimed, so that several
    calls at once, here or elsewhere, share the points and none runs twice. A point that fails stops no other.
    SIGINT, SIGTERM and SIGHUP end it early: what runs is interrupted, the table is written, and `signal` says so,
    as `problem` does of a full disk. ValueError or OSError, before anything runs, for what cannot be run or written,
    networks, data and methods that a point names included where no `executor` is given.
    """
    options = check_type("options", options, SweepOptions, None) or SweepOptions()
    check_executor(executor)
    folder = sweep_folder(as_path("output_dir", output_dir), sweep)
    todo = plan_of(sweep, folder, options).todo
    check_amounts(todo)
    if executor is None:  # on other machines other data and modules may be there
        check_given(todo)
    return run_checked(sweep, folder, executor, options)


def plan_of(sweep: Sweep, folder: Path, options: SweepOptions) -> Plan:
    return make_plan(folder, sweep, failed=options.failed, force=options.force, shard=options.shard)


def run_checked(sweep: Sweep, folder: Path, executor: Executor | None, options: SweepOptions) -> SweepResult:
    """`run_sweep` once what its points name has been tried."""
    plan = plan_of(sweep, folder, options)
    with _writable(folder):
        write_manifest(folder, sweep)
        (folder / "claims").mkdir(exist_ok=True)
    run = Run(sweep, folder, plan, options, executor)
    for line in plan.told(len(sweep.points)):
        run.progress.say(f"{sweep.name}: {line}")
    problem = None
    with listening(run.on_signal):
        try:
            run.loop()
        except OSError as error:
            problem = run.lost = unwritable(folder, error)
        finally:
            run.close()
        table, why = _tabulate(folder, sweep)
    problem = problem or run.lost or why
    if problem:
        run.progress.say(problem)
    found = {status.name: status for status in (*plan.done, *run.results.values())}
    names = [point.name for point in sweep.points]
    statuses = tuple(found[name] for name in names if name in found)
    left = tuple(point.name for point in plan.todo if point.name not in found)
    return SweepResult(sweep.name, folder, statuses, tuple(run.results), left, table, run.signal, problem)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(unwritable(folder, error)) from None


def write_tables(output_dir: str | Path, sweep: Sweep) -> Path:
    """``table.csv`` and ``table.parquet`` of the sweep's done points, by whatever calls; the path of the first.

    For a sweep that ran in shares. ValueError where no point is done.
    """
    folder = sweep_folder(as_path("output_dir", output_dir), sweep)
    table = sweep_table(folder, sweep)
    if table.empty:
        raise ValueError(f"no point of {sweep.name} is done in {folder}")
    with _writable(folder):
        return write_table(folder, table)


def _tabulate(folder: Path, sweep: Sweep) -> tuple[Path | None, str | None]:
    table = sweep_table(folder, sweep)
    try:
        return (write_table(folder, table) if len(table) else None), None
    except OSError as error:
        return None, unwritable(folder, error)
