"""Curves that grow while a network trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from redistill_lib.progress import is_live


class LiveCurves:
    """A figure of `figures.curves` that grows with every `update`; outside a live notebook it only collects.

    As a callback: ``RunOptions(on_log=lambda rows, _: live.update("teacher", rows))``.

    >>> live = live_curves(["teacher", "student"])
    >>> live.update("teacher", [{"epoch": 1, "validation_accuracy": 0.5, "train_task": 1.2}])
    >>> len(live.histories["teacher"])
    1
    """

    def __init__(self, roles: Iterable[str]):
        self.histories = {role: pd.DataFrame() for role in roles}
        self.shown: Any = None
        if is_live():
            from IPython.display import display

            from redistill_lib.explorers.controls import empty_figure

            self.shown = empty_figure()
            self._draw()
            display(self.shown)

    def update(self, role: str, history: Sequence[Mapping[str, Any]] | pd.DataFrame) -> None:
        """The history of a role so far: the rows that ``on_log`` is given, or a frame from `Run.history`."""
        self.histories[role] = pd.DataFrame(history)
        self._draw()

    def _draw(self) -> None:
        if self.shown is not None:
            from redistill_lib.explorers.controls import redraw
            from redistill_lib.figures import curves

            redraw(self.shown, curves(self.histories))


live_curves = LiveCurves  # called like the other explorers
