"""The words of `redistill sweep`, without what runs it: no other command should wait for that import."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `redistill run` has not."""
    parser.add_argument("grids", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, each on its share of the cores")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster instead, as tcp://host:8786")
    what = "every N-th point from the K-th, for job arrays"
    parser.add_argument("--shard", type=shard, metavar="K/N", help=what)
    parser.add_argument("--failed", action="store_true", help="only points that failed")
    parser.add_argument("--force", action="store_true", help="points that are done, too")
    parser.add_argument("--fail-fast", action="store_true", help="begin no other point once one has failed")
    what = "of a point whose kernel or process died (default 1)"
    parser.add_argument("--retries", type=int, default=1, metavar="N", help=what)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--dry-run", action="store_true", help="list the points and estimate time and disk")
    only.add_argument("--table", action="store_true", help="write the tables of what is done, and run nothing")


def shard(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 0 < int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 1/4 for the first of four")
    return int(first), int(count)


def parameters(pairs: Sequence[Sequence[str]]) -> dict[str, str]:
    """`-p NAME VALUE`, each name once."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"parameter {twice[0]} is given more than once")
    return {name: value.removeprefix(" ") for name, value in pairs}


def with_negative_values(words: Sequence[str] | None) -> list[str]:
    """The words of a command, the value in ``-p LR -1e-3`` and ``--sort -seed`` with a space before it: argparse
    takes it for an option.

    >>> with_negative_values(["-p", "LR", "-1e-3", "-p", "N", "-x"])
    ['-p', 'LR', ' -1e-3', '-p', 'N', '-x']
    """
    found = list(sys.argv[1:] if words is None else words)
    for k in range(1, len(found)):
        if found[k - 1] == "--sort" and found[k][:1] == "-" and found[k][:2] != "--":
            found[k] = f" {found[k]}"
    for k in range(2, len(found)):
        number = found[k].startswith("-") and found[k].lstrip("-.")[:1].isdecimal()
        if found[k - 2] in ("-p", "--parameter") and number:
            found[k] = f" {found[k]}"
    return found
