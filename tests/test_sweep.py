"""Parameters, sweeps and what executed notebooks leave; no kernel starts here."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from PIL import Image, ImageChops

from redistill_lib import report, sweep
from redistill_lib.parameters import convert, notebook_parameters
from redistill_lib.progress import duration
from redistill_lib.report.outputs import WIDGET_VIEW, _with_small_images
from redistill_lib.sweep.manifest import claim

MakeNotebook = Callable[..., Path]
EXPECTED = {
    "EPOCHS": 3,
    "LR": 0.1,
    "AMP": True,
    "PLAN": "4-11221",
    "SEEDS": [0, 1],
    "SIZES": (8, 16),
    "COLOUR": "#fff",
    "NOTE": None,
}


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Notebooks that would have been executed; nothing is."""
    executed: list[Path] = []

    def execute(notebook: Path, folder: Path, progress: bool, png: bool) -> None:
        executed.append(notebook)

    monkeypatch.setattr(sweep.notebook, "_execute", execute)
    return executed


# parameters


def test_defaults_are_read_as_python(make_notebook: MakeNotebook) -> None:
    assert notebook_parameters(make_notebook("tour")) == EXPECTED


def test_annotated_and_multiline_defaults(make_notebook: MakeNotebook) -> None:
    path = make_notebook("tour", parameters="LR: float = 1e-3\nSEEDS = [\n    0,  # first\n    1,\n]\n")
    assert notebook_parameters(path) == {"LR": 1e-3, "SEEDS": [0, 1]}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "no cell tagged 'parameters'"),
        ("STEPS = 3 * 4", "parameter STEPS must be a literal, got '3 * 4'"),
        ("import os", "may hold only NAME = literal, got 'import os'"),
        ("A = B = 1", "may hold only NAME = literal, got 'A = B = 1'"),
        ("%matplotlib inline", "not plain Python: invalid syntax, line 1"),
    ],
)
def test_bad_parameters_cells(make_notebook: MakeNotebook, parameters: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=r"tour\.ipynb") as error:
        notebook_parameters(make_notebook("tour", parameters=parameters))
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["not json", "[]", "{}", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_other_files_are_not_notebooks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.ipynb is not a Jupyter notebook"):
        notebook_parameters(path)


def test_missing_notebook_names_its_neighbour(make_notebook: MakeNotebook) -> None:
    path = make_notebook("00_tour")
    with pytest.raises(FileNotFoundError, match=r"no notebook at .*tuor\.ipynb; did you mean '00_tour\.ipynb'"):
        sweep.run_notebook(path.with_name("00_tuor.ipynb"))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("EPOCHS", "12", 12),
        ("EPOCHS", 12, 12),
        ("LR", "1e-3", 1e-3),
        ("LR", "2", 2.0),
        ("LR", 2, 2.0),
        ("AMP", "false", False),
        ("AMP", "YES", True),
        ("AMP", "0", False),
        ("AMP", False, False),
        ("PLAN", "8-11121", "8-11121"),
        ("PLAN", "3", "3"),
        ("SEEDS", "[3, 4]", [3, 4]),
        ("SEEDS", "3, 4", [3, 4]),
        ("SEEDS", (3, 4), [3, 4]),
        ("SIZES", "[32]", (32,)),
        ("NOTE", "None", None),
        ("NOTE", "7", 7),
        ("NOTE", "8-11121", "8-11121"),
        ("NOTE", [1], [1]),
    ],
)
def test_values_take_the_type_of_the_default(name: str, given: Any, value: Any) -> None:
    converted = convert(name, given, EXPECTED[name])
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("EPOCHS", "many", "EPOCHS wants int, got 'many'"),
        ("EPOCHS", "3.0", "EPOCHS wants int, got '3.0'"),
        ("EPOCHS", True, "EPOCHS wants int, got True"),
        ("EPOCHS", None, "EPOCHS wants int, got None"),
        ("LR", "fast", "LR wants float, got 'fast'"),
        ("LR", "nan", "LR wants a finite float, got nan"),
        ("AMP", "maybe", "AMP wants bool, got 'maybe'"),
        ("AMP", 1, "AMP wants bool, got 1"),
        ("PLAN", 4, "PLAN wants str, got 4"),
        ("SEEDS", "3", "SEEDS wants list, got '3'"),
        ("SEEDS", "[3", "SEEDS wants list, got '[3'"),
    ],
)
def test_values_of_another_type_are_errors(name: str, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match="wants") as error:
        convert(name, given, EXPECTED[name])
    assert str(error.value) == message


def test_unknown_parameter_lists_close_matches(make_notebook: MakeNotebook, no_kernel: list[Path]) -> None:
    first, second = make_notebook("a"), make_notebook("b", parameters="LR = 0.1")
    with pytest.raises(ValueError, match=r"a.ipynb has no parameter epoch; did you mean 'EPOCHS'\? it has EPOCHS"):
        sweep.run_notebooks([first], {"epoch": 1})
    with pytest.raises(ValueError, match=r"b.ipynb has no parameter EPOCHS; it has LR$"):
        sweep.run_notebooks([first, second], {"EPOCHS": 1})
    assert no_kernel == []


