from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from redistill_lib.data import augment as aug


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(batch: int = 8, side: int = 8, channels: int = 2) -> Tensor:
    """Images in which every pixel has a value of its own."""
    count = batch * channels * side * side
    return torch.arange(count, dtype=torch.float32).view(batch, channels, side, side) / count


def test_to_float_is_the_paper_s_normalisation() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.allclose(aug.to_float(values), (values / 255 - 0.5) / 0.5, atol=1e-6)
    assert aug.to_float(values)[[0, 255]].tolist() == [-1.0, 1.0]


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    images = ramp(64)
    flipped = aug.flip(images, seeded())
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(images, flipped, strict=True)]
    kept = [torch.equal(after, before) for before, after in zip(images, flipped, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48
    assert torch.equal(aug.flip(images, seeded(), probability=0), images)
    assert torch.equal(aug.flip(images, seeded(), probability=1), images.flip(3))


def test_random_crop_is_a_shift() -> None:
    images, padding = ramp(32), 2
    cropped = aug.random_crop(images, seeded(), padding=padding, fill=-9)
    padded = torch.nn.functional.pad(images, (padding,) * 4, value=-9)
    shifts = set()
    for before, after in zip(padded, cropped, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(after, before[:, y : y + 8, x : x + 8])]
        assert len(found) == 1
        shifts.update(found)
    assert len(shifts) > 12
    assert min(min(shift) for shift in shifts) == 0
    assert max(max(shift) for shift in shifts) == 4
    assert torch.equal(aug.random_crop(images, seeded(), padding=0), images)


def test_random_resized_crop_of_everything_is_the_image() -> None:
    images = ramp()
    whole = aug.random_resized_crop(images, seeded(), scale=(1, 1), ratio=(1, 1))
    assert torch.allclose(whole, images, atol=1e-5)


def test_random_resized_crop_keeps_to_its_ranges() -> None:
    # Channels hold the x and y of each pixel's centre, so the crop's extent can be read off its corners.
    side, batch = 64, 200
    centre = (torch.arange(side) + 0.5) / side
    images = torch.stack(torch.meshgrid(centre, centre, indexing="xy")).expand(batch, 2, side, side).contiguous()
    crops = aug.random_resized_crop(images, seeded(), scale=(0.2, 0.5), ratio=(0.5, 2))
    assert crops.shape == images.shape
    scale = side / (side - 1)
    # the middle of the crop is free of the border's clamping
    width = (crops[:, 0, 32, 48] - crops[:, 0, 32, 16]) * 2
    height = (crops[:, 1, 48, 32] - crops[:, 1, 16, 32]) * 2
    area, ratio = width * height, width / height
    assert 0.19 < area.min() < 0.25
    assert 0.45 < area.max() < 0.51 * scale
    assert ratio.min() > 0.49
    assert ratio.max() < 2.04
    assert ratio.max() > 1.5
    assert crops.min() >= centre[0]
    assert crops.max() <= centre[-1]


def test_random_resized_crop_of_a_wide_image_counts_pixels() -> None:
    images = ((torch.arange(64) + 0.5) / 64).expand(50, 1, 32, 64).contiguous()
    crops = aug.random_resized_crop(images, seeded(), scale=(0.25, 0.25), ratio=(1, 1))
    width = (crops[:, 0, 16, 48] - crops[:, 0, 16, 16]) * 2 * 64
    assert torch.allclose(
        width, torch.tensor(math.sqrt(0.25 * 32 * 64)), atol=0.1
    )  # a square of a quarter of the pixels


def test_random_resized_crop_trims_what_never_fits() -> None:
    images = ramp(4)
    crops = aug.random_resized_crop(images, seeded(), scale=(1, 1), ratio=(4, 4))
    assert torch.isfinite(crops).all()
    assert crops.max() <= images.max()


def test_cutout_blanks_one_square_per_image() -> None:
    images = torch.ones(200, 1, 8, 8)
    blanked = (aug.cutout(images, seeded(), size=4, fill=0) == 0).sum((1, 2, 3))
    assert blanked.max() == 16  # whole, unless it sticks out
    assert blanked.min() == 4  # at a corner a quarter of it is left
    assert set(blanked.tolist()) <= {a * b for a in (2, 3, 4) for b in (2, 3, 4)}


def test_mixup_blends_images_and_labels_alike() -> None:
    images = torch.eye(6).view(6, 1, 1, 6)  # image k is the one-hot vector k, so the images are the targets
    for seed in range(20):
        mixed, targets = aug.mixup(images, torch.arange(6), 6, alpha=0.5, generator=seeded(seed))
        assert torch.allclose(mixed.view(6, 6), targets)
        assert torch.allclose(targets.sum(1), torch.ones(6))


def test_mixup_s_weight_is_the_one_that_was_drawn() -> None:
    weight = aug._beta(0.2, seeded(5))
    generator = seeded(5)
    mixed, _ = aug.mixup(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]), 2, generator=generator)
    aug._beta(0.2, generator := seeded(5))
    other = torch.randperm(2, generator=generator).float()
    expected = weight * torch.tensor([0.0, 1.0]) + (1 - weight) * other
    assert torch.allclose(mixed.flatten(), expected)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0])
