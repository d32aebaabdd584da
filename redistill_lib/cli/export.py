"""`redistill export`: a network's file for an edge runtime, what it computes there and what it needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch.utils.data import Subset

from redistill_lib.checks import whole
from redistill_lib.diffusion.noise import DiffusionProcess
from redistill_lib.export import FORMATS, export_model, load_exported, measure_runtime, portable
from redistill_lib.export.formats import Format, format_of
from redistill_lib.export.inputs import calls_on
from redistill_lib.memory import format_size, profile_memory
from redistill_lib.own import data_of, network_of, run_in
from redistill_lib.train import evaluate


def chosen_format(name: str | None, file: Path | None) -> Format:
    """What --to says, or else the file's suffix; ONNX without either. ValueError where the two disagree."""
    if file is None:
        return FORMATS[name or "onnx"]
    found = format_of(file)
    if name not in (None, found.name):
        raise ValueError(f"--output {file} is for {found.runtime}, and --to says {name}: leave one of them out")
    return found


def run_command(arguments: argparse.Namespace) -> int:
    whole("--images", arguments.images)
    found, run = chosen_format(arguments.to, arguments.output), run_in(arguments.model)
    found.writer()  # says what to install before anything is loaded
    data = data_of(run, arguments.data, arguments.image_size)
    model = network_of(arguments.model, data, arguments.network)
    recipe = run.params.get("recipe", {}) if run else {}
    denoises = "process" in recipe or arguments.model.startswith("unet")
    process = DiffusionProcess(**recipe.get("process", {})) if denoises else None
    compared = calls_on(data.test.head(arguments.images)[0], process)
    calibrating = calls_on(data.train.head(arguments.images)[0], process) if arguments.int8 else None
    name = run.params["model"]["name"] if run else arguments.model.rpartition(":")[2]
    file = arguments.output or Path(f"{name}{'-int8' * arguments.int8}{found.suffix}")
    print(f"{data.name}: images of {data.in_channels}×{data.image_size}×{data.image_size}")
    made = export_model(model, file, compared[0], images=compared, calibration=calibrating, int8=arguments.int8)
    print(made)
    if run and process is None:
        split = Subset(data.test, range(len(compared)))
        there, here = (evaluate(each, split)["accuracy"] for each in (load_exported(made.file), model))
        print(f"accuracy on {len(compared)} test images: {there:.1%} there, {here:.1%} in PyTorch")
    needed = measure_runtime(made.file)
    print(needed)
    if not (arguments.int8 and found.name == "executorch"):  # a delegate's memory is its own affair
        dtype, network = "int8" if arguments.int8 else None, portable(model, compared[0], found.convention)
        told = profile_memory(network, *compared[0], convention=found.convention, dtype=dtype).arena_bytes
        print(f"predicted from the network (convention {found.convention}): {format_size(told)}")
    return 0
