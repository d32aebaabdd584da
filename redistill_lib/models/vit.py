"""Vision transformers whose patch is their whole pooling, in the parameter names of the DeiT and timm checkpoints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.plans import StridePlan

IMAGE = 224  # pixels a side, of the published checkpoints


class Size(NamedTuple):
    """Blocks, heads, and channels per head."""

    depth: int
    heads: int
    channels: int = 64


# DeiT's sizes (arXiv 2012.12877, table 1), and two for devices and small images.
SIZES = {
    "pico": Size(6, 2, 32),
    "nano": Size(5, 4, 32),
    "tiny": Size(12, 3),
    "small": Size(12, 6),
    "base": Size(12, 12),
}
#: "vit_tiny" and the like; "deit_tiny" has a distillation token beside the class token.
LAYOUTS = {f"{family}_{size}": SIZES[size] for family in ("vit", "deit") for size in SIZES}


class PatchEmbed(nn.Module):
    """B×in_channels×H×W images → B×channels×h×w patches."""

    def __init__(self, in_channels: int, channels: int, patch: int, image_size: int) -> None:
        super().__init__()
        self.patch_size, self.grid_size = (patch, patch), (image_size // patch, image_size // patch)
        self.proj = nn.Conv2d(in_channels, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        if any(side % patch for side, patch in zip(x.shape[2:], self.patch_size, strict=True)):
            raise ValueError(
                f"images of {x.shape[2]}×{x.shape[3]} cannot be cut into patches of {self.patch_size[0]}; choose a "
                "patch that divides both sides"
            )
        patches: Tensor = self.proj(x)
        return patches


class Attention(nn.Module):
    """Every token looks at all tokens, in several heads."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, B×heads×tokens×channels each."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(*self._split(x))
        out: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor) -> Tensor:
        """How much each token looks at each, B×heads×tokens×tokens: rows sum to 1.

        The pass itself never holds them; this computes them once more from the same input.
        """
        q, k, _ = self._split(x)
        return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)


class Mlp(nn.Module):
    """Two linear layers on each token, four times as wide between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """A ViT or DeiT: B×C×H×W images → B×num_classes logits.

    `arch` is a key of `LAYOUTS`; the plan's one place is the patch, so that larger patches are the harder pooling.
    `width` multiplies the number of heads. `image_size` is that of the learned positions: images of another one are
    taken with positions resized bicubically. The tokens are those of the class, the distillation (`deit_…`) and
    the patches, row by row.

    With a distillation token there are two answers (arXiv 2012.12877, section 4). In training it returns both,
    ``logits`` and ``distillation``, in eval mode their mean. `redistill_lib.models.create_model` makes it from
    checked arguments.
    """

    def __init__(
        self, arch: str, plan: StridePlan, num_classes: int, in_channels: int, width: float, image_size: int = IMAGE
    ) -> None:
        super().__init__()
        self.name, self.plan = f"{arch}-{plan}", plan
        size, distilled = LAYOUTS[arch], arch.startswith("deit")
        heads = max(1, round(size.heads * width))
        channels = heads * size.channels
        self.patch_embed = PatchEmbed(in_channels, channels, plan.stem, image_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, channels)) if distilled else None
        self.prefix = 1 + distilled  # tokens in front of the patches
        patches = self.patch_embed.grid_size[0] * self.patch_embed.grid_size[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, self.prefix + patches, channels))
        self.blocks = nn.Sequential(*(Block(channels, heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, num_classes)
        self.head_dist = nn.Linear(channels, num_classes) if distilled else None
        for tensor in self.parameters(recurse=False):
            nn.init.trunc_normal_(tensor, std=0.02)
        for head in (self.head, self.head_dist):
            if head is not None:
                nn.init.trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                # DeiT's 0.02 suits its widths; with 64 channels such blocks hardly learn.
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        patches = self.patch_embed(x)
        front = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token) if token is not None]
        tokens = torch.cat([*front, patches.flatten(2).transpose(1, 2)], 1)
        tokens = self.norm(self.blocks(tokens + self.positions(patches.shape[2], patches.shape[3])))
        logits: Tensor = self.head(tokens[:, 0])
        if self.head_dist is None:
            return logits
        distillation: Tensor = self.head_dist(tokens[:, 1])
        return {"logits": logits, "distillation": distillation} if self.training else (logits + distillation) / 2

    def positions(self, height: int, width: int) -> Tensor:
        """The positions of all tokens for so many patches, 1×tokens×channels."""
        if (height, width) == tuple(self.patch_embed.grid_size):
            return self.pos_embed
        front, patches = self.pos_embed[:, : self.prefix], self.pos_embed[:, self.prefix :]
        grid = patches.transpose(1, 2).unflatten(2, self.patch_embed.grid_size)
        grid = F.interpolate(grid, (height, width), mode="bicubic", antialias=True)
        return torch.cat([front, grid.flatten(2).transpose(1, 2)], 1)
