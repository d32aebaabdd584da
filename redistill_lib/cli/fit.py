"""`redistill fit`: from a network and a budget to a file that runs within it."""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from torch import nn

from redistill_lib.cli.export import chosen_format
from redistill_lib.comparison import Arm, Budget
from redistill_lib.fitting import Target, fit_to_device
from redistill_lib.own import data_of, network_of, resolve_model, run_in
from redistill_lib.runs import Run
from redistill_lib.sizes import parse_size
from redistill_lib.train import Recipe, RunOptions


def run_command(arguments: argparse.Namespace) -> int:
    run = run_in(arguments.model)
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
    if run:
        own = "weights" in run.params["model"]
        teacher: Arm | Run | nn.Module = network_of(arguments.model, data, arguments.network) if own else run
    else:
        recipe = Recipe(epochs=arguments.teacher_epochs or 12)
        teacher = Arm(resolve_model(arguments.model), width=arguments.width or 1.0, recipe=recipe)
    training = Budget(seconds=arguments.seconds, teacher_share=0.0)
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        options = RunOptions(runs_dir=arguments.runs)
        found = fit_to_device(teacher, data, target, training=training, options=options, executor=pool)
    if found.ways.fits:
        print(found.ways.table().to_string(index=False))
    print(found)
    return 0 if found.fits else 1
