"""The training loop of every task, on accelerate. It resumes after a kill; on a CPU the result is the same bits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import as_path
from redistill_lib.data import DataSplits, Views, as_batch
from redistill_lib.data.augment import derive_seed
from redistill_lib.diffusion.ema import average_of
from redistill_lib.diffusion.images import save_grid
from redistill_lib.distill import Distillation, LiveTeacher
from redistill_lib.distill.views import ViewStore, make_room, summaries_of
from redistill_lib.memory import profile_memory
from redistill_lib.memory.sizes import parse_size
from redistill_lib.methods import Batch
from redistill_lib.models.saved import read_tensors, save_tensors
from redistill_lib.network import MapRef
from redistill_lib.progress import progress_bar
from redistill_lib.red import describe_block, inserted_blocks
from redistill_lib.runs import Run, canonical, complete_run, find_run, interrupt, locked, write_history
from redistill_lib.source import code_identity
from redistill_lib.train.options import History, RunOptions, describe, open_accelerator
from redistill_lib.train.recipe import OPTIMIZERS, Recipe
from redistill_lib.train.state import load_state, save_state
from redistill_lib.train.tasks import Task

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit(
    distillation: Distillation,
    task: Task,
    data: DataSplits,
    recipe: Recipe,
    options: RunOptions,
    params: dict[str, Any],
    teacher_runs: Sequence[str] = (),
) -> Run:
    """The run of these parameters: as found if complete, else trained or resumed.

    `params` is all that decides the weights, as JSON. Without a teacher, `distillation` has no terms.
    """
    accelerator = open_accelerator(options.mixed_precision, options.cpu)
    params = canonical({**params, "images": data.fingerprint(), "mixed_precision": options.mixed_precision})
    name = params["model"]["name"], params.get("methods"), data.name, f"s{params['seed']}"
    prefix = "_".join(Path(part).name for part in name if part)
    path, others = find_run(options.runs_dir, prefix, params, code_identity())
    found = complete_run(path)
    if others and not (path / "run.json").exists():
        if options.reuse:
            found = others[0].reused(code_identity())
        else:
            accelerator.print(
                f"{others[0].path} has the same parameters but was made by other code of this library, so it is "
                "trained again; RunOptions(reuse=True) takes it as it is"
            )
    if found is None:
        with locked(path) if accelerator.is_main_process else nullcontext():
            accelerator.wait_for_everyone()
            found = complete_run(path)  # by a process that held it until now
            if found is None:
                environment = {**describe(accelerator), "teacher_runs": list(teacher_runs)}
                run = Run(path, params, environment=environment, code=code_identity(), name=options.name)
                return Trainer(distillation, task, data, recipe, options, run, accelerator).run_to_end()
    if options.on_log and accelerator.is_main_process:
        options.on_log(found.history().to_dict("records"), None)
    return found


@dataclass(eq=False)
class Trainer:
    """One run's training; its state is saved after each period: an epoch, or `log_every` steps."""

    trainee: Distillation
    task: Task
    data: DataSplits
    recipe: Recipe
    options: RunOptions
    run: Run
    accelerator: Accelerator

    def __post_init__(self) -> None:
        recipe, data, options, accelerator = self.recipe, self.data, self.options, self.accelerator
        self.batch_size = min(recipe.batch_size, len(data.train))
        if self.batch_size % accelerator.num_processes:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly by {accelerator.num_processes} processes"
            )
        self.per_epoch = recipe.steps_per_epoch(len(data.train))
        self.total = recipe.total_steps(self.per_epoch)
        self.period = self.per_epoch if self.task.unit == "epoch" else options.log_every
        self.trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = OPTIMIZERS[recipe.optimizer](recipe, [p for p in self.trainee.parameters() if p.requires_grad])
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: recipe.learning_rate_at(step, self.per_epoch) / recipe.learning_rate
        )
        self.module, self.optimizer = accelerator.prepare(self.trainee, optimizer)
        self.student = self.trainee.student
        self.average = None if recipe.ema_decay is None else average_of(self.student, recipe.ema_decay)
        self.result = self.student if self.average is None else self.average.module
        parts = {"trainee": self.trainee, "average": self.average, "optimizer": self.optimizer}
        parts |= {"scheduler": self.scheduler, "scaler": accelerator.scaler}
        self.parts: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
        self.state_path = self.run.path / "state" / "state.safetensors"
        self.batches: list[list[tuple[int, int]]] = []  # refilled for each period; the loader's processes stay
        self.loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            Views(data.train, recipe.augmentation, data.num_classes),
            batch_sampler=self.batches,
            collate_fn=as_batch,
            num_workers=options.workers,
            multiprocessing_context="spawn" if options.workers else None,  # a fork hangs after threads have run
            persistent_workers=bool(options.workers),
        )
        self.order: tuple[int, list[int]] = (-1, [])  # an epoch and its order of images
        self.step = 0  # of the saved state
        self.history: History = []
        self.best: dict[str, float] = {}

    def run_to_end(self) -> Run:
        """Train, or go on where an earlier call was stopped; what stops this one is recorded."""
        device = self.accelerator.device
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                return self._run()
        except BaseException as error:
            if self.accelerator.is_main_process:
                self.run.stopped(error)
            if isinstance(error, KeyboardInterrupt):
                reached = f"stopped after {self.step} of {self.total} steps"
                raise interrupt(f"{reached}; the same call goes on from there ({self.run.path})") from None
            raise
        finally:
            del self.loader  # with its processes, for which the garbage collector would wait five seconds each

    def _run(self) -> Run:
        main = self.accelerator.is_main_process
        if self.state_path.exists():
            record = load_state(self.state_path, self.parts)
            self.step, self.history, self.best = record["step"], record["history"], record["best"]
        self.accelerator.wait_for_everyone()
        if main:
            self.run.save()
            if self.history:  # a kill may have come between the state and its history
                write_history(self.run.path / "history.csv", self.history)
        name = f"{self.run.params['model']['name']} {self.run.params.get('methods', '')}".strip()
        if "answers" in self.run.params and self.step < self.total:
            self._keep_answers()
        with progress_bar(self.total, name, enabled=self.options.progress and main) as bar:
            bar.update(self.step)
            if main and self.step == self.total:  # stopped after its last step, maybe before its last images
                self._show()
            while self.step < self.total:
                last = min((self.step // self.period + 1) * self.period, self.total)
                row = self._train(self.step, last, bar)
                if main:
                    record = {"step": last, "history": self.history, "best": self.best}
                    save_state(self.state_path, self.parts, record)
                self.step = last
                if main:
                    write_history(self.run.path / "history.csv", self.history)
                    bar.set_postfix_str(", ".join(f"{k[11:]} {v:.4g}" for k, v in row.items() if "validation" in k))
                    self._show()
        return self._finish()

    def _train(self, first: int, last: int, bar: Any) -> dict[str, float]:
        """Train steps `first` to `last` − 1 and return their row of the history."""
        start, device = (time.perf_counter(), time.process_time()), self.accelerator.device
        rank, seed = self.accelerator.process_index, self.run.params["seed"]
        self.batches[:] = [self._images(step) for step in range(first, last)]
        sums: dict[str, Tensor] = {}
        self.module.train()
        for step, (images, targets, _, index, view) in enumerate(self.loader, first):
            # Seeded by step, so that resuming needs no saved random state.
            torch.manual_seed(derive_seed(seed, step, rank))
            batch = self._batch(images, targets, index, view)
            self.optimizer.zero_grad()  # first, so that maps take the memory of the last gradients
            outputs, losses = self.module(*batch.inputs, targets=batch.targets, index=index, view=view)
            # On a GPU each look at a loss waits for the device.
            if (device.type == "cpu" or step % 50 == 0 or step == last - 1) and not torch.isfinite(losses["total"]):
                raise FloatingPointError(self._diverged(step, batch, losses))
            self.accelerator.backward(losses["total"])
            if self.recipe.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            if self.average is not None:
                self.average.update_parameters(self.student)
            for name, value in {**self.task.measures(outputs, batch), **losses}.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
            bar.update()
        means = self.accelerator.reduce(torch.stack(list(sums.values())) / (last - first), "mean").tolist()
        counted = len(self.history) + 1 if self.task.unit == "epoch" else last
        rate = self.recipe.learning_rate_at(last - 1, self.per_epoch)
        row: dict[str, float] = {self.task.unit: counted, "learning_rate": rate}
        row |= {f"train_{name}": value for name, value in zip(sums, means, strict=True)}
        row |= {f"validation_{name}": value for name, value in self._scores(self.result, "validation").items()}
        if self.average is not None:
            raw = self._scores(self.student, "validation")
            row |= {f"validation_{name}_raw": value for name, value in raw.items()}
        row |= {"seconds": time.perf_counter() - start[0], "processor_seconds": time.process_time() - start[1]}
        self.history.append(row)
        if self.task.better(row, self.best):
            self.best = row
            if self.accelerator.is_main_process:
                save_tensors(self.run.path / "model.safetensors", self.result.state_dict())
        return row

    def _images(self, step: int) -> list[tuple[int, int]]:
        """This process's share of a step's images, as (row, view)."""
        epoch, place = divmod(step, self.per_epoch)
        if self.order[0] != epoch:
            draws = torch.Generator().manual_seed(derive_seed(self.run.params["seed"], epoch, 0, 2))
            self.order = epoch, torch.randperm(len(self.data.train), generator=draws).tolist()
        rows = self.order[1][place * self.batch_size : (place + 1) * self.batch_size]
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return [(row, self.recipe.view_of(epoch)) for row in mine]

    def _batch(self, images: Tensor, targets: Tensor, index: Tensor, view: Tensor) -> Batch:
        device = self.accelerator.device
        images = images.to(device, memory_format=torch.channels_last)
        return self.task.batch(images, targets.to(device), index, view)

    def _keep_answers(self) -> None:
        """Put in each teacher's place what is kept of it in the cache, once that is made."""
        epochs = range(self.step // self.per_epoch, -(-self.total // self.per_epoch))
        views = sorted({self.recipe.view_of(epoch) for epoch in epochs})
        summaries, params, images = summaries_of(self.trainee.active), self.run.params, len(self.data.train)
        # A task whose batches are made in the common way adds nothing to an image that its answer could depend on.
        inputs = {} if type(self.task).batch is Task.batch else asdict(self.task)  # type: ignore[call-overload]
        key = {name: params[name] for name in ("data", "images")} | {"inputs": inputs, "code": self.run.code}
        key["augmentation"] = params["recipe"]["augmentation"]
        cache = as_path("cache", self.options.cache)
        example = Batch(tuple(x.to(self.accelerator.device) for x in self.task.example(self.data, 2)))
        stores: dict[int, ViewStore] = {}
        for k, teacher in enumerate(self.trainee.teachers):
            if kept := {ref: summary for (number, ref), summary in summaries.items() if number == k}:
                key["teacher"] = params["teachers"][k]
                stores[k] = ViewStore(cache, key, kept, teacher.maps(example, list(kept)), images)
        make_room(list(stores.values()), views, parse_size(self.options.cache_limit))
        for k, store in stores.items():
            missing = store.missing(views)
            main = self.accelerator.is_main_process
            if missing and main:
                print(store.told(views))
            shown = self.options.progress and bool(missing) and main
            with progress_bar(images * len(missing), "teacher's answers", enabled=shown) as bar:
                live = self.trainee.teachers[k]
                self.trainee.teachers[k] = store.fill(
                    views, partial(self._asked, live, list(store.places)), bar.update
                )
                live.cpu()  # it is not needed any more
        self.accelerator.wait_for_everyone()

    def _asked(
        self, teacher: LiveTeacher, refs: list[MapRef], batches: Sequence[list[tuple[int, int]]]
    ) -> Iterator[Mapping[MapRef, Tensor]]:
        """Not under autocast: students of every precision read the same."""
        self.batches[:] = batches
        for images, targets, _, index, view in self.loader:
            yield teacher.maps(self._batch(images, targets, index, view), refs)

    def _scores(self, model: nn.Module, split: str) -> dict[str, float]:
        from accelerate.utils import broadcast

        a = self.accelerator
        for buffer in model.buffers():  # batch norm saw another share of each batch in every process
            broadcast(buffer)
        with a.autocast():
            shard = (a.process_index, a.num_processes)
            sums, count = self.task.validate(model, getattr(self.data, split), a.device, shard)
        *totals, images = a.reduce(torch.tensor([*sums.values(), count], device=a.device), "sum").tolist()
        return {name: total / images for name, total in zip(sums, totals, strict=True)}

    def _show(self) -> None:
        every = self.options.sample_every
        images = None
        if (every and self.step % every == 0) or self.step == self.total:
            try:
                images = self.task.preview(self.result, self.options.samples)
            except Exception as error:
                warnings.warn(f"no images could be drawn after step {self.step}: {error}", stacklevel=2)
        if images is not None and images.shape[1] in (1, 3):  # what a PNG can hold
            save_grid(self.run.path / "samples.png", images)
        if self.options.on_log:
            self.options.on_log(self.history, images)

    def _diverged(self, step: int, batch: Batch, losses: Mapping[str, Tensor]) -> str:
        first = next(name for name, value in losses.items() if not torch.isfinite(value))
        maps = self.trainee.teacher_maps(batch)
        if wrong := [str(ref) for (_, ref), x in maps.items() if not torch.isfinite(x).all()]:
            cause = f"the teacher's map {wrong[0]} holds NaN or infinity; train or load it again"
        elif self.options.mixed_precision == "fp16":
            cause = "fp16 overflowed; use mixed_precision='bf16' or 'no'"
        else:
            cause = f"the learning rate {self.recipe.learning_rate:g} is too high; lower it or set clip_norm=1.0"
            if method := next((term.method for term in self.trainee.active if term.name == first), None):
                given = f"{method.name}(alpha={method.alpha:g})"
                cause += f"; or the weight of {method.name} is too large for this network: give less than {given}"
        place = f"epoch {step // self.per_epoch + 1}, step {step % self.per_epoch + 1}"
        return f"the loss {first!r} is {losses[first].item()} at {place}; most likely {cause}"

    def _finish(self) -> Run:
        main = self.accelerator.is_main_process
        if main:
            save_tensors(self.run.path / "last.safetensors", self.student.state_dict())
        metrics: dict[str, Any] = {}
        if self.task.unit == "epoch":  # the test split is read here alone
            metrics |= {f"test_{k}_last": v for k, v in self._scores(self.student, "test").items() if k != "loss"}
            metrics |= {"best_epoch": int(self.best["epoch"])}
        self.accelerator.wait_for_everyone()
        model = self.trainee.graduate()
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as load_model gives it
        model.load_state_dict(read_tensors(self.run.path / "model.safetensors")[0])
        if self.task.unit == "epoch":
            metrics |= {f"test_{k}": v for k, v in self._scores(model, "test").items()}
        metrics |= {k: v for k, v in self.best.items() if k.startswith("validation_")}
        metrics["seconds"] = sum(row["seconds"] for row in self.history)
        example = (x.to(self.accelerator.device) for x in self.task.example(self.data, 1))
        blocks = [
            {"layer": layer, "side": side, **(describe_block(block) or {"class": type(block).__name__})}
            for layer, side, block in inserted_blocks(model)
        ]
        run = self.run.finished({**metrics, **costs(model, *example)}, blocks)
        if run.error:
            raise FloatingPointError(run.error)
        if main:
            run.save()
            rmtree(self.state_path.parent, ignore_errors=True)
        return run


def costs(model: nn.Module, *example: Tensor) -> dict[str, Any]:
    """Numbers of parameters and bytes, with peaks in fp32 or, so that no training is lost, why there are none."""
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    found["model_bytes"] = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    try:
        fused, eager = (profile_memory(model, *example, convention=name) for name in ("fused", "eager"))
        peaks = {"peak_bytes": fused.peak_bytes, "peak_at": fused.peak_op.name, "peak_bytes_eager": eager.peak_bytes}
    except Exception as error:
        peaks = {"memory_error": f"{type(error).__name__}: {error}"}
    return found | peaks
