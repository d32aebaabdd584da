"""The RED block and its loss against numbers worked out by hand (arXiv 2406.03744, section 3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from redistill_lib.red import BlockedLayer, RedBlock, alignment_loss, insert_blocks


def test_block_by_hand() -> None:
    """One channel, identity batch norm: gate σ(w·x + b), encoding clamp(Σ k·x + c, 0, 6)."""
    block = RedBlock(1).eval()
    with torch.no_grad():
        block.logit[0].weight.fill_(2.0)
        block.logit[0].bias.fill_(-1.0)
        block.residual_encoder[0].weight.zero_()
        block.residual_encoder[0].weight[0, 0, 1, 1] = 3.0  # the pixel itself …
        block.residual_encoder[0].weight[0, 0, 1, 2] = 1.0  # … and its right neighbour
        block.residual_encoder[0].bias.fill_(0.5)
    x = torch.tensor([[[[1.0, -2.0, 4.0]]]])
    bn = 1 / math.sqrt(1 + 1e-5)  # fresh running statistics: mean 0, variance 1

    def gate(v: float) -> float:
        return 1 / (1 + math.exp(-(2 * v - 1) * bn))

    encoded = [min(max(v * bn, 0), 6) for v in (3 * 1 + -2 + 0.5, 3 * -2 + 4 + 0.5, 3 * 4 + 0.5)]
    expected = [v * gate(v) + e for v, e in zip((1.0, -2.0, 4.0), encoded, strict=True)]
    assert expected[2] == pytest.approx(4 * gate(4.0) + 6)  # ReLU6 cuts at 6
    torch.testing.assert_close(block(x).flatten().tolist(), expected, rtol=1e-6, atol=1e-6)


def test_block_names_are_the_official_ones() -> None:
    names = {name.rsplit(".", 1)[0] for name, _ in RedBlock(4).named_parameters()}
    assert names == {"logit.0", "logit.1", "residual_encoder.0", "residual_encoder.1"}


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_block_keeps_the_shape(kernel: int) -> None:
    assert RedBlock(3, kernel)(torch.rand(2, 3, 7, 5)).shape == (2, 3, 7, 5)


def test_block_refuses_an_even_kernel() -> None:
    with pytest.raises(ValueError, match="must be odd, not 2"):
        RedBlock(3, 2)


def test_alignment_by_hand() -> None:
    """Channel means (1, 2) and (2, 1): cos = 4/5; mean squared difference = 1. A second, equal sample halves both."""
    student = torch.tensor([[[[0.0, 2.0]], [[2.0, 2.0]]]])
    teacher = torch.tensor([[[[1.0, 1.0]], [[2.0, 2.0]], [[3.0, 0.0]]]])
    assert alignment_loss(student, teacher).item() == pytest.approx(1 - 4 / 5, abs=1e-6)
    assert alignment_loss(student, teacher, "mse").item() == pytest.approx(1.0)
    both = alignment_loss(torch.cat([student, student]), torch.cat([teacher[:, :2], student]))
    assert both.item() == pytest.approx(alignment_loss(student, teacher[:, :2]).item() / 2, abs=1e-6)


def test_alignment_ignores_scale_only_for_cosine() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert alignment_loss(3 * x, x).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(-x, x).item() == pytest.approx(2, abs=1e-6)
    assert alignment_loss(3 * x, x, "mse").item() > 0


def test_alignment_of_an_empty_map_is_finite() -> None:
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    loss = alignment_loss(x, torch.rand(1, 2, 3, 3))
    loss.backward()
    assert loss.item() == 1 and x.grad is not None and torch.isfinite(x.grad).all()


def test_alignment_errors() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 3\) from the student and \(1, 2, 4, 4\)"):
        alignment_loss(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match="choose one of cosine, mse"):
        alignment_loss(torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3), "l1")


def test_insert_blocks_on_nested_layers() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    net = nn.Sequential(inner, nn.Conv2d(4, 2, 1)).eval()
    x = torch.rand(1, 4, 3, 3)
    outer, deep, before = RedBlock(4).eval(), RedBlock(4).eval(), RedBlock(4).eval()
    expected = net[1](outer(inner[1](deep(inner[0](before(x))))))
    same = insert_blocks(net, [("0", "output", outer), ("0.0", "output", deep), ("0", "input", before)])
    assert same is net and isinstance(net[0], BlockedLayer)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)


def test_insert_blocks_errors() -> None:
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="cannot stand on the whole network"):
        insert_blocks(net, [("", "output", RedBlock(1))])
    with pytest.raises(ValueError, match="two blocks on the output of '0'"):
        insert_blocks(net, [("0", "output", RedBlock(1)), ("0", "output", RedBlock(1))])
