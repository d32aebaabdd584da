"""The U-Net of DDPM with a free stride plan, in the parameter names of the authors' checkpoints."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import is_number, whole, wholes
from redistill_lib.plans import StridePlan

LEVELS = 4  # resolutions of the paper's U-Net
RES_BLOCKS = 2


@dataclass(frozen=True)
class UNetConfig:
    """Options of `UNet`, explained there; the defaults are the paper's."""

    ch: int = 128
    mult: Sequence[int] = (1, 2, 2, 2)
    attention: Sequence[int] = (1,)
    res_blocks: int = RES_BLOCKS
    dropout: float = 0.1
    T: int = 1000


def ddpm_plan(levels: int = LEVELS) -> StridePlan:
    """DDPM's own plan: the head keeps the image's size, the end of every other level halves it."""
    return StridePlan(1, (2,) * (levels - 1))


def unet_places(levels: int = LEVELS) -> tuple[str, ...]:
    return ("head", *(f"downblocks.{(RES_BLOCKS + 1) * level - 1}.main" for level in range(1, levels)))


def _norm(channels: int) -> nn.GroupNorm:
    # 32 groups as in DDPM, of at least 4 channels as there: a group of one would undo the time step's shift.
    return nn.GroupNorm(max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels >= 4 * g)), channels)


def _time_embedding(steps: int, ch: int) -> nn.Module:
    # A frozen table, whose row t holds sin(t·ω), cos(t·ω) in turn for ω = 10000^(−2k/ch), then two linear layers.
    angles = torch.arange(steps)[:, None] * torch.exp(torch.arange(0, ch, 2) * (-math.log(10000) / ch))
    table = nn.Embedding.from_pretrained(torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))
    layers = nn.Sequential(table, nn.Linear(ch, 4 * ch), nn.SiLU(), nn.Linear(4 * ch, 4 * ch))
    return nn.Sequential(OrderedDict(timembedding=layers))


class Attention(nn.Module):
    """Single-head self-attention between all H·W positions: B×C×H×W → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = _norm(channels)
        self.proj_q = nn.Conv2d(channels, channels, 1)
        self.proj_k = nn.Conv2d(channels, channels, 1)
        self.proj_v = nn.Conv2d(channels, channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self._attend(self.group_norm(x)).view(x.shape))

    def _attend(self, h: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():  # a frozen teacher's: in no memory profile, and twice as fast
            q, k, v = (
                proj(h).flatten(2).transpose(1, 2)[:, None] for proj in (self.proj_q, self.proj_k, self.proj_v)
            )
            return F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        # Written out instead of a fused kernel: the B×HW×HW weights are the cost that strides are chosen by.
        weights = torch.bmm(self.proj_q(h).flatten(2).transpose(1, 2), self.proj_k(h).flatten(2))
        weights = weights * h.shape[1] ** -0.5
        weights = torch.softmax(weights, dim=-1)  # B×HW (query)×HW (key)
        return torch.bmm(self.proj_v(h).flatten(2), weights.transpose(1, 2))


class ResBlock(nn.Module):
    """Two 3×3 convolutions around the time step's shift, a shortcut, and attention where asked for."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.block1 = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.temb_proj = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.block2 = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attn = Attention(outputs) if attention else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.block1(x) + self.temb_proj(temb)[:, :, None, None]
        return self.attn(self.block2(h) + self.shortcut(x))


def _main(conv: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(main=conv))


