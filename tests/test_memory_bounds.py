"""Bounds against exhaustive search over all orders, and against arithmetic done by hand."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.memory import bounds as module
from redistill_lib.memory.bounds import _graph, _search
from redistill_lib.memory.profile import storage_size
from redistill_lib.memory.trace import trace

MAP = 4 * 8 * 8


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


class TwoBranches(nn.Module):
    """The program runs the branch that ends small last, while the wide map of the other one is already there."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.first, self.second = conv(2, 8), conv(2, 16), conv(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        return torch.cat([wide, self.second(self.first(x))], 1)


def test_a_better_order_is_found() -> None:
    bounds = rd.memory_bounds(TwoBranches(), torch.zeros(1, 2, 8, 8))
    # As written: x 2, wide 8 and first 16, then second. Better: first and second, then wide: 2 + 16 + 1.
    assert (bounds.peak_bytes, bounds.order_bytes, bounds.order_exact) == (26 * MAP, 19 * MAP, True)
    assert (bounds.op_bytes, bounds.op_name) == (18 * MAP, "first")


class Random(nn.Module):
    """A random graph of 1×1 convolutions, in-place sums and concatenations over 8×8 maps."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        self.plan: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleList()
        widths = [2]
        for _ in range(6):
            kind = choose.choice(["conv", "conv", "relu", "add", "cat"])
            a, b = (choose.randrange(len(widths)) for _ in range(2))
            if kind == "add":
                b = choose.choice([k for k, width in enumerate(widths) if width == widths[a]])
            width = {"conv": choose.choice([1, 3, 6]), "cat": widths[a] + widths[b]}.get(kind, widths[a])
            self.layers.append(conv(widths[a], width, 1) if kind == "conv" else nn.Identity())
            self.plan.append((kind, a, b))
            widths.append(width)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for (kind, a, b), layer in zip(self.plan, self.layers, strict=True):
            left, right = values[a], values[b]
            made = {
                "conv": lambda left=left, layer=layer: layer(left),
                "relu": lambda left=left: F.relu(left),
                "add": lambda left=left, right=right: left + right,
                "cat": lambda left=left, right=right: torch.cat([left, right], 1),
            }[kind]()
            values.append(made)
        return values[-1] + sum(value.sum() for value in values[1:-1])


def exhaustive(model: nn.Module, x: Tensor) -> int:
    """The least peak, by trying every order that the data allow."""
    _, size = storage_size(None)
    nodes, values = _graph(trace(model, x), size)
    best = None
    for order in itertools.permutations(range(len(nodes))):
        done, peak = set(), 0
        for k in order:
            if any(nodes[k].before >> j & 1 and j not in done for j in range(len(nodes))):
                break
            done.add(k)

            def needed(i: int, done: set[int] = done) -> bool:
                return values[i].output or any(
                    values[i].consumers >> j & 1 and j not in done for j in range(len(nodes))
                )

            there = {i for i, v in enumerate(values) if (v.producer < 0 and v.consumers) or v.producer in done - {k}}
            before = {i for i in there if needed(i, done - {k})}
            reused = max((values[i].nbytes for i in nodes[k].over if not needed(i)), default=0)
            peak = max(peak, sum(values[i].nbytes for i in before | {*nodes[k].makes}) - reused)
        else:
            best = peak if best is None else min(best, peak)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(30))
def test_the_best_order_is_that_of_an_exhaustive_search(seed: int) -> None:
    torch.manual_seed(0)
    small = Random(seed)
    small.plan, small.layers = small.plan[:4], small.layers[:4]
    x = torch.zeros(1, 2, 8, 8)
    _, size = storage_size(None)
    if len(_graph(trace(small, x), size)[0]) > 9:
        small.forward = lambda x, self=small: Random.forward(self, x)  # type: ignore[method-assign]
        small.plan, small.layers = small.plan[:2], small.layers[:2]
    bounds = rd.memory_bounds(small, x)
    assert bounds.order_exact
    assert bounds.order_bytes == min(exhaustive(small, x), bounds.peak_bytes)


def test_where_the_search_ends_early_the_bound_is_below_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 2, 8, 8)
    model = Random(3)
    exact = rd.memory_bounds(model, x)
    assert exact.order_exact
    monkeypatch.setattr(module, "STATES", 0)
    early = rd.memory_bounds(TwoBranches(), x)
    assert not early.order_exact and early.op_bytes <= early.order_bytes <= 19 * MAP


def test_a_unets_shortcut_first_saves_a_ninth() -> None:
    with torch.device("meta"):
        model = rd.create_model("unet")
    inputs = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
    bounds = rd.memory_bounds(model, *inputs)
    # The last level's concatenation: 256 + 128 channels into 384, beside two skips of 128; 32×32 floats are 4 KiB.
    assert bounds.order_bytes == (256 + 128 + 384 + 2 * 128) * 4096
    assert bounds.peak_bytes > bounds.order_bytes and not bounds.order_exact


def test_row_streaming_of_the_leading_chain() -> None:
    # Image 3×32×32, then 8×32×32 read by a 3×3 of stride 2, 16×16×16 read by a 2×2 pool, 16×8×8 at the end.
    net = nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 16, stride=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 10)
    )
    bounds = rd.memory_bounds(net, torch.zeros(1, 3, 32, 32))
    assert bounds.peak_bytes == 4 * (8 * 32 * 32 + 16 * 16 * 16)
    assert bounds.streaming_bytes == 4 * (3 * 32 * 32 + 8 * 3 * 32 + 16 * 2 * 16 + 16 * 8 * 8)
    assert bounds.streaming_name == "3"


def test_streaming_ends_where_a_map_is_read_twice() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = conv(3, 8), conv(8, 8), conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.b(self.a(x))

    bounds = rd.memory_bounds(Skip(), torch.zeros(1, 3, 8, 8))
    assert (bounds.streaming_bytes, bounds.streaming_name) == (bounds.peak_bytes, "")
    straight = rd.memory_bounds(nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8)), torch.zeros(1, 3, 8, 8))
    assert bounds.shortcut_name == "stem" and straight.shortcut_name == ""
    assert bounds.without_shortcut_bytes == straight.streaming_bytes < bounds.streaming_bytes


def test_in_place_depthwise_holds_one_channel_beside_the_map() -> None:
    net = nn.Sequential(conv(3, 16, 1), conv(16, 16, groups=16), nn.ReLU(), conv(16, 4, 1))
    bounds = rd.memory_bounds(net, torch.zeros(1, 3, 8, 8))
    assert bounds.peak_bytes == 32 * MAP and bounds.in_place_depthwise_bytes == 20 * MAP
    inside = rd.profile_memory(net, torch.zeros(1, 3, 8, 8), in_place_depthwise=True).rows[1]
    assert (inside.module, inside.op, inside.live_bytes) == ("1", "conv+relu", 17 * MAP)


def test_the_search_alone_agrees_with_the_floor_on_a_chain() -> None:
    _, size = storage_size(None)
    net = nn.Sequential(conv(2, 4), conv(4, 8), conv(8, 1))
    nodes, values = _graph(trace(net, torch.zeros(1, 2, 8, 8)), size)
    assert _search(nodes, values, known=10**9) == (12 * MAP, True)


class ThreeOutputs(nn.Module):
    """Whether a is computed before or after c decides how long x stays; every order ends in the same set."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(12, 12, 1), conv(8, 11, 1), conv(12, 6, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.a(x), self.b(y), self.c(x)


