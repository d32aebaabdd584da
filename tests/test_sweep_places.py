"""Paths and modules count from where they are written; what decides no result is in no key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from redistill_lib.cli import main
from redistill_lib.data.sources import BUILT_IN as DATA_SETS
from redistill_lib.sweep import read_sweep
from redistill_lib.sweep.places import BUILT_IN, located
from redistill_lib.sweep.points import notebook_point

MakeNotebook = Callable[..., Path]
PARAMETERS = 'DATA = "cluttered"\nNET = "resnet18"\nFACTOR = 4\nJOBS = 2\nRUNS = "../runs"'


@pytest.fixture
def shell(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are typed, with a folder of images and a network; a notebook and a sweep lie elsewhere."""
    here = tmp_path / "shell"
    (here / "pngs").mkdir(parents=True)
    (here / "digits").mkdir()
    (here / "hf").mkdir()
    (here / "my_net.py").write_text("def make(): return 1")
    (tmp_path / "sweeps").mkdir()
    make_notebook("tour", "print(DATA)", parameters=PARAMETERS)
    monkeypatch.chdir(here)
    return here


def test_what_is_there_is_named_absolutely(shell: Path) -> None:
    def place(name: str, value: Any) -> str | None:
        return located(name, value, shell)

    assert BUILT_IN == DATA_SETS
    assert place("DATA", "pngs") == place("DATA", "./pngs/") == place("WHATEVER", "./pngs") == str(shell / "pngs")
    assert place("NET", "my_net:make") == place("NET", "../shell/my_net:make") == f"{shell}/my_net:make"
    assert place("RUNS", "new/store") == str(shell / "new" / "store")  # the notebook makes it
    assert place("DATA", "..") == str(shell.parent)
    others = [("DATA", "digits"), ("DATA", "hf:stl10"), ("DATA", "hf:a/b"), ("DATA", "none"), ("METHODS", "pngs")]
    others += [("NET", "resnet18"), ("NET", "torch.nn:Identity"), ("DATA", str(shell / "pngs")), ("DATA", "~/none")]
    others += [("SIZES", 3), ("SIZES", ["./pngs"]), ("NOTE", ""), ("NOTE", "a/\0")]
    assert [(name, value) for name, value in others if place(name, value)] == []


def test_the_home_folder_is_one_place(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell replaces what a sweep file says; what is there decides the key as anywhere else."""
    monkeypatch.setenv("HOME", str(shell))
    file = shell.parent / "sweeps" / "own.yaml"
    file.write_text(
        "notebook: ../notebooks/tour.ipynb\nparameters: {DATA: ~/pngs, NET: ~/my_net:make, RUNS: ~/new}\n"
    )
    (point,) = read_sweep(file).points
    assert point.located == {"DATA": f"{shell}/pngs", "NET": f"{shell}/my_net:make", "RUNS": f"{shell}/new"}
    (shell / "my_net.py").write_text("def make(): return 2")
    assert read_sweep(file).points[0].key != point.key


def test_what_is_typed_counts_from_the_shell(shell: Path) -> None:
    notebook = shell.parent / "notebooks" / "tour.ipynb"
    point = notebook_point(notebook, {"DATA": "pngs", "NET": "my_net:make", "FACTOR": "8"})
    assert point.located == {"DATA": str(shell / "pngs"), "NET": f"{shell}/my_net:make"}
    assert (point.parameters["DATA"], point.name[:14]) == ("pngs", "tour-DATA=pngs")
    assert main(["run", str(notebook), "-p", "DATA", "pngs", "--no-html", "--output", "out"]) == 0
    executed = nbformat.read(shell / "out" / "tour-DATA=pngs.ipynb", as_version=4).cells
    assert executed[-1].outputs[0].text == f"{shell / 'pngs'}\n"


def test_what_a_sweep_file_says_counts_from_the_file(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shell.parent / "sweeps" / "own.yaml"
    file.write_text("notebook: ../notebooks/tour.ipynb\nparameters: {DATA: ../shell/pngs, NET: my_net:make}\n")
    (point,) = read_sweep(file).points  # no my_net beside the file, so that of the shell is taken
    assert point.located == {"DATA": str(shell / "pngs"), "NET": f"{shell}/my_net:make"}
    (shell.parent / "sweeps" / "my_net.py").write_text("def make(): return 2")
    (own,) = read_sweep(file).points
    assert own.located["NET"] == f"{shell.parent / 'sweeps'}/my_net:make" and own.key != point.key
    monkeypatch.chdir(shell.parent)
    assert read_sweep(file).points[0].key == own.key  # wherever it is read


def test_a_key_knows_which_folder_was_typed(shell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shell.parent / "sweeps" / "own.yaml"
    file.write_text("notebook: ../notebooks/tour.ipynb\n")
    other = shell.parent / "other"
    (other / "pngs").mkdir(parents=True)
    (here,) = read_sweep(file, {"DATA": "pngs"}).points
    monkeypatch.chdir(other)
    (there,) = read_sweep(file, {"DATA": "pngs"}).points
    assert here.name == there.name == "tour-DATA=pngs" and here.key != there.key


def test_where_trainings_are_kept_and_how_many_run_decides_nothing(shell: Path) -> None:
    file = shell.parent / "sweeps" / "own.yaml"
    file.write_text("notebook: ../notebooks/tour.ipynb\ngrid: {FACTOR: [2, 4]}\n")
    plain = [(point.name, point.key) for point in read_sweep(file).points]
    given = read_sweep(file, {"JOBS": "1", "RUNS": "store"}).points
    assert [(point.name, point.key) for point in given] == plain
    assert given[0].parameters["JOBS"] == 1 and given[0].located["RUNS"] == str(shell / "store")
    assert plain != [(point.name, point.key) for point in read_sweep(file, {"DATA": "digits"}).points]
    file.write_text("notebook: ../notebooks/tour.ipynb\ngrid: {JOBS: [1, 2]}\n")
    with pytest.raises(ValueError, match="the points JOBS=1 and JOBS=2 are the same"):
        read_sweep(file)
