"""How long each arm trains: what an epoch costs, measured once and kept, and what a budget makes of it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import nn

from redistill_lib.checks import check_above_zero, check_fields
from redistill_lib.comparison.arms import Arm, named
from redistill_lib.comparison.trials import one_thread, train_arm
from redistill_lib.data import DataSplits, TensorImages
from redistill_lib.identity import object_identity, structure
from redistill_lib.memory.measure import most_allocated
from redistill_lib.methods import Method
from redistill_lib.progress import progress_bar
from redistill_lib.runs import run_id, write_text
from redistill_lib.source import code_identity
from redistill_lib.train import RunOptions
from redistill_lib.train.options import History

BATCHES, LAPS, PASSES = 8, 1, 3  # an epoch is timed on so many batches, as often as that, in turn with other arms


@dataclass(frozen=True)
class Budget:
    """What every arm may spend: processor `seconds` of one thread, or `epochs`, or `steps`, to whole epochs.

    Of seconds, an arm that learns from a teacher pays `teacher_share` of that teacher's training first, and for what
    a cache keeps of it, together with the arms that read the same. Where an arm has several candidates, each gets
    `trial_share` of the budget on a seed of its own.

    >>> Budget(seconds=240)
    Budget(seconds=240.0, epochs=None, steps=None, teacher_share=1.0, trial_share=1.0)
    """

    seconds: float | None = None
    epochs: int | None = None
    steps: int | None = None
    teacher_share: float = 1.0
    trial_share: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        given = {name: getattr(self, name) for name in ("seconds", "epochs", "steps")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"a budget is so many seconds, epochs or steps: give one of them, not {given or 'none'}")
        check_above_zero(**given, trial_share=self.trial_share)
        if self.teacher_share < 0:
            raise ValueError(f"teacher_share is a share from 0 up, not {self.teacher_share!r}")

    def share(self, of: float) -> Budget:
        """So large a part of it."""
        if self.seconds is not None:
            return replace(self, seconds=self.seconds * of)
        name, value = ("epochs", self.epochs) if self.steps is None else ("steps", self.steps)
        return replace(self, **{name: max(1, round((value or 0) * of))})

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:,.0f} seconds" if self.seconds >= 10 else f"{self.seconds:.2g} seconds"
        word, count = ("epoch", self.epochs) if self.steps is None else ("step", self.steps)
        return f"{count:,} {word}{'s' * (count != 1)}"


@dataclass(frozen=True)
class EpochCost:
    """Processor seconds of an epoch, and of making what a cache keeps of one view of all images; 0 without one.

    `reads` says what that is: arms of the same find what another has made. `memory` is the most bytes that a step of
    training holds at once, of all that it allocates; 0 where that was not measured.
    """

    epoch: float
    answers: float = 0.0
    reads: str = ""
    memory: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Length:
    """How long an arm trains: the seconds that it pays for its teacher beforehand, its own, and its epochs."""

    epochs: int
    beforehand: float
    seconds: float

    @property
    def total(self) -> float:
        return self.beforehand + self.seconds


def measure_epochs(
    arms: Mapping[str, Arm], teacher: nn.Module, data: DataSplits, options: RunOptions
) -> dict[str, EpochCost]:
    """What an epoch of each arm costs, on the first batches of `data`, by the training itself, under `teacher`.

    Seconds are the processor's, on one thread; on a GPU those of the clock. They are kept in ``epoch_costs.json`` of
    the run store, so that the lengths that follow from them, and so the runs, stay the same in every later call; with
    `reuse`, those that other code of this library has measured too. Arms that are measured later are scaled by what
    an arm costs then and has cost before. Of several processes one measures, and the others wait.
    """
    file = Path(options.runs_dir) / "epoch_costs.json"
    keys = {name: _key(arm, teacher, data, options) for name, arm in arms.items()}
    known = _kept(file, keys, options)
    if known.keys() < {*keys.values()}:
        with _alone(file.parent):
            known = _kept(file, keys, options)
            missing = {key: name for name, key in keys.items() if key not in known}
            yardstick = [(key, name) for name, key in keys.items() if missing and key in known][:1]
            wanted = dict(yardstick) | missing
            found: dict[str, list[EpochCost]] = {key: [] for key in wanted}
            with progress_bar(PASSES * len(wanted), "what an epoch costs", options.progress) as bar, one_thread():
                for _ in range(PASSES):
                    for key, name in wanted.items():
                        with named(name):
                            found[key].append(_measure(arms[name], teacher, data, options))
                        bar.update()
            middle = {key: statistics.median(cost.epoch for cost in costs) for key, costs in found.items()}
            scale = next((known[key].epoch / middle[key] for key, _ in yardstick), 1.0)
            for key in missing:
                answers = statistics.median(cost.answers for cost in found[key])
                memory = _memory(arms[missing[key]], teacher, data, options)
                known[key] = EpochCost(scale * middle[key], scale * answers, found[key][0].reads, memory)
            write_text(file, json.dumps(_read(file) | {key: astuple(known[key]) for key in missing}, indent=1))
    return {name: known[key] for name, key in keys.items()}


def lengths(
    budget: Budget, arms: Mapping[str, Arm], costs: Mapping[str, EpochCost], teacher_seconds: float, images: int
) -> dict[str, Length]:
    """How long each arm trains on so many images. ValueError where the seconds do not reach for one epoch of each.

    >>> arms = {"naive": Arm("resnet18-4-11221"), "kd": Arm("resnet18-4-11221", "kd")}
    >>> costs = {"naive": EpochCost(2.0), "kd": EpochCost(3.0)}
    >>> lengths(Budget(seconds=70), arms, costs, teacher_seconds=10.0, images=6000)["kd"]
    Length(epochs=20, beforehand=10.0, seconds=60.0)
    """
    readers = Counter(costs[name].reads for name in arms if costs[name].answers)
    found = {}
    for name, arm in arms.items():
        cost, views = costs[name], arm.recipe.views or math.inf  # left out, each epoch reads another
        before = budget.teacher_share * teacher_seconds if arm.taught else 0.0
        share = cost.answers and cost.answers / readers[cost.reads]  # made once for all
        if budget.seconds is not None:
            left = budget.seconds - before
            epochs = int(left / (cost.epoch + share) + 1e-9)
            if epochs < 1:
                raise ValueError(
                    f"{budget} are too few for {name}: its epochs take {cost.epoch:.3g} s each and it pays "
                    f"{before + share:.3g} s for its teacher first; give more, or a teacher of fewer epochs"
                )
            if epochs > views:
                epochs = int((left - share * views) / cost.epoch + 1e-9)
        else:
            steps = arm.recipe.steps_per_epoch(images)
            epochs = budget.epochs or max(1, round((budget.steps or 0) / steps))
        found[name] = Length(epochs, before + share * min(views, epochs), epochs * cost.epoch)
    return found


def _read(file: Path) -> dict[str, list[Any]]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _kept(file: Path, keys: Mapping[str, str], options: RunOptions) -> dict[str, EpochCost]:
    """What is known of these keys."""
    try:
        known = {key: EpochCost(*values) for key, values in _read(file).items()}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is cut short or not what this library wrote ({error}); put a copy back, or delete it to measure "
            "again, after which arms may train for other lengths"
        ) from None
    if options.reuse:  # by other code, the oldest, as of runs
        by_any = {key.rpartition("-")[0]: cost for key, cost in reversed(known.items())}
        known = {key: cost for key in keys.values() if (cost := by_any.get(key.rpartition("-")[0]))} | known
    return {key: known[key] for key in keys.values() if key in known}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Measure while no other process does, whose lengths would be others."""
    lock = FileLock(folder / ".epoch_costs.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            told = f"waiting for another process to measure epochs; if none does, delete {lock.lock_file}"
            print(told, file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise OSError(f"what epochs cost cannot be kept in {folder}: {error}; give another runs_dir") from error
    try:
        yield
    finally:
        lock.release()


#: Of a recipe, what changes no epoch's length.
_TIMELESS = (
    "epochs", "steps", "learning_rate", "weight_decay", "momentum", "schedule", "warmup", "milestones",
    "divide_by", "label_smoothing",
)  # fmt: skip


def _key(arm: Arm, teacher: nn.Module, data: DataSplits, options: RunOptions) -> str:
    """What decides how long an epoch takes."""
    model = arm.model if isinstance(arm.model, str) else structure(arm.model)
    recipe = {name: value for name, value in asdict(arm.recipe).items() if name not in _TIMELESS}
    if isinstance(arm.model, str) and arm.recipe.init == "scratch":
        recipe["init"] = "given"  # which is new under the seed, too
    methods = [object_identity(_weighing_one(each)) for each in arm.method_list]
    told: dict[str, Any] = {"methods": methods, "taps": object_identity(arm.taps), "recipe": recipe}
    told |= {"model": model, "width": arm.width, "image_size": arm.image_size}
    told |= {"teacher": structure(teacher)} if arm.needs_teacher else {}
    told |= {"cached": options.cache is not None, "precision": options.mixed_precision}
    told |= {"images": len(data.train), "validation": len(data.validation), "classes": data.num_classes}
    told |= {"decoded": isinstance(data.train, TensorImages)}
    return run_id("epoch", {**told, "shape": [data.in_channels, data.image_size]}, code_identity())


def _weighing_one(method: Method) -> Method:
    """The method at a weight of 1, or of 0 if that is its own."""
    with contextlib.suppress(TypeError, ValueError):  # of one of the user's, whose weight is no field
        return replace(method, alpha=float(method.alpha > 0))
    return method


def _tame(arm: Arm) -> Arm:
    """The arm, whose epochs take as long, where neither its rate nor its weights are so large that it diverges."""
    methods = None if arm.methods is None else [_weighing_one(each) for each in arm.method_list]
    taps = arm.taps and [replace(tap, method=tap.method and _weighing_one(tap.method)) for tap in arm.taps]
    return replace(arm, methods=methods, taps=taps, recipe=replace(arm.recipe, learning_rate=1e-9))


def _measure(arm: Arm, teacher: nn.Module, data: DataSplits, options: RunOptions) -> EpochCost:
    few = _first(data, BATCHES * arm.recipe.batch_size)
    times = len(data.train) / len(few.train)
    with TemporaryDirectory() as folder:
        cache = None if options.cache is None else f"{folder}/cache"
        waits, epochs = list[float](), list[float]()
        for seed in range(1 if cache is None else 2):  # the second finds what the first has put into the cache
            quiet = replace(options, runs_dir=f"{folder}/{seed}", cache=cache, progress=False, name=None)
            laps, steps = _timed(arm, few, seed, teacher, quiet)
            waits.append(laps[0])
            # An epoch's steps and validation grow with the images; what is written after it does not.
            epochs += (steps * times + laps - steps)[1:].tolist()
        kept = {path.name.rpartition("-")[0] for path in Path(folder).glob("cache/teacher-*/*/")}
        reads = " ".join([*sorted(kept), arm.recipe.augmentation]) if kept else ""
        views = min(arm.recipe.views or 1 + LAPS, 1 + LAPS)
        answers = max(0.0, float(waits[0] - waits[1])) * times / views if reads else 0.0
        return EpochCost(statistics.median(epochs), answers, reads)


def _timed(
    arm: Arm, few: DataSplits, seed: int, teacher: nn.Module, options: RunOptions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The seconds of each epoch with all before it and what is written after it, and of its steps and validation.

    The training ends with its last epoch, as nobody asks for its scores.
    """
    gpu = torch.accelerator.is_available() and not options.cpu
    clock, column = (time.perf_counter, "seconds") if gpu else (time.process_time, "processor_seconds")
    marks, steps = [clock()], list[float]()

    def note(history: History, _: object) -> None:
        marks.append(clock())
        steps.append(history[-1][column])
        if len(steps) > LAPS:
            raise _Measured

    with contextlib.redirect_stdout(None), contextlib.suppress(_Measured):
        train_arm(_tame(arm), few, 1 + LAPS, seed, teacher, replace(options, on_log=note))
    return np.diff(marks), np.array(steps)


class _Measured(Exception):
    """All epochs that were to be timed are."""


def _memory(arm: Arm, teacher: nn.Module, data: DataSplits, options: RunOptions) -> float:
    """The most bytes that training on one batch holds at once: weights, gradients, a teacher's maps and all else."""
    one = _first(data, arm.recipe.batch_size)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        cache = None if options.cache is None else f"{folder}/cache"
        quiet = replace(options, runs_dir=folder, cache=cache, progress=False, name=None)
        train = functools.partial(train_arm, _tame(arm), one, 1, 0, teacher, quiet)
        if torch.cuda.is_available() and not options.cpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            train()
            return float(torch.cuda.max_memory_allocated() - before)
        return float(most_allocated(train) or 0)


def _first(data: DataSplits, images: int) -> DataSplits:
    """The first of the training images, and as large a share of those for validation; two stand for test."""
    count = min(images, len(data.train))
    share = max(2, round(len(data.validation) * count / len(data.train)))
    held, two = (data.validation.take(torch.arange(min(n, len(data.validation)))) for n in (share, 2))
    return replace(data, train=data.train.take(torch.arange(count)), validation=held, test=two, params={})
