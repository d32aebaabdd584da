"""Measured peak memory of one forward pass."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from redistill_lib.memory.trace import Recorder, spread
from redistill_lib.network.fakes import real_copy, step_by_step, tensors_in
from redistill_lib.sizes import format_size


@dataclass(frozen=True)
class Measurement:
    """Peak bytes of one forward pass, inputs included and weights not."""

    peak_bytes: int  # on a CPU of the tensors between operators; on a GPU of all there is, in blocks of 512 bytes
    temporary_bytes: int | None  # what operators allocate inside on top; None where the profiler does not see it
    device: str

    def __str__(self) -> str:
        more = "" if not self.temporary_bytes else f" + {format_size(self.temporary_bytes)} inside operators"
        return f"{format_size(self.peak_bytes)}{more} on {self.device}"


def measure_memory(model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None) -> Measurement:
    """Run the network once in eval mode and measure its peak of activation memory on the device where it is.

    On a CPU this equals `profile_memory(..., convention="eager")` to the byte. Raises ValueError for devices other
    than CPU and CUDA.

    >>> measured = measure_memory(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), torch.zeros(1, 3, 16, 16))
    >>> measured.peak_bytes == 4 * 16 * 16 * (3 + 8 + 8)
    True
    """
    given = inputs, dict(kwargs or {})
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers(), *tensors_in(given))}
    if len(devices) != 1 or not devices <= {"cpu", "cuda"}:
        found = " and ".join(sorted(devices))
        raise ValueError(f"network and inputs have to be on the CPU, or on one GPU, and not on {found}")
    with step_by_step(), torch.random.fork_rng(devices=[]):
        measure = functools.partial(_on_cuda if devices == {"cuda"} else _on_cpu, real_copy(model))
        return spread(measure, *given)


def _on_cuda(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Measurement:
    device = tensors_in((inputs, kwargs))[0].device
    model(*inputs, **kwargs)  # libraries allocate their workspaces on first use
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    inputs, kwargs = tree_map_only(Tensor, torch.clone, (inputs, kwargs))
    torch.cuda.reset_peak_memory_stats(device)
    out = model(*inputs, **kwargs)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del out
    return Measurement(peak, None, torch.cuda.get_device_name(device))


class _PeakRecorder(Recorder):
    peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.peak = max(self.peak, sum(self.storages[index].nbytes for index in self.alive.values()))
        return out


def _on_cpu(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Measurement:
    inputs, kwargs = tree_map_only(Tensor, torch.clone, (inputs, kwargs))
    live = _PeakRecorder(model, (inputs, kwargs))
    live.peak = start = sum(storage.nbytes for storage in live.storages)
    with live:
        model(*inputs, **kwargs)
    # All that the allocator hands out in a second pass: what the first one keeps, such as packed weights, is apart.
    most = most_allocated(functools.partial(model, *inputs, **kwargs))
    return Measurement(live.peak, None if most is None else max(0, start + most - live.peak), "CPU")


def most_allocated(call: Callable[[], Any]) -> int | None:
    """The most bytes that `call` holds at once of what it allocates, on a CPU; None where the profiler sees none."""
    gc.collect()  # so that nothing of before is freed meanwhile, which would be subtracted
    activities = [torch.profiler.ProfilerActivity.CPU]
    with silent_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    results = getattr(profiler.profiler, "kineto_results", None)
    events = results.events() if results else []
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes)) if changes else None


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep a library that is not Python's from writing to the process's stderr, or to Python's, as some do."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
