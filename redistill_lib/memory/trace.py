"""The operators of one forward pass and the lifetimes of the tensors between them, without computing anything."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from redistill_lib.memory.operators import count_flops, groups_of, is_reshape, name_of, window_of
from redistill_lib.network import check_float
from redistill_lib.network.fakes import Tensors, follow, held_tensors, tensors_in
from redistill_lib.network.flow import arguments_of
from redistill_lib.red import original_paths

if TYPE_CHECKING:
    from redistill_lib.memory.reuse import Runs

Shape = tuple[int, ...]
_Result = TypeVar("_Result")
_Kind = Literal["input", "activation", "state"]  # state: a weight or buffer written to, 0 bytes


class Storage(NamedTuple):
    """One block of memory and its views. `born` and `died` are operator numbers: it lives while born ≤ op < died."""

    index: int  # type: ignore[assignment]
    nbytes: int
    dtype: torch.dtype
    shape: Shape
    stride: tuple[int, ...]
    module: str
    kind: _Kind
    born: int  # −1: before the first operator
    died: int = -1  # the number of operators: it outlives the pass
    output: bool = False  # the model returns it, or keeps it


class Op(NamedTuple):
    """One operator: the storages it reads, those it makes and those it changes, by index."""

    func: OpOverload  # aten.convolution.default, and what PyTorch knows of it
    module: str  # path of the innermost module that ran it
    shape: Shape  # of its first output
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    mutates: tuple[int, ...]
    aligned: tuple[int, ...]  # storages read just as the output is written: same shape, same strides, whole
    rows: int  # that the kernel of a convolution or pooling spans; 0: another operator, or it reads a view
    depthwise: bool
    flops: int  # 2 per multiply-add, of convolutions, matrix products and attention
    padded: Shape = ()  # of its input with a padding that TensorFlow's SAME does not make; (): it has none such
    groups: int = 0  # of a convolution; 0: another operator, or a transposed one
    grows: bool = False  # zeros at the end of its kernel let SAME make that padding

    @property
    def name(self) -> str:
        return name_of(self.func)

    def moved(self, place: Callable[[int], int], module: str) -> Op:
        """The operator in another module, with other numbers for its storages."""
        reads, writes, mutates, aligned = (
            tuple(map(place, indices)) for indices in (self.reads, self.writes, self.mutates, self.aligned)
        )
        return self._replace(module=module, reads=reads, writes=writes, mutates=mutates, aligned=aligned)


@dataclass(frozen=True)
class Trace:
    """A forward pass as a stream of operators over storages. Weights are not among the storages."""

    ops: tuple[Op, ...]
    storages: tuple[Storage, ...]
    calls: dict[str, tuple[Shape, Shape]]  # of a module's first run: shapes of its first tensor in and out, or ()
    inputs: tuple[Shape, ...]
    source: Tensors  # real: the pass had to be computed
    uncounted: tuple[str, ...] = ()  # operators that multiply, or may, which `Op.flops` leaves out

    @functools.cached_property
    def needed(self) -> tuple[list[Op], set[int]]:
        """The operators that vary with the input and decide what is returned or kept, in order; constant storages."""
        if self.source == "real":
            return list(self.ops), set()  # values may have gone through Python, where no operator shows them
        varying, before = {storage.index for storage in self.storages if storage.kind != "activation"}, -1
        while before < len(varying):  # again while a storage turns out to vary that an earlier operator read
            before = len(varying)
            for op in self.ops:
                if is_random(op.func) or not varying.isdisjoint(op.reads):
                    varying.update(op.writes, op.mutates)
        end = len(self.ops)
        needed = {s.index for s in self.storages if s.output} or {s.index for s in self.storages if s.died == end}
        kept = []
        for op in reversed(self.ops):
            touched = {*op.writes, *op.mutates}  # nothing: it hands a value to Python, which may decide by it
            if not touched or needed & touched:
                needed.update(op.reads)
                if not touched or touched & varying:
                    kept.append(op)
        return kept[::-1], {storage.index for storage in self.storages} - varying


@functools.cache  # asking for tags is slow
def is_random(func: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def trace(
    model: nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    fast_attention: bool = True,
    copies_views: bool = False,
    runs: Runs | None = None,
) -> Trace:
    """Follow one forward pass in eval mode on tensors without contents, or for real where that cannot be.

    `inputs` hold tensors (also on the meta device), or tuples, lists and dicts of them; `spread` tells of one alone
    that the network does not take. `fast_attention=False` keeps
    `nn.MultiheadAttention` from fusing into one operator that hides its temporaries. With `copies_views` attention
    is its products and softmax, and what is permuted, sliced or split is a map of its own, as in exported graphs;
    what nothing reads of it no schedule makes. `runs` makes traces of many alike networks fast. Raises what the model
    raises.

    >>> ops = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)).ops
    >>> [(op.name, op.module, op.shape) for op in ops]
    [('convolution', '0', (1, 8, 6, 6)), ('relu', '1', (1, 8, 6, 6))]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the network must be an nn.Module, not {type(model).__name__}")
    if not tensors_in((inputs, kwargs)):
        raise ValueError("a profile needs an example input, such as torch.zeros(1, 3, 224, 224) after the network")
    settings = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_attention and settings)
    record = functools.partial(_record, copies_views=copies_views, runs=runs)
    in_parts = sdpa_kernel(SDPBackend.MATH) if copies_views else contextlib.nullcontext()
    try:
        with in_parts:
            return spread(lambda *given: follow(model, given, record), inputs, kwargs)
    except Exception:
        check_float(inputs)  # perhaps that was why
        raise
    finally:
        torch.backends.mha.set_fastpath_enabled(settings)


