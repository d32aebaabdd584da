"""How long a distillation step takes: forward, backward and SGD of a ResNet-18 student with RED and KD.

``python benchmarks/distillation_step.py --against PATH`` times this library and that of another checkout of the
repository in one run: two processes of one thread each, which take turns step by step, so that both meet the same
moments of a busy machine. Times are of the processor, which waiting for it does not change. Without --against it
times this library alone. Student and teacher have a quarter of the usual width, and a batch is 64 images of 1×40×40,
as the built-in `cluttered` has them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

STUDENT, TEACHER, BATCH, SIZE = "resnet18-4-11221", "resnet18-1-21222", 64, 40
WARM_UP = 5


def take_turns() -> None:
    """The child: run one step for each line that comes in, and answer with its seconds."""
    import torch

    import redistill_lib as rd

    torch.set_num_threads(1)
    torch.manual_seed(0)
    student, teacher = (rd.create_model(name, width=0.25, in_channels=1) for name in (STUDENT, TEACHER))
    x, y = torch.rand(BATCH, 1, SIZE, SIZE), torch.randint(10, (BATCH,))
    taps = rd.match_taps(student, teacher, x)
    distillation = rd.Distillation(student, teacher, taps, "red+kd", example=x).train()
    trained = [p for p in distillation.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, momentum=0.9)
    for _ in sys.stdin:
        start = time.process_time()
        optimizer.zero_grad()
        distillation(x, targets=y)[1]["total"].backward()
        optimizer.step()
        print(time.process_time() - start, flush=True)


class Side:
    """One checkout's library at work in a process of its own."""

    def __init__(self, root: Path):
        self.root, self.seconds = root, list[float]()
        self.commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip

    def step(self) -> float:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write("step\n")
        self.child.stdin.flush()
        return float(self.child.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return take_turns()
    roots = [Path(__file__).resolve().parents[1]]
    if options.against:
        if not (options.against / "redistill_lib").is_dir():
            parser.error(f"{options.against} is no checkout: it holds no redistill_lib")
        roots.append(options.against.resolve())
    sides = [Side(root) for root in roots]
    for k in range(WARM_UP + options.steps):
        for side in sides[:: 1 if k % 2 else -1]:
            seconds = side.step()
            if k >= WARM_UP:
                side.seconds.append(seconds)
    for side in sides:
        least, middle, most = (1000 * f(side.seconds) for f in (min, median, max))
        print(f"{side.commit}: min {least:.1f}, median {middle:.1f}, max {most:.1f} ms over {options.steps} steps")
    if len(sides) == 2:
        ours, theirs = sides
        least = min(ours.seconds) / min(theirs.seconds)
        paired = median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))
        print(f"this / other: {least:.3f} by the minima, {paired:.3f} by the median of paired steps")


if __name__ == "__main__":
    main()
