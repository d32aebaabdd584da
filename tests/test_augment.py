from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from redistill_lib.data import TensorImages, as_batch
from redistill_lib.data import augment as aug

PAPER = "resized_crop+flip+cutmix|mixup"
EVERYTHING = "crop|resized_crop+flip+cutout|none+cutmix|mixup|none"


def noise(count: int = 40, side: int = 8, channels: int = 2) -> TensorImages:
    """Every image unlike every other; labels 0, 1, 2 in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    return TensorImages(images, torch.arange(count) % 3)


def flat(count: int, side: int = 10) -> TensorImages:
    """Image k has the value k everywhere and the label k."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return TensorImages(images.contiguous(), torch.arange(count))


def seen(split: TensorImages, recipe: str, rows: Sequence[int], view: int = 0) -> tuple[Tensor, Tensor]:
    classes = int(split.labels.max()) + 1
    return aug.Views(split, recipe, classes).__getitems__([(row, view) for row in rows])[:2]


def many(split: TensorImages, recipe: str, views: int) -> tuple[Tensor, Tensor]:
    """Image 0 in that many views."""
    return aug.Views(split, recipe, len(split)).__getitems__([(0, view) for view in range(views)])[:2]


def grey(values: Tensor) -> Tensor:
    """Back from −1…1 to 0…255."""
    return (values + 1) * 127.5


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [7, 8, 33])  # an odd side leaves pixels over where a processor takes 8 at a time
@pytest.mark.parametrize("recipe", ["crop+flip", PAPER, EVERYTHING, "mixup"])
def test_an_image_is_the_same_in_any_batch(recipe: str, side: int) -> None:
    split = noise(side=side, channels=1)
    rows = list(range(40))
    images, targets = seen(split, recipe, rows, view=3)
    for batch in (rows[::-1], rows[5:12], [17], [17, 17, 3]):
        again, again_targets = seen(split, recipe, batch, view=3)
        assert torch.equal(again, images[batch])
        assert torch.equal(again_targets, targets[batch])


def test_views_of_one_batch_may_differ() -> None:
    split, rows = noise(), [4, 9]
    images, targets, *_ = aug.Views(split, PAPER, 3).__getitems__([*zip(rows, (6, 2), strict=True)])
    for place, view in enumerate((6, 2)):
        alone, target = seen(split, PAPER, [rows[place]], view)
        assert torch.equal(alone[0], images[place])
        assert torch.equal(target[0], targets[place])


@pytest.mark.parametrize("recipe", ["crop", "resized_crop", "cutout", "mixup", "cutmix", PAPER])
def test_another_view_is_another_image_whatever_torch_s_seed(recipe: str) -> None:
    split, rows = noise(side=32), range(20)
    torch.manual_seed(1)
    first, _ = seen(split, recipe, rows)
    torch.manual_seed(2)
    assert torch.equal(seen(split, recipe, rows)[0], first)
    changed = (seen(split, recipe, rows, view=1)[0] != first).flatten(1).any(1)
    assert changed.sum() >= 15


