from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from redistill_lib.data import Clutter, LazyImages, Pairs, TensorImages, as_batch, images, load_data, splits
from redistill_lib.data.clutter import compose, read_digits
from redistill_lib.data.pairs import compose_pairs

SMALL = {"train_size": 200, "validation_size": 40, "test_size": 60}
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def png(colour: tuple[int, ...] | int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A lossless image of one colour but for its last row, since flat images are warned of."""
    out = io.BytesIO()
    image = Image.new(mode, size, colour)
    image.paste(128 if mode == "L" else (128, 128, 128), (0, size[1] - 1, *size))
    image.save(out, "PNG")
    return out.getvalue()


def image_folder(
    root: Path, splits: tuple[str, ...] = ("",), per_class: int = 10, size: tuple[int, int] = (8, 8)
) -> Path:
    for split in splits:
        for name, colour in zip(("ant", "bee", "cat"), COLOURS, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                (folder / f"{number:02}.png").write_bytes(png(colour, size))
    return root


def table(labels: list, column: str = "label", images: list[bytes] | None = None, **columns: list) -> pa.Table:
    images = images or [png(COLOURS[int(label) % 3]) for label in labels]
    return pa.table({"image": [{"bytes": raw, "path": None} for raw in images], column: labels, **columns})


def parquet_folder(root: Path, train: pa.Table, **others: pa.Table) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, rows in {"train": train, **others}.items():
        pq.write_table(rows, root / f"{split}-00000-of-00001.parquet")
    return root


def same(left: object, right: object) -> bool:
    return all(
        torch.equal(a, b)
        for split in splits.SPLITS
        for a, b in zip(
            getattr(left, split).__getitems__(range(len(getattr(left, split)))),
            getattr(right, split).__getitems__(range(len(getattr(right, split)))),
            strict=True,
        )
    )


# ---------------------------------------------------------------------------------------------------- built in


def test_digits_are_split_by_class_and_resized() -> None:
    data = load_data("digits", image_size=16)
    assert (len(data.train), len(data.validation), len(data.test)) == (1258, 180, 359)
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, 16)
    assert tuple(data.train[0][0].shape) == (1, 16, 16)
    assert data.train[0][0].dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    counts = data.to_frame()
    assert counts.index.tolist() == list(data.classes)
    assert (counts["validation"] == 18).all()
    assert counts.to_numpy().sum() == 1797


def test_digits_at_their_own_size_are_the_originals() -> None:
    from sklearn.datasets import load_digits

    images, labels = read_digits(8)
    original = load_digits()
    assert np.array_equal(images[:, 0].numpy(), np.floor(original.images * 255 / 16 + 0.5))
    assert np.array_equal(labels.numpy(), original.target)


def test_digit_splits_are_disjoint() -> None:
    data = load_data("digits")
    seen = [set(map(bytes, getattr(data, split).images.flatten(1).numpy())) for split in splits.SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797  # all 1,797 originals differ from one another


def test_cluttered_is_a_function_of_its_seed() -> None:
    first, again, other = (load_data(seed=seed, **SMALL) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first.train.images, other.train.images)
    assert repr(first).startswith("DataSplits('cluttered': 200 train · 40 validation · 60 test; 10 classes; 1×40×40")


def test_cluttered_bytes_are_the_same_on_every_machine() -> None:
    train = load_data(train_size=50).train
    assert int(train.images.long().sum()) == 1606066
    assert train.labels[:10].tolist() == [9, 5, 0, 0, 8, 4, 7, 6, 5, 3]


def test_each_cluttered_split_is_its_own_stream() -> None:
    few, many = load_data(**SMALL), load_data(**{**SMALL, "train_size": 300})
    assert torch.equal(few.test.images, many.test.images)
    assert torch.equal(few.validation.labels, many.validation.labels)


def test_no_source_digit_is_shared_between_cluttered_splits() -> None:
    # Without clutter and noise, on a canvas of its own size, each image is its source digit.
    options = {"canvas": 12, "digit_size": 12, "fragment_size": 8, "distractors": 0, "noise": 0}
    data = load_data(train_size=3000, validation_size=1000, test_size=1000, **options)
    seen = [set(map(bytes, getattr(data, split).images.flatten(1).numpy())) for split in splits.SPLITS]
    assert [len(part) for part in seen] == [1258, 180, 359]  # and all of them are used
    assert len(set.union(*seen)) == 1797


def test_fragments_come_from_other_digits_of_the_same_part() -> None:
    # Digit k is the constant grey 10·(k+1): where the digit is not, only the greys of other digits may appear.
    digits = torch.arange(10, 60, 10, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    clutter = Clutter(canvas=30, digit_size=4, fragment_size=2, distractors=6, noise=0)
    images, labels = compose(digits, torch.arange(5), 50, clutter, torch.Generator().manual_seed(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        greys = image.unique().tolist()
        assert set(greys) <= {0, 10, 20, 30, 40, 50}
        own = 10 * (label + 1)
        assert int((image == own).sum()) <= 16  # its own digit once, and no fragment of it
        assert len(greys) >= 3
    assert labels.bincount().tolist() == [10] * 5


def test_noise_has_the_strength_it_is_given() -> None:
    grey = torch.full((3, 1, 12, 12), 128, dtype=torch.uint8)
    clutter = Clutter(canvas=12, digit_size=12, noise=0.1, distractors=0)
    images, _ = compose(grey, torch.arange(3), 300, clutter, torch.Generator().manual_seed(0))
    assert float(images.float().std()) == pytest.approx(25.5, rel=0.02)
    assert float(images.float().mean()) == pytest.approx(127.5, abs=0.5)  # fixed point rounds down


def test_pairs_are_a_bright_and_a_dark_digit_of_their_own_split() -> None:
    data = load_data("pairs", noise=0, canvas=8, digit_size=8, **SMALL)
    sources = load_data("digits", image_size=8)
    assert data.classes[37] == "37" and (data.num_classes, data.image_size) == (100, 8)
    for split in splits.SPLITS:
        made, own = getattr(data, split), getattr(sources, split)
        digits = own.images.numpy().astype(int)
        possible = {}
        for bright, ten in zip(digits, own.labels.tolist(), strict=True):
            images = 128 + bright // 2 - digits // 2
            possible |= {
                image.tobytes(): 10 * ten + one for image, one in zip(images, own.labels.tolist(), strict=True)
            }
        for image, label in made:
            assert possible[image.numpy().astype(int).tobytes()] == label


def test_pairs_composed_again_by_hand() -> None:
    greys = np.array([[90, 200], [31, 255], [2, 140]])  # of the left and the right column of each digit
    digits = torch.tensor(greys, dtype=torch.uint8).view(3, 1, 1, 2).expand(3, 1, 2, 2)
    options = Pairs(canvas=3, digit_size=2, noise=0)
    images, labels = compose_pairs(digits, torch.tensor([4, 7, 0]), 6, options, torch.Generator().manual_seed(1))
    random = torch.Generator().manual_seed(1)
    bright = [int(k) for _ in range(2) for k in torch.randperm(3, generator=random)]
    dark = [(k + 1 + int(more)) % 3 for k, more in zip(bright, torch.randint(2, (6,), generator=random), strict=True)]
    expected = np.full((6, 3, 3), 128)
    for sign, chosen in ((1, bright), (-1, dark)):
        top, left = torch.randint(2, (2, 6), generator=random).tolist()
        for image, k, y, x in zip(expected, chosen, top, left, strict=True):
            image[y : y + 2, x : x + 2] += sign * (greys[k] // 2)
    assert images[:, 0].tolist() == expected.tolist()
    assert labels.tolist() == [10 * (4, 7, 0)[b] + (4, 7, 0)[d] for b, d in zip(bright, dark, strict=True)]


def test_pairs_bytes_are_the_same_on_every_machine() -> None:
    data = load_data("pairs", **SMALL)
    assert data.fingerprint() == "223be7dc"
    assert not torch.equal(data.train.images, load_data("pairs", seed=1, **SMALL).train.images)


@pytest.mark.parametrize("name", ["cluttered", "digits"])
def test_limit_keeps_the_classes_balanced(name: str) -> None:
    data = load_data(name, limit=30)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 30, 30)
    assert data.train.labels.bincount(minlength=10).tolist() == [3] * 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "cluttered", "image_size": 48, "noise": 0.2, "limit": 20},
        {"name": "pairs", "image_size": 48, "noise": 0.2, **SMALL},
        {"name": "digits"},
    ],
)
def test_params_load_the_same_images_again(arguments: dict) -> None:
    data = load_data(**arguments)
    assert same(data, load_data(**json.loads(json.dumps(data.params))))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gets_whole_batches(workers: int, tmp_path: Path) -> None:
    lazy = load_data(image_folder(tmp_path), lazy=True).train
    context = "spawn" if workers else None
    loader = DataLoader(lazy, batch_size=6, num_workers=workers, collate_fn=as_batch, multiprocessing_context=context)
    batches = list(loader)
    assert tuple(batches[0][0].shape) == (6, 3, 8, 8)
    assert torch.equal(torch.cat([labels for _, labels in batches]), lazy.labels)


# ------------------------------------------------------------------------------------------------ image folders


def test_an_image_folder_without_splits_is_divided(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path), cache_dir=None)
    assert data.classes == ("ant", "bee", "cat")
    assert data.to_frame().to_numpy().tolist() == [[7, 1, 2]] * 3
    for split in (data.train, data.validation, data.test):
        for image, label in split:
            assert image[:, 0, 0].tolist() == list(COLOURS[int(label)])


def test_images_read_on_access_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    data = load_data("mine", lazy=True, cache_dir="kept")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert data.train[0][0].shape == (3, 8, 8)
    assert data.reading == {"lazy": True, "cache_dir": str(tmp_path / "kept")}
    again = load_data(**data.params, **data.reading)
    assert again.fingerprint() == data.fingerprint() and again.params == data.params
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_an_image_folder_with_splits_keeps_them(tmp_path: Path) -> None:
    root = image_folder(tmp_path, ("train", "val", "test", "unlabelled"), per_class=4)
    data = load_data(root, cache_dir=None)
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 12, 12)
    assert data.origin.startswith("validation: validation of")


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8))
    image.paste((255, 0, 0), (4, 0, 12, 8))  # a red square in the middle
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image.save(tmp_path / name / f"{number}.png")
    data = load_data(tmp_path, image_size=4, cache_dir=None)
    assert data.image_size == 4
    assert (data.train.images[:, 0, :, 1:3] == 255).all()
    assert (data.train.images[:, 1:] == 0).all()


def test_shrinking_filters_fine_detail() -> None:
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, ::2] = 255
    out = io.BytesIO()
    Image.fromarray(stripes).save(out, "PNG")
    small = images.decode_image(out.getvalue(), 8, 1)
    assert small[0, 2:-2, 2:-2].float().sub(127.5).abs().max() < 8  # grey, not aliased black or white


@pytest.mark.parametrize(
    ("modes", "channels", "expected"),
    [
        (("L", "L"), None, 1),
        (("L", "RGB"), None, 3),
        (("L", "L"), 3, 3),
        (("RGB", "RGB"), 1, 1),
        (("P", "P"), None, 3),
    ],
)
def test_one_channel_only_if_every_image_is_grey(tmp_path: Path, modes: tuple, channels: int, expected: int) -> None:
    for name, mode in zip(("a", "b"), modes, strict=True):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = Image.new(mode, (8, 8))
            image.putpixel((0, 0), {"L": 1, "P": 7}.get(mode, (255, 0, 0)))
            if mode == "P":
                image.putpalette(list(range(30)))
            image.save(tmp_path / name / f"{number}.png")
    assert load_data(tmp_path, channels=channels, cache_dir=None).in_channels == expected


def test_a_photo_is_turned_as_its_camera_says() -> None:
    image = Image.new("RGB", (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    turned = images.decode_image(out.getvalue(), 16, 3).float()
    assert turned[:, :6].mean() < 20
    assert turned[:, 10:].mean() > 235


def test_without_labels_any_tree_of_images_will_do(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(png((number, 0, 0)))
    data = load_data(tmp_path, label_column=False, cache_dir=None)
    assert (data.num_classes, len(data.train), len(data.validation), len(data.test)) == (1, 14, 2, 4)


def test_class_folders_that_are_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = image_folder(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("ant", "bee"):
        (linked / name).symlink_to(real / name)
    (real / "ant" / "again").symlink_to(linked)
    (real / "bee" / "up").symlink_to(real)
    data = load_data(linked, cache_dir=None)
    assert data.classes == ("ant", "bee")


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / ".thumbnails").mkdir()
    (root / ".thumbnails" / "0.png").write_bytes(png((1, 1, 1)))
    (root / "ant" / "._00.png").write_bytes(b"a Mac's")
    assert load_data(root, cache_dir=None).classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("folders", [("dev", "validation", "train"), ("train-a", "train-b"), ("train", "training")])
def test_two_folders_for_one_split_are_refused(tmp_path: Path, folders: tuple) -> None:
    with pytest.raises(ValueError, match=f"has several for .*: {folders[0]}, {folders[1]}; keep one of them"):
        load_data(image_folder(tmp_path, folders), cache_dir=None)


def test_two_words_for_one_split_are_refused_in_parquet_files(tmp_path: Path) -> None:
    rows = table([0, 1, 2] * 4)
    with pytest.raises(ValueError, match=r"several for validation: dev-.*, validation-.*; keep one"):
        load_data(parquet_folder(tmp_path, rows, dev=rows, validation=rows), cache_dir=None)


@pytest.mark.parametrize("odd", ["train", "test", "dev"])
def test_a_class_may_be_named_like_a_split(tmp_path: Path, odd: str) -> None:
    root = image_folder(tmp_path)
    (root / "cat").rename(root / odd)
    (root / odd / ".hidden").mkdir()
    assert load_data(root, cache_dir=None).classes == tuple(sorted(("ant", "bee", odd)))


def test_a_folder_that_may_be_split_or_class_is_asked_about(tmp_path: Path) -> None:
    image_folder(tmp_path, ("train", "extra"))
    with pytest.raises(ValueError, match="holds train, which may be a split or a class beside extra; move"):
        load_data(tmp_path, cache_dir=None)


def test_splits_without_train_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no train split; it has test, val"):
        load_data(image_folder(tmp_path, ("test", "val")), cache_dir=None)


def test_files_that_pillow_does_not_read_are_counted(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    for number in range(3):
        (root / "bee" / f"{number:02}.png").rename(root / "bee" / f"{number:02}.CR2")
    (root / "ant" / "00.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    image = Image.linear_gradient("L").resize((8, 8)).convert("RGB")
    image.save(root / "ant" / "00.jfif", "JPEG")
    with pytest.warns(UserWarning, match=r"3 files of .* are left out, .*: \.cr2 \(3\)"):
        data = load_data(root, cache_dir=None)
    assert data.to_frame().sum(axis=1).tolist() == [10, 7, 10]


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    (image_folder(tmp_path) / "dog").mkdir()
    with pytest.raises(ValueError, match=r"class folders dog of .* hold no images; fill or remove them"):
        load_data(tmp_path, cache_dir=None)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "MPO"])
def test_every_format_is_turned_as_its_camera_says(kind: str) -> None:
    image = Image.new("RGB", (32, 16))
    image.paste((255, 255, 255), (0, 0, 16, 16))  # white to the left
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side: left is above
    out = io.BytesIO()
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(out, kind, exif=exif, **more)
    turned = images.decode_image(out.getvalue(), 16, 1).float()
    assert turned[0, :7].mean() > 235 and turned[0, 9:].mean() < 20


@pytest.mark.parametrize(
    ("mode", "ground"), [("RGBA", (0, 90, 0, 0)), ("LA", (20, 0)), ("P", 0)], ids=["RGBA", "LA", "P"]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_shows_white(mode: str, ground: tuple | int, channels: int) -> None:
    out = io.BytesIO()
    Image.new(mode, (8, 8), ground).save(out, "PNG", **({"transparency": 0} if mode == "P" else {}))
    assert (images.decode_image(out.getvalue(), 8, channels) == 255).all()


def test_a_long_thin_image_needs_little_memory(tmp_path: Path) -> None:
    thin = Image.linear_gradient("L").resize((2, 30_000))
    seen = []
    resize = Image.Image.resize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Image.Image,
            "resize",
            lambda self, size, *rest, **named: seen.append(size) or resize(self, size, *rest, **named),
        )
        out = io.BytesIO()
        thin.save(out, "PNG")
        assert tuple(images.decode_image(out.getvalue(), 64, 3).shape) == (3, 64, 64)
    assert seen == [(64, 64)]


def test_flat_images_are_counted_in_one_warning(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    for number in range(4):
        Image.new("RGB", (8, 8), (5, number, 5)).save(root / "bee" / f"{number:02}.png")
    with pytest.warns(UserWarning, match=r"^4 of 30 images of .* are of one flat colour") as caught:
        load_data(root, cache_dir=None)
    assert len(caught) == 1


# ------------------------------------------------------------------------------------------------ parquet, hub


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 1, 5_000), (-2, 7, 2**45)])
def test_whole_labels_are_classes_in_their_order_whatever_lies_between(tmp_path: Path, numbers: tuple) -> None:
    data = load_data(parquet_folder(tmp_path, table(list(numbers[::-1]) * 10)), cache_dir=None)
    assert data.classes == tuple(map(str, numbers))
    for image, label in data.train:
        assert image[:, 0, 0].tolist() == list(COLOURS[numbers[label] % 3])


def test_minus_one_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Row 2 of train .* has the label -1, outside the 2 classes of train \(0, 1\)"
    ):
        load_data(parquet_folder(tmp_path, table([0, 1, -1] * 5)), cache_dir=None)


def test_whole_labels_that_pandas_made_floats_are_taken(tmp_path: Path) -> None:
    root = parquet_folder(tmp_path, table([0.0, 1.0, 2.0] * 10))
    assert load_data(root, cache_dir=None).classes == ("0", "1", "2")


@pytest.mark.parametrize("label", [float("nan"), 0.5])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: float) -> None:
    rows = table([0.0, 1.0, label] * 5, images=[png(0, mode="L")] * 15)
    with pytest.raises(ValueError, match=f"Row 2 of train .* has the label {label} in column 'label'; labels are"):
        load_data(parquet_folder(tmp_path, rows), cache_dir=None)


def test_columns_of_other_kinds_are_refused(tmp_path: Path) -> None:
    root = parquet_folder(tmp_path, table([0, 1] * 10, several=[[1, 2]] * 20))
    with pytest.raises(ValueError, match=r"train of .* has no label column 'several'; it has label\."):
        load_data(root, cache_dir=None, label_column="several")
    with pytest.raises(ValueError, match=r"train of .* has no image column 'label'; it has image\."):
        load_data(root, cache_dir=None, image_column="label")


def test_two_hub_splits_of_one_kind_are_refused_unless_one_has_the_usual_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = datasets.Dataset(table([0, 1, 2] * 10))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=rows, train_more=rows))
    assert len(load_data("hf:a/b", cache_dir=None).train) == 21
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train_a=rows, train_b=rows))
    with pytest.raises(ValueError, match="hf:a/b has several for train: train_a, train_b"):
        load_data("hf:a/b", cache_dir=None)


def test_a_table_that_unpacks_to_much_more_than_its_file_goes_to_disk(tmp_path: Path) -> None:
    image = png((9, 9, 9), (40, 40))
    root = parquet_folder(tmp_path / "set", table([0, 1] * 2_000, images=[image] * 4_000))
    assert (root / "train-00000-of-00001.parquet").stat().st_size < 4_000 * len(image) // 10  # a dictionary of one
    before = pa.total_allocated_bytes()
    data = load_data(root, cache_dir=tmp_path / "cache", lazy=True, image_size=8)
    assert pa.total_allocated_bytes() - before < 4_000 * len(image) // 10
    (file,) = (tmp_path / "cache" / "arrow").rglob("*.arrow")
    assert file.stat().st_size > 4_000 * len(image) and len(data.train[0][0]) == 3


@pytest.mark.parametrize("rare", [1, 2])
def test_a_limit_keeps_a_rare_class_in_train(tmp_path: Path, rare: int) -> None:
    labels = [0] * 150 + [1] * 150 + [2] * rare
    root = parquet_folder(tmp_path, table(labels), validation=table([0, 1]), test=table([0, 1]))
    assert 1 <= int((load_data(root, cache_dir=None, limit=12).train.labels == 2).sum()) <= rare


def test_a_limit_below_the_number_of_classes_names_those_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"limit=2 leaves no training image of (ant|bee|cat); raise it"):
        load_data(image_folder(tmp_path), cache_dir=None, limit=2)


def test_parquet_files_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    rows = table([0, 1, 2] * 10)
    for number in range(2):
        parquet_folder(tmp_path / "data", rows, test=table([0, 1, 2]))
        pq.write_table(rows, tmp_path / "data" / f"train-0000{number}-of-00002.parquet")
    (tmp_path / "data" / "train-00000-of-00001.parquet").unlink()
    data = load_data(tmp_path, cache_dir=None)
    assert len(data.train) + len(data.validation) == 60
    assert len(data.validation) == 6
    assert data.test.images[:, :, 0, 0].tolist() == [list(colour) for colour in COLOURS]


def test_class_names_come_from_the_hub_s_features(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["yes", "no"])})
    rows = {"img": [{"bytes": png((9, 9, 9)), "path": None}] * 20, "fine_label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    data = load_data(tmp_path, cache_dir=None)
    assert data.classes == ("yes", "no")


@pytest.mark.parametrize("cache", [None, "cache"])
def test_parts_of_a_set_may_have_columns_of_their_own(tmp_path: Path, cache: str | None) -> None:
    rows = table([1.0, 0.0] * 10, author=["me"] * 20)
    root = parquet_folder(tmp_path / "set", rows, test=table([0, 1]).rename_columns(["photo", "label"]))
    data = load_data(root, cache_dir=cache and tmp_path / cache)
    assert data.test.images[:, :, 0, 0].tolist() == [list(colour) for colour in COLOURS[:2]]
    assert data.to_frame().to_numpy().tolist() == [[9, 1, 1]] * 2
    parquet_folder(root, rows, test=table([0, 1]).drop_columns(["label"]))
    with pytest.raises(ValueError, match=r"test of .* has no label column that I know"):
        load_data(root, cache_dir=None)
    assert len(load_data(root, cache_dir=None, label_column=False).test) == 2


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(["x", "y"] * 10, ("x", "y")), ([True, False] * 10, ("False", "True")), ([2, 1, 0, 0] * 5, ("0", "1", "2"))],
)
def test_labels_of_other_types_are_numbered(tmp_path: Path, labels: list, classes: tuple) -> None:
    images = [png((0, 0, 0))] * len(labels)
    data = load_data(parquet_folder(tmp_path, table(labels, images=images)), cache_dir=None)
    assert data.classes == classes
    assert sorted(data.train.labels.unique().tolist()) == list(range(len(classes)))


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = table([0, 1] * 10, column="coarse", other=[3] * 20)
    data = load_data(parquet_folder(tmp_path, rows), label_column="coarse", image_column="image", cache_dir=None)
    assert data.num_classes == 2


def test_a_hidden_test_set_gives_way_to_validation(tmp_path: Path) -> None:
    hidden = table([-1, -1, -1], images=[png((0, 0, 0))] * 3)
    root = parquet_folder(tmp_path, table([0, 1, 2] * 10), validation=table([0, 1, 2]), test=hidden)
    data = load_data(root, cache_dir=None)
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 3)
    assert "test: validation of" in data.origin


def test_the_hub_is_asked_for_repository_and_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    rows = {
        split: datasets.Dataset(table([0, 1, 2] * 10 if split == "train" else [-1] * 3))
        for split in ("train", "unlabeled")
    }

    def load_dataset(repository: str, configuration: str | None) -> datasets.DatasetDict:
        asked.append((repository, configuration))
        return datasets.DatasetDict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load_data("hf:someone/birds:plain", cache_dir=tmp_path)
    load_data("hf:someone/birds", cache_dir=tmp_path)
    assert asked == [("someone/birds", "plain"), ("someone/birds", None)]
    assert (len(data.train), len(data.validation), len(data.test)) == (21, 3, 6)
    assert [path.name.split("-")[0] for path in tmp_path.glob("*.safetensors")] == ["birds", "birds"]


def test_an_unpacked_table_follows_its_files(tmp_path: Path) -> None:
    root = parquet_folder(tmp_path / "set", table([0, 1, 2] * 10))
    first = load_data(root, cache_dir=tmp_path / "cache")
    file = root / "train-00000-of-00001.parquet"
    time = file.stat().st_mtime_ns
    parquet_folder(root, table([2, 1, 0] * 10))
    os.utime(file, ns=(time, time))  # as copying may leave it
    changed = load_data(root, cache_dir=tmp_path / "cache")
    assert same(changed, load_data(root, cache_dir=None)) and not same(first, changed)


# ------------------------------------------------------------------------------------------------ lazy, cached


def test_lazy_and_eager_give_the_same_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = parquet_folder(tmp_path, table([0, 1, 2] * 10))
    eager, lazy = (load_data(root, lazy=lazy, cache_dir=None, image_size=6) for lazy in (False, True))
    assert isinstance(eager.train, TensorImages)
    assert isinstance(lazy.train, LazyImages)
    assert same(eager, lazy)
    assert torch.equal(lazy.train[2][0], eager.train.images[2])
    assert "decoded on access" in repr(lazy.train)
    monkeypatch.setattr(images, "EAGER_BYTES", 30 * 3 * 36 - 1)  # one byte less than they need
    assert isinstance(load_data(root, cache_dir=None, image_size=6).train, LazyImages)


@pytest.mark.parametrize("lazy", [False, True])
def test_splits_can_be_pickled(tmp_path: Path, lazy: bool) -> None:
    for root in (parquet_folder(tmp_path / "p", table([0, 1, 2] * 10)), image_folder(tmp_path / "i")):
        data = load_data(root, lazy=lazy, cache_dir=None)
        assert same(data, pickle.loads(pickle.dumps(data)))


def test_the_cache_is_used_and_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root, cache = image_folder(tmp_path / "set"), tmp_path / "cache"
    first = load_data(root, cache_dir=cache)
    assert len(list(cache.glob("[!.]*"))) == 1  # and no partial file left
    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_image", None)  # decoding would fail
        assert same(first, load_data(root, cache_dir=cache))
        assert len(load_data(root, cache_dir=cache, limit=3, seed=5).train) == 3
    load_data(root, cache_dir=cache, image_size=4)
    assert len(list(cache.glob("[!.]*"))) == 2
    (root / "ant" / "00.png").write_bytes(png((1, 2, 3)))
    os.utime(root / "ant" / "00.png", ns=(1, 1))
    changed = load_data(root, cache_dir=cache)
    assert len(list(cache.glob("[!.]*"))) == 3
    assert not same(first, changed)


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: bytes | None) -> None:
    root, cache = image_folder(tmp_path / "set"), tmp_path / "cache"
    first = load_data(root, cache_dir=cache)
    (file,) = cache.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7] if damage is None else damage)
    assert same(first, load_data(root, cache_dir=cache))
    assert file.read_bytes() == whole


def test_an_interrupted_write_leaves_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(images, "save_file", fail)
    with pytest.warns(
        UserWarning, match=r"Nothing is kept in the cache .*cache \(disk full\); give another cache_dir="
    ):
        data = load_data(image_folder(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert len(data.train) == 21
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".gitignore"]


@pytest.mark.parametrize("kind", [image_folder, lambda root: parquet_folder(root, table([0, 1, 2] * 10))])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, kind: Callable[[Path], Path]) -> None:
    root = kind(tmp_path / "set")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"Nothing is kept in the cache .*; give another cache_dir="):
        data = load_data(root, cache_dir=tmp_path / "file" / "cache")
    assert same(data, load_data(root, cache_dir=None))


def test_lazy_images_are_read_once_for_their_fingerprint(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path), lazy=True)
    first = data.fingerprint()
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert data.fingerprint() == first


def test_lazy_images_that_vanished_are_named(tmp_path: Path) -> None:
    data = load_data(image_folder(tmp_path), lazy=True)
    (gone,) = tmp_path.glob("ant/03.png")
    gone.unlink()
    with pytest.raises(ValueError, match=r"1 of the images of .*ant.03\.png cannot be read"):
        data.fingerprint()
    with pytest.raises(ValueError, match=r"1 of the images of .*ant.03\.png cannot be read"):
        for split in (data.train, data.validation, data.test):
            split.head(len(split))


def test_an_image_that_cannot_be_read_is_named_by_its_row_in_its_part(tmp_path: Path) -> None:
    broken = table([0, 1] * 10, images=[png((0, 0, 0))] * 18 + [b"no image"] * 2).rename_columns(["photo", "label"])
    root = parquet_folder(tmp_path, table([0, 1] * 10), validation=table([0, 1]), test=broken)
    with pytest.raises(ValueError, match=r"^2 of .*: row 18 of test of .*; row 19 of test of"):
        load_data(root, cache_dir=None)


def test_batches_of_lazy_images_share_their_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    split = load_data(image_folder(tmp_path), lazy=True).train
    monkeypatch.setattr(images, "ThreadPoolExecutor", None)
    assert len(split.head(5)[0]) == 5


@pytest.mark.parametrize("kind", ["files", "table"])
def test_the_fingerprint_of_lazy_data_is_that_of_its_images(tmp_path: Path, kind: str) -> None:
    def prints(colour: int, at: str) -> str:
        root = tmp_path / at
        if kind == "files":
            for number in range(20):
                (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
                path = root / "ab"[number % 2] / f"{number:02}.bmp"
                Image.fromarray(np.full((6, 6), colour + number, np.uint8)).save(path)
                os.utime(path, ns=(1, 1))  # equal size, time and name: only the content tells
        else:
            parquet_folder(root, table([0, 1] * 10, images=[png((colour, n, 0)) for n in range(20)]))
        return load_data(root, lazy=True, cache_dir=None).fingerprint()

    first = prints(10, "here")
    assert first == prints(10, "elsewhere")
    assert first != prints(11, "here")
    assert first != load_data(tmp_path / "elsewhere", lazy=True, cache_dir=None, image_size=3).fingerprint()


@pytest.mark.parametrize(
    "options", [{}, {"lazy": True}, {"image_size": 8, "channels": 3}, {"lazy": True, "channels": 3}]
)
def test_all_unreadable_images_are_named_at_once_or_left_out(tmp_path: Path, options: dict) -> None:
    root, cache = image_folder(tmp_path / "set", per_class=12), tmp_path / "cache"
    bad = [root / "bee" / f"{number:02}.png" for number in range(3)] + [root / "cat" / "05.png"]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"4 of the images of .* cannot be read; replace or remove") as caught:
        load_data(root, cache_dir=cache, **options)
    assert all(str(path) in str(caught.value) for path in bad)
    for _ in range(2):  # the second time from the cache
        data = load_data(root, cache_dir=cache, skip_unreadable=True, **options)
        assert data.to_frame().sum(axis=1).tolist() == [12, 9, 11]
        assert data.origin.endswith("; 4 unreadable left out")
        assert same(data, load_data(**json.loads(json.dumps(data.params)), cache_dir=None))


def test_leaving_out_all_images_is_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path, ("train", "test"), size=(40, 40))
    for path in root.glob("test/*/*.png"):
        path.write_bytes(path.read_bytes()[:-30])  # the header can still be read
    with pytest.raises(ValueError, match="No image of test can be read"):
        load_data(root, cache_dir=None, skip_unreadable=True)
    for path in root.glob("train/*/*.png"):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"60 of the images of .* cannot be read"):
        load_data(root, cache_dir=None, skip_unreadable=True)


def test_only_ten_unreadable_images_are_listed(tmp_path: Path) -> None:
    root = image_folder(tmp_path, per_class=10)
    for number in range(10):
        for name in ("ant", "cat"):
            (root / name / f"{number:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^20 of the images .*; and 10 more\.$"):
        load_data(root, cache_dir=None)


def test_a_large_image_is_decoded_without_pillow_s_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert len(load_data(image_folder(tmp_path), cache_dir=None).train) == 21
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"30 of the images .* decompression bomb"):
        load_data(tmp_path, cache_dir=None)


def test_a_limited_set_is_not_cached(tmp_path: Path) -> None:
    load_data(image_folder(tmp_path / "set"), cache_dir=tmp_path / "cache", limit=6)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------- solar cells


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package laid out as elpv-dataset: 40 photographs, whose grey levels are 6·number, and a table in columns."""
    folder = tmp_path / "site" / "elpv_dataset" / "data"
    (folder / "images").mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('it is read, not imported')")
    rows = []
    for number in range(40):
        (folder / "images" / f"cell{number:04}.png").write_bytes(png(6 * number, (30, 30), "L"))
        probability, kind = ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")[number % 4], ("mono", "poly")
        rows.append(f"images/cell{number:04}.png  {probability:18}  {kind[number // 20]}\n")
    (folder / "labels.csv").write_text("".join(rows))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_cell_counts_as_defective_from_a_probability_of_two_thirds(cells: Path) -> None:
    data = load_data("elpv", image_size=30)
    assert (data.classes, data.in_channels) == (("functional", "defective"), 1)
    assert data.to_frame().to_numpy().tolist() == [[14, 2, 4]] * 2
    numbers = []
    for split in (data.train, data.validation, data.test):
        numbers += [int(image[0, 0, 0]) // 6 for image, _ in split]
        assert [number % 4 // 2 for number in numbers[-len(split) :]] == split.labels.tolist()
    assert sorted(numbers) == list(range(40))
    assert same(data, load_data(**json.loads(json.dumps(data.params))))


def test_cells_are_128_pixels_wide_unless_asked_otherwise_and_are_kept(cells: Path) -> None:
    (cells.parents[2] / "elpv").mkdir()  # a folder of that name does not take the name
    data = load_data("elpv")
    assert data.image_size == 128 and data.params["name"] == "elpv"
    assert [path.name[:5] for path in (cells.parents[2] / "data" / "cache").glob("*.safetensors")] == ["elpv-"]
    assert same(data, load_data("elpv"))


def test_the_kind_of_cell_can_be_asked_for_instead(cells: Path) -> None:
    data = load_data("elpv", image_size=30, label_column="type", cache_dir=None)
    assert data.classes == ("mono", "poly")
    assert all(int(image[0, 0, 0]) // 120 == label for image, label in data.train)


def test_without_its_package_elpv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"of their own: pip install elpv-dataset \(91 MB, CC BY"):
        load_data("elpv")


@pytest.mark.parametrize("missing", ["labels.csv", "images/cell0007.png"])
def test_a_package_that_lacks_a_file_names_it(cells: Path, missing: str) -> None:
    (cells / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} of the package elpv-dataset cannot be .*; uninstall"):
        load_data("elpv")


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "clutered"}, "Unknown data set 'clutered'; .*; did you mean 'cluttered'\\?"),
        ({"name": "CIFAR10"}, "on the Hugging Face hub, as 'hf:uoft-cs/cifar10'"),
        ({"name": "digits", "noise": 0.1}, "'digits' has no option 'noise'"),
        ({"nois": 0.1}, "no option 'nois'; it has canvas, digit_size.*; did you mean 'noise'\\?"),
        ({"validation": 0}, r"validation is 0\.0; it is a fraction"),
        ({"test": 1.5}, "test is 1.5; it is a fraction"),
        (
            {"validation": 0.5, "test": 0.5},
            "Class 0 has too few images in the digits to be split: none is left; lower",
        ),
        ({"image_size": 0}, "image_size=0 is not a whole number of 1 or more"),
        ({"limit": 0}, "limit=0 is not a whole number"),
        ({"seed": -1}, "seed=-1 is not a whole number of 0 or more"),
        ({"name": "digits", "validation": 0.0001}, "validation=0.0001 of 1797 images .* is an empty split"),
        ({"image_size": 40, "canvas": 48}, "canvas=48 and image_size=40 differ"),
        ({"image_size": 10}, r"have to fit the canvas, .* digit_size 14 and canvas \(image_size\) 10 px"),
        ({"fragment_size": 99}, "fragments are cut from digits"),
        ({"distractors": -1}, "distractors=-1 is not a whole number of 0 or more"),
        ({"noise": 2}, "noise is 2"),
        ({"train_size": 0}, "train_size=0 is not a whole number"),
        ({"name": "pair"}, "give cluttered, pairs, digits, elpv, hf:<repository> .*; did you mean 'pairs'"),
        ({"name": "ELPV"}, "Unknown data set 'ELPV'.*; did you mean 'elpv'"),
        (
            {"name": "pairs", "distractors": 1},
            "'pairs' has no option 'distractors'; it has canvas, digit_size, noise",
        ),
        ({"name": "pairs", "image_size": 20}, r"digit_size is 28 and canvas \(image_size\) 20 px"),
        ({"name": "pairs", "image_size": 40, "canvas": 48}, "canvas=48 and image_size=40 differ"),
        ({"name": "pairs", "noise": -0.1}, "pairs: noise is -0.1; it is a fraction of full scale"),
        ({"name": "pairs", "test_size": 0}, "pairs: test_size=0 is not a whole number of 1 or more"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"channels": 2}, "channels=2 is not 1 or 3"), ({"label_column": True}, "label_column=True is not")],
)
def test_a_wrong_source_option_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path, **options)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder \./nowhere/at/all; see data/README\.md"):
        load_data("./nowhere/at/all")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("set" * 200, "Unknown data set 'setset"),
        ("../" + "set" * 200, r"no folder \.\./setset.*; see data/README"),
        ("a/" * 3_000, "no folder a/a/a/.*; see data/README"),
        ("~nobody-of-that-name/set", "no folder ~nobody-of-that-name/set; see"),
    ],
)
def test_a_name_that_no_folder_can_have_is_unknown(name: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_data(name)


def test_a_folder_that_lies_too_deep_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_folder(tmp_path) / "bee")
    for _ in range(30):
        os.mkdir("nest" * 50)
        os.chdir("nest" * 50)
    with pytest.raises(
        ValueError, match=r"as a folder of images: File name too long \(….*nest\); rename it, move it"
    ):
        load_data(tmp_path, cache_dir=None)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "closed"))

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(
        ValueError, match=r"folder of images: Permission denied \(….*closed\); .* mend its permissions"
    ):
        load_data(tmp_path)


