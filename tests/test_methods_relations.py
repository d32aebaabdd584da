"""Losses of relations between images against the papers' equations, written out in loops in double precision."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import huber
from torch import Tensor

from redistill_lib.methods import CC, PKT, RKD, SP, Batch, Method

RNG = np.random.default_rng(1)
STUDENT, TEACHER = RNG.normal(0, 1, (5, 3)), RNG.normal(0.5, 2, (5, 6))
METHODS = [SP(), PKT(), RKD(), CC()]


def loss(method: Method, student: Any, teacher: Any, training: bool = True) -> Tensor:
    s, t = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (student, teacher))
    criterion = method.criterion(tuple(s.shape[1:]), tuple(t.shape[1:]), samples=0).train(training)
    value: Tensor = criterion(s, t, Batch(()))
    return value


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


# -------------------------------------------------------------------------------------------------- each in loops


def test_sp_compares_rows_of_similarities() -> None:
    """Equations 1 to 3 of arXiv 1907.09682, of maps of other channels and another size."""
    student, teacher = RNG.normal(0, 1, (4, 2, 3, 3)), RNG.normal(0, 1, (4, 5, 2, 2))
    similar = []
    for maps in (student, teacher):
        q = maps.reshape(4, -1)
        g = q @ q.T
        similar.append([row / np.linalg.norm(row) for row in g])
    expected = sum((similar[0][i][j] - similar[1][i][j]) ** 2 for i in range(4) for j in range(4)) / 4**2
    assert loss(SP(), student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_pkt_compares_whom_an_image_picks() -> None:
    def picks(x: np.ndarray, i: int, j: int) -> float:
        kernel = [(cosine(x[i], other) + 1) / 2 for other in x]
        return kernel[j] / (sum(kernel) - kernel[i])

    pairs = list(itertools.permutations(range(5), 2))
    expected = sum(picks(TEACHER, *ij) * math.log(picks(TEACHER, *ij) / picks(STUDENT, *ij)) for ij in pairs)
    assert loss(PKT(), STUDENT, TEACHER).item() == pytest.approx(expected / len(pairs), rel=1e-5)


@pytest.mark.parametrize("m", [RKD(), RKD(angle=0.0), RKD(distance=0.0, angle=1.0)], ids=repr)
def test_rkd_compares_distances_and_angles(m: RKD) -> None:
    def distances(x: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        return d / (d.sum() / 20)  # five images make twenty ordered pairs

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        return 0.0 if j in (i, k) else cosine(x[i] - x[j], x[k] - x[j])

    far = huber(1, distances(STUDENT) - distances(TEACHER)).mean()
    triples = itertools.product(range(5), repeat=3)
    wide = np.mean([huber(1, angle(STUDENT, *t) - angle(TEACHER, *t)) for t in triples])
    assert loss(m, STUDENT, TEACHER).item() == pytest.approx(m.distance * far + m.angle * wide, rel=1e-6)


def test_cc_compares_gaussian_kernels_by_their_series() -> None:
    def kernel(x: np.ndarray, order: int) -> np.ndarray:
        terms = range(order + 1)
        return np.array([
            [sum(math.exp(-0.8) * 0.8**p / math.factorial(p) * cosine(a, b) ** p for p in terms) for b in x]
            for a in x
        ])  # fmt: skip

    for order in (1, 2, 4):
        expected = np.mean((kernel(STUDENT, order) - kernel(TEACHER, order)) ** 2)
        assert loss(CC(order=order), STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-9)
    s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (STUDENT, TEACHER))
    exact = [[[math.exp(-0.4 * np.sum((a - b) ** 2)) for b in x] for a in x] for x in (s, t)]
    expected = np.mean((np.array(exact[0]) - np.array(exact[1])) ** 2)  # what the series comes to
    assert loss(CC(order=15), STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-9)


# ----------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_turned_and_scaled_embeddings_relate_alike(method: Method) -> None:
    turn = np.linalg.qr(RNG.normal(0, 1, (6, 6)))[0]
    assert loss(method, 3 * TEACHER @ turn, TEACHER).item() == pytest.approx(0, abs=1e-9)
    order = [2, 0, 4, 3, 1]
    one = loss(method, STUDENT, TEACHER).item()
    assert one > 1e-3 and loss(method, STUDENT[order], TEACHER[order]).item() == pytest.approx(one, rel=1e-9)


def test_only_rkd_does_not_see_where_the_origin_is() -> None:
    assert loss(RKD(), TEACHER + 5, TEACHER).item() == pytest.approx(0, abs=1e-9)
    assert all(loss(method, TEACHER + 5, TEACHER).item() > 1e-4 for method in METHODS if method.name != "rkd")


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_gradients_are_those_of_finite_differences(method: Method) -> None:
    student = torch.tensor(STUDENT, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(method, s, TEACHER), student)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("case", ["dead", "one dead", "two alike", "all alike", "nearly alike", "huge"])
def test_embeddings_that_fall_together_give_finite_gradients(method: Method, case: str) -> None:
    """Norms and distances of 0 have no direction, and those near 0 a steep one."""
    student = torch.tensor(STUDENT).float()
    if case == "dead":
        student = student * 0
    elif case == "one dead":
        student[1] = 0
    elif case == "two alike":
        student[3] = student[1]
    elif case == "all alike":
        student = student[:1].repeat(5, 1)
    elif case == "nearly alike":
        student[3] = student[1] + 1e-7
    else:
        student = student * 1e6
    student.requires_grad_()
    value = loss(method, student, torch.tensor(TEACHER).float())
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and student.grad.abs().max() < 1e5


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_maps_and_volumes_of_any_size(method: Method) -> None:
    """Embeddings are means over space, but for sp, whose rows are whole maps."""
    student, teacher = RNG.normal(0, 1, (5, 3, 4, 2)), RNG.normal(0, 1, (5, 6, 2, 2, 3))
    if method.name == "sp":
        expected = loss(method, student.reshape(5, -1), teacher.reshape(5, -1))
    else:
        expected = loss(method, student.mean((2, 3)), teacher.mean((2, 3, 4)))
        with pytest.raises(ValueError, match=rf"{method.name} needs maps .* or vectors C, not \(7, 3\) .* \(6,\)"):
            loss(method, RNG.normal(0, 1, (5, 7, 3)), TEACHER)  # tokens, whose channels come last
    assert loss(method, student, teacher).item() == pytest.approx(expected.item(), rel=1e-9) and expected > 0


@pytest.mark.parametrize(("method", "least"), [(SP(), 2), (PKT(), 3), (RKD(), 3), (CC(), 2)], ids=str)
def test_too_few_images_have_no_relations(method: Method, least: int) -> None:
    """With one image fewer the loss is always 0, which training refuses and looking shows."""
    few = slice(least - 1)
    assert loss(method, STUDENT[few], TEACHER[few], training=False).item() == pytest.approx(0, abs=1e-9)
    with pytest.raises(
        ValueError, match=f"{method.name} compares images of a batch .* at least {least}, not {least - 1}"
    ):
        loss(method, STUDENT[few], TEACHER[few])
    assert loss(method, STUDENT[:least], TEACHER[:least]).item() > 1e-4


def test_options() -> None:
    wrong: Any
    for wrong in ({"gamma": 0}, {"order": 0}, {"order": 2.0}, {"order": 200}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CC(**wrong)
    weights = {method.name: method.alpha for method in METHODS}
    assert weights == {"sp": 3000, "pkt": 30000, "rkd": 1, "cc": 0.02} and (RKD().distance, RKD().angle) == (25, 50)
