"""Trade-offs: front, budget and words of points made by hand; what each reader makes of what lies on disk."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import redistill_lib as rd
from redistill_lib.comparison import Comparison
from redistill_lib.identity import network_identity
from redistill_lib.models.saved import save_tensors
from redistill_lib.results import interval
from redistill_lib.shipped import measured
from redistill_lib.sizes import short_size
from redistill_lib.tradeoffs import Tradeoffs, call, details, lesson, read_tradeoffs
from redistill_lib.tradeoffs.details import inputs_of, maps_of, network_of, plans_of, profile_of
from redistill_lib.tradeoffs.readers import _USUAL, curves_of, of_table

KB, USUAL, LATE = 1024, "resnet18-1-21222", "late with RED + KD from the teacher"


def made(*points: tuple[str, int, float, float], **more: Any) -> Tradeoffs:
    """Points by name, peak in KB, score and half interval."""
    usual = _USUAL | {"data": "cluttered", "model": "resnet18-4-11221", "method": "student", "seeds": 3}
    usual |= {"channels": 1, "image_size": 40}
    rows = [usual | {"name": n, "peak_bytes": p * KB, "score": s, "half": h} | more for n, p, s, h in points]
    return Tradeoffs.of(rows, [pd.DataFrame() for _ in rows])


@pytest.fixture
def four() -> Tradeoffs:
    """b is beaten by a, which needs less and scores more; d beats all in score."""
    return made(("a", 4, 80.0, 1.0), ("b", 8, 79.0, 1.5), ("c", 2, 70.0, 0.5), ("d", 16, 90.0, math.nan))


def test_the_front_is_what_nothing_beats(four: Tradeoffs) -> None:
    assert four.front()["name"].tolist() == ["c", "a", "d"]
    drawn = made(("a", 4, 8.0, 1.0), ("b", 8, 7.0, 1.0), ("c", 16, 9.0, 1.0), metric="FID")
    assert drawn.lower and drawn.front()["name"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("budget", "dtype", "best"),
    [("8KB", "fp32", "a"), ("7.9KB", "fp32", "a"), ("3KB", "fp32", "c"), (2 * KB, "int8", "a"), ("4KB", "int8", "d"),
     ("8KB", "fp16", "d"), ("1KB", "fp32", None)],
)  # fmt: skip
def test_the_best_within_a_budget(four: Tradeoffs, budget: int | str, dtype: Any, best: str | None) -> None:
    """In int8 d needs 16 / 4 KiB."""
    found = four.best(budget, dtype)
    assert (None if found is None else found["name"]) == best


def test_of_equals_the_smaller_is_best() -> None:
    assert made(("a", 8, 80.0, 1.0), ("b", 4, 80.0, 1.0)).best("8KB")["name"] == "b"  # type: ignore[index]


def test_headlines(four: Tradeoffs) -> None:
    assert four.headline("8KB") == (
        "Within 8 KiB (fp32) “a” does best on cluttered: 80.0 ± 1.0 %, and the interval of “b” reaches into its own; "
        "1 of 4 needs more"
    )
    assert four.headline("4KB", "int8") == "Within 4 KiB (int8) “d” does best on cluttered: 90.0 %; all 4 fit"
    assert four.headline("1KB") == "Nothing fits 1 KiB (fp32) on cluttered: “c” needs 2 KiB"
    front = "On cluttered, 3 of 4 are on the front, from “c” (70.0 ± 0.5 % in 2 KiB) to “d” (90.0 % in 16 KiB)"
    assert four.headline() == front and repr(four) == f"Tradeoffs({front})"
    assert made(("a", 8, 0.5, 0.01), metric="KID").headline("8KB") == (
        "Within 8 KiB (fp32) “a” does best on cluttered: KID 0.50 ± 0.01; all 1 fit"
    )


def test_an_interval_that_ends_below_is_no_rival(four: Tradeoffs) -> None:
    """80 − 1 is above 70 + 0.5; 79 + 1.5 reaches it."""
    assert four.rivals("8KB") == ["b"] and four.rivals("4KB") == []


def test_budgets_go_from_nothing_to_all(four: Tradeoffs) -> None:
    assert four.budgets() == [1.5 * KB, 2 * KB, 3 * KB, 4 * KB, 6 * KB, 8 * KB, 12 * KB, 16 * KB, 24 * KB]
    assert four.middle_budget() == 6 * KB  # the median of 2, 4, 8 and 16
    assert four.best(four.budgets()[0]) is None and four.fits(four.budgets()[-1]).all()


def test_panels_are_never_mixed(four: Tradeoffs) -> None:
    other = made(("e", 1, 99.0, 1.0), data="digits", source="published")
    both = Tradeoffs(pd.concat([other.frame, four.frame], ignore_index=True), four.curves)
    assert both.panels == ("cluttered", "digits")
    assert both.panel("digits").headline("1KB").startswith("Within 1 KiB (fp32) “e”")
    with pytest.raises(ValueError, match="cluttered and digits cannot be compared"):
        both.front()
    with pytest.raises(ValueError, match=r"no points of 'digit'; .* did you mean 'digits'"):
        both.panel("digit")
    assert both.shown(False).panels == ("cluttered",)


def test_budgets_of_one_data_set_are_panels_of_their_own(four: Tradeoffs) -> None:
    longer = four.frame.assign(budget="240 seconds", score=99.0)
    curves = pd.DataFrame({"data": "cluttered", "name": "a", "seed": 0, "seconds": [1.0], "accuracy": [50.0]})
    found = Tradeoffs.of(
        [*four.frame.assign(budget="60 seconds").to_dict("records"), *longer.to_dict("records")],
        [curves.copy() for _ in range(2 * len(longer))],
    )
    assert found.panels == ("cluttered, 60 seconds", "cluttered, 240 seconds")
    first, second = (found.panel(name) for name in found.panels)
    assert [panel.panels for panel in (first, second, first.shown(False))] == [(found.panels[k],) for k in (0, 1, 0)]
    assert first.panel(found.panels[0]) is first
    assert first.frame["name"].tolist() == second.frame["name"].tolist() == four.frame["name"].tolist()
    assert {*second.curves["budget"]} == {"240 seconds"} and len(second.curves) == len(longer)
    with pytest.raises(ValueError, match="did you mean 'cluttered, "):
        found.panel("cluttered, 6 seconds")


def test_published_points_are_not_ranked_beside_measured_ones() -> None:
    rows = [made(("ours", 8, 80.0, 1.0)), made(("theirs", 4, 99.0, math.nan), source="published")]
    both = Tradeoffs(pd.concat([part.frame for part in rows], ignore_index=True), rows[0].curves)
    assert both.best("8KB")["name"] == "ours" and both.front()["name"].tolist() == ["ours"]  # type: ignore[index]
    assert both.best("4KB") is None and "all 1 fit" in both.headline("8KB")


def test_names_are_told_apart() -> None:
    """By plan where that differs, by width where that does, and by number where nothing does."""
    usual = _USUAL | {"data": "cluttered", "method": "kd", "seeds": 1, "peak_bytes": 1.0, "score": 1.0, "name": "KD"}
    rows = [usual | {"model": f"resnet18-{plan}", "width": w} for plan, w in (("2-21122", 1.0), ("4-11221", 1.0))]
    rows += [rows[1] | {"width": 0.5}, rows[1]]
    found = Tradeoffs.of(rows, [pd.DataFrame() for _ in rows]).frame["name"].tolist()
    assert found == ["KD 2-21122", "KD 4-11221 ×1", "KD 4-11221 ×0.5", "KD 4-11221 ×1 (2)"]


def test_what_is_no_point_or_dtype_is_told(four: Tradeoffs) -> None:
    with pytest.raises(ValueError, match="there is no point 'dd'"):
        four.row("dd")
    for asked in (four.need, four.budgets, four.middle_budget, lambda dtype: four.best("8KB", dtype)):
        with pytest.raises(ValueError, match="dtype='int4' is not"):
            asked("int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not an amount of memory"):
        four.best("much")


def test_sizes_read_as_a_data_sheet() -> None:
    assert [short_size(n) for n in (512 * KB, 1536, 3 * 2**19, 2**20)] == ["512 KiB", "1.5 KiB", "1.5 MiB", "1 MiB"]


# ------------------------------------------------------------------------------------------------------- readers


def test_a_comparison_keeps_its_own_numbers() -> None:
    found, panel = Comparison.load(measured("cifar10")), read_tradeoffs(measured("cifar10") / "comparison.json")
    assert panel.panels == ("cifar10",)
    table = found.table.set_index("arm")
    for _, row in panel.frame[panel.frame["name"] != "teacher"].iterrows():
        assert row["score"] == table["accuracy"][row["name"]]
        assert row["half"] == pytest.approx(table["high"][row["name"]] - row["score"])
        assert row["peak_bytes"] / KB == table["peak (KiB)"][row["name"]]
    assert panel.row("teacher")["method"] == "teacher" and set(panel.frame["convention"]) == {"fused"}
    assert lesson(panel.row(LATE)) == "RED + KD from the teacher"
    assert panel.curves["name"].nunique() == len(panel.frame) and not panel.frame["run"].any()


def sweep() -> pd.DataFrame:
    """A table of notebook 04's records at two factors and two seeds."""
    usual = {
        "TEACHER": "resnet18-1-21222",
        "WIDTH": 0.25,
        "DATA": "cluttered",
        "parameters": 100,
        "mult-adds (M)": 2.0,
    }
    rows = [
        usual | {"FACTOR": factor, "SEED": seed, "JOBS": 1 + seed, "arm": arm, "point": f"p{factor}{seed}"}
        | {"accuracy": score + seed, "high": score + seed + 0.3, "peak (KiB)": 75.0 / factor}
        for factor in (2, 4) for seed in (0, 1) for arm, score in (("naive", 90.0), ("RED blocks + KD", 92.0))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_sweep_is_averaged_over_its_seeds(tmp_path: Path) -> None:
    sweep().to_csv(tmp_path / "table.csv", index=False)
    frame = read_tradeoffs(tmp_path).frame
    names = ["naive 2-21221", "RED blocks + KD 2-21221", "naive 4-11221", "RED blocks + KD 4-11221"]
    assert frame["name"].tolist() == names
    assert frame["model"].tolist() == [rd.student_name("resnet18-1-21222", factor) for factor in (2, 2, 4, 4)]
    row = frame.iloc[3]
    assert (row["method"], row["score"], row["seeds"], row["width"]) == ("red-blocks+kd", 92.5, 2, 0.25)
    assert row["half"] == interval([92.0, 93.0]).half and row["peak_bytes"] == 18.75 * KB
    assert row["multiply_adds"] == 2e6 and row["teacher"] == "resnet18-1-21222 ×0.25"


def test_one_seed_of_a_sweep_has_the_interval_of_its_row() -> None:
    one = [row for row, _ in of_table(sweep()[lambda table: table["SEED"] == 0], "name")]
    assert [row["half"] for row in one] == pytest.approx([0.3] * 4) and {row["seeds"] for row in one} == {1}


def test_a_sweep_of_comparisons_is_what_they_found(tmp_path: Path) -> None:
    """As `by_seed` writes it for each point: teacher and naive student come back in every one, and count once."""
    found = Comparison.load(measured("cifar10"))
    points, arms = [], ["teacher", "naive", "RED + KD from the teacher", "narrow"]
    for method in ("kd(temperature=4.0)", "red(alpha=5.0)+kd(temperature=4.0)"):
        rows = found.by_seed[found.by_seed["arm"].isin(arms)]
        for seed, part in rows.groupby("seed"):
            points.append(part.assign(SEED=seed, METHODS=method, FACTOR=4, TEACHER=USUAL, WIDTH=0.25, DATA="cifar10"))
    table = pd.concat(points)
    alike = {name: f"{name}_recorded" for name in table if name != name.upper() and name.upper() in table}
    assert [*alike] == ["seed", "methods", "width"]  # columns as a sweep's table has them
    table.rename(columns=alike).to_csv(tmp_path / "table.csv", index=False)
    frame = read_tradeoffs(tmp_path).frame.set_index("name")
    assert sorted(frame.index) == sorted(["teacher", "naive", "RED + KD from the teacher", "narrow"])
    for arm in arms:
        assert frame.loc[arm, "score"] == pytest.approx(found.accuracy(arm).value) and frame.loc[arm, "seeds"] == 3
    assert frame["method"].to_dict() == {
        "teacher": "teacher", "naive": "student", "RED + KD from the teacher": "red+kd", "narrow": "student"
    }  # fmt: skip
    assert frame.loc["RED + KD from the teacher", "init"] == "teacher" and frame.loc["narrow", "width"] == 0.125


def test_arms_named_by_their_methods_are_called_as_elsewhere() -> None:
    table = sweep().assign(arm="red(alpha=5.0)+kd(temperature=4.0)", methods="red+kd", model="resnet18-4-11221")
    [row, *_] = [row for row, _ in of_table(table, "name")]
    assert (row["name"], row["method"]) == ("RED + KD", "red+kd")


def test_runs_of_a_sweep_give_curves(tmp_path: Path) -> None:
    path = store(tmp_path / "runs", "a", 0.8, 0)
    table = sweep().iloc[:1].assign(run=path.name)
    table.to_csv(tmp_path / "table.csv", index=False)
    found = read_tradeoffs(tmp_path / "table.csv", runs=tmp_path / "runs")
    assert found.frame["run"].tolist() == [str(path)] and found.curves["accuracy"].tolist() == [50.0, 80.0]
    assert not read_tradeoffs(tmp_path / "table.csv", runs=tmp_path).frame["run"].any()
    curves_of(table, tmp_path / "runs").to_csv(tmp_path / "curves.csv", index=False)
    far = read_tradeoffs(tmp_path / "table.csv", runs="elsewhere")
    assert far.panel("cluttered").curves["seconds"].tolist() == [2.0, 5.0] and not far.frame["run"].any()


def test_weights_bring_their_teacher(tmp_path: Path) -> None:
    path = store(tmp_path, "a", 0.8, 0, teachers=[{"weights": "1"}], methods="red")
    table = sweep().iloc[:1].assign(run="a")
    assert [row["teacher"] for row, _ in of_table(table, "name", tmp_path)] == [f"{USUAL} ×0.25"]
    store(tmp_path, "teacher", 0.9, 0)
    [row] = [row for row, _ in of_table(table, "name", tmp_path)]
    assert (row["run"], row["teacher_run"]) == (str(path), str(tmp_path / "teacher"))


def test_a_sweep_over_methods_without_arms(tmp_path: Path) -> None:
    table = pd.DataFrame({"METHODS": ["red+kd", "none"], "MODEL": "my_net:make", "test_accuracy": [0.9, 0.8]})
    table.assign(peak_bytes=4 * KB).to_csv(tmp_path / "table.csv", index=False)
    frame = read_tradeoffs(tmp_path).frame
    assert frame["method"].tolist() == ["red+kd", "student"] and frame["score"].tolist() == [90.0, 80.0]
    assert set(frame["data"]) == {tmp_path.name} and set(frame["model"]) == {"my_net:make"}


def test_a_row_without_a_peak_or_a_score_is_no_point(tmp_path: Path) -> None:
    """Such as of a point that trained something else, or whose run failed."""
    rows = pd.DataFrame(
        {"METHODS": ["red", "red", "red", "kd", "at"], "SEED": [0, 1, 2, 0, 0], "MODEL": "my_net:make"}
    )
    rows["test_accuracy"], rows["peak_bytes"] = [0.9, 0.5, None, 0.7, "none"], [None, 4 * KB, 4 * KB, 0, 4 * KB]
    rows.assign(IMAGE_SIZE="usual").to_csv(tmp_path / "table.csv", index=False)
    frame = read_tradeoffs(tmp_path).frame
    assert frame[["method", "score", "seeds", "peak_bytes"]].to_numpy().tolist() == [["red", 50.0, 1, 4 * KB]]
    assert frame["image_size"].isna().all()


def test_another_table_of_curves_beside_a_sweep_is_not_read(tmp_path: Path) -> None:
    sweep().assign(run="r").to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "curves.csv").write_text("x,y\n1,2\n")
    assert read_tradeoffs(tmp_path).curves.empty


