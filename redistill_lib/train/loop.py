"""The training loop: on accelerate, killed at any time, resumed where it was (on a CPU to the same bits)."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, TensorImages
from redistill_lib.data.augment import augment, derive_seed
from redistill_lib.distill import Distillation
from redistill_lib.memory import profile_memory
from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.progress import progress_bar
from redistill_lib.runs import Run, locked, run_id, write_history
from redistill_lib.train.evaluate import batch_loader, count_correct, on_device
from redistill_lib.train.recipe import OPTIMIZERS, SCHEDULES, Recipe
from redistill_lib.train.state import pack_optimizer, unpack_optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import Dataset

History = list[dict[str, float]]


class Supervised(nn.Module):
    """A network and its task loss, in the shape of `Distillation`: what the loop trains when nobody teaches."""

    def __init__(self, model: nn.Module, task_loss: Callable[[Tensor, Any], Tensor]):
        super().__init__()
        self.model, self.task_loss = model, task_loss

    def forward(self, x: Tensor, targets: Any) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = self.model(x)
        if not isinstance(outputs, Tensor):
            kind = type(outputs).__name__
            raise TypeError(f"the network returns a {kind}; wrap it in a module that returns its logits, B×classes")
        loss = self.task_loss(outputs, targets)
        return outputs, {"task": loss, "total": loss}

    def predict(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs

    def graduate(self) -> nn.Module:
        return self.model


Trainee = Supervised | Distillation


def fit(
    trainee: Trainee,
    params: dict[str, Any],
    data: DataSplits,
    recipe: Recipe,
    root: Path,
    mixed_precision: str,
    cpu: bool,
    on_epoch: Callable[[History], None] | None,
    progress: bool,
) -> Run:
    accelerator = open_accelerator(mixed_precision, cpu)

    def begin(run: Run) -> Loop:
        return Loop(trainee, data, recipe, run, accelerator, on_epoch, progress)

    return carry_out(params, data, root, accelerator, begin, on_epoch)


class Resumable(Protocol):
    """The training of one run: it goes on from wherever the run's state ends."""

    def run_to_end(self) -> Run: ...

    @property
    def reached(self) -> str: ...  # "3 of 12 epochs"


def carry_out(
    params: dict[str, Any],
    data: DataSplits,
    root: Path,
    accelerator: Accelerator,
    begin: Callable[[Run], Resumable],
    on_done: Callable[[History], None] | None,
) -> Run:
    """The run of these parameters under `root`: as it is where it is complete, else trained by what `begin` makes.

    What stops the training is written into the run's record. `on_done` gets the history of a run found complete.
    """
    params = {**params, "images": data.fingerprint(), "mixed_precision": accelerator.mixed_precision}
    parts = (Path(params["model"]["name"]).name, params.get("methods"), Path(data.name).name, f"s{params['seed']}")
    folder = root / run_id("_".join(part for part in parts if part), params)
    run = Run(folder, params, environment=environment(accelerator))
    with main_holds(accelerator, run.path):
        if (run.path / "run.json").exists() and (done := Run.load(run.path)).complete:
            if on_done and accelerator.is_main_process:
                on_done(done.history().to_dict("records"))
            return done
        loop = begin(run)
        accelerator.wait_for_everyone()
        try:
            with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
                return loop.run_to_end()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if accelerator.is_main_process:
                status = "interrupted" if interrupted else "failed"
                replace(run, status=status, error=None if interrupted else str(error)).save()
            if interrupted:
                raise KeyboardInterrupt(
                    f"stopped after {loop.reached}; the same call goes on from there ({folder})"
                ) from None
            raise


