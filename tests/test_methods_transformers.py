"""DeiT's hard labels and locality guidance against the papers' formulas written out, and in a distillation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.methods import KD, METHODS, Batch, DeiT, Locality, Method

IMAGES = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def loss(method: Method, student: Tensor, teacher: Tensor) -> Tensor:
    criterion = method.criterion(tuple(student.shape[1:]), tuple(teacher.shape[1:]), samples=0)
    value: Tensor = criterion(student, teacher, Batch(()))
    return value


def pair(name: str = "deit_pico-8") -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    student = rd.create_model(name, in_channels=1, image_size=32)
    return student, rd.create_model("resnet18", in_channels=1, width=0.125)


def test_deit_is_cross_entropy_with_the_teachers_choice() -> None:
    """Teacher: classes 2 and 0. Student: softmax of (0, 0, ln 2) is ¼, ¼, ½, of (ln 3, 0, 0) is 3/5, 1/5, 1/5."""
    student = torch.tensor([[0, 0, math.log(2)], [math.log(3), 0, 0]])
    teacher = torch.tensor([[0.1, -5.0, 0.2], [9.0, 8.0, 7.0]])
    assert loss(DeiT(), student, teacher).item() == pytest.approx(-(math.log(1 / 2) + math.log(3 / 5)) / 2)
    with pytest.raises(ValueError, match=r"deit needs equal shapes, not \(3,\) .* \(4,\).*same classes"):
        loss(DeiT(), student, torch.zeros(2, 4))


def test_deit_is_equation_3() -> None:
    """Half the cross-entropy of the class head with the labels, half that of the other head with the teacher's."""
    student, teacher = pair()
    distillation = rd.Distillation(student, teacher, methods="deit", example=IMAGES)
    labels = torch.tensor([3, 8])
    outputs, losses = distillation(IMAGES, targets=labels)
    chosen = teacher(IMAGES).argmax(1)
    torch.testing.assert_close(losses["task"], F.cross_entropy(outputs["logits"], labels))
    torch.testing.assert_close(losses["deit/head_dist.output"], F.cross_entropy(outputs["distillation"], chosen))
    torch.testing.assert_close(losses["total"], (losses["task"] + losses["deit/head_dist.output"]) / 2)
    losses["deit/head_dist.output"].backward()
    assert student.head.weight.grad is None and student.head_dist.weight.grad.any() and student.dist_token.grad.any()
    assert all(p.grad is None for p in teacher.parameters())


TAUGHT_BY_MAPS = [name for name, method in METHODS.items() if method.reads == "maps" and name not in {"crd", "sp"}]


@pytest.mark.parametrize("name", TAUGHT_BY_MAPS)
def test_who_meets_tokens_without_a_grid_says_what_helps(name: str) -> None:
    student, teacher = pair("vit_pico-16")[0], pair("vit_pico-8")[0]
    layers = (2, 4)[: 2 if name == "reviewkd" else 1]
    taps = [rd.Tap(f"blocks.{k}", "output", f"blocks.{k}", "output") for k in layers]
    with pytest.raises(ValueError, match=f"{name} .*of tokens, say their height × width by grid= or teacher_grid="):
        rd.Distillation(student, [teacher], taps, name, example=IMAGES)


@pytest.mark.parametrize("name", ["at", "locality"])
def test_a_vit_learns_from_one_with_smaller_patches(name: str) -> None:
    """No two maps are of one size; what then helps is told, and works."""
    teacher = pair("vit_pico-8")[0]
    student, _ = rd.derive_student(teacher, 2, example=IMAGES)
    with pytest.raises(ValueError, match=r"by hand: at and locality take maps of any two .* teacher_grid="):
        rd.match_taps(student, teacher, IMAGES)
    tap = rd.Tap("blocks.2", "output", "blocks.2", "output", grid=(2, 2), teacher_grid=(4, 4))
    losses = rd.Distillation(student, [teacher], [tap], name, example=IMAGES)(IMAGES)[1]
    assert losses[f"{name}/blocks.2.output"] > 0


def test_other_methods_teach_the_class_head() -> None:
    student, teacher = pair()
    outputs, losses = rd.Distillation(student, teacher, methods="kd+deit", example=IMAGES)(IMAGES)
    torch.testing.assert_close(losses["kd"], loss(KD(), outputs["logits"], teacher(IMAGES)))


def test_a_student_without_a_second_head_is_told() -> None:
    student, teacher = pair("vit_pico-8")
    with pytest.raises(ValueError, match=r"deit teaches a second head, 'head_dist', which vit_pico-8 does not have"):
        rd.Distillation(student, teacher, methods="deit", example=IMAGES)
    named = rd.Distillation(student, teacher, methods="deit(layer='head')", example=IMAGES)
    outputs, losses = named(IMAGES)
    torch.testing.assert_close(losses["deit/head.output"], F.cross_entropy(outputs, teacher(IMAGES).argmax(1)))


def test_a_second_head_that_nothing_teaches_is_told(tmp_path: Path) -> None:
    """Its random weights would be half of the answer."""
    data = rd.load_data("digits", image_size=16, limit=40)
    common: dict[str, Any] = {"recipe": rd.Recipe(steps=1, batch_size=16, optimizer="adamw")}
    common["options"] = rd.RunOptions(tmp_path, progress=False, cpu=True)
    told = "deit_pico-8 answers with the mean of two heads.* deit, or take vit_pico-8"
    with pytest.warns(UserWarning, match=told):
        teacher = rd.train_classifier("deit_pico-8", data, **common)
    with pytest.warns(UserWarning, match=told):
        rd.distill_classifier("deit_pico-8", teacher, data, methods="kd", **common)
    rd.distill_classifier("deit_pico-8", teacher, data, methods="deit", **common)