def test_scores_of_drawn_images_make_two_panels() -> None:
    found = read_tradeoffs(measured("diffusion"))
    table = pd.read_csv(measured("diffusion") / "table.csv")
    assert found.panels == ("digits: FID", "digits: KID")
    fid = found.panel("digits: FID").row("RED + MSE")
    assert fid["score"] == pytest.approx(table.loc[table["role"] == "RED + MSE", "fid"].mean())
    assert (fid["seeds"], fid["model"], fid["image_size"]) == (3, "unet-2-21", 16)


def store(folder: Path, name: str, accuracy: float, seed: int, **params: Any) -> Path:
    """A run as its record tells, without weights."""
    path = folder / name
    path.mkdir(parents=True)
    model = {"name": "resnet18-4-11221", "width": 0.25, "in_channels": 1, "num_classes": 10}
    data = {"name": "cluttered", "image_size": 40}
    told = {"model": model, "data": data, "seed": seed, "recipe": {"epochs": 2}} | params
    metrics = {"test_accuracy": accuracy, "peak_bytes": 19200, "parameters": 1000}
    record = {"params": told, "status": "complete", "metrics": metrics, "version": "0.1.0", "code": "x"}
    teachers = {"environment": {"teacher_runs": ["teacher"]}} if "teachers" in params else {}
    (path / "run.json").write_text(json.dumps(record | teachers))
    rows = {"epoch": [1, 2], "validation_accuracy": [0.5, accuracy], "processor_seconds": [2.0, 3.0], "seconds": 9.0}
    pd.DataFrame(rows).to_csv(path / "history.csv", index=False)
    return path


