"""From a network and a device's memory to the file that runs there: choose, train, teach, export, measure."""

from __future__ import annotations

import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import nn

from redistill_lib.comparison import Arm, Budget, Comparison, compare
from redistill_lib.comparison.trials import resized, right_about
from redistill_lib.data import DataSplits
from redistill_lib.export import Export, RuntimePeak, export_model, measure_runtime
from redistill_lib.export.formats import Format, check_target, format_of
from redistill_lib.export.inputs import calls_on
from redistill_lib.fitting.ways import Choice, WaysToFit, ways_to_fit
from redistill_lib.methods import parse_methods
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.sizes import format_size, parse_size
from redistill_lib.streaming import stream_rows
from redistill_lib.train import RunOptions, evaluate

WAYS = 4  # that are trained: those with most multiply-adds
COMPARED = 50  # test images on which the file is compared, and training images that int8 is calibrated on
LESSON = "red(alpha=5.0)+kd(temperature=4.0)"


@dataclass(frozen=True)
class Target:
    """The file that is wanted, .onnx, .pte or .tflite, and what a pass of it may need: bytes or "256KB".

    `int8` is for .tflite alone: LiteRT holds what int8 takes, a quarter of float32. In the other runtimes a pass
    needs more than that, and how much is not predicted.

    >>> Target("net.pte", "24KB").nbytes
    24576
    """

    file: str | Path
    budget: int | str
    int8: bool = False

    def __post_init__(self) -> None:
        parse_size(self.budget)
        check_target(self.file)
        if self.format.name != "litert" and self.int8:
            raise ValueError(
                f"int8 to fit a budget is for .tflite files: what {self.format.runtime} needs in int8 is not "
                "predicted; fit in float32, or export with int8 and measure"
            )

    @property
    def format(self) -> Format:
        return format_of(self.file)

    @property
    def nbytes(self) -> int:
        return parse_size(self.budget)


@dataclass(frozen=True)
class Fitted:
    """What fits a device, or what comes nearest."""

    target: Target
    ways: WaysToFit
    compared: Comparison | None  # of the teacher alone where nothing had to be trained; None: no way fits
    choice: Choice | None  # the way that was taken; None where none fits
    made: Export | None
    needs: RuntimePeak | None
    missed: tuple[tuple[str, RuntimePeak], ...] = ()  # better ones, which turned out to need more

    @property
    def fits(self) -> bool:
        return self.made is not None

    @property
    def arm(self) -> str:
        """Of the comparison, that it was trained as; "" where none fits."""
        return "" if self.choice is None else _arm(self.ways, self.choice)

    def __str__(self) -> str:
        budget = format_size(self.target.nbytes)
        told = [
            f"{name} was predicted to fit {budget}, but needs {format_size(needs.needed_bytes)}"
            for name, needs in self.missed
        ]
        if self.compared is None:
            return str(self.ways)
        if self.needs is None:
            return "\n".join([*told, f"nothing that was trained fits {budget}: ask for less, and it will"])
        share = self.needs.needed_bytes / self.target.nbytes
        if self.choice is not None:
            right = self.compared.accuracy(self.arm)
            low, high = max(0.0, right.low), min(100.0, right.high)
            percent = f"{right.value:.1f} % of test images right ({low:.1f} to {high:.1f})"
            told.append(f"{self.choice.name}: {percent}")
            trained = self.compared.runs.set_index("arm")["test_accuracy"].drop(self.arm, errors="ignore")
            beside = [f"{arm} {100 * value:.1f} %" for arm, value in trained.items()]
            if self.arm != "teacher" and "teacher" not in trained:
                beside.append(f"the teacher, there already, {self.compared.accuracy('teacher').value:.1f} %")
            told += ["beside it: " + ", ".join(beside)] * bool(beside)
        return "\n".join([*told, f"{self.needs}; {share:.0%} of {budget}"])


