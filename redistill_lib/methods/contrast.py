"""Methods that tell an image from all others, with a memory of every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import whole
from redistill_lib.methods.base import Batch, MemoryBank, Shape, Weighted, above_zero, option, share, spatial_mean


@dataclass(frozen=True)
class CRD(Weighted):
    """Contrastive representation distillation: a student's embedding of an image is told from the teacher's memory of
    other images, and the teacher's from the student's, by noise-contrastive estimation.

    Maps are averaged over space, then embedded linearly in `dim` dimensions on the unit sphere. `negatives` other
    images of any class are drawn evenly from the training split. Source: Tian et al., arXiv 1910.10699,
    equations 17 to 19; defaults and weight 0.8 as in RepDistiller.

    >>> CRD(dim=4).criterion((8, 2, 2), (16, 2, 2), samples=10).parts.bank.vectors.shape
    torch.Size([2, 10, 4])
    """

    name = "crd"
    dim: int = option(128, whole)
    negatives: int = option(16384, whole)
    temperature: float = option(0.07, above_zero)
    momentum: float = option(0.5, share)
    alpha: float = 0.8

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        heads = nn.ModuleList(nn.Linear(shape[0], self.dim) for shape in (student, teacher))
        return {"heads": heads, "bank": MemoryBank(self.name, samples, self.dim)}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, heads: nn.ModuleList, bank: MemoryBank) -> Tensor:
        pairs = zip(heads, (student, teacher), strict=True)
        own = F.normalize(torch.stack([head(spatial_mean(x)) for head, x in pairs]), dim=2)
        rows = bank.rows(batch, self.negatives)
        scores = torch.einsum("sbd,sbkd->sbk", own.flip(0), bank.vectors[:, rows]) / self.temperature
        logits = scores - (bank.scale(scores.exp()) * (rows.shape[1] - 1)).log()
        bank.update(rows[:, 0], own, self.momentum)
        return (F.softplus(-logits[:, :, 0]) + F.softplus(logits[:, :, 1:]).sum(2)).mean(1).sum()
