"""`redistill app`: the explorer as a page of its own, with a kernel behind it on this machine. Needs Voilà."""

from __future__ import annotations

import argparse
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

import nbformat
import zmq
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_server.auth.decorator import allow_unauthenticated
from jupyter_server.base.handlers import JupyterHandler
from traitlets.config import Config
from voila.app import Voila

from redistill_lib.comparison import Arm, Budget, compare
from redistill_lib.data import load_data
from redistill_lib.explorers.command import look, title
from redistill_lib.models import student_name
from redistill_lib.train import Recipe, RunOptions, train_classifier

ADDRESS = "127.0.0.1"
#: The parameters of notebook 00, so that what it has trained is found.
TOUR: dict[str, Any] = {
    "DATA": "cluttered", "TRAIN_SIZE": 6000, "TEACHER": "resnet18-1-21222", "FACTOR": 4, "WIDTH": 0.25,
    "TEACHER_EPOCHS": 12, "SECONDS": 30.0, "SEED": 0,
}  # fmt: skip
_TEXT = """# {name}: what pooling earlier does to it

Move the stride: a column is a layer, from the image on the left to the last block. Above, how many pixels its map
has; then the maps, the teacher's first; below, what is alive in memory for one image."""
_CODE = "import os\nos.chdir({folder!r})\nfrom redistill_lib.explorers.command import show\nshow(**{arguments!r})"


def run_command(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. ValueError or OSError for what cannot be shown, before it is served."""
    if arguments.model is None:
        arguments.model, *arguments.students = tour(arguments.runs)
    look(arguments)  # what is wrong is said here and not in the page
    shown = {name: getattr(arguments, name) for name in _SHOWN}
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / "ReDistill Lab.ipynb"  # the name is the page's title
        _write(notebook, title(arguments.model), shown)
        config = Config()
        config.VoilaConfiguration.update(kernel_spec_manager_class=_OwnInterpreter, show_tracebacks=True)
        config.NotebookNotary.db_file = ":memory:"  # this notebook is trusted for as long as it is there
        if "transport_encryption" in KernelManager.class_trait_names() and zmq.has("curve"):
            config.KernelManager.transport_encryption = "auto"  # kernels complain of less
        config.Voila.update(ip=ADDRESS, port=arguments.port, auto_token=True, log_level="WARN")
        App.opens = arguments.browser
        App.launch_instance([str(notebook)], config=config)


_SHOWN = ("model", "students", "network", "data", "image_size", "images", "factor", "budget")


def tour(runs: str, parameters: dict[str, Any] = TOUR) -> list[str]:
    """The folders of the tour's teacher, naive student and RED student: those that are there, or trained now."""
    model, width, seed = parameters["TEACHER"], parameters["WIDTH"], parameters["SEED"]
    data, options = load_data(parameters["DATA"], train_size=parameters["TRAIN_SIZE"]), RunOptions(runs)
    recipe = Recipe(epochs=parameters["TEACHER_EPOCHS"])
    teacher = train_classifier(model, data, recipe, width=width, seed=seed, options=options)
    student = student_name(model, parameters["FACTOR"])
    arms = {"naive": Arm(student, width=width), "RED": Arm(student, "red(alpha=5.0)", width)}
    budget = Budget(seconds=parameters["SECONDS"], teacher_share=0.0)
    found = compare(teacher, arms, data, budget=budget, seeds=[seed], options=options)
    return [str(teacher.path), *(f"{runs}/{run}" for run in found.runs["run"])]


def _write(file: Path, name: str, arguments: dict[str, Any]) -> None:
    code = _CODE.format(folder=os.getcwd(), arguments=arguments)
    cells = [nbformat.v4.new_markdown_cell(_TEXT.format(name=name)), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)


class _OwnInterpreter(KernelSpecManager):
    """Whatever kernels this machine has, the page's is of this interpreter."""

    kernel_dirs: list[str] = []  # noqa: RUF012


class _Refusal(JupyterHandler):
    """Where Voilà would ask for the token."""

    @allow_unauthenticated
    def get(self) -> None:
        self.set_status(403)  # not raised: Voilà has no page for that
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("Open the address with its token, as the terminal shows it.")


class App(Voila):
    """Voilà that tells and opens its address with the token, and refuses to answer without it."""

    opens = True

    def init_handlers(self) -> list[Any]:
        self.contents_manager.notary.sign(nbformat.read(self.notebook_path, 4))
        return [(r"/login", _Refusal), *super().init_handlers()]

    def launch_browser(self) -> None:
        address = f"http://{ADDRESS}:{self.port}/?token={self.identity_provider.token}"
        print(f"{address}\nCtrl-C ends it.", flush=True)
        if self.opens:
            webbrowser.open(address)
