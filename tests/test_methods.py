"""Distillation losses against numbers worked out by hand, or against the papers' formulas written out in NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.methods import (
    CRD,
    DKD,
    KD,
    METHODS,
    MSE,
    RED,
    Batch,
    FitNet,
    Method,
    REDBlocks,
    Stage,
    Weighted,
    make_method,
    parse_methods,
)
from redistill_lib.methods.base import check_loss, make_criterion
from redistill_lib.red import alignment_loss


def loss(method: Method, student: Tensor, teacher: Tensor, **batch: Any) -> Tensor:
    shapes = tuple(student.shape[1:]), tuple(teacher.shape[1:])
    value: Tensor = method.criterion(*shapes, samples=0)(student, teacher, Batch((), **batch))
    return value


# ------------------------------------------------------------------------------------------------- maps and outputs


def test_kd_by_hand() -> None:
    """T = 2, student (0, 0), teacher (2·ln 3, 0): softmax ½, ½ and ¾, ¼; KL = ¾ ln 1.5 + ¼ ln 0.5, times T² = 4."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss(KD(), student, teacher).item() == pytest.approx(expected, rel=1e-5)
    mean = loss(KD(), torch.zeros(2, 2), torch.cat([teacher, torch.zeros(1, 2)]))
    assert mean.item() == pytest.approx(expected / 2, rel=1e-5)


def test_kd_temperature_and_errors() -> None:
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    assert loss(KD(temperature=1), student, teacher).item() == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5
    )
    for temperature in (0, -1.0, math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="above 0"):
            KD(temperature=temperature)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"equal shapes, not \(2,\) from the student and \(3,\).*same classes"):
        loss(KD(), torch.zeros(1, 2), torch.zeros(1, 3))
    unknown = KD().criterion((), (), samples=0)  # as without an example
    with pytest.raises(ValueError, match="equal shapes"):
        unknown(torch.zeros(1, 2), torch.zeros(1, 3), Batch(()))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8)])
def test_kd_of_dense_logits_is_the_mean_over_pixels(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, *size)
    pixels = [F.kl_div(F.log_softmax(s / 3, 1), F.softmax(t / 3, 1), reduction="batchmean") * 9
              for s, t in zip(student.flatten(2).unbind(2), teacher.flatten(2).unbind(2), strict=True)]  # fmt: skip
    torch.testing.assert_close(loss(KD(temperature=3.0), student, teacher), torch.stack(pixels).mean())


def test_stage_compares_spatial_means() -> None:
    student = torch.tensor([[[[0.0, 2.0]], [[4.0, 0.0]]]])  # means (1, 2)
    teacher = torch.tensor([[[[2.0, 2.0], [2.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]]])  # means (2, 1), another size
    assert loss(Stage(), student, teacher).item() == pytest.approx(1 - 4 / 5, abs=1e-6)
    assert loss(Stage(distance="mse"), student, teacher).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"stage needs equal shapes, not \(2,\) .* \(1,\).*use red"):
        loss(Stage(), student, teacher[:, :1])


def test_mse_by_hand() -> None:
    assert loss(MSE(), torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match="mse needs equal shapes"):
        loss(MSE(), torch.zeros(1, 2), torch.zeros(1, 3))


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_red_is_the_alignment_loss(distance: str) -> None:
    torch.manual_seed(0)
    student, teacher = torch.rand(3, 4, 5, 6), torch.rand(3, 7, 5, 6)
    assert torch.equal(loss(RED(distance=distance), student, teacher), alignment_loss(student, teacher, distance))


@pytest.mark.parametrize("told", [True, False], ids=["with an example", "without"])
def test_red_refuses_maps_without_a_pattern(told: bool) -> None:
    maps = torch.rand(2, 4, 1, 1), torch.rand(2, 5, 1, 1)
    shapes = ((4, 1, 1), (5, 1, 1)) if told else ((), ())
    with pytest.raises(ValueError, match="red compares patterns, and a 1×1 map has none"):
        RED().criterion(*shapes, samples=0)(*maps, Batch(()))
    assert loss(RED(distance="mse"), *maps) > 0  # means differ where directions cannot


