"""Changing one layer's stride, kind by kind, and saying what was changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from redistill_lib.network.flow import Call, Extent
from redistill_lib.student.calls import edit, edits_of, rewrite_call
from redistill_lib.student.kernels import Upsampling, each, resize_tile, resize_transposed, tiles
from redistill_lib.student.steps import Blur, Border, DepthToSpace, Repeat

Downsampler = Literal["stride", "max", "avg", "blur", "space_to_depth"]
# What `restride` knows; any other module that resizes does so in its own forward.
CONVOLUTIONS, TRANSPOSED = (nn.Conv2d, nn.Conv3d), (nn.ConvTranspose2d, nn.ConvTranspose3d)
MAX_POOLS, AVG_POOLS = (nn.MaxPool2d, nn.MaxPool3d), (nn.AvgPool2d, nn.AvgPool3d)
UNPOOLS = (nn.MaxUnpool2d, nn.MaxUnpool3d)
LAYERS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv_transpose", TRANSPOSED), ("conv", CONVOLUTIONS), ("max_pool", MAX_POOLS), ("avg_pool", AVG_POOLS),
    ("max_unpool", UNPOOLS), ("interpolate", (nn.Upsample,)),
)  # fmt: skip
# Calls by which squares of pixels become channels.
_MERGES = ("__getitem__", "view", "reshape", "permute", "flatten", "unflatten", "rearrange")
# Names under which inverted residuals keep whether they add their input: here, torchvision's and transformers'.
_RESIDUALS = ("residual", "use_res_connect", "use_residual")


@dataclass(frozen=True, repr=False)
class Change:
    """One layer that `derive_student` changed: its stride (or upsampling) before and after.

    `kind` is "conv stride", "patch embed" (kernel = stride), "max pool", "avg pool", "max unpool", "transposed conv",
    "upsample", "inserted" (a pool or a shuffle), "call" (in a module's own forward), "patch merging", "positions"
    (of patches), "windows", "border" (of a layer that keeps its stride) or "residual" (of a block that has stride 1
    now). `note` says what else changed. `pd.DataFrame(changes)` is their table.

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


def restride(
    model: nn.Module,
    call: Call,
    old: int,
    new: int,
    downsampler: Downsampler,
    shared: Collection[str] = (),
    sides: tuple[Extent, Extent] | None = None,
) -> Change:
    """Change the layer behind `call` from ratio `old` to `new`, or raise ValueError with the reason why not.

    `shared` are paths of modules that run at several places of which not all change so: a module around them changes
    this one call. So does the layer's own forward where it is of no known kind; `sides` of the maps that it takes and
    gives say whether it makes up for a border that it lost.
    """
    path, layer, function = call.path, model.get_submodule(call.path), call.function
    pooled = new > old and downsampler != "stride" and function.startswith("conv") and "transpose" not in function
    if path in shared or not any(isinstance(layer, kinds) and function.startswith(name) for name, kinds in LAYERS):
        if pooled:
            raise ValueError(
                f"{path or 'the network'} calls {function} at {call.line}, where no pool can be inserted: "
                f"downsampler={downsampler!r} needs a plain convolution layer that runs once, 'stride' does not"
            )
        pixels = old ** (len(call.scales) or 2)
        channels = (
            _merged_channels(layer, pixels) if new == 1 and function in _MERGES and path not in shared else None
        )
        if channels:
            if not any(isinstance(step, Repeat) for step in edits_of(layer).before):  # it may merge by several calls
                edit(layer, before=(Repeat(old, channels),))
            return Change(path, "patch merging", old, new, f"each pixel {pixels} times")
        return Change(path, "call", old, new, rewrite_call(model, call, old, new, shared, sides))
    kind, note = "upsample", ""
    if isinstance(layer, CONVOLUTIONS):
        kind, note = _insert(path, layer, old, new, downsampler) if pooled else _conv(path, layer, old, new)
    elif isinstance(layer, TRANSPOSED):
        kind, note = "transposed conv", _transposed(path, layer, old, new)
    elif isinstance(layer, (*MAX_POOLS, *AVG_POOLS)):
        kind, note = "max pool" if isinstance(layer, MAX_POOLS) else "avg pool", _pool(model, path, layer, old, new)
    elif isinstance(layer, UNPOOLS):
        kind, note = "max unpool", _pool(model, path, layer, old, new)
    elif new == 1:
        note = _remove(model, layer)
    else:
        vars(layer).update(scale_factor=float(new), size=None)
    return Change(path, kind, old, new, note)


def _merged_channels(layer: nn.Module, pixels: int) -> int | None:
    """Of a module that makes channels of each square of pixels for a linear layer of its own: those that it takes."""
    widths = [child.in_features for child in layer.children() if isinstance(child, nn.Linear)]
    # What else it has are norms.
    small = all(
        p.ndim < 2 for child in layer.children() if not isinstance(child, nn.Linear) for p in child.parameters()
    )
    return widths[0] // pixels if len(widths) == 1 and widths[0] % pixels == 0 and small else None


def lift(path: str, layer: nn.Module, factor: int) -> Change:
    """Let the last convolution shuffle repeated channels into `factor` times its input's height and width."""
    if not isinstance(layer, CONVOLUTIONS) or not _plain(layer) or layer.groups > 1:
        raise ValueError(
            f"{path or 'the network'} makes the output image, which has to grow ×{factor}; that can be added "
            f"to a plain convolution, transposed or not, and not to a {type(layer).__name__}"
        )
    axes = len(layer.kernel_size)
    for name, value in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, _parameter(value.repeat_interleave(factor**axes, 0), value))
    edit(layer, behind=(nn.PixelShuffle(factor) if axes == 2 else DepthToSpace(factor),))
    return Change(path, "inserted", 1, factor, f"depth to space ×{factor}")


