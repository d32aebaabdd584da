"""Scores of generated images: against other implementations, against what is known, and never without settings."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from redistill_lib.data import DataSplits, load_data
from redistill_lib.models import create_model
from redistill_lib.quality import (
    Extractor,
    Features,
    Quality,
    check_comparable,
    classifier_extractor,
    features,
    floor,
    halves,
    inception_extractor,
    metrics,
    score_images,
)

SAMPLING = {"sampler": "ddim", "steps": 50, "ema": True}


def given(values: Tensor, logits: Tensor | None = None) -> Features:
    """Features that no network made."""
    return Features(values.float(), logits, torch.arange(len(values)), (1, 8, 8), {"extractor": "none"})


def gaussian(
    count: int, width: int, seed: int, spread: float = 1.0, shift: float = 0.0, slope: float = 1.5
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -slope, width)
    return given(torch.randn(count, width, generator=generator) * scale * spread + shift)


def projection(width: int = 16, channels: int = 1, size: int = 16) -> Extractor:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(channels * size * size, width))
    return Extractor(network, "projection", num_features=width, channels=channels)


@pytest.fixture(scope="module")
def digits() -> DataSplits:
    return load_data("digits", image_size=16)


@pytest.fixture(scope="module")
def teacher() -> Extractor:
    torch.manual_seed(0)
    return classifier_extractor(create_model("resnet18", in_channels=1, width=0.125), "teacher-1a2b", 0.97)


# --------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_fid_agrees_with_scipy(offset: float) -> None:
    fake, real = gaussian(2000, 24, 0, spread=1.2, shift=0.1 + offset), gaussian(2000, 24, 1, shift=offset)
    a, b = fake.values.double().numpy(), real.values.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert metrics.fid(fake, real) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet((fake.mean, fake.cov), (real.mean, real.cov)) == pytest.approx(expected, rel=1e-6)
    assert metrics.extrapolate(fake, real).fid == pytest.approx(expected, rel=1e-6)


def test_fid_agrees_with_scipy_on_images(digits: DataSplits) -> None:
    real = features(digits.train, projection(), progress=False)
    fake = features(noisy(digits, 0.3), projection(), progress=False)
    a, b = fake.values.double().numpy(), real.values.double().numpy()
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert metrics.fid(fake, real) == pytest.approx(expected, rel=1e-6)
    assert metrics.extrapolate(fake, real).fid == pytest.approx(expected, rel=1e-6)


def test_fid_of_a_covariance_without_full_rank() -> None:
    values = torch.randn(500, 8, generator=torch.manual_seed(0))
    values[:, 3] = 0.0
    values[:, 5] = values[:, 4]
    moved = values + 2.0
    assert metrics.fid(given(moved), given(values)) == pytest.approx(8 * 4.0, rel=1e-6)
    assert metrics.extrapolate(given(moved), given(values)).fid == pytest.approx(8 * 4.0, rel=1e-6)


def test_fid_wants_more_images_than_features() -> None:
    enough, few = gaussian(17, 16, 0), gaussian(16, 16, 1)
    assert metrics.fid(enough, enough) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match=r"16 fake images are too few for a covariance .* at least 17"):
        metrics.fid(few, enough)
    with pytest.raises(ValueError, match="16 real images"):
        metrics.fid(enough, few)


def test_kid_agrees_with_the_formula() -> None:
    fake, real = gaussian(300, 12, 0, spread=1.3), gaussian(300, 12, 1)
    x, y = fake.values.double().numpy(), real.values.double().numpy()
    n = len(x)
    kxx, kyy, kxy = ((a @ b.T / 12 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    expected = (
        (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (n * (n - 1)) - 2 * kxy.mean()
    )
    whole, spread = metrics.kid(fake, real, subset_size=n)  # every subset is the whole set
    assert whole == pytest.approx(expected, rel=1e-9)
    assert spread == pytest.approx(0, abs=1e-12)
    mean, spread = metrics.kid(fake, real)
    assert mean == pytest.approx(expected, abs=spread)
    assert metrics.kid_subset_size(fake, real) == 150


def test_kid_is_unbiased_where_fid_is_not() -> None:
    kids, fids = [], []
    for seed in range(12):
        fake, real = gaussian(100, 16, 2 * seed), gaussian(100, 16, 2 * seed + 1)
        kids.append(metrics.kid(fake, real)[0])
        fids.append(metrics.fid(fake, real))
    assert abs(np.mean(kids)) < 2.5 * np.std(kids) / math.sqrt(len(kids))
    assert np.mean(fids) > 10 * np.std(fids) / math.sqrt(len(fids))


def test_kid_refuses_subsets_larger_than_a_set() -> None:
    with pytest.raises(ValueError, match=r"subset_size is 31; .* at most the smaller set, 30"):
        metrics.kid(gaussian(40, 4, 0), gaussian(30, 4, 1), subset_size=31)


def test_inception_score_by_hand() -> None:
    certain = 1e4 * torch.eye(4).repeat(100, 1)  # four classes, all sure: exp(log 4), but for uneven parts
    mean, _ = metrics.inception_score(given(torch.zeros(400, 2), certain))
    assert mean == pytest.approx(4, rel=0.05)
    parts = [
        certain.softmax(1)[torch.randperm(400, generator=torch.manual_seed(0))][k : k + 40] for k in range(0, 400, 40)
    ]
    by_hand = [math.exp(-sum(float(p) * math.log(float(p)) for p in part.mean(0))) for part in parts]
    assert mean == pytest.approx(np.mean(by_hand), rel=1e-6)
    same = metrics.inception_score(given(torch.zeros(400, 2), torch.tensor([[3.0, 1.0, 0.0]]).repeat(400, 1)))
    assert same == pytest.approx((1, 0), abs=1e-9)  # the same answer for every image
    nothing = metrics.inception_score(given(torch.zeros(400, 2)))
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("copies", [1, 5])
def test_precision_and_recall_of_the_same_set(copies: int) -> None:
    values = (
        torch.randn(60, 8, generator=torch.manual_seed(0)).repeat(copies, 1) + 100
    )  # balls of radius 0, if copied
    assert metrics.precision_recall(given(values), given(values)) == (1.0, 1.0)


def test_precision_and_recall_of_constructed_clouds() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, far = (torch.randn(200, 2, generator=generator) + shift for shift in (0.0, 30.0, 900.0))
    again = torch.randn(400, 2, generator=generator)
    assert metrics.precision_recall(given(far), given(left)) == (0.0, 0.0)
    precision, recall = metrics.precision_recall(given(again), given(torch.cat([left, right])))  # a mode is dropped
    assert precision > 0.85 and 0.4 < recall <= 0.5
    precision, recall = metrics.precision_recall(given(torch.cat([left, right])), given(again))  # one is invented
    assert recall > 0.85 and 0.4 < precision <= 0.5


def test_precision_and_recall_agree_with_loops() -> None:
    fake, real = gaussian(40, 3, 0, spread=1.5), gaussian(40, 3, 1)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = [np.sort(np.linalg.norm(centres - c, axis=1))[3] for c in centres]
        return float(
            np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])
        )

    x, y = fake.values.numpy(), real.values.numpy()
    assert metrics.precision_recall(fake, real) == pytest.approx((covered(x, y), covered(y, x)))


def test_extrapolation_removes_the_bias() -> None:
    plain, limits = [], []
    for seed in range(6):
        found = metrics.extrapolate(gaussian(500, 32, 2 * seed), gaussian(400, 32, 2 * seed + 1), seed=seed)
        assert found.fid > found.error > abs(found.limit)
        plain.append(found.fid)
        limits.append(found.limit)
    assert abs(np.mean(limits)) < 0.1 * np.mean(plain)


def test_extrapolation_finds_a_known_distance() -> None:
    scale = torch.logspace(0, -1.5, 16, dtype=torch.float64)
    truth = 16 * 0.3**2 + float((0.5 * scale).square().sum())  # means 0.3 apart, deviations half as large again
    small = metrics.extrapolate(gaussian(200, 16, 0, spread=1.5, shift=0.3), gaussian(200, 16, 1))
    large = metrics.extrapolate(gaussian(3000, 16, 2, spread=1.5, shift=0.3), gaussian(3000, 16, 3))
    assert abs(small.limit - truth) < small.error
    assert abs(large.limit - truth) < large.error < small.error / 2


@pytest.mark.parametrize(
    ("width", "fakes", "reals", "slope"),
    [(8, 150, 150, 1.5), (16, 128, 160, 0), (64, 512, 512, 0), (64, 512, 640, 0), (64, 629, 629, 1.5)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(width: int, fakes: int, reals: int, slope: float) -> None:
    truth, held = width * 0.1**2, 0
    for seed in range(60):
        fake = gaussian(fakes, width, 2 * seed, shift=0.1, slope=slope)
        found = metrics.extrapolate(fake, gaussian(reals, width, 2 * seed + 1, slope=slope))
        held += abs(found.limit - truth) < found.error
    assert 53 <= held <= 60  # of 95 %, 57 on average


@pytest.mark.parametrize(
    ("width", "fakes", "reals", "defined"),
    [
        (64, 300, 300, False), (64, 511, 511, False), (64, 512, 512, True), (64, 600, 600, True),
        (64, 600, 750, True), (64, 600, 751, False), (64, 6000, 600, False), (16, 80, 800, False),
    ],
)  # fmt: skip
def test_no_limit_where_fid_is_no_straight_line(width: int, fakes: int, reals: int, defined: bool) -> None:
    found = metrics.extrapolate(gaussian(fakes, width, 0), gaussian(reals, width, 1))
    assert math.isfinite(found.limit) == defined and found.fid > found.error > 0


# -------------------------------------------------------------------------------------------------------- features


def test_features_are_what_the_last_linear_layer_reads(digits: DataSplits) -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", in_channels=1, width=0.125).train()
    eye = classifier_extractor(model, "run", 0.5)
    seen = features(digits.validation, eye, batch_size=50, progress=False)
    assert model.training and all(m.training for m in model.modules())
    assert seen.values.shape == (len(digits.validation), 64) == (len(seen), eye.num_features)
    assert seen.logits is not None
    head = model.fc
    assert isinstance(head, nn.Linear)
    torch.testing.assert_close(seen.values @ head.weight.T + head.bias, seen.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.cov, torch.from_numpy(np.cov(seen.values.double().numpy(), rowvar=False)))


def test_scores_do_not_depend_on_batch_size(digits: DataSplits, teacher: Extractor) -> None:
    fake, real = digits.train.images[:300], digits.test.images  # type: ignore[union-attr]
    one, other = (
        score_images(fake, real, teacher, settings=SAMPLING, batch_size=size, progress=False) for size in (7, 256)
    )
    assert one.settings == other.settings
    a, b = ({k: v for k, v in vars(s).items() if k != "settings"} for s in (one, other))
    assert a == pytest.approx(b, rel=1e-4, nan_ok=True)


def test_a_image_counts_the_same_as_bytes_and_as_floats(digits: DataSplits, teacher: Extractor) -> None:
    levels = digits.test.images[:80]  # type: ignore[union-attr]
    a = features(levels, teacher, progress=False)
    b = features(levels.float() / 127.5 - 1, teacher, progress=False)
    assert torch.equal(a.values, b.values)
    assert a.fingerprint == b.fingerprint == features(levels.flip(0), teacher, progress=False).fingerprint
    assert a.fingerprint != features(levels[1:], teacher, progress=False).fingerprint


def test_grey_images_are_repeated_only_for_three_channels() -> None:
    grey = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    a = features(grey, projection(4, 3, 8), progress=False)
    b = features(grey.expand(-1, 3, -1, -1), projection(4, 3, 8), progress=False)
    assert torch.equal(a.values, b.values)
    with pytest.raises(ValueError, match="projection takes 1-channel images, these have 3"):
        features(grey.expand(-1, 3, -1, -1), projection(4, 1, 8), progress=False)


class Halved(nn.Sequential):
    resize = "half the sides, by averages"


def test_a_network_that_resizes_says_how() -> None:
    eye = Extractor(Halved(nn.AvgPool2d(2), nn.Flatten()), "pixels", num_features=16, channels=1)
    seen = features(GREY, eye, progress=False)
    assert seen.extractor["resize"] == "half the sides, by averages" and seen.shape == (1, 8, 8)


GREY = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GREY.where(GREY < 0.9, torch.nan), "nan in the images, in image 3"),
        (GREY / 0, "inf in the images, in image 0"),
        (GREY * 1.5, r"−1…1, these go from -1.5 to 1.5; images.clamp"),
        (GREY.add(1) * 127.5, "go from 0 to 255; they look like 0…255"),
        (GREY.add(1) / 2, "look like 0…1; −1…1 is expected"),
        (GREY.long(), "these are torch.int64"),
        (GREY[0], "batch N×C×H×W, these have the shape 1×8×8"),
        (GREY[:0], "the set is empty"),
    ],
)
def test_images_that_are_none(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features(images, projection(4, 1, 8), progress=False)


def test_a_few_values_below_0_make_no_images_from_minus_1() -> None:
    """What resizing and noise do to images 0…1; and images −1…1 that are mostly bright are none of them."""
    draws = torch.Generator().manual_seed(0)
    unit = torch.rand(50, 1, 8, 8, generator=draws)
    wrong = [unit.clone() for _ in range(2)] + [(unit + 0.02 * torch.randn(unit.shape, generator=draws)).clamp(-1, 1)]
    wrong[0][7, 0, 3, 3] = -0.004
    wrong[1][7, 0, 3, 3] = -0.9
    for images in wrong:
        for given in (images, Floats(images)):
            with pytest.raises(ValueError, match=r"of the 3,200 values .* below -0\.1, so they look like 0…1"):
                features(given, projection(4, 1, 8), batch_size=20, progress=False)
    bright = unit.clone()
    bright[:, :, :1, :2] = -0.5
    assert len(features(bright, projection(4, 1, 8), progress=False)) == 50


class Unread(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the pass has begun")


@pytest.mark.parametrize(
    ("images", "message"),
    [(GREY.add(1) / 2, "look like 0…1"), (GREY.where(GREY < 0.9, torch.nan), "nan in the images")],
)
def test_a_tensor_is_refused_before_the_pass(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features(images, Extractor(Unread(), "u", num_features=64, channels=1), batch_size=1, progress=False)


class Floats(torch.utils.data.Dataset[Any]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[rows], torch.tensor(rows)


def test_one_bright_batch_of_a_split_is_no_reason() -> None:
    bright_first = GREY.flip(0)
    assert len(features(Floats(bright_first), projection(4, 1, 8), batch_size=1, progress=False)) == 4
    with pytest.raises(ValueError, match="look like 0…1"):
        features(Floats(bright_first.add(1) / 2), projection(4, 1, 8), batch_size=1, progress=False)


def test_what_is_no_set_of_images(digits: DataSplits) -> None:
    wanted: list[tuple[Any, int, type[Exception], str]] = [
        (GREY.numpy(), 8, TypeError, "not a ndarray; torch.from_numpy makes it a tensor"),
        (digits, 8, TypeError, "not a DataSplits; give one split, such as data.train"),
        ([GREY], 8, TypeError, "a tensor or a split of load_data, not a list"),
        (GREY, 0, ValueError, "batch_size=0 is not a whole number of 1 or more"),
        (digits.test, -1, ValueError, "batch_size=-1 is not a whole number of 1 or more"),
    ]
    for images, batch_size, error, message in wanted:
        with pytest.raises(error, match=message):
            features(images, projection(4, 1, 8), batch_size=batch_size, progress=False)


def test_features_that_are_not_finite() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) / (x.flatten(1) + 1)

    black = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    black[0] = 9
    with pytest.raises(ValueError, match="broken gives features that are not finite, for image 1 first"):
        features(black, Extractor(Broken(), "broken", num_features=4, channels=1), progress=False)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float16, 2e-2), (torch.bfloat16, 0.1), (torch.float64, 1e-4)])
def test_extractors_of_any_precision(dtype: torch.dtype, apart: float) -> None:
    def eye() -> Extractor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 4))
        return classifier_extractor(network, "c", None)

    seen, expected = (features(GREY, one, progress=False) for one in (eye().to(dtype), eye()))
    assert seen.values.dtype == torch.float32
    torch.testing.assert_close(seen.values, expected.values, atol=apart, rtol=0.02)


# ------------------------------------------------------------------------------------------------------ extractors


def test_a_classifier_says_who_it_is(teacher: Extractor) -> None:
    assert teacher.settings | {"extractor_weights": ""} == {
        "extractor": "teacher-1a2b",
        "extractor_weights": "",
        "extractor_accuracy": 0.97,
        "num_features": 64,
        "resize": "none",
    }
    torch.manual_seed(1)
    other = classifier_extractor(create_model("resnet18", in_channels=1, width=0.125), "teacher-1a2b", 0.97)
    assert other.weights != teacher.weights


def test_a_classifier_trained_on_is_another() -> None:
    eye = projection(4, 1, 8)
    before = features(GREY, eye, progress=False)
    with torch.no_grad():
        next(eye.parameters()).add_(1)
    after = features(GREY, eye, progress=False)
    assert before.extractor["extractor_weights"] != after.extractor["extractor_weights"] == eye.weights
    with pytest.raises(ValueError, match="make them again"):
        score_images(before, before, eye)


def test_mobilenet_is_read_before_its_last_layer() -> None:
    model = create_model("mobilenetv3_small", in_channels=1, width=0.25)
    eye = classifier_extractor(model, "m", None)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    seen = features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8), eye, progress=False)
    assert seen.values.shape == (2, last.in_features)


def test_what_is_no_classifier() -> None:
    with pytest.raises(ValueError, match="u is a Sequential without a linear layer"):
        classifier_extractor(nn.Sequential(nn.Conv2d(1, 2, 3)), "u", None)
    with pytest.raises(ValueError, match="the accuracy of u is 97; it is a fraction"):
        Extractor(nn.Flatten(), "u", num_features=4, channels=1, accuracy=97)
    softmaxed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3), nn.Softmax(1))
    with pytest.raises(ValueError, match="not that of its last linear layer, 2"):
        features(
            torch.zeros(2, 1, 8, 8, dtype=torch.uint8), classifier_extractor(softmaxed, "s", None), progress=False
        )
    with pytest.raises(ValueError, match="gives features of shape 2×64, not 2×5"):
        features(
            torch.zeros(2, 1, 8, 8, dtype=torch.uint8), Extractor(nn.Flatten(), "f", num_features=5, channels=1),
            progress=False,
        )  # fmt: skip


class Script(nn.Module):
    """Stands for the TorchScript Inception: the same call, pixels for features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.output = nn.Linear(width, 10)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        found = img.float().flatten(1)[:, : self.width]
        return found if return_features else self.output(found).softmax(1)


