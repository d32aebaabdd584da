"""Where a network's memory goes: live bytes step by step, under a named convention."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from redistill_lib.memory.arena import PACKERS, height, pack_tightly
from redistill_lib.memory.operators import packed_tensors
from redistill_lib.memory.paper import paper_layers
from redistill_lib.memory.runtime import FUSED, RUNTIMES, Runtime
from redistill_lib.memory.schedule import Buffer, Schedule, StorageSize, make_schedule
from redistill_lib.memory.trace import Storage, Trace, trace
from redistill_lib.sizes import format_size

if TYPE_CHECKING:
    import pandas as pd

Convention = str | Runtime
CONVENTIONS = (*list(RUNTIMES)[:2], "paper", *list(RUNTIMES)[2:])
Dtype = str | torch.dtype | None
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Row:
    """One step of a profile. `live_bytes` = inputs + outputs + what it holds for later + its scratch."""

    op: str  # "conv+bn+relu"
    module: str
    shape: tuple[int, ...]  # of the output
    live_bytes: int
    in_bytes: int
    out_bytes: int
    held_bytes: int
    alive: tuple[int, ...] = ()  # indices into `Profile.tensors`
    flops: int = 0  # 2 per multiply-add

    @property
    def name(self) -> str:
        """The module's path, or the operator outside any."""
        return self.module or self.op

    @property
    def place(self) -> str:
        """What a reader calls it."""
        return place_name(self.name)


