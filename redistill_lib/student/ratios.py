"""Functions that change resolution, at another ratio: what they are told, by a call or a layer's settings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from redistill_lib.student.kernels import Upsampling, resize_tile, resize_transposed

Settings = dict[str, Any]


def each(value: Any, axes: int) -> tuple[Any, ...]:
    """A setting per axis."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values * axes if len(values) == 1 else values


def scaled(stride: Any, old: int, new: int) -> Any:
    """A stride, or one per axis, for the new ratio; ValueError where it cannot have had the old one."""
    if isinstance(stride, tuple | list):
        return tuple(scaled(one, old, new) for one in stride)
    if stride * new % old or not stride:
        raise ValueError(f"strides {stride}, which is no multiple of {old}")
    return stride * new // old


class Window(NamedTuple):
    """The windows that a convolution or a pool slides over a map, along each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, given: Settings, axes: int = 1) -> Window:
        """That of a call's arguments, or of a layer's settings; numbers are those of `axes` axes."""
        kernel = each(given["kernel_size"] if "kernel_size" in given else tuple(given["weight"].shape[2:]), axes)
        axes = len(kernel)
        stride = each(given.get("stride") or (1 if "weight" in given else kernel), axes)
        padding, dilation = given.get("padding", 0), each(given.get("dilation", 1), axes)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        return cls(kernel, stride, each(0 if padding == "valid" else padding, axes), dilation)

    @property
    def tiles(self) -> bool:
        """Whether square windows cover the map without gaps or overlap."""
        return len({*self.kernel, *self.stride}) == 1 and {*self.padding} == {0} and {*self.dilation} == {1}

    @property
    def reach(self) -> tuple[int, ...]:
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    def missing(
        self, sides: Sequence[int], old: int, new: int, ceil: bool = False, down: bool = False
    ) -> list[tuple[int, int]]:
        """The lines to add along each axis for `new` to divide the sides as `old` does; [] if that does not.

        `ceil`: a window that only begins on the map counts. `down`: `old` is known to divide sides, rounding down.
        """
        lines: list[tuple[int, int]] = []
        for side, reach, padding, stride in zip(sides, self.reach, self.padding, self.stride, strict=True):
            room = side + 2 * padding - reach
            fits = (-(-room // stride) if ceil else room // stride) + 1
            if self.tiles or (fits != -(-side // old) and not down):
                return []
            step = stride * new // old
            more = ((side // new if down else -(-side // new)) - 1) * step - room
            # The odd line stands on the left, as its like stands on the right where stride cut it off.
            lines.append((more - more // 2, more // 2) if more > 0 else (0, more if -more >= step else 0))
        return lines


def _conv(given: Settings, old: int, new: int) -> Settings:
    window, stride = Window.of(given), scaled(given.get("stride", 1), old, new)
    if window.tiles:
        size = each(stride, len(window.kernel))
        return {"weight": resize_tile(_weight(given), size, (old / new) ** len(size)), "stride": stride}
    if given.get("padding") == "same" and new > 1:  # which only stride 1 may have
        return {"stride": stride, "padding": window.padding}
    return {"stride": stride}


def _weight(given: Settings) -> Tensor:
    if "weight" not in given:
        raise ValueError("computes its weight, so its kernel cannot follow its stride")
    weight: Tensor = given["weight"]
    return weight


def _pool(given: Settings, old: int, new: int) -> Settings:
    stride = scaled(given.get("stride") or given["kernel_size"], old, new)
    return {"stride": stride, "kernel_size": stride} if Window.of(given).tiles else {"stride": stride}


def _conv_transpose(given: Settings, old: int, new: int) -> Settings:
    window = Window.of(given)
    if uneven := [sides for sides in window if len({*sides}) > 1]:
        raise ValueError(f"has {uneven[0]} along its axes; a plan has one stride for all")
    (kernel, before, padding, dilation), axes = (sides[0] for sides in window), len(window.kernel)
    stride = scaled(before, old, new)
    if window.tiles:
        return {"weight": resize_tile(_weight(given), (stride,) * axes, 1.0), "stride": (stride,) * axes}
    # A smaller stride may keep the kernel, as convolutions do; a larger one would tear gaps between its taps.
    extra = stride - 1 + 2 * padding - dilation * (kernel - 1)
    now = Upsampling(kernel, padding, before)
    resized, missing = now.at(stride)
    if (new < old or stride == 1) and 0 <= extra < max(stride, dilation):
        # On the average a pixel is then the sum of more taps, or of fewer.
        weight = _weight(given) * (stride / before) ** axes
        return {"weight": weight, "stride": (stride,) * axes, "output_padding": (extra,) * axes}
    if dilation > 1 or not 0 <= missing < stride:
        raise ValueError(
            f"upsamples with kernel {kernel} and padding {padding}, which at stride {stride} give no map of {stride} "
            "times its input's size; take kernel 2s and padding s/2 for a stride s, or kernel = stride"
        )
    sides = {"stride": stride, "padding": resized.padding, "output_padding": missing}
    weight = resize_transposed(_weight(given), now, resized)
    return {"weight": weight, **{name: (side,) * axes for name, side in sides.items()}}


def _interpolate(given: Settings, old: int, new: int) -> Settings:
    # As large as the ratio makes it: an old size may have been computed or given.
    size, scale = given.get("size"), given.get("scale_factor")
    if size is not None and "input" in given:
        scale = each(size, 1)[0] / given["input"].shape[2]
    return {"size": None, "scale_factor": float(new) if each(scale or new, 1)[0] >= 1 else 1 / new}


def _slice(given: Settings, old: int, new: int) -> Settings:
    index = given["index"] if isinstance(given["index"], tuple) else (given["index"],)
    steps = [isinstance(part, slice) and part.step not in (None, 1) for part in index]
    if not any(steps):
        scaled(0, old, new)
    # What is left out at the start are pixels of a map that the student has at another resolution.
    parts = (
        slice(part.start and part.start * new // old, part.stop, scaled(part.step, old, new)) if step else part
        for part, step in zip(index, steps, strict=True)
    )
    return {"index": tuple(parts)}


def _shuffle(given: Settings, old: int, new: int) -> Settings:
    name = "upscale_factor" if "upscale_factor" in given else "downscale_factor"
    return {name: scaled(given[name], old, new)}


class Kind(NamedTuple):
    """Functions alike but for their axes: settings at another ratio, arguments, layers, the name of their change."""

    settings: Callable[[Settings, int, int], Settings]
    arguments: str
    layers: tuple[type[nn.Module], ...] = ()
    name: str = "call"


CONVOLUTIONS, MAX_POOLS, AVG_POOLS = (
    (nn.Conv2d, nn.Conv3d),
    (nn.MaxPool2d, nn.MaxPool3d),
    (nn.AvgPool2d, nn.AvgPool3d),
)
_WINDOW = "kernel_size stride padding dilation ceil_mode return_indices"
_KINDS = {
    "conv": Kind(_conv, "weight bias stride padding dilation groups", CONVOLUTIONS, "conv stride"),
    "conv_transpose": Kind(
        _conv_transpose, "weight bias stride padding output_padding groups dilation",
        (nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed conv",
    ),
    "max_pool": Kind(_pool, _WINDOW, MAX_POOLS, "max pool"),
    "max_pool_with_indices": Kind(_pool, _WINDOW, MAX_POOLS, "max pool"),
    "avg_pool": Kind(
        _pool, "kernel_size stride padding ceil_mode count_include_pad divisor_override",
        AVG_POOLS, "avg pool",
    ),
    "lp_pool": Kind(_pool, "norm_type kernel_size stride ceil_mode"),
    "max_unpool": Kind(
        _pool, "indices kernel_size stride padding output_size", (nn.MaxUnpool2d, nn.MaxUnpool3d), "max unpool"
    ),
    "interpolate": Kind(_interpolate, "size scale_factor mode align_corners", (nn.Upsample,), "upsample"),
    "__getitem__": Kind(_slice, "index"),
    "pixel_shuffle": Kind(_shuffle, "upscale_factor"),
    "pixel_unshuffle": Kind(_shuffle, "downscale_factor"),
}  # fmt: skip


def settings_of(layer: nn.Module) -> Settings:
    """Those of a layer that these functions are told; a weight that is computed is none."""
    names = ("kernel_size", "stride", "padding", "output_padding", "dilation", "size", "scale_factor")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)} | {
        name: value for name, value in layer._parameters.items() if name == "weight"
    }


def embeds(layer: nn.Module) -> bool:
    """Whether a layer is a convolution whose kernel tiles the map, as that which makes patches of an image."""
    return isinstance(layer, CONVOLUTIONS) and Window.of(settings_of(layer)).tiles


def kind_of(function: str) -> Kind | None:
    """What is known of a function, as "max_pool2d"; None: nothing."""
    return _KINDS.get(re.sub(r"[123]d", "", function).partition(" ")[0])


def filling(function: str) -> float | None:
    """What lines that make up for a border are filled with, to neither win nor weigh; None: the border's values."""
    return -math.inf if function.startswith("max_pool") else 0.0 if function.startswith("conv") else None


def is_idle(function: str, changed: Settings) -> bool:
    """Whether a function that is told so does nothing: a pool over one pixel, an interpolation by 1."""
    pools = function.startswith(("max_pool", "avg_pool")) and "indices" not in function
    sides = {*each(changed.get("kernel_size"), 1), *each(changed.get("stride"), 1)}
    return changed.get("scale_factor") == 1 or (pools and sides == {1})
