"""Feature maps of a teacher and its students, read at the same place and compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.checks import whole
from redistill_lib.data.augment import to_float
from redistill_lib.distill import Tap
from redistill_lib.network import MapRef, find_layer, map_shapes, record_maps
from redistill_lib.network.flow import Extent
from redistill_lib.red import alignment_loss, as_map, inserted_blocks, original_paths
from redistill_lib.results import interval

BATCH = 64


def layer_maps(model: nn.Module, image: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """Path and output (channels, height, width) of each convolution, pooling and block of them, as executed.

    Of a transformer, whose maps are held with channels last or as tokens, the blocks. Maps of 1×1 are left out.
    `image` is uint8, C×H×W. Paths are those before `graduate` wrapped layers.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    >>> layer_maps(net, torch.zeros(1, 9, 9, dtype=torch.uint8))
    [('0', (4, 4, 4))]
    """
    paths, found = original_paths(model), {}
    blocks = {inner for _, _, block in inserted_blocks(model) for inner in block.modules()}
    for layer, channels, sides, grid in map_shapes(model, *as_inputs(model, image[None])):
        module = model.get_submodule(layer)
        if module not in blocks and _worth_seeing(module, grid is not None) and math.prod(sides) > 1:
            found[paths[id(module)]] = (channels, *sides)
    return list(found.items())


def _worth_seeing(module: nn.Module, last: bool) -> bool:
    """Of a transformer, where channels come last, the blocks."""
    if last and next(module.children(), None):
        return True
    kinds = {type(m).__name__ for m in module.modules() if not next(m.children(), None)}
    return any(("Conv" in kind or "Pool" in kind) and "Adaptive" not in kind for kind in kinds)


@dataclass(frozen=True, repr=False, eq=False)
class MapComparison:
    """A teacher's and a student's feature map of one image.

    `teacher` and `student` are float32 height × width at their native sizes: the mean over channels, or `channel`
    of each, modulo its number of channels. `score` is always of the mean maps: their correlation over pixels.
    `cosine` is what RED's loss sees: 1 − the alignment loss of this image (arXiv 2406.03744, section 3), the same
    without taking their means off. Where sizes differ (`resized`), the student's is first resized bilinearly to the
    teacher's.
    """

    image: NDArray[np.uint8]  # height × width × channels
    teacher: NDArray[np.float32]
    student: NDArray[np.float32]
    teacher_place: str  # "layer2.0 output"
    student_place: str
    score: float
    cosine: float
    channel: int | None
    teacher_channels: int
    student_channels: int
    stride: int | None  # of the student's stem over the teacher's, where both networks have a stride plan
    label: str | None = None  # the student's role: "naive", "red", …

    @property
    def resized(self) -> bool:
        return self.teacher.shape != self.student.shape

    @property
    def shown(self) -> str:
        """Which channels are shown, in words."""
        if self.channel is None:
            return "mean over channels"
        t, s = self.channel % self.teacher_channels, self.channel % self.student_channels
        both = f"{t} of the teacher's {self.teacher_channels}, {s} of the student's {self.student_channels}"
        return f"channel {t if t == s else both}"

    def to_frame(self) -> pd.DataFrame:
        """One row per map: role, place, channels, size, score."""
        rows = [
            ("teacher", self.teacher_place, self.teacher_channels, *self.teacher.shape, 1.0),
            (self.label or "student", self.student_place, self.student_channels, *self.student.shape, self.score),
        ]
        return pd.DataFrame(rows, columns=["role", "place", "channels", "height", "width", "score"])

    def __repr__(self) -> str:
        ours, theirs = (f"{m.shape[0]}×{m.shape[1]}" for m in (self.student, self.teacher))
        places = f"{self.student_place} {ours} ← {self.teacher_place} {theirs}"
        after = ", after resizing" if self.resized else ""
        return f"MapComparison({self.label or 'student'}: {places}, correlation {self.score:.3f}{after})"


def compare_maps(
    teacher: nn.Module,
    student: nn.Module,
    tap: Tap,
    image: Tensor,
    channel: int | None = None,
    label: str | None = None,
    inputs: tuple[Tensor, ...] | None = None,
) -> MapComparison:
    """The teacher's and the student's map at a tap, for one image (uint8, C×H×W).

    `channel` as in `MapComparison`; `label` is the student's role in figures; `inputs` are what the networks are
    called with where that is more than the image, such as a time step. Both networks are left as they were. Raises
    KeyError for a layer that is not there, ValueError where a tensor is no B×C×H×W map.

    >>> def net(a, b): return nn.Sequential(nn.Conv2d(1, 4, 3, a, 1), nn.Conv2d(4, 4, 3, b, 1))
    >>> image = torch.zeros(1, 16, 16, dtype=torch.uint8)
    >>> compare_maps(net(2, 2), net(4, 1), Tap("0", "output", "0", "output"), image).resized
    True
    """
    _check_one(image)
    [ours] = read_maps(student, [(tap.place, tap.grid)], *(inputs or as_inputs(student, image[None])))
    [theirs] = read_maps(teacher, [(tap.source, tap.teacher_grid)], *(inputs or as_inputs(teacher, image[None])))
    score, cosine = (float(one[0]) for one in agreement(ours, theirs))
    return MapComparison(
        image=image.cpu().permute(1, 2, 0).numpy(),
        teacher=_one_map(theirs, channel),
        student=_one_map(ours, channel),
        teacher_place=" ".join(tap.source),
        student_place=" ".join(tap.place),
        score=score,
        cosine=cosine,
        channel=channel,
        teacher_channels=theirs.shape[1],
        student_channels=ours.shape[1],
        stride=_stride(teacher, student),
        label=label,
    )


def compare_layer(
    teacher: nn.Module, student: nn.Module, layer: str, image: Tensor, *args: Any, **options: Any
) -> MapComparison:
    """`compare_maps` of the same layer's output in both networks, usually of two sizes; other arguments as there.

    >>> def net(a, b): return nn.Sequential(nn.Conv2d(1, 4, 3, a, 1), nn.Conv2d(4, 4, 3, b, 1))
    >>> compare_layer(net(2, 2), net(4, 1), "0", torch.zeros(1, 16, 16, dtype=torch.uint8)).student.shape
    (4, 4)
    """
    return compare_maps(teacher, student, shared_tap(teacher, student, layer, image), image, *args, **options)


def shared_tap(teacher: nn.Module, student: nn.Module, layer: str, image: Tensor) -> Tap:
    """The same layer's output in both networks, whichever way they hold its map."""
    _check_one(image)
    grids = []
    for model in (student, teacher):
        paths = original_paths(model)
        maps = map_shapes(model, *as_inputs(model, image[None]))
        found = {paths[id(model.get_submodule(each.layer))]: each.grid for each in maps}
        grids.append(found.get(layer))
    return Tap(layer, "output", layer, "output", grid=grids[0], teacher_grid=grids[1])


