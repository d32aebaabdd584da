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
from redistill_lib.red import BlockedLayer, RedBlock


class _Size(NamedTuple):
    taken: int  # numbers that go into a module
    made: int  # and come out of it


def paper_layers(model: nn.Module, passed: Trace) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Path, output shape and numbers alive of each entry of the authors' figure, with RED blocks or without."""
    calls = {call.path: call for call in reversed(passed.calls)}
    sizes = {path: _Size(prod(call.shape_in), prod(call.shape_out)) for path, call in calls.items()}
    if isinstance(model, ResNet):
        counts = _resnet(sizes)
    elif isinstance(model, MobileNet):
        counts = _mobilenet(model, sizes)
    elif isinstance(model, UNet):
        counts = _unet(model, sizes)
    else:
        raise ValueError(
            f"the paper convention is the authors' estimate for ResNets, MobileNets and their U-Net, not for "
            f"{type(model).__name__}: use fused or eager"
        )
    for call in passed.calls:
        if isinstance(model.get_submodule(call.path), RedBlock):
            layer = call.path.rpartition(".")[0]
            entry = max((name for name in counts if f"{layer}.".startswith(f"{name}.")), key=len)
            counts[entry] = max(counts[entry], 3 * prod(call.shape_in))
    return ((name, calls[name].shape_out, count) for name, count in counts.items())


def _resnet(sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {name: sum(sizes[name]) for name in ("conv1", "maxpool")}
    for stage in (f"layer{k}" for k in range(1, 5)):
        shortcut = sizes[f"{stage}.0"].taken
        for block in _children(sizes, stage):
            widest = max(sum(size) for path, size in sizes.items() if path.startswith(f"{block}.conv"))
            down = sizes.get(f"{block}.downsample.0")
            counts[block] = widest + (sum(down) if down else shortcut)
    return counts


def _mobilenet(model: MobileNet, sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {"features.0": sum(sizes["features.0.0"])}
    for k in range(1, len(model.features)):
        block = f"features.{k}"
        inside = {path: _layer(model, path) for path in sizes if path.startswith(f"{block}.conv.")}
        convolutions = [sum(sizes[path]) for path, module in inside.items() if isinstance(module, nn.Conv2d)]
        gates = [  # the map, what the gate makes of it, and one number per channel
            sum(sizes[path]) + sizes[f"{path}.avgpool"].made
            for path, module in inside.items()
            if isinstance(module, SqueezeExcite)
        ]
        residual = sizes[block].taken if _layer(model, block).residual else 0
        counts[block] = max(convolutions + gates) + residual
    return counts


def _unet(model: UNet, sizes: dict[str, _Size]) -> dict[str, int]:
    counts = {"time_embedding": sizes["time_embedding"].made, "head": sum(sizes["head"])}

    def block(path: str) -> int:
        if not isinstance(_layer(model, path), ResBlock):
            return sizes[path].made
        first = sum(sizes[f"{path}.block1.2"]) + sizes[f"{path}.temb_proj"].made
        return sizes[path].taken + max(first, sum(sizes[f"{path}.block2.3"]))

    skips = 0  # outputs of the blocks so far; the head's, which is a skip too, is forgotten
    for path in _children(sizes, "downblocks"):
        counts[path] = skips + block(path)
        skips += sizes[path].made
    counts |= {path: block(path) for path in _children(sizes, "middleblocks")}
    for path in _children(sizes, "upblocks"):
        counts[path] = block(path)
    return counts | {"tail": sizes["tail"].made}


def _layer(model: nn.Module, path: str) -> nn.Module:
    module = model.get_submodule(path)
    return module.layer if isinstance(module, BlockedLayer) else module


def _children(sizes: dict[str, _Size], parent: str) -> list[str]:
    found = [path for path in sizes if path.rpartition(".")[0] == parent]
    return sorted(found, key=lambda path: int(path.rpartition(".")[2]))
