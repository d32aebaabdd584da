"""What came of an export, and of running its file in a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redistill_lib.sizes import format_size


@dataclass(frozen=True)
class Export:
    """A network's file for a runtime, and how its outputs differ there from PyTorch's."""

    file: Path
    runtime: str  # "ExecuTorch"
    dtype: str  # "fp32", or "int8": weights and activations
    file_bytes: int
    difference: float  # the largest of any output on the images, as a share of the largest output
    images: int  # that were compared

    def __str__(self) -> str:
        images = f"{self.images} image{'s' * (self.images != 1)}"
        return (
            f"{self.file} ({self.runtime}, {self.dtype}): {format_size(self.file_bytes)}; on {images} outputs differ "
            f"from PyTorch's by at most {self.difference:.1e} of the largest"
        )


@dataclass(frozen=True)
class RuntimePeak:
    """What one forward pass needs in a runtime, batch as in the file, measured in a process of its own.

    Weights are in none of these figures, nor what the runtime keeps of the network itself.
    """

    file: str
    runtime: str
    peak_bytes: int  # of activations alive at once, the network's input included
    arena_bytes: (
        int | None
    )  # the block that its planner reserves for them, which has to fit; None where it plans none
    beside_bytes: int  # of other memory that a pass takes for itself, such as a delegate's; in `needed_bytes`
    file_bytes: int
    seconds: float  # of one processor for a pass, the median of several

    @property
    def needed_bytes(self) -> int:
        """What to provide for a pass: the arena where one is planned, or else the peak; and what is beside it."""
        return (self.peak_bytes if self.arena_bytes is None else self.arena_bytes) + self.beside_bytes

    def __str__(self) -> str:
        arena = "" if self.arena_bytes is None else f" in an arena of {format_size(self.arena_bytes)}"
        beside = f" + {format_size(self.beside_bytes)} beside it" if self.beside_bytes else ""
        ms = 1000 * self.seconds
        taken = f"{ms:.1f}" if ms >= 1 else f"{ms:.2g}"
        return (
            f"{self.file} in {self.runtime}: peak {format_size(self.peak_bytes)}{arena}{beside}, "
            f"{taken} ms on one thread, file {format_size(self.file_bytes)}"
        )
