"""What tells one network, method or version of the code from another, and what must not."""

from __future__ import annotations

import ast
import functools
import importlib
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redistill_lib import source
from redistill_lib.identity import network_identity, object_identity, structure
from redistill_lib.models import create_model

ROOT = Path(__file__).parents[1]
SLOPE = 0.2


class Leaky(nn.Module):
    """A layer of the user's own that keeps all kinds of things."""

    def __init__(self, **kept: Any):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        vars(self).update(kept)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.conv(x), SLOPE)


def same_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    return model


def power(exponent: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x**exponent


@dataclass
class Options:
    size: int
    names: frozenset[str] = frozenset({"red", "green", "blue"})


class Slotted:
    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = size


def define(body: str, name: str = "Net", **given: Any) -> Any:
    """What a file of one's own defines."""
    scope = {"nn": nn, "torch": torch, "__name__": "scratch", **given}
    exec(compile(body, "<prompt>", "exec", dont_inherit=True), scope)
    return scope[name]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"act": torch.sigmoid}, {"act": torch.sin}),
        ({"act": nn.functional.gelu}, {"act": nn.functional.silu}),
        ({"act": power(2)}, {"act": power(3)}),
        ({"act": lambda x: x + 1}, {"act": lambda x: x + 2}),
        ({"act": lambda x, y: x - y}, {"act": lambda y, x: x - y}),
        ({"act": lambda *x: x}, {"act": lambda **x: x}),
        ({"act": functools.partial(torch.clamp, max=6)}, {"act": functools.partial(torch.clamp, max=1)}),
        ({"pool": nn.functional.max_pool1d}, {"pool": nn.functional.max_pool2d}),
        ({"rates": {"a": [1, 2]}}, {"rates": {"a": [1, 3]}}),
        ({"rates": [(1, 2)]}, {"rates": [(1,), (2,)]}),
        ({"options": Options(3)}, {"options": Options(4)}),
        ({"options": Options(3)}, {"options": Options(3, frozenset({"red"}))}),
        ({"options": Slotted(3)}, {"options": Slotted(4)}),
        ({"mean": torch.tensor([0.5])}, {"mean": torch.tensor([0.25])}),
        ({"extra": [nn.MaxPool2d(2)]}, {"extra": [nn.MaxPool2d(3)]}),
        ({"config": "wide"}, {"config": "narrow"}),
        ({"dtype": torch.float32}, {"dtype": torch.bfloat16}),
        ({"root": math.sqrt}, {"root": math.cbrt}),
    ],
)
def test_attributes_of_every_kind(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, again, b = (structure(same_weights(Leaky(**kept))) for kept in (one, one, other))
    assert a == again != b


def changed(change: Callable[[Any], Any]) -> bool:
    plain, other = (same_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))) for _ in range(2))
    change(other)
    return structure(plain) != structure(other)


def test_what_counts_in_a_module() -> None:
    assert changed(lambda net: net[0].bias.requires_grad_(False))
    assert changed(lambda net: setattr(net[1], "bias", net[0].bias))  # shared, not only equal
    assert changed(lambda net: setattr(net[1], "dilation", (2, 2)))
    assert changed(lambda net: net.half())
    assert changed(lambda net: net.register_buffer("mask", torch.ones(1)))
    assert changed(lambda net: net[0].register_forward_hook(lambda module, args, output: 2 * output))
    assert not changed(lambda net: net.eval())
    assert not changed(lambda net: net.to(memory_format=torch.channels_last))
    assert not changed(lambda net: nn.init.zeros_(net[0].weight))


def test_buffers_out_of_the_state_dict() -> None:
    nets = [nn.Identity() for _ in range(3)]
    for net, value, persistent in zip(nets, (1.0, 2.0, 1.0), (False, False, True), strict=True):
        net.register_buffer("scale", torch.tensor(value), persistent=persistent)
    first, second, kept = map(network_identity, nets)
    assert first["weights"] != second["weights"] and first["structure"] != second["structure"]
    assert first["weights"] == kept["weights"] and first["structure"] != kept["structure"]


def test_weights() -> None:
    a, b = create_model("resnet18", num_classes=4, width=0.125), create_model("resnet18", num_classes=4, width=0.125)
    b.load_state_dict(a.state_dict())
    assert network_identity(a) == network_identity(b) and set(network_identity(a)) == {"structure", "weights"}
    b.bn1.running_mean[0] += 1
    assert network_identity(a)["weights"] != network_identity(b)["weights"] and structure(a) == structure(b)


NET = """
import torch
from torch import nn
{before}
class Base(nn.Module):
    def finish(self, x):
        return {finish}

class Net(Base):
    {doc}
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.finish(helper(self.fc(x)))

def helper(x):
    return x * {factor}
"""
PLAIN = {"before": "", "finish": "x", "doc": "'A net.'", "factor": "2"}


