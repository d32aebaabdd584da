"""Ways to a network of one peak of activations: which plan, how wide, on which images."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redistill_lib.budget import Blocks, Fit, arenas, fit_to_budget, plans_of, totals, uncollected
from redistill_lib.checks import check_type, wholes
from redistill_lib.comparison.arms import Arm, check_classifier
from redistill_lib.costs import Cost, Followed, followed
from redistill_lib.distill.pairing import pair_steps
from redistill_lib.memory import format_size, parse_size
from redistill_lib.memory.profile import Convention, runtime_of
from redistill_lib.memory.reuse import Runs
from redistill_lib.memory.runtime import Runtime
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models import ARCHITECTURES, create_model, student_name
from redistill_lib.network import Resolutions, asking, find_resolutions
from redistill_lib.network.fakes import outlines
from redistill_lib.plans import StridePlan
from redistill_lib.progress import progress_bar
from redistill_lib.student.derive import restrided

LEAST_WIDTH = 0.125  # of create_model
LEAST_SIDE = 8  # px; on smaller images there is little left to see
OWN, LATEST = "the teacher's own plan", "pooled as late as fits"
TAUGHT = f"{LATEST} with RED blocks"
_Key = tuple[str, float, int]  # plan, width, px


@dataclass(frozen=True)
class Way(Fit):
    """A stride plan at a width on images of a size, and what it needs.

    `published` and `in_place` are None where no blocks are put: on images of another size than the teacher's, in a
    vision transformer, or where no map is as large as one of the teacher.
    """

    width: float = 1.0
    image_size: int = 0  # px
    why: str = LATEST  # it is among the others

    def needs(self, blocks: Blocks) -> Cost:
        return super().needs(blocks) or self.plain

    def later(self, other: Way) -> bool:
        """Whether it pools nowhere earlier, and is no narrower and on no smaller images: it is more of a network."""
        larger = self.width >= other.width and self.image_size >= other.image_size
        return larger and _later(StridePlan.parse(self.plan), StridePlan.parse(other.plan))


@dataclass(frozen=True)
class ArmsAtPeak:
    """The answer to `arms_at_peak`. `fits` is empty where nothing fits; `closest` then comes nearest."""

    teacher: Way
    architecture: str
    peak_bytes: int
    fits: tuple[Way, ...] = field(repr=False)  # most multiply-adds first
    closest: Way  # the way that needs the least memory of all that were counted
    blocks: Blocks = "published"  # those that have to fit too
    convention: str = "fused"
    network: nn.Module | None = field(default=None, repr=False)  # of one's own
    example: Tensor | None = field(default=None, repr=False)  # for it

    def key(self, way: Way) -> str:
        """What a reader calls a way: "4-11221 ×0.25", "1-21222 ×0.25 at 15 px"; "4-122" of a network of one's own."""
        size = f" at {way.image_size} px" if way.image_size != self.teacher.image_size else ""
        return way.plan if self.network is not None else f"{way.plan} ×{way.width:g}{size}"

    def _model(self, way: Way) -> str | nn.Module:
        if self.network is None or self.example is None:
            return f"{self.architecture}-{way.plan}"
        if way.plan == self.teacher.plan:
            return self.network
        return restrided(self.network, None, way.plan, (self.example,), "stride")[0]

    def arms(self, methods: str | Method | Sequence[str | Method] | None = None) -> dict[str, Arm]:
        """Each way as an arm that learns from labels alone, or from a teacher too.

        By `methods`, those are taught that see the teacher's images. Where a method leaves blocks in the student, as
        RED does, they take them and fit with them.
        """
        made = () if methods is None else parse_methods(methods)
        with outlines():
            red = any(method.block((8, 8, 8)) is not None for method in made)
        arms = {}
        for way in self.fits:
            smaller = way.image_size != self.teacher.image_size
            if (made and smaller) or (red and not (way.published and way.peak(self.blocks) <= self.peak_bytes)):
                continue
            arm = Arm(self._model(way), made or None, way.width, way.image_size if smaller else None)
            arms[" with ".join([self.key(way), *["+".join(m.name for m in made)] * bool(made)])] = arm
        return arms

    def to_frame(self) -> pd.DataFrame:
        """One row per way: KiB of activations, parameters in thousands and multiply-adds in millions, with shares.

        Peaks are live bytes; under a runtime that plans an arena, the columns with that word are what has to fit.
        """
        own = self.teacher.plain
        rows = [
            {
                "plan": way.plan,
                "width": way.width,
                "image size": way.image_size,
                "peak (KiB)": way.plain.peak_bytes / 1024,
                "with RED (KiB)": math.nan if way.published is None else way.published.peak_bytes / 1024,
                "RED in place (KiB)": math.nan if way.in_place is None else way.in_place.peak_bytes / 1024,
                **arenas(way),
                "peak ÷ teacher": way.plain.peak_bytes / own.peak_bytes,
                "parameters (k)": way.plain.parameters / 1e3,
                "parameters ÷ teacher": way.plain.parameters / own.parameters,
                "mult-adds (M)": way.plain.flops / 2e6,
                "mult-adds ÷ teacher": way.plain.flops / own.flops,
                "why": way.why,
            }
            for way in self.fits
        ]
        return pd.DataFrame(rows, index=pd.Index([self.key(way) for way in self.fits], name="arm"))

    def __str__(self) -> str:
        teacher = f"{self.architecture}-{self.key(self.teacher)} ({format_size(self.teacher.plain.needed_bytes)})"
        budget = format_size(self.peak_bytes) + f" under {self.convention}" * (self.convention != "fused")
        if not self.fits:
            least = f"{self.key(self.closest)} needs {format_size(self.closest.needs(self.blocks).needed_bytes)}"
            own = self.network is not None  # of which neither can be asked for here
            cure = "smaller images or a narrower network" if own else "smaller image_sizes or narrower widths"
            return f"nothing of {teacher} fits {budget}: {least}; try {cure}"
        ways, best = f"{len(self.fits)} way{'s' * (len(self.fits) > 1)}", self.fits[0]
        share = best.plain.flops / self.teacher.plain.flops
        return f"{ways} from {teacher} to {budget}: {self.key(best)} keeps {share:.0%} of its multiply-adds"


