"""Networks as the command line and the notebooks take them: a built-in name, or a function that makes one's own.

As a program it says which of the names that a sweep gives its notebooks they would refuse.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type, whole
from redistill_lib.data import DataSplits, load_data
from redistill_lib.data.sources import BUILT_IN
from redistill_lib.methods import parse_methods
from redistill_lib.models import create_model, place_names, student_name
from redistill_lib.models.saved import load_model
from redistill_lib.network import Place
from redistill_lib.plans import StridePlan
from redistill_lib.runs import Run
from redistill_lib.student import derive_student, find_places


def resolve_model(name: str, *, seed: int = 0) -> str | nn.Module:
    """What training, `Arm` and `student_of` take: a built-in name as it stands, or what one's own function returns.

    `name` is that of `create_model`, or ``module:function`` for a function without arguments that returns an
    ``nn.Module``, alone or as (model, inputs). It is called under `seed`, so that it gives the same weights in any
    process. The module is found as Python finds it, in the working folder first; ``folder/module:function`` names
    another folder. ValueError or ImportError where there is none, ValueError for whatever the function raises.

    >>> resolve_model("resnet18-4-11221"), resolve_model("torch.nn:Identity")
    ('resnet18-4-11221', Identity())
    """
    check_type("name", name, str)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole("seed", seed, 0, 2**63 - 1))
        return named_network(name)[0]


def student_of(model: str | nn.Module, factor: int, example: Tensor) -> str | nn.Module:
    """The student that pools ×`factor` in its stem: of a built-in name its name, of a network a network.

    As `student_name` and `derive_student`; `example` is images B×C×H×W, of which only the shape counts.

    >>> student_of("resnet18-1-21222", 4, torch.zeros(1, 3, 32, 32))
    'resnet18-4-11221'
    """
    check_type("model", model, str, nn.Module)
    if isinstance(model, str):
        return student_name(model, factor)
    return derive_student(model, factor, example=example)[0]


def run_in(name: str) -> Run | None:
    """The training run in a folder, where that is one's name."""
    return Run.load(name) if Path(name).is_dir() else None


def data_of(run: Run | None, name: str | None = None, image_size: int | None = None) -> DataSplits:
    """The data that a run was trained on, or those of a name; without either ``cluttered``."""
    known = dict(run.params.get("data", {})) if run and name is None else {"name": name or "cluttered"}
    return load_data(**known | ({"image_size": image_size} if image_size else {}))


def network_of(name: str, data: DataSplits, builder: str | None = None) -> nn.Module:
    """A run's network, or a built-in one or one's own, with the weights that it is made with, in eval mode.

    `builder` builds what runs of a network of one's own have trained, or the teacher of which they are students.
    """
    if run := run_in(name):
        own = "weights" in run.params.get("model", {})
        return _trained(run, data, builder) if own else load_model(run)
    found = resolve_model(name)
    if isinstance(found, nn.Module):
        return found.eval()
    return create_model(found, data.num_classes, data.in_channels).eval()


def _trained(run: Run, data: DataSplits, builder: str | None) -> nn.Module:
    if builder is None:
        raise ValueError(f"run {run.id} trained a network of your own: say what builds it, --network my_net:make")
    example = torch.zeros(2, data.in_channels, data.image_size, data.image_size)
    network = resolve_model(builder)
    for factor in (1, 2, 4, 8):
        with contextlib.suppress(ValueError, RuntimeError):  # built otherwise
            return load_model(run, student_of(network, factor, example))
    raise ValueError(f"neither {builder} nor a student of it at ×2, ×4 or ×8 is what run {run.id} trained")


def named_network(name: str) -> tuple[str | nn.Module, tuple[Any, ...] | None]:
    """`resolve_model` with the inputs that one's own function gives beside its network."""
    if ":" in name:
        return _own_network(name)
    if "/" in name and not name.endswith(".py"):
        raise ValueError(f"there is no folder {name}: give that of a run, a built-in name, or module:function")
    if name.endswith(".py"):
        raise ValueError(f"write the module, not its file: {name.removesuffix('.py').replace('/', '.')}:function")
    if "." in name.partition("-")[0]:
        close = ":".join(name.rsplit(".", 1))
        raise ValueError(f"{name} names no function; did you mean {close!r} (module:function)?")
    place_names(name)  # refuses what is no name
    return name, None


