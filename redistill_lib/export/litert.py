"""LiteRT's files, and what they need in LiteRT Micro, its interpreter for microcontrollers."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from redistill_lib.export import tflite
from redistill_lib.export.formats import Inputs, Pass
from redistill_lib.export.heap import median_seconds
from redistill_lib.export.result import RuntimePeak
from redistill_lib.export.same_padding import use_same_padding
from redistill_lib.sizes import format_size

CLOSE = 1e-4  # LiteRT Micro to LiteRT, of the largest output in float32; in int8, one step of the last bit
LEAST_RANGE = 1e-5  # of a map in int8: the bounds of its activation, 6 for ReLU6, in steps have to fit into 32 bits
LARGEST = 32 << 20  # bytes of weights in float32: ai-edge-quantizer 0.10 fails where it divides larger ones
_BOOKKEEPING = 64 << 20  # bytes for what LiteRT Micro notes of a network, beside its maps: far more than it takes


class _ChannelsLast(nn.Module):
    """Takes and gives maps as LiteRT holds them, B×H×W×C, so that none is turned inside."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.training = False  # a graph of torch.export has no train() or eval()

    def forward(self, *inputs: Tensor) -> Inputs:
        made = self.network(*(x.permute(0, 3, 1, 2) if _is_map(x) else x for x in inputs))
        return tuple(x.permute(0, 2, 3, 1) if _is_map(x) else x for x in pytree.tree_leaves(made))


def _is_map(x: Tensor) -> bool:
    return x.ndim == 4


def write(model: nn.Module, inputs: Inputs, file: Path, calibration: Sequence[Inputs]) -> None:
    """With paddings that need no copy, weights inside the file, and a plan of LiteRT Micro's arena."""
    content = _converted(model, inputs)
    if calibration:
        content = _quantized(content, calibration)
    network = tflite.read(content)
    tflite.add_plan(network)
    file.write_bytes(tflite.write(network))


def _converted(model: nn.Module, inputs: Inputs) -> bytes:
    with _native_output():
        import litert_torch
    litert_torch.config.show_progress = False
    try:
        graph = torch.export.export(model, inputs).module()
        assert isinstance(graph, torch.fx.GraphModule)
        use_same_padding(graph)
        given = tuple(x.permute(0, 2, 3, 1).contiguous() if _is_map(x) else x for x in inputs)
        converted = litert_torch.convert(_ChannelsLast(graph), given)
        with _native_output():
            content = bytes(converted.model_content())
    except Exception as error:
        raise ValueError(f"this network cannot be written for LiteRT: {_reason(error)}") from error
    _interpreter(content, "this network")  # refuses what the converter writes and LiteRT has no kernel for
    return content


def _reason(error: Exception) -> str:
    """The operator, where the converter has nothing for it; else what the error says first."""
    text = str(error).strip() or type(error).__name__
    executing = re.search(r"call_function\[target=torch\.ops\.([\w.]+?)(\.default)?\]", text)
    if executing:
        return f"its converter does not take {executing[1]} ({text.splitlines()[0].rstrip('.')})"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def _quantized(content: bytes, calibration: Sequence[Inputs]) -> bytes:
    """Static, weights per channel, inputs and outputs too.

    A range is the least and the most of all calibration; the quantizer by itself takes a moving average of those of
    each input, which cuts what is rarer off.
    """
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    rules, manager = recipe.static_wi8_ai8(), recipe_manager.RecipeManager()
    manager.load_quantization_recipe(rules)
    made = quantizer.Quantizer(content, rules)
    observed = calibrator.Calibrator(content, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    ((signature, puts),) = _interpreter(content, "this network").get_signature_list().items()
    data = [dict(zip(puts["inputs"], map(_array, given), strict=True)) for given in calibration]
    with contextlib.redirect_stderr(io.StringIO()):  # a bar of its own
        observed.calibrate({signature: data}, manager)
        ranges = observed.get_model_qsvs()
        for found in ranges.values():  # a map that was 0 all the time would get steps too small for the kernels
            found["max"] = np.maximum(found["max"], found["min"] + LEAST_RANGE)
        try:
            done = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
        except ValueError as error:
            largest = max(buffer.data.nbytes for buffer in tflite.read(content).buffers if buffer.data is not None)
            if largest <= LARGEST:
                raise
            told = f"weights of at most {format_size(LARGEST)}, and the largest here take {format_size(largest)}"
            raise ValueError(
                f"LiteRT's quantizer takes {told}: leave int8 out, or take a narrower network"
            ) from error
        return bytes(done.quantized_model)


def load(file: Path) -> tuple[Inputs, Pass]:
    interpreter = _interpreter(file.read_bytes(), str(file))
    given, made = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: Inputs) -> Inputs:
        return tuple(map(_tensor, _run(interpreter, map(_stored, inputs, given)), made))

    return tuple(_example(detail) for detail in given), run


