"""What edge runtimes really need, beside what `profile_memory` says under their conventions.

    python benchmarks/runtimes.py                   about ten minutes; networks given as arguments alone: less

For teachers, students that pool ×4, and those with RED blocks, float32, one image, in bytes: the arena that
ExecuTorch plans (portable kernels, no delegate) and the most that its planned lifetimes hold at once, as shipped
(`executorch`) and with batch norm folded and ReLU and sums in place (`executorch_in_place`, executed too: its outputs
have to be PyTorch's); and what ONNX Runtime takes from malloc during a pass, all optimisations, without its own arena
and memory pattern, the caller's input added. Writes benchmarks/results/runtimes.csv.

Needs what the library does not, installed so that torch stays as it is; a runtime that is missing is left out:
    pip install --no-deps onnx onnxscript onnx_ir ml_dtypes onnxruntime executorch torchao
    pip install protobuf flatbuffers tabulate ruamel.yaml
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import redistill_lib as rd

HERE = Path(__file__).parent
NETWORKS = {  # and the input size
    "mobilenetv2": 128, "mobilenetv3_small": 128, "mobilenetv3_large": 128, "resnet18": 224, "resnet34": 64,
    "resnet50": 224, "resnext18": 128, "resnext50": 64, "unet": 32,
}  # fmt: skip
IN_PLACE = ("aten::relu", "aten::hardtanh", "aten::clamp", "aten::add")


def networks(name: str, size: int) -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Teacher, student and student with RED blocks."""
    torch.manual_seed(0)
    inputs = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in rd.example_inputs(name, size))
    teacher, student = rd.create_model(name).eval(), rd.create_model(rd.student_name(name, 4)).eval()
    yield teacher.name, teacher, inputs
    yield student.name, student, inputs
    taps = rd.match_taps(student, teacher, inputs)
    blocks = rd.Distillation(copy.deepcopy(student), teacher, taps, "red-blocks", example=inputs)
    yield f"{student.name} + RED", blocks.graduate().eval(), inputs


# ------------------------------------------------------------------------------------------------------ ExecuTorch


def fold(model: nn.Module) -> nn.Module:
    """A copy in which batch norm is part of the convolution before it; the network itself where there is none."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    graph = fx.symbolic_trace(copy.deepcopy(model))
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        norm, before = modules.get(str(node.target)), node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or before.op != "call_module" or len(before.users) > 1:
            continue
        if isinstance(modules[before.target], nn.Conv2d):
            modules[before.target] = fuse_conv_bn_eval(modules[before.target], norm)
            graph.set_submodule(before.target, modules[before.target])
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def lower(model: nn.Module, inputs: tuple[Tensor, ...], in_place: bool) -> Any:
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
    from executorch.exir.memory_planning import get_node_tensor_specs
    from executorch.exir.passes import MemoryPlanningPass

    class InPlace(MemoryPlanningPass):
        """ReLU and sums into the first argument that dies there."""

        def _set_alloc_node_spec(self, graph: fx.GraphModule) -> None:
            super()._set_alloc_node_spec(graph)
            nodes = list(graph.graph.nodes)
            for k, node in enumerate(nodes):
                if getattr(getattr(node.target, "_schema", None), "name", "") not in IN_PLACE:
                    continue
                made = node.meta["spec"]
                later = [s for n in nodes[k + 1 :] for m in n.all_input_nodes for s in get_node_tensor_specs(m)]
                for source in node.all_input_nodes:
                    held = source.meta.get("spec")
                    fits = hasattr(held, "shape") and (held.shape, held.dtype) == (made.shape, made.dtype)
                    if fits and not held.const and all(s is not held for s in later):
                        for other in nodes:
                            if other.meta.get("spec") is made:
                                other.meta["spec"] = held
                        break

    edge = to_edge(torch.export.export(model, inputs), compile_config=EdgeCompileConfig(_check_ir_validity=False))
    planning = {"memory_planning_pass": InPlace()} if in_place else {}
    return edge.to_executorch(ExecutorchBackendConfig(**planning))


def planned(program: Any) -> tuple[int, int]:
    """The most that is alive at once, and the arena."""
    from executorch.exir.memory_planning import get_node_tensor_specs

    nodes = program.exported_program().graph_module.graph.nodes
    specs = {id(spec): spec for node in nodes for spec in get_node_tensor_specs(node) if not spec.const}
    alive: Counter[int] = Counter()
    for spec in specs.values():
        if spec.mem_offset is not None:
            alive.update(dict.fromkeys(range(spec.lifetime[0], spec.lifetime[1] + 1), spec.allocated_memory))
    return max(alive.values()), program.executorch_program.execution_plan[0].non_const_buffer_sizes[1]


def executorch(model: nn.Module, inputs: tuple[Tensor, ...], in_place: bool) -> tuple[int, int]:
    program = lower(fold(model) if in_place else model, inputs, in_place)
    if in_place:
        from executorch.runtime import Runtime

        given = tuple(x.clone() for x in inputs)
        out = Runtime.get().load_program(program.buffer).load_method("forward").execute(given)[0]
        torch.testing.assert_close(out, model(*inputs), rtol=1e-3, atol=1e-4)
    return planned(program)


# ---------------------------------------------------------------------------------------------------- ONNX Runtime


def onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Bytes from malloc during a second pass; this process has the counter preloaded."""
    import onnxruntime as ort

    counter = ctypes.CDLL(os.environ["LD_PRELOAD"])
    counter.counter_stop.restype = ctypes.c_long
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.onnx"
        torch.onnx.export(model, inputs, file, dynamo=False)
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {put.name: x.numpy() for put, x in zip(session.get_inputs(), inputs, strict=True)}
    for _ in range(2):
        counter.counter_start()
        session.run(None, feeds)
        peak = counter.counter_stop()
    return peak + sum(x.nbytes for x in inputs)


