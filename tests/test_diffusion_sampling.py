"""Drawing images: known answers, equal images whatever the batch, guidance, and what it costs."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redistill_lib.data.augment import derive_seed
from redistill_lib.diffusion import DiffusionProcess, image_grid, peak_of_sampling, sample, sampling, trajectory
from redistill_lib.diffusion.sampling import Guided, time_steps
from redistill_lib.memory import profile_memory
from redistill_lib.models import create_model
from redistill_lib.models.saved import save_tensors
from redistill_lib.runs import Run

SAMPLERS = ["ddim", "ddpm", "dpm++"]
DDPM = DiffusionProcess()


class Knowing(nn.Module):
    """Sees one and the same image in any noise: ε = (x_t − √ᾱ · image) / √(1 − ᾱ), told as the process asks."""

    def __init__(self, image: Tensor, process: DiffusionProcess = DDPM) -> None:
        super().__init__()
        self.image, self.process = image, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        kept = self.process.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (x - kept.sqrt() * self.image) / (1 - kept).sqrt()
        return self.process.target(self.image.expand_as(x), noise, t)


def unet(**kwargs: Any) -> Any:
    torch.manual_seed(0)
    model = create_model("unet-1-2", in_channels=1, ch=8, mult=(1, 2), attention=(1,), res_blocks=1, **kwargs)
    for module in model.modules():  # at its start a U-Net predicts nearly nothing, whatever the class
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    if model.num_classes:
        nn.init.normal_(model.label_embedding.weight)
    return model.eval()


def draw(model: nn.Module, n: int = 3, **kwargs: Any) -> Tensor:
    return sample(model, n, (1, 8, 8), **{"steps": 4, "progress": False} | kwargs)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 7, 50, 61])
def test_a_denoiser_that_knows_the_answer_gives_it(sampler: str, steps: int) -> None:
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    images = draw(Knowing(image), 2, sampler=sampler, steps=steps)
    torch.testing.assert_close(images, image.expand(2, -1, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_whatever_the_denoiser_predicts(sampler: str, schedule: str, prediction: str) -> None:
    process = DiffusionProcess(schedule, prediction, num_train_timesteps=300)
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    images = draw(Knowing(image, process), 2, sampler=sampler, steps=11, process=process)
    torch.testing.assert_close(images, image.expand(2, -1, -1, -1), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # diffusers' DPM++
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", [DDPM, DiffusionProcess("cosine", "v_prediction")], ids=str)
def test_samplers_agree_with_diffusers(sampler: str, process: DiffusionProcess) -> None:
    """Latents, since diffusers clips images for two of the samplers alone."""
    process, model, steps = replace(process, clip_sample=False), unet(), 20
    draws = [torch.Generator().manual_seed(derive_seed(4, row)) for row in range(2)]
    x = torch.stack([torch.randn(1, 8, 8, generator=one) for one in draws])
    scheduler = process.scheduler(sampler)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(2)), t, x, generator=draws).prev_sample
    ours = draw(model, 2, sampler=sampler, steps=steps, seed=4, process=process)
    assert x.abs().max() > 1
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_are_not_clipped(sampler: str) -> None:
    latent, process = torch.linspace(-9, 9, 64).view(1, 1, 8, 8), DiffusionProcess(clip_sample=False)
    images = draw(Knowing(latent), 1, sampler=sampler, steps=25, process=process)
    torch.testing.assert_close(images, latent, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 0.1), (torch.float64, 1e-4)])
def test_networks_of_any_precision(dtype: torch.dtype, apart: float) -> None:
    images = draw(unet().to(dtype))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, draw(unet()), atol=apart, rtol=0)


def test_images_that_are_not_square() -> None:
    model: Any = unet()
    model.config = SimpleNamespace(in_channels=1, sample_size=[8, 12])
    assert sample(model, 2, steps=2, progress=False).shape == (2, 1, 8, 12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_image_depends_on_seed_and_number_alone(sampler: str) -> None:
    model = unet()
    five = draw(model, 5, sampler=sampler, batch_size=5)
    torch.testing.assert_close(draw(model, 5, sampler=sampler, batch_size=2), five, atol=1e-4, rtol=0)
    torch.testing.assert_close(draw(model, 3, sampler=sampler), five[:3], atol=1e-4, rtol=0)
    assert not torch.allclose(draw(model, 5, sampler=sampler, seed=1), five, atol=0.1)
    assert five.abs().max() <= 1 and five.std(0).max() > 0.1


def test_ddim_by_hand() -> None:
    """Two steps of equation 12 (arXiv 2010.02502) with σ = 0."""
    model, kept = unet(), DDPM.alphas_cumprod
    seen: list[tuple[int, int, Tensor, Tensor]] = []
    final = draw(model, 2, steps=2, on_step=lambda *step: seen.append(step))
    assert [(k, t) for k, t, _, _ in seen] == [(0, 999), (1, 499)]
    x = seen[0][2]
    for (_, t, noisy, start), after in zip(seen, (kept[499], torch.tensor(1.0)), strict=True):
        torch.testing.assert_close(x, noisy, atol=1e-5, rtol=0)
        with torch.no_grad():
            noise = model(x, torch.full((2,), t))
        guess = ((x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()).clamp(-1, 1)
        torch.testing.assert_close(start, guess, atol=1e-5, rtol=0)
        x = after.sqrt() * guess + (1 - after).sqrt() * noise
    torch.testing.assert_close(final, x, atol=1e-5, rtol=0)


class Gaussian(nn.Module):
    """The right answer for images whose pixels are drawn from N(0, 0.2²)."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = DDPM.alphas_cumprod

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        kept = self.kept[t].view(-1, 1, 1, 1)
        return (1 - kept).sqrt() * x / (kept * 0.04 + 1 - kept)


