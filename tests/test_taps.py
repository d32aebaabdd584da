"""Taps: the paper's own pairs, and the official YAML schema."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.distill import Tap, match_taps, read_taps
from redistill_lib.methods import CRD, DKD, KD, MSE, RED, FitNet, Stage
from redistill_lib.models import create_model, example_inputs
from redistill_lib.network import find_resolutions, record_maps
from redistill_lib.red import RedBlock, insert_blocks

RESNET_X4 = ["conv1.o < layer2.0.o", "layer2.0.io < layer3.0.io", "layer3.0.io < layer4.0.io"]
MOBILENETV2_X4 = ["features.0.0.o < features.4.conv.3.o", "features.2.conv.3.io < features.7.conv.3.io",
                  "features.4.conv.3.io < features.14.conv.3.io"]  # fmt: skip
V2_PLACES = ["features.4.conv.3", "features.7.conv.3", "features.14.conv.3"]
V3_PLACES = ["features.2.conv.3", "features.4.conv.3", "features.9.conv.3"]
RESNET_PLACES = ["layer2.0", "layer3.0", "layer4.0"]

# (student, teacher, image size, taps), each row as the authors' configurations have it: arXiv 2406.03744.
PAPER = [
    ("resnet18-8-11221", "resnet18-2-21222", 224, RESNET_X4),
    ("resnet50-8-11221", "resnet50-2-21222", 224, RESNET_X4),
    ("resnext18-4-11221", "resnext18-1-21222", 128, RESNET_X4),
    ("resnext50-4-11221", "resnext50-1-21222", 128, RESNET_X4),
    ("resnext18-2-21221", "resnext18-1-21222", 128,
     ["conv1.o < maxpool.o", "layer2.0.io < layer3.0.io", "layer3.0.io < layer4.0.io"]),
    ("resnext18-8-11211", "resnext18-1-21222", 128, ["conv1.o < layer3.0.o", "layer2.0.io < layer4.0.io"]),
    ("mobilenetv2-4-1221111", "mobilenetv2-1-1222121", 128, MOBILENETV2_X4),
    ("mobilenetv2-8-1211111", "mobilenetv2-1-1222121", 128,
     ["features.0.0.o < features.7.conv.3.o", "features.2.conv.3.io < features.14.conv.3.io"]),
    ("mobilenetv3_small-4-22111111111", "mobilenetv3_small-1-22121111211", 128,
     ["features.0.0.o < features.2.conv.3.o", "features.1.conv.0.io < features.4.conv.3.io",
      "features.2.conv.3.io < features.9.conv.3.io"]),
]  # fmt: skip

STUDENT_PLACES = {
    "resnext18-4-11221": ["conv1", "layer2.0", "layer3.0"],
    "mobilenetv2-4-1221111": ["features.0.0", "features.2.conv.3", "features.4.conv.3"],
    "mobilenetv3_small-4-22111111111": ["features.0.0", "features.1.conv.0", "features.2.conv.3"],
}
TEACHER_PLACES = {
    "resnext18-1-21222": RESNET_PLACES,
    "mobilenetv2-1-1222121": V2_PLACES,
    "mobilenetv3_small-1-22121111211": V3_PLACES,
}


def expand(rows: list[str]) -> list[tuple[str, str, str, str]]:
    pairs = []
    for row in rows:
        (student, sides), (teacher, _) = (part.strip().rsplit(".", 1) for part in row.split("<"))
        pairs += [(student, side, teacher, side) for side in ("input", "output") if side[0] in sides]
    return pairs


def found(student: nn.Module, teacher: nn.Module, size: int) -> list[tuple[str, str, str, str]]:
    example = torch.zeros(1, 3, size, size)
    taps = match_taps(student, teacher, example)
    ours = record_maps(student, [t.place for t in taps], example)
    theirs = record_maps(teacher, [t.source for t in taps], example)
    for tap in taps:
        assert ours[tap.place].shape[-2:] == theirs[tap.source].shape[-2:]
        assert ours[tap.place].shape[1] == tap.channels
    return [(t.layer, t.side, t.teacher_layer, t.teacher_side) for t in taps]


@pytest.mark.parametrize(("student", "teacher", "size", "rows"), PAPER, ids=[row[0] for row in PAPER])
def test_the_papers_own_taps(student: str, teacher: str, size: int, rows: list[str]) -> None:
    assert found(create_model(student, width=0.25), create_model(teacher, width=0.25), size // 2) == expand(rows)


@pytest.mark.parametrize("student", STUDENT_PLACES)
@pytest.mark.parametrize("teacher", TEACHER_PLACES)
def test_taps_across_families(student: str, teacher: str) -> None:
    s, t = STUDENT_PLACES[student], TEACHER_PLACES[teacher]
    rows = [f"{s[0]}.o < {t[0]}.o", f"{s[1]}.io < {t[1]}.io", f"{s[2]}.io < {t[2]}.io"]
    assert found(create_model(student, width=0.25), create_model(teacher, width=0.25), 64) == expand(rows)


class Around(nn.Module):
    """A layer under a name of its own, as the DDPM U-Net wraps its resampling convolutions."""

    def __init__(self, main: nn.Module):
        super().__init__()
        self.main = main

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x)


def unet(head: int, *strides: int) -> nn.Module:
    """The skeleton of a DDPM U-Net: head, downs, ups, and a tail of normalisation, activation, upsampling."""

    def up(k: int) -> nn.Module:
        return nn.ConvTranspose2d(8, 8, max(k, 1), k)

    net = nn.Sequential()
    net.add_module("head", nn.Conv2d(3, 8, 3, head, 1))
    for i, stride in enumerate(strides):
        net.add_module(f"down{i}", Around(nn.Conv2d(8, 8, 3, stride, 1)))
    for i, stride in reversed(list(enumerate(strides))):
        net.add_module(f"up{i}", Around(up(stride)))
    net.add_module("tail", nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU(), nn.ConvTranspose2d(8, 3, head, head)))
    return net


def test_taps_of_a_unet() -> None:
    """As in the paper's DDPM pair 1,2,2,2 → 2,2,2,1: the head's output, every resampling, the tail's input alone."""
    expected = ["head.o < down0.o", "down0.io < down1.io", "down1.io < down2.io",
                "up1.io < up2.io", "up0.io < up1.io", "tail.i < up0.i"]  # fmt: skip
    assert found(unet(2, 2, 2, 1), unet(1, 2, 2, 2), 32) == expand(expected)


