"""What all trainings begin with: arguments checked, networks built, teachers loaded."""

from __future__ import annotations

import copy
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from redistill_lib.checks import check_type, whole
from redistill_lib.costs import warn_of_costs
from redistill_lib.data import DataSplits, load_data
from redistill_lib.distill import Distillation, Objective, Tap, match_taps, read_taps
from redistill_lib.distill.views import summaries_of
from redistill_lib.identity import network_identity, object_identity
from redistill_lib.methods import RED, Method, parse_methods
from redistill_lib.models import create_model, list_models
from redistill_lib.models.saved import load_model
from redistill_lib.models.vit import VisionTransformer
from redistill_lib.network import answer, evaluating
from redistill_lib.runs import Run, canonical
from redistill_lib.student import draw_weights
from redistill_lib.train.options import RunOptions
from redistill_lib.train.recipe import DiffusionRecipe, Recipe
from redistill_lib.train.tasks import Denoising, Task
from redistill_lib.train.trainer import fit

TeacherLike = Run | str | Path | nn.Module
Network = tuple[nn.Module, dict[str, Any]]  # and how a run records it
R = TypeVar("R", bound=Recipe)
TASKS = {"classify": "classifier", "distill": "classifier", "diffuse": "denoiser", "distill diffusion": "denoiser"}