@pytest.mark.parametrize("steps", [64, 150, 334, 499, 512])
def test_any_number_of_steps_ends_at_the_images(steps: int) -> None:
    """By DDIM the spread of the noise shrinks at every step by a factor that can be told beforehand."""
    kept = DDPM.alphas_cumprod
    times, spread = time_steps(steps), 1.0
    for t, following in zip(times, [*times[1:], -1], strict=True):
        now, then = kept[t], kept[following] if following >= 0 else torch.tensor(1.0)
        noise = (1 - now).sqrt() / (now * 0.04 + 1 - now)
        start = (1 - (1 - now).sqrt() * noise) / now.sqrt()
        spread *= float(then.sqrt() * start + (1 - then).sqrt() * noise)
    assert spread == pytest.approx(0.2, abs=0.025)
    assert draw(Gaussian(), 64, sampler="ddim", steps=steps).std() == pytest.approx(spread, rel=0.05)
    for sampler in ["dpm++"] + ["ddpm"] * (steps > 300):  # the variance of DDPM's steps is for many of them
        assert draw(Gaussian(), 64, sampler=sampler, steps=steps).std() == pytest.approx(0.2, rel=0.08)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 61, 499, 1000])
def test_as_many_steps_as_asked_for(sampler: str, steps: int) -> None:
    seen: list[int] = []
    draw(Gaussian(), 1, sampler=sampler, steps=steps, on_step=lambda k, t, *_: seen.append(t))
    assert len(seen) == len(set(seen)) == steps and seen[0] == 999 and seen[-1] >= 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"steps": 2.5}, "steps=2.5 is not a whole number"),
        ({"steps": 1001}, "steps=1001 are more than the 1000"),
        ({"n": 0}, "n=0 is not a whole number of 1"),
        ({"seed": -1}, "seed=-1 is not a whole number of 0"),
        ({"batch_size": 0}, "batch_size=0 is not"),
        ({"guidance": float("nan")}, "guidance is a finite number"),
        ({"labels": [1.7, 2.2, 0.0]}, "labels are whole numbers, not float32"),
        ({"labels": True}, "labels are whole numbers, not bool"),
        ({"process": "cosine"}, "process='cosine' is not a DiffusionProcess or None"),
        ({"labels": 3}, "classes 0 to 2"),
        ({"shape": -8}, r"shape\[0\]=-8 is not"),
        ({"shape": 8.0}, r"shape\[0\]=8.0 is not"),
        ({"shape": 0}, r"shape\[0\]=0 is not a whole number of 1 or more"),
        ({"on_step": 3}, "on_step=3 is not a function or None"),
        ({"sampler": None}, "unknown sampler None"),
    ],
)
def test_what_cannot_be_drawn_is_told_first(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        sample(unet(num_classes=3), **{"n": 3, "shape": 8, "steps": 2, "progress": False} | options)


def test_options_that_there_are_not() -> None:
    with pytest.raises(TypeError, match="there is no option 'step' of sampling; did you mean 'steps'"):
        draw(unet(), step=3)


def test_what_a_network_does_not_tell() -> None:
    with pytest.raises(ValueError, match=r"give shape=\(channels, 8, 8\)"):
        sample(Gaussian(), 1, 8, progress=False)
    with pytest.raises(ValueError, match=r"give shape=\(channels, height, width\)"):
        sample(Gaussian(), 1, progress=False)
    with pytest.raises(ValueError, match="the network knows 100 time steps; the schedule has 1000"):
        draw(unet(T=100))
    with pytest.raises(ValueError, match="shots=0"):
        trajectory(unet(), 2, shots=0, shape=8)
    with pytest.raises(ValueError, match="leave batch_size out"):
        trajectory(unet(), 2, shape=8, batch_size=1)
    with pytest.raises(ValueError, match="leave that out, or call sample"):
        trajectory(unet(), 2, shape=8, on_step=print)
    assert trajectory(unet(), np.int64(2), shots=1, shape=8, steps=1).final.shape[0] == 2  # type: ignore[arg-type]
    two = torch.as_tensor(2)
    assert torch.equal(draw(unet(num_classes=3), labels=two), draw(unet(num_classes=3), labels=2))


def test_sampling_leaves_the_network_and_the_random_state_alone() -> None:
    model = unet(dropout=0.5).train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = draw(model, sampler="ddpm")
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(draw(model, sampler="ddpm"), first)  # without dropout


def test_trajectory() -> None:
    path = trajectory(unet(), 2, shots=3, shape=(1, 8, 8), steps=9, progress=False)
    assert path.t == (999, 555, 110) and path.noisy.shape == path.seen.shape == (3, 2, 1, 8, 8)
    assert torch.equal(path.final, draw(unet(), 2, steps=9))
    assert path.seen.abs().max() <= 1 and path.noisy[0].std() == pytest.approx(1, abs=0.2)


# --------------------------------------------------------------------------------------------------------- guidance


def test_guidance_by_hand() -> None:
    model = unet(num_classes=3)
    x, t = torch.randn(4, 1, 8, 8), torch.full((4,), 300)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        given, free = model(x, t, labels), model(x, t)
        torch.testing.assert_close(free, model(x, t, torch.full((4,), 3)))
        assert torch.equal(Guided(model)(x, t, labels), given)
        guided = Guided(model, 2.0)(x, t, labels)
    torch.testing.assert_close(guided, 3 * given - 2 * free, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(given, free, atol=1e-4)


class Labelled(Knowing):
    """Paints the images with the label; like a network of diffusers, it tells only how many labels there are."""

    def __init__(self, **config: Any) -> None:
        super().__init__(torch.zeros(1, 1, 8, 8))
        self.config = SimpleNamespace(num_class_embeds=5, in_channels=1, sample_size=8, **config)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        self.image = (labels / 5).view(-1, 1, 1, 1).expand_as(x)
        return super().forward(x, t)


def test_a_network_without_a_label_for_no_class() -> None:
    every = sample(Labelled(), 5, labels=[0, 1, 2, 3, 4], steps=2, progress=False)
    torch.testing.assert_close(every.mean((1, 2, 3)), torch.arange(5) / 5, atol=1e-3, rtol=0)
    for options in (dict[str, Any](), {"labels": 2, "guidance": 1.0}):
        with pytest.raises(ValueError, match=r"has 5 labels and none is known to mean no class.*num_classes=4"):
            sample(Labelled(), 1, progress=False, **options)
    told = Labelled(num_classes=4)
    assert sample(told, 1, steps=2, progress=False).mean() == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(ValueError, match=r"classes 0 to 3, not \[4\]"):
        sample(told, 1, labels=4, progress=False)


def test_labels_one_for_all_or_one_each() -> None:
    model = unet(num_classes=3)
    each = draw(model, 3, labels=[0, 1, 2], guidance=1.5, batch_size=2)
    for label in range(3):
        alone = draw(model, 3, labels=label, guidance=1.5)
        torch.testing.assert_close(alone[label], each[label], atol=1e-4, rtol=0)
    assert torch.equal(draw(model), draw(model, labels=None))


# ----------------------------------------------------------------------------------------------------------- memory


def test_peak_of_sampling() -> None:
    """Beside the denoiser there is x, which it may itself give up early; guidance doubles the batch."""
    model, x = unet(num_classes=3), torch.zeros(2, 1, 8, 8)
    t = torch.zeros(2, dtype=torch.int64)
    inside = profile_memory(model, x, t, t).peak_bytes
    alone = peak_of_sampling(model, x)
    assert inside <= alone <= inside + x.nbytes + t.nbytes
    doubled = profile_memory(model, torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), torch.zeros(4).long()).peak_bytes
    assert doubled <= peak_of_sampling(model, x, guidance=2.0) <= doubled + 2 * (x.nbytes + 3 * t.nbytes)


def test_the_batch_is_sized_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = unet(), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    peak = peak_of_sampling(model, torch.zeros(1, 1, 8, 8), convention="eager")
    monkeypatch.setattr(sampling.psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 2 * peak + 100))
    sizes.clear()
    draw(model, 5, steps=1)
    assert sizes[-3:] == [2, 2, 1]


