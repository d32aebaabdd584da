"""The README's table: every method on `cluttered`, several seeds, equal epochs (not equal seconds).

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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.methods import KD, RED, Method, REDBlocks
from redistill_lib.runs import Run

TEACHER, STUDENT, WIDTH = "resnet18-1-21222", "resnet18-4-11221", 0.25
CANDIDATES: dict[str, list[Method]] = {
    "red": [RED(alpha=5.0), RED(alpha=15.0), RED(alpha=50.0)],
    "kd": [KD(temperature=2.0), KD(temperature=4.0), KD(temperature=4.0, alpha=3.0)],
}
RESULTS = Path(__file__).parent / "results"


def train(role: str, seed: int, runs_dir: str, methods: Sequence[Method] = ()) -> Run:
    """The run of one role under one seed; a student finds its seed's teacher in the run store."""
    data, options = rd.load_data("cluttered"), rd.RunOptions(runs_dir, cpu=True, progress=False)
    common: dict[str, Any] = {"width": WIDTH, "seed": seed, "options": options}
    if role in ("teacher", "student"):
        return rd.train_classifier(TEACHER if role == "teacher" else STUDENT, data, **common)
    teacher, objective = train("teacher", seed, runs_dir), rd.Objective(reduction="sum")
    return rd.distill_classifier(STUDENT, teacher, data, methods=methods, objective=objective, **common)


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

        trials = [(role, 0, arguments.runs, [method]) for role, methods in CANDIDATES.items() for method in methods]
        tried = pool.starmap(train, trials, chunksize=1)
        choice = pd.DataFrame(
            [
                {"role": role, **asdict(method), "validation_accuracy": run.metrics["validation_accuracy"]}
                for (role, _, _, [method]), run in zip(trials, tried, strict=True)
            ]
        )
        choice.to_csv(RESULTS / "cluttered_choice.csv", index=False)
        print(choice.to_string(index=False), flush=True)
        best = choice.groupby("role")["validation_accuracy"].idxmax()
        red, kd = (trials[best[role]][3][0] for role in ("red", "kd"))
        blocks = REDBlocks()
        students = {
            "kd": [kd], "red": [red], "red+kd": [red, kd], "red-blocks": [blocks], "red-blocks+kd": [blocks, kd],
        }  # fmt: skip
        jobs = [(role, seed, arguments.runs, students[role]) for seed in seeds for role in students]
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
