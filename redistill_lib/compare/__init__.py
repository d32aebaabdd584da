"""Networks of one peak of activations, compared on the same data at the same budget."""

from redistill_lib.compare.arms import Arm, ArmsAtPeak, Way, arms_at_peak

__all__ = ["Arm", "ArmsAtPeak", "Way", "arms_at_peak"]
