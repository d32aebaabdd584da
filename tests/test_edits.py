"""Layers made to stride otherwise: transposed convolutions, borders, volumes, pools with indices, residuals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_calls import called
from torch import Tensor, nn

from redistill_lib.student import derive_student
from redistill_lib.student.calls import edits_of
from redistill_lib.student.edits import Change, lift, reconnect, restride, settle
from redistill_lib.student.kernels import Upsampling, resize_transposed


def change(layer: nn.Module, function: str, old: int, new: int, downsampler: Any = "stride") -> Change:
    """The change of a network's only layer."""
    return restride(nn.ModuleList([layer]), called(function, (("", 0), ("0", 0)), (0, 0)), old, new, downsampler)


def bilinear(stride: int, axes: int = 2) -> Tensor:
    """Bilinear upsampling's kernel: how much of a pixel its neighbours at a finer resolution take."""
    near = 1 - (torch.arange(2 * stride) + 0.5 - stride).abs() / stride
    kernel = near
    for _ in range(axes - 1):
        kernel = kernel[..., None] * near
    return kernel


def inner(x: Tensor, border: int) -> Tensor:
    return x[(..., *[slice(border, -border)] * (x.ndim - 2))]


# --------------------------------------------------------------------------------------- transposed convolutions


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("new", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("old", [2, 4])
def test_bilinear_upsampling_stays_bilinear(old: int, new: int, axes: int) -> None:
    kind: Any = nn.ConvTranspose2d if axes == 2 else nn.ConvTranspose3d
    layer = kind(3, 3, 2 * old, old, old // 2, groups=3, bias=False)
    layer.weight.data = bilinear(old, axes).expand_as(layer.weight).clone()
    done = change(layer, f"conv_transpose{axes}d", old, new)
    assert (done.kind, done.after) == ("transposed conv", new)
    ramp = torch.arange(6.0).expand(1, 3, *[6] * axes) + 2 * torch.arange(6.0)[:, None]
    wanted = F.interpolate(ramp, scale_factor=new, mode="bilinear" if axes == 2 else "trilinear")
    if new == old:
        assert torch.allclose(inner(layer(ramp), new), inner(wanted, new), atol=1e-5)  # what was there is bilinear
    assert layer(ramp).shape == wanted.shape
    assert torch.allclose(inner(layer(ramp), new), inner(wanted, new), atol=1e-5)


@pytest.mark.parametrize(("kernel", "padding", "extra"), [(4, 1, 0), (3, 1, 1), (6, 2, 0), (5, 2, 1)])
@pytest.mark.parametrize("new", [1, 4, 6])
def test_any_transposed_convolution_answers_a_constant_as_before(
    kernel: int, padding: int, extra: int, new: int
) -> None:
    torch.manual_seed(kernel)
    layer = nn.ConvTranspose2d(3, 5, kernel, 2, padding, output_padding=extra)
    flat = torch.full((1, 3, 8, 8), 2.0)
    before = layer(flat)[..., 6:10, 6:10].mean((2, 3))
    change(layer, "conv_transpose2d", 2, new)
    after = layer(flat)
    assert after.shape == (1, 5, 8 * new, 8 * new)
    middle = after[..., 3 * new : 5 * new, 3 * new : 5 * new]
    assert torch.allclose(middle, before[..., None, None].expand_as(middle), atol=1e-5)


def test_a_smooth_kernel_keeps_its_slope() -> None:
    """A kernel that shifts by a quarter of a pixel still does, at twice the resolution."""
    old = Upsampling(6, 2, 2)
    new, extra = old.at(4)
    assert (new, extra) == (Upsampling(12, 4, 4), 0)
    weight = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    resized = resize_transposed(weight, old, new)
    assert resized.shape == (2, 3, 12, 12)
    centre = [(w.sum((0, 1, 3)) @ grid.offsets / w.sum()).item() for w, grid in ((weight, old), (resized, new))]
    assert abs(centre[0] - centre[1]) < 0.1
    assert torch.allclose(resized.sum((2, 3)) / 16, weight.sum((2, 3)) / 4, atol=1e-5)


def test_a_transposed_convolution_that_makes_no_whole_map_is_told() -> None:
    with pytest.raises(ValueError, match=r"0 upsamples with kernel 2 and padding 1, which at stride 6 give no map"):
        change(nn.ConvTranspose2d(3, 3, 2, 3, 1, dilation=4), "conv_transpose2d", 3, 6)
    with pytest.raises(ValueError, match=r"0 has \(4, 2\) along its axes; a plan has one"):
        change(nn.ConvTranspose2d(3, 3, (4, 2), 2, (1, 0)), "conv_transpose2d", 2, 4)


# -------------------------------------------------------------------------------------------------------- borders


def test_a_border_is_added_or_taken_away() -> None:
    x = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(2, 2, 4, 1, 0)
    assert settle(conv, (6, 6), (9, 8)) == "padded by 2 top, 1 bottom, 1 left, 1 right"
    assert torch.equal(conv(x), F.conv2d(F.pad(x, (1, 1, 2, 1)), conv.weight, conv.bias))
    conv = nn.Conv2d(2, 2, 4, 2, 2)
    assert conv(x).shape[2:] == (5, 5)
    assert settle(conv, (5, 5), (4, 5)) == "cropped by 2 bottom"
    shortcut = nn.Conv2d(2, 2, 1, 2)
    assert settle(shortcut, (5, 5), (6, 6)) == "padded by 2 bottom, 2 right"
    assert torch.equal(shortcut(x)[..., :5, :5], F.conv2d(x, shortcut.weight, shortcut.bias, 2))
    stem = nn.Conv2d(3, 4, 11, 16, 2)
    assert settle(stem, (14, 14), (13, 13)) is None  # no border, but a sixteenth of the image
    assert torch.equal(conv(x), F.conv2d(x[..., :7, :], conv.weight, conv.bias, 2, 2))
    assert settle(conv, (4, 5), (9, 5)) is None  # more than a kernel reaches: another layer's doing


def test_pools_are_padded_with_what_cannot_win() -> None:
    x = -torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    for kind, pads in ((nn.MaxPool2d, {"value": -torch.inf}), (nn.AvgPool2d, {"mode": "replicate"})):
        pool = kind(2, 1)  # type: ignore[operator]
        assert settle(pool, (7, 7), (8, 8)) == "padded by 1 top, 1 left"
        assert torch.equal(pool(x), kind(2, 1)(F.pad(x, (1, 0, 1, 0), **pads)))  # type: ignore[operator, arg-type]
    pool = nn.MaxPool2d(3, 1, ceil_mode=True)
    assert settle(pool, (6, 6), (8, 8)) == "padding 1"
    assert torch.equal(pool(x), F.max_pool2d(x, 3, 1, 1))


class StaticSame(nn.Conv2d):
    """Pads by what an image of one size needs at the stride that it was made with."""

    def __init__(self, channels: int, kernel: int, stride: int, size: int) -> None:
        super().__init__(channels, channels, kernel, stride)
        need = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        self.static_padding = nn.ZeroPad2d((need // 2, need - need // 2, need // 2, need - need // 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


@pytest.mark.parametrize(("kernel", "old", "new"), [(3, 2, 1), (5, 2, 1), (3, 2, 4), (5, 1, 2), (7, 4, 2)])
def test_static_padding_is_made_up_for(kernel: int, old: int, new: int) -> None:
    layer, x = StaticSame(3, kernel, old, 32), torch.randn(1, 3, 32, 32)
    change(layer, "conv2d", old, new)
    got = tuple(layer(x).shape[2:])
    if got != (32 // new, 32 // new):
        assert settle(layer, got, (32 // new, 32 // new))
    y = layer(x)
    assert y.shape[2:] == (32 // new, 32 // new)
    # its inner pixels are those of the convolution on the unpadded map
    plain = F.conv2d(x, layer.weight, layer.bias)
    assert any(
        torch.allclose(inner(y, 4)[..., :1, :1], plain[..., at : at + 1, at : at + 1], atol=1e-5)
        for at in range(4 * new - 8, 4 * new + 1)
        if at >= 0
    )


# -------------------------------------------------------------------------------------------------------- volumes


def test_layers_of_volumes_follow_the_same_rules() -> None:
    x = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv3d(4, 4, 3, 1, 1)
    assert repr(change(conv, "conv3d", 1, 2)) == "0: conv stride 1 → 2" and conv.stride == (2, 2, 2)
    patch = nn.Conv3d(4, 4, 2, 2)
    wanted = patch(F.interpolate(x, scale_factor=0.5, mode="area"))
    assert repr(change(patch, "conv3d", 2, 4)) == "0: patch embed 2 → 4 (kernel 2 → 4)"
    assert torch.allclose(patch(x), wanted, atol=1e-5)
    for kind, name in ((nn.MaxPool3d, "max pool"), (nn.AvgPool3d, "avg pool")):
        pool = kind(2)  # type: ignore[operator]
        assert repr(change(pool, f"{name.replace(' ', '_')}3d", 2, 4)) == f"0: {name} 2 → 4 (kernel 2 → 4)"
        assert torch.equal(pool(x), kind(4)(x))  # type: ignore[operator]
    up = nn.Upsample(scale_factor=2, mode="trilinear")
    change(up, "interpolate", 2, 4)
    assert up(x).shape == (1, 4, 32, 32, 32)


def test_pools_behind_and_shuffles_in_volumes() -> None:
    x = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv3d(4, 4, 3, 1, 1)
    whole = conv(x)
    assert repr(change(conv, "conv3d", 1, 2, "max")) == "0: inserted 1 → 2 (max pool 2)"
    assert torch.equal(conv(x), F.max_pool3d(whole, 2))
    with pytest.raises(
        ValueError, match="0: blur is for images; a network of volumes takes 'stride', 'max' or 'avg'"
    ):
        change(nn.Conv3d(4, 4, 3, 1, 1), "conv3d", 1, 2, "blur")
    last = nn.Conv3d(4, 2, 3, 1, 1)
    whole = last(x)
    assert repr(lift("0", last, 2)) == "0: inserted 1 → 2 (depth to space ×2)"
    wanted = whole.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.allclose(last(x), wanted, atol=1e-5)


def test_a_stride_of_some_axes_alone_is_told() -> None:
    with pytest.raises(ValueError, match="0 strides 1, which is no multiple of 2"):
        change(nn.Conv3d(4, 4, 3, (1, 2, 2), 1), "conv3d", 2, 1)


# ------------------------------------------------------------------------------------------------------ two outputs


@pytest.mark.parametrize("new", [1, 4])
def test_pools_with_indices_keep_them(new: int) -> None:
    pool, unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert change(pool, "max_pool2d_with_indices", 2, new).kind == "max pool"
    assert change(unpool, "max_unpool2d", 2, new).kind == "max unpool"
    y, where = F.max_pool2d(x, new, return_indices=True)
    assert torch.equal(unpool(*pool(x)), F.max_unpool2d(y, where, new))


# -------------------------------------------------------------------------------------------------------- residuals


class Inverted(nn.Module):
    """Adds its input where it has stride 1; one of its convolutions takes a part of the channels."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.expand, self.part = nn.Conv2d(part, 16, 1), part
        self.project = nn.Conv2d(16, 8, 1)
        self.use_res_connect = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x[:, : self.part]))
        return x + y if self.use_res_connect else y


def test_a_residual_needs_the_whole_input() -> None:
    """Of 16 channels 8 are convolved, into 8: the kernels fit, the maps would not."""
    net = nn.Sequential(nn.Conv2d(3, 16, 1), Inverted(8))
    assert reconnect(net, "1.expand", {"1": (16, 8)}) is None and not net[1].use_res_connect
    assert repr(reconnect(net, "1.expand", {"1": (8, 8)})) == "1: residual 0 → 1 (use_res_connect)"
    strided = nn.Sequential(Inverted(8))
    strided[0].project.stride = (2, 2)
    assert reconnect(strided, "0.expand", {"0": (8, 8)}) is None


def test_edits_are_empty_where_nothing_was_edited() -> None:
    assert edits_of(nn.Conv2d(1, 1, 1)) == ((), (), ())


def test_a_transposed_kernel_that_stays_keeps_the_mean_of_a_constant_map() -> None:
    layer = nn.ConvTranspose2d(1, 1, 3, 2, 1, output_padding=1, bias=False)
    nn.init.constant_(layer.weight, 0.1)
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), nn.Conv2d(1, 1, 3, 2, 1), layer, nn.Conv2d(1, 1, 1))
    student, _ = derive_student(net, 2, example=torch.zeros(1, 1, 32, 32))
    flat = torch.ones(1, 1, 16, 16)
    assert student[2].stride == (1, 1)
    means = [deconvolve(flat)[..., 4:-4, 4:-4].mean() for deconvolve in (student[2], layer)]
    assert torch.allclose(*means)
