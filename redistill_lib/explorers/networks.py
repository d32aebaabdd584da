"""The networks of the memory explorer by what was chosen, and what is counted of them; no widgets."""

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
from redistill_lib.figures import memory_by_layer, memory_timeline
from redistill_lib.memory import Profile, memory_bounds, profile_memory
from redistill_lib.memory.profile import Convention
from redistill_lib.methods import RED
from redistill_lib.models import create_model, example_inputs, student_name
from redistill_lib.red import insert_blocks, make_in_place
from redistill_lib.student import derive_student

NONE, PLAIN, IN_PLACE = "none", "as published", "in place"
ROLES = {NONE: "student", PLAIN: "red", IN_PLACE: "red in place"}
Example = Tensor | tuple[Any, ...] | None


def inputs_of(model: str | nn.Module, image_size: int, example: Example) -> tuple[Any, ...]:
    """What it is called with. ValueError for a network without example, or a name with one."""
    if isinstance(model, nn.Module) == (example is None):
        raise ValueError("give a network of your own together with example=, a batch for it, and a name without")
    if isinstance(model, str):
        return example_inputs(model, image_size, device="meta")
    return example if isinstance(example, tuple) else (example,)


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


class Networks:
    """Networks, their `profile` and `bounds` by choice are made once each.

    Built-in networks are on the meta device: they have shapes and no weights. Your own network stays as it is.
    """

    def __init__(self, model: str | nn.Module, image_size: int = 128, example: Example = None):
        self.example = inputs_of(model, image_size, example)
        self.own = model if isinstance(model, nn.Module) else None
        self.factors = functools.cache(self._factors)
        self.network = functools.cache(self._network)
        self.profile = functools.cache(lambda choice: self._run(profile_memory, choice, convention=choice.convention))
        self.bounds = functools.cache(lambda choice: self._run(memory_bounds, choice))

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

    def usual(self, model: str) -> int:
        """The factor to open with: the paper's ×4, if there is that."""
        factors = self.factors(model)
        return 4 if 4 in factors else factors[-1]

    def profiles(self, choice: MemoryChoice) -> dict[str, Profile]:
        """Of the teacher and what was chosen, by role; the last is what was chosen."""
        found = {"teacher": self.profile(replace(choice, factor=1, blocks=NONE))}
        if choice.convention == "paper" and choice.blocks == PLAIN:  # beside it, what the blocks add shows
            found["student"] = self.profile(replace(choice, blocks=NONE))
        if choice.factor > 1:
            found[ROLES[choice.blocks]] = self.profile(choice)
        return found

    def figure(self, choice: MemoryChoice, lines: str = "teacher") -> go.Figure:
        profiles = self.profiles(choice)
        if choice.convention == "paper":
            return memory_by_layer(profiles)
        *_, shown = profiles.values()
        reference = profiles["teacher"] if lines == "teacher" and choice.factor > 1 else None
        return memory_timeline(shown, reference=reference, bounds=self.bounds(choice) if lines == "bounds" else None)
