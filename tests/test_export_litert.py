"""LiteRT files: paddings without copies, what is in the file, and what LiteRT and LiteRT Micro make of it.

The packages are installed by hand, so most of this is skipped without them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.export import tflite
from redistill_lib.export.exported import load_exported
from redistill_lib.export.measure import measure_runtime
from redistill_lib.export.model import export_model
from redistill_lib.export.quiet import quiet
from redistill_lib.export.same_padding import use_same_padding
from redistill_lib.memory.arena import Block
from redistill_lib.memory.padding import MOST_PARTS, kernel_growth, pool_parts


def same(x: Tensor, weight: Tensor, stride: int, dilation: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's SAME, by its definition: as many outputs as ⌈size / stride⌉, the smaller half in front."""
    edges: list[int] = []
    for size, kernel in zip(x.shape[-2:], weight.shape[-2:], strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
        edges = [total // 2, total - total // 2, *edges]
    return F.conv2d(F.pad(x, edges), weight, stride=stride, dilation=dilation, groups=groups)


def exported(network: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    graph = torch.export.export(network.eval(), (x,)).module()
    assert isinstance(graph, torch.fx.GraphModule)
    use_same_padding(graph)
    return graph


def calls(graph: torch.fx.GraphModule, operator: str) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if getattr(node.target, "_opname", "") == operator]


def weights(graph: torch.fx.GraphModule) -> list[Tensor]:
    """As its convolutions take them."""
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    return [held[str(node.args[1].target)] for node in calls(graph, "conv2d")]  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize(
    ("layer", "size", "kernel"),
    [
        (nn.Conv2d(3, 4, 3, 2, 1), 8, (4, 4)),
        (nn.Conv2d(3, 4, 3, 2, 1), 7, (3, 3)),  # SAME as it is
        (nn.Conv2d(3, 4, 7, 2, 3), 16, (8, 8)),
        (nn.Conv2d(3, 4, 7, 4, 3), 16, (10, 10)),
        (nn.Conv2d(3, 4, 7, 8, 3), 32, (14, 14)),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=4), 8, (4, 4)),
        (nn.Conv2d(4, 4, 3, 2, 1, groups=2, bias=False), 8, (4, 4)),
        (nn.Conv2d(3, 4, (3, 1), 2, (1, 0)), 8, (4, 2)),  # without padding a side has to reach to the end
        (nn.Conv2d(3, 4, 1, 2), 8, (1, 1)),
        (nn.Conv2d(3, 4, 3), 8, (3, 3)),  # VALID
        (nn.Conv2d(3, 4, 3, 1, 2), 8, (3, 3)),  # more outputs than SAME has: stays a copy
        (nn.Conv2d(3, 4, 3, 3, 2, 2), 9, (4, 4)),
        (nn.Conv2d(3, 4, 3, 3, 2, 2), 8, (3, 3)),  # needs one row more, and this kernel grows by two: stays a copy
        (nn.Conv2d(3, 4, 5, 2, 2), 8, (6, 6)),
    ],
    ids=str,
)
def test_kernels_grow_where_same_then_pads_as_pytorch_does(
    layer: nn.Conv2d, size: int, kernel: tuple[int, int]
) -> None:
    x = torch.randn(2, layer.in_channels, size, size)
    graph = exported(nn.Sequential(layer), x)
    (weight,) = weights(graph)
    assert weight.shape[-2:] == kernel
    torch.testing.assert_close(graph(x), layer(x))
    if kernel != layer.kernel_size:
        bias = 0 if layer.bias is None else layer.bias[:, None, None]
        torch.testing.assert_close(same(x, weight, layer.stride[0], layer.dilation[0], layer.groups) + bias, layer(x))


def test_calls_grow_as_layers_do_and_shared_weights_each_as_it_needs() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight, stride=2, padding=1)
            return F.conv2d(F.conv2d(x, self.weight, padding=1), x[:1, :3, :3, :3].clone(), stride=2, padding=1)

    x = torch.randn(1, 3, 8, 8)
    graph = exported(network := Calls(), x)
    torch.testing.assert_close(graph(x), network(x), rtol=1e-5, atol=1e-4)
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    kernels = [held.get(str(node.args[1].target)) for node in calls(graph, "conv2d")]  # type: ignore[union-attr]
    assert [None if k is None else k.shape[-1] for k in kernels] == [4, 3, None]  # the last weight is computed


