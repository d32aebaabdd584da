"""Arms trained on equal terms: same data, same budget, same trials, and of one seed the same teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from redistill_lib.checks import check_type, whole
from redistill_lib.comparison.arms import Arm
from redistill_lib.comparison.lengths import Budget, EpochCost, Length, lengths, measure_epochs
from redistill_lib.comparison.result import Comparison
from redistill_lib.comparison.trials import Trial, right_about, try_arm
from redistill_lib.data import DataSplits, load_data
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.progress import progress_bar
from redistill_lib.runs import Run
from redistill_lib.train import Recipe, RunOptions
from redistill_lib.train.setup import TeacherLike

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
        budget: what each arm may spend; left out, the epochs of the first arm's recipe.
        options: where the runs are kept and found again. With `cache`, arms that can read a teacher's kept answers.
        executor: anything of `concurrent.futures` that runs several trainings at a time, each in a process of its
            own; left out, they run here one after another.

    In every arm the loss is the cross-entropy plus each method's alpha times its loss, and one thread trains. What
    was trained before is found, so that a call that was killed goes on. Test images are read when all is chosen.

    >>> arms = {"naive": Arm("resnet18-4-11221"), "kd": Arm("resnet18-4-11221", "kd")}
    >>> compare(Arm("resnet18-1-21222"), arms, "digits", budget=Budget(seconds=60))                # doctest: +SKIP
    """
    options = check_type("options", options, RunOptions, None) or RunOptions()
    splits = data if isinstance(data, DataSplits) else load_data(data)
    candidates, chosen_seeds = _candidates(arms), _seeds(seeds)
    reference = next(iter(candidates))
    budget = budget or Budget(epochs=candidates[reference][0].recipe.epochs or Recipe.LENGTH[1])
    ring = _Ring(teacher, splits, options, executor)
    every = {f"{name}, candidate {k}": arm for name, tried in candidates.items() for k, arm in enumerate(tried)}
    ring.measure(every)

    tried = {label: arm for label, arm in every.items() if len(candidates[label.rpartition(", ")[0]]) > 1}
    trials = pd.DataFrame(ring.train(tried, budget.share(budget.trial_share), [TRIAL_SEED]).rows)
    best = {name: f"{name}, candidate 0" for name in candidates}
    for name in {label.rpartition(", ")[0] for label in tried}:
        its = trials[trials["arm"].str.rpartition(", ")[0] == name]
        best[name] = str(its.loc[its["validation_accuracy"].idxmax(), "arm"])
    chosen = {name: every[label] for name, label in best.items()}
    ring.costs |= {name: ring.costs[label] for name, label in best.items()}
    found = ring.train(chosen, budget, chosen_seeds, teachers=True)
    curves = pd.concat(found.curves, ignore_index=True)
    right = {name: np.stack(runs) for name, runs in found.right.items()}
    if "teacher" not in right:
        right["teacher"] = right_about(ring.network, splits)[None]
    return Comparison(pd.DataFrame(found.rows), trials, curves, right, budget, reference, splits.name)


def _candidates(arms: Any) -> dict[str, list[Arm]]:
    given = check_type("arms", arms, Mapping)
    found = {str(name): [arm] if isinstance(arm, Arm) else list(arm) for name, arm in given.items()}
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
    found = [whole("a seed", seed, 0) for seed in given]
    if not found or TRIAL_SEED in found or len(set(found)) < len(found):
        raise ValueError(f"seeds are one or more, each once, and not {TRIAL_SEED}, under which candidates are tried")
    return found


class _Job(NamedTuple):
    name: str
    arm: Arm
    length: Length
    seed: int
    teacher: TeacherLike | None


