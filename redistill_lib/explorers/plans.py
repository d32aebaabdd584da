"""A slider over the pooling factor, and what it does to the size of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redistill_lib.explorers.controls import as_html, dropdown, empty_figure, redraw, rows, slider
from redistill_lib.models import ARCHITECTURES, student_name
from redistill_lib.plans import StridePlan
from redistill_lib.progress import is_live

if TYPE_CHECKING:
    import ipywidgets as widgets
    import pandas as pd
    import plotly.graph_objects as go


def plans_of(teacher: str, factor: int) -> tuple[dict[str, StridePlan], tuple[str, ...]]:
    """The plans of a teacher and its ×`factor` student by role, and the names of their places.

    >>> plans, places = plans_of("resnet18-1-21222", 4)
    >>> str(plans["student"]), places[:2]
    ('4-11221', ('conv1', 'maxpool'))
    """
    names = {"teacher": student_name(teacher, 1), "student": student_name(teacher, factor)}
    plans = {role: StridePlan.parse(name.partition("-")[2]) for role, name in names.items()}
    return plans, ARCHITECTURES[teacher.partition("-")[0]].names


def stride_plan(
    teacher: str | Sequence[str], image_size: int, factors: Sequence[int] = (1, 2, 4, 8), factor: int = 4
) -> widgets.VBox | None:
    """Move stride to the front with a slider: the size of the maps, place by place, as a step chart and a table.

    `teacher` is a model name with its plan, or several to choose from. None where nobody is looking.

    >>> stride_plan("resnet18-1-21222", image_size=40) is None
    True
    """
    if not is_live():
        return None
    import ipywidgets as widgets

    teachers = [teacher] if isinstance(teacher, str) else list(teacher)
    model = dropdown("teacher", [(name, name) for name in teachers])
    stride = slider("stride", [(f"×{f}", f) for f in factors], factor if factor in factors else factors[0])
    shown, table = empty_figure(), widgets.HTML()

    def draw(_: Any = None) -> None:
        try:
            figure, frame = _views(model.value, stride.value, image_size)
        except ValueError as error:
            table.value = f"<p>×{stride.value} is not possible here. {error}</p>"
            return
        redraw(shown, figure)
        table.value = as_html(frame)

    for control in (model, stride):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([rows(*([model] if len(teachers) > 1 else []), stride), shown, table])


def _views(teacher: str, factor: int, image_size: int) -> tuple[go.Figure, pd.DataFrame]:
    from redistill_lib.figures import plan_table, stride_plans

    plans, places = plans_of(teacher, factor)
    return stride_plans(plans, image_size, places=places), plan_table(plans, image_size, places)