def test_a_run_store(tmp_path: Path) -> None:
    """Seeds make one point; the run that others name is their teacher; curves add up the seconds of their epochs."""
    taught = {"methods": "kd+red", "teachers": [{"weights": "1"}]}
    usual = {"name": "resnet18-1-21222", "width": 0.25, "in_channels": 1, "num_classes": 10}
    store(tmp_path, "teacher", 0.95, 0, model=usual)
    store(tmp_path, "a", 0.80, 0, **taught)
    store(tmp_path, "b", 0.84, 1, **taught)
    look = store(tmp_path, "c", 0.70, 0)
    (look / "look.json").write_text('{"multiply_adds": 7.0}')
    found = read_tradeoffs(tmp_path)
    frame = found.frame.set_index("method")
    assert sorted(frame.index) == ["red+kd", "student", "teacher"]
    red = frame.loc["red+kd"]
    assert red["score"] == pytest.approx(82.0) and red["seeds"] == 2
    assert red["half"] == pytest.approx(interval([80.0, 84.0]).half)
    assert red["teacher"] == "resnet18-1-21222 ×0.25" and red["teacher_run"] == str(tmp_path / "teacher")
    assert (red["run"], red["channels"], red["image_size"]) == (str(tmp_path / "a"), 1, 40)
    assert frame.loc["student", "multiply_adds"] == 7.0 and math.isnan(frame.loc["teacher", "multiply_adds"])
    curve = found.curves[(found.curves["name"] == red["name"]) & (found.curves["seed"] == 1)]
    assert curve["seconds"].tolist() == [2.0, 5.0] and curve["accuracy"].tolist() == [50.0, 84.0]
    assert plans_of(found.row(red["name"])) == (
        {"teacher": "resnet18-1-21222", "red+kd": "resnet18-4-11221"}, 40,
    )  # fmt: skip
    assert call(red.to_dict() | {"method": "red+kd"}).endswith(f'model = rd.load_model("{tmp_path / "a"}")')


