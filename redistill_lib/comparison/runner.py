"""Arms trained on equal terms: same data, same budget, same trials, and of one seed the same teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from redistill_lib.checks import check_type, whole
from redistill_lib.comparison.arms import Arm, named
from redistill_lib.comparison.lengths import Budget, EpochCost, Length, lengths, measure_epochs
from redistill_lib.comparison.result import Comparison
from redistill_lib.comparison.trials import Trial, look_at, right_about, try_arm
from redistill_lib.data import DataSplits, load_data
from redistill_lib.executors import check_executor, submit
from redistill_lib.models import ARCHITECTURES, create_model
from redistill_lib.models.saved import load_model
from redistill_lib.network import answer
from redistill_lib.progress import progress_bar
from redistill_lib.results import listed
from redistill_lib.runs import Run, interrupt
from redistill_lib.train import RunOptions
from redistill_lib.train.setup import TeacherLike, open_teacher

TRIAL_SEED = 100  # of the trials that choose a candidate, and of their teacher
COLUMNS = ("test_accuracy", "validation_accuracy", "best_epoch", "parameters", "peak_bytes")  # of a run's metrics


def compare(
    teacher: Arm | TeacherLike,
    arms: Mapping[str, Arm | Sequence[Arm]],
    data: DataSplits | str | Path = "cluttered",
    *,
    budget: Budget | None = None,
    seeds: int | Sequence[int] = 3,
    options: RunOptions | None = None,
    executor: Executor | None = None,
) -> Comparison:
    """Train every arm under every seed within one budget, and compare what comes of it on test images.

    Arguments:
        teacher: an `Arm` that is trained under each seed, for the epochs of its recipe, and teaches the students of
            that seed; or one that is trained already, a run or a network, which teaches all and costs nothing.
        arms: by name; several candidates, as many for each arm, are tried on a seed of their own, and the best on
            validation is taken. The first arm is the reference.
        budget: what each arm may spend; left out, the epochs or steps of the first arm's recipe.
        options: where the runs are kept and found again. With `cache`, arms that can read a teacher's kept answers.
        executor: anything of `concurrent.futures` that runs several trainings at a time, each in a process of its
            own that is spawned, not forked; left out, they run here one after another.

    In every arm the loss is the cross-entropy plus each method's alpha times its loss, and one thread trains. What
    was trained before is found, so that a call that was killed goes on, or one of which an arm failed. Candidates
    are chosen by validation images alone; one that diverges stays in `trials` and is not taken. ValueError, before
    anything is trained, for what cannot be compared; FloatingPointError, when all else is trained, for an arm of
    which every candidate diverges, or what is chosen under one of the seeds.

    >>> arms = {"naive": Arm("resnet18-4-11221"), "kd": Arm("resnet18-4-11221", "kd")}
    >>> compare(Arm("resnet18-1-21222"), arms, "digits", budget=Budget(seconds=60))                # doctest: +SKIP
    """
    options = check_type("options", options, RunOptions, None) or RunOptions()
    if options.on_log is not None:
        raise ValueError("on_log watches one training, and these are many; leave it out")
    candidates, chosen_seeds = _candidates(arms), _seeds(seeds)
    reference, first = next(iter(candidates.items()))
    usual = Budget(epochs=first[0].recipe.epochs, steps=first[0].recipe.steps)
    budget = check_type("budget", budget, Budget, None) or usual
    check_executor(executor)
    splits = data if isinstance(data, DataSplits) else load_data(data)
    setting = _Setting(teacher, splits, options, executor)
    labels = {name: [f"{name}, candidate {k}" for k in range(len(tried))] for name, tried in candidates.items()}
    labels = labels if len(first) > 1 else {name: [name] for name in candidates}
    every = {label: arm for name in labels for label, arm in zip(labels[name], candidates[name], strict=True)}
    setting.measure(every)
    for its in zip(*labels.values(), strict=True):  # so that too small a budget is told before anything is trained
        setting.plan({label: every[label] for label in its}, budget)

    trials, failed = pd.DataFrame(), list[_Failed]()
    best, lost = {name: its[0] for name, its in labels.items()}, set[str]()
    if len(first) > 1:
        tried = setting.train(every, budget.share(budget.trial_share), [TRIAL_SEED], chosen=False)
        trials = pd.DataFrame(tried.rows)
        reached = trials.set_index("arm")["validation_accuracy"].dropna()
        left = {name: [label for label in its if label in reached] for name, its in labels.items()}
        best |= {name: str(reached[its].idxmax()) for name, its in left.items() if its}  # the first of equals
        lost = {name for name, its in left.items() if not its}
        missed = ["teacher", *(label for name in lost for label in labels[name])]
        failed = [failure for failure in tried.failed if lost and failure.name in missed]
    setting.costs |= {name: setting.costs[label] for name, label in best.items()}
    found = setting.train({name: every[label] for name, label in best.items()}, budget, chosen_seeds, lost=lost)
    if failed := [*failed, *found.failed]:
        raise _told(failed)
    curves = pd.concat(found.curves, ignore_index=True)
    right = {name: np.stack(runs) for name, runs in found.right.items()}
    if setting.rated:
        right["teacher"] = setting.rate()[None]
    return Comparison(pd.DataFrame(found.rows), trials, curves, right, budget, reference, splits.name)


def _candidates(arms: Any) -> dict[str, list[Arm]]:
    given = check_type("arms", arms, Mapping)
    found: dict[str, list[Arm]] = {}
    for name, arm in given.items():
        tried = check_type(check_type("an arm's name", name, str), arm, Arm, list, tuple)
        found[name] = [tried] if isinstance(tried, Arm) else [*tried]
    if not found or not all(found.values()) or "teacher" in found:
        raise ValueError("arms are one or more by name, none of them 'teacher', each an Arm or a list of candidates")
    for name, tried in found.items():
        for arm in tried:
            check_type(f"a candidate of {name}", arm, Arm)
    if len(counts := {len(tried) for tried in found.values()}) > 1:
        told = ", ".join(f"{name} {len(tried)}" for name, tried in found.items())
        raise ValueError(f"every arm gets as many trials, but there are candidates: {told}; give {max(counts)} each")
    return found


def _seeds(seeds: Any) -> list[int]:
    given = range(whole("seeds", seeds)) if not isinstance(seeds, Iterable) else seeds
    found = [whole("a seed", seed, 0, 2**63 - 1) for seed in given]
    if not found or TRIAL_SEED in found or len(set(found)) < len(found):
        raise ValueError(f"seeds are one or more, each once, and not {TRIAL_SEED}, under which candidates are tried")
    return found


class _Job(NamedTuple):
    name: str
    arm: Arm
    length: Length
    seed: int
    teacher: TeacherLike | None


class _Failed(NamedTuple):
    name: str
    seed: int
    reason: str


def _told(failed: Sequence[_Failed]) -> FloatingPointError:
    (name, seed, reason), *others = failed
    also = [f"{other.name}, seed {other.seed}" for other in others]
    more = f"; {listed(also)} diverged too" if also else ""
    return FloatingPointError(
        f"{name}, seed {seed}: {reason}{more}; what else could be trained is kept, so mend this and call again"
    )


class _Found:
    """Rows of runs, curves, which test images each arm knows, and what diverged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.curves: list[pd.DataFrame] = []
        self.right: dict[str, list[NDArray[np.bool_]]] = {}
        self.failed: list[_Failed] = []

    def keep(self, job: _Job, trial: Trial, cost: EpochCost) -> None:
        look, run, history = trial.look, trial.run, trial.history
        # Test images are no part of choosing.
        metrics = {name: run.metrics.get(name, math.nan) for name in (COLUMNS if look else COLUMNS[1:])}
        row = _row(job, run.params["model"]) | metrics
        if look is None:
            self.rows.append(row | {"run": run.id, "error": ""})
            return
        costs = {"training_bytes": cost.memory, "multiply_adds": look.multiply_adds, "latency": look.latency}
        self.rows.append(row | costs | {"run": run.id})
        after = job.length.beforehand + cost.epoch * history["epoch"]
        curve = {"arm": job.name, "seed": job.seed, "seconds": after}
        self.curves.append(pd.DataFrame(curve | {"accuracy": 100 * history["validation_accuracy"]}))
        self.right.setdefault(job.name, []).append(look.right)

    def lose(self, job: _Job, reason: str) -> None:
        """A row without results."""
        model = job.arm.model if isinstance(job.arm.model, str) else type(job.arm.model).__name__
        row = _row(job, {"name": model}) | dict.fromkeys(COLUMNS[1:], math.nan)
        self.rows.append(row | {"run": "", "error": reason})