def test_red_needs_maps_of_one_size() -> None:
    with pytest.raises(ValueError, match=r"equal height × width, not \(4, 2, 2\) .* \(4, 3, 3\)"):
        loss(RED(), torch.rand(1, 4, 2, 2), torch.rand(1, 4, 3, 3))
    with pytest.raises(ValueError, match=r"C×H×W maps"):
        loss(RED(), torch.rand(1, 4), torch.rand(1, 4))


def test_fitnet_projects_the_student() -> None:
    torch.manual_seed(0)
    criterion = FitNet().criterion((3, 4, 5), (6, 4, 5), samples=0)
    student, teacher = torch.rand(2, 3, 4, 5), torch.rand(2, 6, 4, 5)
    weight, bias = (p.detach().numpy() for p in criterion.parameters())
    projected = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy()) + bias[:, None, None]
    expected = np.mean((projected - teacher.numpy()) ** 2)
    assert criterion(student, teacher, Batch(())).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"fitnet needs equal shapes, not \(4, 5\).*height × width"):
        FitNet().criterion((3, 4, 5), (6, 5, 5), samples=0)
    with pytest.raises(ValueError, match=r"fitnet needs maps C×H×W or volumes C×D×H×W, not \(3,\) from the student"):
        FitNet().criterion((3,), (6,), samples=0)


# -------------------------------------------------------------------------------------------------------------- DKD


