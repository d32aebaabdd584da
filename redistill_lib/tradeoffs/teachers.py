"""Who taught a run: its record names the teacher's run, or of a network of one's own the weights that it had."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from redistill_lib.identity import weights_identity
from redistill_lib.models.saved import read_tensors
from redistill_lib.runs import Run


def part_of(run: Run, name: str) -> dict[str, Any]:
    """A part of what a run is of; empty where it is not told by names, as of data of one's own."""
    part = run.params.get(name)
    return part if isinstance(part, dict) else {}


def network_kind(run: Run) -> str:
    """What a run's network is, whatever its weights: of one's own its structure, as several may have one name."""
    model = part_of(run, "model")
    return str(model.get("structure", model.get("name")))


def own_teachers(runs: Iterable[Run]) -> dict[str, Run]:
    """Trainings of one's own networks from labels alone by the identity of what was trained."""
    found = {}
    for run in runs:
        file = run.path / "model.safetensors"
        if run.complete and "weights" in part_of(run, "model") and not run.params.get("teachers") and file.exists():
            found[weights_identity(read_tensors(file)[0].items())] = run
    return found


def teacher_of(run: Run, own: Callable[[], Mapping[str, Run]]) -> Run | None:
    """The run of its first teacher, where that is beside it; `own` gives `own_teachers` of the store, when needed."""
    for name in run.environment.get("teacher_runs", ()):
        if (run.path.parent / name / "run.json").exists():
            return Run.load(run.path.parent / name)
    named = [each["weights"] for each in run.params.get("teachers") or () if "weights" in each]
    known = own() if named else {}
    return next((known[weights] for weights in named if weights in known), None)


def runs_of(store: Path) -> Iterator[Run]:
    """Those whose record can be read."""
    for record in store.glob("*/run.json"):
        with contextlib.suppress(ValueError, FileNotFoundError):
            yield Run.load(record.parent)
