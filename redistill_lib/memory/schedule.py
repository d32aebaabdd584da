"""What a runtime executes: steps over buffers, made of a traced pass by the rules of a `Runtime`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from redistill_lib.memory.arena import Block, alive
from redistill_lib.memory.padding import pool_parts
from redistill_lib.memory.rewrite import Rewritten, rewrite
from redistill_lib.memory.runtime import FUSED, Runtime, is_known, kinds_of, short_name
from redistill_lib.memory.trace import Op, Storage, Trace

_PATCHES = 128 * 128  # of which more are multiplied in parts

StorageSize = Callable[[Storage], int]


class Buffer(NamedTuple):
    """One block of the runtime's memory, there from step `first` to step `last`, both included."""

    index: int  # type: ignore[assignment]
    nbytes: int
    shape: tuple[int, ...]
    module: str  # that made it; empty for the network's inputs
    kind: str  # "input", "activation" or "output"
    first: int
    last: int


class RunStep(NamedTuple):
    """One kernel: the buffers that it reads, makes and writes over, by index, and where it is in the network."""

    name: str  # "conv+bn+relu"
    module: str
    shape: tuple[int, ...]  # of its output
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    overwrites: tuple[int, ...]
    rows: int  # that the kernel of a convolution or pooling spans; 0: it needs whole maps
    flops: int
    scratch: int = 0  # bytes beside the buffers


