"""Methods that teach vision transformers: DeiT's distillation head, and the local order of a CNN's maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.methods.base import Batch, Shape, Weighted, check_equal
from redistill_lib.red import OF_TOKENS


@dataclass(frozen=True)
class DeiT(Weighted):
    """Hard-label distillation: the student's distillation head learns the class that the teacher answers.

    The task loss is that of the other head, so that with `Objective`'s share of ½ both together are
    ``½ CE(ψ(Z_class), y) + ½ CE(ψ(Z_dist), y_t)``. `layer` is the distillation head in the student, in networks of
    Hugging Face ``distillation_classifier``. Source: Touvron et al., arXiv 2012.12877, equation 3.

    >>> import torch
    >>> DeiT().criterion((2,), (2,), samples=0)(torch.zeros(1, 2), torch.tensor([[1.0, 5.0]]), None).exp()
    tensor(2.)
    """

    name, reads = "deit", "outputs"
    layer: str = "head_dist"
    alpha: float = 1.0

    def check(self, student: Shape, teacher: Shape) -> None:
        check_equal(self.name, student, teacher, "train both on the same classes")

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(student, teacher.argmax(1))


@dataclass(frozen=True)
class Locality(Weighted):
    """Locality guidance: mean squared error between a CNN's map and the student's, projected to as many channels.

    The maps may differ in size: both are resized, bilinearly, to the larger height and width. The paper guides the
    first, middle and last block of a ViT by the three stages of a small ResNet, and weighs the sum of their losses by
    2.5; here a method's losses are averaged over its taps, so that the default of 7.5 is its weight for three taps.
    Source: Li et al., arXiv 2207.10026, section 3.3.

    >>> Locality().criterion((8, 4, 4), (16, 7, 7), samples=0).parts.project.weight.shape
    torch.Size([16, 8, 1, 1])
    """

    name = "locality"
    alpha: float = 7.5

    def check(self, student: Shape, teacher: Shape) -> None:
        for who, shape in (("student", student), ("teacher", teacher)):
            if len(shape) != 3:
                raise ValueError(f"{self.name} needs maps C×H×W, not {shape} from the {who}; {OF_TOKENS}")

    def resized(self, student: Shape, teacher: Shape) -> str:
        ours, theirs = (f"{h}×{w}" for _, h, w in (student, teacher))
        return f"maps {ours} and {theirs} to the larger" if ours != theirs else ""

    def parts(self, student: Shape, teacher: Shape, samples: int) -> dict[str, nn.Module]:
        return {"project": nn.Conv2d(student[0], teacher[0], 1)}

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch, project: nn.Module) -> Tensor:
        maps = project(student), teacher
        size = [max(x.shape[axis] for x in maps) for axis in (2, 3)]
        ours, theirs = (F.interpolate(x, size, mode="bilinear") if [*x.shape[2:]] != size else x for x in maps)
        return F.mse_loss(ours, theirs)
