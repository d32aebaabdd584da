"""One distillation step, by this library and by a plain implementation, in turn on one processor.

    python benchmarks/step.py                   four minutes: both cases, three repetitions, results/step.csv
    python benchmarks/step.py --profile         where the time of each step goes, operator by operator
    python benchmarks/step.py --against PATH    beside the library of another checkout of this repository

Two cases. ``classify``: ResNeXt-18 4-11221 ← 1-21222, batch 8, 128 px, RED at five taps and KD, SGD. ``denoise``:
the DDPM U-Net with ch 32, 2,2,2,1 ← 1,2,2,2, batch 16, 32 px, RED at ten taps, Adam. All in float32. A step is the
forward passes, losses, gradients and optimizer, and the sides are

- ``plain``: what the papers say in the most direct way, written here: the teacher's whole pass without gradients,
  NCHW, forward hooks that keep the maps, nothing folded (arXiv 2406.03744, section 3; 1503.02531);
- ``live``: this library, set up as its training sets it up;
- ``cached``: this library, with what the teacher says (channel means and logits, in fp16) read from its view cache;
- ``student``: the student with its blocks on the task loss alone, set up as in ``live``. No teacher is cheaper.

Each side is a process of one thread. They take turns step by step, so that all meet the same moments of a busy
machine, and each repetition starts them anew. Times are of the processor, which waiting for it does not change; a
ratio is the median over paired steps. Before a step is timed the losses of plain and live are compared, one by one.
Peak memory is the resident memory of the whole process, construction included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    import redistill_lib as rd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "step.csv"
WARM_UP = 4
TOLERANCE = 1e-4  # of each loss of plain and live
SIDES = "plain", "live", "cached", "student"
TARGETS = {("classify", "live"): 0.6, ("classify", "cached"): 0.35, ("denoise", "live"): 0.7}
MEMORY_TARGET = 0.85  # live / plain, for classify
BOTH = "input", "output"
#: Student layer, side and channels ← teacher layer, of the same side but at the student's stem and tail.
RESNEXT = [
    ("conv1", "output", 64, "layer2.0"),
    ("layer2.0", "input", 64, "layer3.0"), ("layer2.0", "output", 128, "layer3.0"),
    ("layer3.0", "input", 128, "layer4.0"), ("layer3.0", "output", 256, "layer4.0"),
]  # fmt: skip
UNET = [
    ("head", "output", 32, "downblocks.2"),
    *(("downblocks.2", side, 32, "downblocks.5") for side in BOTH),
    *(("downblocks.5", side, 64, "downblocks.8") for side in BOTH),
    *(("upblocks.7", side, 64, "upblocks.3") for side in BOTH),
    *(("upblocks.11", side, 64, "upblocks.7") for side in BOTH),
    ("tail", "input", 32, "upblocks.11"),
]
LINE = "  {side:<12} {ms:8.1f} ms {ratio:7.3f} {peak_mib:7.0f} MiB {peak_ratio:7.3f}"
Step = Callable[[], "dict[str, Tensor]"]


# ------------------------------------------------------------------------------------------ the steps, in a process


class Case:
    """Networks, one batch and its loss: the same in every process."""

    def __init__(self, name: str):
        import torch
        from torch.nn import functional as F

        import redistill_lib as rd

        torch.manual_seed(0)
        self.name = name
        self.taps, self.methods = (RESNEXT, "red+kd") if name == "classify" else (UNET, "red(alpha=1.0)")
        self.task_loss: Callable[[Any, Tensor], Tensor]
        if name == "classify":
            self.student, self.teacher = map(rd.create_model, ("resnext18-4-11221", "resnext18-1-21222"))
            self.inputs: tuple[Tensor, ...] = (torch.randn(8, 3, 128, 128),)
            self.targets, self.task_loss = torch.randint(10, (8,)), F.cross_entropy
        else:
            plans = "unet-2-221", "unet-1-222"
            self.student, self.teacher = (rd.create_model(plan, ch=32, dropout=0.0) for plan in plans)
            self.inputs = torch.randn(16, 3, 32, 32), torch.randint(1000, (16,))
            self.targets, self.task_loss = torch.randn(16, 3, 32, 32), F.mse_loss
        for module in self.teacher.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # of a new network they change nothing
                module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
        torch.manual_seed(1)


def plain_step(case: Case) -> Step:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, channels: int):
            super().__init__()
            self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid())
            encoder = nn.Conv2d(channels, channels, 3, padding=1)
            self.encoder = nn.Sequential(encoder, nn.BatchNorm2d(channels), nn.ReLU6())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(x) + self.encoder(x)

    maps: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int], block: nn.Module | None, x: Tensor) -> Tensor:
        maps[key] = x if block is None else block(x)
        return maps[key]

    def hook(network: nn.Module, layer: str, side: str, found: Callable[[Tensor], Tensor]) -> None:
        module = network.get_submodule(layer)
        if side == "input":
            module.register_forward_pre_hook(lambda module, args: (found(args[0]), *args[1:]))
        else:
            module.register_forward_hook(lambda module, args, out: found(out))

    student, teacher = case.student.train(), case.teacher.eval().requires_grad_(False)
    blocks = nn.ModuleList(Block(channels) for _, _, channels, _ in case.taps)
    for k, (layer, side, _, theirs) in enumerate(case.taps):
        hook(student, layer, side, partial(keep, ("student", k), blocks[k]))
        hook(teacher, theirs, side, partial(keep, ("teacher", k), None))
    learned = [*student.parameters(), *blocks.parameters()]
    learned = [p for p in learned if p.requires_grad]
    classify = case.name == "classify"
    alpha = 50.0 if classify else 1.0
    optimizer = torch.optim.SGD(learned, 1e-2, momentum=0.9) if classify else torch.optim.Adam(learned, 2e-4)

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad()
        with torch.no_grad():
            theirs = teacher(*case.inputs)
        outputs = student(*case.inputs)
        losses = {}
        terms = []
        for k, (layer, side, *_) in enumerate(case.taps):
            ours, other = (maps[who, k].mean(1).flatten(1) for who in ("student", "teacher"))
            losses[f"red/{layer}.{side}"] = (1 - F.cosine_similarity(ours, other, dim=1, eps=1e-8)).mean()
            terms.append(alpha * losses[f"red/{layer}.{side}"])
        if classify:
            soft = F.softmax(theirs / 2.0, dim=1)
            losses["kd"] = 4.0 * F.kl_div(F.log_softmax(outputs / 2.0, dim=1), soft, reduction="batchmean")
            terms.append(losses["kd"])
        losses["task"] = case.task_loss(outputs, case.targets)
        losses["total"] = 0.5 * losses["task"] + 0.5 * torch.stack(terms).mean()
        losses["total"].backward()
        optimizer.step()
        return losses

    return step


def library_step(case: Case, side: str) -> Step:
    import torch

    import redistill_lib as rd

    taps = [rd.Tap(layer, place, theirs, place, channels=channels) for layer, place, channels, theirs in case.taps]
    objective = rd.Objective(task_loss=case.task_loss)
    methods = "red-blocks" if side == "student" else case.methods
    small = tuple(x[:2] for x in case.inputs)
    distillation = rd.Distillation(case.student, case.teacher, taps, methods, objective=objective, example=small)
    distillation.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image, *rest = case.inputs
    inputs = image.contiguous(memory_format=torch.channels_last), *rest
    if side == "cached":
        distillation.teachers = torch.nn.ModuleList([kept(distillation, inputs)])
        del case.teacher
    learned = [p for p in distillation.parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer
    if case.name == "classify":
        optimizer = torch.optim.SGD(learned, 1e-2, momentum=0.9, fused=True)
    else:
        optimizer = torch.optim.Adam(learned, 2e-4, fused=True)
    distillation.train()
    rows = torch.arange(len(image))

    def step() -> dict[str, Tensor]:
        optimizer.zero_grad()
        _, losses = distillation(*inputs, targets=case.targets, index=rows, view=torch.zeros_like(rows))
        losses["total"].backward()
        optimizer.step()
        return losses

    return step


def kept(distillation: rd.Distillation, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The teacher's answers to this batch as the view cache keeps and reads them."""
    import torch

    from redistill_lib.distill.views import ViewStore, summaries_of
    from redistill_lib.methods import Batch

    said = {ref: x for (_, ref), x in distillation.teacher_maps(Batch(inputs)).items()}
    summaries = {ref: summary for (_, ref), summary in summaries_of(distillation.active).items()}
    with tempfile.TemporaryDirectory() as folder:  # the files stay mapped
        store = ViewStore(folder, {"made for": "a benchmark"}, summaries, said, len(inputs[0]))
        with torch.no_grad():
            return store.fill([0], lambda batches: iter([said]), lambda made: None)


