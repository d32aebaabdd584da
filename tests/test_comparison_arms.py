"""Ways to one peak: against profiles made one by one, and against a search of every plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import redistill_lib as rd
from redistill_lib.comparison import Arm, ArmsAtPeak, Way, arms_at_peak
from redistill_lib.methods import KD, RED
from redistill_lib.red import RedBlock, insert_blocks, make_in_place

TEACHER, X, KIB = "resnet18-1-21222", torch.zeros(1, 1, 40, 40), 1024


@pytest.fixture(scope="module")
def found() -> ArmsAtPeak:
    return arms_at_peak(TEACHER, "19200B", X, width=0.25)


def build(way: Way) -> Any:
    return rd.create_model(f"resnet18-{way.plan}", in_channels=1, width=way.width)


def images(way: Way) -> torch.Tensor:
    return torch.zeros(1, 1, way.image_size, way.image_size)


# ------------------------------------------------------------------------------------------------------- one peak


def test_pooled_early_or_narrow_and_pooled_late_need_the_same() -> None:
    """Three maps of 16 × 10 × 10 in the first stage, or the image and 8 × 20 × 20 behind the stem."""
    assert 3 * 16 * 10 * 10 * 4 == (40 * 40 + 8 * 20 * 20) * 4 == 18.75 * KIB
    for plan, width in (("4-11221", 0.25), ("2-21222", 0.125)):
        network = rd.create_model(f"resnet18-{plan}", in_channels=1, width=width)
        assert rd.profile_memory(network, X).peak_bytes == 18.75 * KIB


def test_each_way_is_what_its_profile_says(found: ArmsAtPeak) -> None:
    assert {(way.width, way.image_size) for way in found.fits} == {(0.25, 40), (0.125, 40), (0.25, 15)}
    for way in (found.teacher, *found.fits):
        profile = rd.profile_memory(build(way), images(way))
        assert (way.plain.peak_bytes, way.plain.flops) == (profile.peak_bytes, profile.flops)
        assert (way.plain.parameters, way.plain.weight_bytes) == (profile.weight_count, profile.weight_bytes)
        assert way is found.teacher or profile.peak_bytes <= 19200
    flops = [way.plain.flops for way in found.fits]
    assert flops == sorted(flops, reverse=True)


def test_blocks_are_those_that_stand_in_the_student_of_this_teacher(found: ArmsAtPeak) -> None:
    assert [way.image_size == 40 for way in found.fits] == [way.published is not None for way in found.fits]
    for way in (way for way in found.fits if way.published):
        taps = rd.match_taps(build(way), build(found.teacher), X)
        red = insert_blocks(build(way), [(*tap.place, RedBlock(tap.channels or 0)) for tap in taps]).eval()
        profile, in_place = rd.profile_memory(red, X), rd.profile_memory(make_in_place(red, X)[0], X)
        assert way.published and (way.published.peak_bytes, way.published.flops) == (
            profile.peak_bytes,
            profile.flops,
        )
        assert way.in_place and way.in_place.peak_bytes == in_place.peak_bytes
        assert way.published.parameters == profile.weight_count


def test_smaller_images_are_the_largest_on_which_the_teacher_fits(found: ArmsAtPeak) -> None:
    teacher = build(found.teacher)
    fits = [s for s in range(8, 40) if rd.profile_memory(teacher, torch.zeros(1, 1, s, s)).peak_bytes <= 19200]
    own = next(way for way in found.fits if way.why == "the teacher's own plan")
    assert (own.plan, own.width, own.image_size) == ("1-21222", 0.25, max(fits))


def test_the_latest_plan_is_that_of_a_search_of_every_plan() -> None:
    x = torch.zeros(1, 3, 64, 64)
    every = rd.fit_to_budget("resnet18", "160KB", x, dtypes="fp32")
    for peak in (64, 96, 160, 320):
        best = replace(every, budget_bytes=peak * KIB).fits_with("none")[0]
        ways = arms_at_peak("resnet18", peak * KIB, x, widths=[1], image_sizes=[64], blocks="none").fits
        assert (ways[0].plan, ways[0].plain) == (best.plan, best.plain)
    with_red = every.fits[0]
    ways = arms_at_peak("resnet18", "160KB", x, widths=[1], image_sizes=[64]).fits
    taught = [way for way in ways if way.peak("published") <= 160 * KIB]
    assert (taught[0].plan, taught[0].published) == (with_red.plan, with_red.published)
    assert ways[0].plan != taught[0].plan  # so that both are there


def test_no_way_is_less_than_another_of_its_kind(found: ArmsAtPeak) -> None:
    sizes = arms_at_peak(TEACHER, "19200B", X, width=0.25, image_sizes=[20, 10])
    assert {way.image_size for way in sizes.fits} == {20, 10} and len(sizes.fits) > 3
    for ways in (found.fits, sizes.fits):
        assert not any(o.why == way.why and o != way and o.later(way) for way in ways for o in ways)
    own = [(way.width, way.image_size) for way in sizes.fits if way.why == "the teacher's own plan"]
    assert own == [(0.25, 10), (0.125, 20)]  # of 31.3, 15.6, 7.8 and 3.9 KiB, by width and then size


def test_the_teachers_own_plan_is_there_where_it_fits() -> None:
    x = torch.zeros(1, 3, 64, 64)
    itself = arms_at_peak("resnet18", "10MB", x, widths=[1], image_sizes=[64])
    assert itself.teacher.plain in [way.plain for way in itself.fits if way.why == "the teacher's own plan"]
    narrow = arms_at_peak("resnet18", "100KB", x, widths=[0.125], image_sizes=[64]).fits
    own = next(way for way in narrow if way.why == "the teacher's own plan")
    assert (own.plan, own.plain.peak_bytes) == ("2-21222", (3 * 64 * 64 + 8 * 32 * 32) * 4)
    taps = rd.match_taps(rd.create_model("resnet18", width=0.125), rd.create_model("resnet18"), x)
    assert taps and own.published and own.published.flops > own.plain.flops  # a wider network can teach it


def test_the_papers_student_is_there(found: ArmsAtPeak) -> None:
    assert found.to_frame()["why"]["4-11221 ×0.25"] == "the paper's ×4 student"


def test_a_table_of_shares(found: ArmsAtPeak) -> None:
    frame = found.to_frame()
    assert list(frame.index) == list(found.arms()) and len(frame) == len(found.fits)
    row = frame.loc["4-11221 ×0.25"]
    assert row["peak (KiB)"] == 18.75 and row["peak ÷ teacher"] == 19200 / (20 * 20 * 16 * 4 * 5)
    assert row["parameters ÷ teacher"] == 1 and 0 < row["mult-adds ÷ teacher"] < 1
    assert "from resnet18-1-21222 ×0.25 (125 KiB) to 18.8 KiB" in str(found)
    assert "arena (KiB)" not in frame
    planned = arms_at_peak(TEACHER, "24KB", X, width=0.25, image_sizes=[40], convention="executorch")
    assert (planned.to_frame()["arena (KiB)"] <= 24).all() and "under executorch" in str(planned)


def test_where_nothing_fits_the_nearest_is_named() -> None:
    nothing = arms_at_peak(TEACHER, "1KB", X, width=0.25, image_sizes=[40])
    assert nothing.fits == () and nothing.arms() == {} and nothing.to_frame().empty
    assert nothing.closest.width == 0.125 and nothing.closest.plain.peak_bytes > 1024
    assert f"fits 1.0 KiB: {nothing.key(nothing.closest)} needs" in str(nothing)


def test_patches_of_a_transformer() -> None:
    found = arms_at_peak("vit_pico", "100KB", torch.zeros(1, 3, 64, 64), widths=[1], image_sizes=[64, 32])
    assert found.fits and found.arms("red") == {} and found.arms("kd")
    for way in found.fits:
        network = rd.create_model(f"vit_pico-{way.plan}", image_size=way.image_size)
        assert rd.profile_memory(network, torch.zeros(1, 3, *[way.image_size] * 2)).peak_bytes == way.plain.peak_bytes


def test_a_network_of_ones_own_pools_in_other_places() -> None:
    """Three maps of 16 channels, or of 8, and four plans, each profiled by itself."""
    layers = [nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1)]
    own = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    plans = {"1-22": own} | {p: rd.derive_student(own, plan=p, example=X)[0] for p in ("2-12", "2-21", "4-11")}
    needs = {plan: rd.profile_memory(network, X) for plan, network in plans.items()}
    peak = needs["2-12"].peak_bytes
    assert needs["4-11"].peak_bytes <= needs["2-21"].peak_bytes <= peak < needs["1-22"].peak_bytes
    ways = arms_at_peak(own, peak, X)
    assert ways.teacher.plain.peak_bytes == needs["1-22"].peak_bytes and "1-22" not in ways.arms()
    for way in ways.fits:
        assert (way.plain.peak_bytes, way.plain.flops) == (needs[way.plan].peak_bytes, needs[way.plan].flops)
    most = max((needs[plan].flops, plan) for plan in plans if needs[plan].peak_bytes <= peak)[1]
    assert next(iter(ways.arms())) == ways.key(ways.fits[0]) == most
    model: Any = ways.arms()[most].model
    assert rd.profile_memory(model, X).peak_bytes == needs[most].peak_bytes
    assert torch.equal(model[-1].weight, own[-1].weight)
    for name, arm in ways.arms("red").items():
        taught = next(way for way in ways.fits if f"{way.plan} with red" == name)
        assert arm.taught and taught.published and taught.published.peak_bytes <= peak
    assert str(arms_at_peak(own, "64B", X)).endswith("; try smaller images or a narrower network")
    whole = arms_at_peak(own, "1MB", X)
    assert next(iter(whole.arms())) == "1-22" and "1-22 with red" not in whole.arms("red")
    assert f"from {ways.architecture}-1-22 (" in str(ways) and [*ways.to_frame().index] == [w.plan for w in ways.fits]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teacher": nn.Flatten()}, "no convolution of this Flatten takes the image"),
        ({"teacher": nn.Flatten(), "width": 0.25}, "leave them out with your own network"),
        ({"teacher": 3}, "teacher=3 is not"),
        ({"teacher": "resnet19"}, "Unknown architecture"),
        ({"teacher": "unet"}, "unet is no classifier; there are mobilenetv2"),
        ({"peak": "lots"}, "not an amount of memory"),
        ({"example": torch.zeros(1, 40, 40)}, "images B×C×H×W as high as wide"),
        ({"example": torch.zeros(1, 1, 40, 32)}, "images B×C×H×W as high as wide"),
        ({"width": 9}, "width=9 is not a multiplier from 0.125 to 8"),
        ({"widths": [0.1]}, "width=0.1 is not a multiplier"),
        ({"widths": []}, "name at least one each"),
        ({"widths": 0.25}, "widths=0.25 is not a list"),
        ({"image_sizes": []}, "name at least one each"),
        ({"image_sizes": 40}, "image_sizes=40 is not a list"),
        ({"image_sizes": [0]}, "not a whole number of 1 or more"),
        ({"blocks": "all"}, "blocks='all' is not 'none' or"),
        ({"convention": "paper"}, "budgets cannot be counted by paper"),
    ],
)
def test_bad_input(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        arms_at_peak(**{"teacher": TEACHER, "peak": "19200B", "example": X, **change})


# ------------------------------------------------------------------------------------------------------- arms


def test_ways_are_arms(found: ArmsAtPeak) -> None:
    arms = found.arms()
    assert arms["4-11221 ×0.25"] == Arm("resnet18-4-11221", width=0.25)
    assert arms["1-21222 ×0.25 at 15 px"] == Arm(TEACHER, width=0.25, image_size=15)
    assert not any(arm.taught for arm in arms.values())


def test_only_what_sees_the_teachers_images_is_taught_and_only_what_fits_with_its_blocks(found: ArmsAtPeak) -> None:
    too_much = [found.key(way) for way in found.fits if way.peak("published") > 19200]
    assert too_much == ["2-21122 ×0.125"]
    at_40 = [found.key(way) for way in found.fits if way.image_size == 40]
    assert list(found.arms("kd")) == [f"{key} with kd" for key in at_40]
    assert list(found.arms(["red", KD()])) == [f"{key} with red+kd" for key in at_40 if key not in too_much]
    assert all(arm.taught for arm in found.arms("kd").values())
    in_place = arms_at_peak(TEACHER, "19200B", X, width=0.25, image_sizes=[40], blocks="in place")
    assert "2-21122 ×0.125 with red" in in_place.arms("red")


def test_an_arms_methods_are_read_once() -> None:
    arm = Arm("resnet18-4-11221", "red(alpha=3.0)+kd")
    assert arm.methods == (RED(alpha=3.0), KD()) and replace(arm, width=0.5).methods == arm.methods
    assert Arm("resnet18-4-11221", KD()).methods == (KD(),) and Arm("resnet18-4-11221").methods is None
    started = Arm("resnet18-4-11221", recipe=rd.Recipe(init="teacher"))
    assert [each.taught for each in (arm, started, Arm(nn.Flatten()))] == [True, True, False]
    tap = rd.Tap("conv1", "output", "conv1", "output", method=RED())
    assert Arm("resnet18-4-11221", (), taps=[tap]).taps == (tap,)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "resnet18-4-1122"}, "Plan 4-1122 has 5 places"),
        ({"model": "unet-2-221"}, "unet is no classifier"),
        ({"model": 3}, "model=3 is not text or a Module"),
        ({"model": nn.Flatten(), "width": 0.5}, "width=0.5 is for built-in names"),
        ({"width": 0.01}, "width=0.01 is not a multiplier"),
        ({"width": "wide"}, "width='wide' is not a number"),
        ({"image_size": 0}, "image_size=0 is not a whole number"),
        ({"image_size": 32, "methods": "kd"}, "student and teacher see the same images: leave image_size=32 out"),
        ({"methods": "rad"}, "unknown distillation method 'rad'"),
        ({"methods": ()}, "methods names none"),
        ({"taps": [rd.Tap("conv1", "output", "conv1", "output")]}, "give methods"),
        ({"methods": "red", "taps": ["conv1"]}, "a tap='conv1' is not a Tap"),
        ({"recipe": rd.DiffusionRecipe()}, "recipe is a Recipe, not a DiffusionRecipe"),
    ],
)
def test_what_is_no_arm(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Arm(**{"model": "resnet18-4-11221", **options})
