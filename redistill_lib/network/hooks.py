"""Reaching a network's tensors while it runs: read or replace a feature map at a place."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.red import Side

Place = tuple[str, Side]
Visit = Callable[[Tensor], Tensor | None]


def find_layer(model: nn.Module, path: str, role: str = "network") -> str:
    """The module path as `model` knows it (an official ``net.`` prefix is dropped), or a KeyError with near names."""
    names = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in reversed(list(model.named_modules()))}
    for candidate in (path, path.removeprefix("net.")):
        if candidate in names:
            return first[id(names[candidate])]  # one name for a layer that has several
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    raise KeyError(f"the {role} has no layer {path!r}{hint}")


@contextlib.contextmanager
def tapping(model: nn.Module, visits: Mapping[Place, Visit]) -> Iterator[None]:
    """While open, call each visitor with the tensor at its place; a tensor it returns takes that tensor's place.

    An input is the layer's first positional argument. Nothing stays on the model afterwards.

    >>> net, seen = nn.Sequential(nn.ReLU()), []
    >>> with tapping(net, {("0", "output"): seen.append}):
    ...     _ = net(torch.tensor([-1.0, 2.0]))
    >>> seen
    [tensor([0., 2.])]
    """
    handles = []
    try:
        for (path, side), visit in visits.items():
            module = model.get_submodule(path)
            if side == "input":
                handles.append(module.register_forward_pre_hook(partial(_on_input, visit, path)))
            else:
                handles.append(module.register_forward_hook(partial(_on_output, visit, path)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(visit: Visit, path: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not args or not isinstance(args[0], Tensor):
        raise TypeError(f"the input of {path!r} is not a tensor given by position; tap the layer before it")
    replaced = visit(args[0])
    return None if replaced is None else (replaced, *args[1:])


def _on_output(visit: Visit, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
    if not isinstance(output, Tensor):
        raise TypeError(f"the output of {path!r} is a {type(output).__name__}, not one tensor; tap a layer inside it")
    return visit(output)


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; on leaving, every single module is back in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_float(inputs: Sequence[object]) -> None:
    """Raise TypeError for images as they are stored, which no network takes."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dtype == torch.uint8:
        raise TypeError("the network wants float images, not uint8; redistill_lib.to_float makes them")


def feature_maps(model: nn.Module, places: Sequence[Place], *inputs: Tensor) -> dict[Place, Tensor]:
    """The tensors at `places` during one forward pass in eval mode; the model is left as it was.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    >>> feature_maps(net, [("0", "output")], torch.zeros(1, 1, 9, 9))[("0", "output")].shape
    torch.Size([1, 4, 4, 4])
    """
    places = [(find_layer(model, path), side) for path, side in places]
    maps: dict[Place, Tensor] = {}

    def keep(place: Place, x: Tensor) -> None:
        maps[place] = x.clone()  # what follows may work in place

    with evaluating(model), tapping(model, {place: partial(keep, place) for place in places}):
        model(*inputs)
    if missing := [f"{path}.{side}" for path, side in places if (path, side) not in maps]:
        raise RuntimeError(f"never reached in the forward pass: {', '.join(missing)}")
    return maps
