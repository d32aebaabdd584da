"""Networks run row by row: the same answers, a peak worked out by hand or promised, and what is refused."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.streaming.rows import Span, StreamedLayer

# The kernels of oneDNN that the docstring speaks of.
ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability(),
    reason="needs oneDNN on an x86",
)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def whole_numbers(*layers: nn.Module) -> nn.Sequential:
    """Weights of which sums are exact, in whatever order they are added up."""
    net = nn.Sequential(*layers).eval()
    for weight in net.parameters():
        weight.data = torch.randint(-2, 3, weight.shape).float()
    return net


def trained(name: str, **options: float) -> nn.Module:
    """A built-in network whose maps are neither tiny nor huge, and whose batch norms do something."""
    torch.manual_seed(0)
    net = rd.create_model(name, num_classes=10, **options)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.1)
            norm.momentum = 1.0
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64))
    return net.eval()


def peak(net: nn.Module, x: Tensor) -> int:
    return rd.profile_memory(net, x).peak_bytes


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_convolutions_of_all_kinds(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    for dilation, groups in [(1, 1), (2, 4)]:
        layers = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups), nn.ReLU(), nn.Conv2d(4, 2, 1)
        net = whole_numbers(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *layers)
        for rows in (1, 3, 50):
            streamed = rd.stream_rows(net, rows, example=torch.zeros(1, 3, 9, 9), until="3")
            for height in (1, 7, 12, 13):
                if height + 2 * padding <= dilation * (kernel - 1):
                    continue
                x = torch.randint(-3, 4, (2, 3, height, 9)).float()
                given = x.clone()
                assert torch.equal(streamed(x), net(x)), (dilation, groups, height, rows)
                assert torch.equal(x, given)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("ceil", [False, True])
def test_pools_of_all_kinds(kernel: int, stride: int, ceil: bool) -> None:
    torch.manual_seed(0)
    for padding in range(kernel // 2 + 1):
        pools: list[nn.Module] = [
            nn.AvgPool2d(kernel, stride, padding, ceil, True),
            nn.AvgPool2d(kernel, stride, padding, ceil, False),
            nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil),
            nn.AvgPool2d(kernel, stride, padding, ceil, divisor_override=3),
        ]
        if kernel == 3:
            pools += [nn.MaxPool2d(3, stride, padding, dilation=2, ceil_mode=ceil)]
        for pool, rows in itertools.product(pools, [1, 3, 50]):
            net = whole_numbers(nn.Conv2d(3, 4, 3, padding=1), pool, nn.Conv2d(4, 2, 1))
            streamed = rd.stream_rows(net, rows, example=torch.zeros(1, 3, 9, 9), until="1")
            for height in (5, 12, 13):
                x = torch.randint(-3, 4, (2, 3, height, 9)).float()
                assert torch.equal(streamed(x), net(x)), (pool, height, rows)


def test_a_window_in_the_padding_alone_is_refused() -> None:
    # Of a dilated pool on one row: taps above and below it, so that PyTorch's answer is -inf.
    net = whole_numbers(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, 1, 1, dilation=2), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="a map of 1 rows is too low"):
        rd.stream_rows(net, example=torch.zeros(1, 3, 1, 9), until="1")


def test_spans_by_hand() -> None:
    pool = Span(kernel=3, stride=2, padding=1)
    assert (pool.reach, pool.height(7), pool.height(8)) == (3, 4, 4)
    assert pool.window(0, 7) == range(0, 2) and pool.window(3, 7) == range(5, 7)
    assert pool._replace(zeros=1).window(0, 7) == range(-1, 2)
    dilated = Span(kernel=3, dilation=4, padding=4)
    assert dilated.window(0, 20) == range(0, 5, 4) and dilated.height(20) == 20
    assert Span(2, 2, ceil=True).height(7) == 4 and Span(2, 2).height(7) == 3


class Residual(nn.Module):
    def __init__(self, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.b(self.relu(self.a(x))) + x)


class Assigned(Residual):
    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.b(x))
        out += x
        return self.relu(self.a(out))


class Gated(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.relu(self.a(x)) + x.mul(self.b(x)) - F.relu6(x)


class Shared(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x)) + self.b(x)


@pytest.mark.parametrize(
    "block", [Residual(4), Residual(4, inplace=True), Assigned(4, inplace=True), Gated(4), Shared(4)]
)
@pytest.mark.parametrize("rows", [1, 2, 20])
def test_through_blocks_with_shortcuts(block: nn.Module, rows: int) -> None:
    torch.manual_seed(0)
    net = whole_numbers(nn.Conv2d(3, 4, 3, padding=1), block, nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 2, 3))
    x = torch.randint(-3, 4, (1, 3, 11, 8)).float()
    streamed = rd.stream_rows(net, rows, example=x, until="2")
    assert torch.equal(streamed(x), net(x))
    assert rows > 1 or peak(streamed, x) < peak(net, x)


def test_the_shortcut_holds_the_rows_that_the_branch_is_ahead() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(8), nn.AvgPool2d(16)).eval()
    x = torch.zeros(1, 3, 16, 16)
    row = 4 * 8 * 16
    # The image; of the first map three rows, the last of which the sum waits for, and of the branch's one; the
    # block's whole map, as the pool reads it at once. A row that was just made comes before it is in its place.
    held = 4 * 3 * 16 * 16 + 3 * row + row + 16 * row
    assert held <= peak(rd.stream_rows(net, example=x, until="1"), x) <= held + row


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("mobilenetv2", {}), ("mobilenetv2", {"width": 0.35})]
)
def test_the_peak_is_the_promised_one(name: str, options: dict[str, float]) -> None:
    net, x = trained(name, **options), torch.zeros(1, 3, 224, 224)
    streamed = rd.stream_rows(net, example=x)
    plain, by_rows = rd.profile_memory(net, x), rd.profile_memory(streamed, x)
    promised = rd.memory_bounds(net, x).streaming_bytes
    assert promised <= by_rows.peak_bytes <= 1.05 * promised < 0.7 * plain.peak_bytes
    assert by_rows.flops == plain.flops and not by_rows.uncounted


def test_more_rows_hold_no_more_than_their_windows() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.AvgPool2d(32)).eval()
    x, row = torch.zeros(1, 3, 64, 64), 4 * 8 * 64
    # The image, 4·2 + 1 rows of the first map and those that were just made, all of the last one.
    held = 4 * 3 * 64 * 64 + 9 * row + 4 * 8 * 32 * 32
    assert held < peak(rd.stream_rows(net, 4, example=x, until="2"), x) <= held + 4 * row


def test_what_is_traced_is_what_is_measured() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.rand(1, 3, 64, 64)
    streamed = rd.stream_rows(net, example=x, until="features.6")
    measured = rd.measure_memory(streamed, x).peak_bytes
    assert measured == rd.profile_memory(streamed, x, convention="eager").peak_bytes
    assert measured < 0.6 * rd.measure_memory(net, x).peak_bytes


@ONEDNN
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("name", "until"),
    [("resnet18", None), ("resnet18", "layer1"), ("mobilenetv2", "features.5"), ("resnext18", None)],
)
def test_built_in_networks_are_equal_to_the_bit(name: str, until: str | None) -> None:
    net, x = trained(name), torch.randn(1, 3, 128, 128)
    streamed = rd.stream_rows(net, example=x, until=until)
    for y in (x, x.expand(3, -1, -1, -1), x.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(streamed(y), net(y).detach())
    assert torch.equal(streamed.bfloat16()(x.bfloat16()), net.bfloat16()(x.bfloat16()).detach())


@ONEDNN
@pytest.mark.usefixtures("one_thread")
def test_a_large_image_is_equal_to_the_bit() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 224, 224)
    assert torch.equal(rd.stream_rows(net, example=x, until="features.6")(x), net(x).detach())


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # oneDNN says so wherever it is turned off
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [(65, 97), (33, 20)])
def test_elsewhere_they_are_equal_up_to_rounding(rows: int, size: tuple[int, int]) -> None:
    """Odd sizes, 1×1 convolutions with strides, and images of another size than the example."""
    example, x = torch.zeros(1, 3, 64, 64), torch.randn(2, 3, *size)
    for net, until in [(trained("resnet18"), "layer3"), (trained("mobilenetv2", width=0.35), "features.13")]:
        streamed = rd.stream_rows(net, rows, example=example, until=until)
        for library in (True, False):
            with torch.backends.mkldnn.flags(enabled=library):
                got, wanted = streamed(x), net(x)
            assert torch.allclose(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_red_blocks_run_row_by_row_too() -> None:
    teacher, x = rd.create_model("resnet18", num_classes=10), torch.randn(1, 3, 64, 64)
    student, _ = rd.derive_student(teacher, factor=2, example=x)
    model = rd.Distillation(student, teacher, rd.match_taps(student, teacher, x), methods="red").graduate().eval()
    streamed = rd.stream_rows(model, example=x, until="layer1")
    assert peak(streamed, x) < 0.7 * peak(model, x)
    assert torch.allclose(streamed(x), model(x), atol=1e-4 * model(x).abs().max().item())


def test_the_copy_keeps_names_and_leaves_the_network_alone() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 64, 64)
    before, text = {name: tensor.clone() for name, tensor in net.state_dict().items()}, repr(net)
    streamed = rd.stream_rows(net, example=x, until="features.3")
    assert list(streamed.state_dict()) == list(before) and repr(net) == text and type(streamed) is type(net)
    assert not any(isinstance(part, StreamedLayer) for part in net.modules())
    assert "by rows" in repr(streamed.features[3]) and "by rows" not in repr(streamed.features[4])
    other = trained("mobilenetv2", width=0.35)
    nn.init.ones_(other.features[0][0].weight)
    streamed.load_state_dict(other.state_dict())
    assert torch.allclose(streamed.features(x), other.features(x), atol=1e-4)
    assert not torch.allclose(other.features(x), net.features(x), atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_copies_and_pickles_stream_with_weights_of_their_own() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 32, 32)
    streamed = rd.stream_rows(net, example=x, until="features.3")
    expected = streamed(x)
    for twin in (copy.deepcopy(streamed), pickle.loads(pickle.dumps(streamed))):
        assert torch.equal(twin(x), expected) and peak(twin, x) == peak(streamed, x)
        twin.features[2].conv[0].weight.zero_()
        assert not torch.equal(twin(x), expected) and torch.equal(streamed(x), expected)


def test_half_precision_and_other_dtypes_follow_the_copy() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 32, 32)
    streamed = rd.stream_rows(net, example=x, until="features.3")
    for dtype, close in [(torch.float64, 1e-12), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]:
        got, wanted = streamed.to(dtype)(x.to(dtype)), net.to(dtype)(x.to(dtype))
        assert got.dtype == dtype and torch.allclose(got, wanted, atol=close)


def test_it_can_be_exported_as_an_unrolled_graph() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 32, 32)
    exported = torch.export.export(rd.stream_rows(net, 4, example=x), (x,)).module()
    assert torch.allclose(exported(x), net(x), atol=1e-6)


def test_a_graph_of_the_network_streams_like_the_network() -> None:
    net, x = trained("mobilenetv2", width=0.35), torch.randn(1, 3, 64, 64)
    graph = torch.fx.symbolic_trace(net)  # the containers it makes are in train mode, which decides nothing
    assert torch.allclose(rd.stream_rows(graph, example=x)(x), net(x), atol=1e-5)


def test_networks_of_several_inputs() -> None:
    net, example = trained("resnet18"), {"x": torch.zeros(1, 3, 32, 32)}
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(rd.stream_rows(net, example=example)(x), net(x), atol=1e-5)


class Functions(nn.Module):
    """Functions in the network's own forward, one layer for several places, and a map's size read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2)
        self.kind, self.relu = kind, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        size = x.shape[-2:]
        if self.kind == "size":
            return F.interpolate(self.c(self.b(x)), size)
        relu = F.relu if self.kind == "function" else self.relu
        return self.c(relu(self.b(relu(x))))


