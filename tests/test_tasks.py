"""Classifying and denoising: what a step learns, what a run measures, and what is special to each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import COUNT, UNET, digits, distill, equal, recipe_of, train, weights
from trainings import quick_looks as quick_looks

from redistill_lib.data import TensorImages
from redistill_lib.data.augment import sample_rng
from redistill_lib.diffusion import DiffusionProcess, denoising_loss, sample
from redistill_lib.diffusion.ema import decay_at
from redistill_lib.distill import Objective, Tap
from redistill_lib.memory import profile_memory
from redistill_lib.methods import KD, MSE, RED, Batch
from redistill_lib.models.saved import load_model
from redistill_lib.red import BlockedLayer
from redistill_lib.runs import Run
from redistill_lib.student import derive_student
from redistill_lib.train import evaluate, setup
from redistill_lib.train.tasks import Classification, Denoising


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("classifier", tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("denoiser", tmp_path_factory.mktemp("denoiser"))


def validation_loss(model: nn.Module, process: DiffusionProcess | None = None) -> float:
    return denoising_loss(model, digits("denoiser").validation, count=COUNT, process=process)


# ----------------------------------------------------------------------------------------------------- classification


def test_classification_by_hand() -> None:
    task = Classification(label_smoothing=0.1)
    logits, labels = torch.randn(4, 10, generator=torch.manual_seed(0)), torch.tensor([1, 2, 3, 4])
    smooth = F.one_hot(labels, 10) * 0.9 + 0.01
    assert task.loss({"logits": logits}, labels).item() == pytest.approx(
        -(smooth * logits.log_softmax(1)).sum(1).mean()
    )
    mixed = torch.zeros(2, 10).index_put(
        (torch.tensor([0, 0, 1]), torch.tensor([3, 4, 5])), torch.tensor([0.3, 0.7, 1.0])
    )
    batch = task.batch(torch.zeros(2, 1, 8, 8), mixed, torch.arange(2), torch.zeros(2).long())
    guesses = F.one_hot(torch.tensor([4, 4]), 10).float()
    assert task.measures(guesses, batch)["accuracy"] == 0.5  # the larger share counts
    assert task.better({"validation_accuracy": 0.5}, {}) and not task.better(*[{"validation_accuracy": 0.5}] * 2)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_metrics_of_a_classifier_are_those_of_its_weights(ema_decay: float | None, tmp_path: Path) -> None:
    run, data = train("classifier", tmp_path, recipe=recipe_of("classifier", ema_decay=ema_decay)), digits()
    best, last, history = load_model(run), load_model(run, weights="last"), run.history()
    with pytest.raises(
        ValueError, match=r"is of the built-in resnet18-.*: load_model\(run\) builds it, leave out yours"
    ):
        load_model(run, nn.Linear(2, 2))
    assert not best.training and run.metrics["best_epoch"] == history.epoch[history.validation_accuracy.idxmax()]
    assert run.metrics["validation_accuracy"] == history.validation_accuracy.max()
    for model, suffix in ((best, ""), (last, "_last")):
        assert run.metrics[f"test_accuracy{suffix}"] == pytest.approx(evaluate(model, data.test)["accuracy"])
    found = evaluate(best, data.validation)
    assert found["accuracy"] == pytest.approx(run.metrics["validation_accuracy"])
    column = "validation_loss" if ema_decay is None else "validation_loss_raw"
    assert evaluate(last, data.validation)["loss"] == pytest.approx(history[column].iloc[-1], rel=1e-5)
    assert run.metrics["parameters"] == sum(p.numel() for p in best.parameters())
    profile = profile_memory(best, torch.zeros(1, 1, 16, 16))
    assert run.metrics["peak_bytes"] == profile.peak_bytes < run.metrics["peak_bytes_eager"]
    assert run.metrics["peak_at"] == profile.peak_op.name


def test_the_test_split_is_read_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = digits(), []
    original = TensorImages.__getitems__

    def spy(split: Any, rows: list[int]) -> Any:
        read.extend(name for name in ("train", "validation", "test") if split is getattr(data, name))
        return original(split, rows)

    monkeypatch.setattr(TensorImages, "__getitems__", spy)
    train("classifier", tmp_path, data=data)
    assert list(dict.fromkeys(read)) == ["train", "validation", "test"]
    assert read.index("test") == len(read) - read.count("test")  # after all the others, for the last and the best
    data = digits("denoiser")
    read.clear()
    train("denoiser", tmp_path, data=data)
    assert set(read) == {"train", "validation"}


def test_a_classifier_may_answer_with_a_dict(tmp_path: Path) -> None:
    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(256, 10)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(x.flatten(1))}

    run = train("classifier", tmp_path, Answer())
    with pytest.raises(ValueError, match="network of your own"):
        load_model(run)
    assert evaluate(load_model(run, Answer()), digits().test)["accuracy"] == pytest.approx(
        run.metrics["test_accuracy"]
    )


@pytest.mark.parametrize("methods", ["kd", "red", "red+kd", "red-blocks", "fitnet+dkd", "crd(dim=4)"])
def test_distilled_classifiers_load_again(classifier: Run, tmp_path: Path, methods: str) -> None:
    run = distill("classifier", tmp_path, classifier, methods=methods, recipe=recipe_of("classifier", epochs=1))
    model = load_model(run)
    assert any(isinstance(m, BlockedLayer) for m in model.modules()) == ("red" in methods)
    assert evaluate(model, digits().test)["accuracy"] == pytest.approx(run.metrics["test_accuracy"])
    names = sorted(name.partition("(")[0] for name in methods.split("+"))
    assert run.params["methods"] == "+".join(names) and run.environment["teacher_runs"] == [classifier.id]
    losses = {column.removeprefix("train_").partition("/")[0] for column in run.history()}
    assert losses & {"red", "kd", "dkd", "fitnet", "crd"} == set(names) - {"red-blocks"}
    assert not any("criteria" in key for key in weights(run))


def test_taps_from_a_file_and_by_hand(classifier: Run, tmp_path: Path) -> None:
    (tmp_path / "taps.yaml").write_text(
        "net.conv1: {t_layers: [null, tid_0=layer2.0], modules: [null, RED], kwargs: [null, {cs: 8, alpha: 5.0}]}\n"
    )
    recipe = recipe_of("classifier", epochs=1)
    tap = Tap("conv1", "output", "layer2.0", "output")
    given: list[dict[str, Any]] = [
        {"taps": tmp_path / "taps.yaml", "methods": None},
        {"taps": [replace(tap, method=RED(alpha=5.0))], "methods": None},
        {"taps": [tap], "methods": [RED(alpha=5.0)]},
    ]
    runs = [distill("classifier", tmp_path, classifier, recipe=recipe, **lesson) for lesson in given]
    assert len({run.id for run in runs}) == 1
    assert runs[0].blocks == [{"layer": "conv1", "side": "output", "channels": 8, "kernel_size": 3}]


def test_a_method_is_its_code(classifier: Run, tmp_path: Path) -> None:
    class Twice(KD):
        def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
            return 2 * super().loss(student, teacher, batch)

    recipe = recipe_of("classifier", epochs=1)
    one, two = (distill("classifier", tmp_path, classifier, methods=[m], recipe=recipe) for m in (KD(), Twice()))
    assert one.params["terms"] == two.params["terms"] and one.id != two.id and not equal(one, two)


def test_methods_of_one_name_count_at_each_tap(classifier: Run, tmp_path: Path) -> None:
    class Halved(MSE):
        def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
            return super().loss(student, teacher, batch) / 2

    student, recipe, ids = load_model(classifier), recipe_of("classifier", epochs=1), set()
    for pair in ((MSE(), MSE()), (MSE(), Halved()), (Halved(), MSE()), (Halved(), Halved())):
        taps = [Tap(at, "output", at, "output", method=m) for at, m in zip(("conv1", "layer1"), pair, strict=True)]
        run = distill("classifier", tmp_path, classifier, student, methods=None, taps=taps, recipe=recipe)
        ids.add(run.id)
    assert len(ids) == 4


# --------------------------------------------------------------------------------------------------------- denoising

PROCESSES = [
    DiffusionProcess(),
    DiffusionProcess("cosine", "v_prediction", num_train_timesteps=50),
    DiffusionProcess("scaled_linear", "sample", num_train_timesteps=200),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: process.prediction_type)
def test_denoising_by_hand(process: DiffusionProcess) -> None:
    """An image's noise and time step follow from its name, in whatever batch and order it comes."""
    task = Denoising(process, (1, 4, 4))
    images = torch.randn(3, 1, 4, 4, generator=torch.manual_seed(0))
    index, view = torch.tensor([5, 0, 7]), torch.tensor([0, 2, 0])
    batch = task.batch(images, torch.zeros(3).long(), index, view)
    noisy, t = batch.inputs
    draws = sample_rng(0, 2, stream=1)
    assert t[1] == draws.integers(process.num_train_timesteps) and t.max() < process.num_train_timesteps
    draws.random()  # whether its label is hidden
    noise = torch.from_numpy(draws.standard_normal((1, 4, 4), dtype=np.float32))
    a, s = (float(w) ** 0.5 for w in (process.alphas_cumprod[t[1]], 1 - process.alphas_cumprod[t[1]]))
    torch.testing.assert_close(noisy[1], a * images[1] + s * noise)
    wanted = {"epsilon": noise, "sample": images[1], "v_prediction": a * noise - s * images[1]}
    torch.testing.assert_close(batch.targets[1], wanted[process.prediction_type])
    alone = task.batch(images[1:2], torch.zeros(1).long(), index[1:2], view[1:2])
    assert torch.equal(alone.inputs[0][0], noisy[1]) and torch.equal(alone.targets[0], batch.targets[1])
    assert task.loss(batch.targets + 2, batch.targets).item() == pytest.approx(4)


