"""What each downsampler of `derive_student` makes of a stem: memory, time, and accuracy in equal seconds of training.

    python benchmarks/stems.py            25 minutes of one core; finished runs are reused
    python benchmarks/stems.py --quick    a minute: without training
    python benchmarks/stems.py --export   two minutes: files of the smaller students, and what these need in runtimes

ResNet-18 `2-21222` -> `8-11221` at 224 px, and the quarter-width `1-21222` -> `4-11221` on `cluttered` (40 px). Peaks
are of one image in float32, `fused` and `eager`, in KiB; `madds` are millions; `time` is the median of a pass's
processor time divided by that of `stride`, in turn in one process, one thread, one image. Accuracy: every arm starts
anew under each seed and trains for the same processor seconds by `rd.compare`, all with one learning rate; `epochs`
is what that is worth. `±` is half the 95 % interval of the difference to `stride`, for other seeds and test images.
Writes results/stems.csv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd
import torch
from torch import Tensor, nn

import redistill_lib as rd

DOWNSAMPLERS = "stride", "max", "avg", "blur", "space_to_depth", "rnnpool"
RESULTS = Path(__file__).parent / "results" / "stems.csv"


def students(teacher: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this student saves no memory")  # which the table shows
        return {
            name: rd.derive_student(teacher, 4, example=example, downsampler=name)[0].eval()  # type: ignore[arg-type]
            for name in DOWNSAMPLERS
        }


def seconds(model: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    model(x)
    return time.process_time() - start


@torch.no_grad()
def costs(networks: dict[str, nn.Module], example: Tensor, rounds: int) -> pd.DataFrame:
    took: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(rounds + 1):
        for name, network in networks.items():
            took[name].append(seconds(network, example))
    rows = []
    for name, network in networks.items():
        fused, eager = (rd.profile_memory(network, example, convention=kind) for kind in ("fused", "eager"))
        ratios = [own / first for own, first in zip(took[name][1:], took["stride"][1:], strict=True)]
        rows.append(
            {
                "downsampler": name,
                "fused": fused.peak_bytes / 1024,
                "eager": eager.peak_bytes / 1024,
                "madds": fused.flops / 2e6,
                "time": statistics.median(ratios),
            }
        )
    return pd.DataFrame(rows)


def accuracies(teacher: nn.Module, networks: dict[str, nn.Module], data: Any, given: Any) -> pd.DataFrame:
    arms = {name: rd.Arm(network, recipe=rd.Recipe(learning_rate=0.1)) for name, network in networks.items()}
    options = rd.RunOptions(given.runs, cpu=True)
    # No arm reads the teacher, which `compare` asks for all the same.
    found = rd.compare(
        teacher, arms, data, budget=rd.Budget(seconds=given.seconds), seeds=given.seeds, options=options
    )
    return found.table.rename(columns={"arm": "downsampler"})[["downsampler", "accuracy", "above", "±", "epochs"]]


def files(networks: dict[str, nn.Module], example: Tensor) -> None:
    import onnx

    with TemporaryDirectory() as folder:
        for name in ("stride", "rnnpool"):
            for suffix in (".onnx", ".pte"):
                made = rd.export_model(networks[name], f"{folder}/{name}{suffix}", example, images=[(example,)])
                nodes = f"{len(onnx.load(made.file).graph.node)} nodes; " if suffix == ".onnx" else ""
                print(f"{name}: {nodes}{rd.measure_runtime(made.file)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs/stems")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = rd.load_data("cluttered")
    size = data.in_channels, data.image_size, data.image_size
    shape: dict[str, Any] = {"num_classes": data.num_classes, "in_channels": data.in_channels}
    cases = {
        "resnet18, 224 px": (rd.create_model("resnet18"), torch.randn(1, 3, 224, 224)),
        "cluttered, 40 px": (rd.create_model("resnet18-1-21222", width=0.25, **shape), torch.randn(1, *size)),
    }
    if given.export:
        return files(students(*cases["cluttered, 40 px"]), cases["cluttered, 40 px"][1])
    tables = []
    for name, (teacher, example) in cases.items():
        networks = students(teacher, example)
        table = costs(networks, example, rounds=15)
        if name.startswith("cluttered") and not given.quick:
            table = table.merge(accuracies(teacher, networks, data, given), on="downsampler")
        table.insert(0, "case", name)
        print(table.round(2).to_string(index=False), flush=True)
        tables.append(table)
    if not given.quick:
        pd.concat(tables).to_csv(RESULTS, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
