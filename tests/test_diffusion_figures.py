"""Figures and explorer of sampling: differences worked out by hand, images in their places, sliders that agree."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ipywidgets as widgets
import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from torch import nn

from redistill_lib import explorers, figures
from redistill_lib.diffusion import Trajectory, to_uint8
from redistill_lib.distill import Tap, match_taps
from redistill_lib.explorers.trajectories import TrajectoryExplorer
from redistill_lib.figures import headline
from redistill_lib.maps import compare_denoisers
from redistill_lib.models import create_model
from redistill_lib.network import record_maps
from redistill_lib.sweep import pages

ROOT = Path(__file__).parents[1]
TIMES = (999, 599, 199)
TINY: dict[str, Any] = {"in_channels": 1, "ch": 8, "mult": (1, 2), "res_blocks": 1}


def path(*levels: float, t: tuple[int, ...] = TIMES, n: int = 4) -> Trajectory:
    """Even grey images: what is seen has these levels, the last of them is where it ends."""
    seen = torch.tensor(levels[:-1]).float().view(-1, 1, 1, 1, 1).expand(-1, n, 1, 8, 8)
    return Trajectory(t, torch.zeros_like(seen), seen, torch.full((n, 1, 8, 8), float(levels[-1])))


PATHS = {"teacher": path(0, 0, 0, 0), "student": path(0.9, 0.5, 0.3, 0.2), "red": path(0.8, 0.4, 0.2, 0.1)}


def words(figure: go.Figure) -> list[str]:
    return [re.sub("<.*?>", " ", note.text).strip() for note in figure.layout.annotations]


# ---------------------------------------------------------------------------------------------------- trajectories


def test_trajectories_show_each_role_and_how_far_it_is_from_the_teacher() -> None:
    film = figures.trajectories(PATHS)
    expected = (
        "Difference from what the teacher sees: 0.90 (naive student) and 0.80 (RED) at t = 999, "
        "0.30 (naive student) and 0.20 (RED) at the end"
    )
    assert headline(film) == expected
    assert words(film) == ["teacher", "naive student", "RED", "is given (x t )", "sees in it"]
    assert [(trace.name, *trace.y) for trace in film.data[2:]] == [
        ("naive student", *map(pytest.approx, (0.9, 0.5, 0.3))),
        ("RED", *map(pytest.approx, (0.8, 0.4, 0.2))),
    ]


def test_the_slider_of_the_film_shows_what_another_opening_would() -> None:
    film = figures.trajectories(PATHS)
    (slider,), (buttons,) = film.layout.sliders, film.layout.updatemenus
    assert slider.active == 1 and [stop.label for stop in slider.steps] == ["999", "599", "199"]
    assert [button.label for button in buttons.buttons] == ["play", "pause"]
    for k, (frame, stop) in enumerate(zip(film.frames, slider.steps, strict=True)):
        other = figures.trajectories(PATHS, k)
        assert stop.method == "animate" and [*stop.args[0]] == [frame.name] == [str(TIMES[k])]
        assert frame.layout.images == other.layout.images and other.layout.sliders[0].active == k
        for place, trace in zip(frame.traces, frame.data, strict=True):
            assert trace.to_plotly_json() == {
                key: other.data[place].to_plotly_json()[key] for key in trace.to_plotly_json()
            }
        assert list(frame.data[0].text) == ["", *(f"{PATHS[role].seen[k].max():.2f}" for role in ("student", "red"))]
        assert list(frame.data[1].x) == [k, k]


def test_the_pictures_of_the_film_are_what_is_given_and_seen() -> None:
    source = figures.trajectories(PATHS, 1).layout.images[0].source
    png = re.findall(r"href='data:image/png;base64,(.*?)'", unquote(source))[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L")).astype(int)
    assert pixels.shape == (3 * 8 + 2 * 2, 8 * 8 + 6 * 2 + 6)  # four images given, four seen, and what is between
    assert (pixels[:, 38:44] == 255).all() and (pixels[8:10] == 255).all()
    for row, level in enumerate((0, 0.5, 0.4)):
        given, seen = pixels[10 * row + 4, 4], pixels[10 * row + 4, 48]
        assert abs(given - 127.5) <= 9 and abs(seen - (level + 1) * 127.5) <= 9  # of 16 greys the nearest


def test_a_film_without_a_teacher_has_no_chart() -> None:
    film = figures.trajectories({"red": PATHS["red"]})
    assert headline(film) == "RED on its way out of the noise" and len(film.data) == 2
    assert list(film.data[0].text) == [""] and not film.layout.showlegend


@pytest.mark.chromium
def test_the_film_plays_and_its_slider_moves_in_a_page_without_a_network(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    data = {pages.FIGURE: json.loads(figures.trajectories(PATHS).to_json())}
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data=data)])
    notebook = tmp_path / "film.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    page_file = notebook.with_suffix(".html")
    page_file.write_text(pages.page_of(notebook, tmp_path), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        context = browser.new_context(offline=True)
        page, told = context.new_page(), list[str]()
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.goto(page_file.as_uri())
        now, picture = page.locator("text.slider-label").first, page.locator(".main-svg image").first
        expect(now).to_have_text("t = 599", timeout=30_000)
        seen = {picture.get_attribute("href")}
        page.locator(".plotly-graph-div").focus()
        for key, label in (("ArrowRight", "199"), ("ArrowRight", "199"), ("ArrowLeft", "599"), ("ArrowLeft", "999")):
            page.keyboard.press(key)
            expect(now).to_have_text(f"t = {label}", timeout=10_000)
            seen.add(picture.get_attribute("href"))
        assert len(seen) == 3
        page.locator(".updatemenu-button", has_text="play").click()
        expect(now).to_have_text("t = 199", timeout=20_000)
        rail = page.locator(".slider-rail-touch-rect").bounding_box()
        assert rail is not None
        page.mouse.click(rail["x"] + rail["width"] / 2, rail["y"] + rail["height"] / 2)
        expect(now).to_have_text("t = 599", timeout=10_000)
        assert told == []
        browser.close()


@pytest.mark.parametrize(
    ("paths", "message"),
    [({}, "no trajectory to show"), ({**PATHS, "kd": path(0, 0, 0, 0, t=(9, 5, 1))}, "the trajectory of kd")],
)
def test_trajectories_refuse(paths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.trajectories(paths)


def test_a_step_that_is_not_there_is_refused() -> None:
    for step in (3, -1):
        with pytest.raises(ValueError, match=f"3 steps, counted from 0; there is no step {step}"):
            figures.trajectories(PATHS, step)


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
    return TrajectoryExplorer(networks, shape=16, n=2, steps=4, choices=(2, 8), seed=0)


def test_in_a_batch_it_is_the_film_without_widgets() -> None:
    code = (
        "import sys\nfrom redistill_lib import explorers, models\n"
        "net = models.create_model('unet-1-2', ch=8, mult=(1, 2))\n"
        "film = explorers.sampling_trajectories({'teacher': net}, shape=8, n=1, steps=30)\n"
        "assert [frame.name for frame in film.frames][::8] == ['999', '32'], [f.name for f in film.frames]\n"
        "assert 'redistill_lib.explorers.controls' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_opens_half_way_with_all_controls(networks: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorers, "is_live", lambda: True)
    view = explorers.sampling_trajectories(networks, shape=16, n=1, steps=4, choices=(2,), seed=9)
    controls = {control.description: control for control in view.children[0].children}
    assert [*controls] == ["step", "steps", "noise", ""] and isinstance(controls[""], widgets.Play)
    assert controls["steps"].value == 4 and controls["step"].label == "3 of 4: t = 499"
    assert controls["noise"].value == 9 and controls[""].max == 3


async def drawn(explorer: TrajectoryExplorer) -> None:
    assert explorer.drawing is not None
    await explorer.drawing


def test_another_number_of_steps_stays_at_its_time_and_is_drawn_once(explorer: TrajectoryExplorer) -> None:
    async def choose() -> None:
        explorer.step.value = 749
        assert list(explorer.figure.data[1].x) == [1, 1]
        for steps, label in ((8, "3 of 8: t = 749"), (2, "1 of 2: t = 999")):
            explorer.steps.value = steps
            assert f"Drawing {steps} steps" in explorer.status.value
            await drawn(explorer)
            assert explorer.step.label == label and explorer.status.value == ""
        explorer.steps.value = 4
        assert explorer.step.label == "2 of 4: t = 749"  # what was chosen by hand, not what 2 steps made of it
        assert explorer.path.cache_info().misses == 3 * 2

    asyncio.run(choose())


def test_what_is_overtaken_is_not_drawn(explorer: TrajectoryExplorer) -> None:
    async def choose() -> None:
        explorer.steps.value = 8
        explorer.steps.value = 2
        explorer.seed.value = 5
        explorer.step.value = 249  # while it draws
        await drawn(explorer)
        assert {*explorer.films} == {(4, 0), (2, 5)} and explorer.path.cache_info().misses == 2 * 2
        assert explorer.step.label == "2 of 2: t = 499" and explorer.status.value == ""
        explorer.steps.value = 8
        explorer.steps.value, explorer.seed.value = 4, 0  # which is kept: nothing more is drawn
        await asyncio.sleep(0.2)
        assert (8, 5) not in explorer.films and "Drawing" not in explorer.status.value

    asyncio.run(choose())


def test_the_figure_is_the_film_at_that_step(explorer: TrajectoryExplorer) -> None:
    for place, t in enumerate((999, 749, 499, 249)):
        explorer.step.value = t
        paths = {role: explorer.path(role, 4, 0) for role in explorer.models}
        assert torch.equal(paths["teacher"].noisy[0], paths["student"].noisy[0])
        expected = figures.trajectories(paths, place)
        assert headline(explorer.figure) == headline(expected)
        assert [*explorer.figure.layout.images] == [*expected.layout.images]
        for shown, wanted in zip(explorer.figure.data, expected.data, strict=True):
            assert (str(shown.x), str(shown.y), str(shown.text)) == (str(wanted.x), str(wanted.y), str(wanted.text))
        assert not explorer.figure.layout.sliders and not explorer.figure.layout.updatemenus


def test_an_explorer_without_networks_says_so() -> None:
    with pytest.raises(ValueError, match="at least one denoiser"):
        TrajectoryExplorer({}, shape=16, n=2, steps=4, choices=(), seed=0)
    with pytest.raises(ValueError, match="no trajectory to show"):
        explorers.sampling_trajectories({})
