from __future__ import annotations

import json
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.models import (
    ARCHITECTURES,
    create_model,
    list_models,
    load_checkpoint,
    student_name,
    usual_plan,
)
from redistill_lib.models.mobilenet import InvertedResidual, make_divisible
from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.red import RedBlock

Shapes = dict[str, dict[str, list[int]]]
OFFICIAL: Shapes = json.loads((Path(__file__).parent / "reference" / "official_shapes.json").read_text())
CLASSIFIERS = [name for name in OFFICIAL if not name.startswith(("unet", "_"))]


def on_meta(*args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(*args, **kwargs)


def randomised(name: str, **kwargs: Any) -> nn.Module:
    """A float64 model in eval mode, every tensor random, scaled so that the input shows in the output."""
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, **kwargs).double().eval()
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.dim() == 1:
                tensor.copy_(noise * 0.2 + ("weight" in key))
            else:
                tensor.copy_(noise * (2 * tensor.shape[0] / tensor.numel()) ** 0.5)
    return model


def images(batch: int) -> Tensor:
    return 3 * torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()


# --- layout -----------------------------------------------------------------------------------------------


def test_the_reference_covers_every_family() -> None:
    assert len(CLASSIFIERS) == 7


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_official_names_and_shapes(name: str) -> None:
    model = on_meta(name)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == OFFICIAL[name]
    assert model.name == name


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # torchvision's published totals, 1000 classes
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("resnext50", 25_028_904),
        ("resnext101", 44_177_704),
        ("mobilenetv2", 3_504_872),
        ("mobilenetv3_small", 2_542_856),
        ("mobilenetv3_large", 5_483_032),
    ],
)
def test_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in on_meta(name, num_classes=1000).parameters()) == count


def test_resnexts_differ_from_resnets_by_their_groups() -> None:
    def difference(depth: int) -> int:
        counts = [sum(p.numel() for p in on_meta(f"{kind}{depth}").parameters()) for kind in ("resnext", "resnet")]
        return counts[0] - counts[1]

    # Basic blocks: the second 3×3 keeps 1/32 of its weights.
    assert difference(34) == sum(
        -9 * planes**2 * 31 // 32 * depth for planes, depth in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)
    )
    # Bottlenecks: the inside is twice as wide (two 1×1 and two batch norms grow), its 3×3 grouped.
    expected, inputs = 0, 64
    for planes, depth in zip((64, 128, 256, 512), (3, 8, 36, 3), strict=True):
        for _ in range(depth):
            expected += planes * (inputs + 4 * planes) + 4 * planes + 9 * planes**2 * 4 // 32 - 9 * planes**2
            inputs = 4 * planes
    assert difference(152) == expected


# --- numbers ----------------------------------------------------------------------------------------------


