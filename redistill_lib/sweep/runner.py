"""Run several notebooks, or the points of a sweep on any number of workers, all checked before a kernel starts."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import SoftFileLease

from redistill_lib.checks import as_path, as_paths, check_fields, check_type, is_number, whole
from redistill_lib.sweep.manifest import (
    Plan,
    PointStatus,
    claim,
    make_plan,
    now,
    plain,
    read_status,
    sweep_folder,
    write_manifest,
    write_status,
)
from redistill_lib.sweep.notebook import NotebookResult, output_folder, run_notebook
from redistill_lib.sweep.progress import Progress
from redistill_lib.sweep.spec import Point, Sweep, notebook_point
from redistill_lib.sweep.table import sweep_table, write_table
from redistill_lib.sweep.worker import Task, stop_file
from redistill_lib.sweep.workers import Elsewhere, Workers

GRACE = (5.0, 3.0)  # seconds to end by itself after the first and the second interrupt; docker stop waits for ten
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class SweepOptions:
    """How the points of a sweep are run."""

    jobs: int = 1  # processes of this machine; each has its share of the cores
    shard: tuple[int, int] | None = None  # (k, n): every n-th point from the k-th, for job arrays
    failed: bool = False  # only those that failed
    force: bool = False  # those that are done, too
    fail_fast: bool = False  # begin no other once one has failed
    timeout: float | None = None  # seconds for a point
    retries: int = 1  # of a point whose kernel or process died; a cell that fails is not tried again
    html: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        whole("jobs", self.jobs)
        whole("retries", self.retries, 0)
        if self.timeout is not None and (not is_number(self.timeout) or self.timeout <= 0):
            raise ValueError(f"timeout={self.timeout} is not a number of seconds above 0")
        if self.shard is not None:
            if len(self.shard) != 2:
                raise ValueError("shard is (k, n): the k-th of n shares")
            whole("shard", self.shard[0], 1, whole("shard", self.shard[1]))
        if self.failed and self.force:
            raise ValueError("failed runs those that failed, force runs all: give one of the two")


@dataclass(frozen=True)
class SweepResult:
    """What a call of `run_sweep` found done and did."""

    name: str
    folder: Path
    statuses: tuple[PointStatus, ...]  # of this call's points that ran now or before, in the order of the sweep
    ran: tuple[str, ...]  # those that ran now, in order of their end
    left: tuple[str, ...]  # those that should have run and did not
    table: Path | None  # table.csv, over all points of the sweep that are done
    signal: int | None = None  # which one ended it
    problem: str | None = None  # why it ended early, such as a full disk

    @property
    def ok(self) -> bool:
        return not self.left and self.signal is None and all(status.ok for status in self.statuses)

    @property
    def exit_code(self) -> int:
        """0, 1 where a point failed or was left, 128 + the number of a signal."""
        return 0 if self.ok else 1 if self.signal is None else 128 + self.signal

    def to_frame(self) -> pd.DataFrame:
        """A row per done point or per what it recorded; see `sweep_table`."""
        from redistill_lib.sweep.table import status_table

        return status_table(status for status in self.statuses if status.ok)


def run_notebooks(
    paths: Iterable[str | Path],
    parameters: Mapping[str, Any] | None = None,
    output_dir: str | Path = "runs/notebooks",
    **options: Any,
) -> list[NotebookResult]:
    """`run_notebook` for each in turn, all checked before the first kernel starts; Ctrl-C ends the list there."""
    given, points = parameters or {}, []
    for source in as_paths("notebooks", paths):
        points.append((source, given, output_folder(output_dir, source), notebook_point(source, given).name))
    stems = [source.stem for source, *_ in points]
    if len(set(stems)) < len(stems):
        twin = max(stems, key=stems.count)
        raise ValueError(f"several notebooks are named {twin}: run them into different output folders")
    results: list[NotebookResult] = []
    for source, given, folder, name in points:
        result = run_notebook(source, given, folder, name=name, **options)
        results.append(result)
        if not options.get("progress"):  # off a terminal, where no bar shows the cells
            print(f"{result.name}: {result.status} after {result.seconds:.0f} s", file=sys.stderr)
        if result.interrupted:
            break
    return results


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
    as `problem` does of a full disk. ValueError or OSError, before anything runs, for what cannot be run or written.
    """
    options = check_type("options", options, SweepOptions, None) or SweepOptions()
    check_executor(executor)
    folder = sweep_folder(as_path("output_dir", output_dir), sweep)
    plan = make_plan(folder, sweep, failed=options.failed, force=options.force, shard=options.shard)
    with _writable(folder):
        write_manifest(folder, sweep)
        (folder / "claims").mkdir(exist_ok=True)
    run = _Run(sweep, folder, plan, options, executor)
    for line in plan.told(len(sweep.points)):
        run.progress.say(f"{sweep.name}: {line}")
    problem = None
    with _signals(run):
        try:
            run.loop()
        except OSError as error:
            problem = run.lost = _told(folder, error)
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


