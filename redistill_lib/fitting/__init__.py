"""From a budget of memory to the ways that fit, and to the file that runs within it."""

from redistill_lib.fitting.device import Fitted, Target, fit_to_device
from redistill_lib.fitting.ways import Choice, WaysToFit, ways_to_fit

__all__ = ["Choice", "Fitted", "Target", "WaysToFit", "fit_to_device", "ways_to_fit"]
