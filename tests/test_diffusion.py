"""Denoisers: the task, the averaged weights, runs that repeat and resume, distillation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, TensorImages, load_data
from redistill_lib.diffusion import make_schedule, sample, to_uint8
from redistill_lib.diffusion.ema import average_of, decay_at
from redistill_lib.diffusion.noise import Denoising, denoising_loss, noise_of
from redistill_lib.diffusion.pretrained import load_pretrained, save_pretrained
from redistill_lib.distill import Tap
from redistill_lib.memory import profile_memory
from redistill_lib.methods import KD, RED
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model, read_tensors
from redistill_lib.red import RedBlock, insert_blocks, inserted_blocks, make_in_place
from redistill_lib.runs import Run, load_runs, write_history
from redistill_lib.student import derive_student
from redistill_lib.train import DDPM_CIFAR10, DiffusionRecipe, Recipe, distill_diffusion, train_diffusion
from redistill_lib.train import diffuse as training_module
from redistill_lib.train import diffusion_loop as loop_module
from redistill_lib.train.diffusion_loop import DiffusionLoop

TINY: dict[str, Any] = {"ch": 8, "mult": (1, 2, 2), "attention": (2,), "res_blocks": 1, "dropout": 0.1}
COUNT = 24  # images that a validation loss is read from here
RECIPE = DiffusionRecipe(steps=3, batch_size=16, warmup=1, log_every=1, samples=4)


def validation_loss(model: nn.Module) -> float:
    return denoising_loss(model, digits().validation, count=COUNT)


@pytest.fixture(autouse=True, scope="module")
def quick_looks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "denoising_loss", partial(denoising_loss, count=COUNT))
        patch.setattr(loop_module, "sample", partial(sample, steps=2))
        yield


def digits(**kwargs: Any) -> DataSplits:
    return load_data("digits", **{"image_size": 8, "limit": 40, "cache_dir": None} | kwargs)


def train(root: Path, model: str | nn.Module = "unet-1-22", recipe: DiffusionRecipe = RECIPE, **kwargs: Any) -> Run:
    kwargs = {"data": digits(), "unet": TINY, "runs_dir": root, "cpu": True, "progress": False} | kwargs
    return train_diffusion(model, recipe=recipe, **kwargs)


def distill(root: Path, teacher: Any, student: str | nn.Module = "unet-2-21", **kwargs: Any) -> Run:
    common: dict[str, Any] = {"data": digits(), "unet": TINY, "runs_dir": root, "cpu": True, "progress": False}
    return distill_diffusion(student, teacher, **common | {"recipe": RECIPE} | kwargs)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tmp_path_factory.mktemp("teacher"))


def weights(run: Run) -> dict[str, Tensor]:
    return read_tensors(run.path / "model.safetensors")[0]


def equal(a: Run, b: Run) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --------------------------------------------------------------------------------------------------------- the task


class Constant(nn.Module):
    """Predicts the same value everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x) + self.value


def test_loss_by_hand() -> None:
    noise = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
    _, losses = Denoising(Constant(2.0))(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), targets=noise)
    assert losses["task"].item() == losses["total"].item() == (1 + 0 + 1 + 16) / 4


def test_noise_schedule_is_the_formula() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    x, noise, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.tensor([0, 500, 999])
    expected = kept[t].sqrt().view(-1, 1, 1, 1) * x + (1 - kept[t]).sqrt().view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(make_schedule().add_noise(x, noise, t), expected.float(), rtol=1e-4, atol=1e-5)


def test_validation_loss_has_its_own_noise() -> None:
    """Predicting nothing costs E[ε²] = 1, whatever the random state; a second reading gives the same bits."""
    split = digits().validation
    first = denoising_loss(Constant(0.0), split)
    torch.manual_seed(7)
    assert denoising_loss(Constant(0.0), split, batch_size=100) == pytest.approx(first) == pytest.approx(1, abs=0.02)
    assert denoising_loss(Constant(2.0), split) == pytest.approx(5, abs=0.1)  # E[(ε − 2)²]


def test_bytes() -> None:
    images = digits().train.head(3)[0]
    assert torch.equal(to_uint8(images / 127.5 - 1), images)


# ------------------------------------------------------------------------------------------------- averaged weights


