"""Transformers: larger patches, resized positions, merging that keeps its map, windows."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_calls import called
from torch import Tensor, nn

from redistill_lib.student import derive_student
from redistill_lib.student.edits import restride
from redistill_lib.student.tokens import fit_sizes, resize_patches

IMAGE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.grid_size, self.num_patches = (4, 4), (8, 12), 96
        self.proj = nn.Conv2d(3, 16, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert (x.shape[2] // self.patch_size[0], x.shape[3] // self.patch_size[1]) == self.grid_size
        y = self.proj(x).flatten(2).transpose(1, 2)
        assert y.shape[1] == self.num_patches
        return y


class Transformer(nn.Module):
    """Tokens in front, learned positions for all; `kind` says in which form they are kept."""

    def __init__(self, kind: str = "tokens", front: int = 1) -> None:
        super().__init__()
        self.patches, self.front, self.seq_length = Patches(), front, 96 + front
        self.config = SimpleNamespace(patch_size=4, hidden_size=16)
        self.kind, table = kind, torch.arange(96.0).reshape(8, 12)
        if kind == "map":
            self.pos_embed = nn.Parameter(table.expand(1, 16, 8, 12).clone())
        elif kind == "embedding":
            self.position_embedding = nn.Embedding(96 + front, 16)
            self.register_buffer("position_ids", torch.arange(96 + front)[None], persistent=False)
        else:
            lines = torch.cat([torch.full((front, 16), -1.0), table.reshape(96, 1).expand(96, 16)])
            self.register_buffer("pos_embed", lines if kind == "buffer" else lines[None])
        self.block = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.patches(x), (0, 0, self.front, 0))
        assert x.shape[1] == self.seq_length
        if self.kind == "map":
            positions: Any = F.pad(self.pos_embed.flatten(2).transpose(1, 2), (0, 0, self.front, 0))
        elif self.kind == "embedding":
            positions = self.position_embedding(self.position_ids)
        else:
            positions = self.pos_embed
        return self.block(x + positions)


@pytest.mark.parametrize(
    ("kind", "front"), [("tokens", 1), ("tokens", 0), ("buffer", 5), ("map", 1), ("embedding", 2)]
)
def test_patches_grow_with_all_that_counts_them(kind: str, front: int) -> None:
    torch.manual_seed(0)
    teacher = Transformer(kind, front).eval()
    student = copy.deepcopy(teacher)
    changes = resize_patches(student, "patches.proj", 2, (8, 12), (4, 6))
    assert repr(changes[0]) == "patches.proj: patch embed 4 → 8 (kernel 4 → 8)"
    assert all((c.kind, c.before, c.after, c.note) == ("positions", 8, 4, "8×12 → 4×6") for c in changes[1:])
    assert student(IMAGE).shape == (2, 24 + front, 16)
    patches: Any = student.patches
    assert (patches.patch_size, patches.grid_size, patches.num_patches) == ((8, 8), (4, 6), 24)
    assert (student.seq_length, student.config.patch_size, student.config.hidden_size) == (24 + front, 8, 16)
    assert teacher.config.patch_size == 4 and teacher(IMAGE).shape == (2, 96 + front, 16)
    # the patches are those of an image of half the size
    assert torch.allclose(patches(IMAGE), teacher.patches.proj(F.avg_pool2d(IMAGE, 2)).flatten(2).mT, atol=1e-5)
    if kind == "embedding":
        assert student.position_embedding.weight.shape == (24 + front, 16)
        assert torch.equal(student.position_embedding.weight[:front], teacher.position_embedding.weight[:front])
        return
    # a ramp of positions stays one: a step across is two patches wide now, and nothing shifts
    table = student.pos_embed if kind == "map" else student.pos_embed.reshape(-1, 16)[front:].T.reshape(1, 16, 4, 6)
    assert torch.allclose(table.mean(), torch.tensor(47.5), atol=1e-3)
    assert torch.allclose(table[..., 1:-1].diff(dim=-1), torch.tensor(2.0), atol=0.05)
    if kind != "map" and front:
        assert torch.equal(student.pos_embed.reshape(-1, 16)[:front], torch.full((front, 16), -1.0))


def test_what_cannot_follow_the_patches_is_named() -> None:
    net = Transformer()
    with pytest.raises(ValueError, match=r"patches.proj makes 8×12 patches, which patches 8 times as large do not"):
        resize_patches(net, "patches.proj", 8, (8, 12), (1, 1))
    net.mix = nn.Module()
    net.mix.relative_position_bias_table = nn.Parameter(torch.zeros(15 * 23 + 3, 2))
    with pytest.raises(
        ValueError, match=r"mix.relative_position_bias_table is a table of relative positions for 8×12"
    ):
        resize_patches(net, "patches.proj", 2, (8, 12), (4, 6))
    with pytest.raises(ValueError, match=r"0 is no convolution with kernel = stride, so its patches cannot grow"):
        resize_patches(nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3)), "0", 2, (8, 12), (4, 6))


class Classifier(Transformer):
    """Its answer is one for the image, or of as many patches as it was made for."""

    def __init__(self, mixes: int = 0) -> None:
        super().__init__()
        self.mix = nn.Linear(mixes, 5) if mixes else nn.Linear(16, 5)
        self.mixes = mixes

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.mix(y.mean(2) if self.mixes else y[:, 0])


def test_a_student_of_a_transformer_has_larger_patches() -> None:
    student, changes = derive_student(Classifier(), 2, example=IMAGE)
    assert [c.kind for c in changes] == ["patch embed", "positions"]
    assert student(IMAGE).shape == (2, 5)
    with pytest.raises(ValueError, match=r"of 4×6 patches breaks in mix, which may take exactly 8×12: .*shapes"):
        derive_student(Classifier(97), 2, example=IMAGE)
    with pytest.raises(
        ValueError, match=r"would be \[\(2, 25, 16\)\], not \[\(2, 97, 16\)\]: they have one entry per"
    ):
        derive_student(Transformer(), 2, example=IMAGE)
    with pytest.raises(ValueError, match=r"only patches.proj strides"):
        derive_student(Transformer(), plan="8-2", example=IMAGE)


def test_patches_of_volumes_grow_too() -> None:
    net = nn.Module()
    net.proj, net.pos = (
        nn.Conv3d(1, 4, 2, 2),
        nn.Parameter(torch.arange(64.0)[None, :, None].expand(1, 64, 4).clone()),
    )
    changes = resize_patches(net, "proj", 2, (4, 4, 4), (2, 2, 2))
    assert repr(changes[1]) == "pos: positions 4 → 2 (4×4×4 → 2×2×2)"
    wanted = F.avg_pool3d(torch.arange(64.0).reshape(1, 1, 4, 4, 4), 2).flatten()
    assert torch.allclose(net.pos[0, :, 0], wanted) and net.proj.kernel_size == (4, 4, 4)


class Merging(nn.Module):
    """Makes one pixel of each square of four, by slices or by a reshape."""

    def __init__(self, sliced: bool) -> None:
        super().__init__()
        self.sliced, self.norm, self.reduction = sliced, nn.LayerNorm(32), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        if self.sliced:
            corners = [x[:, down::2, across::2] for across in (0, 1) for down in (0, 1)]
            x = torch.cat(corners, -1)
        else:
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


@pytest.mark.parametrize("sliced", [True, False])
def test_a_merging_keeps_its_map(sliced: bool) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(Merging(sliced))
    student = copy.deepcopy(teacher)
    for number in range(4 if sliced else 1):  # each slice is a call that halves
        function = "__getitem__" if sliced else "flatten"
        change = restride(student, called(function, (("", 0), ("0", 0)), (number, number)), 2, 1, "stride")
    assert repr(change) == "0: patch merging 2 → 1 (each pixel 4 times)"
    x = torch.randn(1, 7, 7, 8)  # an odd side is padded no more
    merging: Any = teacher[0]
    assert torch.allclose(student(x), merging.reduction(merging.norm(x.repeat(1, 1, 1, 4))), atol=1e-6)
    assert teacher(x).shape == (1, 4, 4, 16)
    with pytest.raises(ValueError, match=r"merged from a tensor \(1, 49, 8\), which is no map"):
        student(x.flatten(1, 2))


class Windows(nn.Module):
    """Attends in windows of a map whose size it was told; the attention itself is left out."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.input_resolution, self.window_size = (side, side), (4, 4)

    def set_input_size(self, feat_size: tuple[int, int], window_size: tuple[int, int]) -> None:
        self.input_resolution = feat_size
        self.window_size = (min(feat_size[0], window_size[0]), min(feat_size[1], window_size[1]))

    def forward(self, x: Tensor) -> Tensor:
        assert tuple(x.shape[1:3]) == self.input_resolution
        assert math.prod(self.window_size) <= math.prod(self.input_resolution)
        return x


