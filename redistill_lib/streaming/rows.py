"""Layers that run on a few rows of a map, and the stream that drives them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair


class Span(NamedTuple):
    """Which rows of a map a layer reads for each of its own, top down; by default the same one."""

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    zeros: int = 0  # rows of padding, above and below the map, that are read as zeros; windows end at the others
    ceil: bool = False  # a last window may reach below the padding

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def height(self, source: int) -> int:
        """How many rows it makes of a map."""
        free = source + 2 * self.padding - self.reach
        made = free // self.stride + 1
        more = self.ceil and free % self.stride and made * self.stride < source + self.padding
        return made + bool(more)

    def first(self, row: int) -> int:
        """The row of the map where the window of a row of its own begins, in the padding or not."""
        return row * self.stride - self.padding

    def window(self, row: int, source: int) -> range:
        """The rows that it reads for one of its own."""
        taps = range(self.first(row), self.first(row) + self.reach, self.dilation)
        inside = [tap for tap in taps if -self.zeros <= tap < source + self.zeros]
        if not inside:
            raise ValueError(f"a map of {source} rows is too low for {self}, whose window would miss it")
        return range(inside[0], inside[-1] + 1, self.dilation)

    def at_once(self, row: int, most: int, source: int) -> int:
        """How many rows can be made at once: such as have whole windows, or one whose window ends at an edge."""
        if len(self.window(row, source)) < self.kernel:
            return 1
        below = source + self.zeros - self.first(row) - self.reach
        return min(most, 1 + below // self.stride)


class Stage(NamedTuple):
    """What makes the rows of one map. Maps have numbers: 0 is the image, and k is made by the k-th stage."""

    make: Callable[..., Tensor]  # a `StreamedLayer`, or a function of rows
    reads: tuple[int, ...]
    span: Span
    then: tuple[Callable[..., Tensor], ...]  # of each element alone, on the rows that were just made


class Stream:
    """A chain of stages as a hook before the first of its layers: image in, last map out, `rows` rows at a time."""

    def __init__(self, stages: tuple[Stage, ...], rows: int) -> None:
        self.stages, self.rows = stages, rows
        self.readers: list[list[int]] = [[] for _ in (0, *stages)]  # of each map, by its number: those made of it
        for number, stage in enumerate(stages, 1):
            for read in stage.reads:
                self.readers[read].append(number)

    def __call__(self, layer: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        if isinstance(args[-1], Rows):
            return None  # it is the stream that calls
        if torch.is_grad_enabled() and any(x.requires_grad for x in (args[0], *layer.parameters())):
            raise RuntimeError("a network that runs row by row passes no gradient; run it under torch.no_grad()")
        return _Pass(self, args[0]).last()

    def heights(self, image: int) -> list[int]:
        """Of all maps, by number. Raises ValueError where maps of different heights would be added up."""
        heights = [image]
        for stage in self.stages:
            read, *others = {heights[number] for number in stage.reads}
            if others:
                raise ValueError(f"{stage.make} reads maps of {read} and {others[0]} rows")
            heights.append(stage.span.height(read))
        return heights


class Rows(NamedTuple):
    """What a streamed layer is told beside rows of its map."""

    taps: int  # how many rows its kernel has here: fewer at edges
    source: int  # height of the whole map


class StreamedLayer(nn.Module):
    """Mixed into the class of each layer of the chain. The network itself finds it done: its map is the stream's."""

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        return x if rows is None else _on_rows(self, x, rows)

    def train(self, mode: bool = True) -> StreamedLayer:
        if mode:
            raise RuntimeError("layers that run row by row are for inference only; train the network without them")
        return super().train(False)

    def extra_repr(self) -> str:
        plain = super().extra_repr()
        return f"{plain}, by rows" if plain else "by rows"

    def __reduce__(self) -> Any:
        # A class made here has no name by which pickle could find it.
        return _blank, (plain_type(self),), self.__getstate__()


@functools.cache
def streamed_type(kind: Any) -> Any:
    """The class of a layer, by rows."""
    return type(kind.__name__, (StreamedLayer, kind), {"__module__": __name__})


def plain_type(layer: nn.Module) -> Any:
    """The class that the layer had before."""
    return type(layer).__mro__[2] if isinstance(layer, StreamedLayer) else type(layer)


def _blank(kind: Any) -> Any:
    made = streamed_type(kind)
    return made.__new__(made)


def _on_rows(layer: Any, x: Tensor, rows: Rows) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return _convolve(layer, x, rows)
    if not isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        made: Tensor = plain_type(layer).forward(layer, x)
        return made
    kernel, padding = (rows.taps, _pair(layer.kernel_size)[1]), (0, _pair(layer.padding)[1])
    if isinstance(layer, nn.MaxPool2d):
        return F.max_pool2d(x, kernel, layer.stride, padding, layer.dilation, layer.ceil_mode)
    counted = layer.count_include_pad, layer.divisor_override
    return F.avg_pool2d(x, kernel, layer.stride, padding, layer.ceil_mode, *counted)


