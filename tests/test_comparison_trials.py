"""Arms by trainings of a second: what diverges, what is kept beside a run, networks and data of one's own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from trainings import digits, options, quick_looks  # noqa: F401

from redistill_lib.comparison import Arm, Budget, Comparison, compare, lengths, trials
from redistill_lib.comparison.lengths import EpochCost
from redistill_lib.comparison.trials import look_at, resized
from redistill_lib.data import DataSplits, LazyImages, load_data
from redistill_lib.methods import RED, Weighted
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.train import Recipe

POOLED, USUAL = "resnet18-4-11221", "resnet18-1-21222"
SHORT = Recipe(epochs=1, batch_size=32)
TEACHER = Arm(USUAL, width=0.125, recipe=SHORT)
STEEP = 1e12  # a learning rate at which every loss is soon NaN


def arm(methods: Any = None, **recipe: Any) -> Arm:
    return Arm(POOLED, methods, width=0.125, recipe=replace(SHORT, **recipe))


def call(root: Path, arms: Any, seeds: Any = 1, teacher: Any = TEACHER, **more: Any) -> Comparison:
    data = more.pop("data", None) or digits()
    budget = more.pop("budget", Budget(epochs=1))
    return compare(teacher, arms, data, budget=budget, seeds=seeds, options=options(root), **more)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    elsewhere: dict[str, Any] = {"initializer": os.chdir, "initargs": (tmp_path_factory.mktemp("elsewhere"),)}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), **elsewhere) as pool:
        yield pool


@pytest.fixture(autouse=True)
def given_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an epoch costs, as if it had been measured."""
    monkeypatch.setattr(lengths, "_measure", lambda *_: EpochCost(2.0))
    monkeypatch.setattr(lengths, "_memory", lambda *_: 0.0)


def finished(root: Path) -> dict[Path, int]:
    """The complete runs, and when each was written."""
    records = {file: json.loads(file.read_text()) for file in root.glob("*/run.json")}
    return {file: file.stat().st_mtime_ns for file, told in records.items() if told["status"] == "complete"}


# ------------------------------------------------------------------------------------------------- what diverges


def test_a_candidate_that_diverges_is_the_worst_and_its_arm_goes_on(tmp_path: Path) -> None:
    arms = {"naive": [arm(learning_rate=STEEP), arm()], "kd": [arm("kd"), arm("kd", learning_rate=STEEP)]}
    found = call(tmp_path, arms)
    tried = found.trials.set_index("arm")
    assert tried["validation_accuracy"].isna().tolist() == [True, False, False, True]
    assert tried.loc["naive, candidate 0", "error"].startswith("the loss 'task' is")
    assert "the learning rate 1e+12 is too high" in tried.loc["kd, candidate 1", "error"]
    assert (tried["error"] == "").tolist() == [False, True, True, False]
    rates = [Run.load(tmp_path / run).params["recipe"]["learning_rate"] for run in found.runs["run"]]
    assert rates == [0.1] * 3  # of the teacher, too
    again = Comparison.load(found.save(tmp_path / "kept"))
    told = ["arm", "model", "run", "error"]
    pd.testing.assert_frame_equal(again.trials[told], found.trials[told])


def test_where_all_candidates_diverge_the_other_arms_are_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(each: Arm, *_: Any) -> EpochCost:
        return EpochCost(2.0, 1.0, "outputs") if each.methods else EpochCost(2.0)

    monkeypatch.setattr(lengths, "_measure", measure)
    arms = {"naive": [arm(), arm(learning_rate=0.01)], "dist": [arm("dist"), arm("dist(alpha=2.0)")]}
    # Less 2 for the teacher, 5.5 are two epochs of `dist` where `kd` makes half of what both read, and else but one.
    budget = Budget(seconds=7.5)
    steep = [arm("kd", learning_rate=STEEP), arm("kd", learning_rate=2 * STEEP)]
    told = r"^kd, candidate 0, seed 100: the loss .* lower it .*; kd, candidate 1, seed 100 diverged too; .* again$"
    with pytest.raises(FloatingPointError, match=told):
        call(tmp_path, {**arms, "kd": steep}, 2, budget=budget)
    before = finished(tmp_path)
    assert len(before) == (1 + 4) + 2 * (1 + 2)  # of the trials, then of both seeds: a teacher and its students
    found = call(tmp_path, {**arms, "kd": [arm("kd"), arm("kd(alpha=2.0)")]}, 2, budget=budget)
    after = finished(tmp_path)
    assert len(after) == len(before) + 2 + 2 and before.items() <= after.items()  # `kd` alone is left
    assert found.runs.groupby("arm")["epochs"].first().to_dict() == {"teacher": 1, "naive": 3, "dist": 2, "kd": 2}