def _row(job: _Job, model: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a training beforehand."""
    arm, length = job.arm, job.length
    student = {"model": model["name"], "structure": model.get("structure", ""), "width": arm.width}
    student |= {"image_size": arm.image_size, "methods": "+".join(method.name for method in arm.method_list)}
    told = {"arm": job.name, "seed": job.seed, **student, "init": arm.recipe.init, "taught": arm.taught}
    return told | {"epochs": length.epochs, "seconds": length.total, "for_the_teacher": length.beforehand}


class _Setting:
    """Where the arms of one comparison meet: their teacher, data, costs and processes."""

    def __init__(self, teacher: Any, data: DataSplits, options: RunOptions, executor: Executor | None):
        self.data, self.options, self.executor = data, options, executor
        self.teacher = check_type("teacher", teacher, Arm, Run, str, Path, nn.Module)
        self.costs: dict[str, EpochCost] = {}
        size = data.in_channels, data.image_size, data.image_size
        self.rated = False  # whether it is there already, and answers with the classes of the data
        if isinstance(self.teacher, Arm):
            if self.teacher.needs_teacher:
                raise ValueError("the teacher learns from labels alone; leave out its methods, and init='teacher'")
            if self.teacher.image_size is not None:
                raise ValueError("the teacher sees the images that its students see; leave out its image_size")
            model = self.teacher.model
            shape: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.in_channels}
            if isinstance(model, str):
                sized = ARCHITECTURES[model.partition("-")[0]].sized
                shape |= {"width": self.teacher.width} | ({"image_size": data.image_size} if sized else {})
            with torch.random.fork_rng(devices=[]):
                self.network = create_model(model, **shape) if isinstance(model, str) else model
        else:
            named_so = isinstance(self.teacher, str) and self.teacher.partition("-")[0] in ARCHITECTURES
            if named_so and not Path(self.teacher).exists():
                raise ValueError(f"teacher={self.teacher!r} is no run; Arm({self.teacher!r}) is trained first")
            self.network, run = open_teacher(self.teacher, data, "classifier")
            self.teacher = run or self.network
            self.rated = answer(self.network, (torch.zeros(2, *size),), "teacher").shape[-1:] == (data.num_classes,)
        self.given: DataSplits | str = data  # to other processes: how they load it, where that gives the same images
        again = {**data.params, **data.reading}
        if executor is not None and data.params and load_data(**again).fingerprint() == data.fingerprint():
            self.given = json.dumps(again)

    @property
    def teacher_epochs(self) -> int:
        """0 for a teacher that is there already."""
        if not isinstance(self.teacher, Arm):
            return 0
        recipe, images = self.teacher.recipe, len(self.data.train)
        per_epoch = recipe.steps_per_epoch(images)
        return max(1, round(recipe.total_steps(per_epoch) / per_epoch))

    @property
    def teacher_seconds(self) -> float:
        return self.teacher_epochs * self.costs["teacher"].epoch if self.teacher_epochs else 0.0

    def measure(self, arms: Mapping[str, Arm]) -> None:
        own = {"teacher": self.teacher} if isinstance(self.teacher, Arm) else {}
        self.costs |= measure_epochs({**own, **arms}, self.network, self.data, self.options)

    def plan(self, arms: Mapping[str, Arm], budget: Budget) -> dict[str, Length]:
        return lengths(budget, arms, self.costs, self.teacher_seconds, len(self.data.train))

    def rate(self) -> NDArray[np.bool_]:
        """About which test images a teacher is right that is there already."""
        if isinstance(self.teacher, Run):
            return look_at(self.teacher, lambda: self.network, self.data).right
        return right_about(self.network, self.data)

    def train(
        self,
        arms: Mapping[str, Arm],
        budget: Budget,
        seeds: Sequence[int],
        *,
        chosen: bool = True,
        lost: Collection[str] = (),
    ) -> _Found:
        """Every arm under every seed; of candidates not `chosen` yet, no test image is read.

        Those that are `lost` are not trained, and the others as long as with them.
        """
        found, planned = _Found(), self.plan(arms, budget)
        arms = {name: arm for name, arm in arms.items() if name not in lost}
        count = len(seeds) * (len(arms) + bool(self.teacher_epochs))
        given: Any = self.teacher
        with progress_bar(count, f"{count} trainings on {self.data.name}", self.options.progress) as bar:
            theirs: dict[int, TeacherLike] = dict.fromkeys(seeds, given)
            if self.teacher_epochs:
                length = Length(self.teacher_epochs, 0.0, self.teacher_seconds)
                own = [_Job("teacher", given, length, seed, None) for seed in seeds]
                for job, trial in self._all(own, bar, chosen):
                    if isinstance(trial, FloatingPointError):
                        found.failed.append(_Failed("teacher", job.seed, str(trial)))
                        del theirs[job.seed]
                        continue
                    run, model = trial.run, given.model
                    theirs[job.seed] = run if isinstance(model, str) else load_model(run, model)
                    if chosen:
                        found.keep(job, trial, self.costs["teacher"])
            jobs = [_Job(name, arm, planned[name], k, theirs.get(k)) for k in seeds for name, arm in arms.items()]
            orphans = [job for job in jobs if job.arm.needs_teacher and job.teacher is None]
            for job in orphans:
                found.lose(job, "its teacher diverged")
            for job, trial in self._all([job for job in jobs if job not in orphans], bar, chosen):
                if isinstance(trial, FloatingPointError):
                    found.failed.append(_Failed(job.name, job.seed, str(trial)))
                    found.lose(job, str(trial))
                else:
                    found.keep(job, trial, self.costs[job.name])
        for row in found.rows:
            side = row["image_size"] or self.data.image_size
            row["image"] = f"{self.data.in_channels}×{side}×{side}"
        return found

    def _all(self, jobs: Sequence[_Job], bar: Any, chosen: bool) -> list[tuple[_Job, Trial | FloatingPointError]]:
        """The jobs, in their order, and what came of each; one that diverges stops no other."""
        options = replace(self.options, progress=False)
        tasks = [(job.arm, self.given, job.length.epochs, job.seed, job.teacher, options, chosen) for job in jobs]
        futures = dict[Future[Trial], _Job]()
        try:
            if self.executor is None:
                done = []
                for job, task in zip(jobs, tasks, strict=True):
                    done.append(_outcome(job, partial(try_arm, *task)))
                    bar.update()
                return [*zip(jobs, done, strict=True)]
            futures = {submit(self.executor, try_arm, *task): job for job, task in zip(jobs, tasks, strict=True)}
            for future in as_completed(futures):
                _outcome(futures[future], future.result)
                bar.update()
            return [(job, _outcome(job, future.result)) for future, job in futures.items()]
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, KeyboardInterrupt):
                kept = f"what is trained is in {self.options.runs_dir}, and the same call goes on from there"
                raise interrupt(f"the comparison was stopped; {kept}") from None
            raise


def _outcome(job: _Job, training: Callable[[], Trial]) -> Trial | FloatingPointError:
    with named(f"{job.name}, seed {job.seed}"):
        try:
            return training()
        except FloatingPointError as error:
            return error
