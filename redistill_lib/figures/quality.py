"""How good the generated images are for the memory they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from redistill_lib.figures.comparison import difference, interval
from redistill_lib.figures.theme import (
    INK,
    MUTED,
    WIDTH,
    capital,
    color,
    faint,
    finish,
    label,
    listed,
    number,
    role_key,
    rows_of_legend,
    symbol,
)
from redistill_lib.memory import format_size
from redistill_lib.quality import Quality, check_comparable

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("role", "peak_bytes", "parameters", "fid", "fid_error", "kid", "kid_std")
COSTS = ("peak_bytes", "parameters")
PANELS = {"fid": "fid_error", "kid": "kid_std"}  # a score, and what its line is where there is one run
BUDGET = 1.15  # students whose peaks are within this factor have the same memory: RED blocks need a little
APART = 0.03  # of the axis: how far such students stand from each other
LARGEST = 34  # pixels across the bubble of the largest network


def quality_vs_memory(frame: pd.DataFrame, *, floor: Quality | None = None, title: str | None = None) -> go.Figure:
    """FID and KID over peak memory, lower left is better; the area of a bubble is the network's parameters.

    `frame` has a row per trained network: `Quality.to_frame()` of its score, and columns ``role``, ``peak_bytes`` and
    ``parameters``. Rows of one role whose peaks are within 15 % are runs (seeds): the bubble is their mean, its line
    the 95 % t-interval over runs. A single run's line is its FID's 95 % interval over draws of images, and its
    KID's spread over subsets. `floor` is what `redistill_lib.quality.floor` gives. The title goes by FID; where a
    single run's ``fid_error`` is NaN, it leaves open who is ahead.

    Raises ValueError for a missing column or value, an empty frame, a peak or parameters of 0, scores that are not
    made in the same way, and a floor of other numbers of images or another extractor.

    >>> import pandas as pd
    >>> from redistill_lib.quality import Quality
    >>> by = {"n_fake": 900, "n_real": 900, "image": "1×16×16", "extractor": "teacher", "num_features": 64}
    >>> rows = [("teacher", 8, 9.0), ("student", 2, 15.0), ("red", 2, 12.0)]
    >>> frame = pd.concat(
    ...     Quality(fid, fid - 1, 0.5, fid / 1000, 0.001, 5.0, 0.1, 0.8, 0.7, by).to_frame()
    ...     .assign(role=role, peak_bytes=mib * 2**20, parameters=10**6) for role, mib, fid in rows
    ... )
    >>> quality_vs_memory(frame).layout.title.text.partition("<br>")[0]
    "<b>RED does best in one run: FID 12.0, naive student 15.0, at 25 % of the teacher's memory; teacher 9.0</b>"
    """
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise ValueError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError("the frame has no row: there is no score to show")
    _check_values(frame)
    check_comparable(frame)
    if floor is not None:
        _check_floor(frame, floor)
    table, names = _points(frame), {"fid": "FID", "kid": "KID"}
    size, unit = (2**20, "MiB") if table["peak"].max() >= 2**20 else (2**10, "KiB")
    table = table.assign(x=table["x"] / size)
    if thousandths := table["kid"].abs().max() < 0.1:  # as through Inception, where it is usually told so
        names["kid"] += " × 1,000"
    figure = go.Figure()
    for k, (panel, name) in enumerate(names.items()):
        scale = 1000 if panel == "kid" and thousandths else 1
        _add_panel(figure, table, panel, name, scale, k)
        if floor is not None:
            _add_floor(figure, getattr(floor, panel) * scale, k)
    figure.update_layout(
        xaxis={"domain": [0, 0.46]}, xaxis2={"domain": [0.56, 1], "anchor": "y2"}, yaxis2={"anchor": "x2"},
    )  # fmt: skip
    figure.update_xaxes(title=f"peak memory, activations ({unit})", rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    for k, name in enumerate(names.values()):
        figure.update_layout({f"yaxis{k + 1 if k else ''}": {"title": f"{name} (lower is better)"}})
    roles = list(dict.fromkeys(table["role"]))
    return finish(
        figure, title or _finding(table), _note(frame, table, floor),
        plot=330, margins=(64, 8, 24, 60), legend=rows_of_legend([label(role) for role in roles], WIDTH),
    )  # fmt: skip


def _check_values(frame: pd.DataFrame) -> None:
    import pandas as pd

    lacking = []
    for name in ("fid", "kid", *COSTS):
        least = 0 if name in COSTS else -math.inf
        good = pd.to_numeric(frame[name], errors="coerce").between(least, math.inf, inclusive="neither")
        if roles := list(dict.fromkeys(frame["role"][~good].map(label))):
            lacking.append(f"{name}{' above 0' * (name in COSTS)} for {listed(roles)}")
    if lacking:
        raise ValueError(f"the frame has no {', no '.join(lacking)}; give the value or leave the row out")


def _points(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per role and memory: means, intervals, the values of the runs."""
    import pandas as pd

    frame = frame.assign(role=frame["role"].map(role_key)).reset_index(drop=True)
    rows = []
    parts = [
        (role, part.loc[alike])
        for role, part in frame.groupby("role", sort=False)
        for alike in _alike(part["peak_bytes"])
    ]
    for role, runs in parts:
        row: dict[str, Any] = {"role": role, "n": len(runs)}
        row |= {"peak": float(runs["peak_bytes"].mean()), "parameters": float(runs["parameters"].mean())}
        for panel, spread in PANELS.items():
            values = [float(value) for value in runs[panel]]
            row[f"{panel}_runs"] = values
            row[panel] = sum(values) / len(values)
            row[f"{panel}_error"] = interval(values) if len(runs) > 1 else float(runs[spread].iloc[0])
        rows.append(row)
    table = pd.DataFrame(rows).assign(x=lambda points: points["peak"])
    for budget in _budgets(table):  # side by side, as their bubbles would hide each other
        order = budget.sort_index().sort_values("peak", kind="stable").index
        for k, index in enumerate(order):
            table.loc[index, "x"] += (k - (len(order) - 1) / 2) * APART * table["peak"].max()
    return table


