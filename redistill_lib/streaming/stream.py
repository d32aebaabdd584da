"""A copy of a network whose first layers run row by row."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import nn

from redistill_lib.checks import check_type, whole
from redistill_lib.memory import memory_bounds
from redistill_lib.network import MapRef, check_followable, locate
from redistill_lib.network.fakes import copy_network, follow, tensors_in
from redistill_lib.network.flow import Example, cast_arguments, image_of, trace_flow
from redistill_lib.streaming.chain import Chain, Stopped
from redistill_lib.streaming.rows import Stream, StreamedLayer, streamed_type

_Model = TypeVar("_Model", bound=nn.Module)


def stream_rows(model: _Model, rows: int = 1, *, example: Example, until: str | None = None) -> _Model:
    """A copy of a network in eval mode whose first layers make `rows` rows of their maps at a time, not whole ones.

    Of each map inside that chain only the rows are held that the next kernel still needs. Each is computed once, so
    the multiply-adds stay the same, as does what is computed, for images of any size. The image and the chain's last
    map are there as a whole. Fewer rows need less memory; more are faster. The chain starts at the image and goes
    through convolutions, max and average pools, batch norms and activations, each a module; also through whole
    blocks that add or multiply such branches, as inverted residuals and RED blocks do. It ends with the layer
    `until`; by default where `memory_bounds` says that streaming gains most up to the first shortcut
    (`streaming_name`), and with one row the copy needs what that promises (`streaming_bytes`) and a row or two.
    `example` is a float image B×C×H×W, or the network's inputs, as (x, t); only its shape matters.

    The copy has the names of the original's weights, which it loads, and is frozen. It adds up the same numbers,
    though perhaps in another order. On an x86 with oneDNN, in one thread, results are equal to the bit, but for
    convolutions that are 1×1 with a stride or have groups of several channels, and for those that PyTorch gives to
    a matrix product (float32, 1×1, or maps of up to 20,480 elements) where their own maps are not a multiple of 16
    wide. These, more threads and GPUs are equal up to rounding. Exported, the loop over rows is unrolled.

    Sources: MCUNetV2 (arXiv 2110.15352), RNNPool (arXiv 2002.11921, Proposition 1). Raises ValueError for a network
    in train mode, one whose first layers cannot run so or save nothing, or an example that it does not take;
    KeyError for an unknown `until`.

    >>> import torch
    >>> from redistill_lib.memory import profile_memory
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, padding=1)).eval()
    >>> x = torch.rand(1, 3, 16, 16)
    >>> streamed = stream_rows(net, example=x)
    >>> torch.allclose(streamed(x), net(x), atol=1e-6)
    True
    >>> [profile_memory(network, x).peak_bytes for network in (net, streamed)]
    [11264, 6208]
    """
    streamed, outputs = unchecked_rows(model, rows, example, until)
    if (shapes := follow(streamed, cast_arguments(model, example), _shapes)) != outputs:
        raise ValueError(
            f"the outputs would be {shapes}, not {outputs}: the forward uses the size of a map in the chain"
        )
    return streamed


def unchecked_rows(
    model: _Model, rows: int, example: Example, until: str | None = None
) -> tuple[_Model, list[torch.Size]]:
    """`stream_rows` before it is followed once more, and the outputs' shapes that it has to keep."""
    check_type("model", model, nn.Module), check_type("until", until, str, None)
    rows = whole("rows", rows)
    deciding = (each for each in model.named_modules() if not each[0] or not each[1]._modules)
    training = [path or "the network" for path, part in deciding if part.training]
    if training:
        raise ValueError(f"{training[0]} is in train mode, where batch norms read whole maps; call eval() first")
    check_followable(model, "network")
    if any(isinstance(part, StreamedLayer) for part in model.modules()):
        raise ValueError("layers of this network run row by row already; give the network from before")
    image = image_of(example)
    flow = trace_flow(model, example)
    if flow.error is not None:
        where = flow.running or "its forward"
        raise ValueError(f"the network does not take the example, as {where} fails: {flow.error}") from flow.error
    args, kwargs = cast_arguments(model, example)
    end = until or memory_bounds(model, *args, kwargs=kwargs).streaming_name
    streamed = copy_network(model).requires_grad_(False)
    chain = Chain(streamed, flow)
    try:
        if not end:
            chain.through_all()
        path = locate(streamed, MapRef(end, "output")).layer
        goal = [visit for visit in flow.visits if visit.run[0] == path]
        if len(goal) != 1:
            raise Stopped(f"it runs {len(goal)} times")
        chain.through(goal[0])
        if not chain.layers:
            raise Stopped("it computes nothing of an image")
        stream = Stream(chain.stages(), rows)
        stream.heights(image.shape[2])
    except Stopped as why:
        raise ValueError(_refusal(end, chain.last, str(why))) from None
    for layer in chain.layers:
        part: Any = streamed.get_submodule(layer)
        kind: Any = type(part)
        part.__class__ = streamed_type(kind)
    streamed.get_submodule(chain.layers[0]).register_forward_pre_hook(stream)
    return streamed, flow.outputs


def row_ends(model: nn.Module, *, example: Example) -> list[str]:
    """The layers until which `stream_rows` can run this network, from the image on, as far as they are its chain.

    >>> row_ends(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()), example=torch.zeros(1, 3, 8, 8))
    ['0', '1']
    """
    flow = trace_flow(model, example)
    chain, ends = Chain(model, flow), list[str]()
    with suppress(Stopped):
        while flow.error is None:
            chain.step(chain.next_visit())
            ends.append(chain.last)
    return ends


def _shapes(model: nn.Module, values: Any, source: str) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(model(*values[0], **values[1]))]


def _refusal(end: str, last: str, why: str) -> str:
    if not last:
        return f"no layer of this network can run row by row: {why}"
    if end:
        return f"{end!r} cannot be reached row by row{f', but until={last!r} can' if last != end else ''}: {why}"
    return f"row by row nothing is saved up to the first shortcut; until= takes a later end, at most {last!r}: {why}"