def test_long_names_of_folders_and_classes_are_taken(tmp_path: Path) -> None:
    root, cache = image_folder(tmp_path / ("set" * 80)), tmp_path / "cache"
    (root / "cat").rename(root / ("cat" * 85))
    data = load_data(root, cache_dir=cache)
    assert data.classes == ("ant", "bee", "cat" * 85)
    assert [path.name[:9] for path in cache.glob("*.safetensors")] == ["setsetset"]
    labels = [name * 100 for name in ("ant", "bee")] * 10
    rows = table(labels, images=[png((0, 0, 0))] * 20)
    assert load_data(parquet_folder(tmp_path / "rows", rows), cache_dir=cache).classes == tuple(labels[:2])


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_data(tmp_path / "x.parquet")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images; expected train\*\.parquet"):
        load_data(tmp_path)


def test_parquet_without_train_lists_the_files(tmp_path: Path) -> None:
    pq.write_table(table([0, 1]), tmp_path / "part-0.parquet")
    with pytest.raises(ValueError, match=r"has no train split; it has part-0\.parquet"):
        load_data(tmp_path)


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"train files of .* cannot be read as one parquet table"):
        load_data(tmp_path)


def test_an_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*arguments: object) -> None:
        raise ConnectionError("no route\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"hf:a/b could not be loaded from the Hugging Face hub: no route Check"):
        load_data("hf:a/b")


def test_a_hub_set_without_train_lists_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(all=datasets.Dataset(table([0]))))
    with pytest.raises(ValueError, match="hf:a/b has no train split; it has all"):
        load_data("hf:a/b")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table([0, 1], column="kind"), {}, "has no label column that I know; pass label_column= one of image, kind"),
        (
            table([0, 1]),
            {"label_column": "lable"},
            r"no label column 'lable'; it has label; did you mean 'label'\?",
        ),
        (pa.table({"label": [0, 1]}), {}, "has no image column that I know; pass image_column= one of label"),
        (
            table([0, 1]).rename_columns(["left", "label"]).append_column("right", table([0, 1])["image"]),
            {},
            r"several possible image columns \(left, right\)",
        ),
        (table([0, 0, 0]), {}, "All 3 images of train of .* are of one class"),
        (
            table([0, None], images=[png(0, mode="L")] * 2),
            {},
            "Row 1 of train .* has the label nan in column 'label'",
        ),
        (table([0, 1])[:0], {}, "train files of .* no data"),
        (table([0, 1, 2]), {}, "validation=0.1 of 3 images .* is an empty split"),
        (table([0, 1] * 5), {"test": 0.85}, r"Class \d has too few images"),
    ],
)
def test_an_unfit_table_is_refused(tmp_path: Path, rows: pa.Table, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(parquet_folder(tmp_path, rows), cache_dir=None, **options)


def test_a_class_unknown_to_train_is_refused(tmp_path: Path) -> None:
    root = parquet_folder(tmp_path, table([0, 1] * 10), test=table([0, 7]))
    with pytest.raises(
        ValueError, match=r"Row 1 of test .* has the label 7, outside the 2 classes of train \(0, 1\)"
    ):
        load_data(root, cache_dir=None)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_corrupt_row_is_named(tmp_path: Path, lazy: bool) -> None:
    images = [png((0, 0, 0))] * 20
    images[13] = b"not an image"
    root = parquet_folder(tmp_path, table([0, 1] * 10, images=images))
    with pytest.raises(ValueError, match=r"row 13 of train of .*, column 'image', cannot be read"):
        load_data(root, cache_dir=None, lazy=lazy)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path, size=(64, 64))
    (root / "bee" / "03.png").write_bytes(png((0, 255, 0), (64, 64))[:-30])
    with pytest.raises(ValueError, match=r"bee.03\.png cannot be read as an 8-bit image"):
        load_data(root, cache_dir=None)


