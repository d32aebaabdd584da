"""What modules did before, on maps of the same shape: many alike networks are then traced in little time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from redistill_lib.memory.trace import Op, Recorder, Shape, Storage


class _Run(NamedTuple):
    """One run of a module on the storage −1. Its operators and its other storages count from 0."""

    ops: tuple[Op, ...]
    storages: tuple[Storage, ...]
    calls: dict[str, tuple[Shape, Shape]]
    output: int


class Runs:
    """Runs of the modules of several networks, for `trace`.

    A run is replayed where a module of the same class, options and shapes of weights gets a map of the same shape.
    That is exact for networks whose operators depend on nothing else, as those of `redistill_lib.models` do.
    """

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}
        self.known: dict[Hashable, _Run] = {}

    @contextlib.contextmanager
    def watch(self, model: nn.Module, recorder: Recorder) -> Iterator[None]:
        """Meanwhile each module of a network that runs is recorded or replayed."""
        numbers: dict[nn.Module | None, int | None] = {None: 0}
        for module in reversed(list(model.modules())):
            number = numbers[module] = self._number(module, numbers)
            if number is not None and module._modules:  # of a single operator there is little to save
                vars(module)["forward"] = functools.partial(self._forward, recorder, number, module.forward)
        yield
        for watched in model.modules():
            vars(watched).pop("forward", None)  # or it would hold on to itself

    def _number(self, module: nn.Module, numbers: dict[nn.Module | None, int | None]) -> int | None:
        """Equal for modules that do the same. None: that cannot be known."""
        parts = tuple((name, numbers[part]) for name, part in module._modules.items())
        if any(number is None for _, number in parts) or module._forward_hooks or module._forward_pre_hooks:
            return None
        options = tuple((name, value) for name, value in vars(module).items() if not name.startswith("_"))
        tensors = [*module._parameters.items(), *module._buffers.items()]
        layouts = tuple((name, t if t is None else (t.shape, t.stride(), t.dtype)) for name, t in tensors)
        try:
            return self.numbers.setdefault((type(module), options, layouts, parts), len(self.numbers))
        except TypeError:
            return None  # an option that may change, such as a list

    def _forward(
        self, recorder: Recorder, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        recorder.bury()
        source = recorder.whole(args[0]) if len(args) == 1 and not kwargs else None
        if source is None or not recorder.stack[-1]:  # of the whole network there is no second run
            return forward(*args, **kwargs)
        key = number, source.shape, source.stride, source.dtype
        if run := self.known.get(key):
            return _replay(run, recorder, source.index, args[0])
        first_op, first = len(recorder.ops), len(recorder.storages)
        out = forward(*args)
        recorder.bury()
        made = recorder.whole(out)
        if made is None or made.index < first or recorder.uncounted:
            return out
        here = {source.index: -1} | {index: index - first for index in range(first, len(recorder.storages))}
        ops, path = recorder.ops[first_op:], recorder.stack[-1]
        kept = here.keys() - recorder.died.keys() - {source.index, made.index}
        if not kept and all(index in here for op in ops for index in (*op.reads, *op.mutates)):
            self.known[key] = _Run(
                tuple(op.moved(here.__getitem__, op.module[len(path) :]) for op in ops),
                tuple(
                    s._replace(
                        module=s.module[len(path) :],
                        born=s.born - first_op,
                        died=recorder.died.get(s.index, 0) - first_op,
                    )
                    for s in recorder.storages[first:]
                ),
                {name[len(path) :]: call for name, call in recorder.calls.items() if name.startswith(f"{path}.")},
                here[made.index],
            )
        return out


def _replay(run: _Run, recorder: Recorder, source: int, x: Tensor) -> Tensor:
    path, first_op, first = recorder.stack[-1], len(recorder.ops), len(recorder.storages)
    recorder.ops += (op.moved(lambda i: source if i < 0 else first + i, path + op.module) for op in run.ops)
    for index, storage in enumerate(run.storages, first):
        recorder.storages.append(
            storage._replace(index=index, module=path + storage.module, born=storage.born + first_op)
        )
        recorder.died[index] = storage.died + first_op
    for name, call in run.calls.items():
        recorder.calls.setdefault(path + name, call)
    return recorder.revive(first + run.output, x)
