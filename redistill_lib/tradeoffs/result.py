"""Networks by what they need and what they are good for: the front, and the best within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import pandas as pd

from redistill_lib.checks import check_type, hint
from redistill_lib.data.sources import BUILT_IN
from redistill_lib.models import list_models
from redistill_lib.results import label, level_with, listed, number, pareto_front
from redistill_lib.sizes import parse_size, short_size

Dtype = Literal["fp32", "fp16", "int8"]
#: Bytes of an activation, and so of a profile's peak, as a share of those in fp32, in which all are recorded.
SHARE: dict[str, float] = {"fp32": 1.0, "fp16": 0.5, "int8": 0.25}
#: A row per network taught in one way, and its mean over seeds.
COLUMNS = (
    "name", "data", "metric", "source", "model", "method", "init", "width", "channels", "image_size", "score", "half",
    "seeds", "peak_bytes", "multiply_adds", "parameters", "convention", "teacher", "factor", "seed", "run",
    "teacher_run", "budget",
)  # fmt: skip
ACCURACY = "test accuracy (%)"
_CURVES = ("data", "budget", "name", "seed", "seconds", "accuracy")


@dataclass(frozen=True, eq=False, repr=False)
class Tradeoffs:
    """Points of one or several panels; a panel is what can be compared: one metric on one data set within one budget.

    `frame` has the columns `COLUMNS` and a row per point. ``score`` is a mean over ``seeds`` seeds and ``half`` half
    of its 95 % interval, NaN where that is not known; ``metric`` says what it is, accuracies in %. ``peak_bytes`` are
    of activations in fp32, one image, under ``convention``; ``multiply_adds`` for one image. ``source`` is
    ``published`` for the authors' numbers, which stay out of front and budget wherever others are beside them.
    ``method`` is a role such as ``red+kd``, ``init`` ``teacher`` for who starts from its weights, ``teacher`` the
    teacher's model and width. Of networks of one's own it is the function that makes it, ``my_net:make``, under
    ``seed``, and ``factor`` is what the student pools harder. ``run`` and ``teacher_run`` are folders of runs that
    have weights, or empty; ``channels`` and ``image_size`` (px) are the images', NaN where that is not known.

    `curves` has ``data``, ``budget``, ``name``, ``seed``, ``seconds`` and ``accuracy`` (on validation, %), a row for
    each epoch. `name` is what a panel was taken out by: alone, it could not know of others like it.
    """

    frame: pd.DataFrame
    curves: pd.DataFrame
    name: str = ""

    @classmethod
    def of(cls, points: list[dict[str, Any]], curves: list[pd.DataFrame]) -> Tradeoffs:
        """From rows that have some of `COLUMNS`; names that a panel has twice are told apart."""
        frame = pd.DataFrame(points, columns=list(COLUMNS))
        panel = ["data", "metric", "budget", "source", "name"]
        plans = frame["model"].str.partition("-")[2]
        wide, start = "×" + frame["width"].map("{:g}".format), frame["init"].replace("teacher", "from the teacher")
        for detail in (plans, wide, start):
            kinds = detail.groupby([frame[column] for column in panel], dropna=False).transform("nunique")
            told = frame["name"].where(kinds == 1, frame["name"] + " " + detail)
            frame["name"] = told.str.strip()
        again = frame.groupby(["data", "metric", "budget", "name"]).cumcount()
        frame["name"] = frame["name"].where(again == 0, frame["name"] + " (" + (again + 1).astype(str) + ")")
        for part, name, budget in zip(curves, frame["name"], frame["budget"], strict=True):
            part["name"], part["budget"] = name, budget
        found = [part for part in curves if len(part)]
        joined = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=list(_CURVES))
        return cls(frame, joined[list(_CURVES)])

    @cached_property
    def panels(self) -> tuple[str, ...]:
        """What `panel` takes, those with own results first."""
        if self.name:
            return (self.name,)
        own = self.frame.sort_values("source", key=lambda source: source == "published", kind="stable")
        return tuple(dict.fromkeys(_panel(own)))

    def panel(self, name: str) -> Tradeoffs:
        """The points of one panel. ValueError for another name."""
        if name not in self.panels:
            raise ValueError(
                f"there are no points of {name!r}; there are {listed(self.panels)}{hint(name, self.panels)}"
            )
        if self.name:
            return self
        frame = self.frame[_panel(self.frame) == name].reset_index(drop=True)
        own = pd.Series(True, self.curves.index)
        for column in ("data", "budget", "name"):
            own &= self.curves[column].isin(frame[column])
        curves = self.curves[own] if frame["metric"][0] == ACCURACY else self.curves[:0]
        return Tradeoffs(frame, curves, name)

    def shown(self, published: bool) -> Tradeoffs:
        """Itself, or without the authors' points."""
        return self if published else replace(self, frame=self.frame[self.frame["source"] != "published"])

    @property
    def own(self) -> pd.DataFrame:
        """The rows that are ranked: measured ones, or the published ones where there are no others. ValueError for
        points of several panels."""
        if len(self.panels) != 1:
            raise ValueError(f"{listed(self.panels)} cannot be compared: take one of them, result.panel(name)")
        published = self.frame["source"] == "published"
        return self.frame if published.all() else self.frame[~published]

    @property
    def lower(self) -> bool:
        """Whether a smaller score is the better one, as of FID and KID."""
        return bool(self.frame["metric"].iloc[0] != ACCURACY)

    def front(self) -> pd.DataFrame:
        """The rows that no other row of the panel beats in both peak and score, the smallest peak first."""
        return pareto_front(self.own, "peak_bytes", "score", lower=self.lower)

    def need(self, dtype: Dtype = "fp32") -> pd.Series[float]:
        """Bytes of activations at the peak of each row of `frame`. An int8 activation takes a quarter of those in
        fp32; scores stay those in fp32. ValueError for another dtype."""
        return self.frame["peak_bytes"] * SHARE[check_type("dtype", dtype, Literal[get_args(Dtype)])]

    def fits(self, budget: int | str, dtype: Dtype = "fp32") -> pd.Series[bool]:
        """Which rows of `frame` need that much memory for activations, or less."""
        return self.need(dtype) <= parse_size(budget)

    def budgets(self, dtype: Dtype = "fp32") -> list[int]:
        """Sizes to try, powers of two and those half-way between: from where nothing fits to where all do."""
        need = self.need(dtype)
        steps = (step for k in range(1, 50) for step in (2**k, 3 * 2 ** (k - 1)))
        return [step for step in steps if need.min() / 1.5 < step < 2 * need.max()]

    def middle_budget(self, dtype: Dtype = "fp32") -> int:
        """The least of `budgets` in which half of the own points fit, or more."""
        middle = float(self.need(dtype)[self.own.index].median())
        return next(step for step in self.budgets(dtype) if step >= middle)

    def best(self, budget: int | str, dtype: Dtype = "fp32") -> pd.Series[Any] | None:
        """The row with the best score that fits; of equals the one with the smallest peak. None where none fits."""
        own = self.own
        fit = own[self.fits(budget, dtype)[own.index]].dropna(subset=["score"])
        if fit.empty:
            return None
        return fit.sort_values(["score", "peak_bytes"], ascending=[self.lower, True], kind="stable").iloc[0]

    def rivals(self, budget: int | str, dtype: Dtype = "fp32") -> list[str]:
        """Those that fit and whose 95 % interval overlaps that of the best. Without an interval nothing is said."""
        best, own = self.best(budget, dtype), self.own
        if best is None:
            return []
        near = own[self.fits(budget, dtype)[own.index] & level_with(best.name, own["score"], own["half"])]
        return near.sort_values("score", ascending=self.lower)["name"].tolist()

    @property
    def most(self) -> float:
        """The best that a score can be, where there is such: 100 % of accuracies."""
        return math.inf if self.lower else 100.0

    def headline(self, budget: int | str | None = None, dtype: Dtype = "fp32") -> str:
        """Who is best within the budget, and whose interval reaches into its own; without one, the front's ends."""
        own, data, front = self.own, self.frame["data"].iloc[0], self.front()
        if budget is None:
            rows = (row for _, row in front.iterrows())
            ends = [f"“{row['name']}” ({self.told(row)} in {short_size(row['peak_bytes'])})" for row in rows]
            if len(ends) == 1:
                return f"On {data}, {ends[0]} beats all {len(own)} in peak and score"
            return f"On {data}, {len(ends)} of {len(own)} are on the front, from {ends[0]} to {ends[-1]}"
        within, best = f"{short_size(parse_size(budget))} ({dtype})", self.best(budget, dtype)
        if best is None:
            need = self.need(dtype)[own.index]
            return f"Nothing fits {within} on {data}: “{own['name'][need.idxmin()]}” needs {short_size(need.min())}"
        near = [f"“{name}”" for name in self.rivals(budget, dtype)]
        rivals = f"{len(near)} others" if len(near) > 3 else listed(near or ["none"])
        close = f", and the interval{'s' * (len(near) > 1)} of {rivals} reach{'es' * (len(near) == 1)} into its own"
        lost = len(own) - int(self.fits(budget, dtype)[own.index].sum())
        end = f"{lost} of {len(own)} need{'s' * (lost == 1)} more" if lost else f"all {len(own)} fit"
        return (
            f"Within {within} “{best['name']}” does best on {data}: {self.told(best)}{close if near else ''}; {end}"
        )

    def told(self, row: Mapping[str, Any]) -> str:
        """A row's score in words, with its interval."""
        name = "" if row["metric"] == ACCURACY else f"{row['metric']} "
        spread = "" if math.isnan(row["half"]) else f" ± {number(row['half'], digits(row))}"
        return f"{name}{number(row['score'], digits(row))}{spread}{' %' if not name else ''}"

    def row(self, name: str) -> pd.Series[Any]:
        """The point of that name. ValueError where the panel has none."""
        rows = self.frame[self.frame["name"] == name]
        if rows.empty:
            names = self.frame["name"]
            raise ValueError(f"there is no point {name!r}; there are {listed(names)}{hint(name, names)}")
        return rows.iloc[0]

    def to_frame(self) -> pd.DataFrame:
        return self.frame

    def __repr__(self) -> str:
        text = self.headline() if len(self.panels) == 1 else f"{len(self.frame)} points of {listed(self.panels)}"
        return f"Tradeoffs({text})"


