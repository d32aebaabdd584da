"""Maps that are not B×C×H×W: with channels last, as tokens, of volumes. Taps, blocks, losses, costs, views."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_costs import measured
from torch import Tensor, nn
from trainings import digits, options, recipe_of

import redistill_lib as rd
from redistill_lib.costs import tap_costs
from redistill_lib.distill import Distillation, Tap, match_taps, read_taps
from redistill_lib.maps import compare_layer, compare_maps, layer_maps, score_taps
from redistill_lib.methods import RED, REDBlocks
from redistill_lib.network import find_resolutions, map_shapes
from redistill_lib.red import GridBlock, InPlaceRedBlock, RedBlock, alignment_loss, as_map
from redistill_lib.train import evaluate

X, Y = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 4, 1])
PLACES = [("patch", "output"), ("body.1", "input"), ("body.1", "output")]


class Mixer(nn.Module):
    """What a transformer does to each pixel; attention between them is left out."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(channels), nn.Sequential(nn.Linear(channels, channels), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(self.norm(x))
        return x + y


class Merge(nn.Module):
    """One pixel of each square of four, of B×H×W×C or of tokens B×(H·W)×C."""

    def __init__(self, channels: int, columns: int | None):
        super().__init__()
        self.reduction, self.columns = nn.Linear(4 * channels, 2 * channels), columns

    def forward(self, x: Tensor) -> Tensor:
        if self.columns:
            x = x.view(x.shape[0], -1, self.columns, x.shape[2])
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        y: Tensor = self.reduction(x)
        return y.flatten(1, 2) if self.columns else y


class Swin(nn.Module):
    """Patches that are merged again and again; `tokens` says how they are held. Made for X."""

    def __init__(self, patch: int, merges: int, tokens: bool, classes: int = 5, channels: int = 8):
        super().__init__()
        self.patch, self.tokens = nn.Conv2d(3, channels, patch, patch), tokens
        layers: list[nn.Module] = [Mixer(channels)]
        for k in range(merges):
            wide = channels * 2**k
            layers += [Merge(wide, 48 // patch // 2**k if tokens else None), Mixer(2 * wide)]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(channels * 2**merges, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x.flatten(2).transpose(1, 2) if self.tokens else x.permute(0, 2, 3, 1)
        y: Tensor = self.head(self.body(x).flatten(1, -2).mean(1))
        return y


class Patches(nn.Module):
    """A module around one layer, which gives tokens where the layer gives a map."""

    def __init__(self, patch: int = 8) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, 12, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.projection(x).flatten(2).transpose(1, 2)
        return y


class Vit(nn.Module):
    def __init__(self, front: int = 1, patch: int = 8) -> None:
        super().__init__()
        self.patches, self.front = Patches(patch), nn.Parameter(torch.randn(1, front, 12))
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 24, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.front.expand(len(x), -1, -1), self.patches(x)], 1)
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x[:, 0])
        return y


