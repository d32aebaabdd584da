"""find_resolutions: what descends from the image, gates, heads, skips, padding, tokens, volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lookalikes as look
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill_lib.distill import match_taps
from redistill_lib.models import create_model, example_inputs, list_models, place_names, usual_plan
from redistill_lib.network import MapRef, Resolutions, find_resolutions, map_shapes
from redistill_lib.student import derive_student, find_places

IMAGE = torch.zeros(1, 3, 64, 64)


def conv(i: int, o: int, stride: int = 1, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, stride, kernel // 2)


def changes(found: Resolutions) -> list[tuple[str, int, int, str]]:
    return [(c.module, c.before[0], c.after[0], c.where) for c in found.changes]


class Forward(nn.Module):
    """Modules by name and a forward that is written beside them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **modules: nn.Module):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def test_a_block_and_its_shortcut_are_one_step() -> None:
    net = nn.Sequential(conv(3, 8, 2), nn.ReLU(), nn.MaxPool2d(2), look.ResidualBlock(8, 16, 2))
    found = find_resolutions(net, IMAGE)
    assert changes(found) == [
        ("0", 64, 32, "trunk"), ("2", 32, 16, "trunk"),
        ("3.layer.1.0", 16, 8, "trunk"), ("3.shortcut.0", 16, 8, "skip"),
    ]  # fmt: skip
    table = found.to_frame()
    assert list(table.step) == [0, 1, 2, 2] and list(table.learns) == [True, False, True, True]
    assert list(table.function) == ["conv2d", "max_pool2d", "conv2d", "conv2d"]
    assert [(s.input, s.output, s.learns) for s in found.steps[1:]] == [
        (MapRef("2", "input"), MapRef("2", "output"), False), (MapRef("3", "input"), MapRef("3", "output"), True),
    ]  # fmt: skip


def test_computations_on_weights_are_no_maps() -> None:
    norm = torch.nn.utils.parametrizations.weight_norm

    def net(first: int, second: int) -> nn.Module:
        layers = norm(conv(3, 8, first)), nn.ReLU(), norm(conv(8, 8, second)), nn.ReLU(), norm(conv(8, 8, 2))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 4))

    assert [c.module for c in find_resolutions(net(2, 2), IMAGE).changes] == ["0", "2", "4"]
    taps = match_taps(net(4, 1), net(2, 2), IMAGE)
    assert [str(tap.place) for tap in taps] == ["0.output", "4.input", "4.output"]


def test_branches_that_meet_in_a_module_that_spans_more() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.a(x)
        return net.b(x) + net.c(x)

    def build(a: int, b: int, c: int) -> nn.Module:
        features = Forward(forward, a=conv(3, 8, a), b=conv(8, 8, b), c=conv(8, 8, b))
        return nn.Sequential(features, nn.ReLU(), conv(8, 8, c))

    found = find_resolutions(build(2, 2, 2), IMAGE)
    assert [(str(s.input), str(s.output)) for s in found.steps] == [
        ("None", "0.a.output"), ("0.a.output", "0.output"), ("2.input", "2.output"),
    ]  # fmt: skip
    taps = match_taps(build(4, 2, 1), build(2, 2, 2), IMAGE)
    assert [(str(tap.place), str(tap.source)) for tap in taps] == [
        ("0.a.output", "0.output"), ("0.output", "2.output"),
    ]  # fmt: skip
    assert not any(str(tap.place) == "0.input" for tap in taps)


def test_borders_are_no_changes_however_small_the_map() -> None:
    padded = nn.Sequential(nn.ZeroPad2d(2), nn.Conv2d(8, 8, 5))
    net = nn.Sequential(conv(3, 8, 2), conv(8, 8, 2), conv(8, 8, 2), padded, padded, nn.Conv2d(8, 8, 3))
    found = find_resolutions(net, torch.zeros(1, 3, 32, 32))
    assert [c.module for c in found.changes] == ["0", "1", "2"]
    assert len(match_taps(net, net, torch.zeros(1, 3, 32, 32))) == 5


class Merge(nn.Module):
    """Every 2×2 tokens of a B×H×W×C map become one, by slices or by a reshape."""

    def __init__(self, channels: int, slices: bool):
        super().__init__()
        self.reduction, self.slices = nn.Linear(4 * channels, 2 * channels), slices

    def forward(self, x: Tensor) -> Tensor:
        if self.slices:
            x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        else:
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(x)


