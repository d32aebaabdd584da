"""What points name is tried before a kernel starts: networks, data and methods."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from redistill_lib.cli import main
from redistill_lib.sweep import Point, SweepResult, command, given, read_sweep, run_sweep

MakeNotebook = Callable[..., Path]
CODE = """import redistill_lib as rd
data, network = rd.load_data(DATA), rd.resolve_model(
    TEACHER, seed=0)
rd.parse_methods(METHODS)"""
PARAMETERS = 'DATA = "digits"\nTEACHER = "resnet18"\nMETHODS = "red"\nEPOCHS = 1'
NET = "import torch\n\ndef make():\n    print('made')\n    return torch.nn.Linear(2, 2)\n"


@pytest.fixture
def file(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two points with a network and data of one's own, which are there."""
    make_notebook("tour", CODE, parameters=PARAMETERS)
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "pngs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    own = "parameters: {TEACHER: my_net:make, DATA: pngs}\ngrid: {METHODS: [red+kd, red(alpha=5.0)]}"
    path.write_text(f"notebook: notebooks/tour.ipynb\n{own}\n")
    return path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["sweep", "own.yaml", *words]) == 2
    assert not Path("runs").exists()
    *trying, told = capsys.readouterr().err.splitlines()
    assert all(line.startswith("trying what points name: ") for line in trying)  # on a machine that is busy
    return told


def test_all_is_tried_where_kernels_work(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "own.yaml", "--dry-run"]) == 0
    assert "2 to do" in capsys.readouterr().out
    file.with_name("my_net.py").write_text("import nothing_there")
    told = "redistill: own.yaml, line 2: TEACHER='my_net:make': No module named 'nothing_there'"
    assert refused(["--dry-run"], capsys) == refused([], capsys) == told
    with pytest.raises(ValueError, match="No module named 'nothing_there'"):
        run_sweep(read_sweep(file))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TEACHER", "no_net:make", "there is no module no_net in {shell} or {notebooks}, nor is one installed"),
        ("TEACHER", "./nets/my_net:make", "there is no module ./nets/my_net in {shell} or {notebooks}"),
        ("DATA", "./none", "there is no folder ./none in {shell} or {notebooks}"),
        ("METHODS", "red+kdd", "unknown distillation method 'kdd'; did you mean 'kd'"),
    ],
)
def test_what_is_not_there_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    error = refused(["--dry-run", "-p", name, value], capsys)
    places = {"shell": file.parent, "notebooks": file.parent / "notebooks"}
    assert error.startswith(f"redistill: own.yaml, overrides: {name}={value!r}: {told.format(**places)}")


def test_the_line_and_all_places_are_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what a file says: its folder, the working folder, the notebook's. No process is asked."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("what is not there needs no trying"))
    file.write_text("notebook: notebooks/tour.ipynb\ngrid:\n  METHODS: [red]\n  TEACHER:\n  - a\n  - no_net:make\n")
    shell = file.parent / "shell"
    shell.mkdir()
    monkeypatch.chdir(shell)
    assert main(["sweep", "../own.yaml"]) == 2
    folders = f"{file.parent}, {shell} or {file.parent / 'notebooks'}"
    assert capsys.readouterr().err == (
        f"redistill: ../own.yaml, line 6: TEACHER='no_net:make': there is no module no_net in {folders}, "
        "nor is one installed\n"
    )


def test_what_takes_long_is_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the third second on, also where nothing moves."""
    file.with_name("my_net.py").write_text(f"import time\ntime.sleep(3)\n{NET}")
    given.check_given(read_sweep(file).points)
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("trying what points name:") and "0/4" in first


def test_names_of_several_files_are_tried_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = list[int]()
    monkeypatch.setattr(given, "_tried", lambda folder, names: (asked.append(len([*names])), iter(()))[1])
    monkeypatch.setattr(command, "run_checked", lambda sweep, *_: SweepResult(sweep.name, Path(), (), (), (), None))
    file.with_name("two.yaml").write_bytes(file.read_bytes())
    assert main(["sweep", "own.yaml", "two.yaml"]) == 0
    assert asked == [1, 3]  # the network where it lies, data and methods beside the notebook


def test_what_is_tried(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that a notebook takes for something else are not, and each name once in each place."""
    asked = list[tuple[Path, list[tuple[str, str]]]]()

    def ask(folder: Path, names: Iterable[tuple[str, str]]) -> Iterator[None]:
        asked.append((folder, [*names]))
        return iter(())

    monkeypatch.setattr(given, "_tried", ask)
    first = make_notebook("first", CODE, parameters=PARAMETERS)
    panels = make_notebook("panels", "import redistill_lib as rd\npanel = panels[DATA]", parameters="DATA = ''")
    other = make_notebook("other", "model = MODELS[TEACHER]", parameters="TEACHER = ''\nMETHODS = ''")
    values = {"DATA": "digits", "TEACHER": "x:make", "METHODS": ["red", "kd"], "EPOCHS": 2}
    places = {"TEACHER": "/far/x:make"}
    given.check_given([Point("1", (first,), values, "1", places), Point("2", (first,), values, "2", places)])
    given.check_given([Point("3", (panels,), {"DATA": "cifar10: FID"}, "3")])
    given.check_given([Point("4", (other,), {"TEACHER": "a", "METHODS": "bayes"}, "4")])
    given.check_given([Point("5", (panels, first), {"DATA": "made/by/the/first"}, "5")])
    folder = tmp_path / "notebooks"
    beside = [("data", "digits"), ("methods", "red"), ("methods", "kd")]
    assert asked == [(folder, beside), (folder, [("network", "/far/x:make")])]
