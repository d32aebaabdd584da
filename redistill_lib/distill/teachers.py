"""Where a teacher's maps come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from redistill_lib.methods import Batch
from redistill_lib.network import MapRef, locate, run_and_read


class Teacher(Protocol):
    """What answers with its maps for a batch: a network that is run, or a store of what it said before."""

    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]: ...


class LiveTeacher(nn.Module):
    """A frozen network in eval mode that is run for every batch, no further than the last map that is wanted.

    A network with hooks of its owner is always run to its end, so that they fire.

    >>> teacher = LiveTeacher(nn.Sequential(nn.ReLU(), nn.Flatten()))
    >>> teacher.maps(Batch((torch.ones(1, 2),)), [MapRef("0", "output")])
    {MapRef(layer='0', side='output'): tensor([[1., 1.]])}
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        #: Where each map is found, by the maps wanted: read once to the end, so no wanted layer runs twice.
        self._followed: dict[tuple[MapRef, ...], dict[MapRef, MapRef]] = {}

    def train(self, mode: bool = True) -> LiveTeacher:
        return super().train(False)

    @torch.no_grad()
    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        self.network.eval()  # someone may have called train() on the network itself
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules())
        key = tuple(dict.fromkeys(refs))
        places = self._followed.get(key) or {ref: locate(self.network, ref, "teacher") for ref in refs}
        inputs = [
            x.clone() if isinstance(x, Tensor) else x for x in batch.inputs
        ]  # the student gets them too, and a network may work in place
        _, found = run_and_read(self.network, places, inputs, "teacher", key in self._followed and not hooked)
        self._followed[key] = places
        return found