class Loop:
    """The training of one run: epochs from wherever its state ends, then the one reading of the test split."""

    def __init__(
        self,
        trainee: Trainee,
        data: DataSplits,
        recipe: Recipe,
        run: Run,
        accelerator: Accelerator,
        on_epoch: Callable[[History], None] | None,
        progress: bool,
    ):
        self.data, self.recipe, self.run = data, recipe, run
        self.accelerator, self.on_epoch, self.progress = accelerator, on_epoch, progress
        self.trainee = trainee
        self.batch_size = min(recipe.batch_size, len(data.train))
        self.steps = len(data.train) // self.batch_size  # per epoch; a last, smaller batch is left out
        trainee = trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = OPTIMIZERS[recipe.optimizer](recipe, [p for p in trainee.parameters() if p.requires_grad])
        factor = SCHEDULES[recipe.schedule]
        total = recipe.epochs * self.steps
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(recipe, step, total))
        self.module, self.optimizer = accelerator.prepare(trainee, optimizer)
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly by {accelerator.num_processes} processes"
            )
        workers = 0 if isinstance(data.train, TensorImages) else recipe.workers
        self.batches: list[list[int]] = []  # refilled each epoch; the loader and its processes stay
        self.loader = batch_loader(data.train, self.batches, workers)
        self.history: History = []
        self.best: dict[str, float] = {}

    @property
    def state_path(self) -> Path:
        return self.run.path / "state" / "state.safetensors"

    @property
    def reached(self) -> str:
        return f"{len(self.history)} of {self.recipe.epochs} epochs"

    def run_to_end(self) -> Run:
        if self.state_path.exists():
            self._load_state()
        main = self.accelerator.is_main_process
        if main:
            replace(self.run, status="running").save()
            if self.history:  # a kill may have come between the state and its history
                write_history(self.run.path / "history.csv", self.history)
        name = f"{self.run.params['model']['name']} {self.run.params.get('methods', '')}".strip()
        bar = progress_bar(self.recipe.epochs * self.steps, name, enabled=self.progress and main)
        with bar:
            bar.update(len(self.history) * self.steps)
            for epoch in range(len(self.history) + 1, self.recipe.epochs + 1):
                self._epoch(epoch, bar)
        return self._finish()

    def _epoch(self, epoch: int, bar: Any) -> None:
        start = time.perf_counter()
        sums = self._train(epoch, bar)
        validation = self._evaluate(self.trainee.predict, self.data.validation)
        row: dict[str, float] = {"epoch": epoch, "learning_rate": float(self.scheduler.get_last_lr()[0])}
        row |= {f"train_{name}": value for name, value in sums.items()}
        row |= {f"validation_{name}": value for name, value in validation.items()}
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        bar.set_postfix_str(f"validation {100 * row['validation_accuracy']:.1f} %")
        better = row["validation_accuracy"] > self.best.get("validation_accuracy", -1.0)
        if better:
            self.best = row
        if self.accelerator.is_main_process:
            if better:
                save_tensors(self.run.path / "model.safetensors", self.trainee.graduate().state_dict())
            self._save_state()
            write_history(self.run.path / "history.csv", self.history)
            if self.on_epoch:
                self.on_epoch(self.history)

    def _train(self, epoch: int, bar: Any) -> dict[str, float]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        seed = self.run.params["seed"]
        # Everything random in an epoch follows from (seed, epoch, process), so resuming needs no saved RNG state.
        torch.manual_seed(derive_seed(seed, epoch, rank, 0))
        draws = torch.Generator().manual_seed(derive_seed(seed, epoch, rank, 1))
        order = torch.randperm(
            len(self.data.train), generator=torch.Generator().manual_seed(derive_seed(seed, epoch, 0, 2))
        ).tolist()
        size = self.batch_size
        self.batches[:] = [order[k * size : (k + 1) * size][rank::world] for k in range(self.steps)]
        sums: dict[str, Tensor] = {}  # on the device: the check for NaN is the one wait per step
        self.module.train()
        for step, (images, labels) in enumerate(self.loader, 1):
            x, labels = on_device(images, self.accelerator.device), labels.to(self.accelerator.device)
            x, targets = augment(
                x, labels, self.recipe.augmentation, num_classes=self.data.num_classes, generator=draws
            )
            outputs, losses = self.module(x, targets=targets)
            if not torch.isfinite(losses["total"]):
                raise FloatingPointError(self._diverged(epoch, step, x, losses))
            self.optimizer.zero_grad()
            self.accelerator.backward(losses["total"])
            if self.recipe.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            correct = (outputs.argmax(1) == labels).float().mean()
            for name, value in {"accuracy": correct, **losses}.items():
                sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            bar.update()
        return {name: float(value) / self.steps for name, value in sums.items()}

    def _evaluate(self, predict: Callable[[Tensor], Tensor], split: Dataset[Any]) -> dict[str, float]:
        from accelerate.utils import broadcast

        a = self.accelerator
        for buffer in self.trainee.buffers():  # batch norm saw another share of each batch in every process
            broadcast(buffer)
        with a.autocast():
            mine = count_correct(predict, split, a.device, shard=(a.process_index, a.num_processes))
        correct, loss, count = a.reduce(torch.tensor(mine, device=a.device), "sum").tolist()
        return {"accuracy": correct / count, "loss": loss / count}

    def _diverged(self, epoch: int, step: int, x: Tensor, losses: Mapping[str, Tensor]) -> str:
        first = next(name for name, value in losses.items() if not torch.isfinite(value))
        if not torch.isfinite(x).all():
            cause = "the images of this batch hold NaN or infinity; check the data"
        elif self.run.params["mixed_precision"] == "fp16":
            cause = "fp16 overflowed; use mixed_precision='bf16' or 'no'"
        else:
            cause = f"the learning rate {self.recipe.learning_rate:g} is too high; lower it or set clip_norm=1.0"
        return f"the loss {first!r} is {losses[first].item()} at epoch {epoch}, step {step}; most likely {cause}"

    def _finish(self) -> Run:
        last = self._evaluate(self.trainee.predict, self.data.test)
        self.accelerator.wait_for_everyone()
        model = self.trainee.graduate()
        model.load_state_dict(read_tensors(self.run.path / "model.safetensors")[0])
        best = self._evaluate(model.to(self.accelerator.device), self.data.test)
        size = (1, self.data.in_channels, self.data.image_size, self.data.image_size)
        metrics = {
            "test_accuracy": best["accuracy"],
            "test_loss": best["loss"],
            "test_accuracy_last": last["accuracy"],
            "validation_accuracy": self.best["validation_accuracy"],
            "best_epoch": int(self.best["epoch"]),
            "seconds": sum(row["seconds"] for row in self.history),
            **costs(model, torch.zeros(size, device=self.accelerator.device)),
        }
        run = replace(self.run, status="complete", metrics=metrics, blocks=block_records(self.trainee))
        if self.accelerator.is_main_process:
            run.save()
            shutil.rmtree(self.state_path.parent)
        return run

    def _save_state(self) -> None:
        modules = {"trainee": self.trainee}
        record = {"history": self.history, "best": self.best}
        save_state(self.state_path, self.accelerator, modules, self.optimizer, self.scheduler, record)

    def _load_state(self) -> None:
        modules = {"trainee": self.trainee}
        record = load_state(self.state_path, self.accelerator, modules, self.optimizer, self.scheduler)
        self.history, self.best = record["history"], record["best"]


