"""Merging the tokens of a vision transformer that are most alike, so that what follows has fewer of them (ToMe)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from redistill_lib.checks import check_type, whole, wholes
from redistill_lib.network import asking, check_followable, evaluating
from redistill_lib.network.fakes import copy_network, tensors_in
from redistill_lib.network.flow import Example, cast_arguments, image_of

_Model = TypeVar("_Model", bound=nn.Module)

_BLOCK = ("norm1", "attn", "norm2", "mlp")
_BESIDE = ("ls1", "ls2", "drop_path", "drop_path1", "drop_path2")  # scales and drops of the two branches
_ATTENTION = ("qkv", "proj")
_WITHIN = ("q_norm", "k_norm", "attn_drop", "norm", "proj_drop")
_WANTED = "merging needs blocks in timm's layout: norm1, attn (qkv, proj, num_heads or heads), norm2 and mlp"


def merge_tokens(model: _Model, per_block: int | Sequence[int], *, example: Example) -> _Model:
    """A copy of a vision transformer whose blocks merge the tokens that are most alike, between attention and MLP.

    Each block takes every second token and the one among the others whose key is nearest (cosine, keys averaged over
    heads). The nearest pairs, as many as `per_block` says, become one token each: the mean, weighted by how many
    patches are in it already. Later attention adds the logarithm of that size to its scores, so that a merged token
    is looked at as often as its parts would be. Class and distillation tokens are never merged.

    `per_block` is one number for all blocks or a sequence of one for each, such as ``(98, *[0] * 11)``, which merges
    all it can in the first. A block can merge half of its patches. One number for all is clipped to that, as in the
    paper; in a sequence more is an error for the images of `example`, and clipped for smaller ones. `example` is a
    float image B×C×H×W, or the network's inputs; only its shape matters.

    The copy has the original's weights under their names. It trains, copies, pickles and exports, and the number of
    tokens depends on shapes alone. Blocks before the first that merges are the original's, so with zeros the outputs
    are the same bits. It is for networks that answer from the tokens in front of the patches.

    Source: ToMe (arXiv 2210.09461, section 3), whose order of tokens this keeps. Raises ValueError for another
    network, for one that averages its patches, and for a number that is not possible.

    >>> from redistill_lib.memory import profile_memory
    >>> from redistill_lib.models import create_model
    >>> net, x = create_model("vit_pico-8", image_size=64), torch.zeros(1, 3, 64, 64)
    >>> merged = merge_tokens(net, 8, example=x)
    >>> round(profile_memory(merged, x).flops / profile_memory(net, x).flops, 2)
    0.62
    """
    check_type("model", model, nn.Module)
    check_followable(model, "network")
    if any(isinstance(part, MergingBlocks) for part in model.modules()):
        raise ValueError("tokens of this network are merged already; give the network from before")
    image_of(example)
    merged = copy_network(model)
    path, blocks = _find_blocks(merged)
    prefix = _tokens_in_front(merged, path)
    tokens = _tokens_of(merged, path, prefix, example)
    counts = _counts(per_block, len(blocks), tokens - prefix)
    first = next((k for k, count in enumerate(counts) if count), len(blocks))
    parts = list(blocks._modules.items())
    for k in range(first, len(blocks)):
        name, block = parts[k]
        parts[k] = name, _merging(f"{path}.{name}", block, counts[k], prefix)
    if first < len(blocks):
        merging = MergingBlocks(OrderedDict(parts))
        merging.training = blocks.training
        _replace(merged, path, merging)
    return merged


# ------------------------------------------------------------------------------------------------- which, and how


class Pairs(NamedTuple):
    """What is merged in each image. Behind the protected tokens, those at even places are offered to those at odd."""

    kept: Tensor  # B×…, numbers among the even ones: those that stay, in order
    gone: Tensor  # B×r, among the even ones: those that are merged, the most alike first
    into: Tensor  # B×r, among the odd ones: with which


def match_tokens(keys: Tensor, count: int, prefix: int) -> Pairs:
    """The `count` pairs whose keys (B×tokens×channels) are nearest, the first `prefix` tokens left out.

    >>> keys = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 1.0]]])
    >>> match_tokens(keys, 1, prefix=1)  # the patches are 0 to 3: 1 and 3 are even places, and 1 is nearest to 2
    Pairs(kept=tensor([[1]]), gone=tensor([[0]]), into=tensor([[1]]))
    """
    even, odd = _halves(F.normalize(keys.detach(), dim=2), prefix)
    nearness, into = (even @ odd.transpose(1, 2)).max(2)
    gone = nearness.topk(count, 1).indices
    places = torch.arange(nearness.shape[1], 0, -1, device=keys.device).expand_as(nearness)
    # What is left, in its order: earlier places have higher numbers. Runtimes for devices lack a stable sort.
    kept = places.scatter(1, gone, 0).topk(nearness.shape[1] - count, 1).indices
    return Pairs(kept, gone, into.gather(1, gone))


def merge_pairs(x: Tensor, sizes: Tensor | None, pairs: Pairs, prefix: int) -> tuple[Tensor, Tensor]:
    """Tokens B×T×C and their sizes B×T×1 (None: all 1) with pairs merged: protected, kept, and all at odd places.

    >>> tokens = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [5.0]]])
    >>> x, sizes = merge_pairs(tokens, None, Pairs(*torch.tensor([[[1]], [[0]], [[1]]])), prefix=1)
    >>> x.flatten().tolist(), sizes.flatten().tolist()  # 2 and 3 are one now
    ([9.0, 5.0, 1.0, 2.5], [1.0, 1.0, 1.0, 2.0])
    """
    sizes = x.new_ones(*x.shape[:2], 1) if sizes is None else sizes
    (even, odd), (even_sizes, odd_sizes) = _halves(x, prefix), _halves(sizes, prefix)
    weights = _taken(even_sizes, pairs.gone)
    total = odd_sizes.scatter_add(1, pairs.into[..., None], weights)
    into = pairs.into[..., None].expand(-1, -1, x.shape[2])
    odd = (odd * odd_sizes).scatter_add(1, into, _taken(even, pairs.gone) * weights) / total
    tokens = torch.cat([x[:, :prefix], _taken(even, pairs.kept), odd], 1)
    return tokens, torch.cat([sizes[:, :prefix], _taken(even_sizes, pairs.kept), total], 1)


def _halves(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The tokens at even places and those at odd ones, without the protected."""
    return x[:, prefix + prefix % 2 :: 2], x[:, prefix + 1 - prefix % 2 :: 2]


