"""The operators of one forward pass and the lifetimes of the tensors between them, without computing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from redistill_lib.memory.untouched import exchange_tensors, untouched, values_kept
from redistill_lib.network import check_float
from redistill_lib.network.fakes import quiet_fakes, tensors_in
from redistill_lib.red import original_paths

Kind = Literal["input", "activation", "state"]  # state: a weight or buffer that the pass writes to, of no bytes here


@dataclass(frozen=True)
class Storage:
    """One block of memory and its views. `born` and `died` are operator numbers: it lives while born ≤ op < died."""

    index: int
    nbytes: int
    itemsize: int
    floating: bool
    shape: tuple[int, ...]
    module: str
    kind: Kind
    born: int  # −1: before the first operator
    died: int  # the number of operators: it outlives the pass
    output: bool  # it is part of what the model returns


@dataclass(frozen=True)
class Op:
    """One operator: the storages it reads, those it makes and those it changes, by index."""

    index: int
    name: str  # "convolution"
    target: str  # "aten.convolution.default"
    module: str  # path of the innermost module that ran it
    shape: tuple[int, ...]  # of its first output
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    mutates: tuple[int, ...]
    pointwise: bool
    reduction: bool
    depthwise: bool
    decides: bool  # it hands a value to Python, whose control flow may depend on it
    random: bool
    aligned: tuple[int, ...]  # storages read just as the output is written: same shape, same strides, whole
    kernel: tuple[int, ...] = ()  # of a convolution or pooling: its size and stride along the height
    flops: int = 0  # 2 per multiply-add, of convolutions, matrix products and attention


@dataclass(frozen=True)
class Call:
    """One call of a module: shapes of its first tensor input and output (empty where there is none)."""

    path: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A forward pass as a stream of operators over storages. Weights are not among the storages."""

    ops: tuple[Op, ...]
    storages: tuple[Storage, ...]
    calls: tuple[Call, ...]
    inputs: tuple[tuple[int, ...], ...]  # shapes
    weight_bytes: int
    weight_count: int
    buffer_bytes: int
    source: Literal["fake", "real"]  # real: the pass had to be computed, as it depends on values


