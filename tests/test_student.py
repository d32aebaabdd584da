"""derive_student: the paper's own students, other libraries' structures, downsamplers, weights, refusals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import lookalikes as look
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill_lib.distill import match_taps
from redistill_lib.models import create_model, student_name
from redistill_lib.network.fakes import tensors_in
from redistill_lib.plans import StridePlan
from redistill_lib.student import Change, derive_student, find_places

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
STEPS = torch.tensor([1, 5])

BUILT_IN = [
    (name, factor)
    for name in ("resnet18-1-21222", "resnet50", "resnext18-1-21222", "mobilenetv2-1-1222121",
                 "mobilenetv3_small", "mobilenetv3_large-1-121211211111211")
    for factor in (2, 4, 8)
]  # fmt: skip


def strides(model: nn.Module) -> dict[str, Any]:
    def once(value: Any) -> Any:
        return value[0] if isinstance(value, tuple) else value

    return {n: (once(m.stride), once(m.kernel_size)) for n, m in model.named_modules() if hasattr(m, "kernel_size")}


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model.eval()(*inputs))


# ------------------------------------------------------------------------------------------ the paper's own families


@pytest.mark.parametrize(("name", "factor"), BUILT_IN)
def test_a_built_in_student_is_the_papers(name: str, factor: int) -> None:
    teacher = create_model(name, width=0.25)
    student, _ = derive_student(teacher, factor, example=IMAGE)
    theirs = create_model(student_name(teacher.name, factor), width=0.25)
    theirs.load_state_dict(student.state_dict())
    assert strides(student) == strides(theirs)
    assert (student.name, student.plan) == (theirs.name, theirs.plan)
    assert torch.equal(*outputs(student, IMAGE), *outputs(theirs, IMAGE))


@pytest.mark.parametrize("factor", [2, 8])
def test_the_u_net_is_mirrored_to_its_tail(factor: int) -> None:
    teacher = create_model("unet-1-222", ch=8)
    student, changes = derive_student(teacher, factor, example=(IMAGE, STEPS))
    theirs = create_model(student_name(teacher.name, factor), ch=8)
    theirs.load_state_dict(student.state_dict())
    assert student.name == theirs.name
    assert torch.equal(*outputs(student, IMAGE, STEPS), *outputs(theirs, IMAGE, STEPS))
    if factor == 2:
        assert [repr(change) for change in changes] == [
            "head: conv stride 1 → 2",
            "downblocks.8.main: conv stride 2 → 1",
            "upblocks.3.main: transposed conv 2 → 1 (kernel 2 → 1)",
            "tail.2: transposed conv 1 → 2 (kernel 1 → 2)",
        ]


def test_places_changes_and_the_untouched_teacher() -> None:
    teacher = create_model("resnet18-1-21222", width=0.25).train()
    before = copy.deepcopy(teacher.state_dict())
    places = find_places(teacher, IMAGE)
    assert [(p.name, p.stride, p.after[0], p.pool) for p in places] == [
        ("conv1", 1, 64, False), ("maxpool", 2, 32, True), ("layer2.0.conv1", 2, 16, False),
        ("layer3.0.conv1", 2, 8, False), ("layer4.0.conv1", 2, 4, False),
    ]  # fmt: skip
    assert places[2].layers == ("layer2.0.conv1", "layer2.0.downsample.0")
    student, changes = derive_student(teacher, 4, example=IMAGE)
    table = pd.DataFrame(list(changes))
    assert list(table.layer) == ["conv1", "maxpool", "layer4.0.conv1", "layer4.0.downsample.0"]
    assert list(zip(table.before, table.after, strict=True)) == [(1, 4), (2, 1), (2, 1), (2, 1)]
    assert changes[0] == Change("conv1", "conv stride", 1, 4)
    assert repr(Change("", "call", 2, 1)) == "the network: call 2 → 1"
    (place,) = find_places(nn.Conv2d(3, 8, 3, 2, 1), torch.zeros(1, 3, 32, 32))
    assert repr(place) == "the network: stride 2 (32×32 → 16×16)"
    assert student.training and all(module.training for module in teacher.modules())
    assert strides(teacher) == strides(create_model("resnet18-1-21222", width=0.25))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_plans_have_one_digit_per_place_or_are_the_networks_own() -> None:
    teacher = create_model("resnet18-1-21222", width=0.25)
    by_place, _ = derive_student(teacher, plan=StridePlan(4, (1, 2, 2, 1)), example=IMAGE)
    own, _ = derive_student(teacher, plan="4-11221", example=IMAGE)
    assert strides(by_place) == strides(own) == strides(create_model("resnet18-4-11221", width=0.25))
    same, changes = derive_student(teacher, plan="1-21222", example=IMAGE)
    assert changes == () and same is not teacher
    with pytest.warns(UserWarning, match="plan 4-1222 strides 32 in all where 1-2222 strides 16"):
        harder, _ = derive_student(teacher, plan="4-1222", example=IMAGE)  # a smaller last map, the same logits
    assert harder.name == "resnet18-4-11222"
    with pytest.raises(
        ValueError, match=r"plan 4-122 has 4 places where this ResNet has 5: conv1, maxpool, layer2.0"
    ):
        derive_student(teacher, plan="4-122", example=IMAGE)
    with pytest.raises(ValueError, match="plan 4-12211 strides where 1-21222 has stride 1"):
        derive_student(teacher, plan="4-12211", example=IMAGE)


# -------------------------------------------------------------------------------------------- other libraries' tricks

# structure, its plan, and what the ×4 student changes: layer, stride before, after
LOOKALIKES: list[tuple[Callable[[], nn.Module], str, str]] = [
    (look.VGG, "1-22222", "features.0 1 4, features.2 2 1, features.14 2 1"),
    (look.DenseNet, "2-222", "features.conv0 2 8, features.pool0 2 1, features.transition2.3 2 1"),
    (look.efficientnet, "2-222", "0.0 2 8, 3.depthwise.0 2 1, 3 0 1, 5.depthwise.0 2 1"),
    (look.tf_efficientnet, "2-222", "0 2 8, 2.1 2 1, 3.1 2 1"),
    (look.ConvNeXt, "4-222", "stem.0 4 16, stages.2.0.1 2 1, stages.3.0.1 2 1"),
    (look.RegNet, "2-222", "embedder.convolution.0 2 8, stages.1.layer.1.0 2 1, stages.1.shortcut.0 2 1, "
                           "stages.2.layer.1.0 2 1, stages.2.shortcut.0 2 1"),
    (look.resnet_d, "2-2222", "0.0 2 8, 5.layer.1.0 2 1, 5.shortcut.0 2 1, 6.layer.1.0 2 1, 6.shortcut.0 2 1"),
    (lambda: look.resnet_d(blur=True), "2-2222",
     "0.0 2 8, 5.layer.2 2 1, 5.shortcut.0 2 1, 6.layer.1.0 2 1, 6.shortcut.0 2 1"),
    (lambda: look.SegmentationUNet(False), "1-222",
     "inc.0.0 1 4, downs.1.0 2 1, downs.2.0 2 1, ups.0 2 1, ups.1 2 1, outc 1 4"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "plan", "changed"), LOOKALIKES)
@pytest.mark.parametrize("factor", [4, 8])
def test_structures_of_other_libraries(build: Callable[[], nn.Module], plan: str, changed: str, factor: int) -> None:
    teacher = build()
    places = find_places(teacher, IMAGE)
    assert str(StridePlan(places[0].stride, tuple(place.stride for place in places[1:]))) == plan
    student, changes = derive_student(teacher, factor, example=IMAGE)
    ours, theirs = outputs(student, IMAGE), outputs(teacher, IMAGE)
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    if factor == 4:
        assert ", ".join(f"{c.layer} {c.before} {c.after}" for c in changes) == changed
    again = find_places(student, IMAGE)
    assert (again[0].stride, again[-1].after) == (places[0].stride * factor, places[-1].after)


@pytest.mark.parametrize("pad", [0, 1])
def test_diffusers_u_net(pad: int) -> None:
    teacher = look.DiffusionUNet(pad=pad)
    student, changes = derive_student(teacher, 2, example=(IMAGE, STEPS))
    assert [c.layer for c in changes] == ["conv_in", "downs.1", "ups.0", "conv_out"]
    (ours,), (theirs,) = outputs(student, IMAGE, STEPS), outputs(teacher, IMAGE, STEPS)
    assert ours.shape == theirs.shape
    # depth to space starts as the old convolution's pixels, repeated
    assert torch.equal(ours, ours[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_unpadded_pools_that_round_up() -> None:
    small = IMAGE[..., :32, :32]
    student, changes = derive_student(look.CeilPools(), 4, example=small)
    assert [repr(c) for c in changes][1:] == [
        "maxpool1: max pool 2 → 1 (padding 1)", "maxpool2: max pool 2 → 1 (padding 1)",
    ]  # fmt: skip
    assert outputs(student, small)[0].shape == (2, 5)


def test_an_autoencoders_last_upsampling_takes_the_factor() -> None:
    ends: list[nn.Module] = [
        nn.ConvTranspose2d(8, 3, 2, 2),
        nn.ConvTranspose2d(8, 3, 4, 2, 1),
        nn.Upsample(scale_factor=2),
    ]
    for end in ends:
        net = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 2, 2), end)
        student, changes = derive_student(net, 2, example=IMAGE)
        assert [(c.layer, c.before, c.after) for c in changes] == [("0", 1, 2), ("2", 2, 1)]
        assert outputs(student, IMAGE)[0].shape[-2:] == (64, 64)


def test_the_step_back_to_the_image_takes_the_factor() -> None:
    ups = [nn.ConvTranspose2d(4, 4, 2, 2), nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)]
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, 2, 1), *ups)  # 64 → 16 → 8 → 16 → 32 → 64
    student, changes = derive_student(net, 2, example=IMAGE)
    assert [(c.layer, c.before, c.after) for c in changes] == [("0", 4, 8), ("1", 2, 1), ("2", 2, 1), ("4", 2, 4)]
    assert outputs(student, IMAGE)[0].shape[-2:] == (64, 64)


@pytest.mark.parametrize("by_size", [False, True])
def test_a_map_that_is_returned_and_grown_once_more_keeps_its_size(by_size: bool) -> None:
    def forward(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        small = net.c(F.interpolate(net.b(net.a(x)), scale_factor=2))
        return small, F.interpolate(small, x.shape[2:]) if by_size else F.interpolate(small, scale_factor=2)

    net = Forward(forward, **layers(2, 2, 1))
    student, changes = derive_student(net, 2, example=IMAGE)
    assert [y.shape for y in student(IMAGE)] == [y.shape for y in net(IMAGE)]
    assert [c.layer for c in changes if c.after > c.before] == ["a", "c"]
    assert torch.equal(student(IMAGE)[1], F.interpolate(student(IMAGE)[0], scale_factor=2))


@pytest.mark.parametrize("factor", [2, 4])
def test_outputs_of_unpadded_layers_have_their_odd_sides(factor: int) -> None:
    def forward(net: Any, x: Tensor) -> list[Tensor]:
        maps = [net.a(x)]
        maps.append(net.b(maps[-1]))
        maps.append(net.c(maps[-1]))
        return [head(y) for head, y in zip((net.head0, net.head1, net.head2), maps, strict=True)]

    convs = {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, 2) for name in "abc"}
    net = Forward(forward, **convs, **{f"head{k}": nn.Conv2d(4, 2, 1) for k in range(3)})
    image = torch.zeros(1, 3, 64, 64)
    student, changes = derive_student(net, factor, example=image)
    assert [y.shape[2] for y in student(image)] == [y.shape[2] for y in net(image)] == [31, 15, 7]
    assert any("depth to space" in c.note and "padded by 1 bottom, 1 right" in c.note for c in changes)


def test_an_early_exit_that_is_not_returned_keeps_its_sizes() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return [head(y) for head, y in ((net.early, x), (net.late, net.b(x)))][-1]

    def head() -> nn.Module:  # 32×32 → 16×16 → 8×8, pooled to one value
        return nn.Sequential(*(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(2)), nn.AvgPool2d(8), nn.Flatten())

    net = Forward(forward, **layers(2, 1), early=head(), late=head())
    student, changes = derive_student(net, 2, example=IMAGE)
    assert student(IMAGE).shape == net(IMAGE).shape
    assert [(c.layer, c.before, c.after) for c in changes] == [("a", 2, 4), ("early.1", 2, 1), ("late.1", 2, 1)]


@pytest.mark.filterwarnings("ignore:plan .* strides")
def test_a_plan_may_raise_later_places_too() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), look.ResidualBlock(8, 8, 2, pooled=True), look.ResidualBlock(8, 8, 2)
    )
    for downsampler in ("stride", "max"):
        student, changes = derive_student(net, plan="2-41", example=IMAGE, downsampler=downsampler)  # type: ignore
        assert [(c.layer, c.before, c.after) for c in changes] == [
            ("1.layer.1.0", 2, 4), ("1.shortcut.0", 2, 4), ("2.layer.1.0", 2, 1), ("2.shortcut.0", 2, 1),
        ]  # fmt: skip
        assert outputs(student, IMAGE)[0].shape == (2, 8, 8, 8)
    with pytest.raises(ValueError, match="a max pool cannot take stride 2 to 3; 'stride' can"):
        derive_student(net, plan="3-21", example=torch.zeros(1, 3, 48, 48), downsampler="max")
    with pytest.raises(ValueError, match=r"the student's outputs would be \[\(2, 8, 4, 4\)\]"):
        derive_student(net, plan="2-91", example=IMAGE)


def test_an_upsampling_that_two_places_share_goes_at_both() -> None:
    up = nn.Upsample(scale_factor=2)
    body = [nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)]
    student, _ = derive_student(nn.Sequential(*body, up, up, nn.Conv2d(4, 3, 3, 1, 1)), 4, example=IMAGE)
    assert not any(isinstance(module, nn.Upsample) for module in student.modules())
    assert outputs(student, IMAGE)[0].shape == IMAGE.shape


@pytest.mark.parametrize("downsampler", ["avg", "space_to_depth"])
def test_a_u_nets_head_may_pool_too(downsampler: Any) -> None:
    teacher = create_model("unet-1-222", ch=8)
    student, _ = derive_student(teacher, 2, example=(IMAGE, STEPS), downsampler=downsampler)
    assert outputs(student, IMAGE, STEPS)[0].shape == IMAGE.shape
    taps = match_taps(student, teacher, (IMAGE, STEPS))
    assert len(taps) == 10 and taps[0].layer == "head"  # as the paper's ×2 pair has them


def test_even_kernels_and_upsampling_layers() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 4, 2, 1), nn.Upsample(scale_factor=2),
        nn.Conv2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1), nn.Conv2d(4, 3, 3, padding=1),
    )  # fmt: skip
    student, changes = derive_student(net, 2, example=IMAGE)
    assert [(c.layer, c.before, c.after) for c in changes] == [
        ("0", 1, 2), ("1", 2, 1), ("2", 2, 1), ("3", 2, 1), ("4", 2, 1), ("5", 1, 2),
    ]  # fmt: skip
    assert outputs(student, IMAGE)[0].shape == IMAGE.shape


# ---------------------------------------------------------------------------------------- downsamplers


@pytest.mark.parametrize("downsampler", ["max", "avg", "blur"])
def test_pooled_stems_keep_stride_and_weights(downsampler: Any) -> None:
    teacher = create_model("resnet18-1-21222", width=0.25).eval()
    student, changes = derive_student(teacher, 4, example=IMAGE, downsampler=downsampler)
    assert repr(changes[0]) == f"conv1: inserted 1 → 4 ({downsampler} pool 4)"
    assert (student.conv1.stride, student.name) == ((1, 1), f"resnet18-4-11221-{downsampler}")
    assert list(student.state_dict()) == list(teacher.state_dict())
    whole = teacher.conv1(IMAGE)
    if downsampler == "blur":
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        weight = torch.outer(line, line).expand(16, 1, 3, 3)
        wanted = whole
        for _ in range(2):
            wanted = F.conv2d(F.pad(wanted, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=16)
    else:
        wanted = {"max": F.max_pool2d, "avg": F.avg_pool2d}[downsampler](whole, 4)
    assert torch.allclose(student.conv1(IMAGE), wanted, atol=1e-5)
    assert outputs(student, IMAGE)[0].shape == (2, 10)


def test_space_to_depth_starts_on_the_averaged_image() -> None:
    teacher = create_model("resnet18", width=0.25)
    student, _ = derive_student(teacher, 4, example=IMAGE, downsampler="space_to_depth")
    assert student.conv1.weight.shape == (16, 48, 7, 7)
    assert torch.allclose(student.conv1(IMAGE), teacher.conv1(F.avg_pool2d(IMAGE, 4)), atol=1e-5)


def test_kernels_that_tile_follow_their_stride() -> None:
    teacher = look.ConvNeXt()
    student, changes = derive_student(teacher, 2, example=IMAGE)
    assert [c.note for c in changes] == ["kernel 4 → 8", "kernel 2 → 1"]
    stems = student.stem(IMAGE), teacher.stem(F.avg_pool2d(IMAGE, 2))
    assert torch.allclose(*stems, atol=1e-4)
    flat = torch.ones(1, 16, 8, 8)
    down = [net.stages[3][0][1](flat)[0, :, 0, 0] for net in (student, teacher)]
    assert torch.allclose(*down, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "factor", "sentence"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)), 2,
         "only 0 strides in this Sequential: no later layer strides or pools"),
        (look.ViT, 16, "patch_embed makes 8×8 patches, which patches 16 times as large do not divide"),
        (lambda: create_model("resnet18"), 32, "Plan 2-2222 cannot be front-loaded ×32: .* can give back only ×16"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, (3, 3), (2, 1), 1)), 2,
         "1 strides by 2 and 1 along the sides of its maps"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12288, 2)), 2, "no convolution of this Sequential"),
    ],
)  # fmt: skip
def test_what_cannot_move_is_refused(build: Callable[[], nn.Module], factor: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        derive_student(build(), factor, example=IMAGE)


def test_functional_pools_that_stay_are_fine() -> None:
    _, changes = derive_student(look.FunctionalPools(False), 2, example=IMAGE)
    assert [c.layer for c in changes] == ["convs.0", "convs.2"]


def test_what_is_no_network_no_factor_and_no_example_is_refused() -> None:
    net, image = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)), torch.zeros(1, 3, 16, 16)
    for model, factor, example in ((None, 2, image), ("resnet18", 2, image), (net, "2", image), (net, 2, None)):
        with pytest.raises(ValueError, match=r"is not a|example is a batch of images"):
            derive_student(model, factor, example=example)  # type: ignore[arg-type]


def test_calls_in_a_forward_are_changed_there() -> None:
    for shared in (False, True):
        teacher = look.FunctionalPools(shared)
        student, changes = derive_student(teacher, 4, example=IMAGE)
        told = [(c.layer, c.kind, c.before, c.after) for c in changes if c.layer.startswith("convs")]
        assert told == [("convs.0", "conv stride", 2, 8), ("convs.2", "conv stride", 2, 1)]
        (pool,) = [c for c in changes if not c.layer.startswith("convs")]
        assert (pool.kind, pool.before, pool.after, pool.layer) == ("call", 2, 1, "pool" if shared else "")
        assert pool.note.startswith("max_pool2d in lookalikes.py:")
        # the first of the two pools is gone
        convs = student.convs
        wanted = student.fc(convs[2](F.max_pool2d(convs[1](convs[0](IMAGE)), 2)).mean((2, 3)))
        assert torch.allclose(student(IMAGE), wanted, atol=1e-6)
    for net, inputs in (
        (look.SegmentationUNet(True), (IMAGE,)),
        (look.DiffusionUNet(interpolate=False), (IMAGE, STEPS)),
    ):
        student, _ = derive_student(net, 2, example=inputs)
        assert [x.shape for x in outputs(student, *inputs)] == [x.shape for x in outputs(net, *inputs)]


@pytest.mark.filterwarnings("ignore:plan .* strides")
def test_arguments_and_sizes() -> None:
    teacher = create_model("resnet18", width=0.25)
    with pytest.raises(ValueError, match=r"strides 16, 2, 2, 2, 1 divides its images by 128, .* does not allow"):
        derive_student(teacher, plan="16-2221", example=IMAGE[..., :40, :40])
    with pytest.raises(ValueError, match=r"either factor= or plan="):
        derive_student(teacher, example=IMAGE)
    with pytest.raises(ValueError, match=r"downsampler='min' is not one of stride, max, avg, .*, rnnpool"):
        derive_student(teacher, 2, example=IMAGE, downsampler="min")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 is a Conv2dSame, which convolves in its own way"):
        derive_student(look.tf_efficientnet(), 2, example=IMAGE, downsampler="max")
    with pytest.raises(TypeError, match="not uint8"):
        derive_student(teacher, 2, example=IMAGE.byte())


def test_a_network_that_decides_by_values_runs_for_real() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.mean()) > 1e9 else x + 1

    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Gate(), nn.Conv2d(4, 4, 3, 2, 1))
    assert derive_student(net, 2, example=IMAGE)[0][0].stride == (4, 4)


# -------------------------------------------------------------------------------------------- the real libraries


@pytest.mark.parametrize("family", ["ResNet", "RegNet", "ConvNext", "EfficientNet", "MobileNetV2"])
def test_transformers(family: str) -> None:
    hub = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "EfficientNet": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
        "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.35},
        "ConvNext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    }.get(family, {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]})
    options |= {"groups_width": 8} if family == "RegNet" else {}
    teacher = getattr(hub, f"{family}ForImageClassification")(getattr(hub, f"{family}Config")(**options))
    student, _ = derive_student(teacher, 4, example=IMAGE)
    assert outputs(student, IMAGE)[0].shape == outputs(teacher, IMAGE)[0].shape


def test_diffusers() -> None:
    hub = pytest.importorskip("diffusers")
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    teacher = hub.UNet2DModel(64, block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=4, **blocks)
    student, changes = derive_student(teacher, 2, example=(IMAGE, STEPS))
    assert [c.layer.rpartition(".")[2] for c in changes] == ["conv_in", "conv", "0", "conv_out"]
    assert outputs(student, IMAGE, STEPS)[0].shape == IMAGE.shape


def test_a_student_that_saves_nothing_says_what_keeps_the_peak() -> None:
    image = torch.zeros(1, 3, 64, 64)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Upsample(scale_factor=4),
        nn.Conv2d(8, 32, 3, 1, 1),
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"saves no memory: it needs 640 KiB at 4, the network itself 640 KiB"):
        derive_student(net, 2, example=image)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        derive_student(create_model("resnet18"), 2, example=image)
        with pytest.raises(UserWarning, match="plan 3-2122 strides 24 in all where 2-2222 strides 32"):
            derive_student(create_model("resnet18", width=0.25), plan="3-2122", example=torch.zeros(1, 3, 96, 96))


# ------------------------------------------------------------------------------------- what a student must not hide


class Forward(nn.Module):
    """Layers `a`, `b`, … and a forward beside them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.steps = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def layers(*strides: int) -> dict[str, nn.Module]:
    return {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, s, 1) for name, s in zip("abcd", strides, strict=False)}


