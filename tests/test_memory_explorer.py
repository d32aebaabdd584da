"""The memory explorer: controls that follow each other, numbers of the profile, one sentence where nothing fits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from redistill_lib import explorers
from redistill_lib.explorers import networks
from redistill_lib.explorers.memory import MemoryExplorer
from redistill_lib.explorers.networks import IN_PLACE, NONE, PLAIN, MemoryChoice
from redistill_lib.memory import format_size, profile_memory
from redistill_lib.memory.profile import CONVENTIONS
from redistill_lib.models import create_model
from redistill_lib.sizes import millions

ROOT = Path(__file__).parents[1]
TEACHER = "resnext18-1-21222"


@pytest.fixture
def explorer() -> MemoryExplorer:
    return MemoryExplorer(TEACHER)


def title(explorer: MemoryExplorer) -> str:
    return " ".join(re.findall(r"<b>(.*?)</b>", explorer.figure.layout.title.text))


def sentence(explorer: MemoryExplorer) -> str:
    """What is told in place of the figure."""
    assert explorer.drawn.layout.display == "none"
    return re.sub("<.*?>", "", explorer.status.value)


def lines(explorer: MemoryExplorer) -> list[float]:
    return [shape.y0 for shape in explorer.figure.layout.shapes if shape.type == "line"]


def test_in_a_batch_it_is_the_figure_that_it_would_open_with() -> None:
    code = (
        "import sys\nfrom redistill_lib import explorers\n"
        f"title = explorers.memory_explorer({TEACHER!r}, factor=2).layout.title.text\n"
        "assert 'The peak is 1.25 MiB' in title and '4.0× less' in title, title\n"
        "assert 'ipywidgets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_opens_with_the_student_and_the_teachers_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorers, "is_live", lambda: True)
    view = explorers.memory_explorer(TEACHER, image_size=96)
    assert view is not None
    controls = {control.description: control for control in view.children[0].children}
    assert [*controls] == ["model", "student", "RED blocks", "input", "batch", "dtype", "convention", "lines"]
    assert (controls["student"].label, controls["input"].value) == ("×4", 96)
    assert controls["model"].value == TEACHER
    assert {"mobilenetv2", "resnet50", "unet"} <= {name for name, _ in controls["model"].options}


def test_the_numbers_are_the_profiles(explorer: MemoryExplorer) -> None:
    x = torch.zeros(1, 3, 128, 128)
    teacher = profile_memory(create_model(TEACHER), x)
    student = profile_memory(create_model("resnext18-4-11221"), x)
    assert f"{format_size(student.peak_bytes)} at {student.peak_op.module}" in title(explorer)
    assert f"{teacher.peak_bytes / student.peak_bytes:.1f}× less than the teacher's" in title(explorer)
    assert lines(explorer) == [teacher.peak_bytes / 2**20]
    assert f"{student.weight_count:,}" in explorer.table.value
    assert millions(teacher.flops / 2) in explorer.table.value


def test_moving_the_slider_redraws(explorer: MemoryExplorer) -> None:
    peaks = []
    for factor in (1, 2, 4, 8):
        explorer.student.value = factor
        peaks.append(explorer.networks.profile(MemoryChoice(TEACHER, factor)).peak_bytes)
        assert title(explorer).startswith(f"The peak is {format_size(peaks[-1])} at")
        assert lines(explorer) == ([] if factor == 1 else [peaks[0] / 2**20])
        assert explorer.table.value.count("<tr") == (2 if factor == 1 else 3)
    assert peaks == sorted(peaks, reverse=True)


def test_what_was_drawn_is_not_computed_again(explorer: MemoryExplorer, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer.student.value = 8
    monkeypatch.setattr(networks, "profile_memory", None)
    explorer.student.value = 4
    assert "6.7× less" in title(explorer)


def test_size_batch_and_dtype_count(explorer: MemoryExplorer) -> None:
    def peak() -> int:
        choice = explorer._choice()
        assert format_size(explorer.networks.profile(choice).peak_bytes) in title(explorer)
        return explorer.networks.profile(choice).peak_bytes

    first = peak()
    explorer.size.value = 256
    assert peak() == 4 * first
    explorer.batch.value = 8
    assert peak() == 32 * first
    explorer.dtype.value = "int8"
    assert peak() == 8 * first
    explorer.dtype.value = "fp16"
    assert peak() == 16 * first
    assert "8×3×256×256, fp16" in explorer.figure.layout.title.text


def test_only_legal_students_are_offered(explorer: MemoryExplorer) -> None:
    explorer.student.value = 8
    explorer.model.value = "unet"
    assert [factor for _, factor in explorer.student.options] == list(explorer.networks.factors("unet"))
    assert title(explorer).startswith("The peak is")
    with torch.device("meta"):
        net, x = create_model("unet-2-221"), torch.zeros(1, 3, 128, 128)
        t = torch.zeros(1, dtype=torch.int64)
    assert explorer.networks.profile(MemoryChoice("unet", 2)).peak_bytes == profile_memory(net, x, t).peak_bytes
    assert MemoryExplorer("resnet18-1-11112").networks.factors("resnet18-1-11112") == (1, 2)


def test_red_blocks_go_into_students(explorer: MemoryExplorer) -> None:
    explorer.blocks.value = PLAIN
    assert sum(shape.type == "rect" for shape in explorer.figure.layout.shapes) == 5
    assert "student + RED" in explorer.table.value
    explorer.blocks.value = IN_PLACE
    assert "student + RED in place" in explorer.table.value
    explorer.student.value = 1
    assert (explorer.blocks.value, explorer.blocks.disabled) == (NONE, True)
    explorer.student.value = 2
    assert (explorer.blocks.value, explorer.blocks.disabled) == (IN_PLACE, False)


def test_the_papers_convention_shows_layers(explorer: MemoryExplorer) -> None:
    explorer.blocks.value = PLAIN
    explorer.convention.value = "paper"
    assert title(explorer).startswith("Naive student: the peak is")
    assert [trace.name for trace in explorer.figure.data][:3] == ["teacher", "naive student", "student + RED"]
    assert explorer.figure.layout.legend.entrywidth is None
    explorer.convention.value = "eager"
    assert "eager convention" in explorer.figure.layout.title.text
    assert any(trace.stackgroup for trace in explorer.figure.data)


def test_every_convention_can_be_chosen_and_fused_comes_first(explorer: MemoryExplorer) -> None:
    names = [name for _, name in explorer.convention.options]
    assert (names[0], set(names)) == ("fused", set(CONVENTIONS))
    for name in set(names) - {"fused", "paper"}:
        explorer.convention.value = name
        assert f"{name} convention" in explorer.figure.layout.title.text.replace("<br>", " ")


def test_bounds_are_lines_on_request(explorer: MemoryExplorer) -> None:
    explorer.model.value = "mobilenetv2"
    explorer.student.value = 1
    explorer.lines.value = "bounds"
    bounds = explorer.networks.bounds(MemoryChoice("mobilenetv2"))
    assert bounds.in_place_depthwise_bytes < bounds.peak_bytes
    scale = 2**20 if bounds.peak_bytes >= 2**20 else 2**10
    assert bounds.in_place_depthwise_bytes / scale in lines(explorer)
    explorer.lines.value = "none"
    assert lines(explorer) == []


def test_what_cannot_be_is_not_offered_and_comes_back(explorer: MemoryExplorer) -> None:
    explorer.blocks.value, explorer.lines.value = IN_PLACE, "bounds"
    explorer.convention.value = "paper"
    assert IN_PLACE not in [value for _, value in explorer.blocks.options] and explorer.blocks.value == NONE
    assert "bounds" not in [value for _, value in explorer.lines.options] and explorer.lines.value == "teacher"
    assert explorer.status.value == "" and explorer.drawn.layout.display == ""
    explorer.convention.value = "eager"
    assert (explorer.blocks.value, explorer.lines.value) == (IN_PLACE, "teacher")
    explorer.convention.value = "fused"
    assert (explorer.blocks.value, explorer.lines.value) == (IN_PLACE, "bounds")


def test_a_image_too_small_is_told() -> None:
    explorer = MemoryExplorer("unet", image_size=20)
    explorer.student.value = 1
    assert "20×20" in sentence(explorer)
    assert "\n" not in explorer.status.value
    explorer.size.value = 64
    assert explorer.status.value == ""


def own() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def test_a_network_of_ones_own_has_students_too() -> None:
    torch.manual_seed(0)
    net, x = own(), torch.zeros(1, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    explorer = MemoryExplorer(net, example=x)
    controls = [control.description for control in explorer.view.children[0].children]
    assert controls == ["student", "RED blocks", "dtype", "convention", "lines"]
    assert explorer.student.value == 4
    assert "less than the teacher's" in title(explorer)
    explorer.blocks.value = PLAIN
    assert any(shape.type == "rect" for shape in explorer.figure.layout.shapes)
    explorer.student.value = 1
    assert format_size(profile_memory(net, x).peak_bytes) in title(explorer)
    explorer.convention.value = "paper"
    assert "use fused or eager" in sentence(explorer)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training


def test_a_network_that_cannot_pool_harder_has_no_students() -> None:
    explorer = MemoryExplorer(nn.Conv2d(3, 8, 3), example=torch.zeros(1, 3, 16, 16))
    assert [factor for _, factor in explorer.student.options] == [1]
    assert explorer.student.disabled


def test_names_and_networks_are_told_apart() -> None:
    with pytest.raises(ValueError, match="did you mean 'resnext18'"):
        MemoryExplorer("resnext-18")
    for model, example in ((own(), None), (TEACHER, torch.zeros(1))):
        with pytest.raises(ValueError, match="together with example="):
            MemoryExplorer(model, example=example)
