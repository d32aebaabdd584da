"""The `redistill` command: run notebooks and sweeps, profile memory, list runs and models.

Exit codes: 0 all well, 1 a notebook failed or was interrupted, 2 the command itself was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redistill_lib import __version__

if TYPE_CHECKING:
    from torch import nn

    from redistill_lib.memory import Bounds
    from redistill_lib.sweep import NotebookResult


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on stderr, no traceback."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except (ValueError, OSError, KeyError, ImportError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"redistill: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redistill: interrupted", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="redistill", description="Notebooks and training runs of the ReDistill lab."
    )
    parser.add_argument("--version", action="version", version=f"redistill {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute notebooks, with other parameters if you like")
    run.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("--in-place", action="store_true", help="put the new outputs into the notebooks themselves")
    run.set_defaults(command=_run)

    sweep = commands.add_parser("sweep", help="execute a notebook at every point of a grid (see sweeps/README.md)")
    sweep.add_argument("grids", nargs="+", type=Path, metavar="FILE")
    sweep.set_defaults(command=_sweep)

    for command, folder in ((run, "runs/notebooks"), (sweep, "runs/sweeps")):
        command.add_argument("--output", type=Path, default=Path(folder), metavar="DIR", help=f"default {folder}")
        command.add_argument("--no-html", dest="html", action="store_false", help="leave no HTML pages")
        command.add_argument(
            "--index", type=Path, metavar="FILE", help="write an overview page, e.g. runs/index.html"
        )

    runs = commands.add_parser("runs", help="list training runs")
    runs.add_argument("root", nargs="?", type=Path, default=Path("runs"), metavar="ROOT")
    runs.set_defaults(command=_runs)

    memory = commands.add_parser(
        "memory",
        help="where a network's peak memory is, and which stride plans fit a budget",
        description="Peak memory of one forward pass of MODEL: a built-in name such as resnet18-4-11221, or "
        "package.module:function for a function without arguments that returns your own nn.Module.",
    )
    memory.add_argument("model", metavar="MODEL")
    memory.add_argument(
        "--image-size", type=_size, metavar="N", help="height and width, or HxW (default 224; 32 for unet)"
    )
    memory.add_argument("--batch", type=int, default=1, metavar="B")
    memory.add_argument("--in-channels", type=int, default=3, metavar="C")
    memory.add_argument("--factor", type=int, default=1, metavar="F", help="of the student that pools ×F in its stem")
    memory.add_argument("--convention", default="fused", choices=("eager", "fused", "paper"))
    memory.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16", "int8"), help="what activations would be stored as"
    )
    memory.add_argument("--in-place-depthwise", action="store_true", help="as MCUNetV2 counts")
    memory.add_argument("--budget", metavar="SIZE", help='which stride plans fit, e.g. "256KB"')
    form = memory.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON on stdout")
    form.add_argument("--html", nargs="?", const="", metavar="FILE", help="the image of live bytes, as one page")
    memory.set_defaults(command=_memory)

    models = commands.add_parser("models", help="list the built-in networks and their usual stride plans")
    models.set_defaults(command=_models)
    return parser


def _size(text: str) -> list[int]:
    """[64] from "64", [64, 48] from "64x48"."""
    numbers = [int(part) for part in text.lower().split("x")]
    if len(numbers) > 2:
        raise ValueError(text)
    return numbers


def _run(arguments: argparse.Namespace) -> int:
    from redistill_lib.report import refresh_outputs
    from redistill_lib.sweep import run_notebooks

    parameters = dict(arguments.parameter)
    if len(parameters) < len(arguments.parameter):
        names = [name for name, _ in arguments.parameter]
        raise ValueError(f"parameter {next(n for n in names if names.count(n) > 1)} is given more than once")
    if arguments.in_place and parameters:
        raise ValueError("--in-place executes notebooks at their defaults only: drop -p, or drop --in-place")
    results = run_notebooks(
        arguments.notebooks,
        parameters,
        arguments.output,
        html=arguments.html,
        png=arguments.in_place,  # committed outputs are read where nothing runs
        progress=sys.stderr.isatty(),
    )
    if arguments.in_place:
        for source, result in zip(arguments.notebooks, results, strict=False):  # fewer results after Ctrl-C
            if result.ok:
                refresh_outputs(source, result.notebook)
    return _conclude(results, arguments)


def _sweep(arguments: argparse.Namespace) -> int:
    from redistill_lib.sweep import run_grids

    results = run_grids(arguments.grids, arguments.output, html=arguments.html, progress=sys.stderr.isatty())
    return _conclude(results, arguments)


def _conclude(results: Sequence[NotebookResult], arguments: argparse.Namespace) -> int:
    from redistill_lib.report import duration, write_index

    rows = [(r.name, r.status, duration(r.seconds), str(r.error or r.html or r.notebook)) for r in results]
    print(_table(("notebook", "status", "time", "where"), rows))
    if arguments.index:
        print(write_index(arguments.index.parent, notebooks=[arguments.output], file=arguments.index))
    return 0 if all(result.ok for result in results) else 1


def _runs(arguments: argparse.Namespace) -> int:
    from redistill_lib.report import run_tables
    from redistill_lib.runs import load_runs

    if not arguments.root.is_dir():
        raise FileNotFoundError(f"no folder {arguments.root}: training in a notebook makes it, or name another")
    tables = run_tables(load_runs(arguments.root))
    if not tables:
        print(f"no training runs below {arguments.root}")
    for kind, (runs, same) in tables.items():
        if len(tables) > 1:
            print(f"{kind}:")
        shown = runs.astype(object).where(runs.notna(), "")
        print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        print(*("the same in all:", *(f"{name}={value}" for name, value in same.items())) if same else ())
    return 0


def _memory(arguments: argparse.Namespace) -> int:

    from redistill_lib.budget import fit_to_budget
    from redistill_lib.memory import format_size, memory_bounds, profile_memory
    from redistill_lib.models import example_inputs

    unet = arguments.model.partition("-")[0] == "unet"
    size = arguments.image_size or [32 if unet else 224]
    if min(*size, arguments.batch, arguments.in_channels) < 1:
        raise ValueError("--image-size, --batch and --in-channels are whole numbers of 1 or more")
    if arguments.budget and (arguments.html is not None or arguments.convention != "fused"):
        raise ValueError(
            "--budget counts by the fused convention and prints a table, or JSON: leave out the other flags"
        )
    shape = {"batch": arguments.batch, "in_channels": arguments.in_channels, "device": "meta"}
    # A network of one's own is called with images alone, as any built-in classifier is.
    inputs = example_inputs("unet" if unet else "resnet18", (size[0], size[-1]), **shape)
    model = _network(arguments.model, arguments.factor, arguments.in_channels, inputs)
    _check_runs(arguments.model, model, inputs)
    if arguments.budget:
        dtypes = [arguments.dtype] if arguments.dtype else ["fp32", "int8"]
        named = arguments.in_channels == 3 and arguments.factor == 1 and ":" not in arguments.model
        fit = fit_to_budget(
            arguments.model if named else model,
            arguments.budget,
            *inputs,
            dtypes=dtypes,
            in_place_depthwise=arguments.in_place_depthwise,
            progress=sys.stderr.isatty(),
        )
        table = fit.to_frame()
        if arguments.json:
            record = {"answer": str(fit), "plans": table.to_dict("records"), "nearest": vars(fit.closest)}
            print(json.dumps({**record, "refused": dict(fit.refused)}, indent=1, ensure_ascii=False))
        else:
            print(fit, *([] if table.empty else ["", table.to_string(index=False, float_format="%.4g")]), sep="\n")
        return 0
    settings = {"dtype": arguments.dtype, "convention": arguments.convention}
    profile = profile_memory(model, *inputs, **settings, in_place_depthwise=arguments.in_place_depthwise)
    bounds = memory_bounds(model, *inputs, dtype=arguments.dtype)
    if arguments.json:
        shown = ("model", "convention", "dtype", "inputs", "peak_bytes", "weight_bytes", "weight_count",
                 "buffer_bytes", "constant_bytes", "flops", "unfused", "source")  # fmt: skip
        record = {name: getattr(profile, name) for name in shown}
        record |= {"peak_at": profile.peak_op.name, "bounds": vars(bounds)}
        rows = profile.to_frame().to_dict("records")
        print(json.dumps({**record, "rows": rows}, indent=1, ensure_ascii=False))
    elif arguments.html is not None:
        from redistill_lib.figures import memory_by_layer, memory_timeline

        file = Path(
            arguments.html
            or f"{profile.model}-{'x'.join(map(str, size))}px-{profile.convention}-{profile.dtype}.html"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        if arguments.convention == "paper":  # counts layers, not tensors
            figure = memory_by_layer({"teacher": profile})
        else:
            figure = memory_timeline(profile, bounds=bounds if arguments.convention == "fused" else None)
        figure.write_html(file, include_plotlyjs=True)
        print(file)
    else:
        rows = [(r.name, r.op, "×".join(map(str, r.shape)), format_size(r.live_bytes)) for r in profile.rows]
        order = sorted(range(len(rows)), key=lambda k: -profile.rows[k].live_bytes)[:10]
        print(profile)
        for name in profile.unfused:
            print(f"counted apart from its input and output, as it is not known: {name}")
        print("", _table(("largest steps", "operator", "output", "live"), [rows[k] for k in order]), sep="\n")
        if arguments.convention != "paper":
            print("", _table(("what else it could need (fused)", "peak"), _bounds_rows(bounds)), sep="\n")
    return 0


def _check_runs(name: str, model: nn.Module, inputs: Sequence[Any]) -> None:
    """Raise ValueError where the network cannot be followed on such inputs."""
    from redistill_lib.memory import profile_memory

    try:
        profile_memory(model, *inputs)
    except Exception as error:
        shapes = ", ".join("×".join(map(str, tensor.shape)) for tensor in inputs)
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name} cannot be followed on {shapes} ({type(error).__name__}: {first}): fit --image-size and "
            "--in-channels to it; if it takes other inputs, or branches on values, call rd.profile_memory in Python"
        ) from None


def _bounds_rows(bounds: Bounds) -> list[tuple[str, str]]:
    from redistill_lib.memory import format_size

    order = "best order of execution" if bounds.order_exact else "best order of execution, at least"
    until = f" up to {bounds.streaming_name}" if bounds.streaming_name else ""
    return [
        ("in the program's order", format_size(bounds.peak_bytes)),
        (order, format_size(bounds.order_bytes)),
        (f"largest operator, {bounds.op_name}", format_size(bounds.op_bytes)),
        (f"row by row{until}", format_size(bounds.streaming_bytes)),
        ("depthwise convolutions in place", format_size(bounds.in_place_depthwise_bytes)),
    ]


def _network(name: str, factor: int, in_channels: int, inputs: Sequence[Any]) -> nn.Module:
    """A built-in network or the user's own, and of either the student that pools ×factor; on the meta device."""
    import torch

    from redistill_lib.models import create_model, student_name
    from redistill_lib.student import derive_student

    if ":" not in name:
        with torch.device("meta"):
            return create_model(student_name(name, factor), in_channels=in_channels)
    module, _, function = name.partition(":")
    if module.endswith(".py"):
        raise ValueError(f"write the module, not its file: {module.removesuffix('.py').replace('/', '.')}:{function}")
    sys.path.insert(0, "")  # as `python -m` would find it
    try:
        made = getattr(importlib.import_module(module), function, None)
    finally:
        sys.path.remove("")
    if not callable(made):
        raise ValueError(f"module {module} has no function {function!r}; write package.module:function")
    try:
        model = made()
    except Exception as error:
        raise ValueError(f"{name}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{name} returned a {type(model).__name__}, not an nn.Module")
    model = model.to("meta")
    return model if factor == 1 else derive_student(model, factor, example=tuple(inputs))[0]


def _models(arguments: argparse.Namespace) -> int:
    from redistill_lib.models import list_models, usual_plan

    print(
        _table(
            ("model", "usual plan", "total stride"),
            [(n, usual_plan(n), usual_plan(n).total) for n in list_models()],
        )
    )
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned columns of plain text; only the first line of each cell."""
    lines = [tuple(head), *(tuple((str(cell).splitlines() or [""])[0] for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