def test_ones_own_teachers_and_seeds_in_a_run_store(tmp_path: Path) -> None:
    """What they taught names the weights that they ended with. All are of one class, with other weights per seed."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        trained = [torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)) for _ in range(2)]
        weights = [network_identity(network)["weights"] for network in trained]
        own = [{"name": "Net", "structure": kind, "weights": f"given{seed}"} for kind in ("late", "early", "early")]
        taught = {"methods": "kd", "teachers": [{"structure": "frozen", "weights": weights[0]}]}
        paths = [
            store(tmp_path, f"{name}{seed}", score + seed / 100, seed, model=model, **more)
            for name, score, model, more in zip("tna", (0.9, 0.7, 0.8), own, ({}, {}, taught), strict=True)
        ]
        for path, network in zip(paths, trained, strict=False):
            save_tensors(path / "model.safetensors", network.state_dict())
    frame = read_tradeoffs(tmp_path).frame.set_index("method")
    assert frame["score"].to_dict() == pytest.approx({"teacher": 90.5, "student": 70.5, "kd": 80.5})
    assert set(frame["seeds"]) == {2} and set(frame["image_size"]) == {40}
    assert frame["teacher_run"].to_dict() == {"teacher": "", "student": "", "kd": str(tmp_path / "t0")}


def test_what_is_not_alike_is_not_averaged(tmp_path: Path) -> None:
    """Data of one's own, which only their images tell apart, and lessons by other networks; but for weights."""
    for name, seed, images in (("a", 0, "aa"), ("b", 0, "bb"), ("c", 1, "bb")):
        store(tmp_path / "data", name, 0.5 + 0.1 * seed, seed, data={}, images=images)
    found = read_tradeoffs(tmp_path / "data")
    assert found.panels == ("own data aa", "own data bb")
    assert [(row["score"], row["seeds"]) for _, row in found.frame.iterrows()] == [(50.0, 1), (55.0, 2)]
    assert found.panel("own data bb").curves["seed"].tolist() == [0, 0, 1, 1]
    for name, seed, teacher in (("a", 0, "x1"), ("b", 0, "y1"), ("c", 1, "y2")):
        taught = [{"structure": teacher[0], "weights": teacher}]
        store(tmp_path / "taught", name, 0.5 + 0.1 * seed, seed, methods="kd", teachers=taught)
    assert read_tradeoffs(tmp_path / "taught").frame["seeds"].tolist() == [1, 2]


