"""Calls in a module's own forward, changed from outside."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill_lib.network import flow, record_maps
from redistill_lib.network.flow import Run
from redistill_lib.red import RedBlock, insert_blocks
from redistill_lib.student import derive_student
from redistill_lib.student.calls import rewrite_call
from redistill_lib.student.edits import restride

MAP = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
VOLUME = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
KERNEL = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2))


def called(function: str, stack: tuple[Run, ...] = (("", 0),), numbers: tuple[int, ...] = (0,)) -> flow.Call:
    """What a trace tells of a call."""
    return flow.Call(function, stack, numbers, "net.py:7 in forward", (), ())


class Do(nn.Module):
    """A module that calls a function of its own."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def half(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


# the function's name, the call, ratio before and after, what a person would have written
CALLS: list[tuple[str, Callable[[Tensor], Any], int, int, Callable[[Tensor], Any]]] = [
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), 2, 1, lambda x: x),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), 2, 4, lambda x: F.max_pool2d(x, 4)),
    ("max_pool2d", lambda x: torch.max_pool2d(x, 3, 2, 1), 2, 1, lambda x: F.max_pool2d(x, 3, 1, 1)),
    ("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), 2, 1, lambda x: F.max_pool2d(x, 3, 1, 1)),
    ("max_pool2d", lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), 2, 4,
     lambda x: F.max_pool2d(x, 3, 4, ceil_mode=True)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, kernel_size=4), 4, 2, lambda x: F.avg_pool2d(x, 2)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, stride=2, padding=1), 2, 1, lambda x: F.avg_pool2d(x, 3, 1, 1)),
    # the norm adds up what is in its window: with a fourth of the pixels, each weighs four times as much
    ("lp_pool2d", lambda x: F.lp_pool2d(x, 2, 4), 4, 2, lambda x: 2 * F.lp_pool2d(x, 2, 2)),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=2), 2, 1, lambda x: x),
    ("interpolate", lambda x: F.interpolate(x, None, 2, mode="bilinear"), 2, 4,
     lambda x: F.interpolate(x, scale_factor=4, mode="bilinear")),
    ("interpolate", lambda x: F.interpolate(x, scale_factor=0.5, mode="area"), 2, 4, lambda x: F.avg_pool2d(x, 4)),
    ("interpolate to a size", lambda x: F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3])), 2, 4,
     lambda x: twice(twice(x))),
    ("interpolate to a size", lambda x: F.interpolate(x, size=(8, 8), mode="area"), 2, 4, lambda x: half(half(x))),
    ("__getitem__", lambda x: x[:, :, ::2, ::2], 2, 1, lambda x: x),
    ("__getitem__", lambda x: x[..., 1::2, 1::2], 2, 1, lambda x: x),
    ("__getitem__", lambda x: x[:, :, 1::2, ::2], 2, 4, lambda x: x[:, :, 2::4, ::4]),
    ("__getitem__", lambda x: x[:, ::4, 3::4], 4, 2, lambda x: x[:, ::2, 1::2]),
    ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), 2, 1, lambda x: x.repeat_interleave(4, 1)),
    ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), 2, 4, lambda x: F.pixel_unshuffle(half(x), 2)),
    ("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 4), 4, 2, lambda x: F.pixel_unshuffle(twice(x), 4)),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), 2, 1, lambda x: half(F.pixel_shuffle(x, 2))),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), 2, 4, lambda x: twice(F.pixel_shuffle(x, 2))),
    ("conv2d", lambda x: F.conv2d(x, KERNEL, stride=2, padding=1), 2, 1, lambda x: F.conv2d(x, KERNEL, padding=1)),
    ("conv2d", lambda x: F.conv2d(x, KERNEL, None, 1, "same"), 1, 2, lambda x: F.conv2d(x, KERNEL, None, 2, 1)),
    ("conv2d", lambda x: F.conv2d(x, KERNEL[..., :2, :2], stride=2), 2, 1,
     lambda x: F.conv2d(x, KERNEL[..., :2, :2].sum((2, 3), keepdim=True))),
    ("conv2d", lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), KERNEL, stride=2), 2, 1,
     lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), KERNEL)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "call", "old", "new", "wanted"), CALLS)
