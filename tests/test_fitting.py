"""From a budget to a file that runs within it, or the nearest miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import redistill_lib as rd
from redistill_lib.cli import main
from redistill_lib.comparison import lengths
from redistill_lib.data import DataSplits
from redistill_lib.fitting import Fitted, Target, WaysToFit, device, fit_to_device
from redistill_lib.train import Recipe, RunOptions

pytestmark = pytest.mark.filterwarnings("ignore")
TEACHER = rd.Arm("resnet18-1-21222", width=0.125, recipe=Recipe(epochs=1))


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return rd.load_data("digits", limit=60, image_size=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunOptions:
    return RunOptions(runs_dir=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.fixture(autouse=True)
def given_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an epoch costs, as if it had been measured."""
    monkeypatch.setattr(lengths, "_measure", lambda *_: lengths.EpochCost(2.0))
    monkeypatch.setattr(lengths, "_memory", lambda *_: 0.0)


@pytest.fixture(scope="module")
def ways(data: DataSplits) -> WaysToFit:
    image = torch.zeros(1, 1, data.image_size, data.image_size)
    return rd.ways_to_fit("resnet18-1-21222", "6KB", image, width=0.125, convention="executorch")


def fit(data: DataSplits, file: Path, options: RunOptions, budget: str = "6KB") -> Fitted:
    return fit_to_device(TEACHER, data, Target(file, budget), training=rd.Budget(epochs=1), options=options)


def test_the_file_fits_and_is_the_best_on_validation(
    data: DataSplits, ways: WaysToFit, runs: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "WAYS", 2)
    monkeypatch.setattr(device, "_ways", lambda *_: ways)  # which take seconds
    found = fit(data, tmp_path / "net.pte", runs)
    assert found.fits and found.needs and found.needs.needed_bytes <= 6 * 1024 and found.compared is not None
    scores = found.compared.runs.set_index("arm")["validation_accuracy"]
    assert scores[found.arm] == scores.max() and 2 < len(scores) <= 4
    assert any("with red+kd" in name for name in scores.index)
    assert rd.load_exported(tmp_path / "net.pte")(rd.to_float(data.test.head(3)[0])).shape == (3, 10)
    assert "of test images right" in str(found) and "of 6.0 KiB" in str(found)
    assert "beside it: " in str(found) and "there already" not in str(found)  # this teacher was trained for it
    assert found.choice and found.needs.needed_bytes == found.choice.cost.needed_bytes


def test_the_teacher_itself_may_fit_row_by_row(data: DataSplits, ways: WaysToFit, tmp_path: Path) -> None:
    image = torch.rand(1, 1, data.image_size, data.image_size)
    teacher = rd.create_model("resnet18-1-21222", width=0.125, in_channels=1).eval()
    own = next(choice for choice in ways.fits if not choice.trained)
    assert own.until and own.asks == "nothing" and own.cost.needed_bytes <= 6 * 1024
    assert rd.profile_memory(teacher, image, convention="executorch").arena_bytes > 6 * 1024
    made = rd.export_model(rd.stream_rows(teacher, example=image, until=own.until), tmp_path / "own.pte", image)
    assert rd.measure_runtime(made.file).needed_bytes == own.cost.needed_bytes


def test_what_needs_more_than_was_predicted_gives_way_to_the_next(
    data: DataSplits, runs: RunOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, factors = device.measure_runtime, [2, 1]

    def heavier(file: Path) -> object:
        needs = measure(file)
        return replace(needs, arena_bytes=(factors.pop(0) if factors else 2) * 2560)

    monkeypatch.setattr(device, "measure_runtime", heavier)
    monkeypatch.setattr(device, "WAYS", 1)
    found = fit(data, tmp_path / "net.pte", runs, "3KB")
    assert [needs.arena_bytes for _, needs in found.missed] == [5 * 1024] and found.fits
    assert f"{found.missed[0][0]} was predicted to fit 3.0 KiB, but needs 5.0 KiB" in str(found)
    kept, (_, heavy) = (tmp_path / "net.pte").read_bytes(), found.missed[0]
    monkeypatch.setattr(device, "_ways", lambda *_: found.ways)  # which take seconds, as do files
    monkeypatch.setattr(device, "_written", lambda *_: (found.made, heavy))
    nothing = fit(data, tmp_path / "net.pte", runs, "3KB")
    assert not nothing.fits and len(nothing.missed) > 1 and "nothing that was trained fits" in str(nothing)
    assert (tmp_path / "net.pte").read_bytes() == kept and [*tmp_path.iterdir()] == [tmp_path / "net.pte"]


def test_nothing_is_trained_where_nothing_fits(data: DataSplits, tmp_path: Path) -> None:
    found = fit(data, tmp_path / "net.pte", RunOptions(runs_dir=tmp_path / "runs"), "1KB")
    assert not found.fits and "nothing of" in str(found) and not (tmp_path / "runs").exists()


def test_targets_that_cannot_be_met(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has to end in \.onnx"):
        Target("net.bin", "24KB")
    with pytest.raises(ValueError, match=r"what ExecuTorch needs in int8 is not predicted"):
        Target("net.pte", "24KB", int8=True)
    assert Target("net.tflite", "24KB", int8=True).nbytes == 24 * 1024
    (tmp_path / "net.pte").mkdir()
    with pytest.raises(ValueError, match=r"net\.pte is a folder; name a file in it"):
        Target(tmp_path / "net.pte", "24KB")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is no folder that takes files"):
        Target(tmp_path / "file" / "net.pte", "24KB")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "resnet18-1-21222", "--width", "0.125", "--data", "digits", "--runs", str(tmp_path / "runs")]
    assert main([*words, "--budget", "1KB"]) == 1
    assert "nothing of" in capsys.readouterr().out
    assert main([*words, "--budget", "soon"]) == 2
    assert main([*words, "--budget", "24KB", "--jobs", "0"]) == 2
    assert "--jobs is how many trainings" in capsys.readouterr().err
    assert main([*words, "--budget", "24KB", "--to", "onnx", "--int8"]) == 2
    assert "int8 to fit a budget is for .tflite" in capsys.readouterr().err


def test_a_run_of_ones_own_network_teaches_and_is_written_where_it_fits(
    data: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_fit_net.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = RunOptions(runs_dir=tmp_path / "runs", progress=False)
    run = rd.train_classifier(rd.resolve_model("my_fit_net:make"), data, Recipe(epochs=1), options=options)
    words = ["fit", str(run.path), "--to", "executorch", "--output", "net.pte", "--jobs", "1"]
    assert main([*words, "--budget", "64KB"]) == 2
    assert "say what builds it, --network my_net:make" in capsys.readouterr().err
    assert main([*words, "--budget", "64KB", "--network", "my_fit_net:mak"]) == 2
    assert "has no function 'mak'" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "runs" / "nothere"), "--budget", "64KB"]) == 2
    assert "nothere: give that of a run, a built-in name, or module:function" in capsys.readouterr().err
    assert main([*words, "--budget", "64KB", "--network", "my_fit_net:make"]) == 0  # whole: nothing is trained
    told = capsys.readouterr().out
    assert "of test images right" in told and "of 64.0 KiB" in told and "beside it" not in told
    assert len([*(tmp_path / "runs").glob("*/run.json")]) == 1
    right = rd.evaluate(rd.load_exported("net.pte"), data.test)["accuracy"]
    assert (
        right == pytest.approx(run.metrics["test_accuracy"]) and f"{100 * right:.1f} % of test images right" in told
    )
