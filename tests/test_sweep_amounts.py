"""Numbers, sizes and factors are refused before a kernel starts, by `redistill run` and by `redistill sweep`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from redistill_lib.cli import main
from redistill_lib.own import check_named
from redistill_lib.sweep import Point, SweepResult, given, kernel
from redistill_lib.sweep.amounts import check_amounts
from redistill_lib.sweep.command import account
from redistill_lib.sweep.manifest import PointStatus
from redistill_lib.sweep.progress import outcome

MakeNotebook = Callable[..., Path]
CODE = "import redistill_lib as rd\nnetwork = rd.resolve_model(TEACHER)\nstudent = rd.student_of(network, FACTOR, x)"
PARAMETERS = """DATA = "digits"
TEACHER = "resnet18-1-21222"
FACTOR = 4
SECONDS = 30.0
IMAGE_SIZE = None
SEEDS = 1
PEAK = "18KB"
"""
NET = """
from torch import nn

def make():
    layers = nn.Conv2d(1, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


@pytest.fixture
def notebook(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_notebook("tour", CODE, parameters=PARAMETERS)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SECONDS", "0", "SECONDS=0.0: write a number above 0"),
        ("IMAGE_SIZE", "0", "IMAGE_SIZE=0: write a whole number of 1 or more"),
        ("IMAGE_SIZE", "40.0", "IMAGE_SIZE=40.0: write a whole number of 1 or more"),
        ("SEEDS", "0", "SEEDS=0: write a whole number of 1 or more"),
        ("PEAK", "24", """PEAK='24': '24' has no unit: write "24KB", or "24B" if you mean bytes"""),
        ("PEAK", "much", "PEAK='much': 'much' is not an amount of memory"),
        ("FACTOR", "-2", "FACTOR=-2: write a whole number of 1 or more"),
    ],
)
def test_amounts_are_refused_before_a_kernel_starts(
    notebook: Path, capsys: pytest.CaptureFixture[str], name: str, value: str, told: str
) -> None:
    assert main(["run", str(notebook), "-p", name, value]) == 2
    assert capsys.readouterr().err.startswith(f"redistill: tour.ipynb: {told}")
    Path("a.yaml").write_text(f"notebook: {notebook}\ngrid:\n  DATA: [digits]\n  {name}: ['{value}']\n")
    assert main(["sweep", "a.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"redistill: a.yaml, line 4: {told}")
    assert not Path("runs").exists()


def test_what_a_notebook_may_leave_open_is_no_fault(notebook: Path, make_notebook: MakeNotebook) -> None:
    """None, a seed 0 in a list, and whatever a notebook that does not import the library means by a name."""
    values = {"IMAGE_SIZE": None, "SEEDS": [0, 1], "SECONDS": 0.5, "FACTOR": 8}
    foreign = make_notebook("foreign", "print(SECONDS)", parameters="SECONDS = 1")
    check_amounts([Point("a", (notebook,), values, "a"), Point("b", (foreign,), {"SECONDS": 0}, "b")])


def test_a_factor_without_a_student_is_refused(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strides of 2, 2, 2, 2: of ×4 the pool's first. One's own network strides by 4 in all."""
    assert main(["run", str(notebook), "-p", "FACTOR", "64"]) == 2
    told = "tour.ipynb: FACTOR=64: resnet18-1-21222 has no student at ×64: there are some at ×2, ×4, ×8, ×16"
    assert told in capsys.readouterr().err
    Path("my_net.py").write_text(NET)
    own = "parameters: {TEACHER: my_net:make}\ngrid: {FACTOR: [2, 8]}"
    Path("a.yaml").write_text(f"notebook: {notebook}\n{own}\n")
    assert main(["sweep", "a.yaml"]) == 2
    told = f"a.yaml, line 3: FACTOR=8: {Path.cwd()}/my_net:make has no student at ×8: there are some at ×2, ×4"
    assert told in capsys.readouterr().err
    assert not Path("runs").exists()


def test_students_of_networks_that_need_other_images_are_left_to_the_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_flat_net.py").write_text("from torch import nn\n\ndef make(): return nn.Linear(4, 2)\n")
    check_named("student", "my_flat_net:make", 64, None)
    (tmp_path / "my_deep_net.py").write_text(NET)
    check_named("student", "my_deep_net:make", 4, 16)
    with pytest.raises(ValueError, match="divides its images by 4, which an example"):
        check_named("student", "my_deep_net:make", 4, 3)


def test_run_tries_what_its_parameters_name(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says the folder in which the command was typed."""
    assert main(["run", str(notebook), "-p", "TEACHER", "no_net:make"]) == 2
    folders = f"{Path.cwd()} or {notebook.parent}"
    told = f"TEACHER='no_net:make': there is no module no_net in {folders}, nor is one installed"
    assert capsys.readouterr().err == f"redistill: tour.ipynb: {told}\n"
    assert not Path("runs").exists()


def test_notebooks_in_turn_may_make_the_data_of_the_next(notebook: Path, make_notebook: MakeNotebook) -> None:
    loads = make_notebook("loads", "import redistill_lib as rd\nrd.load_data(DATA)", parameters="DATA = ''")
    points = [Point(path.stem, (path,), {"DATA": "./made"}, path.stem) for path in (notebook, loads)]
    given.check_given(points, in_turn=True)
    with pytest.raises(ValueError, match=r"there is no folder \./made in"):
        given.check_given(points[1:], in_turn=True)


def test_where_a_notebook_is_is_said_by_its_section() -> None:
    """By the last heading below the title, and before any by the first line that is no import."""
    work = "import a\nfrom b import (\n    c,\n)\n\nfound = c(a)"
    cells = [new_markdown_cell("# Title"), new_code_cell(work)]
    cells += [new_markdown_cell("## The ways that fit\n\nText."), new_code_cell(work), new_code_cell("%time 1")]
    cells += [new_markdown_cell("# Another"), new_code_cell("%matplotlib\nimport a"), new_code_cell("import a")]
    seen = list[tuple[int, int, str]]()
    options = kernel.NotebookOptions(on_cell=lambda *told: seen.append(told))
    run = kernel._Execution(Path("a.ipynb"), options, kernel.Signals())
    run.on_notebook_start(notebook := new_notebook(cells=cells))
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            run.on_cell_execute(cell, index)
    fit = "The ways that fit"
    assert [told for *_, told in seen] == ["found = c(a)", fit, fit, "%matplotlib", "import a"]
    assert [told[:2] for told in seen] == [(done, 5) for done in range(5)]


def test_after_a_signal_it_is_said_how_to_go_on() -> None:
    """With what was typed, but --force, which would do again what is done; an interrupted point has no reason."""
    stopped = PointStatus("b", "k", "interrupted", "call", seconds=4.2, error="In [10]: KeyboardInterrupt")
    result = SweepResult("mine", Path("mine"), (stopped,), ("b",), ("c",), None, signal=2)
    typed = ["sweep", "my grid.yaml", "--force", "-p", "LR", "-1"]
    assert account(result, 2, typed) == [
        "mine, 2 points: 0 ok (0 before), 1 interrupted, 1 left",
        "To go on: redistill sweep 'my grid.yaml' -p LR -1",
    ]
    assert len(account(replace(result, signal=None), 2, typed)) == 1
    assert outcome(stopped) == "interrupted, 4.2 s"