def cnn(*strides: int) -> nn.Module:
    layers: list[nn.Module] = []
    for k, stride in enumerate(strides):
        layers += [nn.Conv2d(3 if k == 0 else 6, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def seeded(net: type[nn.Module], *args: Any) -> Any:
    torch.manual_seed(1)
    return net(*args)


class Columns(Swin):
    """Holds its patches by columns, and by rows again for its merging where `back` says so. Made for a square."""

    def __init__(self, tokens: bool, back: bool) -> None:
        super().__init__(4, 0, tokens, channels=12)
        self.back, self.merge = back, Merge(12, 8 if tokens else None)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x.transpose(2, 3).flatten(2).transpose(1, 2) if self.tokens else x.permute(0, 3, 2, 1)
        x = self.body(x)
        if self.back:
            x = x.unflatten(1, (8, 8)).transpose(1, 2).flatten(1, 2) if self.tokens else x.transpose(1, 2)
        y: Tensor = self.head(self.merge(x).flatten(1, -2).mean(1))
        return y


@pytest.mark.parametrize("tokens", [False, True])
def test_maps_that_are_held_by_columns_are_not_compared_with_those_held_by_rows(tokens: bool) -> None:
    """On a square both look alike, and every map would be compared with its mirror image."""
    square, first = X[:, :, :, :32], Tap("patch", "output", "3", "output", channels=12)
    assert match_taps(seeded(Columns, tokens, False), cnn(2, 2, 2), square) == [first]
    assert match_taps(seeded(Columns, tokens, True), cnn(2, 2, 2), square) == [
        first,
        Tap("merge", "input", "6", "input", channels=12, grid=(8, 8)),
        Tap("merge", "output", "6", "output", channels=24, grid=(4, 4)),
    ]


@pytest.mark.parametrize("tokens", [False, True])
def test_taps_say_how_maps_are_held(tokens: bool) -> None:
    """Patches of 2 are 16×24; merged twice, 8×12 and 4×6. Patches of 4 need one merging less."""
    student, teacher = Swin(4, 1, tokens), Swin(2, 2, tokens)
    first, last = (8, 12), (4, 6)
    expected = [
        Tap("patch", "output", "body.1", "output", channels=8, teacher_grid=first),
        Tap("body.1", "input", "body.3", "input", channels=8, grid=first, teacher_grid=first),
        Tap("body.1", "output", "body.3", "output", channels=16, grid=last, teacher_grid=last),
    ]
    assert match_taps(student, teacher, X) == expected
    other = match_taps(student, Swin(2, 2, not tokens), X)
    assert other == expected  # a teacher may hold them in the other way
    crossed = match_taps(student, cnn(2, 2, 2), X)
    assert crossed == [
        Tap("patch", "output", "3", "output", channels=8),
        Tap("body.1", "input", "6", "input", channels=8, grid=first),
        Tap("body.1", "output", "6", "output", channels=16, grid=last),
    ]
    assert match_taps(cnn(4, 2), teacher, X) == [
        Tap("0", "output", "body.1", "output", channels=6, teacher_grid=first),
        Tap("3", "input", "body.3", "input", channels=6, teacher_grid=first),
        Tap("3", "output", "body.3", "output", channels=6, teacher_grid=last),
    ]


def test_a_derived_student_of_a_transformer_is_tapped_where_it_merges() -> None:
    teacher = Swin(2, 2, False)
    student, _ = rd.derive_student(teacher, 2, example=X)
    taps = match_taps(student, teacher, X)
    assert [(str(tap.place), str(tap.source), tap.grid) for tap in taps] == [
        ("patch.output", "body.1.output", None),
        ("body.1.input", "body.3.input", (8, 12)),
        ("body.1.output", "body.3.output", (4, 6)),
    ]


def test_narrow_taps_of_held_maps() -> None:
    """Pixels are widened before they are merged, and narrowed behind."""

    def net(patch: int, merges: int) -> Any:
        model: Any = Swin(patch, 0, False)
        layers = [[nn.Linear(8, 32), Merge(32, None), nn.Linear(64, 8)] for _ in range(merges)]
        model.body = nn.Sequential(*(layer for group in layers for layer in group), Mixer(8))
        return model

    student, teacher = net(4, 1), net(2, 2)
    wide, narrow = (match_taps(student, teacher, X, narrow=narrow)[1:] for narrow in (False, True))
    assert [(tap.name, str(tap.source), tap.channels) for tap in wide] == [
        ("body.1.input", "body.4.input", 32), ("body.1.output", "body.4.output", 64),
    ]  # fmt: skip
    assert [(tap.name, str(tap.source), tap.channels) for tap in narrow] == [
        ("body.input", "body.2.output", 8), ("body.2.output", "body.5.output", 8),
    ]  # fmt: skip
    grids = [((8, 12), (8, 12)), ((4, 6), (4, 6))]
    assert [(tap.grid, tap.teacher_grid) for tap in narrow] == grids
    Distillation(student, teacher, narrow, example=X)(X)


class Turned(Patches):
    """Twelve tokens of twelve channels, the channels before the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2)


def test_channels_before_tokens_are_no_map_that_a_tap_could_take() -> None:
    net = nn.Sequential(Turned(), nn.Linear(12, 12), nn.Flatten(), nn.Linear(144, 5))
    x = torch.zeros(1, 3, 32, 24)
    assert [found.layer for found in map_shapes(net, x)] == ["0.projection"]
    net[0] = Patches()
    assert [found.layer for found in map_shapes(net, x)] == ["0.projection", "0", "1"]


@pytest.mark.parametrize("tokens", [False, True])
def test_a_step_reaches_the_student_at_every_tap(tokens: bool) -> None:
    student, teacher = seeded(Swin, 4, 1, tokens), Swin(2, 2, tokens)
    taps = match_taps(student, teacher, X)
    d = Distillation(student, teacher, taps, "red+kd", example=X)
    losses = d(X, targets=Y)[1]
    for place in PLACES:
        own = [p for name, p in student.named_parameters() if "before" not in name and "after" not in name]
        grads = torch.autograd.grad(losses[f"red/{'.'.join(place)}"], own, retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().sum() > 0 for g in grads)
    losses["total"].backward()
    torch.optim.SGD(d.parameters(), 0.01).step()
    d.eval()
    expected = d(X)[0]
    assert torch.equal(d.graduate().eval()(X), expected)
    torch.testing.assert_close(d.graduate(folded=True)(X), expected)
    in_place = d.graduate(in_place=True, example=X)
    assert sum(isinstance(m, InPlaceRedBlock) for m in in_place.modules()) == 3
    torch.testing.assert_close(in_place(X), expected)
    exported = torch.export.export(d.graduate().eval(), (X,)).module()
    torch.testing.assert_close(exported(X), expected)


def test_losses_and_blocks_by_hand() -> None:
    """Every tensor is brought to B×C×H×W by hand, and the class token is left alone."""
    student, teacher = seeded(Vit), cnn(2, 2, 2).eval()
    taps = [
        Tap("patches", "output", "6", "output", grid=(4, 6)),
        Tap("blocks.0", "output", "6", "output", grid=(4, 6)),
    ]
    d = Distillation(copy.deepcopy(student), teacher, taps, "red", example=X).eval()
    outer, inner = (block.block for block in d.blocks)
    theirs = teacher[:7](X)
    patches = outer(student.patches.projection(X))  # as a map
    x = torch.cat([student.front.expand(3, -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = student.eval().blocks[0](x)
    middle = inner(x[:, 1:].transpose(1, 2).reshape(3, 12, 4, 6))
    losses = d(X)[1]
    assert losses["red/patches.output"].item() == pytest.approx(alignment_loss(patches, theirs).item(), abs=1e-6)
    assert losses["red/blocks.0.output"].item() == pytest.approx(alignment_loss(middle, theirs).item(), abs=1e-6)
    x = torch.cat([x[:, :1], middle.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(d(X)[0], student.head(student.blocks[1](x)[:, 0]))
    lone = Distillation(copy.deepcopy(student), teacher, taps[1:], "red", example=X).eval()
    with pytest.raises(ValueError, match=r"no RED block can work in place \(.* reads its input map later on"):
        lone.graduate(in_place=True, example=X)  # the class token is read behind the block


def test_a_vit_of_a_cnn_is_tapped_at_the_map_of_its_patches() -> None:
    student, teacher = Vit(), cnn(2, 2, 2, 2)
    [tap] = match_taps(student, teacher, X)
    assert tap == Tap("patches.projection", "output", "6", "output", channels=12)
    d = Distillation(student, teacher, [tap], "red+kd")
    losses = d(X, targets=Y)[1]
    losses["red/patches.projection.output"].backward()
    assert student.get_parameter("patches.projection.layer.weight").grad.abs().sum() > 0


def test_the_papers_tap_of_a_vit() -> None:
    """DeiT with patches of 16 learns from the map of MobileNetV2 that has as many pixels."""
    [tap] = match_taps(Vit(patch=16), rd.create_model("mobilenetv2-1-1222121", width=0.25), torch.zeros(1, 3, 64, 64))
    assert tap == Tap("patches.projection", "output", "features.14.conv.3", "output", channels=12)


def test_the_blocks_of_maps_with_channels_last_take_any_size() -> None:
    block = GridBlock(RedBlock(4), (4, 6)).eval()
    x = torch.randn(2, 7, 5, 4)
    assert torch.allclose(block(x), block.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), atol=1e-6)
    assert block(x).is_contiguous() and block(torch.randn(2, 2 + 24, 4)).is_contiguous()
    with pytest.raises(ValueError, match=r"a grid of 4×6 does not fit a tensor \(2, 35, 4\)"):
        block(x.flatten(1, 2))


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 24, 3), (2, 27, 3), (2, 2, 4, 6, 3), (2, 48, 3)])
def test_a_map_is_a_view_of_what_holds_it(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    grid = (2, 4, 6) if 2 in shape[1:] or 48 in shape else (4, 6)
    found = as_map(x, grid)
    assert found.shape == (2, 3, *grid)
    found[:, :, *(0,) * (len(grid) - 1), 5] = 1  # the sixth pixel of the first row
    row = x.flatten(1, -2)[0, :, 0]
    assert row.nonzero().item() == 5 + (3 if shape == (2, 27, 3) else 0)


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (4, 5)}, r"a grid of 4×5 does not fit a tensor \(3, 25, 12\): it has to be B×4×5×C, or tokens"),
        (
            {"grid": (3, 6)},
            r"a grid of 3×6 does not fit a tensor \(3, 25, 12\)",
        ),  # seven tokens in front are too many
        ({"grid": (2, 4, 6)}, r"a grid of 2×4×6 does not fit a tensor \(3, 25, 12\)"),
        ({"grid": (4, 6), "teacher_grid": (4, 6)}, r"a grid of 4×6 does not fit a tensor \(3, 6, 4, 6\)"),
        ({"grid": (6, 4)}, r"maps of equal height × width, not \(12, 6, 4\) from the student and \(6, 4, 6\)"),
    ],
)
def test_a_grid_that_does_not_fit(changes: dict[str, Any], message: str, example: Tensor | None) -> None:
    tap = replace(Tap("blocks.0", "output", "6", "output", channels=12), **changes)
    where = r"tap blocks\.0\.output ← 6\.output: .*" if example is not None else ""
    with pytest.raises(ValueError, match=where + message):
        Distillation(Vit(), cnn(2, 2, 2), [tap], "red", example=example)(X)


def test_tokens_without_a_grid_are_told_to_give_one() -> None:
    for given, message in (({}, "by grid= or teacher_grid="), ({"teacher_grid": (8, 12)}, r"not \(25, 12\)")):
        tap = Tap("blocks.0", "output", "body.1", "output", **given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            Distillation(Vit(), Swin(2, 2, False), [tap], "red", example=X)
    with pytest.raises(ValueError, match=r"nearest .* 4×6 is 'body\.4\.mlp' with teacher_grid=\(4, 6\)"):
        tap = Tap("blocks.0", "output", "body.4.mlp", "output", grid=(4, 6))
        Distillation(Vit(), Swin(2, 2, False), [tap], "red", example=X)
    for wrong in ((4,), (4, 6, 2, 2), (4, 0), "4×6", (4.0, 6)):
        with pytest.raises(ValueError, match="grid"):
            Tap("a", "output", "b", "output", grid=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="volume=1 is not True or False"):
        Tap("a", "output", "b", "output", volume=1)  # type: ignore[arg-type]


def test_grids_in_the_official_schema(tmp_path: Path) -> None:
    options = {"cs": 12, "grid": [4, 6], "teacher_grid": [4, 6], "gate": False, "encoder": "depthwise"}
    entries = {"blocks.0": {"t_layers": [None, "tid_0=b"], "modules": [None, "RED"], "kwargs": [None, options]}}
    [tap] = read_taps(entries)
    method = RED(gate=False, encoder="depthwise")
    assert tap == Tap("blocks.0", "output", "b", "output", 0, method, 12, (4, 6), (4, 6))
    assert repr(method) == "RED(kernel_size=3, distance='cosine', alpha=50.0, gate=False, encoder='depthwise')"
    assert repr(tap).endswith("channels=12, grid=(4, 6), teacher_grid=(4, 6))")
    options["grid"] = [4]
    with pytest.raises(ValueError, match=r"taps, blocks\.0: grid is a map's height and width"):
        read_taps(entries)


# --------------------------------------------------------------------------------------------------------- volumes


def volumes(*strides: int) -> nn.Module:
    layers: list[nn.Module] = []
    for k, stride in enumerate(strides):
        layers += [nn.Conv3d(2 if k == 0 else 6, 6, 3, stride, 1), nn.InstanceNorm3d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5))


V = torch.rand(2, 2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("example", [None, V])
def test_volumes(example: Tensor | None) -> None:
    torch.manual_seed(0)
    student, teacher = volumes(4, 1, 2), volumes(2, 2, 2)
    taps = match_taps(student, teacher, V)
    assert taps == [
        Tap("0", "output", "3", "output", channels=6, volume=True),
        Tap("6", "input", "6", "input", channels=6, volume=True),
        Tap("6", "output", "6", "output", channels=6, volume=True),
    ]
    d = Distillation(student, teacher, taps, "red+kd", example=example)
    losses = d(V, targets=Y[:2])[1]
    by_hand = alignment_loss(student[0](V), teacher[:4](V))
    assert losses["red/0.output"].item() == pytest.approx(by_hand.item(), abs=1e-6)
    losses["total"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student[0].parameters())
    torch.optim.SGD(d.parameters(), 0.01).step()
    d.eval()
    assert torch.equal(d.graduate().eval()(V), d(V)[0])
    torch.testing.assert_close(d.graduate(folded=True)(V), d(V)[0])
    with pytest.raises(ValueError, match="the in-place form works through a map row by row, and takes no volumes"):
        d.graduate(in_place=True, example=V)
    with pytest.raises(ValueError, match="red needs volumes of equal depth × height × width"):
        Distillation(volumes(4, 1, 2), teacher, [Tap("0", "output", "0", "output")], "red", example=V)


# ----------------------------------------------------------------------------------------------------------- costs


FORMS: list[Any] = [
    RED(),
    RED(gate=False, kernel_size=5),
    RED(shortcut=False),
    RED(encoder="depthwise", kernel_size=5),
]


@pytest.mark.parametrize("method", FORMS, ids=repr)
@pytest.mark.parametrize("kind", ["first", "last", "tokens", "front", "volumes"])
def test_costs_are_those_of_networks_with_blocks(kind: str, method: RED) -> None:
    """Of wide maps behind a narrow stem, so that the blocks set the peak."""
    inputs, plain_only = (X[:1],), kind in ("front", "volumes")
    if kind == "first":
        student: nn.Module = cnn(2, 2)
        taps = [Tap("0", "output", "0", "output", channels=6), Tap("3", "input", "0", "output", channels=6)]
    elif kind == "front":
        student, taps = Vit(2), [Tap("blocks.0", "output", "6", "output", channels=12, grid=(4, 6))]
    elif kind == "volumes":
        student, inputs = volumes(1, 2), (V[:1],)
        taps = [Tap("0", "output", "0", "output", channels=6, volume=True)]
    else:
        student = Swin(2, 1, kind == "tokens", channels=16)
        taps = [Tap("body.0", "output", "0", "output", channels=16, grid=(16, 24))]
        taps += [Tap("body.1", "output", "0", "output", channels=32, grid=(8, 12))]
    taps = [replace(tap, method=method) for tap in taps]
    row = tap_costs(student, student, taps, inputs, dtype="int8").rows[-1]
    for cost, in_place in ((row.published, False), (row.in_place, True)):
        expected = measured(student, taps, inputs, in_place and not plain_only)
        assert (cost.peak_bytes, cost.flops, cost.parameters) == expected
    if not plain_only:
        assert row.in_place.peak_bytes <= row.published.peak_bytes


def test_costs_of_tokens_need_their_grid() -> None:
    for grid, message in ((None, "give the tap their grid="), ((4, 5), r"blocks\.0\.output: a grid of 4×5 does not")):
        with pytest.raises(ValueError, match=message):
            tap_costs(Vit(), cnn(2), [Tap("blocks.0", "output", "0", "output", grid=grid)], X)


# ----------------------------------------------------------------------------------------------------------- views


IMAGE = torch.randint(0, 255, (3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tokens", [False, True])
def test_views_of_held_maps(tokens: bool) -> None:
    student, teacher = seeded(Swin, 4, 1, tokens).eval(), seeded(Swin, 2, 2, tokens).eval()
    assert layer_maps(student, IMAGE) == [
        ("patch", (8, 8, 12)), ("body.0.mlp", (8, 8, 12)), ("body.0", (8, 8, 12)),
        ("body.1", (16, 4, 6)), ("body.2.mlp", (16, 4, 6)), ("body.2", (16, 4, 6)), ("body", (16, 4, 6)),
    ]  # fmt: skip
    seen = compare_layer(teacher, student, "body.1", IMAGE)
    x = rd.to_float(IMAGE[None])
    by_hand = student.patch(x)
    by_hand = by_hand.flatten(2).transpose(1, 2) if tokens else by_hand.permute(0, 2, 3, 1)
    by_hand = student.body[:2](by_hand).reshape(4, 6, 16).mean(-1)
    torch.testing.assert_close(torch.from_numpy(seen.student), by_hand.detach())
    assert (seen.teacher.shape, seen.student_channels, seen.teacher_channels) == ((8, 12), 16, 16)
    taps = match_taps(student, teacher, x)
    scores = score_taps(teacher, {"naive": student}, taps, torch.stack([IMAGE, IMAGE.flip(2)]))
    for k, tap in enumerate(taps):
        pair = [compare_maps(teacher, student, tap, image).score for image in (IMAGE, IMAGE.flip(2))]
        assert scores["score"][k] == pytest.approx(sum(pair) / 2, abs=1e-5) and not scores["resized"][k]
    with pytest.raises(ValueError, match=r"body\.1\.output in Swin: a grid of 3×6 does not fit"):
        compare_maps(teacher, student, replace(taps[1], side="output", grid=(3, 6)), IMAGE)


def test_a_figure_names_the_layers_that_merge() -> None:
    found = find_resolutions(Swin(2, 2, False), X)
    assert [step.name for step in found.steps] == ["patch", "body.1", "body.3"]
    assert [step.end("output")[1:] for step in found.steps] == [(8, None), (16, (8, 12)), (32, (4, 6))]


# -------------------------------------------------------------------------------------------------------- variants


def test_the_control_has_the_variants_of_the_taps() -> None:
    tap = Tap("0", "output", "3", "output", method=RED(kernel_size=5, gate=False, encoder="depthwise"))
    d = Distillation(cnn(4, 1), cnn(2, 2), [tap], "red-blocks", example=X)
    assert d.terms[0].method == REDBlocks(kernel_size=5, gate=False, encoder="depthwise")
    assert d.blocks[0].options == {"channels": 6, "kernel_size": 5, "gate": False, "encoder": "depthwise"}
    with pytest.raises(ValueError, match=r"two taps want different blocks on 0\.output"):
        Distillation(cnn(4, 1), cnn(2, 2), [tap, replace(tap, method=REDBlocks())], example=X)
    for wrong, message in (("gate=1", "gate=1 is not True"), ("encoder='thin'", "not 'full' or 'depthwise'")):
        with pytest.raises(ValueError, match=message):
            Distillation(cnn(4, 1), cnn(2, 2), [tap], f"red({wrong})")


def test_a_run_keeps_variants_and_grids(tmp_path: Path) -> None:
    class Squares(nn.Module):
        """Patches of a 16×16 image, as B×H×W×C."""

        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mix, self.head = nn.Conv2d(1, 6, 4, 4), Mixer(6), nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.mix(self.patch(x).permute(0, 2, 3, 1)).mean((1, 2)))
            return y

    student, teacher = Squares(), nn.Sequential(nn.Conv2d(1, 6, 4, 4), nn.Flatten(), nn.Linear(96, 10))
    taps = [Tap("mix", "output", "0", "output", channels=6, grid=(4, 4))]
    run = rd.distill_classifier(
        student, teacher, digits(), taps=taps, methods="red(gate=False, encoder='depthwise')",
        recipe=recipe_of("classifier", epochs=1), options=options(tmp_path),
    )  # fmt: skip
    own = {"channels": 6, "kernel_size": 3, "gate": False, "encoder": "depthwise", "grid": [4, 4]}
    [term] = run.params["terms"]
    assert (
        term["grid"] == [4, 4]
        and "teacher_grid" not in term
        and (term["gate"], term["encoder"]) == (False, "depthwise")
    )
    assert run.blocks == [{"layer": "mix", "side": "output", **own}]
    model = rd.load_model(run, student)
    assert isinstance(model.get_submodule("mix.after"), GridBlock)
    assert evaluate(model, digits().test)["accuracy"] == pytest.approx(run.metrics["test_accuracy"])
