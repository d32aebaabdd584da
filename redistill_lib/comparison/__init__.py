"""Networks of one peak memory on equal terms: same data, same budget, same trials."""

from redistill_lib.comparison.arms import Arm
from redistill_lib.comparison.lengths import Budget
from redistill_lib.comparison.peaks import ArmsAtPeak, Way, arms_at_peak
from redistill_lib.comparison.result import Comparison
from redistill_lib.comparison.runner import compare

__all__ = ["Arm", "ArmsAtPeak", "Budget", "Comparison", "Way", "arms_at_peak", "compare"]
