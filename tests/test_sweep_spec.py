"""Sweep files: their points, what is refused, names and keys. Nothing is executed."""

from __future__ import annotations

import itertools
import pickle
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from redistill_lib import source
from redistill_lib.methods import parse_methods
from redistill_lib.sweep import Sweep, notebook_point, points, read_sweep
from redistill_lib.sweep.keys import told
from redistill_lib.sweep.strict import read_strict

MakeNotebook = Callable[..., Path]
Read = Callable[..., Sweep]
ROOT = Path(__file__).parents[1]
HEAD = "notebook: notebooks/tour.ipynb\n"
PARAMETERS = """\
EPOCHS = 3
LR = 0.1
AMP = True
PLAN = "4-11221"
SIZES = (8, 16)
NOTE = None
SEED = 0
"""


@pytest.fixture
def read(make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """`read_sweep` of a text, as a.yaml beside the folder of tour.ipynb."""
    monkeypatch.chdir(tmp_path)
    make_notebook("tour", "print(LR)", parameters=PARAMETERS)

    def written(text: str, overrides: Mapping[str, Any] | None = None, head: str = HEAD) -> Sweep:
        Path("a.yaml").write_text(head + text)
        return read_sweep("a.yaml", overrides)

    return written


def given(found: Sweep) -> list[dict[str, Any]]:
    return [dict(point.parameters) for point in found.points]


def test_grid_is_every_combination_and_the_last_varies_fastest(read: Read, tmp_path: Path) -> None:
    found = read("parameters: {EPOCHS: 9}\ngrid: {LR: [1, 0.5], PLAN: [4-11221, 8-11121]}\n")
    assert [(point.name, point.parameters) for point in found.points] == [
        ("tour-LR=1-PLAN=4-11221", {"EPOCHS": 9, "LR": 1.0, "PLAN": "4-11221"}),
        ("tour-LR=1-PLAN=8-11121", {"EPOCHS": 9, "LR": 1.0, "PLAN": "8-11121"}),
        ("tour-LR=0.5-PLAN=4-11221", {"EPOCHS": 9, "LR": 0.5, "PLAN": "4-11221"}),
        ("tour-LR=0.5-PLAN=8-11121", {"EPOCHS": 9, "LR": 0.5, "PLAN": "8-11121"}),
    ]
    assert (found.name, found.file, found.text[:8]) == ("a", Path("a.yaml"), "notebook")
    assert found.notebooks == (tmp_path / "notebooks" / "tour.ipynb",) == found.points[0].notebooks
    assert len({point.key for point in found.points}) == len(set(found.points)) == 4
    assert pickle.loads(pickle.dumps(found)) == found  # it goes to workers


def test_all_kinds_multiply_in_the_order_of_the_file(read: Read) -> None:
    text = "seeds: [3, 5]\nzip: {LR: [1, 2], EPOCHS: [10, 20]}\npoints: [{PLAN: x}, {}]\ngrid: {AMP: [true, false]}"
    kinds = (3, 5), ((1.0, 10), (2.0, 20)), ({"PLAN": "x"}, {}), (True, False)
    expected = [
        {"SEED": seed, "LR": lr, "EPOCHS": epochs} | plan | {"AMP": amp}
        for seed, (lr, epochs), plan, amp in itertools.product(*kinds)
    ]
    assert given(read(text)) == expected


def test_seeds_by_number_list_or_range(read: Read) -> None:
    assert given(read("seeds: 3")) == [{"SEED": 0}, {"SEED": 1}, {"SEED": 2}]
    assert given(read("seeds: [7]")) == [{"SEED": 7}]
    assert given(read("seeds: {from: 4, to: 5, step: 1}")) == [{"SEED": 4}, {"SEED": 5}]


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [("1", "3", 3), ("[0]", "3", [0, 1, 2]), ("[0]", "[4, 5]", [4, 5]), ("(0,)", "2", (0, 1))],
)
def test_a_notebook_that_trains_its_seeds_itself_gets_all_at_once(
    read: Read, make_notebook: MakeNotebook, default: str, text: str, value: Any
) -> None:
    make_notebook("many", parameters=f"SEEDS = {default}")
    assert given(read(f"seeds: {text}", head="notebook: notebooks/many.ipynb\n")) == [{"SEEDS": value}]