@dataclass(frozen=True)
class Setup(Generic[R]):
    data: DataSplits
    recipe: R
    seed: int
    options: RunOptions

    @classmethod
    def check(cls, kind: type[R], data: Any, recipe: Any, seed: Any, options: Any) -> Setup[R]:
        recipe, options = kind() if recipe is None else recipe, RunOptions() if options is None else options
        for label, value, wanted in (("recipe", recipe, kind), ("options", options, RunOptions)):
            if type(value) is not wanted:
                raise TypeError(f"{label} is a {wanted.__name__}, not a {type(value).__name__}")
        data = check_type("data", data, DataSplits, str, Path)
        seed = whole("seed", seed, 0, 2**63 - 1)
        data = data if isinstance(data, DataSplits) else load_data(data)
        for split in ("train", "validation") if kind is DiffusionRecipe else ("train", "validation", "test"):
            if not len(getattr(data, split)):
                raise ValueError(f"the {split} split of {data.name} is empty; give it at least one image")
        return cls(data, recipe, seed, options)

    def network(self, model: Any, options: Mapping[str, Any]) -> Network:
        """The network to train: built by its name with these options, or a copy of the caller's, on the CPU."""
        check_type("network", model, str, nn.Module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if isinstance(model, str):
                wanted: Any = "diffusion" if isinstance(self.recipe, DiffusionRecipe) else "classifier"
                if (arch := model.partition("-")[0]) in {*list_models()}.difference(list_models(wanted)):
                    raise ValueError(f"{arch} is no {wanted} network; there are {', '.join(list_models(wanted))}")
                built = create_model(model, **options)
                return built, {**options, "name": built.name}
            both = "_backward_hooks", "_post_accumulate_grad_hooks"
            if hooked := [n for n, p in model.named_parameters() if any(getattr(p, kind) for kind in both)]:
                raise ValueError(f"{hooked[0]} has a hook, which a copy loses; change gradients in a module's hook")
            model = getattr(model, "_orig_mod", model)  # compiled, its weights would have other names
            network = _copied(model, "network")
            if self.recipe.init == "scratch" and (left := draw_weights(network)):
                owner = left[0].rpartition(".")[0]
                kind = type(network.get_submodule(owner)).__name__
                raise ValueError(
                    f"{owner or 'the network'} ({kind}) has parameters of its own and no reset_parameters(), so it "
                    "cannot start from scratch; add that, or build the network anew"
                )
        name, parameters = type(model).__name__, list(network.parameters())
        odd = [k for k, v in network.state_dict().items() if not isinstance(v, Tensor) or v.layout != torch.strided]
        if odd:
            raise ValueError(f"{odd[0]} of {name} is no dense tensor, and files of weights hold no others; change it")
        if any(p.is_floating_point() and p.dtype != torch.float32 for p in parameters):
            raise ValueError("training starts from float32 weights; give mixed_precision='bf16' to compute in half")
        if not all(p.isfinite().all() for p in parameters):
            raise ValueError(f"the weights of {name} hold NaN or infinity; load or draw them again")
        if not any(p.requires_grad for p in parameters):
            raise ValueError(f"{name} has no parameter that requires a gradient: nothing would be learnt")
        plan = getattr(model, "plan", None)
        known = {} if plan is None else {"plan": str(plan)}
        return network, {"name": name, **known, **network_identity(network)}


@dataclass(frozen=True)
class Lesson:
    """Teachers (with the run of each, if known), methods, taps, and how the losses add up."""

    teachers: list[tuple[nn.Module, Run | None]]
    methods: list[Method] | None
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
        if methods is not None:
            # In one order, in which their projectors' weights are drawn, so that "a+b" is "b+a".
            methods = sorted(parse_methods(methods), key=lambda method: method.name)
        given = [teacher] if isinstance(teacher, TeacherLike) else teacher
        teachers = list(given) if isinstance(given, Iterable) else []
        if not teachers or not all(isinstance(each, TeacherLike) for each in teachers):
            told = reprlib.repr(teacher)
            raise TypeError(f"teacher is a run, its folder, a network or a list of at least one of these, not {told}")
        for k, each in enumerate(teachers):
            teachers[k] = open_teacher(each, setup.data, kind)
        lesson = cls(teachers, methods, taps, objective)
        if methods is not None and not lesson.all_methods:
            raise ValueError("methods names none, so the teacher would teach nothing; name one, such as 'red'")
        return lesson

    @property
    def all_methods(self) -> list[Method]:
        """Those given, and those that taps carry."""
        return [*(self.methods or ()), *(tap.method for tap in self.taps or () if tap.method)]


def train(setup: Setup[Any], network: Network, task: Task, kind: str, lesson: Lesson | None = None) -> Run:
    model, record = network
    example = task.example(setup.data, 2)
    if not answer(model, example, gradient=True).requires_grad:
        raise ValueError(f"the outputs of {record['name']} carry no gradient; does its forward detach them?")
    settings = setup.recipe.settings(len(setup.data.train))
    built_in = "structure" not in record
    if setup.recipe.init == "teacher":
        _take_weights(model, lesson)
        record = record if built_in else {**record, **network_identity(model)}
    params: dict[str, Any] = {"task": kind, "model": record, "data": setup.data.params, "seed": setup.seed}
    unread = {"init"} if built_in and setup.recipe.init != "teacher" else set()  # it is new under the seed
    if isinstance(task, Denoising):
        unread |= {"label_smoothing"} if task.null is not None else {"label_smoothing", "label_dropout"}
    params["recipe"] = {k: v for k, v in settings.items() if k not in unread}
    runs: list[str] = []
    if lesson is None:
        distillation = Distillation(model, objective=Objective(task_loss=task.loss))
    else:
        for theirs in (run.params.get("model", {}) for _, run in lesson.teachers if run):
            same = str(theirs.get("name")).partition("-")[0] == record["name"].partition("-")[0]
            if same and theirs.get("width", 1.0) < record.get("width", 0.0):
                told = f"the student is built at width {record['width']:g}, its teacher at {theirs['width']:g}"
                warnings.warn(f"{told}: it will be the larger one; give it the same width=", stacklevel=3)
        teachers, taps = [teacher for teacher, _ in lesson.teachers], lesson.taps
        if taps is None:
            wanted = lesson.methods is None or any(method.reads == "maps" for method in lesson.methods)
            taps = match_taps(model, teachers[0], example) if wanted else []
            methods = [method for method in lesson.methods or [RED()] if method.reads == "maps"]
            warn_of_costs(model, [replace(tap, method=method) for tap in taps for method in methods], example)
        objective, samples = replace(lesson.objective, task_loss=task.loss), len(setup.data.train)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed + 1)  # for the blocks and projectors
            distillation = Distillation(
                model, teachers, taps, lesson.methods, objective=objective, example=example, samples=samples
            )
            for method in (term.method for term in distillation.active):
                if (least := getattr(method, "least_images", 1)) > min(setup.recipe.batch_size, samples):
                    raise ValueError(f"{method.name} compares images: it needs batches of {least} or more")
            rows = torch.arange(2) % samples
            batch = task.batch(example[0], torch.zeros_like(rows), rows, torch.zeros_like(rows))
            with evaluating(distillation):  # so that what cannot be computed is told before a run is begun
                distillation(*batch.inputs, targets=batch.targets, index=rows, view=batch.view)
        codes: dict[str, str] = {}  # of each method, or where taps carry several of one name, of them in tap order
        for name in sorted({term.method.name for term in distillation.terms}):
            its = [object_identity(term.method) for term in distillation.terms if term.method.name == name]
            codes[name] = " ".join(its if len(set(its)) > 1 else its[:1])
        params |= {"methods": "+".join(codes), "method_code": codes, **distillation.settings()}
        if setup.options.cache is not None and distillation.active:
            try:
                summaries_of(distillation.active)
                params["answers"] = "fp16"
            except ValueError as error:
                warnings.warn(f"the teacher runs as without a cache: {error}", stacklevel=3)
        params["teachers"] = [network_identity(teacher) for teacher in teachers]
        runs = [run.id for _, run in lesson.teachers if run]
    taught = {tap.layer for term in distillation.active for tap in term.taps}
    if isinstance(model, VisionTransformer) and model.head_dist is not None and "head_dist" not in taught:
        warnings.warn(
            f"{record['name']} answers with the mean of two heads, and nothing teaches the second: add the method "
            f"deit, or take {record['name'].replace('deit', 'vit')}",
            stacklevel=3,
        )
    if isinstance(model, VisionTransformer) and setup.recipe.optimizer == "sgd" and setup.recipe.learning_rate >= 0.1:
        warnings.warn(
            f"SGD at a learning rate of {setup.recipe.learning_rate:g} suits few vision transformers; notebook 06 "
            "trains them by Recipe(optimizer='adamw', learning_rate=5e-4, weight_decay=0.05, clip_norm=1.0, "
            "batch_size=32, schedule='cosine')",
            stacklevel=3,
        )
    return fit(distillation, task, setup.data, setup.recipe, setup.options, params, runs)


