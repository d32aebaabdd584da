"""The `redistill` command: run notebooks and sweeps, list runs and models.

Exit codes: 0 all well, 1 a notebook failed or was interrupted, 2 the command itself was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from redistill_lib import __version__

if TYPE_CHECKING:
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

    models = commands.add_parser("models", help="list the built-in networks and their usual stride plans")
    models.set_defaults(command=_models)
    return parser


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
    from redistill_lib.report import compare_runs
    from redistill_lib.runs import load_runs

    if not arguments.root.is_dir():
        raise FileNotFoundError(f"no folder {arguments.root}: training in a notebook makes it, or name another")
    runs, same = compare_runs(load_runs(arguments.root))
    if runs.empty:
        print(f"no training runs below {arguments.root}")
    else:
        print(runs.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
        print(*("the same in all:", *(f"{name}={value}" for name, value in same.items())) if same else ())
    return 0


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
