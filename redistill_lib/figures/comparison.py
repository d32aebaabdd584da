"""Ways to one peak memory, compared: who is most accurate, and after how many seconds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from redistill_lib.comparison import Comparison
from redistill_lib.figures import theme
from redistill_lib.figures.theme import INK, SPARE, faint, finish, muted, name_rows
from redistill_lib.memory import format_size
from redistill_lib.results import listed, number

#: A colour for each network, whose hue says the way to the peak, in every figure; they differ in lightness too.
_HUES = {
    "as wide": ("#CC4C00", "#E6B03C", "#AA4499"),
    "narrower": ("#0072B2", "#56B4E9", "#332288"),
    "smaller images": ("#117733", "#44AA99"),
}
_MARKS = {False: ("circle-open", "without a teacher"), True: ("diamond", "with its teacher")}
_OTHERS, _OTHER = "other networks", "#8A8F96"  # than the first that there are colours for
_PLACES = 10, 72, 166, 220  # where the columns beside the plot stand, in pixels


class _Look(NamedTuple):
    network: str
    color: str
    symbol: str

    @property
    def mark(self) -> dict[str, Any]:
        return {"color": self.color, "symbol": self.symbol, "size": 13, "line": {"width": 2.5, "color": self.color}}


def comparison(result: Comparison) -> go.Figure:
    """Test accuracy of each arm, the best above: a mark for the mean, a line for its 95 % interval, dots for runs.

    The colour is the network; a filled diamond takes its teacher's weights or lessons, an open circle none. Where all
    have one network, colour and mark are the method's, as in other figures. Beside them are the difference to the
    reference, in pairs, and what the arm takes.
    """
    table, looks, figure = result.table, _looks(result), go.Figure()
    beside: dict[str, Any] = {"x": 1, "xref": "paper", "xanchor": "left"}
    for k, row in table.iterrows():
        arm, look, runs = escape(row["arm"]), looks[row["arm"]], 100 * result.right[row["arm"]].mean(1)
        dots = {"color": faint(look.color, 0.4), "size": 6}
        one = f"<b>{arm}</b>, one run: %{{x:.1f}} %<extra></extra>"
        figure.add_scatter(x=runs, y=[k] * len(runs), mode="markers", marker=dots, hovertemplate=one)
        low, high = max(row["low"], 0.0), min(row["high"], 100.0)
        spread: dict[str, Any] = {"color": look.color, "thickness": 1.5, "width": 4}
        spread |= {"array": [high - row["accuracy"]], "arrayminus": [row["accuracy"] - low]}
        mean = f"<b>{arm}</b>: {row['accuracy']:.1f} %, 95 %: {low:.1f} to {high:.1f} %<br>{look.network}"
        point = {"x": [row["accuracy"]], "y": [k], "mode": "markers", "marker": look.mark, "error_x": spread}
        figure.add_scatter(**point, hovertemplate=mean + "<extra></extra>")
        above = in_points(row["above"], row["±"])
        adds = "" if math.isnan(row["mult-adds (M)"]) else f"{row['mult-adds (M)']:.1f} M"
        cells = f"<b>{row['accuracy']:.1f} %</b>", above, f"{row['epochs']:,}", adds
        for column, text in enumerate(cells):
            text = "" if row["arm"] == result.reference and column == 1 else text
            figure.add_annotation(**beside, xshift=_PLACES[column], y=k, text=text)
    reference = result.reference if len(result.reference) <= 8 else "reference"
    for column, head in enumerate(("accuracy", f"above {escape(reference)}", "epochs", "mult-adds")):
        place = beside | {"xshift": _PLACES[column], "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(**place, text=muted(head))
    figure.update_traces(showlegend=False)
    _explain(figure, looks)
    if "teacher" in result.right:
        best = result.accuracy("teacher").value
        line, text = {"color": INK, "width": 2, "dash": "dash"}, f"teacher {best:.1f} %"
        side = "left" if best > (table["low"].min() + table["high"].max()) / 2 else "right"
        place = {"y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": {"left": "right", "right": "left"}[side]}
        figure.add_vline(best, line=line)
        figure.add_annotation(x=best, text=text, **place)
    lines = [textwrap.wrap(arm, 20, max_lines=2, placeholder=" …") for arm in table["arm"]]
    name_rows(figure, ["<br>".join(f"<b>{escape(line)}</b>" for line in name) for name in lines])
    figure.update_xaxes(title="test accuracy (%)")
    if result.seeds == 1:
        told = "One run of each, which says nothing of other seeds; line and ±: 95 % interval for other test images"
    else:
        told = f"{result.seeds} seeds each; line: 95 % interval for other seeds and other test images; dots: runs. "
        told += f"Above {escape(result.reference)}: in pairs of one teacher, with a 95 % interval"
    networks = {look.network for look in looks.values()}
    data = f"{escape(result.name)}; all are {networks.pop()}" if len(networks) == 1 else escape(result.name)
    note, margins = f"Data: {data}. {told}.", (156, 30, 294, 56)
    title = escape(result.headline(), quote=False)
    figure = finish(figure, title, note, plot=20 + 36 * len(table), margins=margins, legend=bool(networks))
    return figure.update_layout(legend={"x": 0.02, "xref": "container"})


def comparison_curves(result: Comparison) -> go.Figure:
    """Validation accuracy of the best epoch so far, which is kept, over seconds spent: the mean of the seeds.

    Who needs a teacher begins when that is paid.
    """
    looks, figure = _looks(result), go.Figure()
    best_yet = result.curves.groupby(["arm", "seed"], sort=False)["accuracy"].cummax()
    means = result.curves.assign(accuracy=best_yet).groupby(["arm", "seconds"], as_index=False)["accuracy"].mean()
    ends = {arm: means[means["arm"] == arm].iloc[-1] for arm in looks}
    reached = {arm: float(end["accuracy"]) for arm, end in ends.items()}
    low, high = min(reached.values()), max(reached.values())
    bottom, top = max(0.0, low - 2 * (high - low) - 5), float(means.loc[means["arm"].isin(looks), "accuracy"].max())
    top, plot = top + (top - bottom) / 16, max(360, 22 * len(looks))
    places = _apart(reached, 21 / plot * (top - bottom), bottom)
    for arm, look in looks.items():
        curve = means[means["arm"] == arm].astype({"seconds": "float32", "accuracy": "float32"})  # a smaller file
        line = {"color": look.color, "width": 2.5, "dash": "solid" if result.taught(arm) else "dot"}
        told = {
            "hovertemplate": f"<b>{escape(arm)}</b>: %{{y:.1f}} % after %{{x:.0f}} s<extra></extra>",
            "showlegend": False,
        }
        figure.add_scatter(x=curve["seconds"], y=curve["accuracy"], mode="lines", line=line, **told)
        figure.add_scatter(x=[ends[arm]["seconds"]], y=[reached[arm]], mode="markers", marker=look.mark, **told)
        name = escape(arm if len(arm) <= 28 else f"{arm[:27]}…")
        text = f'<span style="color:{look.color}"><b>{name}</b> {reached[arm]:.1f} %</span>'
        figure.add_annotation(x=1.02, xref="paper", xanchor="left", y=places[arm], text=text, showarrow=False)
    longest = max(end["seconds"] for end in ends.values())
    paid = result.runs["for_the_teacher"].max() > 0
    axis = "processor seconds of training" + ", the teacher's share included" * bool(paid)
    figure.update_xaxes(title=axis, range=[0, 1.02 * longest])
    figure.update_yaxes(title="validation accuracy (%)", range=[bottom, top])
    best = f"{high:.1f} %"
    level = [arm for arm in reached if f"{reached[arm]:.1f} %" == best]  # as far as is shown
    who = f"{escape(listed(level), False)} end{'s' * (len(level) == 1)} highest within {result.budget}: {best}"
    several = f"no one alone ends highest within {result.budget}: {len(level)} of {len(reached)} reach {best}"
    found = f"On validation {who if len(level) <= 2 else several}"
    mean = "One run of each" if result.seeds == 1 else f"Mean of {result.seeds} seeds"
    note = f"{mean}, at each time their best epoch so far, which is kept. Solid: with a teacher"
    note += ", from when it is paid for" * bool(paid) + "; dotted: without one."
    return finish(figure, found, note, plot=plot, margins=(64, 8, 270, 56))


def comparisons(results: Mapping[str, Comparison], arms: Sequence[str] | None = None) -> go.Figure:
    """By how many points arms are above the reference, for each of several comparisons: by data, by factor, …

    A mark is the mean, a line its 95 % interval, colours and marks as in `comparison`. `arms`: left out, all.
    ValueError where the comparisons have other references, or none has such an arm.
    """
    references = {result.reference for result in results.values()}
    every = dict.fromkeys(arm for result in results.values() for arm in result.arms if arm != result.reference)
    names = [*every] if arms is None else [*arms]
    if len(references) != 1 or not names:
        raise ValueError(f"comparisons are one or more with one reference and further arms, not {listed(references)}")
    if unknown := [arm for arm in names if arm not in every]:
        raise ValueError(f"no comparison has an arm {unknown[0]!r}; there are {listed(every)}")
    figure, rows, places = go.Figure(), list[str](), list[float]()
    y = 0.0
    for data, result in results.items():
        looks, present = _looks(result), [arm for arm in names if arm in result.arms]
        peak = format_size(int(result.runs.loc[result.runs["arm"] == result.reference, "peak_bytes"].max()))
        seeds = f"{result.seeds} seed{'s' * (result.seeds != 1)}"
        rows.append(f"<b>{escape(data)}</b><br>{muted(f'{peak}, {seeds}')}<br>{muted(str(result.budget))}")
        places.append(y + (len(present) - 1) / 2)
        for arm in present:
            gap, look = result.difference(arm, result.reference), looks[arm]
            spread = {"array": [gap.half], "color": look.color, "thickness": 1.5, "width": 4}
            points = in_points(gap.value, gap.half)
            told = f"<b>{escape(arm)}</b> on {escape(data)}: {points} points, {result.accuracy(arm).value:.1f} %<br>"
            figure.add_scatter(
                x=[gap.value], y=[y], mode="markers", marker=look.mark, error_x=spread, showlegend=False,
                hovertemplate=f"{told}{escape(look.network)}<extra></extra>",
            )  # fmt: skip
            figure.add_annotation(
                x=1, xref="paper", xanchor="left", xshift=12, y=y, text=f"{escape(arm)} {muted(points)}",
                showarrow=False,
            )  # fmt: skip
            y += 1
        y += 0.8
    figure.update_yaxes(tickvals=places, ticktext=rows, range=[y - 1.3, -0.5], showgrid=False, ticksuffix="  ")
    figure.add_vline(0, line={"color": INK, "width": 1.5})
    reference = references.pop()
    figure.update_xaxes(title=f"test accuracy, points above {escape(reference)}")
    leaders = list[str]()
    for data, result in results.items():
        best, *others = (arm for arm in result.table["arm"] if arm in (*names, reference))
        alike = [f"“{arm}”" for arm in others if not result.difference(best, arm).decided]
        told = f", not told from {listed(alike) if len(alike) < 3 else f'{len(alike)} others'}" if alike else ""
        leaders.append(f"on {data} {best}{told}" if len(alike) < len(others) or not others else f"on {data} no one")
    note = "In pairs of one teacher and one test image; lines: 95 % interval for other seeds and other test images."
    title = escape(f"Most accurate at one peak, in equal seconds: {'; '.join(leaders)}", quote=False)
    return finish(figure, title, note, plot=round(24 * y) + 20, margins=(136, 8, 290, 56))


def comparison_table(result: Comparison) -> pd.DataFrame:
    """A row per arm, the best first, to read: what `Comparison.table` has as numbers. Intervals are of 95 %.

    >>> from redistill_lib.shipped import measured
    >>> found = comparison_table(Comparison.load(measured("cluttered")))
    >>> found.loc["RED", ["test accuracy", "above naive", "peak"]].tolist()
    ['92.6 ± 1.6 %', '1.9 ± 1.2', '18.8 KiB']
    """
    rows = {}
    for row in result.table.to_dict("records"):
        arm, half = row["arm"], (row["high"] - row["low"]) / 2
        told = {
            f"above {result.reference}": in_points(row["above"], row["±"]),
            "of the gap to the teacher": f"{number(row['recovered'], 0)} %",
        }
        rows[arm] = {
            "network": result.network(arm),
            "test accuracy": f"{in_points(row['accuracy'], half)} %",
            **(dict.fromkeys(told, "") if arm == result.reference else told),
            "epochs": f"{row['epochs']:,}",
            "seconds": f"{row['seconds']:.0f}",
            "parameters": f"{row['parameters']:,}",
            "peak": format_size(1024 * row["peak (KiB)"]),
            "mult-adds": f"{row['mult-adds (M)']:.1f} M",
            "training holds": format_size(2**20 * row["training (MiB)"]),
        }
    known = pd.DataFrame.from_dict(rows, "index").rename_axis("arm")
    known = known.mask(known.apply(lambda column: column.str.startswith("nan")), "")
    return known.loc[:, known.ne("").any()]


def in_points(value: float, half: float) -> str:
    return number(value, 1) + ("" if math.isnan(half) else f" ± {number(half, 1)}")


def _apart(values: Mapping[str, float], least: float, bottom: float) -> dict[str, float]:
    """Where to write beside these values so that no two lines of text lie on each other, nor below the plot."""
    found: dict[str, float] = {}
    above = math.inf
    for name in sorted(values, key=lambda name: -values[name]):
        above = found[name] = min(values[name], above - least)
    return {name: max(place, bottom + k * least) for k, (name, place) in enumerate(reversed(found.items()))}


def _looks(result: Comparison) -> dict[str, _Look]:
    """By arm. The reference's network has the first colour of its hue, in any figure of any other arms."""
    networks = {arm: result.network(arm) for arm in (result.reference, *result.arms)}
    if len(set(networks.values())) == 1:
        return _methods(result, networks)
    colors = dict[str, str]()
    for arm, network in networks.items():
        hues = (*_HUES[result.way(arm)], *(color for hue in _HUES.values() for color in hue))
        colors.setdefault(network, next((color for color in hues if color not in colors.values()), _OTHER))
    names = {network: _OTHERS if color == _OTHER else network for network, color in colors.items()}
    marks = {arm: _MARKS[result.taught(arm)][0] for arm in networks}
    return {arm: _Look(names[networks[arm]], colors[networks[arm]], marks[arm]) for arm in result.arms}


def _methods(result: Comparison, networks: Mapping[str, str]) -> dict[str, _Look]:
    """Of arms that have one network: the looks of their methods, and others for those that differ otherwise."""
    found = dict[str, tuple[str, str]]()
    for arm in networks:
        usual = theme.look(result.methods(arm) or "student")
        others = ((tone, usual[1]) for tone in (*SPARE, _OTHER))
        found[arm] = next((each for each in (usual, *others) if each not in found.values()), usual)
    return {arm: _Look(networks[arm], *found[arm]) for arm in result.arms}


def _explain(figure: go.Figure, looks: dict[str, _Look]) -> None:
    """The legend: what colours and marks mean; none where all have one network, and the rows tell their methods."""
    if len({look.network for look in looks.values()}) == 1:
        return
    for network, color in {look.network: look.color for look in looks.values()}.items():
        mark = {"color": color, "size": 11, "symbol": "square"}
        figure.add_scatter(x=[None], y=[None], name=network, mode="markers", marker=mark)
    for symbol, name in _MARKS.values():
        mark = {"color": INK, "size": 11, "symbol": symbol, "line": {"width": 2, "color": INK}}
        figure.add_scatter(x=[None], y=[None], name=name, mode="markers", marker=mark)
