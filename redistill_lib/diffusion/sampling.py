"""Drawing images from a denoiser, and looking on while it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Number
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill_lib.checks import whole, wholes
from redistill_lib.data.augment import derive_seed
from redistill_lib.diffusion.noise import SAMPLERS, T, channels_of, check_times, classes_of, make_schedule, noise_of
from redistill_lib.memory import profile_memory
from redistill_lib.models.saved import load_model
from redistill_lib.network import evaluating
from redistill_lib.progress import progress_bar
from redistill_lib.runs import Run

#: Called in each step with its number from 0, the time step t, x_t (the noisy images it starts from, N×C×H×W) and
#: the images the network sees in them, clipped to −1…1.
OnStep = Callable[[int, int, Tensor, Tensor], None]
MOST = 256  # images at once; more would only take more memory
FEW = 16  # where the memory is not known


class GuidedNoise(nn.Module):
    """Predicted noise with classifier-free guidance (arXiv 2207.12598, equation 6): (1 + w)·ε(x, c) − w·ε(x).

    Both come from one pass over a doubled batch. With w = 0 it is the network itself.
    """

    def __init__(self, model: nn.Module, guidance: float = 0.0):
        super().__init__()
        self.model, self.guidance = model, guidance

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        classes = classes_of(self.model)
        if classes is None or labels is None or not self.guidance:
            return noise_of(self.model(x, t) if labels is None else self.model(x, t, labels))
        nothing = torch.full_like(labels, classes)
        doubled = x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat((labels, nothing))
        given, free = noise_of(self.model(*doubled)).chunk(2)
        return (1 + self.guidance) * given - self.guidance * free


class _Step(nn.Module):
    """One step of DDIM as the memory sees it: what is held beside the denoiser, and the arithmetic after it."""

    def __init__(self, noise: GuidedNoise):
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = self.noise(x, t, labels)
        start = ((x - 0.6 * noise) / 0.8).clamp(-1, 1)
        return 0.9 * start + 0.4 * noise


def peak_of_sampling(
    model: nn.Module, example: Tensor, guidance: float = 0.0, convention: Any = "fused", dtype: str | None = None
) -> int:
    """Peak bytes of activations over a whole step of sampling, for `example` images B×C×H×W; weights are beside it.

    Beside the denoiser's own maps these are the images, which DDIM and DDPM need again after it (DPM++ holds one
    more copy), and with guidance a doubled batch. `convention` and `dtype` as in `profile_memory`.

    >>> from redistill_lib.models import create_model
    >>> net, x = create_model("unet-1-2", ch=8, mult=(1, 2), num_classes=10), torch.zeros(1, 3, 16, 16)
    >>> peak_of_sampling(net, x, guidance=2.0) > 1.9 * peak_of_sampling(net, x)
    True
    """
    t = torch.zeros(len(example), dtype=torch.int64, device=example.device)
    inputs = (example, t) if classes_of(model) is None else (example, t, t.clone())
    profile = profile_memory(_Step(GuidedNoise(model, guidance)), *inputs, convention=convention, dtype=dtype)
    return profile.peak_bytes


def sample(
    model: nn.Module | Run | str | Path,
    n: int = 16,
    shape: int | Sequence[int] | None = None,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    seed: int = 0,
    labels: int | Sequence[int] | Tensor | None = None,
    guidance: float = 0.0,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Tensor:
    """Draw `n` images: float n×C×H×W in −1…1, on the CPU. `to_uint8` makes bytes of them.

    Arguments:
        model: a denoiser, on the device to work on, or a complete run (or its folder) of a built-in one.
        shape: (C, H, W), or the side in pixels where the network knows its channels; known for a run.
        sampler: ``ddim`` (arXiv 2010.02502, η = 0), ``ddpm`` (2006.11239, algorithm 2, with as many of the 1000
            steps as `steps` says) or ``dpm++`` (2M, 2211.01095).
        seed: image i depends on the seed and i alone, not on n or the batch; two networks start from equal noise.
        labels: a class for all or one for each, of a network trained with classes; left out, no class.
        guidance: w of classifier-free guidance; 0 is the network's own prediction for the label.
        batch_size: images at once; left out, as many as half of the free memory takes, at most 256.
        on_step: looks on; with several batches it sees the steps of each in turn.

    Raises ValueError for what does not fit the network, with what would.

    >>> from redistill_lib.models import create_model
    >>> sample(create_model("unet-1-2", ch=8, mult=(1, 2)), 2, shape=8, steps=3, progress=False).shape
    torch.Size([2, 3, 8, 8])
    """
    n, steps, seed = whole("n", n), whole("steps", steps), whole("seed", seed, least=0)
    if steps > T:
        raise ValueError(f"steps={steps} are more than the {T} that there are")
    batch_size = None if batch_size is None else whole("batch_size", batch_size)
    if not isinstance(model, nn.Module):
        run = model if isinstance(model, Run) else Run.load(model)
        if "diffus" not in run.params.get("task", "diffuse"):
            raise ValueError(f"run {run.id} is of a classifier, which draws no images; give a denoiser's run")
        shape = shape or run.params["data"].get("image_size")
        model = load_model(run)
    size = _shape(model, shape)
    check_times(model)
    wanted = _labels(model, labels, n, guidance)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    make_schedule(sampler)  # an unknown name is told before anything is measured
    batch = batch_size or _batch_that_fits(model, size, guidance, device)
    network = GuidedNoise(model, guidance)
    images = []
    bar = progress_bar(steps * -(-n // batch), f"{sampler}, {n} images", enabled=progress)
    with evaluating(network), bar:
        for first in range(0, n, batch):
            rows = range(first, min(first + batch, n))
            draws = [torch.Generator().manual_seed(derive_seed(seed, row)) for row in rows]
            chosen = None if wanted is None else wanted[first : rows.stop].to(device)
            schedule = make_schedule(sampler)
            images.append(_draw(network, schedule, size, draws, chosen, steps, device, on_step, bar).cpu())
    return torch.cat(images).clamp(-1, 1)


def _draw(
    network: GuidedNoise,
    schedule: Any,
    size: tuple[int, ...],
    draws: list[torch.Generator],
    labels: Tensor | None,
    steps: int,
    device: torch.device,
    on_step: OnStep | None,
    bar: Any,
) -> Tensor:
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    x = torch.stack([torch.randn(size, generator=draw) for draw in draws]).to(device)
    times, ddim = time_steps(steps), type(schedule).__name__ == SAMPLERS["ddim"]
    schedule.set_timesteps(steps) if ddim else schedule.set_timesteps(timesteps=times)
    for k, (t, following) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        if ddim:
            # It goes back by T // n, the same at every step: give it the n for this step's own way, also where the
            # number of steps does not divide T.
            schedule.num_inference_steps = Fraction(T, t - following)
        noise = network(x.to(dtype), torch.full((len(x),), t, device=device), labels).float()
        if noise.shape != x.shape:
            raise ValueError(f"the denoiser returns {tuple(noise.shape)} for {tuple(x.shape)}, not their noise")
        if on_step is not None:
            kept = schedule.alphas_cumprod[t]
            start = (x - (1 - kept).sqrt() * noise) / kept.sqrt()
            on_step(k, t, x, start.clamp(-1, 1))
        x = schedule.step(noise, t, x, generator=draws).prev_sample
        bar.update()
    return x


def time_steps(steps: int) -> list[int]:
    """The times of a sampling, noisiest first, evenly from T − 1 down ("trailing" in arXiv 2305.08891).

    >>> time_steps(3)
    [999, 666, 332]
    """
    return [round(T - k * T / steps) - 1 for k in range(steps)]


@dataclass(frozen=True)
class Trajectory:
    """A few images on their way out of the noise. K shots of N images each.

    `t` are the K time steps; `noisy` is x_t and `seen` what the network sees in it, both K×N×C×H×W; `final` the
    images it ends in, N×C×H×W.
    """

    t: tuple[int, ...]
    noisy: Tensor
    seen: Tensor
    final: Tensor

    def __repr__(self) -> str:
        return f"Trajectory({self.final.shape[0]} images at t = {', '.join(map(str, self.t))})"


def trajectory(model: nn.Module | Run | str | Path, n: int = 4, shots: int = 8, **options: Any) -> Trajectory:
    """What `sample(model, n, **options)` goes through, at `shots` steps spread evenly from the first to the last.

    >>> from redistill_lib.models import create_model
    >>> net = create_model("unet-1-2", ch=8, mult=(1, 2))
    >>> trajectory(net, 2, shots=3, shape=8, steps=5, progress=False)
    Trajectory(2 images at t = 999, 599, 199)
    """
    steps, shots = whole("steps", options.setdefault("steps", 50)), whole("shots", shots)
    if "batch_size" in options:
        raise ValueError("a trajectory draws its images at once; leave batch_size out and give fewer images")
    wanted = set(torch.linspace(0, steps - 1, min(shots, steps)).round().int().tolist())
    seen: list[tuple[int, Tensor, Tensor]] = []

    def keep(k: int, t: int, x: Tensor, start: Tensor) -> None:
        if k in wanted:
            seen.append((t, x.cpu(), start.cpu()))

    final = sample(model, n, batch_size=n, on_step=keep, **options)
    times, noisy, starts = zip(*seen, strict=True)
    return Trajectory(times, torch.stack(noisy), torch.stack(starts), final)


# ---------------------------------------------------------------------------------------------- what a call may leave


def _shape(model: nn.Module, shape: int | Sequence[int] | None) -> tuple[int, ...]:
    shape = shape or getattr(getattr(model, "config", None), "sample_size", None)
    if shape is None:
        raise ValueError("the network does not tell the size of its images; give shape=(channels, height, width)")
    sides = wholes("shape", (shape, shape) if isinstance(shape, Number) else shape)
    channels = channels_of(model)
    if len(sides) == 2:
        if channels is None:
            raise ValueError(f"the network does not tell its channels; give shape=(channels, {sides[0]}, {sides[1]})")
        sides = (channels, *sides)
    if len(sides) != 3:
        raise ValueError(f"the shape of the images is (channels, height, width), not {shape}")
    if channels not in (None, sides[0]):
        raise ValueError(f"the network draws images of {channels} channels, not of {sides[0]}")
    return sides


def _labels(model: nn.Module, labels: int | Sequence[int] | Tensor | None, n: int, guidance: float) -> Tensor | None:
    classes = classes_of(model)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is a finite number, not {guidance}")
    if classes is None:
        if labels is not None or guidance:
            what = "labels" if labels is not None else "guidance"
            raise ValueError(f"{what} need a network trained with classes; build it with num_classes=")
        return None
    if labels is None:
        if guidance:
            raise ValueError("guidance needs labels to guide to; give labels=")
        return torch.full((n,), classes)
    chosen = torch.as_tensor(labels)
    if chosen.is_floating_point() or chosen.is_complex() or chosen.dtype == torch.bool:
        raise ValueError(f"labels are whole numbers, not {chosen.dtype}".replace("torch.", ""))
    chosen = chosen.to("cpu", torch.int64)
    chosen = chosen.expand(n) if chosen.ndim == 0 else chosen
    if chosen.shape != (n,):
        raise ValueError(f"labels are one class for all or one for each of {n} images, not {tuple(chosen.shape)}")
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < classes:
        raise ValueError(f"the network knows classes 0 to {classes - 1}, not {chosen.unique().tolist()}")
    return chosen


def _batch_that_fits(model: nn.Module, size: tuple[int, ...], guidance: float, device: torch.device) -> int:
    free = _free_bytes(device)
    if free is None:
        return FEW
    try:
        peak = peak_of_sampling(model, torch.zeros(1, *size, device=device), guidance, convention="eager")
    except Exception:  # not every network can be profiled; what is wrong with its inputs, drawing will say
        return FEW
    return max(1, min(MOST, free // 2 // peak))


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
