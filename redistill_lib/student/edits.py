"""Changing one layer's stride, kind by kind, and saying what was changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill_lib.checks import is_number
from redistill_lib.network.flow import Call, Extent

Downsampler = Literal["stride", "max", "avg", "blur", "space_to_depth"]
# What `restride` knows; any other module that resizes does so in its own forward.
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, nn.Upsample)
# Names under which modules with a resizing function in their forward keep its stride.
_ATTRIBUTES = ("stride", "scale_factor", "scale", "factor")
# Names under which inverted residuals keep whether they add their input: here, torchvision's and transformers'.
_RESIDUALS = ("residual", "use_res_connect", "use_residual")


@dataclass(frozen=True, repr=False)
class Change:
    """One layer that `derive_student` changed: its stride (or upsampling) before and after.

    `kind` is "conv stride", "patch embed" (kernel = stride), "max pool", "avg pool", "transposed conv", "upsample",
    "inserted" (a pool or a shuffle), "attribute" (of a module that resizes in its own forward) or "residual" (of a
    block that has stride 1 now). `note` says what else changed. `pd.DataFrame(changes)` is their table.

    >>> Change("conv1", "conv stride", 2, 8)
    conv1: conv stride 2 → 8
    """

    layer: str
    kind: str
    before: int
    after: int
    note: str = ""

    def __repr__(self) -> str:
        return f"{self.layer}: {self.kind} {self.before} → {self.after}" + (f" ({self.note})" if self.note else "")


def restride(model: nn.Module, call: Call, old: int, new: int, downsampler: Downsampler) -> Change:
    """Change the layer behind `call` from ratio `old` to `new`, or raise ValueError with the reason why not."""
    path, layer = call.path, model.get_submodule(call.path)
    kind, note = "upsample", ""
    if isinstance(layer, nn.Conv2d) and call.function == "conv2d":
        pooled = new > old and downsampler != "stride"
        kind, note = _insert(path, layer, old, new, downsampler) if pooled else _conv(path, layer, old, new)
    elif isinstance(layer, nn.ConvTranspose2d):
        kind, note = "transposed conv", _transposed(path, layer, new)
    elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        kind, note = _pool(model, layer, new)
    elif not isinstance(layer, nn.Upsample):
        kind, note = "attribute", _attribute(call, layer, old, new)
    elif new == 1:
        note = _remove(model, layer)
    else:
        layer.scale_factor, layer.size = float(new), None
    return Change(path, kind, old, new, note)


def lift(path: str, layer: nn.Module, factor: int) -> Change:
    """Let the last convolution shuffle repeated channels into `factor` times its input's height and width."""
    if not isinstance(layer, nn.Conv2d) or not _plain(layer) or layer.groups > 1:
        raise ValueError(
            f"{path or 'the network'} makes the output image, which has to grow ×{factor}; that can be added "
            f"to a plain Conv2d or ConvTranspose2d, not to a {type(layer).__name__}"
        )
    for name, value in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, _parameter(value.repeat_interleave(factor**2, 0), value))
    _add_steps(layer, behind=(nn.PixelShuffle(factor),))
    return Change(path, "inserted", 1, factor, f"depth to space ×{factor}")


def _remove(model: nn.Module, layer: nn.Module) -> str:
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is layer:
            model.set_submodule(path, nn.Identity().train(layer.training))
    return "removed"


def reconnect(model: nn.Module, path: str) -> Change | None:
    """Switch on the residual of the inverted residual around `path`, if only its stride forbade one."""
    while path := path.rpartition(".")[0]:
        block = model.get_submodule(path)
        flag = next((name for name in _RESIDUALS if getattr(block, name, None) is False), None)
        if flag is not None:
            convs = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
            if convs[0].in_channels != convs[-1].out_channels or any(conv.stride != (1, 1) for conv in convs):
                return None
            setattr(block, flag, True)
            return Change(path, "residual", 0, 1, flag)
    return None


