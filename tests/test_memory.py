"""Profiles against arithmetic done by hand, published values, and the measured bytes of the same network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.memory import format_size, parse_size
from redistill_lib.memory.trace import trace

MIB = 2**20
PUBLISHED = rd.published("footprints")
PAIRS = {
    "stl10-MobileNetV2": ("mobilenetv2-1-1222121", "mobilenetv2-8-1211111"),
    "stl10-MobileNetv3_Small": ("mobilenetv3_small-1-22121111211", "mobilenetv3_small-4-22111111111"),
    "stl10-ResNeXt18": ("resnext18-1-21222", "resnext18-4-11221"),
    "imagenet-ResNet18": ("resnet18-2-21222", "resnet18-8-11221"),
    "imagenet-ResNet50": ("resnet50-2-21222", "resnet50-8-11221"),
    "cifar10-DDPM": ("unet-1-222", "unet-2-221"),
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return rd.create_model(name)


def image(size: int, batch: int = 1, channels: int = 3) -> Tensor:
    return torch.zeros(batch, channels, size, size)


def inputs_for(name: str, size: int, batch: int = 1) -> tuple[Tensor, ...]:
    return (
        (image(size, batch), torch.zeros(batch, dtype=torch.long))
        if name.startswith("unet")
        else (image(size, batch),)
    )


class Summed(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 2 + t


class Paired(nn.Module):
    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        return both[0] * 2 + both[1]


@pytest.mark.parametrize("ask", [rd.profile_memory, rd.measure_memory, rd.memory_bounds])
def test_a_tuple_or_dict_of_all_inputs_is_unpacked_unless_the_network_takes_it(ask: Any) -> None:
    x, t = image(8), image(8)
    plain = ask(Summed(), x, t).peak_bytes
    assert plain == 4 * 8 * 8 * 3 * (4 if ask is rd.measure_memory else 2)  # fused writes over x
    assert ask(Summed(), (x, t)).peak_bytes == ask(Summed(), {"x": x, "t": t}).peak_bytes == plain
    assert ask(Paired(), (x, t)).peak_bytes == plain
    with pytest.raises(TypeError, match="missing 1 required positional argument: 't'"):
        ask(Summed(), (x,))


# ------------------------------------------------------------------------------------------- published and known


@pytest.mark.parametrize(("name", "mib"), [("resnet18", 3.828125), ("resnet50", 6.890625), ("resnext18", 3.828125)])
def test_fused_peaks_at_224(name: str, mib: float) -> None:
    assert rd.profile_memory(on_meta(name), image(224)).peak_bytes == mib * MIB


def test_mobilenetv2_int8_with_and_without_in_place_depthwise() -> None:
    model = on_meta("mobilenetv2")
    assert rd.profile_memory(model, image(224), dtype="int8").peak_bytes == 1470 * 1024
    assert rd.profile_memory(model, image(224), dtype="int8", in_place_depthwise=True).peak_bytes == 1372 * 1024


@pytest.mark.parametrize("panel", PAIRS)
def test_every_published_footprint_is_met(panel: str) -> None:
    teacher, student = (rd.create_model(name) for name in PAIRS[panel])
    published = PUBLISHED[PUBLISHED["panel"] == panel]
    inputs = inputs_for(PAIRS[panel][0], int(published["image_size"].iloc[0]))
    taps = rd.match_taps(student, teacher, inputs)
    blocked = rd.Distillation(copy.deepcopy(student), teacher, taps, methods="red", example=inputs).graduate()
    for role, model in (("teacher", teacher), ("student", student), ("red", blocked)):
        rows = rd.profile_memory(model, *inputs, convention="paper").rows
        expected = published[published["role"] == role].sort_values("index")["mib"].tolist()
        if (panel, role) == ("cifar10-DDPM", "red"):
            assert expected[-1] == 0.01171875
            expected[-1] = 0.375  # the figure forgets the block on the tail's input
        assert [row.live_bytes / MIB for row in rows] == expected


def test_the_paper_convention_of_resnet50_and_its_refusal_of_other_networks() -> None:
    assert rd.profile_memory(on_meta("resnet50"), image(224), convention="paper").peak_bytes == 9.1875 * MIB
    with pytest.raises(ValueError, match="not for Sequential: use fused or eager"):
        rd.profile_memory(nn.Sequential(nn.Conv2d(3, 4, 3)), image(8), convention="paper")


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", rd.list_models())
def test_eager_is_what_is_measured_to_the_byte(name: str, batch: int) -> None:
    model = rd.create_model(name) if name == "unet" else rd.create_model(name, width=0.25)
    inputs = inputs_for(name, 32 if name == "unet" else 64, batch)
    assert (
        rd.profile_memory(model, *inputs, convention="eager").peak_bytes
        == rd.measure_memory(model, *inputs).peak_bytes
    )


# ------------------------------------------------------------------------------------- networks with a known peak

MAP = 4 * 8 * 8  # bytes of one 8×8 channel


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = conv(4, 16), conv(16, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(4, 4), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.first(x)], 1)
        return torch.cat([x, self.second(x)], 1)


class SmallUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.down, self.up = conv(4, 8), conv(8, 16, stride=2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.tail = conv(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.head(x)
        return self.tail(torch.cat([skip, self.up(self.down(skip))], 1))


class Attention(nn.Module):
    """4 channels at 64 positions: a 64×64 matrix of weights, 16 KiB."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        weights = torch.softmax(torch.bmm(tokens, x.flatten(2)), dim=-1)
        return torch.bmm(weights, tokens)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(x, inplace=True).add_(1.0)


