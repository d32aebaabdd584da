"""What callers give to the four doors: recipes, options, networks, lessons; what cannot be meant is refused first."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainings import DOORS, PLANS, TASKS, UNET, call, digits, train

from redistill_lib.data import TensorImages
from redistill_lib.distill import Objective
from redistill_lib.methods import KD, Batch, Weighted
from redistill_lib.models.saved import load_model
from redistill_lib.runs import Run
from redistill_lib.train import DDPM_CIFAR10, STL10, DiffusionRecipe, Recipe, RunOptions

both = pytest.mark.parametrize("task", TASKS)


# ----------------------------------------------------------------------------------------------- recipes and options


def test_schedules_by_hand() -> None:
    def rates(recipe: Recipe, per_epoch: int, steps: list[int]) -> list[float]:
        return [recipe.learning_rate_at(step, per_epoch) / recipe.learning_rate for step in steps]

    onecycle = rates(Recipe(epochs=10, warmup=0.1), 10, list(range(100)))
    assert onecycle[0] == pytest.approx(0.04) and onecycle[10] == 1 and onecycle[-1] < 0.001
    assert onecycle[:11] == sorted(onecycle[:11]) and onecycle[10:] == sorted(onecycle[10:], reverse=True)
    cosine = rates(DiffusionRecipe(steps=100, warmup=10), 7, [0, 10, 55, 99])
    assert cosine[:3] == pytest.approx([0.1, 1, 0.5]) and cosine[3] < 0.001
    steps = rates(STL10, 100, [epoch * 100 for epoch in (0, 179, 180, 240, 299)])
    assert steps == pytest.approx([1, 1, 1 / 5, 1 / 25, 1 / 125])
    assert rates(DDPM_CIFAR10, 390, [0, 2499, 4999, 799_999]) == pytest.approx([1 / 5000, 1 / 2, 1, 1])
    assert rates(Recipe(schedule="constant"), 100, [0, 50]) == [1, 1]  # a share of no length


def test_lengths() -> None:
    assert Recipe(epochs=3).total_steps(7) == 21 and DiffusionRecipe(steps=5).total_steps(7) == 5
    assert Recipe(steps=5).total_steps(7) == 5 and DiffusionRecipe(epochs=2).total_steps(7) == 14
    assert (Recipe().epochs, Recipe().steps) == (12, None) == (replace(Recipe()).epochs, Recipe(epochs=None).steps)
    assert (DiffusionRecipe().epochs, DiffusionRecipe().steps) == (None, 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0 is not a whole number of 1 or more"),
        ({"epochs": 3.0}, "epochs=3.0 is not a whole number or None"),
        ({"epochs": 3, "steps": 10}, "give epochs or steps, and None for the other, not 3 and 10"),
        ({"batch_size": 1}, "batch_size=1 is not a whole number of 2 or more"),
        ({"batch_size": "64"}, "batch_size='64' is not a whole number"),
        ({"milestones": (1.5,)}, r"milestones\[0\]=1.5 is not a whole number"),
        ({"milestones": "12"}, "milestones='12' is not a sequence of whole numbers"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is not a number above 0"),
        *(({"learning_rate": value}, "learning_rate=.* is not a number") for value in (float("nan"), "0.1", None)),
        ({"clip_norm": 0}, "clip_norm=0.0 is not a number above 0"),
        ({"divide_by": -1}, "divide_by=-1.0 is not a number above 0"),
        ({"weight_decay": -1e-4}, "weight_decay is a number from 0 up, not -0.0001"),
        ({"warmup": -5}, "warmup is a number from 0 up"),
        ({"momentum": 1}, "momentum is a share from 0 to below 1, not 1.0"),
        ({"label_smoothing": 2}, "label_smoothing is a share from 0 to below 1"),
        ({"ema_decay": 1.0}, "ema_decay is a share from 0 to below 1"),
        ({"amsgrad": "no"}, "amsgrad='no' is not True or False"),
        ({"amsgrad": 1}, "amsgrad=1 is not True or False"),
        ({"augmentation": "crp"}, "did you mean 'crop'"),
        ({"augmentation": None}, "augmentation=None is not text"),
        ({"optimizer": "lion"}, "optimizer='lion' is not 'sgd' or 'adam' or 'adamw'"),
        ({"schedule": "cos"}, "schedule='cos' is not .*; did you mean 'cosine'"),
        ({"init": True}, "init=True is not 'given' or 'scratch' or 'teacher'"),
    ],
)
def test_recipes_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"steps": value}, "steps=.* is not a whole number") for value in (0, 4.0, True, "4")),
        ({"epochs": 3, "steps": 9}, "give epochs or steps, and None for the other, not 3 and 9"),
        ({"label_dropout": "0.1"}, "label_dropout='0.1' is not a number"),
        ({"label_dropout": 1}, "label_dropout is a share"),
        ({"process": "v_prediction"}, "process='v_prediction' is not a DiffusionProcess"),
        ({"augmentation": "flip+mixup"}, "a denoiser learns images as they are; leave mixup and cutmix out"),
    ],
)
def test_recipes_of_denoisers_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionRecipe(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs_dir": 3}, "runs_dir=3 is not text or a path"),
        ({"mixed_precision": "int8"}, "mixed_precision='int8' is not 'no' or 'bf16' or 'fp16'"),
        ({"cpu": 1}, "cpu=1 is not True or False"),
        ({"workers": -1}, "workers=-1 is not a whole number of 0 or more"),
        ({"workers": 2.0}, "workers=2.0 is not a whole number"),
        ({"log_every": 0}, "log_every=0 is not a whole number of 1 or more"),
        ({"samples": "4"}, "samples='4' is not a whole number"),
        ({"log_every": 50, "sample_every": 120}, r"multiple of log_every \(50\), such as 100, not 120"),
        ({"on_log": "print"}, "on_log='print' is not"),
        ({"progress": "no"}, "progress='no' is not True or False"),
        ({"name": 5}, "name=5 is not text or None"),
        ({"reuse": None}, "reuse=None is not True or False"),
    ],
)
def test_options_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**change)


def test_a_record_holds_what_the_training_reads_in_one_form() -> None:
    def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return Recipe(**one).settings(100) == Recipe(**other).settings(100)

    assert same({"epochs": 3, "batch_size": 32}, {"epochs": None, "steps": 9, "batch_size": 32})
    assert same({"amsgrad": True}, {}) and not same({"optimizer": "adam", "amsgrad": True}, {"optimizer": "adam"})
    assert same({"optimizer": "adam", "momentum": 0.5}, {"optimizer": "adam"}) and not same({"momentum": 0.5}, {})
    assert same({"milestones": (3,), "divide_by": 2}, {})
    step = {"schedule": "step", "milestones": (3,)}
    assert same({**step, "warmup": 7}, step) and not same({**step, "divide_by": 2}, step)
    assert same({"augmentation": "crop+none"}, {"augmentation": " crop "}) and same(
        {"augmentation": "none+none"}, {"augmentation": "none"}
    )
    assert not same({"augmentation": "crop+cutmix|none"}, {"augmentation": "crop+cutmix"})
    constant = {"schedule": "constant", "warmup": 0.1}
    assert same(constant, {**constant, "warmup": 0.3}) and not same(constant, {**constant, "warmup": 3})
    assert same({"batch_size": 100}, {"batch_size": 500}) and not same({"batch_size": 100}, {"batch_size": 90})


def test_numbers_of_numpy_are_as_good() -> None:
    given = DiffusionRecipe(steps=np.int64(200), learning_rate=np.float64(1e-3), amsgrad=np.bool_(True))  # type: ignore
    plain = DiffusionRecipe(steps=200, learning_rate=1e-3, amsgrad=True)
    assert given == plain and json.dumps(asdict(given)) == json.dumps(asdict(plain))
    assert Recipe(learning_rate=1, milestones=[3]) == Recipe(learning_rate=1.0, milestones=(3,))  # type: ignore
    assert RunOptions(workers=np.int32(2)).workers == 2  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- the doors


def net(channels: int = 1, classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x)


class Holding(nn.Module):
    """A network that no copy can be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(1, 1, 1), threading.Lock()


