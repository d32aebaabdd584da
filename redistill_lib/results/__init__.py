"""Results in numbers and words: intervals, differences between methods, tables and headlines, without torch."""

from redistill_lib.results.accuracy import Summary, summarize
from redistill_lib.results.statistics import Estimate, difference, interval, paired_difference, run_difference
from redistill_lib.results.words import capital, label, listed, number, role_key, the

__all__ = [
    "Estimate",
    "Summary",
    "capital",
    "difference",
    "interval",
    "label",
    "listed",
    "number",
    "paired_difference",
    "role_key",
    "run_difference",
    "summarize",
    "the",
]
