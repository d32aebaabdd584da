"""Diffusion models at one peak of memory: pool or narrow, and what does a teacher add? Equal seconds for every arm.

    python benchmarks/diffusion_table.py                            digits at 16 px; finished runs are reused
    python benchmarks/diffusion_table.py --arms "naive;MSE;late" --seeds 2 --seconds 120
    python benchmarks/diffusion_table.py --teacher-steps 6000 --teacher-share 0 --name diffusion_taught
                                        a better teacher that is there already, so that no arm pays for it
    python benchmarks/diffusion_table.py cifar10 --data FOLDER      the paper's U-Nets; wants a GPU

No network has a higher peak (fp32, `fused`) than the student `unet-2-21`, which pools earlier than its teacher
`unet-1-22`. It learns alone (`naive`), from the teacher's weights, and taught by the teacher's prediction (`MSE`), by
RED, or both; `RED blocks` are its blocks without their loss. Its rivals learn alone, each with as many channels as
that peak allows, up to 256: `narrow` keeps the teacher's plan, `late` pools later than the student, `early` earlier,
`deeper` once more.

1. Each seed trains a teacher for the recipe's steps, and every arm. Who learns from it pays its share of it, all
   unless said otherwise, and for its passes in each step. What a step costs is measured once, by the training
   itself, in turn with the other arms, and kept in the run store. Validation, five times in a training, is not
   counted.
2. In every arm the loss is the denoising loss plus each method's alpha times its loss, where MSE weighs 1 throughout.
   Every arm has two candidates (learning rate or weight of RED), tried with half the seconds on a seed of their own;
   that of lower KID to the validation images, by the first judge, is taken.
3. All are drawn by the same sampler from the same noise, as many images as there are for test, and compared with
   these by four judges: two classifiers of unlike architecture, which may overlook what tells no classes apart; one
   that has learnt nothing (random features, standardised on training images; arXiv 2002.09797), which sees texture;
   and pixels, by their principal components, which see what is where.

`near` is the share of samples that have their nearest neighbour, by pixels, among the training images rather than
among as many test images: for images held out about half, and for copies what the training images themselves get.

One thread per training, `--jobs` trainings at a time; while steps are measured, nothing else should run. Writes
benchmarks/results/diffusion/: runs.csv (a row per run and judge), trials.csv, kid.png and nearest.png (they need
Chrome or Chromium), and prints the tables; diffusion_report.py makes tables and kid.png anew from runs.csv. What the
first judge says is redistill_lib/measured/diffusion/table.csv.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import itertools
import json
import multiprocessing
import os
import re
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: results repeat bit for bit only at one thread count

import pandas as pd
import plotly.graph_objects as go
import torch
from diffusion_report import REAL, Scores, report
from torch import Tensor, nn

import redistill_lib as rd
from redistill_lib.data import DataSplits
from redistill_lib.diffusion import to_uint8
from redistill_lib.figures.samples import image_trace, panels
from redistill_lib.figures.theme import muted
from redistill_lib.models.unet import UNetConfig
from redistill_lib.progress import progress_bar
from redistill_lib.quality import Extractor, Features, classifier_extractor, features
from redistill_lib.results import listed
from redistill_lib.runs import Run, write_text
from redistill_lib.source import code_identity
from redistill_lib.train import DDPM_CIFAR10, DIGITS_UNET, DiffusionRecipe

RESULTS = Path(__file__).parent / "results"
TRIAL_SEED = 100
MOST = 10_000  # images looked at
MADE_BY = {"ema": True, "sampler": "ddim", "steps": 25}
COMPONENTS = 64  # of pixels
LAP, LAPS, PASSES = 10, 3, 3  # so many steps are timed so often, in turn with other arms
VIT = rd.Recipe(epochs=60, batch_size=32, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)


@dataclass(frozen=True)
class Setting:
    """A data set, the networks for it, how they are trained, and who judges them."""

    name: str
    data: str
    image_size: int
    teacher: str
    student: str
    rivals: tuple[tuple[str, str], ...]
    unet: tuple[tuple[str, Any], ...]
    recipe: DiffusionRecipe  # its steps are the teacher's
    seconds: float
    judges: tuple[tuple[str, float, rd.Recipe], ...]  # by name, width and recipe; the first also untrained
    share: float = 1.0  # of its teacher's training that an arm pays for
    runs: str = "runs/diffusion"
    cpu: bool = field(default_factory=lambda: not torch.cuda.is_available())

    @property
    def device(self) -> str:
        return "cpu" if self.cpu else "cuda"

    @property
    def load(self) -> DataSplits:
        return _loaded(self.data, self.image_size)

    def build(self, model: str, ch: int | None = None) -> nn.Module:
        options = {**dict(self.unet), **({} if ch is None else {"ch": ch})}
        return rd.create_model(model, in_channels=self.load.in_channels, **options)

    def example(self, model: str) -> tuple[Tensor, ...]:
        return rd.example_inputs(model, self.image_size, in_channels=self.load.in_channels)

    def peak(self, model: str, ch: int | None = None) -> int:
        return rd.profile_memory(self.build(model, ch), *self.example(model)).peak_bytes


@functools.lru_cache(1)
def _loaded(data: str, size: int) -> DataSplits:
    return rd.load_data(data, image_size=size)


SETTINGS = {
    "digits": Setting(
        "digits", "digits", 16, "unet-1-22", "unet-2-21",
        (("late", "unet-2-12"), ("narrow", "unet-1-22"), ("early", "unet-4-11"), ("deeper", "unet-2-22")),
        tuple(DIGITS_UNET.items()), DiffusionRecipe(), seconds=240.0, cpu=True,
        judges=(("resnet18-1-21222", 0.125, rd.Recipe(epochs=20)), ("vit_pico-4", 1.0, VIT)),
    ),
    "cifar10": Setting(
        "cifar10", "hf:uoft-cs/cifar10", 32, "unet-1-222", "unet-2-221",
        (("late", "unet-2-122"), ("narrow", "unet-1-222"), ("early", "unet-4-211"), ("deeper", "unet-2-222")),
        (), replace(DDPM_CIFAR10, steps=20_000, warmup=1000, ema_decay=0.999), seconds=7200.0,
        judges=(("resnet18-1-11222", 1.0, rd.Recipe(epochs=20)), ("vit_pico-4", 1.0, VIT)),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A network and how it learns; with `from_teacher`, from the teacher's weights on."""

    model: str
    methods: str | None = None
    from_teacher: bool = False
    rate: float = 1.0  # of learning, by the recipe's
    ch: int | None = None  # the setting's, left out

    @property
    def taught(self) -> bool:
        return self.from_teacher or self.methods not in (None, "red-blocks")

    @property
    def key(self) -> str:
        """What decides how long a step takes."""
        return f"{self.model} ch={self.ch} {re.sub(r'[(].*?[)]', '', self.methods or 'alone')}"


