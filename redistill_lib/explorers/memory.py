"""What a network needs at its peak, and what pooling, RED blocks, input, dtype and convention do to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from redistill_lib.distill import Tap, match_taps
from redistill_lib.explorers.controls import Explorer, as_html, dropdown, redraw, slider
from redistill_lib.memory import Bounds, Profile, memory_bounds, profile_memory
from redistill_lib.memory.profile import Convention
from redistill_lib.models import create_model, example_inputs, list_models, student_name
from redistill_lib.progress import is_live
from redistill_lib.red import RedBlock, insert_blocks, make_in_place

if TYPE_CHECKING:
    import ipywidgets as widgets
    import pandas as pd
    import plotly.graph_objects as go

FACTORS = (1, 2, 4, 8)
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256)
BATCHES = (1, 2, 4, 8, 16, 32)
DTYPES = ("fp32", "fp16", "int8")
NONE, PLAIN, IN_PLACE = "none", "as published", "in place"
OWN = "own network"


@dataclass(frozen=True)
class Choice:
    """What the controls say."""

    model: str
    factor: int = 1
    blocks: str = NONE
    size: int = 128
    batch: int = 1
    dtype: str = "fp32"
    convention: Convention = "fused"

    @property
    def teacher(self) -> Choice:
        return replace(self, factor=1, blocks=NONE)


class MemorySource:
    """Networks and their profiles by choice, each computed once: an explorer's memory, free of widgets.

    Built-in networks are on the meta device: they have shapes and no weights. A network of one's own stays as it is.

    >>> source = MemorySource("resnext18-1-21222")
    >>> source.factors("resnext18-1-21222")
    (1, 2, 4, 8)
    >>> source.profile(Choice("resnext18-1-21222", factor=4)).peak_bytes
    786432
    """

    def __init__(self, model: str | nn.Module, example: Tensor | tuple[Any, ...] | None = None):
        if isinstance(model, nn.Module) == (example is None):
            raise ValueError("give a network of your own together with example=, a batch for it, and a name without")
        self.own = model if isinstance(model, nn.Module) else None
        self.example = example if isinstance(example, tuple) else (example,)
        if isinstance(model, str):
            student_name(model, 1)  # a name that is none is told here
            names = [*list_models("classifier"), "unet"]
            self.models = [model, *(name for name in names if name != model)]
        else:
            self.models = [OWN]
        self.computed: dict[tuple[Any, ...], Any] = {}

    def _once(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        if (compute.__name__, *arguments) not in self.computed:
            self.computed[compute.__name__, *arguments] = compute(*arguments)
        return self.computed[compute.__name__, *arguments]

    def factors(self, model: str) -> tuple[int, ...]:
        """The pooling factors that this network's stride allows; 1 is the teacher itself."""
        return tuple(factor for factor in FACTORS if factor == 1 or self._once(self._allows, model, factor))

    def _allows(self, model: str, factor: int) -> bool:
        try:
            if self.own:
                self._once(self._own_student, factor)
            else:
                student_name(model, factor)
        except (ValueError, RuntimeError):
            return False
        return True

    def _own_student(self, factor: int) -> nn.Module:
        from redistill_lib.student import derive_student

        assert self.own is not None
        return self.own if factor == 1 else derive_student(self.own, factor, example=self.example)[0]

    def inputs(self, choice: Choice) -> tuple[Any, ...]:
        """What the network is called with; a U-Net also takes time steps."""
        if self.own:
            return self.example
        return example_inputs(choice.model, choice.size, batch=choice.batch, device="meta")

    def network(self, choice: Choice) -> nn.Module:
        """The network of this choice, RED blocks included. Raises ValueError where there is none."""
        plain = self._plain(choice)
        if choice.blocks == NONE:
            return plain
        inputs = self.inputs(choice)
        taps = self._once(self._taps, Choice(choice.model, choice.factor, size=choice.size))
        like = next(plain.parameters())
        with torch.device(like.device):
            blocks = [(tap.layer, tap.side, RedBlock(tap.channels or 0).to(like.dtype)) for tap in taps]
        model = insert_blocks(copy.deepcopy(plain) if self.own else plain, blocks)
        if choice.blocks == IN_PLACE:
            if choice.convention == "paper":
                raise ValueError("The authors' estimate knows no blocks in place: choose fused or eager for them.")
            reasons = make_in_place(model, *inputs)
            if len(reasons) == len(blocks):
                raise ValueError(f"No RED block can work in place here: {next(iter(reasons.values()))}.")
        return model

    def _taps(self, place: Choice) -> list[Tap]:
        return match_taps(self._plain(place), self._plain(place.teacher), self.inputs(place))

    def _plain(self, choice: Choice) -> nn.Module:
        if self.own:
            return cast("nn.Module", self._once(self._own_student, choice.factor))
        with torch.device("meta"):
            return create_model(student_name(choice.model, choice.factor))

    def profile(self, choice: Choice) -> Profile:
        """Raises ValueError in one sentence where the network cannot be run or counted like that."""
        return cast("Profile", self._once(self._run, "profile", choice))

    def bounds(self, choice: Choice) -> Bounds:
        """The same for the bounds, which are those of the ``fused`` convention."""
        return cast("Bounds", self._once(self._run, "bounds", choice))

    def _run(self, what: str, choice: Choice) -> Profile | Bounds:
        try:
            network, inputs = self.network(choice), self.inputs(choice)
            if what == "bounds":
                return memory_bounds(network, *inputs, dtype=choice.dtype)
            return profile_memory(network, *inputs, convention=choice.convention, dtype=choice.dtype)
        except RuntimeError as error:  # PyTorch's own, from some layer inside
            reason = str(error).splitlines()[0]
            where = "" if self.own else f" on {choice.size}×{choice.size} pixels"
            raise ValueError(f"The network cannot run{where}: {reason}") from None


