"""Distillation: the objective, what it must never disturb, graduation, and errors."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.distill import Distillation, Objective, Tap, match_taps, read_taps
from redistill_lib.distill.terms import plan_terms
from redistill_lib.methods import KD, MSE, RED, Batch, Stage, parse_methods
from redistill_lib.models import create_model
from redistill_lib.network import record_maps
from redistill_lib.red import BlockedLayer, InPlaceRedBlock, RedBlock, alignment_loss
from redistill_lib.student import derive_student

TEACHER, STUDENT = "resnet18-1-21222", "resnet18-4-11221"


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return create_model(STUDENT, width=0.125), create_model(TEACHER, width=0.125)


def batch(n: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, 32, 32, generator=g), torch.randint(10, (n,), generator=g)


def distillation(methods: str = "red+kd", **kwargs: object) -> Distillation:
    student, teacher = networks()
    x, _ = batch()
    taps = match_taps(student, teacher, x) if "red" in methods else []
    return Distillation(student, teacher, taps, methods, **kwargs)  # type: ignore[arg-type]


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    value: Tensor = KD().criterion((), (), samples=0)(student, teacher, Batch(()))
    return value


# ---------------------------------------------------------------------------------------------------- objective


def test_objective_by_hand() -> None:
    """0.5·CE + 0.5·mean(50·red over 5 taps, 1·kd), every part computed apart from the graduated student's maps."""
    d = distillation().eval()
    x, y = batch()
    outputs, losses = d(x, targets=y)
    model, teacher = d.graduate(), d.teachers[0].network
    terms = []
    for tap in d.taps:
        ours = record_maps(model, [tap.place], x)[tap.place]
        expected = alignment_loss(ours, record_maps(teacher, [tap.source], x)[tap.source])
        assert losses[f"red/{tap.name}"].item() == pytest.approx(expected.item(), abs=1e-6)
        terms.append(50 * expected)
    with torch.no_grad():
        terms.append(kd(model(x), teacher(x)))
        task = F.cross_entropy(model(x), y)
    assert len(terms) == 6
    mean = torch.stack(terms).mean()
    assert losses["kd"].item() == pytest.approx(terms[-1].item(), rel=1e-5)
    assert losses["distill"].item() == pytest.approx(mean.item(), rel=1e-5)
    assert losses["total"].item() == pytest.approx((0.5 * task + 0.5 * mean).item(), rel=1e-5)
    torch.testing.assert_close(outputs, model(x))


def test_weights_are_adjustable() -> None:
    x, y = batch()
    losses = distillation("red(alpha=1.0)+kd(alpha=3.0)", objective=Objective(distill_weight=0.9))(x, targets=y)[1]
    red = [v for k, v in losses.items() if k.startswith("red/")]
    assert losses["distill"].item() == pytest.approx((sum(red) + 3 * losses["kd"]).item() / 6, rel=1e-5)
    assert losses["total"].item() == pytest.approx((0.1 * losses["task"] + 0.9 * losses["distill"]).item(), rel=1e-5)
    plain = distillation(objective=Objective(None))(x, targets=y)[1]
    assert plain["total"].item() == pytest.approx((plain["task"] + plain["distill"]).item(), rel=1e-6)


def test_a_sum_keeps_a_methods_weight_whatever_the_number_of_taps() -> None:
    student, teacher = networks()
    x, y = batch()
    taps = match_taps(student, teacher, x)
    shares, means = [], []
    for chosen in (taps, taps[:2]):
        for reduction, seen in (("sum", shares), ("mean", means)):
            d = Distillation(
                copy.deepcopy(student), teacher, chosen, "red(alpha=2.0)+kd(alpha=3.0)",
                objective=Objective(reduction=reduction),  # type: ignore[arg-type]
            ).eval()  # fmt: skip
            losses = d(x, targets=y)[1]
            red = [value for name, value in losses.items() if name.startswith("red/")]
            expected = 2 * torch.stack(red).mean() + 3 * losses["kd"]
            if reduction == "mean":
                expected = (2 * sum(red) + 3 * losses["kd"]) / (len(chosen) + 1)
            assert losses["distill"].item() == pytest.approx(expected.item(), rel=1e-5)
            logits = d(x)[0].detach().requires_grad_()
            gradient = torch.autograd.grad(losses["distill"], d.student.fc.bias)[0]
            alone = torch.autograd.grad(kd(logits, teacher(x)), logits)[0].sum(0)
            seen.append((gradient / alone).mean().item())
    assert shares == pytest.approx([3.0, 3.0], rel=1e-3) and means == pytest.approx([3 / 6, 3 / 3], rel=1e-3)