def test_a_folder_named_as_built_in_data_is_not_them(tmp_path: Path) -> None:
    rows = [sweep()[:1].assign(DATA=name) for name in ("digits", "./digits", "/far/pngs", "hf:a/stl10")]
    pd.concat(rows).to_csv(tmp_path / "table.csv", index=False)
    assert read_tradeoffs(tmp_path).panels == ("digits", "./digits", "pngs", "stl10")
    store(tmp_path / "runs", "a", 0.8, 0, data={"name": "/far/pngs", "image_size": 40})
    assert read_tradeoffs(tmp_path / "runs").panels == ("pngs",)


def test_runs_of_which_less_is_known(tmp_path: Path) -> None:
    """A run without a peak is no point; without the rest it is one."""
    known = {"a": {"peak_bytes": 0}, "b": {"peak_bytes": None}, "c": {"test_accuracy": "none"}, "d": {}}
    for name, metrics in known.items():
        path = store(tmp_path, name, 0.5, ord(name))
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"metrics": record["metrics"] | metrics}))
    (path / "look.json").write_text("[1]")
    del record["metrics"]["parameters"]
    (path / "run.json").write_text(json.dumps(record))
    [row] = read_tradeoffs(tmp_path).frame.to_dict("records")
    assert (row["run"], row["score"], row["seeds"]) == (str(tmp_path / "d"), 50.0, 1)
    assert math.isnan(row["parameters"]) and math.isnan(row["multiply_adds"])


