"""`redistill sweep`: what it does, and what it prints."""

from __future__ import annotations

import argparse
import contextlib
import logging
import shlex
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from redistill_lib.progress import duration
from redistill_lib.sizes import format_size
from redistill_lib.sweep.amounts import check_amounts
from redistill_lib.sweep.given import check_given
from redistill_lib.sweep.manifest import Plan, PointStatus, read_status, sweep_folder
from redistill_lib.sweep.options import SweepOptions, SweepResult
from redistill_lib.sweep.progress import outcome
from redistill_lib.sweep.runner import plan_of, run_checked, write_tables
from redistill_lib.sweep.spec import Sweep, read_sweep


def run_command(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Run, list or tabulate the files of a command; returns its exit code."""
    names = ("jobs", "shard", "failed", "force", "fail_fast", "timeout", "retries", "html")
    options = SweepOptions(**{name: getattr(arguments, name) for name in names})
    if arguments.scheduler and options.jobs > 1:
        raise ValueError("--scheduler has workers of its own: leave out --jobs")
    sweeps = [read_sweep(path, overrides or None) for path in arguments.grids]
    stems = [sweep.name for sweep in sweeps]
    if twin := [name for name in stems if stems.count(name) > 1]:
        raise ValueError(f"several files are sweeps named {twin[0]}: run each with another --output")
    folders = [sweep_folder(arguments.output, sweep) for sweep in sweeps]
    if arguments.table:
        for sweep in sweeps:
            print(write_tables(arguments.output, sweep))
        return 0
    plans = [plan_of(sweep, folder, options) for sweep, folder in zip(sweeps, folders, strict=True)]
    todo = [point for plan in plans for point in plan.todo]  # of all files, before the first begins
    check_amounts(todo)
    if not arguments.scheduler:
        check_given(todo)
    if arguments.dry_run:
        for sweep, folder, plan in zip(sweeps, folders, plans, strict=True):
            print("\n".join(forecast(sweep, folder, plan, options.jobs)))
        return 0
    code = 0
    with dask(arguments.scheduler) as executor:
        for sweep, folder in zip(sweeps, folders, strict=True):
            result = run_checked(sweep, folder, executor, options)
            code = max(code, result.exit_code)
            with contextlib.suppress(OSError):  # a terminal that is gone
                print("\n".join(account(result, len(sweep.points), arguments.typed)), flush=True)
            if result.signal or result.problem:
                break
    return code


@contextlib.contextmanager
def dask(address: str | None) -> Iterator[Executor | None]:
    """An executor of the cluster at that address."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise ImportError('--scheduler needs Dask: pip install "redistill-lab[dask]"') from None
    # Of a scheduler that is gone it would log a traceback; what there is to say is said here.
    for name in ("distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`") from None
    try:
        yield client.get_executor(pure=False)
    finally:
        client.close(timeout=2)


def account(result: SweepResult, total: int, typed: Sequence[str] = ()) -> list[str]:
    """A line for each point that failed, which may be far above, one about all, and after a signal how to go on with
    what was `typed`."""
    bad = [status for status in result.statuses if not status.ok]
    lines = [f"{status.name}: {outcome(status)}" for status in bad if status.broken]
    ok = len(result.statuses) - len(bad)
    parts = [f"{ok} ok ({ok - sum(s.ok for s in result.statuses if s.name in result.ran)} before)"]
    parts += [f"{count} {kind}" for kind, count in Counter(status.status for status in bad).items()]
    parts += [f"{len(result.left)} left"] if result.left else []
    where = f"; {result.table}" if result.table else ""
    lines.append(f"{result.name}, {total} point{'s' * (total != 1)}: {', '.join(parts)}{where}")
    if result.signal and typed:  # what is done is not to be done again
        lines.append(f"To go on: {shlex.join(['redistill', *(word for word in typed if word != '--force')])}")
    return lines


def forecast(sweep: Sweep, folder: Path, plan: Plan, jobs: int) -> list[str]:
    """What a call would run, and what it would take."""
    done = {status.name for status in plan.done}
    todo = {point.name for point in plan.todo}
    lines = []
    for point in sweep.points:
        if point.name in done | todo:
            lines.append(f"{'done' if point.name in done else 'to do':>7}  {point.name}")
    lines += plan.told(len(sweep.points))
    count, similar = len(plan.todo), earlier(sweep, folder)
    if count and similar:
        seconds = statistics.median(status.seconds for status in similar)
        size = statistics.median(status.bytes for status in similar) * count
        time = duration(seconds * -(-count // jobs))
        by = f", {jobs} at a time," if jobs > 1 else ""
        took = f"as {len(similar)} earlier points took"
        lines.append(f"{count} to do: about {time}{by} and {format_size(size)}, {took}")
        if begun := sum(bool(stamp) and not stamp.endswith(" ok") for stamp in plan.seen.values()):
            lines[-1] += f"; less, as {begun} of them {'was' if begun == 1 else 'were'} begun before"
    else:
        lines.append(
            f"{count} to do{'; no point of these notebooks has run, so nothing says how long' * bool(count)}"
        )
    return lines


def earlier(sweep: Sweep, folder: Path) -> list[PointStatus]:
    """Points of the same notebooks that are done: of this sweep, or where it has none, of those beside it."""
    stems = {path.stem for path in sweep.notebooks}
    for files in (folder.glob("points/*.json"), folder.parent.glob("*/points/*.json")):
        found = [read_status(file.parents[1], file.stem) for file in files]
        if same := [status for status in found if status and status.ok and set(status.notebooks) == stems]:
            return same
    return []
