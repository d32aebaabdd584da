"""The smoke scale: what each notebook is given so that all of it runs in seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMOKE: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "smoke.yaml").read_text())


def smoke_values(path: Path, runs: Path) -> dict[str, Any]:
    """A notebook's smoke parameters, with the run store that all of them share: what one trained the next finds."""
    trains = re.search(r'"RUNS = ', path.read_text())  # 02 trains nothing
    return SMOKE[path.stem] | ({"RUNS": str(runs)} if trains else {})
