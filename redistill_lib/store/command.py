"""`redistill runs`: its words, what it prints, what it asks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", nargs="?", type=Path, default=Path("runs"), metavar="ROOT", help="default runs")
    what = 'only those, as "seed<3", "status=failed", "methods~red" (a part of it), "error!="; may be repeated'
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help=what)
    parser.add_argument("--sort", metavar="A,-B", help="by these columns; with a minus the largest first")
    what = "these alone, such as id,name,model.name,recipe.steps; all for all that differ"
    parser.add_argument("--columns", metavar="A,B", help=what)
    act = parser.add_mutually_exclusive_group()
    what = "what differs between these runs (parts of ids will do)"
    act.add_argument("--compare", nargs="+", metavar="ID", help=what)
    what = "delete these runs, or those of --where, after asking"
    act.add_argument("--delete", nargs="*", metavar="ID", help=what)
    parser.add_argument("--yes", action="store_true", help="delete without asking, for scripts")


def run_command(arguments: argparse.Namespace) -> int:
    """List, compare or delete; returns the exit code."""
    from redistill_lib.store.choose import by_id, ordered, where
    from redistill_lib.store.tables import listed_runs

    root = arguments.root
    found = listed_runs(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: training in a notebook makes it, or name another")
    if arguments.yes and arguments.delete is None:
        raise ValueError("--yes goes with --delete")
    if arguments.columns and (arguments.compare is not None or arguments.delete is not None):
        raise ValueError("--columns is for the list: leave it out with --compare and --delete")
    if arguments.delete == [] and not arguments.where:
        raise ValueError("--delete wants ids, or --where with a condition: it never means all runs")
    if found.empty and arguments.compare is None and not arguments.delete:
        print(f"no training runs below {root}; in another store: redistill runs FOLDER")
        return 0
    chosen = where(found, arguments.where)
    if arguments.sort:
        chosen = ordered(chosen, arguments.sort)
    if arguments.compare is not None:
        return _compare(root, by_id(chosen, arguments.compare))
    if arguments.delete is not None:
        return _delete(root, by_id(chosen, arguments.delete) if arguments.delete else chosen, arguments.yes)
    if chosen.empty:
        print(f"none of {len(found)} runs below {root} meets {' and '.join(arguments.where)}")
        return 0
    _list(chosen, arguments.columns)
    return 0


def _list(runs: pd.DataFrame, columns: str | None) -> None:
    from redistill_lib.store.choose import column
    from redistill_lib.store.tables import MOST, RunTable, readable, run_tables

    if columns and columns != "all":
        names = list(dict.fromkeys(column(runs, name) for name in columns.split(",")))
        tables = {"": RunTable(readable(runs[names].convert_dtypes()), {})}
    else:
        tables = run_tables(runs, None if columns else MOST)
    for kind, table in tables.items():
        if len(tables) > 1:
            print(f"{kind}:")
        print(_text(table.runs))
        if table.same:
            print("the same in all:", *(f"{name}={value}" for name, value in table.same.items()))
        if table.more:
            print(f"they differ in more (--columns all): {', '.join(table.more)}")


def _text(table: pd.DataFrame) -> str:
    """Aligned columns, texts to the left; only the first line of each cell."""
    import pandas as pd

    from redistill_lib.store.tables import column_texts

    most = {"id": 120}
    cells = [[name, *(_cell(told, most.get(name, 40)) for told in column_texts(table[name]))] for name in table]
    numbers = [pd.to_numeric(table[name].replace("", 0), errors="coerce").notna().all() for name in table]
    widths = [max(map(len, column)) for column in cells]
    lined = [
        [cell.rjust(width) if right else cell.ljust(width) for cell in column]
        for column, width, right in zip(cells, widths, numbers, strict=True)
    ]
    return "\n".join("  ".join(row).rstrip() for row in zip(*lined, strict=True))


def _cell(text: str, most: int) -> str:
    text = text.partition("\n")[0]
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _compare(root: Path, chosen: pd.DataFrame) -> int:
    import pandas as pd

    from redistill_lib.runs import Run
    from redistill_lib.store.compare import differences
    from redistill_lib.store.tables import column_texts

    if len(chosen) < 2:
        raise ValueError("--compare wants two runs or more")
    table = differences([Run.load(root / name) for name in chosen["id"]])
    print("\n".join(f"{letter}: {name}" for letter, name in zip(_letters(chosen), chosen["id"], strict=True)))
    if table.empty:
        print("nothing differs")
        return 0
    table = table.set_axis([*_letters(chosen), *(["B − A"] if "difference" in table else [])], axis="columns")
    rows = {name: column_texts(values) for name, values in zip(table.index, table.to_numpy(), strict=True)}  # by row
    print(_text(pd.DataFrame.from_dict(rows, "index", columns=table.columns).rename_axis("").reset_index()))
    return 0


def _letters(runs: pd.DataFrame) -> list[str]:
    return [chr(ord("A") + number) if number < 26 else str(number + 1) for number in range(len(runs))]


def _delete(root: Path, chosen: pd.DataFrame, yes: bool) -> int:
    import pandas as pd

    from redistill_lib.sizes import format_size
    from redistill_lib.store.delete import delete, doomed, points_with

    if chosen.empty:
        print(f"no run below {root} is meant: nothing is deleted")
        return 0
    runs = doomed(root, chosen["id"], chosen["status"])
    rows = [(run.id, run.status, format_size(run.bytes), run.told) for run in runs]
    print(_text(pd.DataFrame(rows, columns=["id", "status", "size", ""])))
    for sweep, points in points_with(root, [run.id for run in runs if not run.holder]).items():
        more = f" and {len(points) - 2} more" if len(points) > 2 else ""
        print(f"sweep {sweep} names such runs in {', '.join(points[:2])}{more}: run again, a point trains them anew")
    if not yes and not sys.stdin.isatty():
        raise ValueError("--delete asks first, and nobody can answer here: add --yes")
    going = [run for run in runs if not run.holder]
    count = f"{len(going)} run{'s' * (len(going) != 1)}"
    if going and not yes and not _agreed(f"delete {count}, {format_size(sum(run.bytes for run in going))}? [y/N] "):
        print("nothing is deleted")
        return 1
    gone = [run for run in going if delete(run)]
    print(f"deleted {len(gone)} of {len(runs)}, {format_size(sum(run.bytes for run in gone))}")
    return 0 if len(gone) == len(runs) else 1


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