def softmax(logits: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(logits - logits.max())
    return e / e.sum()


def dkd_of_one(student: np.ndarray, teacher: np.ndarray, label: int, m: DKD) -> float:
    """Equation 7 of arXiv 2203.08679 for one image, from probabilities, in double precision."""
    parts = []
    for logits in (student, teacher):
        p = softmax(logits / m.temperature)
        rest = np.delete(p, label)
        parts.append((np.array([p[label], rest.sum()]), rest / rest.sum()))
    (b_s, n_s), (b_t, n_t) = parts
    target, others = (float(np.sum(t * np.log(t / s))) for s, t in ((b_s, b_t), (n_s, n_t)))
    return m.temperature**2 * (m.target * target + m.others * others)


METHODS_OF_DKD = [DKD(), DKD(temperature=1.5, target=2.0, others=0.5), DKD(others=0.0), DKD(target=0.0)]


@pytest.mark.parametrize("m", METHODS_OF_DKD, ids=repr)
def test_dkd_with_class_numbers(m: DKD) -> None:
    rng = np.random.default_rng(1)
    student, teacher, labels = rng.normal(0, 3, (5, 4)), rng.normal(0, 3, (5, 4)), [2, 0, 3, 3, 1]
    expected = np.mean([dkd_of_one(*row, m) for row in zip(student, teacher, labels, strict=True)])
    found = loss(m, torch.tensor(student), torch.tensor(teacher), targets=torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_dkd_of_a_mixture_is_the_mixture_of_its_losses() -> None:
    rng, m = np.random.default_rng(2), DKD()
    student, teacher = rng.normal(0, 2, (3, 4)), rng.normal(0, 2, (3, 4))
    shares = np.array([[0.7, 0, 0.3, 0], [0, 1.0, 0, 0], [0.1, 0.2, 0.3, 0.4]])
    expected = np.mean([
        sum(share * dkd_of_one(s, t, label, m) for label, share in enumerate(row) if share)
        for s, t, row in zip(student, teacher, shares, strict=True)
    ])  # fmt: skip
    found = loss(m, torch.tensor(student), torch.tensor(teacher), targets=torch.tensor(shares))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_dkd_gradients(soft: bool) -> None:
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    targets = torch.softmax(torch.randn(3, 4).double(), 1) if soft else torch.tensor([1, 3, 0])
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(DKD(), s, teacher, targets=targets), student)
    loss(DKD(), student, teacher, targets=targets).backward()
    step, shares = 1e-6, targets.numpy() if soft else np.eye(4)[targets.numpy()]

    def independent(s: np.ndarray) -> float:
        rows = zip(s, teacher.numpy(), shares, strict=True)
        return float(np.mean([sum(w * dkd_of_one(a, b, k, DKD()) for k, w in enumerate(r) if w) for a, b, r in rows]))

    for place in np.ndindex(3, 4):
        moved = [student.detach().numpy().copy() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (independent(moved[0]) - independent(moved[1])) / (2 * step)
        assert student.grad[place].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_dkd_of_a_very_sure_teacher_is_finite(label: int) -> None:
    """Logits of ±1000: probabilities are 0 and 1 in single precision, and their logarithms must not be taken."""
    student = torch.tensor([[-40.0, 60.0, 3.0]], requires_grad=True)
    value = loss(DKD(), student, torch.tensor([[1000.0, -1000.0, 0.0]]), targets=torch.tensor([label]))
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all() and value > 0


def test_dkd_needs_targets_that_fit() -> None:
    outputs = torch.rand(2, 4)
    with pytest.raises(ValueError, match=r"dkd needs the targets of each batch; .*targets="):
        loss(DKD(), outputs, outputs)
    with pytest.raises(ValueError, match=r"dkd needs targets B or B×4, not torch.float32 \(2, 3\)"):
        loss(DKD(), outputs, outputs, targets=torch.rand(2, 3))
    for targets in (torch.tensor([0, 1, 2]), torch.rand(3, 4)):
        with pytest.raises(ValueError, match="dkd needs targets B or B×4, not"):
            loss(DKD(), outputs, outputs, targets=targets)
    with pytest.raises(ValueError, match="dkd needs a class from 0 to 3 for every image, not -100"):
        loss(DKD(), outputs, outputs, targets=torch.tensor([1, -100]))  # which the cross-entropy passes over
    with pytest.raises(ValueError, match=r"dkd needs outputs B×classes, not \(2, 4, 3, 3\)"):
        loss(DKD(), *torch.rand(2, 2, 4, 3, 3), targets=torch.tensor([0, 1]))


# -------------------------------------------------------------------------------------------------------------- CRD

SAMPLES, CRD_SMALL = 9, CRD(dim=3, negatives=4, temperature=0.5, momentum=0.25)


def contrast(method: CRD = CRD_SMALL, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return method.criterion((5, 2, 2), (7, 3, 3), samples=SAMPLES)


def crd_maps(seed: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(3, 5, 2, 2, generator=g), torch.rand(3, 7, 3, 3, generator=g)


def unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.sqrt(np.sum(v * v)))


INDEX = torch.tensor([6, 0, 8])


def test_crd_is_the_papers_estimate_image_by_image() -> None:
    """Written out in loops from equations 17 to 19 of arXiv 1910.10699, for the same draws, two batches long."""
    criterion, m = contrast(), CRD_SMALL
    scale: list[float | None] = [None, None]
    for k in range(2):
        student, teacher = crd_maps(k)
        heads = [[p.detach().double().numpy() for p in head.parameters()] for head in criterion.parts.heads]
        banks = criterion.parts.bank.vectors.double().numpy().copy()
        torch.manual_seed(k)
        shifts = torch.randint(1, SAMPLES, (3, m.negatives)).numpy()
        torch.manual_seed(k)
        found = criterion(student, teacher, Batch((), index=INDEX))
        embedded = [
            [unit(weight @ image.mean((1, 2)) + bias) for image in maps.double().numpy()]
            for maps, (weight, bias) in zip((student, teacher), heads, strict=True)
        ]
        expected = 0.0
        for side in (0, 1):
            scores = []
            for anchor, row, drawn in zip(embedded[side], INDEX.tolist(), shifts, strict=True):
                rows = [row, *((row + d) % SAMPLES for d in drawn)]
                scores.append([math.exp(anchor @ banks[1 - side][r] / m.temperature) for r in rows])
            if scale[side] is None:
                scale[side] = float(np.mean(scores)) * SAMPLES
            noise = m.negatives / SAMPLES
            for first, *others in np.array(scores) / scale[side]:
                expected -= (
                    math.log(first / (first + noise)) + sum(math.log(noise / (o + noise)) for o in others)
                ) / 3
        assert found.item() == pytest.approx(expected, rel=1e-5)
        for side in (0, 1):
            for row, new in zip(INDEX.tolist(), embedded[side], strict=True):
                banks[side][row] = unit(m.momentum * banks[side][row] + (1 - m.momentum) * new)
        np.testing.assert_allclose(criterion.parts.bank.vectors.numpy(), banks, atol=1e-6)


def test_crd_knows_images_by_index_not_by_position() -> None:
    first, second = contrast(), contrast()
    (student, teacher), order = crd_maps(), torch.tensor([2, 0, 1])
    first(student, teacher, Batch((), index=INDEX))
    second(student[order], teacher[order], Batch((), index=INDEX[order]))
    torch.testing.assert_close(first.parts.bank.vectors, second.parts.bank.vectors)
    assert not torch.equal(first.parts.bank.vectors, contrast().parts.bank.vectors)


def test_crd_draws_every_other_image_and_never_the_image_itself() -> None:
    memory = contrast().parts.bank
    rows = torch.cat([memory.rows(Batch((), index=INDEX), others=20) for _ in range(30)], 1)
    assert rows.shape == (3, 30 * SAMPLES) and torch.equal(rows[:, 0], INDEX)  # no more than there are
    for own, drawn in zip(INDEX.tolist(), rows.reshape(3, 30, SAMPLES)[:, :, 1:], strict=True):
        assert set(drawn.flatten().tolist()) == set(range(SAMPLES)) - {own}


def test_crd_trains_student_and_heads_alone_and_keeps_its_memory_while_evaluating() -> None:
    criterion, (student, teacher) = contrast(), crd_maps()
    student.requires_grad_()
    criterion(student, teacher, Batch((), index=INDEX)).backward()
    assert student.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in criterion.parameters())
    assert not criterion.parts.bank.vectors.requires_grad and not criterion.parts.bank.scales.requires_grad
    before = criterion.parts.bank.vectors.clone()
    criterion.eval()(student, teacher, Batch((), index=INDEX))
    assert torch.equal(criterion.parts.bank.vectors, before)


def test_crd_takes_pooled_features() -> None:
    criterion = CRD_SMALL.criterion((5,), (7,), samples=SAMPLES)
    assert criterion(torch.rand(3, 5), torch.rand(3, 7), Batch((), index=INDEX)).isfinite()


def test_crd_needs_samples_and_their_rows() -> None:
    with pytest.raises(ValueError, match=r"crd remembers each training image; give Distillation samples="):
        CRD().criterion((5, 2, 2), (7, 2, 2), samples=0)
    with pytest.raises(ValueError, match=r"crd keeps a memory of each image; .*index="):
        contrast()(*crd_maps(), Batch(()))
    for row in (SAMPLES, -1):
        with pytest.raises(ValueError, match=rf"crd remembers images 0 to 8, .* \[0, 1, {row}\]"):
            contrast()(*crd_maps(), Batch((), index=torch.tensor([0, 1, row])))
    for wrong_index in (torch.tensor([0.0, 1.0, 2.0]), 3, torch.tensor([[0, 1, 2]])):
        with pytest.raises(ValueError, match="index is a whole number for each image"):
            contrast()(*crd_maps(), Batch((), index=wrong_index))  # type: ignore[arg-type]
    for wrong in ({"dim": 0}, {"negatives": 2.5}, {"temperature": 0}, {"momentum": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CRD(**wrong)


# ---------------------------------------------------------------------------------------------------- names, options


def test_blocks() -> None:
    block = RED(kernel_size=5).block((3, 4, 4))
    assert (block.channels, block.kernel_size) == (3, 5)
    left = {name for name, kind in METHODS.items() if kind().block((2, 4, 4)) is not None}
    assert left == {"red", "red-blocks", "stage"}


def test_red_blocks_have_no_loss() -> None:
    assert REDBlocks().alpha == 0
    with pytest.raises(ValueError, match="use red"):
        REDBlocks(alpha=1.0)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m is not REDBlocks])
@pytest.mark.parametrize("alpha", [-1, math.nan, math.inf, "1", True])
def test_weights_are_numbers_from_0_up(method: Any, alpha: Any) -> None:
    assert method(alpha=0).alpha == 0
    with pytest.raises(ValueError, match="alpha is a number from 0 up, not"):
        method(alpha=alpha)


def test_a_whole_weight_is_the_float_that_it_equals() -> None:
    assert repr(DKD(others=4, alpha=np.float32(2))) == repr(DKD(others=4.0, alpha=2.0))  # type: ignore[arg-type]


def test_parse() -> None:
    assert parse_methods("red+kd") == parse_methods(["red", "kd"]) == (RED(), KD())
    assert parse_methods("red( alpha=1.0 ) + kd(temperature=4)") == (RED(alpha=1.0), KD(temperature=4))
    assert parse_methods("stage(distance='mse', alpha=1e+1)+dkd") == (Stage(distance="mse", alpha=10.0), DKD())
    assert parse_methods("crd(negatives=8)+fitnet()") == (CRD(negatives=8), FitNet())
    assert parse_methods(RED(alpha=1.0)) == parse_methods(["red(alpha=1.0)"]) == (RED(alpha=1.0),)
    assert parse_methods([RED(), "kd"]) == (RED(), KD()) and parse_methods(["red+kd", MSE()])[1:] == (KD(), MSE())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("redd", "unknown distillation method 'redd'; did you mean 'red'"),
        ("", "'' is not a method; write its name"),
        ("red+", "'' is not a method"),
        ("red+red(alpha=1.0)", "names a method twice"),
        ("red-blocks+kd+red", r"red-blocks\+red would build the same blocks twice; leave out red-blocks"),
        ("mse+kd(temperature=2, alpha=1, temperature=3)", r"'kd\(temperature=2, .* gives an option twice$"),
        ("red(1.0)", r"'red\(1.0\)' is not a method"),
        ("red(alpha=1.0", "is not a method"),
        ("red(alpha=[1)", "is not a method"),
        ("kd(temperature=warm)", r"'kd\(temperature=warm\)' is not a method; write its name, or name and options"),
        ("kd(temperature={[]: 4})", "is not a method; write its name, or name and options"),
        ("kd(**{'temperature': 4})", "is not a method; write its name, or name and options"),
        ("red(distance=mse)", "is not a method; write its name, or name and options"),
        (
            "red(temperature=1.0)",
            "red has no option temperature; it has alpha, distance, encoder, gate, kernel_size, shortcut",
        ),
        ("red(distance='l1')", "choose one of cosine, mse"),
        ("stage()()", r"'stage\(\)\(\)' is not a method"),
        ("kd(temperature=" + 5000 * "-" + "1)", "is not a method"),
        ("dkd(others='8')", "others='8' is not a number"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_methods(text)


class Formless:
    name, reads, alpha, block, criterion = "formless", "maps", 1.0, None, None


@pytest.mark.parametrize("methods", [[RED], [5], 5, Formless()])
def test_what_is_no_method(methods: Any) -> None:
    with pytest.raises(TypeError, match=r"a name, such as 'red\+kd', or a dataclass with name, reads, alpha"):
        parse_methods(methods)


@pytest.mark.parametrize("name", [None, "", 4])
def test_a_method_has_a_name(name: Any) -> None:
    with pytest.raises(TypeError, match=r"Own\.name is a text to call it by, not"):
        parse_methods(type("Own", (Spread,), {"name": name})())


@dataclass(frozen=True)
class Spread(Weighted):
    """A method of one's own, written in the way that each test says."""

    name = "spread"
    alpha: float = 1.0


class Variance(nn.Module):
    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student.var() - teacher.var()).abs()


class WithoutBatch(nn.Module):
    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return (ours.var() - theirs.var()).abs()


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (lambda self, ours, theirs: Variance(), r"takes \(ours, theirs\), but is called .*; it lacks samples$"),
        (staticmethod(lambda s, t, batch: (s - t).abs().mean()), "make its criterion, an nn.Module, from .*: unsupp"),
        (staticmethod(lambda s, t, batch: s.var()), "from two shapes and .* images: 'tuple' object has no attr"),
        (lambda self, s, t, samples: F.l1_loss, "returns a function, not an nn.Module$"),
        (lambda self, s, t, samples: Variance, "returns a type, not an nn.Module"),
        (lambda self, s, t, samples: WithoutBatch(), r"criterion takes \(ours, theirs\).* lacks batch$"),
        (lambda self, s, t, samples: nn.L1Loss(), r"takes \(input, target\), but is called .*; it lacks batch$"),
    ],
)
def test_criteria_of_ones_own_that_are_none(criterion: Any, message: str) -> None:
    own = type("Own", (Spread,), {"criterion": criterion})()
    with pytest.raises(TypeError, match=f"spread.* {message}"):
        make_criterion(own, (3, 4, 4), (3, 4, 4), samples=0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"spread lacks a loss\(student, teacher, batch\), or a criterion of its own"),
        ({"loss": lambda self, s, t: s.mean()}, r"spread.loss takes \(s, t\), but is called .*; it lacks batch$"),
        (
            {"loss": lambda self, s, t, batch: s.mean(), "parts": lambda *_: {"gate": nn.ReLU()}},
            r"called with \(student, teacher, batch, gate\); it lacks gate$",
        ),
    ],
)
def test_losses_of_ones_own_that_cannot_be_called(members: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_criterion(type("Own", (Spread,), members)(), (3, 4, 4), (3, 4, 4), samples=0)


@pytest.mark.parametrize(
    ("loss", "found"),
    [(torch.ones(2), r"a tensor \(2,\)"), (torch.ones(1), r"\(1,\)"), (0.5, "a float"), (None, "None")],
)
def test_a_loss_is_a_scalar_tensor(loss: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"spread's loss is .*{found}.*, not a scalar tensor; return its mean"):
        check_loss("spread", loss)


def test_methods_of_ones_own_that_fit() -> None:
    maps = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    for members in ({"criterion": lambda self, *shapes: Variance()}, {"loss": lambda self, *maps: Variance()(*maps)}):
        own = type("Own", (Spread,), members)()
        value = make_criterion(own, (3, 4, 4), (3, 4, 4), samples=0)(*maps, Batch(()))
        assert check_loss("spread", value) is value and value == 0
    for method in METHODS.values():
        shape: Any = (3,) if method.reads == "outputs" else (3, 4, 4)
        shape = (shape, shape) if getattr(method, "joint", False) else shape
        assert isinstance(make_criterion(method(), shape, shape, 9), nn.Module)


def test_what_a_method_lacks_is_named() -> None:
    @dataclass
    class Bare:
        name = "bare"
        alpha: float = 1.0

    with pytest.raises(TypeError, match=r"not .*Bare\(alpha=1.0\); it lacks reads, block, criterion"):
        parse_methods(Bare())  # type: ignore[arg-type]


def test_make_method() -> None:
    assert make_method("red", distance="mse") == RED(distance="mse")
    with pytest.raises(ValueError, match=r"unknown distillation method 'fitnets'; did you mean 'fitnet'\? \(known: "):
        make_method("fitnets")