class UNet(nn.Module):
    """The noise predictor of DDPM (arXiv 2006.11239, appendix B): images B×C×H×W, t (int64, B) → B×C×H×W.

    The plan's places are the head and what ends each level but the deepest; height and width have to be multiples
    of its total. Level i has ch·mult[i] channels and `res_blocks` residual blocks on the way down,
    one more on the way up, each with attention where i is in `attention`; the first middle block always attends.
    Time steps run from 0 to T − 1. Upsampling and tail are transposed convolutions, as in ReDistill
    (arXiv 2406.03744), not DDPM's interpolation.

    With `num_classes` the network also takes a label per image (int64, B), added to the time step's embedding; the
    label `num_classes` means no class, and so does leaving labels out (arXiv 2207.12598, section 3.1).

    Raises ValueError for options that do not fit each other, and on inputs of another shape or kind.
    """

    def __init__(
        self,
        plan: StridePlan,
        in_channels: int = 3,
        num_classes: int | None = None,
        config: UNetConfig = UNetConfig(),
    ) -> None:
        super().__init__()
        ch, res_blocks, T = (whole(name, getattr(config, name)) for name in ("ch", "res_blocks", "T"))
        mult, attention = wholes("mult", config.mult), wholes("attention", config.attention, least=0)
        _check(plan, ch, mult, attention, dropout := config.dropout)
        self.name, self.plan, self.T = f"unet-{plan}", plan, T
        self.in_channels = in_channels
        self.num_classes = None if num_classes is None else whole("num_classes", num_classes)
        self.time_embedding = _time_embedding(T, ch)
        if self.num_classes is not None:
            self.label_embedding = nn.Embedding(self.num_classes + 1, 4 * ch)
        self.head = nn.Conv2d(in_channels, ch, 3, plan.stem, 1)

        def block(inputs: int, level: int) -> ResBlock:
            return ResBlock(inputs, ch * mult[level], 4 * ch, dropout, level in attention)

        channels, skips = ch, [ch]
        self.downblocks = nn.ModuleList()
        for level in range(len(mult)):
            for _ in range(res_blocks):
                self.downblocks.append(block(channels, level))
                channels = ch * mult[level]
                skips.append(channels)
            if level < len(mult) - 1:
                self.downblocks.append(_main(nn.Conv2d(channels, channels, 3, plan.places[level + 1], 1)))
                skips.append(channels)
        self.middleblocks = nn.ModuleList(
            ResBlock(channels, channels, 4 * ch, dropout, attention) for attention in (True, False)
        )
        self.upblocks = nn.ModuleList()
        for level in reversed(range(len(mult))):
            for _ in range(res_blocks + 1):
                self.upblocks.append(block(channels + skips.pop(), level))
                channels = ch * mult[level]
            if level:  # a kernel of the stride that it undoes
                stride = plan.places[level]
                self.upblocks.append(_main(nn.ConvTranspose2d(channels, channels, stride, stride)))
        self.tail = nn.Sequential(
            _norm(channels), nn.SiLU(), nn.ConvTranspose2d(channels, in_channels, plan.stem, plan.stem)
        )
        _initialise(self)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self._check_inputs(x, t)
        temb = self.time_embedding(t)
        if self.num_classes is not None:
            labels = torch.full_like(t, self.num_classes) if class_labels is None else class_labels
            temb = temb + self.label_embedding(labels)
        elif class_labels is not None:
            raise ValueError(f"{self.name} knows no classes; build it with num_classes= or leave the labels out.")
        x = self.head(x)
        skips = [x]
        for block in self.downblocks:  # a residual block is known by its attribute, also with RED blocks on it
            x = block(x, temb) if hasattr(block, "temb_proj") else block(x)
            skips.append(x)
        for block in self.middleblocks:
            x = block(x, temb)
        for block in self.upblocks:
            if hasattr(block, "temb_proj"):
                x = torch.cat((x, skips.pop()), dim=1)  # the map before it is free while the block runs
                x = block(x, temb)
            else:
                x = block(x)
        return self.tail(x)

    def _check_inputs(self, x: Tensor, t: Tensor) -> None:
        shape = "×".join(map(str, x.shape))
        channels, total = self.in_channels, self.plan.total
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{self.name} takes images of shape B×{channels}×H×W, not {shape or 'a number'}.")
        if x.shape[2] % total or x.shape[3] % total:
            near = "×".join(str(max(1, round(side / total)) * total) for side in x.shape[2:])
            raise ValueError(
                f"{self.name} takes heights and widths that are multiples of {total}, its total stride; "
                f"of the images {shape}, the nearest such size is {near}."
            )
        if t.shape != x.shape[:1] or t.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"{self.name} takes one int64 time step for each image, of shape ({x.shape[0]},), "
                f"not {str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}."
            )


def _check(plan: StridePlan, ch: int, mult: tuple[int, ...], attention: tuple[int, ...], dropout: Any) -> None:
    if len(plan.places) != len(mult):
        usual = f"; the usual plan for it is {ddpm_plan(len(mult))}" if len(mult) > 1 else ""
        raise ValueError(
            f"Plan {plan} has {len(plan.places)} place{'s' * (len(plan.places) > 1)} where "
            f"a U-Net with mult={mult} has {len(mult)} "
            f"(the head and what ends each level but the deepest){usual}."
        )
    if ch % 2:
        raise ValueError(f"ch={ch} is odd; time steps need a sine and a cosine per frequency: {ch + 1}.")
    if max(attention, default=0) >= len(mult):
        raise ValueError(f"attention={attention} names a level beyond {len(mult) - 1}, the last of mult={mult}.")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} is not a probability from 0 to below 1.")


def _initialise(model: UNet) -> None:
    """DDPM's start: every residual and attention branch, and the tail, begin near zero."""
    last: list[nn.Module] = [model.tail[2]]
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.get_parameter("bias"))
            if name.endswith((".proj", ".block2.3")):
                last.append(module)
        elif name == "label_embedding":
            nn.init.normal_(module.get_parameter("weight"), std=0.02)  # the class starts as a small shift
    for module in last:
        nn.init.xavier_uniform_(module.get_parameter("weight"), gain=1e-5)
