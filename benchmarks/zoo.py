"""Take the networks of all zoos that are installed through the library: profile, students, a step, graduation.

    python benchmarks/zoo.py                        all of zoo.yaml; called again, it goes on where it was stopped
    python benchmarks/zoo.py --zoo timm --quick     one zoo, neither measured nor trained: a second for a network
    python benchmarks/zoo.py --only UNet --again    those rows anew

Zoos are packages that need not be there: pytorchcv, timm, monai, segmentation_models_pytorch, transformers,
torchvision, diffusers, efficientnet_pytorch. Networks have random weights and take one image, in the step two. Memory
is profiled and measured: `eager` must be equal to the byte. Students (×2, ×4) must answer in the teacher's shapes.
Each is matched with its teacher and trained for a step with RED, and KD where it classifies: losses must be finite,
every tap's must reach weights of the student. A student that has no map of its teacher's size, as a transformer of
larger patches, takes the step with KD alone, and says so in place of taps. What graduates must answer as the student
does. Networks run in processes of their own, on one thread, so that a crash or a hang costs one row.

Writes benchmarks/results/zoo.csv (zoo_quick.csv) and prints the rates. In place of "ok" or of a number stands why
not: the first sentence of the error, with "crash" before what is not a refusal of this library.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import resource
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import redistill_lib as rd
from redistill_lib.network.fakes import tensors_in
from redistill_lib.progress import progress_bar

HERE = Path(__file__).parent
FACTORS = (2, 4)
NO_MAP = "no map of equal size"
COLUMNS = ["zoo", "name", "input", "strides", "eager_bytes", "measured_bytes", "peak_bytes", "error", "seconds"]
COLUMNS[-2:-2] = (f"{what}_x{x}" for x in FACTORS for what in ("student", "peak_bytes", "taps", "step", "graduate"))
Row = dict[str, Any]
Inputs = tuple[Tensor, ...]


class Case(NamedTuple):
    """A network of a zoo: how it is made, and what it takes."""

    module: str
    name: str
    call: str
    input: str

    @property
    def zoo(self) -> str:
        return self.module.partition(".")[0]

    def build(self) -> nn.Module:
        module = importlib.import_module(self.module)
        torch.manual_seed(0)
        names = re.findall(r"(?<![\w.])([A-Za-z_]\w*)[(.]", self.call)
        return eval(self.call, {name: getattr(module, name) for name in names})

    def inputs(self, batch: int = 1) -> Inputs:
        shape, _, timed = self.input.partition(" ")
        x = torch.rand(batch, *map(int, shape.split("x")), generator=torch.Generator().manual_seed(batch))
        return (x, torch.full((batch,), 10)) if timed else (x,)


def cases() -> dict[tuple[str, str], Case]:
    """By zoo and name, which is that of the class or the function; of a second one with the input."""
    found: dict[tuple[str, str], Case] = {}
    for module, groups in yaml.safe_load((HERE / "zoo.yaml").read_text()).items():
        for group in groups:
            calls = {re.split(r"\W", call)[0]: call for call in re.split(r"\n(?=\w)", group.get("calls", "").strip())}
            calls = {name: group["make"].format(name) for name in group.get("names", "").split()} or calls
            for name, call in calls.items():
                case = Case(module, name, " ".join(call.split()), group["input"])
                if (case.zoo, name) in found:
                    case = case._replace(name=f"{name}-{case.input.partition(' ')[0]}")
                found[case.zoo, case.name] = case
    return found


class Strides(TorchDispatchMode):
    """Sees whether a convolution, a pool or a slice makes a map half as large, or less, of more than one point."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        if re.search("conv|pool|slice|im2col", str(func)):
            before, after = (x.shape[2:] for x in (args[0], tensors_in(out)[0]))
            smaller = all(b < 0.6 * a for a, b in zip(before, after, strict=False))
            self.seen |= len(before) >= 2 and after.numel() > 1 and smaller
        return out


@contextlib.contextmanager
def noted(row: Row, key: str) -> Iterator[None]:
    """Why it failed goes into the row, or else "ok" where nothing stands there."""
    try:
        yield
        row.setdefault(key, "ok")
    except Exception as error:
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        refused = isinstance(error, ValueError | TypeError | KeyError) and "redistill_lib" in Path(last).parts
        first = re.split(r"\n|\. ", text, maxsplit=1)[0][:400]
        row[key] = f"{'' if refused else 'crash: '}{type(error).__name__}: {first}"


def map_sizes(model: nn.Module, inputs: Inputs) -> set[tuple[int, ...]]:
    """Those of all its maps of more than one point, also with channels last or as tokens."""
    grids = rd.find_resolutions(model, inputs).grids.grids
    return {grid.size for grid in grids if not grid.raw and max(grid.size) > 1}