def _take_weights(student: nn.Module, lesson: Lesson | None) -> None:
    """Give the student the weights and statistics of its first teacher, or raise ValueError where they do not fit."""
    if lesson is None:
        raise ValueError("init='teacher' starts from a teacher's weights, and there is none; distil, or leave it out")
    ours, theirs = student.state_dict(), lesson.teachers[0][0].state_dict()
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (ours, theirs)]
    odd = next((name for name in {**ours, **theirs} if shapes[0].get(name) != shapes[1].get(name)), None)
    if odd is not None:
        told = " and ".join(
            f"the {role}'s is {each.get(odd, 'missing')}"
            for role, each in zip(("student", "teacher"), shapes, strict=True)
        )
        raise ValueError(
            f"init='teacher' takes the teacher's weights as they are, but of {odd} {told}; give a student of the "
            "same layers, or what derive_student makes of the trained teacher, which has its weights"
        )
    student.load_state_dict(theirs)


def open_teacher(given: TeacherLike, data: DataSplits, kind: str) -> tuple[nn.Module, Run | None]:
    """A teacher's network in float32 and its run, which is of the same `kind`; a warning where its images differ."""
    if isinstance(given, nn.Module):
        return _copied(given, "teacher").float(), None
    try:
        run = given if isinstance(given, Run) else Run.load(given)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; train the teacher first and give the run that returns") from None
    if (its := TASKS.get(run.params.get("task", ""), kind)) != kind:
        raise ValueError(f"teacher {run.id} is a {its}; a {kind} learns from a {kind}'s run")
    model = load_model(run)
    if other := differences(run.params.get("data"), data.params, "limit"):  # which takes part of the same images
        told = f"teacher {run.id} was trained on other images than the student gets: {', '.join(other)} differ"
        warnings.warn(told, stacklevel=4)
    return model, run


def differences(theirs: Any, ours: Mapping[str, Any], ignored: str) -> list[str]:
    """The names under which two records differ; none where one of them is missing."""
    theirs, ours = canonical(theirs or ours), canonical(ours or theirs)
    return [key for key in {**theirs, **ours} if key != ignored and theirs.get(key) != ours.get(key)]


def _copied(model: nn.Module, role: str) -> nn.Module:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"{name} of the {role} is lazy and has no values; call it once with a batch of images")
        if tensor.is_meta:
            raise ValueError(f"{name} of the {role} is on the meta device and has no values; load its weights first")
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        raise ValueError(
            f"the {role} ({type(model).__name__}) cannot be copied: {error}; leave out of its attributes what is no "
            "part of the network"
        ) from error
