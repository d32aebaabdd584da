"""Several notebooks at a time: each in a process of its own, in any order, whatever becomes of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from redistill_lib import sweep
from redistill_lib.sweep import runner

MakeNotebook = Callable[..., Path]
PROGRAM = "import sys; from redistill_lib.cli import main; sys.exit(main())"
WAIT = "import pathlib, time\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.05)"


def test_they_run_at_once_and_are_told_in_order(
    make_notebook: MakeNotebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, there = tmp_path / "out", str(tmp_path / "there")
    waits = make_notebook("a", WAIT.format(there))  # without the second one at work it would wait for ever
    makes = make_notebook("b", f"open({there!r}, 'w').close()")
    killed = make_notebook("c", "import os, psutil; psutil.Process(os.getppid()).kill(); import time; time.sleep(60)")
    fails = make_notebook("d", "EPOCHS / 0")
    results = sweep.run_notebooks([waits, makes, killed, fails], {"EPOCHS": 2}, out, jobs=2, html=False, timeout=50)
    assert [(r.name[:1], r.status) for r in results] == [("a", "ok"), ("b", "ok"), ("c", "failed"), ("d", "failed")]
    assert results[2].error and "its process was killed" in str(results[2].error)
    assert results[3].error and results[3].error.ename == "ZeroDivisionError" and results[3].notebook.exists()
    assert results[0].parameters == {"EPOCHS": 2} and not (out / "claims").exists()
    told = capsys.readouterr().err
    assert "[0/4] a-EPOCHS=2: started" in told and "a-EPOCHS=2: ok, " in told and "[4/4]" in told


def test_a_signal_ends_what_runs_and_begins_nothing(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    there = tmp_path / "there"
    slow = [
        make_notebook(name, f"open({str(there)!r} + {name!r}, 'w').close()\n" + WAIT.format("never")) for name in "ab"
    ]
    command = [sys.executable, "-c", PROGRAM, "run", *map(str, [*slow, make_notebook("c", "1")])]
    root = str(Path(__file__).parents[1])
    running = subprocess.Popen(
        [*command, "--jobs", "2", "--output", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not all(Path(f"{there}{name}").exists() for name in "ab") and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    shown, _ = running.communicate(timeout=60)
    assert running.returncode == 1 and shown.count("interrupted") == 2
    kept = {file.stem: json.loads(file.read_text())["status"] for file in (tmp_path / "out").glob("*.json")}
    assert kept == {"a": "interrupted", "b": "interrupted"}


def test_wrong_options_are_refused_before_a_process_starts(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    paths, out = [make_notebook("a"), make_notebook("b")], tmp_path / "out"
    with pytest.raises(ValueError, match="jobs"):
        sweep.run_notebooks(paths, output_dir=out, jobs=0)
    with pytest.raises(ValueError, match="timeout"):
        sweep.run_notebooks(paths, output_dir=out, jobs=2, timeout=-1)
    assert not [*out.glob("*.ipynb")]


def test_a_notebook_that_is_gone_ends_no_other(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_notebook("a", "import time; time.sleep(2)"), make_notebook("b", "1")
    checked = runner.check_given
    monkeypatch.setattr(runner, "check_given", lambda *a, **k: (checked(*a, **k), second.unlink()))
    results = sweep.run_notebooks([first, second], output_dir=tmp_path / "out", jobs=2, html=False)
    assert [(r.name, r.status) for r in results] == [("a", "ok"), ("b", "failed")]
    assert "b.ipynb" in str(results[1].error)
