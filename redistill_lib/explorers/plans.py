"""A slider over the pooling factor, and what it does to the size of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures import plan_table, stride_plans
from redistill_lib.models import student_name


class PlanExplorer(Explorer):
    """The plans of a teacher and its student, as a chart and a table."""

    def __init__(self, teachers: Sequence[str], image_size: int, factors: Sequence[int], factor: int):
        self.image_size = image_size
        self.model = dropdown("teacher", options(teachers))
        self.stride = slider("stride", options(factors, "×{}"), factor)
        self.lay_out(*([self.model] if len(teachers) > 1 else []), self.stride)

    def show(self) -> go.Figure:
        self.refusal = f"×{self.stride.value} is not possible here."
        plans = {"teacher": self.model.value, "student": student_name(self.model.value, self.stride.value)}
        self.set_table(plan_table(plans, self.image_size))
        return stride_plans(plans, self.image_size)
