"""What one operator does, from its arguments: its floating-point operations, and what its kernel spans."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from redistill_lib.memory.padding import kernel_growth
from redistill_lib.network.fakes import tensors_in

# Names that tell of products; of those without a formula it is said that they are not counted.
_PRODUCT = re.compile(
    r"(^|_)(\w*mm|mv|addmv|v?dot|addr|ger|conv\w*|rnn|lstm|gru|fft|linalg|linear|attention|encoder|cdist|pdist"
    r"|trilinear|grid_sampler|cholesky|lu|qr|svd|lstsq|solve|det|inverse|mkldnn\w*)(_|$)"
)


# Views with the same elements in the same order, where they have as many.
_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "alias", "detach", "expand"}


@functools.cache
def name_of(func: OpOverload) -> str:
    """What an operator is called without its namespace: "convolution"."""
    return func._schema.name.partition("::")[2]


def is_reshape(func: OpOverload) -> bool:
    """Whether it leaves elements in their order."""
    return name_of(func) in _RESHAPES


def count_flops(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """2 per multiply-add of convolutions, matrix products, attention and recurrent layers, 0 of what has none.

    None where an operator multiplies, or may, and how often is not known.
    """
    name = name_of(func).rstrip("_")  # of `addmm_` too
    if func.namespace == "aten" and (formula := flop_registry.get(getattr(torch.ops.aten, name, None))):
        return _by_formula(formula, args, kwargs, out)
    if own := _FORMULAS.get(name):
        return own(args, out)
    if torch.Tag.reduction in func.tags:
        return 0  # norms
    return None if func.namespace not in ("aten", "prims", "prim") or _PRODUCT.search(name_of(func)) else 0


def _by_formula(formula: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    shapes = getattr(formula, "__wrapped__", None)  # what counts by shapes, without the search for nested tensors
    if shapes is None or not isinstance(out, Tensor):
        return int(formula(*args, **kwargs, out_val=out))
    given = [x.shape if isinstance(x, Tensor) else x for x in args]
    return int(shapes(*given, **kwargs, out_shape=out.shape))


def _recurrent(args: tuple[Any, ...], out: Any) -> int:
    x, from_input, from_state = args[:3]
    return 2 * (x.numel() // x.shape[-1]) * (from_input.numel() + from_state.numel())


def _packed_recurrent(args: tuple[Any, ...], out: Any) -> int | None:
    weights = [w for item in args[1:] for w in packed_tensors(item) if w.is_quantized or w.dtype == torch.float16]
    steps = args[0].numel() // args[0].shape[-1]
    return 2 * steps * sum(w.numel() for w in weights if w.ndim == 2) if weights else None


def _attention(args: tuple[Any, ...], out: Any, width: int, weights: tuple[int, ...]) -> int:
    """Of tokens B×L×width, padding left out; `width` and `weights` are places among the arguments."""
    tokens = args[0]
    if tokens.is_nested:
        lengths = [int(length) for length in tokens._nested_tensor_size()[:, 0]]
    else:
        lengths = [tokens.shape[1]] * tokens.shape[0]
    products = sum(args[k].numel() for k in weights)
    return 2 * sum(lengths) * products + 2 * 2 * args[width] * sum(length**2 for length in lengths)


def _packed(args: tuple[Any, ...], out: Tensor) -> int | None:
    """Of a linear layer or a convolution."""
    weight = max(packed_tensors(args[1]), key=Tensor.numel, default=None)
    return None if weight is None else 2 * out.numel() * math.prod(weight.shape[1:])


_LINEAR = ("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic")
_CONVOLUTIONS = [f"conv{n}d{end}" for n in (1, 2, 3) for end in ("", "_relu", "_dynamic")]
_CELLS = [f"quantized_{kind}_cell_dynamic" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
_FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], int | None]] = {
    **dict.fromkeys(("mv", "dot", "vdot"), lambda args, out: 2 * args[0].numel()),
    "addmv": lambda args, out: 2 * args[1].numel(),
    "addbmm": lambda args, out: 2 * args[1].numel() * args[2].shape[-1],
    "mkldnn_rnn_layer": _recurrent,
    "_scaled_dot_product_flash_attention_for_cpu": lambda args, out: sdpa_flop_count(*(x.shape for x in args[:3])),
    **dict.fromkeys(("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"), lambda args, out: 0),  # products come before
    # With the weights of queries, keys and values, of the output, and of an encoder's two linear layers.
    "_native_multi_head_attention": functools.partial(_attention, width=3, weights=(5, 7)),
    "_transformer_encoder_layer_fwd": functools.partial(_attention, width=1, weights=(3, 5, 14, 16)),
    **dict.fromkeys((*_LINEAR, *_CONVOLUTIONS), _packed),
    **dict.fromkeys(("quantized_lstm", "quantized_gru", *_CELLS), _packed_recurrent),
}


def packed_tensors(value: Any) -> list[Tensor]:
    """The weights inside an object of PyTorch's kernels, such as a quantised layer's, from what it would save."""
    if isinstance(value, torch.ScriptObject):
        try:
            with _disable_current_modes():
                return packed_tensors(value.__getstate__())
        except RuntimeError:
            return []  # it cannot be saved
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in packed_tensors(item)]
    return tensors_in(value)


def window_of(func: OpOverload, args: tuple[Any, ...]) -> tuple[int, bool, tuple[int, ...], bool]:
    """`rows`, `depthwise`, `padded` and `grows` of `trace.Op`, for a convolution or pooling."""
    name = name_of(func)
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    if name not in ("convolution", "max_pool2d_with_indices", "avg_pool2d") or given.get("transposed"):
        return 0, False, (), False
    x, weight = args[0], given.get("weight")
    n = 2 if weight is None else weight.ndim - 2

    def sides(values: Any) -> tuple[int, ...]:
        return tuple(values) * (n // len(values))  # one number may stand for all

    spans = sides(given["kernel_size"] if weight is None else weight.shape[2:])
    strides, paddings = sides(given.get("stride") or spans), sides(given.get("padding", (0,)))
    dilations, sizes = sides(given.get("dilation", (1,))), x.shape[-n:]
    whole = [size + 2 * p for size, p in zip(sizes, paddings, strict=True)]
    growth = [kernel_growth(*side) for side in zip(sizes, spans, strides, paddings, dilations, strict=True)]
    counted = name == "avg_pool2d" and given.get("count_include_pad", True)  # the padding, in the mean
    padded = (*x.shape[:-n], *whole) if any(paddings) and (counted or any(g != 0 for g in growth)) else ()
    depthwise = n == 2 and weight is not None and 1 < given["groups"] == x.shape[1] == weight.shape[0]
    grows = bool(padded) and n == 2 and weight is not None and None not in growth
    return dilations[0] * (spans[0] - 1) + 1 if n == 2 else 0, depthwise, padded, grows


def groups_of(func: OpOverload, args: tuple[Any, ...]) -> int:
    """Of a convolution; 0 for another operator, or a transposed convolution."""
    if name_of(func) != "convolution":
        return 0
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    return 0 if given["transposed"] else int(given["groups"])
