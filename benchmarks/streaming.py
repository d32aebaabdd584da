"""What running the first layers row by row saves and what it costs: peaks and time beside the network as it is.

    python benchmarks/streaming.py               a minute; --quick: a third of that, one row alone
    python benchmarks/streaming.py --quick --size 144 --dtype int8           peaks of another size and dtype
    python benchmarks/streaming.py --size 64 --export executorch             files, measured in their runtime

One image; `fused` peaks in KiB, the image counted, which `beside` leaves out. `bound` is `streaming_bytes` of
`memory_bounds`, for one row and up to the first shortcut; later ends go through blocks with shortcuts, which that
bound does not. `time` is the median of streamed ÷ plain processor time in one thread, run in turn in one process, and
`equal` says whether all outputs are the same to the bit. Multiply-adds are the same in all rows, or this fails.
"""

from __future__ import annotations

import argparse
import statistics
import time
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from redistill_lib import create_model, export_model, measure_runtime, memory_bounds, profile_memory, stream_rows
from redistill_lib.export.formats import FORMATS, Format
from redistill_lib.memory import Profile

# "": where `memory_bounds` says. The last one of each has the lowest peak of all ends, or nearly.
CASES: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("resnet18", 1.0, ("", "layer1", "layer3.0")),
    ("resnet50", 1.0, ("layer2",)),
    ("mobilenetv2", 1.0, ("", "features.6")),
    ("mobilenetv2", 0.35, ("", "features.4")),
)


def beside_image(profile: Profile) -> int:
    images = {tensor.index: tensor.nbytes for tensor in profile.tensors if tensor.kind == "input"}
    return max(row.live_bytes - sum(images.get(index, 0) for index in row.alive) for row in profile.rows)


def seconds(model: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    model(x)
    return time.process_time() - start


def ratio(plain: nn.Module, streamed: nn.Module, x: Tensor, rounds: int) -> tuple[float, float]:
    """Milliseconds of the plain one, and the median ratio."""
    seconds(plain, x), seconds(streamed, x)
    pairs = [(seconds(plain, x), seconds(streamed, x)) for _ in range(rounds)]
    return 1000 * statistics.median(p for p, _ in pairs), statistics.median(s / p for p, s in pairs)


def in_runtime(format: Format, size: int) -> None:
    """What files need, of the network as it is and row by row, as predicted and as measured, in KiB."""
    x = torch.randn(1, 3, size, size)
    print(f"{format.runtime}, {size} px")
    print("network            until       predicted  measured       ms")
    with TemporaryDirectory() as folder:
        for name, width, ends in CASES:
            net = create_model(name, width=width).eval()
            for until in ("as it is", *ends):
                model = net if until == "as it is" else stream_rows(net, example=x, until=until or None)
                predicted = profile_memory(model, x, convention=format.convention).arena_bytes
                made = export_model(model, f"{folder}/net{format.suffix}", x, images=[(x,)])
                found = measure_runtime(made.file)
                print(
                    f"{f'{name} {width}':17s}  {until or '(bound)':10s}  {predicted / 1024:9.1f}  "
                    f"{found.needed_bytes / 1024:8.1f}  {1000 * found.seconds:7.1f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 seconds: fewer rounds, one row alone")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--dtype", default="fp32", help="of the peaks; time is that of float32")
    parser.add_argument("--export", choices=[*FORMATS], help="a minute or two each; one row at a time")
    given = parser.parse_args()
    if given.export:
        return in_runtime(FORMATS[given.export], given.size)
    quick, dtype = given.quick, given.dtype
    torch.set_num_threads(1)
    x = torch.randn(1, 3, given.size, given.size)
    print(f"torch {torch.__version__}, one thread")
    print("network            until       rows     peak  streamed  beside    bound  share     ms   time  equal")
    for name, width, ends in CASES:
        net = create_model(name, width=width).eval()
        plain, bound = profile_memory(net, x, dtype=dtype), memory_bounds(net, x, dtype=dtype).streaming_bytes
        for until in ends:
            for rows in (1,) if quick else (1, 4):
                streamed = stream_rows(net, rows, example=x, until=until or None)
                profile, equal = profile_memory(streamed, x, dtype=dtype), torch.equal(streamed(x), net(x))
                assert profile.flops == plain.flops and not profile.uncounted
                took, times = ratio(net, streamed, x, 3 if quick else 15)
                print(
                    f"{f'{name} {width}':17s}  {until or '(bound)':10s}  {rows:4d}  {plain.peak_bytes / 1024:7.1f}  "
                    f"{profile.peak_bytes / 1024:8.1f}  {beside_image(profile) / 1024:6.1f}  {bound / 1024:7.1f}  "
                    f"{profile.peak_bytes / plain.peak_bytes:5.2f}  {took:5.1f}  {times:5.2f}  {equal}",
                    flush=True,
                )


if __name__ == "__main__":
    with torch.no_grad():
        main()
