"""Several networks in several runtimes: the table, the sentence and the figure of what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from redistill_lib import figures
from redistill_lib.export import Deployed, Deployment, Export, RuntimePeak, deploy
from redistill_lib.export.inputs import calls_on

pytestmark = pytest.mark.filterwarnings("ignore")
KB = 1024


def row(role: str, runtime: str, needs: int, predicted: int | None = None, dtype: str = "fp32") -> Deployed:
    made = Export(Path("a"), runtime, dtype, 9 * KB, 1e-7, 4)
    return Deployed(role, made, RuntimePeak("a", runtime, needs, None, 0, 9 * KB, 0.002), predicted, needs, 0.5, 0.5)


FOUND = Deployment(
    (
        row("teacher", "ONNX Runtime", 120 * KB, 118 * KB),
        row("naive", "ONNX Runtime", 24 * KB, 20 * KB),
        row("teacher", "ExecuTorch", 100 * KB, 100 * KB),
        row("naive", "ExecuTorch", 20 * KB, 20 * KB),
        row("naive", "ExecuTorch", 90 * KB, None, "int8"),
    ),
    ("RED in ExecuTorch: no kernel",),
)


def test_the_sentence_compares_the_first_two_in_each_runtime() -> None:
    told = "the naive student needs less than the teacher: 5.0 times in ONNX Runtime and 5.0 times in ExecuTorch"
    assert FOUND.of("fp32").headline() == told
    assert FOUND.of("int8").headline() == "the naive student runs in ExecuTorch"


def test_bars_are_what_was_measured_and_marks_what_was_predicted() -> None:
    figure = figures.deployment(FOUND.of("fp32"))
    assert [bar.x[0] for bar in figure.data[:4]] == [120, 24, 100, 20]
    assert list(figure.data[4].x) == [118, 20, 100, 20] and list(figure.data[4].y) == [0, 1, 2, 3]
    assert figures.headline(figure).startswith("The naive student needs less than the teacher")
    assert "<b>ExecuTorch</b> · teacher" in figure.layout.yaxis.ticktext
    assert not figures.deployment(FOUND.of("int8")).data[1].x  # no mark where nothing predicts
    with pytest.raises(ValueError, match="nothing was deployed: RED in ExecuTorch: no kernel"):
        figures.deployment(Deployment((), FOUND.refused))


def test_the_table_has_a_row_for_each() -> None:
    frame = FOUND.to_frame()
    assert list(frame["needs (KiB)"]) == [120, 24, 100, 20, 90] and frame["predicted (KiB)"].isna().sum() == 1
    assert frame["accuracy there"].tolist() == [50.0] * 5


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.matrix_exp(x).flatten(1)


def test_networks_are_written_measured_and_what_is_refused_is_told(tmp_path: Path) -> None:
    images = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    networks = {"teacher": net, "naive": net, "unknown": Unknown()}
    calls = calls_on(images)
    labels = net(torch.cat([x for (x,) in calls])).argmax(1)
    found = deploy(networks, calls, tmp_path, labels=labels, calibration=calls, formats=["onnx"])
    assert [(r.role, r.made.dtype) for r in found.rows] == [
        ("teacher", "fp32"), ("naive", "fp32"), ("teacher", "int8"), ("naive", "int8")
    ]  # fmt: skip
    assert all(r.accuracy == r.own_accuracy == 1 for r in found.of("fp32").rows)
    assert len(found.refused) == 2 and all("unknown in ONNX Runtime" in line for line in found.refused)
    names = {f"{name}{end}.onnx" for name in ("teacher", "naive") for end in ("", "-int8")}
    assert {p.name for p in tmp_path.iterdir()} == names
    with pytest.raises(ValueError, match=r"unknown format 'onx': choose from onnx, .*did you mean 'onnx'"):
        deploy(networks, calls, tmp_path, formats=["onx"])
