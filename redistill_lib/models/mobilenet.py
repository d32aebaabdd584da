"""MobileNetV2 and V3 with a free stride plan, in the parameter names of the authors' checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.plans import StridePlan


class Block(NamedTuple):
    """One inverted residual as the papers' tables list it."""

    kernel: int
    expansion: float  # of the input's channels, so that the hidden ones follow `width`
    channels: int
    squeeze: bool | None  # squeeze-and-excitation; False: only its slot, which the checkpoints' indices count
    activation: type[nn.Module]
    depth: int = 1  # how many of it in a row; the first one has the stride


# MobileNetV2 (arXiv 1801.04381, table 2): expansion, channels and depth of each stage.
V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
# What each place of a plan but the stem stands for; V3 as in arXiv 1905.02244, tables 1 and 2.
BLOCKS = {
    "mobilenetv2": [Block(3, expansion, outputs, None, nn.ReLU6, depth) for expansion, outputs, depth in V2_STAGES],
    "mobilenetv3_small": [
        Block(3, 1, 16, True, nn.ReLU),
        Block(3, 4.5, 24, False, nn.ReLU),
        Block(3, 3.67, 24, False, nn.ReLU),
        Block(5, 4, 40, True, nn.Hardswish),
        *[Block(5, 6, 40, True, nn.Hardswish)] * 2,
        *[Block(5, 3, 48, True, nn.Hardswish)] * 2,
        *[Block(5, 6, 96, True, nn.Hardswish)] * 3,
    ],
    "mobilenetv3_large": [
        Block(3, 1, 16, False, nn.ReLU),
        Block(3, 4, 24, False, nn.ReLU),
        Block(3, 3, 24, False, nn.ReLU),
        *[Block(5, 3, 40, True, nn.ReLU)] * 3,
        Block(3, 6, 80, False, nn.Hardswish),
        Block(3, 2.5, 80, False, nn.Hardswish),
        *[Block(3, 2.3, 80, False, nn.Hardswish)] * 2,
        *[Block(3, 6, 112, True, nn.Hardswish)] * 2,
        *[Block(5, 6, 160, True, nn.Hardswish)] * 3,
    ],
}
V3_HEADS = {"mobilenetv3_small": 1024, "mobilenetv3_large": 1280}


def mobilenet_places(arch: str) -> tuple[str, ...]:
    paths, index = ["features.0.0"], 1
    for block in BLOCKS[arch]:
        # Without an expansion the block has no 1×1 convolution before its depthwise one.
        paths.append(f"features.{index}.conv.{0 if block.expansion == 1 else 3}")
        index += block.depth
    return tuple(paths)


def make_divisible(channels: float) -> int:
    """The nearest multiple of 8, raised by one step where that would lose over 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from all channels' means; hidden size channels / 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = make_divisible(channels / 4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Hardsigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(torch.flatten(self.avgpool(x), 1))
        return x * gate[:, :, None, None]


class InvertedResidual(nn.Module):
    """A block `conv` with a residual around it where the map keeps its shape."""

    def __init__(self, conv: nn.Sequential, residual: bool) -> None:
        super().__init__()
        self.conv = conv
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


def _conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _block(inputs: int, outputs: int, stride: int, block: Block) -> InvertedResidual:
    hidden = make_divisible(inputs * block.expansion)
    squeeze: list[nn.Module] = []
    if block.squeeze is not None:
        squeeze = [SqueezeExcite(hidden) if block.squeeze else nn.Identity()]
    depthwise = _conv_bn(hidden, hidden, block.kernel, stride, hidden)
    if block.expansion == 1:
        body = [*depthwise, block.activation(), *squeeze]
    else:
        expand = _conv_bn(inputs, hidden)
        body = [*expand, block.activation(), *depthwise, *squeeze, block.activation()]
    conv = nn.Sequential(*body, *_conv_bn(hidden, outputs))
    return InvertedResidual(conv, stride == 1 and inputs == outputs)


class MobileNet(nn.Module):
    """A MobileNetV2 or V3: B×C×H×W images → B×num_classes logits.

    The places are the stem and the first block of each stage of "mobilenetv2", or every block of a V3.
    `width` multiplies every channel count, rounded by `make_divisible`; the last layer before the classes never
    shrinks, as in the papers. `redistill_lib.models.create_model` makes it from checked arguments.
    """

    def __init__(self, arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        self.name, self.plan = f"{arch}-{plan}", plan
        second = arch == "mobilenetv2"
        activation, first, last = (nn.ReLU6, 32, 1280) if second else (nn.Hardswish, 16, V3_HEADS[arch])
        channels = hidden = make_divisible(first * width)
        features: list[nn.Module] = [nn.Sequential(*_conv_bn(in_channels, channels, 3, plan.stem), activation())]
        for block, stride in zip(BLOCKS[arch], plan.stages, strict=True):
            outputs = make_divisible(block.channels * width)
            for index in range(block.depth):
                features.append(_block(channels, outputs, stride if index == 0 else 1, block))
                hidden, channels = make_divisible(channels * block.expansion), outputs
        self.features = nn.Sequential(*features)
        head = make_divisible(last * max(width, 1.0))
        hidden = head if second else hidden
        self.conv = nn.Sequential(*_conv_bn(channels, hidden), activation())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier: nn.Module = nn.Linear(head, num_classes)
        if not second:
            self.classifier = nn.Sequential(nn.Linear(hidden, head), nn.Hardswish(), nn.Dropout(0.2), self.classifier)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.features(x))
        return self.classifier(torch.flatten(self.avgpool(x), 1))
