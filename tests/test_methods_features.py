"""Losses of feature maps against the papers' equations, written out with NumPy in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import redistill_lib as rd
from redistill_lib.distill import Distillation, Tap
from redistill_lib.methods import AB, AT, FT, METHODS, NST, RED, SRD, VID, Batch, FitNet, Method, REDLoss, make_method

RNG = np.random.default_rng(2)
STUDENT, TEACHER = RNG.normal(0, 1, (3, 2, 4, 5)), RNG.normal(0.3, 2, (3, 6, 4, 5))
SAME_SIZE = [FitNet(), NST(), VID(), FT(), AB()]


def made(method: Method, student: Any, teacher: Any) -> nn.Module:
    torch.manual_seed(0)
    shapes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
    return method.criterion(*shapes, samples=0).double()


def loss(method: Method, student: Any, teacher: Any) -> Tensor:
    s, t = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (student, teacher))
    value: Tensor = made(method, s, t)(s.double(), t.double(), Batch(()))
    return value


def arrays(module: Any) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for p in module.parameters()]


def per_pixel(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A 1×1 convolution without bias."""
    return np.einsum("oc,bchw->bohw", weight.reshape(weight.shape[:2]), x)


# -------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("power", [1.0, 2.0, 4])
def test_at_by_hand(power: float) -> None:
    """Equation 2 of arXiv 1612.03928 without β/2, as a mean over the places."""
    squares = []
    for s, t in zip(STUDENT, TEACHER, strict=True):
        q = [np.sum(np.abs(x) ** power, 0).ravel() for x in (s, t)]
        squares += list((q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1])) ** 2)
    assert loss(AT(power=power), STUDENT, TEACHER).item() == pytest.approx(np.mean(squares), rel=1e-9)


def test_at_sees_places_alone() -> None:
    one = loss(AT(), STUDENT, TEACHER).item()
    assert one > 1e-3
    assert loss(AT(), 3 * STUDENT[:, ::-1].copy(), -2 * TEACHER).item() == pytest.approx(one, rel=1e-9)
    assert loss(AT(), 3 * TEACHER[:, ::-1].copy(), TEACHER).item() == pytest.approx(0, abs=1e-12)
    assert loss(AT(), STUDENT[..., ::-1].copy(), TEACHER).item() != pytest.approx(one, rel=0.01)


def test_at_averages_the_larger_attention_map_and_the_record_says_so() -> None:
    student = RNG.normal(0, 1, (2, 3, 8, 4))  # higher than the teacher's and less wide
    teacher = RNG.normal(0, 1, (2, 5, 4, 8))
    q_s = (student**2).sum(1).reshape(2, 4, 2, 4).mean(2).reshape(2, -1)
    q_t = (teacher**2).sum(1).reshape(2, 4, 4, 2).mean(3).reshape(2, -1)
    q_s, q_t = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (q_s, q_t))
    assert loss(AT(), student, teacher).item() == pytest.approx(np.mean((q_s - q_t) ** 2), rel=1e-9)
    networks = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1))
    x, tap = torch.rand(2, 3, 8, 8), Tap("0", "output", "0", "output")
    record = Distillation(*networks, [tap], "at", example=x).settings()["terms"][0]
    assert record["resized"] == "attention maps 4×4 and 8×8 to 4×4"
    same = Distillation(networks[0], nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)), [tap], "at", example=x)
    assert "resized" not in same.settings()["terms"][0]


def test_at_options() -> None:
    for power in (0.5, 0, math.nan, "2"):
        with pytest.raises(ValueError, match="power is a number from 1 up, not"):
            AT(power=power)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ selectivity


