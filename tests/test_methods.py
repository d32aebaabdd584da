"""Distillation losses against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from redistill_lib.methods import KD, METHODS, MSE, RED, REDBlocks, Stage, make_method, parse_methods


def test_kd_by_hand() -> None:
    """T = 2, student (0, 0), teacher (2·ln 3, 0): softmax ½, ½ and ¾, ¼; KL = ¾ ln 1.5 + ¼ ln 0.5, times T² = 4."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert KD().loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    mean = KD().loss(torch.zeros(2, 2), torch.cat([teacher, torch.zeros(1, 2)]))
    assert mean.item() == pytest.approx(expected / 2, rel=1e-5)


def test_kd_temperature_and_errors() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    assert KD(temperature=1).loss(student, teacher).item() == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5
    )
    for temperature in (0, -1.0, math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="above 0"):
            KD(temperature=temperature)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(1, 2\) from the student and \(1, 3\)"):
        KD().loss(torch.zeros(1, 2), torch.zeros(1, 3))


def test_stage_compares_spatial_means() -> None:
    student = torch.tensor([[[[0.0, 2.0]], [[4.0, 0.0]]]])  # means (1, 2)
    teacher = torch.tensor([[[[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]])  # means (2, 1), another size
    assert Stage().loss(student, teacher).item() == pytest.approx(1 - 4 / 5, abs=1e-6)
    assert Stage(distance="mse").loss(student, teacher).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="channels must be equal"):
        Stage().loss(student, teacher[:, :1])


def test_mse_by_hand() -> None:
    assert MSE().loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match="equal tensors"):
        MSE().loss(torch.zeros(2), torch.zeros(3))


def test_blocks() -> None:
    assert RED(kernel_size=5).block(3).kernel_size == 5
    assert KD().block(3) is None and MSE().block(3) is None
    assert all(METHODS[name].has_block == (METHODS[name]().block(2) is not None) for name in METHODS)


def test_red_blocks_have_no_loss() -> None:
    assert REDBlocks().alpha == 0
    with pytest.raises(ValueError, match="use red"):
        REDBlocks(alpha=1.0)


@pytest.mark.parametrize("method", [RED, Stage, MSE, KD])
@pytest.mark.parametrize("alpha", [-1, math.nan, math.inf, "1"])
def test_weights_are_numbers_from_0_up(method: Any, alpha: Any) -> None:
    assert method(alpha=0).alpha == 0
    with pytest.raises(ValueError, match="alpha is a number from 0 up, not"):
        method(alpha=alpha)


def test_parse() -> None:
    assert parse_methods("red+kd") == parse_methods(["red", "kd"]) == (RED(), KD())
    assert parse_methods(["red"], {"red": {"alpha": 1.0}}) == (RED(alpha=1.0),)
    assert parse_methods("red + kd", {"kd": {"temperature": 4.0}})[1] == KD(temperature=4.0)
    assert parse_methods([RED(alpha=1.0)]) == (RED(alpha=1.0),)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("redd", None, "did you mean 'red'"),
        ("", None, "unknown distillation method ''"),
        ("red+red", None, "twice"),
        ("red", {"kd": {"alpha": 1.0}}, "does not use"),
        ("red", {"red": {"temperature": 1.0}}, "red has no option temperature; it has alpha, distance, kernel_size"),
        ("red", {"red": {"distance": "l1"}}, "choose one of cosine, mse"),
        ([RED()], {"red": {"alpha": 1.0}}, "set them on the method objects"),
    ],
)
def test_parse_errors(text: str, options: dict[str, dict[str, float]] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_methods(text, options)


@pytest.mark.parametrize("methods", [[RED(), "kd"], [RED], [5]])
def test_what_is_no_method(methods: Any) -> None:
    with pytest.raises(TypeError, match=r"all names, such as 'red\+kd', or all method objects, not \["):
        parse_methods(methods)


def test_none_keeps_the_default() -> None:
    assert make_method("red", alpha=None, distance="mse") == RED(distance="mse")
