"""Measured peak memory of one forward pass."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from redistill_lib.memory.sizes import format_size
from redistill_lib.network.fakes import held_tensors, real_copy, tensors_in


@dataclass(frozen=True)
class Measurement:
    """Peak bytes of one forward pass, inputs included and weights not.

    On a CPU `peak_bytes` counts tensors between operators, `temporary_bytes` what operators allocate inside on top
    (None where the profiler does not see it). On a GPU `peak_bytes` holds both, in blocks of 512 bytes.
    """

    peak_bytes: int
    temporary_bytes: int | None
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
        raise ValueError(
            f"network and inputs have to be on the CPU, or on one GPU, and not on {' and '.join(sorted(devices))}"
        )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return (_on_cuda if devices == {"cuda"} else _on_cpu)(real_copy(model), *given)


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


class _LiveBytes(TorchDispatchMode):
    def __init__(self, weights: list[Tensor], inputs: list[Tensor]):
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in weights if tensor.layout == torch.strided]
        self.weights = {storage._cdata: storage for storage in storages}  # held, so that their addresses stay theirs
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self.add(inputs)

    def add(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.layout != torch.strided or tensor.is_nested:
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.weights:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.alive.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        out = func(*args, **(kwargs or {}))
        self.add(tensors_in(out))
        return out


def _on_cpu(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Measurement:
    inputs, kwargs = tree_map_only(Tensor, torch.clone, (inputs, kwargs))
    given = tensors_in((inputs, kwargs))
    live = _LiveBytes(held_tensors(model), given)
    with live:
        model(*inputs, **kwargs)
    # All that the allocator hands out in a second pass: what the first one keeps, such as packed weights, is apart.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        model(*inputs, **kwargs)
    results = getattr(profiler.profiler, "kineto_results", None)
    events = results.events() if results else []
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    start = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in given}.values())
    total = max(itertools.accumulate((nbytes for _, nbytes in changes), initial=start))
    return Measurement(live.peak, max(0, total - live.peak) if changes else None, "CPU")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's library from writing to the process's stderr."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
