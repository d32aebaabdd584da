"""Feature maps: the same place in bare and graduated students, honest scores, nothing left behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redistill_lib import maps
from redistill_lib.data.augment import to_float
from redistill_lib.distill import Distillation, Tap, match_taps
from redistill_lib.maps import compare_layer, compare_maps, layer_maps, score_taps
from redistill_lib.models import create_model
from redistill_lib.network import MapRef, locate, record_maps
from redistill_lib.red import RedBlock, alignment_loss, insert_blocks


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics that no two layers share, so that no wrong place looks right."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def small(plan: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(f"resnet18-{plan}", in_channels=1, width=0.125)


def random_images(count: int, side: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return stirred(small("1-21222"))


@pytest.fixture(scope="module")
def student() -> nn.Module:
    return stirred(small("4-11221", 1), 1)


class Seen(dict[str, Tensor]):
    """What comes out of each block of a running `Distillation`, by the name of its tap."""

    def __init__(self, distillation: Distillation, images: Tensor) -> None:
        super().__init__()
        handles = [
            block.register_forward_hook(lambda m, args, out, name=tap.name: self.update({name: out}))
            for tap, block in zip(distillation.taps, distillation.blocks, strict=True)
        ]
        with torch.no_grad():
            self.outputs = distillation.eval().student(to_float(images))
        for handle in handles:
            handle.remove()


def test_graduated_student_shows_the_maps_that_distillation_compared(teacher: nn.Module, student: nn.Module) -> None:
    images = random_images(2)
    taps = match_taps(student, teacher, to_float(images))
    distillation = Distillation(copy.deepcopy(student), teacher, taps, "red", example=to_float(images))
    stirred(distillation.blocks, 2)
    graduated = distillation.graduate().eval()
    seen = Seen(distillation, images)
    assert len(seen) == len(taps) == 5
    for tap in taps:
        ours = record_maps(graduated, [tap.place], to_float(images))[tap.place]
        torch.testing.assert_close(ours, seen[tap.name])
    with torch.no_grad():
        _, losses = distillation(to_float(images))
    frame = score_taps(teacher, {"red": graduated}, taps, images)
    expected = [1 - losses[f"red/{tap.name}"].item() for tap in taps]
    np.testing.assert_allclose(frame["cosine"], expected, atol=1e-5)


@pytest.mark.parametrize("side", ["input", "output"])
def test_blocks_within_blocks_are_seen_through(student: nn.Module, teacher: nn.Module, side: str) -> None:
    images = random_images(1)
    layers = ["layer2", "layer2.0", "layer2.0.conv1"]
    taps = [Tap(layer, side, layer, side) for layer in layers]  # type: ignore[arg-type]
    net = small("1-21222", 3).eval()
    distillation = Distillation(net, teacher, taps, "red", example=to_float(images))
    stirred(distillation.blocks, 4)
    seen, graduated = Seen(distillation, images), distillation.graduate().eval()
    for tap in taps:
        ours = record_maps(graduated, [tap.place], to_float(images))[tap.place]
        torch.testing.assert_close(ours, seen[tap.name])
    untapped = MapRef("layer2.1.conv2", "output")
    assert locate(graduated, untapped).layer.startswith("layer2.layer.1")
    assert record_maps(graduated, [untapped], to_float(images))[untapped].shape[1] == 16


def test_a_place_of_a_bare_network_is_itself(student: nn.Module) -> None:
    assert locate(student, MapRef("net.layer2.0", "input")) == ("layer2.0", "input")
    assert locate(student, Tap("conv1", "output", "layer2.0", "output").place) == ("conv1", "output")


def test_a_layer_named_layer_is_no_wrapper() -> None:
    net = nn.Sequential()
    net.add_module("layer", nn.Conv2d(1, 2, 1))
    assert locate(net, MapRef("layer", "output")) == ("layer", "output")


def test_unknown_layers_name_their_neighbours(student: nn.Module) -> None:
    blocked = insert_blocks(copy.deepcopy(student), [("layer2.0", "output", RedBlock(16))])
    with pytest.raises(KeyError, match=r"the network has no layer 'layer2.9'.*'layer2.0'"):
        locate(blocked, MapRef("layer2.9", "output"))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(a.mean(1).flatten(), b.mean(1).flatten())[0, 1])


def test_score_is_the_correlation_and_cosine_one_minus_the_alignment_loss(
    teacher: nn.Module, student: nn.Module
) -> None:
    image = random_images(1)[0]
    tap = Tap("conv1", "output", "layer2.0", "output")
    comparison = compare_maps(teacher, student, tap, image)
    x = to_float(image[None])
    ours = record_maps(student, [("conv1", "output")], x)["conv1", "output"]
    theirs = record_maps(teacher, [("layer2.0", "output")], x)["layer2.0", "output"]
    assert comparison.score == pytest.approx(correlation(ours, theirs), abs=1e-5)
    assert comparison.cosine == pytest.approx(1 - alignment_loss(ours, theirs).item(), abs=1e-6)
    assert abs(comparison.score - comparison.cosine) > 0.01
    assert not comparison.resized
    assert comparison.stride == 4
    np.testing.assert_allclose(comparison.student, ours[0].mean(0).numpy(), rtol=1e-6)
    assert "correlation" in repr(comparison)
    assert comparison.to_frame()["height"].tolist() == [10, 10]


def test_same_layer_keeps_native_sizes_and_says_when_it_resized(teacher: nn.Module, student: nn.Module) -> None:
    comparison = compare_layer(teacher, student, "layer1", random_images(1)[0], label="naive")
    assert comparison.teacher.shape == (20, 20)
    assert comparison.student.shape == (10, 10)
    assert comparison.resized
    assert "after resizing" in repr(comparison)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(comparison.student)[None, None], (20, 20), mode="bilinear"
    )
    theirs = torch.from_numpy(comparison.teacher)[None, None]
    assert comparison.score == pytest.approx(correlation(resized, theirs), abs=1e-5)
    assert comparison.cosine == pytest.approx(1 - alignment_loss(resized, theirs).item(), abs=1e-6)


def test_a_student_with_larger_maps_is_resized_too(teacher: nn.Module, student: nn.Module) -> None:
    swapped = compare_layer(student, teacher, "layer1", random_images(1)[0])
    assert swapped.student.shape == (20, 20)
    assert swapped.resized
    assert swapped.stride is None  # 1 over 4 is no factor


def test_channels_wrap_and_say_so(teacher: nn.Module, student: nn.Module) -> None:
    image, tap = random_images(1)[0], Tap("conv1", "output", "layer2.0", "output")  # 8 and 16 channels
    mean, ninth = compare_maps(teacher, student, tap, image), compare_maps(teacher, student, tap, image, channel=9)
    first = compare_maps(teacher, student, tap, image, channel=1)
    np.testing.assert_array_equal(ninth.student, first.student)
    assert not np.array_equal(ninth.teacher, first.teacher)
    assert (mean.shown, first.shown) == ("mean over channels", "channel 1")
    assert ninth.shown == "channel 9 of the teacher's 16, 1 of the student's 8"
    assert ninth.score == mean.score


def test_networks_are_left_as_they_were(teacher: nn.Module) -> None:
    net = small("4-11221")
    net.layer1.eval()
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    compare_layer(teacher, net, "layer1", random_images(1)[0])
    layer_maps(net, random_images(1)[0])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*net.modules(), *teacher.modules()])


def test_what_is_no_map_is_refused(teacher: nn.Module, student: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"fc.output in resnet18-4-11221 is \(1, 10\), not a B×C×H×W map"):
        compare_layer(teacher, student, "fc", random_images(1)[0])
    with pytest.raises(ValueError, match="one image is C×H×W"):
        compare_layer(teacher, student, "layer1", random_images(1))
    with pytest.raises(ValueError, match="uint8"):
        compare_layer(teacher, student, "layer1", random_images(1)[0].float())


def test_scores_of_taps_average_images(
    teacher: nn.Module, student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, taps = (
        random_images(5),
        [Tap("conv1", "output", "layer2.0", "output"), Tap("layer1", "output", "layer1", "output")],
    )
    monkeypatch.setattr(maps, "BATCH", 2)
    frame = score_taps(teacher, {"naive": student, "teacher": teacher}, taps, images)
    single = [compare_maps(teacher, student, taps[0], image).score for image in images]
    row = frame.iloc[0]
    assert (row["tap"], row["teacher_tap"], row["student"], row["n"]) == (
        "conv1 output",
        "layer2.0 output",
        "naive",
        5,
    )
    assert row["score"] == pytest.approx(np.mean(single), abs=1e-5)
    half = 2.776445 * np.std(single, ddof=1) / np.sqrt(5)  # t with four degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((np.mean(single) - half, np.mean(single) + half), abs=1e-5)
    assert frame["resized"].tolist() == [False, True, True, False]
    assert frame["score"].iloc[3] == pytest.approx(1)
    assert score_taps(teacher, {"naive": student}, taps[:1], images[:1])["low"].isna().all()


def test_layers_worth_seeing(student: nn.Module, teacher: nn.Module) -> None:
    image = random_images(1)[0]
    found = dict(layer_maps(student, image))
    assert found["conv1"] == (8, 10, 10)
    assert {"maxpool", "layer1", "layer4.1.conv2"} <= set(found)
    assert not {"bn1", "relu", "avgpool", "layer1.0.bn1", "fc"} & set(found)
    assert list(found).index("conv1") < list(found).index("layer1.0") < list(found).index("layer4")
    taps = match_taps(student, teacher, to_float(image[None]))
    graduated = Distillation(copy.deepcopy(student), teacher, taps, "red", example=to_float(image[None])).graduate()
    assert dict(layer_maps(graduated, image)) == found