def test_seeds_without_a_parameter_for_them(read: Read, make_notebook: MakeNotebook) -> None:
    make_notebook("none", parameters="LR = 0.1")
    make_notebook("count", parameters="SEEDS = 1")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: no SEED or SEEDS among the parameters of none\.ipynb"):
        read("seeds: 3", head="notebook: notebooks/none.ipynb\n")
    with pytest.raises(ValueError, match=r"takes the number of its seeds: write seeds: 3"):
        read("seeds: [0, 1]", head="notebook: notebooks/count.ipynb\n")


def test_several_notebooks_share_what_they_have(read: Read, make_notebook: MakeNotebook) -> None:
    other = make_notebook("other", parameters="LR = 0.5\nDEPTH = 2")
    head = "notebooks: [notebooks/tour.ipynb, notebooks/other.ipynb]\n"
    found = read("grid: {LR: [1], DEPTH: [3, 4]}", head=head)
    assert [p.name for p in found.points] == ["tour+other-LR=1-DEPTH=3", "tour+other-LR=1-DEPTH=4"]
    assert found.points[0].notebooks == (other.with_name("tour.ipynb"), other)
    with pytest.raises(ValueError, match=r"tour.ipynb and other.ipynb have no parameter DEPHT; did you mean 'DEPTH'"):
        read("grid: {DEPHT: [3]}", head=head)
    make_notebook("other", parameters="LR = 1")
    with pytest.raises(ValueError, match=r"line 2: LR is 2\.0 to tour\.ipynb and 2 to other\.ipynb"):
        read("grid: {LR: [2]}", head=head)


def test_exclude_leaves_out_what_it_matches_in_all(read: Read) -> None:
    text = "grid: {LR: [1, 2], EPOCHS: [3, 4]}\nexclude:\n- {LR: 1, EPOCHS: 4}\n- {LR: 2.0, EPOCHS: '3', AMP: true}"
    assert given(read(text)) == [{"LR": 1.0, "EPOCHS": 3}, {"LR": 2.0, "EPOCHS": 4}]
    with pytest.raises(ValueError, match=r"a\.yaml, line 5: exclude matches no point with {'LR': 3}"):
        read("grid:\n  LR: [1, 2]\nexclude:\n- {LR: 3}")
    with pytest.raises(ValueError, match="exclude leaves no point"):
        read("grid: {LR: [1, 2]}\nexclude: [{EPOCHS: 3}]")


def test_random_grids_against_a_loop(read: Read) -> None:
    """Grids with an exclusion: the points are those of a plain loop, all named apart; so with one value pinned."""
    draws = random.Random(3)
    choices: dict[str, list[Any]] = {"LR": [0.5, 1.0, 2.0], "EPOCHS": [1, 2, 3], "PLAN": ["a", "A", "a b", "a/b"]}
    for _ in range(30):
        grid = {name: draws.sample(values, draws.randint(2, 3)) for name, values in choices.items()}
        drop = {name: draws.choice(grid[name]) for name in draws.sample(list(grid), 2)}
        whole = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        kept = [point for point in whole if any(point[name] != value for name, value in drop.items())]
        found = read(yaml.safe_dump({"grid": grid, "exclude": [drop]}, sort_keys=False))
        assert given(found) == kept
        assert len({p.name.casefold() for p in found.points}) == len({p.key for p in found.points}) == len(kept)
        pin = draws.choice(choices["LR"])
        pinned = read(yaml.safe_dump({"grid": grid}, sort_keys=False), {"LR": str(pin)})
        assert given(pinned) == [p | {"LR": pin} for p in whole if p["LR"] == grid["LR"][0]]


# overrides


def test_overrides_replace_what_is_fixed_and_pin_what_is_swept(read: Read) -> None:
    text = "parameters: {EPOCHS: 9}\nzip: {LR: [1, 2], PLAN: [a, b]}\nseeds: 2"
    found = read(text, {"EPOCHS": "5", "LR": "0.5", "SEED": 7, "AMP": "no"})
    fixed = {"EPOCHS": 5, "AMP": False, "LR": 0.5, "SEED": 7}
    assert given(found) == [fixed | {"PLAN": "a"}, fixed | {"PLAN": "b"}]
    names = [f"tour-LR=0.5-PLAN={plan}-SEED=7-EPOCHS=5-AMP=False" for plan in "ab"]
    assert [point.name for point in found.points] == names
    assert len(read("zip: {LR: [1, 2], EPOCHS: [3, 3]}", {"LR": 5}).points) == 1  # they differed in nothing else