@pytest.mark.parametrize("spawned", [False, True])
def test_what_diverges_under_one_seed_is_told_when_the_rest_is_finished(
    spawned: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arms = {"steep": arm(learning_rate=STEEP), "naive": arm(), "kd": arm("kd")}
    pool = request.getfixturevalue("processes") if spawned else None
    with pytest.raises(FloatingPointError, match=r"^steep, seed 0: the loss 'task' .*; steep, seed 1 diverged too;"):
        call(tmp_path, arms, 2, executor=pool)
    assert len(finished(tmp_path)) == 2 * 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_comparison_that_is_ended_leaves_no_worker_behind(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import redistill_lib as rd\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        arms = {'naive': rd.Arm('resnet18-4-11221', width=0.125)}\n"
        "        teacher = rd.Arm('resnet18-1-21222', width=0.125, recipe=rd.Recipe(epochs=1))\n"
        "        budget = rd.Budget(epochs=100_000)\n"
        "        data = rd.load_data('digits', limit=64)\n"
        "        common = {'options': rd.RunOptions('runs', progress=False, cpu=True), 'executor': pool}\n"
        "        rd.compare(teacher, arms, data, budget=budget, seeds=1, **common)\n"
    )
    told: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, script], cwd=tmp_path, start_new_session=True, **told) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        while not [*tmp_path.glob("runs/resnet18-4-11221*/run.json")]:  # it trains
            assert process.poll() is None
            time.sleep(0.2)
        if number == signal.SIGINT:  # as a terminal sends it, to all
            os.killpg(process.pid, number)
            _, error = process.communicate(timeout=60)
            assert "SpawnProcess" not in error and "\nKeyboardInterrupt: the comparison was stopped; " in error
        process.kill()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker is left")


def test_without_its_teacher_an_arm_is_not_trained_and_the_teacher_is_named(tmp_path: Path) -> None:
    steep = replace(TEACHER, recipe=replace(SHORT, learning_rate=STEEP))
    with pytest.raises(FloatingPointError, match=r"^teacher, seed 0: the loss '.* clip_norm=1\.0; what else"):
        call(tmp_path, {"naive": arm(), "kd": arm("kd")}, teacher=steep)
    assert len(finished(tmp_path)) == 1
    arms = {"naive": [arm(), arm(learning_rate=0.01)], "kd": [arm("kd"), arm()]}
    with pytest.raises(FloatingPointError, match=r"^teacher, seed 100: .*; teacher, seed 0 diverged too;"):
        call(tmp_path, {**arms, "red": [arm("red"), arm("red")]}, teacher=steep)
    with pytest.raises(FloatingPointError, match=r"^teacher, seed 0: "):  # as each arm has one that needs no teacher
        call(tmp_path, arms, teacher=steep)


def test_bad_input_stops_at_once(tmp_path: Path) -> None:
    arms = {"steep": arm(learning_rate=STEEP), "wide": Arm(nn.Flatten(), recipe=SHORT), "naive": arm()}
    with pytest.raises(ValueError, match=r"^wide, seed 0: "):
        call(tmp_path, arms)
    assert len(finished(tmp_path)) == 1  # the teacher


