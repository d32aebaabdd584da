"""ExecuTorch programs: planned so that a pass needs what is alive, and what it then needs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from redistill_lib.export.formats import Inputs, Pass
from redistill_lib.export.heap import heap_peak, median_seconds
from redistill_lib.export.precision import quantized
from redistill_lib.export.result import RuntimePeak
from redistill_lib.memory import RUNTIMES
from redistill_lib.memory.arena import Block, height, pack_tightly
from redistill_lib.memory.measure import silent_stderr

# In which max pooling makes its index map, of int64, that nothing reads; the Runtime says so, too.
PARTS = RUNTIMES["executorch"].pool_parts
BINDING = 8192  # bytes on the heap: less is the Python binding's, 2 to 4 KB where kernels take none
# Kernels that read an element only to write the one that takes its place; the last one, of its first input.
IN_PLACE = (
    "aten::relu", "aten::hardtanh", "aten::clamp", "aten::add", "aten::mul", "aten::sigmoid", "aten::gelu",
    "aten::_softmax", "aten::slice_scatter",
)  # fmt: skip


def write(model: nn.Module, inputs: Inputs, file: Path, calibration: Sequence[Inputs]) -> None:
    from executorch.exir import ExecutorchBackendConfig

    program = torch.export.export(model, inputs)
    edge = _quantized(program, inputs, calibration) if calibration else _edge(program)
    _check_kernels(edge)
    made = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=_planning()))
    with file.open("wb") as out:
        made.write_to_file(out)


def _edge(program: torch.export.ExportedProgram) -> Any:
    """In ExecuTorch's own operators, batch norm as part of the convolution before it, without copies for nothing."""
    from executorch.backends.transforms.fuse_batch_norm_with_conv import FuseBatchNormWithConvPass
    from executorch.backends.transforms.remove_clone_ops import RemoveCloneOpsTransform
    from executorch.backends.transforms.replace_nop_transpose_or_permute_with_view import (
        ReplaceNopTransposeOrPermuteWithViewPass,
    )
    from executorch.backends.transforms.replace_squeeze_unsqueeze_with_view import (
        ReplaceSqueezeAndUnsqueezeWithViewPass,
    )
    from executorch.exir import EdgeCompileConfig, EdgeProgramManager, to_edge
    from executorch.exir.passes.remove_unused_parameters_pass import remove_unused_parameters_pass

    linear, table = torch.ops.aten.linear.default, torch.export.default_decompositions()
    table[torch.ops.aten.max_pool2d.default] = _pool_in_parts
    table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    del table[linear]  # there is a kernel for it; in parts, its weights would be transposed in each pass
    config = EdgeCompileConfig(_check_ir_validity=False, preserve_ops=[linear])
    program = program.run_decompositions(table)
    _drop_copies(program.graph_module.graph)
    edge = to_edge(program, compile_config=config)
    kept = RemoveCloneOpsTransform(preserve_input_output_copies=True)
    views = [ReplaceSqueezeAndUnsqueezeWithViewPass(), ReplaceNopTransposeOrPermuteWithViewPass(), kept]
    edge = edge.transform([FuseBatchNormWithConvPass(edge.exported_program()), *views])
    folded = remove_unused_parameters_pass(edge.exported_program())  # weights as they were before
    return EdgeProgramManager(folded, compile_config=config)