def compare_denoisers(
    networks: Mapping[str, nn.Module], taps: Sequence[Tap], x: Tensor, t: int
) -> list[MapComparison]:
    """Denoisers' maps at `taps`, by tap and student, for one noisy image x_t (float C×H×W, −1…1) at time step `t`.

    `networks` by role, ``teacher`` among them; students may have RED blocks. Raises ValueError without a teacher or a
    student, or for a batch of images.

    >>> from redistill_lib.models import create_model
    >>> net = create_model("unet-1-2", in_channels=1, ch=8, mult=(1, 2))
    >>> tap = Tap("head", "output", "head", "output")
    >>> compare_denoisers({"teacher": net, "red": net}, [tap], torch.ones(1, 8, 8), 5)
    [MapComparison(red: head output 8×8 ← head output 8×8, correlation 1.000)]
    """
    if "teacher" not in networks or len(networks) < 2:
        raise ValueError(f"this compares a teacher with students, not {', '.join(networks) or 'nothing'}")
    inputs = x[None], torch.tensor([whole("t", t, 0)], device=x.device)
    image = x.add(1).mul(127.5).round().clamp(0, 255).byte()
    students = {role: network for role, network in networks.items() if role != "teacher"}
    return [
        compare_maps(networks["teacher"], student, tap, image, label=role, inputs=inputs)
        for tap in taps
        for role, student in students.items()
    ]


