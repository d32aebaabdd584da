"""Taps: which student feature map is paired with which teacher feature map, and how to reach both."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.red import Side

Place = tuple[str, Side]
Visit = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Tap:
    """A student layer's input or output, paired with a teacher's.

    `layer` and `teacher_layer` are module paths (an empty path is the whole network). What is left at None is
    decided by `Distillation`: `channels` (of the student's map) from its example, `method` and the method's
    options (`alpha`, `distance`, `kernel_size`, `temperature`) from its methods.

    >>> Tap("conv1", "output", "layer2.0", "output", channels=64)
    Tap(conv1 output ← layer2.0 output, channels=64)
    """

    layer: str
    side: Side
    teacher_layer: str
    teacher_side: Side
    teacher: int = 0
    method: str | None = None
    channels: int | None = None
    alpha: float | None = None
    distance: str | None = None
    kernel_size: int | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for side in (self.side, self.teacher_side):
            if side not in ("input", "output"):
                raise ValueError(f"a tap sits on the 'input' or the 'output' of a layer, not on {side!r}")

    @property
    def place(self) -> Place:
        return (self.layer, self.side)

    @property
    def name(self) -> str:
        return f"{self.layer or 'network'}.{self.side}"

    def __repr__(self) -> str:
        teacher = f"teacher {self.teacher}: " if self.teacher else ""
        source = f"{teacher}{self.teacher_layer or '(network)'} {self.teacher_side}"
        pair = f"{self.layer or '(network)'} {self.side} ← {source}"
        names = ("method", "channels", "alpha", "distance", "kernel_size", "temperature")
        given = [f"{n}={getattr(self, n)!r}" for n in names if getattr(self, n) is not None]
        return f"Tap({', '.join([pair, *given])})"


# ---------------------------------------------------------------------------------------------- reaching the maps


def find_layer(model: nn.Module, path: str, role: str = "network") -> str:
    """The module path as `model` knows it (an official ``net.`` prefix is dropped), or a KeyError with near names."""
    names = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in reversed(list(model.named_modules()))}
    for candidate in (path, path.removeprefix("net.")):
        if candidate in names:
            return first[id(names[candidate])]  # one name for a layer that has several
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.4)
    hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
    raise KeyError(f"the {role} has no layer {path!r}{hint}")


@contextlib.contextmanager
def tapping(model: nn.Module, visits: Mapping[Place, Visit]) -> Iterator[None]:
    """While open, call each visitor with the tensor at its place; a tensor it returns takes that tensor's place.

    An input is the layer's first positional argument. Nothing stays on the model afterwards.

    >>> net, seen = nn.Sequential(nn.ReLU()), []
    >>> with tapping(net, {("0", "output"): seen.append}):
    ...     _ = net(torch.tensor([-1.0, 2.0]))
    >>> seen
    [tensor([0., 2.])]
    """
    handles = []
    try:
        for (path, side), visit in visits.items():
            module = model.get_submodule(path)
            if side == "input":
                handles.append(module.register_forward_pre_hook(partial(_on_input, visit, path)))
            else:
                handles.append(module.register_forward_hook(partial(_on_output, visit, path)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(visit: Visit, path: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not args or not isinstance(args[0], Tensor):
        raise TypeError(f"the input of {path!r} is not a tensor given by position; tap the layer before it")
    replaced = visit(args[0])
    return None if replaced is None else (replaced, *args[1:])


def _on_output(visit: Visit, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
    if not isinstance(output, Tensor):
        raise TypeError(f"the output of {path!r} is a {type(output).__name__}, not one tensor; tap a layer inside it")
    return visit(output)


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; on leaving, every single module is back in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_float(inputs: Sequence[object]) -> None:
    """Raise TypeError for pictures as they are stored, which no network takes."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].dtype == torch.uint8:
        raise TypeError("the network wants float pictures, not uint8; redistill_lib.to_float makes them")


def feature_maps(model: nn.Module, places: Sequence[Place], *inputs: Tensor) -> dict[Place, Tensor]:
    """The tensors at `places` during one forward pass in eval mode; the model is left as it was.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU())
    >>> feature_maps(net, [("0", "output")], torch.zeros(1, 1, 9, 9))[("0", "output")].shape
    torch.Size([1, 4, 4, 4])
    """
    places = [(find_layer(model, path), side) for path, side in places]
    maps: dict[Place, Tensor] = {}

    def keep(place: Place, x: Tensor) -> None:
        maps[place] = x.clone()  # what follows may work in place

    with evaluating(model), tapping(model, {place: partial(keep, place) for place in places}):
        model(*inputs)
    if missing := [f"{path}.{side}" for path, side in places if (path, side) not in maps]:
        raise RuntimeError(f"never reached in the forward pass: {', '.join(missing)}")
    return maps


# ------------------------------------------------------------------------------------------------ pairing by size


@dataclass(frozen=True)
class Resize:
    """The smallest module that holds one whole change of resolution, e.g. a strided conv or a residual block."""

    path: str
    before: tuple[int, int]  # height, width
    after: tuple[int, int]
    channels_in: int
    channels_out: int
    learns: bool  # it convolves, or something has since the step before; ResNet's max pool after conv1 does not

    @property
    def down(self) -> bool:
        return self.after[0] * self.after[1] < self.before[0] * self.before[1]


def map_shapes(model: nn.Module, *inputs: Tensor) -> list[tuple[str, torch.Size, torch.Size]]:
    """(path, input shape, output shape) of every module that maps a B×C×H×W tensor to one, in order of completion.

    A module that runs more than once per pass has no shape of its own and is left out.
    """
    seen: list[tuple[str, torch.Size, torch.Size]] = []
    handles = []

    def note(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and all(isinstance(v, Tensor) and v.ndim == 4 for v in (args[0], output)):
            seen.append((path, args[0].shape, output.shape))

    for path, module in model.named_modules():
        if path and not isinstance(module, nn.Linear):  # works on the last axis: its 4-d tensors are B×H×W×C
            handles.append(module.register_forward_hook(partial(note, path)))
    try:
        with evaluating(model):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(path for path, _, _ in seen)
    return [entry for entry in seen if calls[entry[0]] == 1]


def find_resizes(model: nn.Module, *inputs: Tensor) -> list[Resize]:
    """Where a network changes its maps' height × width, in order of execution.

    Parallel branches that make the same change (a residual block's conv and its shortcut) count as one, at the
    module that holds them all. Adaptive pooling to a fixed size is the head's or a gate's, and does not count.
    """
    seen = [
        s for s in map_shapes(model, *inputs) if not type(model.get_submodule(s[0])).__name__.startswith("Adaptive")
    ]
    # A valid convolution shaves a border off; only a real change of scale counts.
    changes = [(p, i, o) for p, i, o in seen if not 0.75 < (o[-2:].numel() / i[-2:].numel()) ** 0.5 < 1.34]
    paths = [p for p, _, _ in changes]
    smallest = [c for c in changes if not any(other.startswith(c[0] + ".") for other in paths)]
    order = {path: k for k, (path, _, _) in enumerate(seen)}
    steps: list[Resize] = []
    for path, i, o in smallest:
        before, after = (i[-2], i[-1]), (o[-2], o[-1])
        if steps and (steps[-1].before, steps[-1].after) == (before, after):
            both = _common_parent(steps[-1].path, path)
            path = both if both in order else path  # branches of the network itself: the last one stands for all
            steps.pop()
        whole = next(c for c in seen if c[0] == path)
        while (parent := path.rpartition(".")[0]) in order and len(list(model.get_submodule(parent).children())) == 1:
            path = parent  # a module around one layer is that layer, under the name people know
        since = order.get(steps[-1].path, -1) if steps else -1
        learns = any(_convolves(model.get_submodule(p)) for p, _, _ in seen[since + 1 : order[whole[0]] + 1])
        steps.append(Resize(path, before, after, whole[1][1], whole[2][1], learns))
    return steps


def _convolves(module: nn.Module) -> bool:
    return any(p.ndim > 2 for p in module.parameters())


def _common_parent(a: str, b: str) -> str:
    shared = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)


def match_taps(student: nn.Module, teacher: nn.Module, example: Tensor | tuple[Tensor, ...]) -> list[Tap]:
    """Pair student and teacher wherever they change resolution in the same way, from the earliest to the deepest.

    The student's first downsampling layer gives its output (its input is the image); each later one gives input and
    output, paired with the teacher's layer that goes from and to the same height × width. A network that ends in
    upsampling to the image gives the input of that last step alone. A pool right after a tapped layer is not tapped,
    as it adds nothing learnt. For the paper's pairs these are the paper's taps (arXiv 2406.03744, and the
    configurations published with it).

    >>> def net(a, b): return nn.Sequential(nn.Conv2d(3, 8, 3, a, 1), nn.Conv2d(8, 8, 3, b, 1), nn.Conv2d(8, 8, 3, 2))
    >>> match_taps(net(4, 1), net(2, 2), torch.zeros(1, 3, 32, 32))
    [Tap(0 output ← 1 output, channels=8), Tap(2 input ← 2 input, channels=8), Tap(2 output ← 2 output, channels=8)]
    """
    inputs = example if isinstance(example, tuple) else (example,)
    check_float(inputs)
    image = tuple(inputs[0].shape[-2:])
    ours, theirs = find_resizes(student, *inputs), find_resizes(teacher, *inputs)
    taps: list[Tap] = []
    for step in ours:
        if not step.learns:
            continue
        exact = [t for t in theirs if (t.before, t.after) == (step.before, step.after)]
        if step.down and step.before == image:
            sides = {"output": [t for t in theirs if t.down and t.after == step.after]}
        elif not step.down and step.after == image:
            sides = {"input": [t for t in theirs if not t.down and t.before == step.before]}
            step = _widest(student, step, inputs)
        else:
            sides = {"input": exact, "output": exact}
        for side, candidates in sides.items():
            if candidates:
                channels = step.channels_in if side == "input" else step.channels_out
                taps.append(Tap(step.path, side, candidates[0].path, side, channels=channels))  # type: ignore[arg-type]
    if not taps:
        sizes = [" → ".join("×".join(map(str, size)) for size in (s.before, s.after)) for s in (*ours, *theirs)]
        raise ValueError(
            f"no student and teacher layers change resolution alike at input {image[0]}×{image[1]} "
            f"(student and teacher: {', '.join(sizes) or 'no change at all'}); "
            "give both the same total stride, or taps by hand"
        )
    return taps


def _widest(model: nn.Module, step: Resize, inputs: tuple[Tensor, ...]) -> Resize:
    """The largest module that ends the network with this step: its input is the last map before normalisation."""
    parts = step.path.split(".")
    outer = (".".join(parts[: k + 1]) for k in range(len(parts)))
    path = next(path for path in outer if not isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict))
    first = feature_maps(model, [(path, "input")], *inputs)[(path, "input")]
    if tuple(first.shape[-2:]) != step.before:
        return step
    return replace(step, path=path, channels_in=first.shape[1])