def test_beta_has_the_moments_of_beta(alpha: float) -> None:
    generator = seeded(1)
    draws = torch.tensor([aug._beta(alpha, generator) for _ in range(4000)])
    assert draws.min() >= 0
    assert draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmix_s_label_weight_is_the_area_that_is_left() -> None:
    # Image k is the constant k; what share of the image keeps its own value must be its label's weight, exactly.
    side, batch = 10, 4
    images = torch.arange(batch).float().view(batch, 1, 1, 1).expand(batch, 3, side, side)
    clipped = 0
    for seed in range(60):
        mixed, targets = aug.cutmix(images, torch.arange(batch), batch, alpha=1.0, generator=seeded(seed))
        for k in range(batch):
            share = torch.tensor([(mixed[k, 0] == other).sum() / side**2 for other in range(batch)])
            assert torch.allclose(targets[k], share, atol=1e-6)
        pasted = mixed[:, 0] != images[:, 0]
        if pasted.any():
            rows, columns = pasted.any(0).any(1).nonzero(), pasted.any(0).any(0).nonzero()
            height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
            clipped += height != width
            assert int(pasted.any(0).sum()) == height * width  # one rectangle, the same in every image
    assert clipped > 5
    assert torch.equal(images[:, 0, 0, 0], torch.arange(batch).float())  # the batch itself is left alone


def test_cutmix_takes_the_same_place_of_the_other_image() -> None:
    images = ramp(2)
    mixed, _ = aug.cutmix(images, torch.arange(2), 2, alpha=1.0, generator=seeded(3))
    assert ((mixed == images) | (mixed == images.flip(0))).all()


@pytest.mark.parametrize(
    "recipe", ["flip", "crop", "resized_crop", "cutout", "mixup", "cutmix", "crop+flip+cutmix|mixup"]
)
def test_a_generator_decides_everything(recipe: str) -> None:
    images, labels = ramp(16), torch.arange(16) % 3
    torch.manual_seed(0)
    first = aug.augment(images, labels, recipe, num_classes=3, generator=seeded(1))
    torch.manual_seed(99)  # the global state must not matter
    again = aug.augment(images, labels, recipe, num_classes=3, generator=seeded(1))
    other = aug.augment(images, labels, recipe, num_classes=3, generator=seeded(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_recipe_without_mixing_keeps_the_labels() -> None:
    images, labels = ramp(), torch.arange(8)
    same, kept = aug.augment(images, labels, "none", num_classes=8, generator=seeded())
    assert same is images
    assert kept is labels
    _, kept = aug.augment(images, labels, "crop+flip+cutout", num_classes=8, generator=seeded())
    assert kept is labels


def test_alternatives_are_drawn_per_batch() -> None:
    images, labels = ramp(), torch.arange(8)
    generator = seeded()
    soft = [
        aug.augment(images, labels, "none|mixup", num_classes=8, generator=generator)[1].ndim == 2 for _ in range(60)
    ]
    assert 15 < sum(soft) < 45


def test_operations_run_in_the_order_written() -> None:
    generator = seeded(4)
    expected = aug.flip(aug.random_crop(ramp(), generator), generator)
    images, _ = aug.augment(ramp(), torch.arange(8), "crop+flip", num_classes=8, generator=seeded(4))
    assert torch.equal(images, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_batch_is_augmented_like_a_cpu_batch() -> None:
    images, labels, recipe = ramp(16), torch.arange(16), "resized_crop+flip+cutout+cutmix|mixup"
    here = aug.augment(images, labels, recipe, num_classes=16, generator=seeded())
    there = aug.augment(images.cuda(), labels.cuda(), recipe, num_classes=16, generator=seeded())
    assert torch.allclose(here[0], there[0].cpu(), atol=1e-4)
    assert torch.allclose(here[1], there[1].cpu())


def _mix(alpha: float) -> Callable[[], object]:
    return lambda: aug.mixup(ramp(), torch.arange(8), 8, alpha, generator=seeded())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: aug.parse_recipe("flp"),
            r"Unknown augmentation 'flp' in 'flp' \(did you mean flip\?\); there are none",
        ),
        (lambda: aug.parse_recipe("crop++flip"), "Unknown augmentation '' in"),
        (
            lambda: aug.parse_recipe("cutmix|mixup+flip"),
            r"'cutmix\|mixup' mixes labels, so it has to be the last step",
        ),
        (lambda: aug.to_float(torch.zeros(2)), "expects uint8 images, got torch.float32"),
        (_mix(0), "alpha is 0"),
        (_mix(9), "alpha is 9"),
        (
            lambda: aug.augment(
                torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2), "flip", num_classes=2, generator=seeded()
            ),
            "float batch B×C×H×W, got torch.uint8 of shape",
        ),
    ],
)
def test_a_wrong_call_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
