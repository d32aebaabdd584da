"""The `redistill` command: run notebooks and sweeps, profile memory, list runs and models.

Exit codes: 0 all well, 1 a notebook failed or was interrupted, or nothing fits a budget, 2 the command was wrong,
128 + the number of a signal that ended it (130 for Ctrl-C).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redistill_lib import __version__
from redistill_lib.store.command import add_arguments as add_run_arguments
from redistill_lib.sweep.arguments import add_arguments, parameters, with_negative_values

if TYPE_CHECKING:
    from torch import nn

    from redistill_lib.costs import TapCosts
    from redistill_lib.memory import Bounds, Profile
    from redistill_lib.student import Change

CONVENTIONS = (  # those of redistill_lib.memory, which costs an import of torch
    "eager", "fused", "paper", "onnxruntime", "executorch", "executorch_in_place", "litert_micro",
)  # fmt: skip
BLOCKS = ("none", "published", "in place", "narrow", "narrow in place")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on stderr, no traceback."""
    arguments = _parser().parse_args(with_negative_values(argv))
    arguments.typed = [*(sys.argv[1:] if argv is None else argv)]
    try:
        return _COMMANDS[arguments.command](arguments) or 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"redistill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redistill: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("redistill", description="Notebooks and training runs of the ReDistill lab.")
    parser.add_argument("--version", action="version", version=f"redistill {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="execute notebooks, with other parameters if you like")
    run.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    run.add_argument("--in-place", action="store_true", help="put the new outputs into the notebooks themselves")

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

    app = commands.add_parser(
        "app",
        help="the same page with a kernel: image, channel and budget move, too (needs voila)",
        description="Serve the explorer of MODEL and its students on this machine alone, behind a token, until "
        "Ctrl-C. Without MODEL it shows the networks of notebook 00, which are trained first where they are missing.",
    )
    app.add_argument("model", nargs="?", metavar="MODEL")
    app.add_argument("--runs", default="runs", metavar="DIR", help="where notebook 00's are kept (default runs)")
    app.add_argument("--port", type=int, default=8866, metavar="N", help="default 8866, or one near it")
    app.add_argument("--no-browser", dest="browser", action="store_false", help="only print the address")

    for command in (explore, app):
        command.add_argument("students", nargs="*", metavar="STUDENT")
        command.add_argument("--network", metavar="NAME", help="what builds runs of your own network, my_net:make")
        command.add_argument("--data", metavar="NAME", help="a data set or a folder (default: MODEL's, or cluttered)")
        command.add_argument("--image-size", type=int, metavar="N", help="to which its images are resized")
        command.add_argument("--images", type=int, default=200, metavar="N", help="of its test images (default 200)")
        command.add_argument(
            "--factor", type=int, metavar="F", help="at which it opens (default 4, or that of its students)"
        )
        command.add_argument("--budget", metavar="SIZE", help='a line in the memory, e.g. "64KB"')

    commands.add_parser("models", help="list the built-in networks and their usual stride plans")
    return parser


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


def _run(arguments: argparse.Namespace) -> int:
    from redistill_lib.progress import duration
    from redistill_lib.report import refresh_outputs, write_index
    from redistill_lib.sweep import run_notebooks

    given = parameters(arguments.parameter)
    if arguments.in_place and given:
        raise ValueError("--in-place executes notebooks at their defaults only: drop -p, or drop --in-place")
    options = {"html": arguments.html, "progress": sys.stderr.isatty(), "timeout": arguments.timeout}
    options["png"] = arguments.in_place  # committed outputs are read where nothing runs
    results = run_notebooks(arguments.notebooks, given, arguments.output, **options)
    for source, result in zip(arguments.notebooks, results, strict=False):  # fewer results after Ctrl-C
        if arguments.in_place and result.ok:
            refresh_outputs(source, result.notebook)
    rows = [(r.name, r.status, duration(r.seconds), r.error or r.html or r.notebook) for r in results]
    print(_table(("notebook", "status", "time", "where"), rows))
    if arguments.index:
        print(write_index(arguments.index.parent, notebooks=[arguments.output], file=arguments.index))
    return 0 if all(result.ok for result in results) else 1


def _sweep(arguments: argparse.Namespace) -> int:
    from redistill_lib.sweep.command import run_command

    code = run_command(arguments, parameters(arguments.parameter))
    if arguments.index and not arguments.dry_run:
        from redistill_lib.report import write_index

        page = write_index(arguments.index.parent, notebooks=[arguments.output], file=arguments.index)
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(page, flush=True)
    return code


def _runs(arguments: argparse.Namespace) -> int:
    from redistill_lib.store.command import run_command

    return run_command(arguments)


def _memory(arguments: argparse.Namespace) -> int:
    from redistill_lib.memory import memory_bounds, profile_memory
    from redistill_lib.own import named_network

    if arguments.budget and arguments.html is not None:
        raise ValueError("--budget gives a table or JSON: leave out --html")
    if arguments.blocks and (not arguments.budget or arguments.factor > 1):
        raise ValueError("--blocks says what --budget counts; --factor shows all forms of blocks anyway")
    if arguments.budget and arguments.convention == "paper":
        raise ValueError("budgets cannot be counted by paper, which knows layers alone: use fused")
    with contextlib.redirect_stdout(sys.stderr):  # what one's own function prints is no part of the answer
        network, inputs = named_network(arguments.model)
    inputs = _inputs(arguments, inputs)
    teacher, model, changes = _networks(arguments, network, inputs)
    how = {"dtype": arguments.dtype, "in_place_depthwise": arguments.in_place_depthwise}
    try:
        profile = profile_memory(model, *inputs, convention=arguments.convention, **how)
    except Exception as error:
        if arguments.convention == "paper" and isinstance(error, ValueError):
            raise  # it is for the built-in networks alone
        shapes, reason = ", ".join("×".join(map(str, x.shape)) for x in inputs), str(error).partition("\n")[0]
        raise ValueError(
            f"{arguments.model} cannot be followed on {shapes} ({type(error).__name__}: {reason}): fit --image-size "
            "and --in-channels, or --inputs, to it; if it branches on values, rd.profile_memory takes them"
        ) from None
    if arguments.budget and arguments.factor == 1:
        return _print_budget(arguments, model, inputs)
    fits = _fitting(arguments, model, teacher, inputs) if arguments.budget else {}
    bounds = memory_bounds(model, *inputs, dtype=arguments.dtype)
    costs = _tap_costs(arguments, model, teacher, inputs) if arguments.factor > 1 and arguments.html is None else None
    if arguments.json:
        hidden = ("rows", "tensors", "schedule", "runtime")
        record = {f.name: getattr(profile, f.name) for f in fields(profile) if f.name not in hidden}
        record |= {name: getattr(profile, name) for name in ("peak_bytes", "arena_bytes", "best_arena_bytes")}
        record |= {"peak_at": profile.peak_op.name, "flops": profile.flops}
        record |= {"bounds": vars(bounds), "rows": profile.to_frame().to_dict("records")}
        record |= {"changes": [asdict(change) for change in changes]} if changes else {}
        record |= {"taps": costs.to_frame().to_dict("records")} if costs else {}
        record |= {"fits": fits} if fits else {}
        print(json.dumps(record, indent=1, ensure_ascii=False))
    elif arguments.html is not None:
        from redistill_lib.figures import memory_by_layer, memory_timeline

        image = "x".join(dict.fromkeys(map(str, inputs[0].shape[-2:])))
        name = f"{profile.model}-{image}px-{profile.convention}-{profile.dtype}.html"
        file = Path(arguments.html or name)
        file.parent.mkdir(parents=True, exist_ok=True)
        counted = bounds if profile.convention == "fused" else None
        layers = profile.convention == "paper"  # which counts layers, not tensors
        figure = memory_by_layer({"teacher": profile}) if layers else memory_timeline(profile, bounds=counted)
        figure.write_html(file, include_plotlyjs=True)
        print(file)
    else:
        if changes:
            print(f"×{arguments.factor} student:", *changes, sep="\n  ", end="\n\n")
        _print_profile(profile, bounds)
        if costs:
            table = costs.to_frame().to_string(index=False, float_format="%.4g")
            print("", costs, "", table, sep="\n")
        if arguments.factor > 1:
            whole = profile_memory(teacher, *inputs, convention=arguments.convention, **how)
            print("", _verdict(arguments, whole, profile, fits), sep="\n")
    return 1 if fits and all(word == "no" for word in fits.values()) else 0


def _verdict(arguments: argparse.Namespace, teacher: Profile, student: Profile, fits: dict[str, str]) -> str:
    from redistill_lib.memory import format_size, parse_size
    from redistill_lib.sizes import ratio

    before, after = teacher.peak_bytes, student.peak_bytes
    plans = f" ({student.model})" if teacher.model != student.model else ""
    told = f"×{arguments.factor} in the stem{plans}: {format_size(after)}, {ratio(before, after)} the teacher"
    if fits:
        answers = ", ".join(f"in {dtype} {word}" for dtype, word in fits.items())
        told += f"; fits {format_size(parse_size(arguments.budget))} with RED blocks: {answers}"
    return told


def _fitting(
    arguments: argparse.Namespace, model: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...]
) -> dict[str, str]:
    """By dtype, whether a student fits the budget: as it is taught, only without its blocks, or not at all."""
    from redistill_lib.costs import followed
    from redistill_lib.distill import match_taps
    from redistill_lib.memory import parse_size
    from redistill_lib.memory.runtime import RUNTIMES

    runtime = RUNTIMES[arguments.convention]
    runtime = replace(runtime, in_place_depthwise=arguments.in_place_depthwise or runtime.in_place_depthwise)
    plain = followed(model, inputs, runtime)
    forms = {"only without blocks": plain}
    with contextlib.suppress(ValueError):  # no place for blocks, which `_tap_costs` tells
        published, in_place = plain.with_blocks(match_taps(model, teacher, inputs))
        forms = {"yes": published, "only with blocks in place": in_place, **forms}
    budget, found = parse_size(arguments.budget), {}
    for dtype in [arguments.dtype] if arguments.dtype else ["fp32", "int8"]:
        enough = (word for word, form in forms.items() if form.cost(dtype, runtime).needed_bytes <= budget)
        found[dtype] = next(enough, "no")
    return found


