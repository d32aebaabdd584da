"""What a distillation method is: the block it leaves in the student, and the loss it is trained with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import check_above_zero, check_fields, is_number
from redistill_lib.red import OF_TOKENS

#: A map's or an output's shape without its batch, such as (C, H, W); empty where no example told it.
Shape = tuple[int, ...]
#: What a method reads of the teacher's map: all of it, its mean over channels (1×H×W), or over space (C×1×1).
Summary = Literal["whole", "channel mean", "spatial mean"]


@dataclass(frozen=True)
class Batch:
    """One step's data: the networks' inputs, and targets (class numbers B, probabilities B×classes, or noise).

    `index` is each image's row in the training split, `view` which of its augmentations it is.
    """

    inputs: tuple[Tensor, ...]
    targets: Any = None
    index: Tensor | None = None
    view: Tensor | None = None


class Method(Protocol):
    """One distillation loss: a frozen dataclass, whose fields are what a run records of it.

    `reads` says whether it compares feature maps at taps or the networks' outputs; where it has a `layer`, the output
    of that layer of the student, such as a second head. `block` makes what stays in the student at a tap (RED), or
    None. `criterion` makes the loss of one tap, a module that is called ``(student, teacher, batch)`` → scalar: its
    parameters (projectors) are trained with the student, its buffers (memory banks of `samples` entries) saved with
    the training, and it is gone after `graduate`. A class with ``joint = True`` is given all its taps together:
    shapes, and later maps, as tuples in tap order.

    A method may have a ``summary``: what it reads of the teacher's map (`Summary`, ``whole`` where it says nothing).
    Its criterion then takes that in the map's place as well, and answers to many students can be kept.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    reads: ClassVar[Literal["maps", "outputs"]]

    @property
    def alpha(self) -> float: ...
    def block(self, student: Shape) -> nn.Module | None: ...
    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module: ...


def make_criterion(method: Method, student: Shape, teacher: Shape, samples: int) -> nn.Module:
    """`method.criterion`, or a TypeError that names what a method of one's own lacks."""
    _check_takes(f"{method.name}.criterion", method.criterion, "student", "teacher", "samples")
    try:
        criterion: object = method.criterion(student, teacher, samples)
    except (AttributeError, TypeError) as error:
        task = "make its criterion, an nn.Module, from two shapes and the number of training images"
        raise TypeError(f"{method.name} cannot {task}: {error}") from error
    if not isinstance(criterion, nn.Module):
        raise TypeError(f"{method.name}.criterion returns a {type(criterion).__name__}, not an nn.Module")
    _check_takes(f"the forward of {method.name}'s criterion", criterion.forward, "student", "teacher", "batch")
    return criterion


def check_loss(method: str, loss: object) -> Tensor:
    """`loss` if it is a scalar tensor, or a TypeError."""
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return loss
    found = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise TypeError(f"{method}'s loss is {found}, not a scalar tensor; return its mean() or sum(), without item()")


def _check_takes(what: str, function: Callable[..., object], *names: str) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(*names)
    except TypeError:
        lacks = f"; it lacks {', '.join(more)}" if (more := names[len(signature.parameters) :]) else ""
        takes = ", ".join(signature.parameters)
        raise TypeError(f"{what} takes ({takes}), but is called with ({', '.join(names)}){lacks}") from None


def option(default: Any, check: Callable[[str, Any], object]) -> Any:
    """A method's field, whose value is checked by ``check(name, value)`` when the method is made."""
    return field(default=default, metadata={"check": check})


def weight(default: float) -> Any:
    """A method's field that weighs a part of its loss: from 0 up, and not 0 for all parts."""
    return field(default=default, metadata={"check": from_zero, "weight": True})


def from_zero(label: str, value: Any) -> None:
    if not is_number(value) or value < 0:
        raise ValueError(f"{label}={value!r} is not a number from 0 up.")


def above_zero(label: str, value: Any) -> None:
    check_above_zero(**{label: value})


def share(label: str, value: Any) -> None:
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{label} is a share from 0 to below 1, not {value!r}")


