"""What pooling earlier does to a network, stride by stride: to its maps, its memory, its accuracy."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from redistill_lib.distill import Tap
from redistill_lib.maps import BATCH, agreement, as_inputs, layer_maps, read_maps, shared_tap
from redistill_lib.memory import Profile, profile_memory
from redistill_lib.memory.layers import layers_of
from redistill_lib.network import evaluating, output_of
from redistill_lib.progress import progress_bar
from redistill_lib.student import derive_student

COLUMNS = 10  # layers at most
AGREEING = 40  # images at most that maps are compared on
UNTRAINED = "untrained"

Map = NDArray[np.float32]  # height × width
Students = nn.Module | Mapping[str, nn.Module | Sequence[nn.Module]] | None


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """A network beside its teacher, layer by layer of the teacher's.

    `taps` says which of its layers stands beside the teacher's: the one of that name, or else its last one whose map
    has that size, None where there is none. `correlation` is that of the maps' channel means, over pixels, the mean
    over images; `cosine` the same without taking the maps' means off, as RED's loss sees them. Maps of unequal size
    are compared at the teacher's, after bilinear resizing. `accuracy` is in %, NaN without labels.
    """

    network: nn.Module
    taps: tuple[Tap | None, ...]
    profile: Profile
    first: int  # height of the map after its first layer
    live: tuple[int, ...]  # bytes: the most alive since the layer before
    sides: tuple[int, ...]  # height of each layer's map, 0 without one
    correlation: tuple[float, ...]
    cosine: tuple[float, ...]
    accuracy: float

    def maps(self, image: Tensor, channel: int | None = None) -> list[Map | None]:
        """Each layer's map of one image (uint8, C×H×W): the mean over channels, or one, modulo their number."""
        found = iter(_read(self.network, self.taps, image[None]))
        maps = [None if tap is None else next(found)[0] for tap in self.taps]
        return [x if x is None else (x.mean(0) if channel is None else x[channel % len(x)]).numpy() for x in maps]


@dataclass(frozen=True, eq=False, repr=False)
class Exploration:
    """A teacher and its students at several strides, on the same images (uint8, N×C×H×W); `explore` makes one.

    `students` by role and by factor: how much smaller the map after the first layer is than the teacher's. At 1 the
    untrained one is its teacher.
    """

    teacher: View
    students: Mapping[str, Mapping[int, View]]
    images: Tensor
    classes: tuple[str, ...] | None  # of the images

    @property
    def factors(self) -> tuple[int, ...]:
        return tuple(sorted({factor for views in self.students.values() for factor in views}))

    @property
    def opening(self) -> int:
        """The factor to begin with: ×4 where a student that was given has it, or else the largest of theirs; without
        any, the untrained one's that is nearest to ×4."""
        given = {factor for role, views in self.students.items() if role != UNTRAINED for factor in views}
        return 4 if 4 in given else max(given) if given else min(self.factors, key=lambda one: abs(one - 4))

    @property
    def layers(self) -> tuple[str, ...]:
        """As the teacher has them."""
        return tuple(tap.teacher_layer for tap in self.teacher.taps if tap)

    @property
    def first_block(self) -> int:
        """The first layer that holds others: the sign of a bare convolution's output means little."""
        inside = (next(self.teacher.network.get_submodule(name).children(), None) for name in self.layers)
        return next((k for k, module in enumerate(inside) if module), 0)

    def show(self, image: int = 0, channel: int | None = None) -> Shown:
        """With the maps of one of its images; `channel` as in `View.maps`. ValueError for one that is not there."""
        if not 0 <= image < len(self.images):
            raise ValueError(f"there are {len(self.images)} images, counted from 0; there is no image {image}")
        views = {(role, factor): view for role, its in self.students.items() for factor, view in its.items()}
        views["teacher", 1] = self.teacher
        return Shown(self, image, {key: view.maps(self.images[image], channel) for key, view in views.items()})

    def check(self, factor: int) -> int:
        """The factor, where a student is there at it; ValueError otherwise."""
        if factor not in self.factors:
            raise ValueError(f"there is no ×{factor}; there are {', '.join(f'×{one}' for one in self.factors)}")
        return factor

    def __repr__(self) -> str:
        kinds = ", ".join(f"{role} ×{'/'.join(map(str, views))}" for role, views in self.students.items())
        return f"Exploration({self.teacher.profile.model}: {kinds}; {len(self.images)} images)"