def test_a_pool_that_a_list_holds_beside_its_name_is_gone_too() -> None:
    net = Forward(lambda net, x: net.listed[1](net.listed[0](x)), **layers(2), pool=nn.MaxPool2d(2))
    net.listed = [net.a, net.pool]
    student, changes = derive_student(net, 2, example=IMAGE)
    assert repr(changes[1]) == "pool: max pool 2 → 1 (removed)"
    assert torch.equal(student(IMAGE), student.a(IMAGE)) and student(IMAGE).shape == net(IMAGE).shape


def test_the_student_of_a_frozen_teacher_can_learn() -> None:
    teacher = nn.Sequential(*layers(2, 2).values()).requires_grad_(False)
    student, _ = derive_student(teacher, 2, example=IMAGE)
    assert all(p.requires_grad for p in student.parameters())
    teacher[0].requires_grad_()  # in part frozen is meant so
    student, _ = derive_student(teacher, 2, example=IMAGE)
    assert [p.requires_grad for p in student.parameters()] == [True, True, False, False]


def test_a_forward_that_pools_otherwise_in_training_is_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        if net.training:
            F.max_pool2d(x, 2)
        return F.max_pool2d(net.b(F.max_pool2d(x, 2)), 2)

    with pytest.raises(ValueError, match="the network calls max_pool2d 3 times in training and 2 times in eval mode"):
        derive_student(Forward(forward, **layers(2, 1)), 2, example=IMAGE)