def conv_bn(state: dict[str, Tensor], x: Tensor, conv: str, bn: str, **kwargs: int) -> Tensor:
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, **kwargs)
    statistics = (state[f"{bn}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    mean, var, scale, shift = (tensor[None, :, None, None] for tensor in statistics)
    return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift


def plain_resnet(state: dict[str, Tensor], x: Tensor, strides: tuple[int, ...]) -> Tensor:
    x = F.relu(conv_bn(state, x, "conv1", "bn1", stride=strides[0]))
    x = F.max_pool2d(x, 3, strides[1], padding=1)
    bottleneck = "layer1.0.conv3.weight" in state
    for stage in range(1, 5):
        index = 0
        while (block := f"layer{stage}.{index}") + ".conv1.weight" in state:
            stride = strides[stage + 1] if index == 0 else 1
            skip, count = x, 3 if bottleneck else 2
            for number in range(1, count + 1):
                channels = x.shape[1]
                groups = channels // state[f"{block}.conv{number}.weight"].shape[1]
                strided = number == (2 if bottleneck else 1)
                conv, bn = f"{block}.conv{number}", f"{block}.bn{number}"
                x = conv_bn(state, x, conv, bn, stride=stride if strided else 1, groups=groups)
                x = F.relu(x) if number < count else x
            if f"{block}.downsample.0.weight" in state:
                skip = conv_bn(state, skip, f"{block}.downsample.0", f"{block}.downsample.1", stride=stride)
            x = F.relu(x + skip)
            index += 1
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    "name",
    ["resnet18-1-21222", "resnet50-4-11221", "resnext18-8-11211", "resnext50-2-21222", "resnet34-1-14122"],
)
@torch.no_grad()
def test_resnets_equal_a_plain_derivation(name: str) -> None:
    model = randomised(name, width=0.5)
    x = images(2)
    expected = plain_resnet(dict(model.state_dict()), x, model.plan.places)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def plain_mobilenet(
    state: dict[str, Tensor], x: Tensor, strides: list[int], activations: list[str], squeeze_last: set[int]
) -> Tensor:
    """Stem, blocks and last convolution, from the shapes in the state alone; `strides[i]` is features.i's."""
    act = {"relu6": lambda t: t.clamp(0, 6), "relu": F.relu, "hard": lambda t: t * (t + 3).clamp(0, 6) / 6}
    x = act[activations[0]](conv_bn(state, x, "features.0.0", "features.0.1", stride=strides[0]))
    for index in range(1, len(strides)):
        block, nonlinear = f"features.{index}.conv", act[activations[index]]
        convs = sorted(
            int(key.split(".")[3])
            for key, tensor in state.items()
            if key.startswith(f"{block}.") and tensor.dim() == 4
        )
        skip = x
        for position, number in enumerate(convs):
            depthwise = state[f"{block}.{number}.weight"].shape[1] == 1 and position == len(convs) - 2
            x = conv_bn(
                state,
                x,
                f"{block}.{number}",
                f"{block}.{number + 1}",
                stride=strides[index] if depthwise else 1,
                groups=x.shape[1] if depthwise else 1,
            )
            if position == len(convs) - 1:
                break
            squeeze = [k for k in state if depthwise and k.startswith(f"{block}.") and ".fc.0.weight" in k]
            if squeeze and index in squeeze_last:
                x = nonlinear(x)
            if squeeze:
                key = squeeze[0].removesuffix("0.weight")
                gate = F.relu(x.mean((2, 3)) @ state[key + "0.weight"].T + state[key + "0.bias"])
                gate = gate @ state[key + "2.weight"].T + state[key + "2.bias"]
                x = x * ((gate + 3).clamp(0, 6) / 6)[:, :, None, None]
            if not (squeeze and index in squeeze_last):
                x = nonlinear(x)
        if strides[index] == 1 and skip.shape[1] == x.shape[1]:
            x = x + skip
    return act[activations[0]](conv_bn(state, x, "conv.0", "conv.1"))


@torch.no_grad()
def test_mobilenetv2_equals_a_plain_derivation() -> None:
    model = randomised("mobilenetv2-2-1221121")
    strides = [2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    x = images(1)
    maps = plain_mobilenet(dict(model.state_dict()), x, strides, ["relu6"] * 18, set())
    expected = maps.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "activations", "squeeze_last"),
    [
        ("mobilenetv3_small-1-22121111211", ["hard"] + ["relu"] * 3 + ["hard"] * 8, {1}),
        ("mobilenetv3_large-2-121211211111211", ["hard"] + ["relu"] * 6 + ["hard"] * 9, set()),
    ],
)
@torch.no_grad()
def test_mobilenetv3_equals_a_plain_derivation(name: str, activations: list[str], squeeze_last: set[int]) -> None:
    model = randomised(name)
    x = images(1)
    state, strides = dict(model.state_dict()), list(model.plan.places)
    maps = plain_mobilenet(state, x, strides, activations, squeeze_last)
    hidden = maps.mean((2, 3)) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    hidden = hidden * (hidden + 3).clamp(0, 6) / 6
    expected = hidden @ state["classifier.3.weight"].T + state["classifier.3.bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


def test_initial_values() -> None:
    resnet, mobilenet = create_model("resnet18"), create_model("mobilenetv3_small")
    assert resnet.conv1.weight.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    assert mobilenet.classifier[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not mobilenet.classifier[0].bias.any()
    assert torch.equal(resnet.bn1.weight, torch.ones(64))
    assert not resnet.bn1.bias.any()
    assert mobilenet.classifier[2].p == 0.2


def test_no_operation_is_in_place() -> None:
    for name in list_models():
        assert not any(getattr(module, "inplace", False) for module in on_meta(name).modules())


# --- plans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "factor", "student"),
    [
        ("resnext18-1-21222", 2, "resnext18-2-21221"),
        ("resnext18-1-21222", 4, "resnext18-4-11221"),
        ("resnext18-1-21222", 8, "resnext18-8-11211"),
        ("resnet18-1-21222", 4, "resnet18-4-11221"),
        ("resnet18", 4, "resnet18-8-11221"),
        ("resnet50-2-21222", 4, "resnet50-8-11221"),
        ("mobilenetv2-1-1222121", 4, "mobilenetv2-4-1221111"),
        ("mobilenetv2-1-1222121", 8, "mobilenetv2-8-1211111"),
        ("mobilenetv3_small-1-22121111211", 4, "mobilenetv3_small-4-22111111111"),
        ("resnet18", 1, "resnet18-2-21222"),
    ],
)
def test_students_of_the_paper(teacher: str, factor: int, student: str) -> None:
    assert student_name(teacher, factor) == student
    assert create_model(student, width=0.125).plan.total == create_model(teacher, width=0.125).plan.total


def test_a_student_must_be_buildable() -> None:
    with pytest.raises(ValueError, match="stride 32 at conv1, which allows 1, 2, 4, 8 or 16"):
        student_name("resnet18", 16)
    with pytest.raises(ValueError, match="cannot be front-loaded ×8"):
        student_name("resnet18-2-11221", 8)


def map_sizes(model: nn.Module, paths: list[str], x: Tensor) -> list[int]:
    """Output heights of the modules at `paths`, checked to be square."""
    sizes: dict[str, torch.Size] = {}

    def keep(path: str, output: Tensor) -> None:
        sizes[path] = output.shape[2:]

    for path in paths:
        model.get_submodule(path).register_forward_hook(lambda _m, _x, output, path=path: keep(path, output))
    model(x)
    assert all(height == width for height, width in sizes.values())
    return [sizes[path][0] for path in paths]


@pytest.mark.parametrize("arch", list_models("classifier"))
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_map_sizes_follow_the_plan(arch: str, channels: int) -> None:
    stages = "".join(map(str, usual_plan(arch).stages))
    teacher, last = (f"{arch}-1-{stages}", "layer4") if stages else (f"{arch}-4", "patch_embed")
    last = "conv" if arch.startswith("mobilenet") else last
    for name in (arch, student_name(teacher, 4)):
        model = create_model(name, num_classes=7, in_channels=channels, width=0.25).eval()
        x = torch.zeros(2, channels, 64, 64)
        assert model(x).shape == (2, 7)
        expected = [64 // total for total in accumulate(model.plan.places, mul)]
        assert map_sizes(model, [*ARCHITECTURES[arch].paths, last], x) == [*expected, 64 // model.plan.total]


def test_places_carry_the_strides() -> None:
    for arch in list_models():
        model = on_meta(arch)
        found = [model.get_submodule(path).stride for path in ARCHITECTURES[arch].paths]
        assert tuple(s if isinstance(s, int) else s[0] for s in found) == model.plan.places


def test_a_pool_of_stride_one_is_still_a_pool() -> None:
    pool = create_model("resnet18-4-11221", width=0.125).maxpool
    assert isinstance(pool, nn.MaxPool2d)
    assert (pool.kernel_size, pool.stride, pool.padding) == (3, 1, 1)


def test_residual_only_where_shapes_agree() -> None:
    blocks = [m for m in on_meta("mobilenetv2-1-1222121").modules() if isinstance(m, InvertedResidual)]
    residual = [index for index, block in enumerate(blocks, 1) if block.residual]
    assert residual == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


# --- width ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "base"), [(0.125, 8), (0.25, 16), (0.3, 16), (0.33, 24), (1, 64), (1.5, 96), (2, 128)]
)
def test_resnet_width(width: float, base: int) -> None:
    model = on_meta("resnext18", width=width)
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [layer[0].conv1.out_channels for layer in layers] == [base, 2 * base, 4 * base, 8 * base]
    assert model.layer1[0].conv2.groups == {8: 8, 16: 16, 24: 8}.get(base, 32)


def test_mobilenet_width() -> None:
    narrow, wide = on_meta("mobilenetv2", width=0.5), on_meta("mobilenetv2", width=1.5)
    assert (narrow.features[0][0].out_channels, wide.features[0][0].out_channels) == (16, 48)
    assert (narrow.conv[0].out_channels, wide.conv[0].out_channels) == (1280, 1920)
    narrow, wide = on_meta("mobilenetv3_small", width=0.5), on_meta("mobilenetv3_small", width=1.5)
    assert (narrow.conv[0].out_channels, wide.conv[0].out_channels) == (288, 864)
    assert (narrow.classifier[0].out_features, wide.classifier[0].out_features) == (1024, 1536)


def test_make_divisible() -> None:
    assert [make_divisible(channels) for channels in (1, 18, 60, 88.08, 240)] == [8, 24, 64, 88, 240]


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet-18", ["Unknown architecture 'resnet'", "resnet18"]),
        ("ResNet18", ["Unknown architecture 'ResNet18'", "resnet18"]),
        ("mobilenetv3-small", ["mobilenetv3_small"]),
        ("zzz", ["Unknown architecture 'zzz'", "choose from", "resnext50"]),
        ("my_net:make", ["give a network of your own itself", "resolve_model"]),
        ("resnet18-4x", ["lacks its stem"]),
        ("resnet18-", ["lacks its stem", "2-21222"]),
        ("resnet18-4-1122x", ["contains 'x'", "usual plan of resnet18 is 2-21222"]),
        ("resnet18-4-1122", ["has 5 places where resnet18 has 6", "maxpool", "2-21222"]),
        ("mobilenetv2-4-11221", ["has 6 places where mobilenetv2 has 8", "features.17", "2-1222121"]),
        ("resnet18-3-11221", ["stride 3 at conv1", "1, 2, 4, 8 or 16", "2-21222"]),
        ("resnet18-4-31221", ["stride 3 at maxpool", "1, 2 or 4"]),
        ("resnet18-4-11281", ["stride 8 at layer3", "1, 2 or 4"]),
        ("mobilenetv2-1-1242121", ["stride 4 at features.4", "1 or 2", "2-1222121"]),
        ("mobilenetv3_small-1-22141111211", ["stride 4 at features.4", "1 or 2"]),
    ],
)
def test_bad_names(name: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\.|\?") as caught:
        create_model(name)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_students_of_other_networks_are_derived() -> None:
    with pytest.raises(ValueError, match=r"Unknown architecture 'CornNet'.* derive_student makes students"):
        student_name("CornNet", 2)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "10"])
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
def test_bad_counts(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}={value!r} is not a whole number"):
        create_model("resnet18", **{argument: value})


