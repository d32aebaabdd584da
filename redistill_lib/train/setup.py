"""What all trainings begin with: their arguments checked before any work, networks built, teachers opened."""

from __future__ import annotations

import copy
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from redistill_lib.checks import whole
from redistill_lib.data import DataSplits, load_data
from redistill_lib.distill import Distillation, Objective, Tap, match_taps, read_taps
from redistill_lib.identity import network_identity, object_identity
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import Recipe
from redistill_lib.train.tasks import Task
from redistill_lib.train.trainer import fit

Teacher = Run | str | Path | nn.Module
Data = DataSplits | str | Path
Methods = str | Method | Sequence[str | Method] | None
TASKS = {"classify": "classifier", "distill": "classifier", "diffuse": "denoiser", "distill diffusion": "denoiser"}


@dataclass(frozen=True)
class Lesson:
    """What a student is taught: by whom (and in which run each was trained, where that is known), with which methods,
    at which taps, and how the losses add up."""

    teachers: list[nn.Module]
    runs: list[Run | None]
    methods: tuple[Method, ...] | None
    taps: list[Tap] | None
    objective: Objective

    @classmethod
    def check(cls, setup: Setup[Any], kind: str, teacher: Any, methods: Any, taps: Any, objective: Any) -> Lesson:
        """Raises TypeError or ValueError, in one sentence, for anything but a lesson from teachers of this `kind`."""
        objective = Objective() if objective is None else objective
        if not isinstance(objective, Objective):
            raise TypeError(f"objective is an Objective, not {reprlib.repr(objective)}")
        if objective.task_loss is not Objective().task_loss:
            raise ValueError("the loss of the task is the recipe's here; leave task_loss out of objective")
        if isinstance(taps, str | Path):
            taps = read_taps(taps)
        given = list(taps) if isinstance(taps, Iterable) else [taps]
        if taps is not None and not all(isinstance(tap, Tap) for tap in given):
            raise TypeError(f"taps is a list of taps or a YAML file of them, not {reprlib.repr(taps)}")
        parsed = None if methods is None else parse_methods(methods)
        lesson = cls(*open_teachers(teacher, setup.data, kind), parsed, None if taps is None else given, objective)
        if methods is not None and not lesson.all_methods:
            raise ValueError("methods names none, so the teacher would teach nothing; name one, such as 'red'")
        return lesson

    @property
    def all_methods(self) -> list[Method]:
        """Those given, and those that taps carry."""
        return [*(self.methods or ()), *(tap.method for tap in self.taps or () if tap.method)]


R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class Setup(Generic[R]):
    """A training's data, recipe, seed and options, each checked."""

    data: DataSplits
    recipe: R
    seed: int
    options: RunOptions

    @classmethod
    def check(
        cls, data: Any, recipe: Any, seed: Any, options: Any, *, kind: type[R], splits: Sequence[str]
    ) -> Setup[R]:
        """Raises TypeError or ValueError, in one sentence, for anything but what a training takes."""
        recipe, options = kind() if recipe is None else recipe, RunOptions() if options is None else options
        for label, value, wanted in (("recipe", recipe, kind), ("options", options, RunOptions)):
            if type(value) is not wanted:
                raise TypeError(f"{label} is a {wanted.__name__}, not a {type(value).__name__}")
        if not isinstance(data, DataSplits | str | Path):
            raise TypeError(f"data is what load_data returns, or its name, not {reprlib.repr(data)}")
        seed = whole("seed", seed, 0)
        data = data if isinstance(data, DataSplits) else load_data(data)
        for split in splits:
            if not len(getattr(data, split)):
                raise ValueError(f"the {split} split of {data.name} is empty; give it at least one image")
        return cls(data, recipe, seed, options)

    def network(self, model: Any, build: Callable[[str], nn.Module], record: Mapping[str, Any]) -> Network:
        """The network to train and how a run records it: a name is built under the seed, a network is copied.

        The caller's network stays as it is, on the CPU, so that the same call finds the same run.
        """
        if not isinstance(model, str | nn.Module):
            raise TypeError(f"a network is a name such as 'resnet18-4-11221' or a module, not {reprlib.repr(model)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(model, str):
                network = build(model)
                return Network(network, {**record, "name": network.name})
            network = copy.deepcopy(model).cpu()
            if self.recipe.init == "scratch":
                draw_weights(network)
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in network.parameters()):
            raise ValueError(
                "training starts from float32 weights; give mixed_precision='bf16' instead of a converted network"
            )
        if not any(p.requires_grad for p in network.parameters()):
            name = type(model).__name__
            raise ValueError(f"{name} has no parameter that requires a gradient: nothing would be learnt")
        plan = getattr(model, "plan", None)
        known = {} if plan is None else {"plan": str(plan)}
        return Network(network, {"name": type(model).__name__, **known, **network_identity(network)})


