"""The README's table: every method on `cluttered`, several seeds, equal budget.

    python benchmarks/cluttered_table.py            about half an hour on two CPU cores; finished runs are reused

1. The weights of RED and of KD are chosen on validation, seed 0, from three candidates each; RED + KD takes both.
2. Each seed trains its own teacher, and every student from it: same architecture, plan, recipe and number of epochs.
   The epoch is chosen on validation, test is read once.

One process per core, one thread each. Writes benchmarks/results/cluttered.csv (one row per run) and
cluttered_choice.csv (the candidates) and cluttered.png (needs Chrome or Chromium), and prints the table with its
95 % t-intervals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.runs import Run

TEACHER, STUDENT, WIDTH = "resnet18-1-21222", "resnet18-4-11221", 0.25
TAPS = 5  # of this pair; KD counts as one more, so among taps it is weighted by their number to keep its weight
CANDIDATES: dict[str, list[dict[str, float]]] = {
    "red": [{"alpha": 5.0}, {"alpha": 15.0}, {"alpha": 50.0}],
    "kd": [
        {"alpha": 1.0, "temperature": 2.0},
        {"alpha": 1.0, "temperature": 4.0},
        {"alpha": 3.0, "temperature": 4.0},
    ],
}
RESULTS = Path(__file__).parent / "results"


def train(role: str, seed: int, runs_dir: str, options: dict[str, Any] | None = None) -> Run:
    """The run of one role under one seed; a student finds its seed's teacher in the run store."""
    data, common = rd.load_data("cluttered"), {"width": WIDTH, "seed": seed, "runs_dir": runs_dir, "cpu": True}
    if role in ("teacher", "student"):
        return rd.train_classifier(TEACHER if role == "teacher" else STUDENT, data, progress=False, **common)
    teacher = train("teacher", seed, runs_dir)
    return rd.distill_classifier(STUDENT, teacher, data, methods=role, options=options, progress=False, **common)


def record(role: str, seed: int, run: Run) -> dict[str, Any]:
    columns = ("test_accuracy", "test_accuracy_last", "validation_accuracy", "best_epoch", "parameters", "seconds")
    return {"role": role, "seed": seed, **{c: run.metrics[c] for c in columns}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", default="runs/benchmark")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        seeds = range(arguments.seeds)
        plain = [(role, seed, arguments.runs) for role in ("teacher", "student") for seed in seeds]
        runs = {job[:2]: run for job, run in zip(plain, pool.starmap(train, plain, chunksize=1), strict=True)}

        trials = [(role, 0, arguments.runs, {role: o}) for role, options in CANDIDATES.items() for o in options]
        tried = pool.starmap(train, trials, chunksize=1)
        choice = pd.DataFrame(
            [
                {"role": r, **o[r], "validation_accuracy": t.metrics["validation_accuracy"]}
                for (r, _, _, o), t in zip(trials, tried, strict=True)
            ]
        )
        choice.to_csv(RESULTS / "cluttered_choice.csv", index=False)
        print(choice.to_string(index=False), flush=True)
        best = choice.groupby("role")["validation_accuracy"].idxmax()
        red, kd = (trials[best[role]][3][role] for role in ("red", "kd"))
        kd_among_taps = kd | {"alpha": kd["alpha"] * (TAPS + 1)}
        options = {
            "kd": {"kd": kd},
            "red": {"red": red},
            "red+kd": {"red": red, "kd": kd_among_taps},
            "red-blocks": {},
            "red-blocks+kd": {"kd": kd_among_taps},
        }
        jobs = [(role, seed, arguments.runs, options[role]) for seed in seeds for role in options]
        runs |= {job[:2]: run for job, run in zip(jobs, pool.starmap(train, jobs, chunksize=1), strict=True)}
    frame = pd.DataFrame([record(role, seed, run) for (role, seed), run in runs.items()])
    frame.to_csv(RESULTS / "cluttered.csv", index=False)

    from redistill_lib.figures import accuracies
    from redistill_lib.results import summarize

    print(summarize(frame).headline())
    print(summarize(frame).table.round(1).to_string(index=False))
    accuracies(frame).write_image(RESULTS / "cluttered.png", scale=2)


if __name__ == "__main__":
    main()
