"""The report over a folder of runs: one page that works offline, in the reader's light or dark theme."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from urllib.parse import quote

import pandas as pd

from redistill_lib.looks import color
from redistill_lib.report.notebooks import Executed, notebook_section
from redistill_lib.report.sweeps import sweep_section
from redistill_lib.report.text import pairs, table, text
from redistill_lib.runs import write_text
from redistill_lib.store.tables import listed_runs, run_tables
from redistill_lib.sweep.manifest import PointStatus, file_of, planned_statuses
from redistill_lib.sweep.pages import shared_library


def write_index(
    runs_root: str | Path, *, notebooks: Sequence[str | Path] = (), file: str | Path | None = None
) -> Path:
    """Write one page over the training runs in `runs_root` and the executed notebooks below it and below `notebooks`.

    Of each notebook it has the question and what its main figure says (that of the cell tagged ``finding``, else the
    first that makes a claim), of each sweep the means over seeds and score over memory with the Pareto front. `file`
    defaults to `runs_root/index.html`; beside it lies the plotly.min.js that draws. Links are relative to the page,
    so the folder can be moved. Training runs are there too of the stores that points of these sweeps name as `RUNS`.
    """
    root = Path(runs_root).resolve()
    file = Path(file).resolve() if file else root / "index.html"
    found = {path for folder in (root, *notebooks) for path in Path(folder).resolve().rglob("*.ipynb")}
    paths = [path for path in sorted(found) if ".ipynb_checkpoints" not in path.parts]
    executed = [each for each in map(Executed.read, paths) if each]
    manifests = {path for folder in (root, *notebooks) for path in Path(folder).resolve().rglob("manifest.json")}
    sweeps = {path.parent: planned_statuses(path.parent) for path in sorted(manifests)}
    alone = [each for each in executed if sweeps.get(each.path.parent) is None]
    told = [sweep_section(folder, points, file.parent) for folder, points in sweeps.items() if points is not None]
    sections = [*([notebook_section(alone, file.parent)] if alone or not told else []), *told]
    tables = run_tables(listed_in([root, *stores_of(sweeps)]))
    for kind, each in tables.items():
        shared = f"; the same in all: {pairs(each.same)}" if each.same else ""
        count = f"{len(each.runs)} run{'s' * (len(each.runs) > 1)}"
        more = f"<p>They differ in more: {text(', '.join(each.more))}</p>" if each.more else ""
        sections.append(f"<h2>{kind}</h2><p>{count}{shared}</p>{table(each.runs)}{more}")
    if not tables:
        sections.append("<h2>Training runs</h2><p>None yet.</p>")
    time = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    body = "\n".join(sections)
    script = ""
    if 'class="figure' in body:
        library = quote(Path(os.path.relpath(shared_library(file.parent), file.parent)).as_posix())
        script = (
            f'<script charset="utf-8" defer src="{library}"></script>{_DRAW.replace("TEACHER", color("teacher"))}'
        )
    write_text(file, _PAGE.substitute(sections=body, time=time, script=script))
    return file


def stores_of(sweeps: Mapping[Path, Mapping[str, PointStatus | None] | None]) -> list[Path]:
    """The folders in which points of these sweeps keep their runs, where they say so and the folders are there."""
    found = dict[Path, None]()
    for folder, points in sweeps.items():
        named = {status.parameters.get("RUNS") for status in (points or {}).values() if status}
        home = file_of(folder)
        for name in sorted(each for each in named if isinstance(each, str)):
            places = [Path(place, name) for place in ((home.parent, Path.cwd()) if home else (Path.cwd(),))]
            if place := next((place for place in places if place.is_dir()), None):
                found[place.resolve()] = None
    return [*found]


def listed_in(stores: Sequence[Path]) -> pd.DataFrame:
    """`listed_runs` of several stores, each once."""
    frames = [listed_runs(store) for store in dict.fromkeys(stores)]
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


_DRAW = """<script>
document.addEventListener("DOMContentLoaded", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const places = [...document.querySelectorAll("div.figure")];
  const axes = layout => Object.keys(layout).filter(name => /^[xy]axis\\d*$/.test(name));
  const ink = () => dark.matches ? "#d0d7de" : "#1f2328";
  const theme = layout => {
    const looks = {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink()};
    for (const axis of axes(layout)) {
      looks[axis + ".gridcolor"] = looks[axis + ".zerolinecolor"] = dark.matches ? "#3d444d" : "#d8dee4";
    }
    return looks;
  };
  for (const place of places) {
    const data = place.querySelector("script[type='application/json']");
    const small = place.classList.contains("small");
    if (!window.Plotly) {
      if (!small) place.append("This figure needs the file plotly.min.js beside this page, which is not there.");
      continue;
    }
    const figure = JSON.parse(data.textContent);
    data.remove();
    const config = small ? {staticPlot: true} : {responsive: true, displayModeBar: false};
    Plotly.newPlot(place, figure.data, figure.layout, config).then(() => {
      if (small) return;  // a notebook's figure keeps its own colours
      const teachers = [...place.data.keys()].filter(k => (place.data[k].marker || {}).color === "TEACHER");
      const looks = () => teachers.length ? {"marker.color": ink(), "error_y.color": ink()} : {};  // [] names all
      const draw = () => Plotly.update(place, looks(), theme(place.layout), teachers);
      const tell = cursor => () => place.querySelector(".nsewdrag").style.cursor = cursor;
      draw();
      dark.addEventListener("change", draw);
      place.on("plotly_hover", tell("pointer"));
      place.on("plotly_unhover", tell(""));
      place.on("plotly_click", event => {
        const page = (event.points[0].customdata || [])[0];
        if (page) location.href = page;
      });
    });
  }
});
</script>"""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ReDistill lab: runs</title>$script<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h2 { margin-top: 2.5rem; }
h3 { margin: 0 0 .3rem; font-size: 1.1rem; line-height: 1.35; }
.wide { overflow-x: auto; background: /* a shadow at the edge beyond which there is more */
    linear-gradient(to right, Canvas 50%, transparent) local left / 3rem 100% no-repeat,
    linear-gradient(to left, Canvas 50%, transparent) local right / 3rem 100% no-repeat,
    linear-gradient(to right, #8888, transparent) scroll left / .9rem 100% no-repeat,
    linear-gradient(to left, #8888, transparent) scroll right / .9rem 100% no-repeat; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem .7rem; }
th { vertical-align: bottom; }
td { border-top: 1px solid #8886; white-space: nowrap; }
td:first-child { min-width: 15rem; white-space: normal; overflow-wrap: anywhere; }
td p { margin: 0; white-space: normal; font-size: .85rem; }
.card { display: flex; gap: 1.5rem; padding: 1rem 0; border-top: 1px solid #8886; align-items: flex-start; }
.card p { margin: .2rem 0; }
.thumbnail { flex: none; width: 240px; max-height: 170px; overflow: hidden; background: #fff;
  border: 1px solid #8884; border-radius: 6px; }
.thumbnail img { width: 100%; display: block; }
.thumbnail .small { zoom: .279; pointer-events: none; }
.ok { color: #1a7f37; }
.failed, .died { color: #d1242f; }
.interrupted, .unfinished { color: #9a6700; }
@media (prefers-color-scheme: dark) {
  .thumbnail { filter: brightness(.8); } /* its colours are told by their hue: it is not turned */
  .thumbnail:hover { filter: none; }
  .ok { color: #3fb950; } .failed, .died { color: #f85149; } .interrupted, .unfinished { color: #d29922; }
}
@media (max-width: 44rem) { .card { flex-direction: column; } }
</style></head><body>
<h1>ReDistill lab: runs</h1><p>Written $time</p>
$sections
</body></html>
""")
