"""The RED block and its loss against numbers worked out by hand (arXiv 2406.03744, section 3)."""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.red import (
    BlockedLayer,
    GridBlock,
    InPlaceRedBlock,
    RedBlock,
    alignment_loss,
    describe_block,
    fold_blocks,
    insert_blocks,
    make_in_place,
    restore_place,
)


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


def test_a_block_on_volumes_by_hand() -> None:
    """The voxel itself and the one behind it, three times and once; the gate is σ(0) everywhere."""
    block = RedBlock(1, axes=3).eval()
    with torch.no_grad():
        for weight in block.parameters():
            if weight.ndim == 5 or weight is block.logit[0].bias or weight is block.residual_encoder[0].bias:
                weight.zero_()
        block.residual_encoder[0].weight[0, 0, 1, 1, 1] = 3.0
        block.residual_encoder[0].weight[0, 0, 2, 1, 1] = 1.0
    x = torch.tensor([0.5, -1.0, 4.0]).reshape(1, 1, 3, 1, 1)
    bn = 1 / math.sqrt(1 + 1e-5)
    expected = [0.25 + (1.5 - 1) * bn, -0.5 + (-3 + 4) * bn, 2.0 + 6]
    torch.testing.assert_close(block(x).flatten().tolist(), expected, rtol=1e-6, atol=1e-6)
    assert block.state_dict().keys() == RedBlock(1).state_dict().keys()


def encoding(block: RedBlock, x: Tensor) -> Tensor:
    """ReLU6(BN(conv x)) of the published encoder, in functions."""
    conv, norm = block.residual_encoder[0], block.residual_encoder[1]
    y = F.conv2d(x, conv.weight, conv.bias, padding=block.kernel_size // 2)
    columns = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, weight, bias = (value[:, None, None] for value in columns)
    return ((y - mean) / (variance + norm.eps).sqrt() * weight + bias).clamp(0, 6)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_block_without_gate_or_shortcut(kernel: int) -> None:
    x = torch.randn(2, 6, 9, 7)
    ungated, alone = trained(6, kernel, gate=False), trained(6, kernel, shortcut=False)
    torch.testing.assert_close(ungated(x), x + encoding(ungated, x))
    torch.testing.assert_close(alone(x), encoding(alone, x))
    for block in (ungated, alone):
        assert sum(p.numel() for p in block.parameters()) == 36 * kernel**2 + 6 + 12
        assert {name.partition(".")[0] for name in block.state_dict()} == {"residual_encoder"}


@pytest.mark.parametrize("axes", [2, 3])
def test_a_depthwise_encoder_is_a_convolution_of_products(axes: int) -> None:
    """Its weight from channel i to o is that of the mixing times i's own filter."""
    cheap, full = trained(5, 3, axes=axes, encoder="depthwise"), trained(5, 3, axes=axes)
    own, mix = cheap.residual_encoder[0]
    tensors = cheap.state_dict() | {
        "residual_encoder.0.weight": mix.weight * own.weight[None, :, 0],
        "residual_encoder.0.bias": mix.bias,
    }
    full.load_state_dict({name: tensors[name] for name in full.state_dict()})
    x = torch.randn(2, 5, *(8, 6, 4)[:axes])
    torch.testing.assert_close(cheap(x), full(x))
    sizes = [sum(p.numel() for p in block.parameters()) for block in (cheap, full)]
    assert sizes == [5 * 3**axes + 25 + 5 + 10 + 40, 25 * 3**axes + 5 + 10 + 40]


def test_what_no_variant_is() -> None:
    with pytest.raises(ValueError, match="has no gate to leave out; give shortcut=False alone"):
        RedBlock(4, gate=False, shortcut=False)
    with pytest.raises(ValueError, match="encoder='depth' is not 'full' or 'depthwise'"):
        RedBlock(4, encoder="depth")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"maps \(axes=2\) or volumes \(axes=3\), not axes=1"):
        RedBlock(4, axes=1)


VARIANTS: list[dict[str, Any]] = [
    {}, {"gate": False}, {"shortcut": False}, {"encoder": "depthwise"},
    {"gate": False, "encoder": "depthwise"}, {"shortcut": False, "encoder": "depthwise"},
]  # fmt: skip


@pytest.mark.parametrize("variant", [*VARIANTS, {"axes": 3}, {"axes": 3, "encoder": "depthwise"}], ids=str)
def test_the_folded_form(variant: dict[str, Any]) -> None:
    block = trained(6, 3, **variant)
    x, before = torch.randn(2, 6, *(8, 7, 5)[: block.axes]), block.state_dict()
    folded = block.fold()
    torch.testing.assert_close(folded(x), block(x))
    assert not any("Norm" in type(m).__name__ for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters()) and not folded.training
    assert folded.state_dict().keys() == {name for name in before if ".1." not in f"{name}." or ".0.1." in name}
    assert torch.equal(folded.fold()(x), folded(x))  # there is nothing left to fold
    half = copy.deepcopy(block).half().fold()
    assert next(half.parameters()).dtype == torch.float16
    torch.testing.assert_close(half.float()(x), block(x), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"call eval\(\) on the block first"):
        RedBlock(2, **variant).fold()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_are_recorded_and_scripted(variant: dict[str, Any]) -> None:
    block, x = trained(6, 5, **variant), torch.randn(1, 6, 4, 4)
    for form in (block, block.fold(), GridBlock(block, (4, 4)).eval()):
        record = {"layer": "a.b", "side": "input", **(describe_block(form) or {})}
        layer, side, other = restore_place(json.loads(json.dumps(record)))
        assert (layer, side, type(other)) == ("a.b", "input", type(form))
        other.load_state_dict(form.state_dict())
        y = x.movedim(1, -1) if isinstance(form, GridBlock) else x
        assert torch.equal(other.eval()(y), form(y))
    assert torch.equal(torch.jit.script(block)(x), block(x))
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))
    assert describe_block(RedBlock(8)) == {"channels": 8, "kernel_size": 3}  # as runs have always kept it
    assert describe_block(nn.ReLU()) is describe_block(GridBlock(nn.ReLU(), (4, 4))) is None


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


