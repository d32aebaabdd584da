"""What each command takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from redistill_lib import __version__
from redistill_lib.store.command import add_arguments as add_run_arguments
from redistill_lib.sweep.arguments import add_arguments

CONVENTIONS = (  # those of redistill_lib.memory, which costs an import of torch
    "eager", "fused", "paper", "onnxruntime", "executorch_default", "executorch", "litert_micro",
)  # fmt: skip
BLOCKS = ("none", "published", "in place", "narrow", "narrow in place")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("redistill", description="Notebooks and training runs of the ReDistill lab.")
    found.add_argument("--version", action="version", version=f"redistill {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute notebooks, with other parameters if you like")
    run.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    run.add_argument("--in-place", action="store_true", help="put the new outputs into the notebooks themselves")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks at a time (default 1)")

    sweep = commands.add_parser("sweep", help="execute notebooks at every point of a grid (see sweeps/README.md)")
    add_arguments(sweep)

    for command, folder in ((run, "runs/notebooks"), (sweep, "runs/sweeps")):
        command.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
        command.add_argument("--timeout", type=float, metavar="SECONDS", help="end a notebook that takes longer")
        command.add_argument("--output", type=Path, default=Path(folder), metavar="DIR", help=f"default {folder}")
        command.add_argument("--no-html", dest="html", action="store_false", help="leave no HTML pages")
        command.add_argument("--index", type=Path, metavar="FILE", help="write an overview page of all that ran")

    runs = commands.add_parser("runs", help="list, compare or delete training runs")
    add_run_arguments(runs)

    memory = commands.add_parser(
        "memory",
        help="where a network's peak memory is, and which stride plans fit a budget",
        description="Peak memory of one forward pass of MODEL: a built-in name such as resnet18-4-11221, or "
        "package.module:function for a function without arguments that returns your own nn.Module, alone or as "
        "(model, inputs). Stride plans of your own network have a digit for each layer that strides now; those in "
        "built-in names have one for every layer that may stride, some of which have stride 1. With --budget, the "
        "exit code is 1 where no plan fits.",
    )
    memory.add_argument("model", metavar="MODEL")
    memory.add_argument("--image-size", type=size, metavar="N", help="N or HxW (default 224; 32 for unet)")
    memory.add_argument("--batch", type=int, metavar="B", help="default 1")
    memory.add_argument("--in-channels", type=int, metavar="C", help="default 3")
    what = "all inputs instead, as 1x3x32x32,1:int64 for an image and a time step"
    memory.add_argument("--inputs", type=tensors, metavar="SHAPES", help=what)
    what = "of the student that pools ×F in its stem, with what RED blocks add to it"
    memory.add_argument("--factor", type=int, default=1, metavar="F", help=what)
    memory.add_argument("--convention", default="fused", choices=CONVENTIONS, help="whose rules")
    memory.add_argument("--dtype", choices=("fp32", "fp16", "bf16", "int8"), help="what activations are stored as")
    memory.add_argument("--in-place-depthwise", action="store_true", help="as MCUNetV2 counts")
    memory.add_argument(
        "--budget",
        metavar="SIZE",
        help=(
            'which stride plans fit, e.g. "256KB": those worth a look, in fp32 and int8 unless --dtype says; '
            "of a transformer, larger patches; of a runtime, its arena has to fit; with --factor, whether that "
            "student does"
        ),
    )
    what = "with --budget: every way that we know, also narrower, of smaller images, in int8 and row by row"
    memory.add_argument("--ways", action="store_true", help=what)
    what = "the RED blocks that have to fit, too (default published)"
    memory.add_argument("--blocks", choices=BLOCKS, help=what)
    form = memory.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON on stdout")
    form.add_argument("--html", nargs="?", const="", metavar="FILE", help="a chart of live bytes, as one page")

    explore = commands.add_parser(
        "explore",
        help="a page on which the stride moves maps, memory and accuracy",
        description="Write one page, which needs no network and no kernel: MODEL and students of it, at every stride "
        "side by side. Each is the folder of a training run, a built-in name, or package.module:function; untrained "
        "students stand beside them. With a run for MODEL accuracy is shown too.",
    )
    explore.add_argument("model", metavar="MODEL")
    explore.add_argument("--html", type=Path, metavar="FILE", help="the page (default MODEL-explored.html)")

    export = commands.add_parser(
        "export",
        help="a network's file for an edge runtime, and what it needs there",
        description="Write MODEL, the folder of a training run, a built-in name or package.module:function, as a "
        "file for ONNX Runtime, ExecuTorch or LiteRT (docs/deploy.md says what to install), compare it with PyTorch "
        "on test images, and measure what a pass needs there.",
    )
    export.add_argument("model", metavar="MODEL")

    fit = commands.add_parser(
        "fit",
        help="train what fits a device's memory, and write its file",
        description="Find the ways to a budget that keep most of MODEL, a built-in name, package.module:function or "
        "the folder of a run, which then teaches; train them in equal seconds, write the best on validation images "
        "as a file, and measure what a pass needs there. The exit code is 1 where nothing fits.",
    )
    fit.add_argument("model", metavar="MODEL")
    fit.add_argument("--budget", required=True, metavar="SIZE", help='what a pass may need, e.g. "256KB"')
    fit.add_argument("--width", type=float, metavar="W", help="of a built-in network (default 1)")
    fit.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of one processor, each (default 60)")
    fit.add_argument("--teacher-epochs", type=int, metavar="N", help="of MODEL itself (default 12)")
    fit.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time (default 2)")
    for command in (export, fit):
        command.add_argument("--to", choices=("onnx", "executorch", "litert"), help="default: FILE's suffix, or onnx")
        command.add_argument("--int8", action="store_true", help="weights and activations (fit: litert alone)")
        command.add_argument(
            "--output", type=Path, metavar="FILE", help="default: the network's name, in this folder"
        )

    app = commands.add_parser(
        "app",
        help="the same page with a kernel: image, channel and budget move, too (needs voila)",
        description="Serve the explorer of MODEL and its students on this machine alone, behind a token, until "
        "Ctrl-C. Without MODEL it shows the networks of notebook 00, which are trained first where they are missing.",
    )
    app.add_argument("model", nargs="?", metavar="MODEL")
    app.add_argument("--port", type=int, default=8866, metavar="N", help="default 8866, or one near it")
    app.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")

    for command in (explore, app, export, fit):
        command.add_argument("--network", metavar="NAME", help="what builds runs of your own network, my_net:make")
    for command in (explore, app, export):
        command.add_argument("--images", type=int, default=200, metavar="N", help="of its test images (default 200)")
    for command in (app, fit):
        command.add_argument("--runs", default="runs", metavar="DIR", help="where trainings are kept (default runs)")
    for command in (explore, app, export, fit):
        command.add_argument("--data", metavar="NAME", help="a data set or a folder (default: MODEL's, or cluttered)")
        command.add_argument("--image-size", type=int, metavar="N", help="to which its images are resized")
    for command in (explore, app):
        command.add_argument("students", nargs="*", metavar="STUDENT")
        command.add_argument(
            "--factor", type=int, metavar="F", help="at which it opens (default 4, or that of its students)"
        )
        command.add_argument("--budget", metavar="SIZE", help='a line in the memory, e.g. "64KB"')

    commands.add_parser("models", help="list the built-in networks and their usual stride plans")
    return found


def size(text: str) -> list[int]:
    return [int(part) for part in text.lower().split("x")]


def tensors(text: str) -> tuple[Any, ...]:
    """Empty tensors without memory from text as ``1x3x32x32,1:int64``."""
    import torch

    found = []
    for each in text.split(","):
        shape, _, name = each.strip().partition(":")
        dtype = getattr(torch, name or "float32", None)
        if not isinstance(dtype, torch.dtype) or not all(side.isdecimal() for side in shape.split("x")):
            raise argparse.ArgumentTypeError(
                f"{each!r} is no input: write its shape and dtype, as 1x3x32x32 or 1:int64"
            )
        found.append(torch.empty(size(shape), dtype=dtype, device="meta"))
    return tuple(found)