class _Found:
    """Rows of runs, curves, and which test images each arm knows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.curves: list[pd.DataFrame] = []
        self.right: dict[str, list[NDArray[np.bool_]]] = {}

    def keep(self, job: _Job, trial: Trial, cost: EpochCost) -> None:
        arm, length, metrics = job.arm, job.length, trial.run.metrics
        methods = "+".join(method.name for method in arm.method_list)
        student = {"model": trial.run.params["model"]["name"], "width": arm.width, "image_size": arm.image_size}
        told = {"arm": job.name, "seed": job.seed, **student, "methods": methods, "init": arm.recipe.init}
        told["taught"] = arm.taught
        spent = {"epochs": length.epochs, "seconds": length.total, "for_the_teacher": length.beforehand}
        costs = {"multiply_adds": trial.multiply_adds, "latency": trial.latency, "run": trial.run.id}
        self.rows.append(told | spent | {column: metrics.get(column) for column in COLUMNS} | costs)
        after = length.beforehand + cost.epoch * trial.history["epoch"]
        curve = {"arm": job.name, "seed": job.seed, "seconds": after}
        self.curves.append(pd.DataFrame(curve | {"accuracy": 100 * trial.history["validation_accuracy"]}))
        self.right.setdefault(job.name, []).append(trial.right)


class _Ring:
    """Where the arms of one comparison meet: their teacher, data, costs and processes."""

    def __init__(self, teacher: Any, data: DataSplits, options: RunOptions, executor: Executor | None):
        self.data, self.options, self.executor = data, replace(options, cpu=options.cpu, on_log=None), executor
        self.teacher = check_type("teacher", teacher, Arm, Run, str, Path, nn.Module)
        self.costs: dict[str, EpochCost] = {}
        if isinstance(self.teacher, Arm):
            if self.teacher.needs_teacher:
                raise ValueError("the teacher learns from labels alone; leave out its methods, and init='teacher'")
            shape = {"num_classes": data.num_classes, "in_channels": data.in_channels}
            model = self.teacher.model
            self.network = create_model(model, **shape, width=self.teacher.width) if isinstance(model, str) else model
        else:
            self.network = self.teacher if isinstance(self.teacher, nn.Module) else load_model(self.teacher)

    @property
    def teacher_epochs(self) -> int:
        """0 for a teacher that is there already."""
        if not isinstance(self.teacher, Arm):
            return 0
        recipe, images = self.teacher.recipe, len(self.data.train)
        per_epoch = recipe.steps_per_epoch(images)
        return max(1, round(recipe.total_steps(per_epoch) / per_epoch))

    def measure(self, arms: Mapping[str, Arm]) -> None:
        own = {"teacher": self.teacher} if isinstance(self.teacher, Arm) else {}
        self.costs |= measure_epochs({**own, **arms}, self.network, self.data, self.options)

    def train(self, arms: Mapping[str, Arm], budget: Budget, seeds: Sequence[int], teachers: bool = False) -> _Found:
        """Every arm under every seed; with `teachers` their own trainings are among what is found."""
        found = _Found()
        if not arms:
            return found
        seconds = self.teacher_epochs * self.costs["teacher"].epoch if self.teacher_epochs else 0.0
        planned = lengths(budget, arms, self.costs, seconds, len(self.data.train))
        count = len(seeds) * (len(arms) + bool(self.teacher_epochs))
        given: Any = self.teacher
        with progress_bar(count, f"{count} trainings on {self.data.name}", self.options.progress) as bar:
            theirs: dict[int, TeacherLike] = dict.fromkeys(seeds, self.network)
            if self.teacher_epochs:
                length = Length(self.teacher_epochs, 0.0, seconds)
                own = [_Job("teacher", given, length, seed, None) for seed in seeds]
                for job, trial in self._all(own, bar):
                    run, model = trial.run, given.model
                    theirs[job.seed] = run if isinstance(model, str) else load_model(run, model)
                    if teachers:
                        found.keep(job, trial, self.costs["teacher"])
            jobs = [_Job(name, arm, planned[name], k, theirs[k]) for k in seeds for name, arm in arms.items()]
            for job, trial in self._all(jobs, bar):
                found.keep(job, trial, self.costs[job.name])
        return found

    def _all(self, jobs: Sequence[_Job], bar: Any) -> list[tuple[_Job, Trial]]:
        """The jobs, in their order, and what came of each."""
        options = replace(self.options, progress=False)
        remote = self.executor is not None and self.data.params
        data: Any = json.dumps(self.data.params) if remote else self.data
        tasks = [(job.arm, data, job.length.epochs, job.seed, job.teacher, options) for job in jobs]
        if self.executor is None:
            done = []
            for task in tasks:
                done.append(try_arm(*task))
                bar.update()
            return [*zip(jobs, done, strict=True)]
        futures = [self.executor.submit(try_arm, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [(job, future.result()) for job, future in zip(jobs, futures, strict=True)]