def arms(setting: Setting) -> dict[str, list[Arm]]:
    """The ways to one peak, by name, the reference first; two candidates of each."""

    def rated(methods: str | None = None, model: str = setting.student, **options: Any) -> list[Arm]:
        return [Arm(model, methods, rate=rate, **options) for rate in (1.0, 2.0)]

    red = [f"red(alpha={alpha})" for alpha in (0.1, 1.0)]
    limit, evens = setting.peak(setting.student), range(2, 257, 2)
    found = {
        "naive": rated(),
        "naive from the teacher": rated(from_teacher=True),
        "MSE": rated("mse"),
        "MSE from the teacher": rated("mse", from_teacher=True),
        "RED": [Arm(setting.student, each) for each in red],
        "RED + MSE": [Arm(setting.student, f"{each}+mse") for each in red],
        "RED blocks": rated("red-blocks"),
        "RED blocks + MSE": rated("red-blocks+mse"),
    }
    for name, model in setting.rivals:
        fitting = bisect.bisect_right(evens, limit, key=functools.partial(setting.peak, model))
        found[name] = rated(model=model, ch=evens[fitting - 1])
    return found


def train(setting: Setting, arm: Arm, seed: int, steps: int, teacher: Run | None = None, **options: Any) -> Run:
    """An arm's run of so many steps, as found or trained."""
    recipe = replace(setting.recipe, steps=steps, learning_rate=arm.rate * setting.recipe.learning_rate)
    told = {"runs_dir": setting.runs, "log_every": -(-steps // 5), **options}
    common: dict[str, Any] = {"seed": seed, "options": rd.RunOptions(cpu=setting.cpu, progress=False, **told)}
    unet = {**dict(setting.unet), **({} if arm.ch is None else {"ch": arm.ch})}
    common |= {"data": setting.load, "recipe": recipe, "unet": unet}
    network: Any = arm.model
    if arm.from_teacher:  # its transposed convolutions have other kernels, so the weights are fitted to the plan
        plan = arm.model.partition("-")[2]
        fitted, _ = rd.derive_student(rd.load_model(teacher), plan=plan, example=setting.example(arm.model))
        network = setting.build(arm.model)
        network.load_state_dict(fitted.state_dict())
    if arm.methods is None:
        return rd.train_diffusion(network, **common)
    objective = rd.Objective(distill_weight=None, reduction="sum")
    return rd.distill_diffusion(network, teacher, methods=arm.methods, objective=objective, **common)


def step_costs(setting: Setting, candidates: Sequence[Arm], teacher: Run) -> dict[str, float]:
    """Seconds of a step of each arm by its key, the processor's or a GPU's; as measured before, if they were."""
    file, store = Path(setting.runs) / "step_costs.json", f"{setting.name} {setting.data} {code_identity()}"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known = kept.setdefault(store, {})
    missing = {arm.key: arm for arm in candidates if arm.key not in known}
    column, found = "processor_seconds" if setting.cpu else "seconds", {key: list[float]() for key in missing}
    # Without validation, which takes as long as the steps here and next to nothing in a training.
    unvalidated = mock.patch("redistill_lib.train.tasks.denoising_loss", return_value=0.0)
    with progress_bar(PASSES * len(missing), "what a step costs") as bar, TemporaryDirectory() as folder, unvalidated:
        for k, (key, arm) in itertools.product(range(PASSES), missing.items()):
            options = {"runs_dir": f"{folder}/{k}", "log_every": LAP, "samples": 1}
            run = train(setting, arm, TRIAL_SEED, LAP * (1 + LAPS), teacher, **options)
            found[key] += (run.history()[column][1:] / LAP).tolist()
            bar.update()
    known |= {key: statistics.median(laps) for key, laps in found.items()}
    write_text(file, json.dumps(kept, indent=1))
    return dict(known)


def judge_run(setting: Setting, model: str, width: float, recipe: rd.Recipe) -> Run:
    options = rd.RunOptions(setting.runs, cpu=setting.cpu, progress=False)
    return rd.train_classifier(model, setting.load, recipe, width=width, options=options)


@functools.lru_cache(1)
def judges(setting: Setting) -> dict[str, tuple[Extractor, dict[str, Features]]]:
    """Each with what it sees in training images, and in up to `MOST` validation and test images."""
    data, (first, width, _) = setting.load, setting.judges[0]
    found = {}
    for name, *rest in setting.judges:
        run = judge_run(setting, name, *rest)
        found[name.partition("-")[0]] = classifier_extractor(rd.load_model(run), run.id, run.metrics["test_accuracy"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = rd.create_model(first, in_channels=data.in_channels, width=width)
    untrained.fc, count = nn.Identity(), untrained.fc.in_features
    found["untrained"] = learn(
        nn.Sequential(untrained, nn.BatchNorm1d(count, affine=False)), f"untrained {first}", data
    )
    axes = nn.Linear(data.in_channels * setting.image_size**2, COMPONENTS, bias=False)
    found["pixels"] = learn(nn.Sequential(nn.Flatten(), axes), f"{COMPONENTS} principal components of pixels", data)
    every = {}
    for name, judge in found.items():
        judge = judge.to(setting.device)
        few = {split: getattr(data, split) for split in ("validation", "test")}
        few = {split: images.take(torch.arange(min(MOST, len(images)))) for split, images in few.items()}
        seen = {
            split: features(images, judge, progress=False) for split, images in {"train": data.train, **few}.items()
        }
        every[name] = judge, seen
    return every


def learn(network: nn.Sequential, name: str, data: DataSplits) -> Extractor:
    """An extractor whose last layer standardises what comes before it over the training images, or gives its
    principal components there; it reads no label."""
    before, last = network[0], network[-1]
    width = last.num_features if isinstance(last, nn.BatchNorm1d) else last.in_features
    seen = features(
        data.train, Extractor(before, name, num_features=width, channels=data.in_channels), progress=False
    )
    if isinstance(last, nn.BatchNorm1d):
        last.running_mean, last.running_var = seen.mean.float(), seen.cov.diagonal().float()
    else:
        last.weight.data = torch.linalg.eigh(seen.cov).eigenvectors[:, -last.out_features :].T.float().contiguous()
        width = last.out_features
    return Extractor(network, name, num_features=width, channels=data.in_channels)


def near(images: Features, seen: Mapping[str, Features]) -> float:
    """The share of images that are nearer to a training image than to any of as many test images."""
    test, train = seen["test"].values, seen["train"].values
    count = min(len(test), len(train))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    groups, test = train[order].split(count)[: len(train) // count], test[:count]
    shares = [
        (torch.cdist(part, group).amin(1) < torch.cdist(part, test).amin(1)).float()
        for part in images.values.split(1024)
        for group in groups
    ]
    return float(torch.cat(shares).mean())


def load(setting: Setting, arm: Arm, run: Run) -> nn.Module:
    return rd.load_model(run, setting.build(arm.model) if arm.from_teacher else None)


def draw(setting: Setting, arm: Arm, run: Run) -> Tensor:
    model = load(setting, arm, run)
    count = min(MOST, len(setting.load.test))
    how = {"sampler": MADE_BY["sampler"], "steps": MADE_BY["steps"], "seed": 0, "progress": False}
    return rd.sample(model.to(setting.device), count, setting.image_size, **how)


def assess(setting: Setting, images: Any, split: str, who: Sequence[str]) -> list[dict[str, Any]]:
    """A row of scores by each of these judges, against the images of a split."""
    rows = []
    for name in who:
        judge, seen = judges(setting)[name]
        fake = features(images, judge, progress=False)
        score = rd.score_images(fake, seen[split], judge, settings=MADE_BY, progress=False)
        rows.append({"judge": name, "near": near(fake, seen), **score.to_frame().iloc[0].to_dict()})
    return rows


@dataclass(frozen=True)
class Job:
    name: str
    arm: Arm
    seed: int
    steps: int
    beforehand: float  # seconds paid for the teacher
    step: float  # seconds


def attempt(setting: Setting, job: Job, teacher: Run | None, split: str) -> pd.DataFrame:
    """Train, draw and score: by all judges against test images, by the first against those of another split."""
    run = train(setting, job.arm, job.seed, job.steps, teacher)
    told: dict[str, Any] = {"arm": job.name, "seed": job.seed, "network": job.arm.model}
    told["ch"] = job.arm.ch or dict(setting.unet).get("ch", UNetConfig.ch)
    told |= {"methods": job.arm.methods, "taught": job.arm.taught, "rate": job.arm.rate, "steps": job.steps}
    told |= {
        "budget": setting.seconds,
        "seconds": job.beforehand + job.steps * job.step,
        "for_the_teacher": job.beforehand,
        "run": run.id,
    }
    told["measured"] = run.history()["processor_seconds" if setting.cpu else "seconds"].sum()
    told |= {name: run.metrics[name] for name in ("validation_loss", "peak_bytes", "parameters")}
    who = [*judges(setting)] if split == "test" else [*judges(setting)][:1]
    return pd.DataFrame({**told, **row} for row in assess(setting, draw(setting, job.arm, run), split, who))


def spread(pool: Executor, told: str, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What a function makes of each task, in their order."""
    futures = [pool.submit(function, *task) for task in tasks]
    try:
        with progress_bar(len(tasks), told) as bar:
            for future in as_completed(futures):
                future.result()
                bar.update()
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [future.result() for future in futures]


def compare(
    pool: Executor, setting: Setting, every: Mapping[str, list[Arm]], names: Sequence[str], seeds: int
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, tuple[Arm, Run]]]:
    """Scores of all runs, of the trials, and each arm's network and run of the first seed."""
    teacher, theirs = Arm(setting.teacher), setting.recipe.steps
    spread(pool, "judges", judge_run, [(setting, *judge) for judge in setting.judges])
    first = [(setting, teacher, seed, theirs) for seed in (TRIAL_SEED, *range(seeds))]
    teachers = {task[2]: run for task, run in zip(first, spread(pool, "teachers", train, first), strict=True)}
    # All, so that those of a later call have been measured beside these.
    costs = step_costs(setting, [teacher, *itertools.chain(*every.values())], teachers[TRIAL_SEED])

    def job(name: str, arm: Arm, seed: int, seconds: float) -> tuple[Setting, Job, Run]:
        before = setting.share * theirs * costs[teacher.key] if arm.taught else 0.0
        steps = int((seconds - before) / costs[arm.key] + 1e-9)
        if steps < 1:
            told = f"{setting.seconds:g} s, of which a trial gets half, are too few for {name}"
            raise SystemExit(f"{told}, which pays {before:.3g} s for its teacher first; give --seconds more")
        return setting, Job(name, arm, seed, steps, before, costs[arm.key]), teachers[seed]

    tries = [job(name, arm, TRIAL_SEED, setting.seconds / 2) for name in names for arm in every[name]]
    trials = pd.concat(spread(pool, "trials", attempt, [(*each, "validation") for each in tries]), ignore_index=True)
    best = trials.groupby("arm")["kid"].idxmin()
    trials["chosen"] = trials.index.isin(best)
    chosen = {name: tries[best[name]][1].arm for name in names}
    plan: list[Any] = [
        (setting, Job("teacher", teacher, k, theirs, 0.0, costs[teacher.key]), None) for k in range(seeds)
    ]
    plan += [job(name, arm, seed, setting.seconds) for seed in range(seeds) for name, arm in chosen.items()]
    frame = pd.concat(spread(pool, "trainings", attempt, [(*each, "test") for each in plan]), ignore_index=True)
    first_seed = frame[frame["seed"] == 0].drop_duplicates("arm").set_index("arm")["run"]
    return (
        frame,
        trials,
        {name: (arm, Run.load(f"{setting.runs}/{first_seed[name]}")) for name, arm in chosen.items()},
    )


def by_first_judge(setting: Setting, frame: pd.DataFrame, runs: Mapping[str, tuple[Arm, Run]]) -> pd.DataFrame:
    """A row per run: what `figures.quality` draws and `read_tradeoffs` reads."""
    first = frame[(frame["judge"] == frame["judge"].iloc[0]) & (frame["arm"] != REAL)].drop(columns="judge")
    networks = {name: load(setting, arm, run) for name, (arm, run) in runs.items()}
    networks["teacher"] = setting.build(setting.teacher)
    example = setting.example(setting.student)
    adds = {name: rd.profile_memory(each, *example).flops // 2 for name, each in networks.items()}
    named = first.rename(columns={"arm": "role", "network": "model"})
    return named.assign(data=setting.name, multiply_adds=first["arm"].map(adds))


def neighbours(setting: Setting, scores: Scores, runs: Mapping[str, tuple[Arm, Run]], count: int = 9) -> go.Figure:
    """The first samples of the best arm and the reference, each above its nearest training and test image."""
    judge, seen = judges(setting)["pixels"]
    rows, names, nearer = [], [], []
    for name in dict.fromkeys((scores.arms[0], scores.reference)):
        images = to_uint8(draw(setting, *runs[name])[:count])
        looked = features(images, judge, progress=False).values
        found = {split: torch.cdist(looked, seen[split].values).min(1) for split in ("train", "test")}
        rows.append([(image_trace(image, name), "", "") for image in images])
        for split, (far, which) in found.items():
            others = getattr(setting.load, split).__getitems__(which.tolist())[0]
            least = torch.minimum(found["train"].values, found["test"].values)
            words = [
                f"<b>{x:.1f}</b>" if x == y else muted(f"{x:.1f}")
                for x, y in zip(far.tolist(), least.tolist(), strict=True)
            ]
            rows.append([(image_trace(image, split), "", word) for image, word in zip(others, words, strict=True)])
        names += [f"<b>{'<br>'.join(textwrap.wrap(name, 16))}</b>", "nearest<br>training", "nearest<br>test"]
        nearer.append(f"{100 * scores.mean(name, 'pixels', 'near').value:.0f} % ({name})")
    held = f"{100 * near(seen['validation'], seen):.0f} % of images held out"
    text = f"Nearer to a training image than to any of as many test images: {listed(nearer)}, and {held}"
    note = f"Distance by {judge.name}, from {len(seen['train']):,} training and {len(seen['test']):,} test images."
    return panels(rows, images.shape[-2:], text, note, names=names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="?", choices=SETTINGS, default="digits")
    parser.add_argument("--data", help="what load_data takes, in place of the setting's own")
    parser.add_argument("--seconds", type=float, help="for each arm, its teacher's share included")
    parser.add_argument("--teacher-steps", type=int)
    parser.add_argument(
        "--teacher-share", type=float, default=1.0, help="of its seconds that who learns from it pays"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", help="some of them, by name, with semicolons between; the first is the reference")
    parser.add_argument("--runs", default="runs/diffusion")
    parser.add_argument("--jobs", type=int, help="trainings at a time; one on a GPU")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the result's folder")
    given = parser.parse_args()
    setting = replace(SETTINGS[given.setting], runs=given.runs, share=given.teacher_share)
    setting = replace(setting, data=given.data or setting.data, seconds=given.seconds or setting.seconds)
    if given.teacher_steps:
        setting = replace(setting, recipe=replace(setting.recipe, steps=given.teacher_steps))
    every = arms(setting)
    names = [*every] if given.arms is None else [name.strip() for name in given.arms.split(";")]
    if unknown := [name for name in names if name not in every]:
        parser.error(f"there is no arm {unknown[0]!r}; there are {'; '.join(every)}")
    jobs = given.jobs or (os.cpu_count() or 1 if setting.cpu else 1)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        frame, trials, runs = compare(pool, setting, every, names, given.seeds)
    count = min(MOST, len(setting.load.test), len(setting.load.train))
    order = torch.randperm(len(setting.load.train), generator=torch.Generator().manual_seed(0))[:count]
    real = pd.DataFrame(assess(setting, setting.load.train.take(order), "test", [*judges(setting)]))
    frame = pd.concat([frame, real.assign(arm=REAL, seed=0)], ignore_index=True)
    name = given.name or ("diffusion" if setting.name == "digits" else f"diffusion_{setting.name}")
    folder, table = given.output / name, by_first_judge(setting, frame, runs)
    package = rd.measured(name) if given.output == RESULTS else folder
    for kept in (folder, package):
        kept.mkdir(parents=True, exist_ok=True)
    for file, rows in ((folder / "runs.csv", frame), (folder / "trials.csv", trials), (package / "table.csv", table)):
        write_text(file, rows.to_csv(index=False, float_format="%.7g"))
    print(trials[["arm", "methods", "rate", "steps", "kid", "chosen"]].to_string(index=False), end="\n\n")
    for name, (judge, seen) in judges(setting).items():
        accuracy = "" if judge.accuracy is None else f", {judge.accuracy:.1%} on test"
        print(f"{name}: {judge.name}{accuracy}; near of images held out: {near(seen['validation'], seen):.2f}")
    scores = Scores(frame)
    report(scores, folder)
    neighbours(setting, scores, runs).write_image(folder / "nearest.png", scale=2)


if __name__ == "__main__":
    main()