class Halved(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.a(x) + x


class Unread(Residual):
    def forward(self, x: Tensor) -> Tensor:
        self.b(x)
        return self.a(x)


class Overwritten(Residual):
    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x)
        return F.relu6(self.b(out)) + self.relu(out) + x


def small(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.Conv2d(4, 2, 3, 2), nn.Conv2d(2, 2, 1)).eval()


@pytest.mark.parametrize(
    ("net", "until", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), None, "the network is in train mode.* call eval"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), None, r"no layer .* 0 \(Flatten\) is no layer that works"),
        (nn.Sequential(nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3)), None, r"0 \(GroupNorm\) is no layer that works"),
        (small(nn.BatchNorm2d(4, track_running_stats=False)), "2", "until='0' can: 1 has no running statistics"),
        (small(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")), "2", r"until='0' can: 1 \(Conv2d\)"),
        (small(nn.Conv2d(4, 4, 2, padding="same")), "2", r"until='0' can: 1 \(Conv2d\)"),
        (Functions("function"), "c", r"until='a' can: relu of the map behind a is called in test_streaming.py"),
        (Functions("shared"), "c", "until='a' can: relu runs elsewhere, too"),
        (Functions("size"), "b", "the forward uses the size of a map"),
        (small(Halved(4)), "2", "until='0' can: 1 does more than layers and sums"),
        (small(Unread(4)), "2", "'2' cannot be reached row by row: 1.b makes a map that nothing reads"),
        (small(Overwritten(4, inplace=True)), "2", "1.relu writes over a map that is read elsewhere"),
        (small(Residual(4)), "1.a", "until='1' can: 1.a is a part of 1, which runs row by row as a whole"),
        (rd.create_model("resnet50"), None, "nothing is saved up to the first shortcut.* at most 'layer4.2'"),
        (rd.create_model("mobilenetv3_small"), "features.1", r"avgpool \(AdaptiveAvgPool2d\) is no layer"),
    ],
)
def test_what_cannot_be_is_refused_with_the_layer(net: nn.Module, until: str | None, message: str) -> None:
    net.train(message.startswith("the network is in train mode"))
    with pytest.raises(ValueError, match=message):
        rd.stream_rows(net, example=torch.zeros(1, 3, 32, 32), until=until)


