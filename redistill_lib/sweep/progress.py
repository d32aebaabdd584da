"""What a sweep says while it runs: lines in a log, a live table on a terminal, a widget in a notebook."""

from __future__ import annotations

import contextlib
import html
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

from redistill_lib.progress import duration, is_live
from redistill_lib.sweep.manifest import PointStatus

CELL_SECONDS = 15.0  # between two lines about cells of one point
ROWS = 8  # of points that run now


def outcome(status: PointStatus) -> str:
    """How a point ended, after how long, and why, unless it was by the user's hand.

    >>> outcome(PointStatus("a", "key", "failed", "call", seconds=74, error="In [4]: ValueError: no"))
    'failed, 74 s; In [4]: ValueError: no'
    """
    told = status.error and status.status not in ("ok", "interrupted")
    why = "" if not told or not status.error else f"; {status.error.strip().partition(chr(10))[0]}"
    return f"{status.status}, {duration(status.seconds)}{why}"


class Progress:
    """Counts the points of one sweep and shows them.

    `earlier` are the seconds of points that ran before, from which the time left is told until others have finished.
    """

    def __init__(self, name: str, total: int, done: int, *, jobs: int, earlier: Iterable[float] = ()):
        self.name, self.total, self.jobs = name, total, max(jobs, 1)
        self.counts = {"done": done, "failed": 0, "interrupted": 0}
        self.earlier, self.lengths = [*earlier], list[float]()
        self.running: dict[str, tuple[float, str | None]] = {}  # point → when it began, and its cell once seen
        self._told: dict[str, float] = {}
        self._note = ""
        self._bars: list[Any] = []
        self._widget: Any = None
        self.file: TextIO = sys.stderr
        self.live = self.file.isatty() or is_live()

    @property
    def ended(self) -> int:
        """Points with a result, were it a failure; those that were interrupted have none."""
        return self.counts["done"] + self.counts["failed"]

    @property
    def left(self) -> float | None:
        """Seconds until the last point is done, by the median of those that are; None as long as none is."""
        lengths = self.lengths or self.earlier
        if not lengths:
            return None
        usual, now = statistics.median(lengths), time.monotonic()
        begun = sum(min(now - since, usual) for since, _ in self.running.values())
        return max((self.total - sum(self.counts.values())) * usual - begun, 0.0) / max(self.jobs, len(self.running))

    def say(self, text: str) -> None:
        """A line above the table, or in the log; a terminal that is gone stops nothing."""
        with contextlib.suppress(OSError, ValueError):
            if self.live and self._bars:
                self._bars[0].write(text, file=self.file)
            else:
                print(text, file=self.file, flush=True)

    def note(self, text: str) -> None:
        """Say what is waited for, once."""
        if text and text != self._note:
            self.say(text)
        self._note = text

    def started(self, name: str) -> None:
        if name not in self.running:
            self.running[name] = time.monotonic(), None
            if not self.live:
                self.say(f"[{self.ended}/{self.total}] {name}: started")

    def elsewhere(self, name: str) -> None:
        if not self.live:
            self.say(f"[{self.ended}/{self.total}] {name}: another process runs it")

    def cell(self, name: str, cell: str, seconds: float) -> None:
        """Its worker is at a cell, "" before the first, so long after it began; its process took a while before."""
        if name not in self.running or self.running[name][1] == cell:
            return
        now = time.monotonic()
        self.running[name] = now - seconds, cell
        if cell and not self.live and self.jobs == 1 and now - self._told.get(name, now - seconds) >= CELL_SECONDS:
            self._told[name] = now
            self.say(f"  {name}: cell {cell}, {duration(seconds)}")

    def forget(self, name: str) -> float:
        """It has ended, did not run after all, or is tried again; the seconds since it began."""
        self._told.pop(name, None)
        since, _ = self.running.pop(name, (now := time.monotonic(), None))
        return now - since

    def finished(self, status: PointStatus) -> None:
        self.forget(status.name)
        kind = "done" if status.ok else "interrupted" if status.status == "interrupted" else "failed"
        self.counts[kind] += 1
        if status.ok:
            self.lengths.append(status.seconds)
        left = None if self.counts["interrupted"] else self.left
        ahead = f"; about {duration(left)} left" if left and self.ended < self.total else ""
        if not (self.live and status.ok):
            self.say(f"[{self.ended}/{self.total}] {status.name}: {outcome(status)}{ahead}")
        self.show()

    def show(self) -> None:
        """Draw the table again, on a terminal or in a notebook."""
        if not self.live:
            return
        with contextlib.suppress(OSError, ValueError):
            if is_live():
                self._show_widget()
            else:
                self._show_bars()

    def _told_now(self) -> tuple[int, str, list[str]]:
        """How many have ended, the counts in words, and a line for each point that runs."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count or kind == "done")
        if sum(self.counts.values()) < self.total:
            counts += f", {len(self.running)} running"
            counts += "" if self.left is None else f", about {duration(self.left)} left"
        lines = [
            f"{name}  {duration(time.monotonic() - since)}{f'  cell {cell}' if cell else ''}"
            for name, (since, cell) in sorted(self.running.items(), key=lambda item: item[1][0])
        ]
        return self.ended, counts, lines

    def _show_widget(self) -> None:
        from ipywidgets import HTML

        if self._widget is None:
            from IPython.display import display

            self._widget = HTML()
            display(self._widget)
        ended, counts, lines = self._told_now()
        head = f"{html.escape(self.name)} {ended}/{self.total}"
        bar = f'<progress max="{self.total}" value="{ended}" style="width: 16em"></progress>'
        below = "".join(f"<br><code>{html.escape(line)}</code>" for line in lines[:ROWS])
        self._widget.value = f"<b>{head}</b> {bar} {counts}{below}"

    def _show_bars(self) -> None:
        from tqdm import tqdm

        if not self._bars:
            shape: dict[str, Any] = {"file": self.file, "leave": False, "dynamic_ncols": True}
            self._bars = [tqdm(total=self.total, bar_format="{desc} |{bar}| {postfix}", **shape)]
            below = range(1, min(self.jobs, ROWS) + 1)
            self._bars += [tqdm(bar_format="{desc}", position=n, **shape) for n in below]
        head, *rows = self._bars
        head.n, counts, lines = self._told_now()
        head.set_description_str(f"{self.name} {head.n}/{self.total}", refresh=False)
        head.set_postfix_str(counts, refresh=False)
        for row, line in zip(rows, [*lines, *[""] * len(rows)], strict=False):
            row.set_description_str(f"  {line}" if line else "", refresh=False)
        for bar in self._bars:
            bar.refresh()

    def close(self) -> None:
        """Leave nothing on a terminal, and the last counts in a notebook."""
        for bar in reversed(self._bars):
            with contextlib.suppress(OSError, ValueError):
                bar.close()
        self._bars = []