def _tap_costs(
    arguments: argparse.Namespace, model: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...]
) -> TapCosts | None:
    """What RED blocks add to the student; nothing but a line on stderr where they have no place."""
    from redistill_lib.costs import tap_costs

    try:
        return tap_costs(model, teacher, example=inputs, dtype=arguments.dtype)
    except ValueError as error:
        print(f"RED blocks are not counted: {error}", file=sys.stderr)
        return None


def _print_budget(arguments: argparse.Namespace, model: nn.Module, inputs: Sequence[Any]) -> int:
    from redistill_lib.budget import fit_to_budget
    from redistill_lib.memory.runtime import FUSED
    from redistill_lib.results import capital

    named = arguments.in_channels in (None, 3) and ":" not in arguments.model
    dtypes = arguments.dtype or ("fp32", "int8")
    convention = replace(FUSED, in_place_depthwise=True) if arguments.in_place_depthwise else arguments.convention
    how: dict[str, Any] = {"dtypes": dtypes, "convention": convention, "blocks": arguments.blocks or "published"}
    fit = fit_to_budget(arguments.model if named else model, arguments.budget, *inputs, **how)
    if arguments.json:
        record = {"answer": str(fit), "plans": fit.to_frame().to_dict("records"), "nearest": asdict(fit.closest)}
        print(json.dumps({**record, "refused": dict(fit.refused)}, indent=1, ensure_ascii=False))
    else:
        print(fit.verdict)
        if fit.fits:
            shown = fit.table()
            print("", _table(list(shown), shown.values.tolist()), sep="\n")
        made = [f"to make it: {fit.call(fit.best)}"] if fit.fits else []
        print("", *(capital(remark) for remark in (*fit.remarks, *made)), sep="\n")
    return 0 if fit.fits else 1


