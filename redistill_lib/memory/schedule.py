"""What a runtime executes: steps over buffers, as eager PyTorch runs a traced pass or as an edge runtime would."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from redistill_lib.memory.trace import Op, Storage, Trace

StorageSize = Callable[[Storage], int]

# Operators that need no more than the place itself to write it anew, beside those that PyTorch tags as pointwise.
_POINTWISE = {
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm", "hardswish",
    "_prelu_kernel",
}  # fmt: skip
# Operators that read a row or a channel only to write it anew.
_OVERWRITING = {
    "native_group_norm", "native_layer_norm", "_fused_rms_norm", "_softmax", "_log_softmax", "_to_copy", "clone",
    "log_sigmoid_forward",
}  # fmt: skip
# Operators known to need their inputs while they write their output, beside PyTorch's core set and reductions.
_SEPARATE = {
    "baddbmm", "addbmm", "addmv", "mv", "dot", "stack", "take", "adaptive_max_pool2d", "channel_shuffle", "roll",
    "rot90", "tril", "triu", "im2col", "unfold", "one_hot", "_fft_c2c",
}  # fmt: skip
_SEPARATE_KINDS = ("pixel_", "upsample_", "_upsample_", "_scaled_dot_product_")
_SHORT = {
    "convolution": "conv", "native_batch_norm": "bn", "_native_batch_norm_legit_no_training": "bn",
    "cudnn_batch_norm": "bn", "native_group_norm": "group_norm", "native_layer_norm": "layer_norm",
    "max_pool2d_with_indices": "max_pool", "avg_pool2d": "avg_pool", "_adaptive_avg_pool2d": "avg_pool",
    "addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul", "hardtanh": "relu6",
    "upsample_nearest2d": "upsample", "upsample_bilinear2d": "upsample", "_to_copy": "to",
}  # fmt: skip


@dataclass(frozen=True)
class Buffer:
    """One block of the runtime's memory, there from step `first` to step `last`, both included."""

    index: int
    nbytes: int
    shape: tuple[int, ...]
    module: str  # that made it; empty for the network's inputs
    kind: str  # "input", "activation" or "output"
    first: int
    last: int


@dataclass(frozen=True)
class RunStep:
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
        live = [step.scratch for step in self.steps]
        for buffer in self.buffers:
            for k in range(buffer.first, buffer.last + 1):
                live[k] += buffer.nbytes
        return live


def _step(
    op: Op, reads: Iterable[int], writes: Iterable[int], overwrites: Iterable[int], scratch: int = 0
) -> RunStep:
    bare, reads = op.name.rstrip("_"), tuple(dict.fromkeys(reads))  # relu_ is relu, in place or not
    name = _SHORT.get(bare, bare.strip("_"))
    return RunStep(name, op.module, op.shape, reads, tuple(writes), tuple(overwrites), op.rows, op.flops, scratch)


def _buffer(storage: Storage, nbytes: int, first: int, last: int, returned: bool) -> Buffer:
    kind = "input" if storage.kind == "input" else "output" if returned else "activation"
    return Buffer(storage.index, nbytes, storage.shape, storage.module, kind, first, last)


def eager_schedule(trace: Trace, size: StorageSize) -> Schedule:
    """PyTorch as it is: one step per operator, and every tensor lives until Python lets go of it."""
    end = len(trace.ops) - 1
    return Schedule(
        tuple(_step(op, op.reads, op.writes, op.mutates) for op in trace.ops),
        tuple(_buffer(s, size(s), max(s.born, 0), min(s.died - 1, end), s.output) for s in trace.storages),
    )


