"""What float32, bfloat16 and int8 cost the networks of a comparison that was measured, and what they save.

    python benchmarks/precision.py pairs --runs DIR        the runs that benchmarks/comparison.py left in DIR
    python benchmarks/precision.py diffusion --runs DIR    those of benchmarks/diffusion.py; FID by the same judge

Peaks are those of one image under `fused`. int8: weights per channel, activations static, calibrated on 200 training
images, as PyTorch computes it. Writes precision.csv in redistill_lib/measured/<name> and
benchmarks/results/precision_<name>.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import redistill_lib as rd
from redistill_lib import figures
from redistill_lib.comparison import Comparison
from redistill_lib.diffusion.noise import DiffusionProcess
from redistill_lib.export import int8_model, precisions
from redistill_lib.export.inputs import calls_on
from redistill_lib.progress import progress_bar
from redistill_lib.quality import classifier_extractor, features

HERE = Path(__file__).parent
CLASSIFIERS = ("teacher", "naive", "RED + KD from the teacher", "RED + KD", "late", "narrow", "small")
DENOISERS = ("teacher", "naive", "RED blocks", "RED + MSE", "late", "narrow")


def classifiers(name: str, runs: Path) -> pd.DataFrame:
    table = Comparison.load(rd.measured(name)).runs
    data = rd.load_data(**rd.runs.Run.load(runs / table["run"].iloc[0]).params["data"])
    networks = {
        arm: [rd.load_model(runs / run) for run in its.sort_values("seed")["run"]]
        for arm in CLASSIFIERS
        if len(its := table[table["arm"] == arm]) and its["image_size"].isna().all()
    }
    return precisions(networks, data)


def denoisers(runs: Path) -> pd.DataFrame:
    """With the images of `table.csv`: its sampler and steps, as many of them, its judge and real images."""
    table = pd.read_csv(rd.measured("diffusion") / "table.csv")
    table = table[
        table["role"].isin(DENOISERS) & (table["settings.extractor"] == table["settings.extractor"].iloc[0])
    ]
    first = table.iloc[0]
    judge = rd.runs.Run.load(runs / first["settings.extractor"])
    data = rd.load_data(**{**judge.params["data"], "image_size": int(first["settings.image"].split("×")[-1])})
    extractor = classifier_extractor(rd.load_model(judge), judge.id, judge.metrics["test_accuracy"])
    count, steps = int(first["settings.n_fake"]), int(first["settings.steps"])
    real = features(data.test.head(int(first["settings.n_real"]))[0], extractor, progress=False)
    training = calls_on(data.train.head(200)[0], DiffusionProcess())
    training = [tuple(torch.cat(each) for each in zip(*training[k : k + 50], strict=True)) for k in range(0, 200, 50)]
    rows = []
    with progress_bar(2 * len(table), "denoisers in each dtype") as bar:
        for _, row in table.drop_duplicates(["role", "seed"]).iterrows():
            network = rd.load_model(runs / row["run"])
            example = calls_on(data.test.head(1)[0], DiffusionProcess())[0]
            for dtype in ("fp32", "int8"):
                model = network if dtype == "fp32" else int8_model(network, training)
                shape = tuple(data.test.head(1)[0].shape[1:])
                drawn = rd.sample(model, count, shape, steps=steps, seed=int(row["seed"]), progress=False)
                score = rd.score_images(drawn, real, extractor, progress=False)
                peak = rd.profile_memory(network, *example, dtype=dtype).peak_bytes
                fid = float(score.to_frame()["fid"].iloc[0])
                rows.append(
                    {"network": row["role"], "seed": row["seed"], "dtype": dtype, "peak_bytes": peak, "FID": fid}
                )
                print(*rows[-1].values(), flush=True)
                bar.update()
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a folder in redistill_lib/measured")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    diffusion = arguments.name == "diffusion"
    frame = denoisers(arguments.runs) if diffusion else classifiers(arguments.name, arguments.runs)
    score = "FID" if diffusion else "accuracy"
    frame.to_csv(rd.measured(arguments.name) / "precision.csv", index=False)
    figure = figures.precisions(frame, score, "FID" if diffusion else "points")
    figure.write_image(HERE / "results" / f"precision_{arguments.name}.png")
    print(
        frame.groupby(["network", "dtype"], sort=False)[["peak_bytes", score]]
        .agg(["mean", "std"])
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    main()