def test_each_function_takes_the_other_ratio(function: str, call: Any, old: int, new: int, wanted: Any) -> None:
    net = nn.Sequential(nn.Identity(), Do(call))
    before = net(MAP)
    change = restride(net, called(function, (("", 0), ("1", 0)), (0, 0)), old, new, "stride")
    assert repr(change) == f"1: call {old} → {new} ({function} in net.py:7 in forward)"
    assert torch.allclose(net(MAP), wanted(MAP), atol=1e-5)
    # and back again: the new call counts as the old one did
    restride(net, called(function, (("", 0), ("1", 0)), (0, 0)), new, old, "stride")
    assert torch.equal(net(MAP), before)


def test_a_pool_that_rounds_down_gets_the_border_that_it_loses_at_stride_1() -> None:
    """3×3 windows without padding: of 15 lines they make 7 = ⌊15 / 2⌋, and at stride 1 as many as they take."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 4, 7, 2), nn.Conv2d(4, 4, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([self.last(x), F.max_pool2d(x, 3, 2)], 1).mean((2, 3))

    net, x = Net(), torch.randn(1, 4, 36, 36)
    student, changes = derive_student(net, 2, example=x)
    assert [(c.layer, c.kind) for c in changes] == [("first", "conv stride"), ("last", "conv stride"), ("", "call")]
    first = F.conv2d(x, net.first.weight, net.first.bias, 4)[..., :7, :7]
    pooled = F.max_pool2d(F.pad(first, (1, 1, 1, 1), value=-torch.inf), 3, 1)
    assert pooled.shape == (1, 4, 7, 7)
    assert torch.allclose(student(x)[:, 4:], pooled.mean((2, 3)), atol=1e-6)


def test_volumes_are_pooled_alike() -> None:
    for name, call in (("max_pool3d", F.max_pool3d), ("avg_pool3d", F.avg_pool3d)):
        net = Do(lambda x, call=call: call(x, 2))
        rewrite_call(net, called(name), 2, 4)
        assert torch.equal(net(VOLUME), call(VOLUME, 4))


def test_indices_lead_back_at_every_stride() -> None:
    def code(x: Tensor) -> Tensor:
        y, where = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(y, where, 2)

    for new in (1, 4):
        net = Do(code)
        rewrite_call(net, called("max_pool2d_with_indices"), 2, new)
        rewrite_call(net, called("max_unpool2d"), 2, new)
        y, where = F.max_pool2d(MAP, new, return_indices=True)
        assert torch.equal(net(MAP), F.max_unpool2d(y, where, new))


class Nest(nn.Module):
    """One pool that runs three times, in a block that runs twice."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.pool(self.conv(x)) * scale

    def __init__(self) -> None:
        super().__init__()
        self.block = self.Block()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.block(x, scale=2.0)
        return self.norm(self.block(self.block.pool(first)))


SECOND = called("max_pool2d", (("", 0), ("block.pool", 1)), (1, 0))


def pooled_once_less(net: Nest, x: Tensor) -> Tensor:
    block = net.block
    first = F.max_pool2d(block.conv(x), 2) * 2
    return net.norm(F.max_pool2d(block.conv(first), 2))


def nest() -> tuple[Nest, Nest]:
    torch.manual_seed(0)
    teacher = Nest().eval()
    student = copy.deepcopy(teacher)
    rewrite_call(student, SECOND, 2, 1, shared={"block", "block.pool"})
    return teacher, student


def test_a_pool_of_several_places_changes_at_one() -> None:
    teacher, student = nest()
    assert torch.equal(student(MAP), pooled_once_less(teacher, MAP))
    assert teacher(MAP).shape == (2, 4, 2, 2) and isinstance(student, Nest)
    # what all its runs have in common is changed in the pool itself, under the call that is changed around it
    rewrite_call(student, called("max_pool2d", (("", 0), ("block", 0), ("block.pool", 0)), (0, 0, 0)), 2, 4)
    assert student(torch.zeros(1, 4, 64, 64)).shape == (1, 4, 2, 2)  # 64 / 4 / (2 / 2 · 4 / 2) / 4


def test_copies_weights_modes_and_files_keep_the_change() -> None:
    teacher, student = nest()
    wanted = student(MAP)
    again = pickle.loads(pickle.dumps(student))
    other = copy.deepcopy(student)
    other.load_state_dict(teacher.state_dict())
    for net in (again, other, student.train().eval(), copy.deepcopy(again)):
        assert torch.equal(net(MAP), wanted)
        assert list(net.state_dict()) == list(teacher.state_dict())
    assert "max_pool2d no. 1: 2 → 1" in repr(student) and "→" not in repr(teacher)
    half_precision = student.double()(MAP.double())
    assert torch.allclose(half_precision, wanted.double(), atol=1e-5)