def _add_panel(figure: go.Figure, table: pd.DataFrame, panel: str, name: str, scale: int, k: int) -> None:
    axes = {"xaxis": f"x{k + 1 if k else ''}", "yaxis": f"y{k + 1 if k else ''}"}
    most = float(table["parameters"].max())
    for role, part in table.groupby("role", sort=False):
        part, hue = part.sort_values("peak"), color(str(role))
        own, error = scale * part[panel], scale * part[f"{panel}_error"]
        scaled = [[scale * value for value in values] for values in part[f"{panel}_runs"]]
        runs = [(x, y) for x, n, ys in zip(part["x"], part["n"], scaled, strict=True) if n > 1 for y in ys]
        if runs:
            figure.add_trace(
                go.Scatter(
                    x=[x for x, _ in runs], y=[y for _, y in runs], mode="markers", showlegend=False,
                    marker={"color": faint(hue), "size": 6}, hoverinfo="skip", **axes,
                )
            )  # fmt: skip
        detail = [
            f"{number(value, 1)}{'' if math.isnan(half) else f' ± {number(half, 1)}'}, "
            f"{row.n} run{'s' * (row.n > 1)}<br>"
            f"{format_size(row.peak)} at peak, {row.parameters:,.0f} parameters"
            for value, half, row in zip(own, error, part.itertuples(), strict=True)
        ]
        shared = {"x": part["x"], "y": own, "legendgroup": str(role), **axes}
        bubble = {
            "color": faint(hue, 0.16), "symbol": "circle", "line": {"color": faint(hue, 0.6), "width": 1},
            "size": part["parameters"], "sizemode": "area", "sizeref": most / LARGEST**2,
        }  # fmt: skip
        mode = "lines+markers" if len(part) > 1 else "markers"
        line = {"color": faint(hue, 0.6), "width": 1.5, "dash": "dot"}
        figure.add_trace(
            go.Scatter(mode=mode, marker=bubble, line=line, showlegend=False, hoverinfo="skip", **shared)
        )
        figure.add_trace(
            go.Scatter(
                mode="markers", name=label(str(role)), showlegend=k == 0, customdata=detail,
                marker={"color": hue, "symbol": symbol(str(role)), "size": 9},
                error_y={"array": error, "color": hue, "thickness": 1.5, "width": 4},
                hovertemplate=f"<b>{label(str(role))}</b>: {name} %{{customdata}}<extra></extra>", **shared,
            )
        )  # fmt: skip