def memory_explorer(
    model: str | nn.Module = "resnext18-1-21222",
    image_size: int = 128,
    *,
    example: Tensor | tuple[Any, ...] | None = None,
) -> widgets.VBox | None:
    """Choose a network, its student, RED blocks, input, dtype and convention; see what is alive at each step.

    `model` is the name of a built-in teacher, or a network of your own together with `example`, a batch that it can
    be called with (or the tuple of its inputs). Networks are untrained: memory does not depend on weights. None
    where nobody is looking.

    >>> memory_explorer("resnet18", image_size=224) is None
    True
    """
    if not is_live():
        return None
    return MemoryExplorer(MemorySource(model, example), image_size).view


class MemoryExplorer(Explorer):
    """The widgets: they ask the source for profiles and the figures for their image."""

    def __init__(self, source: MemorySource, image_size: int = 128):
        import ipywidgets as widgets

        super().__init__()
        self.source = source
        sizes = sorted({*SIZES, image_size})
        self.model = dropdown("model", [(name, name) for name in source.models])
        self.student = slider("student", [("×1", 1)])
        self.blocks = dropdown("RED blocks", [(NONE, NONE)])
        self.size = slider("input", [(f"{size}×{size}", size) for size in sizes], image_size)
        self.batch = slider("batch", [(str(batch), batch) for batch in BATCHES])
        self.dtype = dropdown("dtype", [(dtype, dtype) for dtype in DTYPES])
        self.convention = dropdown("convention", [(name, name) for name in ("fused", "eager", "paper")])
        lines = [
            ("the teacher's peak", "teacher"),
            ("bounds (takes a second or two)", "bounds"),
            ("none, own scale", "none"),
        ]
        self.lines = dropdown("lines", lines)
        built_in = (self.model, self.student, self.blocks, self.size, self.batch, self.dtype, self.convention)
        controls = built_in if source.own is None else (self.student, self.blocks, self.dtype, self.convention)
        for control in (*controls, self.lines):
            control.style.description_width = "88px"
        self.table = widgets.HTML()
        self.place = widgets.VBox([self.figure, self.table])
        self.view = widgets.VBox([self.watch(*controls, self.lines), self.status, self.place])

    def show(self) -> None:
        try:
            figure, table = self._views(self._choice())
        except ValueError as error:
            self.say(str(error), bold="This cannot be shown.")
            self.place.layout.display = "none"  # a figure that is taken out of the page does not come back whole
            return
        redraw(self.figure, figure)
        self.say("")
        self.table.value = as_html(table)
        self.place.layout.display = ""

    def _choice(self) -> Choice:
        """What the controls say, after those that depend on others have been given what is possible."""
        model = self.model.value
        factors = self.source.factors(model)
        factor = self.choose(self.student, [(f"×{f}", f) for f in factors], 4 if 4 in factors else factors[-1])
        names = (NONE,) if factor == 1 else (NONE, PLAIN, IN_PLACE)  # blocks go into students
        blocks = self.choose(self.blocks, [(name, name) for name in names], NONE)
        return Choice(
            model, factor, blocks, self.size.value, self.batch.value, self.dtype.value, self.convention.value
        )

    def _views(self, choice: Choice) -> tuple[go.Figure, pd.DataFrame]:
        from redistill_lib.figures import memory_by_layer, memory_table, memory_timeline

        role = {NONE: "student", PLAIN: "red", IN_PLACE: "red in place"}[choice.blocks]
        profiles = {"teacher": self.source.profile(choice.teacher)}
        if choice.factor > 1:
            profiles[role] = self.source.profile(choice)
        *_, shown = profiles.values()
        if choice.convention == "paper":
            if role == "red":  # what the blocks add shows beside the student without them
                profiles = {"student": self.source.profile(replace(choice, blocks=NONE)), **profiles}
                profiles = {name: profiles[name] for name in ("teacher", "student", "red")}
            return memory_by_layer(profiles), memory_table(profiles)
        lines = self.lines.value
        if lines == "bounds" and choice.convention != "fused":
            raise ValueError("The bounds are those of the fused convention: choose it, or other lines.")
        reference = profiles["teacher"] if lines == "teacher" and choice.factor > 1 else None
        bounds = self.source.bounds(choice) if lines == "bounds" else None
        return memory_timeline(shown, reference=reference, bounds=bounds), memory_table(profiles)
