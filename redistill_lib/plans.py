"""Stride plans: where a network downsamples, written as in the paper (`4-11221`).

A built-in network's plan has a digit for each place where its architecture may stride; a ResNet's first stage has one
though its stride is 1. Of any other network only the layers that stride now are known, so that the plans of
`derive_student` and `fit_to_budget` have digits for the stem and for these: `1-2222` for such a ResNet's `1-21222`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StridePlan:
    """The stride of every place where a network may downsample.

    `stem` is the first convolution's stride, `stages` holds that of each further place, from 1 to 9, written as one
    digit (ReDistill, arXiv 2406.03744, section 4). A vision transformer's patch is a stem without stages, as in
    `vit_tiny-16`. Raises ValueError where a stride is not a positive whole number.

    >>> plan = StridePlan.parse("1-21222")
    >>> plan.total, str(plan.front_loaded(2))
    (16, '2-21221')
    """

    stem: int
    stages: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        for place, stride in enumerate(self.places):
            if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
                raise ValueError(f"Stride {stride!r} of place {place} is not a whole number of 1 or more.")
            if place and stride > 9:
                raise ValueError(f"Stride {stride} of place {place} is above 9: a stage is one digit.")

    @classmethod
    def parse(cls, text: str) -> StridePlan:
        """Read `4-11221`, only the stem may have several digits, or a patch of one or two; ValueError for other text.

        >>> StridePlan.parse("16-111"), StridePlan.parse("16")
        (StridePlan(stem=16, stages=(1, 1, 1)), StridePlan(stem=16, stages=()))
        """
        form = "write <stem>-<one digit per stage>, as in 4-11221"
        head, dash, plan = text.partition("-")
        if re.fullmatch(r"[A-Za-z]\w*", head) and re.fullmatch(r"[0-9]+-[0-9]+", plan):
            raise ValueError(f"{text!r} is a model name; its stride plan alone is {plan!r}.")
        if not head or (not plan if dash else not re.fullmatch("[0-9]{1,2}", head)):
            raise ValueError(f"Stride plan {text!r} lacks its stem or its stages: {form}.")
        if wrong := re.search("[^0-9]", head + plan):
            raise ValueError(f"Stride plan {text!r} contains {wrong[0]!r}, which is not a digit: {form}.")
        if head.startswith("0") or "0" in plan:
            where = "stem" if head.startswith("0") else f"stage {plan.index('0') + 1}"
            raise ValueError(f"Stride plan {text!r} has a 0 at its {where}: the least stride is 1.")
        return cls(int(head), tuple(int(digit) for digit in plan))

    def __str__(self) -> str:
        return f"{self.stem}-{''.join(map(str, self.stages))}" if self.stages else str(self.stem)

    @property
    def places(self) -> tuple[int, ...]:
        """The stem's stride, then every stage's: index 0 is the stem."""
        return (self.stem, *self.stages)

    @property
    def total(self) -> int:
        """Input size over the size of the last feature map."""
        return math.prod(self.places)

    def front_loaded(self, factor: int, first: Sequence[int] = ()) -> StridePlan:
        """The aggressive student of this plan: stem stride times `factor` (a power of two), the same total.

        The stride is given back by later places: those in `first` (indices into `places`) in that order, then the
        others from the end backwards. Raises ValueError where they have too little stride to give back.

        >>> str(StridePlan.parse("1-21222").front_loaded(4, first=(1,)))
        '4-11221'
        """
        if not isinstance(factor, int) or factor < 1 or factor & (factor - 1):
            raise ValueError(f"factor={factor!r} is not a power of two (1, 2, 4, 8, …).")
        for index in first:
            if not 1 <= index < len(self.places):
                known = f"choose from 1 to {len(self.places) - 1}"
                raise ValueError(f"Place {index} in first={tuple(first)} is not a later place of {self}: {known}.")
        strides, owed = list(self.places), factor
        strides[0] *= factor
        for index in (*first, *range(len(strides) - 1, 0, -1)):
            given = math.gcd(strides[index], owed)
            strides[index] //= given
            owed //= given
        if owed > 1:
            least = f"its later places can give back only ×{factor // owed}"
            raise ValueError(f"Plan {self} cannot be front-loaded ×{factor}: {least}.")
        return StridePlan(strides[0], tuple(strides[1:]))