def test_a_growth_worked_out_by_hand() -> None:
    # Side 8, stride 4, kernel 3, padding 1: windows −1…1 and 3…5; SAME has them where it pads 2 in all, so 6 wide.
    assert kernel_growth(8, 3, 4, 1) == 3
    assert kernel_growth(8, 1, 2, 0) == 1 and kernel_growth(8, 2, 2, 0) == 0
    assert kernel_growth(8, 3, 1, 0) is None and kernel_growth(8, 3, 1, 2) is None


@pytest.mark.parametrize("before", [nn.ReLU(), nn.Hardtanh(0, 1), nn.Identity()], ids=str)
@pytest.mark.parametrize("channels", [3, 64])
def test_max_pooling_is_done_in_parts(before: nn.Module, channels: int) -> None:
    x = torch.randn(2, channels, 8, 8) - 1
    network = nn.Sequential(before, nn.MaxPool2d(3, 2, 1))
    graph = exported(network, x)
    assert torch.equal(graph(x), network(x))
    assert len(calls(graph, "max_pool2d")) == min(channels, 10)
    assert len(calls(graph, "constant_pad_nd")) == (0 if isinstance(before, nn.Identity) else min(channels, 10))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True)])
def test_max_pooling_that_same_expresses_or_that_rounds_up_stays(pool: nn.Module) -> None:
    x = torch.randn(1, 16, 8, 8)
    graph = exported(nn.Sequential(pool), x)
    assert torch.equal(graph(x), pool(x)) and len(calls(graph, "max_pool2d")) == 1


@pytest.mark.parametrize("case", [(64, 3136, 3364, 784), (24, 100, 144, 25), (4, 64, 100, 16), (1, 64, 100, 64)])
def test_parts_are_the_best_of_ten(case: tuple[int, int, int, int]) -> None:
    channels, size, padded, made = case

    def added(parts: list[int]) -> int:
        before = [sum(parts[:k]) * made for k in range(len(parts))]
        return max(done + count * (padded + max(size, made)) for done, count in zip(before, parts, strict=True))

    parts = pool_parts(*case)
    assert sum(parts) == channels and len(parts) <= MOST_PARTS and min(parts) > 0
    shorter = [[*parts[:k], parts[k] - 1, *parts[k + 1 :]] for k in range(len(parts)) if parts[k] > 1]
    others = [[*o[:j], o[j] + 1, *o[j + 1 :]] for o in shorter for j in range(len(o))]  # one channel moved
    assert all(added(other) >= added(parts) for other in others)


# ---------------------------------------------------------------------------------------------------------- the file


def test_buffers_that_lie_behind_the_file_are_put_into_it() -> None:
    content = bytes(range(64))
    outside = SimpleNamespace(data=None, offset=48, size=3)
    inside = SimpleNamespace(data=np.array([9], np.uint8), offset=0, size=0)
    nothing = SimpleNamespace(data=None, offset=0, size=0)
    tflite.inline([outside, inside, nothing], content)
    assert [*outside.data] == [48, 49, 50] and (outside.offset, outside.size) == (0, 0)
    assert [*inside.data] == [9] and nothing.data is None


def model_of(sizes: list[int], operators: list[tuple[list[int], list[int]]], outputs: list[int], code: int) -> Any:
    """Tensors of int8; the first is the input."""
    graph = SimpleNamespace(
        tensors=[SimpleNamespace(shape=np.array([1, size]), type=9) for size in sizes],
        operators=[
            SimpleNamespace(inputs=np.array(reads), outputs=np.array(made), opcodeIndex=0)
            for reads, made in operators
        ],
        inputs=np.array([0]),
        outputs=np.array(outputs),
    )
    codes = [SimpleNamespace(builtinCode=code, deprecatedBuiltinCode=code)]
    return SimpleNamespace(subgraphs=[graph], operatorCodes=codes)


