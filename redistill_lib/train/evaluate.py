"""Reading a classifier's accuracy off a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from redistill_lib.data import as_batch
from redistill_lib.data.augment import to_float
from redistill_lib.network import evaluating


def evaluate(
    predict: Callable[[Tensor], Tensor],
    split: Dataset[Any],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Accuracy (0…1) and mean cross-entropy of ``predict(images)`` → logits over a split.

    `predict` is a module or a method of one, which is put into eval mode for the time being; of any other function,
    the modules stay in the mode they are in.
    """
    correct, loss, count = count_correct(predict, split, device, batch_size)
    return {"accuracy": correct / count, "loss": loss / count}


def count_correct(
    predict: Callable[[Tensor], Tensor],
    split: Dataset[Any],
    device: torch.device | str,
    batch_size: int = 256,
    shard: tuple[int, int] = (0, 1),
) -> tuple[float, float, float]:
    """Right answers, summed cross-entropy and number of images: every n-th from the k-th on, for shard (k, n)."""
    rank, world = shard
    indices = list(range(rank, len(split), world))  # type: ignore[arg-type]
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    correct, loss = 0.0, 0.0
    owner = getattr(predict, "__self__", predict)
    with evaluating(owner) if isinstance(owner, nn.Module) else torch.no_grad():
        for images, labels in batch_loader(split, batches):
            logits = predict(on_device(images, device)).float()
            labels = labels.to(device)
            correct += float((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct, loss, float(len(indices))


def on_device(images: Tensor, device: torch.device | str) -> Tensor:
    return to_float(images.to(device)).contiguous(memory_format=torch.channels_last)


def batch_loader(split: Dataset[Any], batches: list[list[int]], workers: int = 0) -> DataLoader[Any]:
    """Those batches of a split (uint8 images B×C×H×W, labels B), read by `workers` further processes."""
    context = "spawn" if workers else None  # a fork hangs once torch has run on several threads
    return DataLoader(
        split,
        batch_sampler=batches,
        collate_fn=as_batch,
        num_workers=workers,
        multiprocessing_context=context,
        persistent_workers=bool(workers),
    )
