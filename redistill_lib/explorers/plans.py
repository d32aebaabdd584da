"""A slider over the pooling factor, and what it does to the size of the feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redistill_lib.explorers.controls import as_html, dropdown, empty_figure, redraw, rows, slider
from redistill_lib.models import student_name
from redistill_lib.progress import is_live

if TYPE_CHECKING:
    import ipywidgets as widgets


def stride_plan(
    teacher: str | Sequence[str], image_size: int, factors: Sequence[int] = (1, 2, 4, 8), factor: int = 4
) -> widgets.VBox | None:
    """Move stride to the front with a slider: the size of the maps, place by place, as a step chart and a table.

    `teacher` is a model name with its plan, or several to choose from. Returns None outside a live notebook.

    >>> stride_plan("resnet18-1-21222", image_size=40) is None
    True
    """
    if not is_live():
        return None
    import ipywidgets as widgets

    from redistill_lib.figures import plan_table, stride_plans

    teachers = [teacher] if isinstance(teacher, str) else list(teacher)
    model = dropdown("teacher", [(name, name) for name in teachers])
    stride = slider("stride", [(f"×{f}", f) for f in factors], factor if factor in factors else factors[0])
    shown, table = empty_figure(), widgets.HTML()

    def draw(_: Any = None) -> None:
        try:
            plans = {"teacher": model.value, "student": student_name(model.value, stride.value)}
        except ValueError as error:
            table.value = f"<p>×{stride.value} is not possible here. {error}</p>"
            return
        redraw(shown, stride_plans(plans, image_size))
        table.value = as_html(plan_table(plans, image_size))

    for control in (model, stride):
        control.observe(draw, "value")
    draw()
    return widgets.VBox([rows(*([model] if len(teachers) > 1 else []), stride), shown, table])
