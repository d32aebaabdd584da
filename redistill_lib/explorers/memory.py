"""What a network needs at its peak, and what pooling, RED blocks, input, dtype and convention do to it."""

from __future__ import annotations

import plotly.graph_objects as go
from torch import nn

from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.explorers.networks import IN_PLACE, NONE, ROLES, Example, MemoryChoice, Networks
from redistill_lib.figures import memory_table
from redistill_lib.memory.profile import CONVENTIONS
from redistill_lib.models import list_models

_LINES = {"the teacher's peak": "teacher", "bounds (slower)": "bounds", "none, own scale": "none"}


class MemoryExplorer(Explorer):
    """It opens with the student of a `factor`, or the usual one."""

    def __init__(
        self, model: str | nn.Module, image_size: int = 128, example: Example = None, factor: int | None = None
    ):
        self.networks, self.factor = Networks(model, image_size, example), factor
        models = ["own network"]
        if isinstance(model, str):
            models = list(dict.fromkeys([model, *list_models("classifier"), "unet"]))
        sizes = sorted({32, 48, 64, 96, 128, 160, 192, 224, 256, image_size})
        self.model = dropdown("model", options(models))
        self.student, self.blocks = slider("student"), dropdown("RED blocks")
        self.size = slider("input", options(sizes, "{0}×{0}"), image_size)
        self.batch = slider("batch", options([1, 2, 4, 8, 16, 32]))
        self.dtype = dropdown("dtype", options(["fp32", "fp16", "int8"]))
        self.convention = dropdown("convention", options(sorted(CONVENTIONS, key="fused".__ne__)))
        self.lines = dropdown("lines", [*_LINES.items()])
        controls = [self.model, self.student, self.blocks, self.size, self.batch, self.dtype, self.convention]
        if self.networks.own:
            controls = [self.student, self.blocks, self.dtype, self.convention]
        self.lay_out(*controls, self.lines)

    def _choice(self) -> MemoryChoice:
        """What the controls say, after those that depend on others have been given what is possible."""
        model = self.model.value
        factors, first = self.networks.factors(model), self.factor or self.networks.usual(model)
        factor = self.choose(self.student, options(factors, "×{}"), first if first in factors else factors[-1])
        known = ROLES if factor > 1 else [NONE]  # they go into students
        if self.convention.value == "paper":
            known = [blocks for blocks in known if blocks != IN_PLACE]  # which the authors' estimate does not know
        blocks = self.choose(self.blocks, options(known), NONE)
        fused = self.convention.value == "fused"  # whose bounds they are
        self.choose(
            self.lines, [(text, value) for text, value in _LINES.items() if fused or value != "bounds"], "teacher"
        )
        return MemoryChoice(
            model, factor, blocks, self.size.value, self.batch.value, self.dtype.value, self.convention.value
        )

    def show(self) -> go.Figure:
        choice = self._choice()
        self.set_table(memory_table(self.networks.profiles(choice)))
        return self.networks.figure(choice, self.lines.value)
