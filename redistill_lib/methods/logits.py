"""Methods that compare what the networks answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from redistill_lib.methods.features import check_alpha


@dataclass(frozen=True)
class KD:
    """Soft-label distillation: ``T² · KL(softmax(t/T) ‖ softmax(s/T))``, mean over the batch, on B×classes logits.

    Source: Hinton et al., arXiv 1503.02531; temperature 2 as in the ReDistill configurations.

    >>> import torch
    >>> KD().loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]])).item()
    0.0
    """

    name: ClassVar[str] = "kd"
    on_outputs: ClassVar[bool] = True
    has_block: ClassVar[bool] = False
    temperature: float = 2.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise ValueError(f"the KD temperature is a number above 0, not {self.temperature!r}")

    def block(self, channels: int) -> None:
        return None

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                f"KD needs equal logits, not {tuple(student.shape)} from the student and {tuple(teacher.shape)} "
                "from the teacher; train both on the same classes"
            )
        s = F.log_softmax(student.float() / self.temperature, dim=1)
        t = F.log_softmax(teacher.float() / self.temperature, dim=1)
        return self.temperature**2 * F.kl_div(s, t, reduction="batchmean", log_target=True)