def save_state(
    path: Path,
    accelerator: Accelerator,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    record: Mapping[str, Any],
) -> None:
    """All that a training needs to go on, but for its teachers, which do not change, and a JSON record."""
    tensors, packed = pack_optimizer(optimizer)
    for name, module in modules.items():
        tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items() if not k.startswith("teachers.")}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    own = {"optimizer": packed, "scheduler": scheduler.state_dict(), "scaler": scaler}
    save_tensors(path, tensors, {**record, **own})


def load_state(
    path: Path,
    accelerator: Accelerator,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
) -> dict[str, Any]:
    """The inverse of `save_state`: all is put back in place, and the record is returned."""
    tensors, record = read_tensors(path)
    for name, module in modules.items():
        weights = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        teachers = {k: v for k, v in module.state_dict().items() if k.startswith("teachers.")}
        module.load_state_dict(weights | teachers)
    unpack_optimizer(optimizer, tensors, record["optimizer"])
    scheduler.load_state_dict(record["scheduler"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(record["scaler"])
    return record


def costs(model: nn.Module, *example: Tensor) -> dict[str, Any]:
    """Parameters, bytes of the weights, and peak bytes of activations in fp32 for the example's images.

    A network that cannot be profiled gives a ``memory_error``: never a reason to lose a finished training.
    """
    tensors = model.state_dict().values()
    size = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": sum(t.numel() * t.element_size() for t in tensors),
    }
    try:
        fused, eager = (profile_memory(model, *example, convention=name) for name in ("fused", "eager"))
    except Exception as error:
        return {**size, "memory_error": f"{type(error).__name__}: {error}"}
    peaks = {"peak_bytes": fused.peak_bytes, "peak_at": fused.peak_op.name, "peak_bytes_eager": eager.peak_bytes}
    return {**size, **peaks}


def block_records(trainee: nn.Module) -> list[dict[str, Any]]:
    """The RED blocks of a distilled student as a run's record keeps them; of any other trainee, none."""
    if not isinstance(trainee, Distillation):
        return []
    pairs = zip(trainee.places, trainee.blocks, strict=True)
    return [{"layer": p[0], "side": p[1], "channels": b.channels, "kernel_size": b.kernel_size} for p, b in pairs]


def open_accelerator(mixed_precision: str, cpu: bool) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if mixed_precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"mixed_precision is 'no', 'fp16' or 'bf16', not {mixed_precision!r}")
    earlier = AcceleratorState._shared_state
    wanted = {"_mixed_precision": mixed_precision, "_cpu": cpu}
    if earlier and PartialState().num_processes == 1 and any(earlier.get(k) != v for k, v in wanted.items()):
        AcceleratorState._reset_state(reset_partial_state=True)  # an earlier run in this process had others
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":  # accelerate would compute in float32
        raise ValueError("fp16 needs a GPU; use 'bf16' or 'no'")
    return accelerator


@contextlib.contextmanager
def main_holds(accelerator: Accelerator, path: Path) -> Iterator[None]:
    """The main process locks the run; the others start reading once it has."""
    with locked(path) if accelerator.is_main_process else contextlib.nullcontext():
        accelerator.wait_for_everyone()
        yield


def environment(accelerator: Accelerator) -> dict[str, Any]:
    import accelerate

    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": accelerate.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "cpus": os.cpu_count(),
        "input": "pixels / 127.5 - 1 (redistill_lib.to_float)",
    }
