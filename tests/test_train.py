"""Training: runs that repeat, resume after a kill, stop with a reason, and read test once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from redistill_lib.data import TensorImages, load_data
from redistill_lib.distill import Tap
from redistill_lib.memory import profile_memory
from redistill_lib.methods import KD
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model, read_tensors
from redistill_lib.red import BlockedLayer
from redistill_lib.runs import Run, load_runs
from redistill_lib.train import STL10, DiffusionRecipe, Recipe, distill_classifier, evaluate, train_classifier
from redistill_lib.train import classify as classify_module
from redistill_lib.train import loop as loop_module
from redistill_lib.train.identity import fingerprint
from redistill_lib.train.recipe import SCHEDULES

TEACHER, STUDENT = "resnet18-1-21222", "resnet18-4-11221"
RECIPE = Recipe(epochs=2, batch_size=32)


def digits(**kwargs: Any) -> Any:
    return load_data("digits", image_size=16, limit=96, cache_dir=None, **kwargs)


def train(root: Path, model: str | nn.Module = TEACHER, recipe: Recipe = RECIPE, **kwargs: Any) -> Run:
    return train_classifier(model, digits(), recipe, width=0.125, runs_dir=root, cpu=True, **kwargs)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("teacher"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return read_tensors(run.path / "model.safetensors")[0]


def equal(a: Run, b: Run) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ------------------------------------------------------------------------------------------------------- the record


def test_what_a_run_leaves(teacher: Run) -> None:
    assert sorted(p.name for p in teacher.path.iterdir()) == [".lock", "history.csv", "model.safetensors", "run.json"]
    loaded = Run.load(teacher.path)
    assert loaded.status == "complete" and loaded.environment["threads"] == torch.get_num_threads()
    assert loaded.params["recipe"]["epochs"] == 2 and loaded.params["data"]["name"] == "digits"
    history = loaded.history()
    assert list(history.epoch) == [1, 2]
    best = history.validation_accuracy.idxmax()
    assert loaded.metrics["best_epoch"] == history.epoch[best]
    assert loaded.metrics["validation_accuracy"] == history.validation_accuracy[best]


def test_metrics_are_those_of_the_stored_model(teacher: Run) -> None:
    model, data = load_model(teacher), digits()
    assert not model.training
    assert evaluate(model, data.test)["accuracy"] == pytest.approx(teacher.metrics["test_accuracy"])
    assert evaluate(model, data.validation)["accuracy"] == pytest.approx(teacher.metrics["validation_accuracy"])
    assert teacher.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    profile = profile_memory(model, torch.zeros(1, data.in_channels, data.image_size, data.image_size))
    assert teacher.metrics["peak_bytes"] == profile.peak_bytes < teacher.metrics["peak_bytes_eager"]
    assert teacher.metrics["peak_at"] == profile.peak_op.name


def test_a_network_that_cannot_be_profiled_keeps_its_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "profile_memory", lambda *_, **__: torch.zeros(-1))
    run = train(tmp_path)
    assert run.complete and run.metrics["memory_error"].startswith("RuntimeError") and "peak_bytes" not in run.metrics


def test_the_same_call_finds_its_run(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module.Loop, "__init__", lambda *_: pytest.fail("trained again"))
    seen: list[int] = []
    assert train(teacher.path.parent, on_epoch=lambda rows: seen.append(len(rows))).metrics == teacher.metrics
    assert seen == [2]


def test_seeds_and_repeats(teacher: Run, tmp_path: Path) -> None:
    again = train(tmp_path)
    assert again.id == teacher.id and equal(again, teacher)
    other = train(tmp_path, seed=1)
    assert other.id != teacher.id and not equal(other, teacher)


def test_the_callers_random_state_is_his_own(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    train(tmp_path, recipe=Recipe(epochs=1, batch_size=32))
    assert torch.rand(1) == expected


def test_test_split_is_read_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    read: list[int] = []
    original = loop_module.count_correct

    def spy(predict: Any, split: Any, *args: Any, **kwargs: Any) -> tuple[float, float, float]:
        read.append(1 if split is data.test else 0)
        return original(predict, split, *args, **kwargs)

    monkeypatch.setattr(loop_module, "count_correct", spy)
    train_classifier(STUDENT, data, RECIPE, width=0.125, runs_dir=tmp_path, cpu=True)
    assert read == [0, 0, 1, 1]  # validation twice, then test for the best and for the last epoch


# ------------------------------------------------------------------------------------------------------ distillation


@pytest.mark.parametrize("methods", ["kd", "red", "red+kd", "red-blocks"])
def test_distilled_students_load_again(teacher: Run, tmp_path: Path, methods: str) -> None:
    run = distill_classifier(
        STUDENT,
        teacher,
        digits(),
        Recipe(epochs=1, batch_size=32),
        methods=methods,
        width=0.125,
        runs_dir=tmp_path,
        cpu=True,
    )
    model = load_model(run)
    assert any(isinstance(m, BlockedLayer) for m in model.modules()) == ("red" in methods)
    assert evaluate(model, digits().test)["accuracy"] == pytest.approx(run.metrics["test_accuracy"])
    assert run.params["teachers"] == [teacher.id] and run.params["methods"] == methods
    assert any(c.startswith("train_red/") for c in run.history()) == (methods in ("red", "red+kd"))


def test_taps_from_a_file_and_by_hand(teacher: Run, tmp_path: Path) -> None:
    (tmp_path / "taps.yaml").write_text(
        "net.conv1: {t_layers: [null, tid_0=layer2.0], modules: [null, RED], kwargs: [null, {cs: 8, alpha: 5.0}]}\n"
    )
    common: dict[str, Any] = {"width": 0.125, "runs_dir": tmp_path, "cpu": True}
    recipe = Recipe(epochs=1, batch_size=32)
    one = distill_classifier(
        STUDENT, teacher.path, digits(), recipe, taps=tmp_path / "taps.yaml", methods=None, **common
    )
    tap = Tap("conv1", "output", "layer2.0", "output", alpha=5.0)
    two = distill_classifier(STUDENT, load_model(teacher), digits(), recipe, taps=[tap], methods="red", **common)
    assert equal(one, two) and one.blocks == two.blocks == [
        {"layer": "conv1", "side": "output", "channels": 8, "kernel_size": 3}
    ]


def test_method_objects(teacher: Run, tmp_path: Path) -> None:
    run = distill_classifier(
        STUDENT, [teacher, teacher], digits(), Recipe(epochs=1, batch_size=32), methods=[KD(temperature=4.0)],
        width=0.125, runs_dir=tmp_path, cpu=True,
    )  # fmt: skip
    assert run.params["methods"] == "kd" and len(run.params["terms"]) == 2
    assert run.params["terms"][0]["temperature"] == 4.0


def test_a_network_of_your_own(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        )

    run = train(tmp_path, build())
    assert "weights" in run.params["model"]
    with pytest.raises(ValueError, match="network of your own"):
        load_model(run)
    assert evaluate(load_model(run, build()), digits().test)["accuracy"] == pytest.approx(
        run.metrics["test_accuracy"]
    )


class Strided(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv, self.stride, self.fc = nn.Conv2d(1, 8, 3), stride, nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)[..., :: self.stride, :: self.stride]).mean((2, 3)))


def test_equal_weights_in_different_networks_are_different_runs(tmp_path: Path) -> None:
    """Strides are not in a state_dict; neither in a layer nor in a forward method."""
    torch.manual_seed(0)
    one, four = Strided(1), Strided(4)
    four.load_state_dict(one.state_dict())
    assert train(tmp_path, one, RECIPE).id != train(tmp_path, four, RECIPE).id
    conv = [nn.Conv2d(1, 1, 3, stride, 1) for stride in (1, 2)]
    conv[1].load_state_dict(conv[0].state_dict())
    assert fingerprint(conv[0]) != fingerprint(conv[1])


def test_the_callers_network_is_a_copy_and_resumes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = Strided(2)
    before = fingerprint(mine)

    def stop(history: list[dict[str, float]]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, mine, on_epoch=stop)
    assert fingerprint(mine) == before
    epochs: list[int] = []
    train(tmp_path, mine, on_epoch=lambda h: epochs.append(len(h)))
    assert epochs == [2] and len(load_runs(tmp_path)) == 1


def test_other_images_are_another_run(tmp_path: Path) -> None:
    data = digits()
    changed = replace(data, train=type(data.train)(data.train.images.flip(-1), data.train.labels))
    recipe = Recipe(epochs=1, batch_size=32)
    ids = {train_classifier(STUDENT, d, recipe, width=0.125, runs_dir=tmp_path, cpu=True).id for d in (data, changed)}
    assert len(ids) == 2 and data.fingerprint() == digits().fingerprint()


def test_networks_that_cannot_be_trained_say_why(tmp_path: Path) -> None:
    class Wrapped(Strided):
        def forward(self, x: torch.Tensor) -> Any:
            return {"logits": super().forward(x)}

    with pytest.raises(TypeError, match="returns a dict; wrap it in a module that returns its logits"):
        train(tmp_path, Wrapped(2))
    with pytest.raises(ValueError, match="starts from float32 weights; give mixed_precision='bf16'"):
        train(tmp_path, Strided(2).bfloat16())


def test_load_model_refuses_an_unfinished_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "x", {}, "interrupted").save()
    with pytest.raises(ValueError, match="is interrupted, not complete"):
        load_model(run)


# --------------------------------------------------------------------------------------------- stopping and resuming

SCRIPT = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
import torch
torch.set_num_threads(1)
from test_train import long_run
long_run({out!r}, {teacher!r})
"""


