"""The review of knowledge, written out with NumPy, and how a method gets all its taps together."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import redistill_lib as rd
from redistill_lib.distill import Distillation, Objective, Tap, read_taps
from redistill_lib.distill.terms import plan_terms
from redistill_lib.methods import KD, RED, Batch, ReviewKD, Weighted
from redistill_lib.methods.review import pyramid_loss
from redistill_lib.network import record_maps

RNG = np.random.default_rng(3)
STUDENT = [RNG.normal(0, 1, shape) for shape in ((2, 3, 6, 6), (2, 4, 3, 3), (2, 5, 1, 1))]
TEACHER = [RNG.normal(0, 1, shape) for shape in ((2, 4, 6, 6), (2, 2, 3, 3), (2, 3, 1, 1))]


def shapes(maps: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(x.shape[1:]) for x in maps)


def tensors(maps: list[np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(map(torch.tensor, maps))


def settled(method: ReviewKD) -> Any:
    """In eval mode, with batch norms that have seen something."""
    torch.manual_seed(0)
    criterion = method.criterion(shapes(STUDENT), shapes(TEACHER), samples=0).double()
    for module in criterion.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
    return criterion.eval()


# --------------------------------------------------------------------------------------------------------- the loss


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    """A convolution that keeps the size, as a sum over the places of its kernel."""
    edge, (height, width) = weight.shape[2] // 2, x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    places = np.ndindex(*weight.shape[2:])
    out = sum(
        np.einsum("oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width]) for i, j in places
    )
    return np.asarray(out) + np.reshape(bias, (1, -1, 1, 1))


def layer(modules: Any, x: np.ndarray) -> np.ndarray:
    """Convolution and batch norm, or convolution and sigmoid."""
    conv, after = modules
    x = convolved(x, conv.weight.detach().numpy(), 0.0 if conv.bias is None else conv.bias.detach().numpy())
    if isinstance(after, nn.Sigmoid):
        return np.asarray(1 / (1 + np.exp(-x)))
    mean, variance, gain, bias = (
        each.detach().numpy().reshape(1, -1, 1, 1)
        for each in (after.running_mean, after.running_var, after.weight, after.bias)
    )
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * gain + bias)


def pooled(x: np.ndarray, side: int) -> np.ndarray:
    """Averages over windows from ⌊k·n/side⌋ to ⌈(k+1)·n/side⌉."""
    n = x.shape[2]
    edges = [(k * n // side, -(-(k + 1) * n // side)) for k in range(side)]
    return np.stack([np.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges], 2) for a, b in edges], 2)


def context(a: np.ndarray, b: np.ndarray) -> float:
    total, weights, weight = float(np.mean((a - b) ** 2)), 1.0, 1.0
    for side in (4, 2, 1):
        if side < a.shape[2]:
            weight /= 2
            total += weight * float(np.mean((pooled(a, side) - pooled(b, side)) ** 2))
            weights += weight
    return total / weights


def test_each_stage_is_fused_with_all_deeper_ones() -> None:
    criterion = settled(ReviewKD(width=3))
    review = criterion.parts.review
    fused = layer(review.reduce[2], STUDENT[2])
    expected = context(layer(review.expand[2], fused), TEACHER[2])
    for k in (1, 0):
        own = layer(review.reduce[k], STUDENT[k])
        times = own.shape[2] // fused.shape[2]
        later = fused.repeat(times, 2).repeat(times, 3)
        share = layer(review.attend[k], np.concatenate([own, later], 1))
        fused = own * share[:, :1] + later * share[:, 1:]
        expected += context(layer(review.expand[k], fused), TEACHER[k])
    found = criterion(tensors(STUDENT), tensors(TEACHER), Batch(()))
    assert found.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_maps_are_compared_at_several_sizes(size: int) -> None:
    a, b = RNG.normal(0, 1, (2, 2, 3, size, size))
    found = pyramid_loss(torch.tensor(a), torch.tensor(b))
    assert found.item() == pytest.approx(context(a, b), rel=1e-9)


def test_what_a_stage_learns_from() -> None:
    """The earliest fused map holds every stage of the student, the deepest only its own."""
    criterion = settled(ReviewKD())
    maps = [x.requires_grad_() for x in tensors(STUDENT)]
    fused = criterion.parts.review(maps)
    assert [tuple(x.shape) for x in fused] == [x.shape for x in TEACHER]
    for made, reached in zip(fused, ([True, True, True], [False, True, True], [False, False, True]), strict=True):
        grads = torch.autograd.grad(made.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [grad is not None and bool(grad.abs().sum() > 0) for grad in grads] == reached


def test_width() -> None:
    for width, made in ((512, 5), (3, 3)):  # at most the deepest map's channels, as in the authors' code
        assert settled(ReviewKD(width=width)).parts.review.reduce[0][0].out_channels == made
    with pytest.raises(ValueError, match="width=0 is not a whole number"):
        ReviewKD(width=0)


def test_volumes() -> None:
    student, teacher = ([np.repeat(x[:, :, None], 2, 2) for x in maps[:2]] for maps in (STUDENT, TEACHER))
    criterion = ReviewKD().criterion(shapes(student), shapes(teacher), samples=0).double()
    assert criterion(tensors(student), tensors(teacher), Batch(())).isfinite()
    with pytest.raises(ValueError, match="reviewkd needs maps alone or volumes alone"):
        mixed = [shapes(maps)[:1] + shapes(STUDENT)[1:2] for maps in (student, student)]
        ReviewKD().criterion(*mixed, samples=0)


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match="reviewkd fuses later stages into earlier ones, so it needs at least two taps"
    ):
        ReviewKD().criterion(shapes(STUDENT[:1]), shapes(TEACHER[:1]), samples=0)
    with pytest.raises(ValueError, match=r"reviewkd needs equal shapes, not \(3, 3\) .* \(1, 1\) .*; choose maps"):
        ReviewKD().criterion(shapes(STUDENT[:2]), shapes([TEACHER[0], TEACHER[2]]), samples=0)
    with pytest.raises(ValueError, match=r"from early to deep, but \(3, 6, 6\) comes behind \(3, 3, 3\)"):
        ReviewKD().criterion(((3, 3, 3), (3, 6, 6)), ((4, 3, 3), (4, 6, 6)), samples=0)
    with pytest.raises(ValueError, match=r"reviewkd needs maps C×H×W or volumes C×D×H×W, not \(5,\)"):
        ReviewKD().criterion(((3, 6, 6), (5,)), ((4, 6, 6), (3,)), samples=0)


# ------------------------------------------------------------------------------------------------- all taps together


@dataclass(frozen=True)
class Together(Weighted):
    """A joint method of a reader's own: the squared difference of all maps' means, over their number."""

    name = "together"
    joint = True
    alpha: float = 2.0

    def loss(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], batch: Batch) -> Tensor:
        means = [torch.stack([x.mean() for x in maps]) for maps in (student, teacher)]
        return (means[0] - means[1]).square().mean() / len(student)


def networks() -> tuple[nn.Module, nn.Module, list[Tap], Tensor]:
    torch.manual_seed(0)
    student, teacher = (rd.create_model(name, width=0.125) for name in ("resnet18-4-11221", "resnet18-1-21222"))
    x = torch.rand(4, 3, 40, 40)
    return student, teacher, rd.match_taps(student, teacher, x[:2]), x


def test_a_joint_method_is_one_term_at_all_its_taps() -> None:
    student, teacher, taps, x = networks()
    d = Distillation(student, teacher, taps, "reviewkd+red+kd", example=x, objective=Objective(None, "mean")).eval()
    names = [term.name for term in d.terms]
    assert names == ["reviewkd", *(f"red/{tap.name}" for tap in taps), "kd"]
    losses = d(x)[1]
    ours, theirs = record_maps(d.student, [tap.place for tap in taps], x), d.teacher_maps(Batch((x,)))
    maps = tuple(ours[tap.place] for tap in taps), tuple(theirs[0, tap.source] for tap in taps)
    torch.testing.assert_close(losses["reviewkd"], d.criteria[0](*maps, Batch((x,))))
    alphas = {"reviewkd": 5, "kd": 1}
    total = sum(alphas.get(name, 50) * losses[name] for name in names)
    torch.testing.assert_close(losses["distill"], total / len(names))
    record = next(term for term in d.settings()["terms"] if term["method"] == "reviewkd")
    assert record["at"] == "reviewkd" and record["taps"] == [tap.name for tap in taps]
    assert record["from"] == ", ".join(str(tap.source) for tap in taps) and record["width"] == 512
    assert "5 · reviewkd ← layer2.0, layer3.0, layer3.0, layer4.0, layer4.0" in repr(d)
    assert not any("review" in key for key in d.graduate().state_dict())


def test_a_joint_method_of_ones_own_and_taps_that_carry_it() -> None:
    student, teacher, taps, x = networks()
    mine = [replace(tap, method=Together()) for tap in taps[:2]]
    d = Distillation(student, teacher, [*mine, replace(taps[2], method=RED())], ["kd"]).eval()  # without an example
    assert [term.name for term in d.terms] == ["together", f"red/{taps[2].name}", "kd"]
    losses = d(x)[1]
    ours, theirs = record_maps(d.student, [tap.place for tap in mine], x), d.teacher_maps(Batch((x,)))
    means = [(ours[tap.place].mean() - theirs[0, tap.source].mean()).square() for tap in mine]
    torch.testing.assert_close(losses["together"], sum(means) / 4)


def test_each_teacher_is_reviewed_apart() -> None:
    student, teacher, taps, x = networks()
    both = [*taps[:2], *(replace(tap, teacher=1) for tap in taps[1:4])]
    d = Distillation(student, [teacher, copy.deepcopy(teacher)], both, "reviewkd", example=x)
    assert {term.name: len(term.taps) for term in d.terms} == {"reviewkd": 2, "reviewkd@1": 3}
    assert set(d(x)[1]) == {"reviewkd", "reviewkd@1", "distill", "total"}


def test_the_authors_schema_takes_it() -> None:
    side = {"t_layers": [None, "tid_0=b"], "modules": [None, "REVIEWKD"]}
    taps = read_taps({"a": side, "c": side | {"kwargs": [None, {"cs": 8, "width": 16}]}})
    assert taps[1].method == ReviewKD(width=16)
    with pytest.raises(ValueError, match="reviewkd is one loss for all its taps, so give them equal options"):
        plan_terms(taps, [])
    assert [len(term.taps) for term in plan_terms([replace(tap, method=ReviewKD()) for tap in taps], [KD()])] == [
        2,
        1,
    ]


def test_what_a_joint_method_is_told_of_its_taps() -> None:
    student, teacher, taps, x = networks()
    with pytest.raises(ValueError, match=r"tap conv1.output ← layer2.0.output: reviewkd fuses .* at least two taps"):
        Distillation(student, teacher, taps[:1], "reviewkd", example=x)
    with pytest.raises(ValueError, match="reviewkd needs the shapes of its maps; give Distillation an example="):
        Distillation(student, teacher, taps, "reviewkd")
    with pytest.raises(ValueError, match=r"the same method is given twice at one place: reviewkd/conv1.output"):
        Distillation(student, teacher, [taps[0], *taps], "reviewkd", example=x)
    wrong = replace(taps[1], teacher_layer="layer1")
    message = r"taps conv1.output ← layer2.0.output, layer2.0.input ← layer1.input: reviewkd needs equal shapes"
    with pytest.raises(ValueError, match=message):
        Distillation(student, teacher, [taps[0], wrong], "reviewkd", example=x)
    for parameter in student.conv1.parameters():
        parameter.requires_grad_(False)
    d = Distillation(student, teacher, taps, "reviewkd", example=x)
    with pytest.raises(RuntimeError, match=r"reviewkd would teach the student nothing: its map carries no gradient"):
        d(x)


class Tokens(nn.Module):
    """Patches of an image as tokens, B×16×C."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.mix(x).mean(1)


@pytest.mark.parametrize(
    "name", ["reviewkd", "at", "nst", "vid", "ft", "ab", "srd", "sp", "pkt", "rkd", "cc", "red-loss"]
)
def test_tokens_with_a_grid_are_maps(name: str) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 1, 1))
    x = torch.rand(4, 3, 8, 8)
    places = [("blocks.0", "0"), ("blocks.1", "2")]
    taps = [Tap(ours, "output", theirs, "output", grid=(4, 4)) for ours, theirs in places]
    student = Tokens()
    losses = Distillation(student, teacher, taps, name, example=x)(x)[1]
    losses["distill"].backward()
    assert losses["distill"].isfinite() and student.patches.weight.grad.abs().sum() > 0
    if name != "sp":  # which compares whole maps, whatever their axes
        plain = [replace(tap, grid=None) for tap in taps]
        with pytest.raises(ValueError, match=rf"{name} needs .*\(16, 6\)"):
            Distillation(Tokens(), teacher, plain, name, example=x)
