"""What a forward pass computes from its images: each function, where it is called, what it takes and makes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from redistill_lib.network.fakes import Tensors, follow, tensors_in
from redistill_lib.network.hooks import check_float, dtype_of
from redistill_lib.red import first_parameter

Extent = tuple[int, ...]  # height and width of a map; of volumes also their depth, before them
Run = tuple[str, int]  # a module's path, and the how many-th time in the pass that it runs

FITTING = "interpolate to a size"  # which follows the map that it takes the size from
CONVOLUTIONS = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")
POOLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "lp_pool2d", "max_pool3d", "max_pool3d_with_indices",
         "avg_pool3d", "lp_pool3d")  # fmt: skip
TURNS = ("transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis")
SHUFFLES = {"pixel_unshuffle": "downscale_factor", "pixel_shuffle": "upscale_factor"}
_TORCH = str(Path(torch.__file__).parent)
_OURS = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "student"))


class Call(NamedTuple):
    """One call of a function on what descends from the image."""

    function: str  # "conv2d", "max_pool2d", "__getitem__"
    stack: tuple[Run, ...]  # of the modules that run, outermost first: the network itself is ("", 0)
    numbers: tuple[int, ...]  # by `stack`: how many calls of this function that run had before
    line: str  # in whose code: "net.py:41 in forward"
    takes: tuple[int, ...]  # values, by number
    makes: tuple[int, ...]
    kernel: Extent = ()  # of a convolution or pool
    scales: Extent = ()  # by how much it divides or multiplies sides; () where that follows sizes
    axes: tuple[int, ...] = ()  # of what it permutes: where each axis of its result was before

    @property
    def path(self) -> str:
        """The innermost module that runs it."""
        return self.stack[-1][0]


class Visit(NamedTuple):
    """One run of a module: the value it takes and those it gives, and its calls, from `first` to before `last`."""

    run: Run
    takes: int  # its first argument; -1 where that is no tensor that descends from an image
    gives: tuple[int, ...]
    first: int
    last: int
    single: bool  # what it gives is a tensor, not several in a tuple or a dict


@dataclass
class Flow:
    """One forward pass: its values by number (their shapes), calls and visits in order of completion."""

    image: int = 0  # the first input that is one, among the values
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    images: int = 0  # how many of the first values are inputs
    gives: tuple[int, ...] = ()  # the values that the network returns
    outputs: list[torch.Size] = field(default_factory=list)  # the shapes of all tensors that it returns
    computed: bool = False  # with the values of this image, on which its way may depend
    running: str = ""  # after an error: the module that it came from
    error: Exception | None = None


Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called with: a tensor, a tuple of arguments, or a dict of named ones."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return ((example,) if isinstance(example, Tensor) else tuple(example)), {}


def image_of(example: Example) -> Tensor:
    """The first image of a network's inputs, or a ValueError."""
    if isinstance(example, (Tensor, tuple, list, Mapping)):
        args, kwargs = arguments_of(example)
        for value in (*args, *kwargs.values()):
            if is_image(value):
                return value
    raise ValueError(
        "example is a batch of images B×C×H×W, or volumes B×C×D×H×W, or a tuple or dict of the network's inputs with "
        "one among them"
    )


def times(size: Extent) -> str:
    """Sides in words: "32×32"."""
    return "×".join(map(str, size))


def is_image(value: Any) -> TypeGuard[Tensor]:
    """A batch of images, or of volumes."""
    return isinstance(value, Tensor) and value.ndim in (4, 5)