def arms_at_peak(
    teacher: str | nn.Module,
    peak: int | str,
    example: Tensor,
    *,
    width: float = 1.0,
    widths: Iterable[float] | None = None,
    image_sizes: Iterable[int] | None = None,
    blocks: Blocks = "published",
    convention: Convention = "fused",
) -> ArmsAtPeak:
    """Ways to fit a peak of activations: pool earlier, be narrower, see smaller images, and what each costs.

    `teacher` is the built-in name of a classifier of `width`, `peak` bytes or ``"24KB"``, `example` images B×C×H×W as
    the data are, of which only the shape counts. At each of `widths` × `image_sizes` (px), of the plans of the
    teacher's total stride that fit, the one is taken that keeps most multiply-adds, so that none of these pools later
    at every place; and, on the teacher's images, of those that fit with RED `blocks` too, as for `fit_to_budget`.
    Where they fit, the teacher's own plan at these widths and sizes and the paper's student of it are there as well.
    Left out is what is at once pooled earlier, narrower and on smaller images than another. Widths default to the
    teacher's and its halves, sizes to the example's and, at the teacher's width, the largest smaller one on which
    its own plan fits.

    Of a network of your own, ways are its own plan and of those of `fit_to_budget` the two that keep most, without
    blocks and with them; what `derive_student` makes of it has its weights.

    All is counted in fp32, for ten classes and the example's channels, under a `convention` of `profile_memory` other
    than ``paper``. Plans are searched by halves, as pooling later never takes less live memory; of a runtime's arena
    that may not hold, so that what is found fits, but a better plan may be missed.

    >>> import torch
    >>> found = arms_at_peak("resnet18-1-21222", "19200B", torch.zeros(1, 1, 40, 40), width=0.25)
    >>> list(found.arms("red"))
    ['4-11212 ×0.25 with red', '4-11221 ×0.25 with red', '4-11122 ×0.125 with red']
    """
    check_type("blocks", blocks, Blocks)
    peak_bytes, runtime = parse_size(peak), runtime_of(convention)
    if runtime is None:
        raise ValueError("budgets cannot be counted by paper, which knows layers alone: use fused")
    if not isinstance(example, Tensor) or example.ndim != 4 or example.shape[2] != example.shape[3]:
        raise ValueError("example is images B×C×H×W as high as wide, such as torch.zeros(1, 3, 224, 224)")
    check_type("teacher", teacher, str, nn.Module)
    if isinstance(teacher, nn.Module):
        if width != 1.0 or widths is not None or image_sizes is not None:
            raise ValueError(
                "width, widths and image_sizes are for built-in names; leave them out with your own network"
            )
        return _own_ways(teacher, peak_bytes, example, blocks, convention)
    check_classifier(teacher, width)
    halves = itertools.takewhile(lambda w: w >= LEAST_WIDTH, (width / 2**k for k in itertools.count()))
    chosen = dict.fromkeys(halves if widths is None else check_type("widths", widths, Iterable))
    for each in chosen:
        check_classifier(teacher, each)
    given = None if image_sizes is None else [*check_type("image_sizes", image_sizes, Iterable)]
    sizes = dict.fromkeys(wholes("image_sizes", given or ()))
    if not chosen or (given is not None and not sizes):
        raise ValueError("widths and image_sizes name at least one each; leave them out for the usual ones")
    search = _Search(teacher, width, tuple(example.shape[:3]), peak_bytes, blocks, runtime)
    with uncollected(), asking((example,)):
        own = replace(search.count(search.plan, width, search.side), why=OWN)
        smaller = [] if sizes else [(width, side) for side in search.smaller()]
        places = [*itertools.product(chosen, sizes or [search.side]), *smaller]
        found = search.papers() if (width, search.side) in places else []
        with progress_bar(len(places), f"ways to {format_size(peak_bytes)}") as bar:
            for place in places:
                found += search.at(*place)
                bar.update()
        kept: dict[_Key, Way] = {}
        for way in found:
            rivals = (other for other in found if other.why == way.why and other != way)
            if not any(other.later(way) for other in rivals):
                kept.setdefault((way.plan, way.width, way.image_size), search.with_blocks(way))
    fits = sorted(kept.values(), key=lambda way: (-way.plain.flops, way.peak("none"), way.plan))
    closest = min(search.counted.values(), key=lambda way: way.peak("none"))
    return ArmsAtPeak(own, search.architecture, peak_bytes, tuple(fits), closest, blocks, runtime.name)


