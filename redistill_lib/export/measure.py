"""What a file really needs in its runtime, measured in a process of its own.

As a program it measures one file and prints the result as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from redistill_lib.export.exported import load_exported
from redistill_lib.export.formats import format_of
from redistill_lib.export.result import RuntimePeak
from redistill_lib.progress import waiting_bar


def measure_runtime(file: str | os.PathLike[str]) -> RuntimePeak:
    """The peak of activations, the arena and the time of one pass of a file of `export_model`, in its runtime.

    ONNX Runtime plans no arena: counted is what it asks of malloc in a pass. ExecuTorch: what its plan, in the
    file, has alive at once, and what its kernels and delegates take from the heap in a pass. LiteRT: the arena of its
    interpreter for microcontrollers, where that is installed. Inputs are random; what a pass needs does not depend on
    them. Raises FileNotFoundError, ImportError or ValueError as `load_exported` does.
    """
    model = load_exported(file)  # says what is wrong before a process starts
    shapes = json.dumps([[str(x.dtype).removeprefix("torch."), *x.shape] for x in model.example])
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with waiting_bar(1, f"passes of {Path(file).name}") as bar:
        done = subprocess.run(
            [sys.executable, "-m", "redistill_lib.export.measure", str(Path(file).resolve()), shapes],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
        )
        bar.update()
    if done.returncode:
        kind, _, reason = (done.stderr.strip().splitlines() or [""])[-1].partition(": ")
        if kind == "ImportError":  # of what only measuring needs
            raise ImportError(reason)
        raise ValueError(f"{file} could not be measured: {reason or kind}")
    found = RuntimePeak(**{**json.loads(done.stdout.splitlines()[-1]), "file": str(file)})
    return replace(found, **model.format.writer().planned(Path(file)))


def main() -> None:
    file, shapes = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.manual_seed(0)
    inputs = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for dtype, *shape in shapes)
    inputs = tuple(torch.randn_like(x) if x.is_floating_point() else x for x in inputs)
    print(json.dumps(asdict(format_of(file).writer().measure(file, inputs))))


if __name__ == "__main__":
    main()