@pytest.mark.parametrize("width", [0, -1, 0.1, 64, float("nan"), float("inf"), "wide"])
def test_bad_width(width: Any) -> None:
    with pytest.raises(ValueError, match=f"width={width!r} is not a multiplier"):
        create_model("resnet18", width=width)


def test_numpy_counts_are_fine() -> None:
    assert create_model("resnet18", num_classes=np.int64(4), width=0.125).fc.out_features == 4  # type: ignore[arg-type]


def test_options_of_another_architecture() -> None:
    with pytest.raises(ValueError, match=r"resnet18 has no option ch \(given 64\); .* takes num_classes, width"):
        create_model("resnet18", ch=64)


def test_models_by_kind() -> None:
    assert list_models("diffusion") == ["unet"]
    assert {name.partition("-")[0] for name in CLASSIFIERS} <= set(list_models("classifier"))
    assert sorted(list_models()) == sorted(list_models("classifier") + list_models("diffusion"))
    with pytest.raises(ValueError, match="kind='unet' is neither"):
        list_models("unet")  # type: ignore[arg-type]


def test_questions_about_unknown_architectures() -> None:
    with pytest.raises(ValueError, match=r"did you mean .*'resnet18'"):
        usual_plan("resnet_18")


# --- checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> nn.Module:
    return randomised("mobilenetv3_small", width=0.25)


