"""`redistill fit`: from a network and a budget to a file that runs within it."""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from redistill_lib.cli.export import chosen_format
from redistill_lib.comparison import Arm, Budget
from redistill_lib.fitting import Target, fit_to_device
from redistill_lib.own import data_of, resolve_model, run_in
from redistill_lib.sizes import parse_size
from redistill_lib.train import Recipe, RunOptions


def run_command(arguments: argparse.Namespace) -> int:
    run = run_in(arguments.model)
    name = run.params["model"]["name"] if run else arguments.model.rpartition(":")[2]
    size = f"{parse_size(arguments.budget) / 1024:g}KB"
    file = arguments.output or Path(f"{name}-in-{size}{chosen_format(arguments.to, None).suffix}")
    chosen_format(arguments.to, file)
    target = Target(file, arguments.budget, arguments.int8)
    target.format.writer()
    data = data_of(run, arguments.data, arguments.image_size)
    teacher = run or Arm(
        resolve_model(arguments.model), width=arguments.width, recipe=Recipe(epochs=arguments.teacher_epochs)
    )
    training = Budget(seconds=arguments.seconds, teacher_share=0.0)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        options = RunOptions(runs_dir=arguments.runs)
        found = fit_to_device(teacher, data, target, training=training, options=options, executor=pool)
    print(found)
    return 0 if found.fits else 1