def fit_to_device(
    teacher: Arm | Run | nn.Module,
    data: DataSplits,
    target: Target,
    *,
    training: Budget | None = None,
    options: RunOptions | None = None,
    executor: Executor | None = None,
) -> Fitted:
    """Make the best network of a teacher's kind whose pass fits a runtime's memory, and write its file.

    Ways to the budget are those of `ways_to_fit` under the convention of the file's runtime. The four that keep most
    learn from labels, and the first that RED's blocks fit into from the teacher, too, each within `training` (60
    processor seconds of one thread); what fits row by row is exported so, the teacher itself as it is. It is a run or
    a network that is trained already, or an `Arm` that is trained first, which costs the others nothing. The best on
    validation images is written and measured; where a pass needs more than was predicted, the next best. Classifiers
    alone, and one seed: ways a few points apart may well be level. What was trained before is found, so a call that
    was killed goes on.

    Raises ImportError where the runtime is not installed, ValueError as `arms_at_peak` and `compare` do.

    >>> fit_to_device(Arm("resnet18-1-21222", width=0.25), data, Target("net.pte", "24KB"))         # doctest: +SKIP
    """
    target.format.writer()
    options = options or RunOptions()
    ways = _ways(teacher, data, target)
    plain = [choice for choice in ways.fits if choice.trained and not choice.red][:WAYS]
    taught = [choice for choice in ways.fits if choice.red][:1]
    if not ways.fits:
        return Fitted(target, ways, None, None, None, None)
    arms = {**replace(ways, fits=tuple(plain)).arms(), **replace(ways, fits=tuple(taught)).arms(LESSON)}
    arms = arms or {"teacher again": teacher} if isinstance(teacher, Arm) else arms
    training = training or Budget(seconds=60.0, teacher_share=0.0)
    networks = {} if isinstance(teacher, Arm) else {"teacher": _network(teacher)}
    if arms:
        found = compare(teacher, arms, data, budget=training, seeds=[0], options=options, executor=executor)
    else:
        found = _alone(networks["teacher"], data, training)
    scores = {name: evaluate(network, data.validation)["accuracy"] for name, network in networks.items()}
    models = {name: arm.model for name, arm in {"teacher": teacher, **arms}.items() if isinstance(arm, Arm)}
    for name, run in found.runs.set_index("arm")["run"].items():
        trained, model = Run.load(Path(options.runs_dir, run)), models[name]
        scores[name] = trained.metrics["validation_accuracy"]
        networks[name] = load_model(trained, model if isinstance(model, nn.Module) else None)
    chosen = [choice for choice in ways.fits if choice in (*plain, *taught) or not choice.trained]
    chosen.sort(key=lambda choice: -scores[_arm(ways, choice)])
    missed, file = list[tuple[str, RuntimePeak]](), Path(target.file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:  # what is there already stays until another one fits
        for choice in chosen:
            tried = replace(target, file=Path(folder, file.name))
            made, needs = _written(choice, networks[_arm(ways, choice)], data, tried)
            if needs.needed_bytes <= target.nbytes:
                os.replace(made.file, file)
                made, needs = replace(made, file=file), replace(needs, file=str(file))
                return Fitted(target, ways, found, choice, made, needs, tuple(missed))
            missed.append((choice.name, needs))
    return Fitted(target, ways, found, None, None, None, tuple(missed))


def _alone(teacher: nn.Module, data: DataSplits, training: Budget) -> Comparison:
    """As `compare` would tell of a teacher that is there already, and no arms."""
    none = pd.DataFrame(columns=["arm", "run", "test_accuracy"])
    right = {"teacher": right_about(teacher, data)[None]}
    return Comparison(none, pd.DataFrame(), pd.DataFrame(), right, training, "teacher", data.name)


def _network(teacher: Run | nn.Module) -> nn.Module:
    return load_model(teacher) if isinstance(teacher, Run) else teacher.eval()


def _ways(teacher: Arm | Run | nn.Module, data: DataSplits, target: Target) -> WaysToFit:
    model: Any = teacher.model if isinstance(teacher, Arm) else _network(teacher)
    how: dict[str, Any] = {"convention": target.format.convention, "dtypes": "int8" if target.int8 else "fp32"}
    if isinstance(teacher, Run) and "weights" not in teacher.params["model"]:
        model, how["width"] = teacher.params["model"]["name"], teacher.params["model"].get("width", 1.0)
    elif isinstance(teacher, Arm) and isinstance(model, str):
        how["width"] = teacher.width
    example = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    return ways_to_fit(model, target.nbytes, example, **how)


def _arm(ways: WaysToFit, choice: Choice) -> str:
    """What it is trained as."""
    if not choice.trained:
        return "teacher"
    taught = " with " + "+".join(method.name for method in parse_methods(LESSON))
    return ways.ways.key(choice.way) + taught * choice.red


def _written(choice: Choice, network: nn.Module, data: DataSplits, target: Target) -> tuple[Export, RuntimePeak]:
    side = choice.way.image_size
    data = resized(data, side if side != data.image_size else None)
    calls, training = (calls_on(split.head(COMPARED)[0]) for split in (data.test, data.train))
    if choice.until:
        network = stream_rows(network.eval(), example=calls[0], until=choice.until)
    calibration = {"calibration": training, "int8": True} if target.int8 else {}
    made = export_model(network, target.file, calls[0], images=calls, **calibration)  # type: ignore[arg-type]
    return made, measure_runtime(made.file)
