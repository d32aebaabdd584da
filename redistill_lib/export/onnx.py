"""ONNX files, and ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from redistill_lib.export.formats import Inputs, Pass
from redistill_lib.export.heap import heap_peak, median_seconds
from redistill_lib.export.result import RuntimePeak


def write(model: nn.Module, inputs: Inputs, file: Path, calibration: Sequence[Inputs]) -> None:
    try:
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    except Exception as error:
        raise ValueError(f"this network cannot be written as ONNX: {_reason(error)}") from error
    assert program is not None
    if not calibration:
        program.save(file, external_data=False)
        return
    with TemporaryDirectory() as folder:
        plain = Path(folder, "plain.onnx")
        program.save(plain, external_data=False)
        _quantize(plain, file, calibration)


def _reason(error: Exception) -> str:
    """What the innermost cause says first."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _quantize(plain: Path, file: Path, calibration: Sequence[Inputs]) -> None:
    """Static, per channel, with the operators that ONNX Runtime quantises. Norms are folded first."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, names: list[str]) -> None:
            self.left = iter([dict(zip(names, _arrays(given), strict=True)) for given in calibration])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    ready = plain.with_name("ready.onnx")
    quant_pre_process(plain, ready, skip_symbolic_shape=True)
    names = [put.name for put in _session(ready).get_inputs()]
    model = onnx.load(ready)
    # It names copies of a shared weight by numbers after its name: the seventeenth of val_12 would be val_1217.
    own = {weight.name: f"{weight.name}_w" for weight in model.graph.initializer}
    for weight in model.graph.initializer:
        weight.name = own[weight.name]
    for node in model.graph.node:
        node.input[:] = [own.get(name, name) for name in node.input]
    onnx.save(model, ready)
    quantize_static(
        ready,
        file,
        Reader(names),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # its kernels for an x86 take no other
        weight_type=QuantType.QInt8,
    )


def load(file: Path) -> tuple[Inputs, Pass]:
    session = _session(file)
    names = [put.name for put in session.get_inputs()]

    def run(inputs: Inputs) -> Inputs:
        made = session.run(None, dict(zip(names, _arrays(inputs), strict=True)))
        return tuple(torch.from_numpy(np.asarray(each)) for each in made)

    dtypes = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
    given = (torch.empty(put.shape, dtype=dtypes[put.type], device="meta") for put in session.get_inputs())
    return tuple(given), run


def measure(file: Path, inputs: Inputs) -> RuntimePeak:
    """What it asks of malloc in a pass, without its own arena, whose blocks double; the caller's input is added."""
    session = _session(file)
    feeds = dict(zip((put.name for put in session.get_inputs()), _arrays(inputs), strict=True))
    peak = heap_peak(lambda: session.run(None, feeds)) + sum(given.nbytes for given in inputs)
    seconds = median_seconds(lambda: session.run(None, feeds))
    return RuntimePeak(str(file), "ONNX Runtime", peak, None, 0, file.stat().st_size, seconds)


def planned(file: Path) -> dict[str, Any]:
    return {}


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"ONNX Runtime cannot load {file}: {_reason(error)}") from error


def _arrays(inputs: Inputs) -> list[Any]:
    return [given.numpy() for given in inputs]