class _Recorder(TorchDispatchMode):
    """Notes every operator and asks before each which storages are gone: Python lets go of them, so only it knows."""

    def __init__(self, paths: Mapping[int, str]):
        super().__init__()
        self.paths = paths
        self.stack: list[str] = []
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.found: list[dict[str, Any]] = []  # the fields of each Storage
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}  # address → (reference, index)
        self.layouts: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # shape and strides of each when made
        self.weights: dict[int, Any] = {}  # address → the storage itself, kept so that its address stays its own

    # ------------------------------------------------------------------------------------------------ storages

    def add_weights(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.weights[storage._cdata] = storage

    def index_of(self, tensor: Tensor) -> int | None:
        """The storage's number; None for a weight, an empty one, or one that was there before (a constant)."""
        if not _is_plain(tensor):
            return None
        entry = self.alive.get(tensor.untyped_storage()._cdata)
        return None if entry is None else entry[1]

    def add(self, tensor: Tensor, kind: Kind) -> int | None:
        """Number a storage that was not there before; None where it was, or holds nothing."""
        if not _is_plain(tensor):
            return None
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive or (kind != "state" and (key in self.weights or storage.nbytes() == 0)):
            return None
        index = len(self.found)
        self.layouts[index] = tuple(tensor.shape), tensor.stride()
        self.found.append(
            {
                "index": index,
                "nbytes": 0 if kind == "state" else storage.nbytes(),
                "itemsize": tensor.itemsize,
                "floating": tensor.is_floating_point(),
                "shape": tuple(tensor.shape),
                "module": self.stack[-1] if self.stack else "",
                "kind": kind,
                "born": len(self.ops) if kind != "input" else -1,
            }
        )
        self.alive[key] = (StorageWeakRef(storage), index)
        return index

    def bury(self) -> None:
        for key in [key for key, (reference, _) in self.alive.items() if reference.expired()]:
            self.found[self.alive.pop(key)[1]]["died"] = len(self.ops)

    # ----------------------------------------------------------------------------------------------- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions such as a tensor's device
            return func(*args, **kwargs)
        self.bury()
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and _is_plain(leaf)]
        mutates = _mutated(func, args, kwargs)
        for tensor in mutates:
            if self.index_of(tensor) is None:
                self.add(tensor, "state")  # what is read from it later depends on this
        reads = [self.index_of(tensor) for tensor in given]
        layouts = [(tuple(t.shape), t.stride(), t.nbytes == t.untyped_storage().nbytes()) for t in given]
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        writes = [index for tensor in made if (index := self.add(tensor, "activation")) is not None]
        changed = [index for tensor in mutates if (index := self.index_of(tensor)) is not None]
        decides = func is torch.ops.aten._local_scalar_dense.default
        if not (writes or changed or decides):
            return out  # a view
        shape, stride = (tuple(made[0].shape), made[0].stride()) if made and _is_plain(made[0]) else ((), ())
        per_storage: dict[int, set[bool]] = {}
        for index, layout in zip(reads, layouts, strict=True):
            if index is not None:
                per_storage.setdefault(index, set()).add(layout == (shape, stride, True))
        kernel, depthwise = _kernel(func, args)
        if reads and reads[0] is not None and layouts[0][:2] != self.layouts[reads[0]]:
            kernel = ()  # not the map as it was made: its rows are other ones
        self.ops.append(
            Op(
                index=len(self.ops),
                name=func._schema.name.partition("::")[2],
                target=str(func),
                module=self.stack[-1] if self.stack else "",
                shape=shape,
                reads=tuple(dict.fromkeys(index for index in reads if index is not None)),
                writes=tuple(writes),
                mutates=tuple(dict.fromkeys(changed)),
                pointwise=torch.Tag.pointwise in func.tags,
                reduction=torch.Tag.reduction in func.tags,
                depthwise=depthwise,
                decides=decides,
                random=torch.Tag.nondeterministic_seeded in func.tags,
                aligned=tuple(index for index, fits in per_storage.items() if fits == {True}),
                kernel=kernel,
                flops=_flops(func, args, kwargs, out),
            )
        )
        return out

    # ------------------------------------------------------------------------------------------------- modules

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.paths.get(id(module), self.stack[-1] if self.stack else ""))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        path = self.stack.pop()
        if self.paths.get(id(module)) == path:
            self.calls.append(Call(path, _first_shape(args), _first_shape(output)))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _first_shape(values: Any) -> tuple[int, ...]:
    return next((tuple(tensor.shape) for tensor in tensors_in(values)), ())