def _own_ways(
    network: nn.Module, peak_bytes: int, example: Tensor, blocks: Blocks, convention: Convention
) -> ArmsAtPeak:
    how: dict[str, Any] = {"dtypes": "fp32", "blocks": blocks, "convention": convention}
    found = fit_to_budget(network, peak_bytes, example[:1], **how)

    def way(fit: Fit, why: str) -> Way:
        return Way(fit.plan, fit.dtype, fit.plain, fit.published, fit.in_place, image_size=example.shape[-1], why=why)

    own = replace(way(found.own[0], OWN), published=None, in_place=None)  # which nothing teaches
    within = [own] if own.peak("none") <= peak_bytes else []
    within += [way(fit, LATEST) for fit in found.fits_with("none")[:1]]
    within += [way(fit, TAUGHT) for fit in found.fits_with(found.blocks)[:1]]
    kept = {each.plan: each for each in reversed(within)}  # the first of a plan
    fits = sorted(kept.values(), key=lambda way: (-way.plain.flops, way.peak("none"), way.plan))
    closest = way(found.closest, LATEST)
    ways = ArmsAtPeak(own, found.model, peak_bytes, tuple(fits), closest, blocks, found.convention)
    return replace(ways, network=network, example=example)


class _Search:
    """What `arms_at_peak` looks at, and all that was counted so far."""

    def __init__(
        self, name: str, width: float, shape: tuple[int, ...], peak: int, blocks: Blocks, runtime: Runtime
    ) -> None:
        self.name, self.width, (self.batch, self.channels, self.side) = name, width, shape
        self.peak, self.blocks, self.runtime, self.runs = peak, blocks, runtime, Runs()
        self.architecture = name.partition("-")[0]
        self.sized = ARCHITECTURES[self.architecture].sized
        with outlines():
            self.plan: StridePlan = create_model(name).plan
        self.plans = functools.cache(self._plans)
        self.counted: dict[_Key, Way] = {}
        self.passes: dict[_Key, tuple[nn.Module, Followed]] = {}
        self.taught: dict[_Key, Way] = {}

    def _plans(self, width: float, side: int) -> tuple[list[StridePlan], Callable[[StridePlan], nn.Module]]:
        options = {"in_channels": self.channels, "width": width, **({"image_size": side} if self.sized else {})}
        _, _, plans, build = plans_of(self.name, self.images(side), **options)
        return plans, build

    def images(self, side: int) -> tuple[Tensor]:
        return (torch.zeros(self.batch, self.channels, side, side, device="meta"),)

    def count(self, plan: StridePlan, width: float, side: int) -> Way:
        key = str(plan), width, side
        if key not in self.counted:
            network = self.plans(width, side)[1](plan)
            passed = followed(network, self.images(side), self.runtime, self.runs)
            cost = passed.cost("fp32", self.runtime)
            self.passes[key] = network, passed
            self.counted[key] = Way(str(plan), "fp32", cost, width=width, image_size=side)
        return self.counted[key]

    def with_blocks(self, way: Way) -> Way:
        key = way.plan, way.width, way.image_size
        itself = key[:2] == (str(self.plan), self.width)
        if way.image_size != self.side or not self.plan.stages or itself:
            return way
        if key not in self.taught:
            (network, passed), (teacher, theirs) = self.passes[key], self.teacher
            ours = find_resolutions(network, self.images(self.side))
            self.taught[key] = plain = self.counted[key]
            with contextlib.suppress(ValueError):  # no map is as large as one of the teacher's
                taps = pair_steps(network, ours, teacher, theirs, "narrow" in self.blocks)
                published, in_place = (form.cost("fp32", self.runtime) for form in passed.with_blocks(taps))
                self.taught[key] = replace(plain, published=published, in_place=in_place)
        return replace(self.taught[key], why=way.why)

    @functools.cached_property
    def teacher(self) -> tuple[nn.Module, Resolutions]:
        network = self.plans(self.width, self.side)[1](self.plan)
        return network, find_resolutions(network, self.images(self.side))

    def fits(self, way: Way, blocks: Blocks) -> bool:
        """Whether it does with these blocks. None are counted where it does not without."""
        plain = way.peak("none") <= self.peak
        return plain and (blocks == "none" or self.with_blocks(way).peak(blocks) <= self.peak)

    def smaller(self) -> list[int]:
        """The largest side below the data's on which the teacher itself fits."""
        step = self.plan.stem if self.sized else 1
        sides = range(step * math.ceil(LEAST_SIDE / step), self.side, step)

        def needed(side: int) -> int:
            return self.count(self.plan, self.width, side).plain.needed_bytes

        return [*sides[: bisect.bisect(sides, self.peak, key=needed)][-1:]]

    def papers(self) -> list[Way]:
        """The paper's student of the least factor that fits."""
        for factor in (2, 4, 8) if self.plan.stages else ():
            try:
                plan = StridePlan.parse(student_name(self.name, factor).partition("-")[2])
            except ValueError:  # the teacher has too little stride to move
                break
            way = self.count(plan, self.width, self.side)
            if self.fits(way, self.blocks):
                return [replace(way, why=f"the paper's ×{factor} student")]
        return []

    def at(self, width: float, side: int) -> list[Way]:
        """Those that fit: the teacher's own plan, and those that keep most without blocks and with them."""
        own = self.count(self.plan, width, side)
        found = [replace(own, why=OWN)] if self.fits(own, "none") else []
        found += self.latest(width, side, "none")
        if side == self.side and self.blocks != "none":
            found += [replace(way, why=TAUGHT) for way in self.latest(width, side, self.blocks)]
        return found

    def latest(self, width: float, side: int, blocks: Blocks) -> list[Way]:
        """The plan that keeps most multiply-adds of those that fit, or none.

        Pooling later at every place takes more memory and more multiply-adds, so that few plans have to be counted.
        """
        best, seen = None, list[tuple[StridePlan, Way]]()
        left = sorted(self.plans(width, side)[0], key=lambda plan: math.prod(totals(plan)))
        while left:
            plan = left.pop(len(left) // 2)
            way = self.count(plan, width, side)
            seen.append((plan, way))
            if best is None or way.plain.flops > best.plain.flops:
                if self.fits(way, blocks):
                    best = way
                elif not self.fits(way, "none"):
                    left = [other for other in left if not _later(other, plan)]
            if best is not None:
                less = [plan for plan, way in seen if way.plain.flops <= best.plain.flops]
                left = [other for other in left if not any(_later(plan, other) for plan in less)]
        return [] if best is None else [best]


def _later(plan: StridePlan, other: StridePlan) -> bool:
    """Whether no map of `plan` is smaller than with `other`; so it is of two equal plans."""
    return all(map(operator.le, totals(plan), totals(other)))
