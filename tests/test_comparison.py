"""Arms compared on equal terms: lengths by hand, fair sums, nothing trained twice, and figures that say so."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from torch import nn
from trainings import digits, options, quick_looks  # noqa: F401

from redistill_lib import figures
from redistill_lib.comparison import Arm, Budget, Comparison, compare, lengths, runner, trials
from redistill_lib.comparison.lengths import EpochCost, Length, measure_epochs
from redistill_lib.comparison.lengths import lengths as planned
from redistill_lib.comparison.trials import resized
from redistill_lib.data import load_data
from redistill_lib.distill import Tap
from redistill_lib.figures import theme
from redistill_lib.methods import FitNet
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.results import crossed_interval
from redistill_lib.runs import Run, load_runs
from redistill_lib.train import Recipe, RunOptions, trainer

POOLED, USUAL = "resnet18-4-11221", "resnet18-1-21222"
SHORT = Recipe(epochs=1, batch_size=32)
TEACHER = Arm(USUAL, width=0.125, recipe=SHORT)


def arm(methods: str | None = None, **recipe: Any) -> Arm:
    return Arm(POOLED, methods, width=0.125, recipe=Recipe(**{"epochs": 1, "batch_size": 32, **recipe}))


@pytest.fixture(autouse=True)
def given_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an epoch costs, as if it had been measured: 2 s, and 1 s more for each method."""

    def measure(arm: Arm, *_: Any) -> EpochCost:
        return EpochCost(2.0 + len(arm.method_list))

    monkeypatch.setattr(lengths, "_measure", measure)
    monkeypatch.setattr(lengths, "_memory", lambda *_: 0.0)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is trained, and not found."""
    names: list[str] = []
    true = trials.train_arm

    def counted(arm: Arm, data: Any, epochs: int, seed: int, teacher: Any, opts: Any) -> Run:
        before = set(Path(opts.runs_dir).glob("*/run.json"))
        run = true(arm, data, epochs, seed, teacher, opts)
        if set(Path(opts.runs_dir).glob("*/run.json")) - before:
            names.append(f"{'+'.join(m.name for m in arm.method_list) or 'alone'} {seed}")
        return run

    monkeypatch.setattr(trials, "train_arm", counted)
    return names


# ------------------------------------------------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one of them, not none"),
        ({"seconds": 3.0, "epochs": 2}, "give one of them"),
        ({"seconds": 0.0}, "seconds=0.0 is not a number above 0"),
        ({"epochs": 2, "teacher_share": -1.0}, "teacher_share is a share from 0 up"),
        ({"epochs": 2, "trial_share": 0.0}, "trial_share=0.0 is not a number above 0"),
    ],
)
def test_a_budget_is_one_number(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(**given)


def test_seconds_pay_for_the_teacher_and_for_a_shared_cache_first() -> None:
    arms = {
        "naive": arm(),
        "warm": arm(init="teacher"),
        "blocks": arm("red-blocks"),
        "kd": arm("kd", views=2),
        "red": arm("red"),
    }
    costs = {"naive": EpochCost(2.0), "warm": EpochCost(2.0), "blocks": EpochCost(2.5)}
    costs |= {"kd": EpochCost(3.0, answers=4.0), "red": EpochCost(3.0, answers=2.0)}
    found = planned(Budget(seconds=100, teacher_share=0.5), arms, costs, teacher_seconds=40.0, images=320)
    assert found["naive"] == Length(50, 0.0, 100.0)
    assert found["blocks"] == Length(40, 0.0, 100.0)  # a block without a loss learns nothing from a teacher
    assert found["warm"] == Length(40, 20.0, 80.0)
    assert found["kd"] == Length(25, 24.0, 75.0)  # 20 for the teacher, and half of its answers to two views, 8
    assert found["red"] == Length(20, 40.0, 60.0)  # every epoch is another view, of which it makes half: 1 each
    assert all(length.total <= 100 for length in found.values())


def test_kept_answers_are_paid_by_those_who_read_the_same_and_only_the_views_that_are_seen() -> None:
    arms = {"kd": arm("kd", views=2), "dist": arm("dist", views=2), "red": arm("red(alpha=1.0)", views=16)}
    costs = dict.fromkeys(("kd", "dist"), EpochCost(3.0, 4.0, "outputs")) | {"red": EpochCost(3.0, 6.0, "maps")}
    found = planned(Budget(seconds=34), arms, costs, teacher_seconds=0.0, images=320)
    assert found["kd"] == found["dist"] == Length(10, 4.0, 30.0)  # half of two views of 4 s
    assert found["red"] == Length(3, 18.0, 9.0)  # all of three views: 27 s, and a fourth epoch would make it 36
    assert planned(Budget(epochs=2), arms, costs, 0.0, images=320)["red"] == Length(2, 12.0, 6.0)


def test_epochs_and_steps_are_the_same_for_all() -> None:
    arms = {"naive": arm(), "kd": arm("kd", batch_size=64)}
    costs = dict.fromkeys(arms, EpochCost(2.0))
    by_epoch = planned(Budget(epochs=7), arms, costs, 0.0, images=320)
    assert {length.epochs for length in by_epoch.values()} == {7}
    by_step = planned(Budget(steps=30), arms, costs, 0.0, images=320)
    assert [by_step["naive"].epochs, by_step["kd"].epochs] == [3, 6]  # of 10 and of 5 steps


def test_too_few_seconds_are_said_before_anything_is_trained(tmp_path: Path, trained: list[str]) -> None:
    teacher, arms = Arm(USUAL, width=0.125, recipe=Recipe(epochs=4, batch_size=32)), {"naive": arm(), "kd": arm("kd")}
    with pytest.raises(ValueError, match=r"10 seconds are too few for kd: .* pays 8 s for its teacher first"):
        compare(teacher, arms, digits(), budget=Budget(seconds=10), seeds=1, options=options(tmp_path))
    assert not trained


def test_a_budget_that_suffices_for_the_trials_alone_is_told_before_them(tmp_path: Path, trained: list[str]) -> None:
    arms = {"naive": [arm(), arm(learning_rate=0.01)]}
    with pytest.raises(ValueError, match=r"1\.5 seconds are too few for naive, candidate 0"):
        compare(TEACHER, arms, digits(), budget=Budget(seconds=1.5, trial_share=4.0), options=options(tmp_path))
    assert not trained


def test_without_a_budget_it_is_as_long_as_the_first_arm(tmp_path: Path) -> None:
    by_steps = Arm(POOLED, width=0.125, recipe=Recipe(steps=6, batch_size=32))
    found = compare(TEACHER, {"naive": by_steps}, digits(), seeds=1, options=options(tmp_path))
    assert found.budget == Budget(steps=6) and found.runs["epochs"].tolist() == [
        1,
        2,
    ]  # the teacher's, of three steps


def test_costs_are_kept_and_later_arms_are_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, teacher = digits(), create_model(USUAL, num_classes=10, in_channels=1, width=0.125)
    speed, asked = 1.0, []

    def measure(each: Arm, *_: Any) -> EpochCost:
        asked.append(each)
        return EpochCost(speed * (5.0 if each.methods else 2.0), speed)

    monkeypatch.setattr(lengths, "_measure", measure)
    first = measure_epochs({"naive": arm()}, teacher, data, options(tmp_path))
    assert first == {"naive": EpochCost(2.0, 1.0)}
    speed = 3.0  # the machine is busy, or another one
    both = {"naive": arm(), "kd": arm("kd"), "more": arm("kd(alpha=3.0)", learning_rate=0.01)}
    assert measure_epochs(both, teacher, data, options(tmp_path)) == {
        "naive": EpochCost(2.0, 1.0), "kd": EpochCost(5.0, 1.0), "more": EpochCost(5.0, 1.0),
    }  # fmt: skip
    assert len(asked) == 3 + 3 * 2  # a weight and a learning rate take no time
    measure_epochs(both, teacher, data, options(tmp_path))
    assert measure_epochs({"new": arm(init="scratch")}, teacher, data, options(tmp_path)) == {"new": first["naive"]}
    assert len(asked) == 9


def test_two_calls_at_once_measure_once_and_go_on_with_the_same_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(1.0)

    def measure(*_: Any) -> EpochCost:
        time.sleep(0.05)
        return EpochCost(next(seconds))

    monkeypatch.setattr(lengths, "_measure", measure)
    given = {"naive": arm()}, nn.Flatten(), digits(), options(tmp_path)
    with ThreadPoolExecutor(2) as both:
        found = [both.submit(measure_epochs, *given) for _ in range(2)]
    assert [each.result() for each in found] == [{"naive": EpochCost(2.0)}] * 2  # the middle of 1, 2 and 3


def test_costs_that_other_code_has_measured_are_taken_where_its_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lasts(seconds: float, code: str, **changes: Any) -> EpochCost:
        monkeypatch.setattr(lengths, "_measure", lambda *_: EpochCost(seconds))
        monkeypatch.setattr(lengths, "code_identity", lambda: code)
        return measure_epochs({"naive": arm()}, nn.Flatten(), digits(), options(tmp_path, **changes))["naive"]

    assert [lasts(2.0, "0000"), lasts(3.0, "1111"), lasts(4.0, "1111")] == [*map(EpochCost, (2.0, 3.0, 3.0))]
    assert lasts(4.0, "2222", reuse=True) == EpochCost(2.0)  # the oldest, as of runs
    assert lasts(4.0, "1111", reuse=True) == EpochCost(3.0)


@pytest.mark.parametrize("text", ["{]", '{"epoch": 3}', '{"epoch": [null]}'])
def test_damaged_costs_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "epoch_costs.json").write_text(text)
    with pytest.raises(ValueError, match=r"epoch_costs\.json is cut short .* put a copy back, or delete it"):
        measure_epochs({"naive": arm()}, nn.Flatten(), digits(), options(tmp_path))


def test_costs_that_cannot_be_kept_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be kept in .*; give another runs_dir"):
        measure_epochs({"naive": arm()}, nn.Flatten(), digits(), options(tmp_path / "file" / "runs"))


def test_what_cannot_be_measured_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    data = digits()
    lonely = replace(data, validation=data.validation.take(torch.tensor([0])), params={})
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 10), nn.Threshold(math.inf, math.nan))  # all is NaN
    arms = {"naive": arm(), "broken": Arm(network, recipe=SHORT)}
    with pytest.raises(FloatingPointError, match=r"^broken: the loss 'task' is nan"):  # one image validates naive
        measure_epochs(arms, nn.Flatten(), lonely, options(tmp_path))


def test_what_will_diverge_is_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name, few in {"PASSES": 1, "BATCHES": 1, "LAPS": 1}.items():
        monkeypatch.setattr(lengths, name, few)
    teacher = create_model(USUAL, num_classes=10, in_channels=1, width=0.125)
    tap = Tap("conv1", "output", "layer2.0", "output", method=FitNet(alpha=1e38))
    arms = {"steep": arm(learning_rate=1e12), "heavy": arm("kd(alpha=1e38)")}
    arms["heavy tap"] = replace(arm("kd"), taps=[tap])
    costs = measure_epochs(arms, teacher, digits(), options(tmp_path))
    assert all(cost.epoch > 0 for cost in costs.values())


def test_an_epoch_is_measured_by_training_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(lengths, "PASSES", 1)
    data, teacher = digits(limit=600), create_model(USUAL, num_classes=10, in_channels=1, width=0.125)
    opts = options(tmp_path, cache=tmp_path / "cache")
    arms = {"naive": arm(), "kd": arm("kd", views=2), "at": arm("at(alpha=1.0)", views=2)}
    with pytest.warns(UserWarning, match="the teacher runs as without a cache"):
        found = measure_epochs(arms, teacher, data, opts)
    assert found["naive"].epoch > 0 and found["naive"].answers == 0
    assert found["kd"].answers >= 0 and found["at"].answers == 0
    assert [cost.reads for cost in found.values()] == ["", "network.output crop", ""]
    assert found["at"].epoch > found["naive"].epoch  # it asks the teacher
    assert not (tmp_path / "cache").exists() and [p.name for p in tmp_path.glob("[!.]*")] == [
        "epoch_costs.json"
    ]  # and a lock


# ---------------------------------------------------------------------------------------------------- what is trained


def test_every_arm_has_the_same_sum_and_the_warm_one_starts_where_its_teacher_ended(tmp_path: Path) -> None:
    arms = {
        "naive": arm(),
        "warm": arm(init="teacher", learning_rate=1e-9),
        "kd": arm("kd"),
        "both": arm("red+kd"),
    }
    opts = options(tmp_path)
    found = compare(TEACHER, arms, digits(), budget=Budget(epochs=1), seeds=[3], options=opts)
    runs = found.runs.set_index("arm")
    for name in ("warm", "kd", "both"):
        params = Run.load(tmp_path / runs.loc[name, "run"]).params
        assert params["distill_weight"] is None and params["teachers"] and params["seed"] == 3, name
    assert params["reduction"] == "sum"  # which is the mean where there is one loss
    history = Run.load(tmp_path / runs.loc["kd", "run"]).history().iloc[0]
    assert history["train_total"] == pytest.approx(history["train_task"] + history["train_kd"], rel=1e-5)
    warm = Run.load(tmp_path / runs.loc["warm", "run"])
    assert not [name for name in warm.history() if name.startswith("train_kd")]
    first, last = (load_model(tmp_path / runs.loc[name, "run"]).state_dict() for name in ("teacher", "warm"))
    torch.testing.assert_close(last["conv1.weight"], first["conv1.weight"], atol=1e-6, rtol=0)


def test_tables_agree_with_the_runs_and_differences_are_paired(tmp_path: Path) -> None:
    arms = {"naive": arm(), "kd": arm("kd")}
    found = compare(TEACHER, arms, digits(), budget=Budget(epochs=2), seeds=2, options=options(tmp_path))
    assert found.arms == ("naive", "kd") and found.seeds == 2 and found.reference == "naive"
    store = load_runs(tmp_path).set_index("id")["test_accuracy"]
    for name in ("teacher", *found.arms):
        runs = found.runs[found.runs["arm"] == name]
        assert found.right[name].shape == (2, len(digits().test))
        assert found.right[name].mean(1) == pytest.approx(store[runs["run"]].tolist())
        assert found.accuracy(name).value == pytest.approx(100 * runs["test_accuracy"].mean())
    by_hand = 100 * (found.right["kd"].astype(int) - found.right["naive"])
    assert found.difference("kd", "naive") == crossed_interval(by_hand)
    table = found.to_frame().set_index("arm")
    assert table.loc["kd", "above"] == pytest.approx(by_hand.mean()) and table["above"]["naive"] == 0
    rows = found.by_seed.set_index(["arm", "seed"])
    order = ["teacher", *found.table["arm"]]
    assert [*rows.index] == [(name, seed) for name in order for seed in (0, 1)]
    for (name, seed), row in rows.iterrows():
        assert row["accuracy"] == pytest.approx(100 * store[row["run"]])
        paired = 100 * (found.right[name][seed].astype(int) - found.right["naive"][seed])
        assert row["above"] == pytest.approx(paired.mean())
        images = len(paired)  # 95 % of Student's t over the images alone
        half = scipy.stats.t.ppf(0.975, images - 1) * paired.std(ddof=1) / images**0.5
        assert math.isnan(row["±"]) if name == "naive" else row["±"] == pytest.approx(half)
    costs = ["parameters", "peak (KiB)", "mult-adds (M)"]
    assert rows.loc[("kd", 1), costs].tolist() == table.loc["kd", costs].tolist()
    assert set(rows["image"]) == {"×".join(map(str, digits().test.head(1)[0].shape[1:]))}
    assert len(rows.columns) <= 18  # with the two of the index 20, the most that pandas shows
    curve = found.curves.query("arm == 'kd' and seed == 0")
    assert curve["seconds"].tolist() == [5.0, 8.0]  # 2 s for the teacher's epoch, then 3 s each
    assert "2 epochs each" in found.headline() and repr(found) == f"Comparison({found.headline()})"


def test_the_best_candidate_on_validation_is_taken(tmp_path: Path, trained: list[str]) -> None:
    arms = {"naive": [arm(learning_rate=1e-9), arm()], "kd": [arm("kd"), arm("kd(alpha=0.5)", learning_rate=1e-9)]}
    found = compare(
        TEACHER, arms, digits(), budget=Budget(epochs=2, trial_share=2.0), seeds=1, options=options(tmp_path)
    )
    assert len(found.trials) == 4 and set(found.trials["seed"]) == {100} and set(found.trials["epochs"]) == {4}
    for name, tried in found.trials.groupby(found.trials["arm"].str.rpartition(", ")[0]):
        best = tried.loc[tried["validation_accuracy"].idxmax()]
        rate = Run.load(tmp_path / best["run"]).params["recipe"]["learning_rate"]
        taken = found.runs.set_index("arm").loc[str(name), "run"]
        assert Run.load(tmp_path / taken).params["recipe"]["learning_rate"] == rate
    assert sorted(trained) == sorted(
        ["alone 100"] * 3 + ["kd 100"] * 2 + ["alone 0"] * 2 + ["kd 0"]
    )  # a teacher for each seed


def test_a_call_that_was_stopped_goes_on_and_trains_nothing_twice(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arms, true = {"naive": arm(), "kd": arm("kd")}, runner.try_arm

    def stopped(each: Arm, data: Any, epochs: int, seed: int, *rest: Any) -> Any:
        if seed == 1 and each.methods:
            raise KeyboardInterrupt
        return true(each, data, epochs, seed, *rest)

    def call(seeds: int) -> Comparison:
        return compare(TEACHER, arms, digits(), budget=Budget(epochs=1), seeds=seeds, options=options(tmp_path))

    monkeypatch.setattr(runner, "try_arm", stopped)
    with pytest.raises(KeyboardInterrupt, match="the comparison was stopped; what is trained is in"):
        call(2)
    assert len(trained) == 5
    monkeypatch.setattr(runner, "try_arm", true)
    first = call(2)
    assert trained[5:] == ["kd 1"]
    again = call(2)
    assert len(trained) == 6
    pd.testing.assert_frame_equal(again.runs, first.runs)
    call(3)
    assert trained[6:] == ["alone 2", "alone 2", "kd 2"]


def test_other_processes_train_to_the_same_bits(tmp_path: Path) -> None:
    arms, data = {"naive": arm(), "red": arm("red(alpha=1.0)")}, digits()
    here = compare(TEACHER, arms, data, budget=Budget(epochs=1), seeds=1, options=options(tmp_path / "here"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = compare(
            TEACHER, arms, data, budget=Budget(epochs=1), seeds=1, options=options(tmp_path / "there"), executor=pool
        )
    assert here.runs["run"].tolist() == there.runs["run"].tolist()
    for name in here.right:
        assert np.array_equal(here.right[name], there.right[name])
    weights = [load_model(tmp_path / where / str(here.runs["run"][2])).state_dict() for where in ("here", "there")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


class Here(Executor):
    """Trains at once, and keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.given.append(args[1:])  # after what prepares a worker comes the function itself
        future: Future[Any] = Future()
        try:
            future.set_result(task(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def test_other_processes_load_the_data_where_that_gives_the_same(tmp_path: Path) -> None:
    whole = digits()
    part = replace(whole, train=whole.train.take(torch.arange(64)))
    runs = []
    for data in (whole, part):
        pool = Here()
        common: dict[str, Any] = {"budget": Budget(epochs=1), "seeds": 1, "options": options(tmp_path)}
        runs += [compare(TEACHER, {"naive": arm()}, data, **common, executor=pool).runs["run"].tolist()]
        assert isinstance(pool.given[0][1], str) == (data is whole)
    assert set(runs[0]).isdisjoint(runs[1])


def test_what_fails_is_named_and_what_is_finished_stays(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true = runner.try_arm

    def failing(each: Arm, data: Any, epochs: int, seed: int, *rest: Any) -> Any:
        if seed == 1 and each.methods:
            raise FloatingPointError("the loss is NaN")
        return true(each, data, epochs, seed, *rest)

    monkeypatch.setattr(runner, "try_arm", failing)
    common: dict[str, Any] = {"budget": Budget(epochs=1), "seeds": 2, "options": options(tmp_path)}
    for pool in (None, Here()):
        with pytest.raises(FloatingPointError, match=r"^kd, seed 1: the loss is NaN"):
            compare(TEACHER, {"naive": arm(), "kd": arm("kd")}, digits(), **common, executor=pool)
    assert len(trained) == 5


def test_a_network_that_cannot_be_profiled_is_compared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("an operator of one's own")

    for module in (trials, trainer):
        monkeypatch.setattr(module, "profile_memory", unknown)
    found = compare(TEACHER, {"naive": arm()}, digits(), budget=Budget(epochs=1), seeds=1, options=options(tmp_path))
    assert found.table[["peak (KiB)", "mult-adds (M)"]].isna().all(axis=None)
    assert found.headline().startswith("Within 1 epoch each, naive reaches")
    assert "nan" not in str(figures.comparison(found).layout)


def test_a_given_teacher_of_other_classes_has_no_accuracy_here(tmp_path: Path) -> None:
    arms = {"naive": arm(), "red": arm("red(alpha=1.0)")}
    common: dict[str, Any] = {"budget": Budget(epochs=1), "seeds": 1, "options": options(tmp_path)}
    other = create_model(USUAL, num_classes=7, in_channels=1, width=0.125)
    found = compare(other, arms, digits(), **common)
    assert "teacher" not in found.right and found.table["recovered"].isna().all()
    figures.comparison(found)
    before = torch.get_rng_state()
    compare(TEACHER, arms, digits(), **common)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_of_one_class_are_told_apart(tmp_path: Path) -> None:
    def own(channels: int) -> Arm:
        layers = nn.Conv2d(1, channels, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return Arm(nn.Sequential(*layers, nn.Linear(channels, 10)), recipe=Recipe(epochs=1, init="scratch"))

    arms = {"small": own(4), "large": own(8), "small again": own(4), "built in": arm()}
    found = compare(TEACHER, arms, digits(), budget=Budget(epochs=1), seeds=1, options=options(tmp_path))
    names = ["Sequential 1", "Sequential 2", "Sequential 1", f"{POOLED} ×0.125"]
    for each in (found, Comparison.load(found.save(tmp_path / "kept"))):
        assert [each.network(name) for name in arms] == names
    right = found.right
    assert np.array_equal(right["small"], right["small again"])


def test_one_that_fails_calls_off_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Executor):
        """Runs the first, and holds the others back."""

        futures: Sequence[Future[Any]] = ()

        def submit(self, task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if not self.futures:
                future.set_exception(OSError("no space left"))
            self.futures = [*self.futures, future]
            return future

    pool = Slow()
    with pytest.raises(OSError, match="no space left"):
        compare(
            TEACHER,
            {"naive": arm()},
            digits(),
            budget=Budget(epochs=1),
            seeds=3,
            options=options(tmp_path),
            executor=pool,
        )
    assert [future.cancelled() for future in pool.futures] == [False, True, True]


def test_a_trained_teacher_costs_nothing_and_a_second_seed_no_new_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = options(tmp_path / "runs", cache=tmp_path / "cache")
    teacher = trials.train_arm(TEACHER, digits(), 1, 9, None, opts)
    arms = {"naive": arm(views=1), "kd": arm("kd", views=1)}

    def call(seeds: int) -> Comparison:
        return compare(teacher, arms, digits(), budget=Budget(seconds=6), seeds=seeds, options=opts)

    assert call(1).runs["for_the_teacher"].tolist() == [0.0, 0.0]
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    assert made
    found = call(2)
    assert "teacher" in found.right and found.right["teacher"].shape == (1, len(digits().test))
    assert set((tmp_path / "cache").rglob("*.npy")) == made.keys()
    assert Run.load(opts.runs_dir / found.runs["run"][1]).environment["teacher_runs"] == [teacher.id]
    monkeypatch.chdir(opts.runs_dir)
    again = compare(teacher.id, arms, digits(), budget=Budget(seconds=6), seeds=1, options=opts)  # its folder
    assert again.runs["run"].tolist() == found.runs["run"].tolist()[:2]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arms", "more", "said"),
    [
        ({}, {}, "arms are one or more by name"),
        ({"teacher": arm()}, {}, "none of them 'teacher'"),
        ({"naive": []}, {}, "each an Arm or a list of candidates"),
        ({"naive": ["kd"]}, {}, "a candidate of naive"),
        ({"naive": arm(), "kd": [arm("kd"), arm("kd(alpha=2.0)")]}, {}, "naive 1, kd 2; give 2 each"),
        ({"naive": "resnet18"}, {}, "naive='resnet18' is not an Arm or a list"),
        ({"naive": None}, {}, "naive=None is not an Arm or a list"),
        ({1: arm(), "1": arm("kd")}, {}, "an arm's name=1 is not text"),
        ({"naive": arm()}, {"budget": 60}, "budget=60 is not a Budget"),
        ({"naive": arm()}, {"executor": "spawn"}, "executor='spawn' is not an Executor"),
        ({"naive": arm()}, {"executor": ThreadPoolExecutor(1)}, "threads would share one state of random numbers"),
        (
            {"naive": arm()},
            {"executor": ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))},
            "processes that are forked hang",
        ),
        ({"naive": arm()}, {"teacher": USUAL}, "is no run; Arm\\('resnet18-1-21222'\\) is trained first"),
        ({"naive": arm()}, {"teacher": replace(TEACHER, image_size=8)}, "leave out its image_size"),
        ({"naive": arm()}, {"teacher": create_model(USUAL)}, "the teacher does not take images of 1×16×16"),
        ({"naive": arm()}, {"teacher": arm("kd")}, "the teacher learns from labels alone"),
        ({"naive": arm()}, {"seeds": [2**63]}, "is more than the 9223372036854775807 it can be"),
        ({"naive": arm()}, {"options": RunOptions(on_log=print)}, "on_log watches one training"),
        ({"naive": arm()}, {"seeds": 0}, "seeds=0 is not a whole number of 1 or more"),
        ({"naive": arm()}, {"seeds": [1, 1]}, "each once"),
        ({"naive": arm()}, {"seeds": [100]}, "not 100, under which candidates are tried"),
    ],
)
def test_what_cannot_be_compared_is_refused_first(
    arms: Any, more: dict[str, Any], said: str, tmp_path: Path, trained: list[str]
) -> None:
    with pytest.raises(ValueError, match=said):
        compare(**{"teacher": TEACHER, "arms": arms, "data": digits(), "options": options(tmp_path), **more})
    assert not trained and not [*tmp_path.iterdir()]


def test_images_at_another_side_are_the_same_images() -> None:
    data = load_data("cluttered", train_size=20, validation_size=10, test_size=10)
    small = resized(data, 20)
    assert small.image_size == 20 and small.train.head(1)[0].shape == (1, 1, 20, 20)
    # Halved with antialiasing, an image keeps its mean brightness.
    means = [split.head(10)[0].float().mean((1, 2, 3)) for split in (data.test, small.test)]
    torch.testing.assert_close(*means, atol=1.5, rtol=0)
    assert resized(data, None) is data and resized(data, 40) is data
    assert small.fingerprint() != data.fingerprint() and small.params != data.params


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.fixture
def found() -> Comparison:
    """Four arms of two networks and their teacher, three seeds, 3,000 test images."""
    draws = np.random.default_rng(0)
    arms = {"teacher": (USUAL, 0.25, 0.97), "naive": (POOLED, 0.25, 0.80), "RED": (POOLED, 0.25, 0.86)}
    arms |= {"pools later": ("resnet18-2-21222", 0.125, 0.93), "pools later + KD": ("resnet18-2-21222", 0.125, 0.93)}
    rows, curves, right = [], [], {}
    for name, (model, width, share) in arms.items():
        right[name] = draws.random((3, 3000)) < share
        taught = "RED" in name or "KD" in name
        methods = {"RED": "red", "pools later + KD": "kd"}.get(name, "")
        for seed in range(3):
            row = {"arm": name, "seed": seed, "model": model, "width": width, "image_size": None, "taught": taught}
            row |= {
                "methods": methods,
                "epochs": 40,
                "seconds": 118.0,
                "for_the_teacher": 30.0 * taught,
                "parameters": 10**6,
            }
            rows.append(row | {"peak_bytes": 19200, "multiply_adds": 7_700_000, "latency": 0.002})
            curve = {
                "arm": name,
                "seed": seed,
                "seconds": [40.0, 80.0, 118.0],
                "accuracy": [50.0, 100 * share - 2, 100 * share],
            }
            curves.append(pd.DataFrame(curve))
    frames = pd.DataFrame(rows), pd.DataFrame(), pd.concat(curves, ignore_index=True)
    return Comparison(*frames, right, Budget(seconds=120), "naive", "cluttered")


def test_a_comparison_is_kept_and_read_again(found: Comparison, tmp_path: Path) -> None:
    folder = found.save(tmp_path / "kept")
    again = Comparison.load(folder)
    pd.testing.assert_frame_equal(again.table, found.table)
    assert again.headline() == found.headline() and again.budget == found.budget
    assert all(np.array_equal(again.right[arm], right) for arm, right in found.right.items())
    assert figures.comparison_curves(again) == figures.comparison_curves(found)
    (folder / "curves.csv").write_text("")
    with pytest.raises(ValueError, match=r"comparison\.json is cut short .*\(curves.csv has no row of naive\)"):
        Comparison.load(folder)
    found.runs[:1].to_csv(folder / "runs.csv")
    with pytest.raises(ValueError, match=r"\(runs.csv has no row of"):
        Comparison.load(folder)
    (folder / "runs.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: .*runs\.csv is missing"):
        Comparison.load(folder)
    found.runs.to_csv(folder / "runs.csv")
    for text in ("{}", '{"right": []}'):
        (folder / "comparison.json").write_text(text)
        with pytest.raises(ValueError, match=r"comparison\.json is cut short"):
            Comparison.load(folder)


def test_a_folder_of_the_first_layout_is_read(found: Comparison, tmp_path: Path) -> None:
    """Networks of one class were not told apart then, and candidates had test images, but no reasons."""
    trials = found.runs.assign(test_accuracy=0.5, validation_accuracy=0.5, methods="", run="007")
    former = replace(found, trials=trials)
    assert not {"structure", "error"} & {*former.runs, *former.trials}
    again = Comparison.load(former.save(tmp_path))
    assert again.trials["run"].tolist() == ["007"] * len(trials)
    assert again.headline() == found.headline() and again.network("naive") == found.network("naive")
    pd.testing.assert_frame_equal(again.table, found.table)


def test_names_are_kept_as_they_are(found: Comparison, tmp_path: Path) -> None:
    other = {"naive": "None", "RED": "007", "pools later": 'x, "y"', "pools later + KD": ""}
    tables = [frame.assign(arm=frame["arm"].replace(other)) for frame in (found.runs, found.curves)]
    right = {other.get(name, name): known for name, known in found.right.items()}
    named = replace(found, runs=tables[0], curves=tables[1], right=right, reference="None")
    again = Comparison.load(named.save(tmp_path))
    assert set(again.table["arm"]) == set(other.values()) and again.headline() == named.headline()
    assert again.curves["arm"].tolist() == tables[1]["arm"].tolist()
    with pytest.raises(ValueError, match=r"there is no arm 'none'; there are teacher, None, .* did you mean 'None'"):
        again.difference("none", "007")


def test_of_one_seed_the_headline_gives_no_interval(found: Comparison) -> None:
    one = replace(
        found, runs=found.runs.query("seed == 0"), right={name: known[:1] for name, known in found.right.items()}
    )
    assert one.headline().endswith("points above naive; one seed") and "±" not in one.headline()
    text = str(figures.comparison(one).layout.title.text)
    assert "One run of each, which says nothing of other seeds" in " ".join(text.replace("<br>", " ").split())


def test_an_arm_that_is_always_right_is_not_known_for_certain(found: Comparison) -> None:
    """None of n images is wrong: up to 3 in n may be, and no interval is drawn beyond 100 %."""
    best = found.table["arm"][0]
    perfect = replace(found, right={**found.right, best: np.ones_like(found.right[best])})
    images = found.right[best].shape[1]
    reached = perfect.accuracy(best)
    assert (reached.value, reached.half) == (100.0, pytest.approx(300 / images))
    for trace in figures.comparison(perfect).data:
        for end in trace.error_x.array if trace.error_x.array is not None else ():
            assert trace.x[0] + end <= 100.0


def test_the_headline_says_who_cannot_be_told_apart(found: Comparison) -> None:
    table = found.table
    told = found.headline()
    best, second = table["arm"][0], table["arm"][1]
    assert {best, second} == {"pools later", "pools later + KD"}
    assert told.startswith("Within 18.8 KiB and 120 seconds each") and f"3 seeds cannot tell it from {second}" in told
    assert "points above naive" in told and "RED" not in told


def test_marks_stand_where_the_table_says(found: Comparison) -> None:
    drawn = figures.comparison(found)
    table = found.table
    means = [trace for trace in drawn.data if trace.error_x.array is not None]
    assert [trace.x[0] for trace in means] == table["accuracy"].tolist()
    assert all(each.xshift in (10, 72, 166, 220) for each in drawn.layout.annotations if each.xref == "paper")
    assert [trace.error_x.array[0] for trace in means] == pytest.approx((table["high"] - table["accuracy"]).tolist())
    symbols = {arm: trace.marker.symbol for arm, trace in zip(table["arm"], means, strict=True)}
    assert symbols == {arm: "diamond" if found.taught(arm) else "circle-open" for arm in found.arms}
    colors = {found.network(arm): trace.marker.color for arm, trace in zip(table["arm"], means, strict=True)}
    assert len(colors) == len(set(colors.values())) == 2
    texts = [note.text for note in drawn.layout.annotations]
    assert sum("±" in text for text in texts) == 3  # not of the reference
    assert found.headline().partition(" reaches")[0][:20] in drawn.layout.title.text


def test_the_table_to_read_says_what_the_numbers_say(found: Comparison) -> None:
    numbers, shown = found.table.set_index("arm"), figures.comparison_table(found)
    assert shown.index.tolist() == found.table["arm"].tolist()
    for arm, row in shown.iterrows():
        its = numbers.loc[arm]
        assert row["test accuracy"] == f"{its['accuracy']:.1f} ± {(its['high'] - its['low']) / 2:.1f} %"
        assert row["peak"] == "18.8 KiB" and row["epochs"] == f"{its['epochs']:.0f}"
    assert shown.loc["naive", ["above naive", "of the gap to the teacher"]].tolist() == ["", ""]
    blank = replace(
        found, runs=found.runs.assign(peak_bytes=math.nan, multiply_adds=[math.nan, *[1e6] * 99][: len(found.runs)])
    )
    shown = figures.comparison_table(blank)
    assert "peak" not in shown and "nan" not in shown.to_string() and "mult-adds" in shown


def test_many_arms_of_strange_names(found: Comparison) -> None:
    long = "<b>&x; the very long name of an arm that is a reference, learning rate 0.1"
    names = [long, *(f"arm {k}" for k in range(19))]
    one, curve = found.runs.query("arm == 'RED'"), found.curves.query("arm == 'RED'")
    runs = [one.assign(arm=name, model=f"net {k % 10}") for k, name in enumerate(names)]
    curves = [curve.assign(arm=name, accuracy=[60.0 + k, 99.0, 60.0 + k] * 3) for k, name in enumerate(names)]
    right = dict.fromkeys(names, found.right["naive"]) | {"teacher": found.right["naive"][:, ::-1]}
    many = replace(found, runs=pd.concat(runs), curves=pd.concat(curves), right=right, reference=long)
    drawn = figures.comparison(many)
    shown = [trace.name for trace in drawn.data if trace.name and trace.name.startswith(("net", "other"))]
    assert shown == [*(f"net {k} ×0.25" for k in range(8)), "other networks"]
    colors = [trace.marker.color for trace in drawn.data if trace.name in shown]
    assert len(set(colors)) == 9
    assert "above reference" in str(drawn.layout.annotations) and "<b>&x;" not in str(drawn.to_dict())
    assert max(text.count("<br>") for text in drawn.layout.yaxis.ticktext) == 1
    curves_drawn = figures.comparison_curves(many)
    low, high = curves_drawn.layout.yaxis.range
    places = sorted(note.y for note in curves_drawn.layout.annotations)
    assert low <= places[0] and places[-1] <= high and high > 99  # nothing is cut off
    assert min(np.diff(places)) * curves_drawn.layout.height / (high - low) > 18  # pixels


def test_what_a_step_of_training_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    given = create_model(USUAL, 10, 1, 0.125), digits(), RunOptions(tmp_path, progress=False, cpu=True)
    naive, wide = (lengths._memory(each, *given) for each in (arm(), replace(arm(), width=0.25)))
    taught = lengths._memory(arm("red"), *given)
    weights = 4 * sum(p.numel() for p in create_model(POOLED, 10, 1, 0.125).parameters())
    assert naive > 3 * weights  # those, their gradients and their momentum
    assert wide > 1.9 * naive and taught > naive
    assert lengths._memory(arm(), *given) == naive


def test_what_is_recovered_of_a_gap_that_is_there(found: Comparison) -> None:
    teacher, naive, red = (found.accuracy(name).value for name in ("teacher", "naive", "RED"))
    table = found.table.set_index("arm")
    assert table.loc["RED", "recovered"] == pytest.approx(100 * (red - naive) / (teacher - naive))
    alike = replace(found, right={**found.right, "teacher": found.right["naive"][:, ::-1]})
    assert alike.table["recovered"].isna().all()
    assert (
        replace(found, right={**found.right, "teacher": found.right["teacher"][:1]}).table["recovered"].notna().all()
    )


def test_a_colour_says_the_way_in_every_figure(found: Comparison) -> None:
    assert {arm: found.way(arm) for arm in ("naive", "pools later")} == {
        "naive": "as wide",
        "pools later": "narrower",
    }
    runs = found.runs.assign(image_size=np.where(found.runs["arm"] == "RED", 32.0, np.nan))
    assert replace(found, runs=runs).way("RED") == "smaller images"
    rows = found.runs["arm"] != "RED"  # without that arm, and in another order
    fewer = {name: known for name, known in reversed(found.right.items()) if name != "RED"}
    other = replace(found, runs=found.runs[rows], curves=found.curves[found.curves["arm"] != "RED"], right=fewer)
    looks = [
        {trace.name: trace.marker.color for trace in figures.comparison(each).data if trace.name}
        for each in (found, other)
    ]
    assert looks[0] == looks[1]


def test_what_each_of_two_things_is_worth(found: Comparison) -> None:
    arms = {
        "wide": {"no loss": "naive", "a lesson": "RED"},
        "narrow": {"no loss": "pools later", "a lesson": "pools later + KD"},
    }
    right = {name: known.mean(1) for name, known in found.right.items()}  # run by run, in shares
    rows = ((right["pools later"] + right["pools later + KD"]) / 2 - (right["naive"] + right["RED"]) / 2).mean()
    lesson = ((right["RED"] + right["pools later + KD"]) / 2 - (right["naive"] + right["pools later"]) / 2).mean()
    drawn = figures.factorial(found, arms)
    title = " ".join(re.sub("<.*?>", " ", drawn.layout.title.text).split())
    assert f"narrow {100 * rows:.1f} ±" in title and f"a lesson {100 * lesson:.1f} ±" in title
    marks = {trace.hovertemplate.split("</b>")[0][3:]: trace for trace in drawn.data if trace.mode == "markers"}
    assert {arm: mark.y[0] for arm, mark in marks.items()} == {arm: found.accuracy(arm).value for arm in marks}
    assert len(marks) == 4 and marks["RED"].marker.color == theme.color("red")
    with pytest.raises(ValueError, match="narrow needs the columns no loss and a lesson, not a lesson"):
        figures.factorial(found, arms | {"narrow": {"a lesson": "pools later"}})


def test_of_one_network_colours_and_marks_are_the_methods(found: Comparison) -> None:
    arms = ["naive", "RED", "from the teacher"]
    row = found.runs[found.runs["arm"] == "naive"]
    runs = pd.concat([found.runs[found.runs["arm"].isin(arms)], row.assign(arm="from the teacher")])
    curves = found.curves[found.curves["arm"].isin(arms)]
    right = {name: found.right.get(name, found.right["RED"]) for name in arms}
    one = replace(found, runs=runs, curves=curves, right=right)
    drawn = figures.comparison(one)
    marks = [trace.marker for trace in drawn.data if trace.error_x.array is not None]
    looks = {arm: (mark.color, mark.symbol) for arm, mark in zip(one.table["arm"], marks, strict=True)}
    assert looks["RED"] == theme.look("red") and looks["naive"] == theme.look("student")
    assert len(set(looks.values())) == 3 and not [trace for trace in drawn.data if trace.name]
    assert f"all are {found.network('naive')}" in " ".join(drawn.layout.title.text.replace("<br>", " ").split())


def test_several_comparisons_in_one_figure(found: Comparison) -> None:
    drawn = figures.comparisons({"digits": found, "pairs": found}, ["RED", "pools later"])
    gaps = [found.difference(arm, "naive") for arm in ("RED", "pools later")]
    assert [trace.x[0] for trace in drawn.data] == [gap.value for gap in gaps] * 2
    assert [trace.error_x.array[0] for trace in drawn.data] == pytest.approx([gap.half for gap in gaps] * 2)
    heights = [trace.y[0] for trace in drawn.data]
    assert heights == sorted(set(heights)) and len(drawn.layout.yaxis.ticktext) == 2
    assert "on digits pools later; on pairs pools later" in " ".join(
        re.sub("<.*?>", " ", drawn.layout.title.text).split()
    )
    alike = {**found.right, "RED": found.right["pools later"][:, ::-1]}
    title = figures.comparisons({"digits": replace(found, right=alike)}, ["RED", "pools later"]).layout.title.text
    assert "not told from “" in " ".join(re.sub("<.*?>", " ", title).split())
    level = dict.fromkeys(found.right, found.right["naive"]) | {"RED": found.right["naive"][:, ::-1]}
    title = figures.comparisons({"digits": replace(found, right=level)}).layout.title.text
    assert title.startswith("<b>Most accurate at one peak, in equal seconds: on digits no one</b>")
    told = re.sub("<.*?>", " ", drawn.layout.yaxis.ticktext[0])
    assert "18.8 KiB, 3 seeds" in told and "120 seconds" in told
    assert len(figures.comparisons({"digits": found}).data) == 3
    with pytest.raises(ValueError, match="no comparison has an arm 'KD'; there are RED, pools later"):
        figures.comparisons({"digits": found}, ["KD"])
    with pytest.raises(ValueError, match="one reference"):
        figures.comparisons({"a": found, "b": replace(found, reference="RED")})


def test_who_ends_level_on_validation_is_named_too(found: Comparison) -> None:
    """To the digit that is shown: 88.04 and 87.96 are both 88.0 %."""

    def title(**ends: float) -> str:
        lasts = found.curves["arm"].map(lambda arm: ends.get(arm.replace(" ", "_"), 50.0))
        drawn = figures.comparison_curves(replace(found, curves=found.curves.assign(accuracy=lasts)))
        return figures.headline(drawn).replace("\u00a0", " ")

    assert title(RED=88.0).startswith("On validation RED ends highest within")
    both = title(RED=88.04, naive=87.96)
    assert " and " in both and "RED" in both and "naive" in both and "end highest" in both and "88.0 %" in both
    three = title(RED=88.0, naive=88.0, pools_later=88.0)
    assert three.startswith("On validation no one alone ends highest within") and "3 of 4 reach 88.0 %" in three


def test_curves_begin_when_the_teacher_is_paid_and_names_do_not_overlap(found: Comparison) -> None:
    drawn = figures.comparison_curves(found)
    lines = [trace for trace in drawn.data if trace.mode == "lines"]
    assert [trace.line.dash for trace in lines] == ["dot", "solid", "dot", "solid"]
    names = drawn.layout.annotations
    bottom, top = drawn.layout.yaxis.range
    heights = sorted(note.y for note in names)
    assert len(names) == 4 and min(np.diff(heights)) >= 0.99 * (top - bottom) / 18
    assert drawn.layout.title.text.startswith("<b>On validation pools later")