class Weighted:
    """What the methods here have in common: checked options, no block, and a loss that is a function of their own.

    A subclass has ``loss(student, teacher, batch)`` → scalar. Where that needs projectors or memories, `parts` makes
    them for each tap, and the loss gets them by name. `joint` is as in `Method`; with fewer than `least_images` in a
    batch the loss would always be 0, so training refuses them.

    >>> @dataclass(frozen=True)
    ... class Energy(Weighted):
    ...     name = "energy"
    ...     alpha: float = 1.0
    ...     def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    ...         return (student.square().mean() - teacher.square().mean()).square()
    >>> Energy().criterion((3, 4, 4), (8, 4, 4), samples=0)(torch.zeros(2, 3, 4, 4), torch.ones(2, 8, 4, 4), None)
    tensor(1.)
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["maps", "outputs"]] = "maps"
    joint: ClassVar[bool] = False
    least_images: ClassVar[int] = 1
    summary: ClassVar[Summary] = "whole"
    alpha: float
    loss: Callable[..., Tensor]

    def __post_init__(self) -> None:
        if not is_number(self.alpha) or self.alpha < 0:
            raise ValueError(f"alpha is a number from 0 up, not {self.alpha!r}")
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            if "check" in each.metadata:
                each.metadata["check"](each.name, getattr(self, each.name))
        weights = [each.name for each in fields(self) if "weight" in each.metadata]  # type: ignore[arg-type]
        if weights and not any(getattr(self, name) for name in weights):
            raise ValueError(f"{self.name} would always be 0: {' and '.join(weights)} are 0; leave one above")
        with suppress(NameError):  # annotated with names that only its author's scope knows
            check_fields(self)  # which makes 1 and 1.0 one weight, and so one run

    def block(self, student: Shape) -> nn.Module | None:
        return None

    def check(self, student: Any, teacher: Any) -> None:
        """Raise ValueError for shapes that cannot be compared."""

    def resized(self, student: Any, teacher: Any) -> str:
        """What the method resizes of maps with these shapes, for the run's record; empty for nothing."""
        return ""

    def parts(self, student: Any, teacher: Any, samples: int) -> dict[str, nn.Module]:
        return {}

    def criterion(self, student: Any, teacher: Any, samples: int) -> nn.Module:
        known = bool(student) and all(student)
        if known:
            self.check(student, teacher)
        criterion = Compare(self, self.parts(student, teacher, samples))
        criterion.resized = self.resized(student, teacher) if known else ""
        return criterion