def _print_profile(profile: Profile, bounds: Bounds) -> None:
    from redistill_lib.memory import format_size

    print(profile)
    for name in profile.unfused:
        print(f"counted apart from its input and output, as it is not known: {name}")
    steps = sorted(profile.rows, key=lambda row: -row.live_bytes)[:10]
    rows = [(row.name, row.op, "×".join(map(str, row.shape)), format_size(row.live_bytes)) for row in steps]
    print("", _table(("largest steps", "operator", "output", "live"), rows), sep="\n")
    straight = "row by row, but for the shortcut from"
    until = f" up to {bounds.streaming_name}" if bounds.streaming_name else ""
    least = {
        "in the program's order": bounds.peak_bytes,
        f"best order of execution{'' if bounds.order_exact else ', at least'}": bounds.order_bytes,
        f"largest operator, {bounds.op_name}": bounds.op_bytes,
        f"row by row{until}": bounds.streaming_bytes,
        **({f"{straight} {bounds.shortcut_name}": bounds.without_shortcut_bytes} if bounds.shortcut_name else {}),
        "depthwise convolutions in place": bounds.in_place_depthwise_bytes,
    }
    told = [(name, format_size(size)) for name, size in least.items()]
    print("", _table(("what else it could need (fused)", "peak"), told), sep="\n")