def test_gradients_hooks_and_maps_are_seen() -> None:
    teacher, student = nest()
    x = MAP.clone().requires_grad_()
    student(x).sum().backward()
    (gradient,) = torch.autograd.grad(pooled_once_less(teacher, x).sum(), x)
    assert x.grad is not None and torch.allclose(x.grad, gradient, atol=1e-6)
    maps = record_maps(student, [("norm", "output"), ("", "input")], MAP)
    assert {ref.layer: tuple(m.shape) for ref, m in maps.items()} == {"norm": (2, 4, 4, 4), "": (2, 4, 16, 16)}


@pytest.mark.parametrize("how", ["trace", "export", "strict export", "compile", "whole compile"])
@pytest.mark.filterwarnings("ignore")
def test_graphs_hold_the_changed_call(how: str) -> None:
    _, student = nest()
    sliced = nn.Sequential(student, Do(lambda x: x[:, :, 1::2, ::2]), Do(lambda x: F.max_pool2d(x, 2)))
    rewrite_call(sliced, called("__getitem__", (("", 0), ("1", 0)), (0, 0)), 2, 1)
    rewrite_call(sliced, called("max_pool2d", (("", 0), ("2", 0)), (3, 0)), 2, 1)
    wanted = sliced(MAP)
    assert wanted.shape == (2, 4, 4, 4)
    torch._dynamo.reset()
    if how == "trace":
        made: Any = torch.jit.trace(sliced, MAP)
    elif "export" in how:
        made = torch.export.export(sliced, (MAP,), strict=how != "export").module()
    else:
        made = torch.compile(sliced, backend="eager", fullgraph=how != "compile")
    assert torch.allclose(made(MAP), wanted, atol=1e-6)


def test_what_cannot_be_changed_is_told_with_the_line() -> None:
    pool = Do(lambda x: F.adaptive_avg_pool2d(x, 8))
    with pytest.raises(
        ValueError, match=r"the network \(Do\) calls adaptive_avg_pool2d at net.py:7 in forward, whose"
    ):
        rewrite_call(pool, called("adaptive_avg_pool2d"), 2, 1)
    own = Do(half)
    own.forward = half  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="whose module has a forward of its own instance; derive before"):
        rewrite_call(own, called("avg_pool2d"), 2, 1)
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.MaxPool2d(2)))
    with pytest.raises(
        ValueError, match="whose module is a compiled graph; derive from the network that it was made of"
    ):
        rewrite_call(graph, called("max_pool2d", (("", 0),), (0,)), 2, 1)
    with pytest.raises(ValueError, match=r"calls conv2d at net.py:7 in forward, where no pool can be inserted"):
        restride(Do(lambda x: F.conv2d(x, KERNEL)), called("conv2d"), 1, 2, "max")


def test_a_pass_that_goes_another_way_is_no_silent_error() -> None:
    net = Do(lambda x: F.max_pool2d(x, 3 if x.shape[-1] == 15 else 2))
    rewrite_call(net, called("max_pool2d"), 2, 1)
    assert net(MAP).shape == MAP.shape
    with pytest.raises(RuntimeError, match="call 0 of max_pool2d strides 3, which is no multiple of 2: this pass"):
        net(MAP[..., :15, :15])
    sliced = Do(lambda x: x[:1][:, :, ::2, ::2] if len(x) > 1 else x[:, :, ::2, ::2])
    rewrite_call(sliced, called("__getitem__"), 2, 1)
    assert sliced(MAP[:1]).shape == (1, 4, 16, 16)
    with pytest.raises(RuntimeError, match="call 0 of __getitem__ strides 0, which is no multiple of 2: this pass"):
        sliced(MAP)


def test_blocks_inside_an_edited_module_are_not_counted() -> None:
    """A shared convolution whose second run alone changes, behind a block that convolves too."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(self.first(x)))

    x = torch.randn(1, 3, 32, 32)
    student, _ = derive_student(Twice(), 2, example=x)
    block = RedBlock(4).eval()
    blocked = insert_blocks(student, [("first", "output", block)]).eval()
    first, conv = student.first.layer, student.conv
    wanted = block(F.conv2d(x, first.weight, first.bias, 2, 1))
    for stride in (2, 1):
        wanted = F.conv2d(wanted, conv.weight, conv.bias, stride, 1)
    assert torch.allclose(blocked(x), wanted, atol=1e-6)
