"""The residual encoded distillation (RED) block, its in-place form for inference, its loss, and inserting blocks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Side = Literal["input", "output"]
_Model = TypeVar("_Model", bound=nn.Module)


class RedBlock(nn.Module):
    """A gate and an encoded residual: ``x · σ(BN(conv1×1 x)) + ReLU6(BN(conv k×k x))``, B×C×H×W → the same shape.

    It stays in the student at inference. Parameter names are those of the authors' checkpoints. Source: arXiv
    2406.03744, section 3 (RED block).

    >>> RedBlock(8)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"a RED block keeps its map's size, so kernel_size must be odd, not {kernel_size}")
        self.channels, self.kernel_size = channels, kernel_size
        self.logit = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid())
        encoder = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.residual_encoder = nn.Sequential(encoder, nn.BatchNorm2d(channels), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.logit(x) + self.residual_encoder(x)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kernel_size={self.kernel_size}"


class InPlaceRedBlock(nn.Module):
    """A trained RED block for inference that overwrites its input map, B×C×H×W, and returns that same tensor.

    It works in slabs of `rows` rows (default: a sixteenth of the map, at least one) with batch norms folded into
    convolutions: beside the map at most ``3·rows + k − 1`` rows are held, for a k×k encoder, where `RedBlock` holds
    two more maps. More rows are faster; on maps up to 32² a CPU takes two to three times as long as `RedBlock`.
    Results are equal up to rounding. Nothing else may read the map afterwards (see `make_in_place`). Exported, its
    loop over slabs is unrolled, to more nodes than most networks have: no edge runtime will take it as it is.

    Raises ValueError for a map that requires a gradient or whose elements share memory, and in `from_block` for a
    block in train mode; RuntimeError in train mode, or when run with gradients on after its weights were unfrozen.

    >>> block = RedBlock(8).eval()
    >>> x = torch.rand(1, 8, 20, 20)
    >>> expected = block(x).detach()
    >>> out = InPlaceRedBlock.from_block(block)(x)
    >>> out is x, torch.allclose(out, expected, atol=1e-5)
    (True, True)
    """

    def __init__(self, gate: nn.Conv2d, encoder: nn.Conv2d, rows: int | None = None):
        super().__init__()
        if rows is not None and rows < 1:
            raise ValueError(f"a slab needs at least one row, so rows cannot be {rows}; leave it out for H / 16")
        self.gate, self.encoder, self.rows = gate, encoder, rows
        self.eval().requires_grad_(False)
        # Pixel by pixel, rows of one sample lie in one piece: neither slab nor weights are copied to be convolved.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_block(cls, block: RedBlock, rows: int | None = None) -> InPlaceRedBlock:
        """The same block, in eval mode, with copies of its weights."""
        if block.training:
            raise ValueError("the in-place form needs running statistics; call eval() on the block first")
        dtype = next(block.parameters()).dtype
        wide = copy.deepcopy(block).float() if dtype.itemsize < 4 else block  # half precision folds in single
        branches: Any = wide.logit, wide.residual_encoder
        gate, encoder = (fuse_conv_bn_eval(conv, norm) for conv, norm, _ in branches)
        encoder.padding = (0, block.kernel_size // 2)  # the slab has the rows above and below
        return cls(gate, encoder, rows).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError("an in-place RED block overwrites its input, which requires a gradient; use RedBlock")
        if torch.is_grad_enabled() and self.gate.weight.requires_grad:
            raise RuntimeError("an in-place RED block passes no gradient; run it under torch.no_grad()")
        if _overlaps(x):
            raise ValueError(
                f"an in-place RED block needs an element of memory for each of its input's, but the strides of this "
                f"{tuple(x.shape)} are {x.stride()}; give it x.contiguous()"
            )
        batch, channels, height, width = x.shape
        edge = self.encoder.kernel_size[0] // 2
        rows = min(self.rows or max(1, height // 16), max(1, height))
        # The slab holds the original rows, from `edge` above to `edge` below those at work. It slides down and keeps
        # the rows that the next one shares with it, as x has been overwritten there.
        shape = batch, channels, rows + 2 * edge, width
        slab = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last).zero_()
        slab.narrow(2, edge, min(edge, height)).copy_(x[:, :, :edge])
        for top in range(0, height, rows):
            n = min(rows, height - top)
            fresh = max(0, min(n, height - top - edge))  # rows below the map are zeros
            slab.narrow(2, 2 * edge, fresh).copy_(x[:, :, top + edge : top + edge + fresh])
            slab.narrow(2, 2 * edge + fresh, n - fresh).zero_()
            x.narrow(2, top, n).copy_(self._result(slab.narrow(2, 0, n + 2 * edge), slab.narrow(2, edge, n)))
            slab.narrow(2, 0, 2 * edge).copy_(slab.narrow(2, n, 2 * edge).clone())  # the two may overlap
        return x

    def _result(self, slab: Tensor, centre: Tensor) -> Tensor:
        gated = self.gate(centre).sigmoid_().mul_(centre)
        return gated.add_(F.relu6(self.encoder(slab), inplace=True))

    def train(self, mode: bool = True) -> InPlaceRedBlock:
        if mode:
            raise RuntimeError("an in-place RED block is for inference only; train the network with plain RED blocks")
        super().train(False)
        return self

    def extra_repr(self) -> str:
        return f"rows={self.rows or 'H / 16'}"


def _overlaps(x: Tensor) -> bool:
    """Whether elements of `x` may share memory, as those of an expanded tensor do."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


#: Distances of two B×N tensors, means over the batch.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine_distance, "mse": F.mse_loss}


def check_distance(label: str, value: object) -> None:
    if value not in list(DISTANCES):
        raise ValueError(f"unknown {label} {value!r}; choose one of {', '.join(DISTANCES)}")


def check_maps(what: str, axes: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Raise ValueError for shapes that are not two maps of equal height × width; `axes` is such as "C×H×W"."""
    if {len(student), len(teacher)} != {axes.count("×") + 1} or student[-2:] != teacher[-2:]:
        why = f"{student} from the student and {teacher} from the teacher"
        raise ValueError(f"{what} needs {axes} maps of equal height × width, not {why}")


def alignment_loss(student: Tensor, teacher: Tensor, distance: str = "cosine") -> Tensor:
    """The distance of two feature maps, B×C×H×W and B×C'×H×W, after averaging each over its channels.

    ``cosine``: mean over the batch of 1 − cos between the flattened maps, from 0 (same pattern) to 2 (opposite).
    ``mse``: mean squared difference.
    Source: arXiv 2406.03744, section 3 (loss on the RED block's output).

    >>> x = torch.rand(2, 3, 4, 4)
    >>> round(abs(alignment_loss(x, 5 * x).item()), 4), alignment_loss(x, x, "mse").item()
    (0.0, 0.0)
    """
    check_distance("distance", distance)
    check_maps("alignment", "B×C×H×W", tuple(student.shape), tuple(teacher.shape))
    s, t = student.float().mean(1).flatten(1), teacher.float().mean(1).flatten(1)
    return DISTANCES[distance](s, t)


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

    >>> net = insert_blocks(nn.Sequential(nn.Conv2d(3, 8, 3)), [("0", "output", RedBlock(8))])
    >>> type(net[0]).__name__, net(torch.zeros(1, 3, 6, 6)).shape
    ('BlockedLayer', torch.Size([1, 8, 4, 4]))
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
        _replace(model, layer, wrapped)
    return model


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
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


class _MapWatch(TorchDispatchMode):
    """Watches one pass with plain blocks for whose input map is not needed once the block has run.

    Any later access to it wants the old values. Memory is known by weak references, which also tell what outlives
    the pass. What leaves PyTorch, such as `.numpy()` of a map, is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: set[StorageWeakRef] = set()  # by an operation of this pass; all else is the caller's or a weight
        self.used: dict[StorageWeakRef, RedBlock] = {}  # input maps of blocks that have run
        self.reasons: dict[RedBlock, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = _storages(args, kwargs)
        for storage in read & self.used.keys():
            self.reasons.setdefault(self.used[storage], f"{func} reads its input map later on")
        out = func(*args, **(kwargs or {}))
        self.made |= _storages(out) - read
        return out

    def before(self, block: RedBlock, args: tuple[Tensor, ...]) -> None:
        if len(args) != 1:
            self.reasons.setdefault(block, "it is called with a keyword")
        elif not _storages(args) <= self.made:
            self.reasons.setdefault(block, "its input map is not made by the network but given to it, or a weight")
        elif _overlaps(args[0]):
            self.reasons.setdefault(block, "elements of its input map share memory")

    def after(self, block: RedBlock, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.used |= dict.fromkeys(_storages(args), block)

    def finish(self, blocks: Iterable[RedBlock]) -> None:
        for storage, block in self.used.items():
            if not storage.expired():
                self.reasons.setdefault(block, "its input map is kept after the pass")
        for block in set(blocks).difference(self.used.values()):
            self.reasons.setdefault(block, "the pass never reached it")


def _storages(*trees: object) -> set[StorageWeakRef]:
    tensors = [leaf for leaf in tree_leaves(trees) if isinstance(leaf, Tensor)]
    return {StorageWeakRef(t.untyped_storage()) for t in tensors if t.layout == torch.strided and not t.is_nested}


def make_in_place(model: _Model, *inputs: Any, **kwargs: Any) -> tuple[_Model, dict[str, str]]:
    """A copy, each of whose RED blocks that may overwrite its input map is an `InPlaceRedBlock`, and why others stay.

    `model(*inputs, **kwargs)` is run once, to see what else reads the maps: other inputs have to be of that size,
    dtype and layout, and take the same path through the network. The copy is in eval mode and frozen. Of each block
    that stays plain the path and the reason are returned. Raises ValueError where no block can work in place.

    >>> net, (first, second) = nn.Sequential(nn.Conv2d(3, 8, 3)), (RedBlock(3), RedBlock(8))
    >>> net = insert_blocks(net, [("0", "input", first), ("0", "output", second)])
    >>> copied, plain = make_in_place(net, torch.zeros(1, 3, 20, 20))
    >>> type(copied[0].after).__name__, plain
    ('InPlaceRedBlock', {'0.before': 'its input map is not made by the network but given to it, or a weight'})
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    blocks = {module: path for path, module in model.named_modules() if isinstance(module, RedBlock)}
    watch = _MapWatch()
    for block in blocks:
        if type(block) is not RedBlock:
            watch.reasons[block] = "it is of a class of its own, whose forward may be another"
        elif block._forward_hooks or block._forward_pre_hooks:
            watch.reasons[block] = "it has hooks, which would be lost"
    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(block.register_forward_pre_hook(watch.before))
            hooks.enter_context(block.register_forward_hook(watch.after))
        with torch.no_grad(), watch:
            outputs = model(*inputs, **kwargs)
        watch.finish(blocks)  # while the outputs are held
        del outputs
    plain = {path: watch.reasons[block] for block, path in blocks.items() if block in watch.reasons}
    if len(plain) == len(blocks):
        why = "; ".join(f"{path}: {reason}" for path, reason in plain.items()) or "there is none"
        raise ValueError(f"no RED block can work in place ({why}); keep the plain form")
    for block in blocks:
        if block not in watch.reasons:
            _replace(model, block, InPlaceRedBlock.from_block(block))
    return model, plain