def _remove(model: nn.Module, layer: nn.Module) -> str:
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if module is layer:
            model.set_submodule(path, nn.Identity().train(layer.training))
    return "removed"


def reconnect(model: nn.Module, path: str, channels: Mapping[str, tuple[int, int]]) -> Change | None:
    """Switch on the residual of the inverted residual around `path`, if only its stride forbade one.

    `channels` are those that each module takes and gives, by path: a block may convolve a part of them.
    """
    while path := path.rpartition(".")[0]:
        block = model.get_submodule(path)
        flag = next((name for name in _RESIDUALS if getattr(block, name, None) is False), None)
        if flag is not None:
            strides = [layer.stride for layer in block.modules() if isinstance(layer, CONVOLUTIONS)]
            if len({*channels.get(path, (0, 1))}) > 1 or any({*stride} != {1} for stride in strides):
                return None
            setattr(block, flag, True)
            return Change(path, "residual", 0, 1, flag)
    return None


def settle(layer: nn.Module, got: Extent, wanted: Extent) -> str | None:
    """Pad or crop what a layer takes, by the border that its map lacks or has too much; what was done.

    None where nothing can be: where more is missing than a layer's windows reach.
    """
    if len(got) != len(wanted):
        return None
    stride, reach = (each(value, len(got))[: len(got)] for value in _windows(layer))
    fill: Any = 0.0
    if isinstance(layer, (*MAX_POOLS, *AVG_POOLS)):
        more = {w - g for w, g in zip(wanted, got, strict=True)}
        padding = _one(layer.padding) + (most := max(more)) // 2
        if (
            len(more) == 1
            and most > 0
            and most % 2 == 0
            and {*stride} == {1}
            and padding <= _one(layer.kernel_size) // 2
        ):
            layer.padding = padding
            return f"padding {padding}"
        fill = -math.inf if isinstance(layer, MAX_POOLS) else None
    pads: list[tuple[int, int]] = []
    for g, w, s, r in zip(got, wanted, stride, reach, strict=True):
        lines = (w - g) * s
        if not 1 - r <= lines <= max(r - 1, s):
            return None
        # The odd line goes to the left and top, as its like stands right; single pixels stay where they are.
        pads.append((lines - lines // 2, lines // 2) if lines > 0 and r > 1 else (0, lines))
    border = Border(pads, fill)
    edit(layer, before=(border,))
    return border.extra_repr()


def _windows(layer: nn.Module) -> tuple[Any, Any]:
    """Stride and reach of a layer's windows."""
    if isinstance(layer, (*CONVOLUTIONS, *MAX_POOLS, *AVG_POOLS)):
        dilation = getattr(layer, "dilation", 1)
        sides = zip(each(layer.kernel_size, 3), each(dilation, 3), strict=False)
        return layer.stride, tuple(d * (k - 1) + 1 for k, d in sides)
    rewrites = edits_of(layer).rewrites
    return (rewrites[-1].new, max(rewrites[-1][2:4]) + 1) if rewrites else (1, 0)


def _conv(path: str, conv: nn.Conv2d | nn.Conv3d, old: int, new: int) -> tuple[str, str]:
    stride = tuple(_scaled(path, s, old, new) for s in conv.stride)
    if tiles(conv.kernel_size, conv.stride, conv.padding, conv.dilation):
        return "patch embed", resize_kernel(path, conv, stride, math.prod(conv.kernel_size) / math.prod(stride))
    note = ""
    if conv.padding == "same" and new > 1:  # which only stride 1 may have
        conv.padding = tuple(d * (k - 1) // 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        note = f"padding {conv.padding[0]}"
    conv.stride = stride
    return "conv stride", note


def _scaled(path: str, stride: int, old: int, new: int) -> int:
    if stride * new % old:
        raise ValueError(f"{path} strides {stride} where its map shrinks by {old}, so it cannot shrink it by {new}")
    return stride * new // old


def _insert(path: str, conv: nn.Conv2d | nn.Conv3d, old: int, new: int, downsampler: Downsampler) -> tuple[str, str]:
    factor, axes = new // old, len(conv.kernel_size)
    if new % old:
        raise ValueError(f"{path}: a {downsampler} pool cannot take stride {old} to {new}; 'stride' can")
    if not _plain(conv):
        raise ValueError(
            f"{path} is a {type(conv).__name__}, which convolves in its own way: "
            f"downsampler={downsampler!r} needs a plain Conv2d there, 'stride' does not"
        )
    if axes > 2 and downsampler in ("blur", "space_to_depth"):
        raise ValueError(f"{path}: {downsampler} is for images; a network of volumes takes 'stride', 'max' or 'avg'")
    if downsampler == "space_to_depth":
        # Every pixel of a square weighs the same: at first the teacher's stem on the image shrunk by averaging.
        conv.weight = _parameter(conv.weight.repeat_interleave(factor**2, 1) / factor**2, conv.weight)
        edit(conv, before=(nn.PixelUnshuffle(factor),))
        return "inserted", f"space to depth {factor}"
    if downsampler != "blur":
        edit(conv, behind=(getattr(nn, f"{downsampler.title()}Pool{axes}d")(factor),))
    elif factor & (factor - 1):
        raise ValueError(f"{path}: blur halves, so it cannot reduce by {factor}; choose a power of two, or 'avg'")
    else:
        edit(conv, behind=(Blur(),) * (factor.bit_length() - 1))
    return "inserted", f"{downsampler} pool {factor}"


def _transposed(path: str, conv: nn.ConvTranspose2d | nn.ConvTranspose3d, old: int, new: int) -> str:
    kernel, padding, stride = _one(conv.kernel_size), _one(conv.padding), _scaled(path, _one(conv.stride), old, new)
    axes = len(conv.kernel_size)
    if tiles(kernel, conv.stride, padding, conv.dilation):
        return resize_kernel(path, conv, (stride,) * axes, 1.0)
    # A smaller stride may keep the kernel, as convolutions do; a larger one would tear gaps between its taps.
    extra = stride - 1 + 2 * padding - conv.dilation[0] * (kernel - 1)
    now, note = Upsampling(kernel, padding, conv.stride[0]), ""
    resized, missing = now.at(stride)
    if (new < old or stride == 1) and 0 <= extra < max(stride, conv.dilation[0]):
        missing = extra
    elif conv.dilation[0] == 1 and "weight" in conv._parameters and 0 <= missing < stride:
        conv.weight = _parameter(resize_transposed(conv.weight, now, resized), conv.weight)
        conv.kernel_size, conv.padding = (resized.kernel,) * axes, (resized.padding,) * axes
        note = f"kernel {kernel} → {resized.kernel}"
    else:
        raise ValueError(
            f"{path} upsamples with kernel {kernel} and padding {padding}, which at stride {stride} give no map of "
            f"{stride} times its input's size; take kernel 2s and padding s/2 for a stride s, or kernel = stride"
        )
    conv.stride, conv.output_padding = (stride,) * axes, (missing,) * axes
    return note


def _pool(model: nn.Module, path: str, pool: Any, old: int, new: int) -> str:
    stride = _scaled(path, _one(pool.stride), old, new)
    whole = tiles(_one(pool.kernel_size), _one(pool.stride), pool.padding, getattr(pool, "dilation", 1))
    if whole and stride == 1 and not getattr(pool, "return_indices", False) and not isinstance(pool, UNPOOLS):
        return _remove(model, pool)  # a pool over one pixel
    sizes = (stride,) * len(pool.stride) if isinstance(pool.stride, tuple) else stride  # as its own code reads it
    pool.stride = sizes
    if whole:
        pool.kernel_size = sizes
    return f"kernel {stride}" if whole else ""


def _plain(conv: nn.Conv2d | nn.Conv3d) -> bool:
    kind = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv3d
    return type(conv).forward is kind.forward and "weight" in conv._parameters


def resize_kernel(path: str, conv: Any, size: tuple[int, ...], gain: float) -> str:
    """A kernel that tiles the map keeps tiling it, without gaps or overlap."""
    if "weight" not in conv._parameters:
        raise ValueError(f"{path} computes its weight, so its kernel cannot follow its stride of {size[0]}")
    note = f"kernel {conv.kernel_size[0]} → {size[0]}"
    conv.weight = _parameter(resize_tile(conv.weight, size, gain), conv.weight)
    conv.kernel_size = conv.stride = size
    return note


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _one(value: Any) -> int:
    values = set(value) if isinstance(value, (tuple, list)) else {value}
    if len(values) > 1:
        raise ValueError(f"a layer of {value} treats its axes differently; a plan has one stride for all")
    return int(values.pop())
