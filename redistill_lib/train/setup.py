"""What all trainings begin with: arguments checked, networks built, teachers loaded."""

from __future__ import annotations

import copy
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from redistill_lib.checks import check_type, whole
from redistill_lib.data import DataSplits, load_data
from redistill_lib.distill import Distillation, Objective, Tap, match_taps, read_taps
from redistill_lib.identity import network_identity, object_identity
from redistill_lib.methods import Method, parse_methods
from redistill_lib.models.saved import load_model
from redistill_lib.network import evaluating, output_of
from redistill_lib.runs import Run
from redistill_lib.student import draw_weights
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import Recipe
from redistill_lib.train.tasks import Task
from redistill_lib.train.trainer import fit

TeacherLike = Run | str | Path | nn.Module
TASKS = {"classify": "classifier", "distill": "classifier", "diffuse": "denoiser", "distill diffusion": "denoiser"}


@dataclass(frozen=True)
class Lesson:
    """Teachers (with the run of each, if known), methods, taps, and how the losses add up."""

    teachers: list[nn.Module]
    runs: list[Run | None]
    methods: tuple[Method, ...] | None
    taps: list[Tap] | None
    objective: Objective

    @classmethod
    def check(cls, setup: Setup[Any], kind: str, teacher: Any, methods: Any, taps: Any, objective: Any) -> Lesson:
        objective = check_type("objective", objective, Objective, None) or Objective()
        if objective.task_loss is not Objective().task_loss:
            raise ValueError("the loss of the task is the recipe's here; leave task_loss out of objective")
        if isinstance(taps, str | Path):
            taps = read_taps(taps)
        if taps is not None:
            taps = [check_type("a tap", tap, Tap) for tap in check_type("taps", taps, Iterable)]
        parsed = None if methods is None else parse_methods(methods)
        lesson = cls(*open_teachers(teacher, setup.data, kind), parsed, taps, objective)
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
    data: DataSplits
    recipe: R
    seed: int
    options: RunOptions

    @classmethod
    def check(
        cls, data: Any, recipe: Any, seed: Any, options: Any, *, kind: type[R], splits: Sequence[str]
    ) -> Setup[R]:
        recipe, options = kind() if recipe is None else recipe, RunOptions() if options is None else options
        for label, value, wanted in (("recipe", recipe, kind), ("options", options, RunOptions)):
            if type(value) is not wanted:
                raise TypeError(f"{label} is a {wanted.__name__}, not a {type(value).__name__}")
        data = check_type("data", data, DataSplits, str, Path)
        seed = whole("seed", seed, 0, 2**63 - 1)
        data = data if isinstance(data, DataSplits) else load_data(data)
        for split in splits:
            if not len(getattr(data, split)):
                raise ValueError(f"the {split} split of {data.name} is empty; give it at least one image")
        return cls(data, recipe, seed, options)

    def network(self, model: Any, build: Callable[[str], nn.Module], record: Mapping[str, Any]) -> Network:
        """The network to train and how a run records it: a name is built under the seed, a network is copied.

        The caller's network stays as it is, on the CPU, so that the same call finds the same run.
        """
        check_type("network", model, str, nn.Module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(model, str):
                network = build(model)
                return Network(network, {**record, "name": network.name})
            if hooked := [name for name, p in model.named_parameters() if p._backward_hooks]:
                raise ValueError(f"{hooked[0]} has a hook, which a copy loses; change gradients in a module's hook")
            network = _copied(model, "network")
            if self.recipe.init == "scratch" and (left := draw_weights(network)):
                owner = left[0].rpartition(".")[0]
                raise ValueError(
                    f"{owner or 'the network'} ({type(network.get_submodule(owner)).__name__}) has parameters of its "
                    "own and no reset_parameters(), so it cannot start from scratch; add that, or build the network "
                    "anew"
                )
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in network.parameters()):
            raise ValueError(
                "training starts from float32 weights; give mixed_precision='bf16' instead of a converted network"
            )
        if not all(p.isfinite().all() for p in network.parameters()):
            raise ValueError(f"the weights of {type(model).__name__} hold NaN or infinity; load or draw them again")
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


def train(setup: Setup[Any], network: Network, task: Task, kind: str, lesson: Lesson | None = None) -> Run:
    params: dict[str, Any] = {"task": kind, "model": network.record}
    objective = replace(lesson.objective if lesson else Objective(), task_loss=task.loss)
    example = task.example(setup.data, 2)
    with evaluating(network.module), torch.enable_grad():
        if not output_of(network.module(*example)).requires_grad:
            raise ValueError(
                f"the outputs of {network.record['name']} carry no gradient; does its forward detach them?"
            )
    if lesson is None:
        distillation = Distillation(network.module, objective=objective)
    else:
        # In one order, in which their projectors' weights are drawn, so that "a+b" is "b+a".
        methods = None if lesson.methods is None else sorted(lesson.methods, key=lambda method: method.name)
        taps = lesson.taps
        if taps is None:
            wanted = lesson.methods is None or any(method.reads == "maps" for method in lesson.methods)
            taps = match_taps(network.module, lesson.teachers[0], example) if wanted else []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed + 1)  # for the blocks and projectors
            distillation = Distillation(
                network.module,
                lesson.teachers,
                taps,
                methods,
                objective=objective,
                example=example,
                samples=len(setup.data.train),
            )
        names = sorted({term.method.name for term in distillation.terms})
        codes = {term.method.name: object_identity(term.method) for term in distillation.terms}
        params |= {"methods": "+".join(names), "method_code": codes}
        params |= {"teachers": [network_identity(teacher) for teacher in lesson.teachers]}
        params |= distillation.settings()
    params |= {"data": setup.data.params, "recipe": setup.recipe.settings(len(setup.data.train)), "seed": setup.seed}
    runs = [run.id for run in lesson.runs if run] if lesson else []
    return fit(distillation, task, setup.data, setup.recipe, setup.options, params, runs)


def open_teachers(given: Any, data: DataSplits, kind: str) -> tuple[list[nn.Module], list[Run | None]]:
    """The teachers' networks in float32, and the run of each (None for one given as a network).

    Raises for runs of another `kind` (``classifier`` or ``denoiser``), warns of runs trained on other images.
    """
    several = [given] if isinstance(given, TeacherLike) else list(given) if isinstance(given, Iterable) else []
    if not several or not all(isinstance(teacher, TeacherLike) for teacher in several):
        raise TypeError(
            "teacher is a run, its folder or a network, or a list of at least one of these, "
            f"not {reprlib.repr(given)}"
        )
    models: list[nn.Module] = []
    runs: list[Run | None] = []
    for teacher in several:
        if isinstance(teacher, nn.Module):
            models.append(_copied(teacher, "teacher").float())
            runs.append(None)
        else:
            try:
                run = teacher if isinstance(teacher, Run) else Run.load(teacher)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{error}; train the teacher first and give the run that returns") from None
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


def _copied(model: nn.Module, role: str) -> nn.Module:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"{name} of the {role} is on the meta device and has no values; load its weights first")
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        raise ValueError(
            f"the {role} ({type(model).__name__}) cannot be copied: {error}; leave out of its attributes what is no "
            "part of the network"
        ) from error


def _differences(theirs: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    """The parameters that differ between two known data sets; a limit takes part of the same images."""
    if not theirs or not ours:
        return ""
    return ", ".join(key for key in {**theirs, **ours} if key != "limit" and theirs.get(key) != ours.get(key))