def test_a_candidate_without_an_accuracy_on_validation_is_not_taken(tmp_path: Path) -> None:
    arms = {"naive": [arm(), arm(learning_rate=1e-9)]}
    first = call(tmp_path, arms)
    run = Run.load(tmp_path / first.trials["run"][0])
    replace(run, metrics={k: v for k, v in run.metrics.items() if k != "validation_accuracy"}).save()
    found = call(tmp_path, arms)
    assert found.trials["error"][0].startswith(f"run {run.id} has no validation accuracy; delete")
    rate = Run.load(tmp_path / found.runs["run"][1]).params["recipe"]["learning_rate"]
    assert rate == 1e-9 and first.trials["error"].tolist() == ["", ""]


# ---------------------------------------------------------------------------------------- what is kept beside a run


def test_a_repeated_call_gives_the_same_table_and_reads_no_test_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {
        "naive": [arm(), arm(learning_rate=0.01)],
        "small": [replace(arm(), image_size=12), arm(learning_rate=STEEP)],
    }
    looked: list[int] = []
    true = trials.right_about

    def counted(model: nn.Module, data: DataSplits) -> Any:
        looked.append(data.image_size)
        return true(model, data)

    monkeypatch.setattr(trials, "right_about", counted)
    first = call(tmp_path, arms, 2)
    assert len(looked) == 2 * 3  # of teacher, naive and small: none of a candidate
    again = call(tmp_path, arms, 2)
    assert len(looked) == 6
    for name in ("runs", "trials", "curves", "table"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    assert all(np.array_equal(again.right[name], right) for name, right in first.right.items())
    assert "test_accuracy" not in first.trials and first.trials["error"][3]
    teacher = Run.load(tmp_path / first.runs["run"][0])
    fixed = [call(tmp_path, {"naive": arm()}, 2, teacher) for _ in range(2)]
    assert len(looked) == 6 and all(
        each.right["teacher"].tolist() == [first.right["teacher"][0].tolist()] for each in fixed
    )


def test_a_look_is_of_these_test_images_alone_and_taken_anew_where_it_is_damaged(tmp_path: Path) -> None:
    data, run = digits(), trials.train_arm(arm(), digits(), 1, 0, None, options(tmp_path))
    network = load_model(run)
    asked: list[str] = []

    def look(splits: DataSplits) -> Any:
        def opened() -> nn.Module:
            asked.append("opened")
            return network

        return look_at(run, opened, splits)

    first = look(data)
    assert first.right.mean() == pytest.approx(run.metrics["test_accuracy"])
    assert first.multiply_adds > 0 and first.latency > 0
    file = run.path / "look.json"
    kept = file.read_text()
    assert look(data).latency == first.latency and len(asked) == 1
    swapped = replace(data, test=data.test.take(torch.arange(len(data.test)).flip(0)))
    relabelled = replace(data, test=replace(data.test, labels=data.test.labels.roll(1)))
    for other in (swapped, relabelled, resized(data, 20)):
        file.write_text(kept)
        right = look(other).right
        assert right.tolist() == trials.right_about(network, other).tolist()
        assert look(other).right.tolist() == right.tolist()
    assert len(asked) == 4
    record = json.loads(kept)
    damaged = [kept[:-9], "[]", "null", "{}", "", json.dumps(record | {"right": record["right"][:-2]})]
    damaged += [json.dumps(record | {name: None}) for name in record]
    for text in damaged:
        file.write_text(text)
        assert look(data).right.tolist() == first.right.tolist()
    assert len(asked) == 4 + len(damaged)


def test_a_run_whose_epochs_are_lost_is_told(tmp_path: Path) -> None:
    found = call(tmp_path, {"naive": arm()})
    (tmp_path / found.runs["run"][1] / "history.csv").unlink()
    with pytest.raises(ValueError, match=r"^naive, seed 0: .*history\.csv is cut short .* delete .* to train again"):
        call(tmp_path, {"naive": arm()})


def test_a_run_that_lacks_metrics_has_gaps_in_the_table(tmp_path: Path) -> None:
    arms = {"naive": arm(), "kd": arm("kd")}
    first = call(tmp_path, arms, 2)
    for name in first.runs.query("arm == 'kd'")["run"]:
        run = Run.load(tmp_path / name)
        replace(run, metrics={}).save()
    found = call(tmp_path, arms, 2)
    for each in (found, Comparison.load(found.save(tmp_path / "kept"))):
        table = each.table.set_index("arm")
        assert table.loc["kd", ["parameters", "peak (KiB)"]].isna().all()
        assert table.loc["naive", ["parameters", "peak (KiB)"]].notna().all()
        told = ["accuracy", "above", "mult-adds (M)", "latency (ms)"]
        assert table.loc["kd", told].tolist() == first.table.set_index("arm").loc["kd", told].tolist()
        assert each.headline() == first.headline()


# ------------------------------------------------------------------------------- methods, networks, data of one's own


@dataclass(frozen=True)
class Smooth(Weighted):
    """A method that leaves a block of its own in the student, and whose weight is no field."""

    name = "smooth"
    reads: ClassVar[Literal["maps", "outputs"]] = "maps"
    alpha: ClassVar[float] = 2.0  # type: ignore[misc]

    def block(self, student: Any) -> nn.Module:
        return nn.Conv2d(student[0], student[0], 3, padding=1)

    def criterion(self, student: Any, teacher: Any, samples: int) -> nn.Module:
        return RED(distance="mse").criterion(student, teacher, samples)


class Own(nn.Sequential):
    """A small network of one's own."""

    def __init__(self) -> None:
        layers = nn.Conv2d(1, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def same(here: Comparison, there: Comparison) -> bool:
    drop = ["latency"]  # of another machine, as it were
    pd.testing.assert_frame_equal(here.runs.drop(columns=drop), there.runs.drop(columns=drop))
    return all(np.array_equal(here.right[name], right) for name, right in there.right.items())


def test_methods_that_leave_blocks_of_ones_own(tmp_path: Path, processes: ProcessPoolExecutor) -> None:
    """In built-in networks and one's own, under one fixed teacher and two seeds, here and in other processes."""
    teacher = create_model(USUAL, num_classes=10, in_channels=1, width=0.125)
    own = Arm(Own(), [Smooth()], recipe=replace(SHORT, init="scratch"))
    arms = {"naive": arm(), "smooth": arm([Smooth()]), "both": arm([Smooth(), "kd"]), "own": own}
    here = call(tmp_path / "here", arms, 2, teacher)
    there = call(tmp_path / "there", arms, 2, teacher, executor=processes)
    assert same(here, there)
    for name in ("smooth", "both", "own"):
        runs = [Run.load(tmp_path / "here" / run) for run in here.runs.query(f"arm == {name!r}")["run"]]
        assert {block["class"] for run in runs for block in run.blocks if "class" in block} == {"Conv2d"}
        assert here.right[name].mean(1) == pytest.approx([run.metrics["test_accuracy"] for run in runs])
    adds = here.runs.groupby("arm")["multiply_adds"].first()
    assert adds["smooth"] > adds["naive"]  # blocks included


@pytest.mark.parametrize("lazy", [False, True])
def test_images_of_a_folder(
    lazy: bool, tmp_path: Path, processes: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded beforehand or when asked for, at two sizes, here and in processes that load or receive them."""
    monkeypatch.chdir(tmp_path)
    drawn = load_data("digits", image_size=20).train
    for k in range(90):
        folder = tmp_path / "images" / str(int(drawn.labels[k]) % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[k][0][0].numpy()).save(folder / f"{k}.png")
    data = load_data(tmp_path / "images", image_size=16, lazy=lazy)
    assert isinstance(data.test, LazyImages) == lazy
    arms = {"naive": arm(), "small": replace(arm(), image_size=12), "kd": arm("kd")}
    here = call(tmp_path / "here", arms, data=data)
    there = call(tmp_path / "there", arms, data=data, executor=processes)
    assert same(here, there) and same(here, call(tmp_path / "there", arms, data=data, executor=processes))
    assert len({Run.load(tmp_path / "here" / run).params["images"] for run in here.runs["run"]}) == 2
    assert here.runs.set_index("arm")["test_accuracy"].to_dict() == pytest.approx(
        {name: right.mean() for name, right in here.right.items()}
    )
