"""A file for a runtime as a network: what evaluates or samples from a network does so from its file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from redistill_lib.export.formats import Format, Inputs, format_of


class ExportedModel(nn.Module):
    """Runs a file in its runtime. It takes batches of any size, in pieces of that for which the file was made.

    `example` are tensors without contents as the file takes them. It passes no gradient and cannot be trained.
    """

    def __init__(self, file: Path, format_: Format):
        super().__init__()
        self.file, self.format = file, format_
        self.example, self._pass = format_.writer().load(file)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        pieces = [self._pass(piece)[0] for piece in self._pieces(inputs)]
        return torch.cat(pieces).to(inputs[0].device)

    def _pieces(self, inputs: Inputs) -> list[Inputs]:
        batch = len(self.example[0])
        wanted, found = (", ".join("×".join(map(str, x.shape)) for x in each) for each in (self.example, inputs))
        alike = [(x.shape[1:], x.dtype) for x in inputs] == [(x.shape[1:], x.dtype) for x in self.example]
        if not alike or len({len(x) for x in inputs}) != 1 or len(inputs[0]) % batch:
            raise ValueError(f"{self.file} was made for {wanted} and cannot take {found}")
        return [*zip(*(x.detach().cpu().contiguous().split(batch) for x in inputs), strict=True)]

    def train(self, mode: bool = True) -> ExportedModel:
        if mode:
            raise RuntimeError(f"{self.file} is for inference only; train the network that it was made of")
        return super().train(False)

    def extra_repr(self) -> str:
        return f"{str(self.file)!r}, {self.format.runtime}"


def load_exported(file: str | os.PathLike[str]) -> ExportedModel:
    """The network in a file of `export_model`, run by its runtime: `rd.evaluate` and `rd.sample` take it.

    Raises FileNotFoundError for a missing file, ValueError for one of no known runtime, or a damaged one, ImportError
    where the runtime is not installed.
    """
    found = format_of(file)
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no {file}; export_model(model, {str(file)!r}, example) makes it")
    return ExportedModel(Path(file), found)