def test_a_branch_that_breaks_in_training_alone_is_told() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.b(net.a(x))
        if net.training:
            net.aux(x)
        return net.c(x)

    def build(kernel: int) -> nn.Module:
        return Forward(forward, **layers(2, 2, 2), aux=nn.Sequential(nn.Conv2d(4, 4, kernel), nn.BatchNorm2d(4)))

    image = torch.zeros(1, 3, 64, 64)  # the branch takes maps of 16×16, in the student of 8×8
    with pytest.raises(ValueError, match=r"aux.0 runs in training alone and breaks in the student: .*\(9 x 9\)"):
        derive_student(build(9), 2, example=image)
    derive_student(build(8), 2, example=image)  # to one value for each channel, over which a larger batch has a norm
    derive_student(build(7), 2, example=image)


def test_a_layer_with_a_size_in_its_code_is_named_with_its_map() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.b(net.inner(net.a(x)))

    inner = Forward(lambda net, x: x.view(-1, 4, 32, 32), scale=nn.Identity())
    with pytest.raises(ValueError, match=r"breaks in inner, whose map was 32×32: shape .*; or give plan="):
        derive_student(Forward(forward, **layers(2, 2), inner=inner), 2, example=IMAGE)


def test_outputs_that_are_as_many_as_something_in_the_image_are_told() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return (net.b(net.a(x)) > 0).nonzero()

    torch.manual_seed(0)
    with pytest.raises(ValueError, match="their number depends on what is in the images"):
        derive_student(Forward(forward, **layers(2, 2)), 2, example=10 * torch.randn(1, 3, 64, 64))


def test_a_layer_that_runs_on_large_maps_alone_is_told() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(net.c(x) if x.shape[-1] >= 32 else x)

    with pytest.raises(ValueError, match="c runs in the network and not in the student"):
        derive_student(Forward(forward, **layers(2, 2, 1)), 2, example=IMAGE)


def test_a_size_that_a_forward_works_out_is_not_left_behind() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.b(F.max_pool2d(net.a(x), 2))
        return net.c(F.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2))).mean((2, 3))

    with pytest.raises(ValueError, match="c gives maps of 4×4, not of 8×8"):
        derive_student(Forward(forward, **layers(2, 1, 1)), 2, example=IMAGE)


def test_a_stem_that_takes_the_image_in_pieces() -> None:
    def focus(net: Any, x: Tensor) -> Tensor:
        return net.b(net.a(torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)))

    net = Forward(focus, a=nn.Conv2d(12, 4, 3, 1, 1), b=nn.Conv2d(4, 4, 3, 2, 1))
    student, changes = derive_student(net, 2, example=IMAGE)
    assert [(c.layer, c.before, c.after) for c in changes] == [("a", 1, 2), ("b", 2, 1)]
    assert student(IMAGE).shape == net(IMAGE).shape