def test_labels_are_hidden_at_the_given_rate() -> None:
    names = torch.arange(2000), torch.zeros(2000).long()
    images, labels = torch.zeros(2000, 1, 1, 1), torch.full((2000,), 3)
    for rate in (0.0, 0.3):
        task = Denoising(DiffusionProcess(), (1, 1, 1), 10, 10, rate)
        seen = task.batch(images, labels, *names).inputs[2]
        assert set(seen.tolist()) <= {3, 10} and (seen == 10).float().mean().item() == pytest.approx(rate, abs=0.03)
    never = Denoising(DiffusionProcess(), (1, 1, 1), 10, None, 0.5)  # there is no label that means none
    assert torch.equal(never.batch(images, labels, *names).inputs[2], labels)


def test_metrics_of_a_denoiser_are_those_of_its_weights(denoiser: Run) -> None:
    model, last, metrics = load_model(denoiser), load_model(denoiser, weights="last"), denoiser.metrics
    assert validation_loss(model) == pytest.approx(metrics["validation_loss"])
    assert validation_loss(last) == pytest.approx(metrics["validation_loss_raw"]) != metrics["validation_loss"]
    history = denoiser.history()
    assert metrics["validation_loss"] == history.validation_loss.iloc[-1]
    assert metrics["validation_loss_raw"] == history.validation_loss_raw.iloc[-1]
    profile = profile_memory(model, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert metrics["peak_bytes"] == profile.peak_bytes < metrics["peak_bytes_eager"]
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_average_by_hand(denoiser: Run, tmp_path: Path) -> None:
    """Of the weights after each step, the statistics of the blocks' batch norm among them."""
    rhythm = {"schedule": "constant", "warmup": 0, "ema_decay": 0.25}
    runs = [
        distill("denoiser", tmp_path, denoiser, methods="red+mse", recipe=recipe_of("denoiser", steps=k, **rhythm))
        for k in (1, 2, 3)
    ]
    name = "head.after.logit.1.running_var"
    average = torch.ones(8)
    for step, run in enumerate(runs, 1):
        decay = decay_at(step, 0.25)
        average = decay * average + (1 - decay) * weights(run, "last")[name]
        torch.testing.assert_close(weights(run)[name], average)
    assert torch.equal(weights(runs[2])["head.after.logit.1.num_batches_tracked"], torch.tensor(3))


def test_no_decay_is_the_network_itself(denoiser: Run, tmp_path: Path) -> None:
    for decay in (0.0, None):
        run = distill("denoiser", tmp_path, denoiser, recipe=recipe_of("denoiser", ema_decay=decay, steps=1))
        assert all(torch.equal(value, weights(run, "last")[key]) for key, value in weights(run).items())


@pytest.mark.parametrize("process", PROCESSES[1:], ids=lambda process: process.prediction_type)
def test_other_processes_all_the_way(process: DiffusionProcess, tmp_path: Path) -> None:
    """Train, distil, load and draw, by what the run's record says."""
    recipe = recipe_of("denoiser", process=process, steps=2)
    unet = {**UNET, "T": process.num_train_timesteps}
    teacher = train("denoiser", tmp_path, recipe=recipe, unet=unet)
    assert teacher.params["recipe"]["process"]["prediction_type"] == process.prediction_type
    student = distill("denoiser", tmp_path, teacher, recipe=recipe, unet=unet, methods="red+mse")
    for run in (teacher, student):
        model = load_model(run)
        assert validation_loss(model, process) == pytest.approx(run.metrics["validation_loss"])
        images = sample(run, 2, 8, steps=3, progress=False)
        assert torch.equal(images, sample(model, 2, 8, steps=3, process=process, progress=False))
    other = replace(process, prediction_type="epsilon")
    with pytest.raises(ValueError, match=f"prediction_type is '{process.prediction_type}' there and 'epsilon' here"):
        distill("denoiser", tmp_path, teacher, recipe=recipe_of("denoiser", process=other), unet=unet)


def test_a_teacher_that_predicts_something_else_is_warned_of(tmp_path: Path) -> None:
    """A network tells nothing of its process, so it is tried: this one answers a thousand times too much."""

    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            nn.init.constant_(self.conv.weight, 1000.0)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x)

    with pytest.warns(UserWarning, match=r"the teacher's denoising loss is .*, where predicting no noise"):
        distill("denoiser", tmp_path, Loud(), methods="mse", recipe=recipe_of("denoiser", steps=1))


