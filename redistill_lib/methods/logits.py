"""Methods that compare what the networks answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.methods.base import Batch, Shape, Weighted, above_zero, check_equal, class_probabilities, option


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

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        s, t = (F.log_softmax(logits / self.temperature, dim=1) for logits in (student, teacher))
        return self.temperature**2 * _divergence(s, t).mean()


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) over dimension 1, from logarithms."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)


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
    target: float = 1.0
    others: float = 8.0

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
