"""The smoke scale: what each notebook is given so that all of it runs in seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMOKE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())


def smoke_values(path: Path, runs: Path) -> dict[str, Any]:
    """A notebook's smoke parameters, with the run store that all of them share: what one trained the next finds."""
    trains = re.search(r'"RUNS = ', path.read_text())  # 02 trains nothing
    values = SMOKE[path.stem] | ({"RUNS": str(runs)} if trains else {})
    return values | ({"DATA": str(few_images(runs / "few"))} if values.get("DATA") == "few" else {})


def few_images(folder: Path) -> Path:
    """A folder of random grey images 40 pixels wide, of four classes."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)) if not folder.exists() else ():
        for label in "abcd":
            (folder / split / label).mkdir(parents=True)
            for k in range(count):
                Image.fromarray(draws.integers(256, size=(40, 40), dtype=np.uint8)).save(
                    folder / split / label / f"{k}.png"
                )
    return folder
