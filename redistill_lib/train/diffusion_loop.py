"""The training loop of denoisers: steps instead of epochs, averaged weights, images drawn on the way."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, TensorImages
from redistill_lib.data.augment import derive_seed, flip
from redistill_lib.diffusion.ema import average_of
from redistill_lib.diffusion.images import save_grid, to_uint8
from redistill_lib.diffusion.noise import (
    Denoising,
    Inputs,
    T,
    blank_inputs,
    classes_of,
    denoising_loss,
    make_schedule,
)
from redistill_lib.diffusion.sampling import sample
from redistill_lib.distill import Distillation
from redistill_lib.models.saved import save_tensors
from redistill_lib.progress import progress_bar
from redistill_lib.runs import Run, write_history
from redistill_lib.train.diffusion_recipe import DiffusionRecipe
from redistill_lib.train.evaluate import batch_loader, on_device
from redistill_lib.train.loop import History, block_records, costs, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Called every `log_every` steps with the history so far and, where some were drawn, images (uint8).
OnLog = Callable[[History, Tensor | None], None]


class DiffusionLoop:
    """The training of one run, from wherever its state ends."""

    def __init__(
        self,
        trainee: Denoising | Distillation,
        data: DataSplits,
        recipe: DiffusionRecipe,
        run: Run,
        accelerator: Accelerator,
        on_log: OnLog | None,
        progress: bool,
    ):
        self.data, self.recipe, self.run = data, recipe, run
        self.accelerator, self.on_log, self.progress = accelerator, on_log, progress
        self.trainee = trainee
        self.batch_size = min(recipe.batch_size, len(data.train))
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly by {accelerator.num_processes} processes"
            )
        self.classes = classes_of(trainee.student)
        trainee = trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        learning = [p for p in trainee.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learning, recipe.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.learning_rate_at)
        self.module, self.optimizer = accelerator.prepare(trainee, optimizer)
        # What learns, blocks included and teachers not: the average starts where the student itself starts.
        self.learned = nn.ModuleList([trainee.student, getattr(trainee, "blocks", nn.ModuleList())])
        self.average = average_of(self.learned, recipe.ema_decay)
        self.schedule = make_schedule()
        workers = 0 if isinstance(data.train, TensorImages) else recipe.workers
        self.batches: list[list[int]] = []  # refilled for each stretch; the loader and its processes stay
        self.loader = batch_loader(data.train, self.batches, workers)
        self.order: tuple[int, list[int]] = (-1, [])  # an epoch and its order of images
        self.history: History = []

    @property
    def state_path(self) -> Path:
        return self.run.path / "state" / "state.safetensors"

    @property
    def step(self) -> int:
        return int(self.history[-1]["step"]) if self.history else 0

    @property
    def reached(self) -> str:
        return f"{self.step} of {self.recipe.steps} steps"

    def run_to_end(self) -> Run:
        parts = {"trainee": self.trainee, "average": self.average}
        if self.state_path.exists():
            record = load_state(self.state_path, self.accelerator, parts, self.optimizer, self.scheduler)
            self.history = record["history"]
        main = self.accelerator.is_main_process
        if main:
            replace(self.run, status="running").save()
            if self.history:  # a kill may have come between the state and its history
                write_history(self.run.path / "history.csv", self.history)
        name = f"{self.run.params['model']['name']} {self.run.params.get('methods', '')}".strip()
        with progress_bar(self.recipe.steps, name, enabled=self.progress and main) as bar:
            bar.update(self.step)
            while self.step < self.recipe.steps:
                start = time.perf_counter()
                row = self._train(self.step, min(self.step + self.recipe.log_every, self.recipe.steps), bar)
                images = self._look(row) if main else None
                row["seconds"] = time.perf_counter() - start
                self.history.append(row)
                if main:
                    save_state(
                        self.state_path, self.accelerator, parts, self.optimizer, self.scheduler,
                        {"history": self.history},
                    )  # fmt: skip
                    write_history(self.run.path / "history.csv", self.history)
                    bar.set_postfix_str(f"validation {row['validation_loss']:.4f}")
                    if self.on_log:
                        self.on_log(self.history, images)
        return self._finish()

    def _train(self, first: int, last: int, bar: Any) -> dict[str, float]:
        """Steps `first` to `last` − 1; their mean losses as a row of the history."""
        rank, seed, device = self.accelerator.process_index, self.run.params["seed"], self.accelerator.device
        self.batches[:] = [self._indices(step) for step in range(first, last)]
        sums: dict[str, Tensor] = {}
        self.module.train()
        for step, (images, labels) in enumerate(self.loader, first):
            # All that is random in a step follows from (seed, step, process), so resuming needs no saved RNG state.
            torch.manual_seed(derive_seed(seed, step, rank, 0))  # dropout
            draws = torch.Generator(device).manual_seed(derive_seed(seed, step, rank, 1))
            inputs, noise = self._task(on_device(images, device), labels.to(device), draws)
            _, losses = self.module(*inputs, targets=noise)
            self.optimizer.zero_grad()
            self.accelerator.backward(losses["total"])
            if self.recipe.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.average.update_parameters(self.learned)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
            bar.update()
        means = self.accelerator.reduce(torch.stack(list(sums.values())) / (last - first), "mean").tolist()
        rate = self.recipe.learning_rate * self.recipe.learning_rate_at(last - 1)
        row: dict[str, float] = {"step": last, "learning_rate": rate}
        row |= {f"train_{name}": value for name, value in zip(sums, means, strict=True)}
        if wrong := next((name for name, value in row.items() if not math.isfinite(value)), None):
            raise FloatingPointError(self._diverged(wrong, first, last))
        return row

    def _indices(self, step: int) -> list[int]:
        """This process's share of a step's batch; a last, smaller batch of an epoch is left out."""
        epoch, place = divmod(step, len(self.data.train) // self.batch_size)
        if self.order[0] != epoch:
            draws = torch.Generator().manual_seed(derive_seed(self.run.params["seed"], epoch, 0, 2))
            self.order = epoch, torch.randperm(len(self.data.train), generator=draws).tolist()
        batch = self.order[1][place * self.batch_size : (place + 1) * self.batch_size]
        return batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def _task(self, x: Tensor, labels: Tensor, draws: torch.Generator) -> tuple[Inputs, Tensor]:
        """The inputs of one step and the noise in them."""
        if self.recipe.flip:
            x = flip(x, draws)
        t = torch.randint(T, (len(x),), generator=draws, device=x.device)
        noise = torch.randn(x.shape, generator=draws, device=x.device)
        noisy = self.schedule.add_noise(x, noise, t)
        if self.classes is None:
            return (noisy, t), noise
        hidden = torch.rand(len(x), generator=draws, device=x.device) < self.recipe.label_dropout
        return (noisy, t, labels.masked_fill(hidden, self.classes)), noise

    def _look(self, row: dict[str, float]) -> Tensor | None:
        """Put the validation losses into a row and, where it is time, draw images."""
        averaged, device = self._averaged(), self.accelerator.device
        with self.accelerator.autocast():
            for name, network in (("validation_loss", averaged), ("validation_loss_raw", self.trainee.graduate())):
                row[name] = denoising_loss(network, self.data.validation, device=device)
        due = self.recipe.sample_every and row["step"] % self.recipe.sample_every == 0
        if not due and row["step"] < self.recipe.steps:
            return None
        shape = (self.data.in_channels, self.data.image_size, self.data.image_size)
        labels = None if self.classes is None else torch.arange(self.recipe.samples) % self.classes
        images = to_uint8(sample(averaged, self.recipe.samples, shape, labels=labels, progress=False))
        save_grid(self.run.path / "samples.png", images)
        return images

    def _averaged(self) -> nn.Module:
        """A copy of the network, blocks included, with the averaged weights."""
        own = {name: value.clone() for name, value in self.learned.state_dict().items()}
        self.learned.load_state_dict(self.average.module.state_dict())
        model = self.trainee.graduate()
        self.learned.load_state_dict(own)
        return model

    def _diverged(self, name: str, first: int, last: int) -> str:
        if self.run.params["mixed_precision"] == "fp16":
            cause = "fp16 overflowed; use mixed_precision='bf16' or 'no'"
        else:
            cause = f"the learning rate {self.recipe.learning_rate:g} is too high; lower it"
        loss = name.removeprefix("train_")
        return f"the loss {loss!r} is not finite between steps {first} and {last}; most likely {cause}"

    def _finish(self) -> Run:
        run = replace(self.run, status="complete", blocks=block_records(self.trainee))
        if self.accelerator.is_main_process:
            last = self.history[-1]
            model = self._averaged()
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as load_model gives it
            example = (value.to(self.accelerator.device) for value in blank_inputs(model, self.data, batch=1))
            metrics = {
                "validation_loss": last["validation_loss"],
                "validation_loss_raw": last["validation_loss_raw"],
                "seconds": sum(row["seconds"] for row in self.history),
                **costs(model, *example),
            }
            save_tensors(self.run.path / "model.safetensors", model.state_dict())
            replace(run, metrics=metrics).save()
            shutil.rmtree(self.state_path.parent)
        self.accelerator.wait_for_everyone()
        return Run.load(run.path)
