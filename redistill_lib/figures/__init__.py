"""Figures: pure functions from a result to a plotly Figure whose title states the finding."""

from redistill_lib.figures.attention import attention_maps, attention_reach
from redistill_lib.figures.budget import budget
from redistill_lib.figures.choices import tradeoff_choices, tradeoff_curves
from redistill_lib.figures.comparison import comparison, comparison_curves, comparison_table, comparisons
from redistill_lib.figures.deploy import deployment
from redistill_lib.figures.diagrams import resolutions, stride_plans, taps
from redistill_lib.figures.exploration import exploration
from redistill_lib.figures.factorial import factorial
from redistill_lib.figures.maps import feature_maps, tap_scores
from redistill_lib.figures.memory import memory_timeline
from redistill_lib.figures.memory_layers import memory_bars, memory_by_layer, memory_table, published_footprints
from redistill_lib.figures.precisions import precisions
from redistill_lib.figures.quality import quality
from redistill_lib.figures.samples import images, sample_grids, trajectories
from redistill_lib.figures.theme import headline
from redistill_lib.figures.tradeoffs import tradeoffs
from redistill_lib.figures.training import accuracies, confusions, curves, denoising_curves

__all__ = [
    "accuracies",
    "attention_maps",
    "attention_reach",
    "budget",
    "comparison",
    "comparison_curves",
    "comparison_table",
    "comparisons",
    "confusions",
    "curves",
    "denoising_curves",
    "deployment",
    "exploration",
    "factorial",
    "feature_maps",
    "headline",
    "images",
    "memory_bars",
    "memory_by_layer",
    "memory_table",
    "memory_timeline",
    "precisions",
    "published_footprints",
    "quality",
    "resolutions",
    "sample_grids",
    "stride_plans",
    "tap_scores",
    "taps",
    "tradeoff_choices",
    "tradeoff_curves",
    "tradeoffs",
    "trajectories",
]
