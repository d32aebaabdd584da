"""Where a teacher's maps come from."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.distill.inference import Edits, edited, find_edits, pack
from redistill_lib.methods import Batch
from redistill_lib.network import MapRef, locate, run_and_read
from redistill_lib.network.fakes import held_tensors, real_copy

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
    the batch. It shares all other weights, and is made anew when a weight was changed, in place too. What PyTorch
    does not count, writes to ``weight.data`` and the steps of fused optimizers, is told by a look at some values of
    each weight: in each pass on a CPU; elsewhere, as a look waits for the device, in passes 1, 2, 4, 8, … and, once
    that has been found, in each. For maps or images of a new size the copy is first tried on two images: where its
    maps are not those of the network, or a pass changes the network, the network itself is run. So is one whose way
    depends on values, and one with hooks of its owner, always to its end, so that they fire. After other changes than
    to weights make a new `LiveTeacher`.

    With `dtype`, such as ``torch.bfloat16``, it runs under autocast.

    >>> teacher = LiveTeacher(nn.Sequential(nn.ReLU(), nn.Flatten()))
    >>> teacher.maps(Batch((torch.ones(1, 2),)), [MapRef("0", "output")])
    {MapRef(layer='0', side='output'): tensor([[1., 1.]])}
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None):
        super().__init__()
        check_type("the teacher's network", network, nn.Module), check_type("dtype", dtype, torch.dtype, None)
        for parameter in network.parameters():  # one by one, as a scripted network does not do it
            parameter.requires_grad_(False)
        self.network, self.dtype = network.eval(), dtype
        #: By maps wanted, images' size and autocast: read once to the end, so no wanted layer runs twice.
        self._plans: dict[Hashable, _Plan] = {}
        self._copies: dict[Edits, tuple[Hashable, nn.Module]] = {}  # with the state of the weights they are made of
        self._seen: tuple[Hashable, bytes] = (), b""  # the weights as PyTorch counts changes, and some values
        self._some: list[Tensor] = []  # views of these
        self._passes, self._watched = 0, False  # since the last change; whether one was not counted

    def __getstate__(self) -> dict[str, Any]:
        # A deep copy or another process makes its own of these.
        return {**vars(self), "_copies": {}, "_seen": ((), b""), "_some": []}

    def train(self, mode: bool = True) -> LiveTeacher:
        return super().train(False)

    @torch.no_grad()
    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        self.network.eval()  # someone may have called train() on the network itself
        inputs, wanted = batch.inputs, tuple(dict.fromkeys(refs))
        with nullcontext() if self.dtype is None else torch.autocast(inputs[0].device.type, self.dtype):
            hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules())
            given = [x for x in inputs if isinstance(x, Tensor)]
            half = [torch.is_autocast_enabled(x.device.type) for x in given if not x.is_meta]
            key = wanted, *((x.shape[1:], x.dtype, x.device) for x in given), *half
            plan = None if hooked else self._plans.get(key)
            if plan is None:
                places = {ref: locate(self.network, ref, "teacher") for ref in wanted}
                plan = _Plan(places) if hooked else self._plan(places, inputs)
                if plan.edits is None:
                    found = _run(self.network, places, inputs)
                    self._plans |= {} if hooked else {key: plan}
                    return found
                self._plans[key] = plan
            if plan.edits is not None:
                try:
                    return _run_in_slices(self._copy(plan.edits), plan.places, inputs, plan.rows)
                except Exception:  # of a batch as none that was tried; the network's own errors come again below
                    plan = self._plans[key] = _Plan(plan.places)
            return _run(self.network, plan.places, inputs, stop_early=True)

    def _plan(self, places: dict[MapRef, MapRef], inputs: Sequence[Tensor]) -> _Plan:
        """The fastest way that gives the network's maps on the first two images."""
        if not all(isinstance(x, Tensor) and not x.is_meta and x.ndim for x in inputs):
            return _Plan(places)
        if {len(x) for x in inputs} != {max(1, len(inputs[0]))}:
            return _Plan(places)
        edits, largest = find_edits(self.network, places, tuple(inputs))
        if not edits.folded and not edits.in_place:
            return _Plan(places)
        rows = sys.maxsize
        if inputs[0].device.type == "cpu":
            rows = max(1, SLICE_BYTES // (largest * inputs[0].element_size()))
        few = [_two(x) for x in inputs]
        with torch.random.fork_rng({x.device for x in inputs if x.is_cuda}):
            try:
                twin = real_copy(self.network)  # which keeps what a pass changes in the network from happening twice
                expected = _run(twin, places, few)
                before = _contents(twin)  # from the second pass on, as the first may fill a cache
                _run(twin, places, few)
                if before != _contents(twin):
                    return _Plan(places)
                found = _run_in_slices(self._copy(edits), places, few, rows=1)
            except Exception:  # whatever it is, the network itself will raise it where it concerns the batch
                return _Plan(places)
        self._copies.pop(edits, None)  # its weights are packed for single images
        device = inputs[0].device.type
        share = 1e-4 if device == "cpu" else 1e-3  # GPUs may convolve in TF32
        share = 0.05 if torch.is_autocast_enabled(device) else share
        alike = all(_alike(found[ref], x, share) for ref, x in expected.items())
        return _Plan(places, edits, rows) if alike else _Plan(places)

    def _copy(self, edits: Edits) -> nn.Module:
        packed = not torch.is_autocast_enabled("cpu")  # which would not know of packed weights
        state = packed, *self._weights()
        kept = self._copies.get(edits)
        if kept is None or kept[0] != state:
            del kept
            self._copies.pop(edits, None)  # before the new one takes as much memory
            copy = edited(self.network, edits)
            kept = self._copies[edits] = state, pack(copy) if packed else copy
        return kept[1]

    def _weights(self) -> tuple[Hashable, bytes]:
        """What tells the weights from those before and after a change."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        counted = tuple((id(t), t.data_ptr(), _version(t)) for t in tensors)
        same = counted == self._seen[0]
        self._passes = self._passes + 1 if same else 0
        if not same:
            self._some = _some(tensors)
        if self._watched or self._some[0].device.type == "cpu" or not self._passes & (self._passes - 1):
            values = torch.cat(self._some).cpu().view(torch.uint8).numpy().tobytes()
            self._watched |= same and values != self._seen[1]
            self._seen = counted, values
        return self._seen


def _run(
    network: nn.Module, places: dict[MapRef, MapRef], inputs: Sequence[Tensor], stop_early: bool = False
) -> dict[MapRef, Tensor]:
    """The maps of a network as it is."""
    # The student gets the inputs too, and a network may work in place.
    copied = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    return run_and_read(network, places, copied, "teacher", stop_early)[1]


def _two(x: Tensor) -> Tensor:
    """The first and the last of a batch; of images unlike each other, even if all are zeros, or there is but one."""
    x = x[[0, -1]]
    if x.ndim < 3 or not x.is_floating_point():
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noise[1] = 2 * noise[1] + 1  # in brightness and contrast too
    return x + noise.to(x)


@dataclass(frozen=True)
class _Same:
    """Equal to another of the same object alone, which it keeps from being another's."""

    value: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def _contents(network: nn.Module) -> list[Any]:
    """What a network's modules hold, to be compared with what they hold after a pass."""
    tensors = held_tensors(network)
    values = [value for module in network.modules() for value in vars(module).values()]
    return [*map(_Same, [*values, *tensors]), *map(_version, tensors)]


def _version(tensor: Tensor) -> int:
    """How often it was written to, where PyTorch counts that."""
    return 0 if tensor.is_inference() else tensor._version


def _some(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of the first value of each row of each weight."""
    rows = []
    for t in tensors:
        if t.is_floating_point() and t.numel() and t.layout == torch.strided:
            row = t.detach() if t.ndim else t.detach().view(1)
            while row.ndim > 1:
                row = row[:, 0]
            rows.append(row)
    return [row for row in rows if row.device == rows[0].device] or [torch.zeros(1)]


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


def _alike(found: Tensor, expected: Tensor, share: float) -> bool:
    """Up to rounding, a share of the largest value; in single precision it is some millionths on a CPU."""
    scale = expected.abs().nan_to_num(0, 0).max().item()
    return torch.allclose(found, expected, 0, share * scale, equal_nan=True)