@dataclass(frozen=True)
class Network:
    module: nn.Module
    record: dict[str, Any]


def draw_weights(network: nn.Module) -> None:
    """New weights for every layer, as PyTorch draws them when a layer is made: what is inside it first."""
    for name, module in reversed(list(network.named_modules())):
        if callable(reset := getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))):
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"{name or 'the network'} ({type(module).__name__}) has parameters of its own and no "
                "reset_parameters(), so it cannot start from scratch; add that, or build the network anew"
            )


def train(setup: Setup[Any], network: Network, task: Task, kind: str, lesson: Lesson | None = None) -> Run:
    """Train a network for a task, with a lesson from teachers or without one."""
    params: dict[str, Any] = {"task": kind, "model": network.record}
    objective = replace(lesson.objective if lesson else Objective(), task_loss=task.loss)
    if lesson is None:
        distillation = Distillation(network.module, objective=objective)
    else:
        example = task.example(setup.data, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed + 1)  # the blocks' and projectors' weights, whatever was drawn before
            distillation = Distillation(
                network.module,
                lesson.teachers,
                _taps(lesson, network.module, example),
                lesson.methods,
                objective=objective,
                example=example,
                samples=len(setup.data.train),
            )
        methods = dict.fromkeys(term.method.name for term in distillation.terms)
        codes = {term.method.name: object_identity(term.method) for term in distillation.terms}
        params |= {"methods": "+".join(sorted(methods)), "method_code": codes}
        params |= {"teachers": [network_identity(teacher) for teacher in lesson.teachers]}
        params |= distillation.settings()
    params |= {"data": setup.data.params, "recipe": asdict(setup.recipe), "seed": setup.seed}
    runs = [run.id for run in lesson.runs if run] if lesson else []
    return fit(distillation, task, setup.data, setup.recipe, setup.options, params, runs)


def _taps(lesson: Lesson, student: nn.Module, example: tuple[torch.Tensor, ...]) -> list[Tap]:
    if lesson.taps is not None:
        return lesson.taps
    wanted = lesson.methods is None or any(method.reads == "maps" for method in lesson.methods)
    return match_taps(student, lesson.teachers[0], example) if wanted else []


def open_teachers(given: Any, data: DataSplits, kind: str) -> tuple[list[nn.Module], list[Run | None]]:
    """The teachers' networks in float32, and the run that trained each, None where it was given as a network.

    Raises for anything but teachers and for runs of another `kind` (``classifier`` or ``denoiser``); warns of a run
    that was trained on other images than `data`.
    """
    several = [given] if isinstance(given, Teacher) else list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(teacher, Teacher) for teacher in several):
        raise TypeError(
            "teacher is a run, its folder or a network, or a list of at least one of these, "
            f"not {reprlib.repr(given)}"
        )
    models: list[nn.Module] = []
    runs: list[Run | None] = []
    for teacher in several:
        if isinstance(teacher, nn.Module):
            models.append(copy.deepcopy(teacher).cpu().float())
            runs.append(None)
        else:
            run = teacher if isinstance(teacher, Run) else Run.load(teacher)
            if (its := TASKS.get(run.params.get("task", ""), kind)) != kind:
                raise ValueError(f"teacher {run.id} is a {its}; a {kind} learns from a {kind}'s run")
            models.append(load_model(run))
            runs.append(run)
            if other := _differences(run.params.get("data"), data.params):
                warnings.warn(
                    f"teacher {run.id} was trained on other images than the student gets: {other} differ",
                    stacklevel=4,
                )
    return models, runs


def _differences(theirs: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """What the parameters of two data sets differ in, as far as both are known; a limit takes part of the same."""
    if not theirs or not ours:
        return ""
    return ", ".join(key for key in {**theirs, **ours} if key != "limit" and theirs.get(key) != ours.get(key))