def test_a_plan_worked_out_by_hand() -> None:
    # The input of 10 bytes, a weight, and two maps: tensor 2 of 40 bytes, 3 of 17. Blocks take multiples of 16.
    model = model_of([10, 1000, 40, 17], [([0, 1], [2]), ([2, -1], [3])], [3], code=3)
    assert tflite.blocks_of(model.subgraphs[0]) == {0: Block(10, 0, 1), 2: Block(40, 1, 2), 3: Block(17, 2, 2)}
    assert tflite.alive(model) == 40 + 17
    plan, arena = tflite.plan_of(model)
    assert plan.dtype == np.int32 and [*plan[:3]] == [0, 0, 4] and plan[4] == -1
    # Input and second map may share their place above or below the first, the largest, which lies at the bottom.
    assert (plan[3], plan[5], plan[6], arena) == (48, 0, 48, 48 + 32)


def test_a_transposed_convolution_of_int8_has_room_for_its_sums() -> None:
    model = model_of([10, 1000, 40], [([0, 1], [2])], [2], code=67)
    assert tflite.sums_of(model) == [Block(160, 1, 1)] and tflite.alive(model) == 10 + 40 + 160
    _, arena = tflite.plan_of(model)
    assert arena == 16 + 48 + 160
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ConvTranspose2d(8, 2, 2, 2))
    x = torch.zeros(1, 4, 8, 8)
    peaks = {d: rd.profile_memory(net, x, convention="litert_micro", dtype=d) for d in ("fp32", "int8")}
    assert peaks["fp32"].peak_bytes == 4 * (8 * 64 + 2 * 256)
    assert peaks["int8"].peak_bytes == 8 * 64 + 2 * 256 + 4 * 2 * 256


# ------------------------------------------------------------------------------------------------------- in LiteRT


litert = pytest.mark.skipif(not importlib.util.find_spec("litert_torch"), reason="needs LiteRT's packages")
micro = pytest.mark.skipif(not importlib.util.find_spec("tflite_micro"), reason="needs tflite-micro")


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """With statistics that keep its maps alive."""
    with torch.no_grad():
        network.train()
        for _ in range(3):
            network(torch.randn(4, *shape))
    return network.eval()


def operators_of(file: Path) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    network = tflite.read(file.read_bytes())
    codes = [network.operatorCodes[each.opcodeIndex] for each in network.subgraphs[0].operators]
    return [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]


