"""A sweep in a report: who is best, score over memory with the Pareto front, means over seeds, its points."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from redistill_lib.looks import colors
from redistill_lib.progress import duration
from redistill_lib.report.text import figure, first_line, pairs, table, text
from redistill_lib.results import level_with, listed, number, over_seeds, pareto_front, score_range, whiskers
from redistill_lib.sweep.manifest import PointStatus, command_of
from redistill_lib.sweep.table import summarise

#: Columns that are a score, the first that a table has counts; and whether less is better.
SCORES = {"test_accuracy": False, "accuracy": False, "fid": True, "test_loss": True, "validation_loss": True}
_DIFFERENCE = ("above", "±")  # of a comparison's runs: points above its reference, and half of the interval
_COSTS = ("peak (KiB)", "peak (MiB)", "peak")
_DOUBLING = {"dtick": math.log10(2), "tickformat": ".3~r"}  # 16, 32, 64 …
_MOST = 12  # columns of a table on the page


@dataclass(frozen=True)
class Means:
    """A sweep's settings, each over its seeds: a row per setting, the best first.

    `frame` has the settings' columns, those of `metrics`, of each also ``<name> low`` and ``<name> high``, `n` and
    `points`, the names of the points.
    """

    frame: pd.DataFrame
    settings: tuple[str, ...]  # that differ
    metrics: tuple[str, ...]
    score: str | None
    cost: str | None
    reference: str = ""  # the arm that `above` is told from

    @property
    def lower(self) -> bool:
        """Whether a lower score is the better one."""
        return bool(SCORES.get(str(self.score).lower()))

    @property
    def front(self) -> pd.DataFrame:
        """Settings that no other beats; none where there is no score or no cost."""
        if self.score is None or self.cost is None:
            return self.frame.head(0)
        return pareto_front(self.frame, self.cost, self.score, lower=self.lower)

    @property
    def half(self) -> pd.Series[float]:
        """Half of each score's interval."""
        return self.frame[f"{self.score} high"] - self.frame[self.score]

    @property
    def most(self) -> float:
        """What a score can be at most: accuracies are shares, or in %."""
        return math.inf if self.lower else 1.0 if self.frame[self.score].max() <= 1 else 100.0

    def name(self, row: Mapping[str, Any]) -> str:
        told = {each: "" if pd.isna(row[each]) else _short(row[each]) for each in self.settings}
        given = {value: f"{each}={value}" for each, value in told.items() if value and each.isupper()}
        return ", ".join((given | {value: given.get(value, value) for value in told.values() if value}).values())

    def told(self, row: Mapping[str, Any], metric: str) -> str:
        """``0.912 ± 0.013``, with as many decimals as all of that metric; no interval that says nothing: of two seeds
        one that is wider than all that an accuracy can be, or reaches below 0 for what cannot."""
        value, high = row[metric], row[f"{metric} high"]
        if value != value:
            return ""
        if metric == "point_seconds":
            return duration(value)
        digits = self._digits(metric)
        shown = f"{value:z,.{digits}f}".replace("-", "−")
        if high != high or high == value:
            return shown
        says_nothing = row.get("n") == 2 and high - value > self._widest(metric, value)
        return f"{shown} (2 seeds: too few)" if says_nothing else f"{shown} ± {number(high - value, digits)}"

    def _widest(self, metric: str, value: float) -> float:
        """Half of the widest interval that says something."""
        shares = self.score is not None and self.most < math.inf
        return self.most / 2 if shares and metric in (self.score, *_DIFFERENCE) else abs(value)

    def _digits(self, metric: str) -> int:
        """Decimals by the largest value, none where all is whole."""
        values = self.frame[metric].abs()
        values, halves = values[values < math.inf], (self.frame[f"{metric} high"] - self.frame[metric]).dropna()
        if (values % 1 == 0).all() and (halves % 1 == 0).all():
            return 0
        return next(digits for digits, least in ((0, 1000), (1, 10), (3, 0.1), (5, 0)) if values.max() >= least)


