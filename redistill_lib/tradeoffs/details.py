"""What stands behind a point: its network, where its memory goes, and what is left of an image inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from redistill_lib.data import load_data
from redistill_lib.data.sources import BUILT_IN
from redistill_lib.distill import Distillation, match_taps
from redistill_lib.maps import MapComparison, compare_maps
from redistill_lib.memory import Profile, format_size, profile_memory
from redistill_lib.models import create_model, example_inputs
from redistill_lib.models.saved import load_model
from redistill_lib.own import resolve_model, student_of
from redistill_lib.runs import Run
from redistill_lib.tradeoffs.result import Dtype, built_in, own_name, own_student, teacher_name
from redistill_lib.tradeoffs.teachers import part_of
from redistill_lib.train.recipe import DIGITS_UNET

Row = Mapping[str, Any]


def inputs_of(row: Row) -> tuple[Tensor, ...]:
    """Inputs for a point's network, all zeros. ValueError where nobody knows its images, or what would build it."""
    if not (built_in(row["model"]) or own_name(row)):
        told = "a network of your own, and these results do not say which function makes it"
        raise ValueError(f"{row['model']} is {told}: rd.profile_memory(network, images) shows its memory")
    if pd.isna(row["channels"]) or pd.isna(row["image_size"]):
        raise ValueError(f"the size of the images of {row['data']} is not kept with these results")
    channels, side = int(row["channels"]), int(row["image_size"])
    if built_in(row["model"]):
        return example_inputs(row["model"], side, in_channels=channels)
    return (torch.zeros(1, channels, side, side),)


def network_of(row: Row) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A point's network, with RED's blocks where its method has some, and inputs for it, all zeros.

    It has its weights where the point has a run, and is untrained otherwise. ValueError where it cannot be built: it
    is neither built in nor made by a function that the results name and that is there, or its images are not known.
    """
    inputs = inputs_of(row)
    if row["run"]:
        return load_model(row["run"], None if built_in(row["model"]) else _own(row, inputs)), inputs
    model = _plain(row, inputs)
    if not {"red", "red-blocks"} & {*row["method"].split("+")}:
        return model, inputs
    if not row["teacher"]:
        raise ValueError("these results do not say who taught it, and so not where its RED blocks are")
    teacher = _plain(row, inputs, teaches=True)
    taps = match_taps(model, teacher, inputs)
    return Distillation(model, teacher, taps, methods=row["method"], example=inputs).graduate(), inputs


def _plain(row: Row, inputs: tuple[Tensor, ...], teaches: bool = False) -> nn.Module:
    """A point's network, or its teacher's, as it is before any training."""
    name, width = teacher_name(row) if teaches else (row["model"], row["width"])
    if not built_in(name):
        return _own(row, inputs, teaches)
    options: dict[str, Any] = {**DIGITS_UNET} if name.startswith("unet") else {"width": width}
    with torch.random.fork_rng(devices=[]):
        return create_model(name, in_channels=inputs[0].shape[1], **options)


def _own(row: Row, inputs: tuple[Tensor, ...], teaches: bool = False) -> nn.Module:
    """`_plain` of a network of one's own, by the function that makes it."""
    name = own_name(row)
    try:
        network = resolve_model(name, seed=int(row["seed"]))
        made = student_of(network, int(row["factor"]), inputs[0]) if own_student(row) and not teaches else network
    except (ImportError, ValueError) as error:
        raise ValueError(f"{row['model']} cannot be built here by {name}: {error}") from None
    assert isinstance(made, nn.Module)
    return made


def profile_of(row: Row, dtype: Dtype = "fp32") -> Profile:
    """What is alive at each step of a point's network; the authors' points, too, under ``fused``.

    ValueError where that cannot be told, or where its peak is not the recorded one.
    """
    model, inputs = network_of(row)
    convention = "fused" if row["convention"] == "paper" else row["convention"]
    profile = profile_memory(model.eval(), *inputs, convention=convention, dtype=dtype)
    recorded = profile if dtype == "fp32" else profile_memory(model, *inputs, convention=convention)
    if row["convention"] == convention and recorded.peak_bytes != row["peak_bytes"]:
        found, told = format_size(recorded.peak_bytes), format_size(row["peak_bytes"])
        raise ValueError(f"built here it needs {found}, not the recorded {told}: it was made for other images")
    return profile


def plans_of(row: Row) -> tuple[dict[str, str], int]:
    """The names of a point's teacher and its own network by role, and the side of the images, for `stride_plans`.

    ValueError where the teacher or the images are not known, and for networks of one's own, whose names tell no plan.
    """
    side, (teacher, _) = inputs_of(row)[0].shape[-1], teacher_name(row)
    if not teacher:
        raise ValueError("these results do not say who taught it, so that there is no plan to compare with")
    names = {"teacher": teacher} | ({} if row["method"] == "teacher" else {row["method"]: row["model"]})
    for name in names.values():
        if not built_in(name):
            raise ValueError(f"{name} is a network of your own, whose name tells no plan that could be drawn")
    return names, side


def _folder_of(row: Row) -> str:
    """The folder of images that a point's run has recorded; ValueError where it is not one, or is there no more."""
    name = part_of(Run.load(row["run"]), "data").get("name")
    if name and Path(name).is_dir():
        return str(name)
    gone = f"{name} is there no more" if name and Path(name).is_absolute() else f"{row['data']} is not built in"
    raise ValueError(f"maps need an image, and {gone}: load it and call compare_maps")


def maps_of(row: Row, image: int = 0) -> MapComparison:
    """The map of a point's network beside its teacher's, at their first shared place, for a test image.

    ValueError where weights of both, or the images, are not at hand.
    """
    if not (row["run"] and row["teacher_run"]):
        raise ValueError("the weights of this network and its teacher are not at hand: only their plans can be shown")
    data = row["data"] if row["data"] in BUILT_IN else _folder_of(row)
    student, inputs = network_of(row)
    own = not built_in(teacher_name(row)[0])
    teacher = load_model(row["teacher_run"], _own(row, inputs, teaches=True) if own else None)
    picture = load_data(data, image_size=inputs[0].shape[-1]).test[image][0]
    taps = match_taps(student, teacher, picture[None].float())
    return compare_maps(teacher, student, taps[0], picture, label=row["method"])