def test_average_by_hand() -> None:
    network = nn.BatchNorm1d(1)
    average = average_of(network, decay=0.25)
    weight, mean = 1.0, 0.0  # batch norm's own start
    for step, (w, m, count) in enumerate([(3.0, 8.0, 5), (5.0, -4.0, 9), (0.0, 2.0, 11)], 1):
        with torch.no_grad():
            network.weight.fill_(w)
            network.running_mean.fill_(m)
            network.num_batches_tracked.fill_(count)
        average.update_parameters(network)
        decay = min(0.25, (1 + step) / (10 + step))
        weight, mean = decay * weight + (1 - decay) * w, decay * mean + (1 - decay) * m
        assert average.module.weight.item() == pytest.approx(weight)
        assert average.module.running_mean.item() == pytest.approx(mean)
        assert average.module.num_batches_tracked.item() == count
    assert decay_at(1, 0.25) == 2 / 11 and decay_at(3, 0.25) == 0.25  # both branches were taken


def test_average_goes_on_from_its_state() -> None:
    networks = [nn.Linear(2, 2) for _ in range(3)]
    whole = average_of(networks[0], 0.9)
    whole.update_parameters(networks[1])
    resumed = average_of(networks[2], 0.9)
    resumed.load_state_dict(whole.state_dict())
    for average in (whole, resumed):
        average.update_parameters(networks[2])
    assert torch.equal(whole.module.weight, resumed.module.weight)


def test_decay_zero_is_the_network_itself(tmp_path: Path, teacher: Run) -> None:
    metrics = distill(tmp_path, teacher, recipe=replace(RECIPE, ema_decay=0.0)).metrics
    assert metrics["validation_loss"] == metrics["validation_loss_raw"]


# ------------------------------------------------------------------------------------------------------- the record


def test_what_a_run_leaves(teacher: Run) -> None:
    names = [".lock", "history.csv", "model.safetensors", "run.json", "samples.png"]
    assert sorted(p.name for p in teacher.path.iterdir()) == names
    history, metrics = teacher.history(), Run.load(teacher.path).metrics
    assert list(history.step) == [1, 2, 3] and history.learning_rate[0] == RECIPE.learning_rate
    assert {"train_task", "train_total", "validation_loss", "validation_loss_raw", "seconds"} < set(history)
    model = load_model(teacher)
    assert validation_loss(model) == pytest.approx(metrics["validation_loss"])
    assert metrics["validation_loss"] == history.validation_loss.iloc[-1] != metrics["validation_loss_raw"]
    profile = profile_memory(model, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    assert metrics["peak_bytes"] == profile.peak_bytes < metrics["peak_bytes_eager"]
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_same_call_finds_its_run(teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionLoop, "__init__", lambda *_: pytest.fail("trained again"))
    seen: list[int] = []
    again = train(teacher.path.parent, on_log=lambda rows, images: seen.append(len(rows)))
    assert again.metrics == teacher.metrics and seen == [3]


def test_repeats_and_seeds(teacher: Run, tmp_path: Path) -> None:
    again, other = train(tmp_path), train(tmp_path, seed=1)
    assert again.id == teacher.id and equal(again, teacher) and not equal(other, teacher)


def test_the_callers_random_state_is_his_own(teacher: Run, tmp_path: Path) -> None:
    states = []
    for work in (lambda: None, lambda: distill(tmp_path, teacher)):
        torch.manual_seed(5)
        work()
        states.append(torch.rand(1))
    assert states[0] == states[1]


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_run_resumes_to_the_same_bits(teacher: Run, tmp_path: Path, stop_at: int) -> None:
    """Dropout, noise, order, optimizer, averaged weights and the statistics of the blocks' batch norm."""

    def stop(rows: list[dict[str, float]], images: Tensor | None) -> None:
        if len(rows) == stop_at:
            raise KeyboardInterrupt

    whole = distill(tmp_path / "whole", teacher)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after {stop_at} of 3 steps; the same call goes on"):
        distill(tmp_path / "cut", teacher, on_log=stop)
    assert list(load_runs(tmp_path / "cut").status) == ["interrupted"]
    rows: list[int] = []
    resumed = distill(tmp_path / "cut", teacher, on_log=lambda h, _: rows.append(len(h)))
    assert rows == list(range(stop_at + 1, 4)) and equal(resumed, whole)
    assert resumed.history().drop(columns="seconds").equals(whole.history().drop(columns="seconds"))
    assert (resumed.path / "samples.png").read_bytes() == (whole.path / "samples.png").read_bytes()


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_kill_before_the_history_is_written_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    def killed(path: Path, rows: list[dict[str, float]]) -> None:
        if len(rows) == 3 // log_every:
            raise KeyboardInterrupt
        write_history(path, rows)

    recipe = replace(RECIPE, log_every=log_every)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop_module, "write_history", killed)
        train(tmp_path, recipe=recipe)
    assert list(train(tmp_path, recipe=recipe).history().step) == list(range(log_every, 4, log_every))


