"""ResNet and ResNeXt with a free stride plan, in torchvision's layout and parameter names."""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.plans import StridePlan


class Layout(NamedTuple):
    """What tells one ResNet from another: blocks per stage, kind of block, grouped convolutions or not."""

    depths: tuple[int, int, int, int]
    bottleneck: bool
    grouped: bool


DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
LAYOUTS = {
    f"{family}{depth}": Layout(depths, depth >= 50, family == "resnext")
    for family in ("resnet", "resnext")
    for depth, depths in DEPTHS.items()
}


def place_paths(arch: str) -> tuple[str, ...]:
    """Module paths of the six strided layers; a bottleneck strides in its 3×3 (torchvision's "v1.5")."""
    conv = "conv2" if LAYOUTS[arch].bottleneck else "conv1"
    return ("conv1", "maxpool", *(f"layer{stage}.0.{conv}" for stage in range(1, 5)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; of a ResNeXt only the second is grouped, as in the authors' checkpoints."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, grouped: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=gcd(planes, 32 if grouped else 1), bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided, and grouped in a ResNeXt, which is also twice as wide there), 1×1 to 4·planes."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, grouped: bool) -> None:
        super().__init__()
        inner, outputs = planes * (2 if grouped else 1), planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=gcd(inner, 32 if grouped else 1), bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet or ResNeXt: B×C×H×W images → B×num_classes logits.

    `arch` is a key of `LAYOUTS`; the plan's six places are conv1 (7×7), maxpool (3×3), layer1 … layer4.
    `width` scales the 64 channels of the stem, to the nearest multiple of 8, and each stage has twice the
    channels of the one before (width 0.25: 16, 32, 64, 128). Grouped convolutions have gcd(32, channels)
    groups. `redistill_lib.models.create_model` makes it from checked arguments.
    """

    def __init__(self, arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        self.name, self.plan = f"{arch}-{plan}", plan
        layout = LAYOUTS[arch]
        block = Bottleneck if layout.bottleneck else BasicBlock
        pool, *stages = plan.stages
        base = 8 * int(8 * width + 0.5)
        self.conv1 = nn.Conv2d(in_channels, base, 7, plan.stem, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        # With stride 1 it stays a 3×3 max pool: the student loses the pool's stride, not the pool.
        self.maxpool = nn.MaxPool2d(3, pool, 1)
        channels, layers = base, [nn.Sequential() for _ in stages]
        for stage, (layer, depth, stride) in enumerate(zip(layers, layout.depths, stages, strict=True)):
            planes = base * 2**stage
            for index in range(depth):
                layer.append(block(channels, planes, stride if index == 0 else 1, layout.grouped))
                channels = planes * block.expansion
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))