def test_training_without_a_teacher_is_the_task_alone() -> None:
    d = Distillation(networks()[0])
    x, y = batch()
    losses = d(x, targets=y)[1]
    assert losses["total"] == losses["task"] and not d.terms and len(d.blocks) == 0


def test_without_targets_only_the_teacher_teaches() -> None:
    losses = distillation()(batch()[0])[1]
    assert "task" not in losses and losses["total"] is losses["distill"]


def test_another_task_loss() -> None:
    d = distillation(objective=Objective(task_loss=F.mse_loss))
    x, _ = batch()
    outputs, losses = d(x, targets=torch.zeros(4, 10))
    assert losses["task"].item() == pytest.approx((outputs**2).mean().item(), rel=1e-5)


def test_control_has_blocks_but_no_loss_and_runs_no_teacher() -> None:
    d = distillation("red-blocks")
    calls = []
    d.teachers[0].network.register_forward_hook(lambda *_: calls.append(1))
    x, y = batch()
    losses = d(x, targets=y)[1]
    assert len(d.blocks) == 5 and set(losses) == {"distill", "task", "total"} and not calls
    assert losses["distill"] == 0 and losses["total"] == 0.5 * losses["task"]
    losses["total"].backward()
    assert all(p.grad is not None for p in d.blocks.parameters())


def test_control_counts_its_silent_taps_in_the_mean() -> None:
    losses = distillation("red-blocks+kd")(batch()[0])[1]
    assert losses["distill"].item() == pytest.approx(losses["kd"].item() / 6, rel=1e-6)


def test_gradients_reach_student_and_blocks_only() -> None:
    d = distillation()
    x, y = batch()
    d(x, targets=y)[1]["total"].backward()
    assert all(p.grad is not None for p in (*d.student.parameters(), *d.blocks.parameters()))
    assert all(p.grad is None and not p.requires_grad for p in d.teachers.parameters())


def test_distilling_lowers_the_distance() -> None:
    d = distillation("red", objective=Objective(1.0))
    x, y = batch(8)
    optimizer = torch.optim.Adam([p for p in d.parameters() if p.requires_grad], 3e-3)
    first = d(x, targets=y)[1]["distill"].item()
    for _ in range(15):
        optimizer.zero_grad()
        loss = d(x, targets=y)[1]["total"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * first


def test_several_teachers() -> None:
    student, first = networks()
    second = networks(1)[1]
    x, y = batch()
    taps = match_taps(student, first, x)
    taps.append(replace(taps[0], teacher=1))
    d = Distillation(student, [first, second], taps, "red+kd", example=x)
    losses = d(x, targets=y)[1]
    assert len(d.blocks) == 5  # the shared place has one block, and two losses
    assert {"red/conv1.output", "red/conv1.output@1", "kd", "kd@1"} <= set(losses)
    assert losses["kd"] != losses["kd@1"]


# --------------------------------------------------------------------------------------------- nothing is disturbed


def test_teacher_stays_in_eval_whatever_is_called() -> None:
    d = distillation()
    teacher = d.teachers[0].network
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    x, y = batch()
    for call in (d.train, d.teachers.train, teacher.train, lambda: d.apply(nn.Module.train)):
        call()
        d(x, targets=y)
        assert not any(m.training for m in teacher.modules())
    assert d.student.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_construction_moves_no_statistic_and_no_mode() -> None:
    student, teacher = networks()
    x, _ = batch()
    before = [v.clone() for net in (student, teacher) for v in net.state_dict().values()]
    d = Distillation(student, teacher, match_taps(student, teacher, x), "red+kd", example=x)
    bare = [v for k, v in student.state_dict().items() if ".before." not in f".{k}" and ".after." not in f".{k}"]
    assert all(torch.equal(a, b) for a, b in zip([*bare, *teacher.state_dict().values()], before, strict=True))
    assert all(m.training for m in student.modules()) and d.blocks.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (student, teacher) for m in net.modules())