def take_turns(name: str, side: str) -> None:
    """The child: a step for each line that comes in, answered with its seconds and losses, or its profile."""
    import torch

    torch.set_num_threads(1)
    case = Case(name)
    step = plain_step(case) if side == "plain" else library_step(case, side)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps(profiled(step)), flush=True)
            continue
        start = time.process_time()
        losses = step()
        seconds = time.process_time() - start
        told = {name: loss.item() for name, loss in losses.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "losses": told, "peak_mib": peak}), flush=True)


def profiled(step: Step, steps: int = 5) -> dict[str, tuple[float, float]]:
    """Milliseconds and calls of each operator in a step, without those that it calls."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    return {e.key: (e.self_cpu_time_total / 1000 / steps, e.count / steps) for e in found.key_averages()}


# ------------------------------------------------------------------------------------------------------- taking turns


class Side:
    """One side at work, in a process of its own."""

    def __init__(self, case: str, name: str, root: Path = ROOT):
        self.name = name if root == ROOT else f"{name} there"
        self.seconds: list[float] = []
        self.answer: dict[str, Any] = {}
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--case", case, "--child", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
        )  # fmt: skip

    def ask(self, line: str) -> Any:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        while not (answer := self.child.stdout.readline()).startswith("{"):  # PyTorch's profiler prints, too
            if not answer:
                raise SystemExit(f"{self.name} ended")
        return json.loads(answer)

    def step(self, timed: bool) -> None:
        self.answer = self.ask("step")
        if timed:
            self.seconds.append(self.answer["seconds"])

    def close(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.child.wait()


def check_losses(plain: Side, live: Side) -> None:
    ours, theirs = live.answer["losses"], plain.answer["losses"]
    assert theirs.items() and set(theirs) <= set(ours), (sorted(theirs), sorted(ours))
    worst = max(theirs, key=lambda name: abs(ours[name] / theirs[name] - 1))
    off = abs(ours[worst] / theirs[worst] - 1)
    assert off <= TOLERANCE, f"{worst} is {ours[worst]} of {live.name} and {theirs[worst]} of {plain.name}"
    print(f"  losses of {live.name} equal plain's: {worst} is furthest off, by {off:.1e}")


def repetition(case: str, steps: int, against: Path | None) -> list[dict[str, Any]]:
    """Interleaved steps of all sides; one row for each."""
    sides = [Side(case, name) for name in SIDES]
    sides += [Side(case, "live", against)] if against else []
    try:
        for k in range(WARM_UP + steps):
            for side in sides[:: 1 if k % 2 else -1]:
                side.step(timed=k >= WARM_UP)
            if k == 0:
                for side in sides[1:2] + sides[len(SIDES) :]:
                    check_losses(sides[0], side)
    finally:
        for side in sides:
            side.close()
    plain = sides[0]
    return [
        {
            "case": case, "side": side.name, "ms": round(1000 * median(side.seconds), 1),
            "ratio": round(median(a / b for a, b in zip(side.seconds, plain.seconds, strict=True)), 3),
            "peak_mib": round(side.answer["peak_mib"]),
            "peak_ratio": round(side.answer["peak_mib"] / plain.answer["peak_mib"], 3),
        }
        for side in sides
    ]  # fmt: skip


def show_profile(case: str, rows: int) -> None:
    for name in SIDES:
        side = Side(case, name)
        for _ in range(WARM_UP):
            side.step(timed=False)
        found: dict[str, tuple[float, float]] = side.ask("profile")
        side.close()
        whole = sum(ms for ms, _ in found.values())
        print(f"\n{case}, {name}: {whole:.0f} ms a step as profiled")
        groups: Counter[str] = Counter()
        for operator, (ms, _) in found.items():
            conv = "convolution" in operator or "conv2d" in operator
            groups["convolutions, " + ("backward" if "ackward" in operator else "forward") if conv else "other"] += ms
        print("  " + "; ".join(f"{group} {ms / whole:.0%}" for group, ms in groups.most_common()))
        for operator, (ms, calls) in sorted(found.items(), key=lambda item: -item[1][0])[:rows]:
            print(f"  {operator:<60} {ms:8.2f} ms {ms / whole:6.1%} {calls:6.0f} calls")
        if (case, name) == ("classify", "live"):
            work, ms = teacher_work(), found["mkldnn::_convolution_pointwise"][0]
            told = f"{work / 1e9:.1f} GFLOP in {ms:.0f} ms = {work / ms / 1e6:.0f} GFLOP/s"
            print(f"  the teacher's convolutions: {told}; one layer alone reaches {best_rate() / 1e9:.0f}")


def teacher_work() -> float:
    """Operations of the teacher's pass in the case ``classify``, a multiplication and an addition being two."""
    import redistill_lib as rd

    case = Case("classify")
    (images,) = case.inputs
    return float(len(images) * rd.profile_memory(case.teacher, images[:1]).to_frame()["flops"].sum())