def test_nst_is_the_discrepancy_of_channels() -> None:
    """The squared MMD of arXiv 1707.01219 with the kernel (xᵀy)², sample by sample."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.ravel() @ b.ravel()) ** 2 / ((a.ravel() @ a.ravel()) * (b.ravel() @ b.ravel())))

    expected = 0.0
    for s, t in zip(STUDENT, TEACHER, strict=True):
        expected += sum(kernel(a, b) for a in t for b in t) / 6**2 + sum(kernel(a, b) for a in s for b in s) / 2**2
        expected -= 2 * sum(kernel(a, b) for a in t for b in s) / (6 * 2)
    assert loss(NST(), STUDENT, TEACHER).item() == pytest.approx(expected / 3, rel=1e-9)


def test_nst_sees_neither_the_order_of_channels_nor_their_scale() -> None:
    scales = np.array([1, 2, 0.1, 5, 3, 7]).reshape(1, 6, 1, 1)
    assert loss(NST(), scales * TEACHER[:, ::-1], TEACHER).item() == pytest.approx(0, abs=1e-12)
    assert loss(NST(), TEACHER[..., ::-1].copy(), TEACHER).item() > 1e-3


# ------------------------------------------------------------------------------------------- variational information


def test_vid_is_a_gaussians_log_likelihood() -> None:
    criterion = made(VID(variance=2.0), STUDENT, TEACHER)
    scale, first, second, third = arrays(criterion)
    np.testing.assert_allclose(np.log1p(np.exp(scale)) + 1e-5, np.full(6, 2.0), rtol=1e-6)
    scale += RNG.normal(0, 1, 6)  # another variance for each channel
    with torch.no_grad():
        next(criterion.parameters()).copy_(torch.tensor(scale))
    hidden = np.maximum(per_pixel(first, STUDENT), 0)
    mean = per_pixel(third, np.maximum(per_pixel(second, hidden), 0))
    variance = (np.log1p(np.exp(scale)) + 1e-5).reshape(1, 6, 1, 1)
    expected = np.mean((TEACHER - mean) ** 2 / (2 * variance) + np.log(variance) / 2)
    found = criterion(torch.tensor(STUDENT), torch.tensor(TEACHER), Batch(()))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_vid_learns_how_sure_it_can_be() -> None:
    """Against a teacher that is constant the best variance tends to 0, against noise to the noise's."""
    noise = torch.tensor(RNG.normal(0, 0.5, (400, 1)))
    criterion = made(VID(), noise[:, :0].new_zeros(400, 2), noise)
    optimizer = torch.optim.Adam(criterion.parameters(), 0.1)
    for _ in range(150):
        optimizer.zero_grad()
        criterion(torch.zeros(400, 2).double(), noise, Batch(())).backward()
        optimizer.step()
    variance = criterion.parts.estimate(torch.zeros(1, 2).double())[1]  # type: ignore[union-attr,operator]
    assert variance.item() == pytest.approx(noise.square().mean().item(), rel=0.05)


# -------------------------------------------------------------------------------------------------- factor transfer


def test_ft_compares_factors_and_restores_the_teachers_map() -> None:
    """Equations 1 and 4 of arXiv 1802.04977, with modules that can be followed by hand."""
    parts: Any = {
        "paraphraser": lambda t: t[:, :2],
        "restorer": lambda f: f.repeat(1, 3, 1, 1),
        "translator": lambda s: 2 * s,
    }
    found = FT().loss(torch.tensor(STUDENT), torch.tensor(TEACHER), Batch(()), **parts)
    expected = 0.0
    for s, t in zip(STUDENT, TEACHER, strict=True):
        f_s, f_t = s / np.linalg.norm(s), t[:2] / np.linalg.norm(t[:2])
        expected += np.abs(f_s - f_t).mean() / 3
    restored = np.mean((np.tile(TEACHER[:, :2], (1, 3, 1, 1)) - TEACHER) ** 2)
    assert found.item() == pytest.approx(expected + 0.005 * restored, rel=1e-9)


def test_ft_teaches_the_paraphraser_by_restoring_alone() -> None:
    criterion = made(FT(), STUDENT, TEACHER)
    parts: Any = criterion.parts
    grads = {}
    for reconstruction in (0.0, 1.0):
        criterion.method = FT(reconstruction=reconstruction)  # type: ignore[assignment]
        criterion.zero_grad()
        criterion(torch.tensor(STUDENT), torch.tensor(TEACHER), Batch(())).backward()
        grads[reconstruction] = [
            sum(p.grad.abs().sum().item() for p in parts[name].parameters() if p.grad is not None)
            for name in ("paraphraser", "restorer", "translator")
        ]
    assert grads[0.0][:2] == [0, 0] and min(grads[1.0]) > 1e-3
    assert grads[0.0][2] == pytest.approx(grads[1.0][2])  # which restoring does not reach


def test_ft_makes_factors_of_a_share_of_the_teachers_channels() -> None:
    for rate, channels in ((0.5, 3), (1.0, 6), (0.01, 1)):
        parts: Any = made(FT(rate=rate), STUDENT, TEACHER).parts
        s, t = parts.translator(torch.tensor(STUDENT)), parts.paraphraser(torch.tensor(TEACHER))
        assert s.shape == t.shape == (3, channels, 4, 5) and parts.restorer(t).shape == TEACHER.shape


# ------------------------------------------------------------------------------------------------------- boundaries


