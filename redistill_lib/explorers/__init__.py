"""Explorers: widgets over the figures, for a live notebook.

ipywidgets and plotly are imported when an explorer is shown.
"""

from redistill_lib.explorers.curves import LiveCurves, live_curves
from redistill_lib.explorers.diffusion import sampling_trajectories
from redistill_lib.explorers.maps import feature_map_explorer
from redistill_lib.explorers.memory import memory_explorer
from redistill_lib.explorers.plans import stride_plan

__all__ = [
    "LiveCurves",
    "feature_map_explorer",
    "live_curves",
    "memory_explorer",
    "sampling_trajectories",
    "stride_plan",
]
