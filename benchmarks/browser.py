"""How long a reader waits for a slider: from the key that is pressed to the figure that has changed, in a browser.

    python benchmarks/browser.py

Opens notebooks 00, 02 and 08 at smoke scale in JupyterLab and Chromium, whose networks and figures are those of the
defaults, and presses keys on one control after the other. A time is that between the key and the first frame after
the figure was drawn, as the page sees it; the median and the longest of `--presses`. An idle machine with two cores
is meant: what else runs only adds. Prints a line for each control.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # whose `jupyter` is meant

from jupyter import Notebook, chromium, jupyterlab, write_notebook
from smoke import NOTEBOOKS

GOALS = {
    ("00_tour", "stride"): 0.15,
    ("00_tour", "image"): 0.15,
    ("00_tour", "channel"): 0.15,
    ("02_peak_memory", "student"): 0.4,
    ("08_tradeoffs", "budget"): 0.4,
}
# Resolved in the first frame after the figure was drawn, with the milliseconds since the key.
TIMED = """explorer => { window.timed = new Promise(resolve => document.addEventListener("keydown", () => {
  const begin = performance.now(), plot = explorer.querySelector(".js-plotly-plot");
  plot.once("plotly_afterplot", () => requestAnimationFrame(() => resolve(performance.now() - begin)));
}, {once: true, capture: true})); }"""


def seconds(notebook: Notebook, description: str, presses: int) -> list[float]:
    """Of each press: to the end where there is room, and back."""
    explorer = notebook.explorers()[0]
    control = notebook.control(explorer, description)
    control.scroll_into_view_if_needed()
    control.focus()
    notebook.page.keyboard.press("Home")
    notebook.settle()
    found = []
    for k in range(presses):
        explorer.evaluate(TIMED)
        notebook.page.keyboard.press("ArrowLeft" if k % 2 else "ArrowRight")
        found.append(float(notebook.page.evaluate("() => window.timed")) / 1000)
        notebook.settle()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presses", type=int, default=10)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before this began", flush=True)
    with tempfile.TemporaryDirectory() as place, jupyterlab(Path(place)) as address, chromium() as browser:
        for path in NOTEBOOKS:
            if controls := [description for name, description in GOALS if name == path.stem]:
                notebook = Notebook(browser, address, write_notebook(path, Path(place)))
                notebook.run_all(600)
                for description in controls:
                    times = seconds(notebook, description, given.presses)
                    told = f"{statistics.median(times):.2f} s, at most {max(times):.2f} s"
                    print(f"{path.stem}, {description}: {told} (goal {GOALS[path.stem, description]} s)", flush=True)
                notebook.close()


if __name__ == "__main__":
    main()
