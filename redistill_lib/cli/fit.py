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
    if run and "weights" in run.params["model"]:
        raise ValueError(
            f"{run.id} is of a network of your own, which this cannot build: give my_net:make, which is trained first"
        )
    if run and (arguments.width or arguments.teacher_epochs):
        raise ValueError("a run is as wide as it is, and is trained already: leave out --width and --teacher-epochs")
    if arguments.jobs < 1:
        raise ValueError("--jobs is how many trainings run at a time, 1 or more")
    name = run.params["model"]["name"] if run else arguments.model.rpartition(":")[2]
    size = f"{parse_size(arguments.budget) / 1024:g}KB"
    file = arguments.output or Path(f"{name}-in-{size}{chosen_format(arguments.to, None).suffix}")
    chosen_format(arguments.to, file)
    target = Target(file, arguments.budget, arguments.int8)
    target.format.writer()
    data = data_of(run, arguments.data, arguments.image_size)
    teacher = run or Arm(
        resolve_model(arguments.model),
        width=arguments.width or 1.0,
        recipe=Recipe(epochs=arguments.teacher_epochs or 12),
    )
    training = Budget(seconds=arguments.seconds, teacher_share=0.0)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        options = RunOptions(runs_dir=arguments.runs)
        found = fit_to_device(teacher, data, target, training=training, options=options, executor=pool)
    print(found)
    return 0 if found.fits else 1