def _drop_copies(graph: fx.Graph) -> None:
    """Of what is written into rows of a map, the copy that is written: in a graph it is the same."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        under, source = (each.meta["val"] for each in node.args[:2])
        if (under.shape, under.dtype) == (source.shape, source.dtype):
            node.replace_all_uses_with(node.args[1])
    graph.eliminate_dead_code()


def _pool_in_parts(x: Tensor, *options: Any) -> Tensor:
    """Max pooling, some channels at a time, as the kernel makes an index map beside each result."""
    step = -(-x.shape[1] // PARTS)
    parts = (x[:, first : first + step] for first in range(0, x.shape[1], step))  # each copied when it is needed
    return torch.cat([F.max_pool2d_with_indices(part, *options)[0] for part in parts], 1)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *options: Any, **named: Any) -> Tensor:
    """As two products and a softmax; PyTorch's own parts ask of each row whether all of it is masked."""
    if mask is None and options == (0.0, True):  # causal: of no row all is masked
        mask, options = q.new_full((q.shape[-2], k.shape[-2]), -torch.inf).triu(1), ()
    boolean = mask is not None and mask.dtype == torch.bool
    if options or named.keys() - {"scale"} or boolean:
        if boolean and mask is not None:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
        whole: Tensor = torch.ops.aten._scaled_dot_product_attention_math(q, k, v, mask, *options, **named)[0]
        return whole
    scale = named.get("scale") or q.shape[-1] ** -0.5
    rows, columns, values = (each.reshape(-1, *each.shape[-2:]) for each in (q, k, v))
    weights = torch.bmm(rows * scale, columns.transpose(1, 2))
    if mask is not None:
        weights = (weights.reshape(*q.shape[:-1], -1) + mask).reshape(weights.shape)
    return torch.bmm(weights.softmax(-1), values).reshape(*q.shape[:-1], v.shape[-1])


def _quantized(program: torch.export.ExportedProgram, inputs: Inputs, calibration: Sequence[Inputs]) -> Any:
    """In int8, per channel and static, for the XNNPACK delegate: the portable kernels compute in float32 alone."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    converted = torch.export.export(quantized(program.module(), calibration), inputs)
    return to_edge_transform_and_lower(converted, partitioner=[XnnpackPartitioner()])


def _check_kernels(edge: Any) -> None:
    """Refuse operators that the runtime has no kernel for."""
    known = {name.partition(".")[0] for name in _runtime().operator_registry.operator_names}
    missing: dict[str, str] = {}
    for node in edge.exported_program().graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.name not in known:
            missing[schema.name] = _layer_of(node)
    if missing:
        named = ", ".join(f"{name} ({layer})" if layer else name for name, layer in missing.items())
        raise ValueError(f"ExecuTorch has no kernel for {named}")


def _layer_of(node: fx.Node) -> str:
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    return str(stack[-1][0]) if stack else ""


def _planning() -> Any:
    """Maps are overwritten where they die, and lie in an arena as low as we can pack it."""
    from executorch.exir.memory_planning import get_node_tensor_specs
    from executorch.exir.passes import MemoryPlanningPass

    class InPlace(MemoryPlanningPass):
        def _set_alloc_node_spec(self, graph_module: fx.GraphModule) -> None:
            super()._set_alloc_node_spec(graph_module)
            _share(list(graph_module.graph.nodes), get_node_tensor_specs)

    return InPlace(_pack)


def _share(nodes: Sequence[fx.Node], specs_of: Any) -> None:
    """What an operator that works in place makes lies in the first of its inputs that nothing reads any more."""
    reads = ((k, source) for k, node in enumerate(nodes) for source in node.all_input_nodes)
    last = {id(spec): k for k, source in reads for spec in specs_of(source)}
    for k, node in enumerate(nodes):
        name = getattr(getattr(node.target, "_schema", None), "name", "")
        if name not in IN_PLACE:
            continue
        made = node.meta["spec"]
        for source in node.all_input_nodes[:1] if name == IN_PLACE[-1] else node.all_input_nodes:
            held: Any = source.meta.get("spec")
            alike = hasattr(held, "shape") and (held.shape, held.dtype) == (made.shape, made.dtype)
            if alike and not held.const and last.get(id(held)) == k:
                for other in nodes:
                    if other.meta.get("spec") is made:
                        other.meta["spec"] = held
                last[id(held)] = last.get(id(made), k)
                break


def _pack(alignment: int, specs: Iterable[Any], module: Any, signature: Any, padding: int) -> list[int]:
    """ExecuTorch's planning algorithms are called so; bytes by memory, of which the first is for constants."""
    specs = list(specs)
    for spec in specs:
        spec.realign(alignment)
    blocks = [Block(spec.allocated_memory, *spec.lifetime) for spec in specs]
    offsets = pack_tightly(blocks)
    for spec, offset in zip(specs, offsets, strict=True):
        spec.mem_id, spec.mem_obj_id, spec.mem_offset = 1, 0, offset
    return [0, height(blocks, offsets) + padding]


