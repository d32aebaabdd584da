"""Tables, a sentence and a figure of what diffusion_table.py has found.

    python benchmarks/diffusion_report.py           of benchmarks/results/diffusion, or of the folder given

Reads runs.csv, prints the tables and writes kid.png (which needs Chrome or Chromium).
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

from redistill_lib.figures.theme import INK, faint, finish, name_rows
from redistill_lib.memory import format_size
from redistill_lib.results import Estimate, interval, listed, number, run_difference

REAL = "training images"  # among the arms, where they stand for what can be reached
COLORS = ("#CC4C00", "#0072B2", "#E6B03C", "#117733", "#AA4499")  # of networks
MARKS = {False: ("circle-open", "learns alone"), True: ("diamond", "taught")}


def told(estimate: Estimate, digits: int = 2) -> str:
    half = "" if math.isnan(estimate.half) else f" ± {number(estimate.half, digits)}"
    return number(estimate.value, digits) + half


class Scores:
    """What a row per run and judge says of arms; the first arm is the reference, and the first judge orders them."""

    def __init__(self, frame: pd.DataFrame):
        self.frame, self.judges = frame, [*frame["judge"].unique()]
        every = [name for name in frame["arm"].unique() if name not in ("teacher", REAL)]
        self.reference, self.arms = every[0], sorted(every, key=lambda arm: self.mean(arm).value)
        self.seeds = frame["seed"].nunique()

    def runs(self, arm: str, judge: str | None = None, score: str = "kid") -> pd.Series[float]:
        its = self.frame[(self.frame["arm"] == arm) & (self.frame["judge"] == (judge or self.judges[0]))]
        return its.set_index("seed")[score]

    def mean(self, arm: str, judge: str | None = None, score: str = "kid") -> Estimate:
        return interval(self.runs(arm, judge, score).tolist())

    def difference(self, a: str, b: str, judge: str | None = None) -> Estimate:
        """By how much the KID of `a` is above that of `b`, in pairs of one teacher."""
        return run_difference(self.runs(a, judge), self.runs(b, judge))

    def kids(self) -> pd.DataFrame:
        """KID by each judge, on its own scale, and how far it is above the reference's."""
        columns: dict[str, dict[str, str]] = {}
        for judge in self.judges:
            size = max(abs(self.mean(arm, judge).value) for arm in self.arms)
            digits = max(2, 1 - math.floor(math.log10(size)))
            means = {arm: self.mean(arm, judge) for arm in (*self.arms, "teacher", REAL)}
            above = {arm: self.difference(arm, self.reference, judge) for arm in self.arms if arm != self.reference}
            columns[judge] = {arm: told(value, digits) for arm, value in means.items()}
            columns[f"{judge}, above"] = {arm: told(value, digits) for arm, value in above.items()}
        return pd.DataFrame(columns).reindex([*self.arms, "teacher", REAL]).fillna("")

    def others(self) -> pd.DataFrame:
        """FID by each judge; precision, recall by the first; what is remembered, by pixels; and what an arm takes."""
        rows = {}
        for arm in (*self.arms, "teacher", REAL):
            row = {f"FID {judge}": told(self.mean(arm, judge, "fid")) for judge in self.judges}
            row |= {score: told(self.mean(arm, score=score)) for score in ("precision", "recall")}
            row["near"] = told(self.mean(arm, "pixels", "near"))
            one = self.frame[self.frame["arm"] == arm].iloc[0]
            if arm != REAL:
                row["loss"] = number(self.mean(arm, score="validation_loss").value, 4)
                names = "steps", "seconds", "for_the_teacher", "parameters"
                row |= {name: f"{one[name]:,.0f}" for name in names}
                row["KiB"] = f"{one['peak_bytes'] / 1024:.1f}"
            rows[arm] = row
        return pd.DataFrame.from_dict(rows, "index").fillna("")

    def agreement(self) -> pd.DataFrame:
        """How alike two judges rank the arms, by their mean KIDs."""
        rows = []
        for a, b in itertools.combinations(self.judges, 2):
            x, y = ([self.mean(arm, judge).value for arm in self.arms] for judge in (a, b))
            if len(x) > 2:
                pair = {"Spearman": stats.spearmanr(x, y).statistic, "Kendall": stats.kendalltau(x, y).statistic}
                rows.append({"judges": f"{a}, {b}", **pair})
        return pd.DataFrame(rows)

    def headline(self) -> str:
        best, *others = self.arms
        its = self.frame[self.frame["arm"].isin(self.arms)]
        text = f"Within {format_size(int(its['peak_bytes'].max()))} and {its['budget'].max():g} s each, {best} has "
        text += f"the lowest KID ({number(self.mean(best).value)} by {self.judges[0]}"
        if best != self.reference:
            text += f", {self.difference(self.reference, best)} below {self.reference}"
        text += ")"
        if self.seeds == 1:
            text += "; one seed"
        elif near := [arm for arm in others if not self.difference(best, arm).decided]:
            text += f"; {self.seeds} seeds cannot tell it from {listed(near)}"
        first = [min(self.arms, key=lambda arm: self.mean(arm, judge).value) for judge in self.judges]
        text += f"; {first.count(best)} of {len(first)} judges put it first"
        if len(ranks := self.agreement()):
            low, high = (number(value) for value in (ranks["Spearman"].min(), ranks["Spearman"].max()))
            text += f", and their rankings correlate by {low}{f' to {high}' if high > low else ''}"
        return text