def test_ab_pushes_beyond_the_margin_on_the_teachers_side() -> None:
    """s + margin where the teacher is inactive, s − margin where it is active, 0 beyond: 3/1000 of an image's sum."""
    criterion = made(AB(margin=0.5), STUDENT, TEACHER)
    weight, gain, bias = arrays(criterion)
    mapped = per_pixel(weight, STUDENT)
    mean, variance = mapped.mean((0, 2, 3), keepdims=True), mapped.var((0, 2, 3), keepdims=True)
    s = (mapped - mean) / np.sqrt(variance + 1e-5) * gain.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    expected = 0.0
    for ours, theirs in zip(s.ravel(), TEACHER.ravel(), strict=True):
        if theirs <= 0 and ours > -0.5:
            expected += (ours + 0.5) ** 2
        elif theirs > 0 and ours <= 0.5:
            expected += (ours - 0.5) ** 2
    found = criterion(torch.tensor(STUDENT), torch.tensor(TEACHER), Batch(()))
    assert found.item() == pytest.approx(3 / 1000 * expected / 3, rel=1e-9)


def test_ab_sees_signs_alone_and_is_0_beyond_the_margin() -> None:
    assert loss(AB(), STUDENT, TEACHER).item() == pytest.approx(loss(AB(), STUDENT, 9 * TEACHER).item(), rel=1e-12)
    rectified = loss(AB(), STUDENT, np.maximum(TEACHER, 0)).item()  # behind the teacher's ReLU
    assert rectified == pytest.approx(loss(AB(), STUDENT, TEACHER).item(), rel=1e-12) and rectified > 0
    far = torch.tensor(np.sign(TEACHER) * 1.01)
    assert AB().loss(far, torch.tensor(TEACHER), Batch(()), connect=nn.Identity()) == 0


# -------------------------------------------------------------------------------------------------------------- SRD


def test_srd_is_the_logarithm_of_summed_powers() -> None:
    criterion = made(SRD(power=3.0), STUDENT, TEACHER)
    weight, bias = arrays(criterion)
    z = [STUDENT.mean((2, 3)) @ weight.T + bias, TEACHER.mean((2, 3))]
    s, t = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4) for x in z)
    found = criterion(torch.tensor(STUDENT), torch.tensor(TEACHER), Batch(()))
    assert found.item() == pytest.approx(math.log(np.sum(np.abs(s - t) ** 3)), rel=1e-9)
    assert SRD().power == 4


def test_srd_of_equal_embeddings_is_finite() -> None:
    student = torch.tensor(TEACHER.mean((2, 3)), requires_grad=True)
    norms = nn.ModuleList(nn.BatchNorm1d(6, affine=False).double() for _ in range(2))
    value = SRD().loss(student, student.detach(), Batch(()), project=nn.Identity(), norms=norms)
    value.backward()
    assert value.isfinite() and value < -20 and student.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"srd compares images of a batch .* at least 2, not 1; give larger batches"):
        loss(SRD(), STUDENT[:1], TEACHER[:1])


# --------------------------------------------------------------------------------------------------------- red-loss


def test_red_loss_is_reds_loss_without_a_block() -> None:
    maps = torch.tensor(STUDENT), torch.tensor(TEACHER)
    for distance in ("cosine", "mse"):
        red = RED(distance=distance).criterion((2, 4, 5), (6, 4, 5), samples=0)
        assert loss(REDLoss(distance=distance), *maps) == red(*maps, Batch(())).double() > 0
    torch.manual_seed(0)
    networks = [rd.create_model(name, width=0.125) for name in ("resnet18-4-11221", "resnet18-1-21222")]
    x = torch.rand(2, 3, 32, 32)
    d = Distillation(*networks, rd.match_taps(*networks, x), "red-loss")  # type: ignore[arg-type]
    assert len(d.blocks) == 0 and d(x)[1]["distill"] > 0
    assert REDLoss().alpha == RED().alpha
    with pytest.raises(ValueError, match="red-loss has no option kernel_size; it has alpha, distance"):
        make_method("red-loss", kernel_size=3)


# ----------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", [*SAME_SIZE, AT(), SRD()], ids=lambda m: m.name)
def test_gradients_are_those_of_finite_differences(method: Method) -> None:
    criterion, student = made(method, STUDENT, TEACHER), torch.tensor(STUDENT, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: criterion(s, torch.tensor(TEACHER), Batch(())), student, eps=1e-7)


@pytest.mark.parametrize("method", [*SAME_SIZE, AT(), SRD()], ids=lambda m: m.name)
@pytest.mark.parametrize("case", ["dead", "a dead channel", "a dead image", "a dead teacher", "huge"])
def test_dead_and_huge_maps_give_finite_losses_and_gradients(method: Method, case: str) -> None:
    student, teacher = (torch.tensor(np.maximum(x, 0)).float() for x in (STUDENT, TEACHER))  # as behind a ReLU
    if case == "dead":
        student *= 0
    elif case == "a dead channel":
        student[:, 1] = 0
    elif case == "a dead image":
        student[0] = 0
    elif case == "a dead teacher":
        teacher *= 0
    else:
        student, teacher = 1e6 * student, 1e6 * teacher
    student.requires_grad_()
    criterion = made(method, student, teacher).float()
    value = criterion(student, teacher, Batch(()))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in criterion.parameters())


