"""Reaching a network's tensors: where a layer is, its maps in odd networks, its main output, and leaving no trace."""

from __future__ import annotations

import threading
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.models import create_model
from redistill_lib.network import (
    MapRef,
    check_followable,
    evaluating,
    find_layer,
    locate,
    output_of,
    reading,
    record_maps,
    run_and_read,
)
from redistill_lib.red import RedBlock, insert_blocks

X = torch.zeros(1, 1, 2, 2)


class Aliased(nn.Module):
    """A layer under two names, as wrappers around pretrained encoders have it."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 4, 3, stride, 1), nn.BatchNorm2d(4))
        self.first = self.base[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.base[1](self.first(x))


def test_a_layer_with_two_names_is_one_layer() -> None:
    assert find_layer(Aliased(), "first") == "base.0"
    maps = record_maps(Aliased(), [("first", "output")], torch.zeros(1, 3, 8, 8))
    assert maps["base.0", "output"].shape == (1, 4, 4, 4)


def test_find_layer() -> None:
    net = create_model("resnet18", width=0.25)
    assert find_layer(net, "net.layer3.0") == "layer3.0"
    with pytest.raises(KeyError, match=r"the student has no layer 'layer3.O'; did you mean .*'layer3.0'"):
        find_layer(net, "layer3.O", "student")


def test_locate_in_bare_blocked_and_nested_networks() -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 4, 1))

    def places(layer: str) -> tuple[str, str]:
        return str(locate(net, MapRef(layer, "input"))), str(locate(net, MapRef(layer, "output")))

    assert places("0.0") == ("0.0.input", "0.0.output") and places("") == ("network.input", "network.output")
    insert_blocks(net, [("0.0", "output", RedBlock(4)), ("0", "input", RedBlock(3))])
    assert places("0") == ("0.layer.input", "0.output")
    assert places("0.0") == ("0.layer.0.layer.input", "0.layer.0.output")
    insert_blocks(net, [("0.0", "input", RedBlock(3))])  # a block beside the one that is there
    assert places("0.0") == ("0.layer.0.layer.layer.input", "0.layer.0.output")
    assert places("0.1") == ("0.layer.1.input", "0.layer.1.output") and places("1") == ("1.input", "1.output")
    with pytest.raises(KeyError, match=r"the teacher has no layer '0\.before.logit.9'"):
        locate(net, MapRef("0.before.logit.9", "input"), "teacher")


def test_record_maps_at_blocks() -> None:
    """An input is what the layer gets from the block before it, an output what the block behind it gives."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(2, 3, 1)).eval(), torch.rand(2, 2, 4, 4)
    before, after = RedBlock(2), RedBlock(3)
    insert_blocks(net, [("0", "input", before), ("0", "output", after)])
    maps = record_maps(net, [("0", "input"), ("0", "output"), ("", "input"), ("", "output")], x)
    assert torch.equal(maps["0", "input"], before(x)) and torch.equal(maps["", "input"], x)
    assert torch.equal(maps["0", "output"], after(net[0].layer(before(x))))
    assert torch.equal(maps["", "output"], maps["0", "output"])


def test_record_maps_keeps_modes_and_what_is_changed_in_place_later() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(inplace=True))
    maps = record_maps(net, [("0", "output"), ("1", "input")], torch.full((1, 1, 2, 2), -1.0))
    assert maps["0", "output"].max() < 0 and maps["1", "input"].max() < 0
    assert net.training and net[0].num_batches_tracked == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


class ByKeyword(nn.Module):
    """Its layers are called by keyword, in an order of the network's own."""

    class Scale(nn.Module):
        def forward(self, hidden: Tensor, factor: float = 1.0) -> Tensor:
            return hidden * factor

    class KeywordOnly(nn.Module):
        def forward(self, *, x: Tensor) -> tuple[Tensor, str]:
            return x, "more"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.only, self.unused = (
            nn.Conv2d(1, 2, 1),
            self.Scale(),
            self.KeywordOnly(),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x=self.scale(factor=3.0, hidden=self.conv(input=x)))[0]