def test_an_override_that_changes_nothing_finds_the_same_points(read: Read) -> None:
    text = "parameters: {EPOCHS: 9}\ngrid: {LR: [1, 2]}"
    assert read(text, {"EPOCHS": "9"}).points == read(text).points
    assert read(text, {"LR": "2"}).points == read(text).points[1:]
    same = read(text, {"PLAN": "4-11221"}).points[0]  # the default
    assert (same.name, same.key) == (read(text).points[0].name, read(text).points[0].key)


def test_overrides_are_checked_and_may_leave_an_exclusion_nothing_to_match(read: Read) -> None:
    text = "grid: {LR: [1, 2], EPOCHS: [1, 2]}\nexclude: [{LR: 1, EPOCHS: 1}]"
    assert len(read(text, {"LR": 2}).points) == 2
    with pytest.raises(
        ValueError, match=r"^a.yaml, overrides: tour.ipynb has no parameter EPOCH; did you mean 'EPOCHS"
    ):
        read(text, {"EPOCH": 1})
    with pytest.raises(ValueError, match=r"^a.yaml, overrides: tour.ipynb: EPOCHS wants int, got 'x'"):
        read(text, {"EPOCHS": "x"})


# refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird: {LR: [1]}", "line 2: a sweep file has no gird; did you mean 'grid'?"),
        ("LR: [1]", "line 2: a sweep file has no LR: parameters stand below parameters or grid"),
        ("grid: {LR: 1}", "line 2: LR wants a list of values, [1, 2], or a range"),
        ("grid: {LR: []}", "LR wants a list of values"),
        ("grid: [LR]", "line 2: grid wants parameters with their values"),
        ("grid: {}", "grid wants parameters with their values"),
        ("parameters: 3", "parameters wants parameters with their values"),
        ("grid:\n  LR:\n  - 1\n  - slow", "line 5: tour.ipynb: LR wants float, got 'slow'"),
        ("grid: {PLAN: [4]}", "PLAN wants str, got 4: put it in quotes"),
        ("grid: {LRS: [1]}", "line 2: tour.ipynb has no parameter LRS; did you mean 'LR'?"),
        ("grid: {1: [1]}", "line 2: 1 stands where a name is wanted"),
        ("grid: {LR: [0.1, 1e-1]}", "line 2: the points LR=0.1 and LR=1e-1 are the same"),
        ("points:\n- {LR: 1}\n- {EPOCHS: 3}\n- {}", "line 5: the points EPOCHS=3 and {} are the same"),
        ("zip: {LR: [1, 2], EPOCHS: [3]}", "line 2: zip wants lists of one length, got LR 2, EPOCHS 1"),
        ("points: {LR: 1}", "points wants a list of one or more"),
        ("points: [3]", "points wants parameters with their values"),
        ("exclude: {LR: 1}", "exclude wants a list of one or more"),
        ("exclude: [{}]", "exclude wants parameters with their values"),
        ("seeds: 0", "line 2: seeds is a number from 1"),
        ("seeds: true", "seeds wants a list of values"),
        ("seeds: [1, 1]", "the points SEED=1 and SEED=1 are the same"),
        ("grid: {LR: [1]}\nparameters: {LR: 2}", "line 2: LR is in parameters and in grid: keep one of them"),
        ("points: [{LR: 1}]\ngrid:\n  LR: [2]", "line 4: LR is in points and in grid"),
        ("grid: {SEED: [1]}\nseeds: 2", "line 3: SEED is in grid and in seeds"),
        ("notebooks: [notebooks/tour.ipynb]", "either notebook: FILE or notebooks: [FILE, FILE]"),
        (
            "grid: {EPOCHS: {from: 1, to: 999, step: 1}, SEED: {from: 1, to: 999, step: 1}}",
            "a sweep of 998,001 points",
        ),
        ("grid: {EPOCHS: {from: 1, to: 10, number: 3, scale: log}}", "EPOCHS wants int, got 3.16"),
    ],
)
def test_wrong_files(read: Read, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^a\.yaml, line \d+: ") as error:
        read(text)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("notebook: 3", "a.yaml, line 1: notebook wants the path of a file, got 3"),
        ("notebook: [a.ipynb]", "line 1: notebook wants the path of a file, got ['a.ipynb']: several notebooks are"),
        ("notebook: notebooks/tuor.ipynb", "line 1: no notebook at "),
        ("notebooks: [notebooks/tour.ipynb, notebooks/tour.ipynb]", "line 1: two notebooks are named tour"),
        ("notebooks: []", "notebooks wants a list of one or more"),
        ("seeds: 3", "line 1: a sweep file has either notebook: FILE or"),
        ("[1]", "line 1: a sweep file is a mapping of notebook, "),
    ],
)
def test_wrong_notebooks(read: Read, head: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=r"^a\.yaml, line 1: ") as error:
        read("", head=head)
    assert message in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no sweep file at"):
        read_sweep(tmp_path / "g.yaml")
    with pytest.raises(ValueError, match="path=4 is not text or a path"):
        read_sweep(4)  # type: ignore[arg-type]