def test_a_student_in_eval_mode_is_not_trained_by_mistake() -> None:
    student, teacher = networks()
    x, y = batch()
    d = Distillation(student.eval(), teacher, match_taps(student, teacher, x), example=x)
    assert not any(module.training for module in student.modules())
    with pytest.raises(RuntimeError, match=r"the student is in eval mode; call distillation.train\(\), or "):
        d(x, targets=y)
    seen = d.eval()(x, targets=y)[1]
    with torch.no_grad():
        assert Distillation(student, teacher, d.taps, example=x)(x, targets=y)[1] == seen
    assert d.train()(x, targets=y)[1]["total"] != seen["total"]


def test_the_blocks_are_built_into_the_student_itself() -> None:
    """So that whoever trains, saves or looks at the student has them: no step may leave them out."""
    student, teacher = networks()
    x, y = batch()
    d = Distillation(student, teacher, match_taps(student, teacher, x))
    assert d.student is student and set(d.blocks.parameters()) <= set(student.parameters())
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    kernels = [p for p in d.blocks.parameters() if p.ndim == 4]
    before = [p.detach().clone() for p in kernels]
    d(x, targets=y)[1]["total"].backward()
    optimizer.step()
    assert kernels and all((p - b).abs().sum() > 0 for p, b in zip(kernels, before, strict=True))


def test_hooks_are_gone_after_an_error() -> None:
    d = distillation()
    with pytest.raises(RuntimeError):
        d(torch.rand(2, 5, 32, 32))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in d.modules())


def test_layers_that_work_in_place_change_no_map() -> None:
    def net(in_place: bool, stride: int) -> nn.Module:
        torch.manual_seed(stride)
        layers = nn.Conv2d(3, 4, 3, stride, 1), nn.ReLU(in_place), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers)

    x, _ = batch()
    tap = Tap("0", "output", "0", "output", method=MSE())
    plain, in_place = (Distillation(net(p, 1), net(p, 2), [tap]) for p in (False, True))
    for d in (plain, in_place):
        d.student[0].stride = (2, 2)
    assert plain(x)[1]["distill"] == in_place(x)[1]["distill"] > 0
    in_place(x)[1]["total"].backward()
    maps = [record_maps(d.teachers[0].network, [("0", "output")], x)["0", "output"] for d in (plain, in_place)]
    assert torch.equal(*maps) and maps[0].min() < 0


# ------------------------------------------------------------------------------------------------------ graduation


def test_graduate_equals_the_student() -> None:
    d = distillation().eval()
    x, _ = batch()
    model = d.graduate().eval()
    assert torch.equal(model(x), d(x)[0])
    assert sum(isinstance(m, BlockedLayer) for m in model.modules()) == 3  # conv1, layer2.0, layer3.0


def test_graduate_holds_no_teacher() -> None:
    d = distillation()
    x, y = batch()
    d(x, targets=y)
    model, teacher = d.graduate(), weakref.ref(d.teachers[0].network)
    del d
    gc.collect()
    assert teacher() is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_graduate_copies_exports_and_trains() -> None:
    model = distillation().graduate()
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model.train()(x), y).backward()
    optimizer.step()
    model.eval()
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_graduate_is_independent() -> None:
    d = distillation()
    model = d.graduate()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for p in (d.student.fc.weight, d.blocks[0].logit[0].weight))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", [STUDENT, "mobilenetv2-4-1221111"])
def test_a_graduate_is_scripted_where_the_plain_student_is(name: str) -> None:
    student, teacher = create_model(name, width=0.25), create_model(TEACHER, width=0.125)
    x = torch.rand(2, 3, 64, 64)
    torch.jit.script(student)
    d = Distillation(student, teacher, match_taps(student, teacher, x), "red+kd", example=x).eval()
    assert torch.equal(torch.jit.script(d.graduate())(x), d(x)[0])


