"""The scores of a set of generated images, with all that one has to know before comparing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor
from torch.utils.data import Dataset

from redistill_lib.checks import hint, whole
from redistill_lib.quality import metrics
from redistill_lib.quality.extractors import Extractor, Features, by, check_extractor, features, halves

ImageSet = Tensor | Dataset[Any] | Features
STATED = ("ema", "sampler", "steps")  # in the settings of every score; None where nobody said


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

    Raises ValueError for images that `features` refuses, sets of different shape or extractor, fewer images
    than FID needs (one more than the extractor has features), and a setting that is measured here or misspelt;
    TypeError for a setting that is neither text nor number, bool or None.

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
    others = (
        *metrics.kid(a, b, seed=seed),
        *metrics.inception_score(a, seed=seed),
        *metrics.precision_recall(a, b, seed=seed),
    )
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
    if isinstance(scores, Sequence):
        told = pd.DataFrame([score.settings for score in scores])
    else:
        told = scores.filter(regex=r"^settings\.").rename(columns=lambda name: name.removeprefix("settings."))
        if not len(told.columns):
            raise ValueError("the frame has no settings.* columns; concatenate Quality.to_frame() of each score")
    told = told.drop(columns=["seed", *ignore], errors="ignore").astype(object)
    rows = told.where(told.notna(), None).to_dict("records")
    for k, row in enumerate(rows):
        if unlike := [f"{name} is {rows[0][name]} and {row[name]}" for name in row if row[name] != rows[0][name]]:
            raise ValueError(f"scores 0 and {k} cannot be compared: {'; '.join(unlike)}. Score both in the same way")


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
