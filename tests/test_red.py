"""The RED block and its loss against numbers worked out by hand (arXiv 2406.03744, section 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.red import BlockedLayer, InPlaceRedBlock, RedBlock, alignment_loss, insert_blocks, make_in_place


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


def test_a_layer_of_several_arguments_takes_them_by_any_name() -> None:
    class Sum(nn.Module):
        def forward(self, before: Tensor, x: Tensor) -> Tensor:
            return before + 2 * x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sum = Sum()

        def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
            return [self.sum(a, b), self.sum(a, x=b), self.sum(before=a, x=b), self.sum(x=b, before=a)]

    block = RedBlock(4).eval()
    a, b = torch.rand(2, 1, 4, 3, 3)
    for y in insert_blocks(Net(), [("sum", "input", block)])(a, b):
        assert torch.equal(y, block(a) + 2 * b)


def test_insert_blocks_errors() -> None:
    net = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="cannot stand on the whole network"):
        insert_blocks(net, [("", "output", RedBlock(1))])
    with pytest.raises(ValueError, match="two blocks on the output of '0'"):
        insert_blocks(net, [("0", "output", RedBlock(1)), ("0", "output", RedBlock(1))])


# ------------------------------------------------------------------------------------------------- the in-place form


def trained(channels: int, kernel: int = 3) -> RedBlock:
    """A block in eval mode whose statistics are not those of a fresh one."""
    torch.manual_seed(kernel)
    block = RedBlock(channels, kernel).eval()
    for norm in (block.logit[1], block.residual_encoder[1]):
        for value, low, high in ((norm.running_mean, -1, 1), (norm.running_var, 0.3, 3), (norm.weight, -1, 2)):
            nn.init.uniform_(value, low, high)
    return block


def assert_same_in_place(block: RedBlock, x: Tensor, rows: int | None = None, tolerance: float = 1e-6) -> None:
    with torch.no_grad():
        expected = block(x)
    assert expected.std() > 0.1
    out = InPlaceRedBlock.from_block(block, rows)(x)
    assert out is x and out.dtype == expected.dtype
    assert (out - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("height", "rows"), [(33, None), (16, 1), (13, 4), (12, 4), (3, 1), (1, 1), (2, 50)])
def test_in_place_equals_the_plain_form(kernel: int, height: int, rows: int | None) -> None:
    assert_same_in_place(trained(6, kernel), torch.randn(2, 6, height, 5), rows)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(0)[:, 1:5, ::2, 1:],
        lambda x: x[:, :4].permute(1, 0, 2, 3),
    ],
)
def test_in_place_takes_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    whole = torch.randn(4, 6, 17, 9)
    x = view(whole)
    assert_same_in_place(trained(x.shape[1]), x)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
def test_in_place_in_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    assert_same_in_place(trained(6).to(dtype), torch.randn(2, 6, 18, 7).to(dtype), tolerance=tolerance)


class LiveBytes(TorchDispatchMode):
    """The most bytes, in tensors made by operations under it, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if (storage := tensor.untyped_storage()).data_ptr() not in old:
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(size for ref, size in self.sizes.items() if not ref.expired()))
        return out


def test_in_place_holds_one_map_and_a_slab() -> None:
    """Beside the map: a slab of 4 + 2 rows, gate and encoding of 4 rows each, of 64; the plain form holds maps."""
    block, x = trained(64), torch.randn(1, 64, 64, 64)
    peaks = []
    for form in (InPlaceRedBlock.from_block(block), block):
        with torch.no_grad(), LiveBytes() as live:
            form(x)
        peaks.append(live.peak / x.nbytes)
    assert peaks[0] == (6 + 4 + 4) / 64 < 0.25 and peaks[1] >= 2


def test_in_place_is_copied_saved_and_exported(tmp_path: Path) -> None:
    net = insert_blocks(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), [("0", "output", trained(6))]).eval()
    x = torch.randn(1, 3, 20, 8)
    expected = net(x).detach()
    plain = net
    net, left = make_in_place(plain, x)
    assert left == {} and net is not plain and any(isinstance(m, RedBlock) for m in plain.modules())
    save_tensors(tmp_path / "net.safetensors", net.state_dict())
    other = copy.deepcopy(net)
    for p in other.parameters():
        nn.init.zeros_(p)
    other.load_state_dict(read_tensors(tmp_path / "net.safetensors")[0])
    for form in (net, other, torch.export.export(net, (x,)).module()):
        torch.testing.assert_close(form(x), expected)