def test_a_teacher_without_a_run_is_nobody(tmp_path: Path) -> None:
    """Which was a network in memory, or whose run was deleted."""
    store(tmp_path, "a", 0.8, 0, teachers=[{"weights": "1"}], methods="kd")
    path = store(tmp_path, "b", 0.7, 0, teachers=[{"weights": "2"}], methods="red")
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"environment": {"teacher_runs": []}}))
    frame = read_tradeoffs(tmp_path).frame
    assert frame["method"].tolist() == ["kd", "red"] and frame["teacher"].tolist() == ["", ""]
    for _, row in frame.iterrows():
        with pytest.raises(ValueError, match="do not say who taught it"):
            plans_of(row)


def test_runs_of_ones_own_networks_and_data_are_points_too(tmp_path: Path) -> None:
    """Whose record tells neither names nor sizes."""
    store(tmp_path, "a", 0.8, 0, model={"name": "Net", "structure": "1"}, data="0123")
    found = read_tradeoffs(tmp_path)
    row = found.frame.iloc[0]
    assert (row["data"], row["model"], row["width"]) == ("own data", "Net", 1.0)
    assert "load_model" in call(row) and call(row).endswith(", network)")
    with pytest.raises(ValueError, match=r"Net is a network of your own, .*: rd\.profile_memory"):
        inputs_of(row)
    store(tmp_path / "sized", "b", 0.8, 0, model={"name": "Net", "in_channels": 1}, teachers=[{"weights": "1"}])
    with pytest.raises(ValueError, match="Net"):
        profile_of(read_tradeoffs(tmp_path / "sized").frame.iloc[0])


def test_the_authors_points_on_request() -> None:
    assert "stl10" not in read_tradeoffs().panels
    theirs = read_tradeoffs(published=True).panel("stl10")
    row = theirs.row("RED + KD resnext18 (published)")
    assert (row["score"], row["peak_bytes"], row["convention"], row["seeds"]) == (84.11, 0.75 * 2**20, "paper", 1)
    assert theirs.frame["name"].is_unique and (theirs.frame["source"] == "published").all()


def test_what_holds_no_results_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="results='nowhere' is not there; give a sweep's folder"):
        read_tradeoffs("nowhere")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no results with a peak and a score"):
        read_tradeoffs(tmp_path)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"empty.csv cannot be read as a table: No columns"):
        read_tradeoffs(tmp_path)


# ----------------------------------------------------------------------------------------------- behind a point


def test_every_point_of_ours_is_built_with_its_peak() -> None:
    """Networks, blocks and images as recorded: the profile has the recorded peak, and in int8 a quarter."""
    found = read_tradeoffs()
    for name in (LATE, "small", "narrow"):
        row = found.panel("cifar10").row(name)
        assert profile_of(row).peak_bytes == row["peak_bytes"] == 4 * profile_of(row, "int8").peak_bytes
        assert profile_of(row).flops // 2 == row["multiply_adds"]
        model, _ = network_of(row)
        assert sum(weight.numel() for weight in model.parameters()) == row["parameters"]
    drawn = found.panel("digits: FID").row("MSE")
    assert profile_of(drawn).peak_bytes == drawn["peak_bytes"]


