"""Small networks with the module layout, names and tricks of torchvision, timm, transformers and diffusers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cbr(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """torchvision's Conv2dNormActivation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]


class VGG(nn.Module):
    """torchvision: MaxPool2d(2) between stages, the map flattened by an adaptive pool."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 8), (8, 16), (16, 16), (16, 16)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(nn.Linear(16 * 49, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class DenseNet(nn.Module):
    """torchvision: pool0 behind conv0, concatenations, transitions that end in AvgPool2d(2), relu in forward."""

    class Layer(nn.Module):
        def __init__(self, inputs: int) -> None:
            super().__init__()
            self.norm1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
            self.conv1 = nn.Conv2d(inputs, 4, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.conv1(self.relu1(self.norm1(x)))], 1)

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for name, layer in {
            "conv0": nn.Conv2d(3, 8, 7, 2, 3, bias=False), "norm0": nn.BatchNorm2d(8), "relu0": nn.ReLU(inplace=True),
            "pool0": nn.MaxPool2d(3, 2, 1), "denseblock1": self.Layer(8),
            "transition1": self.transition(12, 6), "denseblock2": self.Layer(6),
            "transition2": self.transition(10, 5), "denseblock3": self.Layer(5), "norm5": nn.BatchNorm2d(9),
        }.items():  # fmt: skip
            self.features.add_module(name, layer)
        self.classifier = nn.Linear(9, 5)

    @staticmethod
    def transition(inputs: int, outputs: int) -> nn.Sequential:
        layers = [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 1), nn.AvgPool2d(2, 2)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class MBConv(nn.Module):
    """EfficientNet: depthwise stride, then a gate of 1×1 convolutions on the map's mean."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * 4
        self.expand, self.depthwise = cbr(inputs, hidden, 1), cbr(hidden, hidden, kernel, stride, hidden)
        self.fc1, self.fc2 = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.use_res_connect = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = self.project(torch.sigmoid(self.fc2(F.silu(self.fc1(y.mean((2, 3), keepdim=True))))) * y)
        return x + y if self.use_res_connect else y


def efficientnet() -> nn.Module:
    blocks = [
        MBConv(8, 8, 3, 1),
        MBConv(8, 12, 3, 2),
        MBConv(12, 12, 5, 2),
        MBConv(12, 12, 3, 1),
        MBConv(12, 16, 5, 2),
    ]
    return nn.Sequential(cbr(3, 8, 3, 2), *blocks, *head(16))


class Conv2dSame(nn.Conv2d):
    """timm, for TensorFlow's weights: pads as its own stride needs it, in forward."""

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            pad = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return F.conv2d(F.pad(input, pads), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def tf_efficientnet() -> nn.Module:
    """timm's stem and transformers' blocks: a ZeroPad2d((0, 1, 0, 1)) in front of an unpadded strided convolution."""
    padded = [
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2, padding="valid", groups=8)),
        nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(8, 8, 5, 2, padding="valid", groups=8)),
    ]
    return nn.Sequential(Conv2dSame(3, 8, 3, 2), Conv2dSame(8, 8, 3, 2), *padded, *head(8))


class LayerNorm2d(nn.LayerNorm):
    """timm and torchvision: over channels, by permuting."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.gamma = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.gamma * self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """timm: 4×4 patches as stem, downsampling by a norm and a 2×2 convolution of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8))
        self.stages = nn.Sequential()
        for stage, (inputs, dim) in enumerate(((8, 8), (8, 12), (12, 16), (16, 20))):
            down = nn.Sequential(LayerNorm2d(inputs), nn.Conv2d(inputs, dim, 2, 2)) if stage else nn.Identity()
            blocks = nn.Sequential(nn.ModuleDict({"downsample": down})["downsample"], ConvNeXtBlock(dim))
            self.stages.add_module(str(stage), blocks)
        self.head = nn.Sequential(*head(20))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


@dataclass
class Output:
    """transformers: networks and layers return dataclasses."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] = ()
    logits: Tensor | None = None


class ResidualBlock(nn.Module):
    """RegNet: the stride in the grouped 3×3 of the block and in the 1×1 of the shortcut, or a ResNet-D shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, pooled: bool = False, blur: bool = False) -> None:
        super().__init__()
        second = cbr(outputs, outputs, 3, 1 if blur else stride, outputs // 4)
        self.layer = nn.Sequential(cbr(inputs, outputs, 1), second, BlurPool2d(stride) if blur else nn.Identity())
        self.shortcut = cbr(inputs, outputs, 1, 1 if pooled else stride)
        if pooled:
            pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x) + self.shortcut(x))


