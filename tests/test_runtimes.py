"""Memory conventions as data, against arithmetic done by hand and what the runtimes themselves were measured at."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib import cli
from redistill_lib.cli.parser import CONVENTIONS as OFFERED
from redistill_lib.figures import memory_bars, memory_table, memory_timeline
from redistill_lib.memory import RUNTIMES, Runtime
from redistill_lib.memory import arena as arena_module
from redistill_lib.memory.arena import (
    PACKERS,
    Block,
    Packer,
    first_fit,
    height,
    live,
    pack_tightly,
    shared_objects,
)
from redistill_lib.memory.profile import CONVENTIONS

MAP = 4 * 8 * 8  # bytes of one 8×8 channel
# A file that litert-torch writes by itself: paddings are copies, and LiteRT Micro packs its arena at run time.
PLAIN = replace(RUNTIMES["litert_micro"], name="litert_plain", pads="copied", packer="first fit")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def image(size: int = 8, channels: int = 4) -> Tensor:
    return torch.zeros(1, channels, size, size)


def maps(model: nn.Module, runtime: str | Runtime, x: Tensor | None = None) -> float:
    """The peak in channels of 8×8."""
    return rd.profile_memory(model, image() if x is None else x, convention=runtime).peak_bytes / MAP


# ------------------------------------------------------------------------------------------------ measured networks

# Bytes: what ExecuTorch's own plan has alive, and ours, with batch norm folded and maps overwritten; the arena of
# LiteRT Micro; ONNX Runtime under a counting malloc, the caller's picture added. Pictures of 3 channels.
MEASURED = {
    ("resnet18", 224): {"executorch_default": 6_422_528, "litert_plain": 6_538_240},
    ("resnet18-8-11221", 224): {"executorch": 802_816, "litert_plain": 1_236_912},
    ("mobilenetv2", 128): {"executorch": 1_966_080},
    ("mobilenetv2-8-1221111", 128): {"executorch": 229_376, "litert_plain": 399_408},
    ("resnet50", 224): {"executorch": 7_225_344},
}
# `rd.export.measure_runtime` of files of `rd.export.export_model` (torch 2.13's dynamo exporter, ONNX Runtime 1.32, a
# processor with AVX-512), the caller's picture included. The last ones are with RED blocks.
COUNTED = {
    ("mobilenetv2", 128): 2_167_188,
    ("mobilenetv2-8-1221111", 128): 370_508,
    ("mobilenetv3_small", 128): 613_720,
    ("mobilenetv3_small-8-22111111111", 128): 339_144,
    ("mobilenetv3_large", 128): 1_514_284,
    ("mobilenetv3_large-8-121211111111111", 128): 421_020,
    ("resnet18", 224): 4_619_136,
    ("resnet18-8-11221", 224): 1_007_420,
    ("resnet34", 64): 380_544,
    ("resnet34-8-11221", 64): 86_972,
    ("resnet50", 224): 5_826_516,
    ("resnet50-8-11221", 224): 1_912_972,
    ("resnext18", 128): 1_510_932,
    ("resnext18-8-11221", 128): 464_272,
    ("resnext50", 64): 843_176,
    ("resnext50-8-11221", 64): 269_732,
    ("unet", 32): 8_526_224,
}
COUNTED_WITH_BLOCKS = {
    ("mobilenetv2", 128): 597_344,
    ("mobilenetv3_small", 128): 342_668,
    ("resnet18", 224): 1_411_228,
    ("resnet50", 224): 3_821_692,
    ("resnext50", 64): 320_708,
}


def profile_of(name: str, size: int, runtime: str) -> rd.memory.Profile:
    with torch.device("meta"):
        rules = PLAIN if runtime == PLAIN.name else runtime
        return rd.profile_memory(rd.create_model(name), image(size, 3), convention=rules)


@pytest.mark.parametrize(("network", "runtime"), [(n, r) for n, peaks in MEASURED.items() for r in peaks])
def test_what_runtimes_that_plan_say_is_met_to_the_byte(network: tuple[str, int], runtime: str) -> None:
    assert profile_of(*network, runtime).peak_bytes == MEASURED[network][runtime]


COUNTED_INT8 = {  # of files with int8=True
    ("mobilenetv2", 128): 1_022_728,
    ("mobilenetv2-8-1221111", 128): 315_152,
    ("mobilenetv3_small", 128): 702_320,
    ("mobilenetv3_small-8-22111111111", 128): 365_492,
    ("resnet18", 224): 6_617_040,
    ("resnet18-8-11221", 224): 1_125_132,
    ("resnet34", 64): 548_880,
    ("resnet50", 224): 6_622_416,
    ("resnet50-8-11221", 224): 1_374_608,
    ("resnext18-8-11221", 128): 371_660,
    ("resnext50", 64): 551_364,
    ("resnext50-8-11221", 64): 163_452,
    ("unet", 32): 6_112_284,
}


def meets(profile: rd.memory.Profile, counted: int) -> bool:
    """Within 2 %, or 2.5 KB: what a session notes of itself."""
    return abs(profile.peak_bytes - counted) <= max(0.02 * counted, 2_500)


@pytest.mark.parametrize("network", COUNTED, ids=str)
def test_what_onnx_runtime_asks_of_malloc_is_met(network: tuple[str, int]) -> None:
    name, size = network
    with torch.device("meta"):
        model, inputs = rd.create_model(name), rd.example_inputs(name, size, device="meta")
    assert meets(rd.profile_memory(model, *inputs, convention="onnxruntime"), COUNTED[network])
    if network in COUNTED_INT8:
        assert meets(rd.profile_memory(model, *inputs, convention="onnxruntime", dtype="int8"), COUNTED_INT8[network])


@pytest.mark.parametrize("network", COUNTED_WITH_BLOCKS, ids=str)
def test_what_onnx_runtime_asks_of_malloc_is_met_with_red_blocks(network: tuple[str, int]) -> None:
    name, size = network
    teacher, student = rd.create_model(name).eval(), rd.create_model(rd.student_name(name, 4)).eval()
    inputs = rd.example_inputs(name, size)
    taps = rd.match_taps(student, teacher, inputs)
    model = rd.Distillation(student, teacher, taps, "red-blocks", example=inputs).graduate().eval()
    assert meets(rd.profile_memory(model, *inputs, convention="onnxruntime"), COUNTED_WITH_BLOCKS[network])


# ------------------------------------------------------------------------------------------------------- each rule


def test_rules_of_ones_own() -> None:
    net = nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 4))
    nothing = Runtime("nothing")
    assert maps(net, nothing) == 32 and maps(net, "fused") == 20
    assert maps(net, replace(nothing, overwrites=(("conv", "relu"),))) == 20
    assert maps(net, replace(nothing, overwrites=(("linear", "relu"),))) == 32
    profile = rd.profile_memory(net, image(), convention=nothing)
    assert profile.convention == "nothing" and [row.op for row in profile.rows] == ["conv", "relu", "conv"]


def test_fused_is_one_set_of_rules() -> None:
    net, own = nn.Sequential(conv(4, 16), nn.BatchNorm2d(16), nn.ReLU()), replace(RUNTIMES["fused"], name="own")
    assert rd.profile_memory(net, image()).rows == rd.profile_memory(net, image(), convention=own).rows


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.first, self.second = conv(4, 16), conv(16, 4), conv(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return F.relu(x + self.second(self.first(x)))


def test_a_convolution_adds_to_the_shortcut() -> None:
    # Where sums need a map of their own: 16 + 16 + 16. In place: 16 + 4 + 16. Added to the shortcut: 16 + 4.
    assert [maps(Shortcut(), Runtime("r")), maps(Shortcut(), "fused")] == [48, 36]
    summing = Runtime("summing", overwrites=(("*", "pointwise"),), accumulates=("conv",))
    assert maps(Shortcut(), summing) == 20
    rows = rd.profile_memory(Shortcut(), image(), convention=summing).rows
    assert [row.op for row in rows] == ["conv", "conv", "conv+add+relu"]
    assert [row.live_bytes // MAP for row in rows] == [20, 20, 20]
    assert all(row.live_bytes == row.in_bytes + row.out_bytes + row.held_bytes for row in rows)


def test_an_activation_before_the_sum_keeps_it_apart() -> None:
    class Active(Shortcut):
        def forward(self, x: Tensor) -> Tensor:
            x = self.head(x)
            return x + F.relu(self.second(self.first(x)))

    summing = Runtime("summing", overwrites=(("*", "pointwise"),), accumulates=("conv",))
    assert maps(Active(), summing) == maps(Active(), "fused") == 36


class Twice(nn.Module):
    """The shortcut is needed once more: nothing can be added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tail = conv(4, 4), conv(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.cat([x, x + self.conv(x)], 1))