def fresh() -> nn.Module:
    return create_model("mobilenetv3_small", width=0.25).double()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "prefix", ["", "net.", "module.", "module.net.", "net.module.", "_orig_mod.", "model.", "module.student."]
)
def test_load_mapping_with_prefixes(small: nn.Module, prefix: str) -> None:
    model = fresh()
    assert load_checkpoint(model, {prefix + k: v for k, v in small.state_dict().items()}) is model
    assert_same(model, small)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "net_model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".ckpt"])
def test_load_nested_torch_file(small: nn.Module, tmp_path: Path, key: str, suffix: str) -> None:
    state = {f"net.{k}": v for k, v in small.state_dict().items()}
    torch.save({"epoch": 3, key: state}, tmp_path / f"teacher{suffix}")
    assert_same(load_checkpoint(fresh(), tmp_path / f"teacher{suffix}"), small)


def test_load_safetensors(small: nn.Module, tmp_path: Path) -> None:
    save_file({f"module.{k}": v for k, v in small.state_dict().items()}, tmp_path / "m.safetensors")
    assert_same(load_checkpoint(fresh(), str(tmp_path / "m.safetensors")), small)


def test_averaged_weights_come_before_the_last(small: nn.Module) -> None:
    last = {name: torch.zeros_like(tensor) for name, tensor in small.state_dict().items()}
    assert_same(load_checkpoint(fresh(), {"net_model": last, "ema_model": small.state_dict(), "step": 9}), small)


