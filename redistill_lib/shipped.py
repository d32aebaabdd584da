"""Numbers that come with the package: what the authors of ReDistill published, and what we measured. No torch.

They are found wherever a notebook lies, from a clone as from an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from redistill_lib.checks import check_type, hint
from redistill_lib.results import listed

_HERE = Path(__file__).parent


def published(name: str) -> pd.DataFrame:
    """What the authors give: ``results``, ``footprints`` or ``curves``; data/README.md has their columns and faults.

    Raises ValueError for another name. Source: github.com/mengtang-lab/ReDistill, commit dee92a4.

    >>> published("results")[["dataset", "model", "method", "top1"]].head(2)
        dataset     model   method   top1
    0  imagenet  resnet18  teacher  69.75
    1  imagenet  resnet18  student  61.79
    """
    names = sorted(file.stem for file in (_HERE / "published").glob("*.csv"))
    if check_type("name", name, str) not in names:
        raise ValueError(f"nothing published is called {name!r}; there are {listed(names)}{hint(name, names)}")
    return pd.read_csv(_HERE / "published" / f"{name}.csv")


def measured(name: str | None = None) -> Path:
    """The folder of our own results, or what in it has that name: a folder for `Comparison.load`, or a file of runs.

    docs/results.md says which benchmark made each. Raises ValueError for a name that is not there.

    >>> measured("cifar10").name, (measured() / "cifar10" / "runs.csv").exists()
    ('cifar10', True)
    """
    folder = _HERE / "measured"
    if name is None:
        return folder
    names = sorted(entry.name for entry in folder.iterdir() if entry.name[0] not in "._")
    if check_type("name", name, str) not in names:
        raise ValueError(f"nothing measured is called {name!r}; there are {listed(names)}{hint(name, names)}")
    return folder / name