@dataclass(frozen=True)
class Profile:
    """Live bytes of one forward pass. Weights are beside it, never inside."""

    model: str
    convention: str
    dtype: str
    inputs: tuple[tuple[int, ...], ...]
    rows: tuple[Row, ...] = field(repr=False)  # the steps
    tensors: tuple[Buffer, ...] = field(repr=False)  # the blocks of memory
    weight_bytes: int
    weight_count: int
    buffer_bytes: int  # running statistics and the like
    constant_bytes: int  # tensors that do not depend on the input, computed once
    unfused: tuple[str, ...]  # unknown operators, taken to need inputs and outputs side by side
    source: str  # "real" where the network had to be run, as its control flow depends on values; else "fake"
    uncounted: tuple[str, ...] = ()  # operators that multiply, or may, which `flops` leaves out
    schedule: Schedule | None = field(default=None, repr=False, compare=False)
    runtime: Runtime | None = field(default=None, repr=False, compare=False)  # None: the paper's estimate

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at once."""
        return self.peak_op.live_bytes

    @cached_property
    def arena_bytes(self) -> int:
        """The one block in which the runtime's packer places everything; `peak_bytes` where it packs nothing."""
        return max(self._reach)

    @cached_property
    def best_arena_bytes(self) -> int:
        """The arena of our own packer, `redistill_lib.memory.arena.pack_tightly`, without alignment."""
        blocks = self.schedule.blocks() if self.schedule else []
        return height(blocks, pack_tightly(blocks)) if blocks else self.peak_bytes

    @cached_property
    def _reach(self) -> list[int]:
        """How far up the arena what is alive at each step reaches."""
        if self.schedule is None or self.runtime is None or self.runtime.packer == "live":
            return [row.live_bytes for row in self.rows]
        blocks, reach = self.schedule.blocks(self.runtime.alignment), [0] * len(self.rows)
        for block, offset in zip(blocks, PACKERS[self.runtime.packer](blocks), strict=True):
            for k in range(block.first, block.last + 1):
                reach[k] = max(reach[k], offset + block.nbytes)
        return reach

    @property
    def peak_index(self) -> int:
        """The first step at which the most bytes are alive."""
        return max(range(len(self.rows)), key=lambda k: self.rows[k].live_bytes)

    @property
    def peak_op(self) -> Row:
        return self.rows[self.peak_index]

    @property
    def peak_tensors(self) -> tuple[Buffer, ...]:
        """What is alive at the peak, the largest first."""
        alive = set(self.peak_op.alive)
        return tuple(sorted((t for t in self.tensors if t.index in alive), key=lambda t: -t.nbytes))

    @property
    def flops(self) -> int:
        """2 per multiply-add, of convolutions, matrix products, attention and recurrent layers."""
        return sum(row.flops for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per step; `alive` lists the tensors that are there, as "module shape".

        `arena_bytes` is how far up the arena they reach, where the convention packs one; else `live_bytes`.
        """
        import pandas as pd

        names = {t.index: f"{t.module or t.kind} {'×'.join(map(str, t.shape))}" for t in self.tensors}
        alive = [[names[index] for index in row.alive] for row in self.rows]
        return pd.DataFrame([vars(row) for row in self.rows]).assign(alive=alive, arena_bytes=self._reach)

    @property
    def packing(self) -> str:
        """What a reader has to know of the arena where it takes more than what is alive; else nothing."""
        if self.arena_bytes <= self.peak_bytes:
            return ""
        return f", in an arena of {format_size(self.arena_bytes)} (packed best {format_size(self.best_arena_bytes)})"

    def __str__(self) -> str:
        shapes = ", ".join("×".join(map(str, shape)) for shape in self.inputs)
        at = self.peak_op
        return (
            f"{self.model} on {shapes} ({self.convention}, {self.dtype}): peak {format_size(self.peak_bytes)} "
            f"at {at.place} ({at.op}){self.packing}, weights {format_size(self.weight_bytes)}"
        )


def profile_memory(
    model: nn.Module,
    *inputs: Any,
    convention: Convention = "fused",
    dtype: Dtype = None,
    kwargs: Mapping[str, Any] | None = None,
    in_place_depthwise: bool = False,
) -> Profile:
    """Live activation bytes of one forward pass in eval mode, step by step, without computing or allocating them.

    `inputs` and `kwargs` are what the network is called with; tensors on the meta device will do, and a tuple or
    dict of all of them. `convention`:
    ``eager`` counts what PyTorch keeps, as `measure_memory` on a CPU; ``fused`` what a sane edge runtime keeps
    (`redistill_lib.memory.schedule.make_schedule`; `in_place_depthwise` is for it alone); ``paper`` the authors'
    estimate for the built-in networks; or rules of your own, a `Runtime`. `dtype` (``fp32``, ``fp16``, ``bf16``,
    ``int8``) is what floating-point activations and weights would be stored as. Raises ValueError on an unknown
    convention or dtype, or a network without estimate.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    >>> profile = profile_memory(net, torch.zeros(1, 3, 16, 16))
    >>> profile.peak_bytes == 4 * 16 * 16 * (8 + 4), profile.peak_op.module
    (True, '2')
    """
    runtime = runtime_of(convention)
    if in_place_depthwise:
        if runtime is not FUSED:
            name = runtime.name if runtime else convention
            raise ValueError(f"in-place depthwise convolution belongs to the fused convention, not to {name}")
        runtime = replace(runtime, in_place_depthwise=True)
    storage_size(dtype)  # its mistakes before any work
    as_python = runtime is not None and runtime.frees == "as python"
    copies_views = runtime is not None and runtime.copies_views
    passed = trace(model, *inputs, kwargs=kwargs, fast_attention=as_python, copies_views=copies_views)
    return _build(model, passed, runtime, dtype)


def red_place(path: str) -> tuple[str, str]:
    """The layer that carries the RED block in which a module is, and its side, before or after; else "" for the side.

    >>> red_place("features.7.before.logit.0"), red_place("conv1")
    (('features.7', 'before'), ('conv1', ''))
    """
    found = re.fullmatch(r"(?:(.*?)\.)?(before|after)(?:\..*)?", path)
    return (found[1] or "", found[2]) if found else (path, "")


def place_name(path: str) -> str:
    """What a reader calls a module; a bare number, as the layers of a sequence have it, is said to be a layer's.

    >>> place_name("features.7.before.logit.0"), place_name("2"), place_name("conv1")
    ('RED block before features.7', 'layer 2', 'conv1')
    """
    layer, side = red_place(path)
    name = f"layer {layer}" if layer.isdigit() else layer
    return f"RED block {side} {name}".rstrip() if side else name


def runtime_of(convention: Convention) -> Runtime | None:
    """The rules of a convention; None: the paper's, which knows layers alone."""
    if isinstance(convention, str) and convention not in CONVENTIONS:
        names = ", ".join(CONVENTIONS)
        raise ValueError(f"unknown convention {convention!r}: choose from {names}, or give a Runtime")
    return RUNTIMES.get(convention) if isinstance(convention, str) else convention


def storage_size(dtype: Dtype) -> tuple[str | None, StorageSize]:
    """The name of a dtype, and how many bytes a storage would take in it."""
    if dtype is None:
        return None, lambda storage: storage.nbytes
    names = {known: name for name, known in DTYPES.items()} | {torch.uint8: "int8"}
    name = dtype if isinstance(dtype, str) else names.get(dtype)
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    width = DTYPES[name].itemsize

    def size(storage: Storage) -> int:
        kept = not storage.dtype.is_floating_point
        return storage.nbytes if kept else storage.nbytes // storage.dtype.itemsize * width

    return name, size


def weights_of(model: nn.Module) -> tuple[int, int]:
    """The number of weights and their bytes: of parameters, and of what quantised layers keep packed."""
    kept = {id(x): x for module in model.modules() for x in vars(module).values() if type(x) is torch.ScriptObject}
    packed = packed_tensors([*kept.values()])
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *packed)}.values()
    return sum(weight.numel() for weight in weights), sum(weight.nbytes for weight in weights)


