"""How long a profile takes and what it allocates.

    python benchmarks/memory_speed.py                     less than a minute
    python benchmarks/memory_speed.py --against PATH      with another checkout of this repository: two minutes

Each line is timed once in this process, after the imports and after one profile of another network that fills
PyTorch's caches, as in a notebook's second cell; `first` is that first profile. `RSS` is how far the process's
resident memory grew beyond its level before, sampled every millisecond: models are built beforehand.
Against another checkout each line is timed in fresh processes, in turn: the least of three, in seconds of the
processor, which waiting for it does not change.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import redistill_lib as rd
from redistill_lib.budget import fit_to_budget

PAGE = 4096


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def watched(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, growth of resident memory in MiB at most, and the result."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    gc.collect()  # or what an earlier work left would be collected in this one's time
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    return seconds, (max(peak, resident()) - before) / 2**20, result


def works() -> dict[str, Callable[[], Any]]:
    image, noise = torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 32, 32)
    step = torch.zeros(1, dtype=torch.long)
    models = {name: rd.create_model(name) for name in ("resnet18", "resnet50", "unet")}
    return {
        "first profile of the process (one convolution)": lambda: rd.profile_memory(nn.Conv2d(3, 8, 3), noise),
        "profile of ResNet-18, 224×224": lambda: rd.profile_memory(models["resnet18"], image),
        "profile of ResNet-50, 224×224": lambda: rd.profile_memory(models["resnet50"], image),
        "profile of the 35-M-parameter U-Net, 32×32": lambda: rd.profile_memory(models["unet"], noise, step),
        "bounds of ResNet-50, 224×224": lambda: rd.memory_bounds(models["resnet50"], image),
        "fit_to_budget, all plans of MobileNetV2, fp32 and int8": lambda: fit_to_budget("mobilenetv2", "1MB", image),
        "the same again": lambda: fit_to_budget("mobilenetv2", "1MB", image),
    }


def seconds_of(work: Callable[[], Any]) -> float:
    gc.collect()  # as in `watched`
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(other: Path) -> None:
    roots, found = (Path(__file__).resolve().parents[1], other.resolve()), []
    for k in range(6):
        environment = {**os.environ, "PYTHONPATH": str(roots[k % 2]), "REDISTILL_BATCH": "1"}
        command = [sys.executable, __file__, "--child"]
        run = subprocess.run(command, env=environment, cwd=roots[k % 2], stdout=subprocess.PIPE, check=True)
        found.append(json.loads(run.stdout))
    for label in found[0]:
        ours, theirs = (min(seconds[label] for seconds in found[k::2]) for k in range(2))
        print(f"{label:<56}{ours:8.2f} s, there {theirs:8.2f} s: {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({label: seconds_of(work) for label, work in works().items()}))
        return
    if options.against:
        compare(options.against)
        return
    for label, work in works().items():
        seconds, grown, result = watched(work)
        told = result if label.startswith("profile") else ""
        print(f"{label:<56}{seconds:8.2f} s {grown:8.1f} MiB RSS   {told}".rstrip())


if __name__ == "__main__":
    main()
