"""What a runtime makes of a traced pass before it runs: other operators, another order, copies in another layout."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch._ops import OpOverload

from redistill_lib.memory.runtime import Runtime, short_name
from redistill_lib.memory.trace import Op, Storage


class Rewritten(NamedTuple):
    ops: list[Op]
    storages: list[Storage]
    blocked: Mapping[int, Storage]  # storages that lie in blocks of channels, and as they would be without


def rewrite(ops: list[Op], storages: Iterable[Storage], runtime: Runtime) -> Rewritten:
    """The operators that the runtime runs, and the storages between them, which follow those of the trace."""
    work = _Rewriting(ops, storages, runtime)
    if runtime.becomes or runtime.blocked or runtime.floats:
        work.without_mutation()
    if runtime.becomes:
        work.index()
        work.ops = [part for op in work.ops for part in work.parts(op)]
    work.number = {index: (0, k) for k, op in enumerate(work.ops) for index in op.writes}
    backwards = runtime.order == "backwards" and not any(op.mutates for op in work.ops)
    if backwards:
        work.backwards({})
    if runtime.floats:
        work.widths()
    if runtime.blocked:
        work.layouts()
    if backwards:
        work.backwards(work.chains())
    elif runtime.accumulates:
        work.sums_last()
    return Rewritten(work.ops, work.storages, work.whole)


class _Rewriting:
    def __init__(self, ops: list[Op], storages: Iterable[Storage], runtime: Runtime):
        self.ops, self.storages, self.runtime = ops, [*storages], runtime
        self.number: dict[int, tuple[int, int]] = {}  # when what makes a map was put into the graph
        self.whole: dict[int, Storage] = {}  # maps in blocks, as they would be without
        self.copies: dict[int, int] = {}  # map → its copy in the other layout

    def added(self, like: Storage) -> int:
        self.storages.append(like._replace(index=len(self.storages), kind="activation", output=False))
        return len(self.storages) - 1

    def copied(self, op: Op, func: OpOverload, index: int, like: Storage) -> int:
        """A new map, made of another one for what the operator does."""
        copy = self.added(like._replace(module=op.module))
        step = op._replace(func=func, shape=like.shape, reads=(index,), writes=(copy,), aligned=(index,), flops=0)
        self.ops.append(step._replace(rows=0, depthwise=False, padded=(), groups=0))
        self.number[copy] = self.number.get(op.writes[0] if op.writes else copy, (0, 0))
        return copy

    def reading(self, op: Op, place: dict[int, int]) -> Op:
        """The operator, reading other maps in the place of some."""
        return op._replace(reads=tuple(place.values()), aligned=tuple(place.get(i, i) for i in op.aligned))

    def given_back(self, index: int, copy: int) -> None:
        """The caller gets a copy."""
        self.storages[index] = self.storages[index]._replace(output=False)
        self.storages[copy] = self.storages[copy]._replace(output=True)

    # ---------------------------------------------------------------------------------------------- other operators

    def without_mutation(self) -> None:
        """What the model writes over is, once exported, a new tensor."""
        given, self.ops, now = self.ops, [], dict[int, int]()
        for op in given:
            op = op.moved(functools.partial(_follow, now), op.module)
            if len(op.mutates) == 1 and not op.writes and op.mutates[0] in op.aligned:
                old = op.mutates[0]
                made = self.added(self.storages[old])
                self.storages[made] = self.storages[made]._replace(output=self.storages[old].output)
                self.storages[old] = self.storages[old]._replace(output=False)
                now |= dict.fromkeys((old, *(i for i, there in now.items() if there == old)), made)
                op = op._replace(mutates=(), writes=(made,))
            self.ops.append(op)

    def parts(self, op: Op) -> list[Op]:
        """The operators that stand for one."""
        kind = short_name(op.func)
        names = dict(self.runtime.becomes).get(kind, ())
        if not names or not op.reads or not op.writes or any(self.readers[index] for index in op.writes[1:]):
            return [op]
        if ("conv", kind) in self.runtime.overwrites and self.chain(op.reads[0]):
            return [op]  # which does it too
        made, steps, reads = self.storages[op.writes[0]], list[Op](), op.reads
        for k, name in enumerate(names):
            kind, _, how = name.partition(" ")
            reads = tuple(dict.fromkeys((*reads, *op.reads))) if how == "input" else reads
            writes = op.writes[:1] if k == len(names) - 1 else (self.added(made),)
            if how == "flat":
                self.storages[writes[0]] = made._replace(index=writes[0], shape=(math.prod(made.shape),))
            func = op.func if kind == short_name(op.func) else _operator(kind)
            steps.append(
                op._replace(func=func, reads=reads, writes=writes, aligned=reads, flops=0 if k else op.flops)
            )
            reads = writes
        return steps

    # -------------------------------------------------------------------------------------------------------- order

    def sums_last(self) -> None:
        """A convolution that adds what it makes to another map waits until that is there."""
        chains = self.chains()
        away = {k for chain in chains.values() for k in chain}
        order = [j for k in range(len(self.ops)) if k not in away for j in (*chains.get(k, ()), k)]
        self.ops = [self.ops[k] for k in order]

    def chains(self) -> dict[int, list[int]]:
        """Sums of which a convolution is to be a part, by their places, and the places of its operators."""
        self.index()
        found = {}
        for k, op in enumerate(self.ops):
            if (
                "conv" in self.runtime.accumulates
                and short_name(op.func) == "add"
                and len(op.reads) == len(op.aligned) == 2
            ):
                chains = (self.chain(index) for index in op.reads)
                found[k] = next((chain for chain in chains if chain), [])
        return {k: chain for k, chain in found.items() if chain}

    def backwards(self, chains: dict[int, list[int]]) -> None:
        """As found on a way back from the end: of what an operator reads, what was put into the graph last is first.

        What was traced comes before what works in blocks, which is put in anew, and that before copies out of them.
        """
        part_of = {j: k for k, chain in chains.items() for j in chain}
        place = {index: part_of.get(k, k) for k, op in enumerate(self.ops) for index in op.writes}
        order: list[int] = []
        for k, chain in chains.items():  # the sum is now the convolution
            self.number[self.ops[k].writes[0]] = self.number[self.ops[chain[0]].writes[0]]
        seen: set[int] = set()
        used = {place[index] for op in self.ops for index in op.reads if index in place}
        left = [(k, False) for k in range(len(self.ops)) if k not in used and k not in part_of]
        while left:
            k, ready = left.pop()
            if ready:
                order += (*chains.get(k, ()), k)
            elif k not in seen:
                seen.add(k)
                left.append((k, True))
                reads = {i for j in (*chains.get(k, ()), k) for i in self.ops[j].reads}
                makers = {place[index] for index in reads if index in place} - {k}
                left += ((j, False) for j in sorted(makers, key=self.added_at))
        self.ops = [self.ops[k] for k in order]

    def added_at(self, k: int) -> tuple[int, int]:
        return self.number[self.ops[k].writes[0]]

    def index(self) -> None:
        self.readers = Counter(index for op in self.ops for index in op.reads)
        self.place = {index: k for k, op in enumerate(self.ops) for index in op.writes}

    def chain(self, index: int) -> list[int]:
        """The convolution that makes a map for one reader alone, and its batch norm; or nothing."""
        if self.readers[index] != 1 or index not in self.place or self.storages[index].output:
            return []
        at = self.place[index]
        if self.ops[at].groups:
            return [at]
        before = self.chain(self.ops[at].reads[0]) if short_name(self.ops[at].func) == "bn" else []
        return [*before, at] if before else []

    # ------------------------------------------------------------------------------------------------------- widths

    def widths(self) -> None:
        """Maps of 4 bytes where operators compute so, and converted copies where one needs the other width."""
        self.index()
        floats = [self.in_floats(op) for op in self.ops]
        given, self.ops = self.ops, []
        wide = {s.index for s in self.storages if s.kind == "input" and s.dtype.is_floating_point}
        copies: dict[int, int] = {}

        def as_needed(op: Op, index: int, width: bool) -> int:
            if (index in wide) == width or not self.storages[index].dtype.is_floating_point:
                return index
            if index not in copies:
                copies[index] = self.copied(op, _CONVERT, index, self.storages[index])
                wide.update([copies[index]] if width else ())
            return copies[index]

        for op, width in zip(given, floats, strict=True):
            self.ops.append(self.reading(op, {index: as_needed(op, index, width) for index in op.reads}))
            wide.update(op.writes if width else ())
        for index in [s.index for s in self.storages if s.output and s.index not in wide]:
            self.given_back(index, as_needed(self.ops[-1], index, True))
        for index in wide:  # whatever the others are stored as
            self.storages[index] = self.storages[index]._replace(dtype=torch.int32)

    def in_floats(self, op: Op) -> bool:
        kind = short_name(op.func)
        folded = ("conv", kind) in self.runtime.overwrites and bool(op.reads and self.chain(op.reads[0]))
        return kind in self.runtime.floats and not folded

    # ------------------------------------------------------------------------------------------------------ layouts

    def layouts(self) -> None:
        """Maps in blocks of channels where operators take them so, and copies where one needs the other layout."""
        then = {index: short_name(op.func) for op in self.ops for index in op.reads}
        given, self.ops = self.ops, []
        for op in given:
            block = not op.mutates and self.takes_blocks(op)
            if block and op.func is _CONVERT:  # for what reads the copy
                block = then.get(op.writes[0]) in self.runtime.blocked
            self.ops.append(self.reading(op, {index: self.as_needed(op, index, block) for index in op.reads}))
            if block or (not op.mutates and self.makes_blocks(op)):
                for index in op.writes:
                    self.whole[index] = self.storages[index]
                    self.storages[index] = self.in_blocks(self.storages[index])
        for index in [index for index in self.whole if self.whole[index].output]:
            self.given_back(index, self.as_needed(self.ops[-1], index, False))
        for k, op in enumerate(self.ops):
            made = set(op.writes)
            if op.func is _REORDER or (made <= self.whole.keys() and short_name(op.func) not in _KEPT):
                self.number |= dict.fromkeys(made, (1 if made <= self.whole.keys() else 2, k))

    def takes_blocks(self, op: Op) -> bool:
        """Whether the operator reads and makes maps in blocks; pointwise ones where they get only such maps."""
        kind, block = short_name(op.func), self.runtime.block
        if kind not in self.runtime.blocked or len(op.shape) != 4 or not op.reads:
            return False
        channels = {self.whole.get(index, self.storages[index]).shape[1:2] for index in op.reads}
        if op.groups:  # a convolution, whose weights have to be there before
            (inputs,), outputs = channels.pop(), op.shape[1]
            if len(op.reads) > 1:
                return False
            if op.depthwise:
                return outputs % min(block, 4) == 0
            if op.groups > 1:
                return inputs // op.groups % block == 0 and outputs // op.groups % block == 0
            return inputs >= block and inputs % min(block, 4) == 0
        if not all(index in self.whole for index in op.reads):
            return False
        if kind == "cat" or kind.endswith("pool"):
            return all(count % block == 0 for (count,) in channels)
        return all(self.whole[index].shape == op.shape for index in op.reads)

    def makes_blocks(self, op: Op) -> bool:
        """Whether a convolution reads the few channels of a picture as they are, and makes a map in blocks."""
        if "conv" not in self.runtime.blocked or len(op.shape) != 4 or not op.groups == len(op.reads) == 1:
            return False
        read = op.reads[0]
        return self.whole.get(read, self.storages[read]).shape[1] < self.runtime.block

    def as_needed(self, op: Op, index: int, block: bool) -> int:
        """The map in the layout in which the operator needs it: itself, or a copy."""
        if block == (index in self.whole):
            return index
        if index not in self.copies:
            made = self.whole.get(index, self.storages[index])
            copy = self.copies[index] = self.copied(op, _REORDER, index, made)
            if block:
                self.whole[copy] = self.storages[copy]
                self.storages[copy] = self.in_blocks(self.storages[copy])
        return self.copies[index]

    def in_blocks(self, made: Storage) -> Storage:
        """With as many channels as whole blocks have; blocks of one are channels that come last."""
        batch, channels, *sides = made.shape
        if self.runtime.block == 1:
            return made._replace(shape=(batch, *sides, channels))
        count = -(-channels // self.runtime.block) * self.runtime.block
        return made._replace(nbytes=made.nbytes // channels * count, shape=(batch, count, *sides))


_CONVERT = torch.ops.aten._to_copy.default
_REORDER = torch.ops.aten.permute_copy.default
_KEPT = ("add", "mul", "cat")  # they take maps in blocks as they take others, and are not put in anew


def _follow(now: dict[int, int], index: int) -> int:
    return now.get(index, index)


def _operator(name: str) -> OpOverload:
    packet = getattr(torch.ops.aten, name)
    return getattr(packet, "default" if "default" in packet.overloads() else "Tensor")
