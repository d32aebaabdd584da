"""Distilling networks as they come: checkpointed, frozen, shared, threaded, compiled, in half precision, with results
of any form, and with methods that train something of their own."""

from __future__ import annotations

import copy
import io
import threading
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from redistill_lib.distill import Distillation, Objective, Tap
from redistill_lib.methods import Batch, FitNet, Shape

X = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
Y = torch.tensor([0, 4, 2, 2])
TAPS = [Tap("stem", "output", "1", "output"), Tap("mid", "input", "2", "output"),
        Tap("deep", "output", "3", "output", method=FitNet())]  # fmt: skip


class Student(nn.Module):
    """Its body may run under gradient checkpointing; `reentrant` says of which kind."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.stem, self.deep, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1), nn.Linear(8, 5)
        self.mid = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))

    def body(self, x: Tensor) -> Tensor:
        return self.deep(self.mid(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) if self.reentrant is None else checkpoint(self.body, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


def make_student(reentrant: bool | None = None, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    return Student(reentrant)


def make_teacher() -> nn.Module:
    torch.manual_seed(1)
    convs = nn.Conv2d(3, 7, 3, 1, 1), nn.Conv2d(7, 9, 3, 2, 1), nn.ReLU(), nn.Conv2d(9, 10, 3, 2, 1)
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5))


def make(reentrant: bool | None = None, methods: str = "red+kd") -> Distillation:
    student, teacher = make_student(reentrant), make_teacher()
    torch.manual_seed(2)
    return Distillation(student, teacher, TAPS, methods, example=X)


def total(d: Distillation, x: Tensor = X) -> Tensor:
    return d(x, targets=Y)[1]["total"]


# ------------------------------------------------------------------------------------------------------- gradients


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """Two taps, blocks and a batch norm inside one checkpointed region, with RED, KD and FitNet together."""
    plain, checkpointed = make(), make(reentrant=False)
    assert len(plain.blocks) == 2
    for d in (plain, checkpointed):
        total(d).backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and torch.equal(p.grad, q.grad), name


def test_a_checkpoint_that_gives_no_gradient_is_an_error() -> None:
    d, x = make(), X.clone().requires_grad_()
    d.student.reentrant = True
    with pytest.raises(RuntimeError, match=r"red/stem\.output would teach the student nothing: .*use_reentrant=True"):
        total(d, x)


def test_frozen_layers_before_a_tap_are_an_error_in_training_alone() -> None:
    student = make_student()
    student.stem.requires_grad_(False)
    d = Distillation(student, make_teacher(), [Tap("stem", "output", "1", "output")], "fitnet", example=X)
    with pytest.raises(RuntimeError, match=r"fitnet/stem\.output would teach the student nothing: .*frozen"):
        d(X)
    with torch.no_grad():
        assert d(X)[1]["total"] > 0
    assert d.eval()(X)[1]["total"] > 0


# ------------------------------------------------------------------------------------- what networks have in common


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.drop = nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4, affine=False), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.stem(x))).mean((2, 3))


@pytest.mark.parametrize("part", ["stem", "norm", "drop"])
def test_shared_layers_are_refused(part: str) -> None:
    """The teacher's would be frozen and in eval mode; so would the student's."""
    student, teacher = Norm(), Norm()
    setattr(student, part, getattr(teacher, part))
    with pytest.raises(ValueError, match=rf"student and teacher share {part}.*give each its own, by copy.deepcopy"):
        Distillation(student, [Norm(), teacher], methods="kd")
    assert all(p.requires_grad for p in student.parameters())
    assert Distillation(student, copy.deepcopy(teacher), methods="kd")(X)[1]["kd"] >= 0


def test_weights_of_one_memory_are_refused() -> None:
    student, teacher = Norm(), Norm()
    teacher.stem.weight = nn.Parameter(student.stem.weight.data)
    with pytest.raises(ValueError, match=r"share stem\.weight; give each its own"):
        Distillation(student, teacher, methods="kd")
    with pytest.raises(ValueError, match="the same object"):
        Distillation(student, student, methods="kd")


# ----------------------------------------------------------------------------------------------- threads and copies


def test_threads_do_not_mix_their_maps() -> None:
    d = make().eval()
    inputs = [X, 1 - X, X * X]
    alone = [total(d, x).item() for x in inputs]
    together: list[list[float]] = [[] for _ in inputs]
    barrier, failed = threading.Barrier(len(inputs)), list[Exception]()

    def work(k: int) -> None:
        try:
            for _ in range(10):
                barrier.wait()
                replica = d._replicate_for_data_parallel() if k else d  # type: ignore[no-untyped-call]
                together[k].append(total(replica, inputs[k]).item())
        except Exception as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and together == [[loss] * 10 for loss in alone]


def test_copies_and_saved_states_repeat_the_losses() -> None:
    d = make()
    total(d).backward()
    torch.optim.SGD((p for p in d.parameters() if p.requires_grad), 0.1).step()
    file = io.BytesIO()
    torch.save(d.state_dict(), file)
    file.seek(0)
    restored = make()
    restored.load_state_dict(torch.load(file, weights_only=True))
    expected = total(d.eval())
    assert total(restored.eval()) == total(copy.deepcopy(d)) == expected != total(make().eval())


# --------------------------------------------------------------------------------------- precisions and layouts


def test_mixed_precision_compares_in_single_precision() -> None:
    d, plain = make(), make()
    with torch.autocast("cpu", torch.bfloat16):
        losses = d(X, targets=Y)[1]
    expected = plain(X, targets=Y)[1]
    assert {name: value.dtype for name, value in losses.items()} == dict.fromkeys(losses, torch.float32)
    assert losses["total"].item() == pytest.approx(expected["total"].item(), rel=0.02)
    losses["total"].backward()
    assert all(p.grad is not None for p in d.parameters() if p.requires_grad)


def test_projectors_and_embeddings_are_not_rounded_by_mixed_precision() -> None:
    """What is compared here is pooled only, which mixed precision leaves as it is."""
    student, teacher = (nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 5)) for _ in range(2))
    taps = [Tap("0", "output", "0", "output")]
    d = Distillation(student, teacher, taps, "fitnet+crd(negatives=6)", example=X, samples=9).eval()
    exact, rounded = {}, {}
    for losses, enabled in ((exact, False), (rounded, True)):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.update(d(X, index=Y)[1])
    assert exact == rounded and len(exact) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before", "after"])
def test_networks_of_other_precisions(dtype: torch.dtype, when: str) -> None:
    if when == "before":
        torch.manual_seed(2)
        d = Distillation(make_student().to(dtype), make_teacher().to(dtype), TAPS, "red+kd", example=X.to(dtype))
    else:
        d = make().to(dtype)
    outputs, losses = d(X.to(dtype), targets=Y)
    losses["total"].backward()
    assert outputs.dtype == dtype and losses["kd"].dtype == torch.promote_types(dtype, torch.float32)
    assert all(p.grad is not None for p in d.parameters() if p.requires_grad)
    assert losses["total"].item() == pytest.approx(total(make()).item(), rel=0.05)


def test_channels_last() -> None:
    d, last = make().eval(), make().to(memory_format=torch.channels_last).eval()
    torch.testing.assert_close(total(last, X.contiguous(memory_format=torch.channels_last)), total(d))


# ----------------------------------------------------------------------------------------------------- compiled


def compiled(net: nn.Module, how: str) -> Any:
    if how == "torch.compile":
        return torch.compile(net, backend="eager")
    net.compile(backend="eager")
    return net


@pytest.mark.parametrize("how", ["torch.compile", "Module.compile"])
def test_compiled_networks_distil_by_their_outputs_alone(how: str) -> None:
    plain = Distillation(make_student(), make_teacher(), methods="kd")
    d = Distillation(compiled(make_student(), how), compiled(make_teacher(), how), methods="kd")
    for net in (plain, d):
        for _ in range(2):
            loss = total(net)
        loss.backward()
    assert total(d) == total(plain)
    for p, q in zip(d.student.parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    with pytest.raises(
        ValueError, match=r"the teacher's feature maps cannot be read; it is compiled, so give the net"
    ):
        Distillation(make_student(), compiled(make_teacher(), how), TAPS, example=X)
    student = make_student()
    student.mid = compiled(student.mid, how)
    with pytest.raises(ValueError, match=r"the student's feature maps cannot be read; it is compiled"):
        Distillation(student, make_teacher(), TAPS, example=X)


# ------------------------------------------------------------------------------------------------------- outputs


@dataclass
class Answer:
    sample: Tensor
    features: tuple[Tensor, ...] = ()


class Answering(nn.Module):
    """A classifier that answers in a form of its own."""

    FORMS: ClassVar[dict[str, Any]] = {
        "tensor": lambda y: y,
        "tuple": lambda y: (y, None),
        "dict": lambda y: {"aux": None, "logits": y},
        "result": lambda y: Answer(y),
        "boxes": lambda y: {"boxes": y, "scores": y},
    }

    def __init__(self, form: str, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.form = nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), form

    def forward(self, x: Tensor) -> Any:
        return self.FORMS[self.form](self.net(x))


@pytest.mark.parametrize("form", ["tuple", "dict", "result"])
def test_results_of_any_form(form: str) -> None:
    plain = Distillation(Answering("tensor"), Answering("tensor", 8), methods="kd+mse")(X, targets=Y)[1]
    outputs, losses = Distillation(Answering(form), Answering(form, 8), methods="kd+mse")(X, targets=Y)
    assert losses == plain and type(outputs) is type(Answering.FORMS[form](Y))


def test_results_without_a_main_tensor_are_named() -> None:
    with pytest.raises(TypeError, match="the student returns a dict with boxes, scores, in which no main tensor"):
        Distillation(Answering("boxes"), Answering("dict"), methods="kd")(X)
    with pytest.raises(TypeError, match="the teacher returns a dict with boxes, scores"):
        Distillation(Answering("dict"), Answering("boxes"), methods="kd")(X)
    classes = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(ValueError, match=r"kd needs equal shapes, not \(3,\) .* \(5,\).*same classes"):
        Distillation(classes, Answering("dict"), methods="kd")(X)


class Noise(nn.Module):
    """Predicts ε from (x, t); as a teacher, it may have been trained to predict v."""

    def __init__(self, velocity: bool) -> None:
        super().__init__()
        self.net, self.velocity = nn.Conv2d(3, 3, 3, 1, 1), velocity

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.velocity:
            return self.net(x)
        kept, noise = torch.cos(t)[:, None, None, None], torch.sin(t)[:, None, None, None]
        v = (self.net(x) - noise * x) / kept  # the inner network's own target
        return kept * v + noise * x


def test_the_prediction_is_compared_not_a_layer_that_resembles_it() -> None:
    """However the teacher makes its prediction: where it is the student's the loss is 0, else the squared error."""
    student, teacher = Noise(False), Noise(True)
    teacher.net = copy.deepcopy(student.net)
    d = Distillation(student, teacher, methods="mse(alpha=3.0)", objective=Objective(None, "sum"))
    t = torch.tensor([0.1, 0.7, 1.1, 1.3])
    assert d(X, t)[1]["mse"] < 1e-12
    nn.init.zeros_(student.net.weight)
    outputs, losses = d(X, t, targets=X)
    expected = F.mse_loss(outputs, teacher(X, t))
    assert losses["mse"].item() == pytest.approx(expected.item(), rel=1e-6) and losses["mse"] > 1e-3
    task = F.mse_loss(outputs, X)
    d = Distillation(student, teacher, methods="mse(alpha=3.0)", objective=Objective(None, "sum", F.mse_loss))
    assert d(X, t, targets=X)[1]["total"].item() == pytest.approx((task + 3 * expected).item(), rel=1e-6)


