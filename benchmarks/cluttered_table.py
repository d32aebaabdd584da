"""The README's table: every method on `cluttered`, several seeds, equal budget.

    python benchmarks/cluttered_table.py            about 25 minutes on two CPU cores; finished runs are reused

Each seed trains its own teacher, and every student from it: same architecture, plan, recipe and number of epochs;
the epoch is chosen on validation, test is read once. One process per core, one thread each. Writes
benchmarks/results/cluttered.csv (one row per run) and prints the table with its 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd

import redistill_lib as rd
from redistill_lib.figures import summary_table

TEACHER, STUDENT, WIDTH = "resnet18-1-21222", "resnet18-4-11221", 0.25
METHODS = ("kd", "red", "red+kd", "red-blocks", "red-blocks+kd")
RESULTS = Path(__file__).parent / "results" / "cluttered.csv"


def one_seed(seed: int, runs_dir: str) -> list[dict[str, object]]:
    """Teacher, naive student and every method under one seed; one record per run."""
    data, common = rd.load_data("cluttered"), {"width": WIDTH, "seed": seed, "runs_dir": runs_dir, "cpu": True}
    teacher = rd.train_classifier(TEACHER, data, progress=False, **common)
    runs = {"teacher": teacher, "student": rd.train_classifier(STUDENT, data, progress=False, **common)}
    for methods in METHODS:
        runs[methods] = rd.distill_classifier(STUDENT, teacher, data, methods=methods, progress=False, **common)
    columns = ("test_accuracy", "test_accuracy_last", "validation_accuracy", "best_epoch", "parameters", "seconds")
    return [{"role": role, "seed": seed, **{c: run.metrics[c] for c in columns}} for role, run in runs.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", default="runs/benchmark")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        jobs = [(seed, arguments.runs) for seed in range(arguments.seeds)]
        frame = pd.DataFrame([row for rows in pool.starmap(one_seed, jobs, chunksize=1) for row in rows])
    RESULTS.parent.mkdir(exist_ok=True)
    frame.to_csv(RESULTS, index=False)
    print(summary_table(frame).to_string())


if __name__ == "__main__":
    main()