@pytest.mark.parametrize("slices", [True, False])
def test_channels_last_and_tokens(slices: bool) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.merge(net.patch(x).permute(0, 2, 3, 1))
        b, h, w, c = x.shape
        x = net.mix(x.reshape(b, h * w, c))
        return net.last(x.transpose(1, 2).reshape(b, c, h, w))

    net = Forward(
        forward, patch=nn.Conv2d(3, 8, 4, 4), merge=Merge(8, slices), mix=nn.Linear(16, 16), last=conv(16, 16, 2)
    )
    found = find_resolutions(net, IMAGE)
    assert list(dict.fromkeys(changes(found))) == [
        ("patch", 64, 16, "trunk"), ("merge", 16, 8, "trunk"),
        ("last", 8, 4, "trunk"),
    ]  # fmt: skip
    assert [place.total for place in find_places(net, IMAGE)] == [4, 8, 16]
    assert [tuple(found) for found in map_shapes(net, IMAGE)] == [
        ("patch", 8, (16, 16), None), ("merge.reduction", 16, (8, 8), (8, 8)), ("merge", 16, (8, 8), (8, 8)),
        ("mix", 16, (8, 8), (8, 8)), ("last", 16, (4, 4), None),
    ]  # fmt: skip
    [_, merging, deep] = found.steps
    assert (merging.input, merging.output) == (MapRef("merge", "input"), MapRef("merge", "output"))
    assert (merging.end("output"), merging.last_in, merging.learns) == ((merging.output, 16, (8, 8)), True, True)
    assert (deep.input, deep.output, deep.last_in, deep.last_out) == (
        MapRef("last", "input"), MapRef("last", "output"), False, False,
    )  # fmt: skip


def gated(pool: nn.Module, up: nn.Module) -> nn.Module:
    return Forward(lambda net, x: x * torch.sigmoid(net.up(net.mix(net.pool(x)))), pool=pool, mix=conv(8, 8), up=up)


@pytest.mark.parametrize("deep", [2, 4])
def test_a_gates_pool_is_no_place(deep: int) -> None:
    gate = gated(nn.MaxPool2d(deep), nn.Upsample(scale_factor=deep))
    net = nn.Sequential(conv(3, 8, 2), gate, conv(8, 8, 2), conv(8, 8, 2))
    assert [(p.name, p.stride) for p in find_places(net, IMAGE)] == [("0", 2), ("2", 2), ("3", 2)]
    assert [c.where for c in find_resolutions(net, IMAGE).changes] == ["trunk", "gate", "gate", "trunk", "trunk"]
    student, moved = derive_student(net, 2, example=IMAGE)
    assert [(c.layer, c.before, c.after) for c in moved] == [("0", 2, 4), ("3", 2, 1)]
    assert student(IMAGE).shape == net(IMAGE).shape


def test_a_gate_whose_pool_no_longer_divides_the_map_pools_less() -> None:
    net = nn.Sequential(
        conv(3, 8, 2), gated(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)), conv(8, 8, 2), conv(8, 8, 2)
    )
    image = torch.zeros(1, 3, 60, 60)  # 30 → 15 in the gate; the student's gate takes 15
    student, moved = derive_student(net, 2, example=image)
    assert [(c.layer, c.after) for c in moved] == [("0", 4), ("1.pool", 1), ("1.up", 1), ("3", 1)]
    assert student(image).shape == net(image).shape


