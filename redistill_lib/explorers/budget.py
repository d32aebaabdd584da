"""The budget as a slider over every stride plan: what fits, and the call that makes the best of it."""

from __future__ import annotations

import functools

import plotly.graph_objects as go

from redistill_lib.budget import Blocks, BudgetFit
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures.budget import at_budget, every_plan
from redistill_lib.sizes import short_size

BOTH = "all"


class BudgetExplorer(Explorer):
    """Plans are counted once, and drawn once for each dtype and each kind of blocks; then the budget moves."""

    def __init__(self, found: BudgetFit, budgets: list[int], opening: int):
        self.found, self.drawing = found, functools.cache(self._drawing)
        dtypes = [BOTH, *dict.fromkeys(fit.dtype for fit in found.own)]
        forms: list[Blocks] = ["none"] if found.blocks == "none" else ["published", "in place", "none"]
        self.budget = slider("budget", [(short_size(size), size) for size in budgets], opening)
        self.dtype, self.blocks = dropdown("dtype", options(dtypes)), dropdown("RED blocks")
        self.blocks.options = [(form.replace("published", "as published"), form) for form in forms]
        self.lay_out(self.budget, self.dtype, self.blocks)

    def _within(self, budget: int, dtype: str, blocks: Blocks) -> BudgetFit:
        return self.found.within(budget, blocks, None if dtype == BOTH else dtype)

    def _drawing(self, dtype: str, blocks: Blocks) -> go.Figure:
        return every_plan(self._within(2**62, dtype, blocks))

    def show(self) -> go.Figure:
        dtype, blocks = self.dtype.value, self.blocks.value
        fit = self._within(self.budget.value, dtype, blocks)
        self.set_code(fit.call(fit.best) if fit.fits else "")
        self.set_table(fit.table())
        return at_budget(self.drawing(dtype, blocks), fit)
