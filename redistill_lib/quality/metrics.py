"""Distances between two sets of features, in float64. KID and Inception Score are torchmetrics'."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.quality.extractors import Features

SUBSETS, SUBSET_SIZE = 100, 1000  # KID: Bińkowski et al. 2018
PARTS = 10  # Inception Score: Salimans et al. 2016
NEIGHBOURS, MOST = 3, 10_000  # precision and recall: Kynkäänniemi et al. 2019; of larger sets a part
GROUPS, LEVELS = 12, (1, 2, 3, 4)  # of the jackknife; parts that each set is cut into to extrapolate
# FID bends in 1/N below so many images per feature, and the more, the larger one set is than the other: simulated
# with 64 features and 512 against 5,120 images, the interval of the limit would hold it in 73 % of cases.
PER_FEATURE, LARGER = 2, 1.25
CHUNK = 1024

Gaussian = tuple[Tensor, Tensor]  # mean, covariance


def fid(fake: Features, real: Features) -> float:
    """Fréchet distance between the Gaussians fitted to two sets (Heusel et al. 2017); biased upwards by about 1/N.

    Raises ValueError for sets with no more images than features: their covariance has no full rank.
    """
    width = real.values.shape[1]
    for name, which in {"fake": fake, "real": real}.items():
        if len(which) <= width:
            fix = f"FID needs at least {width + 1:,}, or an extractor with fewer features"
            raise ValueError(
                f"{len(which):,} {name} images are too few for a covariance of {width:,} features; {fix}"
            )
    return max(0.0, frechet((fake.mean, fake.cov), (real.mean, real.cov)))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁C₂)^½), by symmetric roots: quicker than by C₁C₂ itself."""
    values, vectors = torch.linalg.eigh(a[1])
    root = vectors * values.clamp_min(0).sqrt()
    shared = torch.linalg.eigvalsh(root.T @ b[1] @ root).clamp_min(0).sqrt().sum()
    return float((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * shared)


def kid(fake: Features, real: Features, *, subset_size: int | None = None, seed: int = 0) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x·y/d + 1)³ (Bińkowski et al. 2018): mean and spread over 100 subsets.

    The spread is that of one subset, not the error of the mean. Raises ValueError for a subset above the smaller set.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    least, size = min(len(fake), len(real)), subset_size or kid_subset_size(fake, real)
    if not 2 <= size <= least:
        raise ValueError(f"KID's subset_size is {size:,}; it is at least 2 and at most the smaller set, {least:,}")
    sets = (real.values.double(), True), (fake.values.double(), False)
    return _drawn(KernelInceptionDistance, seed, *sets, subsets=SUBSETS, subset_size=size)


