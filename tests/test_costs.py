"""What blocks cost, against networks in which they really stand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import redistill_lib as rd
from redistill_lib.costs import TapCost, warn_of_costs
from redistill_lib.memory.splice import find_spot
from redistill_lib.memory.trace import trace
from redistill_lib.methods import RED, Shape, Weighted
from redistill_lib.red import insert_blocks, make_in_place
from redistill_lib.train import setup

X = torch.zeros(1, 3, 64, 64)


class Inverted(nn.Module):
    """A narrow map, widened, filtered by depth, narrowed."""

    def __init__(self, narrow: int, out: int, stride: int):
        super().__init__()
        wide = 4 * narrow
        self.widen = nn.Sequential(nn.Conv2d(narrow, wide, 1), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True))
        self.filter = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide), nn.ReLU6(inplace=True))
        self.narrow = nn.Conv2d(wide, out, 1)
        self.adds = stride == 1 and narrow == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.narrow(self.filter(self.widen(x)))
        return x + y if self.adds else y


def mobile(*strides: int, channels: int = 3, classes: int = 6) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(channels, 8, 3, strides[0], 1), nn.ReLU6())
    blocks = [Inverted(8, 8, 1), *(Inverted(8, 8, stride) for stride in strides[1:])]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def measured(student: nn.Module, taps: list[rd.Tap], inputs: tuple[Any, ...], in_place: bool) -> tuple[int, int, int]:
    places = {tap.place: tap.block(tap.method or RED()) for tap in taps}
    model = insert_blocks(copy.deepcopy(student), [(*place, block) for place, block in places.items()])
    if in_place:
        model, _ = make_in_place(model, *inputs)
    profile = rd.profile_memory(model, *inputs, dtype="int8")
    return profile.peak_bytes, profile.flops, profile.weight_count


def found(row: TapCost, in_place: bool) -> tuple[int, int, int]:
    cost = row.in_place if in_place else row.published
    return cost.peak_bytes, cost.flops, cost.parameters


def networks(name: str) -> tuple[nn.Module, nn.Module, tuple[Any, ...]]:
    if name == "own":
        return mobile(4, 1, 2), mobile(2, 2, 2), (X,)
    student = rd.create_model(rd.student_name(name, 2), **({"ch": 32} if "unet" in name else {}))
    return student, rd.create_model(name, **({"ch": 32} if "unet" in name else {})), rd.example_inputs(name, 64)


@pytest.mark.parametrize("name", ["own", "resnext18-1-21222", "resnet50", "mobilenetv3_small", "unet"])
def test_costs_are_those_of_networks_with_blocks(name: str) -> None:
    student, teacher, inputs = networks(name)
    taps = rd.match_taps(student, teacher, inputs)
    costs = rd.tap_costs(student, teacher, taps, inputs, dtype="int8")
    assert [row.tap for row in costs.rows] == [*(tap.name for tap in taps), "all"]
    assert found(costs.rows[-1], False) == measured(student, taps, inputs, False)
    assert found(costs.rows[-1], True) == measured(student, taps, inputs, True)
    for k in (0, len(taps) - 1):
        assert found(costs.rows[k], False) == measured(student, [taps[k]], inputs, False)
    assert costs.rows[-1].published.peak_bytes >= max(row.published.peak_bytes for row in costs.rows)
    own = rd.profile_memory(student, *inputs, dtype="int8")
    assert (costs.student.peak_bytes, costs.student.flops) == (own.peak_bytes, own.flops)
    assert costs.teacher.peak_bytes == rd.profile_memory(teacher, *inputs, dtype="int8").peak_bytes


class Shuffling(nn.Module):
    """Its map is a view of what was made in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Reading(nn.Sequential):
    """It takes a view, and inside makes a map of the very shape."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[1](self[0](x))
        return y + x


def test_blocks_behind_and_before_a_shuffle_of_channels() -> None:
    inside = Reading(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    student = nn.Sequential(Shuffling(), inside, nn.Conv2d(8, 4, 3, padding=1))
    taps = [rd.Tap("0", "output", "0", "output", channels=8), rd.Tap("1", "input", "1", "input", channels=8)]
    for some in ([taps[0]], [taps[1]], taps):
        costs = rd.tap_costs(student, student, some, X, dtype="int8")
        for in_place in (False, True):
            assert found(costs.rows[-1], in_place) == measured(student, some, (X,), in_place)


@pytest.mark.parametrize("kernel", [1, 5])
def test_blocks_of_other_kernels(kernel: int) -> None:
    student = mobile(4, 1, 2)
    taps = [rd.Tap("2", side, "2", side, method=RED(kernel_size=kernel), channels=8) for side in ("input", "output")]  # type: ignore[arg-type]
    costs = rd.tap_costs(student, mobile(2, 2, 2), taps, X, dtype="int8")
    for in_place in (False, True):
        assert found(costs.rows[-1], in_place) == measured(student, taps, (X,), in_place)


def test_blocks_on_nested_layers_and_both_sides() -> None:
    student = mobile(4, 1, 2)
    places = [("2", "input"), ("2.widen", "input"), ("2", "output"), ("2.narrow", "output"), ("2.filter.0", "output")]
    taps = [rd.Tap(*place, "2", "output", channels=32 if "filter" in place[0] else 8) for place in places]  # type: ignore[arg-type]
    for order in (taps, taps[::-1]):
        costs = rd.tap_costs(student, mobile(2, 2, 2), order, X, dtype="int8")
        for in_place in (False, True):
            assert found(costs.rows[-1], in_place) == measured(student, order, (X,), in_place)


def test_a_map_that_something_else_reads_is_not_overwritten() -> None:
    """The input of a block's first layer is kept for the shortcut around the block; the block's own input is not."""
    student, passed = mobile(4, 1, 2), trace(mobile(4, 1, 2), X)
    assert not find_spot(passed, "1.widen", "input").free and find_spot(passed, "1", "input").free
    assert not find_spot(passed, "0", "input").free  # the image is the caller's
    taps = [rd.Tap("1.widen", "input", "1", "input", channels=8)]
    costs = rd.tap_costs(student, mobile(2, 2, 2), taps, X, dtype="int8").rows[-1]
    assert found(costs, True) == found(costs, False) == measured(student, taps, (X,), False)


def test_several_choices_are_told_side_by_side() -> None:
    """One block on the wide map: 10·32² weights and more, where the whole student has fewer; on the narrow, 10·8²."""
    student, teacher = mobile(4, 1, 1), mobile(2, 2, 1)
    wide = [rd.Tap("2.filter.0", "output", "2.filter.0", "output", channels=32)]
    narrow = [rd.Tap("1", "output", "2", "output", channels=8)]
    costs = rd.tap_costs(student, teacher, {"wide": wide, "narrow": narrow}, X)
    frame = costs.to_frame()
    assert list(frame["taps"]) == ["wide", "wide", "narrow", "narrow"] and list(frame["map"][:2]) == ["32×16×16", ""]
    assert list(frame["+ parameters (k)"]) == [10.432] * 2 + [0.688] * 2
    assert list(frame["+ mult-adds (M)"]) == [10 * 32 * 32 * 256 / 1e6] * 2 + [10 * 8 * 8 * 256 / 1e6] * 2
    assert [row.tap for row in costs.costly] == ["2.filter.0.output"]
    assert costs.costly[0].reasons == ("multiply-adds", "parameters", "peak")
    first, second = str(costs).splitlines()
    # Wide maps of 32 KiB, two without and three with the block, beside the narrow one of 8 that the sum waits for.
    assert "take the student's peak from 72.0 KiB to 104 KiB (in place 72.0 KiB)" in first
    assert first.startswith("wide: RED blocks at 1 tap ")
    assert "costing more than the network itself: 2.filter.0.output (multiply-adds, parameters, peak)" in first
    assert second.startswith("narrow: ") and "more than" not in second


def test_left_out_the_papers_taps_and_the_narrow_ones_are_compared() -> None:
    student, teacher = mobile(4, 1, 2), mobile(2, 2, 2)
    costs = rd.tap_costs(student, teacher, example=X)
    wide, narrow = (row for row in costs.rows if row.tap == "all")
    assert (wide.taps, narrow.taps) == ("paper", "narrow") and "multiply-adds" in wide.reasons
    assert narrow.published.flops < wide.published.flops and narrow.published.peak_bytes <= wide.published.peak_bytes
    for row, taps in ((wide, False), (narrow, True)):
        matched = rd.match_taps(student, teacher, X, narrow=taps)
        assert row.published.parameters - costs.student.parameters == sum(
            10 * tap.channels**2 + 6 * tap.channels for tap in matched if tap.channels
        )


@dataclass(frozen=True)
class Halving(Weighted):
    name = "halving"
    alpha: float = 1.0

    def block(self, student: Shape) -> nn.Module:
        return nn.MaxPool2d(2)

    def loss(self, student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
        return student.mean()


@pytest.mark.parametrize(
    ("tap", "error", "message"),
    [
        (("5", "output"), ValueError, "costs is not known: no operator there has its map"),
        (("2.widn", "output"), KeyError, "the student has no layer '2.widn'; did you mean '2.widen"),
        (("2", "output", Halving()), ValueError, "the block on 2.output changes the shape of its map"),
    ],
)
def test_taps_where_no_block_can_stand(tap: Any, error: type[Exception], message: str) -> None:
    layer, side, *method = tap
    taps = [rd.Tap(layer, side, "2", "output", method=method[0] if method else None)]
    with pytest.raises(error, match=message):
        rd.tap_costs(mobile(4, 1, 2), mobile(2, 2, 2), taps, X)


def test_inputs_that_do_not_fit() -> None:
    taps = [rd.Tap("2", "output", "2", "output", channels=8)]
    with pytest.raises(ValueError, match="the student does not take images of 1×64×64: Given groups"):
        rd.tap_costs(mobile(4, 1), mobile(2, 2), taps, X[:, :1])


def test_a_warning_names_what_blocks_cost_more_than_and_none_is_given_without_cause() -> None:
    student = mobile(4, 1, 1)
    with pytest.warns(
        UserWarning, match=r"multiply-adds 0\.\d+ M → 3\.\d+ M, parameters .*narrow=True\) may find cheaper"
    ):
        warn_of_costs(student, [rd.Tap("2.filter.0", "output", "2", "output", channels=32)], (X,))
    warn_of_costs(student, [rd.Tap("1", "output", "2", "output", channels=8)], (X,))  # warnings are errors here
    warn_of_costs(student, [rd.Tap("5", "output", "2", "output")], (X,))


def test_a_training_warns_of_matched_taps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "fit", lambda distillation, *_: distillation)
    data, kinds = rd.load_data("digits", image_size=32), {"channels": 1, "classes": 10}
    student, teacher = mobile(4, 1, 2, **kinds), mobile(2, 2, 2, **kinds)
    with pytest.warns(UserWarning, match="RED blocks cost more than the student around them") as told:
        rd.distill_classifier(student, teacher, data)
    assert len(told) == 1 and told[0].filename == __file__
    rd.distill_classifier(student, teacher, data, methods="kd")  # which has no blocks; warnings are errors here
    rd.distill_classifier(student, teacher, data, taps=rd.match_taps(student, teacher, torch.zeros(1, 1, 32, 32)))