# -------------------------------------------------------------------------------------------- the official schema

_KWARGS = {
    "cs": "channels",
    "alpha": "alpha",
    "distance": "distance",
    "res_ks": "kernel_size",
    "T": "temperature",
}


def read_taps(source: str | Path | Mapping[str, Any]) -> list[Tap]:
    """Taps from a configuration in the authors' YAML schema, in file order, input before output.

    Each entry is ``<student layer>: {t_layers: [for its input, for its output], modules: [RED | STAGE | KD | MSE |
    null, …], kwargs: [{cs, alpha, distance, res_ks}, …]}`` with teacher layers written ``tid_<teacher>=<layer>``.
    A ``net.`` prefix is accepted on both sides and dropped.

    >>> read_taps({"net.conv1": {"t_layers": [None, "tid_0=layer2.0"], "modules": [None, "RED"],
    ...                          "kwargs": [None, {"cs": 64, "alpha": 50.0, "distance": "cosine", "res_ks": 3}]}})
    [Tap(conv1 output ← layer2.0 output, method='red', channels=64, alpha=50.0, distance='cosine', kernel_size=3)]
    """
    if isinstance(source, Mapping):
        where, entries = "taps", source
    else:
        import yaml

        where = str(source)
        try:
            entries = yaml.safe_load(Path(source).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, Mapping) or not entries:
        raise ValueError(f"{where}: expected a mapping of student layers to t_layers, modules and kwargs")
    taps = [tap for layer, entry in entries.items() for tap in _entry_taps(where, str(layer), entry)]
    if not taps:
        raise ValueError(f"{where}: every entry is null, so there is no tap")
    return taps


