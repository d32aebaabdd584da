"""One distillation step of the DDPM student: ours beside a plain implementation, in turn in one process.

    python benchmarks/diffusion.py                  about a minute; one thread

U-Net with ch 32, batch 16, 32 px, 10 RED taps. The plain form does what the method says in the most direct way:
forward hooks that keep every tapped map of teacher and student, the teacher's whole pass recorded for gradients like
the student's, losses in a loop over the taps. Ours runs the teacher without gradients and only to its last tap. Both
start from the same weights and see the same noise; that their losses agree is checked before anything is timed. The
median ratio over interleaved rounds is printed.
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

CH, BATCH, SIZE = 32, 16, 32


def setting() -> tuple[rd.Distillation, tuple[Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    teacher, student = (rd.create_model(name, ch=CH, dropout=0.0) for name in ("unet-1-222", "unet-2-221"))
    example = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(1000, (BATCH,))
    taps = rd.match_taps(student, teacher, example)
    distillation = rd.Distillation(student, teacher, taps, methods="red", example=example, task_loss=F.mse_loss)
    return distillation, example, torch.randn(BATCH, 3, SIZE, SIZE)


class Plain(nn.Module):
    """The same objective written down directly."""

    def __init__(self, ours: rd.Distillation):
        super().__init__()
        self.student, self.teacher = copy.deepcopy(ours.student), copy.deepcopy(ours.teachers[0])
        self.blocks = copy.deepcopy(ours.blocks)
        self.terms = [term.tap for term in ours.terms]
        self.maps: dict[tuple[str, str, str], Tensor] = {}
        self.alpha = ours.terms[0].method.alpha
        for tap, block in zip(self.terms, self.blocks, strict=True):
            self._hook(self.student, "student", tap.layer, tap.side, block)
            self._hook(self.teacher, "teacher", tap.teacher_layer, tap.teacher_side, None)

    def _hook(self, model: nn.Module, who: str, path: str, side: str, block: nn.Module | None) -> None:
        def keep(x: Tensor) -> Tensor:
            x = block(x) if block is not None else x
            self.maps[who, path, side] = x.clone()
            return x

        layer = model.get_submodule(path)
        if side == "input":
            layer.register_forward_pre_hook(lambda _, args: (keep(args[0]), *args[1:]))
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


def timed(step: Callable[[], Tensor]) -> float:
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
    ours.train()

    def our_step() -> Tensor:
        ours.zero_grad()
        _, losses = ours(x, t, targets=noise)
        losses["total"].backward()
        return losses["total"].detach()

    def plain_step() -> Tensor:
        plain.zero_grad()
        loss = plain(x, t, noise)
        loss.backward()
        return loss.detach()

    our_step()  # the first pass follows the teacher to its end
    losses = our_step().item(), plain_step().item()
    print(f"losses: ours {losses[0]:.6f}, plain {losses[1]:.6f}")
    if abs(losses[0] - losses[1]) > 1e-4:
        raise SystemExit("the two do not compute the same loss, so their times say nothing")
    times = [(timed(our_step), timed(plain_step)) for _ in range(arguments.rounds)]
    ratio = statistics.median(a / b for a, b in times)
    own, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{len(ours.terms)} taps, ch {CH}, batch {BATCH}, {SIZE} px, one thread, {arguments.rounds} rounds:")
    print(f"ours {own:.3f} s, plain {other:.3f} s a step; ratio {ratio:.2f} (median)")


if __name__ == "__main__":
    main()
