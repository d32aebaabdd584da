"""How much less memory the paper's students need: the authors' estimate, and what an edge runtime would hold.

    python benchmarks/paper_memory.py               a quarter of a minute; nothing is trained, nothing is computed

Peaks of activations in MiB, float32, one image, for the pairs of the paper. `published` and `paper` follow the
authors' estimate: the first is the highest entry of their Figure 7 (`rd.published("footprints")`; students are those
of that figure), the second ours by the same counting. `fused` is what a sane edge runtime holds: teacher, student,
student with RED blocks as the authors run them, and with blocks that work in place. Weights are untrained: only their
shapes count. Writes benchmarks/results/paper_memory.csv.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pandas as pd

import redistill_lib as rd

ROOT = Path(__file__).parents[1]
MIB = 2**20
PAIRS = [  # teacher, factor, image size, the published figure's panel
    ("mobilenetv2-1-1222121", 8, 128, "stl10-MobileNetV2"),
    ("mobilenetv3_small-1-22121111211", 4, 128, "stl10-MobileNetv3_Small"),
    ("resnext18-1-21222", 4, 128, "stl10-ResNeXt18"),
    ("resnet18-2-21222", 4, 224, "imagenet-ResNet18"),
    ("resnet50-2-21222", 4, 224, "imagenet-ResNet50"),
    ("unet-1-222", 2, 32, "cifar10-DDPM"),
    ("resnext18-1-21222", 2, 128, ""),
    ("resnext18-1-21222", 8, 128, ""),
    ("mobilenetv2-1-1222121", 4, 128, ""),
]


def published(panel: str) -> tuple[float, float]:
    """The highest entry of teacher and student in the authors' figure, in MiB."""
    frame = rd.published("footprints")
    peaks = frame[frame["panel"] == panel].groupby("role")["mib"].max()
    return float(peaks["teacher"]), float(peaks["student"])


def row(name: str, factor: int, size: int, panel: str) -> dict[str, object]:
    teacher, student = rd.create_model(name), rd.create_model(rd.student_name(name, factor))
    x = rd.example_inputs(name, size)
    taps = rd.match_taps(student, teacher, x)
    distillation = rd.Distillation(copy.deepcopy(student), teacher, taps, "red-blocks", example=x)
    peaks = {
        f"{convention} {role}": rd.profile_memory(model, *x, convention=convention).peak_bytes / MIB
        for convention in ("paper", "fused")
        for role, model in (("teacher", teacher), ("student", student))
    }
    for form, model in (
        ("+ RED", distillation.graduate()),
        ("+ RED in place", distillation.graduate(in_place=True, example=x)),
    ):
        peaks[f"fused {form}"] = rd.profile_memory(model, *x).peak_bytes / MIB
    first = published(panel) if panel else (float("nan"), float("nan"))
    return {
        "teacher": name,
        "student": student.name.partition("-")[2],
        "px": size,
        "published teacher": first[0],
        "published student": first[1],
        "published ×": first[0] / first[1],
        **{k: peaks[k] for k in ("paper teacher", "paper student")},
        "paper ×": peaks["paper teacher"] / peaks["paper student"],
        **{k: peaks[k] for k in ("fused teacher", "fused student")},
        "fused ×": peaks["fused teacher"] / peaks["fused student"],
        **{k: peaks[k] for k in ("fused + RED", "fused + RED in place")},
    }


def main() -> None:
    frame = pd.DataFrame([row(*pair) for pair in PAIRS])
    frame.to_csv(ROOT / "benchmarks" / "results" / "paper_memory.csv", index=False, float_format="%.6g")
    factors = {name: "{:.1f}".format for name in frame if name.endswith("×")}
    print(frame.to_string(index=False, na_rep="", float_format="%.4g", formatters=factors))
    worse = frame[frame["fused + RED"] > frame["fused student"]]
    names = ", ".join(f"{r['teacher'].partition('-')[0]} {r['student']}" for _, r in worse.iterrows())
    print(f"\nRED blocks as published set the peak in: {names or 'none'}")
    worse = frame[frame["fused + RED in place"] > frame["fused student"]]
    print(f"RED blocks in place set the peak in: {', '.join(worse['teacher']) or 'none'}")


if __name__ == "__main__":
    main()