def test_a_row_without_an_image_is_named(tmp_path: Path) -> None:
    rows = table([0, 1] * 10)
    rows = rows.set_column(0, "image", pa.array([*rows["image"].to_pylist()[:19], None], rows["image"].type))
    with pytest.raises(ValueError, match=r"row 19 of train .* holds no image"):
        load_data(parquet_folder(tmp_path, rows), cache_dir=None)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    Image.new("I;16", (8, 8)).save(root / "cat" / "05.png")
    with pytest.raises(ValueError, match=r"05\.png .* more than 8 bits per channel"):
        load_data(root, cache_dir=None)


def test_unequal_sizes_need_an_image_size(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    (root / "cat" / "05.png").write_bytes(png((0, 0, 255), (12, 9)))
    with pytest.raises(
        ValueError,
        match=r"not squares of one size: .* is 8×8, .*05\.png is 12×9; pass image_size= .* example image_size=8",
    ):
        load_data(root, cache_dir=None)
    assert load_data(root, cache_dir=None, image_size=8).image_size == 8


def test_images_that_are_not_square_need_an_image_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not squares of one size: .* is 8×10; pass image_size="):
        load_data(image_folder(tmp_path, size=(8, 10)), cache_dir=None)


def test_very_large_sets_are_probed_in_part_and_count_as_colour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = parquet_folder(tmp_path, table([0, 1] * 10, images=[png(0, mode="L")] * 20))
    assert load_data(root, cache_dir=None).in_channels == 1
    monkeypatch.setattr(images, "PROBED", 5)
    assert load_data(root, cache_dir=None).in_channels == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": 7}, "name=7 is not text or a path"),
        ({"name": None}, "name=None is not text"),
        ({"name": ""}, "Unknown data set ''"),
        ({"image_size": [24, 24]}, r"image_size=\[24, 24\] is not a whole number or None"),
        ({"image_size": 24.0}, "image_size=24.0 is not a whole number or None"),
        ({"limit": "7"}, "limit='7' is not a whole number or None"),
        ({"seed": True}, "seed=True is not a whole number"),
        ({"seed": 2**70}, "seed=.* is more than"),
        ({"test": "0.3"}, "test='0.3' is not a number"),
        ({"validation": float("nan")}, "validation=nan is not a number"),
        ({"noise": "little"}, "noise='little' is not a number"),
        ({"canvas": None}, "canvas=None is not a whole number"),
        ({"name": ".", "lazy": "no"}, "lazy='no' is not True or False or None"),
        ({"name": ".", "skip_unreadable": "no"}, "skip_unreadable='no' is not True or False"),
        ({"name": ".", "channels": "3"}, "channels='3' is not 1 or 3 or None"),
        ({"name": ".", "label_column": 2}, "label_column=2 is not False or text or None"),
        ({"name": ".", "cache_dir": 2}, "cache_dir=2 is not text or a path or None"),
    ],
)
def test_an_argument_of_another_type_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)


