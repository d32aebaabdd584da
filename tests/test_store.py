"""`redistill runs`: what is listed, chosen, compared, and what deleting leaves."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from redistill_lib.cli import main
from redistill_lib.identity import network_identity
from redistill_lib.models.saved import save_tensors
from redistill_lib.runs import Run, load_runs, locked
from redistill_lib.store import delete as deleting
from redistill_lib.store.choose import by_id, ordered, where
from redistill_lib.store.compare import differences
from redistill_lib.store.tables import listed_runs, run_tables
from redistill_lib.sweep.manifest import PointStatus, write_status

FRAME = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "seed": [0, 2, 10, 2],
        "methods": ["red", None, "red+kd", "KD"],
        "model.width": [0.25, 1, None, 0.5],
        "amsgrad": [True, False, None, True],
    }
)


def save(root: Path, name: str, /, *, environment: Any = None, metrics: Any = None, **params: Any) -> Run:
    run = Run(root / name, params, "complete", metrics=metrics or {}, environment=environment or {})
    return run.save()


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        (["seed<10"], "abd"),
        (["seed >= 2", "methods~kd"], "cd"),
        (["seed=2.0"], "bd"),
        (["seed!=2"], "ac"),
        (["methods=red"], "a"),
        (["methods=kd"], "d"),
        (["methods="], "b"),
        (["methods!="], "acd"),
        (["model.width<=0.5"], "ad"),
        (["amsgrad=true"], "ad"),
        (["id~", "seed==10"], "c"),
        (["seed<0", "seed~1", "seed=1", "seed!=1"], ""),
    ],
)
def test_conditions(conditions: list[str], ids: str) -> None:
    assert "".join(where(FRAME, conditions).id) == ids


@pytest.mark.parametrize(
    ("condition", "error"),
    [
        ("sede=1", "no run here has a column 'sede'; did you mean 'seed'"),
        ("seed", "'seed' is no condition: write a column, one of"),
        ("seed<x", "'seed<x': 'x' is no number, which < compares"),
        ("seed<nan", "'nan' is no number, which < compares"),
        ("seed=<3", "'seed=<3' is no condition"),
        ("seed!==3", "'seed!==3' is no condition"),
        ("seed= >3", "'seed= >3' is no condition"),
    ],
)
def test_conditions_that_say_nothing(condition: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        where(FRAME, [condition])


def test_parameters_of_notebooks_are_no_columns() -> None:
    runs = FRAME.assign(plan=["4-11221", "1-21222", None, "4-11221"])
    for condition, error in (
        ("FACTOR=8", "column 'FACTOR': a network's strides are its plan, here 1-21222, 4-11221; write plan=…"),
        ("WIDTH=0.5", "column 'WIDTH'; did you mean 'model.width'?"),
        ("JOBS=2", "column 'JOBS': it has id, plan, methods, seed, and with --columns all more"),
    ):
        with pytest.raises(ValueError, match=re.escape(error)):
            where(runs, [condition])


def test_orders() -> None:
    assert "".join(ordered(FRAME, "-seed,id").id) == "cbda"  # 10 is more than 2
    assert "".join(ordered(FRAME, "seed,-id").id) == "adbc"
    assert "".join(ordered(FRAME, "-methods").id) == "cadb"  # what lacks one comes last
    assert "".join(ordered(FRAME, "model.width").id) == "adbc"


def test_parts_of_ids() -> None:
    runs = pd.DataFrame({"id": ["net-1f", "net-1f-c0", "net-77"]})
    assert [*by_id(runs, ["77", "net-1f", "77"]).id] == ["net-77", "net-1f"]
    with pytest.raises(ValueError, match=r"'net' is in several ids: net-1f, net-1f-c0, net-77"):
        by_id(runs, ["net"])
    with pytest.raises(ValueError, match="an id is empty"):
        by_id(runs.tail(1), [""])  # as a script has it whose variable is not set
    with pytest.raises(ValueError, match=r"'net-78' is no run here; did you mean 'net-77'"):
        by_id(runs, ["net-78"])


def test_own_networks_are_told_apart(tmp_path: Path) -> None:
    for number, structure in enumerate(("aaaa1111", "bbbb2222")):
        save(tmp_path, f"net{number}", model={"name": "Net", "structure": structure, "plan": f"stem {number}"})
    save(tmp_path, "one", model={"name": "Other", "structure": "cccc3333"})
    save(tmp_path, "built", model={"name": "resnet18-4-11221"})
    runs = listed_runs(tmp_path)
    assert dict(zip(runs.id, runs.network, strict=True)) == {
        "built": "resnet18-4-11221",
        "net0": "Net aaaa",
        "net1": "Net bbbb",
        "one": "Other",
    }
    (table,) = run_tables(runs).values()
    assert [*table.runs.columns[:5]] == ["id", "status", "role", "network", "plan"][: len(table.runs.columns)]
    assert "model.name" not in table.runs


def test_many_columns_are_too_many(tmp_path: Path) -> None:
    for number in range(2):
        odd = {f"odd{k}": number for k in range(20)}
        save(tmp_path, f"r{number}", seed=number, model={"name": "resnet18-4-11221"}, **odd)
    (table,) = run_tables(listed_runs(tmp_path)).values()
    assert [*table.runs.columns] == ["id", "status", "seed"] and set(table.more) == {f"odd{k}" for k in range(20)}
    (whole,) = run_tables(listed_runs(tmp_path), None).values()
    assert len(whole.runs.columns) == 23 and whole.more == ()


def test_differences_of_two_runs(tmp_path: Path) -> None:
    taps = [{"layer": "layer1", "alpha": 1}, {"layer": "layer2", "alpha": 1}]
    first = save(tmp_path, "a", seed=0, terms=taps, data={"name": "digits"}, metrics={"test_accuracy": 0.5})
    other = [taps[0], {"layer": "layer3", "alpha": 1}]
    second = save(tmp_path, "b", seed=0, terms=other, metrics={"test_accuracy": 0.75}, data={"name": "digits"})
    table = differences([first, second])
    assert table.loc["terms.1.layer"].tolist() == ["layer2", "layer3", None]
    assert table.loc["test_accuracy"].tolist() == [0.5, 0.75, 0.25]
    assert [*table.index] == ["terms.1.layer", "test_accuracy"]
    assert differences([first, first]).empty
    third, fourth = (save(tmp_path, name, metrics={"test_loss": math.nan, "fid": 1}) for name in "cd")
    assert differences([third, fourth]).empty  # which fail in the same way
    assert [*differences([third, save(tmp_path, "e", metrics={"test_loss": 0.5, "fid": 1})]).index] == ["test_loss"]


def test_command_lists_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        save(tmp_path, f"run{seed}", seed=seed, data="digits", metrics={"test_accuracy": (seed + 1) / 8})
    assert main(["runs", str(tmp_path), "--where", "seed>0", "--sort", "-test_accuracy", "--columns", "id,seed"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["id", "seed"],
        ["run2", "2"],
        ["run1", "1"],
    ]
    assert main(["runs", str(tmp_path), "--columns", "seed, id,seed", "--sort", "seed"]) == 0
    assert capsys.readouterr().out.split() == ["seed", "id", "0", "run0", "1", "run1", "2", "run2"]
    assert main(["runs", str(tmp_path), "--columns", "seed", "--compare", "run0", "run2"]) == 2
    assert "--columns is for the list" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--compare", "run0", "run2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:2] == [["A:", "run0"], ["B:", "run2"]]
    assert ["seed", "0", "2", "2"] in rows and ["test_accuracy", "0.125", "0.375", "0.250"] in rows and len(rows) == 5
    assert main(["runs", str(tmp_path), "--where", "seed>5"]) == 0
    assert "none of 3 runs below" in capsys.readouterr().out
    assert main(["runs", str(tmp_path), "--compare", "run0"]) == 2
    assert "two runs or more" in capsys.readouterr().err


def test_numbers_of_a_column_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (score, loss) in enumerate(((-41.5, 1.0), (-46.0, 0.91234), (math.nan, 12))):
        save(tmp_path, f"run{seed}", seed=seed, metrics={"score": score, "test_loss": loss})
    assert main(["runs", str(tmp_path), "--columns", "id,score,test_loss"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["run0", "-41.5", "1.0000"], ["run1", "-46.0", "0.9123"], ["run2", "12.0000"]]


def test_deleting_asks(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        save(tmp_path, f"run{seed}", seed=seed)
        command = ["runs", str(tmp_path), "--where", "seed<2", "--delete"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert main(command) == 2 and "add --yes" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--delete"]) == 2 and "never means all" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--yes"]) == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer in ("", "n", "no"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(command) == 1
    assert [*load_runs(tmp_path).id] == ["run0", "run1", "run2"]
    asked = list[str]()
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    assert main(command) == 0
    size = 2 * (tmp_path / "run2" / "run.json").stat().st_size
    assert asked == [f"delete 2 runs, {size / 1024:.1f} KiB? [y/N] "]
    assert [*load_runs(tmp_path).id] == ["run2"] and sorted(p.name for p in tmp_path.iterdir()) == [
        ".index.json",
        "run2",
    ]
    assert main(["runs", str(tmp_path), "--delete", "run2", "--yes"]) == 0 and load_runs(tmp_path).empty


def test_a_run_in_training_and_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, "teacher")
    for name in ("one", "two", "three"):
        save(tmp_path, name, environment={"teacher_runs": ["teacher"]})
    with locked(tmp_path / "one"):
        assert main(["runs", str(tmp_path), "--delete", "one", "teacher", "two", "--yes"]) == 1
        assert (tmp_path / "one" / "run.json").exists()
    out = capsys.readouterr().out
    assert "being trained by process" in out and "deleted 2 of 3" in out
    assert "teacher of three" in out  # the others were to go as well
    assert [*load_runs(tmp_path).id] == ["one", "three"]


def test_a_teacher_that_is_known_by_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that was handed over, of one's own or built-in, has no run in its students' records."""
    torch.manual_seed(0)
    nets = {name: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)) for name in ("mine", "other")}
    for name, net in nets.items():
        save_tensors(save(tmp_path, name).path / "model.safetensors", net.state_dict())
    mine, other = map(network_identity, nets.values())
    save(tmp_path, "student", teachers=[mine])
    save(
        tmp_path, "of both", environment={"teacher_runs": ["other"]}, teachers=[network_identity(nets["other"]), mine]
    )
    save(tmp_path, "of a run", environment={"teacher_runs": ["other"]}, teachers=[other])
    save(tmp_path, "unfinished")
    assert main(["runs", str(tmp_path), "--delete", "mine", "other", "unfinished", "--yes"]) == 0
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert told["mine"].endswith("teacher of of both, student")
    assert told["other"].endswith("teacher of of a run, of both")
    assert "teacher" not in told["unfinished"]


