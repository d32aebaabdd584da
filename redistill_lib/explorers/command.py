"""What `redistill explore` and `redistill app` show: networks and images by name, side by side, stride by stride."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from redistill_lib.explorers import explore
from redistill_lib.explorers.page import write_page
from redistill_lib.own import data_of, network_of, run_in


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
    run = run_in(model)
    return str(run.name or run.params["model"]["name"]) if run else model.rpartition(":")[2]


def look(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `explorers.explore` is called with. ValueError or OSError for names that are none."""
    first = run_in(arguments.model)
    data = data_of(first, arguments.data, arguments.image_size)
    images, labels = data.test.head(arguments.images)
    teacher = network_of(arguments.model, data, arguments.network)
    students: dict[str, list[nn.Module]] = {}
    for each in arguments.students:
        run = run_in(each)
        role = str(run.params.get("methods") or "naive") if run else each
        students.setdefault(role, []).append(network_of(each, data, arguments.network))
    found = {"teacher": teacher, "students": students, "images": images, "labels": labels if first else None}
    return found | {"classes": data.classes, "factor": arguments.factor, "budget": arguments.budget}
