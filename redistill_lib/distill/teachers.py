"""Where a teacher's maps come from."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from redistill_lib.distill.inference import Edits, edited, find_edits, pack
from redistill_lib.methods import Batch
from redistill_lib.network import MapRef, locate, run_and_read

#: Images go through a teacher on a CPU in slices whose largest map is this many bytes: what its caches hold, and the
#: allocator keeps, where it gives larger memory back to the system each time.
SLICE_BYTES = 8 * 2**20


class Teacher(Protocol):
    """What answers with its maps for a batch: a network that is run, or a store of what it said before."""

    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]: ...


@dataclass(frozen=True)
class _Plan:
    """How a network is run for some of its maps and images of one size."""

    places: dict[MapRef, MapRef]
    edits: Edits | None = None  # of the copy that runs; None: the network itself, with the whole batch
    rows: int = 1  # of the batch in a slice


class LiveTeacher(nn.Module):
    """A frozen network in eval mode that is run for every batch, no further than the last map that is wanted.

    What runs is a copy in inference mode: batch norms folded into convolutions, channels last, on a CPU in slices of
    the batch. It shares all other weights, and is made anew when a weight was changed (in place too, but for writes
    to ``weight.data``, which PyTorch does not count). For maps or images of a new size the copy is first tried on
    two images: where its maps are not those of the network, the network itself is run. So is one with hooks of its
    owner, always to its end, so that they fire. After other changes than to weights make a new `LiveTeacher`.

    With `dtype`, such as ``torch.bfloat16``, it runs under autocast.

    >>> teacher = LiveTeacher(nn.Sequential(nn.ReLU(), nn.Flatten()))
    >>> teacher.maps(Batch((torch.ones(1, 2),)), [MapRef("0", "output")])
    {MapRef(layer='0', side='output'): tensor([[1., 1.]])}
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None):
        super().__init__()
        self.network, self.dtype = network.requires_grad_(False).eval(), dtype
        #: By the maps wanted and the images' size: read once to the end, so no wanted layer runs twice.
        self._plans: dict[Hashable, _Plan] = {}
        self._copies: dict[Edits, tuple[Hashable, nn.Module]] = {}  # with the state of the weights they are made of

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_copies": {}}  # of which a deep copy or another process makes its own

    def train(self, mode: bool = True) -> LiveTeacher:
        return super().train(False)

    @torch.no_grad()
    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        self.network.eval()  # someone may have called train() on the network itself
        inputs, wanted = batch.inputs, tuple(dict.fromkeys(refs))
        with nullcontext() if self.dtype is None else torch.autocast(inputs[0].device.type, self.dtype):
            hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules())
            key = wanted, tuple((x.shape[1:], x.dtype, x.device) for x in inputs if isinstance(x, Tensor))
            plan = None if hooked else self._plans.get(key)
            if plan is None:
                places = {ref: locate(self.network, ref, "teacher") for ref in wanted}
                plan = _Plan(places) if hooked else self._plan(places, inputs)
                if plan.edits is None:
                    found = self._run(places, inputs, stop_early=False)
                    self._plans |= {} if hooked else {key: plan}
                    return found
                self._plans[key] = plan
            if plan.edits is None:
                return self._run(plan.places, inputs, stop_early=True)
            return _run_in_slices(self._copy(plan.edits), plan.places, inputs, plan.rows)

    def _run(self, places: dict[MapRef, MapRef], inputs: Sequence[Tensor], stop_early: bool) -> dict[MapRef, Tensor]:
        """The maps of the network as it is."""
        # The student gets the inputs too, and a network may work in place.
        copied = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        return run_and_read(self.network, places, copied, "teacher", stop_early)[1]

    def _plan(self, places: dict[MapRef, MapRef], inputs: Sequence[Tensor]) -> _Plan:
        """The fastest way that gives the network's maps on the first two images."""
        if not all(isinstance(x, Tensor) and not x.is_meta and x.ndim and len(x) == len(inputs[0]) for x in inputs):
            return _Plan(places)
        edits, largest = find_edits(self.network, places, tuple(inputs))
        if not edits.folded and not edits.in_place:
            return _Plan(places)
        rows = sys.maxsize
        if inputs[0].device.type == "cpu":
            rows = max(1, SLICE_BYTES // (largest * inputs[0].element_size()))
        few = [x[:2] for x in inputs]
        with torch.random.fork_rng({x.device for x in inputs if x.is_cuda}):
            expected = self._run(places, few, stop_early=False)
            try:
                found = _run_in_slices(self._copy(edits), places, few, rows=1)
            except Exception:  # whatever it is, the network itself did not raise it
                return _Plan(places)
        self._copies.pop(edits)  # its weights are packed for single images
        exact = not torch.is_autocast_enabled(inputs[0].device.type)
        alike = all(_alike(found[ref], x, exact) for ref, x in expected.items())
        return _Plan(places, edits, rows) if alike else _Plan(places)

    def _copy(self, edits: Edits) -> nn.Module:
        packed = not torch.is_autocast_enabled("cpu")  # which would not know of packed weights
        tensors = [*self.network.parameters(), *self.network.buffers()]
        state = packed, *((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if edits not in self._copies or self._copies[edits][0] != state:
            self._copies.pop(edits, None)  # before the new one takes as much memory
            copy = edited(self.network, edits)
            self._copies[edits] = state, pack(copy) if packed else copy
        return self._copies[edits][1]


def _run_in_slices(
    network: nn.Module, places: dict[MapRef, MapRef], inputs: Sequence[Tensor], rows: int
) -> dict[MapRef, Tensor]:
    """The maps of a batch that goes through the network some rows at a time, as tensors that autograd may save."""
    found: dict[MapRef, Tensor] = {}
    start = 0

    def take(ref: MapRef, x: Tensor) -> Tensor:
        if len(x) != len(inputs[0][start : start + rows]):
            raise ValueError(f"the map at {ref} has no row for each image")
        if ref not in found:
            with torch.inference_mode(False):
                shape = len(inputs[0]), *x.shape[1:]
                found[ref] = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))
        found[ref][start : start + rows] = x
        return x

    with torch.inference_mode():
        for start in range(0, len(inputs[0]), rows):
            # A copy, as the student gets the inputs too, and a network may work in place.
            part = [x[start : start + rows].clone(memory_format=_layout(x)) for x in inputs]
            run_and_read(network, places, part, "teacher", stop_early=True, take=take)
    return found


def _layout(x: Tensor) -> torch.memory_format:
    """The fastest for convolutions."""
    return torch.channels_last if x.ndim == 4 else torch.contiguous_format


def _alike(found: Tensor, expected: Tensor, exact: bool) -> bool:
    """Up to rounding, of half precision where autocast is on: what else differs, differs by far more."""
    scale = expected.abs().nan_to_num(0, 0).max().item()
    return torch.allclose(found, expected, 0, (1e-3 if exact else 0.05) * scale, equal_nan=True)