def test_a_folder_is_the_same_from_wherever_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path)
    monkeypatch.chdir(root.parent)
    one, other = (load_data(name, image_size=8, cache_dir=None) for name in (root, root.name))
    assert one.params == other.params and same(one, other)


def test_images_cut_short_are_left_out_of_lazy_sets_too(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    path = next(root.glob("*/*.png"))
    path.write_bytes(path.read_bytes()[:-30])
    data = load_data(root, image_size=8, cache_dir=None, lazy=True, skip_unreadable=True)
    assert data.origin.endswith("; 1 unreadable left out")
    assert sum(len(split.head(99)[0]) for split in (data.train, data.validation, data.test)) == 29


def test_numpy_s_numbers_are_taken_and_recorded_as_json() -> None:
    data = load_data("digits", image_size=np.int16(10), limit=np.int64(20), test=np.float64(0.3))
    assert same(data, load_data(**json.loads(json.dumps(data.params))))


@pytest.mark.parametrize(
    "wrong", [{"train": 3}, {"num_classes": "10"}, {"image_size": (8, 8)}, {"in_channels": 0}, {"test": None}]
)
def test_splits_of_other_types_are_refused(wrong: dict) -> None:
    split = TensorImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.arange(2))
    fitting = {"num_classes": 2, "in_channels": 1, "image_size": 4, "classes": ("a", "b"), "name": "own"}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        splits.DataSplits(**{**dict.fromkeys(splits.SPLITS, split), **fitting, **wrong})


def test_tensors_of_other_types_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"images are uint8 N×C×H×W and labels int64 N, not torch\.float32 \(2, 4, 4\)"
    ):
        TensorImages(torch.zeros(2, 4, 4), torch.arange(2))


@pytest.mark.parametrize("lazy", [False, True])
def test_head_is_the_first_images(tmp_path: Path, lazy: bool) -> None:
    split = load_data(image_folder(tmp_path), lazy=lazy).train
    images, labels = split.head(3)
    assert len(images) == 3 and torch.equal(images[2], split[2][0]) and torch.equal(labels, split.labels[:3])
    assert len(split.head(10_000)[1]) == len(split)