def test_a_set_of_operators_is_reached_by_its_cheapest_order() -> None:
    bounds = rd.memory_bounds(ThreeOutputs(), torch.zeros(1, 12, 8, 8), torch.zeros(1, 8, 8, 8))
    # c, a, b: 20 + 6, then + 12 = 38; x is gone when b makes its 11: 8 + 18 + 11 = 37.
    assert (bounds.order_bytes, bounds.order_exact) == (38 * MAP, True)


class WithMask(TwoBranches):
    """A mask that goes through unread is there in every order."""

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), mask


def test_an_input_that_is_only_returned_counts_in_every_order() -> None:
    bounds = rd.memory_bounds(WithMask(), torch.zeros(1, 2, 8, 8), torch.zeros(1, 5, 8, 8))
    assert (bounds.peak_bytes, bounds.order_bytes, bounds.order_exact) == (31 * MAP, 24 * MAP, True)


STEM = 4 * 3 * 32 * 32


def streaming(*layers: nn.Module) -> int:
    return rd.memory_bounds(nn.Sequential(conv(3, 16), *layers), torch.zeros(1, 3, 32, 32)).streaming_bytes


def test_streaming_counts_dilated_rows_and_stops_where_rows_do_not_do() -> None:
    row = 4 * 16 * 32
    out = 4 * 2 * 32 * 32
    assert streaming(nn.Conv2d(16, 2, 3, padding=1)) == STEM + 3 * row + out
    assert streaming(nn.Conv2d(16, 2, 3, padding=8, dilation=8)) == STEM + 17 * row + out
    whole = STEM + 32 * row  # the stem's map in full
    assert streaming(nn.GroupNorm(4, 16), nn.Conv2d(16, 2, 3, padding=1)) >= whole


def test_streaming_keeps_what_is_returned_and_what_waits() -> None:
    class Returned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.next = conv(3, 16), conv(16, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.stem(x)
            return y, self.next(y)

    assert rd.memory_bounds(Returned(), torch.zeros(1, 3, 32, 32)).streaming_bytes >= 2 * 4 * 16 * 32 * 32

    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 16), conv(16, 4), conv(30, 4)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return self.b(self.a(x)) + self.c(z)

    inputs = torch.zeros(1, 3, 32, 32), torch.zeros(1, 30, 32, 32)
    assert rd.memory_bounds(Waiting(), *inputs).streaming_bytes >= 4 * 32 * 32 * (30 + 4 + 4)


class Mixed(Random):
    """The same with normalisations, gates, halves and resizes: what a runtime would join into one step."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for kind, *_ in self.plan:
            y = {
                "conv": lambda y: y * torch.tanh(y + 0.1 * y**3),
                "relu": lambda y: F.interpolate(F.avg_pool2d(y, 2), scale_factor=2) + y,
                "add": lambda y: torch.cat(y.split([y.shape[1] - 1, 1], 1)[::-1], 1),
                "cat": lambda y: F.layer_norm(y, y.shape[1:]) * y.mean((2, 3), keepdim=True),
            }[kind](y)
        return y


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_the_bounds_are_below_each_other(dtype: str) -> None:
    for seed in range(40):
        bounds = rd.memory_bounds(Mixed(seed), torch.zeros(1, 2, 8, 8), dtype=dtype)
        assert 0 < bounds.op_bytes <= bounds.order_bytes <= bounds.peak_bytes, seed


def test_steps_that_a_runtime_joins_need_not_run_together() -> None:
    class Gelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 128)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return 0.5 * y * (1 + torch.tanh(y + 0.04 * y**3))

    bounds = rd.memory_bounds(Gelu(), torch.zeros(1, 32, 32))
    # Sums and products of two maps of 32×128 floats, written over one of them; whatever the order.
    assert bounds.op_bytes == bounds.order_bytes == 2 * 4 * 32 * 128 and bounds.order_exact
