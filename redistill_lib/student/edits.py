"""Changing one layer's stride, kind by kind, and saying what was changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from redistill_lib.network.flow import Call, Extent
from redistill_lib.student.calls import edit, edits_of, rewrite_call
from redistill_lib.student.ratios import (
    AVG_POOLS,
    CONVOLUTIONS,
    MAX_POOLS,
    Window,
    each,
    filling,
    is_idle,
    kind_of,
    settings_of,
)
from redistill_lib.student.rnnpool import RNNPool
from redistill_lib.student.steps import Blur, Border, DepthToSpace, Repeat

Downsampler = Literal["stride", "max", "avg", "blur", "space_to_depth", "rnnpool"]
# Calls by which squares of pixels become channels.
_MERGES = ("__getitem__", "view", "reshape", "permute", "flatten", "unflatten", "rearrange")
# Names under which inverted residuals keep whether they add their input: here, torchvision's and transformers'.
_RESIDUALS = ("residual", "use_res_connect", "use_residual")


@dataclass(frozen=True, repr=False)
class Change:
    """One layer that `derive_student` changed: its stride (or upsampling) before and after.

    `kind` is "conv stride", "patch embed" (kernel = stride), "max pool", "avg pool", "max unpool", "transposed conv",
    "upsample", "inserted" (a pool or a shuffle), "call" (in a module's own forward), "patch merging", "positions"
    (of patches), "windows" or "map" (whose size is told), "border" (of a layer that keeps its stride) or "residual"
    (of a block that has stride 1 now). `note` says what else changed. `pd.DataFrame(changes)` is their table.

    >>> Change("conv1", "conv stride", 2, 8)
    conv1: conv stride 2 → 8
    """

    layer: str
    kind: str
    before: int
    after: int
    note: str = ""

    def __repr__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.layer or 'the network'}: {self.kind} {self.before} → {self.after}{note}"


def restride(
    model: nn.Module,
    call: Call,
    old: int,
    new: int,
    downsampler: Downsampler,
    shared: Collection[str] = (),
    down: bool = False,
) -> Change:
    """Change the layer behind `call` from ratio `old` to `new`, or raise ValueError with the reason why not.

    `shared` are paths of modules that run at several places of which not all change so: a module around them changes
    this one call. So does the layer's own forward where it is of no known kind; `down` says that it rounds down.
    """
    path, layer, function = call.path, model.get_submodule(call.path), call.function
    pooled = new > old and downsampler != "stride" and function.startswith("conv") and "transpose" not in function
    kind = kind_of(function)
    if path not in shared and kind and isinstance(layer, kind.layers):
        if pooled:
            return Change(path, "inserted", old, new, _insert(path, layer, old, new, downsampler))
        change = change_layer(path, layer, function, old, new)
        if is_idle(function, vars(layer)):
            # In place, as a forward may reach the layer by another way than its name, such as a list.
            for name in [name for name in vars(layer) if not name.startswith("_") and name != "training"]:
                delattr(layer, name)
            layer.__class__ = nn.Identity
            change = replace(change, note="removed")
        return change
    if pooled:
        raise ValueError(
            f"{path or 'the network'} calls {function} at {call.line}, where no pool can be inserted: "
            f"downsampler={downsampler!r} needs a plain convolution layer that runs once, 'stride' does not"
        )
    pixels = old ** (len(call.scales) or 2)
    merges = new == 1 and function in _MERGES and path not in shared
    if merges and (channels := _merged_channels(layer, pixels)):
        if not any(isinstance(step, Repeat) for step in edits_of(layer).before):  # it may merge by several calls
            edit(layer, before=(Repeat(old, channels),))
        return Change(path, "patch merging", old, new, f"each pixel {pixels} times")
    return Change(path, "call", old, new, rewrite_call(model, call, old, new, shared, down))


def change_layer(path: str, layer: nn.Module, function: str, old: int, new: int) -> Change:
    """Give a layer that calls one function the settings for another ratio, in place."""
    kind, given = kind_of(function), settings_of(layer)
    assert kind is not None
    try:
        changed, name = kind.settings(given, old, new), kind.name
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if "weight" in changed:  # a kernel that tiles the map keeps tiling it
        weight = changed.pop("weight")
        layer.weight = _parameter(weight, given["weight"])
        changed["kernel_size"] = tuple(weight.shape[2:])
        name = "patch embed" if isinstance(layer, CONVOLUTIONS) else name
    vars(layer).update(changed)
    note = ""
    if "kernel_size" in changed:
        before, after = (each(sides["kernel_size"], 1)[0] for sides in (given, changed))
        note = f"kernel {before} → {after}" if before != after else ""
    elif "padding" in changed:
        note = f"padding {changed['padding'][0]}"
    return Change(path, name, old, new, note)


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
    axes, fill = len(got), filling("conv")
    last: Any = next(reversed(edits_of(layer).behind), None)
    if isinstance(last, nn.PixelShuffle | DepthToSpace):
        # What was lifted gives whole multiples of a map's sides: its last lines are repeated, or cut off.
        factor: Any = last.upscale_factor if isinstance(last, nn.PixelShuffle) else last.factor
        pads = [(0, w - g) for g, w in zip(got, wanted, strict=True)]
        if any(abs(line) >= factor for _, line in pads):
            return None
        edit(layer, behind=(border := Border(pads, None),))
        return border.extra_repr()
    stride, reach = (1,) * axes, (0,) * axes
    if isinstance(layer, (*CONVOLUTIONS, *MAX_POOLS, *AVG_POOLS)):
        window = Window.of(settings_of(layer), axes)
        stride, reach = window.stride, window.reach
    elif rewrites := edits_of(layer).rewrites:
        stride, reach = (rewrites[-1].new,) * axes, (max(rewrites[-1][2:4]) + 1,) * axes
    if isinstance(layer, (*MAX_POOLS, *AVG_POOLS)):
        more = {w - g for w, g in zip(wanted, got, strict=True)}
        both, odd = divmod(max(more), 2)  # lines to add on either side
        padding = window.padding[0] + both
        if len(more) == 1 and both > 0 == odd and {*stride} == {1} and padding <= min(window.kernel) // 2:
            layer.padding = padding
            return f"padding {padding}"
        fill = filling("max_pool" if isinstance(layer, MAX_POOLS) else "avg_pool")
    pads = list[tuple[int, int]]()
    for g, w, s, r in zip(got, wanted, stride, reach, strict=True):
        lines = (w - g) * s
        if not 1 - r <= lines <= max(r - 1, s):
            return None
        # The odd line goes to the left and top, as its like stands right; single pixels stay where they are.
        pads.append((lines - lines // 2, lines // 2) if lines > 0 and r > 1 else (0, lines))
    border = Border(pads, fill)
    edit(layer, before=(border,))
    return border.extra_repr()


def _insert(path: str, conv: Any, old: int, new: int, downsampler: Downsampler) -> str:
    factor, axes = new // old, len(conv.kernel_size)
    if new % old:
        raise ValueError(f"{path}: a {downsampler} pool cannot take stride {old} to {new}; 'stride' can")
    if not _plain(conv):
        raise ValueError(
            f"{path} is a {type(conv).__name__}, which convolves in its own way: "
            f"downsampler={downsampler!r} needs a plain Conv2d there, 'stride' does not"
        )
    if axes > 2 and downsampler in ("blur", "space_to_depth", "rnnpool"):
        raise ValueError(f"{path}: {downsampler} is for images; a network of volumes takes 'stride', 'max' or 'avg'")
    if downsampler == "space_to_depth":
        # Every pixel of a square weighs the same: at first the teacher's stem on the image shrunk by averaging.
        conv.weight = _parameter(conv.weight.repeat_interleave(factor**2, 1) / factor**2, conv.weight)
        edit(conv, before=(nn.PixelUnshuffle(factor),))
        return f"space to depth {factor}"
    if downsampler == "rnnpool":
        pool = RNNPool(conv.in_channels, factor).to(conv.weight)
        if pool.channels % conv.groups:
            raise ValueError(
                f"{path} has {conv.groups} groups, which do not divide the {pool.channels} channels of an RNNPool; "
                "another downsampler can take this"
            )
        conv.in_channels = pool.channels
        shape = len(conv.weight), pool.channels // conv.groups, *conv.kernel_size
        conv.weight = nn.Parameter(conv.weight.new_empty(shape))
        conv.reset_parameters()
        conv.rnnpool = pool
        edit(conv, before=("rnnpool",))
        return f"RNNPool {factor}, weights drawn anew"
    if downsampler != "blur":
        edit(conv, behind=(getattr(nn, f"{downsampler.title()}Pool{axes}d")(factor),))
    elif factor & (factor - 1):
        raise ValueError(f"{path}: blur halves, so it cannot reduce by {factor}; choose a power of two, or 'avg'")
    else:
        edit(conv, behind=(Blur(),) * (factor.bit_length() - 1))
    return f"{downsampler} pool {factor}"


def _plain(conv: nn.Conv2d | nn.Conv3d) -> bool:
    kind = nn.Conv2d if isinstance(conv, nn.Conv2d) else nn.Conv3d
    return type(conv).forward is kind.forward and "weight" in conv._parameters


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)
