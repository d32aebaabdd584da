"""From a network to a file that an edge runtime runs."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.export.exported import ExportedModel
from redistill_lib.export.formats import Inputs, check_target, format_of
from redistill_lib.export.quiet import quiet
from redistill_lib.export.red import blocks_in_parts
from redistill_lib.export.result import Export
from redistill_lib.memory import profile_memory
from redistill_lib.network.hooks import output_of
from redistill_lib.progress import waiting_bar
from redistill_lib.red import InPlaceRedBlock, RedBlock
from redistill_lib.runs import replacing

CLOSE = 1e-4  # of the largest output: what rounding may add up to in float32


def export_model(
    model: nn.Module,
    file: str | os.PathLike[str],
    example: Tensor | Inputs,
    *,
    images: Tensor | Sequence[Inputs] | None = None,
    calibration: Tensor | Sequence[Inputs] | None = None,
    int8: bool = False,
) -> Export:
    """Write a network as a file for an edge runtime, and compare its outputs there with PyTorch's.

    ``.onnx`` is for ONNX Runtime, ``.pte`` for ExecuTorch, ``.tflite`` for LiteRT and LiteRT Micro; each needs
    packages of its own (docs/deploy.md). `example` is what the network is called with, of the batch size that the
    file will have; `images`, B×C×H×W through `to_float` or a list of what it is called with, are compared there and
    here. With `int8` weights, per channel, and activations are int8, whose ranges are those on `calibration`, images
    that it was trained on.

    The network is copied, in eval mode. RED blocks that work in place, which no runtime has an operator for, are made
    in parts of their channels (`blocks_in_parts`), and so are plain ones where that needs less memory. Raises
    ImportError for packages that are missing, ValueError for what the runtime does not take, and where float32
    outputs differ by more than 1e-4 of the largest.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    >>> export_model(net, "net.bin", torch.zeros(1, 3, 8, 8))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no runtime takes 'net.bin': it has to end in .onnx (ONNX Runtime), .pte (ExecuTorch), ...
    """
    target, found = check_target(file), format_of(file)
    writer = found.writer()
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    compared, calibrating = _calls("images", images, inputs), _calls("calibration", calibration, inputs)
    if int8 != bool(calibrating):
        raise ValueError(
            "int8 needs calibration=, images that the network was trained on, to find the ranges of its activations"
            if int8
            else "calibration= is for int8=True alone"
        )
    if any(x.is_floating_point() and not x.isfinite().all() for call in (*compared, *calibrating) for x in call):
        raise ValueError("images hold NaN or infinity; give images as rd.to_float makes them")
    network = portable(check_type("model", model, nn.Module), inputs, found.convention)
    compared = compared or [inputs]
    with torch.no_grad(), quiet(), replacing(target) as part, waiting_bar(len(compared) + 1, target.name) as bar:
        writer.write(network, inputs, part, calibrating)
        bar.update()
        exported, there, here = ExportedModel(part, found), [], []
        for each in compared:
            there.append(exported(*each))
            here.append(output_of(network(*each)))
            bar.update()
        difference = _difference(torch.cat(there), torch.cat(here))
        if math.isnan(difference) or (not int8 and difference > CLOSE):
            raise ValueError(
                f"{found.runtime} computes something else than PyTorch: outputs differ by {difference:.1e} of the "
                "largest"
            )
    dtype = "int8" if int8 else "fp32"
    return Export(target, found.runtime, dtype, target.stat().st_size, difference, len(compared) * len(inputs[0]))


def _difference(there: Tensor, here: Tensor) -> float:
    """The largest of any output, as a share of the largest; NaN where an output is none, or the shapes differ."""
    if there.shape != here.shape:
        return math.nan
    return float((there - here).abs().max() / here.abs().max().clamp(min=torch.finfo(torch.float32).tiny))


def portable(model: nn.Module, inputs: Inputs, convention: str) -> nn.Module:
    """A copy for inference on a CPU, its RED blocks in the form that needs least."""
    network: nn.Module = blocks_in_parts(model, in_place_only=True).cpu()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as runtimes lay weights out
    for path, module in network.named_modules():
        if isinstance(module, InPlaceRedBlock):
            raise ValueError(
                f"the RED block {path} works in place, which no runtime has an operator for, and has a depthwise "
                "encoder: export the network as it was before make_in_place"
            )
    if not any(isinstance(module, RedBlock) for module in network.modules()):
        return network
    forms = [network, blocks_in_parts(network)]
    needs = [profile_memory(form, *inputs, convention=convention) for form in forms]
    return forms[needs[1].arena_bytes < needs[0].arena_bytes]


def _calls(label: str, images: Tensor | Sequence[Inputs] | None, inputs: Inputs) -> list[Inputs]:
    """What the network is called with, in the batches of the example."""
    if not isinstance(images, Tensor):
        return [tuple(each) for each in images or ()]
    if len(inputs) > 1:
        raise ValueError(
            f"the network takes {len(inputs)} inputs: give {label} as a list of what it is called with, no tensor"
        )
    if (images.dtype, images.shape[1:]) != (inputs[0].dtype, inputs[0].shape[1:]):
        given, wanted = (f"{x.dtype} {tuple(x.shape)}" for x in (images, inputs[0]))
        raise ValueError(f"{label} are {given} and the example {wanted}: give what it takes, by rd.to_float")
    batch = len(inputs[0])
    return [(piece,) for piece in images.cpu().split(batch) if len(piece) == batch]