def script(path: Path, width: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Script(width)).save(str(path))
    return path


def test_inception_from_a_script(tmp_path: Path) -> None:
    eye = inception_extractor(script(tmp_path / "inception.pt", 2048))
    grey = torch.randint(256, (3, 1, 64, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    seen = features(grey, eye, progress=False)
    assert torch.equal(seen.values, grey.flatten(1)[:, :2048].float())
    assert seen.logits is not None
    head = dict(eye.named_parameters())["network.network.output.weight"]
    torch.testing.assert_close(seen.logits, seen.values @ head.detach().T)
    assert eye.settings["extractor"] == "inception-v3-2015-12-05" and eye.settings["extractor_accuracy"] is None


def test_inception_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gives 64 features, the Inception of FID 2048"):
        inception_extractor(script(tmp_path / "small.pt", 64))
    with pytest.raises(
        FileNotFoundError, match=r"no Inception weights at .*nowhere.pt: fetch https://.*pass its path"
    ):
        inception_extractor(tmp_path / "nowhere.pt")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth is no TorchScript of uint8 images .*: fetch https"):
        inception_extractor(tmp_path / "weights.pth")


# ---------------------------------------------------------------------------------------------------------- scores


@pytest.fixture(scope="module")
def real(digits: DataSplits, teacher: Extractor) -> Features:
    return features(digits.train, teacher, progress=False)


def noisy(digits: DataSplits, amount: float) -> Tensor:
    images = digits.train.images.float() / 127.5 - 1  # type: ignore[union-attr]
    noise = torch.randn(images.shape, generator=torch.manual_seed(5))
    return (images + amount * noise).clamp(-1, 1)


def test_worse_images_score_worse(digits: DataSplits, teacher: Extractor, real: Features) -> None:
    few, many = (
        score_images(noisy(digits, amount), real, teacher, settings=SAMPLING, progress=False) for amount in (0.2, 0.8)
    )
    assert few.fid < many.fid and few.kid < many.kid and few.fid_limit < many.fid_limit
    check_comparable([few, many])
    check_comparable(pd.concat([few.to_frame(), many.to_frame()]))
    s = few.settings
    assert (s["n_fake"], s["n_real"], s["image"], s["seed"]) == (len(real), len(real), "1×16×16", 0)
    assert {k: s[k] for k in SAMPLING} == SAMPLING and s["extractor_accuracy"] == 0.97
    row = few.to_frame().iloc[0]
    assert row["fid"] == few.fid and row["settings.sampler"] == "ddim" and row["settings.resize"] == "none"
    assert f"{len(real):,} fake" in repr(few) and "by teacher-1a2b" in repr(few)


def test_real_halves_are_the_floor(digits: DataSplits, teacher: Extractor, real: Features) -> None:
    best = floor(real, teacher)
    one, other = halves(real)
    assert len(one) == len(other) == len(real) // 2
    assert not set(one.digests.tolist()) & set(other.digests.tolist())
    assert best.settings["real"] == one.fingerprint
    assert abs(best.fid_limit) < best.fid_error and abs(best.kid) < best.kid_std
    fakes = features(noisy(digits, 0.3), teacher, progress=False).take(torch.arange(len(one)))
    score = score_images(fakes, one, teacher, settings=SAMPLING)
    assert best.fid < score.fid
    check_comparable([best, score], ignore=list(SAMPLING))
    with pytest.raises(
        ValueError, match="scores 0 and 1 cannot be compared: ema is real images and True; sampler is"
    ):
        check_comparable([best, score])


def scored(**settings: Any) -> Quality:
    return Quality(*[1.0] * 9, settings={"n_fake": 100, "seed": 0, **dict.fromkeys(("ema", "steps")), **settings})


def test_unlike_scores_are_not_compared() -> None:
    check_comparable([scored(), scored(seed=1)])
    check_comparable([scored(steps=None), scored()])
    with pytest.raises(ValueError, match=r"steps is 20(\.0)? and None"):
        check_comparable([scored(steps=20), scored()])
    for scores in ([scored(steps=20), scored(steps=20), scored(steps=50)],):
        message = r"scores 0 and 2 cannot be compared: steps is 20(\.0)? and 50(\.0)?\. Score both in the same way"
        with pytest.raises(ValueError, match=message):
            check_comparable(scores)
        with pytest.raises(ValueError, match=message):
            check_comparable(pd.concat([score.to_frame() for score in scores]))
    check_comparable([scored(steps=20), scored(steps=50)], ignore=["steps"])
    check_comparable(pd.concat([scored(ema=None, guidance=None).to_frame(), scored().to_frame()]))
    with pytest.raises(ValueError, match="guidance is None and 2"):
        check_comparable([scored(), scored(guidance=2)])
    with pytest.raises(TypeError, match="takes a list of scores, this is a single one"):
        check_comparable(scored())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no settings\.\* columns"):
        check_comparable(pd.DataFrame({"fid": [1.0]}))


def test_sets_that_do_not_fit(digits: DataSplits, teacher: Extractor, real: Features) -> None:
    with pytest.raises(ValueError, match="differ in shape, 1×16×16 and 1×8×8"):
        score_images(real, digits.train.images[:, :, ::2, ::2], teacher, progress=False)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"these features are by teacher-1a2b \(\w{8}\), not by projection"):
        score_images(real, real, projection())
    with pytest.raises(ValueError, match="settings may not say n_fake, seed: the scoring says that itself"):
        score_images(real, real, teacher, settings={"n_fake": 3, "seed": 1}, progress=False)
    with pytest.raises(ValueError, match="64 fake images are too few"):
        score_images(real.take(torch.arange(64)), real, teacher)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"step": 50}, ValueError, "may not say 'step'; did you mean 'steps'"),
        ({"EMA": True}, ValueError, "did you mean 'ema'"),
        ({"samplers": "ddim"}, ValueError, "did you mean 'sampler'"),
        ({"steps": torch.tensor(50)}, TypeError, "the setting 'steps' is a Tensor; give it as text, number, bool"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        score_images(GREY, GREY, Extractor(Unread(), "u", num_features=64, channels=1), settings=settings)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -4}, ValueError, "seed=-4 is not a whole number of 0 or more"),
        ({"seed": 1.5}, ValueError, "seed=1.5 is not a whole number of 0 or more"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5 is not a whole number of 1 or more"),
        ({"settings": "ddim"}, TypeError, "settings are a dict such as .*, not 'ddim'"),
        ({"extractor": nn.Linear(4, 4)}, TypeError, "a Linear is no extractor"),
    ],
)
def test_arguments_that_are_none(change: dict[str, Any], error: type[Exception], message: str) -> None:
    unread = Extractor(Unread(), "u", num_features=64, channels=1)
    with pytest.raises(error, match=message):
        score_images(GREY, GREY, **{"extractor": unread, "progress": False} | change)
    if "settings" not in change:
        with pytest.raises(error, match=message):
            floor(GREY, **{"extractor": unread, "progress": False} | change)


def test_settings_of_one_s_own(teacher: Extractor, real: Features) -> None:
    own = {"guidance": 1.5, "eta": None, "ema_decay": 0.99, "note": "x", "steps": 50}
    score = score_images(real, real, teacher, settings=own, progress=False)
    assert {name: score.settings[name] for name in own} == own


def test_scoring_leaves_the_global_generator_alone(digits: DataSplits, teacher: Extractor, real: Features) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    features(digits.test, teacher, progress=False)
    a = score_images(real, real, teacher, progress=False)
    assert torch.equal(torch.rand(2), expected)
    assert a == score_images(real, real, teacher, progress=False)
    assert a.precision == a.recall == 1 and a.fid == pytest.approx(0, abs=1e-9)
