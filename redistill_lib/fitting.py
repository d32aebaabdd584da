"""From a network and a device's memory to the file that runs there: choose, train, teach, export, measure."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.comparison import Arm, ArmsAtPeak, Budget, Comparison, arms_at_peak, compare
from redistill_lib.comparison.trials import resized
from redistill_lib.data import DataSplits
from redistill_lib.export import Export, RuntimePeak, export_model, measure_runtime
from redistill_lib.export.formats import Format, format_of
from redistill_lib.export.inputs import calls_on
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.sizes import format_size, parse_size
from redistill_lib.train import RunOptions

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
    ways: ArmsAtPeak
    compared: Comparison | None  # None: no way is predicted to fit
    arm: str  # the way that was taken; "" where none fits
    made: Export | None
    needs: RuntimePeak | None
    missed: tuple[tuple[str, RuntimePeak], ...] = ()  # better ones, which turned out to need more

    @property
    def fits(self) -> bool:
        return self.made is not None

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
        right = self.compared.accuracy(self.arm)
        told.append(f"{self.arm}: {right.value:.1f} % of test images right ({right.low:.1f} to {right.high:.1f})")
        return "\n".join([*told, f"{self.needs}; {share:.0%} of {budget}"])


def fit_to_device(
    teacher: Arm | Run,
    data: DataSplits,
    target: Target,
    *,
    training: Budget | None = None,
    options: RunOptions | None = None,
    executor: Executor | None = None,
) -> Fitted:
    """Make the best network of a teacher's kind whose pass fits a runtime's memory, and write its file.

    Ways to the budget are those of `arms_at_peak` under the convention of the file's runtime. The four with most
    multiply-adds learn from labels, and the first that RED's blocks fit into from the teacher, too, each within
    `training` (60 processor seconds of one thread). The teacher is a run, or an `Arm` that is trained first, which
    costs the others nothing. The best on validation images is written and measured; where a pass needs more than was
    predicted, the next best. Classifiers alone, and one seed: ways a few points apart may well be level. What was
    trained before is found, so a call that was killed goes on.

    Raises ImportError where the runtime is not installed, ValueError as `arms_at_peak` and `compare` do.

    >>> fit_to_device(Arm("resnet18-1-21222", width=0.25), data, Target("net.pte", "24KB"))         # doctest: +SKIP
    """
    target.format.writer()
    options = options or RunOptions()
    ways = _ways(teacher, data, target)
    arms = dict([*ways.arms().items()][:WAYS])
    if not arms:
        return Fitted(target, ways, None, "", None, None)
    arms |= dict([*ways.arms(LESSON).items()][:1])
    training = training or Budget(seconds=60.0, teacher_share=0.0)
    found = compare(teacher, arms, data, budget=training, seeds=[0], options=options, executor=executor)
    runs = found.runs.set_index("arm").loc[list(arms)].sort_values("validation_accuracy", ascending=False)
    missed: list[tuple[str, RuntimePeak]] = []
    for arm, run in runs["run"].items():
        made, needs = _written(arms[str(arm)], Path(options.runs_dir, run), data, target)
        if needs.needed_bytes <= target.nbytes:
            return Fitted(target, ways, found, str(arm), made, needs, tuple(missed))
        missed.append((str(arm), needs))
    Path(target.file).unlink()
    return Fitted(target, ways, found, "", None, None, tuple(missed))


def _ways(teacher: Arm | Run, data: DataSplits, target: Target) -> ArmsAtPeak:
    model: Any = teacher.model if isinstance(teacher, Arm) else load_model(teacher)
    how: dict[str, Any] = {"convention": target.format.convention}
    if isinstance(teacher, Run) and "weights" not in teacher.params["model"]:
        model, how["width"] = teacher.params["model"]["name"], teacher.params["model"].get("width", 1.0)
    elif isinstance(teacher, Arm) and isinstance(model, str):
        how["width"] = teacher.width
    example = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    return arms_at_peak(model, target.nbytes * (4 if target.int8 else 1), example, **how)  # counted in float32


def _written(arm: Arm, run: Path, data: DataSplits, target: Target) -> tuple[Export, RuntimePeak]:
    data = resized(data, arm.image_size)
    network = load_model(run, arm.model if isinstance(arm.model, nn.Module) else None)
    calls, training = (calls_on(split.head(COMPARED)[0]) for split in (data.test, data.train))
    calibration = {"calibration": training, "int8": True} if target.int8 else {}
    made = export_model(network, target.file, calls[0], images=calls, **calibration)  # type: ignore[arg-type]
    return made, measure_runtime(made.file)
