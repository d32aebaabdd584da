"""Floating-point operations of one operator: 2 per multiply-add of what multiplies maps or features with weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from redistill_lib.network.fakes import tensors_in

# Names that tell of products; of those without a formula it is said that they are not counted.
_PRODUCT = re.compile(
    r"(^|_)(\w*mm|mv|addmv|v?dot|addr|ger|conv\w*|rnn|lstm|gru|fft|linalg|linear|attention|encoder|cdist|pdist"
    r"|trilinear|grid_sampler|cholesky|lu|qr|svd|lstsq|solve|det|inverse|mkldnn\w*)(_|$)"
)


def count_flops(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int | None:
    """2 per multiply-add of convolutions, matrix products, attention and recurrent layers, 0 of what has none.

    None where an operator multiplies, or may, and how often is not known.
    """
    space, _, name = func._schema.name.partition("::")
    plain = name.rstrip("_")  # of `addmm_` too
    if space == "aten" and (formula := flop_registry.get(getattr(torch.ops.aten, plain, None))):
        return _by_formula(formula, args, kwargs, out)
    if own := _FORMULAS.get(plain):
        return own(args, out)
    if torch.Tag.reduction in func.tags:
        return 0  # norms
    return None if space not in ("aten", "prims", "prim") or _PRODUCT.search(name) else 0


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


def _attended(tokens: Tensor, width: int) -> tuple[int, int]:
    """The number of tokens B×L×width, padding left out, and what attention over them multiplies."""
    if tokens.is_nested:
        lengths = [int(length) for length in tokens._nested_tensor_size()[:, 0]]
    else:
        lengths = [tokens.shape[1]] * tokens.shape[0]
    return sum(lengths), 2 * 2 * width * sum(length**2 for length in lengths)


def _encoder_layer(args: tuple[Any, ...], out: Any) -> int:
    width, weights = args[1], [args[k] for k in (3, 5, 14, 16)]  # of queries, keys and values, output, both layers
    tokens, attention = _attended(args[0], width)
    return 2 * tokens * sum(weight.numel() for weight in weights) + attention


def _attention(args: tuple[Any, ...], out: Any) -> int:
    tokens, attention = _attended(args[0], args[3])
    return 2 * tokens * (args[5].numel() + args[7].numel()) + attention


def _packed_linear(args: tuple[Any, ...], out: Tensor) -> int:
    return 2 * out.numel() * int(args[0].shape[-1])


def _packed_conv(args: tuple[Any, ...], out: Tensor) -> int | None:
    weight = max(packed_tensors(args[1]), key=Tensor.numel, default=None)
    return None if weight is None else 2 * out.numel() * math.prod(weight.shape[1:])


_FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], int | None]] = {
    "mv": lambda args, out: 2 * args[0].numel(),
    "addmv": lambda args, out: 2 * args[1].numel(),
    "dot": lambda args, out: 2 * args[0].numel(),
    "vdot": lambda args, out: 2 * args[0].numel(),
    "addbmm": lambda args, out: 2 * args[1].numel() * args[2].shape[-1],
    "mkldnn_rnn_layer": _recurrent,
    "_scaled_dot_product_flash_attention_for_cpu": lambda args, out: sdpa_flop_count(*(x.shape for x in args[:3])),
    **dict.fromkeys(("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"), lambda args, out: 0),  # products come before
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "_native_multi_head_attention": _attention,
    **dict.fromkeys(("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic"), _packed_linear),
    **dict.fromkeys(("quantized_lstm", "quantized_gru"), _packed_recurrent),
    **dict.fromkeys(
        (f"quantized_{kind}_cell_dynamic" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")), _packed_recurrent
    ),
    **{f"conv{n}d{end}": _packed_conv for n in (1, 2, 3) for end in ("", "_relu", "_dynamic")},
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
