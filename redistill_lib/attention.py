"""Where a vision transformer looks: its attention, computed once more for chosen images and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from redistill_lib.checks import check_type, whole
from redistill_lib.data.augment import to_float
from redistill_lib.merging import MergingBlocks
from redistill_lib.models import VisionTransformer
from redistill_lib.network import dtype_of, evaluating, record_maps
from redistill_lib.results import listed, number


@dataclass(frozen=True, repr=False, eq=False)
class AttentionMaps:
    """Where each of N images is looked at, in each of B blocks of a network."""

    images: NDArray[np.uint8]  # N×C×H×W
    blocks: tuple[int, ...]  # their numbers, from 0
    maps: NDArray[np.float32]  # N×B×h×w: the class token's attention to each patch, mean over heads
    reach: NDArray[np.float32]  # N×B×heads: how far patches look, in pixels, mean over patches
    depth: int | None = None  # how many blocks the network has, if known

    @property
    def patch(self) -> int:
        """Pixels a side."""
        return self.images.shape[-1] // self.maps.shape[-1]

    def to_frame(self) -> pd.DataFrame:
        """One row per block and head: its mean reach over images, in pixels."""
        means = self.reach.mean(0)
        rows = [(self.blocks[b], head, float(means[b, head])) for b, head in np.ndindex(means.shape)]
        return pd.DataFrame(rows, columns=["block", "head", "reach"])

    def headline(self) -> str:
        """How far patches look in each block, mean over heads and images."""
        means = zip(self.blocks, self.reach.mean((0, 2)), strict=True)
        told = listed(f"{number(float(mean), 1)} px in block {block}" for block, mean in means)
        return f"Patches look {told} far on average"

    def __repr__(self) -> str:
        return f"AttentionMaps({len(self.images)} images, {self.headline()})"


def read_attention(model: torch.nn.Module, images: Tensor, blocks: Sequence[int] | None = None) -> AttentionMaps:
    """The attention of a built-in vision transformer, `softmax(q·kᵀ / √d)`, in `blocks` (all of them unless given).

    A pass computes attention without ever holding these weights; here they are computed from the tokens that enter
    each block's attention in a pass of `images` (uint8, N×C×H×W). A map is the class token's row without the tokens
    in front, as a grid. The reach is the mean distance between the centres of a patch and those it looks at, weighted
    by how much it does, among patches alone ("mean attention distance", arXiv 2010.11929, appendix D.7). RED blocks
    do not matter; the network is left as it was. Raises ValueError for another network or a block that is not there.

    >>> from redistill_lib.models import create_model
    >>> net = create_model("vit_pico-8", in_channels=1, image_size=16)
    >>> read_attention(net, torch.zeros(3, 1, 16, 16, dtype=torch.uint8), [0, 5]).maps.shape
    (3, 2, 2, 2)
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"attention is read from the built-in vision transformers, not from a {type(model).__name__}; load its "
            "weights into one, such as create_model('deit_tiny-16')"
        )
    if any(isinstance(part, MergingBlocks) for part in model.modules()):
        raise ValueError(
            "tokens of this network are merged, so they have no place in a grid; give the one from before"
        )
    if check_type("images", images, Tensor).ndim != 4 or not len(images):
        raise ValueError(f"images are N×C×H×W, at least one, not {tuple(images.shape)}")
    depth = len(model.blocks)
    chosen = tuple(range(depth)) if blocks is None else tuple(whole("a block", b, 0, depth - 1) for b in blocks)
    like = next(model.parameters())
    inputs = to_float(images.to(like.device)).to(dtype_of(model))
    found = record_maps(model, [(f"blocks.{b}.attn", "input") for b in chosen], inputs)
    patch = model.patch_embed.patch_size[0]
    grid = images.shape[2] // patch, images.shape[3] // patch
    with evaluating(model):
        rows = [model.get_submodule(ref.layer).weights(x).float() for ref, x in found.items()]  # type: ignore[operator]
    weights = torch.stack(rows, 1).cpu()  # N×B×heads×tokens×tokens
    own = weights[..., model.prefix :, model.prefix :]
    share = own / own.sum(-1, keepdim=True).clamp_min(torch.finfo(own.dtype).tiny)  # 0 where all of it goes elsewhere
    looked = (share * patch * _distances(*grid)).sum(-1).mean(-1)
    seen = weights[..., 0, model.prefix :].mean(2).unflatten(2, grid)
    return AttentionMaps(images.cpu().numpy(), chosen, seen.numpy(), looked.numpy(), depth)


def _distances(height: int, width: int) -> Tensor:
    """Between all patches of a grid, in patches."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()
    return torch.cdist(places, places)
