"""The loop of both tasks: runs repeat, go on after any stop, stop with a reason, are never taken for others."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainings import PLANS, TASKS, WIDTH, Stop, digits, distill, equal, recipe_of, train, weights
from trainings import quick_looks as quick_looks

from benchmarks import kills
from redistill_lib.data import TensorImages
from redistill_lib.distill import Distillation, Objective, match_taps
from redistill_lib.methods import RED, Weighted
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model, save_tensors
from redistill_lib.runs import Run, load_runs, write_history
from redistill_lib.train import Recipe, evaluate, train_classifier, train_diffusion
from redistill_lib.train import state as state_module
from redistill_lib.train import tasks as tasks_module
from redistill_lib.train import trainer as trainer_module

both = pytest.mark.parametrize("task", TASKS)
METHODS = {"classifier": "red+kd+fitnet+crd(dim=4)", "denoiser": "red+mse+fitnet"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {task: train(task, tmp_path_factory.mktemp(task)) for task in TASKS}


# ------------------------------------------------------------------------------------------------------- the record


@both
def test_what_a_run_leaves(teachers: dict[str, Run], task: str) -> None:
    run = teachers[task]
    names = [".lock", "history.csv", "last.safetensors", "model.safetensors", "run.json"]
    assert sorted(p.name for p in run.path.iterdir()) == names + ["samples.png"] * (task == "denoiser")
    assert Run.load(run.path) == run and run.complete
    assert run.environment["threads"] == torch.get_num_threads() and run.params["data"]["name"] == "digits"
    history = run.history()
    assert list(history[{"classifier": "epoch", "denoiser": "step"}[task]]) == [1, 2, 3]
    assert {"learning_rate", "train_task", "train_total", "validation_loss", "seconds"} < set(history)
    assert run.metrics["seconds"] == pytest.approx(history.seconds.sum())


@both
def test_the_same_call_finds_its_run(teachers: dict[str, Run], task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module.Trainer, "__init__", lambda *_: pytest.fail("trained again"))
    seen: list[tuple[int, Tensor | None]] = []
    run = train(task, teachers[task].path.parent, on_log=lambda rows, images: seen.append((len(rows), images)))
    assert run == teachers[task] and seen == [(3, None)]


@both
def test_a_complete_run_is_found_where_nothing_can_be_written(
    teachers: dict[str, Run], task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(os, "open", read_only)
    assert train(task, teachers[task].path.parent) == teachers[task]
    with pytest.raises(OSError, match=r"cannot be trained in .*Read-only file system; give another runs_dir"):
        train(task, teachers[task].path.parent, seed=1)


@both
def test_a_network_that_cannot_be_profiled_keeps_its_training(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "profile_memory", lambda *_, **__: torch.zeros(-1))
    run = train(task, tmp_path)
    assert run.complete and run.metrics["memory_error"].startswith("RuntimeError") and "peak_bytes" not in run.metrics


@both
def test_repeats_seeds_and_the_callers_random_state(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = train(task, tmp_path)
    assert torch.rand(1) == expected
    assert again.id == teachers[task].id and equal(again, teachers[task])
    other = train(task, tmp_path, seed=1)
    assert other.id != again.id and not equal(other, again)


# --------------------------------------------------------------------------------------------- stopping and resuming


@both
def test_kills_at_random_times(task: str, tmp_path: Path) -> None:
    """With averages, dropout, mixed images, blocks, a projector and a memory bank; see benchmarks/kills.py."""
    assert kills.check(task, 2, tmp_path, random.Random(task), most=2).total() == 2


@both
@pytest.mark.parametrize("rows", [1, 3])
def test_a_stopped_training_goes_on_to_the_same_bits(
    teachers: dict[str, Run], task: str, rows: int, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"methods": METHODS[task], "recipe": recipe_of(task, ema_decay=0.5)}
    whole = distill(task, tmp_path / "whole", teachers[task], **given)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after \d of \d steps; the same call goes on from there"):
        distill(task, tmp_path / "cut", teachers[task], on_log=Stop(rows), **given)
    assert list(load_runs(tmp_path / "cut").status) == ["interrupted"]
    with pytest.raises(ValueError, match="is interrupted, not complete"):
        load_model(tmp_path / "cut" / whole.id)
    watch = Stop()
    resumed = distill(task, tmp_path / "cut", teachers[task], on_log=watch, **given)
    assert watch.seen == ([2, 3] if rows == 1 else [3]) and equal(resumed, whole)
    if task == "denoiser":
        assert (resumed.path / "samples.png").read_bytes() == (whole.path / "samples.png").read_bytes()


def test_other_optimizers_and_schedules_go_on_too(tmp_path: Path) -> None:
    """AdamW with amsgrad, steps of the learning rate, and MobileNetV3, which has dropout."""
    changes = {"optimizer": "adamw", "learning_rate": 1e-2, "amsgrad": True, "clip_norm": 1.0}
    recipe = recipe_of("classifier", schedule="step", milestones=(1, 2), **changes)
    given: dict[str, Any] = {"model": "mobilenetv3_small-1-22121111211", "recipe": recipe}
    whole = train("classifier", tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        train("classifier", tmp_path / "cut", on_log=Stop(2), **given)
    assert equal(train("classifier", tmp_path / "cut", **given), whole)
    assert list(whole.history().learning_rate) == pytest.approx([1e-2, 1e-3, 1e-4])


def test_a_training_goes_on_with_another_rhythm_of_its_log(tmp_path: Path) -> None:
    recipe = recipe_of("denoiser", steps=7)
    whole = train("denoiser", tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt, match="stopped after 3 of 7 steps"):
        train("denoiser", tmp_path, recipe=recipe, log_every=3, on_log=Stop(1))
    run = train("denoiser", tmp_path, recipe=recipe, log_every=2)
    assert list(run.history().step) == [3, 4, 6, 7]
    for name in ("model", "last"):
        assert all(torch.equal(value, weights(whole, name)[key]) for key, value in weights(run, name).items())


@both
def test_a_kill_before_the_history_is_written_loses_no_row(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, rows: Any) -> None:
        if len(rows) == 3:
            raise KeyboardInterrupt
        write_history(path, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module, "write_history", killed)
        train(task, tmp_path)
    run = train(task, tmp_path)
    assert len(run.history()) == 3 and (run.path / "samples.png").exists() == (task == "denoiser")


@both
@pytest.mark.parametrize("full", ["state", "model", "last", "history", "record"])
def test_a_full_disk_loses_nothing_that_was_saved(
    task: str, full: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was wrong first is what is raised, though the record cannot be written either."""
    writes = 0

    def fill(original: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
        nonlocal writes
        if full in path.name:
            writes += 1
            if writes == (2 if full in ("state", "history") else 1):
                monkeypatch.setattr(Run, "save", fail)
                raise OSError(28, f"No space left for {full}")
        return original(path, *args, **kwargs)

    def fail(run: Run) -> Run:
        raise OSError(28, "No space left for run.json")

    def save_record(run: Run) -> Run:
        return fill(lambda path: saved(run), Path("record" if run.complete else "running"))

    saved = Run.save
    for module in (trainer_module, state_module):
        monkeypatch.setattr(module, "save_tensors", partial(fill, save_tensors))
    monkeypatch.setattr(trainer_module, "write_history", partial(fill, write_history))
    monkeypatch.setattr(Run, "save", save_record)
    with pytest.raises(OSError, match=f"No space left for {full}") as caught:
        train(task, tmp_path)
    assert any("run.json could not be written either" in note for note in caught.value.__notes__)
    monkeypatch.undo()
    watch = Stop()
    run = train(task, tmp_path, on_log=watch)
    assert run.complete and len(run.history()) == 3
    assert watch.seen == {"state": [2, 3], "model": [1, 2, 3], "history": [3], "last": [3], "record": [3]}[full]


@both
def test_divergence_is_explained(task: str, tmp_path: Path) -> None:
    recipe = recipe_of(task, learning_rate=1e30, schedule="constant", clip_norm=None)
    with pytest.raises(
        FloatingPointError, match=r"the loss 'task' is .* at epoch 1, step \d.* learning rate 1e\+30 is"
    ):
        train(task, tmp_path, recipe=recipe)
    row = load_runs(tmp_path).iloc[0]
    assert row.status == "failed" and "learning rate" in row.error


def test_divergence_names_the_weight_of_a_method(teachers: dict[str, Run], tmp_path: Path) -> None:
    told = r"loss 'fitnet.* learning rate .*; or the weight of fitnet .* network: .* than fitnet\(alpha=1e\+30\)"
    with pytest.raises(FloatingPointError, match=told):
        distill("classifier", tmp_path, teachers["classifier"], methods="fitnet(alpha=1e30)")


@both
def test_a_teacher_that_holds_nan_is_named(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(teachers[task].path, tmp_path / "teacher"))
    tensors = {
        key: value * float("nan") if value.ndim > 1 else value for key, value in weights(teachers[task]).items()
    }
    save_tensors(broken / "model.safetensors", tensors)
    replace(Run.load(broken), digests={}).save()
    method = {"classifier": "kd", "denoiser": "mse"}[task]
    with pytest.raises(FloatingPointError, match=f"loss '{method}' is nan .*teacher's map network.output holds NaN"):
        distill(task, tmp_path, broken, methods=method)


def test_an_evaluation_that_is_no_number_completes_nothing(tmp_path: Path) -> None:
    class OnlyInTraining(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if self.training else float("nan"))

    net = OnlyInTraining(nn.Flatten(), nn.Linear(256, 10))
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"cannot be evaluated: .*test_loss is nan"):
            train("classifier", tmp_path, net)
    assert list(load_runs(tmp_path).status) == ["failed"]