def test_alignment_of_volumes_by_hand() -> None:
    """The maps of above, as three voxels in depth, and with one more of zeros."""
    student = torch.tensor([[[0.0, 2.0]], [[2.0, 2.0]]]).reshape(1, 2, 2, 1, 1)
    teacher = torch.tensor([2.0, 1.0]).reshape(1, 1, 2, 1, 1)
    assert alignment_loss(student, teacher).item() == pytest.approx(1 - 4 / 5, abs=1e-6)
    with pytest.raises(ValueError, match=r"volumes of equal depth × height × width, not \(1, 2, 2, 1, 1\)"):
        alignment_loss(student, teacher[:, :, :1])
    with pytest.raises(
        ValueError, match=r"B×C×H×W maps of equal height × width, not \(1, 2, 2, 1, 1\) .* \(1, 1, 2, 1\)"
    ):
        alignment_loss(student, teacher[..., 0])


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


def trained(channels: int, kernel: int = 3, **variant: Any) -> RedBlock:
    """A block in eval mode whose statistics are not those of a fresh one."""
    torch.manual_seed(kernel)
    block = RedBlock(channels, kernel, **variant).eval()
    norms: list[Any] = [module for module in block.modules() if "Norm" in type(module).__name__]
    for norm in norms:
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


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=str)
@pytest.mark.parametrize(("kernel", "height"), [(3, 33), (5, 16), (1, 1)])
def test_variants_in_place(variant: dict[str, Any], kernel: int, height: int) -> None:
    block, x = trained(6, kernel, **variant), torch.randn(2, 6, height, 5)
    assert_same_in_place(block, x.clone())
    torch.testing.assert_close(InPlaceRedBlock.from_block(block.fold())(x.clone()), block(x))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("kernel", "height"), [(3, 64), (5, 16), (5, 80)])
def test_rows_that_the_in_place_form_holds(variant: dict[str, Any], kernel: int, height: int) -> None:
    block, x = trained(64, kernel, **variant), torch.randn(1, 64, height, 8)
    form = InPlaceRedBlock.from_block(block)
    with torch.no_grad(), LiveBytes() as live:
        form(x)
    assert live.peak == InPlaceRedBlock.held_rows(block, height) * x[:, :, :1].nbytes


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
    with pytest.raises(ValueError, match=r"the in-place form .* takes no volumes; keep the plain form, or fold it"):
        InPlaceRedBlock.from_block(trained(2, axes=3))
    with pytest.raises(ValueError, match=r"\(block: the in-place form .* takes no volumes\); keep the plain form"):
        make_in_place(nn.Sequential(OrderedDict(conv=nn.Conv3d(2, 2, 1), block=trained(2, axes=3))), x[:, :, None])
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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: spectral_norm(b.residual_encoder[0]), "residual_encoder.0 is a ParametrizedConv2d"),
        (lambda b: prune.random_unstructured(b.logit[0], "weight", 0.5), "logit.0 has hooks"),
        (lambda b: b.logit[1].register_forward_hook(lambda *args: 2 * args[2]), "logit.1 has hooks"),
        (lambda b: b.logit.__setitem__(1, nn.GroupNorm(1, 2)), "logit.1 is a GroupNorm"),
        (lambda b: b.logit.__setitem__(1, nn.BatchNorm2d(2, track_running_stats=False)), "logit.1 keeps no running"),
    ],
)
def test_what_would_be_lost_by_folding_is_told(change: Callable[[Any], object], why: str) -> None:
    block = RedBlock(2)
    change(block)
    for form in (RedBlock.fold, InPlaceRedBlock.from_block):
        with pytest.raises(ValueError, match=f"a RED block cannot be folded: {why}"):
            form(block.eval())
    net = nn.Sequential(nn.Conv2d(2, 2, 1), RedBlock(2), nn.Conv2d(2, 2, 1), block).eval()
    with torch.no_grad():
        net(torch.zeros(1, 2, 4, 4))
    assert why in make_in_place(net, torch.zeros(1, 2, 4, 4))[1]["3"]


def test_blocks_of_a_network_are_folded() -> None:
    class Doubled(RedBlock):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    tokens = GridBlock(trained(6), (2, 2))  # four of them, with six channels
    net = nn.Sequential(nn.Conv2d(4, 4, 1), trained(4), Doubled(4), nn.Flatten(2), tokens).eval()
    x = torch.randn(2, 4, 2, 3)
    expected = net(x).detach()
    assert fold_blocks(net) is net
    assert [m.folded for m in net.modules() if isinstance(m, RedBlock)] == [True, False, True]  # the own class stays
    torch.testing.assert_close(net(x), expected)
    assert not any(p.requires_grad for p in net.parameters())
