"""The scores of generated images with what they were made with, and those of networks beside the memory they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset

from redistill_lib.checks import hint, whole
from redistill_lib.memory import format_size
from redistill_lib.quality import metrics
from redistill_lib.quality.extractors import Extractor, Features, by, check_extractor, features, halves
from redistill_lib.results import interval, label, listed, role_key, run_difference, the

ImageSet = Tensor | Dataset[Any] | Features
STATED = ("ema", "sampler", "steps")  # in the settings of every score; None where nobody said
_LEAST = {"peak_bytes": 0.0, "parameters": 0.0, "fid": -math.inf, "kid": -math.inf}  # what values are above
_ERRORS = {"fid": "fid_error", "kid": "kid_std"}  # of a single run
_BUDGET = 1.15  # peaks within this factor are the same memory: RED blocks need a little


@dataclass(frozen=True, repr=False)
class Quality:
    """How like the real ones generated images are, as one extractor sees it.

    `fid` (lower is better) is biased upwards at finite N; `fid_limit` is its value for N → ∞; `fid_error` is half the
    95 % interval of either, over draws of images, not over trainings. `kid` (lower is better) is unbiased, `kid_std`
    its spread over subsets. `inception_score` (higher is better, 1 to the number of classes) knows no real images.
    `precision` and `recall` (0…1): the share of fakes that look real, and of reals that the fakes reach. NaN: not
    defined here, see `redistill_lib.quality.metrics`.

    `settings` say with what: numbers of images, a hash of the real ones, their size, the extractor, the options of
    each metric, ema, sampler, steps, seed, and the other settings given to `score_images`.
    """

    fid: float
    fid_limit: float
    fid_error: float
    kid: float
    kid_std: float
    inception_score: float
    inception_score_std: float
    precision: float
    recall: float
    settings: dict[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row: every score by its name, every setting as ``settings.<name>``."""
        return pd.json_normalize(vars(self))

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"Quality(FID {self.fid:.4g} ± {self.fid_error:.2g}, KID {self.kid:.3g} ± {self.kid_std:.1g}, "
            f"IS {self.inception_score:.3g}, precision {self.precision:.2f}, recall {self.recall:.2f}; "
            f"{s['n_fake']:,} fake, {s['n_real']:,} real, by {s['extractor']})"
        )


def score_images(
    fake: ImageSet,
    real: ImageSet,
    extractor: Extractor,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
) -> Quality:
    """FID, KID, Inception Score, precision and recall of generated images.

    Args:
        fake, real: N×C×H×W, uint8 or float −1…1; a split of `load_data`; or their `features`.
        settings: how the fakes were made: ``sampler``, ``steps``, ``ema`` and all else that has to agree between
            scores that are compared; not what tells models apart.
        seed: of the subsets that KID, Inception Score, precision, recall and the interval of FID draw.

    Raises ValueError for images that `features` refuses, sets of different shape or extractor, no more images than
    the extractor has features, and a setting that is measured here or misspelt; TypeError for one that is neither
    text nor number, bool or None.

    >>> import torch
    >>> eye = Extractor(torch.nn.Flatten(), "pixels", num_features=4, channels=1)
    >>> images = torch.randint(256, (2, 120, 1, 2, 2), dtype=torch.uint8, generator=torch.manual_seed(0))
    >>> score = score_images(*images, eye, settings={"sampler": "ddim", "steps": 50, "ema": True})
    >>> score.fid < 0.1, score.settings["n_fake"], score.settings["steps"]
    (True, 120, 50)
    """
    whole("seed", seed, least=0)
    given = _checked({} if settings is None else settings)
    a, b = (_seen(which, extractor, batch_size, progress) for which in (fake, real))
    if a.shape != b.shape:
        shapes = f"{by(a.shape)} and {by(b.shape)}"
        raise ValueError(f"fake and real images differ in shape, {shapes}: bring both to one size and channels")
    distance, found = metrics.fid(a, b), metrics.extrapolate(a, b, seed=seed)
    kid, inception = metrics.kid(a, b, seed=seed), metrics.inception_score(a, seed=seed)
    others = (*kid, *inception, *metrics.precision_recall(a, b, seed=seed))
    return Quality(distance, found.limit, found.error, *others, settings=_settings(a, b, given, seed))


def floor(
    real: ImageSet, extractor: Extractor, *, seed: int = 0, batch_size: int = 256, progress: bool = True
) -> Quality:
    """The scores of one half of the real images against the other: what no generator can be expected to beat.

    It is comparable with scores against ``halves(real, seed)[0]`` of as many fakes as that half has; with more of
    either, the floor lies lower.

    >>> import torch
    >>> eye = Extractor(torch.nn.Flatten(), "pixels", num_features=4, channels=1)
    >>> floor(torch.randint(256, (240, 1, 2, 2), dtype=torch.uint8, generator=torch.manual_seed(0)), eye).fid < 0.1
    True
    """
    whole("seed", seed, least=0)
    one, other = halves(_seen(real, extractor, batch_size, progress), seed)
    settings = dict.fromkeys(STATED, "real images")
    return score_images(other, one, extractor, seed=seed, progress=progress, settings=settings)