@both
def test_damaged_files_are_named(task: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path, on_log=Stop(1))
    (state,) = tmp_path.glob("*/state/state.safetensors")
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"state\.safetensors is cut short .* delete .* to train again"):
        train(task, tmp_path)
    state.unlink()
    run = train(task, tmp_path)
    for kept in ("model", "last"):  # one float of another value is another network
        file = run.path / f"{kept}.safetensors"
        written = file.read_bytes()
        file.write_bytes(written[:-4] + bytes(4))
        with pytest.raises(
            ValueError, match=rf"{kept}\.safetensors .* SHA-256 is another .* delete .* to train again"
        ):
            load_model(run, weights="best" if kept == "model" else "last")
        if kept == "model":
            with pytest.raises(ValueError, match="SHA-256 is another"):
                train(task, tmp_path)
        file.write_bytes(written)
    (run.path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors .* delete .* to train again"):
        train(task, tmp_path)


# ------------------------------------------------------------------------------------ what makes another run, or not


@both
def test_what_cannot_matter_changes_no_bit(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    watch = Stop()
    neutral: dict[str, Any] = {"log_every": 2, "sample_every": 2, "samples": 1, "progress": True, "name": "mine"}
    run = train(task, tmp_path, on_log=watch, **neutral)
    assert run.id == teachers[task].id and run.name == "mine"
    for name in ("model", "last"):
        assert all(
            torch.equal(value, weights(teachers[task], name)[key]) for key, value in weights(run, name).items()
        )
    assert watch.seen == ([1, 2, 3] if task == "classifier" else [1, 2])


def test_workers_change_no_bit(tmp_path: Path) -> None:
    """Spawned processes augment: mixed images, in an order of their own."""
    recipe = recipe_of("classifier", epochs=2, augmentation="resized_crop+cutmix|mixup")
    runs = [train("classifier", tmp_path / str(n), recipe=recipe, workers=n) for n in (0, 2)]
    assert runs[0].id == runs[1].id and equal(*runs)
    assert multiprocessing.active_children() == []  # none waits for the garbage collector


@both
def test_equal_parameters_are_one_run(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    other = {"classifier": "kd", "denoiser": "mse"}[task]
    forms: list[dict[str, Any]] = [
        {"methods": f"red+{other}", "recipe": recipe_of(task, learning_rate=1.0, warmup=1)},
        {"methods": f"{other} + red", "recipe": recipe_of(task, learning_rate=1, warmup=1.0)},
        {
            "methods": [other, "red"],
            "recipe": recipe_of(task, learning_rate=np.float64(1), warmup=np.float32(1)),
            "seed": np.int64(0),
        },
    ]
    ids = {distill(task, tmp_path, teachers[task], **form).id for form in forms}
    assert len(ids) == 1 and len(load_runs(tmp_path)) == 1


def test_options_left_out_are_their_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer_module.Trainer, "run_to_end", lambda self: self.run)
    runs = [
        train_classifier(PLANS["classifier"][1], digits()),
        train_classifier(PLANS["classifier"][1], digits(), Recipe(epochs=12), width=1, seed=0),
    ]
    assert runs[0].id == runs[1].id and runs[0].path.parent.name == "runs"
    told = {"res_blocks": 1, "ch": 8, "mult": [1, 2], "attention": (1,)}
    forms = told, {**told, "dropout": 0.1, "T": 1000, "num_classes": None}, {**told, "dropout": 0.2}
    ids = [train_diffusion("unet-1-2", digits("denoiser"), unet=unet).id for unet in forms]
    assert ids[0] == ids[1] != ids[2]


class Own(nn.Module):
    """A network of one's own, whose way of working its attributes decide."""

    def __init__(self, act: Any = torch.relu, step: int = 2, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)
        self.act, self.step = act, step
        self.conv.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.conv(x)[..., :: self.step, :: self.step]).mean((2, 3)))


