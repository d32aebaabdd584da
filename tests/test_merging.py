"""Merged tokens: which, into what, what stays the same and what gets less."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.attention import read_attention
from redistill_lib.export.formats import FORMATS
from redistill_lib.merging import MergingBlock, MergingBlocks, Pairs, match_tokens, merge_pairs

IMAGES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def noisy(name: str = "vit_pico-8", **options: Any) -> nn.Module:
    """In double precision, every tensor random, norms and tokens included."""
    torch.manual_seed(0)
    model = rd.create_model(name, **{"in_channels": 1, "image_size": 64, **options}).double().eval()
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.3)
    return model


# ------------------------------------------------------------------------------------------------------- by hand


def test_of_four_tokens_two_are_the_same() -> None:
    """Places 0 and 2 are offered to 1 and 3; the tokens at 2 and 3 have one key."""
    keys = torch.tensor([[[3.0, 1.0], [0.0, 1.0], [2.0, 2.0], [2.0, 2.0]]])
    pairs = match_tokens(keys, 1, prefix=0)
    assert [x.tolist() for x in pairs] == [[[0]], [[1]], [[1]]]
    x, sizes = merge_pairs(torch.tensor([[[1.0], [2.0], [4.0], [4.0]]]), None, pairs, prefix=0)
    assert x.flatten().tolist() == [1, 2, 4] and sizes.flatten().tolist() == [1, 1, 2]


def test_keys_are_compared_by_their_direction() -> None:
    keys = torch.tensor([[[1.0, 0.0], [0.1, 0.0], [0.0, 0.0], [9.0, 9.0]]])
    pairs = match_tokens(keys, 1, prefix=0)
    assert (pairs.gone.tolist(), pairs.into.tolist()) == ([[0]], [[0]])  # 0 to 1, however short; 2 has no direction


def test_those_that_stay_keep_their_order() -> None:
    """Of places 0, 2, 4 and 6 the keys of 0 and 4 are near that of 3, those of 2 and 6 are far from all."""
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-3.0, 1.0], [2.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, -1.0]]])
    pairs = match_tokens(keys, 2, prefix=0)
    assert [x.tolist() for x in pairs] == [[[1, 3]], [[0, 2]], [[1, 1]]]


def test_means_are_weighted_by_sizes() -> None:
    """(3·1 + 1·5) / 6; where several go into one, (2·1 + 6·2 + 8·1) / 4 = 5.5."""
    none = torch.zeros(1, 0, dtype=torch.int64)
    pairs = Pairs(none, torch.tensor([[0]]), torch.tensor([[0]]))
    x, sizes = merge_pairs(torch.tensor([[[3.0], [1.0]]]), torch.tensor([[[1.0], [5.0]]]), pairs, prefix=0)
    assert x.item() == pytest.approx(8 / 6) and sizes.item() == 6
    x, sizes = (
        torch.tensor([[[7.0], [8.0], [2.0], [9.0], [6.0]]]),
        torch.tensor([[[1.0], [1.0], [1.0], [3.0], [2.0]]]),
    )
    pairs = Pairs(none, torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))  # 2 and 6 go to 8, and 9 is left alone
    x, sizes = merge_pairs(x, sizes, pairs, prefix=1)
    assert x.flatten().tolist() == [7, 5.5, 9] and sizes.flatten().tolist() == [1, 4, 3]


def plain(model: Any, image: Tensor, counts: Sequence[int]) -> Tensor:
    """The tokens of one image behind the last block, and how many patches are in each: in loops, nothing shared."""
    tokens = model.patch_embed(image[None]).flatten(2).transpose(1, 2)[0]
    front = [t[0] for t in (model.cls_token, model.dist_token) if t is not None]
    tokens, prefix = torch.cat([*front, tokens]) + model.pos_embed[0], len(front)
    sizes = [1.0] * len(tokens)
    for block, count in zip(model.blocks, counts, strict=True):
        heads = block.attn.heads
        q, k, v = (part.chunk(heads, 1) for part in block.attn.qkv(block.norm1(tokens)).chunk(3, 1))
        seen = []
        for a, b, c in zip(q, k, v, strict=True):
            scores = (a @ b.T / math.sqrt(a.shape[1])).exp() * torch.tensor(sizes).double()
            seen.append(scores / scores.sum(1, keepdim=True) @ c)
        tokens = tokens + block.attn.proj(torch.cat(seen, 1))
        keys = sum(k) / heads
        even = [i for i in range(prefix, len(tokens)) if i % 2 == 0]
        odd = [i for i in range(prefix, len(tokens)) if i % 2 == 1]
        nearest = {i: max((F.cosine_similarity(keys[i], keys[j], dim=0).item(), j) for j in odd) for i in even}
        gone = sorted(even, key=lambda i: -nearest[i][0])[:count]
        groups = [[i] for i in range(prefix)] + [[i] for i in even if i not in gone]
        groups += [[j, *(i for i in gone if nearest[i][1] == j)] for j in odd]
        groups = groups if count else [[i] for i in range(len(tokens))]
        means = [sum(sizes[i] * tokens[i] for i in group) / sum(sizes[i] for i in group) for group in groups]
        tokens, sizes = torch.stack(means), [sum(sizes[i] for i in group) for group in groups]
        tokens = tokens + block.mlp(block.norm2(tokens))
    return model.norm(tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_pico-8", "deit_pico-8"])
def test_a_plain_derivation(name: str) -> None:
    model, counts = noisy(name, image_size=40), (0, 7, 3, 0, 4, 2)
    images = IMAGES[:, :, :40, :40].double()
    merged = rd.merge_tokens(model, counts, example=images)
    assert merged(images).shape == (2, 10)
    for image, logits in zip(images, merged(images), strict=True):
        tokens = plain(model, image, counts)
        assert len(tokens) == 25 + model.prefix - 16
        expected = model.head(tokens[0])
        if model.head_dist is not None:
            expected = (expected + model.head_dist(tokens[1])) / 2
        torch.testing.assert_close(logits, expected)


# ------------------------------------------------------------------------------------------------ what stays the same


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_without_merging_the_outputs_are_the_same_bits(training: bool) -> None:
    model = rd.create_model("deit_pico-8", in_channels=1, image_size=64).train(training)
    for nothing in (0, [0] * 6):
        merged = rd.merge_tokens(model, nothing, example=IMAGES)
        assert merged is not model
        for mine, other in zip(outputs(merged), outputs(model), strict=True):
            assert torch.equal(mine, other)


def outputs(model: nn.Module) -> list[Tensor]:
    found = model(IMAGES)
    return list(found.values()) if isinstance(found, dict) else [found]


@torch.no_grad()
def test_blocks_before_the_first_that_merges_are_the_original_ones() -> None:
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=64)
    merged: Any = rd.merge_tokens(model, (0, 0, 3, 0, 0, 1), example=IMAGES)
    assert [isinstance(block, MergingBlock) for block in merged.blocks] == [False, False, True, True, True, True]
    assert not any(isinstance(part, MergingBlock) for part in model.modules())
    assert "merges=3" in repr(merged) and type(merged) is type(model)


@torch.no_grad()
def test_equal_tokens_can_be_merged_without_changing_the_answer() -> None:
    """Each patch stands beside its twin. Only proportional attention counts both: their half alone answers else."""
    half = torch.rand(2, 1, 8, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()  # 8 rows, 4 columns

    def as_image(patches: Tensor) -> Tensor:
        return patches.permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)

    model: Any = noisy()
    model.pos_embed.zero_()
    images = as_image(half.repeat_interleave(2, 3))
    merged = rd.merge_tokens(model, (32, 0, 0, 0, 0, 0), example=images)
    assert token_counts(merged, images) == [33] * 6
    torch.testing.assert_close(merged(images), model(images), rtol=1e-10, atol=1e-10)
    assert (model(as_image(half)) - model(images)).abs().max() > 1e-3
    twice = as_image(half[:, :, :, :1].expand(-1, -1, -1, 8, -1, -1))  # of each row 8 alike
    often = rd.merge_tokens(model, (32, 16, 0, 8, 0, 0), example=images)
    assert token_counts(often, twice) == [33, 17, 17, 9, 9, 9]
    torch.testing.assert_close(often(twice), model(twice), rtol=1e-10, atol=1e-10)


def token_counts(model: nn.Module, images: Tensor) -> list[int]:
    refs = [(f"blocks.{k}", "output") for k in range(6)]
    return [x.shape[1] for x in rd.record_maps(model, refs, images).values()]


def test_how_many_tokens_each_block_hands_on() -> None:
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=64)
    small = IMAGES[:, :, :16, :16]
    for given, counts in {
        5: [60, 55, 50, 45, 40, 35],
        20: [45, 25, 13, 7, 4, 3],  # of 24 patches 12, then 6, 3, 1: never more than half
        (32, 0, 0, 16, 8, 4): [33, 33, 33, 17, 9, 5],
    }.items():
        merged = rd.merge_tokens(model, given, example=IMAGES)
        assert token_counts(merged, IMAGES) == counts
    assert token_counts(merged, small) == [3, 3, 3, 2, 2, 2]  # of 4 patches 2, then 1


@torch.no_grad()
def test_images_do_not_depend_on_their_batch_and_passes_repeat() -> None:
    merged = rd.merge_tokens(noisy(), 7, example=IMAGES)
    together = merged(IMAGES.double())
    assert torch.equal(merged(IMAGES.double()), together)
    torch.testing.assert_close(merged(IMAGES[1:].double()), together[1:])
    single = merged.float()
    assert torch.equal(single(IMAGES), single(IMAGES))
    assert single.bfloat16()(IMAGES.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_weights_go_both_ways_and_copies_are_copies() -> None:
    model = rd.create_model("deit_pico-8", in_channels=1, image_size=64).eval()
    merged = rd.merge_tokens(model, 6, example=IMAGES)
    assert list(merged.state_dict()) == list(model.state_dict())
    other = rd.create_model("deit_pico-8", in_channels=1, image_size=64).eval()
    expected = rd.merge_tokens(other, 6, example=IMAGES)(IMAGES)
    merged.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(merged(IMAGES), expected) and not torch.equal(model(IMAGES), other(IMAGES))
    model.load_state_dict(merged.state_dict(), strict=True)
    assert torch.equal(model(IMAGES), other(IMAGES))
    for twin in (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged))):
        assert torch.equal(twin(IMAGES), expected)
        twin.head.weight.zero_()
        assert not torch.equal(twin(IMAGES), expected) and torch.equal(merged(IMAGES), expected)


def test_it_trains() -> None:
    model = rd.create_model("deit_pico-8", in_channels=1, image_size=64)
    merged = rd.merge_tokens(model, 9, example=IMAGES).train()
    both = merged(IMAGES)
    (F.cross_entropy(both["logits"], torch.tensor([1, 2])) + both["distillation"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in merged.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_it_exports() -> None:
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=64).eval()
    merged = rd.merge_tokens(model, (20, 0, 0, 9, 0, 1), example=IMAGES)
    exported = torch.export.export(merged, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), merged(IMAGES))


# ------------------------------------------------------------------------------------------------------ what it needs


def multiply_adds(tokens: int, counts: Sequence[int], channels: int = 64, heads: int = 2) -> int:
    """Of the blocks: products with weights, of queries and keys, of those and values, and of keys of both halves."""
    total = 0
    for count in counts:
        total += 4 * tokens * channels**2 + 2 * tokens**2 * channels
        even = (tokens - 1) // 2  # the class token is at place 0
        total += even * (tokens - 1 - even) * channels // heads * bool(count)
        tokens -= count
        total += 8 * tokens * channels**2
    return total


@pytest.mark.parametrize("counts", [(0,) * 6, (8,) * 6, (32, 0, 0, 0, 0, 0), (0, 5, 0, 0, 29, 0)])
def test_peaks_and_multiply_adds(counts: tuple[int, ...]) -> None:
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=64)
    merged = rd.merge_tokens(model, counts, example=IMAGES[:1])
    fused = rd.profile_memory(merged, IMAGES[:1])
    outside = 64 * 64 * 64 + 64 * 10  # the patches and the head
    assert fused.flops == 2 * (multiply_adds(65, counts) + outside)
    assert not fused.uncounted and not fused.unfused and fused.source == "fake"
    # What the first block's MLP needs, sizes included, and what its attention does: its shortcut, queries, keys,
    # values and its result, and which tokens are merged, three numbers of 8 bytes for two tokens.
    token = 4 * 64
    mlp, attention = (65 - counts[0]) * (6 * token + 4 * bool(counts[0])), 65 * 5 * token
    attention += 8 * (32 + counts[0]) * bool(counts[0])
    if counts[0] or not any(counts):
        assert fused.peak_bytes == max(mlp, attention)
    eager = rd.profile_memory(merged, IMAGES, convention="eager")
    assert eager.peak_bytes == rd.measure_memory(merged, IMAGES).peak_bytes


def test_a_network_without_contents_is_merged_too() -> None:
    with torch.device("meta"):
        model = rd.create_model("vit_tiny-16", num_classes=1000)
    x = torch.zeros(1, 3, 224, 224, device="meta")
    merged = rd.merge_tokens(model, (98, *[0] * 11), example=x)
    assert rd.profile_memory(merged, x).peak_op.module == "blocks.0.attn"
    assert next(merged.parameters()).is_meta


# ------------------------------------------------------------------------------------------------- networks of others


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """timm's without its fused operator."""

    def __init__(self, dim: int, heads: int, drop: float) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.q_norm, self.k_norm = nn.Linear(dim, 3 * dim), *(nn.LayerNorm(dim // heads) for _ in "qk")
        self.attn_drop, self.norm, self.proj, self.proj_drop = (
            nn.Dropout(drop),
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.Dropout(drop),
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        images, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = self.attn_drop((self.q_norm(q) * self.scale @ self.k_norm(k).transpose(-2, -1)).softmax(-1))
        return self.proj_drop(self.proj(self.norm((attn @ v).transpose(1, 2).reshape(images, tokens, dim))))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim), Attention(dim, heads, drop), Scale(dim)
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Dropout(drop)
        self.norm2, self.ls2 = nn.LayerNorm(dim), Scale(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class Timm(nn.Module):
    """Tokens in front with positions of their own, and a pool."""

    def __init__(self, block: type[nn.Module] = Block, kind: str = "", drop: float = 0.0) -> None:
        super().__init__()
        self.kind, self.num_prefix_tokens = kind, 3
        self.patch_embed = nn.Conv2d(1, 32, 8, 8)
        self.cls_token, self.reg_token = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 2, 32))
        blocks = [block(32, 4, drop) for _ in range(6)]
        self.blocks: Any = nn.ModuleList(blocks) if kind == "list" else nn.Sequential(*blocks)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), self.reg_token.expand(len(x), -1, -1), x], 1)
        if self.kind in ("list", "loop"):
            for block in self.blocks:
                x = block(x)
        elif self.kind != "unused":
            x = self.blocks(x if self.kind != "map" else x[:, 3:].unflatten(1, (8, 8)))
        return self.head(x[:, 3:].mean(1) if self.kind == "mean" else x[:, 0])


