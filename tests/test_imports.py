"""The architecture, read from the import graph: who may import whom, and what an import may cost."""

from __future__ import annotations

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import redistill_lib

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "redistill_lib"

# From the top down. A room (module or folder) may import from floors strictly below its own.
FLOORS = [
    {"cli"},
    {"explorers"},
    {"figures", "report"},
    {"fitting", "tradeoffs"},
    {"comparison"},
    {"train", "budget", "exploration", "export"},
    {"attention", "costs", "diffusion", "maps", "own", "quality"},
    {"merging", "streaming", "student"},
    {"distill", "memory", "sweep"},
    {"looks", "methods", "models", "network", "shipped", "store"},
    {"red", "data", "identity", "results", "runs", "plans", "parameters", "executors"},
    {"checks", "progress", "sizes", "source"},
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
TORCH_FREE = [
    "cli",
    "sweep",
    "report",
    "results",
    "runs",
    "sizes",
    "source",
    "looks",
    "shipped",
    "store",
    "plans",
    "parameters",
    "executors",
]
# LiteRT's packages: no extra, as one of them asks for older typing-extensions than jupyter-client (docs/deploy.md).
BY_HAND = {"ai-edge-litert", "ai-edge-quantizer", "flatbuffers", "litert-torch", "tflite-micro"}
SLOW_OR_OPTIONAL = {"plotly", "ipywidgets", "diffusers", "datasets", "accelerate"}


def room_of(path: Path, library: Path) -> str:
    return path.relative_to(library).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of the code, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "relative import"
            elif node.module == "redistill_lib":
                yield from (f"redistill_lib.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def violations(library: Path) -> list[str]:
    """Each breach of the rules as a line `file: what`."""
    found = []
    for path in sorted(library.rglob("*.py")):
        room, file = room_of(path, library), path.relative_to(library)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 450:
            found.append(f"{file}: {lines} lines, split before 450")
        if path.stem in ("utils", "util", "helpers"):
            found.append(f"{file}: name the subject")
        if room == "__init__":  # the front door imports lazily: the last test here measures it
            continue
        if room not in FLOOR_OF:
            found.append(f"{file}: room {room} is on no floor")
            continue
        for name in imports_of(path):
            top, _, inner = name.partition(".")
            target = inner.split(".")[0]
            if name == "relative import":
                found.append(f"{file}: relative import")
            elif top == "plotly" and FLOOR_OF[room] > FLOOR_OF["figures"]:
                found.append(f"{file}: plotly below figures")
            elif top == "ipywidgets" and room == "figures":
                found.append(f"{file}: ipywidgets in figures")
            elif top == "redistill_lib" and target != room and FLOOR_OF.get(target, 99) <= FLOOR_OF[room]:
                found.append(f"{file}: imports {target}, which is not below {room}")
    return found


def test_library_keeps_the_rules() -> None:
    assert violations(LIBRARY) == []


@pytest.mark.parametrize(
    ("file", "code", "breach"),
    [
        ("runs.py", "from redistill_lib.train import fit", "runs.py: imports train, which is not below runs"),
        ("red.py", "from redistill_lib import network", "red.py: imports network, which is not below red"),
        ("memory/bounds.py", "def f():\n    import plotly.express", "memory/bounds.py: plotly below figures"),
        ("figures/curves.py", "import ipywidgets as w", "figures/curves.py: ipywidgets in figures"),
        ("models/unet.py", "from .resnet import ResNet", "models/unet.py: relative import"),
        ("attic.py", "", "attic.py: room attic is on no floor"),
        ("train/utils.py", "", "train/utils.py: name the subject"),
        ("budget.py", "x = 1\n" * 451, "budget.py: 451 lines, split before 450"),
    ],
)
def test_each_breach_is_found(tmp_path: Path, file: str, code: str, breach: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code)
    assert violations(tmp_path) == [breach]


def test_rooms_below_and_ones_own_may_be_imported(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    code = "from redistill_lib import data\nfrom redistill_lib.train.loop import fit\nimport torch"
    (tmp_path / "train" / "classify.py").write_text(code)
    assert violations(tmp_path) == []


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == redistill_lib.__version__
    requirements = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    declared = {re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    distributions = importlib.metadata.packages_distributions()
    missing = set()
    for path in LIBRARY.rglob("*.py"):
        for name in {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names:
            names = {d.lower().replace("_", "-") for d in distributions.get(name, [name])}
            if name != "redistill_lib" and not names & (declared | BY_HAND):
                missing.add(f"{path.relative_to(LIBRARY)}: {name}")
    assert missing == set()


def modules_loaded_by(*names: str) -> set[str]:
    code = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_front_door_is_light() -> None:
    loaded = modules_loaded_by("redistill_lib")
    assert "redistill_lib" in loaded
    assert loaded & (SLOW_OR_OPTIONAL | {"torch"}) == set()


def test_rooms_are_reached_from_the_front_door() -> None:
    """In a fresh process, in which no other import has bound them."""
    code = "import sys, redistill_lib as rd; assert 'torch' not in sys.modules; print(rd.student.find_places, rd.red)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "find_places" in done.stdout
    assert {"student", "memory", "fit_to_budget"} <= set(dir(redistill_lib))
    with pytest.raises(AttributeError, match="no attribute 'studnet'"):
        _ = redistill_lib.studnet


def test_listing_and_queueing_import_no_torch() -> None:
    loaded = modules_loaded_by(*(f"redistill_lib.{name}" for name in TORCH_FREE))
    assert loaded & (SLOW_OR_OPTIONAL | {"torch"}) == set()