class Doubled(Own):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_networks_that_work_otherwise_are_other_runs(tmp_path: Path) -> None:
    """With equal weights each; a trained one is not loaded into another."""
    nets = [
        Own(), Own(torch.tanh), Own(lambda x: x.clamp(0, 6)), Own(lambda x: x.clamp(0, 5)), Own(step=4),
        Own(frozen=True), Doubled(),
    ]  # fmt: skip
    runs = [train("classifier", tmp_path, net, recipe=recipe_of("classifier", epochs=1)) for net in nets]
    assert len({run.id for run in runs}) == len(nets)
    assert not torch.equal(weights(runs[0])["conv.weight"], weights(runs[5])["conv.weight"])
    torch.testing.assert_close(weights(runs[5])["conv.weight"], nets[5].conv.weight.detach())
    for k, run in enumerate(runs):
        load_model(run, nets[k])
        with pytest.raises(ValueError, match=r"this \w+ is not built as the \w+ of run"):
            load_model(run, nets[k - 1])


def test_other_images_are_another_run(tmp_path: Path) -> None:
    data, recipe = digits(), recipe_of("classifier", epochs=1)
    flipped = replace(data, train=TensorImages(data.train.images.flip(-1), data.train.labels))
    ids = {train("classifier", tmp_path, data=d, recipe=recipe).id for d in (data, flipped, digits())}
    assert len(ids) == 2


