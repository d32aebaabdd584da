"""Every method by name, on networks of two families: it trains the student alone, or says why it cannot."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import Stop, distill, equal, recipe_of, train, weights
from trainings import quick_looks as quick_looks

import redistill_lib as rd
from redistill_lib.distill import Distillation, Objective, Tap
from redistill_lib.methods import METHODS

IMAGES, CLASSES, STEPS = 8, 5, 6
INDEX = torch.arange(IMAGES)
Pair = tuple[nn.Module, nn.Module, list[Tap], Tensor]

#: Those that cannot be used between these networks, and why.
REFUSALS = {
    "mobilenet": {
        "stage": r"stage needs equal shapes, not \(48,\) from the student and \(32,\) .* use red",
        "deit": "deit teaches a second head, 'head_dist', which mobilenetv2-4-1112121 does not have",
    },
    "vit": {"stage": r"stage needs equal shapes, not \(64,\) from the student and \(32,\) .* use red"},
}
RATES = {"mobilenet": 3e-3, "vit": 5e-4}
#: Whose loss is always 0.
SILENT = {"red-blocks"}


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A ResNet whose batch norms have seen these images, and a MobileNet that has it as its teacher."""
    torch.manual_seed(0)
    student = rd.create_model("mobilenetv2-4-1112121", num_classes=CLASSES, width=0.125)
    teacher = rd.create_model("resnet18-1-21222", num_classes=CLASSES, width=0.125)
    x = torch.rand(IMAGES, 3, 40, 40)
    taps = rd.match_taps(student, teacher, x)[-3:]
    with torch.no_grad():
        for _ in range(10):
            teacher(x)
        teacher.fc.weight *= 20  # surer than any student at its start
    return student, teacher, taps, x


@pytest.fixture(scope="module")
def pairs(pair: Pair) -> dict[str, Pair]:
    """Students of that ResNet by family: a transformer's patches, and tokens inside it, are maps like any others."""
    _, teacher, _, x = pair
    student = rd.create_model("deit_pico-8", num_classes=CLASSES, image_size=40)
    taps = [*rd.match_taps(student, teacher, x), Tap("blocks.2", "output", "layer3", "output", grid=(5, 5))]
    return {"mobilenet": pair, "vit": (student, teacher, taps, x)}


def distil(pair: Pair, method: str, distill_weight: float | None = 1.0) -> Distillation:
    student, teacher, taps, x = pair
    kept = taps if METHODS[method.partition("(")[0]].reads == "maps" else []
    objective = Objective(distill_weight, "sum")
    torch.manual_seed(1)
    copies = copy.deepcopy(student), copy.deepcopy(teacher)
    return Distillation(*copies, kept, method, objective=objective, example=x, samples=IMAGES)


@pytest.mark.parametrize("family", REFUSALS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_student_of_another_family(pairs: dict[str, Pair], name: str, family: str) -> None:
    """With mixtures of classes as targets, as CutMix and MixUp give. Only student and criteria learn."""
    pair = pairs[family]
    if name in REFUSALS[family]:
        with pytest.raises(ValueError, match=REFUSALS[family][name]):
            distil(pair, name)
        return
    d = distil(pair, name)
    frozen = {key: value.clone() for key, value in d.teachers.state_dict().items()}
    targets = 0.7 * F.one_hot(INDEX % CLASSES, CLASSES) + 0.3 * F.one_hot((INDEX + 1) % CLASSES, CLASSES)
    optimizer = torch.optim.Adam(d.parameters(), RATES[family])
    losses = []
    for _ in range(STEPS):
        torch.manual_seed(2)  # the same dropout and negatives in each step
        found = d(pair[3], targets=targets, index=INDEX)[1]
        optimizer.zero_grad()
        found["total"].backward()
        optimizer.step()
        losses.append(found["distill"].item())
    if name in SILENT:
        assert losses == [0] * STEPS
        return
    assert torch.tensor(losses).isfinite().all() and losses[-1] < losses[0], losses
    stem = next(parameter for parameter in d.student.parameters() if parameter.ndim == 4)  # the first convolution
    for parameter in (stem, *d.criteria.parameters()):
        assert parameter.grad.isfinite().all()
    assert stem.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in d.teachers.parameters())
    assert all(torch.equal(frozen[key], value) for key, value in d.teachers.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        loss = d(pair[3], targets=targets, index=INDEX)[1]["distill"]
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_methods_add_up(pair: Pair) -> None:
    student, teacher, taps, x = pair
    torch.manual_seed(1)
    names = "reviewkd+at+red-loss+ls-kd+mlld(temperatures=(2.0,4.0))+rkd"
    d = Distillation(copy.deepcopy(student), copy.deepcopy(teacher), taps, names, example=x)
    losses = d(x, targets=INDEX % CLASSES)[1]
    assert [name for name in losses if "/" not in name] == ["reviewkd", "ls-kd", "mlld", "distill", "task", "total"]
    alphas = {term.name: term.method.alpha for term in d.terms}
    assert len(alphas) == 3 + 3 * len(taps)  # reviewkd is one term for all taps
    expected = sum(alpha * losses[name] for name, alpha in alphas.items()) / len(alphas)
    torch.testing.assert_close(losses["distill"], expected)


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Projectors, their batch norms and memories come back to the bit, and none stays in the student."""
    teacher = train("classifier", tmp_path)
    given: dict[str, Any] = {"methods": "reviewkd+ft+srd+vid", "recipe": recipe_of("classifier", epochs=2)}
    given["recipe"] = replace(given["recipe"], learning_rate=1e-3)
    whole = distill("classifier", tmp_path / "whole", teacher, **given)
    with pytest.raises(KeyboardInterrupt):
        distill("classifier", tmp_path / "cut", teacher, on_log=Stop(1), **given)
    again = distill("classifier", tmp_path / "cut", teacher, **given)
    assert equal(whole, again) and whole.params["methods"] == "ft+reviewkd+srd+vid"
    assert [term["at"].partition("/")[0] for term in whole.params["terms"]][-1] == "vid"
    assert {"train_reviewkd", "train_ft/conv1.output"} <= set(whole.history())
    assert not any("criteria" in key for key in weights(whole))