def means(rows: pd.DataFrame) -> Means | None:
    """A sweep's table, averaged over its seeds (`SEED`, or a recorded `seed`); None of an empty one."""
    if rows.empty:
        return None
    if _COSTS[0] not in rows and pd.api.types.is_numeric_dtype(rows.get("peak_bytes")):
        rows = rows.assign(**{_COSTS[0]: rows["peak_bytes"] / 1024}).drop(columns="peak_bytes")
    over = next((name for name in ("SEED", "seed") if name in rows and rows[name].nunique() > 1), "SEED")
    rows = rows if over in rows else rows.assign(**{over: 0})
    reference = _reference(rows)
    rows = _once(rows, over)
    found = summarise(rows, over)
    groups = [name for name in found.columns if name not in ("metric", "mean", "low", "high", "n")]
    parts = rows.groupby(groups, sort=False, dropna=False) if groups else [((), rows)]
    frame = []
    for key, part in parts:
        values = dict(zip(groups, key, strict=True))
        same = [_same(found[name], value) for name, value in values.items()]
        own = found[pd.concat(same, axis=1).all(axis=1)] if same else found
        row: dict[str, Any] = {**values, "n": len(part), "points": list(dict.fromkeys(part["point"]))}
        for metric, mean, low, high in own[["metric", "mean", "low", "high"]].itertuples(index=False):
            if metric == "accuracy" and {"low", "high"} <= {
                *part
            }:  # which are its interval, of one run over test images
                known = part.dropna(subset=metric)
                _, low, high = astuple(over_seeds(known[metric].tolist(), known["high"] - known[metric]))
            row |= {metric: mean, f"{metric} low": low, f"{metric} high": high}
        frame.append(row)
    table_ = pd.DataFrame(frame)
    metrics = tuple(name for name in rows.columns if name in {*found["metric"]})
    settings = tuple(name for name in groups if table_[name].map(str).nunique() > 1)
    score = next((m for name in SCORES for m in metrics if m.lower() == name), None)
    cost = next((m for name in _COSTS for m in metrics if m == name), None)
    if score:
        table_ = table_.sort_values(score, ascending=bool(SCORES[score.lower()]), ignore_index=True)
    return Means(table_, settings, metrics, score, cost, reference)