def test_blocks_of_distilled_denoisers(denoiser: Run, tmp_path: Path) -> None:
    run = distill("denoiser", tmp_path, denoiser, methods="red+mse")
    places = [f"{block['layer']}.{block['side']}" for block in run.blocks]
    around = [f"{layer}.{side}" for layer in ("downblocks.1", "upblocks.5") for side in ("input", "output")]
    assert places == ["head.output", *around, "tail.input"]
    assert {"train_red/head.output", "train_mse", "train_distill"} < set(run.history())
    assert validation_loss(load_model(run)) == pytest.approx(run.metrics["validation_loss"])


def test_the_two_published_ways_of_weighing(denoiser: Run, tmp_path: Path) -> None:
    """The published pair of taps, read off the history."""
    ends = [("head", "output", "downblocks.1", "output"), ("tail", "input", "upblocks.5", "input")]
    taps = [Tap(*end, method=RED(alpha=1.0, distance="mse")) for end in ends]  # type: ignore[arg-type]
    for weight in (None, 0.25):
        objective = Objective(distill_weight=weight)
        recipe = recipe_of("denoiser", steps=1)
        run = distill("denoiser", tmp_path, denoiser, taps=taps, methods=None, objective=objective, recipe=recipe)
        row = run.history().iloc[0]
        shares = (1, 1) if weight is None else (1 - weight, weight)
        total = shares[0] * row.train_task + shares[1] * row.train_distill
        assert len(run.blocks) == 2 and row.train_total == pytest.approx(total, rel=1e-5)
        both = row["train_red/head.output"] + row["train_red/tail.input"]
        assert row.train_distill == pytest.approx(both / 2, rel=1e-5)