def written(tmp_path: Path, number: int, **parts: str) -> nn.Module:
    """The network of a module of the user's own, as an import leaves it."""
    file = tmp_path / f"version{number}.py"
    file.write_text(NET.format(**(PLAIN | parts)))
    scope: dict[str, Any] = {"__name__": "mine"}
    exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), scope)
    return same_weights(scope["Net"]())


def test_the_users_code(tmp_path: Path) -> None:
    plain = structure(written(tmp_path, 0))
    for number, same in enumerate(
        ({"doc": "'''Another\n    text.'''  # said"}, {"finish": "(x)"}, {"before": "# on\n\n"}), 1
    ):
        assert structure(written(tmp_path, number, **same)) == plain
    others = (
        {"finish": "x.relu()"},
        {"factor": "3"},
        {"factor": "F", "before": "F = 2"},
        {"factor": "F", "before": "F = 4"},
        {"factor": "deep(2)", "before": "def deep(x):\n    return deeper(x)\ndef deeper(x):\n    return x + 1"},
        {"factor": "deep(2)", "before": "def deep(x):\n    return deeper(x)\ndef deeper(x):\n    return x + 2"},
    )
    found = [structure(written(tmp_path, number, **other)) for number, other in enumerate(others, 10)]
    assert len({plain, *found}) == 1 + len(others)


def test_modules_that_the_code_imports_count_with_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same before and after their import; a file that none of them reads does not count."""
    monkeypatch.syspath_prepend(tmp_path)
    for file in ("mine/__init__.py", "mine/deep/__init__.py", "mine/other.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "mine/layers.py").write_text("import math\nfrom . import deep\nfrom .deep.scales import SCALE\n")
    (tmp_path / "mine/deep/scales.py").write_text("SCALE = 1\nfrom ..layers import SCALE as AGAIN\n")
    body = "class Net(nn.Module):\n    def forward(self, x):\n        {}\n        return x"
    lines = (
        "from mine import layers",
        "from .layers import SCALE",
        "import mine.layers as l",
        "from .. import layers",
    )
    for line in lines:
        net = define(body.format(line), __package__="mine.deep" if ".." in line else "mine")()
        plain = structure(net)
        (tmp_path / "mine/other.py").write_text(f"# {line}\nX = '{line}'\n")
        importlib.import_module("mine.other")
        assert structure(net) == plain
        (tmp_path / "mine/deep/scales.py").write_text(f"SCALE = {len(line)}\nfrom ..layers import SCALE as AGAIN\n")
        assert structure(net) != plain


def test_names_in_double_underscores_and_functions_put_into_torchs_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    body = "class Net(nn.Module):\n    '{}'\n    __scale__ = {}\n    def forward(self, x):\n        return x"
    one, same, other = (structure(define(body.format(*given))()) for given in (("a", 1), ("b", 1), ("a", 2)))
    assert one == same != other
    plain = structure(nn.ReLU())
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 6))
    assert structure(nn.ReLU()) != plain


def test_a_file_edited_since_its_import_is_not_believed(tmp_path: Path) -> None:
    net = written(tmp_path, 1)
    (tmp_path / "version2.py").write_text(NET.format(**PLAIN))  # the same names on the same lines
    edited = written(tmp_path, 2, factor="5")
    (tmp_path / "version2.py").write_text(NET.format(**PLAIN))
    assert structure(net) != structure(edited)


def test_code_without_a_source() -> None:
    body = "class Net(nn.Module):\n    def forward(self, x):\n        {doc}\n        self.last = x.{act}()"
    nets = [
        structure(define(body.format(doc=doc, act=act))())
        for doc, act in (("'one'", "relu"), ("'two'", "relu"), ("# none", "relu"), ("'one'", "tanh"))
    ]
    assert nets[0] == nets[1] == nets[2] != nets[3]


def test_a_class_in_a_notebook() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    cell = "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n        {}\n        return {} * x"
    nets = []
    for said, factor in (("# as told", 2), ("'''Docstring.'''", 2), ("# as told", 3)):
        assert shell.run_cell(cell.format(said, factor), store_history=True).success
        nets.append(structure(shell.user_ns["Net"]()))
    assert nets[0] == nets[1] != nets[2]


PROCESS = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
import torch
from test_identity import Leaky, Options, power, same_weights
from redistill_lib.identity import network_identity, object_identity
kept = dict(names={{"x", "y", "z", "t"}}, act=power(2), options=Options(1), f=torch.tanh)
print(network_identity(same_weights(Leaky(**kept))), object_identity(Options(2)))
"""


def test_every_process_says_the_same() -> None:
    code = PROCESS.format(here=str(ROOT / "tests"), root=str(ROOT))
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1 and "structure" in said.pop()