def _own_network(name: str) -> tuple[nn.Module, tuple[Any, ...] | None]:
    path, _, function = name.rpartition(":")
    folder, _, module = path.rpartition("/")
    if module.endswith(".py"):
        module = path.removesuffix(".py").replace("/", ".")
        raise ValueError(f"write the module, not its file: {module}:{function or 'function'}")
    make = getattr(_imported(module, folder), function, None)
    try:
        made = make() if callable(make) else None
    except Exception as error:  # one's own function may raise anything
        told = f"{name}, called without arguments, raised {type(error).__name__}: {error}"
        raise ValueError(told) from error
    model, *inputs = made if isinstance(made, tuple) and made else (made,)
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        inputs = [*inputs[0]]
    if not isinstance(model, nn.Module) or not all(isinstance(x, Tensor) for x in inputs):
        what = "returns an nn.Module, or (model, inputs) with tensors"
        raise ValueError(f"module {module} has no function {function!r} that {what}")
    return model, tuple(inputs) or None


def _imported(module: str, folder: str) -> Any:
    """The module, from `folder` where one is named; it stays on the path, for what the function imports."""
    place = os.path.abspath(os.path.expanduser(folder)) if folder else ""
    if place not in sys.path:
        sys.path.insert(0, place)  # as `python -m` does with the working folder
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.partition(".")[0]):  # that it imports itself
            raise
        raise ModuleNotFoundError(
            f"there is no module {module} in {place or os.getcwd()}, nor installed", name=module
        ) from error
    except ImportError:
        raise
    except Exception as error:  # so may one's own module, such as a SyntaxError
        raise ValueError(f"module {module} cannot be imported: {type(error).__name__}: {error}") from error
    origin = getattr(found, "__file__", None)
    if folder and origin and Path(place).resolve() not in Path(origin).resolve().parents:
        raise ValueError(f"{folder} has no module {module}, or another is loaded already, from {origin}")
    return found


def check_named(kind: str, name: str, *more: Any) -> None:
    """Refuse a network, its student, a method or a folder of data as a notebook would; nothing is loaded from a hub
    or read. A ``student`` has its factor and the side of its images, or None, behind the network's name."""
    if kind == "network":
        _made(name)
    elif kind == "student":
        _check_student(name, *more)
    elif kind == "methods":
        parse_methods(name)
    elif name not in BUILT_IN and not name.startswith("hf:") and not os.path.isdir(os.path.expanduser(name)):
        load_data(name)  # which says why it cannot


_made = functools.lru_cache(4)(resolve_model)  # a sweep asks for the same at each factor


def _check_student(name: str, factor: int, side: int | None) -> None:
    """Refuse a factor at which that network has no student. What images of another size decide is left to them."""
    network = _made(name)
    if isinstance(network, str):
        _check_factor(name, factor, functools.partial(student_name, network))
    elif (example := _image_for(network, side or 64)) is not None:
        places = _places(network, example)
        if len(places) > 1:  # one alone gives nothing back, but patches may grow
            plan = StridePlan(places[0].stride, tuple(place.stride for place in places[1:]))
            _check_factor(name, factor, plan.front_loaded)
        if side and places:
            derive_student(network, factor, example=example)


def _check_factor(name: str, factor: int, make: Callable[[int], object]) -> None:
    """Refuse a factor of which `make` raises a ValueError, and say which others there are."""

    def possible(each: int) -> bool:
        try:
            make(each)
        except ValueError:
            return False
        return True

    if not possible(factor):
        fits = [f"×{each}" for each in (2, 4, 8, 16) if possible(each)]
        there = f"there are some at {', '.join(fits)}" if fits else "it has too little stride to move"
        raise ValueError(f"{name} has no student at ×{factor}: {there}")


def _image_for(network: nn.Module, side: int) -> Tensor | None:
    """Zeros that its first layer may take; None where that is no convolution of images."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    return None if first is None else torch.zeros(1, first.in_channels, side, side)


def _places(network: nn.Module, example: Tensor) -> Sequence[Place]:
    try:
        return find_places(network, example)
    except Exception:  # it takes other images: the notebook, which has them, tells
        return ()


def main() -> None:
    """Lists for `check_named` come as JSON on stdin; out goes a line for each: null, or why it is refused."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what one's own function prints is no part of the answers
    for kind, name, *more in json.load(sys.stdin):
        refused = None
        try:
            check_named(kind, name, *more)
        except (Exception, SystemExit) as error:
            refused = str(error).strip().partition("\n")[0] or type(error).__name__
        print(json.dumps(refused), file=answers, flush=True)
    os._exit(0)  # whatever threads one's own module has begun


if __name__ == "__main__":
    main()
