"""Where a network changes its maps' height × width."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.network.hooks import evaluating


@dataclass(frozen=True)
class Resize:
    """The smallest module that holds one whole change of resolution, e.g. a strided conv or a residual block."""

    path: str
    before: tuple[int, int]  # height, width
    after: tuple[int, int]
    channels_in: int
    channels_out: int
    learns: bool  # it convolves, or something has since the step before; ResNet's max pool after conv1 does not

    @property
    def down(self) -> bool:
        return self.after[0] * self.after[1] < self.before[0] * self.before[1]


def map_shapes(model: nn.Module, *inputs: Tensor) -> list[tuple[str, torch.Size, torch.Size]]:
    """(path, input shape, output shape) of every module that maps a B×C×H×W tensor to one, in order of completion.

    A module that runs more than once per pass has no shape of its own and is left out.
    """
    seen: list[tuple[str, torch.Size, torch.Size]] = []

    def note(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and all(isinstance(v, Tensor) and v.ndim == 4 for v in (args[0], output)):
            seen.append((path, args[0].shape, output.shape))

    with ExitStack() as hooks, evaluating(model):
        for path, module in model.named_modules():
            if path and not isinstance(module, nn.Linear):  # works on the last axis: its 4-d tensors are B×H×W×C
                hooks.enter_context(module.register_forward_hook(partial(note, path)))
        model(*inputs)
    calls = Counter(path for path, _, _ in seen)
    return [entry for entry in seen if calls[entry[0]] == 1]


def find_resizes(model: nn.Module, *inputs: Tensor) -> list[Resize]:
    """Where a network changes its maps' height × width, in order of execution.

    Parallel branches that make the same change (a residual block's conv and its shortcut) count as one, at the
    module that holds them all. Adaptive pooling to a fixed size is the head's or a gate's, and does not count.
    """
    seen = [
        s for s in map_shapes(model, *inputs) if not type(model.get_submodule(s[0])).__name__.startswith("Adaptive")
    ]
    # A valid convolution shaves a border off; only a real change of scale counts.
    changes = [(p, i, o) for p, i, o in seen if not 0.75 < (o[-2:].numel() / i[-2:].numel()) ** 0.5 < 1.34]
    paths = [p for p, _, _ in changes]
    smallest = [c for c in changes if not any(other.startswith(c[0] + ".") for other in paths)]
    order = {path: k for k, (path, _, _) in enumerate(seen)}
    steps: list[Resize] = []
    for path, i, o in smallest:
        before, after = (i[-2], i[-1]), (o[-2], o[-1])
        if steps and (steps[-1].before, steps[-1].after) == (before, after):
            names = zip(steps[-1].path.split("."), path.split("."), strict=False)
            both = ".".join(name for name, _ in takewhile(lambda pair: pair[0] == pair[1], names))
            path = both if both in order else path  # branches of the network itself: the last one stands for all
            steps.pop()
        whole = next(c for c in seen if c[0] == path)
        while (parent := path.rpartition(".")[0]) in order and len(list(model.get_submodule(parent).children())) == 1:
            path = parent  # a module around one layer is that layer, under the name people know
        since = order.get(steps[-1].path, -1) if steps else -1
        modules = [model.get_submodule(p) for p, _, _ in seen[since + 1 : order[whole[0]] + 1]]
        learns = any(weight.ndim > 2 for module in modules for weight in module.parameters())
        steps.append(Resize(path, before, after, whole[1][1], whole[2][1], learns))
    return steps