def _build(model: nn.Module, passed: Trace, runtime: Runtime | None, dtype: Dtype) -> Profile:
    (name, size), schedule = storage_size(dtype), None
    if runtime is None:
        width = DTYPES[name or "fp32"].itemsize
        layers = [(path, shape, count * width) for path, shape, count in paper_layers(model, passed)]
        rows = tuple(Row("layer", path, shape, nbytes, nbytes, 0, 0) for path, shape, nbytes in layers)
    else:
        schedule = make_schedule(passed, size, runtime.of(name))
        rows = _rows(schedule)
    if not rows:
        raise ValueError("the forward pass has no operator that makes a tensor, so there is nothing to profile")
    widest = max((s.dtype.itemsize for s in passed.storages if s.dtype.is_floating_point), default=4)
    count, nbytes = weights_of(model)
    return Profile(
        model=str(getattr(model, "name", type(model).__name__)),
        convention=runtime.name if runtime else "paper",
        dtype=name or {8: "fp64", 4: "fp32", 2: "16 bit", 1: "8 bit"}.get(widest, "mixed"),
        inputs=passed.inputs,
        rows=rows,
        tensors=schedule.buffers if schedule else (),
        weight_bytes=count * DTYPES[name].itemsize if name else nbytes,
        weight_count=count,
        buffer_bytes=sum(buffer.nbytes for buffer in model.buffers()),
        constant_bytes=schedule.constant_bytes if schedule else 0,
        unfused=schedule.unfused if schedule else (),
        source=passed.source,
        uncounted=passed.uncounted,
        schedule=schedule,
        runtime=runtime,
    )


def _rows(schedule: Schedule) -> tuple[Row, ...]:
    sizes = {buffer.index: buffer.nbytes for buffer in schedule.buffers}
    alive: list[list[int]] = [[] for _ in schedule.steps]
    for buffer in schedule.buffers:
        for there in alive[buffer.first : buffer.last + 1]:
            there.append(buffer.index)
    rows = []
    for step, live, there in zip(schedule.steps, schedule.live_bytes(), alive, strict=True):
        taken, made = (sum(sizes.get(index, 0) for index in part) for part in (step.reads, step.writes))
        held = live - taken - made - step.scratch
        rows.append(Row(step.name, step.module, step.shape, live, taken, made, held, tuple(there), step.flops))
    return tuple(rows)
