"""One notebook executed for real: what goes right, what goes wrong, and that nothing of it is left running."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest

from redistill_lib import sweep
from redistill_lib.sweep import NotebookError, kernel, notebook, processes
from redistill_lib.sweep.rows import recorded

MakeNotebook = Callable[..., Path]
OPTIONS = kernel.NotebookOptions()


def outputs(path: Path) -> list[str]:
    """The printed text or repr of each code cell."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    shown = [[o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs] for cell in code]
    return ["".join(texts) for texts in shown]


def status_of(output: Path, name: str = "a") -> dict[str, Any]:
    return dict(json.loads((output / f"{name}.json").read_text()))


def alive(pids: list[int]) -> list[int]:
    """Those that still run after at most ten seconds."""
    deadline = time.monotonic() + 10

    def running(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    while (left := [pid for pid in pids if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def test_execution(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of parameters, working directory, environment, interpreter, progress, figures, rows, no process left."""
    bogus = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    bogus.parent.mkdir(parents=True)
    bogus.write_text(json.dumps({"argv": ["/nowhere/python", "{connection_file}"], "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(bogus.parents[2]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    here, show = os.getcwd(), "(EPOCHS, LR, AMP, PLAN, SEEDS, SIZES, COLOUR, NOTE)"
    where = "import os, sys; print(os.getcwd(), sys.executable, os.environ['REDISTILL_BATCH'])"
    start = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    figure = "import plotly.graph_objects as go; go.Figure(go.Scatter(y=[1, 4, 9]))"
    table = (
        "import pandas as pd, redistill_lib as rd; rd.record(pd.DataFrame({'n': [1, 2], 'x': [.1, float('nan')]}))"
    )
    path = make_notebook("tour", show, where, start, figure, table, "rd.record({'n': 3, 'plan': '4-11221'})")
    source, seen = path.read_bytes(), list[tuple[int, int, str]]()

    output = tmp_path / "runs {of}" / "notebooks"  # braces mean nothing
    given = {"EPOCHS": "5", "AMP": "no", "SIZES": "32,", "COLOUR": 'it\'s "#000"'}
    result = sweep.run_notebook(path, given, output, on_cell=lambda *told: seen.append(told))

    assert (result.ok, result.error, result.name, result.interrupted) == (True, None, "tour", False)
    _, _, shown, place, pid, *_ = outputs(output / "tour.ipynb")
    assert shown == """(5, 0.1, False, '4-11221', [0, 1], (32,), 'it\\'s "#000"', None)"""
    assert place.split() == [str(path.parent), sys.executable, "1"]
    assert alive([int(pid)]) == []
    assert [told[:2] for told in seen] == [(done, 8) for done in range(8)]
    assert seen[2:4] == [(2, 8, show), (3, 8, where)]
    page = (output / "tour.html").read_text()
    assert page.count('class="plotly-graph-div"') == 1 and len(page) < 400_000
    assert (output / "tour.ipynb").stat().st_size < 50_000  # no plotly.js in it either
    expected = pd.DataFrame({"n": [1, 2, 3], "x": [0.1, None, None], "plan": [None, None, "4-11221"]})
    pd.testing.assert_frame_equal(recorded(output / "tour.ipynb"), expected)
    assert path.read_bytes() == source
    assert os.getcwd() == here
    record = status_of(output, "tour")
    assert record["parameters"] == {"EPOCHS": 5, "AMP": False, "SIZES": [32], "COLOUR": 'it\'s "#000"'}
    assert (record["status"], record["error"], record["html"]) == ("ok", None, "tour.html")
    assert record["seconds"] == result.seconds > 0
    files = ["plotly.min.js", "tour.html", "tour.ipynb", "tour.json"]
    assert sorted(file.name for file in output.iterdir()) == files


def test_the_end_is_no_interrupt(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    """To an idle kernel it would be an error in the log, and to what the notebook started a Ctrl-C."""
    child = "import signal, time; signal.signal(signal.SIGINT, lambda *_: open('interrupted', 'w'))"
    child += "; print(flush=True); time.sleep(60)"
    start = f"subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)"
    path = make_notebook("a", f"import subprocess, sys; {start}.stdout.readline()")
    assert sweep.run_notebook(path, output_dir=tmp_path / "out", html=False).ok
    assert not (path.parent / "interrupted").exists()


def test_interrupt_keeps_what_was_done_and_ends_the_list(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    """The notebook presses Ctrl-C on its runner."""
    stop = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    paths = [make_notebook("a", "print('kept')", stop, "print('never')"), make_notebook("b")]
    results = sweep.run_notebooks(paths, output_dir=tmp_path / "out")
    assert [(r.name, r.status, r.interrupted, r.signal) for r in results] == [("a", "interrupted", True, "SIGINT")]
    assert results[0].error == NotebookError(3, "KeyboardInterrupt", "")
    assert outputs(tmp_path / "out" / "a.ipynb")[1] == "kept\n"
    assert outputs(tmp_path / "out" / "a.ipynb")[3] == ""
    assert "KeyboardInterrupt" in (tmp_path / "out" / "a.html").read_text()


@pytest.mark.parametrize(
    ("cell", "error"),
    [
        ("import sys; sys.exit(0)", NotebookError(2, "SystemExit", "the notebook ended itself")),
        ("exit()", NotebookError(2, "SystemExit", "the notebook ended itself")),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            NotebookError(2, "DeadKernelError", "the kernel was ended by SIGKILL (out of memory?)"),
        ),
    ],
)
def test_the_end_of_a_kernel_is_a_result(
    make_notebook: MakeNotebook, tmp_path: Path, cell: str, error: NotebookError
) -> None:
    result = sweep.run_notebook(make_notebook("a", cell, "print('never')"), output_dir=tmp_path / "out", html=False)
    assert (result.status, result.error, result.html) == ("failed", error, None)
    assert status_of(tmp_path / "out")["status"] == "failed"
    assert outputs(tmp_path / "out" / "a.ipynb")[2] == ""


def test_timeout_of_a_cell_that_does_not_listen(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "GRACE", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun', flush=True)"
    path = make_notebook("a", f"{deaf}; time.sleep(1000)")
    result = sweep.run_notebook(path, output_dir=tmp_path / "out", html=False, timeout=8)
    assert result.status == "failed" and not result.interrupted
    assert result.error and (result.error.cell, result.error.ename) == (2, "TimeoutError")
    assert result.error.evalue.startswith("the notebook took more than 8 s; this cell ran for ")
    assert 8 < result.seconds < 30
    assert outputs(tmp_path / "out" / "a.ipynb") == ["", "begun\n"]


RUNNER = """\
import sys
from redistill_lib.sweep import run_notebook
for k in range(int(sys.argv[3])):
    result = run_notebook(sys.argv[1], output_dir=sys.argv[2] + f"/{k}", html=False)
    print(result.status, result.signal, flush=True)
"""
CHILDREN = """\
import os, signal, subprocess, time
print("before", flush=True)
children = [subprocess.Popen(["sleep", "1000"], start_new_session=apart).pid for apart in (False, True)]
print("pids", os.getpid(), *children, flush=True)
with open("pids.part", "w") as file:
    file.write(" ".join(map(str, [os.getpid(), *children])))
os.replace("pids.part", "pids")
if os.path.exists("deaf"):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(1000)
"""


@pytest.fixture
def start_runner(make_notebook: MakeNotebook, tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Start a process that runs a notebook so many times; each cell starts two processes and sleeps."""
    path, runners = make_notebook("a", "print('kept')", CHILDREN), list[subprocess.Popen[str]]()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}

    def start(times: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RUNNER, str(path), str(tmp_path / "out"), str(times)]
        runners.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return runners[-1]

    yield start
    for runner in runners:
        with runner:
            runner.kill()


def pids_of(notebooks: Path) -> list[int]:
    """Of the kernel and its two children, once they run."""
    file, deadline = notebooks / "pids", time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pids = [int(pid) for pid in file.read_text().split()]
    file.unlink()
    return pids


def test_signals_end_all_that_a_notebook_started(start_runner: Any, tmp_path: Path) -> None:
    runner = start_runner(3)
    for k, number in enumerate((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        pids = pids_of(tmp_path / "notebooks")
        assert len(pids) == 3
        runner.send_signal(number)
        begun, name = time.monotonic(), number.name
        assert runner.stdout.readline() == f"interrupted {name}\n"
        assert time.monotonic() - begun < 15
        assert alive(pids) == []
        record = status_of(tmp_path / "out" / str(k))
        evalue = "" if name == "SIGINT" else name
        assert (record["status"], record["signal"]) == ("interrupted", name)
        assert record["error"] == {"cell": 3, "ename": "KeyboardInterrupt", "evalue": evalue}
        assert outputs(tmp_path / "out" / str(k) / "a.ipynb")[1] == "kept\n"
    assert runner.wait(30) == 0


def test_a_second_signal_kills_and_a_killed_runner_leaves_nothing(start_runner: Any, tmp_path: Path) -> None:
    (tmp_path / "notebooks" / "deaf").touch()
    runner = start_runner(2)
    pids = pids_of(tmp_path / "notebooks")
    time.sleep(1)  # for the cell to become deaf
    runner.send_signal(signal.SIGTERM)
    time.sleep(1)
    begun = time.monotonic()
    runner.send_signal(signal.SIGTERM)
    assert runner.stdout.readline() == "interrupted SIGTERM\n"
    assert time.monotonic() - begun < kernel.GRACE
    assert alive(pids) == []

    pids, output = pids_of(tmp_path / "notebooks"), tmp_path / "out" / "1"
    deadline = time.monotonic() + 30
    while outputs(output / "a.ipynb")[1] != "kept\n":  # whole whenever it is read
        assert time.monotonic() < deadline
    runner.kill()
    assert alive(pids) == []
    assert [file.name for file in output.iterdir()] == ["a.ipynb"]  # and no status


def test_signals_are_heard_and_given_back() -> None:
    got, before = list[str](), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: got.append("own"))
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with kernel.Signals() as signals:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
            assert signals.came == ["SIGINT", "SIGTERM"]
        assert got == []
        signal.raise_signal(signal.SIGTERM)
        assert got == ["own"]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, hangup)


def test_a_signal_that_comes_too_late_loses_nothing(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "_execute", lambda *_: signal.raise_signal(signal.SIGTERM))
    paths = [make_notebook("a"), make_notebook("b")]
    results = sweep.run_notebooks(paths, output_dir=tmp_path / "out", html=False)
    assert [(r.name, r.status, r.interrupted, r.signal) for r in results] == [("a", "ok", True, "SIGTERM")]
    assert status_of(tmp_path / "out")["status"] == "ok"


def stand_in(monkeypatch: pytest.MonkeyPatch, outcome: Exception | None) -> None:
    import papermill

    def execute(*_: object, **__: object) -> None:
        if outcome:
            raise outcome

    monkeypatch.setattr(papermill, "execute_notebook", execute)


@pytest.mark.parametrize(
    ("outcome", "came", "error"),
    [
        (RuntimeError("no reply"), [], NotebookError(None, "RuntimeError", "no reply")),
        (RuntimeError("Kernel died"), ["SIGINT"], NotebookError(None, "KeyboardInterrupt", "")),
        (OSError(errno.ENOSPC, "No space left"), [], NotebookError(None, "OSError", "[Errno 28] No space left")),
        (None, [], None),
        (None, ["SIGTERM"], None),  # it was done before
    ],
)
def test_whatever_is_raised_is_a_result(
    monkeypatch: pytest.MonkeyPatch, outcome: Exception | None, came: list[str], error: NotebookError | None
) -> None:
    stand_in(monkeypatch, outcome)
    signals = kernel.Signals()
    signals.came += came
    assert kernel.execute(Path("a.ipynb"), Path(), OPTIONS, signals) == error


@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_no_cell_runs_after_a_signal(make_notebook: MakeNotebook, delay: float) -> None:
    path, signals = make_notebook("a", "print('never')"), kernel.Signals()
    timer = threading.Timer(delay, signals.came.append, ["SIGTERM"])
    begun = time.monotonic()
    timer.start()
    if not delay:
        timer.join()
    error = kernel.execute(path, path.parent, OPTIONS, signals)
    assert error == NotebookError(None, "KeyboardInterrupt", "SIGTERM")
    assert time.monotonic() - begun < kernel.GRACE
    assert outputs(path) == ["", ""]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (3, "the kernel ended itself with exit code 3"),
        (-signal.SIGSEGV, "the kernel was ended by SIGSEGV"),
        (-signal.SIGKILL, "the kernel was ended by SIGKILL (out of memory?)"),
    ],
)
def test_how_a_kernel_died(code: int, told: str) -> None:
    run = kernel._Execution(Path("a.ipynb"), OPTIONS, kernel.Signals())
    run.cell = 4
    process = subprocess.Popen(["sleep", "1000"] if code < 0 else ["sh", "-c", f"exit {code}"])
    if code < 0:
        process.send_signal(-code)
    process.wait()
    run.kernel = process
    assert run.outcome(RuntimeError("Kernel died")) == NotebookError(4, "DeadKernelError", told)


def test_a_full_disk_is_told(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(path: Path, text: str) -> None:
        if path.suffix == ".json":
            raise full

    monkeypatch.setattr(notebook, "_execute", lambda *_: None)
    monkeypatch.setattr(notebook, "write_text", write)
    result = sweep.run_notebook(make_notebook("a"), output_dir=tmp_path / "out", html=False)
    assert (result.status, result.error) == ("failed", NotebookError(None, "OSError", str(full)))
    assert "a: ok, 0 s; OSError: [Errno 28] No space left on device" in capsys.readouterr().err


def test_a_page_that_cannot_be_made_fails_the_notebook(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_page(*_: Path) -> str:
        raise RuntimeError("\nno template")

    monkeypatch.setattr(notebook, "_execute", lambda *_: None)
    monkeypatch.setattr(notebook, "page_of", no_page)
    result = sweep.run_notebook(make_notebook("a"), output_dir=tmp_path / "out")
    assert (result.status, result.html) == ("failed", None)
    assert status_of(tmp_path / "out")["error"] == {"cell": None, "ename": "RuntimeError", "evalue": "no template"}


def test_a_name_that_is_too_long_is_a_result(
    make_notebook: MakeNotebook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = sweep.run_notebook(make_notebook("a"), output_dir=tmp_path / "out", name="x" * 300)
    assert result.status == "failed" and result.error and "File name too long" in result.error.evalue
    assert "failed, 0 s; OSError: " in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_earlier_status_and_page_are_gone_when_a_run_starts(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = make_notebook("a"), tmp_path / "out"
    output.mkdir()
    for stale in ("a.json", "a.html"):
        (output / stale).write_text("stale")

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(notebook, "_execute", killed)
    with pytest.raises(SystemExit):
        sweep.run_notebook(path, output_dir=output)
    assert [file.name for file in output.iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize("timeout", [0, -1, "1 h", float("nan")])
def test_a_wrong_timeout_is_refused_before_any_kernel(make_notebook: MakeNotebook, timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout=.* is not a number above 0"):
        sweep.run_notebook(make_notebook("a"), timeout=timeout)


def test_errors_say_where() -> None:
    assert str(NotebookError(3, "ValueError", "no")) == "In [3]: ValueError: no"
    assert str(NotebookError(None, "DeadKernelError", "")) == "DeadKernelError"


def test_images_are_asked_for_in_place_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def manager(run: object, environment: dict[str, str]) -> None:
        seen.append(environment)

    stand_in(monkeypatch, None)
    monkeypatch.setattr(kernel, "_kernel_manager", manager)
    monkeypatch.setattr(kernel, "_without_images", lambda: "")
    for png in (False, True):
        kernel.execute(Path("a.ipynb"), Path(), kernel.NotebookOptions(png=png), kernel.Signals())
    assert [e["PLOTLY_RENDERER"] for e in seen] == ["plotly_mimetype", "plotly_mimetype+png"]
    assert all(e["REDISTILL_BATCH"] == "1" for e in seen)


def test_images_without_a_browser_are_refused_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    monkeypatch.setattr(kernel, "_kernel_manager", lambda *_: pytest.fail("a kernel would have started"))
    kernel._without_images.cache_clear()
    error = kernel.execute(Path("a.ipynb"), Path(), kernel.NotebookOptions(png=True), kernel.Signals())
    kernel._without_images.cache_clear()
    assert error and error.evalue.startswith("images of figures need Chrome or Chromium (Debian: apt-get install")
    assert "/nowhere/chrome" in error.evalue


def test_a_kernel_in_a_kernel_belongs_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    outer, inner, another = (uuid.uuid4().hex for _ in range(3))
    monkeypatch.delenv(processes.MARK, raising=False)
    assert processes.marked(outer) == outer
    monkeypatch.setenv(processes.MARK, outer)
    marks = [processes.marked(inner), another]
    started = [subprocess.Popen(["sleep", "1000"], env=os.environ | {processes.MARK: mark}) for mark in marks]
    try:
        processes.end_processes(outer)
        assert started[0].wait(10) == -signal.SIGTERM
        assert started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.mark.parametrize("token", ["", "/", "outer", "0" * 31])
def test_what_is_no_token_ends_nothing(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda: pytest.fail("no process may be looked at"))
    with pytest.raises(ValueError, match="is not the token of a kernel"):
        processes.end_processes(token)
