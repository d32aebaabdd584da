"""Losses of outputs against the papers' equations, written out with NumPy and SciPy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import pearsonr, zscore
from torch import Tensor

from redistill_lib.methods import DIST, DKD, KD, LSKD, MLLD, Batch, Method, make_method, parse_methods

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(0, 2, (5, 4)), RNG.normal(1, 3, (5, 4))
METHODS = [LSKD(), DIST(), MLLD(), KD()]


def loss(method: Method, student: Any, teacher: Any, training: bool = True, **batch: Any) -> Tensor:
    s, t = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (student, teacher))
    criterion = method.criterion(tuple(s.shape[1:]), tuple(t.shape[1:]), samples=0).train(training)
    value: Tensor = criterion(s, t, Batch((), **batch))
    return value


def kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p, q = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    return float(temperature**2 * rel_entr(p, q).sum(1).mean())


# ------------------------------------------------------------------------------------------- logit standardisation


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ls_kd_is_kd_of_z_scores(temperature: float) -> None:
    expected = kd(zscore(STUDENT, axis=1), zscore(TEACHER, axis=1), temperature)
    assert loss(LSKD(temperature=temperature), STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)


def test_ls_kd_does_not_see_the_logits_scale_and_shift() -> None:
    one = loss(LSKD(), STUDENT, TEACHER).item()
    assert loss(LSKD(), 3 * STUDENT - 7, TEACHER).item() == pytest.approx(one, rel=1e-5)
    assert loss(KD(), 3 * STUDENT - 7, TEACHER).item() != pytest.approx(loss(KD(), STUDENT, TEACHER).item(), rel=0.1)
    assert loss(LSKD(), 3 * TEACHER - 7, TEACHER).item() == pytest.approx(0, abs=1e-9)


def test_ls_kd_of_dense_logits_standardises_each_pixel() -> None:
    student, teacher = (np.stack([x, x[::-1], 2 * x], 2)[:, :, :, None] for x in (STUDENT, TEACHER))  # B×C×3×1
    pixels = [loss(LSKD(), student[:, :, k, 0], teacher[:, :, k, 0]).item() for k in range(3)]
    assert loss(LSKD(), student, teacher).item() == pytest.approx(np.mean(pixels), rel=1e-9)


def test_ls_kd_of_a_student_that_answers_0_everywhere_stays_finite() -> None:
    student = torch.zeros(2, 4, requires_grad=True)
    loss(LSKD(), student, torch.tensor(TEACHER[:2]).float()).backward()
    assert student.grad.isfinite().all() and 0 < student.grad.abs().max() < 1000


def test_ls_kd_refuses_two_classes() -> None:
    with pytest.raises(ValueError, match="ls-kd standardises logits, and of two only their order is left; use kd"):
        loss(LSKD(), STUDENT[:, :2], TEACHER[:, :2])


@pytest.mark.parametrize("method", [KD(), LSKD(), DKD()])
def test_a_single_output_has_no_probabilities_to_compare(method: Method) -> None:
    with pytest.raises(
        ValueError, match=f"{method.name} compares probabilities.* single output is always 1; use mse"
    ):
        loss(method, STUDENT[:, :1], TEACHER[:, :1])


# ------------------------------------------------------------------------------------------------------------ DIST


@pytest.mark.parametrize("m", [DIST(), DIST(temperature=4.0, inter=1.0, intra=0.5), DIST(intra=0.0)], ids=repr)
def test_dist_is_pearsons_correlation_of_rows_and_of_columns(m: DIST) -> None:
    s, t = (softmax(x / m.temperature, axis=1) for x in (STUDENT, TEACHER))
    inter = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(s, t, strict=True)])
    intra = np.mean([1 - pearsonr(a, b).statistic for a, b in zip(s.T, t.T, strict=True)])
    expected = m.temperature**2 * (m.inter * inter + m.intra * intra)
    assert loss(m, STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-9)


def test_dist_asks_for_relations_not_for_values() -> None:
    """Probabilities half as far from even ones: rows and columns correlate fully, and KD sees a difference."""
    t = softmax(TEACHER, axis=1)
    weaker = np.log(0.25 + (t - 0.25) / 2)
    assert loss(DIST(), weaker, TEACHER).item() == pytest.approx(0, abs=1e-9)
    assert loss(KD(), weaker, TEACHER).item() > 0.01


def test_dist_of_even_probabilities_and_of_one_image() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    value = loss(DIST(), student, torch.tensor(TEACHER[:3]).float())
    value.backward()
    assert value.item() == pytest.approx(4, abs=1e-5) and student.grad.isfinite().all()  # no correlation at all
    with pytest.raises(
        ValueError, match=r"dist compares images of a batch .* at least 2, not 1; give larger batches"
    ):
        loss(DIST(), STUDENT[:1], TEACHER[:1])
    assert loss(DIST(), STUDENT[:1], TEACHER[:1], training=False).isfinite()  # to look at


# ------------------------------------------------------------------------------------------------------------ MLLD


@pytest.mark.parametrize(
    "m", [MLLD(), MLLD(temperatures=(3.0,)), MLLD(instances=0.0, batches=2.0), MLLD(batches=0.0)], ids=repr
)
def test_mlld_sums_three_levels_over_temperatures(m: MLLD) -> None:
    images, classes = STUDENT.shape
    expected = 0.0
    for k in m.temperatures:
        s, t = softmax(STUDENT / k, axis=1), softmax(TEACHER / k, axis=1)
        expected += m.instances * kd(STUDENT, TEACHER, k)
        for a in range(images):
            expected += m.batches * sum((s[a] @ s[b] - t[a] @ t[b]) ** 2 for b in range(images)) / images
        for a in range(classes):
            pairs = ((s[:, a] @ s[:, b] - t[:, a] @ t[:, b]) ** 2 for b in range(classes))
            expected += m.classes * sum(pairs) / classes
    assert loss(m, STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-9)


def test_mlld_temperatures() -> None:
    assert parse_methods("mlld(temperatures=(2, 4.0))+kd")[0] == MLLD(temperatures=(2.0, 4.0))
    assert repr(MLLD(temperatures=(2, 4))) == repr(MLLD(temperatures=(2.0, 4.0)))  # one run, not two
    wrong: Any
    for wrong in ((), 2.0, [2.0]):
        with pytest.raises(ValueError, match="temperatures is a tuple of numbers"):
            MLLD(temperatures=wrong)
    with pytest.raises(ValueError, match=r"temperatures\[1\]=0 is not a number above 0"):
        make_method("mlld", temperatures=(2.0, 0))


# ----------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_equal_outputs_and_the_order_of_images(method: Method) -> None:
    assert loss(method, TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-9)
    order = [3, 0, 4, 1, 2]
    one = loss(method, STUDENT, TEACHER).item()
    assert one > 0.01 and loss(method, STUDENT[order], TEACHER[order]).item() == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_gradients_are_those_of_finite_differences(method: Method) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(method, s, TEACHER), student)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_very_sure_networks_give_finite_losses(method: Method) -> None:
    student = torch.tensor([[-40.0, 60.0, 3.0], [1.0, 2.0, 0.0]], requires_grad=True)
    value = loss(method, student, torch.tensor([[1000.0, -1000.0, 0.0], [0.0, 500.0, 0.0]]))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and value > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_targets_are_not_asked_for(method: Method) -> None:
    """Only what the networks answer is compared, so class numbers and mixtures give the same loss as none."""
    values = [
        loss(method, STUDENT, TEACHER, targets=targets).item()
        for targets in (None, torch.arange(5) % 4, torch.full((5, 4), 0.25))
    ]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("method", [DIST(), MLLD()], ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(3, 4, 4), (1,)])
def test_what_is_not_one_answer_for_each_image_is_refused(method: Method, shape: tuple[int, ...]) -> None:
    found = "×".join(map(str, shape))
    with pytest.raises(ValueError, match=f"{method.name} needs outputs B×classes .*, not B×{found}; use mse"):
        method.criterion(shape, shape, samples=0)
    with pytest.raises(
        ValueError, match=rf"{method.name} needs equal shapes, not \(3,\) .* \(4,\) .*; train both on"
    ):
        method.criterion((3,), (4,), samples=0)


WEIGHTS = {
    "dist": "inter intra",
    "dkd": "target others",
    "rkd": "distance angle",
    "mlld": "instances batches classes",
}


@pytest.mark.parametrize(("name", "weights"), list(WEIGHTS.items()))
def test_a_loss_whose_parts_all_weigh_0_is_refused(name: str, weights: str) -> None:
    names = weights.split()
    with pytest.raises(ValueError, match=f"{name} would always be 0: {' and '.join(names)} are 0; leave one above"):
        make_method(name, **dict.fromkeys(names, 0))
    assert make_method(name, **dict.fromkeys(names[:-1], 0))
    for wrong in (-1.0, float("nan"), "1"):
        with pytest.raises(ValueError, match=f"{names[0]}={wrong!r} is not a number from 0 up"):
            make_method(name, **{names[0]: wrong})