def test_in_place_errors() -> None:
    block = InPlaceRedBlock.from_block(trained(2))
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"overwrites its input, which requires a gradient"):
        block(x.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"strides of this \(3, 2, 4, 4\) are \(0, 16, 4, 1\); give it x.contiguous"):
        block(x.expand(3, 2, 4, 4))
    with pytest.raises(RuntimeError, match="for inference only"):
        nn.Sequential(block).train()
    with pytest.raises(ValueError, match=r"call eval\(\) on the block first"):
        InPlaceRedBlock.from_block(RedBlock(2))
    with pytest.raises(ValueError, match="rows cannot be 0"):
        InPlaceRedBlock.from_block(trained(2), rows=0)
    with pytest.raises(RuntimeError, match=r"run it under torch.no_grad"):
        block.requires_grad_()(x)


class Branches(nn.Module):
    """Maps that are used once, kept for a skip, read through a view, returned, stored, or someone else's."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("once", "skipping", "viewing", "aside", "stored", "unused"):
            self.add_module(name, nn.Conv2d(2, 2, 3, padding=1))
        self.same, self.constant = nn.Identity(), nn.Identity()
        self.register_buffer("position", torch.ones(1, 2, 8, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.once(x)
        first = self.skipping(x)  # its own input is what the skip needs
        second = self.viewing((first + x).relu_())
        view = second[:, :1]
        third = self.aside(self.same(second)) + view
        self.kept = third
        returned = self.stored(third)
        return returned, self.same(returned) + self.constant(self.position)


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 8, 8), torch.rand(1, 2, 8, 8)], ids=["constant", "noise"])
def test_blocks_work_in_place_only_where_no_one_reads_the_map(x: Tensor) -> None:
    torch.manual_seed(0)
    places = [("once", "input"), ("once", "output"), ("skipping", "input"), ("skipping", "output")]
    places += [("viewing", "input"), ("viewing", "output"), ("aside", "input"), ("stored", "input")]
    places += [("stored", "output"), ("constant", "output"), ("unused", "output")]
    net = insert_blocks(Branches(), [(*place, trained(2)) for place in places]).eval()
    plain = net
    net, left = make_in_place(plain, x)
    assert {path: reason.split(" ")[-3:] for path, reason in left.items()} == {
        "once.before": ["or", "a", "weight"],  # the caller's
        "skipping.before": ["map", "later", "on"],
        "aside.before": ["map", "later", "on"],
        "stored.before": ["after", "the", "pass"],
        "constant.after": ["or", "a", "weight"],
        "unused.after": ["never", "reached", "it"],
    }
    assert sum(isinstance(m, InPlaceRedBlock) for m in net.modules()) == len(places) - len(left) == 5
    for _ in range(2):  # nothing is left changed for the second pass
        image = torch.randn(1, 2, 8, 8)
        before = image.clone()
        for ours, theirs in zip(net(image), plain(image), strict=True):
            torch.testing.assert_close(ours, theirs)
        assert torch.equal(image, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_two_blocks_on_one_map() -> None:
    """The first one may not overwrite what the second still reads; the second may."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.a(x) - self.b(x)

    net = insert_blocks(Fork(), [("a", "input", trained(2)), ("b", "input", trained(2, 1))]).eval()
    plain, x = net, torch.randn(1, 2, 9, 9)
    net, left = make_in_place(plain, x)
    assert list(left) == ["a.before"]
    torch.testing.assert_close(net(x), plain(x))


def test_one_block_run_twice_on_one_map() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block = nn.Conv2d(2, 2, 1), trained(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.block(x) - 2 * self.block(x)

    with pytest.raises(ValueError, match=r"no RED block can work in place \(block: .* reads its input map later on"):
        make_in_place(Twice(), torch.zeros(1, 2, 4, 4))


def test_blocks_that_are_more_than_a_red_block_stay_plain() -> None:
    class Doubled(RedBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def net(block: RedBlock) -> nn.Module:
        return insert_blocks(nn.Sequential(nn.Conv2d(3, 8, 3)), [("0", "output", block)])

    x = torch.zeros(1, 3, 20, 20)
    with pytest.raises(ValueError, match=r"\(0.after: it is of a class of its own, whose forward may be another\)"):
        make_in_place(net(Doubled(8)), x)
    hooked = RedBlock(8)
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"\(0.after: it has hooks, which would be lost\); keep the plain form"):
        make_in_place(net(hooked), x)