def digits(row: Mapping[str, Any]) -> int:
    """Decimals that a score is told with: two of KID, whose values are small."""
    return 2 if row["metric"] == "KID" else 1


def role(row: Mapping[str, Any]) -> str:
    """How a network was taught, as one word of the figures' palette.

    >>> role({"method": "red+kd", "init": "teacher"}), role({"method": "student", "init": ""})
    ('red+kd from the teacher', 'student')
    """
    return _taught(row, str(row["method"]))


def lesson(row: Mapping[str, Any]) -> str:
    """`role` as a reader calls it.

    >>> lesson({"method": "red+kd", "init": "teacher"}), lesson({"method": "student", "init": ""})
    ('RED + KD from the teacher', 'naive student')
    """
    return _taught(row, label(row["method"]))


def _taught(row: Mapping[str, Any], method: str) -> str:
    if row["init"] != "teacher":
        return method
    return "from the teacher" if row["method"] == "student" else f"{method} from the teacher"


def built_in(name: str) -> bool:
    """Whether `create_model` knows a network of that name."""
    return name.partition("-")[0] in list_models()


def teacher_name(row: Mapping[str, Any]) -> tuple[str, float]:
    """A point's teacher and its width; an empty name where that is not known."""
    name, _, width = str(row["teacher"]).partition(" ×")
    return name, float(width or 1)


