"""Several networks in every runtime that is installed: what is predicted of them, and what they need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import hint
from redistill_lib.export.exported import load_exported
from redistill_lib.export.formats import FORMATS, Format, Inputs
from redistill_lib.export.measure import measure_runtime
from redistill_lib.export.model import export_model, portable
from redistill_lib.export.result import Export, RuntimePeak
from redistill_lib.memory import profile_memory
from redistill_lib.results import listed, number, the

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Deployed:
    """One network in one runtime."""

    role: str
    made: Export
    needs: RuntimePeak
    predicted_bytes: int | None  # by the runtime's convention; None where none knows it, as of a delegate's memory
    fused_bytes: int  # of the network, in this dtype
    accuracy: float  # of the file, in its runtime; NaN without labels
    own_accuracy: float  # of the network, in PyTorch


@dataclass(frozen=True)
class Deployment:
    """What `deploy` found."""

    rows: tuple[Deployed, ...]
    refused: tuple[str, ...] = ()  # what a runtime does not take, and why

    def of(self, dtype: str) -> Deployment:
        """The rows of one dtype."""
        return Deployment(tuple(row for row in self.rows if row.made.dtype == dtype), self.refused)

    def to_frame(self) -> pd.DataFrame:
        """One row per network, runtime and dtype: KiB, ms and accuracies in per cent."""
        import pandas as pd

        return pd.DataFrame(
            {
                "network": row.role,
                "runtime": row.made.runtime,
                "dtype": row.made.dtype,
                "fused (KiB)": row.fused_bytes / 1024,
                "predicted (KiB)": math.nan if row.predicted_bytes is None else row.predicted_bytes / 1024,
                "needs (KiB)": row.needs.needed_bytes / 1024,
                "of it beside (KiB)": row.needs.beside_bytes / 1024,
                "file (KiB)": row.made.file_bytes / 1024,
                "ms": 1000 * row.needs.seconds,
                "accuracy there": 100 * row.accuracy,
                "accuracy here": 100 * row.own_accuracy,
                "difference": row.made.difference,
            }
            for row in self.rows
        )

    def headline(self) -> str:
        """How much less the second network needs than the first, from runtime to runtime."""
        found = {(row.made.runtime, row.role): row.needs.needed_bytes for row in self.rows}
        runtimes, roles = (list(dict.fromkeys(names)) for names in zip(*found, strict=True))
        if len(roles) < 2:
            return f"{the(roles[0])} runs in {listed(runtimes)}"
        first, second, *_ = roles
        times = {name: found[name, first] / found[name, second] for name in runtimes if (name, second) in found}
        told = [f"{number(factor, 1)} times in {name}" for name, factor in times.items()]
        return f"{the(second)} needs less than {the(first)}: {listed(told)}"


def deploy(
    networks: Mapping[str, nn.Module],
    calls: Sequence[Inputs],
    folder: str | Path,
    *,
    labels: Tensor | None = None,
    calibration: Sequence[Inputs] = (),
    formats: Sequence[str] | None = None,
) -> Deployment:
    """Write networks for every runtime that is installed, compare them there and here, and measure what they need.

    `calls` are what they are called with (`export.inputs.calls_on`), `labels` the classes of those images, for the
    accuracy there and here; with `calibration`, calls on training images, each is written in int8, too. `formats` are
    some of ``onnx``, ``executorch`` and ``litert``. Files are folder/role.suffix. What a runtime refuses is told in
    the result.
    """
    for name in formats or ():
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}: choose from {', '.join(FORMATS)}{hint(name, FORMATS)}")
    chosen = [FORMATS[name] for name in formats] if formats else [f for f in FORMATS.values() if f.installed]
    if not chosen:
        raise ImportError(f"no runtime is installed: {FORMATS['onnx'].install}, or others (docs/deploy.md)")
    rows, refused = [], []
    for found in chosen:
        for calibrating in ((), calibration) if calibration else ((),):
            int8 = bool(calibrating)
            for role, model in networks.items():
                file = Path(folder, f"{role.replace(' ', '')}{'-int8' * int8}{found.suffix}")
                how: dict[str, Any] = {"images": calls, "calibration": calibrating, "int8": int8}
                try:
                    made = export_model(model, file, calls[0], **how)
                except ValueError as error:
                    refused.append(f"{role} in {found.runtime}: {error}")
                    continue
                rows.append(_deployed(role, model, made, found, calls, labels))
    return Deployment(tuple(rows), tuple(refused))


def _deployed(
    role: str, model: nn.Module, made: Export, found: Format, calls: Sequence[Inputs], labels: Tensor | None
) -> Deployed:
    dtype = made.dtype if made.dtype != "fp32" else None
    told = None
    if not (found.name == "executorch" and dtype):
        network = portable(model, calls[0], found.convention)
        told = profile_memory(network, *calls[0], convention=found.convention, dtype=dtype).arena_bytes
    fused = profile_memory(model, *calls[0], dtype=dtype).peak_bytes
    right = [math.nan] * 2
    if labels is not None:
        with torch.no_grad():
            for k, network in enumerate((load_exported(made.file), model.eval())):
                answers = torch.cat([network(*each) for each in calls]).argmax(1)
                right[k] = float((answers == labels[: len(answers)]).float().mean())
    return Deployed(role, made, measure_runtime(made.file), told, fused, *right)
