"""The `redistill` command: exit codes, messages and tables."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch

import redistill_lib
from redistill_lib import report, sweep
from redistill_lib.cli import main

MakeNotebook = Callable[..., Path]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # `redistill memory` adds to it


def test_failing_cell_keeps_the_partial_notebook(
    make_notebook: MakeNotebook, capsys: pytest.CaptureFixture[str]
) -> None:
    """One kernel."""
    path = make_notebook("01_fail", "print('kept')", "1 / EPOCHS", "print('never')")
    code = main(["run", str(path), "-p", "EPOCHS", "0", "--index", "runs/index.html"])
    assert code == 1
    table, index = capsys.readouterr().out.strip().rsplit("\n", 1)
    head, row = table.splitlines()
    assert head.split() == ["notebook", "status", "time", "where"]
    assert row.split()[:2] == ["01_fail-EPOCHS=0", "failed"]
    assert row.endswith("In [4]: ZeroDivisionError: division by zero")
    assert row.index("failed") == head.index("status")
    assert index == str(Path("runs/index.html").resolve())

    partial = nbformat.read("runs/notebooks/01_fail-EPOCHS=0.ipynb", as_version=4)
    outputs = {cell.source: cell.outputs for cell in partial.cells if cell.cell_type == "code"}
    assert outputs["print('kept')"][0].text == "kept\n"
    assert outputs["1 / EPOCHS"][0].ename == "ZeroDivisionError"
    assert outputs["print('never')"] == []
    assert "division by zero" in Path("runs/notebooks/01_fail-EPOCHS=0.html").read_text()
    status = json.loads(Path("runs/notebooks/01_fail-EPOCHS=0.json").read_text())
    assert status["error"] == {"cell": 4, "ename": "ZeroDivisionError", "evalue": "division by zero"}
    assert "ZeroDivisionError: division by zero" in Path("runs/index.html").read_text()


def test_in_place(make_notebook: MakeNotebook, capsys: pytest.CaptureFixture[str]) -> None:
    """One kernel."""
    path = make_notebook("00_tour", "import os; print(EPOCHS, os.getcwd())")
    assert not report.outputs_match_source(path)
    assert main(["run", "--in-place", "--no-html", str(path)]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[-1].outputs[0].text == "3 .\n"
    assert report.outputs_match_source(path)
    assert str(path.parents[1]) not in path.read_text()
    assert "papermill" not in path.read_text()
    assert sorted(file.name for file in Path("runs/notebooks").iterdir()) == ["00_tour.ipynb", "00_tour.json"]
    assert "00_tour.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "a.ipynb", "-p", "EPOCH", "1"], "a.ipynb has no parameter EPOCH; did you mean 'EPOCHS'?"),
        (["run", "a.ipynb", "-p", "EPOCHS", "many"], "a.ipynb: EPOCHS wants int, got 'many'"),
        (["run", "a.ipynb", "-p", "LR", "1", "-p", "LR", "2"], "parameter LR is given more than once"),
        (["run", "b.ipynb"], "no notebook at"),
        (["run", "a.ipynb", "--output", "notebooks"], "holds a.ipynb itself"),
        (["run", "a.ipynb", "-p", "EPOCHS", "-1e-3"], "EPOCHS wants int, got '-1e-3'"),
        (["sweep", "grid.yaml", "--jobs", "0"], "jobs=0 is not a whole number of 1 or more"),
        (["sweep", "grid.yaml", "--jobs", "2", "--scheduler", "tcp://a:1"], "--scheduler has workers of its own"),
        (["sweep", "grid.yaml", "-p", "LR", "1", "-p", "LR", "2"], "parameter LR is given more than once"),
        (["run", "a.ipynb", "--in-place", "-p", "LR", "1"], "--in-place executes notebooks at their defaults only"),
        (["sweep", "grid.yaml"], "no sweep file at"),
        (["runs", "nowhere"], "no folder nowhere"),
        (["runs", "no\0where"], "root='no\\x00where' holds a null character"),
        (["run", "a\0b"], "notebooks='a\\x00b' holds a null character"),
        (["sweep", "a\0b"], "path='a\\x00b' holds a null character"),
    ],
)
def test_bad_usage_is_one_sentence(
    make_notebook: MakeNotebook,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    make_notebook("a")
    monkeypatch.setattr(sweep.notebook, "_execute", lambda *_: pytest.fail("a kernel would have started"))
    arguments = [f"notebooks/{word}" if word.endswith(".ipynb") else word for word in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("redistill: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["run"], ["fly"], ["run", "a.ipynb", "-p", "LR"]])
def test_argparse_errors_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: redistill" in capsys.readouterr().err


def test_ctrl_c_outside_a_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.command, "run_command", press)
    assert main(["sweep", "grid.yaml"]) == 130
    assert capsys.readouterr().err == "redistill: interrupted\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"redistill {redistill_lib.__version__}\n"


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no training runs below runs; in another store: redistill runs FOLDER\n"
    for number in range(2):
        run = {
            "params": {"seed": number, "data": "digits"},
            "status": "complete",
            "metrics": {"accuracy": 0.912345 - number / 2},
        }
        (tmp_path / "runs" / f"run{number}").mkdir()
        (tmp_path / "runs" / f"run{number}" / "run.json").write_text(json.dumps(run))
    assert main(["runs"]) == 0
    head, first, second, same = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "status", "seed", "accuracy"]
    assert first.split() == ["run0", "complete", "0", "0.9123"]
    assert second.split() == ["run1", "complete", "1", "0.4123"]
    assert same == "the same in all: role=plain code=other data=digits"
    assert main(["runs", "--columns", "seed,id,error"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["seed", "id", "error"],
        ["0", "run0"],
        ["1", "run1"],
    ]
    assert main(["runs", "--columns", "id,sede"]) == 2
    assert capsys.readouterr().err.startswith("redistill: no run here has a column 'sede'; did you mean 'seed'")
    for number, metrics in enumerate(({"validation_loss": 0.0312345, "parameters": 1234567}, {})):
        run = {"params": {"task": "diffuse", "seed": number}, "status": "complete", "metrics": metrics}
        (tmp_path / "runs" / f"unet{number}").mkdir()
        (tmp_path / "runs" / f"unet{number}" / "run.json").write_text(json.dumps(run))
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Training runs of classifiers:\n") and "NA" not in out and "nan" not in out
    head, first, second, same = out.partition("Training runs of denoisers:\n")[2].splitlines()
    assert head.split() == ["id", "status", "seed", "validation_loss", "parameters"]
    assert first.split() == ["unet0", "complete", "0", "0.03123", "1234567"]  # whole, though the other has none
    assert second.split() == ["unet1", "complete", "1"]


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["model", "usual", "plan", "total", "stride"]
    assert ["resnet18", "2-21222", "32"] in rows


# ------------------------------------------------------------------------------------------------------- memory


def test_memory_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "mobilenetv2", "--dtype", "int8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mobilenetv2-2-1222121 on 1×3×224×224 (fused, int8): peak 1.44 MiB at features.2.conv.3")
    assert ["features.2.conv.3", "conv+bn+relu6", "1×96×56×56", "1.44", "MiB"] in [
        line.split() for line in out.splitlines()
    ]
    assert "depthwise convolutions in place 1.34 MiB" in " ".join(out.split())


def test_memory_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "resnet18", "--image-size", "64", "--batch", "2", "--factor", "4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == "resnet18-8-11221" and record["inputs"] == [[2, 3, 64, 64]]
    assert record["peak_bytes"] == max(row["live_bytes"] for row in record["rows"]) == record["bounds"]["peak_bytes"]


def test_memory_as_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "unet", "--html"]) == 0
    name = "unet-1-222-32px-fused-fp32.html"
    assert capsys.readouterr().out == f"{name}\n"
    page = (tmp_path / name).read_text()
    assert "upblocks.12" in page and "<script src=" not in page  # works offline
    assert main(["memory", "resnet18", "--convention", "paper", "--html", "deep/page.html"]) == 0
    assert (tmp_path / "deep" / "page.html").is_file()


def test_memory_of_a_function_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))\n"
        "number = 3\n"
        "def late():\n"
        "    print('late')\n"
        "    import my_blocks\n"
        "    return my_blocks.block\n"
        "def sized(width):\n"
        "    return nn.Conv2d(1, width, 3)\n"
    )
    (tmp_path / "my_blocks.py").write_text("from torch import nn\nblock = nn.Conv2d(1, 8, 3)\n")
    arguments = ["memory", "my_nets:small", "--image-size", "32", "--in-channels", "1"]
    assert main(arguments) == 0
    assert "Sequential on 1×1×32×32 (fused, fp32): peak 40.0 KiB at layer 1" in capsys.readouterr().out
    assert main(["memory", "my_nets:small", "--image-size", "32x16", "--in-channels", "1"]) == 0
    assert "Sequential on 1×1×32×16 (fused, fp32): peak 20.0 KiB at layer 1" in capsys.readouterr().out
    assert main([*arguments, "--factor", "2"]) == 0
    out = capsys.readouterr().out
    assert "peak 12.0 KiB at layer 0" in out and "×2 student" in out
    assert out.splitlines()[-1] == "×2 in the stem: 12.0 KiB, 3.3× less than the teacher"
    with torch.device("meta"):
        net = importlib.import_module("my_nets").small()
    _, changes = redistill_lib.derive_student(net, 2, example=torch.zeros(1, 1, 32, 32, device="meta"))
    assert changes and all(f"\n  {change}\n" in out for change in changes)
    assert main([*arguments, "--factor", "2", "--json"]) == 0
    assert [change["layer"] for change in json.loads(capsys.readouterr().out)["changes"]] == [
        c.layer for c in changes
    ]
    assert main(["memory", "my_nets:large"]) == 2
    assert "module my_nets has no function 'large'" in capsys.readouterr().err
    assert main(["memory", "my_nets:number"]) == 2
    assert "has no function 'number' that returns an nn.Module" in capsys.readouterr().err
    assert main(["memory", "my_nets:late", "--image-size", "32", "--in-channels", "1"]) == 0  # imports when called
    assert "Conv2d on 1×1×32×32" in capsys.readouterr().out
    assert main(["memory", "my_nets:late", "--image-size", "32", "--in-channels", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "Conv2d"  # what the function prints goes elsewhere
    assert main(["memory", "my_nets:sized"]) == 2
    assert "my_nets:sized, called without arguments, raised TypeError: sized() missing 1" in capsys.readouterr().err
    assert main(["memory", "no_such_module:small"]) == 2
    assert "there is no module no_such_module in " in capsys.readouterr().err
    sys.modules.pop("my_nets")
    sys.modules.pop("my_blocks")


def test_memory_of_a_network_that_wants_more_than_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_unets.py").write_text(
        "import torch, redistill_lib as rd\n"
        "def alone(): return rd.create_model('unet-1-2', ch=8, mult=(1, 2))\n"
        "def ready(): return alone(), (torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))\n"
        "def spread(): return alone(), *ready()[1]\n"
        "def wrong(): return alone(), 'x'\n"
    )
    for arguments in (["my_unets:ready"], ["my_unets:spread"], ["my_unets:alone", "--inputs", "2x3x16x16,2:int64"]):
        assert main(["memory", *arguments, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["inputs"] == [[2, 3, 16, 16], [2]] and record["peak_bytes"] > 0
    assert main(["memory", "my_unets:alone"]) == 2
    assert "missing 1 required positional argument: 't'): fit --image-size and --in-channels, or --inputs" in (
        capsys.readouterr().err
    )
    assert main(["memory", "my_unets:ready", "--batch", "4"]) == 2
    assert "the inputs are given, so leave out --image-size, --batch and" in capsys.readouterr().err
    assert main(["memory", "my_unets:wrong"]) == 2
    assert "returns an nn.Module, or (model, inputs) with tensors" in capsys.readouterr().err
    for text in ("3x4x,1", "1:int99", "a"):
        with pytest.raises(SystemExit):
            main(["memory", "my_unets:alone", "--inputs", text])
        assert "is no input: write its shape and dtype, as 1x3x32x32 or 1:int64" in capsys.readouterr().err
    sys.modules.pop("my_unets")


def test_memory_of_a_student_with_what_blocks_add(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["memory", "mobilenetv2-1-1222121", "--image-size", "128", "--factor", "4"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    told = "RED blocks at 5 taps take the student's peak from 520 KiB to 1.12 MiB (in place 520 KiB)"
    assert told in out and "features.2.conv.3.input" in out
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["taps"]
    whole = {row["taps"]: row for row in rows if row["tap"] == "all"}
    assert whole["paper"]["peak (KiB)"] == 1152
    assert all(whole["narrow"][name] < whole["paper"][name] for name in ("peak (KiB)", "+ mult-adds (M)"))


def test_what_stands_in_the_way_of_row_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    """A shortcut keeps the first narrow map of MobileNetV2 whole; ResNet's pool is behind its chain anyway."""
    assert main(["memory", "mobilenetv2", "--image-size", "64"]) == 0
    assert "row by row, but for the shortcut from features.2.conv.6" in capsys.readouterr().out
    assert main(["memory", "resnet18", "--image-size", "64"]) == 0
    assert "shortcut" not in capsys.readouterr().out