def test_the_rhythm_of_the_log_changes_no_step(tmp_path: Path) -> None:
    runs = [train(tmp_path, recipe=replace(RECIPE, steps=4, log_every=every)) for every in (1, 3)]
    assert equal(*runs) and list(runs[1].history().step) == [3, 4]


def test_images_on_the_way(tmp_path: Path) -> None:
    seen: list[tuple[int, tuple[int, ...] | None]] = []
    recipe = replace(RECIPE, steps=3, sample_every=2)
    train(tmp_path, recipe=recipe, on_log=lambda h, p: seen.append((len(h), None if p is None else tuple(p.shape))))
    assert seen == [(1, None), (2, (4, 1, 8, 8)), (3, (4, 1, 8, 8))]


def test_divergence_says_why(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e30, clip_norm=None)
    with pytest.raises(FloatingPointError, match=r"loss 'task' is not finite .* learning rate 1e\+30 is too high"):
        train(tmp_path, recipe=recipe)
    assert list(load_runs(tmp_path).status) == ["failed"]


def test_mixed_precision_and_flip(tmp_path: Path) -> None:
    run = train(tmp_path, recipe=replace(RECIPE, steps=1, flip=True), mixed_precision="bf16")
    assert run.complete and run.params["mixed_precision"] == "bf16"


# ----------------------------------------------------------------------------------------------------- distillation


def test_distilled_students(teacher: Run, tmp_path: Path) -> None:
    own = load_model(teacher)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    run = distill(tmp_path, own, methods="red+mse")
    assert not own.training and all(torch.equal(before[k], v) for k, v in own.state_dict().items())
    places = [f"{b['layer']}.{b['side']}" for b in run.blocks]
    assert places == [
        "head.output",
        "downblocks.1.input",
        "downblocks.1.output",
        "upblocks.5.input",
        "upblocks.5.output",
        "tail.input",
    ]
    assert [t["at"] for t in run.params["terms"]][-1] == "mse/tail.output" and run.params["terms"][0]["alpha"] == 1
    assert {"train_red/head.output", "train_mse/tail.output", "train_distill"} < set(run.history())
    assert validation_loss(load_model(run)) == pytest.approx(run.metrics["validation_loss"])
    assert any(name.endswith("num_batches_tracked") for name in weights(run))


