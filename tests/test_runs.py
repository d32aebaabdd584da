"""The run store: ids, atomic records, reading many runs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from trainings import WIDTH, recipe_of, train

from redistill_lib.cli import main
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model, read_tensors, save_tensors
from redistill_lib.report import write_index
from redistill_lib.runs import (
    Run,
    canonical,
    complete_run,
    find_run,
    load_runs,
    locked,
    replacing,
    run_id,
    write_history,
    write_text,
)
from redistill_lib.source import code_identity
from redistill_lib.student import derive_student
from redistill_lib.train.state import load_state, save_state

ROOT = Path(__file__).parents[1]


def test_id_depends_on_parameters_not_on_their_order() -> None:
    assert run_id("a", {"x": 1, "y": 2}) == run_id("a", {"y": 2, "x": 1}) != run_id("a", {"x": 1, "y": 3})
    assert run_id("hf:a/b ×4", {}).startswith("hf-a-b-4-")
    assert len(run_id(300 * "a", {}, "12345678")) < 255


def test_record_round_trips(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "r", {"seed": 1}, "complete", {"test_accuracy": 0.5}, {"threads": 1}, [{"layer": "a"}]
    ).save()
    assert Run.load(tmp_path / "r") == run and run.complete and run.id == "r"
    assert repr(run) == "Run(r, complete, test_accuracy=0.5)"
    assert run.history().empty
    for damaged in (b"", b"\xff\xfe\xff", b'epoch\n"1'):
        (run.path / "history.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"history\.csv is cut short or not what this library wrote"):
            run.history()


def test_history_keeps_every_digit(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": float("nan")}]
    write_history(tmp_path / "history.csv", rows)
    frame = Run(tmp_path, {}).history()
    assert frame.loss[0] == 0.1 + 0.2 and frame.loss.isna()[1] and list(frame.epoch) == [1, 2]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    with pytest.raises(OSError, match="full"), replacing(tmp_path / "f") as part:
        part.write_text("ne")
        raise OSError("disk full")
    assert (tmp_path / "f").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_id_alone_is_told_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no run at mine: it holds no run.json; runs.mine does"):
        Run.load("mine")


def test_missing_and_broken_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it holds no run.json"):
        Run.load(tmp_path / "none")
    for name, text in BROKEN.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(text)
        with pytest.raises(ValueError, match="delete the folder"):
            Run.load(tmp_path / name)
    (tmp_path / "folder" / "run.json").mkdir(parents=True)
    Run(tmp_path / "whole", {"seed": 3}, "complete").save()
    frame = load_runs(tmp_path).set_index("id")
    assert set(frame.index[frame.status == "unreadable"]) == {*BROKEN, "folder"}
    assert frame.loc["whole", "seed"] == 3 and "whole" in write_index(tmp_path).read_text()


BROKEN = {
    "half": b'{"params": {',
    "no params": b'{"surprise": 1}',
    "list": b"[1, 2]",
    "number": b"7",
    "metrics": b'{"params": {}, "metrics": []}',
    "status": b'{"params": {}, "status": null}',
    "latin": '{"params": {"name": "é"}}'.encode("latin-1"),
    "deep": b"[" * 100_000,
    "digits": b'{"params": {"seed": ' + b"9" * 5000 + b"}}",
}


def test_a_record_of_a_newer_version(tmp_path: Path) -> None:
    record = {"params": {"seed": 1}, "status": "complete", "version": "9.2", "carbon": {"grams": 3}}
    write_text(tmp_path / "r" / "run.json", json.dumps(record))
    with pytest.warns(UserWarning, match=r"r/run.json was written by version 9.2 .* whose carbon this one"):
        run = Run.load(tmp_path / "r")
    assert run.complete
    assert json.loads((run.reused("abc").path / "run.json").read_text())["carbon"] == {"grams": 3}  # nothing is lost
    assert "9.2" in load_runs(tmp_path).note[0]


def test_equal_parameters_have_one_form() -> None:
    a = {"rate": np.float64(3.0), "sizes": (np.int64(1), 2), "on": True, "nested": {"b": 1, "a": None}}
    b = {"nested": {"a": None, "b": 1.0}, "on": True, "sizes": [1, 2], "rate": 3}
    assert run_id("x", a) == run_id("x", b) != run_id("x", {**b, "on": False})
    assert json.dumps(canonical(1e20)) == "100000000000000000000"
    with pytest.raises(ValueError, match=r"params.recipe.rates\[1\] is inf"):
        canonical({"recipe": {"rates": [0.5, float("inf")]}})
    with pytest.raises(TypeError, match=r"params.model is <object"):
        canonical({"model": object()})


def trained(path: Path, params: dict[str, Any], code: str) -> Run:
    save_tensors(path / "model.safetensors", {"weight": torch.ones(1, 1)})
    return Run(path, params, code=code).finished({"test_accuracy": 0.5}).save()


def test_runs_of_other_code_are_named_and_not_taken(tmp_path: Path) -> None:
    params = {"seed": 2, "model": {"name": "net"}}
    path, others = find_run(tmp_path, "net", params, "c0ffee00")
    assert others == [] and complete_run(path) is None
    mine, old = trained(path, params, "c0ffee00"), find_run(tmp_path, "net_named", params, "0ld0c0de")
    assert old[0] != path and [run.id for run in old[1]] == [mine.id]  # whatever the prefix
    trained(old[0], params, "0ld0c0de")
    assert complete_run(path) == mine and [run.code for run in find_run(tmp_path, "net", params, "c0ffee00")[1]] == [
        "0ld0c0de"
    ]
    assert find_run(tmp_path, "net", {**params, "seed": 3}, "c0ffee00")[1] == []
    mine.reused("0ld0c0de").reused("0ld0c0de")
    assert Run.load(path).reused_by == ["0ld0c0de"]
    (old[0] / "model.safetensors").unlink()
    assert find_run(tmp_path, "net", params, "c0ffee00")[1] == []


def test_a_result_that_is_no_number_is_not_complete(tmp_path: Path) -> None:
    run = Run(tmp_path, {}).finished({"test_loss": float("nan"), "best_epoch": 3})
    assert run.status == "failed" and run.error == "the trained network cannot be evaluated: test_loss is nan"
    assert Run(tmp_path, {}).finished({"test_loss": 1e20}).complete


def test_a_full_disk_does_not_hide_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run, error = Run(tmp_path / "r", {}), ZeroDivisionError("division by zero")
    assert run.stopped(error).error == "division by zero" and Run.load(run.path).status == "failed"
    assert run.stopped(KeyboardInterrupt()).status == "interrupted"
    monkeypatch.setattr("redistill_lib.runs.write_text", full)
    run.stopped(error)
    assert "No space left" in error.__notes__[0]


def test_load_runs(tmp_path: Path) -> None:
    assert load_runs(tmp_path / "nowhere").empty
    Run(tmp_path / "b", {"model": {"name": "m", "width": 1.0}, "seed": 0}, "complete", {"test_accuracy": 0.5}).save()
    Run(tmp_path / "a", {"model": {"name": "n", "width": 1.0}, "seed": 1}, "failed", error="why").save()
    write_text(tmp_path / "c" / "run.json", "{")
    (tmp_path / "notebooks").mkdir()
    frame = load_runs(tmp_path).set_index("id")
    assert list(frame.index) == ["a", "b", "c"]
    assert frame.loc["b", "model.name"] == "m" and frame.loc["b", "test_accuracy"] == 0.5
    assert frame.loc["a", "error"] == "why" and frame.loc["c", "status"] == "unreadable"


def test_the_half_written_is_swept_away(tmp_path: Path) -> None:
    stale = tmp_path / "state" / ".state.safetensors.abc.part"
    write_text(tmp_path / "state" / "state.safetensors", "whole")
    stale.write_text("half")
    with locked(tmp_path):
        assert [p.name for p in stale.parent.iterdir()] == ["state.safetensors"]


def test_lock_is_exclusive(tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    with locked(tmp_path), pytest.raises(Timeout), FileLock(tmp_path / ".lock", timeout=0):
        pass
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


def test_record_is_plain_json(tmp_path: Path) -> None:
    Run(tmp_path, {"path": Path("x")}).save()
    assert json.loads((tmp_path / "run.json").read_text())["params"] == {"path": "x"}


# ----------------------------------------------------------------------------------------------------- weights


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    net = nn.Linear(1, 1, bias=False)
    run = trained(tmp_path / "r", {"model": {"name": "Linear", "weights": "0"}}, "c0de")
    assert load_model(run, net).weight.item() == 1
    file = run.path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="kept no last weights"):
        load_model(run, net, "last")
    save_tensors(run.path / "last.safetensors", {"weight": torch.full((1, 1), 2.0)})
    assert load_model(run, net, "last").weight.item() == 2
    with pytest.raises(ValueError, match="did you mean 'last'"):
        load_model(run, net, "lst")  # type: ignore[arg-type]
    whole = file.read_bytes()
    for broken in (whole[:-1], whole[:5], b"", b"not tensors at all, but text"):
        file.write_bytes(broken)
        for call in (lambda: load_model(run, net), lambda: complete_run(run.path)):
            with pytest.raises(ValueError, match=rf"^{file} is cut short .*; delete {run.path} to train again$"):
                call()
    save_file({"other": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=rf"{file} is cut short or not what this library wrote"):
        load_model(run, net)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="to train again"):
        load_model(run, net)


def training(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    torch.manual_seed(seed)
    net = nn.ModuleDict({"net": nn.Linear(2, 2), "teachers": nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(net["net"].parameters(), 0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net["net"](torch.ones(2)).sum().backward()
    optimizer.step()
    scheduler.step()
    return net, optimizer, scheduler


def test_state_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "state" / "state.safetensors"
    net, optimizer, scheduler = training(1)
    save_state(file, {"trainee": net, "optimizer": optimizer, "scheduler": scheduler}, {"step": 7})
    assert not any("teachers" in name for name in read_tensors(file)[0])
    other, its_optimizer, its_scheduler = training(2)
    teacher = other["teachers"].weight.clone()
    parts = {"trainee": other, "optimizer": its_optimizer, "scheduler": its_scheduler}
    assert load_state(file, parts) == {"step": 7}
    assert torch.equal(other["net"].weight, net["net"].weight) and torch.equal(other["teachers"].weight, teacher)
    torch.testing.assert_close(its_optimizer.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    assert its_scheduler.state_dict() == scheduler.state_dict()
    whole = file.read_bytes()
    save_tensors(tmp_path / "foreign", {"weight": torch.ones(1)})
    for text in (whole[:-9], (tmp_path / "foreign").read_bytes()):
        file.write_bytes(text)
        with pytest.raises(ValueError, match=f"{file} is cut short .* delete {file.parent} to train again"):
            load_state(file, parts)


# ------------------------------------------------------------------------------------------------ locks, listings


HOLD = """
import sys, time
from pathlib import Path
from redistill_lib.runs import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(2.5)
"""


def test_waiting_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "r")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with locked(tmp_path / "r"):
            pass
    said = capsys.readouterr().err
    assert (
        said.startswith(f"waiting for a training that is under way: r, by process {other.pid} on ")
        and said.count("\n") == 1
    )
    assert not (tmp_path / "r" / ".holder").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may write anywhere: the refusal is the system's, acted here."""
    run = trained(tmp_path / "r", {"seed": 0}, code_identity())

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "write_text", "unlink"):
        monkeypatch.setattr(Path, name, refused)
    assert run.reused("other").reused_by == ["other"] and complete_run(run.path) == run
    assert list(load_runs(tmp_path).code) == ["present"] and os.listdir(tmp_path) == ["r"]
    with (
        pytest.raises(OSError, match=r"run new cannot be trained .* give another runs_dir"),
        locked(tmp_path / "new"),
    ):
        pass


