"""Methods that compare feature maps, tap by tap, and leave nothing in the student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import is_number
from redistill_lib.methods.base import (
    Batch,
    Shape,
    Weighted,
    above_zero,
    batch_norm,
    check_kind,
    check_pattern,
    check_same_size,
    convolution,
    from_zero,
    option,
    spatial_mean,
    unit,
)


class SameSize(Weighted):
    """What most methods here need: two maps or two volumes of equal height × width, of any channels."""

    def check(self, student: Shape, teacher: Shape) -> None:
        check_same_size(self.name, student, teacher)


@dataclass(frozen=True)
class FitNet(SameSize):
    """Hints: mean squared error between the teacher's map and the student's, projected to as many channels.

    Needs equal height × width. Source: Romero et al., arXiv 1412.6550, equation 3; weight 100 as in RepDistiller.

    >>> FitNet().criterion((8, 4, 4), (16, 4, 4), samples=0).parts.project.weight.shape
    torch.Size([16, 8, 1, 1])
    """

    name = "fitnet"
    alpha: float = 100.0

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        return {"project": convolution(student, teacher[0])}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, project: nn.Module) -> Tensor:
        return F.mse_loss(project(student), teacher)


def _from_one(label: str, value: object) -> None:
    if not is_number(value) or value < 1:  # type: ignore[operator]  # a number by then
        raise ValueError(f"{label} is a number from 1 up, not {value!r}")


@dataclass(frozen=True)
class AT(Weighted):
    """Attention transfer: mean squared difference of where the maps are strong, ``Σ_c |x_c|^power`` at length 1.

    Where maps differ in height × width, both attention maps are averaged down to the smaller one, as the paper allows
    (section 3.1), and the run's record says so. Source: Zagoruyko and Komodakis, arXiv 1612.03928, equation 2; weight
    1000 as there and in RepDistiller.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> AT().criterion((3, 4, 4), (3, 4, 4), samples=0)(x, 2 * x, None).item() < 1e-12
    True
    """

    name = "at"
    power: float = option(2.0, _from_one)
    alpha: float = 1000.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_kind(self.name, student, teacher)
        check_pattern(self.name, _smaller(student[1:], teacher[1:]))

    def resized(self, student: Shape, teacher: Shape) -> str:
        sizes = ["×".join(map(str, shape[1:])) for shape in (student, teacher)]
        size = "×".join(map(str, _smaller(student[1:], teacher[1:])))
        return "" if student[1:] == teacher[1:] else f"attention maps {sizes[0]} and {sizes[1]} to {size}"

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        size = _smaller(student.shape[2:], teacher.shape[2:])
        s, t = (self._attention(x, size) for x in (student, teacher))
        return F.mse_loss(s, t)

    def _attention(self, x: Tensor, size: Shape) -> Tensor:
        attention = x.abs().pow(self.power).mean(1, keepdim=True)
        if attention.shape[2:] != size:
            attention = F.interpolate(attention, size, mode="area")
        return unit(attention.flatten(1))


def _smaller(one: Sequence[int], other: Sequence[int]) -> Shape:
    return tuple(map(min, one, other))


@dataclass(frozen=True)
class NST(SameSize):
    """Neuron selectivity: the squared maximum mean discrepancy, with kernel ``(xᵀy)²``, between the teacher's and the
    student's channels, each a sample of where an image excites a neuron, at length 1.

    Needs equal height × width, any channels. Source: Huang and Wang, arXiv 1707.01219, section 4; weight 50 as in
    RepDistiller.

    >>> x = torch.rand(2, 3, 4, 4)
    >>> abs(NST().criterion((3, 4, 4), (3, 4, 4), samples=0)(x, x.flip(1), None).item()) < 1e-6
    True
    """

    name = "nst"
    alpha: float = 50.0

    def check(self, student: Shape, teacher: Shape) -> None:
        super().check(student, teacher)
        check_pattern(self.name, student[1:])

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        s, t = (unit(x.flatten(2), dim=2) for x in (student, teacher))
        return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean()


@dataclass(frozen=True)
class VID(Weighted):
    """Variational information: the negative log-likelihood ``½ ((t − μ(s))² / σ² + log σ²)``, mean over the map, of
    the teacher's values under a Gaussian: three 1×1 convolutions predict μ, and each channel learns its σ².

    Needs equal height × width; vectors are taken too. It may fall below 0. Source: Ahn et al., arXiv 1904.05835,
    section 3; as in RepDistiller the hidden layers have the teacher's channels, σ² starts at 5, and the weight is 1.

    >>> VID().criterion((8, 4, 4), (16, 4, 4), samples=0).parts.estimate(torch.rand(2, 8, 4, 4))[0].shape
    torch.Size([2, 16, 4, 4])
    """

    name = "vid"
    variance: float = option(5.0, above_zero)
    alpha: float = 1.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_same_size(self.name, student, teacher, vectors=True)

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        return {"estimate": Gaussian(student, teacher[0], self.variance)}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, estimate: nn.Module) -> Tensor:
        mean, variance = estimate(student)
        return 0.5 * ((teacher - mean).square() / variance + variance.log()).mean()


class Gaussian(nn.Module):
    """A mean and a variance for each value of the teacher's map, told from the student's."""

    least = 1e-5

    def __init__(self, student: Shape, channels: int, variance: float):
        super().__init__()
        inner = (channels, *student[1:])
        layers = [convolution(shape, channels, bias=False) for shape in (student, inner, inner)]
        self.mean = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        start = max(variance - self.least, self.least)
        inverse = start + math.log(-math.expm1(-start))  # of softplus
        self.scale = nn.Parameter(torch.full((channels,), inverse))

    def forward(self, student: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(student)
        variance = F.softplus(self.scale) + self.least
        return mean, variance.view(-1, *[1] * (mean.ndim - 2))


@dataclass(frozen=True)
class FT(SameSize):
    """Factor transfer: the mean absolute difference of two factors at length 1, the teacher's from a paraphraser and
    the student's from a translator, each three 3×3 convolutions to `rate` times the teacher's channels.

    The paper trains the paraphraser beforehand, to restore the teacher's map from its factor. Here it learns that
    beside the student, from the same batches: the loss holds the squared error of the restored map, `reconstruction`
    times (0.005: at weight 200 it counts once), and the student's loss does not reach the paraphraser. Needs equal
    height × width. Source: Kim et al., arXiv 1802.04977, equations 1 and 4 with p = 1; weight 200 as in RepDistiller.

    >>> FT().criterion((8, 4, 4), (16, 4, 4), samples=0).parts.translator(torch.rand(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    name = "ft"
    rate: float = option(0.5, above_zero)
    reconstruction: float = option(0.005, from_zero)
    alpha: float = 200.0

    def check(self, student: Shape, teacher: Shape) -> None:
        super().check(student, teacher)
        if {self._channels(teacher), *student[1:]} == {1}:
            raise ValueError(f"{self.name} compares the directions of factors, and one value has none; raise rate")

    def _channels(self, teacher: Shape) -> int:
        return max(1, round(teacher[0] * self.rate))

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        given, size, factor = teacher[0], teacher[1:], self._channels(teacher)
        return {
            "paraphraser": _chain(teacher, given, factor, factor),
            "restorer": _chain((factor, *size), factor, given, given),
            "translator": _chain(student, student[0], factor, factor),
        }

    def loss(
        self,
        student: Tensor,
        teacher: Tensor,
        batch: Batch,
        paraphraser: nn.Module,
        restorer: nn.Module,
        translator: nn.Module,
    ) -> Tensor:
        factor = paraphraser(teacher)
        s, t = unit(translator(student).flatten(1)), unit(factor.detach().flatten(1))
        return F.l1_loss(s, t) + self.reconstruction * F.mse_loss(restorer(factor), teacher)


def _chain(shape: Shape, *channels: int) -> nn.Sequential:
    """3×3 convolutions, each with batch norm and leaky ReLU. At stride 1 a transposed convolution is one too."""
    layers: list[nn.Module] = []
    for given, made in zip((shape[0], *channels), channels, strict=False):
        conv = convolution((given, *shape[1:]), made, kernel_size=3)
        layers += [conv, batch_norm(shape, made), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class AB(SameSize):
    """Activation boundaries: the student, by 1×1 convolution and batch norm in as many channels, is pushed beyond
    `margin` on the side of 0 where the teacher is: ``(s + m)²`` where t ≤ 0 and s > −m, ``(s − m)²`` where t > 0 and
    s ≤ m, summed over an image's map.

    Tap the teacher before its activation; behind a ReLU, 0 counts as inactive. The paper trains with this alone first
    and distils afterwards; here it is one loss among others throughout. Needs equal height × width. Source: Heo et
    al., arXiv 1811.03233, section 3; margin 1, the factor 3/1000 and weight 1 as in their code and RepDistiller,
    which halves it for each earlier tap; here taps count alike.

    >>> AB().criterion((8, 4, 4), (16, 4, 4), samples=0).parts.connect[0].weight.shape
    torch.Size([16, 8, 1, 1])
    """

    name = "ab"
    margin: float = option(1.0, above_zero)
    alpha: float = 1.0

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        project = convolution(student, teacher[0], bias=False)
        return {"connect": nn.Sequential(project, batch_norm(student, teacher[0]))}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, connect: nn.Module) -> Tensor:
        side = torch.where(teacher > 0, 1.0, -1.0)
        short = F.relu(self.margin - side * connect(student))
        return 3 / 1000 * short.square().sum() / len(student)


@dataclass(frozen=True)
class SRD(Weighted):
    """The simple recipe: the logarithm of the summed ``|s − t|^power``, of embeddings B×C (maps are averaged over
    space) of which the student's is projected linearly and both are batch-normalised without scale or shift.

    It has no least value, and falls as the two become equal. Source: Miles and Mikolajczyk, Understanding the Role of
    the Projector in Knowledge Distillation, arXiv 2303.11098, section 3; power 4 and weight 2 as in their code.

    >>> SRD().criterion((8, 4, 4), (16, 2, 2), samples=0).parts.project
    Linear(in_features=8, out_features=16, bias=True)
    """

    name = "srd"
    least_images = 2
    power: float = option(4.0, _from_one)
    alpha: float = 2.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_kind(self.name, student, teacher, vectors=True, alike=False)

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        norms = nn.ModuleList(nn.BatchNorm1d(teacher[0], eps=1e-4, affine=False) for _ in range(2))
        return {"project": nn.Linear(student[0], teacher[0]), "norms": norms}

    def loss(
        self, student: Tensor, teacher: Tensor, batch: Batch, project: nn.Module, norms: nn.ModuleList
    ) -> Tensor:
        s, t = norms[0](project(spatial_mean(student))), norms[1](spatial_mean(teacher))
        return ((s - t).abs().pow(self.power).sum() + 1e-12).log()
