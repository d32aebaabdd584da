"""A frozen network's faster twin: batch norms folded into convolutions, activations in place, weights packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from redistill_lib.network import MapRef
from redistill_lib.network.fakes import copy_network, held_tensors
from redistill_lib.network.flow import Call, Visit, trace_flow

_CONVS = {nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Conv3d: "conv3d"}
_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
_ACTIVATIONS = nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Mish
#: Functions whose result is memory of its own, that nobody else holds.
_FRESH = {*_CONVS.values(), "batch_norm", "group_norm", "layer_norm", "linear", "add", "__add__", "mul", "cat"}


class Edits(NamedTuple):
    """What may change in a network without changing what it computes beyond rounding, by module paths."""

    folded: tuple[tuple[str, str], ...]  # a convolution and the batch norm that alone reads its output
    in_place: tuple[str, ...]  # activations that alone read their input


def find_edits(network: nn.Module, places: Iterable[MapRef], inputs: tuple[Any, ...]) -> tuple[Edits, int]:
    """The edits that leave the maps at `places` as they are, and the elements of the largest map for each image.

    Follows one pass of `inputs` without computing it. Where it cannot be followed so, as its way may depend on
    values, or takes no image, there are no edits, and 0 elements.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> find_edits(net, [MapRef("2", "output")], (torch.zeros(2, 3, 6, 6),))
    (Edits(folded=(('0', '1'),), in_place=('2',)), 128)
    """
    flow = trace_flow(network, inputs)
    if flow.error or flow.computed or not flow.images:
        return Edits((), ()), 0
    modules = dict(network.named_modules())
    readers = Counter(value for call in flow.calls for value in set(call.takes)) + Counter(flow.gives)
    made: dict[int, Call] = {value: call for call in flow.calls for value in call.makes}
    runs = Counter(visit.run[0] for visit in flow.visits)
    tapped = {value for visit in flow.visits for value in _tapped(visit, set(places))}
    folded = []
    alone = Counter[str]()  # how often an activation runs on what it alone reads
    for call in flow.calls:
        module, value = modules[call.path], call.takes[0]
        source = made.get(value)
        if source is None or readers[value] != 1:
            continue
        alone[call.path] += isinstance(module, _ACTIVATIONS) and source.function in _FRESH
        conv = modules[source.path]
        if (
            runs[call.path] == runs[source.path] == 1 and value not in tapped
            and call.function == "batch_norm" and type(module) in _NORMS and module.running_mean is not None
            and source.function == _CONVS.get(type(conv))
        ):  # fmt: skip
            folded.append((source.path, call.path))
    in_place = tuple(path for path, times in alone.items() if times and times == runs[path])
    images = flow.shapes[flow.image][0]
    return Edits(tuple(folded), in_place), max(torch.Size(shape).numel() for shape in flow.shapes) // images


def _tapped(visit: Visit, places: set[MapRef]) -> Iterator[int]:
    path = visit.run[0]
    if MapRef(path, "input") in places:
        yield visit.takes
    if MapRef(path, "output") in places:
        yield from visit.gives


def edited(network: nn.Module, edits: Edits) -> nn.Module:
    """A copy in eval mode, with these edits, channels last. It shares the other weights where they lie so already.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> edited(net, Edits((("0", "1"),), ("2",)))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU(inplace=True)
    )
    """
    copy = copy_network(network, {id(tensor): tensor for tensor in held_tensors(network)}).eval()
    for conv_path, norm_path in edits.folded:
        conv, norm = (cast(Any, copy.get_submodule(path)) for path in (conv_path, norm_path))
        _put(copy, conv_path, fuse_conv_bn_eval(conv, norm))
        _put(copy, norm_path, nn.Identity())
    for path in edits.in_place:
        copy.get_submodule(path).inplace = True  # type: ignore[assignment]
    for module in copy.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.ndim == 4:  # the same tensor where it lies so already
                laid = weight.detach().contiguous(memory_format=torch.channels_last)
                module._parameters[name] = nn.Parameter(laid, requires_grad=False)
    return copy.requires_grad_(False)


def pack(network: nn.Module) -> nn.Module:
    """The same network, whose convolutions on a CPU in single precision keep their weights as its kernels want them.

    Else each pass of a few images lays them out again, which takes a tenth of its time.
    """
    for path, module in list(network.named_modules()):
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            weight = module.weight
            if path and weight.device.type == "cpu" and weight.dtype == torch.float32:
                _put(network, path, _PackedConv(module))
    return network


class _PackedConv(nn.Module):
    """A convolution in inference mode alone."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.packed = conv.weight, conv.bias, False
        self.options = [list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups]

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.mkldnn
        if not self.packed:  # for images of this size; others find it slower, but not wrong
            with torch.no_grad():
                packed = ops._reorder_convolution_weight(self.weight, *self.options, list(x.shape))
            self.weight, self.packed = nn.Parameter(packed, requires_grad=False), True
        return ops._convolution_pointwise(x, self.weight, self.bias, *self.options, "none", [], "")


def _put(network: nn.Module, path: str, new: nn.Module) -> None:
    """Under every name that the module has."""
    old = network.get_submodule(path)
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