def test_a_pool_right_after_a_tap_and_a_shaved_border_are_no_taps() -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2))
    assert [t.place for t in match_taps(student, teacher, torch.zeros(1, 3, 32, 32))] == [("0", "output")]


def test_networks_that_pool_without_strides() -> None:
    """As VGG does: each pool follows convolutions of its own, so it is worth a tap."""

    def vgg(first: int, pools: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, first, 1)]
        for _ in range(pools):
            layers += [nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        return nn.Sequential(*layers)

    expected = ["0.o < 6.o", "3.io < 9.io"]
    assert found(vgg(4, 1), vgg(1, 3), 32) == expand(expected)
    assert found(vgg(1, 2), vgg(1, 2), 32) == expand(["3.o < 3.o", "6.io < 6.io"])


def test_a_map_that_no_module_sees_whole_is_not_tapped() -> None:
    """A block on one branch would change that branch alone."""

    class Flat(nn.Module):
        def __init__(self, first: int, second: int) -> None:
            super().__init__()
            self.left, self.right, self.stem = nn.Conv2d(3, 4, 3, first, 1), nn.Conv2d(3, 4, 1, first), nn.ReLU()
            self.c, self.p, self.end = nn.Conv2d(4, 4, 3, second, 1), nn.Conv2d(4, 4, 1, second), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.left(x) + self.right(x)  # which c and p read, no module alone
            return self.end(self.c(x) + self.p(x))

    assert found(Flat(2, 2), Flat(2, 2), 32) == [("end", "input", "end", "input")]


def test_a_shared_pool_is_no_place() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(self.body(self.pool(self.stem(x))))

    taps = found(Shared(), Shared(), 64)
    assert "pool" not in {layer for layer, *_ in taps} and taps[0] == ("stem", "output", "stem", "output")


def test_maps_of_one_size_that_come_again_are_paired_in_their_order() -> None:
    """As in stacked hourglasses: the second goes down and up through the sizes of the first."""

    def net(stem: int, last: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, stem, 1)]
        for _ in range(2):
            layers += [nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, last, 1)]
            layers += [nn.Upsample(scale_factor=last), nn.Upsample(scale_factor=2)]
        return nn.Sequential(*layers, nn.Conv2d(4, 4, 3, 2, 1))

    first, second = ["1.io < 2.io", "4.io < 3.io"], ["5.io < 6.io", "8.io < 7.io"]
    assert found(net(4, 1), net(2, 2), 64) == expand(["0.o < 1.o", *first, *second, "9.io < 6.io"])