def _seen(images: ImageSet, extractor: Extractor, batch_size: int, progress: bool) -> Features:
    if not isinstance(images, Features):
        return features(images, extractor, batch_size=batch_size, progress=progress)
    check_extractor(extractor)
    if images.extractor != extractor.settings:
        was = f"{images.extractor['extractor']} ({images.extractor['extractor_weights']})"
        now = f"{extractor.name} ({extractor.weights})"
        raise ValueError(f"these features are by {was}, not by {now}: make them again")
    return images


def check_comparable(scores: Sequence[Quality] | pd.DataFrame, *, ignore: Sequence[str] = ()) -> None:
    """Raise ValueError, naming what differs, unless all scores are by the same settings, but for those to `ignore`.

    `scores` are `Quality` objects or the rows of their frames (`Quality.to_frame`, concatenated).
    """
    if isinstance(scores, Quality):
        raise TypeError("check_comparable takes a list of scores, this is a single one: check_comparable([a, b])")
    frame = scores if isinstance(scores, pd.DataFrame) else pd.json_normalize([vars(score) for score in scores])
    told = _told(frame).drop(columns=["seed", *ignore], errors="ignore").astype(object)
    rows = told.where(told.notna(), None).to_dict("records")
    for k, row in enumerate(rows):
        if unlike := [f"{name} is {rows[0][name]} and {row[name]}" for name in row if row[name] != rows[0][name]]:
            raise ValueError(f"scores 0 and {k} cannot be compared: {'; '.join(unlike)}. Score both in the same way")


def _told(frame: pd.DataFrame) -> pd.DataFrame:
    """The settings of scores by their names."""
    told = frame.filter(regex=r"^settings\.").rename(columns=lambda name: name.removeprefix("settings."))
    if not len(told.columns):
        raise ValueError("the frame has no settings.* columns; concatenate Quality.to_frame() of each score")
    return told


def _checked(given: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"settings are a dict such as {{'sampler': 'ddim', 'steps': 50}}, not {given!r}")
    for name, value in given.items():
        if name not in STATED and (close := hint(name, STATED, cutoff=0.8)):
            raise ValueError(f"settings may not say {name!r}{close}")
        if not isinstance(value, str | int | float | None):  # a bool is an int
            kind = type(value).__name__
            raise TypeError(f"the setting {name!r} is a {kind}; give it as text, number, bool or None")
    return given


