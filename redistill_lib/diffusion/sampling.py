"""Drawing images from a denoiser, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from redistill_lib.checks import check_type, hint, is_number, whole, wholes
from redistill_lib.data.augment import derive_seed
from redistill_lib.diffusion import noise
from redistill_lib.diffusion.noise import DiffusionProcess, conditioning_of, told
from redistill_lib.memory import profile_memory
from redistill_lib.models.saved import load_model
from redistill_lib.network import dtype_of, evaluating, output_of
from redistill_lib.progress import progress_bar
from redistill_lib.runs import Run

#: Called in each step with its number from 0, the time step t, x_t (N×C×H×W) and the images the network sees in
#: them, clipped to −1…1 where the process says so.
OnStep = Callable[[int, int, Tensor, Tensor], None]
MOST = 256  # images at once; more would only take more memory
FEW = 16  # where the memory that they take is not known


class Step(NamedTuple):
    x: Tensor  # x_t
    noise: Tensor  # that the network sees in it
    start: Tensor  # the image that it sees, clipped
    kept: float  # ᾱ_t
    after: float  # ᾱ to go to, 1 at the end
    before: tuple[Tensor, float] | None  # `start` and `kept` of the step before, for DPM++
    draw: Callable[[], Tensor]  # new noise


def ddim(now: Step) -> Tensor:
    """DDIM (arXiv 2010.02502, equation 12) with σ = 0."""
    return math.sqrt(now.after) * now.start + math.sqrt(1 - now.after) * now.noise


def ddpm(now: Step) -> Tensor:
    """DDPM (arXiv 2006.11239, equations 6 and 7), where a step over several time steps has the α of them together."""
    kept, after, alpha = now.kept, now.after, now.kept / now.after
    mean = (math.sqrt(after) * (1 - alpha) * now.start + math.sqrt(alpha) * (1 - after) * now.x) / (1 - kept)
    return mean + math.sqrt((1 - after) * (1 - alpha) / (1 - kept)) * now.draw()


def dpm_solver(now: Step) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2); the first step and the last are of first order."""
    data, noise = now.start, math.sqrt((1 - now.after) / (1 - now.kept))
    if now.before is not None and now.after < 1:
        first, middle, end = (math.log(kept / (1 - kept)) for kept in (now.before[1], now.kept, now.after))
        data = data + (data - now.before[0]) / (2 * (middle - first) / (end - middle))
    return noise * now.x + (math.sqrt(now.after) - noise * math.sqrt(now.kept)) * data


_STEPS = {"ddim": ddim, "ddpm": ddpm, "dpm++": dpm_solver}


def time_steps(steps: int, total: int = 1000) -> list[int]:
    """The times of a sampling, noisiest first, evenly from `total` − 1 down ("trailing" in arXiv 2305.08891)."""
    return [round(total - k * total / steps) - 1 for k in range(steps)]


class Guided(nn.Module):
    """Classifier-free guidance (2207.12598, equation 6): (1 + w)·f(x, c) − w·f(x), by one pass of a doubled batch."""

    def __init__(self, model: nn.Module, guidance: float = 0.0):
        super().__init__()
        self.model, self.guidance = model, guidance

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        known = conditioning_of(self.model)
        if known is None or known.null is None or labels is None or not self.guidance:
            return output_of(self.model(x, t) if labels is None else self.model(x, t, labels))
        doubled = x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat((labels, torch.full_like(labels, known.null)))
        given, free = output_of(self.model(*doubled)).chunk(2)
        return (1 + self.guidance) * given - self.guidance * free


class _Step(Guided):
    """One step of DDIM with what it holds beside the denoiser."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = super().forward(x, t, labels)
        start = ((x - 0.6 * noise) / 0.8).clamp(-1, 1)
        return 0.9 * start + 0.4 * noise


def peak_of_sampling(model: nn.Module, example: Tensor, guidance: float = 0.0, convention: Any = "fused") -> int:
    """Peak bytes of activations over a step of sampling, for `example` images B×C×H×W.

    Beside the denoiser's own maps these are the images, which DDIM and DDPM need again (DPM++ holds one more copy),
    and with guidance a doubled batch. `convention` as in `profile_memory`.

    >>> from redistill_lib.models import create_model
    >>> net, x = create_model("unet-1-2", ch=8, mult=(1, 2), num_classes=10), torch.zeros(1, 3, 16, 16)
    >>> peak_of_sampling(net, x, guidance=2.0) > 1.9 * peak_of_sampling(net, x)
    True
    """
    t = torch.zeros(len(example), dtype=torch.int64, device=example.device)
    inputs = (example, t) if conditioning_of(model) is None else (example, t, t.clone())
    return profile_memory(_Step(model, guidance), *inputs, convention=convention).peak_bytes


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: the options of `sample` and `trajectory`.

    `sampler` is ``ddim`` (arXiv 2010.02502, η = 0), ``ddpm`` (2006.11239, algorithm 2) or ``dpm++`` (2M, 2211.01095).
    Image i depends on `seed` and i alone, so that two networks start from equal noise. `guidance` is w of
    classifier-free guidance. `batch_size`, left out, is what half of the free memory takes, at most 256 images;
    `process` that of the run or pipeline, or DDPM's own.
    """

    sampler: str = "ddim"
    steps: int = 50
    seed: int = 0
    guidance: float = 0.0
    batch_size: int | None = None
    process: DiffusionProcess | None = None

    def __post_init__(self) -> None:
        noise.check_known("sampler", self.sampler, noise.SAMPLERS)
        whole("steps", self.steps)
        whole("seed", self.seed, least=0)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size)
        check_type("process", self.process, DiffusionProcess, None)
        if not is_number(self.guidance):
            raise ValueError(f"guidance is a finite number, not {self.guidance}")


