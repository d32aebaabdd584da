"""Methods that compare what the networks answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.checks import check_above_zero
from redistill_lib.methods.base import (
    Batch,
    Shape,
    Weighted,
    above_zero,
    check_equal,
    class_probabilities,
    option,
    unit,
    weight,
)


@dataclass(frozen=True)
class KD(Weighted):
    """Soft-label distillation: ``T² · KL(softmax(t/T) ‖ softmax(s/T))`` over dimension 1, mean over all others.

    Source: Hinton et al., arXiv 1503.02531; temperature 2 as in the ReDistill configurations.

    >>> KD().criterion((2,), (2,), samples=0)(torch.eye(2), torch.eye(2), None).item()
    0.0
    """

    name, reads = "kd", "outputs"
    temperature: float = option(2.0, above_zero)
    alpha: float = 1.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_equal(self.name, student, teacher, "train both on the same classes")
        if student[:1] == (1,):
            raise ValueError(f"{self.name} compares probabilities, and that of a single output is always 1; use mse")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        s, t = (F.log_softmax(logits / self.temperature, dim=1) for logits in (student, teacher))
        return self.temperature**2 * _divergence(s, t).mean()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) over dimension 1, from logarithms."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True)
class LSKD(KD):
    """KD of standardised logits: each image's logits get mean 0 and standard deviation 1 over the classes, then KD.

    The student keeps the logits' relations, and is free in their scale and shift. Source: Sun et al., arXiv
    2403.01427, algorithms 1 and 2; base temperature 2 and weight 9 are the authors'.

    >>> logits = torch.eye(3)
    >>> LSKD().criterion((3,), (3,), samples=0)(logits, 5 * logits + 1, None).item() < 1e-6
    True
    """

    name = "ls-kd"
    temperature: float = option(2.0, above_zero)
    alpha: float = 9.0

    def check(self, student: Shape, teacher: Shape) -> None:
        super().check(student, teacher)
        if student[:1] == (2,):
            raise ValueError(f"{self.name} standardises logits, and of two only their order is left; use kd")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return super().loss(_standardised(student), _standardised(teacher), batch)


def _standardised(logits: Tensor) -> Tensor:
    """Over dimension 1; where all logits are equal, eps keeps the gradient below 1000 times what it was."""
    last = logits.movedim(1, -1)
    return F.layer_norm(last, last.shape[-1:], eps=1e-6).movedim(-1, 1)


@dataclass(frozen=True)
class DKD(KD):
    """Decoupled distillation: ``T² · (target · KL(b_t ‖ b_s) + others · KL(n_t ‖ n_s))``, b the binary distribution
    of the target class against all others, n the distribution among the others.

    A target that is a mixture of classes (CutMix, MixUp) weighs the losses of its classes by their shares. Source:
    Zhao et al., arXiv 2203.08679, equation 7; its defaults are T 4 and weights 1 and 8.

    >>> loss = DKD().criterion((3,), (3,), samples=0)
    >>> loss(torch.eye(3), torch.eye(3), Batch((), targets=torch.tensor([0, 1, 2]))).item()
    0.0
    """

    name = "dkd"
    temperature: float = option(4.0, above_zero)
    target: float = weight(1.0)
    others: float = weight(8.0)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        shares = class_probabilities(batch, student, self.name)
        rows, classes = shares.nonzero(as_tuple=True)  # one row for each class in an image's target
        own = F.one_hot(classes, student.shape[1]).bool()
        parts = [_decouple(logits[rows] / self.temperature, own) for logits in (student, teacher)]
        target, others = (_divergence(s, t) for s, t in zip(*parts, strict=True))
        loss = self.temperature**2 * (self.target * target + self.others * others)
        return (shares[rows, classes] * loss).sum() / len(student)


def _decouple(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """log b (N×2) and log n (N×classes, 0 at the class itself) of arXiv 2203.08679, section 3.1."""
    apart = logits.masked_fill(own, -torch.inf)
    binary = torch.stack([logits[own], apart.logsumexp(1)], 1).log_softmax(1)
    return binary, apart.log_softmax(1).masked_fill(own, 0)


@dataclass(frozen=True)
class DIST(Weighted):
    """Relations instead of values: ``T² · (inter · d(rows) + intra · d(columns))`` of the probabilities, B×classes,
    d the mean of 1 − Pearson's correlation: over the classes of each image, and over the images for each class.

    Source: Huang et al., arXiv 2205.10536, section 3; T 1 and weights 2 and 2 as on ImageNet (T 4 on CIFAR-100).

    >>> probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    >>> round(DIST().criterion((3,), (3,), samples=0)(probabilities.log(), probabilities.log(), None).item(), 4)
    0.0
    """

    name, reads = "dist", "outputs"
    least_images = 2
    temperature: float = option(1.0, above_zero)
    inter: float = weight(2.0)
    intra: float = weight(2.0)
    alpha: float = 1.0

    def check(self, student: Shape, teacher: Shape) -> None:
        _check_classes(self.name, student, teacher)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        s, t = (F.softmax(logits / self.temperature, dim=1) for logits in (student, teacher))
        inter, intra = 1 - _correlation(s, t).mean(), 1 - _correlation(s.T, t.T).mean()
        return self.temperature**2 * (self.inter * inter + self.intra * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's, of each row: N×K → N; 0 where a row is constant."""
    a, b = (unit(x - x.mean(1, keepdim=True)) for x in (a, b))
    return (a * b).sum(1)


