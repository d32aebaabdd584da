"""Accuracy, or FID, over peak memory: which networks are worth their bytes, and which fit a budget."""

from redistill_lib.tradeoffs.readers import curves_of, read_tradeoffs
from redistill_lib.tradeoffs.result import Tradeoffs, call, lesson

__all__ = ["Tradeoffs", "call", "curves_of", "lesson", "read_tradeoffs"]
