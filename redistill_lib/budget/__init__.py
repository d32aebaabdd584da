"""Which stride plans and dtypes fit a device's memory."""

from redistill_lib.budget.result import FORMS, Blocks, BudgetFit, Fit, arenas
from redistill_lib.budget.search import fit_to_budget, plans_of, totals, uncollected

__all__ = [
    "FORMS",
    "Blocks",
    "BudgetFit",
    "Fit",
    "arenas",
    "fit_to_budget",
    "plans_of",
    "totals",
    "uncollected",
]
