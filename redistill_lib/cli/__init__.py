"""The `redistill` command: run notebooks and sweeps, profile memory, list runs and models.

Exit codes: 0 all well, 1 a notebook failed or was interrupted, or nothing fits a budget, 2 the command was wrong,
128 + the number of a signal that ended it (130 for Ctrl-C).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from redistill_lib.cli.parser import parser
from redistill_lib.cli.text import table
from redistill_lib.sweep.arguments import parameters, with_negative_values


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one sentence on stderr, no traceback."""
    arguments = parser().parse_args(with_negative_values(argv))
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


def _run(arguments: argparse.Namespace) -> int:
    from redistill_lib.progress import duration
    from redistill_lib.report import refresh_outputs, write_index
    from redistill_lib.sweep import run_notebooks

    given = parameters(arguments.parameter)
    if arguments.in_place and given:
        raise ValueError("--in-place executes notebooks at their defaults only: drop -p, or drop --in-place")
    options = {"html": arguments.html, "progress": sys.stderr.isatty(), "timeout": arguments.timeout}
    options["png"] = arguments.in_place  # committed outputs are read where nothing runs
    results = run_notebooks(arguments.notebooks, given, arguments.output, jobs=arguments.jobs, **options)
    sources = {Path(source).stem: source for source in arguments.notebooks}
    for result in results if arguments.in_place else ():
        if result.ok:
            refresh_outputs(sources[result.name], result.notebook)
    rows = [(r.name, r.status, duration(r.seconds), r.error or r.html or r.notebook) for r in results]
    print(table(("notebook", "status", "time", "where"), rows))
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
    from redistill_lib.cli.memory import run_command

    return run_command(arguments)


def _explore(arguments: argparse.Namespace) -> None:
    from redistill_lib.explorers.command import run_command

    print(run_command(arguments))


def _export(arguments: argparse.Namespace) -> int:
    from redistill_lib.cli.export import run_command

    return run_command(arguments)


def _fit(arguments: argparse.Namespace) -> int:
    from redistill_lib.cli.fit import run_command

    return run_command(arguments)


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
    print(table(("model", "usual plan", "total stride"), [(n, plan, plan.total) for n, plan in plans.items()]))


_COMMANDS = {
    "run": _run, "sweep": _sweep, "runs": _runs, "memory": _memory, "export": _export, "fit": _fit,
    "explore": _explore, "app": _app,
    "models": _models,
}  # fmt: skip