@pytest.mark.parametrize("size", [8, 16])
def test_a_heads_average_is_no_place(size: int) -> None:
    strides = [2, 2] if size == 8 else [2, 1]
    body = [conv(3, 8, strides[0]), nn.ReLU(), conv(8, 8, strides[1])]
    for head in (nn.Conv2d(8, 10, 1), nn.Flatten()):
        net = nn.Sequential(*body, nn.AvgPool2d(size), head)
        image = torch.zeros(1, 3, 32, 32)
        assert [place.stride for place in find_places(net, image)] == [s for s in strides if s > 1]
    half = nn.Sequential(*body, nn.AvgPool2d(size // 2), nn.Conv2d(8, 10, 1), nn.Flatten())
    assert find_resolutions(half, torch.zeros(1, 3, 32, 32)).changes[-1].where == "head"


def test_a_stem_with_a_pool_beside_it_moves_as_one() -> None:
    net = nn.Sequential(
        Forward(lambda net, x: torch.cat([net.conv(x), net.pool(x)], 1), conv=conv(3, 13, 2), pool=nn.MaxPool2d(2)),
        conv(16, 8, 2), conv(8, 8, 2),
    )  # fmt: skip
    assert find_places(net, IMAGE)[0].layers == ("0.conv", "0.pool")
    student, moved = derive_student(net, 2, example=IMAGE)
    assert [(c.layer, c.before, c.after) for c in moved] == [("0.conv", 2, 4), ("0.pool", 2, 4), ("2", 2, 1)]
    assert student(IMAGE).shape == net(IMAGE).shape


def test_a_decoder_that_takes_a_list() -> None:
    def decode(net: Any, maps: list[Tensor]) -> Tensor:
        return net.out(torch.cat([net.up(maps[1]), maps[0]], 1))

    def forward(net: Any, x: Tensor) -> Tensor:
        first = net.first(x)
        return net.decoder([first, net.second(first)])

    def build(a: int, b: int) -> nn.Module:
        up = nn.ConvTranspose2d(8, 8, b, b)
        decoder = Forward(decode, up=up, out=nn.ConvTranspose2d(16, 3, a, a))
        return Forward(forward, first=conv(3, 8, a), second=conv(8, 8, b), decoder=decoder)

    taps = match_taps(build(4, 2), build(4, 2), IMAGE)
    assert [str(t.place) for t in taps] == [
        "first.output", "second.input", "second.output", "decoder.up.input", "decoder.up.output", "decoder.out.input",
    ]  # fmt: skip


def test_functions_that_a_forward_calls_itself_are_steps_with_their_line() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.second(F.max_pool2d(net.first(x), 2))[:, :, ::2, ::2]

    found = find_resolutions(Forward(forward, first=conv(3, 8, 2), second=conv(8, 8)), IMAGE)
    assert [(c.module, c.function, c.after[0]) for c in found.changes] == [
        ("first", "conv2d", 32), ("", "max_pool2d", 16), ("", "__getitem__", 8),
    ]  # fmt: skip
    assert found.changes[1].line.startswith("test_resolution.py:") and found.changes[1].line.endswith("in forward")
    assert [(str(s.input), str(s.output)) for s in found.steps[1:]] == [
        ("first.output", "second.input"), ("second.output", "None"),
    ]  # fmt: skip


def test_volumes_named_inputs_and_stored_images() -> None:
    net = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool3d(2))
    assert [c.after for c in find_resolutions(net, torch.zeros(1, 1, 16, 32, 32)).changes] == [(8, 16, 16), (4, 8, 8)]

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = conv(3, 8, 2)

        def forward(self, *, scale: float, pixels: Tensor) -> dict[str, Tensor]:
            return {"maps": self.body(pixels.float() / 255 * scale)}

    stored = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    assert [c.module for c in find_resolutions(Named(), {"scale": 2.0, "pixels": stored}).changes] == ["body"]
    with pytest.raises(ValueError, match="example is a batch of images"):
        find_resolutions(net, {"x": torch.zeros(3)})


def test_maps_that_only_weigh_tokens_are_gates() -> None:
    """Attention whose keys and values come from a shrunken map."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.patch(x)
        tokens, few = x.flatten(2).transpose(1, 2), net.shrink(x).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, few, few)
        return net.last(mixed.transpose(1, 2).reshape(x.shape))

    net = Forward(forward, patch=nn.Conv2d(3, 8, 4, 4), shrink=nn.Conv2d(8, 8, 4, 4), last=conv(8, 8, 2))
    assert [(c.module, c.where) for c in find_resolutions(net, IMAGE).changes] == [
        ("patch", "trunk"), ("shrink", "gate"), ("last", "trunk"),
    ]  # fmt: skip
    student, _ = derive_student(net, 2, example=IMAGE)
    assert student(IMAGE).shape == net(IMAGE).shape


@pytest.mark.parametrize("name", list_models())
def test_built_in_networks_name_the_places_of_the_record(name: str) -> None:
    """What a reader calls a place is a module around the layers that stride there."""
    with torch.device("meta"):
        network = create_model(name)
    found = {place.name: place.stride for place in find_places(network, example_inputs(name, 64))}
    plan, names = usual_plan(name), place_names(name)
    stated = {called: stride for called, stride in zip(names, plan.places, strict=True) if stride > 1}
    moved = {layer: stride for layer, stride in found.items() if stride > 1}
    assert list(moved.values()) == list(stated.values())
    assert all(layer.startswith(called) for layer, called in zip(moved, stated, strict=True))


def test_a_gate_from_above_weighs_what_comes_up() -> None:
    """Of two maps that are multiplied the squashed one is the gate, though the other comes from further down."""

    def forward(net: Any, x: Tensor) -> Tensor:
        high = net.high(x)
        return net.up(net.low(high)) * torch.sigmoid(net.mix(high))

    up = nn.Upsample(scale_factor=2)
    net = Forward(forward, high=conv(3, 8, 2), low=conv(8, 8, 2), up=up, mix=conv(8, 8))
    assert [(c.module, c.where) for c in find_resolutions(net, IMAGE).changes] == [
        ("high", "trunk"), ("low", "trunk"), ("up", "trunk"),
    ]  # fmt: skip
    assert [place.name for place in find_places(net, IMAGE)] == ["high", "low"]


def test_a_mask_on_the_image_is_no_gate() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(net.up(net.low(net.stem(x)))) * x

    up = nn.ConvTranspose2d(8, 3, 4, 4)
    net = Forward(forward, stem=conv(3, 8, 2), low=conv(8, 8, 2), up=up)
    assert {c.where for c in find_resolutions(net, IMAGE).changes} == {"trunk"}
    student, _ = derive_student(net, 2, example=IMAGE)
    assert student(IMAGE).shape == IMAGE.shape