# execution


def test_output_folder_must_be_another(make_notebook: MakeNotebook, tmp_path: Path, no_kernel: list[Path]) -> None:
    path = make_notebook("a")
    with pytest.raises(ValueError, match=r"holds a\.ipynb itself"):
        sweep.run_notebooks([path], output_dir=path.parent)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        sweep.run_notebooks([path], output_dir=tmp_path / "file")
    assert no_kernel == []


def test_equal_names_would_overwrite_each_other(
    make_notebook: MakeNotebook, tmp_path: Path, no_kernel: list[Path]
) -> None:
    path = make_notebook("a")
    twin = tmp_path / "other" / "a.ipynb"
    twin.parent.mkdir()
    twin.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="several notebooks are named a:"):
        sweep.run_notebooks([path, twin], output_dir=tmp_path / "out")
    assert no_kernel == []


def test_two_calls_never_write_the_same_files(
    make_notebook: MakeNotebook, tmp_path: Path, no_kernel: list[Path]
) -> None:
    first, second, out = make_notebook("a"), make_notebook("b"), tmp_path / "out"
    other = claim(out, "b-EPOCHS=2")
    other.acquire(blocking=False)
    with pytest.raises(ValueError, match=r"another process executes b-EPOCHS=2 into .*out: wait for it, or"):
        sweep.run_notebooks([first, second], {"EPOCHS": 2}, out)
    assert no_kernel == [] and [file.name for file in (out / "claims").iterdir()] == ["b-EPOCHS=2.lock"]
    other.release()