def _once(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """A run that several points found, such as their teacher, once, without the parameters in which they differ.

    Its arm's other runs are without them, too: in a grid with holes one may be in a single point. So it is without
    its difference to the reference where that is another run in each of these points.
    """
    if "run" not in rows:
        return rows
    if differences := [name for name in _DIFFERENCE if name in rows]:
        several = rows.groupby("run", dropna=True)[differences].transform("nunique") > 1
        rows = rows.assign(**{n: rows[n].mask(several.any(axis=1)) for n in differences})
    names = [name for name in rows if name.isupper() and name != over]
    rows = rows.astype(dict.fromkeys(names, object))
    for _, arm in rows.groupby("arm" if "arm" in rows else "run", dropna=False):
        kinds = arm.groupby("run")[names].nunique(dropna=False)
        rows.loc[arm.index, [name for name in names if (kinds[name] > 1).any()]] = ""
    return rows[rows["run"].isna() | ~rows.duplicated("run")]


def _reference(rows: pd.DataFrame) -> str:
    """The arm that others are told to be above: it alone is 0 above itself, without an interval."""
    if not {"arm", *_DIFFERENCE} <= {*rows}:
        return ""
    own = rows["above"].eq(0) & rows["±"].isna()
    arms = own.groupby(rows["arm"]).all()
    return ", ".join(map(str, arms.index[arms]))


def _same(column: pd.Series[Any], value: Any) -> pd.Series[bool]:
    return column.isna() if value is None or value != value else column == value


def headline(found: Means) -> str:
    """Which setting has the best mean and at what cost, and how many are worth a look."""
    count = len(found.frame)
    if found.score is None:
        return f"{count} setting{'s' * (count != 1)}"
    best, scores = found.frame.iloc[0].to_dict(), found.frame[found.score]
    name = f"{found.name(best)} with " if found.name(best) else ""
    told = f"{'Lowest' if found.lower else 'Highest'} mean {found.score}: {name}{found.told(best, found.score)}"
    if found.cost is not None and (cost := found.told(best, found.cost)):
        told += f" at {found.cost} {cost}"
    if near := [found.name(row) for row in found.frame[level_with(0, scores, found.half)].to_dict("records")]:
        told += f", not told from {listed(near) if len(near) < 4 else f'{len(near)} others'}"
    if found.cost is None:
        return told
    return f"{told}; {len(found.front)} of {count} settings are on the Pareto front" if count > 1 else told


def pareto_figure(found: Means, links: Mapping[str, str]) -> dict[str, Any] | None:
    """Score over cost as a plotly figure, its front as a line; a point's first `customdata` is its page. None where
    the sweep has no score or cost."""
    if found.score is None or found.cost is None:
        return None
    kind = next((name for name in found.settings if not name.isupper()), None) or next(iter(found.settings), None)
    front = found.front
    line = {"color": "#888888", "width": 2, "dash": "dot", "shape": "vh" if found.lower else "hv"}
    steps = {"x": _numbers(front[found.cost]), "y": _numbers(front[found.score]), "mode": "lines", "line": line}
    traces: list[dict[str, Any]] = [{**steps, "name": "Pareto front", "hoverinfo": "skip"}]
    parts = found.frame.groupby(kind, sort=False, dropna=False) if kind else [("", found.frame)]
    up, down = whiskers(found.frame[found.score], found.half, found.most)
    roles = {value: re.sub(r"\(.*?\)", "", _short(value)) for value, _ in parts}  # without options
    if len({*roles.values()}) < len(roles):
        roles = {value: _short(value) for value in roles}
    tones = colors(roles.values())
    for value, part in parts:
        rows = part.to_dict("records")
        pages = [[links.get(row["points"][0], ""), found.name(row)] for row in rows]
        hover = f"%{{customdata[1]}}<br>{found.score} %{{y:.4g}}<br>{found.cost} %{{x:.4g}}<extra></extra>"
        trace = {"x": _numbers(part[found.cost]), "y": _numbers(part[found.score])}
        tone = tones[roles[value]]
        marker = {"size": 11, "color": tone}
        ends = {"array": _numbers(up[part.index]), "arrayminus": _numbers(down[part.index]), "symmetric": False}
        error = {**ends, "color": tone, "thickness": 1.5, "width": 4}
        look = {"mode": "markers", "marker": marker, "error_y": error, "showlegend": bool(kind)}
        traces.append({**trace, **look, "name": _short(value), "customdata": pages, "hovertemplate": hover})
    better = "lower" if found.lower else "higher"
    finite = found.frame[found.frame[found.score].abs() < math.inf]
    ends_of_y = score_range(finite[found.score], found.half[finite.index], finite["n"], found.most)
    axes = {
        "xaxis": {"title": {"text": f"{found.cost}, lower is better"}, "type": "log", **_DOUBLING},
        "yaxis": {"title": {"text": f"{found.score}, {better} is better"}, "range": ends_of_y},
    }
    legend = {"title": {"text": kind or ""}}
    return {"data": traces, "layout": {**axes, "legend": legend, "height": 420, "margin": {"t": 20, "r": 20}}}


def sweep_section(folder: Path, points: Mapping[str, PointStatus | None], base: Path) -> str:
    """Of a sweep's folder and its points as `planned_statuses` gives them, for a page in `base`."""
    statuses = [status for status in points.values() if status]
    counts = Counter(status.status for status in statuses)
    count = f"{len(points)} point{'s' * (len(points) != 1)}"
    kinds = [f"{counts.pop('ok', 0) or 'none'} ok", *(f"{n} {kind}" for kind, n in sorted(counts.items()))]
    kinds += [f"{len(points) - len(statuses)} to do"] if len(statuses) < len(points) else []
    total = duration(sum(status.seconds for status in statuses))
    parts = [f"<h2>Sweep {text(folder.name)}</h2>", f"<p>{count}: {', '.join(kinds)}; {total} in all</p>"]
    left = sum(status is None or status.status not in ("ok", "running") for status in points.values())
    if left:
        parts.append(f"<p>To go on with what is not ok ({left}): <code>{text(command_of(folder))}</code></p>")
    pages = {name: _pages(folder, status, base) for name, status in points.items() if status}
    links = {name: [*own.values()][-1] for name, own in pages.items() if own}
    if found := means(_rows(folder)):
        drawn = pareto_figure(found, links)
        parts.append(f"<h3>{text(headline(found))}</h3>")
        parts.append(figure(drawn, "live") + "<p>Click a point to see its notebook.</p>" if drawn else "")
        parts.append(_table(found, links))
    rows = [_row(name, status, pages.get(name, {})) for name, status in points.items()]
    points_table = table(pd.DataFrame(rows, columns=["point", "status", "last execution"]), escape=False)
    bad = " open" if any(status and not status.ok for status in points.values()) else ""
    parts.append(f"<details{bad}><summary>Each point</summary>{points_table}</details>")
    return "\n".join(parts)


def _pages(folder: Path, status: PointStatus, base: Path) -> dict[str, str]:
    """The page of each of a point's notebooks in their order, or the notebook itself where it has none."""
    several = len(status.notebooks) > 1
    names = {stem: f"{status.name}-{stem}" for stem in status.notebooks} if several else {status.name: status.name}
    files = {
        stem: next((file for end in ("html", "ipynb") if (file := folder / f"{name}.{end}").exists()), None)
        for stem, name in names.items()
    }
    return {stem: quote(Path(os.path.relpath(f, base)).as_posix()) for stem, f in files.items() if f}


def _row(name: str, status: PointStatus | None, pages: Mapping[str, str]) -> tuple[str, str, str]:
    """A point, how it stands, and how long its last execution took; links and why it failed beside its name."""
    linked = {stem: f'<a href="{page}">{text(stem)}</a>' for stem, page in pages.items()}
    shown = linked.pop(name, text(name)) + "".join(f"<p>{link}</p>" for link in linked.values())
    if status is None:
        return shown, "to do", ""
    why = f"<p class=failed>{text(first_line(status.error))}</p>" if status.error else ""
    if status.status == "interrupted":  # which is no fault
        why = ""
    return shown + why, f"<span class={text(status.status)}>{text(status.status)}</span>", duration(status.seconds)


def _rows(folder: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(folder / "table.parquet")
    except (OSError, ValueError):  # none is done, or it is no table
        return pd.DataFrame()


def _table(found: Means, links: Mapping[str, str]) -> str:
    best, rows = found.front.index, []
    first = [m for m in (found.score, found.cost) if m]
    others = [m for m in found.metrics if found.frame[m].nunique() > 1 and m not in first]
    metrics = [*first, *others][: max(_MOST - len(found.settings), 2)]
    for place, row in found.frame.iterrows():
        link = links.get(row["points"][0], "")
        name = text(found.name(row) or row["points"][0])
        cells = {"setting": f'<a href="{link}">{name}</a>' if link else name}
        cells["front"] = "●" if place in best else ""
        cells |= {metric: text(found.told(row, metric)) for metric in metrics}
        rows.append({**cells, "n": str(row["n"])})
    same = {n: found.frame[n].iloc[0] for n in found.frame.columns if n.isupper() and n not in found.settings}
    shared = f"<p>The same in all: {pairs(same)}</p>" if same else ""
    note = "<p>Mean ± half of the 95 % interval over <i>n</i> rows, seeds as a rule, "
    note += "and of an accuracy no narrower than over test images; of two seeds none that is wider than "
    note += "all that an accuracy can be, or, of what is none, than twice the value. ● on the Pareto front.</p>"
    if "above" in metrics and found.reference:
        note += f"<p><i>above</i>: points above {text(found.reference)}, in pairs of one seed and one test image; "
        note += "empty where a run has several such partners.</p>"
    return table(pd.DataFrame(rows).rename(columns=text), escape=False) + note + shared


def _numbers(values: pd.Series[float]) -> list[float | None]:
    """As JSON can say them: it has neither NaN nor infinity."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else re.sub(r"\s+", " ", str(value))