def _mutated(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    if not func._schema.is_mutable:
        return []
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _kernel(func: Any, args: Any) -> tuple[tuple[int, ...], bool]:
    """(rows that the kernel spans, stride along the height) of a 2-d convolution or pooling; whether depthwise."""
    name = func._schema.name
    if name == "aten::convolution":
        weight, stride, dilation, transposed, groups = args[1], args[3], args[5], args[6], args[8]
        if weight.ndim != 4 or transposed:
            return (), False
        rows = dilation[0] * (weight.shape[2] - 1) + 1
        return (rows, stride[0]), groups > 1 and groups == args[0].shape[1] == weight.shape[0]
    if name.startswith(("aten::max_pool2d", "aten::avg_pool2d")):
        stride = args[2] if len(args) > 2 and args[2] else args[1]
        dilation = args[4][0] if name.startswith("aten::max") and len(args) > 4 else 1
        return (dilation * (args[1][0] - 1) + 1, stride[0]), False
    return (), False


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    count = flop_registry.get(func._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


def trace(
    model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None, fast_attention: bool = True
) -> Trace:
    """Follow one forward pass in eval mode, under PyTorch's own operators, on tensors that have no contents.

    `inputs` may hold tensors (also on the meta device), and tuples, lists and dicts of them. Nothing is allocated
    for weights or activations. A network whose control flow depends on values, or that calls what cannot be
    followed without contents, is run once for real instead, on copies of its buffers (`Trace.source` is then
    "real"). `fast_attention=False` keeps `nn.MultiheadAttention` from fusing into one operator that hides its
    temporaries. Raises what the model itself raises.

    >>> ops = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8)).ops
    >>> [(op.name, op.module, op.shape) for op in ops]
    [('convolution', '0', (1, 8, 6, 6)), ('relu', '1', (1, 8, 6, 6))]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the network must be an nn.Module, not {type(model).__name__}")
    if not tensors_in((inputs, kwargs)):
        raise ValueError("a profile needs an example input, such as torch.zeros(1, 3, 224, 224) after the network")
    check_float(inputs)
    settings = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_attention and settings)
    try:
        with quiet_fakes(), untouched(model):
            return _trace_fake(model, inputs, dict(kwargs or {}))
    except Exception:
        if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *tensors_in((inputs, kwargs)))):
            raise  # there is nothing to compute with
        with untouched(model):
            return _trace_real(model, inputs, dict(kwargs or {}))
    finally:
        torch.backends.mha.set_fastpath_enabled(settings)


def _trace_fake(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    device = next((t.device for t in tensors.values() if not t.is_meta), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):

        def stand_in(tensor: Tensor) -> Tensor:
            # As a copy of it would be, since that is what measuring gives the network: a view becomes dense.
            if tensor.is_contiguous():
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            else:
                made = torch.empty_like(tensor, device=device)
            return made.requires_grad_() if tensor.requires_grad else made

        # One stand-in per storage, so that tied weights stay tied.
        by_id = {id(tensor): stand_in(tensor) for tensor in tensors.values()}
        weights = {name: by_id[id(tensor)] for name, tensor in tensors.items()}
        inputs, kwargs = tree_map_only(Tensor, stand_in, (inputs, kwargs))
        recorder = _Recorder(original_paths(model))
        recorder.add_weights([*weights.values(), *exchange_tensors(model, stand_in)])
        return _record(model, recorder, inputs, kwargs, "fake", weights)


def _trace_real(model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Trace:
    recorder = _Recorder(original_paths(model))
    inputs, kwargs = tree_map_only(Tensor, torch.clone, (inputs, kwargs))
    with values_kept(model) as plain:
        recorder.add_weights([*model.parameters(), *model.buffers(), *plain])
        return _record(model, recorder, inputs, kwargs, "real")


def _record(
    model: nn.Module,
    recorder: _Recorder,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    source: Literal["fake", "real"],
    weights: dict[str, Tensor] | None = None,
) -> Trace:
    shapes = []
    for tensor in tensors_in((inputs, kwargs)):
        recorder.add(tensor, "input")
        shapes.append(tuple(tensor.shape))
    handles = [
        module_hooks.register_module_forward_pre_hook(recorder.enter),
        module_hooks.register_module_forward_hook(recorder.leave, always_call=True),
    ]
    try:
        with recorder:
            out = model(*inputs, **kwargs) if weights is None else functional_call(model, weights, inputs, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    recorder.bury()
    returned = {recorder.index_of(tensor) for tensor in tensors_in(out)}
    storages = tuple(
        Storage(
            **{"died": len(recorder.ops), **fields}, output=fields["index"] in returned or fields["kind"] == "state"
        )
        for fields in recorder.found
    )
    parameters = {id(p): p for p in model.parameters()}.values()
    return Trace(
        ops=tuple(recorder.ops),
        storages=storages,
        calls=tuple(recorder.calls),
        inputs=tuple(shapes),
        weight_bytes=sum(p.nbytes for p in parameters),
        weight_count=sum(p.numel() for p in parameters),
        buffer_bytes=sum(b.nbytes for b in {id(b): b for b in model.buffers()}.values()),
        source=source,
    )
