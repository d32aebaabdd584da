"""Explorers: widgets over the figures, in a live notebook.

Elsewhere `explore`, `budget_explorer` and `sampling_trajectories` are figures whose sliders still move,
`memory_explorer` is one of what it would open with, `live_curves` collects, and the others return None. What draws is
imported when it is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from redistill_lib.progress import is_live

if TYPE_CHECKING:
    import ipywidgets as widgets
    import plotly.graph_objects as go
    from torch import Tensor, nn

    from redistill_lib.exploration import Students
    from redistill_lib.explorers.trajectories import Drawn
    from redistill_lib.tradeoffs import Tradeoffs

__all__ = [
    "budget_explorer",
    "explore",
    "live_curves",
    "memory_explorer",
    "sampling_trajectories",
    "tradeoff_explorer",
]
_SHOTS = 9  # every third of 25 steps, the first and the last among them


def explore(
    teacher: nn.Module,
    students: Students,
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    *,
    classes: Sequence[str] = (),
    factor: int | None = None,
    image: int = 0,
    budget: int | str | None = None,
) -> widgets.VBox | go.Figure:
    """Move the stride: the picture, the maps of teacher and students, their memory and accuracy follow.

    Arguments as of `redistill_lib.exploration.explore`; it opens at `factor`, or else at ×4 if one of the
    `students` pools that much harder, or else at their largest; with one of the images, and with a `budget` such as
    "64KB" drawn into the memory. In a live notebook image, channel and budget can be chosen too; elsewhere this is
    the figure of `figures.exploration`, whose slider needs no kernel.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2, 1), torch.nn.Conv2d(4, 4, 3, 2, 1))
    >>> page = explore(net, None, torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8))
    >>> [step.label for step in page.layout.sliders[0].steps]
    ['×1', '×2']
    """
    from redistill_lib.exploration import explore as look

    found = look(teacher, students, images, labels, classes=classes)
    opening = found.opening if factor is None else found.check(factor)
    if not is_live():
        from redistill_lib.figures import exploration
        from redistill_lib.memory import parse_size

        return exploration(found.show(image), opening, budget=None if budget is None else parse_size(budget))
    from redistill_lib.explorers.exploration import StrideExplorer

    return StrideExplorer(found, opening, image, budget).view


def budget_explorer(
    model: str | nn.Module,
    image_size: int = 128,
    *,
    example: Tensor | tuple[Any, ...] | None = None,
    budget: int | str | None = None,
) -> widgets.VBox | go.Figure:
    """Move the budget: stride plans that do not fit turn grey, the one that keeps most has a ring; its call is below.

    `model` and `example` as for `memory_explorer`. It opens with `budget`, such as "256KB", or a quarter of what the
    network needs. In a live notebook dtype and RED blocks can be chosen too; elsewhere this is the figure of
    `figures.budget`, whose slider needs no kernel.

    >>> import torch
    >>> net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, stride, 1) for stride in (1, 2, 2)))
    >>> page = budget_explorer(net, example=torch.zeros(1, 3, 32, 32), budget="16KB")
    >>> page.layout.sliders[0].steps[page.layout.sliders[0].active].label
    '16 KiB'
    """
    from redistill_lib.budget import fit_to_budget
    from redistill_lib.explorers.networks import inputs_of
    from redistill_lib.memory import parse_size

    found = fit_to_budget(model, 2**62, *inputs_of(model, image_size, example))  # so that it knows all budgets
    opening = parse_size(budget or max(fit.plain.needed_bytes for fit in found.own) // 4)
    sizes = found.sizes()
    opening = min(sizes, key=lambda size: abs(size - opening)) if budget is None else opening
    if not is_live():
        from redistill_lib.figures import budget as draw

        return draw(found.within(opening), sizes)
    from redistill_lib.explorers.budget import BudgetExplorer

    return BudgetExplorer(found, sorted({*sizes, opening}), opening).view


def memory_explorer(
    model: str | nn.Module = "resnext18-1-21222",
    image_size: int = 128,
    *,
    example: Tensor | tuple[Any, ...] | None = None,
    factor: int | None = None,
) -> widgets.VBox | go.Figure:
    """Choose a network, its student, RED blocks, input, dtype and convention; see what is alive at each step.

    `model` is the name of a built-in teacher, or a network of your own together with `example`, a batch that it can
    be called with (or the tuple of its inputs). Networks are untrained: memory does not depend on weights. It opens
    with the student of `factor`, ×4 if there is that; outside a live notebook this is the figure of that student.

    >>> memory_explorer("resnet18", image_size=224).layout.title.text.partition(" at")[0]
    '<b>The peak is 784 KiB'
    """
    if not is_live():
        from redistill_lib.explorers.networks import MemoryChoice, Networks

        networks = Networks(model, image_size, example)
        name = model if isinstance(model, str) else "own network"
        return networks.figure(MemoryChoice(name, factor or networks.usual(name), size=image_size))
    from redistill_lib.explorers.memory import MemoryExplorer

    return MemoryExplorer(model, image_size, example, factor).view


def sampling_trajectories(
    models: Mapping[str, Drawn],
    *,
    shape: int | Sequence[int] | None = None,
    n: int = 9,
    steps: int = 25,
    choices: Sequence[int] = (5, 10, 25, 50, 100),
    seed: int = 0,
) -> widgets.VBox | go.Figure:
    """Out of the noise, step by step: what each network is given and what it sees in it, for all of them at once.

    `models` by role: networks, runs or their folders. `shape` as for `sample`, known for a run. `n` images per role
    are drawn by DDIM in `steps`, all roles from the same noise, that of `seed`. In a live notebook another number of
    steps, of `choices`, and another noise can be chosen; elsewhere this is the film of `figures.trajectories`, with
    9 of the steps so that a notebook stays small, which moves without a kernel.

    >>> from redistill_lib.models import create_model
    >>> film = sampling_trajectories({"teacher": create_model("unet-1-2", ch=8, mult=(1, 2))}, shape=8, n=2, steps=3)
    >>> [frame.name for frame in film.frames]
    ['999', '666', '332']
    """
    if not is_live():
        from redistill_lib.diffusion import trajectory
        from redistill_lib.figures import trajectories

        how = dict[str, Any](shape=shape, steps=steps, seed=seed, progress=False)
        return trajectories({role: trajectory(model, n, _SHOTS, **how) for role, model in models.items()})
    from redistill_lib.explorers.trajectories import TrajectoryExplorer

    return TrajectoryExplorer(models, shape, n, steps, choices, seed).view


def tradeoff_explorer(
    result: Tradeoffs,
    data: str | None = None,
    budget: int | str | None = None,
    dtype: str = "fp32",
    image: int = 0,
) -> widgets.VBox | None:
    """Move the budget: what does not fit turns grey, the best that does is named, with the call that makes it.

    `result` is what `redistill_lib.tradeoffs.read_tradeoffs` gives. Click a point, or choose it, to see its training,
    its memory step by step, and the map of test image `image` in it beside its teacher's, or their plans where no
    weights are at hand. It opens with `data`, `budget` and `dtype`.

    >>> from redistill_lib.tradeoffs import read_tradeoffs
    >>> tradeoff_explorer(read_tradeoffs(), "cifar10", "16KB") is None
    True
    """
    if not is_live():
        return None
    from redistill_lib.explorers.tradeoffs import TradeoffExplorer

    return TradeoffExplorer(result, data, budget, dtype, image).view


class LiveCurves:
    """A figure of `figures.curves` that grows with every `update`; outside a live notebook it only collects.

    As a callback: ``RunOptions(on_log=lambda rows, _: live.update("teacher", rows))``. With `epochs`, the
    number there will be, the axes stand still.

    >>> live = live_curves(["teacher", "student"], epochs=12)
    >>> live.update("teacher", [{"epoch": 1, "validation_accuracy": 0.5, "train_task": 1.2}])
    >>> len(live.histories["teacher"])
    1
    """

    def __init__(self, roles: Iterable[str], epochs: int | None = None):
        self.histories = {role: pd.DataFrame() for role in roles}
        self.epochs = epochs
        self.shown: Any = None
        if is_live():
            from IPython.display import display

            from redistill_lib.explorers.controls import empty_figure, in_the_dark

            self.shown = empty_figure()
            self._draw()
            display(self.shown, in_the_dark())

    def update(self, role: str, history: Sequence[Mapping[str, Any]] | pd.DataFrame) -> None:
        """The history of a role so far: the rows that ``on_log`` is given, or a frame from `Run.history`."""
        self.histories[role] = pd.DataFrame(history)
        self._draw()

    def _draw(self) -> None:
        if self.shown is not None:
            from redistill_lib.explorers.controls import redraw
            from redistill_lib.figures import curves

            redraw(self.shown, curves(self.histories, self.epochs))


live_curves = LiveCurves  # called like the other explorers
