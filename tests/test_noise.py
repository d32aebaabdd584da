"""The forward process against its formulas, what configurations say of it, and how well a network answers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, TensorImages, load_data
from redistill_lib.diffusion import DiffusionProcess, denoising_loss
from redistill_lib.diffusion.ema import average_of
from redistill_lib.diffusion.noise import (
    Conditioning,
    check_denoiser,
    check_prediction,
    conditioning_of,
)
from redistill_lib.models import create_model
from redistill_lib.red import RedBlock, insert_blocks

PROCESSES = [
    DiffusionProcess(schedule, prediction)
    for schedule in ("linear", "scaled_linear", "cosine")
    for prediction in ("epsilon", "v_prediction", "sample")
]


def digits(**kwargs: Any) -> DataSplits:
    return load_data("digits", **{"image_size": 8, "limit": 40, "cache_dir": None} | kwargs)


def tiny_unet2d(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    common = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return diffusers.UNet2DModel(**{**common, **blocks, **kwargs}, block_out_channels=(8, 8))


# ------------------------------------------------------------------------------------------------------ the process


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_images_noise_and_targets_agree_with_diffusers(process: DiffusionProcess) -> None:
    x, noise = torch.randn(2, 4, 1, 3, 5, generator=torch.manual_seed(1))
    t = torch.tensor([0, 40, 700, 998])
    other: Any = diffusers.DDIMScheduler(
        beta_schedule=process.beta_schedule, beta_start=process.beta_start, beta_end=process.beta_end
    )
    noisy = process.add_noise(x, noise, t)
    torch.testing.assert_close(noisy, other.add_noise(x, noise, t))
    target = process.target(x, noise, t)
    expected = {"epsilon": noise, "sample": x, "v_prediction": other.get_velocity(x, noise, t)}
    torch.testing.assert_close(target, expected[process.prediction_type])
    torch.testing.assert_close(process.start_from(target, noisy, t)[:3], x[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(process.noise_from(target, noisy, t)[1:], noise[1:], atol=1e-4, rtol=1e-4)


def test_the_cosine_is_the_formula() -> None:
    """arXiv 2102.09672, equation 17, with the offset 0.008."""
    share = torch.cos((torch.arange(1, 901, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    first = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    kept = DiffusionProcess("cosine").alphas_cumprod[:900].double()
    torch.testing.assert_close(kept, share / first, rtol=1e-3, atol=1e-6)


def test_a_process_is_json_and_a_scheduler() -> None:
    process = DiffusionProcess("cosine", "v_prediction", num_train_timesteps=200, clip_sample=False)
    assert DiffusionProcess(**json.loads(json.dumps(asdict(process)))) == process
    for sampler in ("ddim", "ddpm", "dpm++"):
        scheduler = process.scheduler(sampler)
        assert scheduler.config.timestep_spacing == "trailing"
        again = DiffusionProcess.from_config(scheduler)
        assert again == replace(process, clip_sample=again.clip_sample)
    assert DiffusionProcess.from_config(process.scheduler("ddim")) == process


def test_the_process_of_a_folder(tmp_path: Path) -> None:
    process = DiffusionProcess("scaled_linear", "v_prediction", 50, 0.001, 0.2)
    process.scheduler("ddim").save_pretrained(tmp_path / "scheduler")
    for folder in (tmp_path, tmp_path / "scheduler"):
        assert DiffusionProcess.from_config(folder) == process
    with pytest.raises(FileNotFoundError, match=r"has no scheduler_config\.json"):
        DiffusionProcess.from_config(tmp_path / "unet")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler has no beta_schedule"),
        (diffusers.DDPMScheduler(trained_betas=[0.1, 0.2]), "DDPMScheduler has trained_betas="),
        (
            {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
            "has rescale_betas_zero_snr=True, which is not",
        ),
        ({"beta_schedule": "linear", "variance_type": "learned_range"}, "that also predict a variance"),
        ({"beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid'"),
        ({"beta_schedule": "linear", "prediction_type": "v-prediction"}, "did you mean 'v_prediction'"),
    ],
)
def test_processes_that_are_not_supported(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess.from_config(config)


@pytest.mark.parametrize(
    ("word", "near"),
    [("cosin", "'cosine'"), ("Cosinus", "'cosine'"), ("lineal", "'linear'"), ("squaredcos", "'squaredcos_")],
)
def test_a_misspelt_schedule_names_the_near_one_and_all(word: str, near: str) -> None:
    known = r".*\(known: linear, scaled_linear, cosine, squaredcos_cap_v2\)"
    with pytest.raises(ValueError, match=f"unknown beta_schedule '{word}'; did you mean {near}{known}"):
        DiffusionProcess(word)
    with pytest.raises(ValueError, match=r"unknown beta_schedule \['linear'\]"):
        DiffusionProcess(["linear"])  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"num_train_timesteps": 0}, {"beta_start": -0.1}, {"beta_end": 1.0}])
def test_numbers_that_are_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* is not a"):
        DiffusionProcess(**change)


# ------------------------------------------------------------------------------------------------ asking a network


def test_a_label_for_no_class_has_to_be_known() -> None:
    assert conditioning_of(nn.Identity()) is None
    assert conditioning_of(create_model("unet-1-2", ch=8, mult=(1, 2), num_classes=4)) == Conditioning(4, 4)
    model = tiny_unet2d(num_class_embeds=7)
    assert conditioning_of(model) == conditioning_of(model, 7) == Conditioning(7, None)
    assert conditioning_of(model, 6) == Conditioning(6, 6)
    model.register_to_config(num_classes=6)
    assert conditioning_of(model) == Conditioning(6, 6)


def test_denoisers_of_all_classes_or_of_one_more() -> None:
    for embeds in (10, 11):
        check_denoiser(tiny_unet2d(num_class_embeds=embeds), digits())
    with pytest.raises(ValueError, match="the teacher takes 12 classes, but digits has 10"):
        check_denoiser(tiny_unet2d(num_class_embeds=12), digits(), "teacher")


@pytest.mark.parametrize("steps", [250, 3000])
def test_denoisers_of_other_time_steps(steps: int) -> None:
    model = create_model("unet-1-2", in_channels=1, ch=8, mult=(1, 2), T=steps)
    with pytest.raises(ValueError, match=rf"knows {steps} time steps; .*\(num_train_timesteps={steps}\)"):
        check_denoiser(model, digits())
    check_denoiser(model, digits(), process=DiffusionProcess(num_train_timesteps=steps))


def test_a_network_without_a_time_step_is_refused() -> None:
    message = r"the student does not take images of 1×.*; it is called as \(images, t\)"
    with pytest.raises(ValueError, match=message):
        check_denoiser(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), digits(), "student")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_any_precision_are_asked(dtype: torch.dtype) -> None:
    data, model = digits(), create_model("unet-1-2", in_channels=1, ch=8, mult=(1, 2)).to(dtype)
    check_denoiser(model, data)
    assert denoising_loss(model, data.validation, count=8) > 0.5


# ------------------------------------------------------------------------------------------------------------ losses


class Blurred(nn.Module):
    """Knows the images of a split of one, seen a little darker, and answers as the process asks."""

    def __init__(self, image: Tensor, process: DiffusionProcess) -> None:
        super().__init__()
        self.image, self.process = image, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        noise = DiffusionProcess(self.process.beta_schedule, "sample").noise_from(self.image.expand_as(x), x, t)
        return self.process.target(self.image.expand_as(x), noise, t)


@pytest.fixture
def one() -> TensorImages:
    return TensorImages(digits().train.head(1)[0], torch.zeros(1).long())


def test_the_loss_is_that_of_the_noise_whatever_is_predicted(one: TensorImages) -> None:
    image = one.images / 127.5 - 1
    losses: dict[str, list[float]] = {}
    for process in PROCESSES:
        model = Blurred(image * 0.98, process)
        losses.setdefault(process.beta_schedule, []).append(denoising_loss(model, one, process=process, count=64))
    for by_prediction in losses.values():
        assert by_prediction == pytest.approx([by_prediction[0]] * 3, rel=0.01) and by_prediction[0] > 1e-4


class Latents:
    """A split of one's own: `load_data` makes none of floats."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.values[rows], torch.zeros(len(rows)).long()


