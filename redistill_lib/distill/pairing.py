"""Pairing a student's layers with its teacher's by resolution."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from redistill_lib.checks import check_type
from redistill_lib.distill.taps import Tap
from redistill_lib.network import MapRef, Resize, check_float, find_layer, find_resizes, record_maps


def match_taps(student: nn.Module, teacher: nn.Module, example: Tensor | tuple[Tensor, ...]) -> list[Tap]:
    """Pair student and teacher wherever they change resolution in the same way, from the earliest to the deepest.

    The student's first downsampling layer gives its output; each later one gives input and output, paired with the
    teacher's layer that goes from and to the same height × width. Upsampling to the image at the end gives its input
    alone. A pool right after a tapped layer is not tapped, nor is a map of 1×1. For the paper's pairs these are the
    paper's taps (arXiv 2406.03744 and its published configurations). Raises ValueError where nothing matches.

    >>> import torch
    >>> def net(a, b): return nn.Sequential(nn.Conv2d(3, 8, 3, a, 1), nn.Conv2d(8, 8, 3, b, 1), nn.Conv2d(8, 8, 3, 2))
    >>> match_taps(net(4, 1), net(2, 2), torch.zeros(1, 3, 32, 32))
    [Tap(0 output ← 1 output, channels=8), Tap(2 input ← 2 input, channels=8), Tap(2 output ← 2 output, channels=8)]
    """
    check_type("student", student, nn.Module)
    check_type("teacher", teacher, nn.Module)
    check_type("example", example, Tensor, tuple)
    inputs = example if isinstance(example, tuple) else (example,)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise ValueError("example is a batch of images, or a tuple of the network's inputs, all of them tensors")
    check_float(inputs)
    image = tuple(inputs[0].shape[-2:])
    ours, theirs = find_resizes(student, *inputs), find_resizes(teacher, *inputs)
    taps: list[Tap] = []
    for step in ours:
        if not step.learns:
            continue
        exact = [t for t in theirs if (t.before, t.after) == (step.before, step.after)]
        if step.down and step.before == image:
            sides = {"output": [t for t in theirs if t.down and t.after == step.after]}
        elif not step.down and step.after == image:
            sides = {"input": [t for t in theirs if not t.down and t.before == step.before]}
            step = _widest(student, step, inputs)
        else:
            sides = {"input": exact, "output": exact}
        for side, candidates in sides.items():
            size = step.before if side == "input" else step.after
            if candidates and size != (1, 1):
                channels = step.channels_in if side == "input" else step.channels_out
                ours_at, theirs_at = find_layer(student, step.path), find_layer(teacher, candidates[0].path)
                taps.append(Tap(ours_at, side, theirs_at, side, channels=channels))  # type: ignore[arg-type]
    if not taps:
        sizes = [" → ".join("×".join(map(str, size)) for size in (s.before, s.after)) for s in (*ours, *theirs)]
        raise ValueError(
            f"no student and teacher layers change resolution alike at input {image[0]}×{image[1]} "
            f"(student and teacher: {', '.join(sizes) or 'no change at all'}); "
            "give both the same total stride, or taps by hand"
        )
    return taps


def _widest(model: nn.Module, step: Resize, inputs: tuple[Tensor, ...]) -> Resize:
    """The largest module that ends the network with this step: its input is the last map before normalisation."""
    parts = step.path.split(".")
    outer = (".".join(parts[: k + 1]) for k in range(len(parts)))
    path = next(path for path in outer if not isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict))
    first = record_maps(model, [MapRef(path, "input")], *inputs)[MapRef(path, "input")]
    if tuple(first.shape[-2:]) != step.before:
        return step
    return replace(step, path=path, channels_in=first.shape[1])
