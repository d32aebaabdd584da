"""RED blocks for inference: in a form that overwrites its map, or with folded batch norms."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redistill_lib.red.block import RedBlock
from redistill_lib.red.layers import replace_module

_Model = TypeVar("_Model", bound=nn.Module)


_NO_VOLUMES = "works through a map row by row, and takes no volumes"


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

    def __init__(
        self, gate: nn.Module | None, encoder: nn.Module, kernel_size: int, rows: int | None = None, add: bool = True
    ):
        super().__init__()
        if rows is not None and rows < 1:
            raise ValueError(f"a slab needs at least one row, so rows cannot be {rows}; leave it out for H / 16")
        self.gate, self.encoder, self.kernel_size, self.rows = gate, encoder, kernel_size, rows
        self.add = add  # what the gate leaves of the map, or all of it
        self.eval().requires_grad_(False)
        # Pixel by pixel, rows of one sample lie in one piece: neither slab nor weights are copied to be convolved.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_block(cls, block: RedBlock, rows: int | None = None) -> InPlaceRedBlock:
        """The same block, in eval mode, with copies of its weights."""
        if block.axes != 2:
            raise ValueError(f"the in-place form {_NO_VOLUMES}; keep the plain form, or fold it")
        if block.training:
            raise ValueError("the in-place form needs running statistics; call eval() on the block first")
        plain = block.fold()
        encoder: Any = plain.residual_encoder[0]
        first = encoder[0] if isinstance(encoder, nn.Sequential) else encoder
        first.padding = (0, block.kernel_size // 2)  # the slab has the rows above and below
        gate = plain.logit[0] if plain.gate else None
        return cls(gate, encoder, block.kernel_size, rows, block.shortcut)

    @staticmethod
    def held_rows(block: RedBlock, height: int) -> int:
        """How many rows of a map of that height the in-place form of `block` holds beside it."""
        rows, edge = min(max(1, height // 16), max(1, height)), block.kernel_size // 2
        branches = 2 if block.gate or block.encoder == "depthwise" else 1
        return max((1 + branches) * rows, rows + 2 * edge) + 2 * edge

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise ValueError("an in-place RED block overwrites its input, which requires a gradient; use RedBlock")
        if torch.is_grad_enabled() and next(self.parameters()).requires_grad:
            raise RuntimeError("an in-place RED block passes no gradient; run it under torch.no_grad()")
        if _overlaps(x):
            raise ValueError(
                f"an in-place RED block needs an element of memory for each of its input's, but the strides of this "
                f"{tuple(x.shape)} are {x.stride()}; give it x.contiguous()"
            )
        batch, channels, height, width = x.shape
        edge = self.kernel_size // 2
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
        encoded = F.relu6(self.encoder(slab), inplace=True)
        if self.gate is not None:
            return encoded.add_(self.gate(centre).sigmoid_().mul_(centre))
        return encoded.add_(centre) if self.add else encoded

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

    >>> net = nn.Sequential(RedBlock(3), nn.Conv2d(3, 8, 3), RedBlock(8))
    >>> copied, plain = make_in_place(net, torch.zeros(1, 3, 9, 9))
    >>> type(copied[2]).__name__, plain
    ('InPlaceRedBlock', {'0': 'its input map is not made by the network but given to it, or a weight'})
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    blocks = {module: path for path, module in model.named_modules() if isinstance(module, RedBlock)}
    watch = _MapWatch()
    for block in blocks:
        if block.axes != 2:
            watch.reasons[block] = f"the in-place form {_NO_VOLUMES}"
        elif type(block) is not RedBlock:
            watch.reasons[block] = "it is of a class of its own, whose forward may be another"
        elif block._forward_hooks or block._forward_pre_hooks:
            watch.reasons[block] = "it has hooks, which would be lost"
        elif why := block.unfoldable:
            watch.reasons[block] = why
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
            replace_module(model, block, InPlaceRedBlock.from_block(block))
    return model, plain


def fold_blocks(model: _Model) -> _Model:
    """Put the folded form of each RED block (`RedBlock.fold`) into a network, which is then in eval mode and frozen.

    >>> list(fold_blocks(nn.Sequential(nn.Conv2d(3, 8, 3), RedBlock(8))).state_dict())[2:4]
    ['1.logit.0.weight', '1.logit.0.bias']
    """
    model.eval().requires_grad_(False)
    for block in [module for module in model.modules() if type(module) is RedBlock]:
        replace_module(model, block, block.fold())
    return model
