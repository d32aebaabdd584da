"""Methods that tell an image from all others, with a memory of every image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import check_above_zero, whole
from redistill_lib.methods.base import Batch, Shape, Weighted


@dataclass(frozen=True)
class CRD(Weighted):
    """Contrastive representation distillation: a student's embedding of an image is told from the teacher's memory of
    other images, and the teacher's from the student's, by noise-contrastive estimation.

    Maps are averaged over space, then embedded linearly in `dim` dimensions on the unit sphere. `negatives` other
    images of any class are drawn evenly from the training split. Source: Tian et al., arXiv 1910.10699,
    equations 17 to 19; defaults and weight 0.8 as in RepDistiller.

    >>> CRD(dim=4).criterion((8, 2, 2), (16, 2, 2), samples=10).banks.shape
    torch.Size([2, 10, 4])
    """

    name = "crd"
    dim: int = 128
    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    alpha: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("dim", self.dim), whole("negatives", self.negatives)
        check_above_zero(temperature=self.temperature)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is a share from 0 to below 1, not {self.momentum!r}")

    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module:
        if samples < 2:
            raise ValueError(f"{self.name} remembers each training image; give Distillation samples=, their number")
        return _Contrast(self, student[0], teacher[0], samples)


class _Contrast(nn.Module):
    def __init__(self, method: CRD, student: int, teacher: int, samples: int):
        super().__init__()
        self.method, self.samples = method, samples
        self.heads = nn.ModuleList(nn.Linear(channels, method.dim) for channels in (student, teacher))
        self.banks = nn.Buffer(F.normalize(torch.randn(2, samples, method.dim), dim=2))  # student's and teacher's
        self.scales = nn.Buffer(torch.zeros(2))  # Z of equation 18, set by the first batch

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if batch.index is None:
            raise ValueError(
                f"{self.method.name} keeps a memory of each image; call the distillation with index=, their rows"
            )
        index = torch.as_tensor(batch.index)
        if not 0 <= index.min() <= index.max() < self.samples:
            raise ValueError(
                f"{self.method.name} remembers images 0 to {self.samples - 1}, but the batch's index holds "
                f"{index.tolist()}"
            )
        index = index.to(student.device)
        pairs = zip(self.heads, (student, teacher), strict=True)
        ours, theirs = (F.normalize(head(x.flatten(2).mean(2) if x.ndim > 2 else x), dim=1) for head, x in pairs)
        count = min(self.method.negatives, self.samples - 1)
        shift = torch.randint(1, self.samples, (len(index), count), device=index.device)
        rows = torch.cat([index[:, None], (index[:, None] + shift) % self.samples], 1)  # the image itself comes first
        loss = self._estimate(ours, self.banks[1, rows], 0) + self._estimate(theirs, self.banks[0, rows], 1)
        if self.training:
            with torch.no_grad():
                for bank, new in zip(self.banks, (ours, theirs), strict=True):
                    bank[index] = F.normalize(bank[index].lerp(new, 1 - self.method.momentum), dim=1)
        return loss

    def _estimate(self, anchors: Tensor, memory: Tensor, side: int) -> Tensor:
        """Noise-contrastive estimation with the image itself in the memory's first column."""
        scores = torch.exp(torch.einsum("bd,bkd->bk", anchors, memory) / self.method.temperature)
        if not self.scales[side]:
            self.scales[side] = scores.detach().mean() * self.samples
        likely = scores / self.scales[side].clone()  # set in place for the other side
        noise = (memory.shape[1] - 1) / self.samples
        own, others = likely[:, 0] / (likely[:, 0] + noise), noise / (likely[:, 1:] + noise)
        return -(own.log().mean() + others.log().sum(1).mean())