def sample(
    model: Any,
    n: int = 16,
    shape: int | Sequence[int] | None = None,
    *,
    labels: int | Sequence[int] | Tensor | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
    **options: Any,
) -> Tensor:
    """Draw `n` images: float n×C×H×W in −1…1, on the CPU. `to_uint8` makes bytes of them.

    Arguments:
        model: a denoiser, on the device to work on, a complete run (or its folder) of a built-in one, or a pipeline
            of diffusers that has a `unet` and a `scheduler`.
        shape: (C, H, W), or the side in pixels where the network knows its channels; known for a run.
        labels: a class for all or one for each, of a network trained with classes; left out, no class.
        on_step: see `OnStep`; with several batches it is called for the steps of each in turn.
        options: the fields of `Sampling`.

    Raises ValueError for what does not fit the network, with what would.

    >>> from redistill_lib.models import create_model
    >>> sample(create_model("unet-1-2", ch=8, mult=(1, 2)), 2, shape=8, steps=3, progress=False).shape
    torch.Size([2, 3, 8, 8])
    """
    known = Sampling.__dataclass_fields__
    for name in options.keys() - known.keys():
        raise TypeError(f"there is no option {name!r} of sampling{hint(name, known)} (known: {', '.join(known)})")
    n, how = whole("n", n), Sampling(**options)
    check_type("on_step", on_step, Callable, None)
    model, shape, process = _opened(model, shape, how.process)
    if how.steps > process.num_train_timesteps:
        raise ValueError(f"steps={how.steps} are more than the {process.num_train_timesteps} that there are")
    size, wanted = _shape(model, shape), _labels(model, labels, n, how.guidance)
    noise.check_call(model, size, wanted is not None, process)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = how.batch_size or _batch_that_fits(model, size, how.guidance, device)
    times, network = time_steps(how.steps, process.num_train_timesteps), Guided(model, how.guidance)
    levels = [*process.alphas_cumprod[times].tolist(), 1.0]
    bar = progress_bar(how.steps * -(-n // batch), f"{how.sampler}, {n} images", enabled=progress)

    def draw() -> Tensor:
        return torch.stack([torch.randn(size, generator=each) for each in draws]).to(device)

    def step(k: int, x: Tensor, before: Any) -> tuple[Tensor, Any]:  # frees what it makes before the next one
        t = torch.full((len(x),), times[k], device=device)
        prediction = network(x.to(dtype_of(model)), t, chosen).float()
        start = process.start_from(prediction, x, t)
        start = start.clamp(-1, 1) if process.clip_sample else start
        if on_step is not None:
            on_step(k, times[k], x, start)
        bar.update()
        now = Step(x, process.noise_from(prediction, x, t), start, levels[k], levels[k + 1], before, draw)
        return _STEPS[how.sampler](now), (start, levels[k]) if how.sampler == "dpm++" else None

    images = []
    with evaluating(network), bar:
        for rows in torch.arange(n).split(batch):
            draws = [torch.Generator().manual_seed(derive_seed(how.seed, row)) for row in rows.tolist()]
            chosen = None if wanted is None else wanted[rows].to(device)
            x, before = draw(), None
            for k in range(how.steps):
                x, before = step(k, x, before)
            images.append(x.cpu())
    drawn = torch.cat(images)
    return drawn.clamp(-1, 1) if process.clip_sample else drawn


@dataclass(frozen=True)
class Trajectory:
    """N images on their way out of the noise: `noisy`, x_t, and `seen`, what the network sees in it, both K×N×C×H×W
    at the K time steps `t`; `final`, the images it ends in, N×C×H×W.
    """

    t: tuple[int, ...]
    noisy: Tensor
    seen: Tensor
    final: Tensor

    def __repr__(self) -> str:
        return f"Trajectory({self.final.shape[0]} images at t = {', '.join(map(str, self.t))})"


def trajectory(model: Any, n: int = 4, shots: int = 8, **options: Any) -> Trajectory:
    """What `sample(model, n, **options)` goes through, at `shots` steps spread evenly from the first to the last.

    >>> from redistill_lib.models import create_model
    >>> net = create_model("unet-1-2", ch=8, mult=(1, 2))
    >>> trajectory(net, 2, shots=3, shape=8, steps=5, progress=False)
    Trajectory(2 images at t = 999, 599, 199)
    """
    steps, shots = whole("steps", options.setdefault("steps", 50)), whole("shots", shots)
    if "batch_size" in options:
        raise ValueError("a trajectory draws its images at once; leave batch_size out and give fewer images")
    if "on_step" in options:
        raise ValueError("a trajectory takes its shots by on_step itself; leave that out, or call sample")
    wanted = set(torch.linspace(0, steps - 1, min(shots, steps)).round().int().tolist())
    shown: list[tuple[int, Tensor, Tensor]] = []

    def keep(k: int, t: int, x: Tensor, start: Tensor) -> None:
        if k in wanted:
            shown.append((t, x.cpu(), start.cpu()))

    final = sample(model, n, batch_size=whole("n", n), on_step=keep, **options)
    times, noisy, seen = zip(*shown, strict=True)
    return Trajectory(times, torch.stack(noisy), torch.stack(seen), final)


def _opened(model: Any, shape: Any, process: DiffusionProcess | None) -> tuple[nn.Module, Any, DiffusionProcess]:
    """The network behind a run or a pipeline, the shape of its images and its process, as far as they are told."""
    if isinstance(model, nn.Module):
        return model, shape, process or DiffusionProcess()
    if isinstance(unet := getattr(model, "unet", None), nn.Module):
        return unet, shape, process or DiffusionProcess.from_config(model.scheduler)
    if not isinstance(model, Run | str | Path):
        raise TypeError(f"a {type(model).__name__} draws no images; give a denoiser, a run or a pipeline with a unet")
    run = model if isinstance(model, Run) else Run.load(model)
    if "diffus" not in run.params.get("task", "diffuse"):
        raise ValueError(f"run {run.id} is of a classifier, which draws no images; give a denoiser's run")
    process = process or DiffusionProcess(**(run.params.get("recipe", {}).get("process") or {}))
    return load_model(run), run.params["data"].get("image_size") if shape is None else shape, process


def _shape(model: nn.Module, shape: int | Sequence[int] | None) -> tuple[int, ...]:
    shape = told(model, "sample_size") if shape is None else shape
    channels = told(model, "in_channels")
    if shape is None:
        raise ValueError("the network does not tell the size of its images; give shape=(channels, height, width)")
    sides = wholes("shape", (shape, shape) if isinstance(shape, Number) else shape)
    if len(sides) == 2 and channels is None:
        raise ValueError(f"the network does not tell its channels; give shape=(channels, {sides[0]}, {sides[1]})")
    sides = (channels, *sides) if len(sides) == 2 else sides
    if len(sides) != 3:
        raise ValueError(f"the shape of the images is (channels, height, width), not {shape}")
    if channels not in (None, sides[0]):
        raise ValueError(f"the network draws images of {channels} channels, not of {sides[0]}")
    return sides


def _labels(model: nn.Module, labels: int | Sequence[int] | Tensor | None, n: int, guidance: float) -> Tensor | None:
    known = conditioning_of(model)
    if known is None and labels is None and not guidance:
        return None
    if known is None:
        what = "guidance" if labels is None else "labels"
        raise ValueError(f"{what} need a network trained with classes; build it with num_classes=")
    if labels is None and guidance:
        raise ValueError("guidance needs labels to guide to; give labels=")
    if labels is None and known.null is not None:
        return torch.full((n,), known.null)
    if labels is None or (guidance and known.null is None):
        fix = "leave guidance out" if guidance else "give labels="
        fix += f", or where its last one does, say so: model.register_to_config(num_classes={known.classes - 1})"
        raise ValueError(f"the network has {known.classes} labels and none is known to mean no class; {fix}")
    chosen = torch.as_tensor(labels)
    if chosen.dtype == torch.bool or not torch.can_cast(chosen.dtype, torch.int64):
        raise ValueError(f"labels are whole numbers, not {chosen.dtype}".replace("torch.", ""))
    chosen = (chosen if chosen.ndim else chosen.expand(n)).to("cpu", torch.int64)
    if chosen.shape != (n,):
        raise ValueError(f"labels are one class for all or one for each of {n} images, not {tuple(chosen.shape)}")
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < known.classes:
        raise ValueError(f"the network knows classes 0 to {known.classes - 1}, not {chosen.unique().tolist()}")
    return chosen


def _batch_that_fits(model: nn.Module, size: tuple[int, ...], guidance: float, device: torch.device) -> int:
    image = torch.zeros(1, *size, device=device, dtype=dtype_of(model))
    try:
        peak = peak_of_sampling(model, image, guidance, convention="eager")
    except Exception:  # not every network can be profiled
        return FEW
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
    return max(1, min(MOST, free // 2 // peak))
