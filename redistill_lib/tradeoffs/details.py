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
from redistill_lib.runs import Run
from redistill_lib.tradeoffs.result import Dtype
from redistill_lib.train.recipe import DIGITS_UNET

#: Channels and side of the images that our own results were made with, where a point does not say.
IMAGES = {"cluttered": (1, 40), "pairs": (1, 32), "digits": (1, 32), "cifar10": (3, 32), "elpv": (1, 96)}
IMAGES |= {"imagenet": (3, 224), "stl10": (3, 128)}

Row = Mapping[str, Any]


def part_of(run: Run, name: str) -> dict[str, Any]:
    """A part of what a run is of; empty where it is not told by names, as of data of one's own."""
    part = run.params.get(name)
    return part if isinstance(part, dict) else {}


def image_of(row: Row) -> tuple[int, int]:
    """Channels and side of the images of a point. ValueError where they are not known."""
    if row["run"]:
        run = Run.load(row["run"])
        channels, side = part_of(run, "model").get("in_channels"), part_of(run, "data").get("image_size")
        if channels and isinstance(side, int):
            return channels, side
        told = "a network of your own: rd.profile_memory(network, images) shows its memory"
        raise ValueError(f"{row['model']} is {told}")
    if row["data"] not in IMAGES:
        raise ValueError(f"the size of the images of {row['data']} is not kept with these results")
    channels, side = IMAGES[row["data"]]
    return channels, side if pd.isna(row["image_size"]) else int(row["image_size"])


def network_of(row: Row) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A point's network, with RED's blocks where its method has some, and inputs for it, all zeros.

    It has its weights where the point has a run, and is untrained otherwise. ValueError for a network of one's own
    and for one that is not built in, or whose images are not known.
    """
    channels, side = image_of(row)
    inputs = example_inputs(row["model"], side, in_channels=channels)
    if row["run"]:
        return load_model(row["run"]), inputs
    model = _built(row["model"], row["width"], channels)
    if not {"red", "red-blocks"} & {*row["method"].split("+")}:
        return model, inputs
    if not row["teacher"]:
        raise ValueError("these results do not say who taught it, and so not where its RED blocks are")
    name, _, width = str(row["teacher"]).partition(" ×")
    teacher = _built(name, float(width), channels)
    taps = match_taps(model, teacher, inputs)
    return Distillation(model, teacher, taps, methods=row["method"], example=inputs).graduate(), inputs


def _built(name: str, width: float, channels: int) -> nn.Module:
    options: dict[str, Any] = {**DIGITS_UNET} if name.startswith("unet") else {"width": width}
    with torch.random.fork_rng(devices=[]):
        return create_model(name, in_channels=channels, **options)


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

    ValueError where the teacher or the images are not known.
    """
    side, teacher = image_of(row)[1], str(row["teacher"]).partition(" ×")[0]
    if not teacher:
        raise ValueError("these results do not say who taught it, so that there is no plan to compare with")
    if Path(teacher, "run.json").exists():
        teacher = str(part_of(Run.load(teacher), "model").get("name"))
    return {"teacher": teacher} | ({} if row["method"] == "teacher" else {row["method"]: row["model"]}), side


def maps_of(row: Row, image: int = 0) -> MapComparison:
    """The map of a point's network beside its teacher's, at their first shared place, for a test image.

    ValueError where weights of both, or the images, are not at hand.
    """
    if not (row["run"] and row["teacher"] and Path(row["teacher"], "run.json").exists()):
        raise ValueError("the weights of this network and its teacher are not at hand: only their plans can be shown")
    if row["data"] not in BUILT_IN:
        raise ValueError(f"maps need an image, and {row['data']} is not built in: load it and call compare_maps")
    student, teacher = load_model(row["run"]), load_model(row["teacher"])
    picture = load_data(row["data"], image_size=image_of(row)[1]).test[image][0]
    taps = match_taps(student, teacher, picture[None].float())
    return compare_maps(teacher, student, taps[0], picture, label=row["method"])
