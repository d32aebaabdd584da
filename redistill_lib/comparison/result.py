"""What a comparison found, in numbers and words."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from redistill_lib.checks import hint
from redistill_lib.comparison.lengths import Budget
from redistill_lib.comparison.trials import packed, unpacked
from redistill_lib.memory import format_size
from redistill_lib.results import Estimate, crossed_interval, listed, number
from redistill_lib.runs import damaged, write_text

_TABLES, _TOLD = ("runs", "trials", "curves"), ("reference", "name")
#: Columns of text, even where it says "None" or "007".
_NAMES = "arm", "model", "structure", "methods", "init", "run", "error"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found. `runs` has a row per run, `trials` one per candidate, with the `error` of those that
    diverged, `curves` one per epoch of a run.

    `right` says of each arm, run by run, which test images it knows: seeds × images. Accuracies are in %, seconds the
    processor's. `reference` is the arm that the others are measured by.
    """

    runs: pd.DataFrame
    trials: pd.DataFrame
    curves: pd.DataFrame
    right: Mapping[str, NDArray[np.bool_]]
    budget: Budget
    reference: str
    name: str  # of the data

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(name for name in self.right if name != "teacher")

    @property
    def seeds(self) -> int:
        return int(self.runs["seed"].nunique())

    def network(self, arm: str) -> str:
        """An arm's network in words: its name, width and images, where those are not the usual ones. Networks of your
        own that are of one class but built otherwise are numbered."""
        row = self.runs[self.runs["arm"] == arm].iloc[0]
        built = [*dict.fromkeys(self.runs.loc[self.runs["model"] == row["model"]].get("structure", ()))]
        which = f" {built.index(row['structure']) + 1}" if len(built) > 1 else ""
        width = "" if row["width"] == 1 else f" ×{row['width']:g}"
        size = "" if pd.isna(row["image_size"]) else f" at {row['image_size']:.0f} px"
        return f"{row['model']}{which}{width}{size}"

    def way(self, arm: str) -> Literal["as wide", "narrower", "smaller images"]:
        """How its network comes to its peak, as against the widest of the arms."""
        row = self.runs[self.runs["arm"] == arm].iloc[0]
        if not pd.isna(row["image_size"]):
            return "smaller images"
        widest = self.runs.loc[self.runs["arm"].isin(self.arms), "width"].max()
        return "narrower" if row["width"] < widest else "as wide"

    def methods(self, arm: str) -> str:
        """The names of its methods, added up, "red+kd" say; "" of an arm that has none."""
        return str(self.runs.loc[self.runs["arm"] == arm, "methods"].iloc[0])

    def taught(self, arm: str) -> bool:
        return bool(self.runs.loc[self.runs["arm"] == arm, "taught"].any())

    def accuracy(self, arm: str) -> Estimate:
        """Its mean test accuracy, and the 95 % interval for other seeds and other test images; of one seed, for
        other test images alone."""
        return _share(100.0 * self._right(arm))

    def difference(self, a: str | Sequence[str], b: str | Sequence[str]) -> Estimate:
        """By how many points `a` is above `b`: of one seed, one teacher and one test image each; of several arms on
        either side, by their means."""
        return crossed_interval(100.0 * (self._mean(a) - self._mean(b)))

    def _mean(self, arms: str | Sequence[str]) -> NDArray[np.float64]:
        return np.mean([self._right(arm) for arm in ([arms] if isinstance(arms, str) else arms)], axis=0)

    def _right(self, arm: str) -> NDArray[np.bool_]:
        if arm not in self.right:
            raise ValueError(f"there is no arm {arm!r}; there are {listed(self.right)}{hint(arm, self.right)}")
        return self.right[arm]

    @property
    def table(self) -> pd.DataFrame:
        """A row per arm, the best first.

        `recovered` is the share of the gap between reference and teacher, in %, NaN where there may be none;
        ``training (MiB)`` what a step of training holds at once, weights and all, NaN where that was not measured.
        """
        rows = []
        gap = self._gap()
        for arm in sorted(self.arms, key=lambda arm: -self.accuracy(arm).value):
            mean, over = self.accuracy(arm), self.difference(arm, self.reference)
            runs = self.runs[self.runs["arm"] == arm]
            first = runs.iloc[0]
            row = {"arm": arm, "accuracy": mean.value, "low": mean.low, "high": mean.high, "above": over.value}
            row["±"] = over.half if arm != self.reference else math.nan
            row["recovered"] = 100 * over.value / gap
            row |= {name: first[name] for name in ("epochs", "seconds", "for_the_teacher")}
            rows.append(row | _costs(first, runs["latency"].median()))
        return pd.DataFrame(rows)

    @property
    def by_seed(self) -> pd.DataFrame:
        """A row per run, for a table of many comparisons: a teacher's that was trained here, then the best arm's.

        Units are those of `table`. `low` and `high`, and `±` of the difference to the reference's run of this seed,
        are 95 % intervals for other test images.
        """
        rows = []
        runs = {arm: its.reset_index(drop=True) for arm, its in self.runs.groupby("arm", sort=False)}
        for arm in [*["teacher"] * ("teacher" in runs), *self.table["arm"]]:
            for k, run in runs[arm].iterrows():
                ours, theirs = (100.0 * self._right(name)[[k]] for name in (arm, self.reference))
                one, over = _share(ours), crossed_interval(ours - theirs)
                row = {name: run.get(name) for name in ("arm", "seed", "model", "methods", "width", "image", "init")}
                row |= {"accuracy": one.value, "low": one.low, "high": one.high, "above": over.value}
                row |= {"±": over.half if arm != self.reference else math.nan, "epochs": run["epochs"]}
                rows.append(row | _costs(run, run["latency"]) | {"run": run["run"]})
        return pd.DataFrame(rows)

    def _gap(self) -> float:
        """By how many points the teacher is above the reference; NaN where that is not told from 0."""
        over = self.difference("teacher", self.reference) if "teacher" in self.right else None
        return over.value if over and over.decided and over.value > 0 else math.nan

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def headline(self) -> str:
        """Who is best at this budget, by how much, and who cannot be told from it.

        Each pair is told apart by its own 95 % interval: of 20 rivals that are as good, one looks worse by chance.
        """
        table = self.table
        best, reached = table["arm"][0], f"{table['accuracy'][0]:.1f} %"
        rivals = [arm for arm in table["arm"][1:] if not self.difference(best, arm).decided]
        peak = table["peak (KiB)"].max() * 1024
        memory = "" if math.isnan(peak) else f"{format_size(int(peak))} and "
        gap = self.difference(best, self.reference)
        told = f"Within {memory}{self.budget} each, {best} reaches {reached}"
        if best != self.reference:
            spread = "" if self.seeds == 1 or math.isnan(gap.half) else f" ± {number(gap.half, 1)}"
            told += f", {number(gap.value, 1)}{spread} points above {self.reference}"
        if self.seeds == 1:
            return f"{told}; one seed"
        if rivals:
            told += f"; {self.seeds} seeds cannot tell it from {listed(rivals)}"
        return told

    def __repr__(self) -> str:
        return f"Comparison({self.headline()})"

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder, for `load`: three tables as CSV, a bit for each test image, and what they are of."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TABLES:
            write_text(folder / f"{name}.csv", getattr(self, name).to_csv(index=False))
        bits = {arm: [packed(run) for run in runs] for arm, runs in self.right.items()}
        images = {arm: runs.shape[1] for arm, runs in self.right.items()}
        told = {"budget": asdict(self.budget), "reference": self.reference, "name": self.name, "images": images}
        write_text(folder / "comparison.json", json.dumps({**told, "right": bits}, indent=1))
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """What `save` wrote. FileNotFoundError or ValueError where that is missing or damaged."""
        folder = Path(folder)
        try:
            told = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
            tables = {name: _table(folder / f"{name}.csv") for name in _TABLES}
            right = {
                arm: np.stack([unpacked(run, told["images"][arm]) for run in runs])
                for arm, runs in told["right"].items()
            }
            for arm, name in itertools.product(right, ("runs", "curves")):
                if arm != "teacher" and arm not in {*tables[name].get("arm", ())}:
                    raise ValueError(f"{name}.csv has no row of {arm}")
            return cls(**tables, right=right, budget=Budget(**told["budget"]), **{k: told[k] for k in _TOLD})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{folder} holds no comparison: {error.filename} is missing") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(damaged(folder / "comparison.json", error)) from None


def _share(right: NDArray[np.floating[Any]]) -> Estimate:
    """The mean of runs × images that are 0 or 100 each. Where all are alike it is known to 3 images."""
    found = crossed_interval(right)
    half = 300.0 / right.shape[1] if found.half == 0 else found.half
    return Estimate(found.value, found.value - half, found.value + half)


def _costs(run: pd.Series[Any], latency: float) -> dict[str, float]:
    """What a run's network takes, as a reader counts it."""
    found = {"parameters": run["parameters"], "peak (KiB)": run["peak_bytes"] / 1024}
    found |= {"mult-adds (M)": run["multiply_adds"] / 1e6, "latency (ms)": 1000 * latency}
    return found | {"training (MiB)": (run.get("training_bytes") or math.nan) / 2**20}


def _table(file: Path) -> pd.DataFrame:
    """What a CSV holds, names as they are; nothing, where no arm had several candidates to try."""
    with contextlib.suppress(pd.errors.EmptyDataError):
        empty = {column: [""] for column in pd.read_csv(file, nrows=0) if column not in _NAMES}
        return pd.read_csv(file, dtype=dict.fromkeys(_NAMES, str), keep_default_na=False, na_values=empty)
    return pd.DataFrame()
