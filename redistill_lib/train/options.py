"""Where and how a training runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from redistill_lib.checks import check_fields, whole
from redistill_lib.memory.sizes import parse_size

if TYPE_CHECKING:
    from accelerate import Accelerator

History = list[dict[str, float]]
#: Called with the history so far after each of its rows and, where some were drawn, images (uint8 N×C×H×W); once,
#: with the whole history, for a run that is found complete.
OnLog = Callable[[History, Tensor | None], None]


@dataclass(frozen=True)
class RunOptions:
    """Where and how a training runs. Only `mixed_precision` and, by rounding, `cache` change the weights, and so the
    run's id.

    Arguments:
        runs_dir: the run store; an unfinished run there with the same parameters is resumed.
        mixed_precision: ``no``, ``bf16`` or, on a GPU, ``fp16``.
        cpu: stay on the CPU where there is a GPU.
        workers: processes that read and augment images; a script that uses them keeps its calls under
            ``if __name__ == "__main__":``.
        log_every: steps between two rows of a denoiser's history; a classifier's has a row for each epoch.
        sample_every: steps between two drawings of `samples` images, a multiple of `log_every`; 0: only at the end.
        on_log: called after each row of the history (`OnLog`).
        progress: show a bar.
        name: what listings call the run.
        cache: a folder for what teachers answer to each view of each training image (`Recipe.views`): in fp16, made
            by the first student, read by those of every plan, method and seed, in any process. RED, STAGE and methods
            on outputs read it. Beside a method that compares whole maps teachers run as ever, and a warning says so.
        cache_limit: of that folder, in bytes or as ``"8GB"``; what was used least recently is deleted first.
        reuse: take a complete run of the same parameters by other code of this library, and record that.

    >>> RunOptions(runs_dir="store").progress
    True
    """

    runs_dir: str | Path = "runs"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    cpu: bool = False
    workers: int = 0
    log_every: int = 100
    sample_every: int = 0
    samples: int = 40
    on_log: OnLog | None = None
    progress: bool = True
    name: str | None = None
    cache: str | Path | None = None
    cache_limit: int | str = "8GB"
    reuse: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("workers", 0), ("log_every", 1), ("sample_every", 0), ("samples", 1)):
            whole(name, getattr(self, name), least)
        parse_size(self.cache_limit)
        if self.sample_every % self.log_every:
            near = max(1, round(self.sample_every / self.log_every)) * self.log_every
            raise ValueError(
                f"sample_every is a multiple of log_every ({self.log_every}), such as {near}, not {self.sample_every}"
            )


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
