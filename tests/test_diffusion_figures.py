"""Figures and explorer of sampling: differences worked out by hand, images in their places, sliders that agree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from torch import nn

from redistill_lib import explorers, figures
from redistill_lib.diffusion import Trajectory, to_uint8
from redistill_lib.distill import Tap, match_taps
from redistill_lib.explorers.trajectories import TrajectoryExplorer
from redistill_lib.maps import compare_denoisers
from redistill_lib.models import create_model
from redistill_lib.network import record_maps

ROOT = Path(__file__).parents[1]
TIMES = (999, 599, 199)
TINY: dict[str, Any] = {"in_channels": 1, "ch": 8, "mult": (1, 2), "res_blocks": 1}


def path(*levels: float, t: tuple[int, ...] = TIMES, n: int = 4) -> Trajectory:
    """Even grey images: what is seen has these levels, the last of them is where it ends."""
    seen = torch.tensor(levels[:-1]).float().view(-1, 1, 1, 1, 1).expand(-1, n, 1, 8, 8)
    return Trajectory(t, torch.zeros_like(seen), seen, torch.full((n, 1, 8, 8), float(levels[-1])))


PATHS = {"teacher": path(0, 0, 0, 0), "student": path(0.9, 0.5, 0.3, 0.2), "red": path(0.8, 0.4, 0.2, 0.1)}


def headline(figure: go.Figure) -> str:
    return " ".join(re.findall(r"<b>(.*?)</b>", figure.layout.title.text))


def words(figure: go.Figure) -> list[str]:
    return [re.sub("<.*?>", " ", note.text).strip() for note in figure.layout.annotations]


# ---------------------------------------------------------------------------------------------------- trajectories


def test_trajectories_show_each_role_and_how_far_it_is_from_the_teacher() -> None:
    figure = figures.trajectories(PATHS)
    expected = (
        "Difference from what the teacher sees: 0.90 (naive student) and 0.80 (RED) at t = 999, "
        "0.20 (naive student) and 0.10 (RED) at the end"
    )
    assert headline(figure) == expected
    assert [trace.name for trace in figure.data[:4]] == [
        "teacher is given at t = 999", "teacher is given at t = 599", "teacher is given at t = 199",
        "teacher sees at t = 999",
    ]  # fmt: skip
    assert len(figure.data) == 3 + 3 * 4 and figure.data[-1].name == "RED ends in"
    texts = words(figure)
    assert [text for text in texts if text[0] == "0"] == [
        "0.90",
        "0.50",
        "0.30",
        "0.20",
        "0.80",
        "0.40",
        "0.20",
        "0.10",
    ]
    heads = [note for note in figure.layout.annotations if note.text.startswith(("t =", "<b>the end"))]
    assert [note.text for note in heads] == ["t = 999", "t = 599", "t = 199", "<b>the end</b>"]
    assert len({note.y for note in heads}) == 1  # all on top of their columns


@pytest.mark.parametrize(
    ("paths", "message"),
    [({}, "no trajectory to show"), ({**PATHS, "kd": path(0, 0, 0, 0, t=(9, 5, 1))}, "the trajectory of kd")],
)
def test_trajectories_refuse(paths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.trajectories(paths)


def test_a_step_shows_what_all_are_given_and_see() -> None:
    figure = figures.trajectory_step(PATHS, 1)
    assert headline(figure) == (
        "At t = 599 the difference from what the teacher sees is 0.50 (naive student) and 0.40 (RED)"
    )
    assert len(figure.data) == 2 * 3
    assert headline(figures.trajectory_step(PATHS, -1)).startswith("At t = 199 ")
    with pytest.raises(ValueError, match="no shot 3"):
        figures.trajectory_step(PATHS, 3)


# --------------------------------------------------------------------------------------------------------- samples


def noisy(level: float, spread: float) -> torch.Tensor:
    """Images whose difference from zero is `level` ± `spread`, in turn."""
    return torch.full((20, 1, 8, 8), level) + spread * torch.tensor([-1.0, 1.0] * 10).view(-1, 1, 1, 1)


def test_the_nearest_samples_are_named_only_where_the_images_tell() -> None:
    teacher = torch.zeros(20, 1, 8, 8)
    clear = figures.sample_grids({"teacher": teacher, "student": noisy(0.5, 0), "red": noisy(0.4, 0.05)}, count=9)
    assert headline(clear) == "Difference from the teacher's images: 0.40 (RED) and 0.50 (naive student)"
    assert len(clear.data) == 3  # a grid each
    large = figures.sample_grids(dict.fromkeys(("teacher", "red"), torch.zeros(9, 1, 40, 40)))
    assert {(trace.dx, trace.dy) for trace in large.data} == {(1, 1)}  # not made smaller
    unclear = figures.sample_grids({"teacher": teacher, "student": noisy(0.42, 0), "red": noisy(0.4, 0.1)})
    assert headline(unclear).endswith("; these images cannot tell RED from the naive student")


def test_samples_of_unlike_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2×1×8×8, 3×1×8×8"):
        figures.sample_grids({"teacher": torch.zeros(2, 1, 8, 8), "red": torch.zeros(3, 1, 8, 8)})
    for images, count in ((torch.zeros(0, 1, 8, 8), 4), (torch.zeros(2, 1, 8, 8), 0)):
        with pytest.raises(ValueError, match="nothing to show"):
            figures.sample_grids({"teacher": images}, count=count)
    with pytest.raises(ValueError, match="not bytes"):
        figures.sample_grids({"teacher": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)})


def test_curves_end_at_the_last_validation_loss() -> None:
    history = pd.DataFrame({"step": [100, 200], "validation_loss": [0.2, 0.05]})
    figure = figures.denoising_curves({"teacher": history, "red+mse": history * 2})
    assert headline(figure) == "Validation loss at the end: teacher 0.0500, RED + MSE 0.1000"
    assert list(figure.data[1].y) == [0.4, 0.1]
    with pytest.raises(ValueError, match="no history"):
        figures.denoising_curves({})


# ------------------------------------------------------------------------------------------------------------ maps


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"teacher": create_model("unet-1-2", **TINY), "student": create_model("unet-2-1", **TINY)}


def test_maps_are_those_at_the_noisy_image_and_time(networks: dict[str, nn.Module]) -> None:
    x = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    taps = match_taps(networks["student"], networks["teacher"], (x[None], torch.tensor([0])))
    figure = figures.feature_maps(compare_denoisers(networks, [taps[0], taps[-1]], x, 700))
    assert len(figure.data) == 2 * 3
    maps = []
    for role, place in (
        ("teacher", (taps[0].teacher_layer, taps[0].teacher_side)),
        ("student", (taps[0].layer, taps[0].side)),
    ):
        one = record_maps(networks[role], [place], x[None], torch.tensor([700]))[place]
        maps.append(one[0].mean(0).flatten())
    score = float(torch.corrcoef(torch.stack(maps))[0, 1])
    assert any(f"correlation  {score:.2f}".replace("-", "−") in text for text in words(figure))
    twins, head = {**networks, "student": networks["teacher"]}, Tap("head", "output", "head", "output")
    (same,) = compare_denoisers(twins, [head], x, 3)
    assert same.score == pytest.approx(1)
    np.testing.assert_array_equal(same.image, to_uint8(x).permute(1, 2, 0).numpy())


def test_maps_need_a_teacher_a_student_and_one_image(networks: dict[str, nn.Module]) -> None:
    tap = Tap("head", "output", "head", "output")
    with pytest.raises(ValueError, match="a teacher with students, not student"):
        compare_denoisers({"student": networks["student"]}, [tap], torch.zeros(1, 16, 16), 5)
    with pytest.raises(ValueError, match="take one of the batch"):
        compare_denoisers(networks, [tap], torch.zeros(1, 1, 16, 16), 5)
    with pytest.raises(ValueError, match="t=-1 is not a whole number of 0 or more"):
        compare_denoisers(networks, [tap], torch.zeros(1, 16, 16), -1)


# -------------------------------------------------------------------------------------------------------- explorer


@pytest.fixture
def explorer(networks: dict[str, nn.Module]) -> TrajectoryExplorer:
    return TrajectoryExplorer(networks, shape=16, n=2, steps=4, choices=(2, 8))


def test_nothing_is_shown_or_imported_in_a_batch() -> None:
    code = (
        "import sys\nfrom redistill_lib import explorers\nassert explorers.sampling_trajectories({}) is None\n"
        "assert not {'ipywidgets', 'plotly'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_opens_half_way_with_all_controls(networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorers, "is_live", lambda: True)
    view = explorers.sampling_trajectories(networks, shape=16, n=1, steps=4, choices=(2,))
    assert view is not None
    controls = {control.description: control for control in view.children[0].children}
    assert [*controls] == ["step", "steps", "noise"]
    assert controls["steps"].value == 4 and controls["step"].label == "3 of 4: t = 499"
    assert "At t = 499 " in view.children[2].children[0].layout.title.text


def test_another_number_of_steps_stays_at_its_time_and_is_drawn_once(explorer: TrajectoryExplorer) -> None:
    explorer.step.value = 1
    assert headline(explorer.figure).startswith("At t = 749 ")
    explorer.steps.value = 8
    assert explorer.step.label == "3 of 8: t = 749"
    explorer.steps.value = 2
    assert explorer.step.label == "1 of 2: t = 999"
    explorer.steps.value = 4
    assert explorer.step.label == "2 of 4: t = 749"  # what was chosen by hand, not what 2 steps made of it
    assert explorer.paths.cache_info().misses == 3


def test_the_figure_is_the_trajectories(explorer: TrajectoryExplorer) -> None:
    explorer.seed.value = 3
    paths = explorer.paths(4, 3)
    assert torch.equal(paths["teacher"].noisy[0], paths["student"].noisy[0])
    expected = figures.trajectory_step(paths, explorer.step.value)
    assert headline(explorer.figure) == headline(expected)
    assert [trace.source for trace in explorer.figure.data] == [trace.source for trace in expected.data]
    assert np.ptp([len(times.t) for times in paths.values()]) == 0


def test_an_explorer_without_networks_says_so() -> None:
    with pytest.raises(ValueError, match="at least one denoiser"):
        TrajectoryExplorer({}, shape=16, n=2, steps=4, choices=())
