"""What the in-place form of the RED block saves and what it costs: memory and time beside the plain form.

    python benchmarks/red_in_place.py               less than a minute; --quick: a few seconds

Maps are those of the paper's pairs, float32, one sample, k = 3; slabs of H/16 rows (the default), H/8 and H/4.
`extra` is what is alive beside the input map at most, in tensors: the convolutions' own workspace, such as reordered
weights, is not seen. `time` is the median of in-place ÷ plain, run in turn in the same process, over many rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import Tensor, nn

from redistill_lib.memory import measure_memory
from redistill_lib.red import InPlaceRedBlock, RedBlock

MAPS = ((64, 64), (96, 32), (64, 32), (128, 16))  # channels, height = width
MIB = 2**20


def extra(form: nn.Module, x: Tensor) -> int:
    return measure_memory(form, x).peak_bytes - x.nbytes


def seconds(form: nn.Module, x: Tensor) -> float:
    x = x.clone()  # the in-place form changes it; not timed
    start = time.perf_counter()
    form(x)
    return time.perf_counter() - start


def compare(channels: int, size: int, share: int, budget: float) -> tuple[int, int, float, float]:
    """Extra bytes of both forms, milliseconds of the plain one, and the median ratio of times."""
    torch.manual_seed(0)
    block, x = RedBlock(channels).eval(), torch.randn(1, channels, size, size)
    in_place = InPlaceRedBlock.from_block(block, rows=max(1, size // share))
    difference = (in_place(x.clone()) - block(x)).abs().max() / block(x).abs().max()
    assert difference < 1e-6, f"the two forms differ by {difference:.1e}"
    for _ in range(3):
        seconds(block, x), seconds(in_place, x)
    pairs, end = [], time.perf_counter() + budget
    while len(pairs) < 5 or time.perf_counter() < end:
        first, second = (block, in_place) if len(pairs) % 2 else (in_place, block)
        took = {form: seconds(form, x) for form in (first, second)}
        pairs.append((took[block], took[in_place]))
    plain = 1000 * statistics.median(p for p, _ in pairs)
    return extra(block, x), extra(in_place, x.clone()), plain, statistics.median(i / p for p, i in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds: fewer rounds")
    budget = 0.2 if parser.parse_args().quick else 1.5
    print(f"torch {torch.__version__}, {os.cpu_count()} CPU cores")
    print("threads  map        map MiB  rows   plain: extra MiB     ms   in place: extra MiB  of map  time")
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        for channels, size in MAPS:
            for share in (16, 8, 4):
                plain, slab, took, ratio = compare(channels, size, share, budget)
                whole, name = 4 * channels * size**2, f"{channels}@{size}²"
                print(
                    f"{threads:7d}  {name:9s}  {whole / MIB:7.3f}  H/{share:<2d}  {plain / MIB:17.3f}  {took:5.2f}  "
                    f"{slab / MIB:20.3f}  {slab / whole:6.2f}  {ratio:4.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    with torch.no_grad():
        main()