def test_a_shortcut_that_is_needed_later_is_kept() -> None:
    summing = Runtime("summing", overwrites=(("*", "pointwise"),), accumulates=("conv",))
    assert maps(Twice(), summing) == maps(Twice(), "fused") == 16  # x, its sum and both together


def test_the_callers_input_is_held() -> None:
    net = nn.Sequential(conv(4, 16), conv(16, 8), nn.ReLU())
    assert maps(net, Runtime("freed")) == 24 and maps(net, Runtime("held", inputs="held")) == 28
    assert maps(nn.ReLU(), "fused") == 4  # over the input
    assert maps(nn.ReLU(), replace(RUNTIMES["fused"], inputs="held")) == 8
    assert maps(nn.ReLU(inplace=True), replace(RUNTIMES["fused"], inputs="held")) == 8


def test_what_a_model_writes_over_is_a_new_tensor_once_exported() -> None:
    net = nn.Sequential(conv(4, 16), nn.ReLU(inplace=True), conv(16, 4))
    assert maps(net, "fused") == 20 and maps(net, "executorch_default") == 32 and maps(net, "executorch") == 20


def test_the_index_map_of_max_pooling() -> None:
    pool = nn.MaxPool2d(2)  # 4 + 1, and as many indices of 8 bytes
    assert [maps(pool, name) for name in ("fused", "executorch_default", "litert_micro")] == [5, 7, 5]
    # Of 64 channels two at a time: 64 + 16 and a copy and indices of two, but not yet the last two.
    assert maps(pool, "executorch", image(channels=64)) == 64 + 16 + 2 + 1 - 0.5