def spread(
    run: Callable[[tuple[Any, ...], dict[str, Any]], _Result],
    inputs: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None,
) -> _Result:
    """`run` on arguments and keywords, as they are; where a tuple or dict alone fails so, on what it holds."""
    kwargs = dict(kwargs or {})
    given = inputs[0] if len(inputs) == 1 else None
    if not isinstance(given, (tuple, Mapping)):
        return run(inputs, kwargs)
    try:
        return run(inputs, kwargs)  # a network may well take a tuple
    except Exception:
        args, named = arguments_of(given)
        return run(args, kwargs | named)


def _record(
    model: nn.Module,
    values: tuple[tuple[Any, ...], dict[str, Any]],
    source: Tensors,
    *,
    copies_views: bool,
    runs: Runs | None,
) -> Trace:
    recorder = Recorder(model, values, copies_views)
    with (
        runs.watch(model, recorder) if runs and source == "fake" else contextlib.nullcontext(),
        module_hooks.register_module_forward_pre_hook(recorder.enter),
        module_hooks.register_module_forward_hook(recorder.leave, always_call=True),
        recorder,
    ):
        out = model(*values[0], **values[1])
    recorder.bury()
    returned = {recorder.read(tensor) for tensor in _plain(out)}
    ops, end = tuple(recorder.ops), len(recorder.ops)
    inputs = tuple(_layout(tensor)[0] for tensor in tensors_in(values))
    storages = (
        s._replace(died=recorder.died.get(s.index, end), output=s.index in returned or s.kind == "state")
        for s in recorder.storages
    )
    return Trace(ops, tuple(storages), recorder.calls, inputs, source, tuple(sorted(recorder.uncounted)))