def counted(names: list[str]) -> dict[str, int]:
    """What ONNX Runtime needs for each network, from a process with the counter."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/malloc_counter.so"
        subprocess.run(
            ["cc", "-O2", "-shared", "-fPIC", HERE / "malloc_counter.c", "-o", library, "-ldl"], check=True
        )
        command = [sys.executable, __file__, "--counted", *names]
        told = subprocess.run(command, env={**os.environ, "LD_PRELOAD": library}, stdout=subprocess.PIPE, check=True)
    return json.loads(told.stdout.splitlines()[-1])


# ----------------------------------------------------------------------------------------------------------- table


def table(names: list[str]) -> pd.DataFrame:
    rows = []
    found = counted(names) if importlib.util.find_spec("onnxruntime") else {}
    for name in names:
        for label, model, inputs in networks(name, NETWORKS[name]):
            measured: dict[str, tuple[int, int]] = {}
            if importlib.util.find_spec("executorch"):
                for convention in ("executorch", "executorch_in_place"):
                    try:
                        measured[convention] = executorch(model, inputs, convention.endswith("in_place"))
                    except Exception as error:  # a network that it cannot take is part of the result
                        print(f"{label}, {convention}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            if label in found:
                measured["onnxruntime"] = found[label], found[label]
            for convention, (live, arena) in measured.items():
                profile = rd.profile_memory(model, *inputs, convention=convention)
                rows.append(
                    {
                        "network": label, "px": NETWORKS[name], "runtime": convention,
                        "live measured": live, "live profile": profile.peak_bytes,
                        "arena measured": arena, "arena profile": profile.arena_bytes,
                        "arena packed best": profile.best_arena_bytes,
                    }
                )  # fmt: skip
                print(*rows[-1].values(), sep="  ", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *NETWORKS], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of exporters
    names = arguments.names or list(NETWORKS)
    if arguments.counted:
        found = {}
        for name in names:
            for label, model, inputs in networks(name, NETWORKS[name]):
                with torch.no_grad():
                    found[label] = onnxruntime(model, inputs)
        print(json.dumps(found))
        return
    if not any(importlib.util.find_spec(package) for package in ("executorch", "onnxruntime")):
        print("neither executorch nor onnxruntime is installed: nothing to compare (see --help)")
        return
    with torch.no_grad():
        frame = table(names)
    if not arguments.names:
        frame.to_csv(HERE / "results" / "runtimes.csv", index=False)
    for runtime, rows in frame.groupby("runtime"):
        for what in ("live", "arena"):
            ratio = rows[f"{what} measured"] / rows[f"{what} profile"]
            equal = f"{(ratio == 1).sum()} of {len(rows)} equal to the byte"
            print(f"{runtime}, {what}: {equal}; measured / profile {ratio.min():.3f} to {ratio.max():.3f}")


if __name__ == "__main__":
    main()