def test_latents_are_taken_as_they_are() -> None:
    latent = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0)) * 5
    split = Latents(latent)
    assert denoising_loss(Blurred(latent, DiffusionProcess()), split, count=16) == pytest.approx(0, abs=1e-3)


def test_a_network_that_predicts_something_else_is_named(one: TensorImages) -> None:
    cosine = DiffusionProcess("cosine")
    model = Blurred(one.images / 127.5 - 0.99, replace(cosine, prediction_type="v_prediction"))
    with pytest.warns(
        UserWarning, match=r"the teacher's denoising loss is .* costs 1: read as 'v_prediction' it is 0\.\d+"
    ):
        check_prediction(model, one, cosine, role="teacher")
    far = Blurred(one.images / 127.5 + 300, cosine)
    with pytest.warns(UserWarning, match="it predicts something else, or was trained with another schedule"):
        check_prediction(far, one, cosine)
    right = Blurred(one.images / 127.5 - 1, cosine)  # no warning, which would be an error
    assert check_prediction(right, one, cosine) == pytest.approx(0, abs=1e-3)


# --------------------------------------------------------------------------------------------------- averaged weights


def test_the_average_keeps_fitting_statistics_of_batch_norm() -> None:
    """A RED block in a network of group norms: the averaged statistics are those of the averaged network."""
    torch.manual_seed(0)
    net = insert_blocks(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)),
        [("0", "output", RedBlock(8))],
    )
    images, draws = digits().train.head(40)[0] / 127.5 - 1, torch.Generator().manual_seed(0)
    optimizer, average = torch.optim.Adam(net.parameters(), 3e-3), average_of(net, 0.99)
    process = DiffusionProcess()

    def noisy(count: int) -> tuple[Tensor, Tensor]:
        x = images[torch.randint(len(images), (count,), generator=draws)]
        noise = torch.randn(x.shape, generator=draws)
        return process.add_noise(x, noise, torch.randint(1000, (count,), generator=draws)), noise

    for _ in range(300):
        x, noise = noisy(32)
        loss = nn.functional.mse_loss(net(x), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(net)
    averaged: Any = average.module.eval()
    x, noise = noisy(2000)
    with torch.no_grad():
        before = nn.functional.mse_loss(averaged(x), noise).item()
        torch.optim.swa_utils.update_bn(list(noisy(4000)[0].split(100)), averaged)
        after = nn.functional.mse_loss(averaged.eval()(x), noise).item()
        nn.init.zeros_(averaged[0].after.logit[1].running_mean)
        nn.init.ones_(averaged[0].after.logit[1].running_var)
        nn.init.ones_(averaged[0].after.residual_encoder[1].running_var)
        wrong = nn.functional.mse_loss(averaged(x), noise).item()
    assert before == pytest.approx(after, rel=0.01) and abs(wrong - after) > 0.03 * after
