"""ResNet and ResNeXt with a free stride plan, in torchvision's layout and parameter names."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.plans import StridePlan


class Layout(NamedTuple):
    """What tells one ResNet from another: blocks per stage, kind of block, grouped convolutions or not."""

    depths: tuple[int, int, int, int]
    bottleneck: bool
    grouped: bool


LAYOUTS = {
    f"{family}{depth}": Layout(depths, depth >= 50, family == "resnext")
    for family in ("resnet", "resnext")
    for depth, depths in {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }.items()
}


def place_paths(arch: str) -> tuple[str, ...]:
    """Module paths of the six strided layers; a bottleneck strides in its 3×3 (torchvision's "v1.5")."""
    conv = "conv2" if LAYOUTS[arch].bottleneck else "conv1"
    return ("conv1", "maxpool", *(f"layer{stage}.0.{conv}" for stage in range(1, 5)))


class Block(nn.Module):
    """Two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and 1×1 to 4·planes, and a shortcut.

    Of a ResNeXt the last 3×3 is grouped, as in the authors' checkpoints, and a bottleneck twice as wide inside.
    """

    def __init__(self, inputs: int, planes: int, stride: int, layout: Layout) -> None:
        super().__init__()
        inner = planes * (2 if layout.bottleneck and layout.grouped else 1)
        # 32 groups as in ResNeXt; the gcd keeps narrow networks (width < 1) buildable.
        groups = math.gcd(32, inner) if layout.grouped else 1
        self.outputs = planes * (4 if layout.bottleneck else 1)
        convs = [(inputs, planes, 3, stride, 1), (planes, planes, 3, 1, groups)]
        if layout.bottleneck:
            convs = [(inputs, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, self.outputs, 1, 1, 1)]
        self.depth = len(convs)
        for k, (taken, made, kernel, step, parts) in enumerate(convs, 1):
            conv = nn.Conv2d(taken, made, kernel, step, kernel // 2, groups=parts, bias=False)
            self.add_module(f"conv{k}", conv)
            self.add_module(f"bn{k}", nn.BatchNorm2d(made))
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != self.outputs:
            conv = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for k in range(1, self.depth + 1):
            out = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(out))
            out = self.relu(out) if k < self.depth else out
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet or ResNeXt: B×C×H×W images → B×num_classes logits.

    `arch` is a key of `LAYOUTS`; the plan's six places are conv1 (7×7), maxpool (3×3), layer1 … layer4.
    `width` scales the 64 channels of the stem, to the nearest multiple of 8, and each stage has twice the
    channels of the one before (width 0.25: 16, 32, 64, 128). Grouped convolutions have gcd(32, channels)
    groups. Use `redistill_lib.models.create_model`, which checks the arguments.

    >>> ResNet("resnet18", StridePlan.parse("4-11221"), 10, 3, 0.25)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float) -> None:
        super().__init__()
        self.name, self.plan = f"{arch}-{plan}", plan
        layout = LAYOUTS[arch]
        pool, *stages = plan.stages
        base = 8 * int(8 * width + 0.5)
        self.conv1 = nn.Conv2d(in_channels, base, 7, plan.stem, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU()
        # With stride 1 it stays a 3×3 max pool: the student loses the pool's stride, not the pool.
        self.maxpool = nn.MaxPool2d(3, pool, 1)
        channels, layers = base, []
        for stage, (depth, stride) in enumerate(zip(layout.depths, stages, strict=True)):
            blocks: list[Block] = []
            for index in range(depth):
                blocks.append(Block(channels, base * 2**stage, stride if index == 0 else 1, layout))
                channels = blocks[-1].outputs
            layers.append(nn.Sequential(*blocks))
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
