"""What points name is tried before a kernel starts: networks, data and methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from redistill_lib.cli import main
from redistill_lib.sweep import Point, given, read_sweep, run_sweep

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
    return capsys.readouterr().err


def test_all_is_tried_where_kernels_work(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "own.yaml", "--dry-run"]) == 0
    assert "2 to do" in capsys.readouterr().out
    file.with_name("my_net.py").write_text("import nothing_there")
    told = "redistill: tour-METHODS=red+kd: TEACHER='my_net:make': No module named 'nothing_there'\n"
    assert refused(["--dry-run"], capsys) == refused([], capsys) == told
    with pytest.raises(ValueError, match="No module named 'nothing_there'"):
        run_sweep(read_sweep(file))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TEACHER", "no_net:make", "there is no module no_net in"),
        ("DATA", "./none", "DATA='./none': There is no folder ./none"),
        ("METHODS", "red+kdd", "METHODS='red+kdd': unknown distillation method 'kdd'; did you mean 'kd'"),
    ],
)
def test_what_is_not_there_is_refused(
    file: Path, capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    error = refused(["--dry-run", "-p", name, value], capsys)
    assert told in error and error.count("\n") == 1
    counts = "; it counts from the sweep file, the working folder or the notebook"
    assert error.rstrip().endswith(counts) == (name != "METHODS")


def test_what_is_tried(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that a notebook takes for something else are not, and each name once in each place."""
    asked = list[tuple[Path, list[tuple[str, str]]]]()

    def ask(folder: Path, names: Iterable[tuple[str, str]]) -> None:
        asked.append((folder, [*names]))

    monkeypatch.setattr(given, "_refused", ask)
    first = make_notebook("first", CODE, parameters=PARAMETERS)
    panels = make_notebook("panels", "import redistill_lib as rd\npanel = panels[DATA]", parameters="DATA = ''")
    other = make_notebook("other", "model = MODELS[TEACHER]", parameters="TEACHER = ''\nMETHODS = ''")
    values = {"DATA": "a/b", "TEACHER": "x:make", "METHODS": ["red", "kd"], "EPOCHS": 2}
    places = {"TEACHER": "/far/x:make"}
    given.check_given([Point("1", (first,), values, "1", places), Point("2", (first,), values, "2", places)])
    given.check_given([Point("3", (panels,), {"DATA": "cifar10: FID"}, "3")])
    given.check_given([Point("4", (other,), {"TEACHER": "a", "METHODS": "bayes"}, "4")])
    given.check_given([Point("5", (panels, first), {"DATA": "made/by/the/first"}, "5")])
    folder = tmp_path / "notebooks"
    beside = [("data", "a/b"), ("methods", "red"), ("methods", "kd")]
    assert asked == [(folder, beside), (folder, [("network", "/far/x:make")])]