def test_memory_within_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["memory", "unet", "--budget", "300KB", "--dtype", "int8"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    verdict, _, head, first, *_, call = out.splitlines()
    assert verdict.startswith("unet in 300 KiB: 2-212 in int8 keeps most")
    assert verdict.endswith("; peak 288 KiB, 4.0× less than the teacher")
    assert head.split()[:3] == ["plan", "dtype", "peak"]
    assert first.split()[:4] == ["2-212", "int8", "288", "KiB"] and "RED block after upblocks.11" in first
    assert call == 'To make it: student = rd.create_model("unet-2-212")'
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["plans"][0]["plan"] == "2-212" and record["nearest"]["plan"] == "8-111" and record["refused"] == {}
    assert record["nearest"]["published"]["peak_bytes"] >= record["nearest"]["plain"]["peak_bytes"]


def test_a_budget_that_nothing_fits_has_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "unet", "--budget", "1KB", "--dtype", "int8"]) == 1
    assert capsys.readouterr().out.startswith("no plan of unet fits 1.0 KiB with RED blocks as published")


@pytest.mark.parametrize(
    ("budget", "answers", "code"),
    [
        ("256KB", "in fp32 no, in int8 only with blocks in place", 0),
        ("520KB", "in fp32 only with blocks in place, in int8 yes", 0),
        ("100KB", "in fp32 no, in int8 no", 1),
    ],
)
def test_a_student_ends_with_whether_it_fits(
    budget: str, answers: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """MobileNetV2 ×4 needs 520 KiB, with blocks as published 1,152, in place 520; in int8 a quarter of each."""
    arguments = ["memory", "mobilenetv2-1-1222121", "--image-size", "128", "--factor", "4", "--budget", budget]
    assert main(arguments) == code
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("×4 in the stem (mobilenetv2-4-1221111): 520 KiB, 14.8× less than the teacher; fits ")
    assert verdict.endswith(f" with RED blocks: {answers}")
    assert main([*arguments, "--json", "--dtype", "int8"]) == code
    fits = json.loads(capsys.readouterr().out)["fits"]
    assert fits == {"int8": answers.rpartition(" in int8 ")[2]}


def test_blocks_that_have_to_fit_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At stride 2 two maps of 16·32·32 bytes are there at once; with a block as published three, in place two."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_pyramid.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    convs = [nn.Conv2d(k, 16, 3, s, 1) for k, s in ((3, 1), (16, 2), (16, 2), (16, 2))]\n"
        "    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6))\n"
    )
    arguments = ["memory", "my_pyramid:net", "--image-size", "64", "--budget", "40KB", "--dtype", "int8"]
    answers = {}
    for blocks in ("none", "published", "in place"):
        assert main([*arguments, "--blocks", blocks]) == 0
        answers[blocks] = capsys.readouterr().out.partition(" keeps most")[0]
    assert answers["none"] == answers["in place"] == "Sequential in 40.0 KiB: 2-122 in int8" != answers["published"]
    sys.modules.pop("my_pyramid")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet81"], "Unknown architecture 'resnet81'"),
        (["resnet18", "--budget", "lots"], "'lots' is not an amount of memory"),
        (["resnet18", "--budget", "256"], '\'256\' has no unit: write "256KB", or "256B"'),
        (["resnet18", "--image-size", "0"], "whole numbers of 1 or more"),
        (["resnet18", "--factor", "16"], "puts stride 32 at conv1"),
        (["resnet18", "--budget", "1MB", "--convention", "paper"], "budgets cannot be counted by paper"),
        (["resnet18", "--budget", "1MB", "--html"], "leave out --html"),
        (["resnet18", "--budget", "1MB", "--factor", "4", "--blocks", "none"], "--blocks says what --budget counts"),
        (["my_nets.py:make"], "write the module, not its file: my_nets:make"),
        (["nets/edge.py"], "write the module, not its file: nets.edge:function"),
        (["my.nets.edge"], "my.nets.edge names no function; did you mean 'my.nets:edge' (module:function)?"),
        (["resnet18-4.11221"], "Stride plan '4.11221' lacks its stem"),
    ],
)
def test_memory_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", *arguments]) == 2
    assert message in capsys.readouterr().err
