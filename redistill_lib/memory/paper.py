"""The authors' estimate of memory per layer (Figure 7 of arXiv 2406.03744), over-counting included.

A residual block adds its strided shortcut's input and output to the widest convolution, later blocks of a stage keep
the *stage's* input, a U-Net counts skips on the way down only and no attention, and a RED block counts three maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from torch import nn

from redistill_lib.memory.trace import Trace
from redistill_lib.models import MobileNet, ResNet, UNet
from redistill_lib.models.mobilenet import SqueezeExcite
from redistill_lib.models.unet import ResBlock
from redistill_lib.red import RedBlock, original_paths


class _Size(NamedTuple):
    taken: int  # numbers that go into a module
    made: int  # and come out of it


def paper_layers(model: nn.Module, passed: Trace) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Path, output shape and numbers alive of each entry of the authors' figure, with RED blocks or without."""
    sizes = {path: _Size(prod(taken), prod(made)) for path, (taken, made) in passed.calls.items()}
    paths = original_paths(model)
    layers = {paths[id(module)]: module for module in model.modules()}  # without blocks: an inner layer comes last
    if isinstance(model, ResNet):
        counts = _resnet(sizes)
    elif isinstance(model, MobileNet):
        counts = _mobilenet(layers, sizes)
    elif isinstance(model, UNet):
        counts = _unet(layers, sizes)
    else:
        raise ValueError(
            f"the paper convention is the authors' estimate for ResNets, MobileNets and their U-Net, not for "
            f"{type(model).__name__}: use fused or eager"
        )
    for path, size in sizes.items():
        if isinstance(layers[path], RedBlock):
            layer = path.rpartition(".")[0]
            entry = max((name for name in counts if f"{layer}.".startswith(f"{name}.")), key=len)
            counts[entry] = max(counts[entry], 3 * size.taken)
    return ((name, passed.calls[name][1], count) for name, count in counts.items())


def _resnet(sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {name: sum(sizes[name]) for name in ("conv1", "maxpool")}
    for stage in (f"layer{k}" for k in range(1, 5)):
        for block in _children(sizes, stage):
            widest = max(sum(size) for path, size in sizes.items() if path.startswith(f"{block}.conv"))
            down = sizes.get(f"{block}.downsample.0")
            counts[block] = widest + (sum(down) if down else sizes[f"{stage}.0"].taken)
    return counts


def _mobilenet(layers: dict[str, nn.Module], sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {"features.0": sum(sizes["features.0.0"])}
    for block in _children(sizes, "features")[1:]:
        widest = 0
        for path in (path for path in sizes if path.startswith(f"{block}.conv.")):
            if isinstance(layers[path], nn.Conv2d):
                widest = max(widest, sum(sizes[path]))
            elif isinstance(layers[path], SqueezeExcite):  # the map, what it makes of it, and a number per channel
                widest = max(widest, sum(sizes[path]) + sizes[f"{path}.avgpool"].made)
        counts[block] = widest + (sizes[block].taken if getattr(layers[block], "residual", False) else 0)
    return counts


def _unet(layers: dict[str, nn.Module], sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {"time_embedding": sizes["time_embedding"].made, "head": sum(sizes["head"])}
    skips = 0  # outputs of the blocks so far; the head's, which is a skip too, is forgotten
    for part in ("downblocks", "middleblocks", "upblocks"):
        for path in _children(sizes, part):
            counts[path] = sizes[path].made
            if isinstance(layers[path], ResBlock):
                first = sum(sizes[f"{path}.block1.2"]) + sizes[f"{path}.temb_proj"].made
                counts[path] = sizes[path].taken + max(first, sum(sizes[f"{path}.block2.3"]))
            if part == "downblocks":
                counts[path] += skips
                skips += sizes[path].made
    return counts | {"tail": sizes["tail"].made}


def _children(sizes: dict[str, _Size], parent: str) -> list[str]:
    return [path for path in sizes if path.rpartition(".")[0] == parent]  # in the order in which they ran
