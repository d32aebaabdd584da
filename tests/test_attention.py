"""Attention against what the pass itself computes and numbers worked out by hand; its figures."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.attention import AttentionMaps, read_attention
from redistill_lib.figures import attention_maps, attention_reach, headline
from redistill_lib.network import record_maps
from redistill_lib.red import RedBlock, insert_blocks

IMAGES = torch.randint(0, 255, (3, 1, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def network(name: str = "deit_pico-8") -> nn.Module:
    torch.manual_seed(0)
    model = rd.create_model(name, in_channels=1, image_size=24)
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.2)
    return model


@torch.no_grad()
def test_weights_are_those_that_the_pass_uses() -> None:
    """What a block's attention gives is its weights on the values, which the fused operator never shows."""
    attn = network().blocks[0].attn
    x = torch.randn(2, 7, 64)
    weights = attn.weights(x)
    torch.testing.assert_close(weights.sum(3), torch.ones(2, 2, 7))
    values = F.linear(x, attn.qkv.weight[128:], attn.qkv.bias[128:]).unflatten(2, (2, 32)).transpose(1, 2)
    expected = attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attn(x), expected)


def test_maps_are_the_class_tokens_rows() -> None:
    model = network().train()
    found = read_attention(model, IMAGES, [0, 4])
    assert model.training and found.blocks == (0, 4) and found.patch == 8
    assert found.maps.shape == (3, 2, 2, 3) and found.reach.shape == (3, 2, 2)
    (tokens,) = record_maps(model, [("blocks.4.attn", "input")], rd.to_float(IMAGES)).values()
    with torch.no_grad():
        weights = model.blocks[4].attn.weights(tokens)
    row = weights[1, :, 0, 2:].mean(0).reshape(2, 3)  # of the second image; two tokens in front
    np.testing.assert_allclose(found.maps[1, 1], row.numpy(), rtol=1e-5)
    # the patch in the first row and third column looks at itself and its neighbours, 8 px apart
    own = weights[1, 0, 2:, 2:]
    centres = [(8 * y, 8 * x) for y in range(2) for x in range(3)]
    far = [[math.dist(a, b) for b in centres] for a in centres]
    reach = sum(
        sum(float(w) * d for w, d in zip(own[q], far[q], strict=True)) / float(own[q].sum()) for q in range(6)
    )
    assert found.reach[1, 1, 0] == pytest.approx(reach / 6, rel=1e-4)


def test_even_attention() -> None:
    """Without queries all tokens are looked at alike: 1 of 7, and so far as the grid is wide."""
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=24)
    for block in model.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
    found = read_attention(model, IMAGES)
    np.testing.assert_allclose(found.maps, 1 / 7, rtol=1e-5)
    # of 36 pairs in 2×3 patches: 6 the same, 8 + 6 side by side, 8 diagonal, 4 two apart, 4 two and one apart
    expected = 8 * (14 + 8 * math.sqrt(2) + 4 * 2 + 4 * math.sqrt(5)) / 36
    assert found.reach == pytest.approx(np.full((3, 6, 2), expected), rel=1e-5)
    assert found.to_frame()["reach"].tolist() == pytest.approx([expected] * 12, rel=1e-5)
    assert attention_reach({"student": found}).layout.shapes[0].y0 == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.1f} px in block 0" in found.headline()


def test_patches_that_look_at_the_class_token_alone_reach_nowhere() -> None:
    model = rd.create_model("vit_pico-8", in_channels=1, image_size=24)
    attention = model.blocks[0].attn

    def weights(x: torch.Tensor) -> torch.Tensor:
        shares = torch.zeros(len(x), 2, x.shape[1], x.shape[1])
        shares[..., 0] = 1.0
        return shares

    attention.weights = weights
    found = read_attention(model, IMAGES, [0])
    assert (found.reach == 0).all() and (found.maps == 0).all()