def test_wrong_arguments_are_refused() -> None:
    net, x = rd.create_model("resnet18").eval(), torch.zeros(1, 3, 32, 32)
    for rows in (0, -1, 1.5):
        with pytest.raises(ValueError, match=r"rows=.* whole number of 1 or more"):
            rd.stream_rows(net, rows, example=x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not take the example, as conv1 fails"):
        rd.stream_rows(net, example=torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="example is a batch of images"):
        rd.stream_rows(net, example=torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="until=3 is not text"):
        rd.stream_rows(net, example=x, until=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not a Module"):
        rd.stream_rows(net.forward, example=x)  # type: ignore[type-var]
    with pytest.raises(KeyError, match="did you mean 'layer1'"):
        rd.stream_rows(net, example=x, until="layr1")
    streamed = rd.stream_rows(net, example=x)
    with pytest.raises(ValueError, match="run row by row already"):
        rd.stream_rows(streamed, example=x, until="layer1")
    with pytest.raises(RuntimeError, match="passes no gradient"):
        streamed(torch.zeros(1, 3, 32, 32, requires_grad=True))
    streamed.conv1.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="passes no gradient"):
        streamed(x)
    with pytest.raises(RuntimeError, match="for inference only"):
        streamed.train()
    net.relu.register_forward_hook(print)
    with pytest.raises(ValueError, match="relu has hooks"):
        rd.stream_rows(net, example=x)