def cast_arguments(model: nn.Module, example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a network is called with, floats in the dtype of its weights."""
    dtype = dtype_of(model)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    args, kwargs = arguments_of(example)
    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def trace_flow(model: nn.Module, example: Example, training: bool = False) -> Flow:
    """Follow the images of `example` through the network, computing only where it decides by their values."""
    values, found = cast_arguments(model, example), Flow()

    def watch(twin: nn.Module, values: tuple[tuple[Any, ...], dict[str, Any]], source: Tensors) -> None:
        nonlocal found
        found = Flow(computed=source == "real")
        recorder = _Recorder(found, [value for value in tensors_in(values) if is_image(value)], source)
        paths = {id(module): path for path, module in twin.named_modules()}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            entry = args[0] if args else kwargs.get(first_parameter(module))
            recorder.enter(paths[id(module)], entry, recorder.known((args, kwargs)))

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            recorder.leave(module, output)

        for module in twin.modules():
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(leave, with_kwargs=True)
        with recorder, torch.no_grad():
            twin.train(training)
            outputs = tensors_in(twin(*values[0], **values[1]))
        found.gives, found.outputs = recorder.known(outputs), [x.shape for x in outputs]

    try:
        follow(model, values, watch)
    except Exception as error:
        try:
            check_float(tensors_in(values))
            found.error = error
        except TypeError as stored:  # images as they are stored, where the network converts none
            found.error = stored
    return found


class _Recorder(TorchFunctionMode):
    def __init__(self, flow: Flow, images: list[Tensor], source: Tensors) -> None:
        super().__init__()
        self.flow, self.numbers, self.source = flow, WeakIdKeyDictionary(), source
        self.stack: list[Run] = []
        self.counts: list[Counter[str]] = []  # by `stack`: calls so far in that run, by function
        self.entered: list[tuple[int, tuple[int, ...], int]] = []
        self.runs: Counter[str] = Counter()
        for image in images:
            self.add(image)
        flow.images = len(images)

    def add(self, tensor: Tensor) -> int:
        number = self.numbers[tensor] = len(self.flow.shapes)
        self.flow.shapes.append(tuple(tensor.shape))
        return number

    def known(self, values: Any) -> tuple[int, ...]:
        return tuple(number for x in tensors_in(values) if (number := self.numbers.get(x)) is not None)

    def enter(self, path: str, entry: Any, takes: tuple[int, ...]) -> None:
        self.stack.append((path, self.runs[path]))
        self.counts.append(Counter())
        first = self.numbers.get(entry, -1) if isinstance(entry, Tensor) else -1
        self.entered.append((first, takes, len(self.flow.calls)))
        self.runs[path] += 1
        self.flow.running = path

    def leave(self, module: nn.Module, output: Any) -> None:
        entry, takes, first = self.entered.pop()
        unseen = [x for x in tensors_in(output) if x not in self.numbers]
        if takes and unseen:  # what runs in C++, or as an autograd function, is seen as one
            self.call(type(module).__name__, takes, unseen)
        self.counts.pop()
        gives, last = self.known(output), len(self.flow.calls)
        self.flow.visits.append(Visit(self.stack.pop(), entry, gives, first, last, isinstance(output, Tensor)))
        self.flow.running = self.stack[-1][0] if self.stack else ""

    def call(self, function: str, takes: tuple[int, ...], results: list[Tensor], **facts: Any) -> None:
        made, stack = tuple(map(self.add, results)), tuple(self.stack)
        numbers = tuple(counts["interpolate" if function == FITTING else function] for counts in self.counts)
        self.flow.calls.append(Call(function, stack, numbers, _line(), takes, made, **facts))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(getattr(func, "__name__", ""))
        keeps = self.source == "fake" and func is nn.functional.batch_norm and _keeps_shape(*args, **kwargs)
        output = torch.empty_like(args[0]) if keeps else func(*args, **kwargs)
        results = tensors_in(output) if isinstance(output, (Tensor, tuple, list)) else []
        if results and self.stack and (takes := self.known((args, kwargs))):
            size = kwargs.get("size", args[1] if len(args) > 1 else None) if name == "interpolate" else None
            facts: dict[str, Any] = _resizing(name, args, kwargs)
            if name in TURNS and args:
                facts["axes"] = _turned(func, args, kwargs)
            self.call(name if size is None else FITTING, takes, results, **facts)
        for counts in self.counts:
            counts[name] += 1
        return output


def _keeps_shape(
    x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, *_: Any, **__: Any
) -> bool:
    """Whether a batch norm does no more; PyTorch takes as long to find that out as for all else in a pass."""
    return not training and {t.numel() for t in (mean, var, weight, bias) if t is not None} == {*x.shape[1:2]}


def _resizing(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Extent]:
    """What a call says of its kernel and stride."""

    def argument(number: int, key: str) -> Any:
        return args[number] if len(args) > number else kwargs.get(key)

    if name.startswith("conv"):
        kernel = tuple(argument(1, "weight").shape[2:])
        return {"kernel": kernel, "scales": _sides(argument(3, "stride") or 1, len(kernel))}
    if name in POOLS:
        n = int(name.partition("pool")[2][0])
        place = 2 if name.startswith("lp") else 1
        kernel = _sides(argument(place, "kernel_size"), n)
        return {"kernel": kernel, "scales": _sides(argument(place + 1, "stride") or kernel, n)}
    if name in SHUFFLES:
        return {"scales": _sides(argument(1, SHUFFLES[name]), 2)}
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        steps = [part.step for part in index if isinstance(part, slice) and part.step not in (None, 1)]
        return {"scales": tuple(steps)}
    return {}


def _turned(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Where each axis of the result of a permutation was, told by one of a tensor whose sides all differ."""
    probe = torch.empty(*range(args[0].ndim), device="meta")
    return tuple(func(probe, *args[1:], **kwargs).shape)


def _sides(value: Any, n: int) -> Extent:
    values = tuple(map(int, value)) if isinstance(value, (tuple, list)) else (int(value),)
    return values * n if len(values) == 1 else values


def _line() -> str:
    """Where the user's code, or a library's other than PyTorch, called what is recorded now."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith((_TORCH, *_OURS)):
        frame = frame.f_back
    code = frame.f_code
    return f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name}"
