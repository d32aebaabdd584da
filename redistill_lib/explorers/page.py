"""A figure as one page that needs no network and no kernel."""

from __future__ import annotations

import base64
import gzip
from html import escape
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from redistill_lib.figures.theme import NARROW, PAGE
from redistill_lib.looks import dark_figures
from redistill_lib.runs import write_text


def write_page(figure: go.Figure, file: str | Path, title: str) -> Path:
    """Write a figure to a page of its own, plotly.js inside it, packed: below 3 MB where it would have 5.

    The figure is as wide as the window, from 600 to 840 pixels, unless it has a width of its own.
    The page follows the reader's light or dark theme, and the arrow keys move the figure's slider, as the mouse does.
    It needs a browser of 2023 or later. OSError where the file cannot be written.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    shown = figure.to_json().replace("</", "<\\/")  # a closing tag in a text would end the script
    words = {"title": escape(title), "dark": dark_figures(), "narrow": NARROW, "wide": PAGE}
    write_text(file, _PAGE.substitute(words, library=packed, figure=shown))
    return file


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title><style>
body { font: 16px system-ui, sans-serif; background: #fff; }
body { margin: 1rem auto; min-width: ${narrow}px; max-width: ${wide}px; }
@media (prefers-color-scheme: dark) {
  body { background: #121212; color: #eee; }
  $dark
}
</style></head><body>
<div id="figure" tabindex="0" role="application" aria-label="$title; the arrow keys move the slider">
Unpacking the figure; this needs JavaScript and a browser of 2023 or later.</div>
<script type="application/json" id="data">$figure</script>
<script type="text/plain" id="library">$library</script>
<script>
const place = document.getElementById("figure"), text = id => document.getElementById(id).textContent;
const bytes = Uint8Array.from(atob(text("library")), letter => letter.charCodeAt(0));
const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
new Response(stream).text().then(code => {
  const script = document.createElement("script");
  script.textContent = code;
  document.head.append(script);
  const figure = JSON.parse(text("data"));
  place.textContent = "";
  return Plotly.newPlot(place, figure.data, figure.layout, {displayModeBar: false, responsive: true});
}).then(() => {
  const slider = place.layout.sliders && place.layout.sliders[0];
  document.addEventListener("keydown", event => {
    const way = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1}[event.key];
    if (!slider || !way) return;
    event.preventDefault();
    const active = Math.min(Math.max((place.layout.sliders[0].active || 0) + way, 0), slider.steps.length - 1);
    const [data, layout] = slider.steps[active].args;
    Plotly.update(place, data, {...layout, "sliders[0].active": active});
  });
});
</script>
</body></html>
""")