def test_red_blocks_are_passed_through() -> None:
    model = network()
    plain = read_attention(model, IMAGES).maps
    insert_blocks(model, [("patch_embed", "output", RedBlock(64))])
    assert not np.allclose(read_attention(model, IMAGES).maps, plain)


def test_what_cannot_be_read_is_told() -> None:
    with pytest.raises(ValueError, match="built-in vision transformers, not from a ResNet; load its weights"):
        read_attention(rd.create_model("resnet18", in_channels=1, width=0.125), IMAGES)
    with pytest.raises(ValueError, match=r"images are N×C×H×W, at least one, not \(1, 16, 24\)"):
        read_attention(network(), IMAGES[0])
    with pytest.raises(ValueError, match="a block"):
        read_attention(network(), IMAGES, [6])


def made(share: Tensor, reach: float, blocks: tuple[int, ...] = (2,)) -> AttentionMaps:
    images = np.zeros((2, 1, 8, 8), np.uint8)
    maps = share.expand(2, len(blocks), 2, 2).numpy().astype(np.float32)
    return AttentionMaps(images, blocks, maps, np.full((2, len(blocks), 2), reach, np.float32))


def test_the_picture_shows_shares_on_one_scale() -> None:
    even, one = torch.full((2, 2), 0.25), torch.tensor([[0.1, 0.7], [0.1, 0.1]])
    figure = attention_maps({"student": made(even, 5.0), "red": made(one, 2.0)})
    maps = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    assert len(maps) == 4 and len(figure.data) == 6  # two images in front
    np.testing.assert_allclose(maps[0].z, 1)
    np.testing.assert_allclose(maps[1].z, [[0.4, 2.8], [0.4, 0.4]], rtol=1e-5)
    assert figure.layout.coloraxis.cmax == pytest.approx(2.8)
    found = "In block 2 the most-watched patch gets 1.0× (naive student) and 2.8× (RED) its even share"
    assert headline(figure) == found
    assert "colours end" not in figure.layout.title.text
    last = headline(attention_maps({"red": replace(made(one, 2.0), depth=3)}))
    assert last.startswith("In block 2, the last, the most-watched patch gets 2.8× (RED)")
    shallow = {"red": replace(made(one, 2.0), depth=3), "kd": replace(made(one, 2.0), depth=4)}
    assert ", the last," not in attention_maps(shallow).layout.title.text
    assert read_attention(network(), IMAGES, [5]).depth == 6


def test_one_patch_does_not_darken_all_others() -> None:
    share = torch.full((20, 20), 1 / 400)
    share[3, 4] = 0.5  # of 400 patches 200 even shares, all others 1
    figure = attention_maps({"student": AttentionMaps(
        np.zeros((1, 1, 40, 40), np.uint8), (2,), share.view(1, 1, 20, 20).numpy(), np.ones((1, 1, 2), np.float32)
    )})  # fmt: skip
    axis = figure.layout.coloraxis
    assert axis.cmax == pytest.approx(1) and axis.colorbar.ticktext[-1] == "≥ 1.0"
    text = re.sub(r"<.*?>", " ", figure.layout.title.text)
    assert "The colours end where 1 patch in 100 is above; the highest has 200.0" in text


def test_reach_is_drawn_from_0() -> None:
    assert attention_reach({"student": made(torch.full((2, 2), 0.25), 5.0)}).layout.yaxis.rangemode == "tozero"


def test_figures_refuse_what_does_not_belong_together() -> None:
    even = torch.full((2, 2), 0.25)
    other = made(even, 1.0)
    other.images[0] = 1
    for figure in (attention_maps, attention_reach):
        with pytest.raises(ValueError, match="there is no attention to show"):
            figure({})
        with pytest.raises(ValueError, match="the attention of red is to other images"):
            figure({"student": made(even, 1.0), "red": other})
    with pytest.raises(ValueError, match="block 3 of student was not looked into; there are 2"):
        attention_maps({"student": made(even, 1.0)}, block=3)