def best_rate() -> float:
    """Operations per second of a convolution that suits a processor: 256 → 256 channels, 3×3, at 32 px."""
    import torch

    torch.set_num_threads(1)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(8, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(10):
            start = time.process_time()
            layer(images)
            seconds.append(time.process_time() - start)
    return 2 * 8 * 256 * 256 * 9 * 32 * 32 / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("classify", "denoise"), help="one of the cases alone; nothing is written")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each side in a repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return take_turns(options.case, options.child)
    if options.against and not (options.against / "redistill_lib").is_dir():
        parser.error(f"{options.against} is no checkout: it holds no redistill_lib")
    against = options.against.resolve() if options.against else None
    cases = (options.case,) if options.case else ("classify", "denoise")
    if options.profile:
        for case in cases:
            show_profile(case, rows=14)
        return None
    found: list[dict[str, Any]] = []
    for case in cases:
        for k in range(options.repetitions):
            print(f"{case}, repetition {k + 1}", flush=True)
            rows = [{"repetition": k + 1, **row} for row in repetition(case, options.steps, against)]
            for row in rows:
                print(LINE.format(**row), flush=True)
            found += rows
    print("medians over repetitions, ratios to plain:")
    for case, side in dict.fromkeys((row["case"], row["side"]) for row in found):
        here = [row for row in found if (row["case"], row["side"]) == (case, side)]
        middle = {key: median(row[key] for row in here) for key in ("ms", "ratio", "peak_mib", "peak_ratio")}
        wanted = f"  (wanted: {TARGETS[case, side]})" if (case, side) in TARGETS else ""
        wanted += f"  (memory: {MEMORY_TARGET})" if (case, side) == ("classify", "live") else ""
        print(f"  {case:<9}" + LINE.format(side=side, **middle) + wanted)
    if not (options.case or against):
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, found[0])
            writer.writeheader()
            writer.writerows(found)
        print(f"written: {RESULTS.relative_to(ROOT)}")
    return None


if __name__ == "__main__":
    main()