ENDS: Any = ("head", "output", "downblocks.1", "output")


@pytest.mark.parametrize(
    ("alpha", "methods", "taps"),
    [
        (1, "red", None),
        (1, "red + mse", None),
        (1, ["red", "mse"], None),
        (1, ["red", MSE()], [Tap(*ENDS)]),
        (3, "red(alpha=3)+mse", None),
        (7, "mse", [Tap(*ENDS, method=RED(alpha=7))]),
        (50, [RED()], None),
        (0, "red-blocks", None),
    ],
)
def test_a_red_that_is_only_named_weighs_one(
    denoiser: Run, tmp_path: Path, alpha: float, methods: Any, taps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "fit", lambda distillation, *_: distillation.terms)
    terms: Any = distill("denoiser", tmp_path, denoiser, methods=methods, taps=taps)
    assert {term.method.alpha for term in terms if isinstance(term.method, RED)} == {alpha}


def test_denoisers_have_no_class_probabilities(denoiser: Run, tmp_path: Path) -> None:
    (tmp_path / "taps.yaml").write_text(
        "tail: {t_layers: [null, tid_0=tail], modules: [null, KD], kwargs: [null, null]}\n"
    )
    tap = Tap("tail", "output", "tail", "output", method=KD())
    for given in ({"taps": tmp_path / "taps.yaml"}, {"taps": [tap]}):
        with pytest.raises(
            ValueError, match="kd compares class probabilities; a denoiser's prediction is compared by"
        ):
            distill("denoiser", tmp_path, denoiser, methods=None, **given)