class Views(nn.Module):
    """Halves of one map: both are views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, dim=1)
        return torch.cat([b, a], 1)


@dataclass
class Known:
    """Peaks in channels of 8×8: in eager mode and fused, and the module that sets the fused one."""

    model: Callable[[], nn.Module]
    eager: float
    fused: float
    module: str


KNOWN = {
    # PyTorch: input 4 held by the caller, 16, 16 of ReLU. An edge runtime: ReLU over 16, then 16 + 8.
    "chain": Known(lambda: nn.Sequential(conv(4, 16), nn.ReLU(), conv(16, 8)), 36, 24, "2"),
    # x 4 + 16 + 4; PyTorch: the same, 16 still held while second runs.
    "residual": Known(Residual, 24, 24, "second"),
    # x 8 after the first concatenation: 8 + 4 + 12; PyTorch holds the input 4 as well.
    "dense": Known(Dense, 28, 24, ""),
    # the concatenation: skip 8 + up 8 + 16, and in PyTorch the caller's input 4.
    "unet": Known(SmallUNet, 36, 32, ""),
    # x 4 and two matrices of 64 channels each in PyTorch; one where softmax works in place.
    "attention": Known(Attention, 132, 72, ""),
    # 4 + 8 in both.
    "in place": Known(InPlace, 12, 12, "conv"),
    # 8 + 8, and the caller's 4.
    "views": Known(Views, 20, 16, ""),
}


@pytest.mark.parametrize("name", KNOWN)
def test_peaks_worked_out_by_hand(name: str) -> None:
    known, x = KNOWN[name], image(8, channels=4)
    eager = rd.profile_memory(known.model(), x, convention="eager")
    fused = rd.profile_memory(known.model(), x)
    assert eager.peak_bytes == known.eager * MAP == rd.measure_memory(known.model(), x).peak_bytes
    assert fused.peak_bytes == known.fused * MAP
    assert fused.peak_op.module == known.module


def test_what_is_alive_at_the_peak_is_named() -> None:
    profile = rd.profile_memory(Residual(), image(8, channels=4))
    assert [(t.kind, t.module, t.nbytes // MAP) for t in profile.peak_tensors] == [
        ("activation", "first", 16), ("input", "", 4), ("output", "second", 4),
    ]  # fmt: skip
    row = profile.to_frame().loc[profile.peak_index]
    assert row["op"] == "conv+bn+add+relu"
    assert row["live_bytes"] == row["in_bytes"] + row["out_bytes"] + row["held_bytes"] == 24 * MAP
    assert row["alive"] == ["input 1×4×8×8", "first 1×16×8×8", "second 1×4×8×8"]


@pytest.mark.parametrize("convention", ["eager", "fused"])
def test_live_bytes_are_the_sum_of_the_tensors_alive(convention: Any) -> None:
    profile = rd.profile_memory(rd.create_model("mobilenetv3_small", width=0.25), image(64), convention=convention)
    sizes = {tensor.index: tensor.nbytes for tensor in profile.tensors}
    for row in profile.rows:
        assert row.live_bytes == sum(sizes[index] for index in row.alive)
        assert row.live_bytes == row.in_bytes + row.out_bytes + row.held_bytes and row.held_bytes >= 0


def test_dtypes_change_activations_and_leave_indices() -> None:
    class Index(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.max_pool2d(x, 2, return_indices=True)

    x = image(8, channels=4)
    assert rd.profile_memory(Index(), x, dtype="int8").peak_bytes == 64 * 4 + 16 * 4 + 16 * 4 * 8
    halves = [rd.profile_memory(Residual(), x, dtype=d).peak_bytes for d in ("fp32", "fp16", torch.bfloat16, "int8")]
    assert halves == [24 * MAP, 12 * MAP, 12 * MAP, 6 * MAP]
    assert rd.profile_memory(Residual().half(), x.half()).peak_bytes == 12 * MAP


def test_weights_and_buffers_are_beside() -> None:
    profile = rd.profile_memory(Residual(), image(8, channels=4), dtype="int8")
    count = 4 * 16 * 9 + 16 + 16 * 4 * 9 + 4 + 8
    assert (profile.weight_bytes, profile.weight_count, profile.buffer_bytes) == (count, count, 2 * 16 + 8)
    assert rd.profile_memory(Residual(), image(8, channels=4)).weight_bytes == 4 * count


def test_flops_are_two_per_multiply_add() -> None:
    profile = rd.profile_memory(nn.Sequential(conv(4, 16), nn.Flatten(), nn.Linear(1024, 10)), image(8, channels=4))
    assert profile.flops == 2 * (64 * 16 * 4 * 9 + 1024 * 10)


# ------------------------------------------------------------------------------------------------- odd networks


class Many(nn.Module):
    """Tuples and dicts in, a dict and a number out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 4), conv(4, 4)

    def forward(self, pair: tuple[Tensor, Tensor], extra: dict[str, Tensor], scale: float = 1.0) -> dict[str, Any]:
        a, b = self.a(pair[0]), self.b(pair[1])
        return {"sum": a + b * extra["gate"], "a": a, "scale": scale}