def _entry_taps(where: str, layer: str, entry: Any) -> Iterator[Tap]:
    where = f"{where}, {layer}"
    if not isinstance(entry, Mapping) or not {"t_layers", "modules"} <= set(entry):
        raise ValueError(
            f"{where}: expected t_layers and modules, each a list of two (for the input, for the output)"
        )
    lists = {key: entry.get(key) or [None, None] for key in ("t_layers", "modules", "kwargs")}
    for key, value in lists.items():
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise ValueError(f"{where}: {key} must be a list of two (for the input, for the output), not {value!r}")
    sides: tuple[Side, Side] = ("input", "output")
    for side, target, module, kwargs in zip(sides, lists["t_layers"], lists["modules"], lists["kwargs"], strict=True):
        if (target is None) != (module is None):
            raise ValueError(f"{where}: on the {side}, t_layers says {target!r} but modules says {module!r}")
        if target is None:
            continue
        match = re.fullmatch(r"tid_(\d+)=(.+)", str(target))
        if match is None:
            raise ValueError(f"{where}: teacher layer {target!r} is not of the form tid_<teacher number>=<layer>")
        if module not in ("RED", "STAGE", "KD", "MSE"):
            raise ValueError(f"{where}: unknown module {module!r}; choose RED, STAGE, KD, MSE or null")
        if unknown := set(kwargs or {}) - set(_KWARGS):
            raise ValueError(f"{where}: unknown kwargs {sorted(unknown)}; the schema has {', '.join(_KWARGS)}")
        options = {_KWARGS[key]: value for key, value in (kwargs or {}).items()}
        yield Tap(
            layer.removeprefix("net."),
            side,
            match[2].removeprefix("net."),
            side,
            int(match[1]),
            module.lower(),
            **options,
        )