@dataclass(frozen=True)
class Schedule:
    steps: tuple[RunStep, ...]
    buffers: tuple[Buffer, ...]
    unfused: tuple[str, ...] = ()  # operators of which it is not known whether they could write over their input
    constant_bytes: int = 0  # what does not depend on the input: computed once, kept beside the weights

    def live_bytes(self) -> list[int]:
        """Bytes of all buffers that are there during each step, its scratch included."""
        return alive(self.blocks(), len(self.steps))

    def blocks(self, alignment: int = 1) -> list[Block]:
        """What an arena has to hold, as it comes into being: the buffers, and before a step's own its scratch."""
        taken = [Block(step.scratch, k, k) for k, step in enumerate(self.steps) if step.scratch]
        taken += (Block(buffer.nbytes, buffer.first, buffer.last) for buffer in self.buffers if buffer.nbytes)
        taken.sort(key=lambda block: block.first)
        return [block._replace(nbytes=-(-block.nbytes // alignment) * alignment) for block in taken]


def _step(
    op: Op, reads: Iterable[int], writes: Iterable[int], overwrites: Iterable[int], scratch: int = 0
) -> RunStep:
    name, reads = short_name(op.func), tuple(dict.fromkeys(reads))
    return RunStep(name, op.module, op.shape, reads, tuple(writes), tuple(overwrites), op.rows, op.flops, scratch)


def _buffer(storage: Storage, nbytes: int, first: int, last: int, returned: bool) -> Buffer:
    kind = "input" if storage.kind == "input" else "output" if returned else "activation"
    return Buffer(storage.index, nbytes, storage.shape, storage.module, kind, first, last)


def make_schedule(trace: Trace, size: StorageSize, runtime: Runtime) -> Schedule:
    """What the runtime executes.

    But for one that frees `as python`: a tensor is freed after its last use, and overwritten where the rules let it;
    what overwrites a map of the step before becomes part of that step, as batch norm folded into its convolution.
    What nothing needs is not made; what does not depend on the network's input is computed beforehand.
    """
    if runtime.frees == "as python":  # one step per operator, and every tensor lives until Python lets go of it
        end = len(trace.ops) - 1
        return Schedule(
            tuple(_step(op, op.reads, op.writes, op.mutates) for op in trace.ops),
            tuple(_buffer(s, size(s), max(s.born, 0), min(s.died - 1, end), s.output) for s in trace.storages),
        )
    ops, fixed = trace.needed
    rewritten = rewrite(ops, trace.storages, runtime)
    plan = _Plan(rewritten, size, runtime)
    for k, op in enumerate(rewritten.ops):
        plan.run(k, op)
    if any(runtime.bookkeeping):
        plan.keep_books()
    unknown = {str(op.func) for op in ops if op.reads and not is_known(op.func)}
    constants = sum(size(trace.storages[index]) for index in fixed)
    return Schedule(tuple(plan.steps), plan.buffers(), tuple(sorted(unknown)), constants)


class _Plan:
    """The steps so far, and where each storage is."""

    def __init__(self, rewritten: Rewritten, size: StorageSize, runtime: Runtime):
        ops, storages, self.blocked = rewritten
        self.storages, self.size, self.runtime = storages, size, runtime
        self.free: list[int] = []  # places that a map of the same shape may take, the newest last
        self.before = -1, -1  # the last of them that was taken, and its last use till then
        self.last_use = {index: k for k, op in enumerate(ops) for index in (*op.reads, *op.mutates)}
        held = {s.index for s in storages if s.output or (s.kind == "input" and runtime.inputs == "held")}
        self.last_use |= dict.fromkeys(held, len(ops))
        self.given = given = [storage.index for storage in storages if storage.kind != "activation"]
        self.steps: list[RunStep] = []
        self.made_at = dict.fromkeys(given, -1)  # buffer → step that wrote it
        self.first, self.last = dict.fromkeys(given, 0), dict.fromkeys(given, 0)
        self.home = {index: index for index in given}  # storage → buffer that holds it

    def run(self, k: int, op: Op) -> None:
        """Add the operator, the k-th, to the steps."""
        home, storages = self.home, self.storages
        reads = [index for index in op.reads if index in home]
        writes = [index for index in op.writes if index in self.last_use]
        unused = [index for index in op.writes if self.runtime.unused_outputs and index not in self.last_use]
        taken, overwrites, scratch = [home[index] for index in reads], [], self.scratch(op)
        in_place = op.depthwise and self.runtime.in_place_depthwise
        if self.runtime.pads != "never" and op.padded and reads:
            taken = [*self.pad(op, storages[reads[0]]), *taken[1:]]
        for index in (index for index in op.mutates if index in home):
            if self.may_overwrite(op, index, storages[index]) or index not in op.aligned:
                overwrites.append(home[index])
            else:  # what the model writes over is, once exported, a new tensor
                home[index] = self.added(storages[index])
                writes.append(home[index])
        if len(writes) == 1 and not op.mutates:
            made = storages[writes[0]]
            dying = [index for index in reads if self.last_use[index] == k]
            alike = [home[index] for index in dying if self.may_overwrite(op, index, made)]
            if alike:
                newest = max(alike, key=self.made_at.__getitem__)
                chosen = newest if self.runtime.prefers == "newest" else alike[0]
                home[made.index] = self.accumulate(op, chosen, alike)
                taken = [buffer for buffer in taken if buffer in self.first]
                overwrites, writes = [home[made.index]], []
            elif in_place and dying and self.size(storages[dying[0]]) >= self.size(made):
                scratch = self.size(made) // op.shape[1]
                home[made.index], self.first[made.index] = made.index, len(self.steps) + 1  # till then in the old one
                overwrites, writes = [home[dying[0]]], []
        home |= {index: index for index in (*writes, *unused)}
        writes = [self.taken(index) for index in writes] + unused
        self.add(_step(op, taken, writes, overwrites, scratch), op)
        if self.runtime.recycles:
            left = (home[index] for index in reads if self.last_use[index] == k and home[index] in self.first)
            self.free += (i for i in left if i not in {*overwrites, *self.free} and i not in self.given)
        now = len(self.steps) - 1
        self.made_at |= {home[index]: now for index in (*op.writes, *op.mutates) if index in home}
        self.last |= dict.fromkeys((*taken, *writes, *overwrites), now)

    def keep_books(self) -> None:
        """Add what the runtime notes of each map; what a convolution or linear layer does too makes none."""
        always, kept, weighted = self.runtime.bookkeeping
        parts = [step.name.split("+") for step in self.steps]
        made = [1 if names[0] in ("conv", "linear") else len(names) for names in parts]
        dead = Counter(max(self.last.get(i, 0), first) + 1 for i, first in self.first.items())
        before = always * sum(made) + weighted * sum(names[0] in ("conv", "linear") for names in parts)
        there = 0
        for k, step in enumerate(self.steps):
            there += made[k] - dead[k]
            self.steps[k] = step._replace(scratch=step.scratch + before + kept * there)

    def add(self, step: RunStep, op: Op) -> None:
        """As part of the last step where it writes over what that one made."""
        joins = self.steps and step.overwrites and not step.writes and not step.scratch
        if joins and all(self.made_at[buffer] == len(self.steps) - 1 for buffer in step.overwrites):
            into = self.steps[-1]
            self.steps[-1] = into._replace(
                name=f"{into.name}+{step.name}",
                shape=step.shape,
                reads=tuple(dict.fromkeys((*into.reads, *(i for i in step.reads if i not in step.overwrites)))),
                rows=into.rows if "pointwise" in kinds_of(op.func) else 0,
                flops=into.flops + step.flops,
            )
        else:
            self.first |= {index: len(self.steps) for index in step.writes if index not in self.first}
            self.steps.append(step)

    def taken(self, index: int) -> int:
        """The place of a new map: one that waits, the newest first, where the runtime keeps such."""
        made = self.storages[index]
        wanted = made.shape, self.size(made)
        alike = [i for i in self.free if (self.storages[i].shape, self.size(self.storages[i])) == wanted]
        if made.output or not alike:
            return index
        place = self.home[index] = alike[-1]
        self.free.remove(place)
        self.before = place, self.last[place]
        return place

    def added(self, storage: Storage) -> int:
        """The index of a new storage like this one."""
        self.storages.append(storage._replace(index=len(self.storages), kind="activation"))
        return len(self.storages) - 1

    def pad(self, op: Op, storage: Storage) -> list[int]:
        """What the operator reads in place of a map that SAME does not pad as it should; the steps that make it."""
        source = self.home[storage.index]
        if self.runtime.pads == "copied" or not (op.grows or self.in_parts(op)):
            return [self.copied("pad", op, storage, source, op.padded)]
        if op.grows:
            return [source]
        parts, (batch, _, *pixels), (_, _, *made) = [], storage.shape, op.shape
        for count in pool_parts(op.shape[1], math.prod(pixels), math.prod(op.padded[2:]), math.prod(made)):
            part = self.copied("slice", op, storage, source, (batch, count, *pixels))
            part = self.copied("pad", op, storage, part, (batch, count, *op.padded[2:]))
            parts.append(self.copied(short_name(op.func), op, storage, part, (batch, count, *made)))
        return parts

    def in_parts(self, op: Op) -> bool:
        return short_name(op.func) == "max_pool" and len(op.shape) == 4

    def copied(self, name: str, op: Op, storage: Storage, source: int, shape: tuple[int, ...]) -> int:
        """A step for the operator that makes a map of this shape, of what is in a buffer."""
        nbytes = math.prod(shape) * storage.dtype.itemsize
        made = self.added(storage._replace(nbytes=nbytes, shape=shape, module=op.module))
        self.steps.append(RunStep(name, op.module, shape, (source,), (made,), (), 0, 0))
        self.first[made] = self.made_at[made] = self.last[source] = len(self.steps) - 1
        return made

    def accumulate(self, op: Op, newest: int, alike: list[int]) -> int:
        """The buffer of a sum: the other addend, where the step before can add what it makes to that."""
        others = [buffer for buffer in alike if buffer != newest]
        into = self.steps[-1] if self.steps else None
        if not others or into is None or into.writes != (newest,) or not self.joins_convolution(op):
            return newest
        self.steps[-1] = into._replace(reads=(*into.reads, others[0]), writes=(), overwrites=(others[0],))
        self.made_at[others[0]] = self.made_at[newest]
        if self.before[0] == newest:  # it took a place that had been free
            self.last[newest] = self.before[1]
            self.free.append(newest)
        else:
            del self.first[newest]
        return others[0]

    def scratch(self, op: Op) -> int:
        """Bytes that the operator takes for itself while it runs."""
        if self.runtime.pool_parts and len(op.writes) > 1 and short_name(op.func) == "max_pool":
            # While its input is there: of all parts but the last, which is pooled when the input is gone.
            channels = -(-op.shape[1] // self.runtime.pool_parts)
            read, made, indices = (self.size(self.storages[i]) for i in (op.reads[0], *op.writes))
            return max(0, (read + indices - made) * channels // op.shape[1])
        rules = [what for kind, what in self.runtime.scratch if kind in kinds_of(op.func)]
        made = math.prod(op.shape) if rules and op.writes else 0
        if not made:
            return 0
        width = self.size(self.storages[op.writes[0]]) // made
        amounts = {"output": made, "sums": 0 if op.groups or width > 1 else 4 * made}
        if len(op.reads) == 1:  # a linear layer reads one map, and its weights; a product of two maps has none
            amounts["weights"] = op.flops * op.shape[-1] // (2 * made)
            if "patches" in rules and op.writes[0] not in self.blocked:
                amounts["patches"] = self.patches(op)
            if "integers" in rules:
                amounts["integers"] = self.integers(op)
        return width * sum(amounts.get(what, 0) for what in rules)

    def patches(self, op: Op) -> int:
        """Elements of the input, gathered for a convolution's product of matrices; one group after the other."""
        inputs, per_output = (
            self.blocked.get(op.reads[0], self.storages[op.reads[0]]).shape,
            op.flops // (2 * math.prod(op.shape)),
        )
        positions = math.prod(op.shape[2:])
        if not op.groups:  # transposed: the patches of the output
            return op.flops // (2 * inputs[1])
        if per_output * op.groups == inputs[1] and positions == math.prod(inputs[2:]):
            return 0  # 1×1: the input is the matrix
        if op.shape[1] // op.groups > positions:
            return positions * per_output
        return _PATCHES

    def integers(self, op: Op) -> int:
        """What a convolution of int8 takes in bytes."""
        inputs, per_output = (
            self.blocked.get(op.reads[0], self.storages[op.reads[0]]).shape,
            op.flops // (2 * math.prod(op.shape)),
        )
        if not op.groups:  # transposed, which computes in floats: its weights and its patches
            return 4 * (op.flops // (2 * inputs[0] * math.prod(inputs[2:])) + op.flops // (2 * inputs[1]))
        positions, channels = math.prod(op.shape[2:]), inputs[1] // op.groups
        if per_output == channels and positions == math.prod(inputs[2:]):
            return 0 if channels % 4 == 0 else 4 * math.prod(op.shape)
        if op.depthwise or (op.groups == 1 and channels % 4 == 0):
            return 8 * per_output // channels * positions
        return 4 * math.prod(op.shape) + per_output * positions

    def may_overwrite(self, op: Op, read: int, made: Storage) -> bool:
        at, storage = self.made_at[self.home[read]], self.storages[read]
        if at < 0 and storage.kind == "input" and self.runtime.inputs == "held":
            return False
        if self.joins_convolution(op):
            return read in op.aligned and self.size(storage) == self.size(made)
        maker = "*" if at < 0 else self.steps[at].name.partition("+")[0]
        return may_overwrite(op, storage, made, self.size, self.runtime, maker)

    def joins_convolution(self, op: Op) -> bool:
        """Whether it is a sum that the step before can make, adding its result to another map."""
        if not self.steps or not self.runtime.accumulates or short_name(op.func) != "add" or len(op.aligned) != 2:
            return False
        if not {*self.steps[-1].name.split("+")} <= {*self.runtime.accumulates, "bn"}:
            return False  # an activation comes before the sum
        return any(self.made_at.get(self.home.get(index, -1)) == len(self.steps) - 1 for index in op.reads)

    def buffers(self) -> tuple[Buffer, ...]:
        outputs = {self.home[s.index] for s in self.storages if s.output and s.index in self.home}
        held = {i for i in self.first if self.storages[i].kind == "input" and self.runtime.inputs == "held"}
        self.last |= dict.fromkeys(outputs | held, len(self.steps) - 1)
        lives = {i: (first, max(first, self.last.get(i, 0))) for i, first in self.first.items()}
        return tuple(
            _buffer(self.storages[i], self.size(self.storages[i]), *life, i in outputs)
            for i, life in lives.items()
            if life[0] < len(self.steps)
        )


def may_overwrite(
    op: Op, read: Storage, made: Storage, size: StorageSize, runtime: Runtime = FUSED, maker: str = "*"
) -> bool:
    """Whether the operator could write its output over this input, of such a maker, if nothing else needs that."""
    if read.index not in op.aligned or size(read) != size(made):
        return False
    kinds = kinds_of(op.func, bool(op.mutates))
    return any(first in ("*", maker) and then in kinds for first, then in runtime.overwrites)