def distiller(student: nn.Module, blocks: nn.Module) -> dict[str, Tensor]:
    """A file such as the authors' distiller leaves."""
    parts = {"student": student, "teachers.0": nn.Linear(2, 2), "dist_modules": blocks}
    return {f"module.{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}


def test_only_the_student_of_a_distiller_is_loaded_and_that_is_said(small: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"16 tensors that are not the network's \(teachers, dist_modules\)"):
        assert_same(load_checkpoint(fresh(), distiller(small, nn.ModuleList([RedBlock(4)]))), small)


def test_red_blocks_of_a_distiller_in_tap_order(small: nn.Module) -> None:
    blocks, target = ([RedBlock(4), RedBlock(6, 1)] for _ in range(2))
    state = distiller(small, nn.ModuleList(blocks))
    with pytest.warns(UserWarning, match=r"2 tensors that are not the network's \(teachers\)"):
        load_checkpoint(fresh(), state, target)
    assert_same(nn.ModuleList(target), nn.ModuleList(blocks))
    model, before = fresh(), fresh()
    before.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match=r"does not fit the RED blocks: of another shape: 0\.logit\.0\.weight"):
        load_checkpoint(model, state, target[::-1])
    assert_same(model, before)


def test_a_prefix_of_the_model_itself_stays(small: nn.Module) -> None:
    wrapped, target = nn.ModuleDict({"net": small}), nn.ModuleDict({"net": fresh()})
    load_checkpoint(target, wrapped.state_dict())
    assert_same(target["net"], small)


def test_teacher_weights_fit_a_student() -> None:
    teacher = randomised("resnet18-1-21222", width=0.25)
    student = create_model("resnet18-4-11221", width=0.25).double()
    assert_same(load_checkpoint(student, teacher.state_dict()), teacher)


def test_misfits_are_named_and_leave_the_model_alone(small: nn.Module) -> None:
    state: dict[str, object] = dict(small.state_dict())
    del state["conv.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["classifier.3.weight"] = torch.zeros(5, 1024)
    state["classifier.3.bias"] = [0.0]
    model = fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit mobilenetv3_small-2-22121111211") as caught:
        load_checkpoint(model, state)
    for part in (
        "missing conv.0.weight;",
        "unexpected extra.weight;",
        "not a tensor: classifier.3.bias;",
        "of another shape: classifier.3.weight (5×1024, here 10×1024).",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_many_misfits_are_counted() -> None:
    with pytest.raises(ValueError, match=r"missing conv1\.weight, bn1\.weight, bn1\.bias and \d+ more"):
        load_checkpoint(create_model("resnet18", width=0.125), {})


def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"did you mean 'teacher\.pt'"):
        load_checkpoint(fresh(), tmp_path / "taecher.pt")
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_checkpoint(fresh(), tmp_path / "nowhere" / "x.pt")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"weights\.bin is of an unknown kind"):
        load_checkpoint(fresh(), tmp_path / "weights.bin")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list"):
        load_checkpoint(fresh(), tmp_path / "list.pt")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"{name} is cut short or damaged"):
            load_checkpoint(fresh(), tmp_path / name)
    torch.save(fresh(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match=r"whole\.pt holds more than tensors"):
        load_checkpoint(fresh(), tmp_path / "whole.pt")


def test_damaged_weights_of_a_run_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.zeros(100)})
    assert read_tensors(path)[0].keys() == {"weight"}
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(
        ValueError, match=r"model\.safetensors is cut short or not what this library wrote .* to train again"
    ):
        read_tensors(path)
