from __future__ import annotations

import dataclasses
import re

import pytest

from redistill_lib.plans import StridePlan


@pytest.mark.parametrize("text", ["1-21222", "4-11221", "8-11211", "16-111", "2-121211211111211", "1-1", "16"])
def test_text_round_trips(text: str) -> None:
    assert str(StridePlan.parse(text)) == text


def test_parts_and_total() -> None:
    plan = StridePlan.parse("16-1241")
    assert (plan.stem, plan.stages, plan.places, plan.total) == (16, (1, 2, 4, 1), (16, 1, 2, 4, 1), 128)


def test_is_a_frozen_value() -> None:
    plan = StridePlan(4, [1, 1])  # type: ignore[arg-type]
    assert plan == StridePlan.parse("4-11")
    assert hash(plan) == hash(StridePlan.parse("4-11"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.stem = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnext18-4-11221", "is a model name; its stride plan alone is '4-11221'"),
        ("mobilenetv3_small-4-22", "is a model name; its stride plan alone is '4-22'"),
        ("4-1122x", "contains 'x'"),
        ("4-112-21", "contains '-'"),
        ("4-11 21", "contains ' '"),
        ("4-1²", "contains '²'"),
        ("-4-11", "lacks its stem"),
        ("4-10221", "has a 0 at its stage 2"),
        ("0-11221", "has a 0 at its stem"),
        ("04-11221", "has a 0 at its stem"),
        ("411221", "lacks its stem or its stages"),
        ("0", "has a 0 at its stem"),
        ("4-", "lacks its stem or its stages"),
        ("", "lacks its stem or its stages"),
    ],
)
def test_parse_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        StridePlan.parse(text)


@pytest.mark.parametrize(
    ("stem", "stages", "message"),
    [
        (0, (1, 1), "Stride 0 of place 0"),
        (4, (1, -2), "Stride -2 of place 2"),
        (4, (1, 2.0), "Stride 2.0 of place 2"),
        (True, (1,), "Stride True of place 0"),
        (4, (1, 16), "Stride 16 of place 2 is above 9"),
    ],
)
def test_illegal_strides(stem: int, stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StridePlan(stem, stages)


@pytest.mark.parametrize(
    ("teacher", "factor", "first", "student"),
    [
        ("1-21222", 2, (), "2-21221"),
        ("1-21222", 4, (1,), "4-11221"),
        ("1-21222", 8, (1,), "8-11211"),
        ("2-21222", 4, (1,), "8-11221"),
        ("1-1222121", 4, (), "4-1221111"),
        ("1-1222121", 8, (), "8-1211111"),
        ("1-22121111211", 4, (), "4-22111111111"),
        ("1-21222", 1, (1,), "1-21222"),
        ("1-41412", 4, (), "4-41211"),  # a stride of 4 gives back half of itself
        ("1-21222", 4, (4, 3), "4-21112"),  # `first` in the order given
        ("1-21222", 16, (), "16-11111"),
    ],
)
def test_front_loaded(teacher: str, factor: int, first: tuple[int, ...], student: str) -> None:
    plan = StridePlan.parse(teacher)
    loaded = plan.front_loaded(factor, first=first)
    assert str(loaded) == student
    assert loaded.total == plan.total


def test_front_loaded_without_enough_stride() -> None:
    with pytest.raises(ValueError, match=r"Plan 1-1221 cannot be front-loaded ×8.*give back only ×4"):
        StridePlan.parse("1-1221").front_loaded(8)


@pytest.mark.parametrize("factor", [0, -2, 3, 6, 2.0])
def test_front_loaded_factor(factor: int) -> None:
    with pytest.raises(ValueError, match="is not a power of two"):
        StridePlan.parse("1-222").front_loaded(factor)


@pytest.mark.parametrize("first", [(0,), (4,), (-1,)])
def test_front_loaded_first_must_be_later_places(first: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="choose from 1 to 3"):
        StridePlan.parse("1-222").front_loaded(2, first=first)