def score_taps(
    teacher: nn.Module, students: Mapping[str, nn.Module], taps: Sequence[Tap], images: Tensor
) -> pd.DataFrame:
    """How alike each student's maps are to the teacher's, tap by tap.

    `students` by role; `images` uint8, N×C×H×W. One row per tap and student: ``tap`` and ``teacher_tap`` (places),
    ``student``, ``score`` (correlation of the channel means, the mean over images), ``low`` and ``high`` (its 95 %
    t-interval over images, for these weights), ``cosine`` (what RED's loss sees), ``n``, ``resized``.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3))
    >>> images = torch.randint(0, 255, (3, 1, 8, 8), dtype=torch.uint8)
    >>> round(score_taps(net, {"naive": net}, [Tap("0", "output", "0", "output")], images).score.item(), 4)
    1.0
    """
    found: dict[tuple[str, Tap], list[tuple[float, float]]] = {(role, tap): [] for role in students for tap in taps}
    resized = {}
    for batch in images.split(BATCH):
        theirs = read_maps(teacher, [(tap.source, tap.teacher_grid) for tap in taps], *as_inputs(teacher, batch))
        for role, student in students.items():
            ours = read_maps(student, [(tap.place, tap.grid) for tap in taps], *as_inputs(student, batch))
            for tap, s, t in zip(taps, ours, theirs, strict=True):
                found[role, tap] += zip(*(one.tolist() for one in agreement(s, t)), strict=True)
                resized[role, tap] = s.shape[-2:] != t.shape[-2:]
    rows = []
    for (role, tap), pairs in found.items():
        scores, cosines = zip(*pairs, strict=True)
        row = {"tap": " ".join(tap.place), "teacher_tap": " ".join(tap.source), "student": role}
        row |= dict(zip(("score", "low", "high"), astuple(interval(scores)), strict=True))
        rows.append(row | {"cosine": float(np.mean(cosines)), "n": len(scores), "resized": resized[role, tap]})
    return pd.DataFrame(rows)


def _check_one(image: Tensor) -> None:
    if image.ndim != 3:
        raise ValueError(f"one image is C×H×W, not {tuple(image.shape)}; take one of the batch")


def as_inputs(model: nn.Module, images: Tensor) -> tuple[Tensor]:
    """Images (uint8) as a network takes them: where its weights are, and of their precision."""
    weights = next((each for each in model.parameters() if each.is_floating_point()), None)
    return (to_float(images) if weights is None else to_float(images.to(weights.device)).to(weights.dtype),)


def read_maps(model: nn.Module, places: Sequence[tuple[MapRef, Extent | None]], *inputs: Tensor) -> list[Tensor]:
    """The maps at these places, with their grids, in one forward pass: float32 on the CPU, B×C×H×W."""
    name = str(getattr(model, "name", type(model).__name__))
    wanted = [(MapRef(find_layer(model, ref.layer, name), ref.side), grid) for ref, grid in places]
    found, maps = record_maps(model, [ref for ref, _ in wanted], *inputs), []
    for ref, grid in wanted:
        try:
            x = as_map(found[ref], grid)
        except ValueError as error:
            raise ValueError(f"{ref} in {name}: {error}") from None
        if x.ndim != 4:
            raise ValueError(f"{ref} in {name} is {tuple(x.shape)}, not a B×C×H×W map")
        maps.append(x.float().cpu())
    return maps


def _one_map(maps: Tensor, channel: int | None) -> NDArray[np.float32]:
    one = maps[0].mean(0) if channel is None else maps[0, channel % maps.shape[1]]
    return one.contiguous().numpy()


def agreement(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Image by image, the correlation of the maps' channel means over pixels, and their cosine, as RED's loss has it.

    Maps are B×C×H×W; the student's is resized bilinearly to the teacher's height and width.

    >>> maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    >>> [round(float(one), 3) for one in agreement(maps, 10 - maps)]
    [-1.0, 0.683]
    """
    a, b = ours.mean(1, keepdim=True), theirs.mean(1, keepdim=True)
    if a.shape[-2:] != b.shape[-2:]:
        a = F.interpolate(a, b.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
    cosine = torch.stack([1 - alignment_loss(s[None], t[None]) for s, t in zip(a, b, strict=True)])
    a, b = a.flatten(1), b.flatten(1)
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)), cosine


def _stride(teacher: nn.Module, student: nn.Module) -> int | None:
    ours, theirs = (getattr(model, "plan", None) for model in (student, teacher))
    return None if ours is None or theirs is None or ours.stem % theirs.stem else ours.stem // theirs.stem
