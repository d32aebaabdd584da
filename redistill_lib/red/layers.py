"""Blocks in a network: put in around its layers, found again, and known by the paths it has without them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

Side = Literal["input", "output"]


class BlockedLayer(nn.Module):
    """A layer with a block on its input, its output, or both: what `insert_blocks` leaves in a network."""

    def __init__(self, layer: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.layer = layer
        self.before = before or nn.Identity()
        self.after = after or nn.Identity()
        self.takes_output = after is not None
        self.training = layer.training  # and so are the blocks, while the layer's own parts stay as they are
        self.before.train(layer.training), self.after.train(layer.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Accept the map as a keyword too, under the name that the layer gives it."""
        if not args and (name := first_parameter(self.layer)) in kwargs:
            args = (kwargs.pop(name),)
        return super().__call__(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self._behind(self.layer(self.before(x)))

    def _behind(self, out: Tensor) -> Tensor:
        if self.takes_output and isinstance(out, (tuple, list)):
            raise TypeError("a block stands on a layer that returns several tensors; tap a layer inside it")
        result: Tensor = self.after(out)
        return result

    def __getattr__(self, name: str) -> Any:
        """Attributes of the layer itself, such as its weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name.startswith("__"):  # what Python asks of an object is not the layer's to answer
                raise
            return getattr(self.layer, name)


class BlockedCall(BlockedLayer):
    """A `BlockedLayer` whose layer takes more than one argument, which TorchScript could not compile."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # as another of the layer's arguments may be called x
        first, *more = args or (kwargs.pop(first_parameter(self)),)
        return self._behind(self.layer(self.before(first), *more, **kwargs))


def first_parameter(layer: nn.Module) -> str:
    """The name of the layer's first argument, empty where it can be given by keyword alone."""
    while isinstance(layer, BlockedLayer):
        layer = layer.layer
    first = next(iter(inspect.signature(layer.forward).parameters.values()), None)
    return first.name if first is not None and first.kind is first.POSITIONAL_OR_KEYWORD else ""


def insert_blocks(model: nn.Module, blocks: Iterable[tuple[str, Side, nn.Module]]) -> nn.Module:
    """Put each block at its place, (layer path, side), by wrapping that layer, and return the same model.

    Paths are those of the network without blocks.

    >>> net = insert_blocks(nn.Sequential(nn.Linear(4, 8)), [("0", "output", nn.ReLU())])
    >>> type(net[0]).__name__, net[0].after
    ('BlockedLayer', ReLU())
    """
    sides: dict[str, dict[str, nn.Module]] = {}
    for path, side, block in blocks:
        if not path:
            raise ValueError("a block needs a layer inside the network; it cannot stand on the whole network")
        if side in sides.setdefault(path, {}):
            raise ValueError(f"two blocks on the {side} of {path!r}; one place takes one block")
        sides[path][side] = block
    paths, layers = original_paths(model), dict(model.named_modules())
    layers |= {paths[id(module)]: module for module in reversed(list(model.modules()))}  # with the blocks it has
    for path in sorted(sides, key=lambda p: -p.count(".")):  # inner layers first, while their parents still stand
        layer = layers[path]
        kind = BlockedLayer if len(inspect.signature(layer.forward).parameters) == 1 else BlockedCall
        wrapped = kind(layer, sides[path].get("input"), sides[path].get("output"))
        replace_module(model, layer, wrapped)
    return model


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` everywhere in place of `old`, which may be known under several names."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


def original_paths(model: nn.Module) -> dict[int, str]:
    """id of each module → its path; a layer that carries blocks keeps the path that it has without them."""
    paths: dict[int, str] = {}

    def visit(module: nn.Module, path: str) -> None:
        paths.setdefault(id(module), path)
        for name, child in module.named_children():
            wrapped = isinstance(module, BlockedLayer) and name == "layer"
            visit(child, path if wrapped else f"{path}.{name}".lstrip("."))

    visit(model, "")
    return paths


def inserted_blocks(model: nn.Module) -> list[tuple[str, Side, nn.Module]]:
    """What `insert_blocks` put into a network, in the form that it takes."""
    found: list[tuple[str, Side, nn.Module]] = []
    for layer in (module for module in model.modules() if isinstance(module, BlockedLayer)):
        path = original_paths(model)[id(layer)]
        found += [(path, "input", layer.before), (path, "output", layer.after)]
    return [(path, side, block) for path, side, block in found if not isinstance(block, nn.Identity)]