def test_classes(tmp_path: Path) -> None:
    unet = {**UNET, "num_classes": 10}
    run = train("denoiser", tmp_path, unet=unet, recipe=recipe_of("denoiser", label_dropout=0.5))
    model = load_model(run)
    assert validation_loss(model) == pytest.approx(run.metrics["validation_loss"])
    one, two = (sample(model, 2, 8, labels=label, steps=2, progress=False) for label in (0, 1))
    assert not torch.equal(one, two)
    student = distill("denoiser", tmp_path, run, unet=unet)
    assert student.params["model"]["num_classes"] == 10 and student.complete
    with pytest.raises(ValueError, match="the student learns no classes and the teacher 10 classes and none; give"):
        distill("denoiser", tmp_path, run)


def unet2d(**kwargs: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(8, 1, 1, layers_per_block=1, norm_num_groups=4, block_out_channels=(8, 16), **blocks | kwargs)


@pytest.mark.parametrize("labels", [None, 10, 11])
def test_networks_of_diffusers(labels: int | None, tmp_path: Path) -> None:
    """Without classes, with as many labels as classes, and with one more that means none."""
    net = unet2d(num_class_embeds=labels)
    run = train("denoiser", tmp_path, net, recipe=recipe_of("denoiser", steps=1))
    assert run.complete and validation_loss(load_model(run, net)) == pytest.approx(run.metrics["validation_loss"])


def test_students_of_diffusers_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill_lib.train.diffuse.check_prediction", lambda *_, **__: 0.0)  # it is not trained
    teacher = unet2d().eval()
    example = torch.zeros(2, 1, 8, 8), torch.tensor([3, 700])
    student, changes = derive_student(teacher, 2, example=example)
    recipe = recipe_of("denoiser", steps=1)
    run = distill("denoiser", tmp_path, teacher, student, recipe=recipe, methods="red+mse")
    model = load_model(run, student)
    assert changes and run.blocks and validation_loss(model) == pytest.approx(run.metrics["validation_loss"])
    centred = unet2d(center_input_sample=True)
    plain = train("denoiser", tmp_path, unet2d(), recipe=recipe)
    assert train("denoiser", tmp_path, centred, recipe=recipe).id != plain.id
    for wrong in (centred, student):
        with pytest.raises(ValueError, match="is not built as the UNet2DModel of run"):
            load_model(plain, wrong)
    with pytest.raises(ValueError, match="Unknown architecture 'net'"):
        load_model(plain, "net")
    with pytest.raises(ValueError, match=r"trained UNet2DModel, not unet"):
        load_model(plain, "unet")