def test_a_network_that_is_not_the_recorded_one_is_refused(four: Tradeoffs) -> None:
    with pytest.raises(ValueError, match=r"built here it needs 75.0 KiB, not the recorded 4.0 KiB"):
        profile_of(four.row("a"))
    other = made(("a", 4, 80.0, 1.0), data="faces", channels=math.nan)
    with pytest.raises(ValueError, match="the size of the images of faces is not kept"):
        inputs_of(other.row("a"))
    with pytest.raises(ValueError, match="weights of this network and its teacher are not at hand"):
        maps_of(four.row("a"))
    shared, (x,) = network_of(made(("a", 4, 80.0, 1.0), method="shared+kd").row("a"))  # has no blocks of RED
    assert shared(x).shape == (1, 10)
    with pytest.raises(ValueError, match="do not say who taught it"):
        network_of(made(("a", 4, 80.0, 1.0), method="red").row("a"))


def test_loading_and_profiling_leave_random_numbers_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    profile_of(read_tradeoffs().panel("cifar10").row("naive"))
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("name", ["small", "naive", "from the teacher", LATE, "narrow"])
def test_the_call_makes_what_the_point_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed with trainings that only note what they are asked for, as the real ones would bind it."""
    import inspect

    asked: list[tuple[str, dict[str, Any]]] = []

    def noting(function: str) -> Any:
        real = inspect.signature(getattr(rd, function))

        def note(*given: Any, **named: Any) -> str:
            asked.append((function, dict(real.bind(*given, **named).arguments)))
            return function

        return note

    functions = ("load_data", "train_classifier", "distill_classifier", "load_model")
    for function in functions:
        monkeypatch.setattr(rd, function, noting(function))
    row = read_tradeoffs().panel("cifar10").row(name)
    exec(call(row), {})
    made_, what = asked[-2]
    assert what.get("model", what.get("student")) == row["model"] and what["width"] == row["width"]
    assert (made_ == "distill_classifier") == bool(row["init"] or row["method"] != "student")
    if made_ == "distill_classifier":
        assert what["recipe"].init == "teacher"
        assert what["methods"] == ("red+kd" if "RED" in name else "kd(alpha=0.0)")
        assert asked[1][1]["model"] == "resnet18-1-21222" and asked[1][1]["width"] == 0.25
    assert asked[0][1].get("image_size") == (24 if name == "small" else 32)


OWN = """
from torch import nn
def make():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(), nn.Linear(400, 10))
"""


@pytest.fixture
def own_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep's folder elsewhere than its file, beside which the module lies.

    Its peak is the first layer's: 4 · 20² bytes go in, and four times as much, or at stride 2 as much, comes out.
    """
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "net_of_ones_own.py").write_text(OWN)
    folder = tmp_path / "runs" / "sweeps" / "mine"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"file": str(tmp_path / "mine.yaml"), "points": []}))
    usual = {"TEACHER": "net_of_ones_own:make", "FACTOR": 2, "SEED": 3, "model": "Sequential", "image": "1×20×20"}
    rows = {"arm": ["teacher", "naive", "kd"], "methods": ["", "", "kd"], "run": ["t", "n", "k"]}
    table = pd.DataFrame(rows | {"accuracy": [90.0, 70.0, 80.0], "peak (KiB)": [8000 / KB, 3200 / KB, 3200 / KB]})
    table.assign(**usual, DATA="cluttered").to_csv(folder / "table.csv", index=False)
    yield folder
    sys.modules.pop("net_of_ones_own", None)


def test_a_network_of_ones_own_is_built_where_its_module_is(own_sweep: Path) -> None:
    found = read_tradeoffs(own_sweep)
    for _, row in found.frame.iterrows():
        assert profile_of(row).peak_bytes == row["peak_bytes"]
    with pytest.raises(ValueError, match=r"make is a network of your own, whose name tells no plan"):
        plans_of(found.row("KD at ×2"))
    (own_sweep / "manifest.json").unlink()  # and so nobody knows where the module is
    row = read_tradeoffs(own_sweep).row("naive at ×2").to_dict() | {"teacher": "net_that_is_not_there:make ×1"}
    with pytest.raises(ValueError, match=r"Sequential cannot be built here by .*there is no module net_that_is_not"):
        profile_of(row)


