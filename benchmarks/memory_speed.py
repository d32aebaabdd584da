"""How long a profile takes and what it allocates.

    python benchmarks/memory_speed.py               less than a minute

Each line is timed once in this process, after the imports and after one profile of another network that fills
PyTorch's caches, as in a notebook's second cell; `first` is that first profile. `RSS` is how far the process's
resident memory grew beyond its level before, sampled every millisecond: models are built beforehand.
"""

from __future__ import annotations

import argparse
import gc
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


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    image, noise = torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 32, 32)
    step = torch.zeros(1, dtype=torch.long)
    models = {name: rd.create_model(name) for name in ("resnet18", "resnet50", "unet")}
    seconds, grown, _ = watched(lambda: rd.profile_memory(nn.Conv2d(3, 8, 3), noise))
    print(f"{'first profile of the process (one convolution)':<56}{seconds:8.2f} s {grown:8.1f} MiB RSS")
    works: dict[str, Callable[[], Any]] = {
        "profile of ResNet-18, 224×224": lambda: rd.profile_memory(models["resnet18"], image),
        "profile of ResNet-50, 224×224": lambda: rd.profile_memory(models["resnet50"], image),
        "profile of the 35-M-parameter U-Net, 32×32": lambda: rd.profile_memory(models["unet"], noise, step),
        "bounds of ResNet-50, 224×224": lambda: rd.memory_bounds(models["resnet50"], image),
        "fit_to_budget, all plans of MobileNetV2, fp32 and int8": lambda: fit_to_budget("mobilenetv2", "1MB", image),
    }
    for label, work in works.items():
        seconds, grown, result = watched(work)
        print(f"{label:<56}{seconds:8.2f} s {grown:8.1f} MiB RSS   {result if 'profile' in label else ''}".rstrip())


if __name__ == "__main__":
    main()
