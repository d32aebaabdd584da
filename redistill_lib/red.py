"""The residual encoded distillation (RED) block, its alignment loss, and putting blocks into a network for good."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

Side = Literal["input", "output"]
DISTANCES = ("cosine", "mse")


class RedBlock(nn.Module):
    """A gate and an encoded residual: ``x · σ(BN(conv1×1 x)) + ReLU6(BN(conv k×k x))``.

    Works on B×C×H×W and keeps the shape. It belongs to the student: it is trained with it and stays at inference.
    Parameter names are those of the authors' checkpoints. Source: arXiv 2406.03744, section 3 (RED block).

    >>> import torch
    >>> RedBlock(8)(torch.zeros(2, 8, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"a RED block keeps its map's size, so kernel_size must be odd, not {kernel_size}")
        self.channels, self.kernel_size = channels, kernel_size
        self.logit = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid())
        encoder = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.residual_encoder = nn.Sequential(encoder, nn.BatchNorm2d(channels), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.logit(x) + self.residual_encoder(x)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kernel_size={self.kernel_size}"


def alignment_loss(student: Tensor, teacher: Tensor, distance: str = "cosine") -> Tensor:
    """How far two feature maps point away from each other, whatever their channels.

    Both maps (B×C×H×W and B×C'×H×W) are first averaged over channels to B×H×W. ``cosine``: mean over the batch
    of 1 − cos between the flattened maps, from 0 (same pattern) to 2 (opposite). ``mse``: mean squared difference.
    Source: arXiv 2406.03744, section 3 (loss on the RED block's output).

    >>> import torch
    >>> x = torch.rand(2, 3, 4, 4)
    >>> round(alignment_loss(x, 5 * x).item(), 4), alignment_loss(x, x, "mse").item()
    (0.0, 0.0)
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[-2:] != teacher.shape[-2:]:
        raise ValueError(
            f"alignment needs two B×C×H×W maps of equal height × width, "
            f"not {tuple(student.shape)} from the student and {tuple(teacher.shape)} from the teacher"
        )
    s, t = student.float().mean(1).flatten(1), teacher.float().mean(1).flatten(1)
    if distance == "cosine":
        return (1 - F.cosine_similarity(s, t, dim=1, eps=1e-8)).mean()
    if distance == "mse":
        return F.mse_loss(s, t)
    raise ValueError(f"unknown distance {distance!r}; choose one of {', '.join(DISTANCES)}")


class BlockedLayer(nn.Module):
    """A layer with a block on its input, its output, or both: what `insert_blocks` leaves in a network."""

    def __init__(self, layer: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.layer = layer
        self.before = before or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        return self.after(self.layer(self.before(x), *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        """What the network asks of the layer itself, such as the dtype of its weight."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)


def insert_blocks(model: nn.Module, blocks: Iterable[tuple[str, Side, nn.Module]]) -> nn.Module:
    """Put each block at its place, (layer path, side), by wrapping that layer, and return the same model.

    >>> import torch
    >>> net = insert_blocks(nn.Sequential(nn.Conv2d(3, 8, 3)), [("0", "output", RedBlock(8))])
    >>> type(net[0]).__name__, net(torch.zeros(1, 3, 6, 6)).shape
    ('BlockedLayer', torch.Size([1, 8, 4, 4]))
    """
    sides: dict[str, dict[str, nn.Module]] = {}
    for path, side, block in blocks:
        if not path:
            raise ValueError("a block needs a layer inside the network; it cannot stand on the whole network")
        if side in sides.setdefault(path, {}):
            raise ValueError(f"two blocks on the {side} of {path!r}; one place takes one block")
        sides[path][side] = block
    for path in sorted(sides, key=lambda p: -p.count(".")):  # inner layers first, while their paths still hold
        layer = model.get_submodule(path)
        wrapped = BlockedLayer(layer, sides[path].get("input"), sides[path].get("output"))
        for module in list(model.modules()):  # everywhere, since a layer may be known under several names
            for name, child in module._modules.items():
                if child is layer and module is not wrapped:
                    module._modules[name] = wrapped
    return model