@pytest.mark.parametrize("wrong", [7, None, ["runs"], "ru\0ns"])
def test_a_place_that_is_no_path(wrong: Any) -> None:
    doors = (load_runs, Run.load, complete_run, lambda root: find_run(root, "net", {}, "c0de"))
    for door in doors:
        with pytest.raises(ValueError, match=r"^(root|path|runs_dir)=.* (is not text or a path|holds a null)"):
            door(wrong)


def test_the_index_is_never_believed_over_the_folders(tmp_path: Path) -> None:
    for number in range(3):
        Run(tmp_path / f"r{number}", {"seed": number}).save()
    first = load_runs(tmp_path)
    index = tmp_path / ".index.json"
    assert load_runs(tmp_path).equals(first)
    kept = index.read_bytes()
    Run(tmp_path / "r1", {"seed": 8}, name="mine").save()
    (tmp_path / "r2" / "run.json").unlink()
    frame = load_runs(tmp_path)
    assert list(frame.id) == ["r0", "r1"] and list(frame.seed) == [0, 8] and frame.name[1] == "mine"
    for damaged in (b"", b"{", b"[1, 2]", b"null", b"\xff", kept[: len(kept) // 2], kept.replace(b'"seed"', b"[")):
        index.write_bytes(damaged)
        assert load_runs(tmp_path).equals(frame)
    for wrong in (None, {"name": "mine"}):
        index.write_text(json.dumps(dict.fromkeys(json.loads(index.read_bytes()), wrong)))
        assert load_runs(tmp_path).equals(frame)
        index.write_text(json.dumps({"rows": dict.fromkeys(json.loads(index.read_bytes())["rows"], wrong)}))
        assert load_runs(tmp_path).equals(frame)
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_runs(index)


def test_a_second_listing_reads_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        Run(tmp_path / f"r{number}", {"seed": number}).save()
    first = load_runs(tmp_path)
    monkeypatch.setattr(Run, "_read", lambda path: pytest.fail(f"{path} was read again"))
    assert load_runs(tmp_path).equals(first)


def test_listings_of_odd_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for metrics in ({"test_loss": 3e25}, {"test_loss": float("nan"), "peak_bytes": 4096}, {}):
        for count in (1, 2):
            name = f"r{len(list(tmp_path.iterdir()))}"
            own = {"model": {"name": "Net", "structure": "0", "plan": "×4: conv 1 → 4"}}
            params = {"teachers": ["t"]} if count == 2 else own
            Run(tmp_path / name, {"seed": count, **params}, metrics=metrics, name=f"try {count}").save()
            assert main(["runs", str(tmp_path)]) == 0
            write_index(tmp_path)
    out = capsys.readouterr().out
    assert "3e+25" in out and "peak_bytes (fp32)" in out and "try 2" in out
    page = (tmp_path / "index.html").read_text()
    assert all(word in page for word in ("naive", "student", "×4: conv 1 → 4", "try 1", "peak_bytes (fp32)"))


def test_plans_by_name() -> None:
    built = Run(Path("r"), {"model": {"name": "resnet18-4-11221"}})
    own = Run(Path("r"), {"model": {"name": "Net-4-1", "structure": "0", "plan": "stem 4"}})
    assert (built.plan, built.role, own.plan, own.role) == ("4-11221", "plain", "stem 4", "naive")


def test_derived_students_without_teachers_are_naive(tmp_path: Path) -> None:
    usual = create_model("resnet18-1-21222", num_classes=10, in_channels=1, width=WIDTH)
    student, _ = derive_student(usual, 2, example=torch.zeros(1, 1, 16, 16))
    derived = train("classifier", tmp_path, student, recipe=recipe_of("classifier", epochs=1))
    assert (derived.role, derived.plan) == ("naive", str(student.plan))
    assert list(load_runs(tmp_path).role) == ["naive"]
    named = train("classifier", tmp_path, recipe=recipe_of("classifier", epochs=1))
    assert named.role == "plain"


def test_a_run_whose_process_was_killed_is_interrupted(tmp_path: Path) -> None:
    """Its record says running for ever; who held it is noted beside it. Of other machines nobody knows."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    here = socket.gethostname()
    for name, holder in (
        ("killed", f"process {dead.pid} on {here} since 2026-01-01 00:00:00+00:00"),
        ("trains", f"process {os.getpid()} on {here} since 2026-01-01 00:00:00+00:00"),
        ("far", f"process {dead.pid} on not-{here} since 2026-01-01 00:00:00+00:00"),
        ("odd", "x"),
    ):
        Run(tmp_path / name, {"seed": 0}).save()
        (tmp_path / name / ".holder").write_text(holder)
    for _ in range(2):  # read, and from the index
        found = load_runs(tmp_path).set_index("id")["status"].to_dict()
        assert found == {"killed": "interrupted", "trains": "running", "far": "running", "odd": "running"}
