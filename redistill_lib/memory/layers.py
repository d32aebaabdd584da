"""The layers of a network, as a reader counts them, in the steps of its profile."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import pandas as pd

from redistill_lib.memory.profile import Profile, Row, red_place


def red_runs(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """First step of each RED block, and the step after its last."""
    groups = itertools.groupby(range(len(rows)), key=lambda k: red_place(rows[k].module))
    runs = [(side, [*steps]) for (_, side), steps in groups]
    return [(steps[0], steps[-1] + 1) for side, steps in runs if side]


def block_names(rows: Sequence[Row]) -> list[str]:
    """The layer of the network that each row belongs to: ``layer1.0`` for ``layer1.0.conv2`` and its RED blocks.

    What is computed outside any module, as the concatenations of a U-Net, belongs to the layer that follows.
    """
    inside: defaultdict[str, set[str]] = defaultdict(set)  # what stands below each first part of a path
    for row in rows:
        if row.module and not red_place(row.module)[1]:
            first, _, below = row.module.partition(".")
            inside[first].add(below)
    names: list[str | None] = []
    for row in rows:
        first, *rest = row.module.split(".")
        others = inside.get(first, set()) - {""}
        # A short sequence of single operators is one layer: the head of a classifier, the tail of a U-Net.
        flat = len(inside) > 1 and len(others) <= 3 and not any("." in path for path in others)
        numbered = rest and rest[0].isdigit() and not flat
        names.append((f"{first}.{rest[0]}" if numbered else first) or None)
    return pd.Series(names, dtype=object).bfill().ffill().fillna(pd.Series([row.op for row in rows])).tolist()


def layers_of(profile: Profile) -> dict[str, int]:
    """The most bytes that are alive in each layer of the network and in the RED blocks on it, in order of execution.

    Under the ``paper`` convention these are the authors' entries.
    """
    paper = profile.convention == "paper"
    names = [row.module for row in profile.rows] if paper else block_names(profile.rows)
    live = pd.Series([row.live_bytes for row in profile.rows], index=names)
    return live.groupby(level=0, sort=False).max().to_dict()