def dots(scores: Scores) -> go.Figure:
    """KID of every arm by every judge: a mark for the mean, a line for its interval, dots for runs."""
    figure = make_subplots(1, len(scores.judges), shared_yaxes=True, horizontal_spacing=0.03)
    its = scores.frame.drop_duplicates("arm").set_index("arm")
    networks = {
        arm: f"{its.loc[arm, 'network']}, {its.loc[arm, 'ch']:.0f} channels" for arm in its.index if arm != REAL
    }
    drawn = dict.fromkeys(networks[arm] for arm in its.index if arm in scores.arms)
    tones = dict(zip(drawn, itertools.cycle(COLORS), strict=False))
    for column, judge in enumerate(scores.judges, 1):
        place = {"row": 1, "col": column}
        for k, arm in enumerate(scores.arms):
            tone, symbol = tones[networks[arm]], MARKS[bool(its.loc[arm, "taught"])][0]
            runs, mean = scores.runs(arm, judge), scores.mean(arm, judge)
            dot = {"color": faint(tone), "size": 6}
            figure.add_scatter(x=runs, y=[k] * len(runs), mode="markers", marker=dot, **place)
            mark = {"color": tone, "size": 11, "symbol": symbol, "line": {"width": 2, "color": tone}}
            spread = {"array": [mean.half], "color": tone, "thickness": 1.5, "width": 4}
            figure.add_scatter(x=[mean.value], y=[k], mode="markers", marker=mark, error_x=spread, **place)
        for arm, dash in (("teacher", "dash"), (REAL, "dot")):
            line = {"color": INK, "width": 1.5, "dash": dash}
            figure.add_vline(scores.mean(arm, judge).value, line=line, layer="below", **place)
        above = {"x": 0.5, "xref": "x domain", "y": 1, "yref": "y domain", "yanchor": "bottom"}
        figure.add_annotation(text=f"<b>{judge}</b>", **above, **place)
        figure.update_xaxes(title="KID", nticks=4, **place)
    figure.update_traces(showlegend=False)
    name_rows(figure, [f"<b>{arm}</b>" for arm in scores.arms])
    keys = [(name, {"color": tone, "symbol": "square"}) for name, tone in tones.items()]
    keys += [
        (name, {"color": INK, "symbol": symbol, "line": {"width": 2, "color": INK}})
        for symbol, name in MARKS.values()
    ]
    for name, mark in keys:
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker={"size": 11, **mark})
    note = f"{scores.frame['settings.n_fake'].iloc[0]:,} images each, against as many for test; lower is better. "
    many = f"Line: 95 % t-interval over {scores.seeds} seeds; dots: runs"
    note += f"{'One run of each' if scores.seeds == 1 else many}. Dashed: teacher; dotted: training images."
    size = {"plot": 20 + 32 * len(scores.arms), "margins": (190, 26, 16, 60)}
    return finish(figure, scores.headline(), note, **size, legend=True)


def report(scores: Scores, folder: Path) -> None:
    print(f"{scores.headline()}.")
    for table in (scores.kids(), scores.others(), scores.agreement().round(2)):
        print(f"\n{table.to_string()}" if len(table) else "")
    dots(scores).write_image(folder / "kid.png", scale=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Path(__file__).parent / "results" / "diffusion"
    parser.add_argument("folder", nargs="?", type=Path, default=usual)
    folder = parser.parse_args().folder
    if not (folder / "runs.csv").exists():
        raise SystemExit(f"there is no {folder}/runs.csv; diffusion_table.py makes it")
    report(Scores(pd.read_csv(folder / "runs.csv")), folder)


if __name__ == "__main__":
    main()
