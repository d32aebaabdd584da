"""Accuracy of classifiers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from redistill_lib.data import as_batch, to_float
from redistill_lib.network import evaluating, output_of


def evaluate(
    model: nn.Module, split: Dataset[Any], *, batch_size: int = 256, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Accuracy (0…1) and mean cross-entropy of a classifier over a split; the model is left in the mode it was in.

    >>> from redistill_lib.data import load_data
    >>> data = load_data("digits")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
    >>> sorted(evaluate(model, data.test))
    ['accuracy', 'loss']
    """
    correct, loss, count = count_correct(model, split, device, batch_size)
    return {"accuracy": correct / count, "loss": loss / count}


def count_correct(
    model: nn.Module,
    split: Dataset[Any],
    device: torch.device | str,
    batch_size: int = 256,
    shard: tuple[int, int] = (0, 1),
) -> tuple[float, float, float]:
    """Right answers, summed cross-entropy and number of images; shard (k, n) is every n-th image from the k-th."""
    rank, world = shard
    indices = list(range(rank, len(split), world))  # type: ignore[arg-type]
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    correct, loss = 0.0, 0.0
    with evaluating(model):
        for images, labels in DataLoader(split, batch_sampler=batches, collate_fn=as_batch):
            images = to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
            logits = output_of(model(images)).float()
            labels = labels.to(device)
            correct += float((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct, loss, float(len(indices))
