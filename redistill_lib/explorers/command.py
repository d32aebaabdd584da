"""What `redistill explore` and `redistill app` show: networks and images by name, side by side, stride by stride."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.explorers import explore
from redistill_lib.explorers.page import write_page
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.own import resolve_model, student_of
from redistill_lib.runs import Run


def run_command(arguments: argparse.Namespace) -> Path:
    """Write the page, and return where it is. ValueError or OSError for what cannot be shown."""
    name = title(arguments.model)
    file = arguments.html or Path(f"{name}-explored.html")
    return write_page(explore(**look(arguments)), file, f"{name}: what pooling earlier does to it")


def show(**arguments: Any) -> None:
    """Display the explorer, in a kernel."""
    from IPython.display import clear_output, display

    view = explore(**look(argparse.Namespace(**arguments)))
    clear_output()  # of a progress bar that is closed Voilà would say that its model is not found
    display(view)


def title(model: str) -> str:
    """What a page of this network is called: a run by its own name, or else by its network's."""
    run = _run(model)
    return str(run.name or run.params["model"]["name"]) if run else model.rpartition(":")[2]


def look(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `explorers.explore` is called with. ValueError or OSError for names that are none."""
    first = _run(arguments.model)
    known: dict[str, Any] = first.params.get("data", {}) if first else {}
    size = arguments.image_size or (None if arguments.data else known.get("image_size"))
    data = load_data(arguments.data or known.get("name", "cluttered"), image_size=size)
    images, labels = data.test.head(arguments.images)
    teacher = _network(arguments.model, data, arguments.network)
    students: dict[str, list[nn.Module]] = {}
    for each in arguments.students:
        run = _run(each)
        role = str(run.params.get("methods") or "naive") if run else each
        students.setdefault(role, []).append(_network(each, data, arguments.network))
    found = {"teacher": teacher, "students": students, "images": images, "labels": labels if first else None}
    return found | {"classes": data.classes, "factor": arguments.factor, "budget": arguments.budget}


def _run(name: str) -> Run | None:
    """The training run in a folder, where that is one's name."""
    return Run.load(name) if Path(name).is_dir() else None


def _network(name: str, data: DataSplits, own: str | None) -> nn.Module:
    """A run's network, or a built-in one or one's own, with the weights that it is made with.

    `own` builds what runs of a network of one's own have trained, or the teacher of which they are students.
    """
    if run := _run(name):
        return _trained(run, data, own) if "weights" in run.params.get("model", {}) else load_model(run)
    found = resolve_model(name)
    if isinstance(found, nn.Module):
        return found.eval()
    return create_model(found, data.num_classes, data.in_channels).eval()


def _trained(run: Run, data: DataSplits, own: str | None) -> nn.Module:
    if own is None:
        raise ValueError(f"run {run.id} trained a network of your own: say what builds it, --network my_net:make")
    example = torch.zeros(2, data.in_channels, data.image_size, data.image_size)
    for factor in (1, 2, 4, 8):
        with contextlib.suppress(ValueError, RuntimeError):  # built otherwise
            return load_model(run, student_of(resolve_model(own), factor, example))
    raise ValueError(f"neither {own} nor a student of it at ×2, ×4 or ×8 is what run {run.id} trained")