class Compare(nn.Module):
    """A method's loss as a module, with its parts."""

    resized = ""

    def __init__(self, method: Weighted, parts: dict[str, nn.Module]):
        super().__init__()
        if not hasattr(method, "loss"):
            raise TypeError(f"{method.name} lacks a loss(student, teacher, batch), or a criterion of its own")
        _check_takes(f"{method.name}.loss", method.loss, "student", "teacher", "batch", *parts)
        self.method, self.parts = method, nn.ModuleDict(parts)

    def forward(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        method = self.method
        images = len(student[0] if method.joint else student)
        method.check(shapes_of(student), shapes_of(teacher))
        if self.training and images < method.least_images:
            raise ValueError(
                f"{method.name} compares images of a batch with one another, so it needs at least "
                f"{method.least_images}, not {images}; give larger batches"
            )
        return method.loss(student, teacher, batch, **self.parts)


def shapes_of(maps: Tensor | tuple[Tensor, ...]) -> Any:
    """The shape without its batch of a map, or of each in a tuple."""
    return tuple(maps.shape[1:]) if isinstance(maps, Tensor) else tuple(map(shapes_of, maps))


class MemoryBank(nn.Module):
    """A unit vector of student and teacher for each training image, 2×samples×dim; random until it is first updated.

    >>> bank = MemoryBank("crd", samples=10, dim=4)
    >>> bank.vectors[:, bank.rows(Batch((), index=torch.tensor([3, 7])), others=5)].shape
    torch.Size([2, 2, 6, 4])
    """

    def __init__(self, method: str, samples: int, dim: int):
        super().__init__()
        if samples < 2:
            raise ValueError(f"{method} remembers each training image; give Distillation samples=, their number")
        self.method = method
        self.vectors = nn.Buffer(F.normalize(torch.randn(2, samples, dim), dim=2))
        self.scales = nn.Buffer(torch.zeros(2, 1, 1))

    def rows(self, batch: Batch, others: int) -> Tensor:
        """B×(1 + others): the row of each image, then those of others, drawn evenly with replacement."""
        if batch.index is None:
            raise ValueError(
                f"{self.method} keeps a memory of each image; call the distillation with index=, their rows"
            )
        own, samples = torch.as_tensor(batch.index), self.vectors.shape[1]
        if own.ndim != 1 or own.is_floating_point():
            raise ValueError(f"index is a whole number for each image, not {own.dtype} {tuple(own.shape)}")
        if not 0 <= own.min() <= own.max() < samples:
            raise ValueError(
                f"{self.method} remembers images 0 to {samples - 1}, but the batch's index holds {own.tolist()}"
            )
        own = own.to(self.vectors.device)[:, None]
        shift = torch.randint(1, samples, (len(own), min(others, samples - 1)), device=own.device)
        return torch.cat([own, (own + shift) % samples], 1)

    @torch.no_grad()
    def scale(self, similarities: Tensor) -> Tensor:
        """The mean of similarities above 0, 2×B×K, over the first batch trained on: 2×1×1, kept from then on."""
        scales = torch.where(self.scales > 0, self.scales, similarities.mean((1, 2), keepdim=True))
        if self.training:
            self.scales.copy_(scales)
        return scales

    @torch.no_grad()
    def update(self, rows: Tensor, new: Tensor, momentum: float) -> None:
        """In training, move the vectors at `rows` (B) towards new ones (2×B×dim)."""
        if self.training:
            self.vectors[:, rows] = F.normalize(self.vectors[:, rows].lerp(new, 1 - momentum), dim=2)


def spatial_mean(x: Tensor) -> Tensor:
    """B×C×… → B×C."""
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def unit(x: Tensor, dim: int = 1) -> Tensor:
    """`x` at length 1 along `dim`; 0, and without a gradient, where it is shorter than 1e-8."""
    length = x.norm(dim=dim, keepdim=True)
    return x / length.masked_fill(length < 1e-8, torch.inf)


#: Convolution and batch norm by the length of a shape: C×H×W or C×D×H×W, or C alone.
_LAYERS: dict[int, Any] = {3: (nn.Conv2d, nn.BatchNorm2d), 4: (nn.Conv3d, nn.BatchNorm3d), 1: (None, nn.BatchNorm1d)}


def convolution(shape: Shape, channels: int, kernel_size: int = 1, bias: bool = True) -> nn.Module:
    """From maps or volumes of `shape` to as many channels, size kept; from vectors, a linear layer.

    >>> convolution((8, 4, 4), 16), convolution((8,), 16)
    (Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1)), Linear(in_features=8, out_features=16, bias=True))
    """
    given, (kind, _) = shape[0], _LAYERS[len(shape)]
    if kind is None:
        return nn.Linear(given, channels, bias)
    made: nn.Module = kind(given, channels, kernel_size, padding=kernel_size // 2, bias=bias)
    return made


def batch_norm(shape: Shape, channels: int) -> nn.Module:
    """Of maps, volumes or vectors like `shape`, of as many channels."""
    made: nn.Module = _LAYERS[len(shape)][1](channels)
    return made


def check_kind(method: str, student: Shape, teacher: Shape, *, vectors: bool = False, alike: bool = True) -> None:
    """Raise ValueError for what are not maps, volumes or, if `vectors`, vectors; with `alike`, both of one kind.

    Tokens, whose channels come last, are none of these.
    """
    kinds = (1, 3, 4) if vectors else (3, 4)
    if not {len(student), len(teacher)} <= set(kinds) or (alike and len(student) != len(teacher)):
        wanted = "maps C×H×W or volumes C×D×H×W" + " or vectors C" * vectors
        tokens = f"; {OF_TOKENS}" if 2 in (len(student), len(teacher)) else ""
        raise ValueError(
            f"{method} needs {wanted}, not {student} from the student and {teacher} from the teacher; "
            f"tap layers that give these{tokens}"
        )


def check_same_size(method: str, student: Shape, teacher: Shape, vectors: bool = False) -> None:
    """`check_kind`, and equal height × width."""
    check_kind(method, student, teacher, vectors=vectors)
    check_equal(method, student[1:], teacher[1:], "choose maps of equal height × width")


def check_pattern(method: str, size: Shape) -> None:
    """Raise ValueError where a method that compares patterns gets maps of one pixel."""
    if set(size) == {1}:
        raise ValueError(
            f"{method} compares patterns, and a {'×'.join(map(str, size))} map has none: its loss would always be 0; "
            "leave this tap out, or give larger images"
        )


def check_equal(method: str, student: Shape, teacher: Shape, advice: str) -> None:
    """Raise ValueError where a method that needs equal shapes gets unequal ones."""
    if student != teacher:
        raise ValueError(
            f"{method} needs equal shapes, not {student} from the student and {teacher} from the teacher; {advice}"
        )


def class_probabilities(batch: Batch, outputs: Tensor, method: str) -> Tensor:
    """The batch's targets, class numbers or probabilities, as probabilities in the shape of `outputs`, B×classes."""
    if outputs.ndim != 2:
        raise ValueError(f"{method} needs outputs B×classes, not {tuple(outputs.shape)}")
    targets, classes = batch.targets, outputs.shape[1]
    if not isinstance(targets, Tensor):
        raise ValueError(f"{method} needs the targets of each batch; call the distillation with targets=")
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return targets
    if targets.is_floating_point() or targets.shape != outputs.shape[:1]:
        raise ValueError(f"{method} needs targets B or B×{classes}, not {targets.dtype} {tuple(targets.shape)}")
    if ((targets < 0) | (targets >= classes)).any():  # such as −100, which the cross-entropy passes over
        raise ValueError(f"{method} needs a class from 0 to {classes - 1} for every image, not {targets.min()}")
    return F.one_hot(targets.long(), classes).float()