class Recorder(TorchDispatchMode):
    """Notes every operator and asks before each which storages are gone: Python lets go of them, so only it knows."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, inputs: Any, copies_views: bool = False):
        super().__init__()
        self.paths = original_paths(model)
        self.stack = [""]
        self.ops: list[Op] = []
        self.uncounted: set[str] = set()
        self.calls: dict[str, tuple[Shape, Shape]] = {}
        self.storages: list[Storage] = []
        self.references: dict[int, StorageWeakRef] = {}  # of those alive
        self.paused = False
        self.died: dict[int, int] = {}
        self.alive: dict[int, int] = {}  # address → index
        self.copies_views = copies_views
        self.copies: dict[tuple[Hashable, ...], int] = {}  # a view, as `_view_key` calls it → the storage of its copy
        self.unmade: dict[int | None, Op] = {}  # a clone of a copy, which is made if something writes to it
        kept = [tensor.untyped_storage() for tensor in _plain(held_tensors(model))]
        self.weights = {storage._cdata: storage for storage in kept}  # held, so that their addresses stay theirs
        for tensor in _plain(inputs):
            self.add(tensor, "input")

    def index_of(self, tensor: Tensor) -> int | None:
        """The storage's number; None for a weight, an empty one, or a constant."""
        return self.alive.get(tensor.untyped_storage()._cdata)

    def add(self, tensor: Tensor, kind: _Kind) -> int | None:
        """Number a storage that was not there before; None where it was, or holds nothing."""
        storage, state = tensor.untyped_storage(), kind == "state"
        key, nbytes = storage._cdata, 0 if state else storage.nbytes()
        if key in self.alive or (not state and (key in self.weights or not nbytes)):
            return None
        index = self.alive[key] = len(self.storages)
        born = -1 if kind == "input" else len(self.ops)
        self.storages.append(Storage(index, nbytes, tensor.dtype, *_layout(tensor), self.stack[-1], kind, born))
        self.references[index] = StorageWeakRef(storage)
        return index

    def bury(self) -> None:
        for key, index in list(self.alive.items()):
            if self.references[index].expired():
                del self.alive[key], self.references[index]
                self.died[index] = len(self.ops)

    def whole(self, value: Any) -> Storage | None:
        """The storage of a tensor, if the tensor is all of it and laid out as it was made."""
        index = self.index_of(value) if isinstance(value, Tensor) and value.layout == torch.strided else None
        if index is None:
            return None
        made = self.storages[index]
        same = (*_layout(value), value.dtype, value.nbytes) == (made.shape, made.stride, made.dtype, made.nbytes)
        return made if same else None

    def revive(self, index: int, like: Tensor) -> Tensor:
        """A tensor without contents on the device of `like`, for a storage that was recorded without one."""
        made, self.paused = self.storages[index], True
        tensor = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device=like.device)
        self.paused = False
        storage = tensor.untyped_storage()
        self.alive[storage._cdata], self.references[index] = index, StorageWeakRef(storage)
        del self.died[index]
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            with self:
                return _run_higher(func, args, kwargs)
        if self.paused or func.namespace == "prim":  # questions such as a tensor's device
            return func(*args, **kwargs)
        if _is_composite(func) and not any(tensor.is_nested for tensor in _plain(args)):
            with self:  # as it came in inference mode, or inside an operator that takes functions
                return func.decompose(*args, **kwargs)
        self.bury()
        mutates = [t for k, name in _written(func) for t in _plain(args[k] if k < len(args) else kwargs.get(name))]
        for tensor in mutates:
            self.add(tensor, "state")  # what is read from it later depends on this
            self.copies.pop(_view_key(self.index_of(tensor), tensor), None)  # it writes into the map, not into a copy
            self.ops += filter(None, [self.unmade.pop(self.index_of(tensor), None)])
        read = [(self.read(t), *_layout(t), self.is_whole(t)) for t in _plain((args, kwargs))]
        out = func(*args, **kwargs)
        made = _plain(out)
        copy = self.read(args[0]) if name_of(func) == "clone" and "memory_format" in kwargs else None
        if copy is not None and copy != self.index_of(args[0]):  # in order, as reshaping asks for, and as a copy is
            clone = cast(int, self.add(out, "activation"))
            self.copies[_view_key(clone, out)] = copy
            self.unmade[clone] = Op(func, self.stack[-1], _layout(out)[0], (copy,), (clone,), (), (), 0, False, 0)
            return out
        writes = [index for tensor in made if (index := self.add(tensor, "activation")) is not None]
        changed = [index for tensor in mutates if (index := self.index_of(tensor)) is not None]
        if not (writes or changed or func is torch.ops.aten._local_scalar_dense.default):
            if self.copies_views:
                self.look(func, args, made)
            return out
        if changed and self.copies:
            self.copies = {key: copy for key, copy in self.copies.items() if key[0] not in changed}
        shape, stride = _layout(made[0]) if made else ((), ())
        reads = tuple(dict.fromkeys(index for index, *_ in read if index is not None))
        unlike = {index for index, *layout in read if layout != [shape, stride, True]}
        rows, depthwise, padded, grows = window_of(func, args)
        if read and (first := read[0][0]) is not None:
            source = self.storages[first]
            if read[0][1:3] != (source.shape, source.stride):
                rows = 0  # not the map as it was made: its rows are other ones
        flops = count_flops(func, args, kwargs, out)
        if flops is None:
            self.uncounted.add(str(func))
        aligned = tuple(index for index in reads if index not in unlike)
        changes = tuple(dict.fromkeys(changed))
        touched = reads, tuple(writes), changes, aligned
        groups = groups_of(func, args)
        self.ops.append(Op(func, self.stack[-1], shape, *touched, rows, depthwise, flops or 0, padded, groups, grows))
        return out

    def read(self, tensor: Tensor) -> int | None:
        """The storage that holds what is read: of a view, its copy."""
        index = self.index_of(tensor)
        return self.copies.get(_view_key(index, tensor), index) if self.copies else index

    def is_whole(self, tensor: Tensor) -> bool:
        return self.read(tensor) != self.index_of(tensor) or tensor.nbytes == tensor.untyped_storage().nbytes()

    def look(self, func: OpOverload, args: tuple[Any, ...], made: list[Tensor]) -> None:
        """Note the copy that an exported graph makes of a view, but of all elements in the same order."""
        source = self.read(args[0]) if args and isinstance(args[0], Tensor) else None
        if source is None:
            return
        made = [tensor for tensor in made if not self.whole(tensor)]
        moved = [t for t in made if t.numel() != args[0].numel() or not (is_reshape(func) or t.is_contiguous())]
        for tensor in made:
            self.copies[_view_key(self.index_of(tensor), tensor)] = source
        for index, tensor in enumerate(moved, len(self.storages)):
            layout = tensor.dtype, *_layout(tensor), self.stack[-1]
            self.storages.append(Storage(index, tensor.nbytes, *layout, "activation", len(self.ops)))
            self.copies[_view_key(self.index_of(tensor), tensor)] = index
            self.ops.append(Op(func, self.stack[-1], _layout(tensor)[0], (source,), (index,), (), (), 0, False, 0))
            self.died[index] = len(self.ops)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(id(module), self.stack[-1]))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        path = self.stack.pop()
        if self.paths.get(id(module)) == path:
            self.calls.setdefault(path, (_first_shape(args), _first_shape(output)))