def test_the_call_of_a_network_of_ones_own_runs(own_sweep: Path) -> None:
    """For real, but with few images and a single step; what it trains is what is behind the point from then on."""
    data, runs = rd.load_data("cluttered", image_size=20, train_size=40), own_sweep.parents[1]
    brief = {"recipe": rd.Recipe(epochs=None, steps=1), "options": rd.RunOptions(runs)}
    kept = {name: getattr(rd, name) for name in ("load_model", "resolve_model", "student_of")}
    kept |= {name: partial(getattr(rd, name), **brief) for name in ("train_classifier", "distill_classifier")}
    short = types.SimpleNamespace(**kept, load_data=lambda name, image_size: data)
    names = {"teacher": "t", "student": "n", "kd": "k"}
    for _, row in read_tradeoffs(own_sweep).frame.iterrows():
        scope: dict[str, Any] = {"rd": short}
        exec(call(row).replace("import redistill_lib as rd", ""), scope)
        strides = [layer.stride[0] for layer in scope["model"] if isinstance(layer, torch.nn.Conv2d)]
        assert strides == ([1, 2] if row["method"] == "teacher" else [2, 1])
        run = scope["run"]
        assert run.params["seed"] == 3 and run.params.get("methods") == ("kd" if row["method"] == "kd" else None)
        run.path.rename(runs / names[row["method"]])
        if row["method"] == "teacher":  # which the other calls train again
            found = read_tradeoffs(own_sweep, runs=runs).row("teacher")
            exec(call(found), scope)
            assert torch.equal(scope["model"][0].weight, load_file(runs / "t" / "model.safetensors")["0.weight"])
    row = read_tradeoffs(own_sweep, runs=runs).row("KD at ×2")
    assert row["teacher_run"] and maps_of(row, 1).label == "kd"


def test_networks_of_ones_own_are_told_apart_by_their_factor() -> None:
    runs = {"model": "Sequential", "arm": ["teacher", "naive", "naive"], "run": ["a", "b", "c"], "FACTOR": [2, 2, 4]}
    table = pd.DataFrame(runs | {"accuracy": [90.0, 80.0, 70.0], "peak (KiB)": [64.0, 32.0, 8.0]})
    assert [row["name"] for row, _ in of_table(table, "mine")] == ["teacher", "naive at ×2", "naive at ×4"]


def test_two_seeds_that_agree_by_chance_are_no_certainty() -> None:
    """Both 80 %: over seeds ± 0, over test images ± 1.5. Seeds that differ say more: 2 ± 12.7 · 2 / √2."""
    runs = {"model": "resnet18-4-11221", "arm": ["red", "red", "kd", "kd"], "run": ["a", "b", "c", "d"]}
    table = pd.DataFrame(runs | {"accuracy": [80.0, 80.0, 78.0, 82.0], "peak (KiB)": 8.0}).assign(SEED=[0, 1, 0, 1])
    found = [row["half"] for row, _ in of_table(table.assign(high=table["accuracy"] + 1.5), "mine")]
    assert found == pytest.approx([1.5, 25.41], rel=1e-3)


def test_a_peak_that_was_rounded_fits_where_it_fits(tmp_path: Path) -> None:
    """24000 bytes are 23.4375 KiB, which notebooks record with three decimals. Whole bytes beside it count first."""
    table = sweep().assign(**{"peak (KiB)": 23.438, "mult-adds (M)": 1.0000001})
    table.to_csv(tmp_path / "table.csv", index=False)
    panel = read_tradeoffs(tmp_path).panel("cluttered")
    assert panel.best("24000B") is not None and panel.best("23999B") is None
    assert set(panel.frame["peak_bytes"]) == {24000} and set(panel.frame["multiply_adds"]) == {1_000_000}
    table.assign(peak_bytes=24001).to_csv(tmp_path / "table.csv", index=False)
    assert set(read_tradeoffs(tmp_path).frame["peak_bytes"]) == {24001}


def test_maps_are_of_the_folder_that_a_run_was_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "shapes"
    images.mkdir()
    asked = list[str]()

    def load(name: str, **_: Any) -> Any:
        asked.append(name)
        raise ValueError("seen")

    monkeypatch.setattr(details, "load_data", load)
    monkeypatch.setattr(details, "network_of", lambda row: (torch.nn.Identity(), (torch.zeros(1, 1, 8, 8),)))
    monkeypatch.setattr(details, "load_model", lambda *_: torch.nn.Identity())
    run = store(tmp_path / "runs", "a", 0.8, 0, data={"name": str(images), "image_size": 8})
    row = {"run": str(run), "teacher_run": str(run), "data": "shapes", "teacher": f"{USUAL} ×1"}
    with pytest.raises(ValueError, match="seen"):
        maps_of(row)
    assert asked == [str(images)]
    images.rmdir()
    with pytest.raises(ValueError, match=r"maps need an image, and .*/shapes is there no more"):
        maps_of(row)