@pytest.mark.parametrize(
    ("layer", "size", "padded"),
    [
        (conv(4, 4), 8, False),  # SAME
        (conv(4, 4, stride=2), 8, True),  # SAME would pad at the end alone
        (conv(4, 4, stride=2), 7, False),
        (conv(4, 4, 1, 2), 8, False),  # no padding
        (nn.MaxPool2d(3, 2, 1), 8, True),
        (nn.MaxPool2d(3, 1, 1), 8, False),
        (nn.AvgPool2d(3, 1, 1), 8, True),  # it divides by 9 at the edge too, which TensorFlow does not
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 8, False),
        (nn.ConvTranspose2d(4, 4, 2, 2), 8, False),
    ],
    ids=str,
)
def test_paddings_that_same_cannot_express_copy_the_input(layer: nn.Module, size: int, padded: bool) -> None:
    # What is padded and what is not is as litert-torch 0.10 converts these layers.
    profile = rd.profile_memory(layer, image(size), convention=PLAIN)
    assert [row.op == "pad" for row in profile.rows] == [True, False][not padded :]
    if padded:
        assert profile.rows[0].shape == (1, 4, size + 2, size + 2)
        assert profile.rows[0].live_bytes == 4 * 4 * (size**2 + (size + 2) ** 2)
        out = 4 * layer(image(size)).numel()
        assert profile.rows[1].live_bytes == 4 * 4 * (size + 2) ** 2 + out  # the picture itself is gone
    halves = rd.profile_memory(layer, image(size), convention=PLAIN, dtype="int8")
    sums = 4 * layer(image(size)).numel() if isinstance(layer, nn.ConvTranspose2d) else 0  # in int32, of int8 alone
    assert 4 * (halves.peak_bytes - sums) == profile.peak_bytes


