"""MobileNetV2 and V3 with a free stride plan, in the parameter names of the authors' checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.plans import StridePlan

# MobileNetV2 (arXiv 1801.04381, table 2): expansion, channels, blocks of each stage.
V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


class V3Block(NamedTuple):
    """One row of MobileNetV3's tables (arXiv 1905.02244, tables 1 and 2)."""

    kernel: int
    expansion: float
    channels: int
    squeeze: bool
    hardswish: bool


# The paper's expanded widths, written as ratios to the block's input so that they follow `width`.
V3_BLOCKS = {
    "mobilenetv3_small": (
        V3Block(3, 1, 16, True, False),
        V3Block(3, 4.5, 24, False, False),
        V3Block(3, 3.67, 24, False, False),
        V3Block(5, 4, 40, True, True),
        *[V3Block(5, 6, 40, True, True)] * 2,
        *[V3Block(5, 3, 48, True, True)] * 2,
        *[V3Block(5, 6, 96, True, True)] * 3,
    ),
    "mobilenetv3_large": (
        V3Block(3, 1, 16, False, False),
        V3Block(3, 4, 24, False, False),
        V3Block(3, 3, 24, False, False),
        *[V3Block(5, 3, 40, True, False)] * 3,
        V3Block(3, 6, 80, False, True),
        V3Block(3, 2.5, 80, False, True),
        *[V3Block(3, 2.3, 80, False, True)] * 2,
        *[V3Block(3, 6, 112, True, True)] * 2,
        *[V3Block(5, 6, 160, True, True)] * 3,
    ),
}
V3_HEADS = {"mobilenetv3_small": 1024, "mobilenetv3_large": 1280}


def place_paths(arch: str) -> tuple[str, ...]:
    """Module paths of the strided layers: the stem, then the depthwise convolution of each place's block."""
    if arch == "mobilenetv2":
        starts = [1 + sum(blocks for _, _, blocks in V2_STAGES[:stage]) for stage in range(len(V2_STAGES))]
        expansions = [float(expansion) for expansion, _, _ in V2_STAGES]
    else:
        starts = list(range(1, len(V3_BLOCKS[arch]) + 1))
        expansions = [row.expansion for row in V3_BLOCKS[arch]]
    # Without an expansion the block has no 1×1 convolution before its depthwise one.
    depthwise = [
        f"features.{start}.conv.{0 if expansion == 1 else 3}"
        for start, expansion in zip(starts, expansions, strict=True)
    ]
    return ("features.0.0", *depthwise)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, raised by one step where that would lose over 10 %.

    >>> make_divisible(60), make_divisible(18)
    (64, 24)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


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
    """A block `conv` with a residual around it where stride is 1 and the channel count stays."""

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


def _v2_block(inputs: int, outputs: int, stride: int, expansion: int) -> InvertedResidual:
    hidden = inputs * expansion
    expand = [] if expansion == 1 else [*_conv_bn(inputs, hidden), nn.ReLU6()]
    depthwise = [*_conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6()]
    conv = nn.Sequential(*expand, *depthwise, *_conv_bn(hidden, outputs))
    return InvertedResidual(conv, stride == 1 and inputs == outputs)


def _v3_block(inputs: int, outputs: int, stride: int, row: V3Block) -> InvertedResidual:
    hidden = make_divisible(inputs * row.expansion)
    activation = nn.Hardswish if row.hardswish else nn.ReLU
    depthwise = _conv_bn(hidden, hidden, row.kernel, stride, hidden)
    # Blocks without squeeze-and-excitation keep its slot: the checkpoints' indices count it.
    squeeze = SqueezeExcite(hidden) if row.squeeze else nn.Identity()
    if row.expansion == 1:
        body = [*depthwise, activation(), squeeze]
    else:
        body = [*_conv_bn(inputs, hidden), activation(), *depthwise, squeeze, activation()]
    conv = nn.Sequential(*body, *_conv_bn(hidden, outputs))
    return InvertedResidual(conv, stride == 1 and inputs == outputs)


class MobileNet(nn.Module):
    """A MobileNetV2 or V3: B×C×H×W images → B×num_classes logits.

    `features.0` is the stem, `features.N` an inverted residual, `conv` the 1×1 convolution before pooling.
    Built by `mobilenetv2` and `mobilenetv3`; `redistill_lib.models.create_model` checks their arguments.

    >>> plan = StridePlan.parse("4-22111111111")
    >>> model = mobilenetv3("mobilenetv3_small", plan, num_classes=10, in_channels=3, width=0.5)
    >>> model.eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        name: str,
        plan: StridePlan,
        features: nn.Sequential,
        conv: nn.Sequential,
        classifier: nn.Linear | nn.Sequential,
    ) -> None:
        super().__init__()
        self.name = name
        self.plan = plan
        self.features = features
        self.conv = conv
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.features(x))
        return self.classifier(torch.flatten(self.avgpool(x), 1))


def mobilenetv2(arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float) -> MobileNet:
    """MobileNetV2: the plan's places are the stem and the first block of each of the seven stages.

    `width` multiplies every channel count, rounded by `make_divisible`; the 1280 channels of the last
    convolution grow with a width above 1 and never shrink below 1280, as in the paper.

    >>> mobilenetv2("mobilenetv2", StridePlan.parse("1-1222121"), 10, 1, 0.5).name
    'mobilenetv2-1-1222121'
    """
    channels = make_divisible(32 * width)
    features: list[nn.Module] = [nn.Sequential(*_conv_bn(in_channels, channels, 3, plan.stem), nn.ReLU6())]
    for (expansion, planes, depth), stride in zip(V2_STAGES, plan.stages, strict=True):
        outputs = make_divisible(planes * width)
        for index in range(depth):
            features.append(_v2_block(channels, outputs, stride if index == 0 else 1, expansion))
            channels = outputs
    final = make_divisible(1280 * max(width, 1.0))
    conv = nn.Sequential(*_conv_bn(channels, final), nn.ReLU6())
    classifier = nn.Linear(final, num_classes)
    return MobileNet(f"{arch}-{plan}", plan, nn.Sequential(*features), conv, classifier)


def mobilenetv3(arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float) -> MobileNet:
    """MobileNetV3 (`arch` is a key of `V3_BLOCKS`): the plan's places are the stem and every block.

    `width` multiplies every channel count, rounded by `make_divisible`; the hidden layer of the classifier
    (1024 or 1280) grows with a width above 1 and never shrinks below, as in the usual implementations.

    >>> mobilenetv3("mobilenetv3_small", StridePlan.parse("1-22121111211"), 10, 1, 0.5).name
    'mobilenetv3_small-1-22121111211'
    """
    channels = final = make_divisible(16 * width)
    features: list[nn.Module] = [nn.Sequential(*_conv_bn(in_channels, channels, 3, plan.stem), nn.Hardswish())]
    for row, stride in zip(V3_BLOCKS[arch], plan.stages, strict=True):
        outputs = make_divisible(row.channels * width)
        features.append(_v3_block(channels, outputs, stride, row))
        final, channels = make_divisible(channels * row.expansion), outputs
    conv = nn.Sequential(*_conv_bn(channels, final), nn.Hardswish())
    head = make_divisible(V3_HEADS[arch] * max(width, 1.0))
    classifier = nn.Sequential(nn.Linear(final, head), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(head, num_classes))
    return MobileNet(f"{arch}-{plan}", plan, nn.Sequential(*features), conv, classifier)
