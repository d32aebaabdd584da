"""The run store: ids, atomic records, reading many runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redistill_lib.runs import Run, load_runs, locked, replacing, run_id, write_history, write_text


def test_id_depends_on_parameters_not_on_their_order() -> None:
    assert run_id("a", {"x": 1, "y": 2}) == run_id("a", {"y": 2, "x": 1}) != run_id("a", {"x": 1, "y": 3})
    assert run_id("hf:a/b ×4", {}).startswith("hf-a-b-4-")


def test_record_round_trips(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "r", {"seed": 1}, "complete", {"test_accuracy": 0.5}, {"threads": 1}, [{"layer": "a"}]
    ).save()
    assert Run.load(tmp_path / "r") == run and run.complete and run.id == "r"
    assert repr(run) == "Run(r, complete, test_accuracy=0.5)"
    assert run.history().empty


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


def test_missing_and_broken_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it holds no run.json"):
        Run.load(tmp_path / "none")
    for name, text in (("half", '{"params": {'), ("other", '{"surprise": 1}')):
        write_text(tmp_path / name / "run.json", text)
        with pytest.raises(ValueError, match="delete the folder"):
            Run.load(tmp_path / name)


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