# names


def test_names_are_files_names_and_stay_when_a_sweep_grows(read: Read) -> None:
    names = [point.name for point in read('grid: {PLAN: [a/b, a b, "a(b=1.0)+c", ü, ""]}').points]
    assert names[2] == "tour-PLAN=a(b=1.0)+c"
    assert [re.sub("[0-9a-f]{8}$", "#", name) for name in names[:2]] == ["tour-PLAN=a_b-#"] * 2
    assert len(set(names)) == 5
    assert [point.name for point in read("grid: {PLAN: [new, a b]}").points][1] == names[1]
    assert all(re.fullmatch(r"[\w.,=+()-]+", name, re.ASCII) for name in names)


def test_names_that_differ_in_case_or_type_alone_are_told_apart(read: Read) -> None:
    names = [point.name for point in read("grid: {PLAN: [a, A, b]}").points]
    assert len({name.casefold() for name in names}) == 3
    assert names[2] == "tour-PLAN=b"
    mixed = read("""grid: {NOTE: [1, 1.0, "'1'", [1], x]}""").points
    assert [point.parameters["NOTE"] for point in mixed] == [1, 1.0, "1", [1], "x"]
    assert len({point.name for point in mixed}) == 5


def test_long_names_are_cut_and_stay_apart(read: Read) -> None:
    long = "x" * 300
    names = [point.name for point in read(f"grid: {{PLAN: [{long}1, {long}2]}}").points]
    assert [len(name) for name in names] == [120, 120]
    assert names[0] != names[1]
    assert names[0].startswith("tour-PLAN=xxx")


def test_a_point_of_one_notebook_is_named_by_all_that_is_given(make_notebook: MakeNotebook) -> None:
    path = make_notebook("my tour", "1")
    point = notebook_point(path, {"EPOCHS": "1", "SIZES": "4, 5", "PLAN": "4-11221"})
    assert point.name == "my tour-EPOCHS=1-SIZES=4,5-PLAN=4-11221"
    assert point.parameters == {"EPOCHS": 1, "SIZES": (4, 5), "PLAN": "4-11221"}
    assert (notebook_point(path, {}).name, point.notebooks) == ("my tour", (path,))
    with pytest.raises(ValueError, match="has no parameter EPOCH; did you mean 'EPOCHS'"):
        notebook_point(path, {"EPOCH": 1})


# keys


def changed(path: Path) -> Iterator[Any]:
    """The notebook, once, to be changed; it is written back."""
    notebook = nbformat.read(path, as_version=4)
    yield notebook
    nbformat.write(notebook, path)


def test_keys_follow_values_and_code_and_nothing_else(make_notebook: MakeNotebook) -> None:
    path = make_notebook("tour", "print(1)", "%time 1")

    def key(**given: Any) -> str:
        return notebook_point(path, given).key

    before = key()
    assert re.fullmatch("[0-9a-f]{16}", before)
    assert key(LR="1e-1", EPOCHS=3) == before == key(LR=0.1)  # as the defaults
    assert len({before, key(LR=0.2), key(NOTE=1), key(NOTE=1.0), key(NOTE="x"), key(NOTE=True)}) == 6

    for notebook in changed(path):
        notebook.cells[0].source = "# Another title"
        notebook.cells[1].source += "\n# a comment on parameters"
        notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="1")]
        notebook.cells[2].execution_count = 4
        notebook.cells[2].metadata["collapsed"] = True
        notebook.metadata["title"] = "x"
    assert key() == before
    for notebook in changed(path):
        notebook.cells[1].source = notebook.cells[1].source.replace("LR = 0.1", "LR = 0.2")
    assert key() != before
    assert key(LR=0.1) == before  # of what is given, the default does not count
    for notebook in changed(path):
        notebook.cells[2].source = "print(2)"
    assert key(LR=0.1) != before