def test_paddings_that_zeros_in_the_kernel_or_parts_make_copy_little() -> None:
    grown = rd.profile_memory(conv(4, 4, stride=2), image(), convention="litert_micro")
    assert [row.op for row in grown.rows] == ["conv"] and grown.peak_bytes == 4 * 4 * (64 + 16)
    pooled = rd.profile_memory(nn.MaxPool2d(3, 2, 1), image(), convention="litert_micro")
    assert [row.op for row in pooled.rows] == [*["slice", "pad", "max_pool"] * 4, "max_pool"]
    # The map, two channels of the result, and the third copied and padded: for the last the map is not needed.
    assert pooled.peak_bytes == 4 * (4 * 64 + 2 * 16 + 64 + 100) and pooled.rows[-1].live_bytes == 2 * 4 * 4 * 16
    mean = rd.profile_memory(nn.AvgPool2d(3, 1, 1), image(), convention="litert_micro")
    assert [row.op for row in mean.rows] == ["pad", "avg_pool"]  # it has neither


# Heads of LiteRT Micro's arena (tflite-micro of October 2026) for files of `export_model`, in float32 and int8.
EXPORTED = {
    ("resnet18", 224): (4_365_424, 1_091_360),
    ("resnet18-8-11221", 224): (802_816, 200_704),
    ("mobilenetv2", 128): (1_966_080, 491_520),
    ("mobilenetv2-8-1221111", 128): (229_376, 57_344),
    ("mobilenetv3_small", 128): (524_288, 131_072),
    ("mobilenetv3_small-8-22111111111", 128): (212_992, 53_248),
    ("resnet50", 224): (9_633_792, 2_408_448),
    ("resnet50-8-11221", 224): (2_408_448, 602_112),
}


@pytest.mark.parametrize("network", EXPORTED)
def test_arenas_of_exported_files_are_met_to_the_byte(network: tuple[str, int]) -> None:
    with torch.device("meta"):
        model, x = rd.create_model(network[0]), image(network[1], 3)
        dtypes = (None, "int8")
        found = [rd.profile_memory(model, x, convention="litert_micro", dtype=dtype).arena_bytes for dtype in dtypes]
    assert tuple(found) == EXPORTED[network]