def random_timm(block: type[nn.Module] = Block, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Timm(block, **options).eval()
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.3)
    return model


@torch.no_grad()
def test_networks_in_the_layout_of_timm() -> None:
    model = random_timm(drop=0.5)
    images = IMAGES[:, :, :, :8].repeat(1, 1, 1, 8)  # eight equal patches in each row, and no positions
    merged = rd.merge_tokens(model, (32, 16, 8, 0, 0, 0), example=images)
    assert token_counts(merged, images) == [35, 19, 11, 11, 11, 11]
    torch.testing.assert_close(merged(images), model(images))
    assert torch.equal(rd.merge_tokens(model, 0, example=images)(images), model(images))
    assert list(merged.state_dict()) == list(model.state_dict())
    assert not torch.equal(merged.train()(images), merged(images))  # its dropouts are at work
    eager = rd.profile_memory(merged, images, convention="eager").peak_bytes
    assert eager == rd.measure_memory(merged, images).peak_bytes
    del model.num_prefix_tokens  # then it is as many as it has
    assert token_counts(rd.merge_tokens(model, 32, example=images), images)[0] == 35


class PostNorm(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class Faint(Block):
    """Another branch that its scale of 1e-5 all but hides."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.ls1(self.attn(self.norm1(x))) + self.ls2(self.mlp(self.norm2(x)))


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True)


def changed(**parts: Any) -> type[nn.Module]:
    class Changed(Block):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for name, part in parts.items():
                owner, _, last = name.rpartition("__")
                setattr(getattr(self, owner) if owner else self, last, part)

    return Changed


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (rd.create_model("resnet18", in_channels=1), r"ResNet has no sequence of blocks with attn.* stream_rows"),
        (random_timm(kind="list"), "blocks is a ModuleList, .* make them an nn.Sequential that the forward calls"),
        (random_timm(kind="loop"), "the forward calls the blocks one by one, .* make them an nn.Sequential"),
        (random_timm(kind="unused"), "blocks gets nothing in a pass, where merging needs tokens B×T×C"),
        (random_timm(kind="map"), "blocks gets maps of 2×8×8×32, where merging needs tokens"),
        (random_timm(kind="mean"), "what follows blocks reads the patches, .* answers from a class token"),
        (nn.ModuleList([random_timm(), random_timm()]), r"2 sequences of blocks \(0.blocks, 1.blocks\)"),
        (random_timm(PostNorm), r"blocks.0 \(PostNorm\) computes something else than x \+ attn"),
        (random_timm(Faint), r"blocks.0 \(Faint\) computes something else"),
        (random_timm(changed(mlp=Mixing())), "blocks.0 .* mixes tokens in its norms or its mlp"),
        (random_timm(changed(norm2=None)), "blocks.0 .* has no norm2; merging needs blocks in timm's layout"),
        (random_timm(changed(attn__proj=None)), r"blocks.0.attn \(Attention\) has no proj; merging needs"),
        (random_timm(changed(attn__num_heads=None)), r"blocks.0.attn \(Attention\) has no num_heads or heads"),
        (random_timm(changed(attn__rope=nn.Linear(1, 1))), "blocks.0.attn .* has rope, which merging does not know"),
        (random_timm(changed(attn__bias=nn.Parameter(torch.zeros(2)))), "blocks.0.attn .* has bias, which merging"),
        (random_timm(changed(gamma=nn.Parameter(torch.zeros(2)))), "blocks.0 .* has gamma, which merging"),
        (random_timm(changed(attn__scale=1.0)), "blocks.0 .* computes something else"),
    ],
)
def test_what_cannot_be_merged_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rd.merge_tokens(model, 4, example=IMAGES)


def test_wrong_arguments_are_refused() -> None:
    model: Any = rd.create_model("vit_pico-8", in_channels=1, image_size=64)
    for given, message in {
        -1: "per_block=-1 is not a whole number of 0 or more",
        2.0: "per_block=2.0 is not a whole number",
        True: "per_block=True is not a whole number",
        "4": "per_block='4' is not a whole number",
        (4, 4): "per_block has 2 numbers for 6 blocks; give one for each, or one for all",
        (4, 4, 4, 4, 4, -4): r"per_block\[5\]=-4 is not a whole number",
        (33, 0, 0, 0, 0, 0): r"per_block\[0\]=33 is more than half of the 64 patches that are left there; .* most 32",
        (
            30,
            0,
            18,
            0,
            0,
            0,
        ): r"per_block\[2\]=18 is more than half of the 34 patches that are left there; .* most 17",
    }.items():
        with pytest.raises(ValueError, match=message):
            rd.merge_tokens(model, given, example=IMAGES)
    with pytest.raises(ValueError, match="nothing to merge among 1 patches"):
        rd.merge_tokens(model, 1, example=torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="example is a batch of images"):
        rd.merge_tokens(model, 1, example=torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="the network does not take images of 3×64×64"):
        rd.merge_tokens(model, 1, example=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="is not a Module"):
        rd.merge_tokens(model.forward, 1, example=IMAGES)
    merged: Any = rd.merge_tokens(model, 1, example=IMAGES)
    assert isinstance(merged.blocks, MergingBlocks)
    with pytest.raises(ValueError, match="merged already; give the network from before"):
        rd.merge_tokens(merged, 1, example=IMAGES)
    with pytest.raises(ValueError, match="tokens of this network are merged, so they have no place"):
        read_attention(merged, (IMAGES * 255).byte())
    model.blocks[2].attn.register_forward_hook(print)
    with pytest.raises(ValueError, match=r"blocks.2.attn has hooks, which would be lost; remove them"):
        rd.merge_tokens(model, 1, example=IMAGES)


def test_executorch_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    x = IMAGES[:1]
    merged = rd.merge_tokens(rd.create_model("vit_pico-8", in_channels=1, image_size=64).eval(), 4, example=x)
    made = rd.export_model(merged, tmp_path / "merged.pte", x)
    assert made.difference < 1e-4
    told = rd.profile_memory(merged, x, convention="executorch").peak_bytes
    assert FORMATS["executorch"].writer().planned(Path(made.file))["peak_bytes"] == told