@torch.no_grad()
def answers(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return tensors_in(model.eval()(*inputs))


def examine(case: Case, quick: bool) -> Iterator[Row]:
    """The row of a network, given again with every part, so that the rest may hang or crash."""
    start, row = time.monotonic(), Row(zoo=case.zoo, name=case.name, input=case.input)
    with noted(row, "error"):
        model, inputs = case.build(), case.inputs()
        with Strides() as strides:
            shapes = [tuple(x.shape) for x in answers(model, inputs)]
        row |= {"strides": strides.seen, "error": ""}
    yield row
    if row["error"]:
        return
    with noted(row, "eager_bytes"):
        row["eager_bytes"] = rd.profile_memory(model, *inputs, convention="eager").peak_bytes
    with noted(row, "measured_bytes"):
        row["measured_bytes"] = "" if quick else rd.measure_memory(model, *inputs).peak_bytes
    with noted(row, "peak_bytes"):
        row["peak_bytes"] = rd.profile_memory(model, *inputs).peak_bytes
    yield row
    students: dict[int, nn.Module] = {}
    for factor in FACTORS:
        with noted(row, f"student_x{factor}"):
            student = rd.derive_student(model, factor=factor, example=inputs)[0]
            if (found := [tuple(x.shape) for x in answers(student, inputs)]) != shapes:
                row[f"student_x{factor}"] = f"wrong: outputs of {found}, not {shapes}"
            row[f"peak_bytes_x{factor}"] = rd.profile_memory(student, *inputs).peak_bytes
            students[factor] = student
        yield row
    for factor, student in students.items():  # afterwards, as a teacher is frozen, and so would be its students
        taps: list[rd.Tap] | None = None
        with noted(row, f"taps_x{factor}"):
            alike = set.intersection(*(map_sizes(network, inputs) for network in (student, model)))
            taps = rd.match_taps(student, model, inputs) if alike else []
            row[f"taps_x{factor}"] = len(taps) or NO_MAP
        yield row
        if taps is not None and not quick:
            with noted(row, f"step_x{factor}"):
                distillation = train_step(student, model, taps, case.inputs(2))
                yield row
                with noted(row, f"graduate_x{factor}"):
                    theirs, ours = (answers(network, inputs) for network in (student, distillation.graduate()))
                    if len(ours) != len(theirs) or not all(map(torch.equal, ours, theirs)):
                        row[f"graduate_x{factor}"] = "wrong: it answers otherwise than the student"
            yield row
    yield row | {"seconds": round(time.monotonic() - start, 1)}


def train_step(student: nn.Module, teacher: nn.Module, taps: list[rd.Tap], inputs: Inputs) -> rd.Distillation:
    """One step of training; raises AssertionError where something in it is not as it should be."""
    draw = torch.Generator().manual_seed(0)
    methods, objective, targets = "red", rd.Objective(task_loss=noise_loss), draw
    if len(shape := answers(teacher, inputs)[0].shape) == 2 and shape[1] > 1:  # a classifier
        targets = torch.randint(shape[1], shape[:1], generator=draw)
        methods, objective = "red+kd" if taps else "kd", rd.Objective()
    own = [p for p in student.parameters() if p.requires_grad]
    distillation = rd.Distillation(student, teacher, taps, methods, objective=objective, example=inputs).train()
    trained = [p for p in distillation.parameters() if p.requires_grad]
    losses = distillation(*inputs, targets=targets)[1]
    for name, loss in losses.items():
        assert loss.isfinite(), f"the loss {name} is {loss.item()}"
        if "/" in name:  # a tap's
            grads = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
            assert any(g is not None and g.any() for g in grads), f"{name} reaches no weight of the student"
    losses["total"].backward()
    nn.utils.clip_grad_norm_(trained, 1.0, error_if_nonfinite=True)  # random weights may make it large
    torch.optim.SGD(trained, 1e-3).step()
    assert all(p.isfinite().all() for p in trained), "a weight is not finite after the step"
    return distillation


def noise_loss(outputs: Any, draw: torch.Generator) -> Tensor:
    """The distance of every output that learns from random numbers."""
    learning = [x for x in tensors_in(outputs) if x.requires_grad]
    return torch.stack([nn.functional.mse_loss(x, torch.randn(x.shape, generator=draw)) for x in learning]).mean()


def serve(pipe: Any, modules: list[str], gigabytes: float, quick: bool) -> None:
    """A process: it answers each case with parts of its row, and None at the end."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 2**30),) * 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in modules:
        importlib.import_module(name)
    with contextlib.suppress(EOFError):  # the end
        while True:
            for part in examine(pipe.recv(), quick):
                pipe.send(part)
            pipe.send(None)


def rows_of(left: list[Case], jobs: int, seconds: float, *settings: Any) -> Iterator[Row]:
    """The row of each case, made by so many processes; one that crashes or takes too long is replaced."""
    context, left, idle, busy = get_context("spawn"), left.copy(), [], dict[Any, Any]()
    while left or busy:
        while left and len(busy) < jobs:
            if not idle:
                ours, theirs = context.Pipe()
                child = context.Process(target=serve, args=(theirs, *settings), daemon=True)
                child.start()
                theirs.close()
                idle.append((child, ours))
            (child, pipe), case = idle.pop(), left.pop(0)
            pipe.send(case)
            busy[pipe] = child, Row(zoo=case.zoo, name=case.name, input=case.input), time.monotonic() + seconds
        ready = connection.wait(list(busy), timeout=1)
        for pipe, (child, row, end) in list(busy.items()):
            if pipe not in ready and time.monotonic() < end:
                continue
            try:
                if pipe not in ready:
                    row["error"] = f"crash: it takes more than {seconds:g} s"
                    child.kill()
                elif part := pipe.recv():
                    row |= part
                    continue
                else:
                    idle.append((child, pipe))
            except (EOFError, OSError):
                child.join()
                row["error"] = f"crash: the process ended with {child.exitcode}"
            del busy[pipe]
            yield row


def rates(frame: pd.DataFrame) -> Iterator[str]:
    """Of how many networks what is true."""

    def share(what: str, good: pd.Series, of: pd.Series) -> str:
        count, total = (good & of).sum(), of.sum()
        return f"{what:24s} {count:4d} of {total:4d}" + (f"  {count / total:6.1%}" if total else "")

    every, runs, measured = frame["name"] != "", frame["error"] == "", frame["measured_bytes"] != ""
    strides, peak = runs & (frame["strides"] == "True"), pd.to_numeric(frame["peak_bytes"], "coerce")
    yield share("networks that run", runs, every)
    yield share("eager = measured", frame["eager_bytes"] == frame["measured_bytes"], measured)
    yield share("networks that stride", strides, runs)
    for x in (f"x{factor}" for factor in FACTORS):
        student = frame[f"student_{x}"] == "ok"
        yield share(f"{x}: students", student, strides)
        yield share(f"{x}: with less peak", pd.to_numeric(frame[f"peak_bytes_{x}"], "coerce") < peak, student)
        maps = student & (frame[f"taps_{x}"] != NO_MAP)
        yield share(f"{x}: {NO_MAP}", ~maps, student)
        yield share(f"{x}: with taps", frame[f"taps_{x}"].str.isdigit(), maps)
        yield share(f"{x}: train a step", frame[f"step_{x}"] == "ok", maps & measured)
        yield share(f"{x}: a step by KD alone", frame[f"step_{x}"] == "ok", student & measured & ~maps)
        yield share(f"{x}: graduate", frame[f"graduate_{x}"] == "ok", student & measured)
    for what in ("crash", "wrong"):
        yield share(what, frame.apply(lambda row, what=what: row.str.startswith(f"{what}: ").any(), axis=1), every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", nargs="+", metavar="ZOO", help="these alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks of these names alone")
    parser.add_argument("--quick", action="store_true", help="neither measure nor train")
    parser.add_argument("--again", action="store_true", help="redo rows with a failure; with --only, those rows")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=300, help="at most, for each network")
    parser.add_argument("--memory", type=float, default=10, metavar="GB", help="at most, of each process")
    parser.add_argument("--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="to import first")
    parser.add_argument("--output", type=Path, help="the table: read, and written after every row")
    options = parser.parse_args()
    known = cases()
    chosen = [key for key in known if key[0] in (options.zoo or key) and key[1] in (options.only or key)]
    if not chosen or any(importlib.util.find_spec(module) is None for module in options.modules):
        parser.error("zoo.yaml has no network of that zoo and name, or there is no module of that name")
    path = options.output or HERE / "results" / ("zoo_quick.csv" if options.quick else "zoo.csv")
    table = pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame(columns=COLUMNS)
    rows = {(row["zoo"], row["name"]): row for row in table.to_dict("records")}
    for key in rows.keys() & set(chosen) if options.again else ():
        if options.only or re.search(r"\w: ", " ".join(rows[key].values())):
            del rows[key]
    missing = {zoo for zoo, _ in chosen if importlib.util.find_spec(zoo) is None}
    left = [known[key] for key in chosen if key not in rows and key[0] not in missing]
    with progress_bar(len(left), "zoo") as bar:
        for row in rows_of(left, options.jobs, options.seconds, options.modules, options.memory, options.quick):
            rows[row["zoo"], row["name"]] = {key: str(row.get(key, "")) for key in COLUMNS}
            table = pd.DataFrame([rows[key] for key in known if key in rows], columns=COLUMNS)
            table.to_csv(path, index=False)
            bar.update()
            bar.set_postfix_str(row["name"])
    print(*rates(table), sep="\n")
    if missing:
        print(f"not installed: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