# ---------------------------------------------------------------------------------- methods with parts of their own


def test_a_projector_is_trained_saved_and_left_behind() -> None:
    d = Distillation(make_student(), make_teacher(), TAPS[2:], "kd", example=X)
    parameters = dict(d.named_parameters())
    names = [name for name in d.state_dict() if name.startswith("criteria.")]
    projector = parameters[names[0]]
    assert projector.shape == (10, 8, 1, 1) and len(names) == 2
    before = projector.detach().clone()
    optimizer = torch.optim.SGD(d.parameters(), 0.1)
    total(d).backward()
    optimizer.step()
    assert not torch.equal(projector, before)
    graduate = d.graduate()
    assert set(graduate.state_dict()) == set(make_student().state_dict())
    assert torch.equal(graduate.eval()(X), d.eval()(X)[0])


def test_dkd_and_crd_take_what_a_batch_carries() -> None:
    student, teacher = make_student(), make_teacher()
    taps = [Tap("deep", "output", "3", "output")]
    d = Distillation(student, teacher, taps, "crd(dim=4, negatives=6)+dkd", example=X, samples=20)
    losses = d(X, targets=F.one_hot(Y, 5).float(), index=torch.tensor([3, 19, 0, 7]))[1]
    assert {"crd/deep.output", "dkd"} < set(losses) and losses["total"].isfinite()
    numbered = Distillation(make_student(), make_teacher(), methods="dkd")(X, targets=Y)[1]
    torch.testing.assert_close(losses["dkd"], numbered["dkd"])
    with pytest.raises(ValueError, match=r"tap deep\.output ← 3\.output: crd keeps a memory of each image; .*index="):
        d(X, targets=Y)
    with pytest.raises(ValueError, match=r"dkd needs the targets of each batch; .*targets="):
        d(X, index=torch.tensor([3, 19, 0, 7]))
    with pytest.raises(ValueError, match=r"crd remembers each training image; give Distillation samples="):
        Distillation(student, teacher, taps, "crd", example=X)
    for method in ("crd", "fitnet"):
        with pytest.raises(
            ValueError, match=rf"{method} needs the shapes of its maps; give Distillation an example="
        ):
            Distillation(student, teacher, taps, method, samples=20)


