"""RED blocks in parts of their channels: of operators that every runtime has, and less than three maps at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.red import InPlaceRedBlock, RedBlock
from redistill_lib.red.layers import replace_module

PARTS = 8


class RedBlockInParts(nn.Module):
    """A trained RED block for inference, B×C×H×W → the same, that makes its channels some at a time.

    Beside the input and the output it holds the gate and the copied input of one part, where `RedBlock` holds a whole
    gated map. Results are the same up to rounding, and so are the multiply-adds.
    """

    def __init__(self, gates: Sequence[nn.Module] | None, encoders: Sequence[nn.Module], shortcut: bool):
        super().__init__()
        self.gates = None if gates is None else nn.ModuleList(gates)
        self.encoders, self.shortcut = nn.ModuleList(encoders), shortcut

    def forward(self, x: Tensor) -> Tensor:
        made, first = [], 0
        for k, encoder in enumerate(self.encoders):
            part = F.relu6(encoder(x))
            if self.shortcut:
                gate = None if self.gates is None else torch.sigmoid(self.gates[k](x))
                kept = x[:, first : first + part.shape[1]]
                part = part + (kept if gate is None else gate * kept)
            made.append(part)
            first += part.shape[1]
        return torch.cat(made, 1)


def blocks_in_parts(model: nn.Module, parts: int = PARTS, in_place_only: bool = False) -> nn.Module:
    """A copy in eval mode whose RED blocks are made in `parts`, those that work in place included.

    Blocks that have a depthwise encoder, or are of a class of their own, stay as they are.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), RedBlock(8)).eval()
    >>> x = torch.rand(1, 3, 9, 9)
    >>> torch.allclose(blocks_in_parts(net, 4)(x), net(x), atol=1e-5)
    True
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for block in list(model.modules()):
        if type(block) is RedBlock and not in_place_only and block.axes == 2 and not block.unfoldable:
            block_in_place = InPlaceRedBlock.from_block(block)
        elif type(block) is InPlaceRedBlock:
            block_in_place = block
        else:
            continue
        if isinstance(block_in_place.encoder, nn.Conv2d):
            replace_module(model, block, _in_parts(block_in_place, parts))
    return model


def _in_parts(block: InPlaceRedBlock, parts: int) -> RedBlockInParts:
    encoder, gate = block.encoder, block.gate
    assert isinstance(encoder, nn.Conv2d)
    step = -(-encoder.out_channels // parts)
    spans = [slice(first, first + step) for first in range(0, encoder.out_channels, step)]
    encoders = [_channels_of(encoder, span, block.kernel_size // 2) for span in spans]
    gates = None if gate is None else [_channels_of(gate, span, 0) for span in spans]
    return RedBlockInParts(gates, encoders, block.add).eval().requires_grad_(False)


def _channels_of(conv: nn.Module, span: slice, padding: int) -> nn.Conv2d:
    """The part of a convolution that makes some of its channels."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    weight = conv.weight[span].clone(memory_format=torch.contiguous_format)
    bias = conv.bias[span].clone()
    sides: tuple[int, int] = (conv.kernel_size[0], conv.kernel_size[1])
    part = nn.Conv2d(conv.in_channels, len(weight), sides, padding=padding, device=weight.device, dtype=weight.dtype)
    part.weight, part.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return part