class Small(nn.Module):
    """A layer whose padding SAME lacks, a RED block's product and sum, and pooling in parts of any sign."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * self.gate(x).sigmoid() + F.relu(x)
        return F.adaptive_avg_pool2d(self.head(F.max_pool2d(x - 1, 3, 2, 1)), 1).flatten(1)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@litert
@micro
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_measured_is_what_the_profile_says(small: nn.Module, tmp_path: Path, int8: bool) -> None:
    file, x, images = tmp_path / "net.tflite", torch.randn(2, 3, 16, 16), torch.randn(6, 3, 16, 16)
    made = export_model(small, file, x, images=images, calibration=images if int8 else None, int8=int8)
    assert made.difference < (0.05 if int8 else 1e-5) and made.images == 6
    network = load_exported(file)
    assert network.example[0].shape == x.shape and network(images).shape == (6, 5)
    measured = measure_runtime(file)
    profile = rd.profile_memory(small, x, convention="litert_micro", dtype="int8" if int8 else None)
    assert measured.arena_bytes == pytest.approx(profile.arena_bytes, rel=0.02)
    assert measured.peak_bytes == pytest.approx(profile.peak_bytes, rel=0.02)
    assert measured.runtime == "LiteRT Micro" and measured.beside_bytes == 0 and measured.seconds > 0
    assert operators_of(file).count("MAX_POOL_2D") == 8 and "TRANSPOSE" not in operators_of(file)


@litert
@micro
@pytest.mark.parametrize("int8", [False, True])
def test_the_student_needs_no_more_than_fused(tmp_path: Path, int8: bool) -> None:
    torch.manual_seed(0)
    student = settled(rd.create_model("resnet18-8-11221"), 3, 64, 64)
    file, x = tmp_path / "net.tflite", torch.randn(1, 3, 64, 64)
    images = torch.randn(2, 3, 64, 64) if int8 else None
    export_model(student, file, x, calibration=images, int8=int8)
    fused = rd.profile_memory(student, x, dtype="int8" if int8 else None).peak_bytes
    profile = rd.profile_memory(student, x, convention="litert_micro", dtype="int8" if int8 else None)
    assert measure_runtime(file).arena_bytes == profile.arena_bytes == fused
    assert {"PAD", "PADV2", "TRANSPOSE", "QUANTIZE", "DEQUANTIZE"}.isdisjoint(operators_of(file))


@litert
@micro
def test_the_sums_of_a_transposed_convolution_find_their_room(tmp_path: Path) -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 3, 3)
    network, file, x = nn.Sequential(*body).eval(), tmp_path / "net.tflite", torch.randn(1, 3, 16, 16)
    export_model(network, file, x, calibration=torch.randn(4, 3, 16, 16), int8=True)
    profile = rd.profile_memory(network, x, convention="litert_micro", dtype="int8")
    assert measure_runtime(file).arena_bytes == profile.arena_bytes == 16 * 256 + (1 + 4) * 8 * 1024


@litert
def test_inputs_of_whole_numbers_and_maps_as_outputs(tmp_path: Path) -> None:
    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table = nn.Conv2d(3, 6, 3, padding=1), nn.Embedding(10, 6)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x) + self.table(t)[:, :, None, None]

    network, inputs = Conditional().eval(), (torch.randn(1, 3, 8, 10), torch.tensor([7]))
    export_model(network, tmp_path / "net.tflite", inputs)
    loaded = load_exported(tmp_path / "net.tflite")
    torch.testing.assert_close(loaded(*inputs), network(*inputs))
    assert loaded.example[1].dtype == torch.int64


@litert
@micro
def test_weights_outside_the_file_are_noticed(tmp_path: Path) -> None:
    # ai-edge-quantizer puts them there in files of more than 256 KiB; LiteRT Micro then computes something else.
    from redistill_lib.export import litert as writer

    network = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3))
    x = torch.randn(1, 3, 8, 8)
    file = tmp_path / "net.tflite"
    export_model(network, file, x, calibration=torch.cat([x, -x]), int8=True)
    measure_runtime(file)
    with quiet():
        content = writer._quantized(writer._converted(network.eval(), (x,)), [(x,), (-x,)])
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"LiteRT Micro computes something else of .*net\.tflite than LiteRT"):
        writer.measure(file, (x,))


@litert
def test_maps_that_are_zero_have_a_range(tmp_path: Path) -> None:
    class Dead(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu6((x - x.amax()) * torch.full((3, 1, 1), 2.0)) + x

    x = torch.rand(1, 3, 8, 8)
    assert export_model(Dead(), tmp_path / "net.tflite", x, images=x, calibration=x, int8=True).difference < 0.02


@litert
def test_what_is_not_taken_is_named(tmp_path: Path) -> None:
    def layer(call: Callable[[Tensor], Tensor]) -> nn.Module:
        return type("Layer", (nn.Module,), {"forward": lambda self, x: call(x)})()

    x, file = torch.rand(1, 3, 8, 8), tmp_path / "net.tflite"
    with pytest.raises(ValueError, match=r"cannot be written for LiteRT: its converter does not take aten\.lgamma"):
        export_model(layer(torch.lgamma), file, x)
    with pytest.raises(ValueError, match="LiteRT cannot load this network: it has no kernel for STABLEHLO_SORT"):
        export_model(layer(lambda x: torch.sort(x, -1)[0]), file, x)
    assert not file.exists()
    file.write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"LiteRT cannot load .*net\.tflite"):
        load_exported(file)


@litert
@micro
def test_what_litert_micro_does_not_take_is_named(tmp_path: Path) -> None:
    network, file = nn.Conv3d(1, 2, 3), tmp_path / "net.tflite"
    export_model(network, file, torch.rand(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"LiteRT Micro cannot run .*net\.tflite: it has no kernel for CONV_3D"):
        measure_runtime(file)


@litert
def test_without_litert_micro_the_way_to_measure_is_said(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redistill_lib.export import litert as writer

    file, x = tmp_path / "net.tflite", torch.randn(1, 3, 16, 16)
    export_model(small, file, x)
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(ImportError, match="tflite_micro is not installed: pip install --no-deps tflite-micro"):
        writer.measure(file, (x,))