def check_executor(executor: Any) -> None:
    """Refuse what would run several kernels' loops in one process, or hang."""
    check_type("executor", executor, Executor, None)
    if isinstance(executor, ThreadPoolExecutor):
        raise ValueError("threads do not die alone; give an executor of processes, or none")
    context = getattr(executor, "_mp_context", None)  # of the standard library's pool
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "processes that are forked hang: "
            "ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn')), or leave executor out"
        )


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(_told(folder, error)) from None


def _told(folder: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    cure = "mend that"
    if error.errno in FULL:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space" if full else "make it writable, or give another --output,"
    return f"{folder} cannot be written ({reason}): {cure} and start again; what is done is kept"


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


def _gone(error: BaseException) -> str:
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"the workers are gone ({reason}): start again; what is done is kept"


def _tabulate(folder: Path, sweep: Sweep) -> tuple[Path | None, str | None]:
    table = sweep_table(folder, sweep)
    try:
        return (write_table(folder, table) if len(table) else None), None
    except OSError as error:
        return None, _told(folder, error)


@contextlib.contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """Within it a signal that asks for the end is noted, where there are signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, run.on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """One call of `run_sweep`: points that wait, that run, and that another process holds."""

    def __init__(self, sweep: Sweep, folder: Path, plan: Plan, options: SweepOptions, executor: Executor | None):
        self.folder, self.options, self.session = folder, options, uuid.uuid4().hex[:12]
        self.waiting, self.seen = deque(plan.todo), plan.seen
        self.running: dict[Future[PointStatus], Point] = {}
        self.held: dict[str, tuple[Point, SoftFileLease]] = {}
        self.results: dict[str, PointStatus] = {}
        self.tries: dict[str, int] = {}
        self.signal: int | None = None
        self.signals = 0
        self.lost: str | None = None  # why no point can be begun any more
        self.workers = Elsewhere(executor) if executor else Workers(options.jobs)
        self.apart = executor is not None
        total = len(plan.todo) + len(plan.done)
        earlier = [status.seconds for status in plan.done]
        self.progress = Progress(sweep.name, total, len(plan.done), jobs=options.jobs, earlier=earlier)
        self._looked = 0.0

    def on_signal(self, number: int, _: Any) -> None:
        self.signal, self.signals = self.signal or number, self.signals + 1

    @property
    def ending(self) -> bool:
        failed = self.options.fail_fast and any(status.broken for status in self.results.values())
        return self.lost is not None or failed

    def loop(self) -> None:
        while ((self.waiting or self.held) and not self.ending) or self.running:
            if self.signal:
                break
            while self.waiting and self.workers.free and not self.ending and not self.signal:
                self._submit(self.waiting.popleft())
            self._wait(0.5)
            if self.ending:
                self._take_back()
            if time.monotonic() - self._looked > 1.0:
                self._looked = time.monotonic()
                self._look()

    def _submit(self, point: Point) -> None:
        point = replace(point, parameters=dict(point.parameters))  # a view of a mapping cannot be sent
        options = self.options
        task = Task(point, self.folder, self.session, self.seen[point.name], options.html, options.timeout)
        try:
            self.running[self.workers.submit(task)] = point
        except (BrokenExecutor, RuntimeError) as error:
            self.waiting.appendleft(point)
            self.lost = _gone(error)
        if not self.apart:
            self.progress.started(point.name)

    def _wait(self, seconds: float) -> None:
        if not self.running:
            time.sleep(seconds if self.held else 0)
            return
        over = wait(self.running, seconds, FIRST_COMPLETED).done
        for future in [future for future in self.running if future in over]:  # in the order of the sweep
            self._collect(future)

    def _take_back(self) -> None:
        """Points that wait in the executor. Not all executors know which have begun: those that said so have."""
        for future, point in [*self.running.items()]:
            status = read_status(self.folder, point.name)
            begun = status is not None and status.session == self.session and status.status == "running"
            if not begun and future.cancel():
                self._drop(future)

    def _drop(self, future: Future[PointStatus]) -> Point:
        point = self.running.pop(future)
        self.progress.forget(point.name)
        return point

    def _collect(self, future: Future[PointStatus]) -> None:
        point = self._drop(future)
        try:
            status = future.result()
        except (BrokenExecutor, CancelledError, KeyboardInterrupt) as error:
            if self.apart and not self.signal and not isinstance(error, KeyboardInterrupt):
                self.lost = _gone(error)  # and what becomes of the point, its worker may still record
                return
            status = self._after_death(point, error)
        except OSError as error:
            ours = error.errno in FULL or not self.apart
            self.lost = _told(self.folder, error) if ours else _gone(error)
            return
        except Exception as error:  # of the executor: a worker that knows no such library, or died too often
            status = self._after_death(point, error)
        finally:
            self.workers.release(future)
        if status.status == "busy":
            self.held[point.name] = point, claim(self.folder, point.name)
            return
        tries = self.tries[point.name] = self.tries.get(point.name, 0) + 1
        again = status.status == "died" or (self.apart and status.status == "interrupted")
        if again and tries <= self.options.retries and not (self.signal or self.ending):
            self.progress.say(f"{point.name}: {status.error or status.status}; it is tried again")
            self.waiting.appendleft(point)
            return
        self._settle(status)

    def _settle(self, status: PointStatus) -> None:
        self.results[status.name] = status
        self.progress.finished(status)

    def _after_death(self, point: Point, error: BaseException) -> PointStatus:
        """What became of a point whose process is gone: it could not tell."""
        status = read_status(self.folder, point.name)
        if status is None or status.session != self.session:
            status = PointStatus(point.name, point.key, "", self.session, plain(point.parameters), started=now())
        if status.status in ("", "running"):
            stopped = self.signal or isinstance(error, KeyboardInterrupt)
            lost = isinstance(error, BrokenExecutor)
            why = "its worker process was killed" if lost else f"{type(error).__name__}: {error}".rstrip(": ")
            status = replace(status, status="interrupted" if stopped else "died", error=None if stopped else why)
            with contextlib.suppress(OSError):
                write_status(self.folder, status)
        return status

    def _look(self) -> None:
        """How far running points are, and whether those that others hold have become free."""
        for point in self.running.values():
            status = read_status(self.folder, point.name)
            if status and status.session == self.session and status.status == "running":
                self.progress.started(point.name)
                self.progress.cell(point.name, status.cell)
        for name, (point, lease) in [*self.held.items()]:
            with contextlib.suppress(TimeoutError):
                lease.acquire(blocking=False)
                lease.release()
                del self.held[name]
                status = read_status(self.folder, name)
                if status and status.settles(point.key, self.seen[name]):
                    self._settle(status)
                else:
                    self.waiting.append(point)
        self.progress.note(self._waits() if self.held and not self.running and not self.waiting else "")
        self.progress.show()

    def _waits(self) -> str:
        first = next(iter(self.held))
        status = read_status(self.folder, first)
        who = f" by process {status.pid} on {status.host} since {status.started}" if status else ""
        more = f" and {len(self.held) - 1} more" if len(self.held) > 1 else ""
        return f"waiting for {first}{more}, run{who}"

    def close(self) -> None:
        """Interrupt what runs, wait for it a little, end what is left, and record all."""
        stop = stop_file(self.folder, self.session)
        for grace in GRACE if self.running else ():
            if self.apart:
                with contextlib.suppress(OSError):
                    stop.touch()  # and it stays, for points that begin although they were taken back
            self._take_back()
            self.workers.interrupt()
            deadline, signals = time.monotonic() + grace, self.signals
            while self.running and time.monotonic() < deadline and self.signals == signals:
                self._wait(0.2)
        self.workers.close()
        for future, point in [*self.running.items()]:
            self._drop(future)
            self._settle(self._after_death(point, KeyboardInterrupt()))
        self.progress.close()