def own_name(row: Mapping[str, Any]) -> str:
    """The function that makes a point's network, or its teacher's, of one's own; empty where none is named."""
    return next((name for name in (row["model"], teacher_name(row)[0]) if ":" in name), "")


def own_student(row: Mapping[str, Any]) -> bool:
    """Whether that function makes its teacher, from which `student_of` makes the point's network."""
    return ":" not in row["model"] and row["method"] != "teacher"


def call(row: Mapping[str, Any]) -> str:
    """Python that gives a point's network: reads its run where there is one, else trains it.

    That is with the usual recipe and the usual weights of its methods: a point keeps neither its own nor its seconds.
    """
    if row["model"].startswith("unet") and not row["run"]:
        return "redistill run notebooks/07_distill_diffusion.ipynb"
    known, lines = built_in(row["model"]), ["import redistill_lib as rd", ""]
    student, teacher, named = f'"{row["model"]}"', "network", ""
    if not known:
        student, made = _own_lines(row)
        named = f", {student}"
        lines = [*(["import torch", ""] if "torch" in made[-1] else []), *lines, *made]
    if row["run"]:
        return "\n".join([*lines, f'model = rd.load_model("{row["run"]}"{named})'])
    data = row["data"] if row["data"] in BUILT_IN else f"path/to/{row['data']}"
    resized = "" if pd.isna(row["image_size"]) else f", image_size={row['image_size']:.0f}"
    lines.append(f'data = rd.load_data("{data}"{resized})')
    wide, seed = _width(row["width"], known), f", seed={row['seed']:.0f}" if row["seed"] else ""
    if row["method"] in ("student", "teacher") and row["init"] != "teacher":
        lines.append(f"run = rd.train_classifier({student}, data{wide}{seed})")
    else:
        name, width = teacher_name(row) if row["teacher"] else ("resnet18", 1.0)
        teacher = f'"{name}"' if known else "network"
        trained = f"rd.train_classifier({teacher}, data{_width(width, known)}{seed})"
        lines.append(f"teacher = {trained if known else f'rd.load_model({trained}, network)'}")
        methods = "kd(alpha=0.0)" if row["method"] == "student" else row["method"]
        recipe = ', rd.Recipe(init="teacher")' if row["init"] == "teacher" else ""
        lines.append(
            f'run = rd.distill_classifier({student}, teacher, data{recipe}, methods="{methods}"{wide}{seed})'
        )
    return "\n".join([*lines, f"model = rd.load_model(run{named})"])


def _own_lines(row: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What a point's network of one's own is called in the code, and the lines that make it and its teacher."""
    name, student = own_name(row), own_student(row)
    needed = [row[column] for column in ("channels", "image_size", "factor")] if student else []
    if not name or any(math.isnan(value) for value in needed):
        return "network", [f"network = ...  # your own {row['model']}, built as this point's was"]
    lines = [f'network = rd.resolve_model("{name}", seed={row["seed"]:.0f})']
    if not student:
        return "network", lines
    channels, side, factor = map(int, needed)
    return "student", [
        *lines,
        f"student = rd.student_of(network, {factor}, torch.zeros(1, {channels}, {side}, {side}))",
    ]


def _width(width: float, known: bool) -> str:
    return "" if width == 1 or not known else f", width={width:g}"


def _panel(frame: pd.DataFrame) -> pd.Series[str]:
    """Of each row; the budget is named where there are several for its data."""
    told = frame["data"] + frame["metric"].map(lambda metric: "" if metric == ACCURACY else f": {metric}")
    several = frame["budget"].replace("", None).groupby(told).transform("nunique") > 1
    return told.where(~several | (frame["budget"] == ""), told + ", " + frame["budget"])
