"""Which layers at the start of a network can run row by row."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from redistill_lib.network.flow import Flow, Visit
from redistill_lib.streaming.rows import Span, Stage, sides_of

_ELEMENTWISE = (
    nn.BatchNorm2d, nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
_IDLE = nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout  # in eval mode
# Of one map or of several alike, called in a block's own forward.
_FUNCTIONS = (
    operator.add, operator.iadd, operator.sub, operator.mul, torch.add, torch.sub, torch.mul, torch.relu, F.relu,
    F.relu6, F.hardswish, F.hardsigmoid, F.silu, F.gelu, torch.sigmoid, torch.tanh, F.sigmoid, F.tanh,
)  # fmt: skip
_METHODS = {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "relu": torch.relu, "sigmoid": torch.sigmoid}


class Stopped(Exception):
    """Why a chain goes no further, as a sentence."""


class _Part(NamedTuple):
    """One layer or function. Part number k makes value k + 1; value 0 is the image."""

    make: Callable[..., Tensor]
    reads: tuple[int, ...]
    name: str
    span: Span | None  # None: of each element alone


class Chain:
    """The layers from the image to `value`, a number in the flow, which `through` moves on."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        self.model, self.flow, self.value = model, flow, flow.image
        self.parts: list[_Part] = []
        self.made = 0  # what stands for `value` among the parts
        self.layers: list[str] = []  # in which the network itself is to find nothing left to do, the first one first
        self.last = ""

    def through(self, goal: Visit) -> None:
        """As far as what a module gives, and what changes each element of that alone; raises Stopped if it cannot."""
        while self.value not in goal.gives:
            visit = self.next_visit()
            self.step(visit)
            if _within(goal, visit) and self.value not in goal.gives:
                raise Stopped(f"{goal.run[0]} is a part of {visit.run[0]}, which runs row by row as a whole")
        with suppress(Stopped):  # behind the goal
            while self.is_elementwise((visit := self.next_visit()).run[0]):
                self.step(visit)

    def through_all(self) -> None:
        """As far as it goes; raises Stopped there."""
        while True:
            self.step(self.next_visit())

    def is_elementwise(self, path: str) -> bool:
        return type(self.model.get_submodule(path)) in (*_ELEMENTWISE, *_IDLE)

    def next_visit(self) -> Visit:
        """The innermost module in which everything is that reads the map."""
        after = f"the map behind {self.last}" if self.last else "the image"
        readers = [call for call in enumerate(self.flow.calls) if self.value in call[1].takes]
        if self.value in self.flow.gives or not readers:
            raise Stopped(f"{after} is what the network returns")
        (first, call), last = readers[0], readers[-1][0]
        around = [
            visit
            for visit in self.flow.visits
            if visit.takes == self.value and visit.first <= first and last < visit.last and visit.run[0]
        ]
        if not around and len(readers) > 1:
            raise Stopped(f"{after} is read {len(readers)} times, and not in one block that takes it alone")
        if not around:
            raise Stopped(f"{call.function} of {after} is called in {call.line}; make it a module")
        return min(around, key=lambda visit: visit.last - visit.first)  # of several alike the innermost is first

    def step(self, visit: Visit) -> None:
        """Through one module; where it raises Stopped the chain is as before."""
        path, before = visit.run[0], len(self.parts)
        module = self.model.get_submodule(path)
        try:
            if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
                raise Stopped(f"{path} has hooks, which would see rows in place of maps")
            if not visit.single or len(visit.gives) != 1:
                raise Stopped(f"{path} returns more than a map")
            whole = not any(True for _ in module.children())
            made = self.add(module, (self.made,), path) if whole else self.followed(path, module)
            layers = self.layers_of(visit, self.parts[before:])
        except Stopped:
            del self.parts[before:]
            raise
        self.layers += layers
        self.made, self.value, self.last = made, visit.gives[0], path

    def layers_of(self, visit: Visit, added: list[_Part]) -> list[str]:
        """The module and the layers inside, which run in it alone; nothing where it has nothing to do."""
        names = {id(part): name for name, part in self.model.named_modules()}
        inside = [names[id(part.make)] for part in added if isinstance(part.make, nn.Module)]
        layers = list(dict.fromkeys([visit.run[0], *inside])) if added else []
        for layer in layers:
            runs = [run for run in self.flow.visits if run.run[0] == layer]
            if len(runs) > 1 and (layer == visit.run[0] or not all(_within(run, visit) for run in runs)):
                raise Stopped(f"{layer} runs elsewhere, too; give each place a layer of its own")
        return layers

    def add(self, make: Any, reads: tuple[int, ...], name: str) -> int:
        """One more part; the value that it makes."""
        if type(make) in _IDLE:
            return reads[0]
        self.parts.append(_Part(make, reads, name, _span(make, name)))
        return len(self.parts)

    def followed(self, path: str, block: nn.Module) -> int:
        """The parts of a block with a forward of its own, as of a residual."""
        try:
            nodes = list(fx.Tracer().trace(block).nodes)
        except Exception as error:
            raise Stopped(f"the forward of {path} ({type(block).__name__}) cannot be followed: {error}") from error
        values: dict[fx.Node, int] = {}
        for node in nodes:
            reads, where = tuple(values.get(read, -1) for read in node.args if isinstance(read, fx.Node)), path
            whole = len(reads) == len(node.args) and not {*node.kwargs} - {"inplace"} and -1 not in reads
            make: Any = None
            if node.op == "placeholder":
                if not values:
                    values[node] = self.made
                continue
            if node.op == "output" and len(reads) == 1 and reads[0] >= 0:
                return reads[0]
            if node.op == "call_module":
                where, make = f"{path}.{node.target}", block.get_submodule(str(node.target))
            elif node.op == "call_function" and node.target in _FUNCTIONS:
                make = node.target
            elif node.op == "call_method" and node.target in _METHODS:
                make = _METHODS[str(node.target)]
            if make is None or not whole or node.kwargs.get("inplace"):
                raise Stopped(f"{path} does more than layers and sums of maps row by row: {node.format_node()}")
            values[node] = self.add(make, reads, where)
        raise Stopped(f"{path} returns more than a map")

    def stages(self) -> tuple[Stage, ...]:
        """The parts, with those of each element alone joined to what makes the rows that only they read."""
        readers = Counter(read for part in self.parts for read in part.reads)
        for number, part in enumerate(self.parts, 1):
            if not readers[number] and number != self.made:
                raise Stopped(f"{part.name} makes a map that nothing reads")
            in_place = part.make is operator.iadd or getattr(part.make, "inplace", False)
            if in_place and (readers[part.reads[0]] > 1 or part.reads[0] == 0):
                raise Stopped(f"{part.name} writes over a map that is read elsewhere, too")
        home, stages = {0: 0}, list[Stage]()
        for number, part in enumerate(self.parts, 1):
            before = home[part.reads[0]]
            if part.span is None and len(part.reads) == 1 and before and readers[part.reads[0]] == 1:
                stages[before - 1] = (stage := stages[before - 1])._replace(then=(*stage.then, part.make))
                home[number] = before
                continue
            reads = tuple(home[read] for read in part.reads)
            stages.append(Stage(part.make, reads, part.span or Span(), ()))
            home[number] = len(stages)
        return tuple(stages)


def _within(run: Visit, other: Visit) -> bool:
    return other.first <= run.first and run.last <= other.last


def _span(make: Any, name: str) -> Span | None:
    """Raises Stopped for what does not work row by row."""
    if not isinstance(make, nn.Module):
        return None
    kind, layer = type(make), cast(Any, make)
    if kind in _ELEMENTWISE:
        if kind is nn.BatchNorm2d and layer.running_mean is None:
            raise Stopped(f"{name} has no running statistics, so it reads whole maps")
        return None
    if kind is nn.Conv2d and (layer.padding_mode == "zeros" or not any(sides_of(layer))):
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        if left == right and top == bottom:
            return Span(layer.kernel_size[0], layer.stride[0], top, layer.dilation[0], top)
    if kind in (nn.MaxPool2d, nn.AvgPool2d) and not getattr(layer, "return_indices", False):
        kernel, stride, padding = (_pair(side)[0] for side in (layer.kernel_size, layer.stride, layer.padding))
        zeros = padding if getattr(layer, "count_include_pad", False) else 0
        return Span(kernel, stride, padding, _pair(getattr(layer, "dilation", 1))[0], zeros, layer.ceil_mode)
    raise Stopped(f"{name} ({kind.__name__}) is no layer that works row by row")
