"""Methods that compare how the images of a batch relate to one another, and leave nothing in the student.

Student and teacher may differ in channels and in size: only relations of images are compared, batch by batch. Mixed
images (CutMix, MixUp) are images like others, as both networks see the same mixture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from redistill_lib.checks import whole
from redistill_lib.methods.base import (
    Batch,
    Shape,
    Weighted,
    above_zero,
    check_kind,
    option,
    spatial_mean,
    unit,
    weight,
)

_EPS = 1e-7


@dataclass(frozen=True)
class SP(Weighted):
    """Similarity-preserving: ``1/B² · ‖G_t − G_s‖²``, G the B×B products of flattened maps, each row at length 1.

    Source: Tung and Mori, arXiv 1907.09682, equations 1 to 3; weight 3000 as in the paper and RepDistiller.

    >>> x = torch.rand(4, 3, 2, 2)
    >>> SP().criterion((3, 2, 2), (3, 2, 2), samples=0)(x, 2 * x, None).item() < 1e-10
    True
    """

    name = "sp"
    least_images = 2
    alpha: float = 3000.0

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        s, t = (unit(x @ x.T) for x in (student.flatten(1), teacher.flatten(1)))
        return F.mse_loss(s, t)


class Embedded(Weighted):
    """What the methods below have in common: maps are averaged over space to an embedding of each image, B×C."""

    def check(self, student: Shape, teacher: Shape) -> None:
        check_kind(self.name, student, teacher, vectors=True, alike=False)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return self.compare(spatial_mean(student), spatial_mean(teacher))

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class PKT(Embedded):
    """Probabilistic knowledge transfer: the mean over pairs of ``p · log(p / q)``, p by the teacher and q by the
    student the probability that an image picks another as its neighbour, in proportion to ½ (1 + cos).

    An image does not pick itself, as in the paper; the authors' code and RepDistiller let it. Source: Passalis and
    Tefas, arXiv 1803.10837, section 3; weight 30000 as in RepDistiller.

    >>> x = torch.rand(4, 3)
    >>> PKT().criterion((3,), (3,), samples=0)(x, 2 * x, None).item() < 1e-10
    True
    """

    name = "pkt"
    least_images = 3
    alpha: float = 30000.0

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        q, p = (_neighbours(x) for x in (student, teacher))
        images = len(student)
        return (p * ((p + _EPS) / (q + _EPS)).log()).sum() / max(1, images * (images - 1))


def _neighbours(x: Tensor) -> Tensor:
    """B×B: the probability that the image of a row picks that of a column, 0 on the diagonal."""
    x = unit(x)
    similarity = (1 + x @ x.T) / 2 * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    return similarity / similarity.sum(1, keepdim=True).clamp(min=_EPS)


@dataclass(frozen=True)
class RKD(Embedded):
    """Relational distillation: ``distance · h(d_t, d_s) + angle · h(a_t, a_s)``, h the Huber loss, d the distances
    between images over their mean, a the cosines of the angles that any three images make.

    Means are over all B² and B³ places, as in the authors' code; memory for angles grows with B³. Images in one place
    make no angle. Source: Park et al., arXiv 1904.05068, sections 3.2.1 and 3.2.2; weights 25 and 50 are theirs.

    >>> x = torch.rand(4, 3)
    >>> RKD().criterion((3,), (3,), samples=0)(x, 2 * x, None).item() < 1e-6
    True
    """

    name = "rkd"
    least_images = 3
    distance: float = weight(25.0)
    angle: float = weight(50.0)
    alpha: float = 1.0

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        (d_s, a_s), (d_t, a_t) = _geometry(student), _geometry(teacher)
        return self.distance * F.smooth_l1_loss(d_s, d_t) + self.angle * F.smooth_l1_loss(a_s, a_t)


def _geometry(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances over their mean, B×B, and the cosine at image j between images i and k, at place j, i, k."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # whose gradient at 0 is 0
    mean = distances.sum() / max(1, len(x) * (len(x) - 1))
    near = distances < 1e-6 * mean.detach()
    directions = (x[None] - x[:, None]) / distances.masked_fill(near | (distances == 0), torch.inf)[:, :, None]
    return distances / mean.clamp(min=_EPS), directions @ directions.mT


def _order(label: str, value: object) -> None:
    whole(label, value, most=20)  # beyond, a term is below what a float tells


@dataclass(frozen=True)
class CC(Embedded):
    """Correlation congruence: ``1/B² · ‖C_t − C_s‖²``, C the Gaussian kernel ``exp(−γ‖x − y‖²)`` between embeddings
    at length 1, by its Taylor series up to `order`.

    Source: Peng et al., arXiv 1904.01802, sections 3.2 and 3.3; γ 0.4 and order 2 as there. Weight 0.02 is
    RepDistiller's, whose loss is another and larger one, so it is weak here: give alpha for a fair trial.

    >>> x = torch.rand(4, 3)
    >>> CC().criterion((3,), (3,), samples=0)(x, 2 * x, None).item() < 1e-10
    True
    """

    name = "cc"
    least_images = 2
    gamma: float = option(0.4, above_zero)
    order: int = option(2, _order)
    alpha: float = 0.02

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self._kernel(student), self._kernel(teacher))

    def _kernel(self, x: Tensor) -> Tensor:
        x = unit(x)
        powers = [(2 * self.gamma * x @ x.T) ** p / math.factorial(p) for p in range(1, self.order + 1)]
        return math.exp(-2 * self.gamma) * (1 + torch.stack(powers).sum(0))
