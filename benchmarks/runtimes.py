"""What edge runtimes really need, beside what `profile_memory` says under their conventions.

    python benchmarks/runtimes.py                   about half an hour
    python benchmarks/runtimes.py unet              of some networks, whose rows are renewed
    python benchmarks/runtimes.py --int8            the same in int8, calibrated on noise: for its memory alone

Teachers, students that pool ×4, and of CNNs those with RED blocks, one image, are written by `export_model` for each
runtime that is installed and measured by `measure_runtime`, in bytes: what is alive at once, the arena where one is
planned, and what a pass takes beside it. Writes benchmarks/results/runtimes.csv, or runtimes_int8.csv.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import redistill_lib as rd
from redistill_lib.export import FORMATS, export_model, measure_runtime, portable

HERE = Path(__file__).parent
NETWORKS = {  # and the input size
    "mobilenetv2": 128, "mobilenetv3_small": 128, "mobilenetv3_large": 128, "resnet18": 224, "resnet34": 64,
    "resnet50": 224, "resnext18": 128, "resnext50": 64, "unet": 32, "vit_tiny-16": 256,
}  # fmt: skip


def networks(name: str, size: int) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Teacher, student and student with RED blocks."""
    torch.manual_seed(0)
    inputs = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in rd.example_inputs(name, size))
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    teacher, student = (rd.create_model(each, **options).eval() for each in (name, rd.student_name(name, 4)))
    yield teacher.name, teacher, inputs
    yield student.name, student, inputs
    if options:  # they have no map in common
        return
    taps = rd.match_taps(student, teacher, inputs)
    blocks = rd.Distillation(copy.deepcopy(student), teacher, taps, "red-blocks", example=inputs)
    yield f"{student.name} + RED", blocks.graduate().eval(), inputs


def rows(names: Sequence[str], int8: bool) -> Iterator[dict[str, object]]:
    for name in names:
        for label, model, inputs in networks(name, NETWORKS[name]):
            own = rd.profile_memory(model, *inputs, dtype="int8" if int8 else None)
            for found in FORMATS.values():
                if not found.installed:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder, f"network{found.suffix}")
                    try:
                        export_model(model, file, inputs, calibration=[inputs] if int8 else None, int8=int8)
                        needs = measure_runtime(file)
                    except ValueError as error:  # a network that it cannot take is part of the result
                        print(f"{label}, {found.runtime}: {str(error)[:200]}", file=sys.stderr)
                        continue
                network, dtype = portable(model, inputs, found.convention), "int8" if int8 else None
                told = rd.profile_memory(network, *inputs, convention=found.convention, dtype=dtype)
                yield {
                    "network": label, "px": NETWORKS[name], "runtime": found.runtime,
                    "mult-adds (M)": round(own.flops / 2e6, 1), "fused": own.peak_bytes,
                    "live": needs.peak_bytes, "live predicted": told.peak_bytes,
                    "arena": needs.arena_bytes, "arena predicted": told.arena_bytes,
                    "beside": needs.beside_bytes, "file": needs.file_bytes, "ms": round(1000 * needs.seconds, 2),
                }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NETWORKS], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--int8", action="store_true")
    arguments = parser.parse_args()
    if not any(found.installed for found in FORMATS.values()):
        print("no runtime is installed: nothing to measure (docs/deploy.md)")
        return
    made = []
    for row in rows(arguments.names or list(NETWORKS), arguments.int8):
        made.append(row)
        print(*row.values(), sep="  ", flush=True)
    frame, file = pd.DataFrame(made).convert_dtypes(), HERE / "results" / f"runtimes{'_int8' * arguments.int8}.csv"
    if arguments.names and file.exists():
        known = pd.read_csv(file).convert_dtypes()
        frame = pd.concat([known[~known["network"].isin(frame["network"])], frame], ignore_index=True)
    frame.to_csv(file, index=False)
    for runtime, its in frame.groupby("runtime"):
        for what in ("live", "arena"):
            ratio = (its[what] / its[f"{what} predicted"]).dropna()
            if len(ratio):
                near = f"{(ratio == 1).sum()} to the byte and {((ratio - 1).abs() <= 0.02).sum()} within 2 %"
                spread = f"measured / predicted {ratio.min():.3f} to {ratio.max():.3f}"
                print(f"{runtime}, {what}: of {len(ratio)} as predicted {near}; {spread}")


if __name__ == "__main__":
    main()
