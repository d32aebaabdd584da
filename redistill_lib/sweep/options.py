"""How the points of a sweep are run, and what a call found and did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from redistill_lib.checks import check_fields, is_number, whole
from redistill_lib.sweep.manifest import PointStatus
from redistill_lib.sweep.table import status_table


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
        return status_table(status for status in self.statuses if status.ok)