def test_where_an_unpadded_layer_leaves_another_border_the_other_end_is_paired() -> None:
    def net(*strides: int) -> nn.Module:  # 67 → 33 → 31 → 15 → 13 → 7, or 17 → 15 → 7 → 5 → 3
        stem, pool = nn.Conv2d(3, 4, 3, strides[0]), nn.MaxPool2d(3, strides[1])
        return nn.Sequential(stem, nn.Conv2d(4, 4, 3), pool, nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, strides[2], 1))

    assert found(net(4, 2, 1), net(2, 2, 2), 67) == [("2", "output", "4", "output")]


def test_a_shrunken_image_beside_the_maps_is_not_tapped() -> None:
    class Pyramid(nn.Module):
        def __init__(self, *strides: int) -> None:
            super().__init__()
            self.stem, self.small = nn.Conv2d(3, 5, 3, strides[0], 1), nn.AvgPool2d(strides[0])
            self.smaller, self.conv = nn.AvgPool2d(strides[1]), nn.Conv2d(8, 5, 3, strides[1], 1)
            self.norm, self.end = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            image = self.small(x)
            x = self.norm(torch.cat([image, self.stem(x)], 1))
            return self.end(torch.cat([self.smaller(image), self.conv(x)], 1))

    assert found(Pyramid(2, 2), Pyramid(2, 2), 32) == expand(["norm.i < norm.i", "norm.o < norm.o", "end.i < end.i"])


def test_nothing_to_pair() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1))
    with pytest.raises(ValueError, match="no change at all"):
        match_taps(net, nn.Sequential(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8))


def test_maps_of_one_pixel_are_left_out() -> None:
    def net(*strides: int) -> nn.Module:
        return nn.Sequential(*(nn.Conv2d(3 if k == 0 else 4, 4, 3, s, 1) for k, s in enumerate(strides)))

    student, teacher = net(4, 2, 2), net(2, 2, 2, 2)
    assert found(student, teacher, 16) == expand(["0.o < 1.o", "1.io < 2.io", "2.i < 3.i"])
    assert found(student, teacher, 32)[-1] == ("2", "output", "3", "output")


def test_networks_with_blocks_have_the_taps_they_had_without() -> None:
    student, teacher = create_model("resnet18-4-11221", width=0.125), create_model("resnet18-1-21222", width=0.125)
    example = torch.zeros(1, 3, 32, 32)
    before, back = match_taps(student, teacher, example), match_taps(teacher, student, example)
    insert_blocks(student, [(*tap.place, RedBlock(tap.channels or 0)) for tap in before])
    assert match_taps(student, teacher, example) == before
    assert match_taps(teacher, student, example) == back


def test_networks_are_left_as_they_were() -> None:
    student, teacher = create_model("resnet18-4-11221", width=0.25), create_model("resnet18-1-21222", width=0.25)
    teacher.layer1.eval()
    before = {k: v.clone() for k, v in (student.state_dict() | teacher.state_dict()).items()}
    match_taps(student, teacher, torch.rand(2, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in (student.state_dict() | teacher.state_dict()).items())
    assert student.training and teacher.layer2.training and not teacher.layer1.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (student, teacher) for m in net.modules())


YAML = """
net.conv1:
  t_layers: [null, tid_0=layer2.0]
  modules: [null, RED]
  kwargs: [null, {cs: 64, alpha: 50.0, distance: cosine, res_ks: 3}]
layer2.0:
  t_layers: [tid_0=net.layer3.0, tid_1=layer3.0]
  modules: [STAGE, MSE]
  kwargs: [{cs: 64, alpha: 1.0}, {}]
net.fc:
  t_layers: [null, tid_0=fc]
  modules: [null, KD]
  kwargs: [null, {alpha: 2.0, T: 4.0}]
"""


def test_read_the_official_schema(tmp_path: Path) -> None:
    (tmp_path / "taps.yaml").write_text(YAML)
    assert read_taps(tmp_path / "taps.yaml") == [
        Tap("conv1", "output", "layer2.0", "output", 0, RED(kernel_size=3, distance="cosine", alpha=50.0), 64),
        Tap("layer2.0", "input", "layer3.0", "input", 0, Stage(alpha=1.0), 64),
        Tap("layer2.0", "output", "layer3.0", "output", 1, MSE()),
        Tap("fc", "output", "fc", "output", 0, KD(temperature=4.0, alpha=2.0)),
    ]


