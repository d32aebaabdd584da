"""A real JupyterLab, or another page of a kernel, in a real Chromium: how tests and benchmarks open and move it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from smoke import smoke_values

from redistill_lib.parameters import with_parameters

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "runs" / "browser"
FLAGS = (
    "--no-sandbox --headless --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SETTINGS = {  # all cells are in the page, also those out of sight; nothing is asked of the network
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
# What a cell shows: data and layout of its figures, and its tables.
SHOWN = """cell => JSON.stringify([
  [...cell.querySelectorAll(".js-plotly-plot")].map(plot => [plot.data, {...plot.layout, template: null}]),
  [...cell.querySelectorAll(".widget-html-content")].map(html => html.innerHTML)])"""


@contextlib.contextmanager
def started(command: Sequence[str], folder: Path, **variables: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server for as long as it is needed, with an empty Jupyter of its own, and the file of what it says."""
    home, log = folder / "home", folder / "server.log"
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    env = {**os.environ, **{name: str(home / name.lower()) for name in places}, **variables}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{env.get('PYTHONPATH', '')}"}
    env.pop("REDISTILL_BATCH", None)
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder, env=env)
        try:
            yield server, log
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def said(server: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """What the server has said that matches; AssertionError where it does not within two minutes."""
    for _ in range(600):
        if found := re.search(pattern, log.read_text()):
            return found[0]
        if server.poll() is not None:
            break
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that shows this folder."""
    for plugin, values in SETTINGS.items():
        file = folder / "home" / "settings" / plugin
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    port = free_port()
    options = {"ip": "127.0.0.1", "port": port, "ServerApp.root_dir": folder, "IdentityProvider.token": ""}
    options |= {"ServerApp.disable_check_xsrf": True, "LabApp.expose_app_in_browser": True}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with started(command, folder, JUPYTERLAB_SETTINGS_DIR=str(folder / "home" / "settings")) as server:
        said(*server, r"http://127\.0\.0\.1:\d+/lab")
        yield f"http://127.0.0.1:{port}"


def write_notebook(path: Path, folder: Path) -> str:
    """A notebook at smoke scale without committed outputs, and what JupyterLab calls it; all share a run store."""
    notebook = nbformat.reads(with_parameters(path, smoke_values(path, folder / "runs")), 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    (folder / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook, folder / "notebooks" / path.name)
    return f"notebooks/{path.name}"


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS.split())
        yield browser
        browser.close()


KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
PLACE = (
    "control => control.tagName == 'SELECT' ? control.selectedIndex : Number(control.getAttribute('aria-valuenow'))"
)
DESCRIPTIONS = """explorer => [...explorer.querySelectorAll(".widget-inline-hbox")]
  .filter(row => row.querySelector(".noUi-handle, select") && !row.querySelector("[disabled]"))
  .map(row => row.querySelector(".widget-label").textContent)"""
WIDE = """() => [...document.querySelectorAll(".jp-OutputArea-output")]
  .filter(output => output.scrollWidth > output.clientWidth + 1)
  .map(output => ({needs: output.scrollWidth, has: output.clientWidth, says: output.textContent.slice(0, 80)}))"""
DRAWN = """() => Object.fromEntries([...document.querySelectorAll(".js-plotly-plot")].map((plot, k) => [
  `${k}: ${plot.querySelector(".gtitle")?.textContent.slice(0, 60)}`,
  plot.data.length > 0 && plot.getBoundingClientRect().height > 50 && [...plot.querySelectorAll(
    ".trace, .imagelayer image, .heatmaplayer image, .shapelayer path, .parcoords, .barlayer path")].length > 0]))"""
STDERR = "[data-mime-type='application/vnd.jupyter.stderr']"
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"


class Sheet:
    """A page of figures and widgets, with the errors of its console."""

    def __init__(self, browser: Browser, width: int = 1280, height: int = 1000):
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.errors: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.errors.append(text)

    def shown(self, place: Locator) -> str:
        """Data and layout of the figures in this place, and its tables, as text."""
        return str(place.evaluate(SHOWN))

    def changed(self, place: Locator, before: str, seconds: float = 60.0) -> bool:
        """Whether what is shown becomes another within this time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.shown(place) != before:
                return True
            self.page.wait_for_timeout(50)
        return False

    def control_label(self, place: Locator, description: str) -> Locator:
        return place.locator(".widget-label").get_by_text(description, exact=True)

    def control(self, place: Locator, description: str) -> Locator:
        """What takes the keys of a slider or dropdown."""
        label = self.page.get_by_text(description, exact=True)
        return place.locator(".widget-inline-hbox", has=label).locator(".noUi-handle, select")

    def shoot(self, name: str) -> None:
        """Keep a picture of what is in sight, in runs/browser."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")


class Notebook(Sheet):
    """One notebook of a JupyterLab, its side bar open."""

    def __init__(self, browser: Browser, address: str, name: str):
        super().__init__(browser)
        self.address, self.panel = address, self.page.locator(".jp-NotebookPanel")
        self.page.goto(f"{address}/lab/tree/{name}?reset")
        self._wait(f"{KERNEL}?.connectionStatus == 'connected'", 120)  # what is run before is lost
        self.settle()

    def _wait(self, condition: str, seconds: float) -> None:
        self.page.wait_for_function(f"() => {condition}", polling=200, timeout=1000 * seconds)

    def run_all(self, seconds: float) -> None:
        """Run every cell, or up to the first error."""
        run = "jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true; })"
        self.page.evaluate(f"() => {{ window.ran = false; {run}; }}")
        self._wait("window.ran", seconds)
        self.settle()

    def close(self) -> None:
        """The page, and the kernel."""
        self.page.close()
        for session in json.loads(self._api("GET", "sessions")):
            self._api("DELETE", f"sessions/{session['id']}")

    def _api(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return bytes(reply.read())

    def settle(self) -> None:
        """Until the kernel has answered and the page has drawn it."""
        self.page.wait_for_timeout(300)
        self._wait(f"{KERNEL}?.status == 'idle'", 120)
        self.page.wait_for_timeout(300)

    def complaints(self) -> list[str]:
        """Errors and whatever else is written to stderr in the notebook, and in the browser's console."""
        return self.errors + self.page.locator(f"{ERROR}, {STDERR}").all_inner_texts()

    def too_wide(self) -> list[dict[str, Any]]:
        """Outputs that do not fit their cell."""
        return list(self.page.evaluate(WIDE))

    def drawn(self) -> dict[str, bool]:
        """Of each figure of the page, by its title: whether something is in it."""
        return dict(self.page.evaluate(DRAWN))

    def explorers(self) -> list[Locator]:
        cells = self.page.locator(".jp-CodeCell", has=self.page.locator(".noUi-handle"))
        return [cells.nth(k) for k in range(cells.count())]

    def descriptions(self, explorer: Locator) -> list[str]:
        """Of the controls that can be moved."""
        return list(explorer.evaluate(DESCRIPTIONS))

    def press_tab_until(self, control: Locator, most: int) -> bool:
        """Whether so many presses of the tab key lead there."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            if control.evaluate("control => control === document.activeElement"):
                return True
        return False

    def moves(self, explorer: Locator, control: Locator, idle: bool) -> bool:
        """Press Home and End: whether the picture changed whenever the control did. Then back to where it was."""
        moved, opening, before = [], control.evaluate(PLACE), control.evaluate(PLACE)
        for key in ("Home", "End"):
            shown = self.shown(explorer)
            self.page.keyboard.press(key)
            if before != (before := control.evaluate(PLACE)):
                self.settle()
                moved.append(self.changed(explorer, shown, 1.0 if idle else 60.0))
        if (
            control.evaluate("control => control.tagName") == "SELECT"
        ):  # whose arrow keys JupyterLab takes for its cells
            control.select_option(index=opening)
        else:
            self.page.keyboard.press("Home")
            for _ in range(opening):
                self.page.keyboard.press("ArrowRight")
        self.settle()
        return bool(moved) and all(moved)

    def shoot_all(self, name: str) -> None:
        """Keep pictures of the whole notebook, a screen each."""
        view = self.panel.locator(".jp-WindowedPanel-outer")
        height, screen = view.evaluate("view => [view.scrollHeight, view.clientHeight]")
        for k, top in enumerate(range(0, height, int(screen * 0.92)), 1):
            view.evaluate("(view, top) => view.scrollTo(0, top)", top)
            self.page.wait_for_timeout(200)
            self.shoot(f"{name}-{k:02d}")