def test_keys_follow_the_library(make_notebook: MakeNotebook, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_notebook("tour")
    before = notebook_point(path, {}).key
    monkeypatch.setattr(points, "library_identity", lambda: "another")
    assert notebook_point(path, {}).key != before


def test_the_library_counts_but_for_what_queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    shutil.copytree(ROOT / "redistill_lib", library, ignore=shutil.ignore_patterns("__pycache__"))
    before = source.library_identity()
    monkeypatch.setattr(source, "__file__", str(library / "source.py"))

    now = source.library_identity.__wrapped__

    def append(file: str, line: str) -> None:
        with (library / file).open("a") as end:
            end.write(f"\n{line}\n")

    for file in ("cli/__init__.py", "report/page.py", "store/tables.py", "progress.py", "sweep/notebook.py"):
        append(file, "EXTRA = 1")
    append("figures/__init__.py", "# a comment")
    assert now() == before
    append("figures/__init__.py", "EXTRA = 1")
    assert now() != before


def test_keys_follow_modules_of_ones_own(
    make_notebook: MakeNotebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a cell imports lies beside the notebook, one that a parameter names where the command is typed."""
    monkeypatch.chdir(tmp_path)
    path = make_notebook("tour", "import json, own_layers", parameters="NET = 'resnet18'\nDATA = 'hf:own'")
    helper, network, inner = path.with_name("own_layers.py"), tmp_path / "own_net.py", tmp_path / "own_inner.py"

    def key(**given: Any) -> str:
        return notebook_point(path, given).key

    keys = [key()]
    for text in ("A = 1", "A = 2"):
        helper.write_text(text)
        keys.append(key())
    assert len(set(keys)) == 3
    network.write_text("import own_inner\ndef make(): return own_inner.A")
    inner.write_text("A = 1")
    before = key(NET="own_net:make")
    assert key() == keys[-1]
    network.write_text("import own_inner\n# a comment\ndef make(): return own_inner.A")
    assert key(NET="own_net:make") == before
    inner.write_text("A = 2")
    assert key(NET="own_net:make") != before
    network.write_text("def make(: nothing")
    assert key(NET="own_net:make") != before  # no error here: the notebook says it


def test_told_is_equal_for_equal_values_only() -> None:
    values: list[Any] = [1, 1.0, True, "1", None, "None", [1], (1,), {"a": 1}, {"a": 1.0}, {1}, "a\nb", "a" * 500]
    assert len({told(value) for value in values}) == len(values)
    assert told({"a": {3, 1, 2}, "b": 1}) == told({"b": 1, "a": {2, 3, 1}})


# what comes with the project

PAGE = (ROOT / "sweeps" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_sweeps_that_come_with_the_project(file: Path) -> None:
    found = read_sweep(file)
    row = re.search(rf"^\| \[{file.stem}\]\({file.name}\) \|.*\| (\d+) \|$", PAGE, re.MULTILINE)
    assert row and int(row[1]) == len(found.points) > 1
    for point in found.points:
        parse_methods(point.parameters.get("METHODS", "red"))


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_examples_of_the_page(tmp_path: Path, block: str) -> None:
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    file = tmp_path / "sweeps" / "a.yaml"
    file.parent.mkdir()
    file.write_text(block)
    count = re.match(r"# (\d+) points?\n", block)
    assert count and len(read_sweep(file).points) == int(count[1])


def test_refusals_of_the_page(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`.+?) \| .+ \| .*\|$", PAGE.split("| written |")[1], re.MULTILINE)
    refused = [text for row in rows for text in re.findall("`(.+?)`", row)]
    assert len(rows) == 8 and len(refused) > 15
    for text in refused:
        (tmp_path / "a.yaml").write_text(f"a: {text}")
        with pytest.raises(ValueError, match="line 1: "):
            read_strict(tmp_path / "a.yaml")