def test_a_graduate_is_distilled_again_with_the_blocks_it_has() -> None:
    d, x = distillation(), batch()[0]
    graduate, teacher = d.graduate(), d.teachers[0].network
    weights = [p.detach().clone() for p in d.blocks.parameters()]
    again = Distillation(graduate, teacher, match_taps(graduate, teacher, x), "red+kd", example=x)
    assert [t.name for t in again.terms] == [t.name for t in d.terms]
    assert all(torch.equal(a, b) for a, b in zip(again.blocks.parameters(), weights, strict=True))
    assert again.eval()(x)[1]["total"] == d.eval()(x)[1]["total"]
    with pytest.raises(ValueError, match=r"different blocks on conv1.output; one place takes one block"):
        Distillation(graduate, teacher, d.taps, "red(kernel_size=5)")


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 32, 32), (torch.rand(1, 3, 32, 32),)], ids=["tensor", "tuple"])
def test_graduate_in_place(example: Tensor | tuple[Tensor, ...]) -> None:
    d = distillation()
    d(batch(64)[0])  # statistics of its own
    model, x = d.graduate(in_place=True, example=example), batch()[0]
    before = x.clone()
    assert d.training and not model.training and not any(p.requires_grad for p in model.parameters())
    assert sum(isinstance(m, InPlaceRedBlock) for m in model.modules()) == len(d.blocks) == 5
    expected = d.eval()(x)[0].detach()
    assert (model(x) - expected).abs().max() <= 1e-6 * expected.abs().max() and torch.equal(x, before)
    with pytest.raises(RuntimeError, match="for inference only"):
        model.train()


