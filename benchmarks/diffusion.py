"""One distillation step of the DDPM student: ours beside a plain implementation, in turn in one process.

    python benchmarks/diffusion.py                  half a minute; one thread

U-Net with ch 32, batch 16, 32 px, 10 RED taps; a step is the loss, its gradients, clipping, Adam and the moving
average of the weights. The plain form does what the papers say in the most direct way: swish written as x·σ(x),
forward hooks that keep every tapped map of teacher and student, the teacher's whole pass recorded for gradients like
the student's, losses in a loop over the taps, the average in a loop over the weights. Ours runs the teacher without
gradients and only to its last tap, and the rest as `redistill_lib.diffusion` trains; also in bfloat16, which saves
time where the processor has it (AVX512-BF16, AMX). All start from the same weights
and see the same noise; that their losses agree, before and after the timed steps, is checked. The median ratio over
interleaved rounds is printed.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.diffusion.ema import average_of
from redistill_lib.network import MapRef, locate

CH, BATCH, SIZE = 32, 16, 32
RATE, DECAY = 2e-4, 0.9999


def setting() -> tuple[rd.Distillation, tuple[Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    teacher, student = (rd.create_model(name, ch=CH, dropout=0.0) for name in ("unet-1-222", "unet-2-221"))
    example = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))
    taps = rd.match_taps(student, teacher, example)
    objective = rd.Objective(task_loss=F.mse_loss)
    distillation = rd.Distillation(student, teacher, taps, methods="red", objective=objective, example=example)
    return distillation, example, torch.randn(BATCH, 3, SIZE, SIZE)


class Plain(nn.Module):
    """The same objective written down directly."""

    def __init__(self, ours: rd.Distillation):
        super().__init__()
        networks = ours.student, ours.teachers[0].network
        self.student, self.teacher = (with_swish(copy.deepcopy(network)) for network in networks)
        self.terms = [term.tap for term in ours.terms]
        self.maps: dict[tuple[str, str, str], Tensor] = {}
        self.alpha = ours.terms[0].method.alpha
        for tap in self.terms:
            self._hook(self.student, "student", tap.place)
            self._hook(self.teacher, "teacher", tap.source)

    def _hook(self, model: nn.Module, who: str, ref: MapRef) -> None:
        def keep(x: Tensor) -> None:
            self.maps[who, *ref] = x.clone()

        place = locate(model, ref)
        layer = model.get_submodule(place.layer)
        if place.side == "input":
            layer.register_forward_pre_hook(lambda _, args: keep(args[0]))
        else:
            layer.register_forward_hook(lambda _, __, out: keep(out))

    def forward(self, x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        self.teacher(x, t)
        task = F.mse_loss(self.student(x, t), targets)
        total = task.new_zeros(())
        for tap in self.terms:
            ours = self.maps["student", tap.layer, tap.side].mean(1).flatten(1)
            theirs = self.maps["teacher", tap.teacher_layer, tap.teacher_side].detach().mean(1).flatten(1)
            total = total + self.alpha * (1 - F.cosine_similarity(ours, theirs, dim=1)).mean()
        return 0.5 * task + 0.5 * total / len(self.terms)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


def with_swish(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, Swish())
    return model


def our_step(ours: rd.Distillation, x: Tensor, t: Tensor, noise: Tensor, bf16: bool = False) -> Callable[[], float]:
    learned = ours.student
    optimizer = torch.optim.Adam(learned.parameters(), RATE)
    average = average_of(learned, DECAY)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, losses = ours(x, t, targets=noise)
        optimizer.zero_grad()
        losses["total"].backward()
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(learned)
        return losses["total"].item()

    return step


def plain_step(plain: Plain, x: Tensor, t: Tensor, noise: Tensor) -> Callable[[], float]:
    learned = plain.student
    optimizer = torch.optim.Adam(learned.parameters(), RATE)
    average = copy.deepcopy(learned.state_dict())

    def step() -> float:
        optimizer.zero_grad()
        loss = plain(x, t, noise)
        loss.backward()
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in learned.state_dict().items():
                average[name].copy_(average[name] * DECAY + value * (1 - DECAY))
        return loss.item()

    return step


def timed(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    ours, (x, t), noise = setting()
    plain = Plain(ours).train()
    plain.teacher.eval()
    half = copy.deepcopy(ours).train()
    steps = {
        "plain": plain_step(plain, x, t, noise),
        "ours": our_step(ours.train(), x, t, noise),
        "ours, mixed_precision='bf16'": our_step(half, x, t, noise, bf16=True),
    }
    check(steps, 1e-6)  # our first pass also follows the teacher to its end
    rounds = [{name: timed(step) for name, step in steps.items()} for _ in range(arguments.rounds)]
    check(steps, 1e-3)  # sums of another order, or of bfloat16 products, drift apart as they train
    print(f"{len(ours.terms)} taps, ch {CH}, batch {BATCH}, {SIZE} px, one thread, {arguments.rounds} rounds:")
    for name in steps:
        took = statistics.median(times[name] for times in rounds)
        ratio = statistics.median(times[name] / times["plain"] for times in rounds)
        print(f"{name:<30}{took:.3f} s a step; ratio {ratio:.2f} (medians)")


def check(steps: dict[str, Callable[[], float]], tolerance: float) -> None:
    losses = {name: step() for name, step in steps.items()}
    print("losses: " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()))
    plain, ours, half = losses.values()
    if abs(ours - plain) > tolerance * plain or abs(half - plain) > 1e-3 * plain:
        raise SystemExit("they do not compute the same loss, so their times say nothing")


if __name__ == "__main__":
    main()