def test_two_taps_and_the_plain_sum(teacher: Run, tmp_path: Path) -> None:
    """The published pair of taps, and both published ways of weighing, read off the history."""
    taps = [
        Tap("head", "output", "downblocks.1", "output", alpha=1.0, distance="mse"),
        Tap("tail", "input", "upblocks.5", "input", alpha=1.0, distance="mse"),
    ]
    for weight in (None, 0.25):
        run = distill(tmp_path, teacher, taps=taps, distill_weight=weight)
        assert len(run.blocks) == 2
        row = run.history().iloc[0]
        shares = (1, 1) if weight is None else (1 - weight, weight)
        total = shares[0] * row.train_task + shares[1] * row.train_distill
        assert row.train_total == pytest.approx(total, rel=1e-5)
        both = row["train_red/head.output"] + row["train_red/tail.input"]
        assert row.train_distill == pytest.approx(both / 2, rel=1e-5)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls return the module and the parameters they would train with."""
    monkeypatch.setattr(training_module, "_fit", lambda trainee, params, *_: (trainee, params))


ENDS = ("head", "output", "downblocks.1", "output")
RED_TAP, MSE_TAP = Tap(*ENDS, method="red"), Tap("tail", "output", "tail", "output", method="mse")


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(
    ("alpha", "methods", "taps", "options"),
    [
        (1, None, None, None),
        (1, "red + mse", None, None),
        (1, ["red", "mse"], None, None),
        (1, "red", None, {"red": {"alpha": None}}),
        (1, None, [Tap(*ENDS)], None),
        (1, None, [RED_TAP], None),
        (1, "mse", [RED_TAP, MSE_TAP], None),
        (3, None, None, {"red": {"alpha": 3}}),
        (3, "red + mse", [RED_TAP, MSE_TAP], {"red": {"alpha": 3}}),
        (7, "mse", [replace(RED_TAP, alpha=7), MSE_TAP], None),
        (50, [RED()], None, None),
        (50, [RED()], [RED_TAP], None),
        (0, "red-blocks", [RED_TAP], None),
    ],
)
def test_alpha_is_1_unless_it_is_given(
    teacher: Run, tmp_path: Path, alpha: float, methods: Any, taps: Any, options: Any
) -> None:
    _, params = distill(tmp_path, teacher, methods=methods, taps=taps, options=options)  # type: ignore[misc]
    assert {term["alpha"] for term in params["terms"] if "distance" in term} == {alpha}


@pytest.mark.parametrize(
    ("methods", "taps"), [("kd", None), ("red + kd", None), ([KD()], None), (None, [replace(MSE_TAP, method="kd")])]
)
def test_denoisers_have_no_class_probabilities(teacher: Run, tmp_path: Path, methods: Any, taps: Any) -> None:
    with pytest.raises(ValueError, match="kd compares class probabilities; a denoiser's prediction is compared by"):
        distill(tmp_path, teacher, methods=methods, taps=taps)


@pytest.mark.usefixtures("planned")
def test_teachers_of_half_precision_are_copied_to_float32(teacher: Run, tmp_path: Path) -> None:
    half = load_model(teacher).half()
    trainee, _ = distill(tmp_path, half)  # type: ignore[misc]
    assert trainee.teachers[0].head.weight.dtype == torch.float32 and half.head.weight.dtype == torch.float16


@pytest.mark.usefixtures("planned")
@pytest.mark.parametrize(("other", "told"), [({"image_size": 16}, "image_size"), ({"seed": 1, "limit": 30}, "seed")])
def test_teachers_of_other_images_are_warned_of(
    teacher: Run, tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    with pytest.warns(UserWarning, match=f"{teacher.id} was trained on other images .*: {told} differ"):
        distill(tmp_path, teacher.path, data=digits(**other))
    distill(tmp_path, teacher.path, data=digits(limit=30))  # fewer of the same: no warning, which would be an error


def test_taps_from_a_file(teacher: Run, tmp_path: Path) -> None:
    (tmp_path / "taps.yaml").write_text(
        "head: {t_layers: [null, tid_0=downblocks.1], modules: [null, RED], kwargs: [null, {distance: mse}]}\n"
        "tail: {t_layers: [null, tid_0=tail], modules: [null, MSE], kwargs: [null, null]}\n"
    )
    run = distill(tmp_path, teacher, taps=tmp_path / "taps.yaml", methods=None)
    assert [t["at"] for t in run.params["terms"]] == ["red/head.output", "mse/tail.output"]


def tiny_unet2d(widths: tuple[int, ...] = (8, 8, 16), **kwargs: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    common = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    depth = len(widths)
    blocks = {"down_block_types": ("DownBlock2D",) * depth, "up_block_types": ("UpBlock2D",) * depth}
    return UNet2DModel(**{**common, **blocks, **kwargs}, block_out_channels=widths)


def test_students_of_diffusers_networks_keep_its_format(tmp_path: Path) -> None:
    """With what google/ddpm-cifar10-32 has: attention, and borders padded in the downsampler's own forward."""
    from diffusers import DDPMPipeline, UNet2DModel

    recipe = replace(RECIPE, steps=1)
    attention = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
    }
    teacher = tiny_unet2d(**attention).eval()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    student, changes = derive_student(teacher, 2, example=(x, t))
    assert changes and "derived" not in teacher.config
    run = distill(tmp_path, teacher, student, recipe=recipe, methods="red+mse")
    assert len(run.blocks) > 2 and run.params["terms"][-1]["at"] == "mse/conv_out.output"
    model = load_model(run, student)
    assert not inserted_blocks(student) and len(inserted_blocks(model)) == len(run.blocks)
    save_pretrained(model, tmp_path / "student")
    assert "red_blocks" not in model.config
    with pytest.raises(OSError, match="no file named"):  # never the teacher's layers with the student's weights
        UNet2DModel.from_pretrained(tmp_path / "student")
    again = load_pretrained(tmp_path / "student")
    torch.testing.assert_close(noise_of(again(x, t)), noise_of(model(x, t)))
    save_pretrained(again, tmp_path / "twice")
    twice = load_pretrained(tmp_path / "twice")
    torch.testing.assert_close(noise_of(twice(x, t)), noise_of(model(x, t)))
    pipeline = DDPMPipeline(again, make_schedule())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.manual_seed(0), num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_a_network_of_ones_own_is_not_mistaken_for_another(tmp_path: Path) -> None:
    """Equal weights, other strides or options: neither found as the same run nor loaded into."""
    recipe = replace(RECIPE, steps=1)
    net, centred = tiny_unet2d(), tiny_unet2d(center_input_sample=True)
    centred.load_state_dict(net.state_dict())
    run = train(tmp_path, net, recipe)
    assert train(tmp_path, centred, recipe).id != run.id
    example = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    other = derive_student(net, plan="1-12", example=example)[0]
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    for wrong in (centred, other):
        with pytest.raises(ValueError, match="is not built as the UNet2DModel of run"):
            load_model(run, wrong)
    with pytest.raises(TypeError, match="that network, not 'net'"):
        load_model(run, "net")  # type: ignore[arg-type]