def test_layers_called_by_keyword() -> None:
    net = ByKeyword().eval()
    x = torch.rand(1, 1, 2, 2)
    maps = record_maps(net, [("conv", "input"), ("scale", "input"), ("only", "output")], x)
    assert torch.equal(maps["conv", "input"], x) and torch.equal(maps["scale", "input"] * 3, maps["only", "output"])
    before, after = RedBlock(1).eval(), RedBlock(2).eval()
    insert_blocks(net, [("conv", "input", before), ("scale", "output", after)])
    torch.testing.assert_close(net(x), after(net.conv.layer(before(x)) * 3))


def test_odd_layers_are_named() -> None:
    with pytest.raises(TypeError, match="the first argument of 'only' is not a tensor"):
        record_maps(ByKeyword(), [("only", "input")], X)
    with pytest.raises(RuntimeError, match=r"the network's forward pass never reached unused.output$"):
        record_maps(ByKeyword(), [("unused", "output")], X)
    twice = nn.Sequential(conv := nn.Conv2d(1, 1, 1), conv)
    with pytest.raises(RuntimeError, match="network layer '0' runs more than once per pass; choose a layer around"):
        record_maps(twice, [("0", "output")], X)
    pair = insert_blocks(nn.Sequential(nn.GRU(2, 2)), [("0", "output", RedBlock(2))])
    with pytest.raises(
        TypeError, match="a block stands on a layer that returns several tensors; tap a layer inside it"
    ):
        pair(torch.zeros(1, 1, 2))


def test_reading_sees_this_thread_alone_and_leaves() -> None:
    net, seen = nn.Sequential(nn.ReLU()), list[float]()
    with reading(net, {MapRef("0", "output"): lambda x: seen.append(x.item())}):
        other = threading.Thread(target=net, args=(torch.tensor(1.0),))
        other.start()
        other.join()
        net(torch.tensor(2.0))
    net(torch.tensor(3.0))
    assert seen == [2.0]


def test_stopping_early_ends_the_pass_at_the_last_map() -> None:
    ran: list[int] = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(1)
            return x + 1

    net = nn.Sequential(*(Count() for _ in range(4)))
    places = {ref: ref for ref in (MapRef("0", "input"), MapRef("2", "input"))}
    outputs, maps = run_and_read(net, places, [X], stop_early=True)
    assert outputs is None and len(ran) == 2 and [m.flatten()[0].item() for m in maps.values()] == [0, 2]
    outputs, maps = run_and_read(net, {**places, MapRef("", "output"): MapRef("", "output")}, [X], stop_early=True)
    assert len(ran) == 6 and torch.equal(outputs, maps["", "output"])


@dataclass
class Result:
    logits: Tensor
    hidden: Any = None


Named = namedtuple("Named", ["aux", "logits"])
Y = torch.arange(3.0)


@pytest.mark.parametrize(
    "outputs",
    [Y, (Y, None), [Y], Result(Y), Named(None, Y), {"logits": Y, "loss": None}, {"loss": X, "sample": Y}, {"out": Y}],
    ids=lambda o: type(o).__name__,
)
def test_the_main_output(outputs: Any) -> None:
    assert output_of(outputs) is Y


@pytest.mark.parametrize(
    ("outputs", "named"),
    [
        ({"scores": Y, "boxes": Y}, "a dict with scores, boxes"),
        (None, "a NoneType"),
        ((), "a tuple"),
        (Result(None), "a Result"),  # type: ignore[arg-type]
        (("a", Y), "a tuple"),
    ],
)
def test_outputs_without_a_main_tensor_are_named(outputs: Any, named: str) -> None:
    with pytest.raises(
        TypeError, match=f"the critic returns {named}, in which no main tensor .* named logits, sample"
    ):
        output_of(outputs, "the critic")


def test_evaluating_restores_modes_after_an_error() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Dropout())
    net[1].eval()
    with pytest.raises(RuntimeError, match="inside"), evaluating(net):
        assert not net.training and not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert net.training and net[0].training and not net[1].training


@pytest.mark.parametrize("how", ["whole", "part", "in place", "part in place"])
def test_compiled_networks_cannot_be_followed(how: str) -> None:
    net: Any = nn.Sequential(nn.ReLU(), nn.ReLU())
    check_followable(net, "student")
    if how == "whole":
        net = torch.compile(net, backend="eager")
    elif how == "part":
        net[1] = torch.compile(net[1], backend="eager")
    else:
        (net if how == "in place" else net[0]).compile(backend="eager")
    with pytest.raises(ValueError, match=r"the student's feature maps cannot be read; it is compiled, so give"):
        check_followable(net, "student")
