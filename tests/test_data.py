from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from redistill_lib.data import Clutter, LazyImages, TensorImages, as_batch, images, load_data, sources, splits
from redistill_lib.data.clutter import compose, read_digits

SMALL = {"train_size": 200, "validation_size": 40, "test_size": 60}
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def png(colour: tuple[int, ...] | int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    """A lossless image of one colour."""
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
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


@pytest.mark.parametrize("name", ["cluttered", "digits"])
def test_limit_keeps_the_classes_balanced(name: str) -> None:
    data = load_data(name, limit=30)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 30, 30)
    assert data.train.labels.bincount(minlength=10).tolist() == [3] * 10


@pytest.mark.parametrize(
    "arguments", [{"name": "cluttered", "image_size": 48, "noise": 0.2, "limit": 20}, {"name": "digits"}]
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
    small = images.decode_image(out.getvalue(), "x", 8, 1)
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
            Image.new(mode, (8, 8)).save(tmp_path / name / f"{number}.png")
    assert load_data(tmp_path, channels=channels, cache_dir=None).in_channels == expected


def test_a_photo_is_turned_as_its_camera_says() -> None:
    image = Image.new("RGB", (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # white above, black below
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    turned = images.decode_image(out.getvalue(), "x", 16, 3).float()
    assert turned[:, :6].mean() < 20
    assert turned[:, 10:].mean() > 235


def test_without_labels_any_tree_of_images_will_do(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(png((number, 0, 0)))
    data = load_data(tmp_path, label_column=False, cache_dir=None)
    assert (data.num_classes, len(data.train), len(data.validation), len(data.test)) == (1, 14, 2, 4)


# ------------------------------------------------------------------------------------------------ parquet, hub


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


def test_large_tables_are_read_through_a_memory_map(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = parquet_folder(tmp_path / "set", table([0, 1, 2] * 10))
    small = load_data(root, cache_dir=tmp_path / "a")
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", 0)
    large = load_data(root, cache_dir=tmp_path / "b")
    assert same(small, large)
    assert list((tmp_path / "b" / "arrow").rglob("*.arrow"))


# ------------------------------------------------------------------------------------------------ lazy, cached


def test_lazy_and_eager_give_the_same_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = parquet_folder(tmp_path, table([0, 1, 2] * 10))
    eager, lazy = (load_data(root, lazy=lazy, cache_dir=None, image_size=6) for lazy in (False, True))
    assert isinstance(eager.train, TensorImages)
    assert isinstance(lazy.train, LazyImages)
    assert same(eager, lazy)
    assert torch.equal(lazy.train[2][0], eager.train.images[2])
    assert "decoded on access" in repr(lazy.train)
    monkeypatch.setattr(splits, "EAGER_BYTES", 30 * 3 * 36 - 1)  # one byte less than they need
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
    import safetensors.torch

    def fail(tensors: dict, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        load_data(image_folder(tmp_path / "set"), cache_dir=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".gitignore"]


def test_a_limited_set_is_not_cached(tmp_path: Path) -> None:
    load_data(image_folder(tmp_path / "set"), cache_dir=tmp_path / "cache", limit=6)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "clutered"}, r"Unknown data set 'clutered' \(did you mean 'cluttered'\?\)"),
        ({"name": "CIFAR10"}, "on the Hugging Face hub, as 'hf:uoft-cs/cifar10'"),
        ({"name": "digits", "noise": 0.1}, "'digits' has no option 'noise'"),
        ({"nois": 0.1}, r"no option 'nois' \(did you mean 'noise'\?\); it has canvas, digit_size"),
        ({"validation": 0}, "validation is 0; it is a fraction"),
        ({"test": 1.5}, "test is 1.5; it is a fraction"),
        ({"validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ({"image_size": 0}, "image_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"name": "digits", "validation": 0.0001}, "validation=0.0001 of 1797 images .* is an empty split"),
        ({"image_size": 40, "canvas": 48}, "canvas=48 and image_size=40 differ"),
        ({"image_size": 10}, "does not fit a canvas of 10 px"),
        ({"fragment_size": 99}, "fragments are cut from digits"),
        ({"distractors": -1}, "distractors is -1"),
        ({"noise": 2}, "noise is 2"),
        ({"train_size": 0}, "train_size is 0"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(**arguments)


@pytest.mark.parametrize(
    ("options", "message"), [({"channels": 2}, "channels is 2"), ({"label_column": True}, "label_column is True")]
)
def test_a_wrong_source_option_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(tmp_path, **options)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder \./nowhere/at/all; see data/README\.md"):
        load_data("./nowhere/at/all")


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give the folder"):
        load_data(tmp_path / "x.parquet")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images; expected train\*\.parquet"):
        load_data(tmp_path)


def test_parquet_without_train_lists_the_files(tmp_path: Path) -> None:
    pq.write_table(table([0, 1]), tmp_path / "part-0.parquet")
    with pytest.raises(ValueError, match=r"no train\*\.parquet \(it has part-0\.parquet\)"):
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
            r"no column 'lable' \(did you mean 'label'\?\); it has image, label",
        ),
        (pa.table({"label": [0, 1]}), {}, "has no image column that I know; pass image_column= one of label"),
        (
            table([0, 1]).rename_columns(["left", "label"]).append_column("right", table([0, 1])["image"]),
            {},
            r"several possible image columns \(left, right\)",
        ),
        (table([0, 0, 0]), {}, "All 3 training images of .* are of one class"),
        (table([1, 2, 1, 2]), {}, "run from 1 to 2; number the classes from 0"),
        (table([0, None], images=[png(0, mode="L")] * 2), {}, "Row 1 of train .* has no label in column 'label'"),
        (table([0, 1])[:0], {}, "The train part of .* is empty"),
        (table([0, 1, 2]), {}, "validation=0.1 of 3 images .* is an empty split"),
        (table([0, 1] * 5), {"test": 0.85}, r"Class \d has too few images|leave nothing"),
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
    (root / "cat" / "05.png").write_bytes(png((0, 0, 255), (9, 12)))
    with pytest.raises(
        ValueError, match=r"differ in size: .* is 8×8, .*05\.png is 9×12; pass image_size=, for example"
    ):
        load_data(root, cache_dir=None)
    assert load_data(root, cache_dir=None, image_size=8).image_size == 8


def test_images_that_are_not_square_need_an_image_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"are 8×10, not square; pass image_size="):
        load_data(image_folder(tmp_path, size=(8, 10)), cache_dir=None)


def test_very_large_sets_are_probed_in_part_and_count_as_colour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = parquet_folder(tmp_path, table([0, 1] * 10, images=[png(0, mode="L")] * 20))
    assert load_data(root, cache_dir=None).in_channels == 1
    monkeypatch.setattr(images, "PROBED", 5)
    assert load_data(root, cache_dir=None).in_channels == 3


# --------------------------------------------------------------------------------------------- published numbers

PUBLISHED = Path(__file__).parents[1] / "data" / "published"


def test_the_published_files_agree_where_they_overlap() -> None:
    results, footprints, curves = (pd.read_csv(PUBLISHED / f"{n}.csv") for n in ("results", "footprints", "curves"))
    peaks = footprints.groupby(["panel", "role"])["mib"].max()
    for panel, model in (("imagenet-ResNet50", "resnet50"), ("stl10-ResNeXt18", "resnext18")):
        for role in ("teacher", "student"):
            rows = results[(results["model"] == model) & (results["method"] == role)]
            assert rows["peak_mib_per_image"].tolist() == [peaks[panel, role]]
    best = curves.groupby(["config", "date"])["test_acc"].max()
    red = results[(results["student"] == "mobilenetv2-4-1221111") & (results["method"] == "red")]
    assert red["top1"].tolist() == [pytest.approx(100 * best["mobilenetv2-red.yaml", "2024-03-22"])]
    assert curves.groupby(["student", "config", "date"]).size().tolist() == [300] * 11
    assert (footprints.groupby(["panel", "role"])["index"].max() + 1).min() == 10


@pytest.mark.parametrize("lazy", [False, True])
def test_head_is_the_first_images(tmp_path: Path, lazy: bool) -> None:
    split = load_data(image_folder(tmp_path), lazy=lazy).train
    images, labels = split.head(3)
    assert len(images) == 3 and torch.equal(images[2], split[2][0]) and torch.equal(labels, split.labels[:3])
    assert len(split.head(10_000)[1]) == len(split)
