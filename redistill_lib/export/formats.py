"""The files of three edge runtimes: what each is called, what it needs, and the module that knows it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from redistill_lib.checks import as_path, hint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from redistill_lib.export.result import RuntimePeak

Inputs = tuple["Tensor", ...]
Pass = Callable[[Inputs], Inputs]  # one forward pass, of the shapes that the file was made for


class Writer(Protocol):
    """What a module of this room does for its runtime."""

    def write(self, model: nn.Module, inputs: Inputs, file: Path, calibration: Sequence[Inputs]) -> None:
        """`model` in eval mode as a file; int8 where there are inputs to calibrate with."""

    def load(self, file: Path) -> tuple[Inputs, Pass]:
        """Inputs without contents, and a forward pass. ValueError for a file that is damaged."""

    def measure(self, file: Path, inputs: Inputs) -> RuntimePeak:
        """What a pass needs, in a process that has done nothing else, and without what is `planned`."""

    def planned(self, file: Path) -> dict[str, Any]:
        """Of a `RuntimePeak`, what is read in the file and not measured."""


def check_target(file: str | os.PathLike[str]) -> Path:
    """The path of a file to be written. ValueError where that is a folder or cannot lie there."""
    target = as_path("file", file)
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file in it")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{target} cannot be written: {folder} is no folder that takes files; give another place")
    return target


@dataclass(frozen=True)
class Format:
    """A runtime and its file."""

    name: str  # what the command line calls it
    runtime: str  # and a reader
    suffix: str
    convention: str  # of `profile_memory`, for what is exported
    packages: tuple[str, ...]  # that have to be importable
    install: str

    def writer(self) -> Writer:
        """Its module. ImportError, saying what to install, where a package is missing."""
        if missing := [package for package in self.packages if find_spec(package) is None]:
            raise ImportError(f"{self.suffix} files need {' and '.join(missing)}, not installed: {self.install}")
        return cast(Writer, importlib.import_module(f"redistill_lib.export.{self.name}"))

    @property
    def installed(self) -> bool:
        return all(find_spec(package) is not None for package in self.packages)


FORMATS = {
    found.name: found
    for found in (
        Format(
            "onnx",
            "ONNX Runtime",
            ".onnx",
            "onnxruntime",
            ("onnx", "onnxscript", "onnxruntime", "memray"),
            'pip install "redistill-lab[onnx]"',
        ),
        Format(
            "executorch",
            "ExecuTorch",
            ".pte",
            "executorch",
            ("executorch", "torchao", "memray"),
            'pip install "redistill-lab[executorch]"',
        ),
        Format(
            "litert",
            "LiteRT",
            ".tflite",
            "litert_micro",
            ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
            "docs/deploy.md has its two commands",
        ),
    )
}


def format_of(file: str | os.PathLike[str]) -> Format:
    """By the file's suffix. ValueError for another one."""
    suffix = Path(file).suffix
    known = {found.suffix: found for found in FORMATS.values()}
    if suffix not in known:
        choices = ", ".join(f"{end} ({found.runtime})" for end, found in known.items())
        raise ValueError(f"no runtime takes {Path(file).name!r}: it has to end in {choices}{hint(suffix, [*known])}")
    return known[suffix]
