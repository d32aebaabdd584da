"""What a network needs at its peak, and what pooling, RED blocks, input, dtype and convention do to it."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from redistill_lib.distill import match_taps
from redistill_lib.explorers.controls import Explorer, dropdown, options, slider
from redistill_lib.figures import memory_by_layer, memory_table, memory_timeline
from redistill_lib.memory import memory_bounds, profile_memory
from redistill_lib.memory.profile import CONVENTIONS, Convention
from redistill_lib.methods import RED
from redistill_lib.models import create_model, example_inputs, list_models, student_name
from redistill_lib.red import insert_blocks, make_in_place
from redistill_lib.student import derive_student

NONE, PLAIN, IN_PLACE = "none", "as published", "in place"
_ROLES = {NONE: "student", PLAIN: "red", IN_PLACE: "red in place"}
_LINES = {"the teacher's peak": "teacher", "bounds (slower)": "bounds", "none, own scale": "none"}


@dataclass(frozen=True)
class MemoryChoice:
    """What the controls say."""

    model: str
    factor: int = 1
    blocks: str = NONE
    size: int = 128
    batch: int = 1
    dtype: str = "fp32"
    convention: Convention = "fused"


class MemoryExplorer(Explorer):
    """Networks, their `profile` and `bounds` by choice are made once each.

    Built-in networks are on the meta device: they have shapes and no weights. Your own network stays as it is.
    """

    def __init__(
        self, model: str | nn.Module, image_size: int = 128, example: Tensor | tuple[Any, ...] | None = None
    ):
        if isinstance(model, nn.Module) == (example is None):
            raise ValueError("give a network of your own together with example=, a batch for it, and a name without")
        self.own = model if isinstance(model, nn.Module) else None
        self.example = example if isinstance(example, tuple) else (example,)
        models = ["own network"]
        if isinstance(model, str):
            student_name(model, 1)  # a name that is none is told here
            models = list(dict.fromkeys([model, *list_models("classifier"), "unet"]))
        self.factors = functools.cache(self._factors)
        self.network = functools.cache(self._network)
        self.profile = functools.cache(lambda choice: self._run(profile_memory, choice, convention=choice.convention))
        self.bounds = functools.cache(lambda choice: self._run(memory_bounds, choice))
        sizes = sorted({32, 48, 64, 96, 128, 160, 192, 224, 256, image_size})
        self.model = dropdown("model", options(models))
        self.student, self.blocks = slider("student"), dropdown("RED blocks")
        self.size = slider("input", options(sizes, "{0}×{0}"), image_size)
        self.batch = slider("batch", options([1, 2, 4, 8, 16, 32]))
        self.dtype = dropdown("dtype", options(["fp32", "fp16", "int8"]))
        self.convention = dropdown("convention", options(sorted(CONVENTIONS, key="fused".__ne__)))
        self.lines = dropdown("lines", [*_LINES.items()])
        controls = [self.model, self.student, self.blocks, self.size, self.batch, self.dtype, self.convention]
        if self.own:
            controls = [self.student, self.blocks, self.dtype, self.convention]
        self.lay_out(*controls, self.lines)

    def _factors(self, model: str) -> tuple[int, ...]:
        """The pooling factors that this network's stride allows; 1 is the teacher itself."""
        found = [1]
        for factor in (2, 4, 8):
            with contextlib.suppress(ValueError, RuntimeError):
                self.network(model, factor)
                found.append(factor)
        return tuple(found)

    def _network(self, model: str, factor: int) -> nn.Module:
        if self.own:
            return self.own if factor == 1 else derive_student(self.own, factor, example=self.example)[0]
        with torch.device("meta"):
            return create_model(student_name(model, factor))

    def _with_blocks(self, choice: MemoryChoice, inputs: tuple[Any, ...]) -> nn.Module:
        plain = self.network(choice.model, choice.factor)
        if choice.blocks == NONE:
            return plain
        like, taps = next(plain.parameters()), match_taps(plain, self.network(choice.model, 1), inputs)
        with torch.device(like.device):
            made = [(tap.layer, tap.side, tap.block(RED())) for tap in taps]
        blocks = [(layer, side, block.to(like.dtype)) for layer, side, block in made if block is not None]
        model = insert_blocks(copy.deepcopy(plain), blocks)
        if choice.blocks == IN_PLACE:
            model, _ = make_in_place(model, *inputs)
        return model

    def _run(self, count: Callable[..., Any], choice: MemoryChoice, **settings: Any) -> Any:
        inputs = self.example
        if not self.own:
            inputs = example_inputs(choice.model, choice.size, batch=choice.batch, device="meta")
        try:
            return count(self._with_blocks(choice, inputs), *inputs, dtype=choice.dtype, **settings)
        except RuntimeError as error:  # PyTorch's own, from some layer inside
            reason = str(error).splitlines()[0]
            where = "" if self.own else f" on {choice.size}×{choice.size} pixels"
            raise ValueError(f"The network cannot run{where}: {reason}") from None

    def _choice(self) -> MemoryChoice:
        """What the controls say, after those that depend on others have been given what is possible."""
        model = self.model.value
        factors = self.factors(model)
        factor = self.choose(self.student, options(factors, "×{}"), 4 if 4 in factors else factors[-1])
        known = _ROLES if factor > 1 else [NONE]  # they go into students
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
        lines = self.lines.value
        profiles = {"teacher": self.profile(replace(choice, factor=1, blocks=NONE))}
        if choice.convention == "paper" and choice.blocks == PLAIN:  # beside it, what the blocks add shows
            profiles["student"] = self.profile(replace(choice, blocks=NONE))
        if choice.factor > 1:
            profiles[_ROLES[choice.blocks]] = self.profile(choice)
        self.set_table(memory_table(profiles))
        if choice.convention == "paper":
            return memory_by_layer(profiles)
        *_, shown = profiles.values()
        reference = profiles["teacher"] if lines == "teacher" and choice.factor > 1 else None
        bounds = self.bounds(choice) if lines == "bounds" else None
        return memory_timeline(shown, reference=reference, bounds=bounds)
