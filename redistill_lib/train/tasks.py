"""What a training is for: how a batch is made, what the loss is, and how a network is validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from redistill_lib.data import DataSplits, as_batch, to_float
from redistill_lib.data.augment import sample_rng
from redistill_lib.diffusion import DiffusionProcess, denoising_loss, sample, to_uint8
from redistill_lib.methods import Batch
from redistill_lib.network import evaluating, output_of

Shard = tuple[int, int]  # (k, n): every n-th image from the k-th


class Task(Protocol):
    """One kind of training; `unit` is what a row of its history counts."""

    unit: ClassVar[str]

    def batch(self, images: Tensor, labels: Tensor, index: Tensor, view: Tensor) -> Batch:
        """One step's data from augmented images −1…1 and their labels (or probabilities), on the device."""
        return Batch((images,), labels, index, view)

    def loss(self, outputs: Any, targets: Any) -> Tensor: ...

    def measures(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """What the history keeps of each step besides the losses."""
        return {}

    def validate(self, model: nn.Module, split: Any, device: Any, shard: Shard) -> tuple[dict[str, float], int]:
        """Sums over a split or its shard, and the number of images."""

    def better(self, row: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether this row's network replaces the best one."""
        return True

    def preview(self, model: nn.Module, count: int) -> Tensor | None:
        """Images that the network generates, if it can."""
        return None

    def example(self, data: DataSplits, count: int) -> tuple[Tensor, ...]:
        """Zeros in the shape of a network's inputs."""
        return (torch.zeros(count, data.in_channels, data.image_size, data.image_size),)


@dataclass(frozen=True)
class Classification(Task):
    """Images → classes, by cross-entropy; the best epoch on validation is kept."""

    unit: ClassVar[str] = "epoch"
    label_smoothing: float = 0.0

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return F.cross_entropy(output_of(outputs), targets, label_smoothing=self.label_smoothing)

    def measures(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Accuracy; of an image that is mixed from two, the class with the larger share counts."""
        labels = batch.targets.argmax(1) if batch.targets.ndim == 2 else batch.targets
        return {"accuracy": (output_of(outputs).argmax(1) == labels).float().mean()}

    def validate(self, model: nn.Module, split: Any, device: Any, shard: Shard) -> tuple[dict[str, float], int]:
        rows = range(shard[0], len(split), shard[1])
        batches = [list(rows[i : i + 256]) for i in range(0, len(rows), 256)]
        correct, loss = 0.0, 0.0
        with evaluating(model):
            for images, labels in DataLoader(split, batch_sampler=batches, collate_fn=as_batch):
                images = to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
                logits, labels = output_of(model(images)).float(), labels.to(device)
                correct += float((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        return {"accuracy": correct, "loss": loss}, len(rows)

    def better(self, row: Mapping[str, float], best: Mapping[str, float]) -> bool:
        return row["validation_accuracy"] > best.get("validation_accuracy", -1.0)


def evaluate(model: nn.Module, split: Dataset[Any], *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Accuracy (0…1) and mean cross-entropy of a classifier over a split; the model is left in the mode it was in.

    >>> from redistill_lib.data import load_data
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    >>> sorted(evaluate(model, load_data("digits").test))
    ['accuracy', 'loss']
    """
    sums, count = Classification().validate(model, split, device, (0, 1))
    return {name: total / count for name, total in sums.items()}


@dataclass(frozen=True)
class Denoising(Task):
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

    def validate(self, model: nn.Module, split: Any, device: Any, shard: Shard) -> tuple[dict[str, float], int]:
        """The same in every process, whatever its shard."""
        return {"loss": denoising_loss(model, split, process=self.process, device=device)}, 1

    def preview(self, model: nn.Module, count: int) -> Tensor:
        labels = None if self.classes is None else torch.arange(count) % self.classes
        return to_uint8(sample(model, count, self.shape, labels=labels, process=self.process, progress=False))

    def example(self, data: DataSplits, count: int) -> tuple[Tensor, ...]:
        t = torch.zeros(count, dtype=torch.int64)
        return *super().example(data, count), *([t] if self.classes is None else [t, t.clone()])