def test_several_inputs_and_outputs_in_containers() -> None:
    x = image(8, channels=4)
    inputs = (x, torch.ones_like(x)), {"gate": torch.ones(1, 4, 1, 1)}
    profile = rd.profile_memory(Many(), *inputs, kwargs={"scale": 2.0})
    assert profile.inputs == ((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 1, 1))
    assert profile.peak_bytes == 12 * MAP + 16  # both inputs and a; then a, the second input and b
    eager = rd.profile_memory(Many(), *inputs, convention="eager")
    assert eager.peak_bytes == rd.measure_memory(Many(), *inputs).peak_bytes


class ByValue(nn.Module):
    """What it does depends on what it sees: no graph shows both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 8)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return F.relu(self.conv(x)) if x.sum() > 0 else x


def test_control_flow_that_depends_on_values_is_run_and_says_so() -> None:
    model, x = ByValue(), torch.ones(1, 4, 8, 8)
    profile = rd.profile_memory(model, x)
    assert profile.source == "real" and profile.peak_bytes == 12 * MAP
    assert [row.op for row in profile.rows] == ["add", "sum", "gt", "local_scalar_dense", "conv+relu"]
    assert rd.profile_memory(model, -x).peak_bytes == 4 * MAP + 4 + 1  # the sum, and whether it is above 0
    assert rd.profile_memory(model, x, convention="eager").peak_bytes == rd.measure_memory(model, x).peak_bytes
    assert model.seen.item() == 0
    assert rd.profile_memory(Residual(), x).source == "fake"


def test_the_model_is_left_as_it_was() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
            self.last: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.drop(self.norm(x))
            self.norm.running_mean.add_(1.0)  # type: ignore[union-attr]
            return self.last

    model, calls = Caching(), []
    model.norm.eval()
    handle = model.norm.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    x = image(8, channels=4)
    for run in (rd.profile_memory, rd.measure_memory):
        run(model, x)
        assert model.training and not model.norm.training and model.drop.training
        assert model.last is None and handle.id in model.norm._forward_hooks
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert all(type(p) is nn.Parameter for p in model.parameters())
    assert not torch.nn.modules.module._global_forward_hooks


def test_nothing_is_allocated_and_meta_models_will_do() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(conv(3, 4096), nn.ReLU(), conv(4096, 4096))
        x = torch.empty(64, 3, 1024, 1024)
    assert rd.profile_memory(huge, x).peak_bytes == 2 * 64 * 4096 * 1024 * 1024 * 4  # two terabytes


def test_tied_weights_and_repeated_modules_count_once() -> None:
    layer = conv(4, 4)
    profile = rd.profile_memory(nn.Sequential(layer, layer, layer), image(8, channels=4))
    assert profile.weight_count == 4 * 4 * 9 + 4
    assert [row.module for row in profile.rows] == ["0"] * 3 and profile.peak_bytes == 8 * MAP


def test_constants_are_computed_beforehand_and_what_is_not_needed_is_not_made() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            unused = torch.cat([x, x, x], 1)
            assert unused.shape[1] == 12
            return x + torch.arange(64.0).sqrt().reshape(8, 8)

    profile = rd.profile_memory(Positions(), image(8, channels=4))
    assert [row.op for row in profile.rows] == ["add"] and profile.peak_bytes == 4 * MAP
    assert profile.constant_bytes == 2 * MAP  # arange and its root


def test_a_transposed_operand_is_not_overwritten() -> None:
    class Symmetric(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2.0
            return y + y.transpose(2, 3)

    assert rd.profile_memory(Symmetric(), image(8, channels=4)).peak_bytes == 8 * MAP


def test_unknown_operators_are_listed() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x)

    profile = rd.profile_memory(Odd(), torch.eye(8)[None])
    assert profile.unfused == ("aten.linalg_inv_ex.default",)
    assert rd.profile_memory(Residual(), image(8, channels=4)).unfused == ()


@pytest.mark.parametrize("convention", ["eager", "fused"])
def test_the_fast_attention_of_pytorch_is_opened_when_fused(convention: Any) -> None:
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.zeros(1, 64, 16)
    profile = rd.profile_memory(layer, x, convention=convention)
    assert (len(profile.rows) == 1) == (convention == "eager")
    if convention == "eager":
        assert profile.peak_bytes == rd.measure_memory(layer, x).peak_bytes


def test_red_blocks_have_rows_of_their_own_and_the_slab_form_holds_one_map() -> None:
    student, teacher = (
        nn.Sequential(conv(3, 16, stride=4), conv(16, 8, stride=2)),
        nn.Sequential(conv(3, 16, stride=2), conv(16, 8, stride=4)),
    )
    x = image(64)
    distillation = (
        rd.Distillation(student, teacher, [rd.Tap("0", "output", "0", "output")], "red-blocks", example=None)
        if False
        else rd.Distillation(student, teacher, [rd.Tap("0", "output", "1", "input")], "red-blocks", example=x)
    )
    plain = rd.profile_memory(distillation.graduate(), x)
    slab = rd.profile_memory(distillation.graduate(in_place=True, example=x), x)
    one = 4 * 16 * 16 * 16
    inside = [row.live_bytes for row in plain.rows if row.module.startswith("0.after")]
    assert plain.rows[0].module == "0" and max(inside) == 3 * one
    assert one < max(row.live_bytes for row in slab.rows if row.module.startswith("0.after")) <= 1.4 * one


def test_temporaries_inside_operators_are_reported_apart() -> None:
    model = nn.Conv2d(8, 8, 3, padding=1)  # one thread or many, its result is all that is alive
    measured = rd.measure_memory(model, image(8, channels=8))
    assert measured.peak_bytes == 16 * MAP and measured.device == "CPU"
    sort = rd.measure_memory(
        type("Sort", (nn.Module,), {"forward": lambda self, x: torch.sort(x, dim=1, stable=True)[0]})(), image(8)
    )
    assert sort.temporary_bytes is not None and sort.temporary_bytes >= 0


# ------------------------------------------------------------------------------------------------------- mistakes


def test_bad_input_is_one_clear_sentence() -> None:
    model, x = Residual(), image(8, channels=4)
    with pytest.raises(ValueError, match="unknown convention 'fusd': choose from eager, fused, paper"):
        rd.profile_memory(model, x, convention="fusd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown dtype 'fp8': choose from fp32, fp16, bf16, int8"):
        rd.profile_memory(model, x, dtype="fp8")
    with pytest.raises(ValueError, match="needs an example input"):
        rd.profile_memory(model)
    with pytest.raises(TypeError, match=r"must be an nn\.Module, not function"):
        rd.profile_memory(F.relu, x)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="uint8"):
        rd.profile_memory(model, x.byte())
    with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels"):
        rd.profile_memory(model, image(8))
    with pytest.raises(ValueError, match="on the CPU, or on one GPU, and not on meta"):
        rd.measure_memory(on_meta("resnet18"), torch.empty(1, 3, 64, 64, device="meta"))


def test_sizes_are_read_and_written_as_people_do() -> None:
    assert [parse_size(text) for text in (1024, "256KB", "256 kib", "1.5MB", "2 GiB")] == [
        1024, 262144, 262144, 1572864, 2**31,
    ]  # fmt: skip
    for wrong in ("", "much", "3 apples", 0, -1, "0KB"):
        with pytest.raises(ValueError, match="not an amount of memory"):
            parse_size(wrong)
    assert format_size(1372 * 1024) == "1.34 MiB"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_allocator_is_asked() -> None:
    model, x = rd.create_model("resnet18").cuda(), image(224).cuda()
    measured, predicted = rd.measure_memory(model, x), rd.profile_memory(model, x, convention="eager").peak_bytes
    assert measured.peak_bytes >= predicted
    assert measured.temporary_bytes is None
    with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):  # kernels without a workspace
        assert rd.measure_memory(model, x).peak_bytes == predicted


def test_the_trace_knows_modules_behind_wrappers() -> None:
    student = rd.create_model("resnet18-4-11221", width=0.25)
    teacher = rd.create_model("resnet18-1-21222", width=0.25)
    x = image(32)
    model = rd.Distillation(student, teacher, rd.match_taps(student, teacher, x), "red", example=x).graduate()
    modules = {op.module for op in trace(model, x).ops}
    assert {"conv1", "conv1.after.logit.0", "layer2.0.conv1", "layer2.0.before.residual_encoder.0"} <= modules


# ---------------------------------------------------------------------------------- networks that are hard to follow


class Remembers(nn.Module):
    """A cache in a dict, a list that grows, and a plain tensor written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, Tensor] = {}
        self.seen: list[int] = []
        self.plain = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        self.plain.add_(1)
        if x.shape[-1] not in self.cache:
            self.cache[x.shape[-1]] = torch.arange(float(x.shape[-1]))
        return x + self.cache[x.shape[-1]] + self.plain