def test_sweeps_that_name_a_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two", "three"):
        save(tmp_path, name)
    for number, runs in enumerate((["one", "teacher"], ["one"], ["two"], ["one", "two"], [])):
        rows = [{"run": run, "accuracy": 0.5} for run in runs] or [{"accuracy": 0.5}]
        status = PointStatus(f"tour-FACTOR={number}", "key", "ok", "call", rows=rows)
        write_status(tmp_path / "sweeps" / "factors", status)
    (tmp_path / "sweeps" / "factors" / "points" / "broken.json").write_text("[]")
    assert main(["runs", str(tmp_path), "--delete", "one", "--yes"]) == 0
    told = "sweep factors names such runs in tour-FACTOR=0, tour-FACTOR=1 and 1 more: run again, a point trains them"
    assert told in capsys.readouterr().out
    assert main(["runs", str(tmp_path), "--delete", "three", "--yes"]) == 0
    assert "sweep" not in capsys.readouterr().out


def test_only_what_went_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that begins while one is asked keeps its run."""
    first, second = save(tmp_path, "first"), save(tmp_path, "second", note="x" * 2000)
    size = (first.path / "run.json").stat().st_size
    held = locked(second.path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: held.__enter__() or "y")
    assert main(["runs", str(tmp_path), "--delete", "first", "second"]) == 1
    held.__exit__(None, None, None)
    assert f"deleted 1 of 2, {size / 1024:.1f} KiB" in capsys.readouterr().out


def test_a_killed_deletion_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save(tmp_path, "r")
    (run.path / "model.safetensors").write_bytes(b"x" * 100)
    (doomed,) = deleting.doomed(tmp_path, ["r"], ["complete"])
    assert doomed.bytes == 100 + (run.path / "run.json").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(deleting.shutil, "rmtree", lambda *_, **__: None)  # killed before anything is removed
        assert deleting.delete(doomed)
    assert load_runs(tmp_path).empty and len([*(tmp_path / ".deleted").iterdir()]) == 1
    other = save(tmp_path, "other")
    (doomed,) = deleting.doomed(tmp_path, ["other"], ["complete"])
    assert deleting.delete(doomed) and not other.path.exists() and not (tmp_path / ".deleted").exists()


def test_listing_waits_for_nothing_of_notebooks(tmp_path: Path) -> None:
    save(tmp_path, "r")
    code = f"import sys; from redistill_lib.cli import main; main(['runs', {str(tmp_path)!r}]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"nbformat", "papermill", "scipy", "torch", "PIL"} & set(done.stdout.split())


def test_a_thousand_runs_in_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {f"p{k}": k for k in range(40)}
    for number in range(1000):
        save(tmp_path, f"r{number}", seed=number, **params)
    load_runs(tmp_path)
    start = time.process_time()
    assert main(["runs", str(tmp_path)]) == 0
    assert time.process_time() - start < 1.0
    assert len(capsys.readouterr().out.splitlines()) == 1002