def long_run(root: str, teacher: str, **kwargs: Any) -> Run:
    kwargs |= {"width": 0.125, "runs_dir": root, "cpu": True}
    return distill_classifier(STUDENT, teacher, digits(), Recipe(epochs=5, batch_size=16), methods="red+kd", **kwargs)


def test_a_killed_process_resumes_to_the_same_weights(teacher: Run, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = long_run(str(tmp_path / "whole"), str(teacher.path))
        here = Path(__file__).parent
        script = SCRIPT.format(
            here=str(here), root=str(here.parent), out=str(tmp_path / "cut"), teacher=str(teacher.path)
        )
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        state = tmp_path / "cut" / whole.id / "history.csv"
        deadline = time.monotonic() + 120
        while not (state.exists() and len(state.read_text().splitlines()) >= 3) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        cut = Run.load(tmp_path / "cut" / whole.id)
        done = len(cut.history())
        assert cut.status == "running" and 2 <= done < 5
        with pytest.raises(ValueError, match="is running, not complete"):
            load_model(cut)
        epochs: list[int] = []
        resumed = long_run(str(tmp_path / "cut"), str(teacher.path), on_epoch=lambda h: epochs.append(len(h)))
    finally:
        torch.set_num_threads(threads)
    assert epochs == list(range(done + 1, 6))
    assert equal(resumed, whole)
    drop = ["seconds"]
    assert resumed.history().drop(columns=drop).equals(whole.history().drop(columns=drop))
    assert {k: v for k, v in resumed.metrics.items() if k not in drop} == {
        k: v for k, v in whole.metrics.items() if k not in drop
    }


def test_ctrl_c_keeps_what_was_done(tmp_path: Path) -> None:
    def stop(history: list[dict[str, float]]) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    recipe = replace(RECIPE, epochs=3)
    with pytest.raises(KeyboardInterrupt, match="stopped after 2 of 3 epochs; the same call goes on from there"):
        train(tmp_path, recipe=recipe, on_epoch=stop)
    frame = load_runs(tmp_path)
    assert list(frame.status) == ["interrupted"]
    assert train(tmp_path, recipe=recipe).status == "complete"
    assert len(Run.load(frame.path[0]).history()) == 3


def test_divergence_stops_with_step_and_cause(tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=32, optimizer="sgd", learning_rate=1e18, schedule="constant")
    with pytest.raises(FloatingPointError, match=r"loss 'task' is .* at epoch 1, step \d.* learning rate \(?1e\+18"):
        train(tmp_path, recipe=recipe)
    row = load_runs(tmp_path).iloc[0]
    assert row.status == "failed" and "learning rate" in row.error


def test_a_full_disk_loses_nothing_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = loop_module.save_tensors, []

    def full(path: Path, *args: Any) -> None:
        calls.append(path)
        if "state" in path.parts and sum("state" in p.parts for p in calls) == 2:
            raise OSError(28, "No space left on device")
        original(path, *args)

    monkeypatch.setattr(loop_module, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path)
    monkeypatch.undo()
    assert load_runs(tmp_path).status[0] == "failed"
    epochs: list[int] = []
    train(tmp_path, on_epoch=lambda h: epochs.append(len(h)))
    assert epochs == [2]


def test_a_kill_before_the_history_is_written_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path, rows: Any) -> None:
        raise KeyboardInterrupt

    recipe = replace(RECIPE, epochs=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module, "write_history", killed)
        train(tmp_path, recipe=recipe)
    assert list(train(tmp_path, recipe=recipe).history().epoch) == [1]


