"""Figures: pure functions from a result to a plotly Figure whose title states the finding."""

from redistill_lib.figures.comparison import accuracies, summary_table
from redistill_lib.figures.diagrams import plan_table, stride_plans
from redistill_lib.figures.maps import feature_maps, tap_scores
from redistill_lib.figures.samples import pictures
from redistill_lib.figures.training import curves

__all__ = [
    "accuracies",
    "curves",
    "feature_maps",
    "pictures",
    "plan_table",
    "stride_plans",
    "summary_table",
    "tap_scores",
]
