"""The processes and the device that a training runs on."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from redistill_lib.runs import locked

if TYPE_CHECKING:
    from accelerate import Accelerator


def open_accelerator(mixed_precision: str, cpu: bool) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    cpu = cpu or not torch.accelerator.is_available()  # or several processes would not find each other on CPUs
    earlier = AcceleratorState._shared_state
    wanted = {"_mixed_precision": mixed_precision, "_cpu": cpu}
    if earlier and PartialState().num_processes == 1 and any(earlier.get(k) != v for k, v in wanted.items()):
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had others
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would compute in float32
        raise ValueError("fp16 needs a GPU; use 'bf16' or 'no'")
    return accelerator


@contextlib.contextmanager
def main_holds(accelerator: Accelerator, path: Path) -> Iterator[None]:
    with locked(path) if accelerator.is_main_process else contextlib.nullcontext():
        accelerator.wait_for_everyone()
        yield


def describe(accelerator: Accelerator) -> dict[str, Any]:
    import accelerate

    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "cpus": os.cpu_count(),
        "input": "pixels / 127.5 - 1 (redistill_lib.to_float)",
    }