def test_a_teacher_is_its_weights(teachers: dict[str, Run], tmp_path: Path) -> None:
    """Not its name: a run, its folder and its network are one teacher, until its weights change on disk."""
    train("classifier", tmp_path / "teacher")
    folder = tmp_path / "teacher" / teachers["classifier"].id
    given: list[Any] = [teachers["classifier"], folder, load_model(folder)]
    recipe = recipe_of("classifier", epochs=1)
    runs = [distill("classifier", tmp_path / str(k), teacher, recipe=recipe) for k, teacher in enumerate(given)]
    assert len({run.id for run in runs}) == 1 and equal(runs[0], runs[2])
    assert runs[0].environment["teacher_runs"] == [folder.name] and runs[2].environment["teacher_runs"] == []
    changed = {key: value + 1 if key == "fc.bias" else value for key, value in weights(Run.load(folder)).items()}
    save_tensors(folder / "model.safetensors", changed)
    replace(Run.load(folder), digests={}).save()
    assert distill("classifier", tmp_path / "1", folder, recipe=recipe).id != runs[1].id


def test_runs_of_other_code_are_told_and_not_taken(
    teachers: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = train("classifier", tmp_path)
    monkeypatch.setattr(trainer_module, "code_identity", lambda: "0000ffff")
    taken = train("classifier", tmp_path, reuse=True)
    assert taken.id == mine.id and taken.reused_by == ["0000ffff"] == Run.load(mine.path).reused_by
    assert not capsys.readouterr().out
    again = train("classifier", tmp_path)
    assert again.id != mine.id and again.code == "0000ffff"
    assert f"{mine.path} has the same parameters but was made by other code" in capsys.readouterr().out
    assert train("classifier", tmp_path, reuse=True) == again and len(load_runs(tmp_path)) == 2


# ------------------------------------------------------------------------------------------------- ways of running


@both
def test_mixed_precision(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    run = train(task, tmp_path, mixed_precision="bf16")
    assert run.complete and run.id != teachers[task].id and run.params["mixed_precision"] == "bf16"
    assert {value.dtype for value in weights(run).values()} <= {torch.float32, torch.int64}
    assert train(task, tmp_path / "after").id == teachers[task].id
    with pytest.raises(ValueError, match="fp16 needs a GPU; use 'bf16' or 'no'"):
        train(task, tmp_path / "fp16", mixed_precision="fp16")
    assert not (tmp_path / "fp16").exists()


PROCESSES = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
from trainings import TASKS, distill
for task, teacher in zip(TASKS, {teachers!r}, strict=True):
    distill(task, Path({out!r}), Path(teacher))
"""


def test_several_processes_share_one_run(teachers: dict[str, Run], tmp_path: Path) -> None:
    """Two processes under torchrun: each takes half of every batch, and the run is one, as if one had done it."""
    here = Path(__file__).parent
    folders = [str(teachers[task].path) for task in TASKS]
    script = tmp_path / "job.py"
    script.write_text(
        PROCESSES.format(tests=str(here), root=str(here.parent), out=str(tmp_path / "two"), teachers=folders)
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(load_runs(tmp_path / "two")) == 2
    for task in TASKS:
        alone = distill(task, tmp_path / "one", teachers[task])
        two = Run.load(tmp_path / "two" / alone.id)
        assert two.complete and two.environment["processes"] == 2 and alone.environment["processes"] == 1
        load_model(two)
        first = [run.history().train_task[0] for run in (two, alone)]
        if task == "denoiser":  # whose blocks' statistics are of half batches
            assert first[0] == pytest.approx(first[1], rel=0.02)
        else:
            assert first[0] == pytest.approx(first[1], rel=0.5)


def test_images_on_the_way(tmp_path: Path) -> None:
    seen: list[tuple[int, tuple[int, ...] | None]] = []

    def look(history: Any, images: Tensor | None) -> None:
        seen.append((len(history), None if images is None else tuple(images.shape)))

    train("denoiser", tmp_path, sample_every=2, samples=4, on_log=look)
    assert seen == [(1, None), (2, (4, 1, 8, 8)), (3, (4, 1, 8, 8))]


@pytest.mark.parametrize("channels", [2, 6])
def test_images_that_no_file_holds_lose_no_training(tmp_path: Path, channels: int) -> None:
    data = digits("denoiser")
    wide = {
        name: TensorImages(split.images.repeat(1, channels, 1, 1), split.labels)
        for name in ("train", "validation", "test")
        for split in [getattr(data, name)]
    }
    shapes: list[Any] = []
    run = train(
        "denoiser",
        tmp_path,
        data=replace(data, in_channels=channels, **wide),
        on_log=lambda _, images: shapes.append(None if images is None else images.shape[1]),
    )
    assert run.complete and shapes == [None, None, channels] and not (run.path / "samples.png").exists()


def test_drawing_that_fails_loses_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(tasks_module, "sample", fail)
    with pytest.warns(UserWarning, match="no images could be drawn after step 3: no such kernel"):
        assert train("denoiser", tmp_path).complete


# ------------------------------------------------------------------------------------------------- lengths and starts


@pytest.mark.parametrize("task", TASKS)
def test_a_length_in_epochs_or_in_steps(task: str, tmp_path: Path) -> None:
    """A classifier's last epoch may be a part of one; equal lengths train equally far."""
    per_epoch = {"classifier": 3, "denoiser": 2}[task]
    assert len(digits(task).train) // recipe_of(task).batch_size == per_epoch == 3 or task == "denoiser"
    common: dict[str, Any] = {"schedule": "constant", "warmup": 0}
    steps = train(task, tmp_path, recipe=recipe_of(task, epochs=None, steps=2 * per_epoch, **common))
    epochs = train(task, tmp_path / "anew", recipe=recipe_of(task, epochs=2, steps=None, **common))
    part = train(task, tmp_path, recipe=recipe_of(task, epochs=None, steps=2 * per_epoch + 1, **common))
    assert steps.id == epochs.id and equal(steps, epochs)
    columns = ["train_task", "validation_loss"]
    rows = len(steps.history())
    assert part.history()[columns][:rows].equals(steps.history()[columns]) and len(part.history()) == rows + 1
    assert not torch.equal(
        weights(part, "last")["conv1.weight" if task == "classifier" else "head.weight"],
        weights(steps, "last")["conv1.weight" if task == "classifier" else "head.weight"],
    )


class Scaled(nn.Module):
    """A layer without `reset_parameters`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def test_a_network_of_ones_own_starts_from_its_weights_or_from_new_ones(tmp_path: Path) -> None:
    recipe = recipe_of("classifier", epochs=1, learning_rate=1e-12)
    nets = [Own(), Own()]
    with torch.no_grad():
        nets[1].fc.weight += 1
    before = [net.fc.weight.clone() for net in nets]
    for net in nets:
        given = train("classifier", tmp_path, net, recipe=recipe)
        torch.testing.assert_close(weights(given)["fc.weight"], net.fc.weight.detach())
    scratch = replace(recipe, init="scratch")
    runs = [train("classifier", tmp_path, net, recipe=scratch) for net in nets]
    other = train("classifier", tmp_path, nets[0], recipe=scratch, seed=1)
    assert runs[0].id == runs[1].id != other.id and len(load_runs(tmp_path)) == 4
    drawn = [weights(run)["fc.weight"] for run in (runs[0], other)]
    assert not torch.equal(*drawn) and not any(torch.allclose(w, b) for w in drawn for b in before)
    assert all(torch.equal(net.fc.weight, b) for net, b in zip(nets, before, strict=True))
    with pytest.raises(ValueError, match=r"1 \(Scaled\) has parameters of its own and no reset_parameters\(\)"):
        train("classifier", tmp_path, nn.Sequential(nn.Conv2d(1, 8, 1), Scaled()), recipe=scratch)


def test_a_student_may_start_from_its_teachers_weights(teachers: dict[str, Run], tmp_path: Path) -> None:
    recipe = recipe_of("classifier", epochs=1, learning_rate=1e-12)
    teacher = teachers["classifier"]
    theirs = weights(teacher)
    new = distill("classifier", tmp_path, teacher, methods="kd", recipe=recipe)
    warm = distill("classifier", tmp_path, teacher, methods="kd", recipe=replace(recipe, init="teacher"))
    assert new.id != warm.id and not torch.allclose(weights(new)["fc.weight"], theirs["fc.weight"])
    for name in ("conv1.weight", "layer4.1.conv2.weight", "fc.weight"):
        torch.testing.assert_close(weights(warm)[name], theirs[name])
    other = create_model("mobilenetv3_small", num_classes=10, in_channels=1, width=WIDTH)
    recipe = replace(recipe, init="teacher")
    own = [copy.deepcopy(load_model(teacher)) for _ in range(2)]
    nn.init.zeros_(own[0].fc.weight)  # a student's weights of its own are none of the run's
    assert len({distill("classifier", tmp_path, teacher, net, methods="kd", recipe=recipe).id for net in own}) == 1
    with pytest.raises(
        ValueError, match=r"of features\.0\.0\.weight the student's is \(\d+, 1, 3, 3\) and the teach.*missing"
    ):
        distill("classifier", tmp_path, teacher, other, methods="kd", recipe=recipe)
    with pytest.raises(ValueError, match="and there is none"):
        train("classifier", tmp_path, recipe=recipe)


def test_layers_that_reset_what_is_inside_them_start_as_when_made() -> None:
    from redistill_lib.student import draw_weights

    net = nn.MultiheadAttention(8, 2)
    with torch.no_grad():
        net.out_proj.bias.fill_(3)
        net.in_proj_weight.zero_()
    assert draw_weights(net) == []
    assert not net.out_proj.bias.any() and net.in_proj_weight.all()


class Tuned(nn.Linear):
    def _init_weights(self) -> None:
        nn.init.constant_(self.weight, 7)


def test_a_network_that_initialises_itself_has_the_last_word() -> None:
    from redistill_lib.student import draw_weights

    net = Tuned(2, 2)
    assert draw_weights(net) == [] and (net.weight == 7).all() and draw_weights(Scaled()) != []


# ------------------------------------------------------------------------------------------------------- distillation


@both
def test_students_of_several_teachers(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    method = {"classifier": "kd", "denoiser": "mse"}[task]
    run = distill(task, tmp_path, [teachers[task], teachers[task].path], methods=method)
    assert [term["from"] for term in run.params["terms"]] == ["network.output"] * 2 and len(
        run.params["teachers"]
    ) == 2


def test_a_student_that_is_wider_than_its_teacher_is_told(teachers: dict[str, Run], tmp_path: Path) -> None:
    recipe = recipe_of("classifier", epochs=1)
    with pytest.warns(
        UserWarning, match=r"student is built at width 0\.25, its teacher at 0\.125: it will be the larger"
    ):
        distill("classifier", tmp_path, teachers["classifier"], methods="kd", recipe=recipe, width=0.25)


def test_a_method_that_compares_images_wants_as_many_in_a_batch(teachers: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rkd compares images: it needs batches of 3 or more"):
        distill("classifier", tmp_path, teachers["classifier"], methods="rkd", recipe=Recipe(epochs=1, batch_size=2))
    assert load_runs(tmp_path).empty


@both
def test_teachers_stay_as_they_are(teachers: dict[str, Run], task: str, tmp_path: Path) -> None:
    own = load_model(teachers[task]).half()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    run = distill(task, tmp_path, own)
    assert run.complete and not own.training
    assert all(torch.equal(before[key], value) for key, value in own.state_dict().items())


@dataclass(frozen=True)
class Smoothed(Weighted):
    """A method that leaves a block of its own in the student."""

    name = "smoothed"
    reads = "maps"
    alpha: float = 1.0

    def block(self, student: Any) -> nn.Module:
        return nn.Conv2d(student[0], student[0], 3, padding=1)

    def criterion(self, student: Any, teacher: Any, samples: int) -> nn.Module:
        return RED(distance="mse").criterion(student, teacher, samples)


def test_blocks_of_ones_own_come_back_with_a_network_that_has_them(tmp_path: Path) -> None:
    teacher = train("classifier", tmp_path)
    run = distill("classifier", tmp_path, teacher, methods=[Smoothed()])
    assert {block["class"] for block in run.blocks} == {"Conv2d"}
    with pytest.raises(ValueError, match=r"blocks of your own \(Conv2d\), which only you can build"):
        load_model(run)
    student = create_model(PLANS["classifier"][1], num_classes=10, in_channels=1, width=WIDTH)
    example = torch.zeros(2, 1, 16, 16)
    taps = match_taps(student, load_model(teacher), example)
    blocked = Distillation(student, load_model(teacher), taps, [Smoothed()], example=example).graduate()
    accuracy = evaluate(load_model(run, blocked), digits().test)["accuracy"]
    assert accuracy == pytest.approx(run.metrics["test_accuracy"])


def test_orders_that_draw_other_weights_are_other_runs(tmp_path: Path) -> None:
    """Blocks are drawn in the order of their taps; projectors and memories in the order of the methods' names."""
    teacher = train("classifier", tmp_path)
    network = load_model(teacher)
    taps = match_taps(create_model(PLANS["classifier"][1], 10, 1, WIDTH), network, torch.zeros(2, 1, 16, 16))
    recipe = recipe_of("classifier", epochs=1)
    runs = [distill("classifier", tmp_path, teacher, taps=order, recipe=recipe) for order in (taps, taps[::-1])]
    assert runs[0].id != runs[1].id and not equal(*runs)
    pair = [
        distill("classifier", tmp_path / names, teacher, methods=names, recipe=recipe)
        for names in ("fitnet(alpha=0.1)+crd", "crd+fitnet(alpha=0.1)")
    ]
    assert pair[0].id == pair[1].id and equal(*pair)


def test_what_a_training_does_not_read_is_no_part_of_its_id(tmp_path: Path) -> None:
    for task, changes in (
        ("classifier", [{"init": "scratch"}]),
        ("denoiser", [{"init": "scratch"}, {"label_smoothing": 0.2}, {"label_dropout": 0.4}]),
    ):
        recipes = [recipe_of(task, epochs=None, steps=2, **change) for change in ({}, *changes)]
        assert len({train(task, tmp_path, recipe=recipe).id for recipe in recipes}) == 1


def test_a_compiled_network_is_the_network(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    recipe = recipe_of("classifier", epochs=None, steps=2)
    run = train("classifier", tmp_path, torch.compile(net, backend="eager"), recipe=recipe)  # type: ignore[arg-type]
    assert run.id == train("classifier", tmp_path, net, recipe=recipe).id and "Sequential" in run.id
    assert torch.equal(load_model(run, net)[0].weight, weights(run)["0.weight"])  # type: ignore[index]


def test_of_one_method_the_reduction_says_nothing(tmp_path: Path) -> None:
    teacher, recipe = train("classifier", tmp_path), recipe_of("classifier", epochs=1)
    runs = [
        distill("classifier", tmp_path / way, teacher, recipe=recipe, objective=Objective(reduction=way))
        for way in ("mean", "sum")
    ]
    assert runs[0].id == runs[1].id and equal(*runs)