def test_a_recipe_that_suits_no_transformer_is_told(tmp_path: Path) -> None:
    data, network = rd.load_data("digits", image_size=16, limit=40), "vit_pico-8"
    options = rd.RunOptions(tmp_path, progress=False, cpu=True)
    with pytest.warns(
        UserWarning, match="SGD at a learning rate of 0.1 .* transformers.*optimizer='adamw'"
    ) as caught:
        rd.train_classifier(network, data, rd.Recipe(steps=1, batch_size=16), options=options)
    assert len(caught) == 1
    for recipe in ({"optimizer": "adamw"}, {"learning_rate": 0.01}):
        rd.train_classifier(network, data, rd.Recipe(steps=1, batch_size=16, **recipe), options=options)
    rd.train_classifier("resnet18", data, rd.Recipe(steps=1, batch_size=16), width=0.125, options=options)


def test_locality_projects_and_resizes_to_the_larger_map() -> None:
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 3, 2, 2), torch.rand(2, 5, 4, 4)
    criterion = Locality().criterion((3, 2, 2), (5, 4, 4), samples=0)
    weight, bias = (p.detach().numpy() for p in criterion.parameters())
    projected = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], student.numpy()) + bias[:, None, None]
    # from 2 to 4 pixels, centre to centre: the outer ones are kept, the inner ones a quarter of the way
    up = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    larger = np.einsum("yh,xw,bohw->boyx", up, up, projected)
    expected = np.mean((larger - teacher.numpy()) ** 2)
    assert criterion(student, teacher, Batch(())).item() == pytest.approx(expected, rel=1e-5)
    assert criterion.resized == "maps 2×2 and 4×4 to the larger"
    assert Locality().criterion((3, 4, 4), (5, 4, 4), samples=0).resized == ""
    down = Locality().criterion((3, 4, 4), (5, 2, 2), samples=0)
    value = down(torch.rand(2, 3, 4, 4), teacher[..., :2, :2], Batch(()))
    assert value.shape == () and value.requires_grad
    with pytest.raises(ValueError, match=r"locality needs maps C×H×W, not \(17, 64\) from the student"):
        loss(Locality(), torch.zeros(2, 17, 64), teacher)


def test_locality_guides_the_student_alone() -> None:
    student, teacher = pair("vit_pico-8")
    tap = rd.distill.Tap("patch_embed", "output", "layer3", "output")
    distillation = rd.Distillation(student, teacher, [tap], methods="locality", example=IMAGES)
    distillation(IMAGES, targets=torch.tensor([0, 1]))[1]["locality/patch_embed.output"].backward()
    assert student.patch_embed.proj.weight.grad.any() and student.head.weight.grad is None
    assert all(p.grad.any() for p in distillation.criteria.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("project" in name for name, _ in distillation.graduate().named_modules())


def test_locality_guides_tokens_inside() -> None:
    """The first, middle and last block by a CNN's last three stages, of which only one has as many places."""
    student, teacher = pair("deit_pico-8")
    blocks = zip((0, 3, 5), ("layer2", "layer3", "layer4"), strict=True)
    taps = [rd.Tap(f"blocks.{block}", "output", layer, "output", grid=(4, 4)) for block, layer in blocks]
    distillation = rd.Distillation(student, teacher, taps, methods="locality", example=IMAGES)
    losses = distillation(IMAGES)[1]
    (tokens,) = rd.record_maps(student, [("blocks.3", "output")], IMAGES).values()
    (maps,) = rd.record_maps(teacher, [("layer3", "output")], IMAGES).values()
    assert tokens.shape == (2, 2 + 16, 64) and maps.shape[2:] == (2, 2)  # two tokens in front
    expected = distillation.criteria[1](tokens[:, 2:].mT.unflatten(2, (4, 4)), maps, Batch(()))
    torch.testing.assert_close(losses["locality/blocks.3.output"], expected)


@pytest.mark.parametrize("methods", ["deit", "red+kd", "locality"])
def test_a_training_of_one_epoch(methods: str, tmp_path: Path) -> None:
    data = rd.load_data("digits", limit=40)
    recipe, options = rd.Recipe(epochs=1, batch_size=20, optimizer="adamw"), rd.RunOptions(tmp_path, progress=False)
    name, teacher = ("deit_pico-8" if methods == "deit" else "vit_pico-8"), pair()[1]
    taps = [rd.Tap("blocks.2", "output", "layer3", "output", grid=(4, 4))] if methods == "locality" else None
    run = rd.distill_classifier(name, teacher, data, recipe, methods=methods, taps=taps, options=options)
    assert run.params["model"] == {"name": name, "num_classes": 10, "in_channels": 1, "width": 1.0, "image_size": 32}
    assert {term["method"] for term in run.params["terms"]} == set(methods.split("+"))
    model = rd.load_model(run)
    images, labels = data.test.head(40)
    with torch.no_grad():
        right = (model(rd.to_float(images)).argmax(1) == labels).float().mean().item()
    assert run.metrics["test_accuracy"] == pytest.approx(right)
    with pytest.raises(ValueError, match=r"images of 32×32 cannot be cut into patches of 5"):
        rd.train_classifier("vit_pico-5", data, recipe, options=options)