def test_loaders_agree_whatever_their_batches_and_workers() -> None:
    views = aug.Views(noise(), PAPER, 3)
    assert len(views) == 40
    pairs = [(row, view) for view in (0, 1) for row in range(40)]
    shuffled = [pairs[k] for k in torch.randperm(80, generator=torch.Generator().manual_seed(5)).tolist()]
    found = []
    for order, size, workers in ((pairs, 16, 0), (shuffled, 7, 0), (shuffled, 11, 2)):
        loader = DataLoader(
            views,
            batch_sampler=[order[start : start + size] for start in range(0, 80, size)],
            collate_fn=as_batch,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        images, targets, labels, index, view = (torch.cat(part) for part in zip(*loader, strict=True))
        assert list(zip(index.tolist(), view.tolist(), strict=True)) == order
        assert torch.equal(labels, views.split.labels[index])
        by_name = (view * 40 + index).argsort()
        found.append((images[by_name], targets[by_name]))
    for images, targets in found[1:]:
        assert torch.equal(images, found[0][0])
        assert torch.equal(targets, found[0][1])


def test_what_comes_back() -> None:
    images, targets = seen(noise(), "crop+flip", [3, 1])
    assert (images.dtype, images.shape, images.requires_grad) == (torch.float32, (2, 2, 8, 8), False)
    assert targets.tolist() == [0, 1]
    images, targets = seen(noise(), "mixup", [3, 1])
    assert (targets.dtype, targets.shape) == (torch.float32, (2, 3))
    assert -1 <= images.min() < images.max() <= 1


def test_a_split_is_left_as_it_was() -> None:
    split = noise()
    before = split.images.clone(), split.labels.clone()
    seen(split, EVERYTHING, range(40))
    assert torch.equal(split.images, before[0])
    assert torch.equal(split.labels, before[1])


# --- random numbers -----------------------------------------------------------------------------------------


def test_numbers_depend_on_each_part_of_the_name() -> None:
    first = {aug.sample_rng(*key).random() for key in np.ndindex(6, 6, 6)}
    assert len(first) == 6**3


def test_numbers_of_neighbouring_names_are_uniform_and_uncorrelated() -> None:
    draws = np.array([[aug.sample_rng(index, view).random() for view in range(40)] for index in range(100)])
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 0.001
    for a, b in ((draws[1:], draws[:-1]), (draws[:, 1:], draws[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06


def test_a_batch_draws_the_numbers_of_its_images() -> None:
    index, view = torch.tensor([5, 0, 2**40]), torch.tensor([0, 7, 1])
    drawn = aug._draw(index, view)
    for column, key in zip(drawn.T, zip(index.tolist(), view.tolist(), strict=True), strict=True):
        assert column.tolist() == aug.sample_rng(*key, aug.STREAM).random(aug.WIDTH).tolist()


def test_operations_draw_the_same_numbers_in_any_recipe() -> None:
    split, rows = flat(40), range(40)
    _, mixed = seen(split, "cutmix", rows)
    assert torch.equal(seen(split, "crop+flip+cutout+cutmix", rows)[1], mixed)
    noisy = noise()
    mirrored, _ = seen(noisy, "flip", rows)
    cropped, _ = seen(noisy, "crop", rows)
    left, both = (cropped.flip(3), seen(noisy, "crop+flip", rows)[0])
    flipped = [k for k in rows if not torch.equal(mirrored[k], aug.to_float(noisy.images[k]))]
    assert torch.equal(both[flipped], left[flipped])


# --- operations ---------------------------------------------------------------------------------------------


def test_to_float_is_the_paper_s_normalisation() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.allclose(aug.to_float(values), (values / 255 - 0.5) / 0.5, atol=1e-6)
    assert aug.to_float(values)[[0, 255]].tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match=r"images=array.* is not a Tensor"):
        aug.to_float(values.numpy())  # type: ignore[arg-type]


def test_no_operation_is_the_image() -> None:
    split = noise()
    images, labels = seen(split, "none", range(40))
    assert torch.equal(images, aug.to_float(split.images))
    assert torch.equal(labels, split.labels)


def test_flip_mirrors_half_of_the_images() -> None:
    split = noise(500)
    plain, (flipped, _) = aug.to_float(split.images), seen(split, "flip", range(500))
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    kept = (flipped == plain).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert stats.binomtest(int(mirrored.sum()), 500).pvalue > 0.001


def test_crop_shifts_by_each_offset_equally_often() -> None:
    split, count = noise(1, side=16), 1000
    padded = torch.nn.functional.pad(aug.to_float(split.images[0]), (2,) * 4, value=-1)
    shifts = np.zeros((5, 5))
    for image in many(split, "crop", count)[0]:
        found = [(y, x) for y, x in np.ndindex(5, 5) if torch.equal(image, padded[:, y : y + 16, x : x + 16])]
        assert len(found) == 1
        shifts[found[0]] += 1
    assert stats.chisquare(shifts.ravel()).pvalue > 0.001


def test_resized_crop_keeps_to_its_ranges() -> None:
    # The channels hold the x and y of each pixel, so that the extent of a crop can be read off.
    position = torch.arange(64, dtype=torch.uint8) * 4
    planes = torch.stack(torch.meshgrid(position, position, indexing="xy"))
    crops = grey(many(TensorImages(planes[None], torch.zeros(1).long()), "resized_crop", 1500)[0]) / 256
    # the middle of a crop is free of the border's clamping
    width = (crops[:, 0, 32, 48] - crops[:, 0, 32, 16]) * 2
    height = (crops[:, 1, 48, 32] - crops[:, 1, 16, 32]) * 2
    area, ratio = width * height, width / height
    assert 0.08 - 1e-3 < area.min() < 0.1
    assert 0.93 < area.max() < 1.001
    assert 0.75 - 1e-2 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 4 / 3 + 1e-2
    small = ratio[area < 0.5].log() / math.log(4 / 3)  # each proposal of such an area fits
    assert stats.kstest(small.numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.001
    left = crops[:, 0, 32, 32] - width / 2
    assert left.min() > -0.02
    assert (left + width).max() < 1.02
    assert stats.kstest((left / (1 - width))[width < 0.7].numpy(), "uniform").pvalue > 0.001


def test_resized_crop_counts_pixels_in_a_wide_image() -> None:
    position = (torch.arange(128) * 2).to(torch.uint8)
    planes = torch.stack(
        [position.expand(64, 128), position[:64, None].expand(64, 128)]
    )  # two grey levels to a pixel
    crops = grey(many(TensorImages(planes[None], torch.zeros(1).long()), "resized_crop", 400)[0]) / 2
    width = (crops[:, 0, 32, 96] - crops[:, 0, 32, 32]) * 2
    height = (crops[:, 1, 48, 64] - crops[:, 1, 16, 64]) * 2
    assert 0.74 < (width / height).min() < (width / height).max() < 1.35


def test_cutout_blanks_a_square_in_grey() -> None:
    split = TensorImages(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(1).long())
    blanked = (many(split, "cutout", 300)[0] == 0).sum((1, 2, 3))
    assert blanked.max() == 16  # whole, unless it sticks out
    assert blanked.min() == 4  # at a corner a quarter of it is left
    assert set(blanked.tolist()) <= {a * b for a in (2, 3, 4) for b in (2, 3, 4)}


def test_mixup_blends_images_and_labels_alike() -> None:
    split = flat(20)
    images, targets = seen(split, "mixup", range(20))
    assert torch.allclose(grey(images[:, 0, 0, 0]), targets @ torch.arange(20.0), atol=1e-4)
    assert torch.equal(images, images[:, :1, :1, :1].expand(images.shape))
    assert torch.allclose(targets.sum(1), torch.ones(20))


def test_the_weight_of_mixup_is_drawn_from_beta_for_each_image() -> None:
    _, targets = seen(flat(250), "mixup", range(250))
    others = targets.masked_fill(torch.eye(250).bool(), 0)
    drawn = targets.diagonal()[others.sum(1) > 0].double().numpy()
    assert len(drawn) > 200
    inner = drawn[(drawn > 0.01) & (drawn < 0.99)]  # single precision has no room at the ends
    beta = stats.beta(0.2, 0.2)
    low, high = beta.cdf([0.01, 0.99])
    assert stats.kstest(inner, lambda x: (beta.cdf(x) - low) / (high - low)).pvalue > 0.001
    assert drawn.mean() == pytest.approx(0.5, abs=4 * beta.std() / len(drawn) ** 0.5)


def test_partners_are_drawn_from_the_whole_split() -> None:
    _, targets = many(flat(20), "mixup", 2000)
    partner = targets[:, 1:].argmax(1)[targets[:, 0] < 1]  # of those that are not the image itself
    assert stats.chisquare(torch.bincount(partner, minlength=19).numpy()).pvalue > 0.001


def test_a_partner_is_seen_in_its_own_view() -> None:
    split = noise(60)
    split = TensorImages(split.images, torch.arange(60))
    cropped, _ = seen(split, "crop+flip", range(60), view=4)
    images, targets = seen(split, "crop+flip+cutmix", range(60), view=4)
    assert (targets.amax(1) < 1).sum() > 15
    for row, (image, target) in enumerate(zip(images, targets, strict=True)):
        partner = int(target.clone().index_fill_(0, torch.tensor(row), -1).argmax())
        pasted = image != cropped[row]
        assert torch.equal(image[pasted], cropped[partner][pasted])


def test_the_label_s_weight_in_cutmix_is_the_area_that_is_left() -> None:
    images, targets = seen(flat(60), "cutmix", range(60))
    values = grey(images).round().long()
    shapes = set()
    for row in range(60):
        share = torch.bincount(values[row, 0].flatten(), minlength=60) / 100
        assert torch.allclose(targets[row], share, atol=1e-6)
        assert torch.equal(values[row, 0], values[row, 2])  # the same place in every channel
        pasted = values[row, 0] != row
        if pasted.any():
            rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
            shape = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
            assert int(pasted.sum()) == shape[0] * shape[1]  # one rectangle
            shapes.add(shape)
    assert any(height != width for height, width in shapes)  # clipped at the border
    assert len(shapes) > 10


def test_alternatives_are_picked_for_each_image() -> None:
    split = flat(240)
    recipe, rows = "cutmix|mixup|none", range(240)
    picked = {word: seen(split, word, rows)[0] for word in recipe.split("|")}
    images, targets = seen(split, recipe, rows)
    same = torch.stack([(images == other).flatten(1).all(1) for other in picked.values()])
    assert same.any(0).all()
    only = same[:, same.sum(0) == 1].sum(1)  # a λ near 1 leaves the image alone whatever is picked
    assert only.min() > 15
    assert torch.equal(images[same[2]], picked["none"][same[2]])
    assert torch.allclose(targets.sum(1), torch.ones(240))
    cropped = seen(noise(500), "none|crop", range(500))[0] != aug.to_float(noise(500).images)
    assert 0.35 < cropped.flatten(1).any(1).float().mean() < 0.5  # half, less those shifted by nothing


def test_operations_run_in_the_order_written() -> None:
    split, rows = noise(), range(40)
    one, other = (seen(split, recipe, rows)[0] for recipe in ("crop+cutout", "cutout+crop"))
    assert ((one == 0).sum() > 0) and not torch.equal(one, other)
    blank = (seen(split, "cutout", rows)[0] == 0).all(1)
    assert (one == 0).all(1)[blank].all()  # the square is where it is without the shift


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aug.parse_recipe("flp"), r"Unknown augmentation 'flp' in 'flp' \(there are none, .*'flip'\?"),
        (lambda: aug.parse_recipe("crop++flip"), "Unknown augmentation '' in"),
        (lambda: aug.parse_recipe("cutmix|mixup+flip"), r"'cutmix\|mixup' mixes labels, so it has to be the last"),
        (lambda: aug.parse_recipe("flip|cutmix"), "only mixup, cutmix and none can be alternatives"),
        (lambda: aug.parse_recipe("flip+crop|flip"), r"'flip' is named twice in 'flip\+crop\|flip'"),
        (lambda: aug.Views(noise(), "cutmxi", 3), "did you mean 'cutmix'"),
        (lambda: aug.to_float(torch.zeros(2)), "expects uint8 images, got torch.float32"),
        (lambda: seen(noise(), "flip", [3, 40]), r"no \(index, view\) \(40, 0\): index is 0 to 39, view 0 or more"),
        (lambda: seen(noise(), "flip", [-1]), r"no \(index, view\) \(-1, 0\)"),
        (lambda: seen(noise(), "flip", [1], view=-2), r"no \(index, view\) \(1, -2\)"),
        (lambda: aug.sample_rng(1.5, 0), "index=1.5 is not a whole number of 0 or more"),  # type: ignore[arg-type]
        (lambda: aug.sample_rng(1, -1), "view=-1 is not a whole number"),
    ],
)
def test_a_wrong_call_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