def _taken(x: Tensor, numbers: Tensor) -> Tensor:
    return x.gather(1, numbers[..., None].expand(-1, -1, x.shape[2]))


# ------------------------------------------------------------------------------------------------------- the layers


class MergingBlocks(nn.Sequential):
    """The blocks one after the other, the sizes of the tokens handed on from the first that merges."""

    def forward(self, x: Tensor) -> Tensor:
        sizes: Tensor | None = None
        for block in self:
            if isinstance(block, MergingBlock):
                x, sizes = block(x, sizes)
            else:
                x = block(x)
        return x


class MergingBlock(nn.Module):
    """The parts of a transformer's block, merging `merges` pairs of tokens between attention and MLP."""

    norm1: nn.Module
    attn: nn.Module
    norm2: nn.Module
    mlp: nn.Module

    def __init__(self, block: nn.Module, merges: int, prefix: int) -> None:
        super().__init__()
        self.merges, self.prefix, self.training = merges, prefix, block.training
        for name, part in block._modules.items():
            self.add_module(name, MergingAttention(part) if name == "attn" and part is not None else part)

    def forward(self, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        count = min(self.merges, (x.shape[1] - self.prefix) // 2)
        seen, pairs = self.attn(self.norm1(x), sizes, count, self.prefix)
        x = x + _through(self, ("ls1", "drop_path1", "drop_path"), seen)
        del seen  # or it would be held until the end
        if pairs is not None:
            x, sizes = merge_pairs(x, sizes, pairs, self.prefix)
        return x + _through(self, ("ls2", "drop_path2", "drop_path"), self.mlp(self.norm2(x))), sizes

    def extra_repr(self) -> str:
        return f"merges={self.merges}"


class MergingAttention(nn.Module):
    """Attention to tokens by their sizes, which also says what to merge."""

    qkv: nn.Module

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.heads, self.training = _heads(attention), attention.training
        for name, part in attention._modules.items():
            self.add_module(name, part)

    def forward(self, x: Tensor, sizes: Tensor | None, count: int, prefix: int) -> tuple[Tensor, Pairs | None]:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = _through(self, ("q_norm",), q), _through(self, ("k_norm",), k)
        # Before the attention: beside its maps only numbers of tokens are held then, not their keys.
        pairs = match_tokens(k.mean(1), count, prefix) if count else None
        more = None if sizes is None else sizes.log().to(q.dtype).transpose(1, 2).unsqueeze(1)
        dropout = getattr(self._modules.get("attn_drop"), "p", 0.0) if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, more, dropout).transpose(1, 2).flatten(2)
        return _through(self, ("norm", "proj", "proj_drop"), seen), pairs


def _through(module: nn.Module, names: Sequence[str], x: Tensor) -> Tensor:
    """Through those of a module's parts that there are."""
    for name in names:
        part = module._modules.get(name)
        x = x if part is None else part(x)
    return x


def _heads(attention: nn.Module) -> Any:
    return getattr(attention, "num_heads", getattr(attention, "heads", None))


# ------------------------------------------------------------------------------------------------------- the network


def _find_blocks(model: nn.Module) -> tuple[str, nn.Sequential]:
    """The one sequence of blocks, and where it is."""
    having = sorted(
        {path.rpartition(".")[0] for path, part in model.named_modules() if "attn" in part._modules} - {""}
    )
    kinds = {path: type(model.get_submodule(path)) for path in having}
    found = [path for path, kind in kinds.items() if kind.forward is nn.Sequential.forward]
    if len(found) == 1:
        blocks: Any = model.get_submodule(found[0])
        return found[0], blocks
    if found:
        raise ValueError(
            f"tokens go through {len(found)} sequences of blocks ({', '.join(found)}), between which they are a map, "
            "which merged ones are not; give a network with one"
        )
    if having:
        raise ValueError(
            f"{having[0]} is a {kinds[having[0]].__name__}, whose blocks are called one by one, so that the sizes of "
            f"tokens have no way from one to the next; {_SEQUENCE}"
        )
    raise ValueError(
        f"{type(model).__name__} has no sequence of blocks with attn, and {_WANTED}; convolutional networks fit into "
        "less memory by derive_student or stream_rows"
    )


_SEQUENCE = "make them an nn.Sequential that the forward calls as a whole"


def _tokens_in_front(model: nn.Module, path: str) -> int:
    """How many tokens stand in front of the patches: as the network says, or those that it has."""
    owner: Any = model.get_submodule(path.rpartition(".")[0])
    for name in ("prefix", "num_prefix_tokens"):
        if isinstance(said := getattr(owner, name, None), int):
            return said
    tokens = (getattr(owner, name, None) for name in ("cls_token", "dist_token", "reg_token", "register_tokens"))
    return sum(token.shape[-2] for token in tokens if isinstance(token, Tensor))


class _Probe(nn.Sequential):
    """In the place of the blocks: notes what they would get, and hands it on with patches that are no numbers."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.shape = tuple(x.shape)
        if x.ndim != 3:
            return x
        return torch.cat([x[:, : self.prefix], torch.full_like(x[:, self.prefix :], torch.nan)], 1)

    def __iter__(self) -> Any:
        raise ValueError(
            f"the forward calls the blocks one by one, so that the sizes of tokens have no way on; {_SEQUENCE}"
        )


def _tokens_of(model: nn.Module, path: str, prefix: int, example: Example) -> int:
    """How many tokens enter the blocks. Raises ValueError where what follows them reads the patches."""
    blocks, probe = model.get_submodule(path), _Probe(prefix)
    _replace(model, path, probe)
    try:
        rest = copy_network(model)
    finally:
        _replace(model, path, blocks)
    held = [*rest.parameters(), *rest.buffers()]
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    if device.type == "meta":
        device = torch.device("cpu")
        rest.to_empty(device=device)
        with torch.no_grad():
            for tensor in (*rest.parameters(), *rest.buffers()):
                tensor.zero_()

    def real(value: Tensor) -> Tensor:
        return torch.zeros_like(value, device=device) if value.is_meta else value.to(device)

    args, kwargs = tree_map_only(Tensor, real, cast_arguments(rest, example))
    probe = rest.get_submodule(path)  # type: ignore[assignment]
    with evaluating(rest), asking((*args, *kwargs.values())):
        outputs = rest(*args, **kwargs)
    if len(probe.shape) != 3:
        got = f"maps of {'×'.join(map(str, probe.shape))}" if probe.shape else "nothing in a pass"
        raise ValueError(f"{path} gets {got}, where merging needs tokens B×T×C; {_SEQUENCE}")
    if any(output.isnan().any() for output in tensors_in(outputs)):
        raise ValueError(
            f"what follows {path} reads the patches, such as for their mean, in which a merged token would count as "
            "one; give a network that answers from a class token (timm: global_pool='token')"
        )
    return probe.shape[1]


def _counts(per_block: int | Sequence[int], depth: int, patches: int) -> list[int]:
    """How many pairs each block merges, checked for so many patches."""
    if not isinstance(per_block, Sequence) or isinstance(per_block, str):
        count = whole("per_block", per_block, 0)
        if count and patches < 2:
            raise ValueError(f"there is nothing to merge among {patches} patches; give an example with more")
        return [count] * depth
    counts = list(wholes("per_block", per_block, 0))
    if len(counts) != depth:
        raise ValueError(f"per_block has {len(counts)} numbers for {depth} blocks; give one for each, or one for all")
    for block, count in enumerate(counts):
        if count > patches // 2:
            raise ValueError(
                f"per_block[{block}]={count} is more than half of the {patches} patches that are left there; give at "
                f"most {patches // 2}"
            )
        patches -= count
    return counts


def _merging(path: str, block: nn.Module | None, merges: int, prefix: int) -> MergingBlock:
    """A block that merges, or a ValueError with what it lacks, or has too much."""
    if block is None or (lacks := [name for name in _BLOCK if block._modules.get(name) is None]):
        raise ValueError(f"{path} ({type(block).__name__}) has no {'' if block is None else lacks[0]}; {_WANTED}")
    attention = block.attn
    assert isinstance(attention, nn.Module)
    for place, part, known in ((path, block, _BLOCK + _BESIDE), (f"{path}.attn", attention, _ATTENTION + _WITHIN)):
        if missing := [name for name in known if name in _ATTENTION and part._modules.get(name) is None]:
            raise ValueError(f"{place} ({type(part).__name__}) has no {missing[0]}; {_WANTED}")
        own = [name for name, tensor in (*part._parameters.items(), *part._buffers.items()) if tensor is not None]
        own += [n for n, m in part._modules.items() if n not in known and not isinstance(m, nn.Identity | None)]
        if own:
            raise ValueError(f"{place} ({type(part).__name__}) has {own[0]}, which merging does not know; {_WANTED}")
        if part._forward_hooks or part._forward_pre_hooks:
            raise ValueError(f"{place} has hooks, which would be lost; remove them")
    if type(_heads(attention)) is not int:
        raise ValueError(f"{path}.attn ({type(attention).__name__}) has no num_heads or heads; {_WANTED}")
    _check_function(path, block, prefix)
    return MergingBlock(block, merges, prefix)


def _check_function(path: str, block: nn.Module, prefix: int) -> None:
    """Raise ValueError where a block computes something else than its parts, as `MergingBlock` calls them, would.

    Tried on a copy with weights that are noise, in double precision: a scale of nearly 0 would hide what it scales.
    """
    why, twin = "", copy_network(block).to_empty(device="cpu").double().eval()
    noise = torch.Generator().manual_seed(0)
    tensors = [t for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()]
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(torch.randn(tensor.shape, generator=noise).abs() / max(1, tensor.shape[-1:].numel()) ** 0.5)
        x = torch.randn(2, prefix + 5, twin.attn.qkv.in_features, generator=noise).double()  # type: ignore
        try:
            mine = MergingBlock(twin, 0, prefix)
            if not torch.allclose(twin(x), mine(x, None)[0], rtol=1e-9, atol=1e-9):
                why = "computes something else than x + attn(norm1(x)), then x + mlp(norm2(x))"
            elif not all(
                torch.allclose(part(x)[:, :3], part(x[:, :3])) for part in (mine.norm1, mine.norm2, mine.mlp)
            ):
                why = "mixes tokens in its norms or its mlp"
        except Exception as error:  # a block of the user's can raise anything
            why = f"does not take tokens alone ({str(error).strip().partition(chr(10))[0]})"
    if why:
        raise ValueError(f"{path} ({type(block).__name__}) {why}; {_WANTED}")


def _replace(model: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)