@dataclass(frozen=True)
class Attention:
    """A method of a reader's own: where the maps are strong, after a learnt gain, weighed by the share of class 2."""

    name: ClassVar[str] = "attention"
    reads: ClassVar[Literal["maps"]] = "maps"
    gain: float = 2.0
    alpha: float = 5.0

    def block(self, student: Shape) -> nn.Module | None:
        return nn.Conv2d(student[0], student[0], 1)

    def criterion(self, student: Shape, teacher: Shape, samples: int) -> nn.Module:
        return Gain(self.gain)


class Gain(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        share = (batch.targets == 2).float().mean()
        return share * F.mse_loss(self.gain * student.square().mean(1), teacher.square().mean(1))


def test_a_method_of_ones_own() -> None:
    torch.manual_seed(2)
    d = Distillation(make_student(), make_teacher(), TAPS[:1], [Attention(), "kd"], example=X)
    [block], [gain] = d.blocks, [p for name, p in d.named_parameters() if name.endswith(".gain")]
    losses = d(X, targets=Y)[1]
    student, teacher = d.student.stem(X), d.teachers[0].network[:2](X)
    expected = 0.5 * F.mse_loss(2 * student.square().mean(1), teacher.square().mean(1))
    assert losses["attention/stem.output"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses["distill"].item() == pytest.approx((5 * expected + losses["kd"]).item() / 2, rel=1e-6)
    losses["total"].backward()
    assert gain.grad.abs() > 0 and block.weight.grad.abs().sum() > 0
    assert d.settings()["terms"][0] == {
        "at": "attention/stem.output", "from": "1.output", "method": "attention", "gain": 2.0, "alpha": 5.0
    }  # fmt: skip
    assert any(module is not block and isinstance(module, nn.Conv2d) for module in d.graduate().modules())
    bad = Attention()
    object.__setattr__(bad, "reads", "map")
    with pytest.raises(ValueError, match="attention reads 'maps' or 'outputs', not 'map'"):
        Distillation(make_student(), make_teacher(), TAPS, bad, example=X)


class PerImage(Gain):
    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return student.square().mean((1, 2, 3))


class Unbatched(Gain):
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        return F.mse_loss(student, teacher)


@pytest.mark.parametrize(
    ("criterion", "message"),
    [
        (
            lambda self, s, t: Gain(1.0),
            r"attention\.criterion takes .*\(student, teacher, samples\); it lacks samples",
        ),
        (lambda self, s, t, n: F.mse_loss, r"attention\.criterion returns a function, not an nn\.Module"),
        (lambda self, s, t, n: Unbatched(1.0), r"forward of attention's criterion .*; it lacks batch"),
        (
            lambda self, s, t, n: PerImage(1.0),
            r"attention's loss is a tensor \(8,\), not a scalar tensor; return its m",
        ),
    ],
)
def test_methods_that_cannot_work(criterion: Any, message: str) -> None:
    Wrong = dataclass(frozen=True)(type("Wrong", (Attention,), {"criterion": criterion}))
    with pytest.raises(TypeError, match=message):
        Distillation(make_student(), make_teacher(), TAPS[:1], Wrong(), example=X)(torch.cat([X, X]), targets=Y)