def test_grid() -> None:
    grid = image_grid(torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2), columns=2, gap=1)
    assert grid[0].tolist() == [
        [0, 0, 255, 1, 1],
        [0, 0, 255, 1, 1],
        [255] * 5,
        [2, 2, 255, 255, 255],
        [2, 2, 255, 255, 255],
    ]


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sampler": "dimm"}, "unknown sampler 'dimm'; did you mean 'ddim'"),
        ({"sampler": "DPMpp"}, r"unknown sampler 'DPMpp'; did you mean 'dpm\+\+'"),
        ({"steps": 0}, "steps=0 is not a whole number of 1 or more"),
        ({"labels": 1}, "labels need a network trained with classes; build it with num_classes="),
        ({"guidance": 1.0}, "guidance need"),
        ({"shape": (1, 9, 8)}, "multiples of 2, its total stride"),
        ({"shape": (3, 8, 8)}, "the network draws images of 1 channels, not of 3"),
        ({"shape": None}, "give shape="),
    ],
)
def test_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(unet(), 2, **{"shape": (1, 8, 8), "progress": False} | kwargs)


class Blurring(nn.Conv2d):
    """Takes images and no time step."""


class Halving(nn.Module):
    calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return x[:, :, ::2]


def test_a_network_that_is_no_denoiser_is_refused_before_the_first_step() -> None:
    for draws in (sample, trajectory):
        with pytest.raises(
            ValueError, match=r"the network does not take images of 1×6×10: .*called as \(images, t\)"
        ):
            draws(Blurring(1, 1, 3), 2, shape=(1, 6, 10), progress=False)
    with pytest.raises(ValueError, match=r"called as \(images, t, labels\)"):
        blind: Any = Halving()
        blind.num_classes = 3
        draw(blind, labels=1)
    half = Halving()
    with pytest.raises(ValueError, match=r"returns \(2, 1, 4, 8\) for \(2, 1, 8, 8\), not their noise"):
        draw(half, 5)
    assert half.calls == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"guidance": 1.0}, "guidance needs labels"),
        ({"labels": 3}, r"knows classes 0 to 2, not \[3\]"),
        ({"labels": [0, 1]}, r"one for each of 3 images, not \(2,\)"),
    ],
)
def test_label_errors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(unet(num_classes=3), 3, **kwargs)


def test_a_run_is_drawn_by_its_own_process(tmp_path: Path) -> None:
    model: Any = unet()
    spec = {"name": "unet-1-2", "in_channels": 1, "ch": 8, "mult": [1, 2], "attention": [1], "res_blocks": 1}
    process = DiffusionProcess("cosine", "v_prediction")
    params = {"task": "diffuse", "model": spec, "data": {"image_size": 8}, "recipe": {"process": asdict(process)}}
    run = Run(tmp_path, params, "complete")
    save_tensors(tmp_path / "model.safetensors", model.state_dict())
    drawn = sample(run, 2, steps=3, progress=False)
    with pytest.raises(ValueError, match=r"shape\[0\]=0 is not"):
        sample(run, 2, 0, progress=False)
    assert torch.equal(drawn, draw(model, 2, steps=3, process=process))
    assert torch.equal(sample(run, 2, steps=3, process=DDPM, progress=False), draw(model, 2, steps=3))
    path = trajectory(run, 2, shots=3, steps=3, seed=0, progress=False)
    torch.testing.assert_close(path.final, drawn)


def test_missing_run(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="no run at"):
        sample(tmp_path)
    with pytest.raises(ValueError, match="is running, not complete"):
        sample(Run(tmp_path, {"data": {}}))