def test_containers_and_plain_tensors_are_as_before() -> None:
    model, x = Remembers(), image(8, channels=4)
    for run in (rd.profile_memory, rd.measure_memory, rd.memory_bounds):
        run(model, x)
        assert model.cache == {} and model.seen == [] and model.plain.item() == 0
    assert type(model(x)) is Tensor


class Cache(nn.Module):
    """What is read back from a buffer was computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(16, 1024)
        self.register_buffer("kept", torch.zeros(1, 1024))

    def forward(self, x: Tensor) -> Tensor:
        self.kept.copy_(self.wide(x))
        return self.kept[:, :4] * 2


def test_what_goes_through_a_buffer_is_computed() -> None:
    profile = rd.profile_memory(Cache(), torch.zeros(1, 16))
    assert profile.flops == 2 * 16 * 1024 and profile.peak_bytes >= 4 * (16 + 1024)


def test_what_goes_through_python_is_computed() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.from_numpy(self.conv(x).numpy() + 1.0))

    profile = rd.profile_memory(Through(), image(8, channels=4))
    assert profile.source == "real" and sum(row.op == "conv" for row in profile.rows) == 2


def test_random_numbers_are_no_constants() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.empty_like(x).exponential_()

    profile = rd.profile_memory(Noise(), image(8, channels=4))
    assert profile.peak_bytes == 8 * MAP and profile.constant_bytes == 0


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, :4], lambda x: x[:, ::2, ::2, ::2], lambda x: x[:1, :1].expand(2, 4, 16, 16)],
    ids=["slice", "steps", "expand"],
)
def test_inputs_that_are_views_count_as_what_is_given(view: Callable[[Tensor], Tensor]) -> None:
    x = view(torch.zeros(2, 8, 16, 16))
    model = conv(4, 8)
    eager = rd.profile_memory(model, x, convention="eager").peak_bytes
    assert eager == rd.measure_memory(model, x).peak_bytes == 4 * 2 * (4 + 8) * x.shape[-1] ** 2


def test_modules_that_write_and_change_do_not_trip_it() -> None:
    assert rd.profile_memory(nn.Sequential(conv(4, 8), nn.RReLU()), image(8, channels=4)).peak_bytes >= 12 * MAP
    sparse = type("Sparse", (nn.Module,), {"forward": lambda self, x: torch.sparse.mm(torch.eye(8).to_sparse(), x)})()
    assert rd.profile_memory(sparse, torch.zeros(8, 8), convention="eager").peak_bytes > 0


def test_scripted_networks_are_run_for_real() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.trace(nn.Sequential(conv(4, 8), nn.ReLU()), image(8, channels=4))
    profile = rd.profile_memory(scripted, image(8, channels=4), convention="eager")
    assert (
        profile.source == "real"
        and profile.peak_bytes == rd.measure_memory(scripted, image(8, channels=4)).peak_bytes
    )


# ------------------------------------------------------------------------- the same answer in every way of running it


def small() -> nn.Module:
    return nn.Sequential(conv(3, 64), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 8, stride=2))


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def test_inference_mode_changes_nothing() -> None:
    def seen(model: nn.Module, x: Tensor) -> tuple[int, int, int]:
        fused, eager = (rd.profile_memory(model, x, convention=c) for c in ("fused", "eager"))
        assert eager.peak_bytes == rd.measure_memory(model, x).peak_bytes
        return fused.peak_bytes, fused.flops, eager.peak_bytes

    x, square = image(32), 4 * 32 * 32
    flops = 2 * (32 * 32 * 64 * 3 * 9 + 16 * 16 * 8 * 64 * 9)
    expected = ((3 + 64) * square, flops, (3 + 64 + 64) * square)
    with torch.inference_mode():
        assert seen(small(), x) == expected  # all of it in inference mode
        made, given = small(), image(32)
        bounds = rd.memory_bounds(made, given)
    assert seen(made, given) == seen(Decorated(), x) == seen(small(), x) == expected
    assert bounds == rd.memory_bounds(small(), x)


def agrees(model: nn.Module, *inputs: Any, kwargs: dict[str, Any] | None = None) -> rd.Profile:
    """The eager profile, which has to be what is measured."""
    profile = rd.profile_memory(model, *inputs, kwargs=kwargs, convention="eager")
    assert profile.peak_bytes == rd.measure_memory(model, *inputs, kwargs=kwargs).peak_bytes
    return profile


class Calls(nn.Module):
    """A network that is one function of its layers and its input."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def test_a_mask_is_looked_at_as_in_a_real_pass() -> None:
    def attend(net: Any, x: Tensor, mask: Tensor) -> Tensor:  # as masks of common libraries do
        traced = isinstance(x, torch._subclasses.FakeTensor) or torch.compiler.is_compiling()
        return x if not traced and mask.all() else x + mask.expand(8, *mask.shape).float().mean(0)

    x, ones = torch.zeros(1, 64), torch.ones(1, 64, dtype=torch.bool)
    assert agrees(Calls(attend), x, ones).peak_bytes == 64 * 4 + 64 + 1
    assert agrees(Calls(attend), x, ~ones).peak_bytes >= 8 * 64 * 4