def test_graduate_in_place_keeps_skips_of_a_unet() -> None:
    """What a down-sampling convolution reads is also kept for the way up; what it gives is not, before the block."""
    torch.manual_seed(0)
    student, teacher = (create_model("unet", strides=s, ch=32).eval() for s in ((2, 2, 2, 1), (1, 2, 2, 2)))
    for p in student.parameters():  # layers that start near zero hide what they read
        nn.init.normal_(p, std=0.05)
    x = torch.rand(1, 3, 16, 16), torch.tensor([5])
    taps = [Tap("downblocks.2", side, "downblocks.5", side) for side in ("input", "output")]
    d = Distillation(student, teacher, taps, "red", example=x).eval()
    model = d.graduate(in_place=True, example=x)
    blocked = model.get_submodule("downblocks.2")
    assert type(blocked.before) is RedBlock and type(blocked.after) is InPlaceRedBlock
    expected = d(*x)[0].detach()
    assert (model(*x) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_graduate_in_place_errors() -> None:
    d, x = distillation(), batch()[0]
    with pytest.raises(ValueError, match=r"in_place=True\) needs example="):
        d.graduate(in_place=True)
    assert any(isinstance(m, RedBlock) for m in d.graduate(in_place=False, example=x).modules())
    on_the_image = Distillation(*networks(), [Tap("conv1", "input", "conv1", "input")], example=x)
    with pytest.raises(
        ValueError, match=r"no RED block can work in place \(conv1.before: its input map is not made by"
    ):
        on_the_image.graduate(in_place=True, example=x)
    with pytest.raises(ValueError, match=r"no RED block can work in place \(there is none\)"):
        distillation("kd").graduate(in_place=True, example=x)


# ---------------------------------------------------------------------------------------------------------- errors


def test_unknown_layers() -> None:
    student, teacher = networks()
    with pytest.raises(KeyError, match=r"student has no layer 'layer7.0'; did you mean 'layer"):
        Distillation(student, teacher, [Tap("layer7.0", "output", "layer2.0", "output", channels=8)])
    with pytest.raises(KeyError, match=r"teacher has no layer 'layer2.9'"):
        Distillation(student, teacher, [Tap("conv1", "output", "layer2.9", "output", channels=8)])
    with pytest.raises(ValueError, match=r"wants teacher 1; teachers are 0 to 0"):
        Distillation(student, teacher, [Tap("conv1", "output", "layer2.0", "output", 1, channels=8)])


@pytest.mark.parametrize("check", ["at construction", "at the first pass"])
def test_unequal_sizes_name_the_nearest_fit(check: str) -> None:
    student, teacher = networks()
    x, y = batch()
    tap = Tap("conv1", "output", "layer3.0", "output", channels=8)
    shapes = r"\(8, 8, 8\) .*\(32, 4, 4\)"
    message = rf"tap conv1.output ← layer3.0.output: .*{shapes}.*nearest .* 8×8 is 'layer2"
    with pytest.raises(ValueError, match=message):
        Distillation(student, teacher, [tap], example=x if check == "at construction" else None)(x, targets=y)


def test_channels() -> None:
    student, teacher = networks()
    x, _ = batch()
    tap = Tap("conv1", "output", "layer2.0", "output")
    with pytest.raises(ValueError, match="lacks the student's channels"):
        Distillation(student, teacher, [tap])
    assert Distillation(copy.deepcopy(student), teacher, [tap], example=x).blocks[0].channels == 8
    wrong = replace(tap, channels=64)
    with pytest.raises(ValueError, match=r"set up for 64 channels, .* \(8, 8, 8\); set its channels \(cs\) to 8"):
        Distillation(student, teacher, [wrong], example=x)


def test_a_refused_student_stays_as_it_was() -> None:
    student, teacher = networks()
    x, _ = batch()
    names = list(student.state_dict())
    taps = match_taps(student, teacher, x)
    wrong = Tap("conv1", "output", "layer3.0", "output")
    for methods, chosen in (("red", [*taps[1:], wrong]), ("red+crd", taps), ("red(kernel_size=4)", taps)):
        with pytest.raises(ValueError, match=r"equal height|samples=|odd"):
            Distillation(student, teacher, chosen, methods, example=x)
    assert list(student.state_dict()) == names


def test_a_student_that_keeps_a_map_graduates_in_place() -> None:
    class Keeping(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            self.last = self[0](x)
            return self[1](self.last).mean((2, 3))

    x = torch.rand(2, 3, 16, 16)
    student, teacher = (Keeping(nn.Conv2d(3, 8, 3, s, 1), nn.Conv2d(8, 5, 3, 4 // s, 1)) for s in (4, 2))
    d = Distillation(student, teacher, [Tap("1", "output", "1", "output")], example=x)
    d(x)
    model = d.graduate(in_place=True, example=x)
    torch.testing.assert_close(model(x), d.eval().student(x))


def test_nothing_may_silently_do_nothing() -> None:
    student, teacher = networks()
    tap = Tap("conv1", "output", "layer2.0", "output", channels=8)
    with pytest.raises(ValueError, match="red would add nothing: there are no taps; match_taps finds them"):
        Distillation(student, teacher, [], "red")
    with pytest.raises(ValueError, match=r"no method uses tap conv1.output"):
        Distillation(student, teacher, [tap], "kd")
    with pytest.raises(ValueError, match="red would add nothing: every tap carries another method"):
        Distillation(student, teacher, [replace(tap, method=Stage())], "red")
    with pytest.raises(
        ValueError, match=r"RED\(.*alpha=1.0\) would add nothing: taps carry RED\(.*alpha=5.0\); give"
    ):
        Distillation(student, teacher, [replace(tap, method=RED(alpha=5.0))], "red(alpha=1.0)+kd")
    with pytest.raises(ValueError, match="given twice at one place"):
        Distillation(student, teacher, [tap, tap])
    for member, message in (("loss", "its loss carries no gradient"), ("block", r"red\.block returns a int")):
        own = type("Own", (RED,), {member: lambda *_: torch.ones(()) if member == "loss" else 3})()  # noqa: B023
        with pytest.raises((RuntimeError, TypeError), match=message):
            Distillation(*networks(), [replace(tap, method=own)])(batch()[0])
    with pytest.raises(ValueError, match=r"different blocks on conv1.output"):
        Distillation(student, teacher, [replace(tap, method=RED()), replace(tap, method=Stage(kernel_size=5))])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"student": "net"}, "student='net' is not a Module"),
        ({"teacher": 3}, "teacher=3 is not a Module or a list"),
        ({"teacher": "resnet18"}, "teacher='resnet18' is not a Module or a list or a tuple"),
        ({"taps": "taps.yaml"}, "taps='taps.yaml' is not a list or a tuple"),
        ({"teacher": [None]}, "teacher=None is not a Module"),
        ({"taps": 3}, "taps=3 is not a list"),
        ({"taps": ["conv1"]}, "a tap='conv1' is not a Tap"),
        ({"example": [1, 2]}, "example=.* is not a Tensor or a tuple or None"),
        ({"objective": 0.5}, "objective=0.5 is not an Objective or None"),
        ({"samples": -1}, "samples=-1 is not a whole number of 0 or more"),
    ],
)
def test_arguments_that_cannot_be_meant(given: dict[str, Any], message: str) -> None:
    student, teacher = networks()
    with pytest.raises(ValueError, match=message):
        Distillation(**{"student": student, "teacher": teacher, "methods": "kd", **given})


def test_targets_that_cannot_be_meant() -> None:
    student, teacher = networks()
    with pytest.raises(ValueError, match=r"targets=.* is not a Tensor"):
        Distillation(student, teacher, methods="kd")(torch.rand(2, 3, 32, 32), targets=[0, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"distill_weight": 2}, "distill_weight is a share from 0 to 1, or None for a plain sum, not 2"),
        ({"distill_weight": -0.1}, "distill_weight is a share from 0 to 1, or None"),
        ({"distill_weight": math.nan}, "distill_weight=nan is not a number or None"),
        ({"distill_weight": "0.5"}, "distill_weight='0.5' is not a number or None"),
        ({"distill_weight": True}, "distill_weight=True is not a number or None"),
        ({"reduction": "max"}, "reduction='max' is not 'mean' or 'sum'"),
        ({"task_loss": "mse"}, "task_loss='mse' is not a function"),
        ({"task_loss": None}, "task_loss=None is not a function"),
    ],
)
def test_the_objective_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Objective(**given)