def fused_schedule(trace: Trace, size: StorageSize, *, in_place_depthwise: bool = False) -> Schedule:
    """An edge runtime: a tensor is freed after its last use, and overwritten where nothing is lost by it.

    Activations, normalisations, adds, gates and softmax write over an input of their size that dies with them, and
    become part of the step that made it, as batch norm folded into its convolution. What nothing needs is not made;
    what does not depend on the network's input is computed beforehand. With `in_place_depthwise` a depthwise
    convolution overwrites its input too, through a scratch of one channel (MCUNetV2, arXiv 2110.15352).
    """
    (ops, fixed), storages = needed_ops(trace), trace.storages
    last_use = {index: k for k, op in enumerate(ops) for index in (*op.reads, *op.mutates)}
    last_use |= {storage.index: len(ops) for storage in storages if storage.output}
    made_at = {s.index: -1 for s in storages if s.kind != "activation"}  # buffer → step that wrote it
    first, last = dict.fromkeys(made_at, 0), dict.fromkeys(made_at, 0)
    home = {index: index for index in made_at}  # storage → buffer that holds it
    steps: list[RunStep] = []
    for k, op in enumerate(ops):
        reads = [index for index in op.reads if index in home]
        writes = [index for index in op.writes if index in last_use]
        overwrites = [home[index] for index in op.mutates if index in home]
        taken, scratch = [home[index] for index in reads], 0
        if len(writes) == 1 and not overwrites:
            made = storages[writes[0]]
            dying = [index for index in reads if last_use[index] == k]
            alike = [index for index in dying if may_overwrite(op, storages[index], made, size)]
            if alike:
                # The one made last: adding a shortcut is then part of the convolution before it.
                home[made.index] = max((home[index] for index in alike), key=lambda buffer: made_at[buffer])
                overwrites, writes = [home[made.index]], []
            elif in_place_depthwise and op.depthwise and dying and size(storages[dying[0]]) >= size(made):
                scratch = size(made) // op.shape[1]
                home[made.index], first[made.index] = made.index, len(steps) + 1  # until then it is in the old one
                overwrites, writes = [home[dying[0]]], []
        home |= {index: index for index in writes}
        step = _step(op, taken, writes, overwrites, scratch)
        joins = steps and overwrites and not writes and not scratch
        if joins and all(made_at[buffer] == len(steps) - 1 for buffer in overwrites):
            into = steps[-1]
            steps[-1] = replace(
                into,
                name=f"{into.name}+{step.name}",
                shape=step.shape,
                reads=tuple(dict.fromkeys((*into.reads, *(i for i in step.reads if i not in step.overwrites)))),
                rows=into.rows if _is_pointwise(op) else 0,
                flops=into.flops + step.flops,
            )
        else:
            first |= {index: len(steps) for index in writes}
            steps.append(step)
        now = len(steps) - 1
        made_at |= {home[index]: now for index in (*op.writes, *op.mutates) if index in home}
        last |= dict.fromkeys((*taken, *writes, *overwrites), now)
    outputs = {home[storage.index] for storage in storages if storage.output and storage.index in home}
    last |= dict.fromkeys(outputs, len(steps) - 1)
    buffers = tuple(
        _buffer(storages[index], size(storages[index]), start, max(start, last.get(index, 0)), index in outputs)
        for index, start in first.items()
        if start < len(steps)
    )
    unfused = {str(op.func) for op in ops if not _is_known(op)}
    return Schedule(tuple(steps), buffers, tuple(sorted(unfused)), sum(size(storages[index]) for index in fixed))


def may_overwrite(op: Op, read: Storage, made: Storage, size: StorageSize) -> bool:
    """Whether the operator could write its output over this input, if nothing else needs that any more."""
    alike = read.index in op.aligned and size(read) == size(made)
    return alike and (_is_pointwise(op) or op.name in _OVERWRITING)


def _is_pointwise(op: Op) -> bool:
    return torch.Tag.pointwise in op.func.tags or op.name in _POINTWISE


def _is_known(op: Op) -> bool:
    fills = not op.reads or op.name.startswith("new_") or op.name.endswith(("_like", "_"))
    listed = op.name in _OVERWRITING or op.name in _SEPARATE or op.name.startswith(_SEPARATE_KINDS)
    standard = torch.Tag.core in op.func.tags or torch.Tag.reduction in op.func.tags
    return fills or listed or standard or op.decides or _is_pointwise(op)


def needed_ops(trace: Trace) -> tuple[list[Op], set[int]]:
    """The operators that vary with the input and decide what is returned or kept, in order, and constant storages."""
    if trace.source == "real":
        return list(trace.ops), set()  # values may have gone through Python, where no operator shows them
    varying, before = {storage.index for storage in trace.storages if storage.kind != "activation"}, -1
    while before < len(varying):  # again while a storage turns out to vary that an earlier operator read
        before = len(varying)
        for op in trace.ops:
            if torch.Tag.nondeterministic_seeded in op.func.tags or varying.intersection(op.reads):
                varying.update(op.writes, op.mutates)
    end = len(trace.ops)
    needed = {s.index for s in trace.storages if s.output} or {s.index for s in trace.storages if s.died == end}
    kept = []
    for op in reversed(trace.ops):
        touched = {*op.writes, *op.mutates}
        if op.decides or needed & touched:
            needed.update(op.reads)
            if op.decides or touched & varying:
                kept.append(op)
    return kept[::-1], {storage.index for storage in trace.storages} - varying