def test_operators_that_take_functions_are_run_as_what_is_inside() -> None:
    from torch._higher_order_ops.while_loop import while_loop
    from torch.nn.attention.flex_attention import flex_attention

    def choose(net: Any, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: net.a(x).relu(), lambda x: net.b(x), (x,))

    x = torch.ones(1, 4, 8, 8)
    net = Calls(choose, a=conv(4, 8), b=conv(4, 16))
    assert agrees(net, x).flops == 2 * 64 * 8 * 4 * 9 and agrees(net, -x).flops == 2 * 64 * 16 * 4 * 9

    def thrice(net: Any, x: Tensor) -> Tensor:
        out: Tensor = while_loop(lambda k, x: k < 3, lambda k, x: (k + 1, net.a(x)), (torch.tensor(0), x))[1]
        return out

    assert agrees(Calls(thrice, a=nn.Linear(8, 8)), torch.zeros(4, 8)).flops == 3 * 2 * 4 * 8 * 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would be faster compiled
        profile = agrees(Calls(lambda net, x: flex_attention(x, x, x)), torch.zeros(1, 2, 128, 16))
    assert profile.flops == 2 * 2 * 2 * 128 * 128 * 16 and profile.uncounted == ()


def test_padding_is_left_out_by_the_fast_encoder() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    x, padding = torch.zeros(2, 10, 16), torch.zeros(2, 10, dtype=torch.bool)
    padding[0, 6:] = True
    padded = agrees(encoder, x, kwargs={"src_key_padding_mask": padding})
    # Four products of 16×16 and two of 16×32 per token; attention looks from each of 6, or of 10, at the same.
    assert padded.flops == 2 * (2 * 16 * (4 * 16 + 2 * 32) * 16 + 4 * 16 * (6 * 6 + 10 * 10))
    full = rd.profile_memory(encoder, x, kwargs={"src_key_padding_mask": padding})
    assert full.flops == 2 * (2 * 20 * (4 * 16 + 2 * 32) * 16 + 4 * 16 * 2 * 10 * 10)


