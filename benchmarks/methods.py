"""Every distillation method for one epoch, under a ResNet: a MobileNet (CNN → CNN) and a ViT (CNN → ViT).

    python benchmarks/methods.py        about 10 minutes of one core; finished runs are reused

It shows what can be used where, not which method is better: one epoch, one seed, the methods' own weights. Taps are
those of `match_taps`. A method that refuses a pair, or whose training ends in an error, has its sentence in place of
numbers.

Writes benchmarks/results/methods.csv and prints it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.methods import METHODS

TEACHER, WIDTH = "resnet18-1-21222", 0.25
STUDENTS: dict[str, dict[str, Any]] = {"mobilenetv2-4-1112121": {"width": WIDTH}, "deit_pico-8": {}}
CHANGES: dict[str, dict[str, Any]] = {
    "mobilenetv2-4-1112121": {},
    "deit_pico-8": {"optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train-size", type=int, default=2000)
    parser.add_argument("--runs", default="runs/methods")
    given = parser.parse_args()
    data = rd.load_data("cluttered", train_size=given.train_size)
    options = rd.RunOptions(given.runs, cpu=True, progress=False)
    teacher = rd.train_classifier(TEACHER, data, rd.Recipe(epochs=6), width=WIDTH, options=options)
    rows: list[dict[str, Any]] = []
    for student, size in STUDENTS.items():
        recipe = rd.Recipe(epochs=1, clip_norm=1.0, **CHANGES[student])
        common: dict[str, Any] = {"recipe": recipe, "options": options, **size}
        alone = rd.train_classifier(student, data, **common)
        for name in ("none", *METHODS):
            row = {"student": student, "method": name}
            try:
                run = (
                    alone if name == "none" else rd.distill_classifier(student, teacher, data, methods=name, **common)
                )
            except (ValueError, FloatingPointError) as error:
                row["refused"] = str(error)
            else:
                row |= {"distill_loss": run.history().get("train_distill", pd.Series([float("nan")])).iloc[-1]}
                row |= {"validation_accuracy": run.metrics["validation_accuracy"]}
            rows.append(row)
            print(row, flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(Path(__file__).parent / "results" / "methods.csv", index=False, float_format="%.4g")
    print(frame.drop(columns="refused", errors="ignore").to_string(index=False))


if __name__ == "__main__":
    main()
