"""The HTML page of an executed notebook: its figures live, one plotly.js for all pages of a folder, no network."""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat

from redistill_lib.looks import dark_figures
from redistill_lib.runs import replacing

FIGURE = "application/vnd.plotly.v1+json"
LIBRARY = "plotly.min.js"


def page_of(notebook: Path, folder: Path) -> str:
    """The page to be put beside an executed notebook, as HTML.

    Figures are drawn by a plotly.min.js in `folder` (5 MB), which is copied there once from the installed plotly and
    may serve any number of pages in it and below; the arrow keys move the slider of a figure that has the focus. The
    page follows the reader's light or dark theme, its figures too. Only formulas need a network, for MathJax.
    """
    from nbconvert import HTMLExporter

    document = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in document.cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if FIGURE in output.get("data", {})]
    for output in figures:
        output["data"] = {"text/html": _drawn_by_script(output["data"][FIGURE])}
    exporter = HTMLExporter(raw_template=_TEMPLATE)
    dark, *_ = exporter.environment.loader.get_source(exporter.environment, "static/theme-dark.css")
    text = json.dumps(document)
    resources = {"metadata": {"name": notebook.stem, "path": str(notebook.parent)}, "dark": dark + dark_figures()}
    resources |= {"formulas": "$" in text, "diagrams": "mermaid" in text, "library": ""}
    if figures:
        library = shared_library(folder)
        resources["library"] = quote(Path(os.path.relpath(library, notebook.parent)).as_posix())
    body, _ = exporter.from_notebook_node(document, resources)
    pages = re.sub(r'href="(\w+)\.ipynb"', r'href="\1.html"', str(body))  # the neighbours are pages here, too
    return pages.replace('href="README.md"', 'href="../index.html"')


def _drawn_by_script(figure: dict[str, Any]) -> str:
    text = json.dumps(figure).replace("<", "\\u003c")  # nothing in it may end the script
    return f'<div class="plotly-graph-div"><script type="application/json">{text}</script></div>'


def shared_library(folder: Path) -> Path:
    """The installed plotly's plotly.min.js in that folder; any number of processes may put it there at once."""
    found = find_spec("plotly")  # not imported: only its file is wanted
    assert found is not None and found.origin is not None
    source, target = Path(found.origin).parent / "package_data" / LIBRARY, folder / LIBRARY
    if not target.exists() or not filecmp.cmp(source, target, shallow=False):
        with replacing(target) as part:
            shutil.copyfile(source, part)
    return target


_TEMPLATE = """\
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}
{%- if resources.library -%}<script charset="utf-8" defer src="{{ resources.library }}"></script>{%- endif -%}
{%- endblock -%}
{%- block html_head_js_mathjax -%}
{%- if resources.formulas -%}{{ super() | replace('<script src', '<script async src') }}{%- endif -%}
{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- if resources.diagrams -%}{{ super() }}{%- endif -%}{%- endblock -%}
{%- block notebook_css -%}
{{ super() }}
<style>
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
{{ resources.dark }}
}
.plotly-graph-div { min-height: 2em; overflow: auto hidden; }
@media (max-width: 650px) {
  body.jp-Notebook { margin: 0; padding: 8px 0; }
  .jp-Notebook .jp-Cell { padding-left: 4px; padding-right: 4px; }
}
</style>
{%- endblock -%}
{%- block footer_js -%}
{%- if resources.library -%}
<script>
document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll("div.plotly-graph-div")) {
    const data = place.querySelector("script[type='application/json']");
    if (!data) continue;
    if (window.Plotly) {
      const figure = JSON.parse(data.textContent);
      figure.config = { responsive: true, ...figure.config };
      data.remove();
      Plotly.newPlot(place, figure);
      if (!figure.layout.sliders) continue;
      place.tabIndex = 0;
      place.ariaLabel = "a figure whose slider the left and right arrow keys move";
      place.addEventListener("keydown", event => {
        const way = {ArrowRight: 1, ArrowLeft: -1}[event.key], {steps, active} = place.layout.sliders[0];
        if (!way) return;
        event.preventDefault();
        const next = Math.min(Math.max((active || 0) + way, 0), steps.length - 1);
        const moved = Plotly[steps[next].method](place, ...steps[next].args);
        moved.then(() => Plotly.relayout(place, {"sliders[0].active": next}), () => {});  // unless overtaken
      });
    } else {
      place.append("This figure needs the file {{ resources.library }}, which is not there.");
    }
  }
});
</script>
{%- endif -%}
{%- endblock -%}
"""