@dataclass(frozen=True, eq=False, repr=False)
class Shown:
    """An exploration with the maps of one image, layer by layer, by role and factor; the teacher's are at 1."""

    found: Exploration
    image: int
    maps: Mapping[tuple[str, int], Sequence[Map | None]]


def explore(
    teacher: nn.Module,
    students: Students,
    images: Tensor,
    labels: Sequence[int] | Tensor | None = None,
    *,
    classes: Sequence[str] = (),
    factors: Sequence[int] = (2, 4, 8),
) -> Exploration:
    """Look at a teacher and its students on the same images (N×C×H×W: uint8, or floats from 0 to 1), layer by layer.

    `students` is a network, or networks by role (``naive``, ``red``, …), several where they pool unlike. Beside them
    stands an untrained student at each of `factors` that the teacher's stride allows: the teacher's own weights,
    pooled that much harder in its first layer. `labels` are the numbers of the images' classes, named by `classes`:
    with them, each network's accuracy on these images is measured. Raises ValueError for other images, a network
    that cannot be run on them, or a teacher without a layer whose map can be shown.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))
    >>> explore(net, None, torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8), factors=[2])
    Exploration(Sequential: untrained ×1/2; 2 images)
    """
    images = _as_bytes(images)
    numbers = None if labels is None else torch.as_tensor(labels)
    if numbers is not None and len(numbers) != len(images):
        raise ValueError(f"{len(images)} images but {len(numbers)} labels; give one per image")
    if numbers is not None and classes and int(numbers.max()) >= len(classes):
        raise ValueError(f"an image is of class {int(numbers.max())}, but there are {len(classes)} names of classes")
    given = {"student": students} if isinstance(students, nn.Module) else dict(students or {})
    first = _first_side(teacher, images[0], "the teacher")
    networks: dict[tuple[str, int], nn.Module] = {}
    for factor in factors:
        with contextlib.suppress(ValueError, RuntimeError):  # the teacher's strides have no such factor
            networks[UNTRAINED, factor] = derive_student(teacher, factor, example=as_inputs(teacher, images[:1]))[0]
    for role, one in given.items():
        for network in [one] if isinstance(one, nn.Module) else one:
            place = role, max(1, round(first / _first_side(network, images[0], role)))
            if place in networks or role == "teacher":
                raise ValueError(f"two networks are {role} at ×{place[1]}; give each a role of its own")
            networks[place] = network
    with progress_bar(1 + len(networks), "looking at networks") as bar:
        layers = _layers(teacher, images[0])
        seen = _look(teacher, teacher, layers, images, numbers)
        bar.update()
        found = {UNTRAINED: {1: seen}} | {role: dict[int, View]() for role, _ in networks if role != UNTRAINED}
        for (role, factor), network in networks.items():
            found[role][factor] = _look(teacher, network, layers, images, numbers)
            bar.update()
    named = None if numbers is None else tuple(str(classes[k] if classes else k) for k in numbers.tolist())
    return Exploration(seen, found, images, named)


def _as_bytes(images: Tensor) -> Tensor:
    """Images of 0 to 1 as those of 0 to 255."""
    if images.ndim == 4 and len(images):
        if images.dtype == torch.uint8:
            return images
        if images.is_floating_point() and 0 <= images.min() <= images.max() <= 1:
            return (255 * images).round().byte()
    told = f"{images.dtype} {tuple(images.shape)}"
    raise ValueError(f"images are N×C×H×W, one or more, uint8 or floats from 0 to 1, not normalised, not {told}")


