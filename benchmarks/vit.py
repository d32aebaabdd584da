"""Tiny vision transformers taught by a CNN, several seeds, at equal epochs and at equal seconds.

    python benchmarks/vit.py                        about two hours of one core; finished runs are reused
    python benchmarks/vit.py --data FOLDER          another data set, such as CIFAR-10 in parquet files
    python benchmarks/vit.py --arms "red-blocks;red" --output DIR           some arms, and the trials of their weights

1. The weight of each method is chosen on validation, by a seed of its own (100), from the candidates below; RED + KD
   takes both.
2. Each seed trains its own teacher, and every student from it: one size, patch, recipe (DeiT's has a second token).
   `student` learns from labels alone, and so does the control, `red-blocks`: RED's block without its loss;
   `red-blocks+kd` adds KD to it. The epoch is chosen on validation, test is read once.

The recipe is tuned for `student`: on validation, seed 0, 8 epochs, it reaches 47.0 % at a learning rate of 4e-4,
46.6 % at 1e-3 and 36.1 % at 2e-3.

Equal epochs: each student gets `--epochs`. Equal seconds: each gets the seconds of the teacher and of that many
epochs of the dearest student; those that are taught pay for the teacher first. What an epoch costs is measured
before anything is trained, in turn in one process (median over rounds), and kept beside the runs, so that a call
that goes on trains the same lengths.

One thread. Writes, into benchmarks/results or --output, vit.csv (one row per run, renewed after each), vit_choice.csv
(the candidates), vit_epochs.png and vit_seconds.png (they need Chrome or Chromium), and prints the tables with their
95 % t-intervals, paired by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd
import torch

import redistill_lib as rd
from redistill_lib.data import Views
from redistill_lib.distill import Tap
from redistill_lib.methods import KD, RED, DeiT, Locality, Method, REDBlocks
from redistill_lib.runs import Run

TEACHER, WIDTH = "resnet18-1-21222", 0.25
STUDENT, TOKEN = "vit_pico-8", "deit_pico-8"
PATCH, DEPTH = 8, 6
TUNING_SEED = 100
ARMS = ("student", "red-blocks", "kd", "deit", "locality", "red", "red+kd", "red-blocks+kd")
UNTAUGHT = ("student", "red-blocks")
CANDIDATES: dict[str, list[Method]] = {
    "kd": [KD(temperature=4.0), KD(temperature=2.0), KD(temperature=4.0, alpha=3.0)],
    "deit": [DeiT(), DeiT(alpha=3.0)],
    "locality": [Locality(), Locality(alpha=2.5), Locality(alpha=25.0)],
    "red": [RED(alpha=0.5), RED(alpha=1.5), RED(alpha=5.0), RED(alpha=15.0)],
    "red-blocks": [REDBlocks()],
}
LESSON: dict[str, Any] = {"batch_size": 32, "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05}
LESSON |= {"schedule": "cosine", "clip_norm": 1.0}
RESULTS = Path(__file__).parent / "results"


def network(arm: str) -> str:
    return TOKEN if arm == "deit" else STUDENT


def taps(arm: str, side: int) -> list[Tap] | None:
    """The paper's first, middle and last block by the CNN's last three stages; None: those of `match_taps`."""
    if arm != "locality":
        return None
    grid = (side // PATCH, side // PATCH)
    blocks = zip((0, DEPTH // 2, DEPTH - 1), ("layer2", "layer3", "layer4"), strict=True)
    return [Tap(f"blocks.{block}", "output", layer, "output", grid=grid) for block, layer in blocks]


class Setting:
    """The data, the recipe's length, and the trainings."""

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        size = "train_size" if arguments.data == "cluttered" else "limit"
        options: dict[str, Any] = {size: arguments.train_size}
        self.data = rd.load_data(arguments.data, **options)
        self.options = rd.RunOptions(arguments.runs, cpu=True, progress=False)

    def teacher(self, seed: int) -> Run:
        recipe = rd.Recipe(epochs=self.arguments.teacher_epochs)
        return rd.train_classifier(TEACHER, self.data, recipe, width=WIDTH, seed=seed, options=self.options)

    def train(self, arm: str, seed: int, epochs: int, methods: Sequence[Method]) -> Run:
        common: dict[str, Any] = {"recipe": rd.Recipe(epochs=epochs, **LESSON), "seed": seed, "options": self.options}
        if arm == "student":
            return rd.train_classifier(STUDENT, self.data, **common)
        lesson = {"methods": methods, "taps": taps(arm, self.data.image_size)}
        objective = rd.Objective(reduction="sum")
        teacher = self.teacher(seed)
        return rd.distill_classifier(network(arm), teacher, self.data, objective=objective, **lesson, **common)

    def choose(self, name: str) -> dict[str, Method]:
        """The candidate of each method that is best on validation."""
        rows, best = [], {}
        needed = {part for arm in self.arguments.arms for part in arm.split("+")}
        for arm, candidates in CANDIDATES.items():
            if arm not in needed:
                continue
            if len(candidates) == 1:
                best[arm] = candidates[0]
                continue
            tried = [self.train(arm, TUNING_SEED, self.arguments.epochs, [method]) for method in candidates]
            reached = [run.metrics["validation_accuracy"] for run in tried]
            best[arm] = candidates[reached.index(max(reached))]
            told = zip(candidates, reached, strict=True)
            rows += [{"role": arm, "method": repr(method), "validation_accuracy": value} for method, value in told]
            pd.DataFrame(rows).to_csv(self.arguments.output / f"{name}_choice.csv", index=False)
            print(f"chosen: {best[arm]} of {dict(zip(map(repr, candidates), reached, strict=True))}", flush=True)
        return best

    def seconds(self) -> dict[str, float]:
        """What an epoch of each arm and of the teacher costs; as measured before, if it was."""
        kept = Path(self.arguments.runs) / "vit_seconds.json"
        known = dict(json.loads(kept.read_text())) if kept.exists() else {}
        steps = {arm: self._step(arm) for arm in ("teacher", *ARMS) if arm not in known}
        rounds = [{arm: timed(step) for arm, (step, _) in steps.items()} for _ in range(self.arguments.rounds)]
        images = len(self.data.train)
        found = {a: statistics.median(r[a] for r in rounds[2:]) * (images // size) for a, (_, size) in steps.items()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known | found))
        return known | found

    def _step(self, arm: str) -> tuple[Callable[[], None], int]:
        """One step of an arm's training, the making of its batch included, and the batch's size."""
        recipe, size = (
            (rd.Recipe(), {}) if arm == "teacher" else (rd.Recipe(**LESSON), {"image_size": self.data.image_size})
        )
        shape = {"num_classes": self.data.num_classes, "in_channels": self.data.in_channels}
        teacher = rd.create_model(TEACHER, **shape, width=WIDTH)
        student = teacher if arm == "teacher" else rd.create_model(network(arm), **shape, **size)
        example = torch.zeros(2, self.data.in_channels, self.data.image_size, self.data.image_size)
        if methods := [CANDIDATES[part][0] for part in arm.split("+") if part in CANDIDATES]:
            chosen = taps(arm, self.data.image_size)
            if chosen is None:
                reads_maps = any(method.reads == "maps" for method in methods)
                chosen = rd.match_taps(student, teacher, example) if reads_maps else []
            module = rd.Distillation(student, teacher, chosen, methods, example=example)
        else:
            module = rd.Distillation(student)
        module.to(memory_format=torch.channels_last).train()
        parameters = [p for p in module.parameters() if p.requires_grad]
        kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        optimizer = kinds[recipe.optimizer](parameters, lr=1e-4)
        views, count = Views(self.data.train, recipe.augmentation, self.data.num_classes), recipe.batch_size

        def step() -> None:
            images, targets, *_ = views.__getitems__([(row, 0) for row in range(count)])
            module(images.contiguous(memory_format=torch.channels_last), targets=targets)[1]["total"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step, count


def timed(step: Callable[[], None]) -> float:
    start = time.process_time()  # of this process alone, whatever else the machine does
    step()
    return time.process_time() - start


def lengths(seconds: dict[str, float], epochs: int, teacher_epochs: int) -> dict[tuple[str, str], int]:
    """The epochs of each arm by budget."""
    teacher = seconds["teacher"] * teacher_epochs
    budget = teacher + epochs * max(seconds[arm] for arm in ARMS)
    found = {("epochs", arm): epochs for arm in ARMS}
    for arm in ARMS:
        left = budget - (0.0 if arm in UNTAUGHT else teacher)
        found["seconds", arm] = int(left / seconds[arm] + 1e-9)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cluttered")
    parser.add_argument("--train-size", type=int, default=6000, help="images to train on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=25, help="of the measurement of what an epoch costs")
    parser.add_argument("--runs", default="runs/vit")
    parser.add_argument("--arms", default=";".join(ARMS), help="some of them, with semicolons between")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.arms = [arm.strip() for arm in arguments.arms.split(";")]
    if unknown := [arm for arm in arguments.arms if arm not in ARMS]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {'; '.join(ARMS)}")
    setting, name = Setting(arguments), "vit" if arguments.data == "cluttered" else f"vit_{Path(arguments.data).name}"
    arguments.output.mkdir(parents=True, exist_ok=True)
    seconds = setting.seconds()
    print("seconds an epoch: " + ", ".join(f"{arm} {value:.1f}" for arm, value in seconds.items()), flush=True)
    rows: list[dict[str, Any]] = []

    def keep(budget: str, arm: str, seed: int, epochs: int, run: Run) -> None:
        columns = (
            "test_accuracy",
            "test_accuracy_last",
            "validation_accuracy",
            "best_epoch",
            "parameters",
            "peak_bytes",
        )
        taught = seconds["teacher"] * arguments.teacher_epochs if arm in set(ARMS).difference(UNTAUGHT) else 0.0
        spent = seconds[arm] * epochs + taught
        told = {"budget": budget, "role": arm, "seed": seed, "epochs": epochs, "cpu_seconds": round(spent, 1)}
        rows.append(told | {column: run.metrics[column] for column in columns})
        pd.DataFrame(rows).to_csv(arguments.output / f"{name}.csv", index=False)
        print(f"{budget:<8} {arm:<13} seed {seed}, {epochs} epochs: {run.metrics['test_accuracy']:.3f}", flush=True)

    chosen = setting.choose(name)
    plan = lengths(seconds, arguments.epochs, arguments.teacher_epochs)
    for seed in range(arguments.seeds):
        keep("teacher", "teacher", seed, arguments.teacher_epochs, setting.teacher(seed))
        for (budget, arm), epochs in plan.items():
            if arm not in arguments.arms:
                continue
            methods = [chosen[part] for part in arm.split("+") if part in chosen]
            keep(budget, arm, seed, epochs, setting.train(arm, seed, epochs, methods))
    report(pd.DataFrame(rows), arguments.output / name)


def report(frame: pd.DataFrame, stem: Path) -> None:
    from redistill_lib.figures import accuracies
    from redistill_lib.results import summarize

    teacher = frame[frame["role"] == "teacher"]
    for budget in ("epochs", "seconds"):
        part = pd.concat([teacher, frame[frame["budget"] == budget]])
        summary = summarize(part)
        print(f"equal {budget}: {summary.headline()}")
        print(summary.table.round(1).to_string(index=False))
        accuracies(part).write_image(f"{stem}_{budget}.png", scale=2)


if __name__ == "__main__":
    main()