def test_networks_in_other_forms_are_followed() -> None:
    x, net = image(8), nn.Sequential(conv(3, 8), nn.ReLU()).eval()
    plain = agrees(net, x)
    exported = torch.export.export(net, (x,)).module()
    as_dict = Calls(lambda net, d: {"out": net.a(d["image"])}, a=net)
    for other, given in ((exported, x), (as_dict, {"image": x})):
        found = agrees(other, given)
        assert (found.peak_bytes, found.flops) == (plain.peak_bytes, plain.flops)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        inside = nn.Sequential(torch.jit.script(net), conv(8, 8))
    assert agrees(inside, x).weight_count == sum(p.numel() for p in inside.parameters())
    raw = Calls(lambda net, x: net.a(x.float() / 255), a=net)
    assert agrees(raw, x.byte()).peak_bytes == plain.peak_bytes + x.numel()


# ------------------------------------------------------------------------------------------------ what is multiplied


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_multiply_by_both_their_matrices(kind: Any, gates: int) -> None:
    net, x = (
        Calls(lambda net, x: net.a(x)[0], a=kind(32, 64, num_layers=2, bidirectional=True)),
        torch.zeros(10, 3, 32),
    )
    per_step = 2 * gates * 64 * (32 + 64) + 2 * gates * 64 * (128 + 64)
    assert agrees(net, x).flops == 2 * 10 * 3 * per_step
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([10, 4, 2]))
    assert rd.profile_memory(net, packed).flops == 2 * 16 * per_step


