"""The report: what each notebook asks and finds; of a sweep its means, its front, and links that lead somewhere."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import re
import shutil
import socket
import subprocess
import time
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from scipy import stats

from redistill_lib.looks import color
from redistill_lib.report import write_index
from redistill_lib.report.sweeps import headline, means, pareto_figure
from redistill_lib.runs import Run
from redistill_lib.sweep.manifest import PointStatus, claim, write_status
from redistill_lib.sweep.pages import FIGURE

QUESTION = "# Tour\n\n**Question.** What do we *lose*\nat a `peak`?\n\n**Time.** seconds"


def plot(title: str | None, **layout: Any) -> dict[str, Any]:
    named = {"title": {"text": title}} if title else {}
    return {FIGURE: {"data": [{"type": "scatter", "y": [1, 2]}], "layout": named | layout}}


def executed(folder: Path, name: str, *outputs: dict[str, Any], status: str = "ok", tags: Any = ()) -> None:
    """A notebook with one figure per cell; `tags` are those of the last cell."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [nbformat.v4.new_markdown_cell(QUESTION)]
    for data in outputs:
        cells.append(nbformat.v4.new_code_cell("show()", outputs=[nbformat.v4.new_output("display_data", data=data)]))
    cells[-1].metadata["tags"] = [*tags]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    (folder / f"{name}.html").write_text("page")
    error = None if status == "ok" else {"cell": 1, "ename": "ValueError", "evalue": "a < b"}
    record = {"name": name, "status": status, "seconds": 5.0, "error": error, "parameters": {}}
    (folder / f"{name}.json").write_text(json.dumps({**record, "html": f"{name}.html", "notebook": f"{name}.ipynb"}))


def points() -> pd.DataFrame:
    """3 networks × 3 seeds, as the table of a sweep has them."""
    rows = []
    for plan, peak, level in (("late", 64.0, 0.9), ("early", 16.0, 0.7), ("bad", 32.0, 0.6)):
        for seed in range(3):
            known = {"PLAN": plan, "SEED": seed, "DATA": "digits", "accuracy": level + 0.01 * seed**2}
            rows.append({**known, "peak_bytes": peak * 1024, "point": f"p-PLAN={plan}-SEED={seed}", "seconds": 1.0})
    return pd.DataFrame(rows)


def write_sweep(folder: Path, table: pd.DataFrame, status: str = "ok") -> None:
    for name in table["point"]:
        its = status if name == table["point"].iloc[-1] else "ok"
        executed(folder, name, status=its)
        write_status(folder, PointStatus(name, "key", its, "call", seconds=5.0))
    write_plan(folder, *table["point"])
    table.to_parquet(folder / "table.parquet")


