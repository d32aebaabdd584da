"""A memory convention as data: when a runtime frees a tensor, what it writes over, what it copies, how it packs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch._ops import OpOverload

from redistill_lib.memory.arena import PACKERS
from redistill_lib.memory.operators import name_of

# Operators that need no more than the place itself to write it anew, beside those that PyTorch tags as pointwise.
_POINTWISE = {
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm", "hardswish",
    "_prelu_kernel",
}  # fmt: skip
# Operators that read a row or a channel only to write it anew.
_REWRITING = {
    "native_group_norm", "native_layer_norm", "_fused_rms_norm", "_softmax", "_log_softmax", "_to_copy", "clone",
    "log_sigmoid_forward",
}  # fmt: skip
# Operators known to need their inputs while they write their output, beside PyTorch's core set and reductions.
_SEPARATE = {
    "baddbmm", "addbmm", "addmv", "mv", "dot", "stack", "take", "adaptive_max_pool2d", "channel_shuffle", "roll",
    "rot90", "tril", "triu", "im2col", "unfold", "one_hot", "_fft_c2c", "_local_scalar_dense",
}  # fmt: skip
_SEPARATE_KINDS = ("pixel_", "upsample_", "_upsample_", "_scaled_dot_product_", "new_")
_SHORT = {
    "convolution": "conv", "native_batch_norm": "bn", "_native_batch_norm_legit_no_training": "bn",
    "cudnn_batch_norm": "bn", "native_group_norm": "group_norm", "native_layer_norm": "layer_norm",
    "max_pool2d_with_indices": "max_pool", "avg_pool2d": "avg_pool", "_adaptive_avg_pool2d": "avg_pool",
    "addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul", "hardtanh": "relu6",
    "upsample_nearest2d": "upsample", "upsample_bilinear2d": "upsample", "_to_copy": "to",
    "permute_copy": "reorder", "_safe_softmax": "softmax",
}  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """The rules by which a runtime holds the tensors of a forward pass, as `profile_memory` takes them.

    Rules name operators as profiles do (``conv``, ``bn``, ``relu6``), or by kind: ``pointwise`` (activations, sums,
    gates, batch norm), ``rewriting`` (softmax and normalisations, which read a row or channel only to write it anew),
    ``in place`` (what the model itself writes over), ``*`` (any; also the network's input as a maker).

    >>> lean = Runtime("lean", overwrites=(("conv", "bn"), ("conv", "relu")))
    >>> from redistill_lib.memory import profile_memory
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Sigmoid())
    >>> [profile_memory(net, torch.zeros(1, 3, 16, 16), convention=c).peak_bytes // 1024 for c in ("fused", lean)]
    [11, 16]
    """

    name: str
    frees: Literal["after use", "as python"] = "after use"  # as python: whatever PyTorch holds, nothing fused
    # (what made a map, what follows): the second writes over it, if nothing else needs it and the size is the same.
    # Where the map is of the step before, both are one step.
    overwrites: tuple[tuple[str, str], ...] = ()
    # Of several dying inputs. The newest of a sum is the convolution just before, of which it is then a part.
    prefers: Literal["newest", "first"] = "newest"
    in_place_depthwise: bool = False  # over their input, through one channel (MCUNetV2, arXiv 2110.15352)
    # What adds its result to a dying map of that size, so that a sum with it needs no map of its own.
    accumulates: tuple[str, ...] = ()
    # Of what is permuted, sliced or split, as in exported graphs, where attention is its products and softmax.
    copies_views: bool = False
    inputs: Literal["freed", "held"] = "freed"  # held: by the caller until the end, who wants them back as they were
    unused_outputs: bool = False  # a kernel's results that nothing reads are made too: max pooling's int64 index map
    pool_parts: int = 0  # of channels, each of which max pooling copies and pools, its index map included, on its own
    # A padding that TensorFlow's SAME cannot express makes a padded copy of the map; avoided: convolutions get zeros
    # at the end of their kernels, where SAME then can, and max pooling is done in parts (`memory.padding`).
    pads: Literal["never", "copied", "avoided"] = "never"
    # (operator, those that do its work one after the other). "mul input": x times what was made of it; "group_norm
    # flat": its result has another shape, and is then seen as one of the usual shape.
    becomes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    # Channels that lie side by side, the last block filled up; 1, with something blocked: channels come last.
    block: int = 1
    # What takes maps in blocks; convolutions if a group fills them. Between it and others each map is copied.
    blocked: tuple[str, ...] = ()
    order: Literal["traced", "backwards"] = "traced"  # backwards: as a search from the end comes by
    recycles: bool = False  # a freed place waits for the next map of that shape, and is not given back before
    # (operator, what it takes for itself while it runs): as much as its output, or as its weights; or the patches of
    # its input that a convolution outside blocks, unless 1×1, multiplies, at most 64 KiB at once if they are many.
    # "sums": a transposed convolution's output in 4 bytes, if maps have 1.
    # "integers", as ONNX Runtime's int8 convolutions take it: where a multiple of 4 channels is read, 8 bytes for
    # each place of the kernel at each place of the output, unless 1×1; else the sums of int32, and the patches.
    scratch: tuple[tuple[str, Literal["output", "weights", "patches", "sums", "integers"]], ...] = ()
    floats: tuple[str, ...] = ()  # what computes in 4 bytes where maps have 1, as also the caller's input and output
    quantized: Runtime | None = None  # the rules for int8, where they are others
    # Bytes beside each map from the start on; as long as it is there, of those in a taken place until the end; and
    # beside each layer with weights.
    bookkeeping: tuple[int, int, int] = (0, 0, 0)
    packer: str = "live"  # "first fit", "shared objects" or "tight" (`memory.arena`); live: no arena, one block each
    alignment: int = 1  # bytes of which every block of the arena takes a multiple

    def __post_init__(self) -> None:
        if self.packer not in ("live", *PACKERS):
            raise ValueError(f"unknown packer {self.packer!r}: choose from {', '.join(('live', *PACKERS))}")
        if self.alignment < 1:
            raise ValueError(f"an alignment is 1 byte or more, not {self.alignment}")

    def of(self, dtype: str | None) -> Runtime:
        """Its rules for maps of this dtype, by its short name."""
        return self.quantized if dtype == "int8" and self.quantized else self

    @property
    def plans_arena(self) -> bool:
        """Whether it reserves one block for all, which then has to fit; ``fused`` is no runtime in particular."""
        return self.packer != "live" and self.name != "fused"


# How far they are met by built-in networks in float32 (benchmarks/runtimes.py; LiteRT Micro: tests/test_runtimes.py).
# ExecuTorch 1.5: live bytes and arena are equal, also of attention, and row by row. `executorch_default` is what its
# own planner makes of a network, `executorch` what `export_model` writes. LiteRT Micro: the arena is equal in all 12
# classifiers tried. ONNX Runtime 1.32 plans no arena here, so this is what it asks malloc for: within 2 % of ours, or
# 2.5 KB, but for the U-Net's ×4 student, 4 % above: what it notes of views is not counted. With attention ours is up
# to 9 % above: it takes scaled and transposed factors into the product.
# In int8 within 2.5 % for 20 of 29; above it with a RED block before a batch norm, which runs in float32.
_IN_PLACE = (("*", "pointwise"), ("*", "rewriting"), ("*", "in place"))
_ACTIVATIONS = (
    "relu", "relu6", "clamp", "sigmoid", "hardsigmoid", "silu", "tanh", "elu", "leaky_relu", "softplus", "softmax",
)  # fmt: skip
_IN_BLOCKS = (
    "conv", "bn", "max_pool", "avg_pool", "relu", "relu6", "clamp", "sigmoid", "tanh", "hardswish", "add", "mul",
    "cat",
)  # fmt: skip
_ONNX = Runtime(
    "onnxruntime",
    # Sums and products always make a map of their own.
    overwrites=(("conv", "bn"), ("conv", "hardswish"), *(("*", kind) for kind in _ACTIVATIONS)),
    accumulates=("conv",),
    copies_views=True,
    inputs="held",
    becomes=(("group_norm", ("group_norm flat", "mul", "add")), ("hardswish", ("hardsigmoid", "mul input"))),
    block=16,  # of processors with AVX-512, such as the one that measured; 8 of others
    blocked=_IN_BLOCKS,
    order="backwards",
    recycles=True,
    scratch=(("conv", "patches"),),
    bookkeeping=(25, 192, 20),  # a place among all values, and an object with its shape
)
# Sums are operators of their own, channels come last, and ReLU is where a range begins.
_ONNX_INT8 = replace(
    _ONNX,
    overwrites=(
        ("conv", "bn"),
        *itertools.product(("*",), ("relu", "relu6", "clamp", "hardsigmoid", "softmax")),
    ),
    accumulates=(),
    block=1,
    blocked=(*(kind for kind in _IN_BLOCKS if kind != "hardswish"), "hardsigmoid", "to"),
    becomes=(*_ONNX.becomes, ("silu", ("sigmoid", "mul input"))),
    scratch=(("conv", "integers"),),
    bookkeeping=(25, 192, 132),  # scales and zero points are values too
    floats=("mean", "bn", "group_norm", "layer_norm", "hardsigmoid", "softmax", "gelu"),
)
_ALL = (
    Runtime("eager", frees="as python"),
    Runtime("fused", overwrites=_IN_PLACE, packer="tight"),
    replace(_ONNX, quantized=_ONNX_INT8),
    Runtime(
        "executorch_default",
        copies_views=True,
        unused_outputs=True,
        # Two operators each (x is held beside σ(x)), and the transposed weights of every linear layer.
        scratch=(("silu", "output"), ("hardswish", "output"), ("linear", "weights")),
        packer="shared objects",
        alignment=16,
    ),
    Runtime(
        "executorch",
        overwrites=(
            ("conv", "bn"),
            *(("*", name) for name in ("relu", "relu6", "clamp", "add", "mul", "sigmoid", "gelu", "softmax")),
        ),
        copies_views=True,
        prefers="first",  # as a planning pass that goes through an operator's arguments
        pool_parts=32,  # SiLU and hard swish are several operators, of which all but the first overwrite a map
        packer="tight",
        alignment=16,
    ),
    Runtime(
        "litert_micro",
        overwrites=(
            ("conv", "bn"),
            *itertools.product(("conv", "linear", "bn", "add", "mul", "max_pool", "avg_pool"), ("relu", "relu6")),
        ),
        pads="avoided",
        scratch=(("silu", "output"), ("conv", "sums")),
        packer="tight",  # the file has a plan, which the interpreter follows
        alignment=16,
    ),
)
RUNTIMES = {runtime.name: runtime for runtime in _ALL}
FUSED = RUNTIMES["fused"]


@functools.cache
def short_name(func: OpOverload) -> str:
    """What profiles call an operator: "conv" for aten::convolution."""
    name = name_of(func).rstrip("_")  # relu_ is relu, in place or not
    return _SHORT.get(name, name.strip("_"))


@functools.cache  # asking for tags is slow
def kinds_of(func: OpOverload, mutates: bool = False) -> Set[str]:
    """All that a rule may call an operator, which `mutates` what it reads or not."""
    kinds, name = {"*", short_name(func)}, name_of(func)
    if mutates:
        kinds.add("in place")
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        kinds.add("pointwise")
    if name in _REWRITING:
        kinds.add("rewriting")
    return kinds


@functools.cache
def is_known(func: OpOverload) -> bool:
    """Whether it is known if the operator could write over its input."""
    name = name_of(func)
    return (
        name in _SEPARATE
        or func.is_view
        or name.startswith(_SEPARATE_KINDS)
        or name.endswith(("_like", "_"))
        or not {torch.Tag.core, torch.Tag.reduction}.isdisjoint(func.tags)
        or not {"pointwise", "rewriting"}.isdisjoint(kinds_of(func))
    )
