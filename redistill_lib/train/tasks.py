"""What a training is for: how a batch is made, what the loss is, and how a network is validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redistill_lib.data import DataSplits
from redistill_lib.data.augment import sample_rng
from redistill_lib.diffusion import DiffusionProcess, denoising_loss, sample, to_uint8
from redistill_lib.methods import Batch
from redistill_lib.network import output_of
from redistill_lib.train.accuracy import count_correct


class Task(Protocol):
    """One kind of training; `unit` is what a row of its history counts."""

    unit: ClassVar[str]

    def batch(self, images: Tensor, labels: Tensor, index: Tensor, view: Tensor) -> Batch:
        """One step's data from augmented images −1…1 and their labels (or probabilities), on the device."""

    def loss(self, outputs: Any, targets: Any) -> Tensor: ...

    def measures(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """What the history keeps of each step besides the losses."""

    def validate(self, model: nn.Module, split: Any, device: torch.device, shard: tuple[int, int]) -> Tensor:
        """Sums over a split or its shard (k, n), every n-th image from the k-th; the number of images comes last."""

    def scores(self, sums: Tensor) -> dict[str, float]:
        """Means from the sums of all shards."""

    def better(self, row: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether this row's network replaces the best one."""

    def preview(self, model: nn.Module, count: int) -> Tensor | None:
        """Images that the network generates, if it can."""

    def example(self, data: DataSplits, count: int) -> tuple[Tensor, ...]:
        """Zeros in the shape of a network's inputs."""


@dataclass(frozen=True)
class Classification:
    """Images → classes, by cross-entropy; the best epoch on validation is kept."""

    unit: ClassVar[str] = "epoch"
    label_smoothing: float = 0.0

    def batch(self, images: Tensor, labels: Tensor, index: Tensor, view: Tensor) -> Batch:
        return Batch((images,), labels, index, view)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(output_of(outputs), targets, label_smoothing=self.label_smoothing)

    def measures(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Accuracy; of an image that is mixed from two, the class with the larger share counts."""
        labels = batch.targets.argmax(1) if batch.targets.ndim == 2 else batch.targets
        return {"accuracy": (output_of(outputs).argmax(1) == labels).float().mean()}

    def validate(self, model: nn.Module, split: Any, device: torch.device, shard: tuple[int, int]) -> Tensor:
        return torch.tensor(count_correct(model, split, device, shard=shard), device=device)

    def scores(self, sums: Tensor) -> dict[str, float]:
        correct, loss, count = sums.tolist()
        return {"accuracy": correct / count, "loss": loss / count}

    def better(self, row: Mapping[str, float], best: Mapping[str, float]) -> bool:
        return row["validation_accuracy"] > best.get("validation_accuracy", -1.0)

    def preview(self, model: nn.Module, count: int) -> None:
        return None

    def example(self, data: DataSplits, count: int) -> tuple[Tensor, ...]:
        return (torch.zeros(count, data.in_channels, data.image_size, data.image_size),)


@dataclass(frozen=True)
class Denoising:
    """Noisy images and time steps → what `process` asks for, by mean squared error (arXiv 2006.11239, equation 14).

    Noise and time step are drawn by the image's own name, (index, view). The last network is kept.
    """

    unit: ClassVar[str] = "step"
    process: DiffusionProcess
    shape: tuple[int, int, int]  # of an image
    classes: int | None = None  # that the network takes labels of
    null: int | None = None  # the label that means no class
    label_dropout: float = 0.1

    def batch(self, images: Tensor, labels: Tensor, index: Tensor, view: Tensor) -> Batch:
        draws = [sample_rng(i, v, stream=1) for i, v in zip(index.tolist(), view.tolist(), strict=True)]
        times = [draw.integers(self.process.num_train_timesteps) for draw in draws]
        hidden = [draw.random() < self.label_dropout for draw in draws]
        drawn = np.stack([draw.standard_normal(self.shape, dtype=np.float32) for draw in draws])
        noise, t = torch.from_numpy(drawn).to(images), torch.tensor(times, device=images.device)
        noisy, target = self.process.add_noise(images, noise, t), self.process.target(images, noise, t)
        if self.classes is None:
            return Batch((noisy, t), target, index, view)
        if self.null is not None:
            labels = labels.masked_fill(torch.tensor(hidden, device=labels.device), self.null)
        return Batch((noisy, t, labels), target, index, view)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.mse_loss(output_of(outputs).float(), targets)

    def measures(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        return {}

    def validate(self, model: nn.Module, split: Any, device: torch.device, shard: tuple[int, int]) -> Tensor:
        return torch.tensor([denoising_loss(model, split, process=self.process, device=device), 1.0], device=device)

    def scores(self, sums: Tensor) -> dict[str, float]:
        loss, count = sums.tolist()  # every process has the same
        return {"loss": loss / count}

    def better(self, row: Mapping[str, float], best: Mapping[str, float]) -> bool:
        return True

    def preview(self, model: nn.Module, count: int) -> Tensor:
        labels = None if self.classes is None else torch.arange(count) % self.classes
        return to_uint8(sample(model, count, self.shape, labels=labels, process=self.process, progress=False))

    def example(self, data: DataSplits, count: int) -> tuple[Tensor, ...]:
        t = torch.zeros(count, dtype=torch.int64)
        x = torch.zeros(count, *self.shape)
        return (x, t) if self.classes is None else (x, t, t.clone())