def test_an_objective_takes_numpys_numbers() -> None:
    assert type(Objective(np.float32(0.25)).distill_weight) is float  # type: ignore[arg-type]
    assert Objective(np.int64(1)) == Objective(1.0)  # type: ignore[arg-type]


def test_without_a_teacher_there_is_nothing_to_compare_with() -> None:
    student, _ = networks()
    with pytest.raises(ValueError, match="kd compares with a teacher, and there is none; give teacher="):
        Distillation(student, methods="kd")
    with pytest.raises(ValueError, match=r"tap conv1\.output compares with a teacher, and there is none"):
        Distillation(student, taps=[Tap("conv1", "output", "conv1", "output")], methods="red-blocks")


class Twice(nn.Module):
    def __init__(self, skip: bool = False):
        super().__init__()
        self.conv, self.other, self.skip = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), skip

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.skip else self.conv(self.conv(x)).mean((2, 3))


def test_layers_that_run_twice_or_never() -> None:
    teacher, x = Twice(), torch.rand(2, 3, 4, 4)
    once = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match="student layer 'conv' runs more than once per pass"):
        Distillation(Twice(), once, [Tap("conv", "output", "0", "output", channels=3)])(x)
    with pytest.raises(RuntimeError, match="teacher layer 'conv' runs more than once per pass"):
        Distillation(copy.deepcopy(once).train(), teacher, [Tap("0", "output", "conv", "output", channels=3)])(x)
    with pytest.raises(RuntimeError, match=r"student's forward pass never reached conv.output"):
        Distillation(Twice(skip=True), once, [Tap("conv", "output", "0", "output", channels=3)])(x)
    with pytest.raises(RuntimeError, match=r"teacher's forward pass never reached other\.output"):
        student = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        Distillation(student, teacher, [Tap("0", "output", "other", "output", channels=3)])(x)


# ------------------------------------------------------------------------------------------------- taps with methods


