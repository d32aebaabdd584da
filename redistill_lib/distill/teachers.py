"""Where a teacher's maps come from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from redistill_lib.methods import Batch
from redistill_lib.network import MapRef, locate, reading


class Teacher(Protocol):
    """What answers with its maps for a batch: a network that is run, or a store of what it said before."""

    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]: ...


class _AllRead(BaseException):
    """Every map that is wanted is there. No Exception, so that a network's own ``except Exception`` lets it pass."""


class LiveTeacher(nn.Module):
    """A frozen network in eval mode that is run for every batch, no further than the last map that is wanted.

    What follows the last map, often the widest maps of all, need not run. A network that carries hooks of its owner
    is always run to its end, so that they fire.

    >>> teacher = LiveTeacher(nn.Sequential(nn.ReLU(), nn.Flatten()))
    >>> teacher.maps(Batch((torch.ones(1, 2),)), [MapRef("0", "output")])
    {MapRef(layer='0', side='output'): tensor([[1., 1.]])}
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self._followed: set[tuple[MapRef, ...]] = set()  # read once to the end, so no wanted layer runs twice
        self._places: dict[MapRef, MapRef] = {}  # where each map is found

    def train(self, mode: bool = True) -> LiveTeacher:
        return super().train(False)

    @torch.no_grad()
    def maps(self, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        self.network.eval()  # someone may have called train() on the network itself
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in self.network.modules())
        key = tuple(dict.fromkeys(refs))
        stop_early = key in self._followed and not hooked
        found: dict[MapRef, Tensor] = {}
        complete = False

        def keep(ref: MapRef, x: Tensor) -> None:
            nonlocal complete
            if complete and stop_early:  # the network caught what was to stop it
                return
            if ref in found:
                raise RuntimeError(f"teacher layer {ref.layer!r} runs more than once per pass; tap a layer around it")
            found[ref] = x.clone()  # what follows may work in place
            complete = len(found) == len(key)
            if complete and stop_early:
                raise _AllRead

        for ref in key:
            if ref not in self._places:
                self._places[ref] = locate(self.network, ref, "teacher")
        visits = {self._places[ref]: partial(keep, ref) for ref in key}
        with reading(self.network, visits), contextlib.suppress(_AllRead):
            self.network(*batch.inputs)
            self._followed.add(key)
        if missing := [str(ref) for ref in refs if ref not in found]:
            raise RuntimeError(f"the teacher's forward pass never reached {', '.join(missing)}, which a tap wants")
        return found
