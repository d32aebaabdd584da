"""One call of a sweep: its points wait, run, and end, whatever becomes of workers, signals and the folder."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import SoftFileLease

from redistill_lib.sweep.manifest import Plan, PointStatus, claim, now, plain, read_status, write_status
from redistill_lib.sweep.options import SweepOptions
from redistill_lib.sweep.points import Point
from redistill_lib.sweep.progress import Progress
from redistill_lib.sweep.spec import Sweep
from redistill_lib.sweep.worker import Task, run_point, stop_file
from redistill_lib.sweep.workers import Elsewhere, Workers

GRACE = (5.0, 3.0)  # seconds to end by itself after the first and the second interrupt; docker stop waits for ten
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def unwritable(folder: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    cure = "mend that"
    if error.errno in FULL:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "free some space" if full else "make it writable, or give another --output,"
    return f"{folder} cannot be written ({reason}): {cure} and start again; what is done is kept"


def _gone(error: BaseException) -> str:
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"the workers are gone ({reason}): start again; what is done is kept"


@contextlib.contextmanager
def listening(on_signal: Callable[[int, Any], None]) -> Iterator[None]:
    """Within it a signal that asks for the end is noted, where there are signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
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
            self.running[self.workers.submit(run_point, task)] = point
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
            status = self._told(point)
            if not (status and status.status == "running") and future.cancel():
                self._drop(future)

    def _told(self, point: Point) -> PointStatus | None:
        """What is written of it, if that is of this call."""
        status = read_status(self.folder, point.name)
        return status if status and status.session == self.session else None

    def _drop(self, future: Future[PointStatus]) -> tuple[Point, float]:
        """Its point, and the seconds since that began."""
        point = self.running.pop(future)
        return point, self.progress.forget(point.name)

    def _collect(self, future: Future[PointStatus]) -> None:
        point, seconds = self._drop(future)
        try:
            status = future.result()
        except (BrokenExecutor, CancelledError, KeyboardInterrupt) as error:
            if self.apart and not self.signal and not isinstance(error, KeyboardInterrupt):
                self.lost = _gone(error)
                told = read_status(self.folder, point.name)  # else its worker may still record what becomes of it
                if told and told.settles(point.key, self.seen[point.name]):
                    self._settle(told)
                return
            status = self._after_death(point, error, seconds)
        except OSError as error:
            ours = error.errno in FULL or not self.apart
            self.lost = unwritable(self.folder, error) if ours else _gone(error)
            if (told := self._told(point)) and told.broken:  # it could still be written
                self._settle(told)
            return
        except Exception as error:  # of the executor: a worker that knows no such library, or died too often
            status = self._after_death(point, error, seconds)
        finally:
            self.workers.release(future)
        if status.status == "busy":
            self.held[point.name] = point, claim(self.folder, point.name)
            self.progress.elsewhere(point.name)
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

    def _after_death(self, point: Point, error: BaseException, seconds: float) -> PointStatus:
        """What became of a point whose process is gone, so long after it began: it could not tell."""
        status = self._told(point)
        if status is None:
            status = PointStatus(point.name, point.key, "", self.session, plain(point.parameters), started=now())
        elif status.status == "running":
            status = replace(status, seconds=round(max(seconds, status.seconds), 2))
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
            status = self._told(point)
            if status and status.status == "running":
                self.progress.started(point.name)
                self.progress.cell(point.name, status.cell, status.seconds)
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
        for future in [*self.running]:
            point, seconds = self._drop(future)
            if self._told(point):
                self._settle(self._after_death(point, KeyboardInterrupt(), seconds))
        self.progress.close()
