"""Outputs of executed notebooks made fit to commit. No torch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

from redistill_lib.runs import write_text

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