# --------------------------------------------------------------------------------------------------------- arguments


CALLS = [train_classifier, partial(distill_classifier, teacher="nowhere")]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed=-1 is not a whole number of 0 or more"),
        ({"seed": "0"}, "seed='0' is not a whole number of 0 or more"),
        ({"recipe": DiffusionRecipe()}, "takes a Recipe as its recipe, not a DiffusionRecipe"),
    ],
)
def test_arguments_are_checked_first(call: Any, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(STUDENT, data=digits(), runs_dir=tmp_path, **change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_splits(call: Any, split: str, tmp_path: Path) -> None:
    nothing: Any = {split: TensorImages(torch.zeros(0, 1, 16, 16).byte(), torch.zeros(0).long())}
    with pytest.raises(ValueError, match=f"the {split} split of digits is empty"):
        call(STUDENT, data=replace(digits(), **nothing), runs_dir=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([], r"a list of at least one of these, not \[\]"),
        (5, "a list of at least one of these, not 5"),
        (Run(Path("x"), {"task": "diffuse"}, "complete"), "teacher x is a denoiser; a classifier learns from"),
    ],
)
def test_what_is_no_teacher(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        distill_classifier(STUDENT, teacher, digits(), runs_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_teachers_of_other_images_and_of_half_precision(
    teacher: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify_module, "fit", lambda trainee, *_: trainee)
    other = load_data("digits", image_size=32, limit=96, cache_dir=None)
    with pytest.warns(UserWarning, match=f"{teacher.id} was trained on other images .*: image_size differ"):
        distill_classifier(STUDENT, teacher, other, width=0.125, runs_dir=tmp_path)
    half = load_model(teacher).half()
    trainee: Any = distill_classifier(STUDENT, half, digits(), width=0.125, methods=["red", "kd"])
    assert trainee.teachers[0].conv1.weight.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------ recipe


def test_schedules() -> None:
    recipe = Recipe(epochs=10, warmup=0.1)
    factors = [SCHEDULES["onecycle"](recipe, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.04) and factors[10] == 1 and factors[-1] < 0.001
    assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    steps = [SCHEDULES["step"](STL10, epoch * 100, 30000) for epoch in (0, 179, 180, 240, 299)]
    assert steps == pytest.approx([1, 1, 1 / 5, 1 / 25, 1 / 125])
    assert SCHEDULES["constant"](recipe, 50, 100) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=.* is not a whole number of 1 or more"),
        ({"epochs": 3.0}, "epochs=.* is not a whole number of 1 or more"),
        ({"batch_size": 1}, "batch_size=.* is not a whole number of 2 or more"),
        ({"workers": -1}, "workers=.* is not a whole number of 0 or more"),
        ({"milestones": (1.5,)}, r"milestones\[0\]=1.5 is not a whole number"),
        *(({"learning_rate": value}, "above 0") for value in (0.0, float("nan"), "0.1")),
        ({"clip_norm": 0}, "clip_norm=0 is not a number above 0"),
        ({"divide_by": 0}, "divide_by=0 is not a number above 0"),
        ({"weight_decay": -1e-4}, "weight_decay is a number from 0 up"),
        ({"label_smoothing": 2}, "label_smoothing is a number from 0 to 1"),
        ({"augmentation": "crp"}, "did you mean crop"),
        ({"optimizer": "lion"}, "unknown 'lion' in the recipe; choose one of adamw, adam, sgd"),
        ({"schedule": "cos"}, "choose one of onecycle, step, constant"),
    ],
)
def test_recipe_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


@pytest.mark.parametrize(("optimizer", "model"), [("adam", "mobilenetv3_small-1-22121111211"), ("sgd", TEACHER)])
def test_whatever_is_random_resumes_too(tmp_path: Path, optimizer: str, model: str) -> None:
    """Dropout (MobileNetV3 has it), mixing of images, and each optimizer's state."""
    common = {"schedule": "step", "milestones": (1,), "clip_norm": 1.0, "augmentation": "crop+cutmix|mixup"}
    recipe = replace(RECIPE, optimizer=optimizer, learning_rate=1e-2, amsgrad=True, **common)

    def stop(history: list[dict[str, float]]) -> None:
        if len(history) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", model, recipe, on_epoch=stop)
    assert equal(train(tmp_path / "cut", model, recipe), train(tmp_path / "whole", model, recipe))


def test_mixed_precision(tmp_path: Path) -> None:
    run = train(tmp_path, mixed_precision="bf16", recipe=Recipe(epochs=1, batch_size=32))
    assert run.params["mixed_precision"] == "bf16"
    with pytest.raises(ValueError, match="'no', 'fp16' or 'bf16', not 'int8'"):
        train(tmp_path, mixed_precision="int8")
    with pytest.raises(ValueError, match="fp16 needs a GPU; use 'bf16' or 'no'"):
        train(tmp_path, mixed_precision="fp16")
    assert train(tmp_path, recipe=Recipe(epochs=1, batch_size=32)).id != run.id


def test_mixing_augmentation_trains(tmp_path: Path) -> None:
    run = train(tmp_path, recipe=replace(RECIPE, epochs=1, augmentation="crop+cutmix|mixup"))
    assert run.complete


def test_fingerprint() -> None:
    torch.manual_seed(0)
    a = create_model("mobilenetv3_small")
    torch.manual_seed(0)
    b = create_model("mobilenetv3_small")
    assert fingerprint(a) == fingerprint(b)
    with torch.no_grad():
        b.classifier[3].bias[0] += 1
    assert fingerprint(a) != fingerprint(b)


PROCESSES = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
from test_train import shared_run
shared_run({out!r}, {teacher!r})
"""


def shared_run(root: str, teacher: str) -> Run:
    recipe = Recipe(epochs=2, batch_size=32)
    return distill_classifier(
        STUDENT, teacher, digits(), recipe, methods="red+kd", width=0.125, runs_dir=root, cpu=True, progress=False
    )


def test_several_processes_share_one_run(teacher: Run, tmp_path: Path) -> None:
    """Two processes under torchrun: each takes half of every batch, and the run is one, as if one had done it."""
    here = Path(__file__).parent
    script = tmp_path / "job.py"
    out = str(tmp_path / "two")
    script.write_text(PROCESSES.format(here=str(here), root=str(here.parent), out=out, teacher=str(teacher.path)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    done = subprocess.run(
        launcher, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone = shared_run(str(tmp_path / "one"), str(teacher.path))
    two = Run.load(tmp_path / "two" / alone.id)
    assert two.complete and two.environment["processes"] == 2 and alone.environment["processes"] == 1
    assert len(load_runs(tmp_path / "two")) == 1
    assert evaluate(load_model(two), digits().test)["accuracy"] == pytest.approx(two.metrics["test_accuracy"])
    first = [run.history().validation_loss[0] for run in (two, alone)]
    assert first[0] == pytest.approx(first[1], rel=0.5)  # batch norm sees half batches: near, not equal
