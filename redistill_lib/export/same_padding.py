"""An exported network whose paddings TensorFlow's SAME can express, as LiteRT copies a whole map to pad it otherwise.

Convolutions get zeros at the end of their kernels (`memory.padding`), which costs multiply-adds: in the ×4 student of
ResNet-18 at 224 px its first layer takes 29.5 million in place of 7.4, the whole network 6 % more; in ResNet-18 the
layers of stride 2 take 16/9 and 64/49 as many. Max pooling is done in parts of its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from redistill_lib.memory.padding import kernel_growth, pool_parts

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)
_NEVER_NEGATIVE = ("relu", "relu_", "relu6", "relu6_", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_")
_CHANNELS_FIRST, _CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def use_same_padding(graph: fx.GraphModule) -> None:
    """Change, in place, the convolutions and max poolings of a network of `torch.export` that need a padded copy."""
    for node in list(graph.graph.nodes):
        if node.target in _CONVOLUTIONS:
            _grow(graph, node)
        elif node.target is torch.ops.aten.max_pool2d.default:
            _pool_in_parts(graph, node)
    graph.graph.lint()
    graph.recompile()


def _arguments(node: fx.Node) -> dict[str, Any]:
    """By name, those left out by their defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {each.name: each.default_value for each in schema if each.has_default_value()}
    given |= dict(zip((each.name for each in schema), node.args, strict=False))
    return given | dict(node.kwargs)


def _pair(value: Any) -> list[int]:
    """One number may stand for both."""
    values = [value] if isinstance(value, int) else list(value)
    return values * (2 // len(values))


def _shape(node: fx.Node) -> Sequence[int]:
    shape: Sequence[int] = node.meta["val"].shape
    return shape


def _grow(graph: fx.GraphModule, node: fx.Node) -> None:
    given = _arguments(node)
    weight = given["weight"]
    if weight.op != "get_attr" or given.get("transposed") or len(_shape(weight)) != 4:
        return
    padding = _pair(given["padding"])
    sides = (
        _shape(given["input"])[-2:],
        _shape(weight)[-2:],
        _pair(given["stride"]),
        padding,
        _pair(given["dilation"]),
    )
    below, right = (kernel_growth(*side) for side in zip(*sides, strict=True))
    if not any(padding) or below is None or right is None or not (below or right):
        return
    owner, _, name = str(weight.target).rpartition(".")
    kernel = F.pad(getattr(graph.get_submodule(owner), name).detach(), (0, right, 0, below))
    grown = f"{weight.target}_for_{node.name}".replace(".", "_")
    graph.register_buffer(grown, kernel)
    with graph.graph.inserting_before(node):
        node.replace_input_with(weight, graph.graph.get_attr(grown))


def _pool_in_parts(graph: fx.GraphModule, node: fx.Node) -> None:
    """A part of the channels is copied and padded while the whole map is there; then the results are joined."""
    given = _arguments(node)
    x, kernel = given["self"], _pair(given["kernel_size"])
    stride = _pair(given["stride"]) if given["stride"] else kernel
    padding, dilation = _pair(given["padding"]), _pair(given["dilation"])
    if len(_shape(x)) != 4 or not any(padding) or given["ceil_mode"]:
        return
    _, channels, height, width = _shape(x)
    sides = (height, width), kernel, stride, padding, dilation
    if all(kernel_growth(*side) == 0 for side in zip(*sides, strict=True)):
        return
    aten, call = torch.ops.aten, graph.graph.call_function
    edges = [0, 0, *[padding[1]] * 2, *[padding[0]] * 2]
    rows, columns = (side + 2 * p for side, p in zip((height, width), padding, strict=True))
    first, parts = 0, []
    with graph.graph.inserting_before(node):
        # Said to be in the back, where LiteRT has channels, or the converter moves those of a part forth and back.
        whole = call(aten.permute.default, (x, _CHANNELS_LAST))
        for count in pool_parts(channels, height * width, rows * columns, _shape(node)[-2] * _shape(node)[-1]):
            part, kept = call(aten.slice.Tensor, (whole, 3, first, first + count)), padding
            if _never_negative(x):  # zeros are then no more than nothing, and int8 has them
                part, kept = call(aten.constant_pad_nd.default, (part, edges)), [0, 0]
            part = call(aten.permute.default, (part, _CHANNELS_FIRST))
            part = call(aten.max_pool2d.default, (part, kernel, stride, kept, dilation))
            parts.append(call(aten.permute.default, (part, _CHANNELS_LAST)))
            first += count
        pooled = call(aten.permute.default, (call(aten.cat.default, (parts, 3)), _CHANNELS_FIRST))
    pooled.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(pooled)
    graph.graph.erase_node(node)


def _never_negative(node: fx.Node) -> bool:
    """Whether what the node makes is known to be 0 or more."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.partition("::")[2] if schema else ""
    least = node.args[1] if name.rstrip("_") in ("clamp", "hardtanh") and len(node.args) > 1 else -1
    return name in _NEVER_NEGATIVE or (isinstance(least, (int, float)) and least >= 0)
