"""Every way that we know to fit a network into a memory: plan, width, image size, dtype, row by row, RED."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pandas as pd
import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.comparison import Arm, ArmsAtPeak, arms_at_peak
from redistill_lib.comparison.peaks import Way
from redistill_lib.costs import Cost, followed
from redistill_lib.memory import profile_memory
from redistill_lib.memory.profile import DTYPES, Convention, runtime_of, storage_size
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.network.fakes import outlines
from redistill_lib.progress import progress_bar
from redistill_lib.sizes import format_size, millions, parse_size
from redistill_lib.streaming import row_ends, stream_rows
from redistill_lib.streaming.stream import unchecked_rows

REACH = 4  # networks of up to so many times the budget are tried row by row
STREAMED, TRIES = 4, 3  # so many of them, with most multiply-adds, until so many layers each
#: Conventions under which a map in int8 takes a quarter of one in float32, and nothing else changes.
SCALED = ("fused", "eager", "litert_micro")
#: Runtimes that hold no more of a network row by row than is predicted. ONNX Runtime holds many small maps, and
#: LiteRT Micro has no operator that writes rows into a map.
BY_ROWS = ("fused", "executorch")


@dataclass(frozen=True)
class Choice:
    """A network, in what its activations are stored, and how it runs."""

    key: str  # what a reader calls its plan, width and image size
    way: Way
    dtype: str
    until: str  # the layer until which it runs row by row; "" for one that computes whole maps
    red: bool  # with RED's blocks, for a teacher to teach
    cost: Cost  # of all that
    trained: bool  # whether it has to be trained first; the teacher itself has not

    @property
    def name(self) -> str:
        dtype = f" in {self.dtype}" if self.dtype != "fp32" else ""
        return self.key + " with RED" * self.red + dtype + f", row by row until {self.until}" * bool(self.until)

    @property
    def bits(self) -> int:
        """Of a value."""
        return 8 * DTYPES[self.dtype].itemsize

    @property
    def asks(self) -> str:
        """What has to be done for it, or be there, first."""
        asked = ["training with a teacher" if self.red else "training"] * self.trained
        if self.dtype == "int8":
            # ExecuTorch runs rows, and LiteRT Micro holds int8; both at once nothing that we have measured.
            asked += ["calibration", *["a runtime that holds int8 row by row"] * bool(self.until)]
        return " and ".join(asked) or "nothing"

    def beats(self, other: Choice, enough: int) -> bool:
        """Whether it needs no more memory, keeps no less, and asks for no more, of which one is better.

        Multiply-adds beyond `enough`, the teacher's, keep no more of it.
        """

        def worth(each: Choice) -> tuple[float, ...]:
            kept = min(each.way.plain.flops, enough)
            return kept, each.bits, -each.cost.needed_bytes, not each.until, not each.trained

        ours, theirs = worth(self), worth(other)
        return self.red == other.red and ours != theirs and all(map(operator.ge, ours, theirs))


@dataclass(frozen=True)
class WaysToFit:
    """The answer to `ways_to_fit`. `fits` is empty where nothing fits."""

    budget_bytes: int
    ways: ArmsAtPeak  # those of whole maps in the first dtype, and the teacher
    fits: tuple[Choice, ...] = field(repr=False)  # most multiply-adds first
    convention: str = "fused"

    def arms(self, methods: str | None = None) -> dict[str, Arm]:
        """What there is to train for them: each network once, in float32, whole, without RED's blocks.

        With `methods`, those that fit with the blocks, taught by these methods.
        """
        chosen = [choice for choice in self.fits if choice.red == (methods is not None)]
        found = replace(self.ways, fits=tuple({self.ways.key(each.way): each.way for each in chosen}.values()))
        return found.arms(methods) if chosen else {}

    def to_frame(self) -> pd.DataFrame:
        """One row per choice: KiB of activations and of weights, multiply-adds in millions, blocks included."""
        own = self.ways.teacher.plain.flops
        rows = [
            {
                "plan": each.way.plan,
                "width": each.way.width,
                "image size": each.way.image_size,
                "dtype": each.dtype,
                "row by row until": each.until,
                "RED": each.red,
                "needs (KiB)": each.cost.needed_bytes / 1024,
                "mult-adds (M)": each.cost.flops / 2e6,
                "mult-adds ÷ teacher": each.cost.flops / own,
                "weights (KiB)": each.cost.weight_bytes / 1024,
                "asks for": each.asks,
            }
            for each in self.fits
        ]
        return pd.DataFrame(rows, index=pd.Index([each.name for each in self.fits], name="way"))

    def table(self) -> pd.DataFrame:
        """The same for people."""
        own = self.ways.teacher.plain.flops
        rows = [
            {
                "way": each.name,
                "needs": format_size(each.cost.needed_bytes),
                "multiply-adds": f"{millions(each.cost.flops / 2)} ({each.cost.flops / own:.0%})",
                "weights": format_size(each.cost.weight_bytes),
                "asks for": each.asks,
            }
            for each in self.fits
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        teacher = f"{self.ways.architecture}-{self.ways.key(self.ways.teacher)}"
        teacher += f" ({format_size(self.ways.teacher.plain.needed_bytes)} in float32)"
        budget = format_size(self.budget_bytes) + f" under {self.convention}" * (self.convention != "fused")
        if not self.fits:
            return f"nothing of {teacher} fits {budget}, row by row or whole, in any of these dtypes"
        held = (each for each in self.fits if not (each.until and each.dtype == "int8"))  # by one of the runtimes
        best, count = next(held, self.fits[0]), f"{len(self.fits)} way{'s' * (len(self.fits) > 1)}"
        share = best.cost.flops / self.ways.teacher.plain.flops
        return f"{count} from {teacher} to {budget}: {best.name} keeps {share:.0%} of its multiply-adds"


def ways_to_fit(
    teacher: str | nn.Module,
    budget: int | str,
    example: Tensor,
    *,
    width: float = 1.0,
    dtypes: str | Sequence[str] | None = None,
    convention: Convention = "fused",
) -> WaysToFit:
    """Every way to fit a classifier's activations into a budget: what each keeps, and what it asks for.

    The ways of `arms_at_peak` (plan × width × image size, alone and with RED's blocks), in each of `dtypes` (default:
    fp32 and, where the convention says what it takes, int8); and those that need up to four times the budget run row
    by row (`stream_rows`) until the earliest layer behind which the rest fits. Left out is what another one beats:
    one that needs no more memory, keeps as many of the teacher's multiply-adds in as many bits, and asks for no more,
    neither training nor rows. Which is the most accurate has to be measured: `arms` are to be trained for that.

    `teacher`, `width` and `example` are those of `arms_at_peak`, `budget` bytes or ``"32KB"``. Raises ValueError as
    that does, and for a dtype of which a convention does not say what it takes.

    >>> image = torch.zeros(1, 1, 16, 16)
    >>> found = ways_to_fit("resnet18-1-21222", "6KB", image, width=0.125, convention="executorch")
    >>> [choice.name for choice in found.fits][:2]
    ['1-21222 ×0.125, row by row until maxpool', '2-11214 ×0.125']
    """
    budget_bytes, runtime = parse_size(budget), runtime_of(convention)
    name = "paper" if runtime is None else runtime.name
    known = ("fp32", "int8") if name in SCALED else ("fp32",)
    chosen = [dtypes] if isinstance(dtypes, str) else [*check_type("dtypes", dtypes or known, list, tuple)]
    for dtype in chosen:
        storage_size(dtype)
    sizes = {dtype: DTYPES[dtype].itemsize for dtype in chosen}
    if name not in SCALED and (odd := [dtype for dtype in chosen if dtype != "fp32"]):
        raise ValueError(
            f"what {name} needs in {odd[0]} is not predicted: fp32 alone; or export in {odd[0]} and measure"
        )

    @functools.cache
    def at(times: int) -> ArmsAtPeak:
        return arms_at_peak(teacher, times * budget_bytes, example, width=width, convention=convention)

    found: list[Choice] = []
    for dtype, size in sizes.items():
        times = 4 // size
        whole = at(times)
        found += itertools.chain.from_iterable(_whole(whole, way, dtype) for way in whole.fits)
        if runtime is not None and name in BY_ROWS:
            keys = {whole.key(way) for way in whole.fits}
            more = {whole.key(way): way for way in (whole.teacher, *at(REACH * times).fits)}
            tried = [way for key, way in more.items() if key not in keys][:STREAMED]
            with progress_bar(len(tried), f"row by row in {dtype}") as bar:
                for way in tried:
                    found += _by_rows(whole, way, dtype, example)
                    bar.update()
    enough = at(1).teacher.plain.flops
    kept = [choice for choice in found if not any(other.beats(choice, enough) for other in found)]
    kept.sort(key=lambda each: (-min(each.way.plain.flops, enough), each.trained, -each.bits, each.cost.needed_bytes))
    return WaysToFit(budget_bytes, at(4 // sizes[chosen[0]]), tuple(kept), name)


def _in(dtype: str, cost: Cost) -> Cost:
    """What a network needs, counted in float32, in another dtype."""
    times = 4 // DTYPES[dtype].itemsize
    arena = None if cost.arena_bytes is None else cost.arena_bytes // times
    weights = cost.weight_bytes // times
    return replace(cost, peak_bytes=cost.peak_bytes // times, arena_bytes=arena, weight_bytes=weights)


def _choice(ways: ArmsAtPeak, way: Way, dtype: str, cost: Cost, until: str = "", red: bool = False) -> Choice:
    own = (way.plan, way.width, way.image_size) == (ways.teacher.plan, ways.teacher.width, ways.teacher.image_size)
    return Choice(ways.key(way), way, dtype, until, red, _in(dtype, cost), trained=not own)


def _whole(ways: ArmsAtPeak, way: Way, dtype: str) -> Iterator[Choice]:
    """A way alone, and with its blocks where it has some and they fit."""
    yield _choice(ways, way, dtype, way.plain)
    if way.published is not None and way.published.needed_bytes <= ways.peak_bytes:
        yield _choice(ways, way, dtype, way.published, red=True)


def _by_rows(ways: ArmsAtPeak, way: Way, dtype: str, example: Tensor) -> Iterator[Choice]:
    """A way that is too large, run row by row until the earliest layer behind which the rest fits; or none."""
    image = torch.zeros(1, example.shape[1], way.image_size, way.image_size, device="meta")
    network, runtime = _network(ways, way, example.shape[1]), runtime_of(ways.convention)
    assert runtime is not None
    try:
        ends = row_ends(network, example=image)
    except ValueError:  # nothing of it runs so
        return
    rows = profile_memory(network, image, convention=runtime).rows
    least, last = {}, {}  # of each layer: what the rest needs, or image and its last map; and that map alone
    for end in ends:
        inside = [k for k, row in enumerate(rows) if f"{row.module}.".startswith(f"{end}.")]
        if inside:
            behind = max((row.live_bytes for row in rows[inside[-1] + 1 :]), default=0)
            last[end] = rows[inside[-1]].out_bytes
            least[end] = max(behind, image.nbytes + last[end])
    for until in [end for end, peak in least.items() if peak <= ways.peak_bytes][:TRIES]:
        try:
            if ways.network is None:  # the built-in networks use no size of a map
                streamed, _ = unchecked_rows(network, 1, image, until)
            else:
                streamed = stream_rows(network, example=image, until=until)
        except ValueError:
            continue
        passed = followed(streamed, (image,), runtime)
        alive = passed.cost("fp32", replace(runtime, packer="live")).peak_bytes
        if alive <= ways.peak_bytes:  # thousands of rows are not packed in vain
            cost = passed.cost("fp32", runtime)
            if cost.needed_bytes <= ways.peak_bytes:
                yield _choice(ways, way, dtype, cost, until)
                return
        if alive - last[until] > ways.peak_bytes:  # a later end holds all of that, of its last map some rows
            return


def _network(ways: ArmsAtPeak, way: Way, channels: int) -> nn.Module:
    """The network of a way, in eval mode and without contents."""
    if ways.network is not None:
        arm = replace(ways, fits=(way,)).arms()[ways.key(way)]
        return copy.deepcopy(cast(nn.Module, arm.model)).to("meta").eval()
    sized = {"image_size": way.image_size} if ARCHITECTURES[ways.architecture].sized else {}
    with outlines():
        name = f"{ways.architecture}-{way.plan}"
        return create_model(name, width=way.width, in_channels=channels, **sized).eval()