def test_a_padded_input_that_is_needed_later_stays() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(4, 4, stride=2), conv(4, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    rows = rd.profile_memory(Split(), image(), convention=PLAIN).rows
    assert [row.op for row in rows] == ["pad", "conv", "conv", "add"]
    assert rows[1].live_bytes == 4 * 4 * (64 + 100 + 16) and rows[1].held_bytes == 4 * MAP


def test_operators_that_are_two_and_weights_that_are_turned() -> None:
    net = nn.Sequential(conv(4, 8), nn.SiLU())
    assert [maps(net, name) for name in ("fused", "executorch_default", "litert_micro")] == [12, 24, 24]
    assert maps(net, "executorch") == 16  # x beside σ(x), over which the product goes
    linear = rd.profile_memory(nn.Linear(64, 10), torch.zeros(2, 64), convention="executorch_default")
    assert linear.peak_bytes == 4 * (2 * 64 + 2 * 10 + 64 * 10)
    product = type("Product", (nn.Module,), {"forward": lambda self, x: x @ (2 * x)})()  # of two maps, no weights
    assert rd.profile_memory(product, torch.zeros(8, 8), convention="executorch_default").peak_bytes == 4 * 3 * 64


def test_operators_that_others_stand_for() -> None:
    gate = Runtime("gate", overwrites=(("*", "hardsigmoid"),), becomes=(("hardswish", ("hardsigmoid", "mul input")),))
    net = nn.Sequential(conv(4, 8), nn.Hardswish())
    profile = rd.profile_memory(net, image(), convention=gate)
    assert [row.op for row in profile.rows] == ["conv", "hardsigmoid", "mul"]
    assert profile.peak_bytes == 24 * MAP  # x, σ(x), and their product
    assert maps(net, replace(gate, overwrites=(("*", "hardsigmoid"), ("conv", "hardswish")))) == 12  # by the kernel
    three = Runtime("three", becomes=(("group_norm", ("group_norm flat", "mul", "add")),), recycles=True)
    rows = rd.profile_memory(nn.GroupNorm(2, 4), image(), convention=replace(three, inputs="held")).rows
    assert [row.op for row in rows] == ["group_norm", "mul", "add"]
    assert [row.live_bytes // MAP for row in rows] == [8, 12, 16]  # the first map, made flat, fits none later


def test_freed_places_wait_for_maps_of_their_shape() -> None:
    # One after the other: 4 + 8, 8 + 16, 16 + 32, 32 + 8, 8 + 4. The first 8 wait until the fourth layer takes them.
    net, nothing = nn.Sequential(conv(4, 8), conv(8, 16), conv(16, 32), conv(32, 8), conv(8, 4)), Runtime("nothing")
    for runtime, expected in (
        (nothing, [12, 24, 48, 40, 12]),
        (replace(nothing, recycles=True), [12, 24, 56, 40, 12]),
    ):
        rows = rd.profile_memory(net, image(), convention=runtime).rows
        assert [row.live_bytes // MAP for row in rows] == expected
        assert all(row.live_bytes == row.in_bytes + row.out_bytes + row.held_bytes for row in rows)


def test_maps_in_blocks_of_channels() -> None:
    blocks = Runtime("blocks", overwrites=(("*", "relu"),), block=16, blocked=("conv", "relu", "add"), inputs="held")
    # The picture's 4 channels are read as they are; 20 channels take two blocks, and the caller gets 20 again.
    rows = rd.profile_memory(nn.Sequential(conv(4, 20), nn.ReLU()), image(), convention=blocks).rows
    assert [row.op for row in rows] == ["conv+relu", "reorder"]
    assert [row.live_bytes // MAP for row in rows] == [4 + 32, 4 + 32 + 20]
    # What takes no blocks is between two copies.
    net = nn.Sequential(conv(4, 16), nn.SiLU(), conv(16, 16))
    rows = rd.profile_memory(net, image(), convention=blocks).rows
    assert [row.op for row in rows] == ["conv", "reorder", "silu", "reorder", "conv", "reorder"]
    # Groups of 4 channels fill no block; a group for each channel does.
    for groups, ops in ((4, ["conv", "reorder", "conv"]), (16, ["conv", "conv", "reorder"])):
        net = nn.Sequential(conv(4, 16), nn.Conv2d(16, 16, 3, padding=1, groups=groups))
        assert [row.op for row in rd.profile_memory(net, image(), convention=blocks).rows] == ops


def test_the_patches_of_a_convolution_outside_blocks() -> None:
    patches = Runtime("patches", scratch=(("conv", "patches"),))
    many = rd.profile_memory(conv(4, 8), image(), convention=patches)
    assert many.peak_bytes == 12 * MAP + 64 * 1024  # 8 channels are fewer than 64 places: 64 KiB at a time
    few = rd.profile_memory(conv(4, 100), image(), convention=patches)
    assert few.peak_bytes == 104 * MAP + 36 * MAP  # 3·3·4 numbers for each of 64 places
    grouped = rd.profile_memory(nn.Conv2d(4, 200, 3, padding=1, groups=2), image(), convention=patches)
    assert grouped.peak_bytes == 204 * MAP + 18 * MAP  # one group after the other
    assert maps(conv(4, 8, 1), patches) == 12


class Branches(nn.Module):
    """The gate of a RED block, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.gate, self.code = conv(4, 8), conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return x * torch.sigmoid(self.gate(x)) + F.relu(self.code(x))


def test_the_branch_that_was_written_last_runs_first() -> None:
    traced = Runtime("traced", overwrites=(("conv", "sigmoid"), ("conv", "relu")))
    rows = rd.profile_memory(Branches(), image(), convention=traced).rows
    assert [row.module for row in rows] == ["head", "gate", "", "code", ""]
    # x, its gate and their product; then x, the product and the code; then the sum
    assert [row.live_bytes // MAP for row in rows] == [12, 16, 24, 24, 24]
    rows = rd.profile_memory(Branches(), image(), convention=replace(traced, order="backwards")).rows
    assert [row.module for row in rows] == ["head", "code", "gate", "", ""]
    assert [row.live_bytes // MAP for row in rows] == [12, 16, 24, 32, 24]


def test_a_convolution_waits_for_what_it_adds_to() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.down = conv(4, 2), conv(2, 8), conv(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x)) + self.down(x)

    summing = Runtime("summing", accumulates=("conv",))
    rows = rd.profile_memory(Down(), image(), convention=summing).rows
    assert [(row.module, row.op) for row in rows] == [("first", "conv"), ("down", "conv"), ("second", "conv+add")]
    assert [row.live_bytes // MAP for row in rows] == [6, 14, 10]


def test_what_is_noted_of_each_map() -> None:
    net = nn.Sequential(conv(4, 4), conv(4, 4), conv(4, 4))
    noting = Runtime("noting", bookkeeping=(10, 100, 1))
    plain = [row.live_bytes for row in rd.profile_memory(net, image(), convention="fused").rows]
    rows = rd.profile_memory(net, image(), convention=noting).rows
    # 10 and 1 for each of three from the start, 100 for what is made and for each that is there
    assert [row.live_bytes - live for row, live in zip(rows, plain, strict=True)] == [133, 133, 133]


def test_the_rules_for_int8() -> None:
    int8 = Runtime("int8", blocked=("conv",), floats=("mean",), scratch=(("conv", "integers"),), inputs="held")
    runtime = Runtime("runtime", quantized=int8)
    assert maps(conv(4, 8), runtime) == 12

    def rows(net: nn.Module, channels: int) -> list[tuple[str, int]]:
        profile = rd.profile_memory(net, image(8, channels), convention=runtime, dtype="int8")
        return [(row.op, row.live_bytes // 64) for row in profile.rows]  # in maps of 1 byte

    # The 4 channels of float32 stay; a copy in int8, one with channels last, and 8 bytes for each of 9 places;
    # then the result with channels first, and as float32 for the caller.
    assert rows(conv(4, 8), 4) == [
        ("to", 20),
        ("reorder", 24),
        ("conv", 16 + 4 + 8 + 72),
        ("reorder", 32),
        ("to", 56),
    ]
    # Of 3 channels 27 patches, and sums of 4 bytes.
    assert rows(conv(3, 8), 3)[2] == ("conv", 12 + 3 + 8 + 27 + 32)
    assert rows(conv(4, 8, 1), 4)[2] == ("conv", 16 + 4 + 8)
    # Weights of 4·8·2·2 numbers of 4 bytes, 8 maps, and patches of 8·2·2 such numbers for each of 64 places.
    transposed = rows(nn.ConvTranspose2d(4, 8, 2, 2), 4)
    assert transposed[1] == ("conv", 16 + 4 + 8 * 4 + 8 + 4 * 32)
    means = type("Means", (nn.Module,), {"forward": lambda self, x: x.mean((2, 3))})()
    assert [op for op, _ in rows(means, 4)] == ["mean"]  # float32 from the caller to the caller


def test_a_name_that_is_none_lists_the_names() -> None:
    with pytest.raises(
        ValueError, match=r"choose from eager, fused, paper, onnxruntime, executorch_default, .*or give a Runt"
    ):
        rd.profile_memory(nn.ReLU(), image(), convention="tflite")
    with pytest.raises(
        ValueError, match="in-place depthwise convolution belongs to the fused convention, not to own"
    ):
        rd.profile_memory(nn.ReLU(), image(), convention=Runtime("own"), in_place_depthwise=True)


# --------------------------------------------------------------------------------------------------------- packing


def arena(blocks: Sequence[Block], packer: Packer) -> int:
    """The height of a packing in which no two blocks that are there together overlap."""
    offsets = packer(blocks)
    for (one, at), (two, there) in itertools.combinations(zip(blocks, offsets, strict=True), 2):
        apart = one.last < two.first or two.last < one.first
        assert apart or at + one.nbytes <= there or there + two.nbytes <= at
    assert min(offsets, default=0) >= 0
    return height(blocks, offsets)


def random_blocks(seed: int, count: int) -> list[Block]:
    choose = random.Random(seed)
    firsts = [choose.randrange(count) for _ in range(count)]
    return [Block(choose.choice([1, 2, 3, 4, 6, 16]), k, k + choose.choice([0, 1, 1, 2, 5])) for k in firsts]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
def test_no_packing_puts_two_where_one_is(packer: Packer) -> None:
    for seed in range(60):
        blocks = random_blocks(seed, 2 + seed // 2)
        assert live(blocks) <= arena(blocks, packer) <= sum(block.nbytes for block in blocks)
    assert packer([]) == []


def test_live_is_counted_step_by_step() -> None:
    for seed in range(20):
        blocks = random_blocks(seed, 12)
        steps = range(max(block.last for block in blocks) + 1)
        assert live(blocks) == max(sum(b.nbytes for b in blocks if b.first <= k <= b.last) for k in steps)


def test_the_tight_packer_finds_the_best_of_all_orders() -> None:
    worse = 0
    for seed in range(25):
        blocks = random_blocks(seed, 6)
        best = min(height(blocks, first_fit(blocks, order)) for order in itertools.permutations(range(6)))
        assert arena(blocks, pack_tightly) == best
        worse += height(blocks, first_fit(blocks)) > best
    assert worse  # the largest first is not always best


def test_the_tight_packer_makes_nobody_wait_for_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(blocks: Sequence[Block], order: Sequence[int] = ()) -> list[int]:
        seen.append(len(blocks))
        return first_fit(blocks, order)

    monkeypatch.setattr(arena_module, "first_fit", counted)
    monkeypatch.setattr(arena_module, "live", lambda _: 0)  # which no packing reaches
    for count, tries in ((40, arena_module.TRIES), (1000, arena_module.PLACED // 1000)):
        seen.clear()
        pack_tightly(random_blocks(1, count))
        assert len(seen) == 1 + tries


def test_the_two_greedy_packers_worked_out_by_hand() -> None:
    # 4 opens an area, in which 3 then lies: above it 2 has no room, though the arena may grow.
    blocks = [Block(2, 1, 1), Block(4, 0, 0), Block(3, 1, 1)]
    assert first_fit(blocks) == [3, 0, 0] and shared_objects(blocks) == [4, 0, 0]
    # Of equal ones the first, or the last, is placed first.
    assert first_fit([Block(1, 0, 0)] * 2) == [0, 1] and shared_objects([Block(1, 0, 0)] * 2) == [1, 0]


FAMILIES = ("mobilenetv2", "mobilenetv3_small", "resnet18", "resnet50", "unet")


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("name", rd.list_models())
def test_every_built_in_network_fits_what_is_alive(name: str, factor: int) -> None:
    with torch.device("meta"):
        model = rd.create_model(rd.student_name(name, factor))
        x = rd.example_inputs(name, 32 if name == "unet" else 64, device="meta")
    for convention in RUNTIMES if name in FAMILIES else ["fused"]:
        profile = rd.profile_memory(model, *x, convention=convention)
        assert profile.schedule is not None
        # Of the parts in which a map is pooled, some leave a gap.
        gap = 1.01 if any(row.op == "slice" for row in profile.rows) else 1
        assert profile.peak_bytes <= profile.best_arena_bytes <= gap * profile.peak_bytes
        assert profile.best_arena_bytes <= profile.arena_bytes
        for packer in PACKERS.values():
            arena(profile.schedule.blocks(16), packer)


# Bytes of the arena that ExecuTorch 1.5.1 plans, and of the head of LiteRT Micro's (litert-torch 0.10, NHWC input).
PACKED = {
    ("resnet18-8-11221", 224, "executorch_default"): 1_003_520,  # 802,816 of it alive
    ("resnet50", 224, "executorch_default"): 9_633_792,
    ("resnet50-8-11221", 224, "executorch_default"): 2_408_448,
    ("mobilenetv2-8-1221111", 128, "executorch_default"): 294_912,  # 229,376 of it alive
    (
        "mobilenetv3_large",
        128,
        "executorch_default",
    ): 5_177_344,  # 4,924,160 of it alive: the transposed weights of a layer
    ("resnet18", 224, "litert_plain"): 6_538_240,
    ("resnet18-8-11221", 224, "litert_plain"): 1_236_912,
    ("mobilenetv2-8-1221111", 128, "litert_plain"): 399_408,
    ("mobilenetv2", 128, "litert_plain"): 3_245_568,
    ("mobilenetv3_small", 64, "litert_plain"): 167_040,
    ("mobilenetv3_small-8-22111111111", 64, "litert_plain"): 101_424,
    ("resnet18", 64, "litert_plain"): 558_080,
    ("resnet18-8-11221", 64, "litert_plain"): 107_952,
    ("resnet50", 64, "litert_plain"): 786_432,
    ("resnet50-8-11221", 64, "litert_plain"): 196_608,
}


@pytest.mark.parametrize("case", PACKED)
def test_arenas_that_runtimes_plan_are_met_to_the_byte(case: tuple[str, int, str]) -> None:
    assert profile_of(*case).arena_bytes == PACKED[case]


def test_arena_and_live_bytes_are_told_apart_where_they_differ() -> None:
    profile = profile_of("resnet18-8-11221", 224, "executorch_default")
    frame = profile.to_frame()
    assert frame["arena_bytes"].max() == profile.arena_bytes > profile.peak_bytes == frame["live_bytes"].max()
    assert (frame["arena_bytes"] >= frame["live_bytes"]).all()
    assert "peak 784 KiB at conv1 (conv), in an arena of 980 KiB (packed best 784 KiB), weights" in str(profile)
    assert "arena" not in str(profile_of("resnet18-8-11221", 224, "fused"))


def test_alignment_and_unknown_packers() -> None:
    three = Runtime("three", packer="first fit", alignment=16)
    profile = rd.profile_memory(nn.Linear(3, 1), torch.zeros(1, 3), convention=three)
    assert (profile.peak_bytes, profile.arena_bytes, profile.best_arena_bytes) == (16, 32, 16)
    with pytest.raises(ValueError, match="unknown packer 'best': choose from live, first fit, shared objects, tight"):
        Runtime("mine", packer="best")
    with pytest.raises(ValueError, match="an alignment is 1 byte or more, not 0"):
        Runtime("mine", alignment=0)


def test_figures_show_the_arena() -> None:
    profile = profile_of("resnet18-8-11221", 224, "executorch_default")
    timeline, bars = memory_timeline(profile), memory_bars({"student": profile})
    assert "in an arena of 980 KiB" in timeline.layout.title.text.replace("<br>", " ").replace("</b> <b>", " ")
    assert any("arena 980 KiB" in (a.text or "") for a in timeline.layout.annotations)
    assert ", arena 980 KiB" in bars.data[0].text
    assert memory_table({"student": profile})["arena"].tolist() == ["980 KiB"]
    assert "arena" not in memory_table({"student": profile_of("resnet18-8-11221", 224, "fused")})


def test_the_command_takes_every_convention(capsys: pytest.CaptureFixture[str]) -> None:
    assert OFFERED == CONVENTIONS
    command = ["memory", "resnet18", "--factor", "4", "--convention", "executorch_default"]
    assert cli.main(command) == 0
    assert "in an arena of 980 KiB (packed best 784 KiB)" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["peak_bytes"], told["arena_bytes"], told["best_arena_bytes"]) == (802_816, 1_003_520, 802_816)
    assert told["convention"] == "executorch_default" and "runtime" not in told


def test_a_convolution_of_few_channels_reads_them_as_they_are() -> None:
    """As ONNX Runtime does where there are fewer than a block holds; and it pools whole blocks alone."""
    blocks = Runtime("blocks", block=16, blocked=("conv", "max_pool"))
    two = nn.Sequential(conv(4, 8), conv(8, 8))
    rows = rd.profile_memory(two, image(), convention=blocks).rows
    assert [row.op for row in rows] == ["conv", "reorder", "conv", "reorder"]
    assert [row.live_bytes / MAP for row in rows] == [4 + 16, 16 + 8, 8 + 16, 16 + 8]
    pooled = rd.profile_memory(nn.Sequential(conv(4, 8), nn.MaxPool2d(2)), image(), convention=blocks).rows
    assert [row.op for row in pooled] == ["conv", "reorder", "max_pool"]
    whole = rd.profile_memory(nn.Sequential(conv(4, 16), nn.MaxPool2d(2)), image(), convention=blocks).rows
    assert [row.op for row in whole] == ["conv", "max_pool", "reorder"]


@pytest.mark.parametrize("layer", [nn.GELU(), nn.LayerNorm(8), nn.Softmax(-1)], ids=str)
def test_what_onnx_runtime_computes_in_floats_in_int8(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 8)).eval()
    rows = rd.profile_memory(net, torch.zeros(1, 64, 8), convention="onnxruntime", dtype="int8").rows
    wide = [row.out_bytes for row in rows if {"gelu", "layer_norm", "to"} & set(row.op.split("+"))]
    assert wide and max(wide) == 4 * 64 * 8