def test_windows_are_told_their_maps() -> None:
    net = nn.Sequential(Windows(16), Merging(True), nn.Linear(16, 8), Windows(8)).train()
    x = torch.randn(1, 16, 16, 8)
    assert fit_sizes(net, x) == []
    changes = fit_sizes(net, x[:, ::8, ::8])
    assert [repr(c) for c in changes] == ["0: windows 16 → 2 (16×16 → 2×2)", "3: windows 8 → 1 (8×8 → 1×1)"]
    assert net(x[:, ::8, ::8]).shape == (1, 1, 1, 8) and net.training


class Stage(nn.Module):
    """A stage of a pyramid: patches of patches, their positions as a map or as lines, and what says their sizes."""

    def __init__(self, inputs: int, side: int, patch: int, lines: bool) -> None:
        super().__init__()
        self.patch_size, self.img_size, self.grid_size = (patch, patch), (side, side), (side // patch,) * 2
        self.proj, self.lines = nn.Conv2d(inputs, 4, patch, patch), lines
        table = torch.arange(float((side // patch) ** 2)).reshape(1, 1, *self.grid_size).expand(1, 4, -1, -1)
        self.pos_embed = nn.Parameter(table.flatten(2).transpose(1, 2).clone() if lines else table.clone())

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        self.img_size = img_size

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == self.img_size
        sides = [side // patch for side, patch in zip(self.img_size, self.patch_size, strict=True)]
        positions = self.pos_embed
        return self.proj(x) + (positions.transpose(1, 2).unflatten(2, sides) if self.lines else positions)


@pytest.mark.parametrize("lines", [False, True])
def test_sizes_that_a_pyramid_of_patches_holds_follow_its_maps(lines: bool) -> None:
    stages = Stage(3, 64, 4, lines), Stage(4, 16, 2, lines), Stage(4, 8, 2, lines)
    net, image = nn.Sequential(*stages), torch.zeros(1, 3, 64, 64)
    student, changes = derive_student(net, 2, example=image)
    assert student(image).shape == net(image).shape == (1, 4, 4, 4)
    sizes = [(stage.img_size, stage.patch_size, stage.proj.stride) for stage in student]
    assert sizes == [((64, 64), (8, 8), (8, 8)), ((8, 8), (2, 2), (2, 2)), ((4, 4), (1, 1), (1, 1))]
    assert [f"{c.kind} {c.before} → {c.after}" for c in changes] == [
        "patch embed 4 → 8", "patch embed 2 → 1", "positions 16 → 8", "positions 8 → 4", "map 16 → 8", "map 8 → 4",
    ]  # fmt: skip
    assert torch.equal(student[2].pos_embed, net[2].pos_embed)
    for before, after in zip(net, student, strict=True):  # the mean of positions that lie symmetrically is kept
        torch.testing.assert_close(after.pos_embed.mean(), before.pos_embed.mean())


def test_weights_of_layers_are_no_positions_whatever_their_name() -> None:
    convs = {"pre": nn.Conv2d(3, 64, 8, 8), "compose": nn.Conv2d(64, 64, 7, 2, 3), "post": nn.Conv2d(64, 64, 7, 2, 3)}
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "post_linear": nn.Linear(64, 50)}
    net = nn.Sequential(OrderedDict(convs | head))  # maps of 14×14, 7×7 and 4×4, in the student of 7×7, 4×4 and 4×4
    student, _ = derive_student(net, 2, example=torch.zeros(1, 3, 112, 112))
    for name in ("compose", "post", "post_linear"):
        assert torch.equal(student.get_parameter(f"{name}.weight"), net.get_parameter(f"{name}.weight"))