def _plain(values: Any) -> list[Tensor]:
    """The tensors that have a storage of their own to ask for."""
    return [tensor for tensor in tensors_in(values) if tensor.layout == torch.strided]


def _layout(tensor: Tensor) -> tuple[Shape, tuple[int, ...]]:
    """Shape and strides; of a nested tensor, which has neither, those of its memory."""
    if tensor.is_nested:
        return (tensor.untyped_storage().nbytes() // tensor.dtype.itemsize,), (1,)
    return tuple(tensor.shape), tensor.stride()


def _view_key(index: int | None, tensor: Tensor) -> tuple[Hashable, ...]:
    return index, tensor.storage_offset(), _layout(tensor), tensor.dtype


def _run_higher(func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
    """Run an operator that takes functions, such as `torch.cond`, as the operators inside it."""
    if func is torch.ops.higher_order.cond:
        condition, if_true, if_false, operands = args
        return (if_true if condition else if_false)(*operands)
    return func.py_kernels[torch._C.DispatchKey.CompositeExplicitAutograd](*args, **kwargs)


def _first_shape(values: Any) -> Shape:
    return next((_layout(tensor)[0] for tensor in tensors_in(values)), ())


@functools.cache
def _is_composite(func: OpOverload) -> bool:
    """Whether it is made of other operators, and has no derivative of its own."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _written(func: OpOverload) -> list[tuple[int, str]]:
    """Positions and names of the arguments that an operator writes to."""
    arguments = enumerate(func._schema.arguments)
    return [(k, a.name) for k, a in arguments if a.alias_info and a.alias_info.is_write]