def _inputs(arguments: argparse.Namespace, own: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """What the network is called with, on the meta device: as its function says, as --inputs says, or images."""
    from redistill_lib.models import example_inputs

    own = arguments.inputs or own
    sizes = {"batch": arguments.batch, "in_channels": arguments.in_channels}
    if own:
        if arguments.image_size or any(sizes.values()):
            raise ValueError("the inputs are given, so leave out --image-size, --batch and --in-channels")
        return tuple(x.to("meta") for x in own)
    unet = arguments.model.partition("-")[0] == "unet"
    size = arguments.image_size or [32 if unet else 224]
    given = {name: count for name, count in sizes.items() if count is not None}
    if len(size) > 2 or min([*size, *given.values()]) < 1:
        raise ValueError("--image-size (N or HxW), --batch and --in-channels are whole numbers of 1 or more")
    # A network of one's own is called with images alone, as any built-in classifier is.
    return example_inputs("unet" if unet else "resnet18", (size[0], size[-1]), **given, device="meta")


def _networks(
    arguments: argparse.Namespace, network: str | nn.Module, inputs: tuple[Any, ...]
) -> tuple[nn.Module, nn.Module, tuple[Change, ...]]:
    """Teacher, for a factor above 1 its student, and what changed in one's own; nothing has contents."""
    import torch

    from redistill_lib.models import create_model, student_name
    from redistill_lib.student import derive_student

    factor = arguments.factor
    if not isinstance(network, str):
        own = network.to("meta")
        return own, *((own, ()) if factor == 1 else derive_student(own, factor, example=inputs))
    with torch.device("meta"):
        teacher = create_model(network, in_channels=inputs[0].shape[1])
        if factor == 1:
            return teacher, teacher, ()
        return teacher, create_model(student_name(network, factor), in_channels=inputs[0].shape[1]), ()


def _explore(arguments: argparse.Namespace) -> None:
    from redistill_lib.explorers.command import run_command

    print(run_command(arguments))


def _app(arguments: argparse.Namespace) -> None:
    try:
        from redistill_lib.explorers.app import run_command
    except ModuleNotFoundError as error:
        if error.name != "voila":
            raise
        raise ValueError('the app needs Voilà: pip install "redistill-lab[app]"') from None
    run_command(arguments)


def _models(arguments: argparse.Namespace) -> None:
    from redistill_lib.models import list_models, usual_plan

    plans = {name: usual_plan(name) for name in list_models()}
    print(_table(("model", "usual plan", "total stride"), [(n, plan, plan.total) for n, plan in plans.items()]))


def _table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Aligned columns of plain text; only the first line of each cell."""
    lines = [head, *([str(cell).partition("\n")[0] for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


_COMMANDS = {
    "run": _run, "sweep": _sweep, "runs": _runs, "memory": _memory, "explore": _explore, "app": _app,
    "models": _models,
}  # fmt: skip
