"""The Python of README and docs runs, page by page, on small stand-ins for what a reader brings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import redistill_lib as rd
from redistill_lib.comparison import lengths, runner
from redistill_lib.train import setup

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))}
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}

#: What a reader has time for, and a test has not.
SMALLER = {
    "image_size=128": "image_size=32",
    "3, 128, 128": "3, 32, 32",
    "image_size=64": "image_size=32",
    "3, 64, 64": "3, 32, 32",
    '"64KB"': '"16KB"',
    "seeds=3": "seeds=2",
    "train_size=1000": "train_size=200",
    "student, 300": "student, 80",
}


def folder_of_images(root: Path, size: int, count: int = 8) -> None:
    draws = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for label in ("left", "right"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = torch.randint(256, (size, size, 3), generator=draws, dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / f"{k}.png")


def network(stride: int) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, stride, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4 // stride, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Defaults of a few steps, no progress bars, a hub that is a folder, all of it in a folder of its own."""
    import diffusers

    monkeypatch.chdir(tmp_path)
    folder_of_images(tmp_path / "path/to/folder", 32)
    folder_of_images(tmp_path / "hub", 32)
    monkeypatch.setattr(rd.Recipe, "LENGTH", ("epochs", 1))
    monkeypatch.setattr(rd.DiffusionRecipe, "LENGTH", ("steps", 2))
    real_load = rd.load_data
    monkeypatch.setattr(
        setup, "load_data", lambda name, **kw: real_load("hub" if str(name).startswith("hf:") else name, **kw)
    )

    def measured(arms: Any, *_: Any) -> dict[str, lengths.EpochCost]:
        return dict.fromkeys(arms, lengths.EpochCost(60.0))  # so that the budget is a few epochs

    monkeypatch.setattr(runner, "measure_epochs", measured)
    original = diffusers.UNet2DModel.from_pretrained.__func__

    def pretrained(cls: type, source: Any, **kwargs: Any) -> Any:
        if source != "google/ddpm-cifar10-32":
            return original(cls, source, **kwargs)
        blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
        return diffusers.UNet2DModel(
            32, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, add_attention=False, **blocks
        )

    monkeypatch.setattr(diffusers.UNet2DModel, "from_pretrained", classmethod(pretrained))
    return tmp_path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [name for name, blocks in BLOCKS.items() if blocks])
def test_the_snippets_run(page: str, quick: Path) -> None:
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    example = torch.zeros(2, 3, 32, 32)
    mine: dict[str, Any] = {"my_network": network(2), "example": example}
    names: dict[str, Any] = {"images": images, **mine}
    for block in BLOCKS[page]:
        for given, smaller in SMALLER.items():
            block = block.replace(given, smaller)
        exec(compile(block, page, "exec"), names)
    assert page != "library.md" or (quick / "student").is_dir()


def test_every_page_is_reached_and_every_link_is_there() -> None:
    assert {*BLOCKS} >= {"README.md", "library.md", "memory.md", "results.md"}
    for page, text in PAGES.items():
        folder = ROOT if page == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (folder / link).exists(), f"{page}: {link}"
    assert all(page == "README.md" or f"(docs/{page}" in PAGES["README.md"] for page in PAGES)


def test_the_first_page_is_short() -> None:
    words = re.sub(r"```.*?```|\|.*\|", "", PAGES["README.md"], flags=re.DOTALL).split()
    assert len(words) <= 900


def test_the_taps_in_yaml_fit_the_networks_they_are_for(tmp_path: Path) -> None:
    (tmp_path / "official.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGES["library.md"], re.DOTALL)[0])
    student, teacher = rd.create_model("resnet18-4-11221"), rd.create_model("resnet18-1-21222")
    taps, example = rd.read_taps(tmp_path / "official.yaml"), torch.zeros(2, 3, 64, 64)
    distillation = rd.Distillation(student, teacher, taps, example=example)
    assert [tap.layer for tap in distillation.taps] == ["layer2.0"] * 2 and len(distillation.blocks) == 2
    assert {(tap.layer, tap.side, tap.teacher_layer) for tap in taps} <= {
        (tap.layer, tap.side, tap.teacher_layer) for tap in rd.match_taps(student, teacher, example)
    }
