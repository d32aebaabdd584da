"""Networks by what the command line takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import redistill_lib as rd
from redistill_lib.own import check_named

NET = """
from torch import nn
import my_width

def make():
    layers = nn.Conv2d(1, my_width.WIDTH, 3, 2, 1), nn.ReLU(), nn.Conv2d(my_width.WIDTH, 8, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that imports another one beside it."""
    (tmp_path / "my_own_net.py").write_text(NET)
    (tmp_path / "my_width.py").write_text("WIDTH = 4\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("my_own_net", "my_width", "my_faults"):
        sys.modules.pop(name, None)


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_built_in_name_stays_as_it_stands() -> None:
    assert rd.resolve_model("resnet18-4-11221") == "resnet18-4-11221"
    assert rd.student_of("resnet18-1-21222", 4, torch.zeros(1, 3, 32, 32)) == "resnet18-4-11221"


def test_a_function_is_found_in_the_working_folder_or_the_one_it_names(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = rd.resolve_model(f"{nets}/my_own_net:make")
    assert isinstance(named, nn.Sequential) and named[0].out_channels == 4
    sys.modules.pop("my_own_net")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(nets)])
    monkeypatch.chdir(nets.parent)
    assert isinstance(rd.resolve_model(f"{nets.name}/my_own_net:make"), nn.Sequential)
    with pytest.raises(ValueError, match="elsewhere has no module my_own_net, or another is loaded already, from "):
        rd.resolve_model("elsewhere/my_own_net:make")


def test_its_weights_follow_from_the_seed_alone(nets: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (rd.resolve_model(f"{nets}/my_own_net:make", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(weights(first), weights(again)) and not torch.equal(weights(first), weights(other))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_its_student_pools_harder_and_has_its_weights(nets: Path) -> None:
    network: Any = rd.resolve_model(f"{nets}/my_own_net:make")
    student: Any = rd.student_of(network, 2, torch.zeros(1, 1, 16, 16))
    assert [layer.stride for layer in student if isinstance(layer, nn.Conv2d)] == [(4, 4), (1, 1)]
    assert torch.equal(weights(student), weights(network))


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("resnet81", "Unknown architecture 'resnet81'"),
        ("resnet18-1-2122", "has 5 places where resnet18 has 6"),
        ("my_own_net.py:make", "write the module, not its file: my_own_net:make"),
        ("my.net", "did you mean 'my:net'"),
        ("torch.nn:functional", "module torch.nn has no function 'functional' that returns an nn.Module"),
    ],
)
def test_what_is_no_network_is_told(name: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        rd.resolve_model(name)


def test_what_ones_own_code_raises_is_one_sentence(nets: Path) -> None:
    body = "def lookup(): return {}['width']\ndef nothing(): return ()\ndef wrong(): return len(3)\n"
    (nets / "my_faults.py").write_text(body)
    (nets / "my_slip.py").write_text("def make(:\n")
    (nets / "my_zero.py").write_text("1 / 0\n")
    for name, error in (
        ("my_faults:lookup", "my_faults:lookup, called without arguments, raised KeyError: 'width'"),
        ("my_faults:wrong", "called without arguments, raised TypeError: object of type 'int' has no len"),
        ("my_faults:nothing", "module my_faults has no function 'nothing' that returns an nn.Module"),
        ("my_slip:make", "module my_slip cannot be imported: SyntaxError: invalid syntax"),
        ("my_zero:make", "module my_zero cannot be imported: ZeroDivisionError"),
    ):
        with pytest.raises(ValueError, match=error):
            rd.resolve_model(f"{nets}/{name}")
    with pytest.raises(ValueError, match=r"module \.my_faults cannot be imported: TypeError"):
        rd.resolve_model(".my_faults:lookup")


def test_a_folder_may_be_a_link_in_the_home_folder(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = nets / "the home"
    home.mkdir()
    (home / "link").symlink_to(nets)
    monkeypatch.setenv("HOME", str(home))
    assert isinstance(rd.resolve_model("~/link/my_own_net:make"), nn.Sequential)


def test_a_run_gives_back_what_resolve_model_gave(nets: Path, tmp_path: Path) -> None:
    options = rd.RunOptions(tmp_path / "runs", progress=False)
    data, recipe = rd.load_data("digits", image_size=16, limit=64), rd.Recipe(steps=1, batch_size=16)
    for name in (f"{nets}/my_own_net:make", "mobilenetv3_small"):
        network = rd.resolve_model(name)
        run = rd.train_classifier(network, data, recipe, width=0.125, options=options)
        assert not rd.load_model(run, network).training
        with pytest.raises(ValueError, match=f"run {run.id} trained .*, not resnet18-2-21222"):
            rd.load_model(run, "resnet18")


def test_names_that_a_sweep_gives(nets: Path) -> None:
    for kind, name in (
        ("network", f"{nets}/my_own_net:make"),
        ("network", "resnet18-4-11221"),
        ("methods", "red(alpha=5.0)+kd"),
        ("data", "cluttered"),
        ("data", "hf:nobody/nothing"),  # which no network is asked for
        ("data", str(nets)),
    ):
        check_named(kind, name)
    for kind, name in (("network", "resnet19"), ("methods", "red+red"), ("data", "digit"), ("data", "./digits")):
        with pytest.raises((ValueError, FileNotFoundError)):
            check_named(kind, name)