def _settings(fake: Features, real: Features, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    measured = {
        "n_fake": len(fake),
        "n_real": len(real),
        "real": real.fingerprint,
        "image": by(real.shape),
        **real.extractor,
        "kid_subsets": f"{metrics.SUBSETS} of {metrics.kid_subset_size(fake, real)}",
        "is_splits": metrics.PARTS,
        "precision_recall": f"k={metrics.NEIGHBOURS}, N={metrics.precision_recall_count(fake, real)}",
        "seed": seed,
    }
    if taken := [name for name in given if name in measured]:
        raise ValueError(f"settings may not say {', '.join(taken)}: the scoring says that itself")
    return {**measured, **dict.fromkeys(STATED), **given}


@dataclass(frozen=True, repr=False, eq=False)
class QualityComparison:
    """`table` has a row per role and memory: ``n`` runs, the means of ``peak``, ``parameters``, ``fid`` and ``kid``,
    ``fid_error`` and ``kid_error``, the scores of its runs, and ``budget``, the number of the students of about the
    same memory, from the least (NaN for the teacher). `settings` are what all scores were made with.
    """

    table: pd.DataFrame
    settings: dict[str, Any]
    floor: Quality | None = None

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def headline(self) -> str:
        """Who has the lowest FID among students of one memory, and from whom the scores cannot tell it."""
        once = "in one run" if self.table["n"].min() == 1 else "on average"
        budgets = [part for _, part in self.table.groupby("budget") if len(part) > 1]
        parts = [_lead(part) for part in budgets or [self.table]]
        if budgets:
            teachers = self.table[self.table["role"] == "teacher"]
            parts += [f"teacher {row['fid']:.1f} at {format_size(row['peak'])}" for _, row in teachers.iterrows()]
        return f"The lowest FID {once}: {'; '.join(parts)}"

    def __repr__(self) -> str:
        return f"QualityComparison({self.headline()})"


def compare_quality(frame: pd.DataFrame, floor: Quality | None = None) -> QualityComparison:
    """Means, intervals and who is ahead, by FID.

    `frame` has a row per trained network: `Quality.to_frame()` of its score, and columns ``role``, ``peak_bytes`` and
    ``parameters``. Rows of one role whose peaks are within 15 % are runs; a column ``seed`` pairs those of two roles.
    The error of several runs is half the 95 % t-interval of their mean; of a single run, half its FID's 95 % interval
    over draws of images, or its KID's spread over subsets. `floor` is what `redistill_lib.quality.floor` gives.

    Raises ValueError for a missing column or value, an empty frame, a peak or parameters of 0, and scores or a floor
    that are not made in the same way.

    >>> def row(role, mib, fid):
    ...     score = Quality(fid, fid - 1, 0.5, fid / 1000, 0.001, 5.0, 0.1, 0.8, 0.7, {"extractor": "teacher"})
    ...     return score.to_frame().assign(role=role, peak_bytes=mib * 2**20, parameters=10**6)
    >>> compare_quality(pd.concat([row("teacher", 8, 9.0), row("student", 2, 15.0), row("red", 2, 12.0)])).headline()
    'The lowest FID in one run: RED 12.0 (naive student 15.0) at 2.00 MiB; teacher 9.0 at 8.00 MiB'
    """
    if missing := [name for name in ("role", *_LEAST, *_ERRORS.values()) if name not in frame.columns]:
        raise ValueError(f"the frame lacks {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError("the frame has no row: there is no score to show")
    for name, least in _LEAST.items():
        good = pd.to_numeric(frame[name], errors="coerce").between(least, math.inf, inclusive="neither")
        if roles := list(dict.fromkeys(frame["role"][~good].map(label))):
            wanted = f"{name} above 0" if least == 0 else name
            raise ValueError(f"the frame has no {wanted} for {listed(roles)}; give it or leave the row out")
    check_comparable(frame)
    settings = _told(frame).iloc[0].to_dict()
    if floor is not None:
        ignore = [name for name, value in floor.settings.items() if value == "real images"]
        ignore += settings.keys() - floor.settings.keys()
        try:
            check_comparable(pd.concat([frame.head(1), floor.to_frame()]), ignore=ignore)
        except ValueError as error:
            raise ValueError(f"this floor does not belong to these scores: {error}") from None
    return QualityComparison(_table(frame), settings, floor)


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.assign(role=frame["role"].map(role_key)).reset_index(drop=True)
    alike = frame.groupby("role")["peak_bytes"].transform(_budgets)
    rows = []
    for (role, _), runs in frame.groupby(["role", alike], sort=False):
        runs = runs.set_index("seed") if "seed" in runs else runs
        peak, parameters = runs["peak_bytes"].mean(), runs["parameters"].mean()
        row: dict[str, Any] = {"role": role, "n": len(runs), "peak": peak, "parameters": parameters}
        for score, error in _ERRORS.items():
            found = interval(runs[score].tolist())
            half = found.half if len(runs) > 1 else runs[error].iloc[0]
            row |= {score: found.value, f"{score}_error": half, f"{score}_runs": runs[score]}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(budget=_budgets(table["peak"][table["role"] != "teacher"]))


def _budgets(peaks: pd.Series[float]) -> pd.Series[int]:
    """Which of them have about the same memory: equal numbers, 0 for the least."""
    found, first = {}, math.nan
    for index, peak in peaks.sort_values().items():
        if not peak <= _BUDGET * first:
            first = peak
        found[index] = first
    return pd.Series(found, dtype=float).rank(method="dense").sub(1).reindex(peaks.index)


def _lead(part: pd.DataFrame) -> str:
    (_, best), *others = part.sort_values("fid").iterrows()
    rivals = [row for _, row in others if row["role"] != best["role"]]
    words = []
    if rivals:
        rival = next((row for row in rivals if row["role"] == "student"), rivals[0])
        words.append(f"{label(rival['role'])} {rival['fid']:.1f}")
    if near := dict.fromkeys(the(row["role"]) for row in rivals if not _decided(best, row)):
        words.append(f"too close to {listed(near)} to tell")
    if (ahead := part.loc[part["kid"].idxmin(), "role"]) != best["role"]:
        words.append(f"by KID {label(ahead)} is ahead")
    detail = f" ({'; '.join(words)})" if words else ""
    return f"{label(best['role'])} {best['fid']:.1f}{detail} at {format_size(best['peak'])}"


def _decided(best: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the lower FID is lower over seeds, or over draws of images where a run is single."""
    if min(best["n"], other["n"]) > 1:
        return run_difference(other["fid_runs"], best["fid_runs"]).decided
    return bool(math.hypot(best["fid_error"], other["fid_error"]) < other["fid"] - best["fid"])  # an error may be NaN
