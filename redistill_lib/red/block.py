"""The residual encoded distillation (RED) block, its variants, its form with folded batch norms, and its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from redistill_lib.checks import check_type

Encoder = Literal["full", "depthwise"]
_KINDS: dict[int, Any] = {2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}


class RedBlock(nn.Module):
    """A gate and an encoded residual: ``x · σ(BN(conv1×1 x)) + ReLU6(BN(conv k×k x))``, B×C×H×W → the same shape.

    It stays in the student at inference. Parameter names are those of the authors' checkpoints. Source: arXiv
    2406.03744, section 3 (RED block). Variants of it, ablations and cheaper ones:

    ``axes=3`` is for volumes, B×C×D×H×W. ``gate=False`` leaves the gate out, so that x itself is added;
    ``shortcut=False`` all of ``x · σ(…)``, so that the encoding alone remains. ``encoder="depthwise"`` convolves each
    channel by its own k×k filter and then mixes them by a 1×1 convolution: C·k² + C² weights in place of C²·k², about
    a ninth for k = 3. At k = 3 the published block has 10·C² + 6·C parameters, with that encoder 2·C² + 15·C.

    >>> import torch
    >>> RedBlock(8)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    >>> [sum(p.numel() for p in RedBlock(64, encoder=kind).parameters()) for kind in ("full", "depthwise")]
    [41344, 9152]
    """

    __constants__ = ("gate", "shortcut")  # so that TorchScript drops what a variant lacks
    __jit_unused_properties__ = ("folded", "options", "unfoldable")

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        axes: int = 2,
        gate: bool = True,
        shortcut: bool = True,
        encoder: Encoder = "full",
    ):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"a RED block keeps its map's size, so kernel_size must be odd, not {kernel_size}")
        check_form(gate, shortcut, encoder)
        if axes not in _KINDS:
            raise ValueError(f"a RED block is for maps (axes=2) or volumes (axes=3), not axes={axes!r}")
        self.channels, self.kernel_size, self.axes = channels, kernel_size, axes
        self.gate, self.shortcut, self.encoder = gate and shortcut, shortcut, encoder
        conv, norm = _KINDS[axes]
        if self.gate:
            self.logit = nn.Sequential(conv(channels, channels, 1), norm(channels), nn.Sigmoid())
        size: Any = {"kernel_size": kernel_size, "padding": kernel_size // 2}
        if encoder == "depthwise":
            # Its bias would be the second one's once more.
            own = conv(channels, channels, groups=channels, bias=False, **size)
            encode: nn.Module = nn.Sequential(own, conv(channels, channels, 1))
        else:
            encode = conv(channels, channels, **size)
        self.residual_encoder = nn.Sequential(encode, norm(channels), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        if not self.shortcut:
            return self.residual_encoder(x)
        kept = x * self.logit(x) if self.gate else x
        return kept + self.residual_encoder(x)

    @property
    def folded(self) -> bool:
        """Whether its batch norms are part of its convolutions."""
        return isinstance(self.residual_encoder[1], nn.Identity)

    @property
    def unfoldable(self) -> str:
        """What keeps its batch norms from being folded, or empty."""
        conv, norm = _KINDS[self.axes]
        for path, part in list(self.named_modules())[1:]:
            if part._forward_hooks or part._forward_pre_hooks:
                return f"{path} has hooks, such as of pruning or a weight's norm; remove them"
            if isinstance(part, (conv, nn.modules.batchnorm._NormBase)) or "weight" in part._parameters:
                if type(part) not in (conv, norm, nn.SyncBatchNorm):
                    return f"{path} is a {type(part).__name__}, whose forward may be another"
                if type(part) is not conv and part.running_mean is None:
                    return f"{path} keeps no running statistics"
        return ""

    @property
    def options(self) -> dict[str, Any]:
        """What it was made of, in JSON's types, and whether it is folded; two sizes are all of the published form."""
        # Without a shortcut there is no gate to choose.
        form = {"axes": 2, "gate": self.shortcut, "shortcut": True, "encoder": "full", "folded": False}
        own = {key: value for key, usual in form.items() if (value := getattr(self, key)) != usual}
        return {"channels": self.channels, "kernel_size": self.kernel_size, **own}

    def fold(self) -> RedBlock:
        """A frozen copy for inference, its batch norms in its convolutions: the same answers up to rounding.

        Raises ValueError for a block in train mode, or that holds what cannot be folded.

        >>> import torch
        >>> block, x = RedBlock(8).eval(), torch.rand(1, 8, 5, 5)
        >>> sorted(block.fold().state_dict()), torch.allclose(block.fold()(x), block(x), atol=1e-6)
        (['logit.0.bias', 'logit.0.weight', 'residual_encoder.0.bias', 'residual_encoder.0.weight'], True)
        """
        if self.training:
            raise ValueError("batch norms are folded by their running statistics; call eval() on the block first")
        if why := self.unfoldable:
            raise ValueError(f"a RED block cannot be folded: {why}")
        twin, dtype = copy.deepcopy(self).requires_grad_(False), next(self.parameters()).dtype
        if dtype.itemsize < 4:
            twin.float()  # half precision folds in single
        branches: Any = (twin.logit, twin.residual_encoder) if twin.gate else (twin.residual_encoder,)
        for branch in branches:
            conv, norm, _ = branch
            if not isinstance(norm, nn.Identity):
                holder: Any = conv if isinstance(conv, nn.Sequential) else branch
                last = 1 if holder is conv else 0
                holder[last], branch[1] = fuse_conv_bn_eval(holder[last], norm), nn.Identity()
        return twin.to(dtype).eval()

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options.items())


