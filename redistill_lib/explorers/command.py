"""`redistill explore`: a page on which the stride moves picture, maps, memory and accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.explorers import explore
from redistill_lib.explorers.page import write_page
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.own import resolve_model
from redistill_lib.runs import Run


def run_command(arguments: argparse.Namespace) -> Path:
    """Write the page, and return where it is. ValueError or OSError for what cannot be shown."""
    first = _run(arguments.model)
    known: dict[str, Any] = first.params.get("data", {}) if first else {}
    size = arguments.image_size or (None if arguments.data else known.get("image_size"))
    data = load_data(arguments.data or known.get("name", "cluttered"), image_size=size)
    images, labels = data.test.head(arguments.images)
    teacher = _network(arguments.model, data)
    students: dict[str, list[nn.Module]] = {}
    for each in arguments.students:
        run = _run(each)
        role = str(run.params.get("methods") or "naive") if run else each
        students.setdefault(role, []).append(_network(each, data))
    options = {"classes": data.classes, "factor": arguments.factor, "budget": arguments.budget}
    figure = explore(teacher, students, images, labels if first else None, **options)
    name = first.name if first else arguments.model.rpartition(":")[2]
    file = arguments.html or Path(f"{name}-explored.html")
    return write_page(figure, file, f"{name}: what pooling earlier does to it")


def _run(name: str) -> Run | None:
    """The training run in a folder, where that is one's name."""
    return Run.load(name) if Path(name).is_dir() else None


def _network(name: str, data: DataSplits) -> nn.Module:
    """A run's network, or a built-in one or one's own, with the weights that it is made with."""
    if run := _run(name):
        return load_model(run)
    found = resolve_model(name)
    if isinstance(found, nn.Module):
        return found.eval()
    return create_model(found, data.num_classes, data.in_channels).eval()