@pytest.mark.parametrize("method", [*SAME_SIZE, AT(), SRD()], ids=lambda m: m.name)
def test_volumes(method: Method) -> None:
    """A volume whose depth repeats a map: per-voxel methods give what the map gives, the others at least a loss."""
    student, teacher = (np.repeat(x[:, :, None], 3, 2) for x in (STUDENT, TEACHER))
    criterion = made(method, student, teacher)
    student_t = torch.tensor(student, requires_grad=True)
    value = criterion(student_t, torch.tensor(teacher), Batch(()))
    value.backward()
    assert student_t.grad.abs().sum() > 0
    flat = loss(method, STUDENT, TEACHER)
    if method.name in ("fitnet", "nst", "vid", "srd"):
        assert value.item() == pytest.approx(flat.item(), rel=1e-6)
    elif method.name == "ab":  # a sum
        assert value.item() == pytest.approx(3 * flat.item(), rel=1e-6)


@pytest.mark.parametrize("method", SAME_SIZE, ids=lambda m: m.name)
def test_maps_of_unequal_size_are_refused(method: Method) -> None:
    with pytest.raises(
        ValueError, match=rf"{method.name} needs equal shapes, not \(4, 5\) .* \(4, 4\) .*; choose maps"
    ):
        method.criterion((2, 4, 5), (6, 4, 4), samples=0)
    if method.name == "nst":  # which needs no shapes to be made, and so sees them only now
        with pytest.raises(ValueError, match="nst needs equal shapes"):
            method.criterion((), (), samples=0)(torch.rand(1, 2, 4, 5), torch.rand(1, 6, 4, 4), Batch(()))


@pytest.mark.parametrize("method", [*SAME_SIZE, AT()], ids=lambda m: m.name)
@pytest.mark.parametrize("shapes", [((7, 2), (7, 6)), ((2,), (6, 1, 1)), ((2, 4, 4), (6, 4, 4, 4))])
def test_what_is_no_map_is_refused(method: Method, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Tokens, whose channels come last, a vector against a map, a map against a volume."""
    with pytest.raises(ValueError, match=f"{method.name} needs maps C×H×W or volumes C×D×H×W.*tap layers that give"):
        method.criterion(*shapes, samples=0)


@pytest.mark.parametrize("method", [AT(), NST(), REDLoss()], ids=lambda m: m.name)
def test_maps_of_one_pixel_have_no_pattern(method: Method) -> None:
    with pytest.raises(ValueError, match=f"{method.name} compares patterns, and a 1×1 map has none: .* always be 0"):
        method.criterion((2, 1, 1), (6, 1, 1), samples=0)
    if method.name == "at":  # which would be averaged to one
        with pytest.raises(ValueError, match="at compares patterns, and a 1×1 map"):
            method.criterion((2, 4, 4), (6, 1, 1), samples=0)


def test_a_factor_of_one_value_has_no_direction() -> None:
    with pytest.raises(ValueError, match="ft compares the directions of factors, and one value has none; raise rate"):
        FT().criterion((2, 1, 1), (2, 1, 1), samples=0)
    assert loss(FT(), STUDENT[:, :, :1, :1], TEACHER[:, :, :1, :1]) > 0  # of three values


def test_vectors_where_the_papers_take_them() -> None:
    student, teacher = STUDENT.mean((2, 3)), TEACHER.mean((2, 3))
    assert loss(VID(), student, teacher).isfinite()
    assert loss(SRD(), student, teacher).item() == pytest.approx(loss(SRD(), STUDENT, TEACHER).item(), rel=1e-9)
    for method in (AT(), NST(), FT(), AB(), FitNet()):
        with pytest.raises(ValueError, match="needs maps"):
            method.criterion((2,), (6,), samples=0)


def test_weights_are_repdistillers() -> None:
    told = {"fitnet": 100, "at": 1000, "sp": 3000, "cc": 0.02, "vid": 1, "rkd": 1, "pkt": 30000, "ab": 1, "ft": 200}
    told |= {"nst": 50, "crd": 0.8, "ls-kd": 9}
    assert {name: make_method(name).alpha for name in told} == told
    assert list(METHODS)[:8] == ["red", "red-blocks", "stage", "kd", "dkd", "mse", "fitnet", "crd"]
