"""Numbers that come with the package: found from anywhere, from a wheel too."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import redistill_lib as rd
from redistill_lib.comparison import Comparison
from redistill_lib.shipped import measured, published

ROOT = Path(__file__).parents[1]


def test_the_published_files_agree_where_they_overlap() -> None:
    results, footprints, curves = (published(n) for n in ("results", "footprints", "curves"))
    peaks = footprints.groupby(["panel", "role"])["mib"].max()
    for panel, model in (("imagenet-ResNet50", "resnet50"), ("stl10-ResNeXt18", "resnext18")):
        for role in ("teacher", "student"):
            rows = results[(results["model"] == model) & (results["method"] == role)]
            assert rows["peak_mib_per_image"].tolist() == [peaks[panel, role]]
    best = curves.groupby(["config", "date"])["test_acc"].max()
    red = results[(results["student"] == "mobilenetv2-4-1221111") & (results["method"] == "red")]
    assert red["top1"].tolist() == [pytest.approx(100 * best["mobilenetv2-red.yaml", "2024-03-22"])]
    assert curves.groupby(["student", "config", "date"]).size().tolist() == [300] * 11
    assert (footprints.groupby(["panel", "role"])["index"].max() + 1).min() == 10


def test_what_is_not_shipped_is_told_with_what_is() -> None:
    with pytest.raises(ValueError, match=r"published is called 'result'; there are .* did you mean 'results'"):
        published("result")
    with pytest.raises(ValueError, match=r"measured is called 'cifar'; .* did you mean 'cifar10'"):
        measured("cifar")
    with pytest.raises(ValueError, match="name=3 is not text"):
        rd.published(3)  # type: ignore[arg-type]


def test_every_comparison_loads_and_every_table_has_rows() -> None:
    folders = [file.parent for file in measured().glob("*/comparison.json")]
    assert "cifar10" in [folder.name for folder in folders]
    assert all(Comparison.load(folder).seeds >= 1 for folder in folders)
    assert all(len(pd.read_csv(file)) for file in measured().rglob("*.csv"))


def test_a_wheel_carries_them(tmp_path: Path) -> None:
    """Built aside, so that nothing is left here, and read with nothing of the clone on the path."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "redistill_lib").symlink_to(ROOT / "redistill_lib")
    build = "import setuptools.build_meta as build; print(build.build_wheel('.'))"
    command = [sys.executable, "-W", "ignore", "-c", build]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    site, folders = tmp_path / "site", ("published", "measured")
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        wheel.extractall(site)
        names = {name for name in wheel.namelist() if name.startswith(tuple(f"redistill_lib/{f}/" for f in folders))}
    files = [file for folder in folders for file in (ROOT / "redistill_lib" / folder).rglob("*.*")]
    assert names == {str(file.relative_to(ROOT)) for file in files} and len(names) >= 8
    read = "import redistill_lib as rd; print(rd.__file__, len(rd.published('results')), rd.measured('cifar10'))"
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", read]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=True)
    file, rows, folder = done.stdout.split()
    assert Path(file).is_relative_to(site) and Path(folder).is_relative_to(site)
    assert int(rows) == len(published("results"))