def _convolve(layer: nn.Conv2d, x: Tensor, rows: Rows) -> Tensor:
    """By the kernel that PyTorch takes for the whole map.

    A CPU's is chosen by size, and each adds up in an order of its own, so that results would differ by rounding.
    """
    top, left = sides_of(layer)
    if type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling():
        library: Any = torch._C
        whole = x.narrow(2, 0, 1).expand(-1, -1, rows.source, -1)
        options = layer.stride, (top, left), layer.dilation, False, (0, 0), layer.groups, None
        if library._select_conv_backend(whole, layer.weight, layer.bias, *options) == library._ConvBackend.Mkldnn:
            around = (0, left), layer.stride, layer.dilation, layer.groups
            return torch.mkldnn_convolution(x, layer.weight, layer.bias, *around)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, (0, left), layer.dilation, layer.groups)


def sides_of(layer: nn.Conv2d) -> tuple[int, int]:
    """The padding above and to the left of what a convolution reads."""
    left, _, top, _ = layer._reversed_padding_repeated_twice
    return top, left


class _Pass:
    """One run of a stream: the maps so far."""

    def __init__(self, stream: Stream, image: Tensor) -> None:
        self.stages, self.rows, self.readers = stream.stages, stream.rows, stream.readers
        _, *heights = stream.heights(image.shape[2])
        self.maps = [_Held(image.shape[2], 0, 0, image)]
        for height, readers in zip(heights, self.readers[1:], strict=True):
            spans = [self.stages[reader - 1].span for reader in readers]
            zeros = max((span.zeros for span in spans), default=0)
            room = max((span.reach + (self.rows - 1) * span.stride for span in spans), default=height)
            if spans and all(span.reach == span.stride == 1 for span in spans):
                room = 0  # rows are read as soon as they are made, all of them
            self.maps.append(_Held(height, zeros, min(room, height + 2 * zeros)))

    def last(self) -> Tensor:
        self.pull(len(self.stages), self.maps[-1].height)
        made = self.maps[-1].held
        assert made is not None
        return made

    def pull(self, number: int, end: int) -> None:
        """Make the rows of a map up to that one, each when what comes behind has read those before it."""
        map_ = self.maps[number]
        while map_.end < min(end, map_.height):
            stage, row = self.stages[number - 1], map_.end
            source = self.maps[stage.reads[0]].height
            window = stage.span.window(row, source)
            count = stage.span.at_once(row, min(self.rows, min(end, map_.height) - row), source)
            start, stop = window.start, window.stop + (count - 1) * stage.span.stride
            for read in filter(None, stage.reads):  # the image is there
                self.pull(read, max(stop, 1))
            told = Rows(len(window), source)
            parts = [self.maps[read].window(start, stop) for read in stage.reads]
            fresh = stage.make(*parts, told) if isinstance(stage.make, nn.Module) else stage.make(*parts)
            del parts
            for step in stage.then:
                fresh = step(fresh, told) if isinstance(step, nn.Module) else step(fresh)
            map_.add(fresh, self.lowest(number))
        if map_.end < end:
            map_.add_zeros(end - map_.end, self.lowest(number))

    def lowest(self, number: int) -> int:
        """The first row of a map that is still to be read; of the last map every one is."""
        readers = [k for k in self.readers[number] if self.maps[k].end < self.maps[k].height]
        return min((self.stages[k - 1].span.first(self.maps[k].end) for k in readers), default=0)


class _Held:
    """The rows of a map that are held: in a tensor of their own, or in the image."""

    def __init__(self, height: int, zeros: int, room: int, image: Tensor | None = None) -> None:
        self.height, self.zeros, self.room = height, zeros, room
        self.held = image
        self.start = -zeros  # the row of the map that is the first one held
        self.end = height if image is not None else 0  # the row behind the last one

    def window(self, start: int, stop: int) -> Tensor:
        assert self.held is not None
        first = min(max(start, self.start), self.end)
        part = self.held.narrow(2, first - self.start, max(0, min(stop, self.end) - first))
        above = max(0, min(first, stop) - start)  # padding, of the image alone: other maps hold theirs
        below = stop - start - above - part.shape[2]
        return F.pad(part, (0, 0, above, below)) if above or below else part

    def add(self, fresh: Tensor, lowest: int) -> None:
        count = fresh.shape[2]
        if self.room <= count and self.end <= lowest and not self.zeros:
            self.held, self.start = fresh, self.end  # nothing else is read with it
        else:
            self.place(count, lowest, fresh).copy_(fresh)
        self.end += count

    def add_zeros(self, count: int, lowest: int) -> None:
        assert self.held is not None
        self.place(count, lowest, self.held).zero_()
        self.end += count

    def place(self, count: int, lowest: int, like: Tensor) -> Tensor:
        """Where the next rows go, those that nobody reads any more overwritten."""
        if self.held is None:
            self.held = _rows_like(like, max(self.room, self.zeros + count))
            self.held.narrow(2, 0, self.zeros).zero_()
        if self.end + count - self.start > self.held.shape[2]:
            lowest = min(lowest, self.end)
            kept, unread = self.end - lowest, lowest - self.start
            if kept + count > self.held.shape[2]:  # a shortcut waits for the layers beside it
                source = self.held.narrow(2, unread, kept)
                self.held = _rows_like(like, kept + count)
                self.held.narrow(2, 0, kept).copy_(source)
            else:
                for k in range(0, kept, max(unread, 1)):  # no more at once, or source and target would overlap
                    few = min(unread, kept - k)
                    self.held.narrow(2, k, few).copy_(self.held.narrow(2, unread + k, few))
            self.start = lowest
        return self.held.narrow(2, self.end - self.start, count)


def _rows_like(x: Tensor, rows: int) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    shape = *x.shape[:2], rows, x.shape[3]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