def write_plan(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    points = [{"name": name, "key": "key"} for name in names]
    (folder / "manifest.json").write_text(json.dumps({"points": points, "file": "sweeps/plans.yaml"}))


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [unquote(value) for name, value in attrs if name in ("href", "src") and value]


def test_what_several_points_found_counts_once() -> None:
    """Two factors × two methods × two seeds: each seed's teacher is in four points, its naive student in two."""
    rows = []
    for factor, methods, seed in itertools.product((2, 4), ("red", "kd"), (0, 1)):
        point = {"FACTOR": factor, "METHODS": methods, "SEED": seed, "point": f"{factor} {methods} {seed}"}
        rows += [
            point | {"arm": "teacher", "run": f"t{seed}", "accuracy": 90.0 + seed, "peak (KiB)": 125.0},
            point
            | {"arm": "naive", "run": f"n{factor}{seed}", "accuracy": 80.0 - factor, "peak (KiB)": 64.0 / factor},
            point
            | {"arm": methods, "run": f"{methods}{factor}{seed}", "accuracy": 70.0, "peak (KiB)": 64.0 / factor},
        ]
    table = pd.DataFrame(rows)
    holes = means(table[(table["SEED"] == 0) | (table["point"] == "2 red 1")])  # the second seed's teacher is in one
    assert holes is not None and holes.frame.loc[holes.frame["arm"] == "teacher", "n"].tolist() == [2]
    found = means(table)
    assert found is not None
    names = [found.name(row) for row in found.frame.to_dict("records")]
    taught = ["FACTOR=2, METHODS=red", "FACTOR=2, METHODS=kd", "FACTOR=4, METHODS=red", "FACTOR=4, METHODS=kd"]
    assert names[:3] == ["teacher", "FACTOR=2, naive", "FACTOR=4, naive"] and sorted(names[3:]) == sorted(taught)
    assert found.frame["n"].tolist() == [2] * 7 and found.frame["accuracy"][0] == 90.5
    assert headline(found).endswith("3 of 7 settings are on the Pareto front")


def test_means_are_those_of_the_seeds() -> None:
    found = means(points())
    assert found is not None and found.settings == ("PLAN",) and found.score == "accuracy"
    assert found.frame["PLAN"].tolist() == ["late", "early", "bad"]
    values = np.array([0.7, 0.71, 0.74])
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    row = found.frame.iloc[1]
    assert row["accuracy"] == pytest.approx(values.mean()) and row["peak (KiB)"] == 16
    assert row["accuracy high"] - row["accuracy"] == pytest.approx(half)
    assert row["points"] == [f"p-PLAN=early-SEED={seed}" for seed in range(3)]
    assert found.told(row.to_dict(), "accuracy") == f"0.717 ± {half:.3f}"
    assert sorted(found.front["PLAN"]) == ["early", "late"]  # "bad" costs more than "early" and scores less
    assert headline(found).startswith("Highest mean accuracy: PLAN=late with 0.917 ± ")
    assert headline(found).endswith(" at peak (KiB) 64; 2 of 3 settings are on the Pareto front")


def test_seeds_may_be_recorded_and_lower_may_be_better() -> None:
    rows = points().rename(columns={"accuracy": "fid", "PLAN": "arm", "SEED": "seed"}).drop(columns="DATA")
    found = means(rows)
    assert found is not None and found.settings == ("arm",) and found.lower
    assert found.frame["arm"].tolist() == ["bad", "early", "late"]
    assert sorted(found.front["arm"]) == ["bad", "early"]
    assert headline(found).startswith("Lowest mean fid: bad with")


def test_a_sweep_without_scores_or_seeds() -> None:
    rows = pd.DataFrame({"FACTOR": [2, 4], "depth": [1.0, 3.0], "point": ["a", "b"], "seconds": [1.0, 1.0]})
    found = means(rows)
    assert found is not None and pareto_figure(found, {}) is None and headline(found) == "2 settings"
    assert means(rows.head(0)) is None


def test_settings_without_a_score_or_a_cost_are_there_all_the_same() -> None:
    """The figure is JSON, which knows neither NaN nor infinity: a page with one draws nothing."""
    rows = pd.concat([points().assign(FACTOR=factor) for factor in (2, 4)], ignore_index=True)
    late, early = rows["PLAN"] == "late", rows["PLAN"] == "early"
    rows.loc[late & (rows["FACTOR"] == 4), "peak_bytes"] = math.nan
    rows.loc[late, "accuracy"] = 0.75
    rows.loc[early & (rows["FACTOR"] == 2), "accuracy"] = math.nan
    rows.loc[early & (rows["FACTOR"] == 4), "accuracy"] = -math.inf
    found = means(rows.sort_values("FACTOR", ascending=False))
    assert found is not None and found.frame["FACTOR"].iloc[0] == 4
    assert (
        headline(found)
        == "Highest mean accuracy: PLAN=late, FACTOR=4 with 0.750, not told from PLAN=late, FACTOR=2; 3 of 6 "
        "settings are on the Pareto front"
    )
    drawn = pareto_figure(found, {})
    traces = {trace["name"]: trace for trace in json.loads(json.dumps(drawn, allow_nan=False))["data"]}
    assert traces["late"]["x"] == [None, 64] and traces["early"]["y"] == [None, None]


def test_a_peak_that_is_no_number_is_no_cost() -> None:
    found = means(points().assign(peak_bytes="unknown"))
    assert found is not None and found.cost is None and headline(found).startswith("Highest mean accuracy: ")


def test_the_figure_is_json_that_knows_its_pages() -> None:
    found = means(points())
    assert found is not None
    drawn = pareto_figure(found, {"p-PLAN=late-SEED=0": "late.html"})
    assert drawn is not None
    front, late, *_ = json.loads(json.dumps(drawn, allow_nan=False))["data"]
    assert (front["x"], front["line"]["shape"]) == ([16, 64], "hv")
    assert late["customdata"] == [["late.html", "PLAN=late"]] and late["x"] == [64]


def arms(*rows: tuple[str, list[float]], **more: Any) -> pd.DataFrame:
    """Rows of several arms, each with its accuracies (%) by seed."""
    table = [
        {"arm": name, "SEED": seed, "accuracy": score, "peak (KiB)": 8.0 * (1 + k), "point": f"{name} {seed}"} | more
        for k, (name, scores) in enumerate(rows)
        for seed, score in enumerate(scores)
    ]
    return pd.DataFrame(table)


def test_who_is_level_with_the_best_is_said() -> None:
    """With three seeds ± 2.48 · spread: 91 ± 2.5 reaches 89 ± 2.5 and not 85 ± 2.5."""
    rows = [("red", [90.0, 91.0, 92.0]), ("kd", [88.0, 89.0, 90.0]), ("naive", [84.0, 85.0, 86.0])]
    found = means(arms(*rows))
    assert found is not None
    assert headline(found) == (
        "Highest mean accuracy: red with 91.0 ± 2.5 at peak (KiB) 8, not told from kd; 1 of 3 settings are on the "
        "Pareto front"
    )
    apart = means(arms(rows[0], rows[2]))
    assert apart is not None and "level" not in headline(apart)
    many = means(arms(*rows[:1], *((f"m{k}", rows[0][1]) for k in range(4))))
    assert many is not None and "not told from 4 others" in headline(many)


def test_two_seeds_that_agree_by_chance_have_the_interval_of_test_images() -> None:
    table = arms(("red", [80.0, 80.0]), ("kd", [60.0, 70.0]))
    found = means(table.assign(low=table["accuracy"] - 1.5, high=table["accuracy"] + 1.5))
    assert found is not None and found.half.tolist() == pytest.approx([1.5, 12.706 * 5], rel=1e-3)


def test_intervals_of_two_seeds_stretch_nothing_and_leave_what_can_be() -> None:
    """99 ± 12.7 and 80 ± 127 %: lines end at 0 and 100, the axis once as far beyond the points as these lie apart."""
    found = means(arms(("red", [98.0, 100.0]), ("kd", [70.0, 90.0])))
    drawn = pareto_figure(found, {}) if found else None
    assert found is not None and drawn is not None
    for trace, mean in zip(drawn["data"][1:], (99.0, 80.0), strict=True):
        assert mean + trace["error_y"]["array"][0] == 100 and mean - trace["error_y"]["arrayminus"][0] >= 0
    low, high = drawn["layout"]["yaxis"]["range"]
    assert 55 < low < 61 and 100 < high < 103


def test_a_method_has_its_colour_of_everywhere() -> None:
    found = means(arms(("teacher", [90.0]), ("red(alpha=5.0)+kd(temperature=4.0)", [80.0]), ("mine", [70.0])))
    drawn = pareto_figure(found, {}) if found else None
    assert drawn is not None
    tones = {trace["name"]: trace["marker"]["color"] for trace in drawn["data"][1:]}
    assert tones["teacher"] == color("teacher") and tones["red(alpha=5.0)+kd(temperature=4.0)"] == color("red+kd")
    alike = means(arms(("red(alpha=1.0)", [90.0]), ("red(alpha=5.0)", [80.0])))
    drawn = pareto_figure(alike, {}) if alike else None
    assert drawn is not None and len({trace["marker"]["color"] for trace in drawn["data"][1:]}) == 2


def test_cards_say_what_is_asked_and_found(tmp_path: Path) -> None:
    claim = "<b>RED wins &lt; all</b><br><b>at 4×</b><br><span style='x'>on digits</span>"
    executed(tmp_path / "notebooks", "00_tour", plot(None), plot("12 images"), plot(claim))
    executed(tmp_path / "notebooks", "01_plain", plot("12 images"), status="interrupted")
    executed(tmp_path / "notebooks", "02_tagged", plot(claim), plot("The tagged one"), tags=["finding"])
    page = write_index(tmp_path).read_text()
    assert page.count("<p>What do we lose at a peak?</p>") == 3
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["RED wins &lt; all at 4×", "12 images", "The tagged one"]
    assert "2 ok, 1 interrupted, 15 s in all" in page and "<span class=interrupted>interrupted</span>" in page
    assert page.count('<div class="figure small">') == 3


def test_a_thumbnail_is_the_png_where_there_is_one(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((1200, 900), 50).save(picture, "png")
    png = base64.b64encode(picture.getvalue()).decode()
    executed(tmp_path, "a", plot("Found") | {"image/png": png})
    page = write_index(tmp_path).read_text()
    data = page.partition('src="data:image/png;base64,')[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (480, 360) and len(page) < len(png)
    assert not (tmp_path / "plotly.min.js").exists() and "<script" not in page


def test_a_figure_of_another_tool_stops_nothing(tmp_path: Path) -> None:
    """Whose title is a text, or whose picture is none."""
    drawn = {FIGURE: {"data": [], "layout": {"title": "A <b>claim</b><span>on digits</span>"}}}
    executed(tmp_path, "a", plot("12 images"), drawn)
    executed(tmp_path, "b", plot("Found") | {"image/png": base64.b64encode(b"no picture").decode()})
    executed(tmp_path, "c", {FIGURE: ["no figure"]})
    page = write_index(tmp_path).read_text()
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["A claim", "Found"] and "3 ok" in page
    assert page.count('<div class="figure small">') == 2


def test_names_of_columns_are_no_tags(tmp_path: Path) -> None:
    for seed in range(2):
        odd = {f"<i>{k}": seed for k in range(20)}
        Run(tmp_path / f"r{seed}", {"seed": seed} | odd, "complete").save()
    page = write_index(tmp_path).read_text()
    assert "They differ in more: &lt;i&gt;0, &lt;i&gt;1," in page and "<i>0" not in page


def test_a_foreign_notebook_stops_nothing(tmp_path: Path) -> None:
    for name, text in (("a", "[]"), ("b", "{"), ("c", '{"name": "c"}')):
        (tmp_path / f"{name}.ipynb").write_text("{}")
        (tmp_path / f"{name}.json").write_text(text)
    assert "None executed yet" in write_index(tmp_path).read_text()
    for manifest in ("[1]", "{}", '{"points": 3}', '{"points": ["a"]}'):  # of another tool
        executed(tmp_path / "mine", "tour")
        (tmp_path / "mine" / "manifest.json").write_text(manifest)
        assert "1 ok, 5 s in all" in write_index(tmp_path).read_text()


def test_a_notebook_that_was_killed_is_told(tmp_path: Path) -> None:
    """What papermill leaves of it: a start and no end."""
    executed(tmp_path, "tour")
    began = datetime.fromtimestamp(time.time() - 90).astimezone().isoformat()
    for name, end in (("killed", None), ("done by papermill alone", began)):
        told = {"metadata": {"papermill": {"start_time": began, "end_time": end}}, "cells": []}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(told))
    page = write_index(tmp_path).read_text()
    assert "1 ok, 1 unfinished" in page and "<span class=unfinished>unfinished</span> 90 s" in page
    assert "by papermill alone" not in page


def test_a_report_of_a_sweep(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweeps" / "plans", points(), status="failed")
    executed(tmp_path / "sweeps" / "plans", "p-PLAN=gone-SEED=0")  # of an earlier form of the sweep
    file = write_index(tmp_path, file=tmp_path / "pages" / "index.html")
    page = file.read_text()
    assert "<h2>Sweep plans</h2>" in page and "9 points: 8 ok, 1 failed; 45 s in all" in page
    assert "None executed yet" not in page and "gone" not in page
    assert page.count("<div class=wide><table") == 2  # which scroll, each in its own box
    assert page.count("●") == 3 and "The same in all: <code>DATA=digits</code>" in page
    links = [link for link in Links(page).found if not link.startswith("data:")]
    assert "plotly.min.js" in links and len(links) == 1 + 3 + 9
    assert all((file.parent / link).exists() for link in links)
    assert "http" not in page and len(page) < 100_000
    write_sweep(tmp_path / "sweeps" / "plans", points(), status="interrupted")
    page = write_index(tmp_path).read_text()
    assert "9 points: 8 ok, 1 interrupted; 45 s in all" in page


def test_a_sweep_of_which_nothing_is_done_says_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that were killed have written no status beside a notebook; one that runs has a live claim."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "sweeps" / "plans"
    write_plan(folder, "a", "b", "c", "d", "e", "f")
    (folder / "a.ipynb").write_text("{}")
    for name, status, error in (("a", "died", "its worker process was killed"), ("b", "interrupted", None)):
        write_status(folder, PointStatus(name, "key", status, "call", seconds=272.0, error=error))
    for name, host in (("c", socket.gethostname()), ("d", "far")):
        write_status(folder, PointStatus(name, "key", "running", "call", host=host, pid=psutil.Process().pid))
    write_status(folder, PointStatus("e", "another key", "ok", "call", seconds=1000.0))
    lease = claim(folder, "c")
    lease.acquire()
    file = write_index(tmp_path / "runs")
    page = file.read_text()
    lease.release()
    assert "6 points: none ok, 1 died, 2 interrupted, 1 running, 2 to do; 9 min in all" in page
    assert "go on with what is not ok (5): <code>redistill sweep sweeps/plans.yaml</code>" in page
    assert "None executed yet" not in page and "its worker process was killed" in page
    assert [link for link in Links(page).found if not link.startswith("data:")] == ["sweeps/plans/a.ipynb"]
    folder.rename(tmp_path / "runs" / "plans")
    assert (
        "<code>redistill sweep sweeps/plans.yaml --output runs</code>" in write_index(tmp_path / "runs").read_text()
    )


def test_each_notebook_of_a_point_has_its_page(tmp_path: Path) -> None:
    write_plan(tmp_path / "both", "p")
    for stem in ("03_train", "04_distill"):
        executed(tmp_path / "both", f"p-{stem}")
    write_status(
        tmp_path / "both", PointStatus("p", "key", "ok", "call", notebooks={"03_train": "", "04_distill": ""})
    )
    links = Links(write_index(tmp_path).read_text()).found
    assert links == ["both/p-03_train.html", "both/p-04_distill.html"]


def test_numbers_of_a_column_are_alike(tmp_path: Path) -> None:
    """As many decimals and one minus sign, in means and in the table of runs."""
    rows = points()
    found = means(rows[rows["SEED"] == 0].assign(accuracy=[-41.5, -46.0, 12.0]))
    assert found is not None
    assert [found.told(row, "accuracy") for row in found.frame.to_dict("records")] == ["12.0", "−41.5", "−46.0"]
    for seed, score in enumerate((-41.5, -46.0)):
        Run(tmp_path / f"r{seed}", {"seed": seed}, "complete", metrics={"score": score}).save()
    page = write_index(tmp_path).read_text()
    assert "<td>−41.5</td>" in page and "<td>−46.0</td>" in page


def shown(page: Path, profile: Path, theme: int = 1) -> str:
    """The page as chromium has it after a while; theme 0 is the dark one."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    look = [f"--blink-settings=preferredColorScheme={theme}", "--virtual-time-budget=8000", "--dump-dom"]
    command = [shutil.which("chromium") or "chromium", *quiet, f"--user-data-dir={profile}", *look, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


@pytest.mark.chromium
def test_the_figure_is_drawn_in_either_theme(tmp_path: Path) -> None:
    """The teacher in the colour of the words, as black would not be seen in the dark, and the others in their own."""
    dark, purple, teal, blue = "rgb(208, 215, 222)", "rgb(170, 68, 153)", "rgb(68, 170, 153)", "rgb(0, 114, 178)"
    for theme, best, first in ((1, "late", purple), (0, "teacher", dark)):
        folder = tmp_path / best
        write_sweep(folder / "sweeps" / "plans", points().replace({"PLAN": {"late": best, "bad": "kd"}}))
        drawn = shown(write_index(folder), tmp_path / f"profile {theme}", theme)
        assert "Pareto front" in drawn and ("rgb(31, 35, 40)", dark)[1 - theme] in drawn
        assert re.findall(r'class="point[^>]*fill: (rgb.*?\))', drawn) == [first, teal, blue]


@pytest.mark.chromium
def test_a_click_on_a_point_opens_its_notebook(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweeps" / "plans", points())
    page = write_index(tmp_path)
    click = """<script>addEventListener("load", () => setTimeout(() => {
      document.querySelector(".figure").scrollIntoView();
      const {x, y, width, height} = document.querySelector(".points path").getBoundingClientRect();
      const at = {bubbles: true, view: window, clientX: x + width / 2, clientY: y + height / 2};
      for (const kind of ["mousemove", "mousedown", "mouseup"]) {
        document.elementFromPoint(at.clientX, at.clientY).dispatchEvent(new MouseEvent(kind, at));
      }
    }, 1000))</script>"""
    page.write_text(page.read_text().replace("</body>", f"{click}</body>"))
    assert re.sub("<.*?>", "", shown(page, tmp_path / "profile")).strip() == "page"


def test_a_run_that_several_points_share_is_above_no_single_one() -> None:
    """Its teacher's difference to the naive student is another at each factor; the taught student's is its own."""
    rows = []
    for factor, seed in itertools.product((2, 4), (0, 1)):
        point = {"FACTOR": factor, "SEED": seed, "point": f"{factor} {seed}", "peak (KiB)": 8.0}
        naive = 90.0 - factor - seed
        rows += [
            point | {"arm": "teacher", "run": f"t{seed}", "accuracy": 95.0, "above": 95.0 - naive, "±": 1.0},
            point | {"arm": "naive", "run": f"n{factor}{seed}", "accuracy": naive, "above": 0.0, "±": math.nan},
            point | {"arm": "kd", "run": f"k{factor}{seed}", "accuracy": naive + 2, "above": 2.0, "±": 1.0},
        ]
    found = means(pd.DataFrame(rows))
    assert found is not None and found.reference == "naive"
    assert found.metrics == ("peak (KiB)", "accuracy", "above")  # in the table's order
    above = found.frame.groupby("arm")["above"].agg(list)
    assert above["kd"] == [2.0, 2.0] and above["naive"] == [0.0, 0.0] and all(map(math.isnan, above["teacher"]))
    (teacher,) = found.frame[found.frame["arm"] == "teacher"].to_dict("records")
    assert found.told(teacher, "above") == "" and found.told(teacher, "accuracy") == "95.0"


def test_above_whom_is_said(tmp_path: Path) -> None:
    table = arms(("naive", [80.0, 81.0]), ("kd", [84.0, 86.0]))
    own = table["arm"] == "naive"
    table = table.assign(above=[0.0, 0.0, 4.0, 5.0], **{"±": [math.nan if each else 1.0 for each in own]})
    write_sweep(tmp_path / "sweeps" / "plans", table)
    assert "points above naive, in pairs" in write_index(tmp_path).read_text()


def test_an_interval_of_two_seeds_that_says_nothing_is_no_number() -> None:
    """12.7 times half of the difference: ± 63.5 of 100 says nothing, ± 12.7 something; ± 25.4 of 3 s nothing."""
    table = arms(("red", [98.0, 100.0]), ("kd", [70.0, 80.0])).assign(latency=[1.0, 5.0, 30.0, 32.0])
    found = means(table)
    assert found is not None
    red, kd = found.frame.to_dict("records")
    assert found.told(red, "accuracy") == "99.0 ± 12.7" and found.told(kd, "accuracy") == "75.0 (2 seeds: too few)"
    assert found.told(red, "latency") == "3.0 (2 seeds: too few)" and found.told(kd, "latency") == "31.0 ± 12.7"
    assert found.half.iloc[1] == pytest.approx(63.53, abs=0.01)  # for figures it is there
    alone = means(arms(("kd", [70.0, 80.0])))
    assert alone is not None and "75.0 (2 seeds: too few) at" in headline(alone)


def test_runs_of_the_stores_that_points_name_are_listed(tmp_path: Path) -> None:
    """Seen from the sweep's file."""
    home = tmp_path / "project"
    for store, name in ((home / "store", "far"), (home / "runs", "near")):
        (store / name).mkdir(parents=True)
        record = {"params": {"seed": 0, "model": {"name": name}}, "status": "complete", "metrics": {"accuracy": 0.5}}
        (store / name / "run.json").write_text(json.dumps(record))
    folder = home / "runs" / "sweeps" / "mine"
    write_plan(folder, "a", "b")
    (folder / "manifest.json").write_text(
        json.dumps({"points": [{"name": n, "key": "key"} for n in "ab"], "file": str(home / "mine.yaml")})
    )
    write_status(folder, PointStatus("a", "key", "ok", "call", {"RUNS": "./store"}))
    write_status(folder, PointStatus("b", "key", "ok", "call", {"RUNS": "./gone"}))
    page = write_index(home / "runs").read_text()
    assert "2 runs" in page and ">far<" in page and ">near<" in page


def test_an_interrupted_point_looks_like_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "sweeps" / "plans"
    write_plan(folder, "a")
    write_status(folder, PointStatus("a", "key", "interrupted", "call", error="In [10]: KeyboardInterrupt"))
    page = write_index(tmp_path).read_text()
    assert "1 interrupted" in page and "KeyboardInterrupt" not in page and "class=failed" not in page