def _check_classes(method: str, student: Shape, teacher: Shape) -> None:
    check_equal(method, student, teacher, "train both on the same classes")
    if len(student) != 1 or student[0] < 2:
        found = "×".join(["B", *map(str, student)])
        raise ValueError(f"{method} needs outputs B×classes of 2 classes or more, not {found}; use mse")


def _temperatures(label: str, value: object) -> None:
    if not isinstance(value, tuple) or not value:
        raise ValueError(f"{label} is a tuple of numbers, such as (2.0, 4.0), not {value!r}")
    for k, each in enumerate(value):
        check_above_zero(**{f"{label}[{k}]": each})


@dataclass(frozen=True)
class MLLD(Weighted):
    """Multi-level logit distillation, summed over `temperatures`: KD of each image; the squared difference of the
    images' similarities ``p pᵀ`` (B×B, over B); and of the classes' ``pᵀ p`` (classes×classes, over their number).

    One view of each image is compared, without the confidence masks of the authors' code. Source: Jin, Wang and Lin,
    Multi-Level Logit Distillation, CVPR 2023, section 3; temperatures and T² on the first part as in their code.

    >>> logits = torch.eye(3)
    >>> MLLD(temperatures=(2.0,)).criterion((3,), (3,), samples=0)(logits, logits, None).item()
    0.0
    """

    name, reads = "mlld", "outputs"
    temperatures: tuple[float, ...] = option((2.0, 3.0, 4.0, 5.0, 6.0), _temperatures)
    instances: float = weight(1.0)
    batches: float = weight(1.0)
    classes: float = weight(1.0)
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "temperatures", tuple(map(float, self.temperatures)))

    def check(self, student: Shape, teacher: Shape) -> None:
        _check_classes(self.name, student, teacher)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return torch.stack([self._at(k, student, teacher) for k in self.temperatures]).sum()

    def _at(self, temperature: float, student: Tensor, teacher: Tensor) -> Tensor:
        log_s, log_t = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
        s, t = log_s.exp(), log_t.exp()
        instances = temperature**2 * _divergence(log_s, log_t).mean()
        batches = (s @ s.T - t @ t.T).square().sum() / len(s)
        classes = (s.T @ s - t.T @ t).square().sum() / s.shape[1]
        return self.instances * instances + self.batches * batches + self.classes * classes


@dataclass(frozen=True)
class MSE(Weighted):
    """Mean squared error between two equal tensors: the networks' predictions, or the maps at a tap that carries it.

    Source: the output distillation of the DDPM configurations published with arXiv 2406.03744.
    """

    name, reads = "mse", "outputs"
    alpha: float = 1.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_equal(self.name, student, teacher, "it compares value by value")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(student, teacher)
