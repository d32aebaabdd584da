"""`redistill memory`: where a network's peak is, and which stride plans fit a budget."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redistill_lib.cli.text import table

if TYPE_CHECKING:
    from torch import nn

    from redistill_lib.costs import TapCosts
    from redistill_lib.memory import Bounds, Profile
    from redistill_lib.student import Change


def run_command(arguments: argparse.Namespace) -> int:
    from redistill_lib.memory import memory_bounds, profile_memory
    from redistill_lib.own import named_network

    if arguments.budget and arguments.html is not None:
        raise ValueError("--budget gives a table or JSON: leave out --html")
    if arguments.blocks and (not arguments.budget or arguments.factor > 1):
        raise ValueError("--blocks says what --budget counts; --factor shows all forms of blocks anyway")
    if arguments.budget and arguments.convention == "paper":
        raise ValueError("budgets cannot be counted by paper, which knows layers alone: use fused")
    if arguments.ways and not arguments.budget:
        raise ValueError("--ways says how to fit a budget: give --budget, such as --budget 256KB")
    if arguments.ways and (arguments.factor > 1 or arguments.blocks):
        raise ValueError(
            "--ways says how to fit --budget, with RED's blocks and without: leave out --factor and --blocks"
        )
    with contextlib.redirect_stdout(sys.stderr):  # what one's own function prints is no part of the answer
        network, inputs = named_network(arguments.model)
    inputs = _inputs(arguments, inputs)
    teacher, model, changes = _networks(arguments, network, inputs)
    how = {"dtype": arguments.dtype, "in_place_depthwise": arguments.in_place_depthwise}
    try:
        profile = profile_memory(model, *inputs, convention=arguments.convention, **how)
    except Exception as error:
        if arguments.convention == "paper" and isinstance(error, ValueError):
            raise  # it is for the built-in networks alone
        shapes, reason = ", ".join("×".join(map(str, x.shape)) for x in inputs), str(error).partition("\n")[0]
        raise ValueError(
            f"{arguments.model} cannot be followed on {shapes} ({type(error).__name__}: {reason}): fit --image-size "
            "and --in-channels, or --inputs, to it; if it branches on values, rd.profile_memory takes them"
        ) from None
    if arguments.ways:
        return _print_ways(arguments, network, inputs)
    if arguments.budget and arguments.factor == 1:
        return _print_budget(arguments, model, inputs)
    fits = _fitting(arguments, model, teacher, inputs) if arguments.budget else {}
    bounds = memory_bounds(model, *inputs, dtype=arguments.dtype)
    costs = _tap_costs(arguments, model, teacher, inputs) if arguments.factor > 1 and arguments.html is None else None
    if arguments.json:
        hidden = ("rows", "tensors", "schedule", "runtime")
        record = {f.name: getattr(profile, f.name) for f in fields(profile) if f.name not in hidden}
        record |= {name: getattr(profile, name) for name in ("peak_bytes", "arena_bytes", "best_arena_bytes")}
        record |= {"peak_at": profile.peak_op.name, "flops": profile.flops}
        record |= {"bounds": vars(bounds), "rows": profile.to_frame().to_dict("records")}
        record |= {"changes": [asdict(change) for change in changes]} if changes else {}
        record |= {"taps": costs.to_frame().to_dict("records")} if costs else {}
        record |= {"fits": fits} if fits else {}
        print(json.dumps(record, indent=1, ensure_ascii=False))
    elif arguments.html is not None:
        from redistill_lib.figures import memory_by_layer, memory_timeline

        image = "x".join(dict.fromkeys(map(str, inputs[0].shape[-2:])))
        name = f"{profile.model}-{image}px-{profile.convention}-{profile.dtype}.html"
        file = Path(arguments.html or name)
        file.parent.mkdir(parents=True, exist_ok=True)
        counted = bounds if profile.convention == "fused" else None
        layers = profile.convention == "paper"  # which counts layers, not tensors
        figure = memory_by_layer({"teacher": profile}) if layers else memory_timeline(profile, bounds=counted)
        figure.write_html(file, include_plotlyjs=True)
        print(file)
    else:
        if changes:
            print(f"×{arguments.factor} student:", *changes, sep="\n  ", end="\n\n")
        _print_profile(profile, bounds)
        if costs:
            print("", costs, "", costs.to_frame().to_string(index=False, float_format="%.4g"), sep="\n")
        if arguments.factor > 1:
            whole = profile_memory(teacher, *inputs, convention=arguments.convention, **how)
            print("", _verdict(arguments, whole, profile, fits), sep="\n")
    return 1 if fits and all(word == "no" for word in fits.values()) else 0


def _verdict(arguments: argparse.Namespace, teacher: Profile, student: Profile, fits: dict[str, str]) -> str:
    from redistill_lib.memory import format_size, parse_size
    from redistill_lib.sizes import ratio

    before, after = teacher.peak_bytes, student.peak_bytes
    plans = f" ({student.model})" if teacher.model != student.model else ""
    told = f"×{arguments.factor} in the stem{plans}: {format_size(after)}, {ratio(before, after)} the teacher"
    if fits:
        answers = ", ".join(f"in {dtype} {word}" for dtype, word in fits.items())
        told += f"; fits {format_size(parse_size(arguments.budget))} with RED blocks: {answers}"
    return told


def _fitting(
    arguments: argparse.Namespace, model: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...]
) -> dict[str, str]:
    """By dtype, whether a student fits the budget: as it is taught, only without its blocks, or not at all."""
    from redistill_lib.costs import followed
    from redistill_lib.distill import match_taps
    from redistill_lib.memory import parse_size
    from redistill_lib.memory.runtime import RUNTIMES

    runtime = RUNTIMES[arguments.convention]
    runtime = replace(runtime, in_place_depthwise=arguments.in_place_depthwise or runtime.in_place_depthwise)
    plain = followed(model, inputs, runtime)
    forms = {"only without blocks": plain}
    with contextlib.suppress(ValueError):  # no place for blocks, which `_tap_costs` tells
        published, in_place = plain.with_blocks(match_taps(model, teacher, inputs))
        forms = {"yes": published, "only with blocks in place": in_place, **forms}
    budget, found = parse_size(arguments.budget), {}
    for dtype in [arguments.dtype] if arguments.dtype else ["fp32", "int8"]:
        enough = (word for word, form in forms.items() if form.cost(dtype, runtime).needed_bytes <= budget)
        found[dtype] = next(enough, "no")
    return found


def _tap_costs(
    arguments: argparse.Namespace, model: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...]
) -> TapCosts | None:
    """What RED blocks add to the student; nothing but a line on stderr where they have no place."""
    from redistill_lib.costs import tap_costs

    try:
        return tap_costs(model, teacher, example=inputs, dtype=arguments.dtype)
    except ValueError as error:
        print(f"RED blocks are not counted: {error}", file=sys.stderr)
        return None


def _print_budget(arguments: argparse.Namespace, model: nn.Module, inputs: Sequence[Any]) -> int:
    from redistill_lib.budget import fit_to_budget
    from redistill_lib.memory.runtime import FUSED
    from redistill_lib.results import capital

    named = arguments.in_channels in (None, 3) and ":" not in arguments.model
    dtypes = arguments.dtype or ("fp32", "int8")
    convention = replace(FUSED, in_place_depthwise=True) if arguments.in_place_depthwise else arguments.convention
    how: dict[str, Any] = {"dtypes": dtypes, "convention": convention, "blocks": arguments.blocks or "published"}
    fit = fit_to_budget(arguments.model if named else model, arguments.budget, *inputs, **how)
    if arguments.json:
        record = {"answer": str(fit), "plans": fit.to_frame().to_dict("records"), "nearest": asdict(fit.closest)}
        print(json.dumps({**record, "refused": dict(fit.refused)}, indent=1, ensure_ascii=False))
    else:
        print(fit.verdict)
        if fit.fits:
            shown = fit.table()
            print("", table(list(shown), shown.values.tolist()), sep="\n")
        made = [f"to make it: {fit.call(fit.best)}"] if fit.fits else []
        print("", *(capital(remark) for remark in (*fit.remarks, *made)), sep="\n")
    return 0 if fit.fits else 1


def _print_ways(arguments: argparse.Namespace, network: str | nn.Module, inputs: Sequence[Any]) -> int:
    from redistill_lib.fitting import ways_to_fit
    from redistill_lib.memory.runtime import FUSED

    if len(inputs) != 1:
        raise ValueError("--ways is for classifiers, which take images alone; leave it out for stride plans")
    convention = replace(FUSED, in_place_depthwise=True) if arguments.in_place_depthwise else arguments.convention
    found = ways_to_fit(network, arguments.budget, inputs[0], dtypes=arguments.dtype, convention=convention)
    if arguments.json:
        rows = found.to_frame().reset_index().to_dict("records")
        print(json.dumps({"answer": str(found), "ways": rows}, indent=1, ensure_ascii=False))
    else:
        print(found)
        shown = found.table()
        print(*[table(list(shown), shown.values.tolist())] * bool(found.fits), sep="\n")
    return 0 if found.fits else 1


def _print_profile(profile: Profile, bounds: Bounds) -> None:
    from redistill_lib.memory import format_size

    print(profile)
    for name in profile.unfused:
        print(f"counted apart from its input and output, as it is not known: {name}")
    steps = sorted(profile.rows, key=lambda row: -row.live_bytes)[:10]
    rows = [(row.name, row.op, "×".join(map(str, row.shape)), format_size(row.live_bytes)) for row in steps]
    print("", table(("largest steps", "operator", "output", "live"), rows), sep="\n")
    straight = "row by row, but for the shortcut from"
    until = f" up to {bounds.streaming_name}" if bounds.streaming_name else ""
    least = {
        "in the program's order": bounds.peak_bytes,
        f"best order of execution{'' if bounds.order_exact else ', at least'}": bounds.order_bytes,
        f"largest operator, {bounds.op_name}": bounds.op_bytes,
        f"row by row{until}": bounds.streaming_bytes,
        **({f"{straight} {bounds.shortcut_name}": bounds.without_shortcut_bytes} if bounds.shortcut_name else {}),
        "depthwise convolutions in place": bounds.in_place_depthwise_bytes,
    }
    told = [(name, format_size(size)) for name, size in least.items()]
    print("", table(("what else it could need (fused)", "peak"), told), sep="\n")


def _inputs(arguments: argparse.Namespace, own: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """What the network is called with, on the meta device: as its function says, as --inputs says, or images."""
    from redistill_lib.models import example_inputs

    own = arguments.inputs or own
    sizes = {"batch": arguments.batch, "in_channels": arguments.in_channels}
    if own:
        if arguments.image_size or any(sizes.values()):
            raise ValueError("the inputs are given, so leave out --image-size, --batch and --in-channels")
        return tuple(x.to("meta") for x in own)
    unet = arguments.model.partition("-")[0] == "unet"
    size = arguments.image_size or [32 if unet else 224]
    given = {name: count for name, count in sizes.items() if count is not None}
    if len(size) > 2 or min([*size, *given.values()]) < 1:
        raise ValueError("--image-size (N or HxW), --batch and --in-channels are whole numbers of 1 or more")
    # A network of one's own is called with images alone, as any built-in classifier is.
    return example_inputs("unet" if unet else "resnet18", (size[0], size[-1]), **given, device="meta")


def _networks(
    arguments: argparse.Namespace, network: str | nn.Module, inputs: tuple[Any, ...]
) -> tuple[nn.Module, nn.Module, tuple[Change, ...]]:
    """Teacher, for a factor above 1 its student, and what changed in one's own; nothing has contents."""
    import torch

    from redistill_lib.models import create_model, student_name
    from redistill_lib.student import derive_student

    factor = arguments.factor
    if not isinstance(network, str):
        own = network.to("meta")
        return own, *((own, ()) if factor == 1 else derive_student(own, factor, example=inputs))
    with torch.device("meta"):
        teacher = create_model(network, in_channels=inputs[0].shape[1])
        if factor == 1:
            return teacher, teacher, ()
        return teacher, create_model(student_name(network, factor), in_channels=inputs[0].shape[1]), ()