@pytest.mark.parametrize("wrong", [4, None, b"a.ipynb", "a\0.ipynb"])
def test_what_is_no_path_is_refused_before_any_kernel(
    make_notebook: MakeNotebook, no_kernel: list[Path], wrong: Any
) -> None:
    path = make_notebook("a")
    calls: list[Callable[[], object]] = [
        lambda: notebook_parameters(wrong),
        lambda: sweep.read_sweep(wrong),
        lambda: sweep.run_notebook(wrong),
        lambda: sweep.run_notebook(path, output_dir=wrong),
        lambda: sweep.run_notebooks([path, wrong]),
        lambda: sweep.run_notebooks([path], output_dir=wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^\w+=.* (is not text or a path|holds a null character)") as error:
            call()
        assert str(error.value).count("\n") == 0
    assert no_kernel == []


def test_one_notebook_alone_is_a_list_of_one(
    make_notebook: MakeNotebook, tmp_path: Path, no_kernel: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [r.name for r in sweep.run_notebooks(str(make_notebook("a")), output_dir=tmp_path, html=False)] == ["a"]
    assert "a: ok, 0 s" in capsys.readouterr().err  # a line each, off a terminal
    sweep.run_notebooks(str(make_notebook("a")), output_dir=tmp_path, html=False, progress=True)
    assert "a: ok" not in capsys.readouterr().err


# committed outputs


def executed_copy(path: Path, target: Path, outputs: list[list[dict[str, Any]]]) -> Path:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, (cell, cell_outputs) in enumerate(zip(code, outputs, strict=True), start=1):
        cell.execution_count = number
        cell.outputs = [nbformat.from_dict(output) for output in cell_outputs]
        cell.metadata["papermill"] = {"status": "completed"}
    notebook.metadata["papermill"] = {"output_path": str(target)}
    nbformat.write(notebook, target)
    return target


def printed(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(**data: Any) -> dict[str, Any]:
    bundle = {{"html": "text/html", "plain": "text/plain"}.get(key, key): value for key, value in data.items()}
    return {"output_type": "display_data", "data": bundle, "metadata": {}}


def test_refreshed_outputs_are_clean_and_stamped(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    path = make_notebook("tour", "print(1)", "slider")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {"state": {}}
    nbformat.write(notebook, path)
    root, home = path.parents[1], Path.home()
    paths = f"{path.parent}/x.csv {root}/runs file://{root}/a {home}/.cache {sys.prefix}/lib {root}-other"
    base64 = f"QUJD{home}/QUJD"
    outputs = [[], [printed(paths)], [shown(**{WIDGET_VIEW: {}, "plain": "IntSlider()"}), shown(html=base64)]]

    assert not report.outputs_match_source(path)
    report.refresh_outputs(path, executed_copy(path, tmp_path / "done.ipynb", outputs))

    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    # pytest's tmp_path is in no folder that has a name here, so nothing but the six folders may change
    assert cells[1].outputs[0].text == f"./x.csv ../runs ../a ~/.cache …/lib {root}-other"
    assert [dict(output.data) for output in cells[2].outputs] == [{"text/html": base64}]
    assert all("papermill" not in cell.metadata for cell in cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "redistill"}
    assert report.outputs_match_source(path)

    notebook.cells[0].source += " changed"
    nbformat.write(notebook, path)
    assert not report.outputs_match_source(path)


@pytest.mark.parametrize(("shades", "most"), [(0, 2), (400, 6)])
def test_images_are_made_smaller_and_look_the_same(shades: int, most: int) -> None:
    chart = Image.new("RGB", (400, 300), "white")
    for k in range(200):
        chart.paste((k, 120, 255 - k), (2 * k, 300 - k, 2 * k + 2, 300))
    for k in range(shades):  # more than are kept
        chart.paste((k // 2, k // 2, k // 2), (k, 0, k + 1, 20))
    chart.paste((17, 119, 51), (20, 40, 26, 46))  # one small marker
    data = io.BytesIO()
    chart.save(data, "png", compress_level=1)
    output = shown(**{"image/png": base64.b64encode(data.getvalue()).decode(), "plain": "Figure"})
    small = _with_small_images(output)
    assert len(small["data"]["image/png"]) < 0.7 * len(output["data"]["image/png"])
    assert small["data"]["text/plain"] == "Figure"
    back = Image.open(io.BytesIO(base64.b64decode(small["data"]["image/png"]))).convert("RGB")
    assert max(high for _, high in ImageChops.difference(chart, back).getextrema()) <= most
    assert _with_small_images(shown(html="x")) == shown(html="x")


def test_outputs_of_other_cells_are_refused(make_notebook: MakeNotebook, tmp_path: Path) -> None:
    path = make_notebook("tour", "print(1)")
    done = executed_copy(path, tmp_path / "done.ipynb", [[], [printed("1")]])
    before = make_notebook("tour", "print(2)").read_bytes()
    with pytest.raises(ValueError, match="changed while it ran"):
        report.refresh_outputs(path, done)
    assert path.read_bytes() == before


# index page


def record(folder: Path, name: str, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").touch()
    status = {"name": name, "status": "ok", "seconds": 75, "error": None, "parameters": {}}
    files = {"notebook": f"{name}.ipynb", "html": f"{name}.html"}
    (folder / f"{name}.json").write_text(json.dumps(status | files | changes))


def test_index_page(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    record(runs / "notebooks", "00_tour", parameters={"NOTE": "<b>"})
    error = {"cell": 4, "ename": "ValueError", "evalue": "a < b\nsecond line"}
    record(runs / "notebooks", "01 fail", status="failed", error=error, html=None, seconds=5)
    record(tmp_path / "elsewhere", "02_far")
    for number, accuracy in enumerate((0.91234, 0.5)):
        run = {"params": {"model": f"net{number}", "epochs": 6, "taps": [1]}, "status": "complete"}
        (runs / f"run{number}").mkdir()
        (runs / f"run{number}" / "run.json").write_text(json.dumps(run | {"metrics": {"accuracy": accuracy}}))

    page = report.write_index(runs, notebooks=[tmp_path / "elsewhere"]).read_text()

    assert '<a href="notebooks/00_tour.html">00_tour</a>' in page
    assert '<a href="notebooks/01%20fail.ipynb">01 fail</a>' in page
    assert '<a href="../elsewhere/02_far.html">02_far</a>' in page
    assert "<code>NOTE=&lt;b&gt;</code>" in page
    assert "In [4]: ValueError: a &lt; b</p>" in page
    assert "2 ok, 1 failed, 3 min in all" in page
    assert "2 runs; the same in all: <code>role=plain</code> <code>code=other</code> <code>epochs=6</code>" in page
    assert "<td>net0</td>" in page and "<td>0.9123</td>" in page
    assert "taps" not in page
    assert str(tmp_path) not in page
    assert "http" not in page  # self-contained: nothing is loaded from elsewhere


def test_index_page_of_an_empty_folder(tmp_path: Path) -> None:
    page = report.write_index(tmp_path / "runs", file=tmp_path / "pages" / "i.html").read_text()
    assert "None executed yet" in page
    assert "<h2>Training runs</h2><p>None yet.</p>" in page


def test_durations() -> None:
    told = [duration(seconds) for seconds in (0, 4.21, 59.96, 99.4, 99.6, 840, 3599, 7300)]
    assert told == ["0 s", "4.2 s", "60 s", "99 s", "2 min", "14 min", "1 h 0 min", "2 h 2 min"]


def test_what_is_given_is_in_the_name(make_notebook: MakeNotebook, tmp_path: Path, no_kernel: list[Path]) -> None:
    path = make_notebook("tour", "1")
    for given in ({}, {"EPOCHS": 1}, {"PLAN": "8-11121"}):
        sweep.run_notebooks([path], given, tmp_path / "out", html=False)
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.ipynb")) == [
        "tour",
        "tour-EPOCHS=1",
        "tour-PLAN=8-11121",
    ]
