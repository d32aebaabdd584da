"""Arms of a comparison: ways to a network that fits a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from redistill_lib.distill import Tap
from redistill_lib.methods import Method, parse_methods
from redistill_lib.train import Recipe


@dataclass(frozen=True)
class Arm:
    model: str | nn.Module
    methods: str | Method | Sequence[str | Method] | None = None
    width: float = 1.0
    image_size: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    taps: Sequence[Tap] | None = None

    def __post_init__(self) -> None:
        if self.methods is not None:
            object.__setattr__(self, "methods", parse_methods(self.methods))

    @property
    def method_list(self) -> tuple[Method, ...]:
        return cast("tuple[Method, ...]", self.methods or ())

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher has to be there, if only to show where its maps are."""
        return self.methods is not None or self.recipe.init == "teacher"

    @property
    def taught(self) -> bool:
        """Whether it learns from a teacher, by a loss or by starting from its weights."""
        return self.recipe.init == "teacher" or any(method.alpha for method in self.method_list)