class Keeping(nn.Sequential):
    """Keeps a sparse tensor, or a dict, beside its weights."""

    def __init__(self, kept: Tensor | None) -> None:
        super().__init__(nn.Flatten(), nn.Linear(256, 10))
        if kept is not None:
            self.register_buffer("kept", kept)
        else:
            self._register_state_dict_hook(lambda module, state, prefix, meta: state.update({"kept": {}}))


@dataclass(frozen=True)
class PerImage(Weighted):
    """A method that forgets to average over the images."""

    name = "per-image"
    reads = "outputs"
    alpha: float = 1.0

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return (student - teacher).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Widening(Weighted):
    """A method whose block gives the next layer more channels than it takes."""

    name = "widening"
    alpha: float = 1.0

    def block(self, student: Any) -> nn.Module:
        return nn.Conv2d(student[0], student[0] + 1, 1)

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        return student.square().mean()


class Detaching(nn.Module):
    """A network that answers without a gradient."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.inside(*inputs).detach()


class Same(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x)


def hooked(how: str) -> nn.Module:
    model = net()
    getattr(model[0].bias, how)(lambda gradient: None)
    return model


ANY_CALL: list[tuple[dict[str, Any], str]] = [
    *(({"model": value}, "network=.* is not text or a Module") for value in (None, 3, nn.Linear, ["resnet18"])),
    ({"model": net().to("meta")}, "0.weight of the network is on the meta device and has no values"),
    (
        {"model": Holding()},
        r"the network \(Holding\) cannot be copied: cannot pickle .*; leave out of its attributes",
    ),
    ({"model": hooked("register_hook")}, "0.bias has a hook, which a copy loses"),
    ({"model": hooked("register_post_accumulate_grad_hook")}, "0.bias has a hook, which a copy loses"),
    ({"model": "vgg11"}, "Unknown architecture 'vgg11'"),
    (
        {"model": net().requires_grad_(False)},
        "Sequential has no parameter that requires a gradient: nothing",
    ),
    ({"model": nn.Flatten()}, "Flatten has no parameter that requires a gradient"),
    ({"model": net().bfloat16()}, "starts from float32 weights; give mixed_precision='bf16'"),
    *(({"data": value}, "data=.* is not a DataSplits or text or a path") for value in (3, [1], {}, digits)),
    ({"data": "cifar11"}, "Unknown data set 'cifar11'"),
    *(({"recipe": value}, r"recipe is a (Diffusion)?Recipe, not a") for value in ({}, "fast", 12)),
    ({"seed": 2**64}, "seed=18446744073709551616 is more than the 9223372036854775807"),
    *(({"seed": value}, "seed=.* is not a whole number of 0 or more") for value in (-1, "0", 1.0, True)),
    *(({"options": value}, "options is a RunOptions, not a") for value in ({}, "runs", False)),
]
DISTILLING: list[tuple[dict[str, Any], str]] = [
    *(({"teacher": value}, "a list of at least one of these, not") for value in (None, [], 5, [None], nn.Linear, {})),
    ({"teacher": "nowhere"}, "no run at nowhere: .*; train the teacher first and give the run that returns"),
    ({"teacher": net().to("meta")}, "0.weight of the teacher is on the meta device"),
    ({"teacher": Holding()}, r"the teacher \(Holding\) cannot be copied"),
    *(({"methods": value}, "a method is a name, such as 'red.kd', or a") for value in (3, KD, [None])),
    ({"methods": PerImage()}, r"per-image's loss is a tensor \(2,\), not a scalar tensor"),
    ({"methods": Widening()}, r"widening's block makes \(\d+, .*; a block keeps the map's shape"),
    ({"methods": "redd"}, "unknown distillation method 'redd'; did you mean 'red'"),
    ({"methods": []}, "methods names none, so the teacher would teach nothing"),
    ({"taps": 3}, "taps=3 is not a list"),
    *(({"taps": value}, "a tap='conv1' is not a Tap") for value in (["conv1"], {"conv1": 1})),
    ({"taps": "nowhere.yaml"}, "taps cannot be read from nowhere.yaml: No such file"),
    ({"taps": []}, "red would add nothing: there are no taps"),
    *(({"objective": value}, "objective=.* is not an Objective or None") for value in (0.5, {}, 0)),
    ({"objective": Objective(task_loss=lambda outputs, targets: outputs.sum())}, "leave task_loss out of objective"),
]
OWN: dict[str, list[tuple[dict[str, Any], str]]] = {
    "classifier": [
        *(({"width": value}, "width=.* is not a") for value in ("1", None, 0, 100)),
        ({"recipe": DiffusionRecipe()}, "recipe is a Recipe, not a DiffusionRecipe"),
        ({"model": net(classes=9)}, r"the network answers \(2, 9\) for two images of 10 classes"),
        ({"model": nn.Conv2d(1, 10, 3)}, r"answers \(2, 10, 14, 14\) for two images"),
        ({"model": net(channels=3)}, "the network does not take images of 1×16×16: .*3 channels"),
        ({"model": Halved()}, "the network does not take images of 1×16×16: .*missing 1 required"),
        ({"model": "unet-1-22"}, "unet is no classifier network; there are mobilenetv2, "),
        ({"model": Detaching(net())}, "the outputs of Detaching carry no gradient"),
        *(
            ({"model": Keeping(kept)}, "kept of Keeping is no dense tensor")
            for kept in (torch.eye(4).to_sparse(), None)
        ),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))},
            "1.weight of the network is lazy and has no values",
        ),
    ],
    "denoiser": [
        *(({"unet": value}, "unet is a dict of options, such as DIGITS_UNET") for value in (3, None, ["ch"], {8: 1})),
        ({"unet": {"chs": 8}}, "unet has no option chs"),
        (
            {"unet": {**UNET, "in_channels": 1}},
            "leave in_channels out of unet; model is the name, data give",
        ),
        ({"unet": {**UNET, "num_classes": 4}}, "the network takes 4 classes, but digits has 10"),
        ({"unet": {**UNET, "T": 10}}, "knows 10 time steps; the schedule has 1000"),
        ({"recipe": Recipe()}, "recipe is a DiffusionRecipe, not a Recipe"),
        ({"model": Detaching(Same())}, "the outputs of Detaching carry no gradient"),
        ({"model": "resnet18-1-21222"}, "resnet18 is no diffusion network; there are unet"),
        ({"model": "unet-4-22"}, "multiples of 16, its total stride"),
        ({"model": Halved()}, r"the network returns \(2, 1, 4, 4\) for .*\(2, 1, 8, 8\), not their noise"),
    ],
}
OWN_DISTILLING: dict[str, list[tuple[dict[str, Any], str]]] = {
    "classifier": [
        ({"teacher": net(channels=3)}, "the teacher does not take images of 1×16×16: "),
        ({"teacher": net(classes=5), "methods": "kd"}, "kd needs equal shapes"),
        ({"teacher": nn.Sequential(nn.Flatten(), nn.LazyLinear(10))}, "1.weight of the teacher is lazy"),
        (
            {"teacher": Run(Path("x"), {"task": "diffuse"}, "complete")},
            "teacher x is a denoiser; a class",
        ),
    ],
    "denoiser": [
        ({"methods": "kd"}, "kd compares class probabilities; a denoiser's prediction is compared by mse"),
        ({"methods": ["red", "dkd"]}, "dkd compares class probabilities"),
        ({"teacher": Halved()}, r"the teacher returns \(2, 1, 4, 4\) for .*\(2, 1, 8, 8\), not their noise"),
        (
            {"teacher": Run(Path("x"), {"task": "classify"}, "complete")},
            "teacher x is a classifier; a den",
        ),
    ],
}
BAD_CALLS = [
    pytest.param(task, door, change, message, id=f"{task}-{door}-{number}")
    for task in TASKS
    for door in (0, 1)
    for number, (change, message) in enumerate(
        ANY_CALL + OWN[task] + (DISTILLING + OWN_DISTILLING[task] if door else [])
    )
]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redistill_lib.train.diffuse.check_prediction", lambda *_, **__: 0.0)
        return {task: load_model(train(task, tmp_path_factory.mktemp(task))) for task in TASKS}


@pytest.mark.parametrize(("task", "door", "change", "message"), BAD_CALLS)
def test_calls_that_cannot_be_meant(
    teachers: dict[str, Any], task: str, door: int, change: dict[str, Any], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("redistill_lib.train.diffuse.check_prediction", lambda *_, **__: 0.0)  # takes a while
    change = dict(change)
    networks = [change.pop("model", PLANS[task][door]), *([change.pop("teacher", teachers[task])] if door else [])]
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message) as caught:
        call(task, door, tmp_path / "store", *networks, **change)
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


@both
@pytest.mark.parametrize("door", [0, 1])
def test_empty_splits(task: str, door: int, tmp_path: Path) -> None:
    for split in ("train", "validation") + (("test",) if task == "classifier" else ()):
        data = digits(task)
        size = data.image_size
        nothing: Any = {split: TensorImages(torch.zeros(0, 1, size, size).byte(), torch.zeros(0).long())}
        with pytest.raises(ValueError, match=f"the {split} split of digits is empty"):
            networks = [PLANS[task][door], "nowhere"][: door + 1]
            call(task, door, tmp_path / "store", *networks, data=replace(data, **nothing))
    assert not (tmp_path / "store").exists()


def test_all_doors_take_at_most_ten_arguments() -> None:
    import inspect

    for doors in DOORS.values():
        assert all(len(inspect.signature(door).parameters) <= 10 for door in doors)


@pytest.mark.parametrize(("other", "told"), [({"image_size": 32}, "image_size"), ({"seed": 1, "limit": 30}, "seed")])
@both
def test_teachers_of_other_images_are_warned_of(
    task: str, other: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = train(task, tmp_path)
    monkeypatch.setattr("redistill_lib.train.setup.fit", lambda *_: None)
    with pytest.warns(UserWarning, match=f"{teacher.id} was trained on other images .*: {told} differ") as caught:
        call(task, 1, tmp_path, PLANS[task][1], teacher.path, data=digits(task, **other))
    assert caught[0].filename.endswith("trainings.py")  # the caller's line
    call(task, 1, tmp_path, PLANS[task][1], teacher.path, data=digits(task, limit=30))  # fewer of the same: silence
