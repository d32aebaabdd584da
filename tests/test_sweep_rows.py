"""Rows that a notebook records, into JSON and back; test_sweep_notebook.py does it through a kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import redistill_lib as rd
from redistill_lib.sweep import rows

TIMES = ["2026-01-01 00:00", None, "2026-11-26 10:30"]
FRAME = pd.DataFrame(
    {
        "whole": [1, 2, 2**53 + 1],
        "loss": [0.1 + 0.2, np.nan, np.inf],
        "half": np.array([0.1, -np.inf, 3.0], dtype="float32"),
        "done": [True, False, True],
        "method": ["red", None, "é <b>"],
        "nullable": pd.array([1, None, 3], dtype="Int64"),
        "when": pd.to_datetime(TIMES),
        "zoned": pd.to_datetime(TIMES).tz_localize("Europe/Zurich"),
        "took": pd.to_timedelta([1.5, None, 3], unit="s"),
        "kind": pd.Categorical(["a", "b", None]),
        "mixed": [3, "x", None],
    }
)


def kept(notebook: Path, *records: pd.DataFrame) -> Path:
    """A notebook whose outputs carry these records, as a file."""
    cell = nbformat.v4.new_code_cell("…")
    for frame in records:
        data = {rows.MIME: rows._to_json(frame), "text/plain": "…"}
        cell.outputs.append(nbformat.v4.new_output("display_data", data=data))
    cell.outputs.append(nbformat.v4.new_output("stream", text="…"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("…"), cell]), notebook)
    return notebook


def test_every_type_comes_back(tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(rows.recorded(kept(tmp_path / "a.ipynb", FRAME)), FRAME)


def test_records_are_stacked(tmp_path: Path) -> None:
    one, two = pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"a": [3], "c": ["x"]})
    expected = pd.DataFrame({"a": [1, 3], "b": [2.0, None], "c": [None, "x"]})
    pd.testing.assert_frame_equal(rows.recorded(kept(tmp_path / "a.ipynb", one, two.head(0), two)), expected)
    assert rows.recorded(kept(tmp_path / "b.ipynb")).empty


@pytest.mark.parametrize(
    ("frame", "columns"),
    [
        (pd.DataFrame({"a": [1]}, index=pd.Index(["x"], name="arm")), {"arm": ["x"], "a": [1]}),
        (pd.DataFrame({"a": [1]}, index=["x"]), {"index": ["x"], "a": [1]}),
        (pd.DataFrame({"a": [1, 2]}, index=[7, 3]), {"a": [1, 2]}),  # what sorting or choosing leaves
        (
            pd.DataFrame({"a": [1]}, index=pd.MultiIndex.from_tuples([(4, 0)], names=["factor", "seed"])),
            {"factor": [4], "seed": [0], "a": [1]},
        ),
        (pd.DataFrame({("a", "mean"): [1], ("a", 2): [3]}), {"a.mean": [1], "a.2": [3]}),
    ],
)
def test_names_of_rows_and_columns(tmp_path: Path, frame: pd.DataFrame, columns: dict[str, list[Any]]) -> None:
    pd.testing.assert_frame_equal(rows.recorded(kept(tmp_path / "a.ipynb", frame)), pd.DataFrame(columns))


def test_single_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    display = SimpleNamespace(display=lambda bundle, raw: shown.append(bundle))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: object(), display=display))
    given = {"acc": torch.tensor(0.5), "peak": np.int64(7), "sizes": (1, np.float32(2)), "path": Path("a/b")}
    rd.record(given)
    [bundle] = shown
    assert json.loads(json.dumps(bundle[rows.MIME], allow_nan=False)) == bundle[rows.MIME]
    expected = {"acc": 0.5, "peak": 7, "sizes": [1, 2.0], "path": "a/b"}
    assert rows._from_json(bundle[rows.MIME]).to_dict("records") == [expected]
    assert "<table" in bundle["text/html"] and "peak" in bundle["text/plain"]


def test_without_jupyter_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    rd.record({"accuracy": 0.91})
    assert capsys.readouterr().out == "   accuracy\n0      0.91\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "record wants a DataFrame or a mapping of names to values, got list"),
        ({"net": torch.nn.Identity()}, "column 'net' holds a Identity, which a table cannot keep: give"),
        ({"a": [{"b": 1}]}, "column 'a' holds a dict"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the table has several columns 'a': name them apart"),
    ],
)
def test_what_no_table_keeps_is_refused(given: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"^\S") as error:
        rd.record(given)
    assert str(error.value).startswith(message)
    assert capsys.readouterr().out == ""


def test_what_holds_no_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    with pytest.raises(FileNotFoundError, match="no notebook at"):
        rows.recorded(path)
    path.write_text('{"half": ')
    with pytest.raises(ValueError, match="is not a notebook, or its rows were changed by hand"):
        rows.recorded(path)
    kept(path, FRAME)
    path.write_text(path.read_text().replace('"values"', '"value"'))
    with pytest.raises(ValueError, match="changed by hand"):
        rows.recorded(path)


def test_a_record_may_show_less_than_it_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    rows = pd.DataFrame({"arm": ["naive"], "accuracy": [0.9], "run": ["long-name"]})
    rd.record(rows, ["arm", "accuracy"])
    assert "naive" in (told := capsys.readouterr().out) and "long-name" not in told
    with pytest.raises(ValueError, match="show names 'acuracy'; the table has arm, accuracy, run"):
        rd.record(rows, ["acuracy"])


def test_recording_costs_no_torch() -> None:
    code = (
        "import sys, redistill_lib as rd; rd.record({'a': 1}); assert not {'torch', 'IPython'} & sys.modules.keys()"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True)