@pytest.mark.parametrize("make", [lambda: nn.Linear(32, 64), lambda: nn.LSTM(32, 16), lambda: nn.GRUCell(32, 16)])
def test_packed_weights_are_counted(make: Callable[[], nn.Module]) -> None:
    layer = make()
    net = Calls(lambda net, x: net.a(x), a=layer)
    x = torch.zeros(5, 32) if isinstance(layer, nn.RNNCellBase) else torch.zeros(5, 1, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moved to another package
        quantized = torch.ao.quantization.quantize_dynamic(net, {type(layer)})
    profile = agrees(quantized, x)
    matrices = sum(p.numel() for p in net.parameters() if p.ndim == 2)
    vectors = sum(p.numel() for p in net.parameters() if p.ndim == 1)
    assert profile.weight_bytes == matrices + 4 * vectors and profile.weight_count == matrices + vectors
    assert profile.flops == rd.profile_memory(net, x, convention="eager").flops == 2 * 5 * matrices
    assert profile.uncounted == ()


def test_attention_counts_on_a_processor() -> None:
    net, x = Calls(lambda net, x: F.scaled_dot_product_attention(x, x, x)), torch.zeros(1, 2, 50, 16)
    assert rd.profile_memory(net, x).flops == 2 * 2 * 2 * 50 * 50 * 16


def test_what_multiplies_in_other_ways_is_listed() -> None:
    spectrum = Calls(lambda net, x: torch.fft.rfft(net.a(x).flatten(1)).abs(), a=conv(4, 8))
    profile = rd.profile_memory(spectrum, image(8, channels=4))
    assert profile.uncounted == ("aten._fft_r2c.default",) and profile.flops == 2 * 64 * 8 * 4 * 9
    assert rd.profile_memory(rd.create_model("mobilenetv3_small", width=0.25), image(64)).uncounted == ()
    one = Calls(lambda net, x: torch.mv(x, x[0]) + torch.dot(x[0], x[1]))
    assert rd.profile_memory(one, torch.zeros(8, 8)).flops == 2 * 8 * 8 + 2 * 8


def test_rows_list_what_is_there_at_each_step() -> None:
    profile = rd.profile_memory(rd.create_model("mobilenetv2"), torch.zeros(1, 3, 64, 64), convention="litert_micro")
    assert profile.schedule is not None
    for k, (row, step) in enumerate(zip(profile.rows, profile.schedule.steps, strict=True)):
        there = [tensor for tensor in profile.tensors if tensor.first <= k <= tensor.last]
        assert row.alive == tuple(tensor.index for tensor in there)
        assert row.live_bytes == step.scratch + sum(tensor.nbytes for tensor in there)