def _first_side(model: nn.Module, image: Tensor, role: str) -> int:
    """Height of the map after its first layer."""
    try:
        maps = layer_maps(model, image)
    except RuntimeError as error:  # PyTorch's own, from some layer inside
        raise ValueError(f"{role} cannot be run on these images: {str(error).splitlines()[0]}") from None
    if not maps:
        raise ValueError(f"{type(model).__name__} has no layer with a feature map that could be shown")
    return maps[0][1][1]


def _layers(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Layers with a map, as a profile tells them apart, spread over the network, and the map's height."""
    maps = dict(layer_maps(model, image))
    every = [name for name in layers_of(profile_memory(model, *as_inputs(model, image[None]))) if name in maps]
    kept = dict.fromkeys(every[round(k)] for k in np.linspace(0, len(every) - 1, min(COLUMNS, len(every))))
    return {name: maps[name][1] for name in kept}


def _look(
    teacher: nn.Module, network: nn.Module, layers: Mapping[str, int], images: Tensor, labels: Tensor | None
) -> View:
    maps = dict(layer_maps(network, images[0]))
    profile = profile_memory(network, *as_inputs(network, images[:1]))
    alive = layers_of(profile)
    places = {}
    for name, side in layers.items():
        alike = [own for own in alive if own in maps and maps[own][1] == side]
        places[name] = name if name in maps else alike[-1] if alike else None
    taps = tuple(_tap(teacher, network, name, own, images[0]) for name, own in places.items())
    few = images[:AGREEING]
    ours, theirs = _read(network, taps, few), _read(teacher, _of_teacher(taps), few)
    scores = iter([tuple(float(one.mean()) for one in agreement(*pair)) for pair in zip(ours, theirs, strict=True)])
    agreed = [next(scores) if tap else (math.nan, math.nan) for tap in taps]
    return View(
        network, taps, profile,
        first=next(iter(maps.values()))[1],
        live=_since(alive, [*places.values()]),
        sides=tuple(maps[own][1] if own else 0 for own in places.values()),
        correlation=tuple(one for one, _ in agreed),
        cosine=tuple(two for _, two in agreed),
        accuracy=math.nan if labels is None else _accuracy(network, images, labels),
    )  # fmt: skip


def _tap(teacher: nn.Module, network: nn.Module, name: str, own: str | None, image: Tensor) -> Tap | None:
    if own is None:
        return None
    if own == name:
        return shared_tap(teacher, network, name, image)
    theirs, ours = (shared_tap(net, net, layer, image) for net, layer in ((teacher, name), (network, own)))
    return Tap(own, "output", name, "output", grid=ours.grid, teacher_grid=theirs.grid)


def _of_teacher(taps: Sequence[Tap | None]) -> list[Tap | None]:
    """The teacher's side of them, as taps of its own."""
    layers = [tap and (tap.teacher_layer, tap.teacher_grid) for tap in taps]
    return [each and Tap(each[0], "output", each[0], "output", grid=each[1]) for each in layers]


def _read(model: nn.Module, taps: Sequence[Tap | None], images: Tensor) -> list[Tensor]:
    return read_maps(model, [(tap.place, tap.grid) for tap in taps if tap], *as_inputs(model, images))


def _since(alive: Mapping[str, int], places: Sequence[str | None]) -> tuple[int, ...]:
    """The most alive in each of these layers and since the one before; what follows the last belongs to it."""
    names, sizes, start, found = [*alive], [*alive.values()], 0, []
    for k, place in enumerate(places):
        owner = next((name for name in names if place in (name, None) or str(place).startswith(f"{name}.")), None)
        end = len(names) if k == len(places) - 1 else start if place is None else names.index(str(owner)) + 1
        found.append(max(sizes[start:end], default=0))
        start = max(start, end)
    return tuple(found)


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In %, of a classifier; NaN of anything else."""
    with torch.inference_mode(), evaluating(model):
        outputs = [output_of(model(*as_inputs(model, part))) for part in images.split(BATCH)]
    logits = torch.cat(outputs).cpu()
    return 100 * float((logits.argmax(1) == labels).float().mean()) if logits.ndim == 2 else math.nan