def test_other_networks_of_diffusers_keep_its_format(tmp_path: Path) -> None:
    model, x, t = tiny_unet2d(num_class_embeds=4).eval(), torch.randn(1, 1, 8, 8), torch.tensor([3])
    save_pretrained(model, tmp_path / "teacher")
    for again in (load_pretrained(tmp_path / "teacher"), type(model).from_pretrained(tmp_path / "teacher")):
        torch.testing.assert_close(noise_of(again(x, t, t)), noise_of(model(x, t, t)))
    student, _ = derive_student(model, 2, example=(x, t, t), downsampler="avg")
    save_pretrained(student, tmp_path / "student")
    again = load_pretrained(tmp_path / "student")
    torch.testing.assert_close(noise_of(again(x, t, t)), noise_of(student(x, t, t)))
    with pytest.raises(TypeError, match="not a network of diffusers"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    insert_blocks(student, [("conv_in", "output", RedBlock(8).eval())])
    assert make_in_place(student, x, t, t) == {}
    with pytest.raises(ValueError, match="save the network first"):
        save_pretrained(student, tmp_path / "in_place")


# ---------------------------------------------------------------------------------------------------------- classes


def test_classes(tmp_path: Path) -> None:
    run = train(tmp_path, unet={**TINY, "num_classes": 10}, recipe=replace(RECIPE, label_dropout=0.5))
    model = load_model(run)
    assert validation_loss(model) == pytest.approx(run.metrics["validation_loss"])
    one, two = (sample(model, 2, 8, labels=label, steps=2, progress=False) for label in (0, 1))
    assert not torch.equal(one, two)
    student = distill(tmp_path, run, unet={**TINY, "num_classes": 10})
    assert student.params["model"]["num_classes"] == 10 and student.complete


def test_labels_are_dropped_at_the_given_rate(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Spy(Constant):
        num_classes = 10

        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
            assert labels is not None
            if self.training:
                seen.append(labels)
            return super().forward(x, t)

    Spy.forward.__qualname__ = "Spy.forward"
    for rate, dropped in ((0.0, 0.0), (0.5, 0.5)):
        seen.clear()
        train(
            tmp_path, Spy(0.0), replace(RECIPE, steps=20, log_every=20, batch_size=32, label_dropout=rate, samples=1)
        )
        assert (torch.cat(seen) == 10).float().mean().item() == pytest.approx(dropped, abs=0.08)


def test_a_diffusers_network_with_classes(tmp_path: Path) -> None:
    run = train(tmp_path, tiny_unet2d(num_class_embeds=11), replace(RECIPE, steps=1))
    assert run.complete


def test_without_classes_the_official_names_stay() -> None:
    plain, conditional = (create_model("unet-1-2", ch=8, mult=(1, 2), num_classes=n).state_dict() for n in (None, 5))
    assert set(conditional) - set(plain) == {"label_embedding.weight"}
    assert conditional["label_embedding.weight"].shape == (6, 32)


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors(teacher: Run, tmp_path: Path) -> None:
    colour = create_model("unet-1-22", **TINY)
    classes = create_model("unet-1-22", in_channels=1, num_classes=10, **TINY)
    with pytest.raises(ValueError, match="the teacher takes images of 3 channels, but those of digits are 1×8×8"):
        distill(tmp_path, colour)
    with pytest.raises(ValueError, match="the student learns no classes and the teacher 10 classes"):
        distill(tmp_path, classes)
    with pytest.raises(ValueError, match="multiples of 16, its total stride"):
        train(tmp_path, "unet-4-22")
    with pytest.raises(ValueError, match="knows 10 time steps; the schedule has 1000"):
        train(tmp_path, unet={**TINY, "T": 10})
    with pytest.raises(ValueError, match="the network takes 4 classes, but digits has 10"):
        train(tmp_path, unet={**TINY, "num_classes": 4})
    with pytest.raises(ValueError, match="the network does not take images of 1×8×8: "):
        train(tmp_path, tiny_unet2d((8,) * 5))
    with pytest.raises(TypeError, match="the network returns a tuple; a denoiser returns the noise as a tensor"):
        train(tmp_path, type("Pair", (Constant,), {"forward": lambda s, x, t: (x, t)})(0.0))
    with pytest.raises(ValueError, match="starts from float32 weights"):
        train(tmp_path, Constant(0.0).half())
    with pytest.raises(ValueError, match="fp16 needs a GPU; use 'bf16' or 'no'"):
        train(tmp_path, mixed_precision="fp16")
    with pytest.raises(ValueError, match="leave in_channels out of unet; model is the name, data give the channels"):
        train(tmp_path, unet={**TINY, "in_channels": 1})
    assert not any(tmp_path.iterdir())


CALLS = [train_diffusion, partial(distill_diffusion, teacher="nowhere")]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed=-1 is not a whole number of 0 or more"),
        ({"seed": "0"}, "seed='0' is not a whole number of 0 or more"),
        ({"recipe": Recipe()}, "takes a DiffusionRecipe as its recipe, not a Recipe"),
    ],
)
def test_arguments_are_checked_first(call: Any, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call("unet-1-22", data=digits(), runs_dir=tmp_path, **change)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_empty_splits(call: Any, split: str, tmp_path: Path) -> None:
    nothing: Any = {split: TensorImages(torch.zeros(0, 1, 8, 8).byte(), torch.zeros(0).long())}
    with pytest.raises(ValueError, match=f"the {split} split of digits is empty"):
        call("unet-1-22", data=replace(digits(), **nothing), runs_dir=tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ([], r"teacher is a run, its folder or a network, or a list of at least one of these, not \[\]"),
        (None, "at least one of these, not None"),
        ([5], r"at least one of these, not \[5\]"),
        (Run(Path("x"), {"task": "classify"}, "complete"), "teacher x is a classifier; a denoiser learns from a den"),
    ],
)
def test_what_is_no_teacher(teacher: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        distill(tmp_path, teacher)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, f"{name}=0 is not a whole number of 1 or more") for name in ("steps", "batch_size", "samples")),
        *(({name: -1}, f"{name}=-1 is not a whole") for name in ("warmup", "workers", "sample_every")),
        *(({"steps": value}, "steps=.* is not a whole number") for value in (4.0, True, "4")),
        *(({"clip_norm": value}, "clip_norm=.* is not a number above 0") for value in (0, -1.0, "1", float("inf"))),
        *(({"learning_rate": value}, "is not a number above 0") for value in (0.0, float("nan"), "1e-3")),
        ({"label_dropout": "0.1"}, "label_dropout is a share"),
        ({"schedule": "step"}, "unknown schedule 'step' in the recipe; choose constant or cosine"),
        ({"ema_decay": 1.0}, "ema_decay is a share from 0 to below 1"),
        ({"log_every": 50, "sample_every": 120}, r"multiple of log_every \(50\), such as 100, not 120"),
    ],
)
def test_recipe_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionRecipe(**change)


def test_numbers_of_numpy_are_as_good() -> None:
    given = DiffusionRecipe(steps=np.int64(200), learning_rate=np.float64(1e-3))  # type: ignore[arg-type]
    assert json.dumps(asdict(given)) == json.dumps(asdict(DiffusionRecipe(steps=200, learning_rate=1e-3)))


def test_learning_rate() -> None:
    recipe = DiffusionRecipe(steps=100, warmup=10)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[99] < 0.001
    assert DDPM_CIFAR10.learning_rate_at(4999) == DDPM_CIFAR10.learning_rate_at(799_999) == 1
