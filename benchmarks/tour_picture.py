"""The README's first picture: the figure of the tour's slider, as the executed notebook has it.

python benchmarks/tour_picture.py        after `make notebooks`; writes docs/tour.png (needs Chrome or Chromium)
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import plotly.graph_objects as go

ROOT = Path(__file__).parents[1]


def main() -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "00_tour.ipynb", 4)
    [cell] = [cell for cell in notebook.cells if cell.source.count("explorers.explore(")]
    [shown] = [output.data for output in cell.outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    go.Figure(shown["application/vnd.plotly.v1+json"]).write_image(ROOT / "docs" / "tour.png", scale=2)
    print(ROOT / "docs" / "tour.png")


if __name__ == "__main__":
    main()