def test_yaml_names_any_method_with_its_options() -> None:
    entries = {
        "layer1": {
            "t_layers": ["tid_0=layer2", "tid_0=layer3"],
            "modules": ["FITNET", "crd"],
            "kwargs": [{"alpha": 7.0}, {"cs": 16, "dim": 32, "negatives": 64, "temperature": 0.1, "momentum": 0.9}],
        },
        "fc": {
            "t_layers": [None, "tid_1=fc"],
            "modules": [None, "DKD"],
            "kwargs": [None, {"T": 3.0, "others": 2.0}],
        },
    }
    assert read_taps(entries) == [
        Tap("layer1", "input", "layer2", "input", 0, FitNet(alpha=7.0)),
        Tap("layer1", "output", "layer3", "output", 0, CRD(32, 64, 0.1, 0.9), 16),
        Tap("fc", "output", "fc", "output", 1, DKD(temperature=3.0, others=2.0)),
    ]
    control = {"conv1": {"t_layers": [None, "tid_0=layer2"], "modules": [None, "RED_BLOCKS"]}}
    assert [tap.method.name for tap in read_taps(control) if tap.method] == ["red-blocks"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "expected a mapping"),
        ({"a": {"t_layers": [None, None]}}, "a: expected t_layers and modules"),
        ({"a": {"t_layers": ["tid_0=b"], "modules": [None, "RED"]}}, "t_layers must be a list of two"),
        ({"a": {"t_layers": [None, "tid_0=b"], "modules": [None, None]}}, "on the output, t_layers says 'tid_0=b'"),
        ({"a": {"t_layers": [None, "b"], "modules": [None, "RED"]}}, "not of the form tid_"),
        (
            {"a": {"t_layers": [None, "tid_0=b"], "modules": [None, "REED"]}},
            "a: unknown distillation method 'reed'; did you mean 'red'",
        ),
        (
            {"a": {"t_layers": [None, "tid_0=b"], "modules": [None, "RED"], "kwargs": [None, {"ca": 3}]}},
            "a: red has no option ca; it has alpha, distance, encoder, gate, kernel_size, shortcut",
        ),
        (
            {"a": {"t_layers": [None, "tid_0=b"], "modules": [None, "KD"], "kwargs": [None, {"T": -1}]}},
            "a: temperature=-1 is not a number above 0",
        ),
        ({"a": {"t_layers": [None, None], "modules": [None, None]}}, "there is no tap"),
        (
            {"a": {"t_layers": [None, "tid_0=b"], "modules": [None, "RED"], "kwargs": [None, ["cs", 3]]}},
            r"a: on the output, kwargs is a mapping of options or null, not \['cs', 3\]",
        ),
    ],
)
def test_schema_errors(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_taps(entry)


def test_tap_names() -> None:
    assert repr(Tap("", "output", "", "output", 1)) == "Tap((network) output ← teacher 1: (network) output)"
    with pytest.raises(ValueError, match=r"a tap carries one method, not 'red\+kd'; make a tap for each"):
        Tap("a", "input", "b", "input", method="red+kd")  # type: ignore[arg-type]
    tap = Tap("a.b", "input", "c", "output", method="red(alpha=50.0)")  # type: ignore[arg-type]
    assert tap.method == RED() and tap.name == "a.b.input" and str(tap.source) == "c.output"
    assert repr(tap) == "Tap(a.b input ← c output, method=RED(kernel_size=3, distance='cosine', alpha=50.0))"
    for wrong, message in (
        ({"side": "middle"}, "a tap's side='middle' is not 'input' or 'output'"),
        ({"layer": 3}, "layer=3 is not text"),
        ({"channels": 0}, "channels=0 is not a whole number of 1 or more"),
        ({"channels": "8"}, "channels='8' is not a whole number"),
        ({"teacher": -1}, "teacher=-1 is not a whole number of 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(tap, **wrong)  # type: ignore[arg-type]


def test_stored_images_and_broken_yaml_say_what_to_do(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    with pytest.raises(TypeError, match=r"float images, not uint8; redistill_lib\.to_float makes them"):
        match_taps(net, net, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    (tmp_path / "taps.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"taps\.yaml is not YAML"):
        read_taps(tmp_path / "taps.yaml")
    (tmp_path / "taps.yaml").write_bytes(b"\x81\xff")
    with pytest.raises(ValueError, match=r"taps\.yaml is not YAML"):
        read_taps(tmp_path / "taps.yaml")
    (tmp_path / "taps.yaml").write_text("conv1: 2026-02-31")
    with pytest.raises(ValueError, match=r"taps\.yaml is not YAML"):
        read_taps(tmp_path / "taps.yaml")
    for wrong in ((None, net, net[0].weight), (net, "resnet18", net[0].weight), (net, net, [1]), (net, net, ())):
        with pytest.raises(ValueError, match=r"is not a (Module|Tensor or a tuple)|example is a batch of images"):
            match_taps(*wrong)  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError, match=r"taps cannot be read from .*: Is a directory"):
        read_taps(tmp_path)
    with pytest.raises(ValueError, match="source=7 is not text or a path or a dict"):
        read_taps(7)  # type: ignore[arg-type]


def test_a_linear_layer_over_channels_last_maps_is_no_change_of_resolution() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wide, self.narrow = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).permute(0, 2, 3, 1)
            return self.narrow(self.wide(x)).permute(0, 3, 1, 2)

    assert [c.module for c in find_resolutions(Mixer(), torch.zeros(1, 3, 32, 32)).changes] == ["stem"]


def test_a_student_that_keeps_the_image_size() -> None:
    """Its way up ends inside a list of blocks, which as a whole is never called."""
    options: dict[str, Any] = {"mult": (1, 2), "attention": (1,), "res_blocks": 1}
    teacher, student = (create_model("unet-1-2", ch=ch, **options) for ch in (16, 8))
    taps = match_taps(student, teacher, example_inputs("unet", 16, batch=2))
    assert [tap.name for tap in taps] == ["downblocks.1.output", "upblocks.2.input"]


# -------------------------------------------------------------------------------------------------------- narrow taps


def test_narrow_taps_are_around_inverted_residuals() -> None:
    names = "mobilenetv2-4-1221111", "mobilenetv2-1-1222121"
    student, teacher = map(create_model, names)
    example = torch.zeros(1, 3, 64, 64)
    paper, narrow = (match_taps(student, teacher, example, narrow=n) for n in (False, True))
    assert [tap.layer for tap in narrow] == ["features.1.conv.3", "features.1", "features.2.conv.6", "features.3",
                                             "features.4.conv.6"]  # fmt: skip
    maps = record_maps(student, [tap.place for tap in narrow], example)
    theirs = record_maps(teacher, [tap.source for tap in narrow], example)
    for tap, wide in zip(narrow, paper, strict=True):
        assert maps[tap.place].shape[1] == tap.channels <= (wide.channels or 0)
        assert maps[tap.place].shape[2:] == theirs[tap.source].shape[2:]


def test_narrow_taps_of_plain_stages_are_the_papers() -> None:
    student, teacher = create_model("resnet18-4-11221", width=0.25), create_model("resnet18-1-21222", width=0.25)
    example = torch.zeros(1, 3, 64, 64)
    assert match_taps(student, teacher, example, narrow=True) == match_taps(student, teacher, example)


def test_what_is_returned_is_no_narrow_map() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 1, 1))
    assert {tap.layer for tap in match_taps(net, net, torch.zeros(1, 3, 32, 32), narrow=True)} == {"0", "1"}


def test_the_image_is_not_tapped() -> None:
    net = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
    assert [str(tap.place) for tap in match_taps(net, net, torch.zeros(1, 3, 32, 32))] == [
        "1.output", "2.input", "2.output",
    ]  # fmt: skip


def test_a_module_that_gives_several_maps_takes_no_block() -> None:
    class Both(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, stride, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.conv(x)
            return x, x.mean((2, 3))

    class Net(nn.Module):
        def __init__(self, *strides: int) -> None:
            super().__init__()
            self.stem, self.both = nn.Conv2d(3, 8, 3, strides[0], 1), Both(strides[1])
            self.last = nn.Conv2d(8, 8, 3, strides[2], 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.both(self.stem(x))[0])

    student, teacher, example = Net(4, 2, 1), Net(2, 2, 2), torch.zeros(2, 3, 64, 64)
    taps = match_taps(student, teacher, example)
    assert [str(tap.place) for tap in taps] == ["stem.output", "both.conv.input", "both.conv.output"]
    insert_blocks(student, [(*tap.place, RedBlock(tap.channels or 0)) for tap in taps])
    assert student(example).shape == teacher(example).shape