def _add_floor(figure: go.Figure, value: float, k: int) -> None:
    axis = k + 1 if k else ""
    figure.add_shape(
        type="line", xref=f"x{axis} domain", yref=f"y{axis}", x0=0, x1=1, y0=value, y1=value,
        line={"color": MUTED, "width": 1.5, "dash": "dash"},
    )  # fmt: skip
    figure.add_annotation(
        xref=f"x{axis} domain", yref=f"y{axis}", x=0.995, xanchor="right", y=value, yanchor="bottom",
        text=f"real images {number(value, 1)}", showarrow=False, font={"color": INK, "size": 12},
    )  # fmt: skip


def _check_floor(frame: pd.DataFrame, floor: Quality) -> None:
    import pandas as pd

    sampled = [name for name, value in floor.settings.items() if value == "real images"]
    told = [name.removeprefix("settings.") for name in map(str, frame.columns) if name.startswith("settings.")]
    ignore = [*sampled, *(name for name in told if name not in floor.settings)]
    try:
        check_comparable(pd.concat([frame.head(1), floor.to_frame()]), ignore=ignore)
    except ValueError as error:
        raise ValueError(f"this floor does not belong to these scores: {error}") from None


# ---------------------------------------------------------------------------------------------------------- words


def _budgets(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Students of about the same memory, best first; the least memory first."""
    students = table[table["role"] != "teacher"]
    return [students.loc[rows].sort_values("fid") for rows in _alike(students["peak"])]


def _alike(peaks: pd.Series[Any]) -> list[list[Any]]:
    """The rows of about the same memory together; the least memory first."""
    groups: list[list[Any]] = []
    for index, peak in peaks.sort_values(kind="stable").items():
        if groups and peak <= BUDGET * peaks[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _finding(table: pd.DataFrame) -> str:
    budgets = [budget for budget in _budgets(table) if len(budget) > 1]
    teacher = table[table["role"] == "teacher"]
    if not budgets:
        ranked = table.sort_values("fid")
        best, near = ranked.iloc[0], _near(ranked)
        lead = f"leads, too close to {near} to tell: FID" if near else "has the lowest FID,"
        return f"{capital(label(best['role']))} {lead} {best['fid']:.1f} at {format_size(best['peak'])}"
    once = " in one run" if int(table["n"].min()) == 1 else ""
    if len(budgets) == 1:
        return _at_one_budget(budgets[0], teacher, once)
    parts = []
    for budget in budgets:
        best, second = budget.iloc[0], budget.iloc[1]
        rival = _rival(budget)
        also = ", too close to tell" if _open(best, second) else ""
        lead = f"{label(best['role'])} {best['fid']:.1f} ({label(rival['role'])} {rival['fid']:.1f}{also})"
        parts.append(f"{lead} at {format_size(best['peak'])}")
    return f"The lowest FID{once or ' on average'}: {'; '.join(parts)}"


def _at_one_budget(budget: pd.DataFrame, teacher: pd.DataFrame, once: str) -> str:
    best, rival = budget.iloc[0], _rival(budget)
    memory = f"at {format_size(best['peak'])}"
    if len(teacher):
        top = teacher.iloc[0]
        memory = f"at {100 * best['peak'] / top['peak']:.0f} % of the teacher's memory; teacher {top['fid']:.1f}"
    text = f"FID {best['fid']:.1f}, {label(rival['role'])} {rival['fid']:.1f}, {memory}"
    name = capital(label(best["role"]))
    if near := _near(budget):
        return f"{name} leads{once}, too close to {near} to tell: {text}"
    other = budget.sort_values("kid").iloc[0]["role"]
    doubt = f"; by KID {label(other)} is ahead" if other != best["role"] else ""
    return f"{name} does best{once}: {text}{doubt}"


def _rival(budget: pd.DataFrame) -> Mapping[str, Any]:
    """The naive student where there is one that is not the best itself, otherwise the second."""
    naive = budget[budget["role"] == "student"]
    rival: Mapping[str, Any] = naive.iloc[0] if len(naive) and budget.iloc[0]["role"] != "student" else budget.iloc[1]
    return rival


def _near(ranked: pd.DataFrame) -> str:
    """The other roles of which it is open whether they are worse than the first."""
    best, others = ranked.iloc[0], ranked.iloc[1:]
    near = [label(row["role"]) for _, row in others[others["role"] != best["role"]].iterrows() if _open(best, row)]
    return listed(dict.fromkeys(near)) if near else ""


def _open(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the intervals leave open which FID is the lower: over seeds, or over images where a run is single."""
    if min(best["n"], other["n"]) > 1:
        delta, half = difference(other["fid_runs"], best["fid_runs"])
        return half >= delta
    decided: bool = math.hypot(best["fid_error"], other["fid_error"]) < other["fid"] - best["fid"]
    return not decided  # which a missing error leaves too


def _note(frame: pd.DataFrame, table: pd.DataFrame, floor: Quality | None) -> str:
    said = {
        str(name).removeprefix("settings."): frame[name].iloc[0]
        for name in frame.columns
        if str(name).startswith("settings.")
    }
    parts = [_setting(said)]
    one = int(table["n"].max()) == 1
    if one:
        parts.append("One run each: lines hold the draw of images (FID, 95 %) and of subsets (KID), not the seed.")
    elif int(table["n"].min()) > 1:
        parts.append("Bubble: mean over runs; line: 95 % t-interval; dots: single runs.")
    else:
        parts.append("Line: 95 % over runs, or, where there is one run only, over draws of images.")
    small, large = (_count(float(value)) for value in (table["parameters"].min(), table["parameters"].max()))
    parts.append(f"Area: parameters, {small}{f' to {large}' * (small != large)}.")
    if any(len(budget) > 1 for budget in _budgets(table)):
        parts.append("Students of about one memory stand side by side.")
    if floor is not None:
        parts.append("Dashed: real images, one half against the other.")
    return " ".join(parts)


def _setting(said: Mapping[str, Any]) -> str:
    """What the scores were made with, in words: the sampling always, of the rest what is said."""
    said = {name: known for name, value in said.items() if (known := _stated(value)) is not None}
    counts = {"generated": said.get("n_fake"), "real": said.get("n_real")}
    sets = " against ".join(f"{int(count):,} {kind}" for kind, count in counts.items() if count is not None)
    parts = [f"{sets} images {said.get('image', '')}".strip()] if sets or "image" in said else []
    if "extractor" in said:
        detail = [f"{int(said['num_features'])} features"] if "num_features" in said else []
        if "extractor_accuracy" in said:
            detail.append(f"test accuracy {100 * said['extractor_accuracy']:.1f} %")
        parts.append(f"by {said['extractor']}" + (f" ({', '.join(detail)})" if detail else ""))
    if "resize" in said:
        parts.append("not resized" if said["resize"] == "none" else f"resized to {said['resize']}")
    sampler, steps, ema = (said.get(name) for name in ("sampler", "steps", "ema"))
    made = ", ".join(
        [
            f"sampler {sampler or 'not stated'}",
            f"{int(steps)} steps" if isinstance(steps, int | float) else f"{steps or 'steps not stated'}",
            "EMA not stated" if ema is None else "EMA" if ema else "no EMA",
        ]
    )
    return capital("; ".join([", ".join(parts), made] if parts else [made])) + "."


def _stated(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _count(value: float) -> str:
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k" if value >= 1e3 else f"{value:.0f}"