def test_networks_of_packages_name_their_version() -> None:
    from diffusers import UNet2DModel

    small: dict[str, Any] = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    small |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    a, b, c = (UNet2DModel(sample_size=8, **small, freq_shift=shift) for shift in (0, 0, 1))
    assert structure(a) == structure(b) != structure(c)
    assert network_identity(a)["packages"].startswith("diffusers ")


def test_recurrent_compiled_and_lazy_networks() -> None:
    gru = nn.GRU(2, 3, dropout=0.1, num_layers=2)
    assert structure(gru) == structure(nn.GRU(2, 3, dropout=0.1, num_layers=2))
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert network_identity(torch.compile(net, backend="eager")) == network_identity(net)
    lazy = nn.LazyLinear(3)
    assert structure(lazy) == structure(nn.LazyLinear(3)) != structure(nn.LazyLinear(4))


def test_objects_by_fields_and_code() -> None:
    body = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Loss:\n    alpha: float = 1.0\n"
    body += "    def loss(self, s, t):\n        return {}"
    square, absolute = (define(body.format(f), "Loss") for f in ("(s - t) ** 2", "abs(s - t)"))
    assert object_identity(square()) == object_identity(square(1.0)) != object_identity(square(2.0))
    assert object_identity(square()) != object_identity(absolute())


def test_what_cannot_be_looked_into_is_told_by_its_class() -> None:
    import threading

    assert structure(Leaky(lock=threading.Lock())) == structure(Leaky(lock=threading.Lock())) != structure(Leaky())
    ring = [1]
    ring.append(ring)  # type: ignore[arg-type]
    assert structure(Leaky(ring=ring)) == structure(Leaky(ring=ring))


def imports(file: Path) -> set[str]:
    """The library's modules, as paths, that a file imports when it is imported."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("redistill_lib."):
            inner = str(node.module).removeprefix("redistill_lib.").replace(".", "/")
            names = [f"{inner}/{alias.name}.py" for alias in node.names]
            found.update((f"{inner}.py", f"{inner}/__init__.py", *names))
    return {name for name in found if (ROOT / "redistill_lib" / name).exists()}


def test_all_that_training_imports_counts_or_is_known_to_decide_nothing() -> None:
    """A new module that training needs is of a deciding room, or has to be named here or in OBSERVING."""
    aside = {"checks", "costs", "identity", "memory", "progress", "results", "runs", "source"}
    open_, seen = {f"train/{f.name}" for f in (ROOT / "redistill_lib" / "train").glob("*.py")}, set()
    while open_:
        name = open_.pop()
        seen.add(name)
        if name.split("/")[0].removesuffix(".py") not in aside:
            open_ |= imports(ROOT / "redistill_lib" / name) - seen
    rooms = {name.split("/")[0].removesuffix(".py") for name in seen}
    assert rooms - aside <= set(source.DECIDING)
    assert all((ROOT / "redistill_lib" / name).exists() for name in source.OBSERVING)


def test_code_identity_follows_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    shutil.copytree(ROOT / "redistill_lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source, "__file__", str(tmp_path / "lib" / "source.py"))
    now = source.code_identity.__wrapped__
    assert now() == source.code_identity()

    def edit(file: str, old: str, new: str) -> str:
        path = tmp_path / "lib" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        return str(now())

    before = now()
    assert edit("models/resnet.py", '"""', '"""Said otherwise. ') == before
    assert edit("models/resnet.py", "\nimport ", "\n# why\nimport ") == before
    assert edit("store/tables.py", "2**53", "2**52") == before
    assert edit("models/resnet.py", "bias=False", "bias=True") != before


def test_what_the_id_of_a_network_may_not_forget() -> None:
    """Hooks on gradients, functions that pickle by a registry, code that was executed from text."""

    def with_hook(register: str) -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2))
        with torch.no_grad():
            net[0].weight.zero_(), net[0].bias.zero_()
        if register:
            getattr(net[0], register)(lambda *args: None)
        return net

    kinds = ("", "register_full_backward_hook", "register_full_backward_pre_hook", "register_forward_hook")
    assert len({structure(with_hook(kind)) for kind in kinds}) == len(kinds)
    for one, other in ((np.tanh, np.expm1), (re.compile("x+"), re.compile("x*"))):
        assert object_identity(one) != object_identity(other)
    text = "@dataclass(frozen=True)\nclass M:\n    alpha: float = 1.0\n    def loss(self, a): return a {} 2"
    made = []
    for sign in "+*":
        names: dict[str, Any] = {"dataclass": dataclass, "__name__": "__main__"}
        exec(compile(text.format(sign), "<string>", "exec"), names)
        made.append(object_identity(names["M"]()))
    assert made[0] != made[1]
