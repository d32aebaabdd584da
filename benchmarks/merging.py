"""What merging tokens saves and costs: peak, multiply-adds, time and accuracy, beside networks of larger patches.

    python benchmarks/merging.py                 20 minutes of one core; finished runs are reused
    python benchmarks/merging.py --no-training   half a minute: peaks, multiply-adds and time alone

1. vit_tiny-16 on one image of 224 px with random weights: `merge_tokens` with r pairs in each block or with as many
   as possible in the first, beside the network as it is and with patches of 32. Peaks are `fused`; time is the median
   ratio to the network as it is, in processor seconds of one thread, run in turn in one process.
2. vit_pico with patches of 4, 5 and 8 on `cluttered` (40 px), trained by one recipe, that of benchmarks/vit.py, and
   seeds 0, 1, …; the epoch is chosen on validation. Merged copies are not trained further. Test is read once by each.

Writes benchmarks/results/merging.csv, one row for each network and copy, with accuracies of each seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd
import torch
from torch import Tensor, nn

import redistill_lib as rd

LESSON: dict[str, Any] = {"batch_size": 32, "optimizer": "adamw", "learning_rate": 5e-4, "weight_decay": 0.05}
LESSON |= {"schedule": "cosine", "clip_norm": 1.0}
RESULTS = Path(__file__).parent / "results" / "merging.csv"
# Network, its merged copies by r of each block ("first": all in the first block), depth and patches.
LARGE: dict[str, tuple[int | str, ...]] = {"vit_tiny-16": (0, 8, 16, "first"), "vit_tiny-32": (0,)}
SMALL: dict[str, tuple[int | str, ...]] = {
    "vit_pico-4": (0, 4, 8, 16, "first"),
    "vit_pico-5": (0, 4, 8, "first"),
    "vit_pico-8": (0,),
}


def merged(model: nn.Module, per_block: int | str, x: Tensor) -> Any:
    if per_block != "first":
        return rd.merge_tokens(model, int(per_block), example=x)
    height, width = model.patch_embed.grid_size  # type: ignore[union-attr, misc]
    depth = len(model.blocks)  # type: ignore[arg-type]
    return rd.merge_tokens(model, (height * width // 2, *[0] * (depth - 1)), example=x)


def seconds(model: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    model(x)
    return time.process_time() - start


def ratio(plain: nn.Module, other: nn.Module, x: Tensor, rounds: int) -> float:
    seconds(plain, x), seconds(other, x)
    return statistics.median(seconds(other, x) / seconds(plain, x) for _ in range(rounds))


def costs(name: str, per_block: int | str, model: nn.Module, x: Tensor) -> dict[str, Any]:
    profile = rd.profile_memory(model, x)
    assert not profile.uncounted and not profile.unfused
    peak = {"peak_bytes": profile.peak_bytes, "peak_at": profile.peak_op.module}
    return {"network": name, "per_block": per_block, **peak, "multiply_adds": profile.flops // 2}


def large(rounds: int) -> list[dict[str, Any]]:
    x, rows = torch.randn(1, 3, 224, 224), list[dict[str, Any]]()
    plain = rd.create_model("vit_tiny-16").eval()
    for name, counts in LARGE.items():
        net = plain if name == "vit_tiny-16" else rd.create_model(name).eval()
        for per_block in counts:
            model = merged(net, per_block, x)
            rows.append(costs(name, per_block, model, x) | {"time": round(ratio(plain, model, x, rounds), 3)})
            tell(rows[-1], rows[0])
    return rows


def small(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    data = rd.load_data("cluttered", train_size=6000)
    options = rd.RunOptions(arguments.runs, cpu=True, progress=False)
    recipe, rows = rd.Recipe(epochs=arguments.epochs, **LESSON), dict[tuple[str, int | str], dict[str, Any]]()
    x = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    for seed in range(arguments.seeds):
        for name, counts in SMALL.items():
            net = rd.load_model(rd.train_classifier(name, data, recipe, seed=seed, options=options))
            for per_block in counts:
                model = merged(net, per_block, x)
                row = rows.setdefault((name, per_block), costs(name, per_block, model, x))
                row[f"test_accuracy_{seed}"] = rd.evaluate(model, data.test)["accuracy"]
                tell(row, next(iter(rows.values())))
    return list(rows.values())


def tell(row: dict[str, Any], first: dict[str, Any]) -> None:
    reached = [f"time {row['time']:.2f}"] if "time" in row else []
    reached += [f"{100 * value:.1f} %" for key, value in row.items() if key.startswith("test")]
    print(
        f"{row['network']:11s} r={row['per_block']!s:5s}  peak {row['peak_bytes'] / 1024:6.1f} KiB "
        f"({row['peak_bytes'] / first['peak_bytes']:.2f}) at {row['peak_at']:18s}  "
        f"{row['multiply_adds'] / 1e6:7.1f} M ({row['multiply_adds'] / first['multiply_adds']:.2f})  "
        f"{', '.join(reached)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=25, help="of the measurement of time")
    parser.add_argument("--runs", default="runs/merging")
    parser.add_argument("--no-training", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = large(arguments.rounds)
    if not arguments.no_training:
        pd.DataFrame(rows + small(arguments)).to_csv(RESULTS, index=False)


if __name__ == "__main__":
    main()