def test_taps_that_carry_methods() -> None:
    student, teacher = networks()
    taps = read_taps(
        {
            "net.conv1": {
                "t_layers": [None, "tid_0=layer2.0"],
                "modules": [None, "RED"],
                "kwargs": [None, {"cs": 8, "alpha": 7.0}],
            },
            "net.fc": {"t_layers": [None, "tid_0=fc"], "modules": [None, "KD"], "kwargs": [None, {"alpha": 2.0}]},
        }
    )  # fmt: skip
    d = Distillation(student, teacher, taps)
    assert [(t.name, t.method.alpha) for t in d.terms] == [("red/conv1.output", 7.0), ("kd/fc.output", 2.0)]
    x, y = batch()
    losses = d(x, targets=y)[1]
    assert losses["distill"].item() == pytest.approx(
        ((7 * losses["red/conv1.output"] + 2 * losses["kd/fc.output"]) / 2).item()
    )


def test_plan_terms() -> None:
    tap = Tap("a", "output", "b", "output", method=RED(kernel_size=5, alpha=3.0))
    assert [t.name for t in plan_terms([tap], [RED(), KD()])] == ["red/a.output", "kd"]
    assert plan_terms([tap], [RED()])[0].method == RED(kernel_size=5, alpha=3.0)
    control = plan_terms([tap], parse_methods("red-blocks"))
    assert control[0].method.name == "red-blocks" and control[0].method.alpha == 0


def test_blocks_follow_the_students_device_and_dtype() -> None:
    student, teacher = (net.double() for net in networks())
    x = batch()[0].double()
    d = Distillation(student, teacher, match_taps(student, teacher, x), example=x)
    assert d.blocks[0].logit[0].weight.dtype == torch.float64
    meta = [net.to("meta") for net in networks()]
    taps = match_taps(*meta, batch()[0].to("meta"))
    assert Distillation(*meta, taps, example=batch()[0].to("meta")).blocks[0].logit[0].weight.is_meta


def test_no_block_on_the_whole_network() -> None:
    student, teacher = networks()
    with pytest.raises(ValueError, match="red needs a layer inside the student"):
        Distillation(student, teacher, [Tap("", "output", "layer4", "output", channels=10)])


class Aliased(nn.Module):
    """A layer under two names, one of them used; its dtype is read from outside, as transformers' networks do."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Conv2d(3, 4, 3, stride, 1), nn.BatchNorm2d(4))
        self.first = self.base[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.base[1](self.first(x.to(self.first.weight.dtype))).mean((2, 3))


@pytest.mark.parametrize("name", ["first", "base.0"])
def test_graduates_of_networks_with_aliases(name: str) -> None:
    torch.manual_seed(0)
    x, _ = batch()
    d = Distillation(Aliased(2), Aliased(2), [Tap(name, "output", name, "output")], example=x).eval()
    model = d.graduate()
    assert torch.equal(model(x), d(x)[0]) and len(d.blocks) == 1
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    with pytest.raises(AttributeError, match="nothing"):
        _ = model.first.nothing


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "old weight_norm", "kept"])
def test_blocks_on_layers_of_all_kinds_graduate(norm: str) -> None:
    """Parametrised layers answer for their own copies; a kept activation has no place in one."""
    x = torch.randn(2, 3, 32, 32)
    layer = nn.Conv2d(3, 8, 3, 2, 1)
    if norm == "old weight_norm":
        layer = torch.nn.utils.weight_norm(layer)
    elif norm != "kept":
        layer = getattr(torch.nn.utils.parametrizations, norm)(layer)
    teacher = nn.Sequential(layer, nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1))
    if norm == "kept":
        teacher.last = teacher(x)
    student, _ = derive_student(teacher, 2, example=x)
    distillation = Distillation(student, teacher, match_taps(student, teacher, x), methods="red", example=x).eval()
    model = distillation.graduate().eval()
    count = sum(p.numel() for p in distillation.student.parameters())
    assert sum(p.numel() for p in model.parameters()) == count > sum(p.numel() for p in teacher.parameters())
    assert torch.equal(model(x), distillation.student(x))