def check_form(gate: bool, shortcut: bool, encoder: str) -> None:
    """Raise ValueError for a variant that there is not."""
    check_type("encoder", encoder, Encoder)
    for label, value in (("gate", gate), ("shortcut", shortcut)):
        check_type(label, value, bool)
    if not gate and not shortcut:
        raise ValueError("without a shortcut a RED block has no gate to leave out; give shortcut=False alone")


def _cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)).mean()


#: Distances of two B×N tensors, means over the batch.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine_distance, "mse": F.mse_loss}


def check_distance(label: str, value: object) -> None:
    if value not in list(DISTANCES):
        raise ValueError(f"unknown {label} {value!r}; choose one of {', '.join(DISTANCES)}")


#: What helps where tokens stand for a map.
OF_TOKENS = "of tokens, say their height × width by grid= or teacher_grid="


def check_maps(what: str, axes: str, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Raise ValueError for shapes that are not two maps, or volumes, of equal sides; `axes` is such as "C×H×W"."""
    first, lengths = axes.count("×") - 1, {len(student), len(teacher)}  # of the sides, and of the shapes
    if len(lengths) == 1 and lengths <= {first + 2, first + 3} and student[first:] == teacher[first:]:
        return
    why = f"{student} from the student and {teacher} from the teacher"
    if lengths == {first + 3}:
        raise ValueError(f"{what} needs volumes of equal depth × height × width, not {why}")
    tokens = f"; {OF_TOKENS}" if first + 1 in lengths else ""
    raise ValueError(f"{what} needs {axes} maps of equal height × width, not {why}{tokens}")


def alignment_loss(student: Tensor, teacher: Tensor, distance: str = "cosine") -> Tensor:
    """The distance of two feature maps, B×C×H×W and B×C'×H×W, or volumes, after averaging each over its channels.

    ``cosine``: mean over the batch of 1 − cos between the flattened maps, from 0 (same pattern) to 2 (opposite).
    ``mse``: mean squared difference.
    Source: arXiv 2406.03744, section 3 (loss on the RED block's output).

    >>> import torch
    >>> x = torch.rand(2, 3, 4, 4)
    >>> round(abs(alignment_loss(x, 5 * x).item()), 4), alignment_loss(x, x, "mse").item()
    (0.0, 0.0)
    """
    check_distance("distance", distance)
    check_maps("alignment", "B×C×H×W", tuple(student.shape), tuple(teacher.shape))
    s, t = student.float().mean(1).flatten(1), teacher.float().mean(1).flatten(1)
    return DISTANCES[distance](s, t)
