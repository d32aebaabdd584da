"""What executed notebooks leave for readers: outputs fit to commit, the index page of `runs/`. No torch."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import nbformat
import pandas as pd
from PIL import Image

from redistill_lib.runs import write_text
from redistill_lib.store.tables import listed_runs, run_tables
from redistill_lib.sweep import NotebookError
from redistill_lib.sweep.manifest import planned_names

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def source_hash(notebook: Any) -> str:
    """SHA-256 of a notebook's code and markdown cells, without outputs and metadata."""
    sources = [[cell.cell_type, cell.source] for cell in notebook.cells if cell.cell_type in ("code", "markdown")]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def outputs_match_source(path: str | Path) -> bool:
    """Whether a notebook's outputs came from the cells it has now, by the stamp of `refresh_outputs`."""
    notebook = nbformat.read(path, as_version=4)
    return bool(notebook.metadata.get("redistill", {}).get("source_sha256") == source_hash(notebook))


def refresh_outputs(source: str | Path, executed: str | Path) -> None:
    """Take the outputs of `executed`, a run of `source` at its defaults, over into `source`.

    Widget views and absolute paths are left behind, images get a palette, and the notebook is stamped with
    `source_hash`. Raises ValueError when `executed` ran other cells than `source` has now.
    """
    source = Path(source)
    notebook, done = nbformat.read(source, as_version=4), nbformat.read(executed, as_version=4)
    if source_hash(notebook) != source_hash(done):
        raise ValueError(f"{source.name} changed while it ran: its outputs stay as they were, run it again")
    clean = _path_cleaner(source)
    for cell, ran in zip(notebook.cells, done.cells, strict=True):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            kept = [output for output in ran.outputs if WIDGET_VIEW not in output.get("data", {})]
            cell.outputs = [nbformat.from_dict(_with_small_images(clean(output))) for output in kept]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    stamp = {"source_sha256": source_hash(notebook)}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "redistill": stamp}
    write_text(source, nbformat.writes(notebook) + "\n")


def _with_small_images(output: dict[str, Any]) -> dict[str, Any]:
    """The output with its PNG reduced to 256 colours: a chart looks the same and takes half the space."""
    text = output.get("data", {}).get("image/png")
    if not isinstance(text, str):
        return output
    image = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
    small = io.BytesIO()
    colors = 256 if image.getcolors(256) else 128  # exact where it can be
    few = image.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)  # a single marker's colour too
    few.save(small, "png", optimize=True)
    encoded = base64.b64encode(small.getvalue()).decode()
    return output | {"data": output["data"] | {"image/png": min(encoded, text, key=len)}}


def _path_cleaner(source: Path) -> Callable[[Any], Any]:
    """A function that rewrites this machine's folders in any JSON value, seen from the notebook's folder."""
    folder = source.resolve().parent
    names = {str(Path.home()): "~", sys.prefix: "…", str(folder.parent): "..", str(folder): "."}
    names = {path: name for path, name in names.items() if len(Path(path).parts) > 1}  # not "/"
    longest_first = sorted(names, key=len, reverse=True)
    # Never inside a word, and not where base64 data may run on.
    paths = re.compile(r"(?<![\w+/=])(?:file://)?(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")
    cells = re.compile(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py")

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return paths.sub(lambda found: names[found[1]], cells.sub("cell.py", value))
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    return clean


def write_index(
    runs_root: str | Path, *, notebooks: Sequence[str | Path] = (), file: str | Path | None = None
) -> Path:
    """Write one page over the training runs in `runs_root` and the executed notebooks below it and below `notebooks`.

    `file` defaults to `runs_root/index.html`. Links are relative to the page, so the folder can be moved.
    """
    root = Path(runs_root).resolve()
    file = Path(file).resolve() if file else root / "index.html"
    found = {path for folder in (root, *notebooks) for path in Path(folder).resolve().rglob("*.ipynb")}
    executed = [p for p in sorted(found) if ".ipynb_checkpoints" not in p.parts and p.with_suffix(".json").is_file()]
    plans = {folder: planned_names(folder) for folder in {path.parent for path in executed}}
    executed = [path for path in executed if _planned(path.stem, plans[path.parent])]
    sections = [_notebook_section(executed, file.parent)]
    for kind, table in run_tables(listed_runs(root)).items():
        shared = f"; the same in all: {_pairs(table.same)}" if table.same else ""
        count = f"{len(table.runs)} run{'s' * (len(table.runs) > 1)}"
        sections.append(f"<h2>{kind}</h2><p>{count}{shared}</p>{_table(table.runs)}")
    if len(sections) == 1:
        sections.append("<h2>Training runs</h2><p>None yet.</p>")
    time = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    write_text(file, _PAGE.substitute(sections="\n".join(sections), time=time))
    return file


def _planned(name: str, points: set[str] | None) -> bool:
    """Whether an executed notebook still belongs to the sweep of its folder, if that is one's."""
    return points is None or any(name == point or name.startswith(f"{point}-") for point in points)


def _notebook_section(notebooks: Sequence[Path], base: Path) -> str:
    """From the status files that `sweep.run_notebook` left beside the notebooks."""
    if not notebooks:
        return "<h2>Notebooks</h2><p>None executed yet: <code>redistill run notebooks/*.ipynb</code></p>"
    records = [json.loads(notebook.with_suffix(".json").read_text(encoding="utf-8")) for notebook in notebooks]
    rows = []
    for notebook, record in zip(notebooks, records, strict=True):
        link = quote(os.path.relpath(notebook, base))
        page = quote(os.path.relpath(notebook.with_name(record["html"]), base)) if record["html"] else link
        error = str(NotebookError(**record["error"])).splitlines()[0] if record["error"] else ""
        name = f'<a href="{page}">{_text(record["name"])}</a><p>{_pairs(record["parameters"])}</p>'
        status = f"<span class={record['status']}>{record['status']}</span>"
        file = f'<a href="{link}">ipynb</a>'
        rows.append((f"{name}<p class=failed>{_text(error)}</p>", status, duration(record["seconds"]), file))
    table = _table(pd.DataFrame(rows, columns=["notebook", "status", "time", "file"]), escape=False)
    failed = sum(record["status"] != "ok" for record in records)
    summary = f"{len(records) - failed} ok{f', {failed} failed' if failed else ''}"
    total = duration(sum(record["seconds"] for record in records))
    return f"<h2>Notebooks</h2><p>{summary}, {total} in all</p>{table}"


def _table(frame: pd.DataFrame, escape: bool = True) -> str:
    with pd.option_context("display.max_colwidth", None, "display.float_format", "{:.4g}".format):
        return str(frame.to_html(index=False, escape=escape, border=0, justify="left"))


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(4.21), duration(75), duration(7260)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"<code>{_text(name)}={_text(value)}</code>" for name, value in values.items())


def _text(value: Any) -> str:
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ReDistill lab: runs</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2.5rem auto; padding: 0 1.5rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem; white-space: nowrap; }
td { border-top: 1px solid #8886; }
td p { margin: 0; white-space: normal; font-size: .85rem; }
.ok { color: #1a7f37; }
.failed { color: #d1242f; }
</style></head><body>
<h1>ReDistill lab: runs</h1><p>Written $time</p>
$sections
</body></html>
""")