def measure(file: Path, inputs: Inputs) -> RuntimePeak:
    """In LiteRT Micro, whose outputs have to be those of LiteRT's reference kernels.

    The arena is its head, which holds maps and what kernels take for a moment; weights stay in the file. What the
    interpreter notes of tensors and operators lies in the tail, above the head, and is not counted: 45 KB for the ×4
    student of ResNet-18, in int8 as in float32, whatever the picture's size. The time is that of LiteRT with its
    kernels for this computer: those of LiteRT Micro here are meant to be read, not to be fast.
    """
    content = file.read_bytes()
    interpreter, reference = (_interpreter(content, str(file), slow) for slow in (False, True))
    given = [*map(_stored, inputs, interpreter.get_input_details())]
    peak = tflite.alive(tflite.read(content))
    arena, outputs = _in_micro(content, str(file), given, len(interpreter.get_output_details()), peak)
    _compare(str(file), outputs, _run(reference, given))
    seconds = median_seconds(lambda: _run(interpreter, given))
    return RuntimePeak(str(file), "LiteRT Micro", peak, arena, 0, len(content), seconds)


def planned(file: Path) -> dict[str, Any]:
    return {}


def _interpreter(content: bytes, what: str, reference: bool = False) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    try:
        with _native_output():
            found = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kernels)
            found.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"LiteRT cannot load {what}: {_kernel(str(error))}") from error
    return found


def _run(interpreter: Any, inputs: Any) -> list[np.ndarray]:
    for detail, array in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def _in_micro(content: bytes, file: str, inputs: list[np.ndarray], outputs: int, peak: int) -> tuple[int, list[Any]]:
    """Bytes of the arena's head, and what LiteRT Micro computes."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError as error:
        raise ImportError(
            "what a .tflite file needs is measured in LiteRT Micro, and tflite_micro is not installed: "
            "pip install --no-deps tflite-micro"
        ) from error
    with _native_output() as said:
        try:
            micro = runtime.Interpreter.from_bytes(content, arena_size=2 * peak + _BOOKKEEPING)
            for k, array in enumerate(inputs):
                micro.set_input(array, k)
            micro.invoke()
        except RuntimeError as error:
            raise ValueError(f"LiteRT Micro cannot run {file}: {_kernel(said() or str(error))}") from error
        made = [np.array(micro.get_output(k)) for k in range(outputs)]
        micro.print_allocations()
        head = re.search(r"Arena allocation head (\d+) bytes", said())
    assert head is not None
    return int(head[1]), made


def _kernel(text: str) -> str:
    """One sentence of what an interpreter says, with the operator that it does not take."""
    if missing := re.search(r"Didn't find op for builtin opcode '(\w+)'", text):
        return f"it has no kernel for {missing[1]}"
    lines = text.strip().splitlines()
    if failed := re.search(r"Node (\w+) \(number \d+", text):
        why = next((line for line in lines if "Node" not in line), "")
        return f"its kernel does not take this {failed[1]} ({why.strip()})"
    return lines[0] if lines else "no reason was given"


def _compare(file: str, micro: list[np.ndarray], reference: list[np.ndarray]) -> None:
    for one, other in zip(micro, reference, strict=True):
        if np.issubdtype(one.dtype, np.integer):
            apart = float(np.abs(one.astype(np.int64) - other).max(initial=0))
            allowed, unit = 1.0, "steps of the last bit"
        else:
            apart = float(np.abs(one - other).max(initial=0))
            allowed, unit = CLOSE * float(np.abs(other).max(initial=0)), "at most"
        if not apart <= allowed:  # or it is no number
            raise ValueError(f"LiteRT Micro computes something else of {file} than LiteRT: {apart:.3g} {unit}")


def _array(x: Tensor) -> np.ndarray:
    """As the converter takes it: maps with channels last, whole numbers in 32 bits."""
    x = x.permute(0, 2, 3, 1) if _is_map(x) else x
    return np.ascontiguousarray((x.int() if x.dtype == torch.int64 else x).numpy())


def _stored(x: Tensor, detail: dict[str, Any]) -> np.ndarray:
    """As the file has it, which may be in int8."""
    array, (scale, zero) = _array(x), detail["quantization"]
    if not scale:
        return array
    bounds = np.iinfo(detail["dtype"])
    return np.clip(np.round(array / scale) + zero, bounds.min, bounds.max).astype(detail["dtype"])


def _tensor(array: np.ndarray, detail: dict[str, Any]) -> Tensor:
    scale, zero = detail["quantization"]
    made = torch.from_numpy((array.astype(np.float32) - zero) * np.float32(scale) if scale else array)
    return made.permute(0, 3, 1, 2).contiguous() if _is_map(made) else made


def _example(detail: dict[str, Any]) -> Tensor:
    """As the network takes it."""
    whole = np.issubdtype(detail["dtype"], np.integer) and not detail["quantization"][0]
    x = torch.empty([*map(int, detail["shape"])], dtype=torch.int64 if whole else torch.float32, device="meta")
    return x.permute(0, 3, 1, 2) if _is_map(x) else x


@contextlib.contextmanager
def _native_output() -> Iterator[Callable[[], str]]:
    """What libraries in C++ write to the process's stderr, which Python's does not see: asked for, not shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heard:

        def said() -> str:
            heard.seek(0)
            return heard.read().decode(errors="replace")

        os.dup2(heard.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
