"""Reading a classifier's accuracy off a split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from redistill_lib.augment import to_float
from redistill_lib.data import as_batch


def evaluate(
    predict: Callable[[Tensor], Tensor],
    split: Dataset[Any],
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    shard: tuple[int, int] = (0, 1),
) -> dict[str, float]:
    """Accuracy (0…1) and mean cross-entropy of ``predict(images)`` → logits over a split.

    A module is put into eval mode for the time being. ``shard=(k, n)`` reads every n-th picture from the k-th on.
    """
    rank, world = shard
    indices = list(range(rank, len(split), world))  # type: ignore[arg-type]
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    correct, loss = 0.0, 0.0
    owner = getattr(predict, "__self__", predict)
    modes = [(m, m.training) for m in owner.modules()] if isinstance(owner, nn.Module) else []
    try:
        if isinstance(owner, nn.Module):
            owner.eval()
        with torch.no_grad():
            for images, labels in batch_loader(split, batches):
                logits = predict(on_device(images, device)).float()
                labels = labels.to(device)
                correct += float((logits.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    finally:
        for module, mode in modes:
            module.training = mode
    return {"accuracy": correct / len(indices), "loss": loss / len(indices), "count": len(indices)}


def on_device(pictures: Tensor, device: torch.device | str) -> Tensor:
    return to_float(pictures.to(device)).contiguous(memory_format=torch.channels_last)


def batch_loader(split: Dataset[Any], batches: list[list[int]], workers: int = 0) -> DataLoader[Any]:
    """Those batches of a split (uint8 pictures B×C×H×W, labels B), read by `workers` further processes."""
    context = "spawn" if workers else None  # a fork hangs once torch has run on several threads
    return DataLoader(
        split, batch_sampler=batches, collate_fn=as_batch, num_workers=workers, multiprocessing_context=context
    )
