"""Reaching a network's tensors while it runs: its feature maps at given places, and its main output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from redistill_lib.checks import hint
from redistill_lib.red import BlockedLayer, Side, first_parameter, original_paths

Visit = Callable[[Tensor], None]
_MAIN = ("logits", "sample", "prediction", "out")  # where result objects and dicts keep what a network answers


class MapRef(NamedTuple):
    """The tensor on one side of a layer; an empty `layer` is the whole network."""

    layer: str
    side: Side

    def __str__(self) -> str:
        return f"{self.layer or 'network'}.{self.side}"


def find_layer(model: nn.Module, path: str, role: str = "network") -> str:
    """The layer's first path without RED blocks and an official ``net.`` prefix, or a KeyError with near names."""
    paths = original_paths(model)
    names = {name: paths[id(module)] for name, module in model.named_modules(remove_duplicate=False)}
    names |= {path: path for path in paths.values()}
    for candidate in (path, path.removeprefix("net.")):
        if candidate in names:
            return names[candidate]
    raise KeyError(f"the {role} has no layer {path!r}{hint(path, names)}")


def locate(model: nn.Module, ref: MapRef, role: str = "network") -> MapRef:
    """Where the map of `ref` is found in a network with or without RED blocks.

    An output is taken behind the layer's block, an input behind the block before it.
    """
    layer, paths = find_layer(model, ref.layer, role), original_paths(model)
    found = {name: module for name, module in model.named_modules() if paths[id(module)] == layer}
    if ref.side == "input":  # the innermost: blocks come before it
        found = {name: module for name, module in found.items() if not isinstance(module, BlockedLayer)}
    return MapRef(next(iter(found)), ref.side)


@contextmanager
def reading(model: nn.Module, visits: Mapping[MapRef, Visit]) -> Iterator[None]:
    """While open, call each visitor with the tensor at its place (see `locate`) in passes of this thread.

    An input is the layer's first argument; an output that is no tensor goes through `output_of`.
    """
    thread = threading.get_ident()

    def hook(ref: MapRef, module: nn.Module, args: Any, *rest: Any) -> None:
        if threading.get_ident() != thread:
            return  # and may be called before PyTorch knows that it takes keywords
        kwargs = rest[0]
        if ref.side == "output":
            visits[ref](output_of(rest[1], f"layer {ref.layer!r}" if ref.layer else "the network"))
        elif isinstance(x := args[0] if args else kwargs.get(first_parameter(module)), Tensor):
            visits[ref](x)
        else:
            raise TypeError(f"the first argument of {ref.layer!r} is not a tensor; tap the layer before it")

    with ExitStack() as hooks:
        for ref in visits:
            module = model.get_submodule(ref.layer)
            register = module.register_forward_pre_hook if ref.side == "input" else module.register_forward_hook
            hooks.enter_context(register(partial(hook, ref), with_kwargs=True))
        yield


def output_of(outputs: Any, source: str = "the network") -> Tensor:
    """The main tensor of what a network or a layer (`source`) returns, or a TypeError.

    That is the tensor itself; ``logits``, ``sample``, ``prediction`` or ``out`` of a result object or dict; or the
    first entry of a tuple or list.

    >>> output_of({"logits": torch.zeros(2, 3), "maps": []}).shape, output_of((torch.zeros(1), None)).shape
    (torch.Size([2, 3]), torch.Size([1]))
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = next((outputs[key] for key in _MAIN if key in outputs), None)
    elif not isinstance(outputs, Tensor):
        named = next((getattr(outputs, key) for key in _MAIN if hasattr(outputs, key)), None)
        found = outputs[0] if named is None and isinstance(outputs, tuple | list) and outputs else named
    if isinstance(found, Tensor):
        return found
    detail = f" with {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise TypeError(
        f"{source} returns a {type(outputs).__name__}{detail}, in which no main tensor is found; return a tensor, or "
        f"one named {', '.join(_MAIN[:-1])} or {_MAIN[-1]}, or as the first of a tuple"
    )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; on leaving, each module returns to its own mode."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a network's float weights; float32 where it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def check_float(inputs: Sequence[object]) -> None:
    """Raise TypeError for uint8 images."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dtype == torch.uint8:
        raise TypeError("the network wants float images, not uint8; redistill_lib.to_float makes them")


class _AllRead(BaseException):
    """All wanted maps are read. Not an Exception, so that a network's own ``except Exception`` does not catch it."""


def run_and_read(
    model: nn.Module,
    places: Mapping[MapRef, MapRef],
    inputs: Sequence[Tensor],
    role: str = "network",
    stop_early: bool = False,
    take: Callable[[MapRef, Tensor], Tensor] | None = None,
) -> tuple[Any, dict[MapRef, Tensor]]:
    """What the network returns, and a copy of each map on the way: `places` says where each is found (`locate`).

    With `stop_early` the pass ends at the last map, and the network returns None. `take` makes what is kept of each
    map, at once, in place of a copy. Raises RuntimeError where a map is made more than once in the pass or never.
    """
    maps: dict[MapRef, Tensor] = {}
    answer = MapRef("", "output")  # needs no hook, so that a compiled network gives it too
    inside = {ref: place for ref, place in places.items() if place != answer}

    def keep(ref: MapRef, x: Tensor) -> None:
        if stop_early and len(maps) == len(places):  # the network caught what was to stop it
            return
        if ref in maps:
            raise RuntimeError(f"{role} layer {ref.layer!r} runs more than once per pass; choose a layer around it")
        maps[ref] = take(ref, x) if take else x.clone()  # what follows may work in place
        if stop_early and len(maps) == len(places):
            raise _AllRead

    outputs = None
    with reading(model, {place: partial(keep, ref) for ref, place in inside.items()}), suppress(_AllRead):
        outputs = model(*inputs)
    for ref in places.keys() - inside.keys():
        x = output_of(outputs, f"the {role}")
        maps[ref] = take(ref, x) if take else x
    if missing := [str(ref) for ref in places if ref not in maps]:
        raise RuntimeError(f"the {role}'s forward pass never reached {', '.join(missing)}{_compiled(model)}")
    return outputs, maps


def record_maps(model: nn.Module, refs: Sequence[MapRef | tuple[str, Side]], *inputs: Tensor) -> dict[MapRef, Tensor]:
    """The tensors at `refs`, (layer, side), during one forward pass in eval mode; the model is left as it was.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    >>> record_maps(net, [("0", "output")], torch.zeros(1, 1, 9, 9))[("0", "output")].shape
    torch.Size([1, 4, 4, 4])
    """
    wanted = [MapRef(find_layer(model, layer), side) for layer, side in refs]
    with evaluating(model):
        return run_and_read(model, {ref: locate(model, ref) for ref in wanted}, inputs)[1]


def check_followable(model: nn.Module, role: str) -> None:
    """Raise ValueError for a compiled network, whose maps cannot be read."""
    if why := _compiled(model):
        raise ValueError(f"the {role}'s feature maps cannot be read{why}")


def _compiled(model: nn.Module) -> str:
    compiled = (type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None for m in model.modules())
    return "; it is compiled, so give the network from before torch.compile" if any(compiled) else ""