def load(file: Path) -> tuple[Inputs, Pass]:
    plan, execute = _plan(file), _method(file)

    def run(inputs: Inputs) -> Inputs:
        return tuple(out.clone() for out in execute(inputs))  # the next pass writes over them

    given = (plan.values[index].val for index in plan.inputs)
    return tuple(torch.empty(each.sizes, dtype=_dtype(each), device="meta") for each in given), run


def _runtime() -> Any:
    with silent_stderr():
        from executorch.runtime import Runtime

        return Runtime.get()


def _method(file: Path) -> Pass:
    try:
        with silent_stderr():  # a delegate looks at the processor
            program = _runtime().load_program(file)
            method = program.load_method("forward")
    except RuntimeError as error:
        raise ValueError(f"ExecuTorch cannot load {file}: {error}") from error
    assert method is not None

    passes = itertools.count()

    def execute(inputs: Inputs) -> Inputs:
        assert program  # whose memory the method reads
        quietly = silent_stderr() if next(passes) == 0 else contextlib.nullcontext()  # kernels look too
        try:
            with quietly:
                return tuple(method.execute(inputs))
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot run {file}: {error}; another pass says more on stderr") from error

    return execute


def measure(file: Path, inputs: Inputs) -> RuntimePeak:
    """What delegates and kernels take beside the plan is counted in a first pass."""
    execute = _method(file)
    beside = heap_peak(lambda: execute(inputs), warm=False)
    beside = beside if beside > BINDING else 0
    seconds = median_seconds(lambda: execute(inputs))
    return RuntimePeak(str(file), "ExecuTorch", 0, None, beside, file.stat().st_size, seconds)


def planned(file: Path) -> dict[str, Any]:
    """Its arena, and what is alive there at once. Reading that takes seconds of imports, which the exporter has."""
    plan = _plan(file)
    return {"peak_bytes": _alive(plan), "arena_bytes": sum(plan.non_const_buffer_sizes[1:])}


def _plan(file: Path) -> Any:
    """How the file's one method is executed: values and where they lie, and calls of kernels."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        return deserialize_pte_binary(file.read_bytes()).program.execution_plan[0]
    except Exception as error:
        raise ValueError(f"{file} is no ExecuTorch program, or is damaged: {type(error).__name__}") from error


def _alive(plan: Any) -> int:
    """The most bytes of the arena that hold what a later call reads."""
    lives: dict[int, list[int]] = {}  # value → first and last call
    seen: dict[int, int] = {}  # place in the arena → call that last read or wrote there
    (chain,) = plan.chains

    def touch(index: int, k: int, written: bool) -> None:
        value = plan.values[index].val
        for each in getattr(value, "items", ()):
            touch(each, k, written)
        if (place := getattr(value, "allocation_info", None)) is not None:
            # What is read and was never written is another view of what lies there, which nothing else tells.
            first = k if written else seen.get(place.memory_offset, k)
            lives.setdefault(index, [first, k])[1] = k
            seen[place.memory_offset] = k

    for index in plan.inputs:
        touch(index, 0, True)
    for k, call in enumerate(chain.instructions):
        for index in reversed(getattr(call.instr_args, "args", ())):  # what it writes comes last
            touch(index, k, index == call.instr_args.args[-1])
    for index in plan.outputs:
        touch(index, len(chain.instructions) - 1, False)
    alive: list[set[tuple[int, int]]] = [set() for _ in chain.instructions]
    for index, (first, last) in lives.items():
        tensor = plan.values[index].val
        start = tensor.allocation_info.memory_offset
        taken = start, start + math.prod(tensor.sizes) * _dtype(tensor).itemsize
        for k in range(first, last + 1):
            alive[k].add(taken)
    return max(map(_covered, alive))


def _covered(spans: set[tuple[int, int]]) -> int:
    """Bytes of the arena, of which several tensors may share some."""
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _dtype(tensor: Any) -> torch.dtype:
    names = {"LONG": "int64", "INT": "int32", "CHAR": "int8", "BYTE": "uint8", "BOOL": "bool"}
    dtype: torch.dtype = getattr(torch, names.get(tensor.scalar_type.name, "float32"))
    return dtype