def kid_subset_size(fake: Features, real: Features) -> int:
    return min(SUBSET_SIZE, min(len(fake), len(real)) // 2)


def inception_score(fake: Features, *, seed: int = 0) -> tuple[float, float]:
    """exp of the mean KL divergence of p(y|x) from p(y) (Salimans et al. 2016): mean and spread over 10 parts.

    NaN for an extractor without logits, or with fewer than ten images for each part.
    """
    from torchmetrics.image.inception import InceptionScore

    if fake.logits is None or len(fake) < 10 * PARTS:
        return math.nan, math.nan
    # Probabilities of 1e-304 and above: a class that is certain to be absent would otherwise make 0 · ∞.
    return _drawn(InceptionScore, seed, (fake.logits.double().log_softmax(1).clamp_min(-700),), splits=PARTS)


def _drawn(kind: Any, seed: int, *sets: Any, **options: Any) -> tuple[float, float]:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it keeps all features
        metric = kind(nn.Identity(), **options)
    for each in sets:
        metric.update(*each)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, spread = metric.compute()
    return float(mean), float(spread)


def precision_recall(fake: Features, real: Features, *, seed: int = 0) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2), k = 3.

    Precision is the share of fakes in some real image's ball, which reaches to its third nearest real neighbour;
    recall the same with the sets exchanged. Both depend on the density of the sets, so equally many are taken of
    each: all of the smaller one, at most 10,000, drawn with `seed`.
    """
    count, generator = precision_recall_count(fake, real), torch.Generator().manual_seed(seed)
    chosen = [which.take(torch.randperm(len(which), generator=generator)[:count]) for which in (fake, real)]
    x, y = (which.values.double() - real.mean for which in chosen)
    return _covered(x, y), _covered(y, x)


def precision_recall_count(fake: Features, real: Features) -> int:
    return min(len(fake), len(real), MOST)


def _covered(points: Tensor, centres: Tensor) -> float:
    """The share of `points` in at least one of the balls around `centres`."""
    slack = 1e-6 * float(centres.norm(dim=1).mean())  # cdist multiplies matrices: equal points are not quite 0 apart
    nearest = min(NEIGHBOURS, len(centres) - 1) + 1  # the first is the image itself
    radii = torch.cat([torch.cdist(part, centres).kthvalue(nearest).values for part in centres.split(CHUNK)])
    inside = torch.cat([(torch.cdist(part, centres) <= radii + slack).any(1) for part in points.split(CHUNK)])
    return float(inside.double().mean())


@dataclass(frozen=True)
class Extrapolation:
    """FID at the given N and for N → ∞, and half the width of the 95 % interval of either."""

    fid: float
    limit: float
    error: float


def extrapolate(fake: Features, real: Features, *, seed: int = 0) -> Extrapolation:
    """FID free of the bias of finite N: the intercept of a line through FID over 1/N (Chong & Forsyth 2020).

    FID is taken of the whole sets and of their halves, thirds and quarters, pairwise. Unlike in the paper the real
    set shrinks too, so its bias goes as well, and the limit can fall below 0. It is NaN where FID is no straight line
    in 1/N: with fewer than two images per feature in a quarter of the smaller set, or a larger set of more than 1.25
    times the smaller.

    The error is by a jackknife over 12 random groups of both sets: of drawing images, not of the training. For
    Gaussian samples a known distance apart the interval around the limit held that distance in 91 to 99 % of cases
    (16 to 256 features; with 4 features, in 86 to 96 %).
    """
    from scipy.special import stdtrit

    generator = torch.Generator().manual_seed(seed)
    moments = []  # of each group, fakes' and reals': what can be added up
    for which in (fake, real):
        drawn = which.values[torch.randperm(len(which), generator=generator)].tensor_split(GROUPS)
        parts = (F.pad(part.double() - real.mean, (1, 0), value=1.0) for part in drawn)
        moments.append(torch.stack([part.T @ part for part in parts]))
    small, large = sorted((len(fake), len(real)))
    straight = small >= LEVELS[-1] * PER_FEATURE * real.values.shape[1] and large <= LARGER * small
    levels, groups = LEVELS if straight else LEVELS[:1], np.arange(GROUPS)
    cuts = [(level, rows) for level in levels for rows in np.array_split(groups, level)]

    def distance(rows: np.ndarray) -> float:
        a, b = (_gaussian(part[rows].sum(0)) for part in moments)
        return frechet(a, b)

    found = [distance(rows) for _, rows in cuts]
    left_out = np.array([distance(np.delete(groups, k)) for k in groups])
    limit = math.nan
    if straight:
        inverse = [1 / float(moments[0][rows, 0, 0].sum()) for _, rows in cuts]
        weights = [level**-0.5 for level, _ in cuts]  # each level weighs the same
        limit = float(np.polyfit(inverse, found, 1, w=weights)[1])
    error = float(stdtrit(GROUPS - 1, 0.975) * left_out.std() * math.sqrt(GROUPS - 1))
    return Extrapolation(found[0], limit, error)


def _gaussian(moments: Tensor) -> Gaussian:
    """Of XᵀX, where the first column of X is ones."""
    count, sums, seconds = moments[0, 0], moments[0, 1:], moments[1:, 1:]
    return sums / count, (seconds - torch.outer(sums, sums) / count) / (count - 1)