def settle(layer: nn.Module, got: Extent, wanted: Extent) -> str | None:
    """Pad a layer whose map lacks a border; what was done, or None where nothing can be."""
    short = [w - g for w, g in zip(wanted, got, strict=True)]
    if min(short) < 0:
        return None
    if isinstance(layer, nn.Conv2d) and _plain(layer):
        # At most what keeps the size is missing; the odd line goes to the left and top, as its like stands right.
        missing = [d * s for d, s in zip(short, layer.stride, strict=True)]
        if any(m > d * (k - 1) for m, d, k in zip(missing, layer.dilation, layer.kernel_size, strict=True)):
            return None
        (top, bottom), (left, right) = ((m - m // 2, m // 2) for m in missing)
        _add_steps(layer, before=(nn.ZeroPad2d((left, right, top, bottom)),))
        return f"padded by {left} left, {right} right, {top} top, {bottom} bottom"
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) and short[0] == short[1] and short[0] % 2 == 0:
        padding = _one(layer.padding) + short[0] // 2
        if padding <= _one(layer.kernel_size) // 2:
            layer.padding = padding
            return f"padding {padding}"
    return None


def _conv(path: str, conv: nn.Conv2d, old: int, new: int) -> tuple[str, str]:
    if _tiles(conv):
        size = conv.kernel_size[0] * new // old
        return "patch embed", _resize_kernel(path, conv, size, (conv.kernel_size[0] / size) ** 2)
    note = ""
    if conv.padding == "same" and new > 1:  # which only stride 1 may have
        reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        conv.padding = (reach[0] // 2, reach[1] // 2)
        note = f"padding {conv.padding[0]}"
    conv.stride = (conv.stride[0] * new // old, conv.stride[1] * new // old)
    return "conv stride", note


def _insert(path: str, conv: nn.Conv2d, old: int, new: int, downsampler: Downsampler) -> tuple[str, str]:
    factor = new // old
    if new % old:
        raise ValueError(f"{path}: a {downsampler} pool cannot take stride {old} to {new}; 'stride' can")
    if not _plain(conv):
        raise ValueError(
            f"{path} is a {type(conv).__name__}, which convolves in its own way: "
            f"downsampler={downsampler!r} needs a plain Conv2d there, 'stride' does not"
        )
    if downsampler == "space_to_depth":
        # Every pixel of a square weighs the same: at first the teacher's stem on the image shrunk by averaging.
        conv.weight = _parameter(conv.weight.repeat_interleave(factor**2, 1) / factor**2, conv.weight)
        _add_steps(conv, before=(nn.PixelUnshuffle(factor),))
        return "inserted", f"space to depth {factor}"
    if downsampler != "blur":
        pool = nn.MaxPool2d(factor) if downsampler == "max" else nn.AvgPool2d(factor)
        _add_steps(conv, behind=(pool,))
    elif factor & (factor - 1):
        raise ValueError(f"{path}: blur halves, so it cannot reduce by {factor}; choose a power of two, or 'avg'")
    else:
        _add_steps(conv, behind=(Blur(),) * (factor.bit_length() - 1))
    return "inserted", f"{downsampler} pool {factor}"


def _transposed(path: str, conv: nn.ConvTranspose2d, new: int) -> str:
    if _tiles(conv):
        return _resize_kernel(path, conv, new, 1.0)
    extra = new - 1 + 2 * int(conv.padding[0]) - conv.dilation[0] * (conv.kernel_size[0] - 1)
    if not 0 <= extra < max(new, conv.dilation[0]):
        raise ValueError(
            f"{path} upsamples with kernel {conv.kernel_size[0]} and padding {conv.padding[0]}, "
            f"which give no map of {new} times its input's size"
        )
    conv.stride, conv.output_padding = (new, new), (extra, extra)
    return ""


def _pool(model: nn.Module, pool: nn.MaxPool2d | nn.AvgPool2d, new: int) -> tuple[str, str]:
    kind = "max pool" if isinstance(pool, nn.MaxPool2d) else "avg pool"
    tiles = _one(pool.kernel_size) == _one(pool.stride) and _one(pool.padding) == 0
    if tiles and new == 1:
        return kind, _remove(model, pool)  # a pool over one pixel
    pool.stride = new
    if tiles:
        pool.kernel_size = new
    return kind, f"kernel {new}" if tiles else ""


def _attribute(call: Call, layer: nn.Module, old: int, new: int) -> str:
    if call.function == "interpolate" and getattr(layer, "interpolate", None) is True and new == 1:
        setattr(layer, "interpolate", False)  # noqa: B010
        return "interpolate off"
    for name in _ATTRIBUTES:
        value: Any = getattr(layer, name, None)
        values = value if isinstance(value, (tuple, list)) else [value]
        if values and all(is_number(v) and v == old for v in values):
            setattr(layer, name, type(value)([new] * len(values) if values is value else new))
            return name
    raise ValueError(inside_forward(call, layer))


def inside_forward(call: Call, layer: nn.Module) -> str:
    what = "slices" if call.function == "__getitem__" else f"calls {call.function}"
    where = f"{call.path or 'the network'} ({type(layer).__name__})"
    return f"{where} {what} in its own forward, which cannot be changed from outside"


def _plain(conv: nn.Conv2d) -> bool:
    return type(conv).forward is nn.Conv2d.forward and "weight" in conv._parameters


def _tiles(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    return (
        conv.kernel_size == conv.stride
        and conv.kernel_size[0] == conv.kernel_size[1]
        and conv.padding in ("valid", (0, 0))
        and conv.dilation == (1, 1)
    )


def _resize_kernel(path: str, conv: nn.Conv2d | nn.ConvTranspose2d, size: int, gain: float) -> str:
    """A kernel that tiles the map keeps tiling it, without gaps or overlap: average or repeat its weights."""
    if "weight" not in conv._parameters:
        raise ValueError(f"{path} computes its weight, so its kernel cannot follow its stride of {size}")
    note = f"kernel {conv.kernel_size[0]} → {size}"
    conv.weight = _parameter(F.adaptive_avg_pool2d(conv.weight, size) * gain, conv.weight)
    conv.kernel_size = conv.stride = (size, size)
    return note


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _one(value: Any) -> int:
    values = set(value) if isinstance(value, (tuple, list)) else {value}
    if len(values) > 1:
        raise ValueError(f"a pool of {value} treats height and width differently; a plan has one stride for both")
    return int(values.pop())


class SteppedConv2d(nn.Conv2d):
    """A convolution with steps `before` and `behind` it that are no layers: padding, a pool, space to depth or back.

    With space to depth or back, the weight has factor² times the channels that `in_channels` or `out_channels` say.
    """

    before: tuple[nn.Module, ...]
    behind: tuple[nn.Module, ...]

    def forward(self, input: Tensor) -> Tensor:
        for step in self.before:
            input = step(input)
        x = super().forward(input)
        for step in self.behind:
            x = step(x)
        return x

    def extra_repr(self) -> str:
        steps = [*(f"behind {step}" for step in self.before), *(f"then {step}" for step in self.behind)]
        return ", ".join([super().extra_repr(), *steps])


def _add_steps(conv: nn.Conv2d, before: tuple[nn.Module, ...] = (), behind: tuple[nn.Module, ...] = ()) -> None:
    conv.__class__ = SteppedConv2d  # in place: parameters, hooks and settings stay
    conv.before, conv.behind = before, behind  # type: ignore[assignment]


class Blur(nn.Module):
    """Halves a map behind the binomial filter [1, 2, 1]⊗[1, 2, 1]/16 with mirrored borders.

    Source: Zhang, "Making convolutional networks shift-invariant again", arXiv 1904.11486, section 3.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        line = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        weight = (line[:, None] * line).expand(x.shape[1], 1, 3, 3)
        mode = "reflect" if min(x.shape[-2:]) > 1 else "replicate"
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=mode), weight, stride=2, groups=x.shape[1])