class RegNet(nn.Module):
    """transformers: nested embedder and encoder, dataclasses out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.ModuleDict({"convolution": cbr(3, 8, 3, 2)})
        widths = [8, 8, 12, 16]
        self.stages = nn.ModuleList(ResidualBlock(i, o, 2) for i, o in itertools.pairwise(widths))
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))

    def forward(self, pixel_values: Tensor, return_dict: bool = True) -> Output:
        x = self.embedder["convolution"](pixel_values)
        states: tuple[Tensor, ...] = ()
        for stage in self.stages:
            x = stage(x)
            states = (*states, self.pooler(x))
        return Output(x, states, self.classifier(states[-1]))


class BlurPool2d(nn.Module):
    """timm: a fixed filter, applied by F.conv2d with the module's own stride."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", (line[:, None] * line)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        filt = self.get_buffer("filt").expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filt, stride=self.stride, groups=x.shape[1])


def resnet_d(blur: bool = False) -> nn.Module:
    """timm's resnet50d and resnetblur50: three 3×3 as stem, pooled shortcuts, anti-aliasing."""
    stem = [cbr(3, 8, 3, 2), cbr(8, 8), cbr(8, 8), nn.MaxPool2d(3, 2, 1)]
    blocks = [ResidualBlock(8, 8, 2, True, blur), ResidualBlock(8, 12, 2, True, blur), ResidualBlock(12, 16, 2, True)]
    return nn.Sequential(*stem, *blocks, *head(16))


class CeilPools(nn.Module):
    """GoogLeNet: unpadded 3×3 pools that round up, and parallel branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.maxpool1 = cbr(3, 8, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.branches = nn.ModuleList(
            [cbr(8, 4, 1), cbr(8, 4, 5), nn.Sequential(nn.MaxPool2d(3, 1, 1), cbr(8, 4, 1))]
        )
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.classifier = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool1(self.conv1(x))
        return self.classifier(self.maxpool2(torch.cat([branch(x) for branch in self.branches], 1)))


class SegmentationUNet(nn.Module):
    """The common U-Net: pools down, upsampling or 2×2 transposed convolutions up, F.pad to the skip's size."""

    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.inc = nn.Sequential(cbr(3, 8), cbr(8, 8))
        self.downs = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), cbr(8, 8)) for _ in range(3))
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.ups = nn.ModuleList(up if bilinear and k else nn.ConvTranspose2d(8, 8, 2, 2) for k in range(3))
        self.convs = nn.ModuleList(cbr(16, 8) for _ in range(3))
        self.outc = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        skips = [x]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, conv in zip(self.ups, self.convs, strict=True):
            skip, x = skips.pop(), up(x)
            right, bottom = skip.shape[3] - x.shape[3], skip.shape[2] - x.shape[2]
            x = conv(torch.cat([skip, F.pad(x, [0, right, 0, bottom])], 1))
        return self.outc(x)


class Upsample2D(nn.Module):
    """diffusers: F.interpolate in forward, behind a switch."""

    def __init__(self, channels: int, interpolate: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        if interpolate:
            self.interpolate = True

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "interpolate", None) in (True, None):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class DiffusionUNet(nn.Module):
    """diffusers.UNet2DModel: called with (sample, timestep), returns a dict; conv_in and conv_out of stride 1."""

    def __init__(self, interpolate: bool = True, pad: int = 1) -> None:
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.time = nn.Embedding(10, 8)
        self.pad = pad
        self.downs = nn.ModuleList(nn.Conv2d(8, 8, 3, 2, pad) for _ in range(2))
        self.ups = nn.ModuleList(Upsample2D(8, interpolate) for _ in range(2))
        self.proj = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(2))

    def forward(self, sample: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        x = self.conv_in(sample) + self.time(timestep)[:, :, None, None]
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x if self.pad else F.pad(x, (0, 1, 0, 1)))
        x = x + (x.flatten(2).transpose(1, 2) @ x.flatten(2)).softmax(-1).mean() * x  # attention over positions
        for up, proj in zip(self.ups, self.proj, strict=True):
            x = proj(torch.cat([up(x), skips.pop()], 1))
        return {"sample": self.conv_out(F.silu(x))}


class FunctionalPools(nn.Module):
    """A tutorial's CNN: pools in forward, one layer object used twice."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1)])
        self.pool = nn.MaxPool2d(2) if shared else None
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pool = self.pool or (lambda x: F.max_pool2d(x, 2))
        x = pool(self.convs[1](pool(self.convs[0](x))))
        return self.fc(self.convs[2](x).mean((2, 3)))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.norm, self.head = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.patch_embed(x).flatten(2).transpose(1, 2)).mean(1))
