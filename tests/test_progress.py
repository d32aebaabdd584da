"""Who sees a progress bar, and in what form."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from redistill_lib import progress


def sit_in(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    monkeypatch.delenv("REDISTILL_BATCH", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_live_means_a_kernel_that_no_batch_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress.is_live()  # pytest, whatever it has imported
    sit_in(monkeypatch, None)
    assert not progress.is_live()
    sit_in(monkeypatch, SimpleNamespace())  # IPython on a terminal
    assert not progress.is_live()
    sit_in(monkeypatch, SimpleNamespace(kernel=object()))
    assert progress.is_live()
    monkeypatch.setenv("REDISTILL_BATCH", "1")
    assert not progress.is_live()


def test_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("REDISTILL_BATCH", "1")
    with progress.progress_bar(3, "a batch") as bar:
        bar.update()
    assert bar.disable and capsys.readouterr().err == ""
    monkeypatch.delenv("REDISTILL_BATCH")
    with progress.progress_bar(3, "a log, quickly done") as bar:
        bar.update()
    assert capsys.readouterr().err == ""
    with progress.progress_bar(3, "a log") as bar:
        bar.start_t -= 30  # as if half a minute had passed
        bar.last_print_t -= 30
        bar.update()
        bar.update()
        bar.update()
    log = capsys.readouterr().err
    assert "\r" not in log and log.endswith("\n")
    assert [line[:11] for line in log.splitlines()] == ["a log:  33%", "a log: 100%"]  # the second one as it ends
    monkeypatch.setattr(progress, "is_live", lambda: True)
    with progress.progress_bar(3, "a notebook") as bar:
        assert type(bar).__name__ == "tqdm_notebook" and not bar.disable
    assert progress.progress_bar(3, "nobody wants it", enabled=False).disable


def test_a_line_about_waiting_is_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Off a terminal: nothing of what is over within two seconds, and of what takes longer the end, too."""
    monkeypatch.delenv("REDISTILL_BATCH", raising=False)
    for seconds in (0.0, 2.2):
        with progress.waiting_bar(2, "trying") as bar:
            bar.update()
            time.sleep(seconds)
            bar.update()
        lines = capsys.readouterr().err.splitlines()
        assert [line.split("|")[-1].split()[0] for line in lines] == ([] if seconds == 0 else ["1/2", "2/2"])
