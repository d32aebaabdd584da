"""Means and differences of means with their 95 % intervals, by scipy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from redistill_lib.results.words import number


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference, and its 95 % interval; the ends are NaN where there are too few values for one."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return self.high - self.value

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0; never without an interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return number(self.value) if math.isnan(self.half) else f"{number(self.value)} ± {number(self.half)}"


def interval(values: Sequence[float]) -> Estimate:
    """The mean and its t-interval over runs.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.00 ± 2.48
    """
    return _estimate(float(np.mean(values)), stats.ttest_1samp, values, 0.0)


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """mean(a) − mean(b) with Welch's interval, for independent runs."""
    return _estimate(float(np.mean(a) - np.mean(b)), partial(stats.ttest_ind, equal_var=False), a, b)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """mean(a − b) with its t-interval, for values that belong together one by one, such as students of one teacher.

    What both share cancels, so that the interval is narrower. Raises ValueError where the numbers of values differ.

    >>> red, naive = [0.9, 0.7, 0.8], [0.8, 0.6, 0.69]
    >>> print(paired_difference(red, naive), "|", difference(red, naive))
    0.10 ± 0.01 | 0.10 ± 0.23
    """
    return interval([x - y for x, y in zip(a, b, strict=True)])


def run_difference(a: pd.Series[float], b: pd.Series[float]) -> Estimate:
    """`paired_difference` where both are indexed by the same seeds, each once, otherwise `difference`.

    >>> seeds = pd.Index([0, 1, 2], name="seed")
    >>> print(run_difference(pd.Series([0.9, 0.7, 0.8], seeds), pd.Series([0.8, 0.6, 0.69], seeds)))
    0.10 ± 0.01
    """
    seeded = a.index.name == b.index.name == "seed" and a.index.is_unique and b.index.is_unique
    if seeded and set(a.index) == set(b.index):
        return paired_difference(a.tolist(), b[a.index].tolist())
    return difference(a.tolist(), b.tolist())


def _estimate(value: float, test: Callable[..., Any], *samples: Any) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, about too few or nearly equal values
        low, high = test(*samples).confidence_interval()
    return Estimate(value, float(low), float(high))
