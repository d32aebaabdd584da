"""Executed notebooks in a report: the question of each, what its main figure says, and the figure, small."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from redistill_lib.progress import duration
from redistill_lib.report.text import figure, pairs, text
from redistill_lib.sweep import NotebookError
from redistill_lib.sweep.pages import FIGURE

FINDING = "finding"  # the tag of the cell that shows a notebook's main figure
_THUMBNAIL = (480, 360)  # pixels at most
_LARGEST = 200_000  # letters of a figure that is drawn again as a thumbnail


@dataclass(frozen=True)
class Executed:
    """One executed notebook, as `sweep.run_notebook` left it."""

    path: Path
    record: Mapping[str, Any]  # of the status file beside it

    @classmethod
    def read(cls, path: Path) -> Executed | None:
        """None where the file beside it is not a status. Without one, of what was killed or still runs, its start."""
        try:
            if not path.with_suffix(".json").exists():
                return cls._unfinished(path)
            record = json.loads(path.with_suffix(".json").read_bytes())
            known = isinstance(record, dict) and {"name", "status", "seconds", "error", "html"} <= record.keys()
            return cls(path, {"parameters": {}, **record}) if known else None
        except (OSError, ValueError, TypeError, AttributeError):  # damaged, or another tool's
            return None

    @classmethod
    def _unfinished(cls, path: Path) -> Executed | None:
        told = json.loads(path.read_bytes()).get("metadata", {}).get("papermill", {})
        if not told.get("start_time") or told.get("end_time"):
            return None
        seconds = path.stat().st_mtime - datetime.fromisoformat(told["start_time"]).timestamp()
        facts = {"status": "unfinished", "seconds": max(0.0, seconds), "error": None, "html": None}
        return cls(path, {"name": path.stem, "parameters": {}, **facts})

    def link(self, base: Path) -> str:
        """Its page, or the notebook itself, from a page in `base`."""
        page = self.record["html"]
        return quote(Path(os.path.relpath(self.path.with_name(page) if page else self.path, base)).as_posix())


def notebook_section(notebooks: Sequence[Executed], base: Path) -> str:
    if not notebooks:
        return "<h2>Notebooks</h2><p>None executed yet: <code>redistill run notebooks/*.ipynb</code></p>"
    records = [each.record for each in notebooks]
    bad = {status: sum(r["status"] == status for r in records) for status in ("failed", "interrupted", "unfinished")}
    counts = [f"{len(records) - sum(bad.values())} ok", *(f"{n} {status}" for status, n in bad.items() if n)]
    total = duration(sum(record["seconds"] for record in records))
    cards = "\n".join(_card(each, base) for each in notebooks)
    return f"<h2>Notebooks</h2><p>{', '.join(counts)}, {total} in all</p>{cards}"


def _card(executed: Executed, base: Path) -> str:
    record, link = executed.record, executed.link(base)
    file = quote(Path(os.path.relpath(executed.path, base)).as_posix())
    question, finding, thumbnail = _told(executed.path)
    lines = [f"<h3>{text(finding)}</h3>" if finding else "", f"<p>{text(question)}</p>" if question else ""]
    about = f'<a href="{link}">{text(record["name"])}</a> {pairs(record["parameters"])}'
    status = f"<span class={text(record['status'])}>{text(record['status'])}</span> {duration(record['seconds'])}"
    lines.append(f'<p>{about} · {status} · <a href="{file}">ipynb</a></p>')
    if record["error"] and record["status"] != "interrupted":  # which is no fault
        error = str(NotebookError(**record["error"])).splitlines()[0]
        lines.append(f"<p class=failed>{text(error)}</p>")
    picture = f'<a class=thumbnail href="{link}">{thumbnail}</a>' if thumbnail else ""
    return f"<div class=card>{picture}<div>{''.join(lines)}</div></div>"


def _told(path: Path) -> tuple[str, str, str]:
    """A notebook's question, its finding, and its main figure small, each empty where it has none."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        first = next((_source(cell) for cell in cells if cell["cell_type"] == "markdown"), "")
        shown = [*_figures(cells)]
        tagged = [data for data, tags in shown if FINDING in tags]
        plain = [data for data, _ in shown if _title(data)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # no notebook: its status is told all the same
        return "", "", ""
    asked = re.search(r"\*\*Question\.?\*\*\s*(.+?)(?=\n\s*\n|\Z)", first, re.DOTALL)
    question = re.sub(r"[*`]|\s+", lambda found: " " if found[0].isspace() else "", asked[1]) if asked else ""
    claims = [data for data in plain if "<span" in _said(data)]  # with a subtitle
    main = next(iter([*tagged, *claims, *plain]), None)
    return question, _title(main) if main else "", _thumbnail(main) if main else ""


def _figures(cells: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Sequence[str]]]:
    for cell in cells:
        for output in cell.get("outputs", []):
            if FIGURE in output.get("data", {}):
                yield output["data"], cell.get("metadata", {}).get("tags", [])


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _said(data: Mapping[str, Any]) -> str:
    """A figure's title as it stands, which is a text or has one."""
    title = data[FIGURE].get("layout", {}).get("title")
    return str((title.get("text") if isinstance(title, Mapping) else title) or "")


def _title(data: Mapping[str, Any]) -> str:
    """A figure's title without its subtitle and marks."""
    words = re.sub(r"<br\s*/?>", " ", _said(data).partition("<span")[0])
    return html.unescape(re.sub(r"<[^>]+>", "", words)).strip()


def _thumbnail(data: Mapping[str, Any]) -> str:
    """From the figure's own PNG; without one it is drawn by the reader's browser."""
    with contextlib.suppress(KeyError, ValueError, OSError):  # it has none, or it is damaged
        image = Image.open(io.BytesIO(base64.b64decode("".join(data["image/png"])))).convert("RGB")
        image.thumbnail(_THUMBNAIL)
        small = io.BytesIO()
        image.quantize(64).save(small, "png", optimize=True)
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}">'
    drawn = figure({key: data[FIGURE][key] for key in ("data", "layout") if key in data[FIGURE]}, "small")
    return drawn if len(drawn) <= _LARGEST else ""
