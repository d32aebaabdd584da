"""Where images that are not built in come from: the Hugging Face hub, parquet files, a folder of images."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redistill_lib.checks import check_fields, hint
from redistill_lib.data.cache import fingerprint, write_file
from redistill_lib.data.images import EncodedImages

__all__ = ["Source", "find_parts", "number_labels"]

BUILT_IN = ("cluttered", "digits")
IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")
LABEL_TYPES = ("int", "uint", "bool", "string", "large_string", "float")
NO_IMAGES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow knows, but hardly decodes
IN_MEMORY_BYTES = 2**28  # parquet files that unpack to more are read through a memory map
# Short names people type, and where the hub keeps them.
HUB_NAMES = {
    "cifar10": "hf:uoft-cs/cifar10",
    "cifar100": "hf:uoft-cs/cifar100",
    "mnist": "hf:ylecun/mnist",
    "fashion_mnist": "hf:zalando-datasets/fashion_mnist",
    "stl10": "hf:tanganke/stl10",
    "celeba": "hf:flwrlabs/celeba",
    "imagenet": "hf:ILSVRC/imagenet-1k",
}
_SPLIT = re.compile(r"(train|validation|validate|valid|val|dev|test)(?:ing|s)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """How a data set that is not built in is read.

    ``image_column``, ``label_column``: found automatically when None; ``label_column=False`` reads images
    without labels (all get label 0), as a diffusion model needs them. ``lazy``: decode on access (True), at
    once (False), or at once up to 1 GiB decoded (None). ``channels``: 1 or 3; None takes 1 if every image
    is greyscale, else 3. ``skip_unreadable`` leaves images out that cannot be read (of those decoded on
    access: whose header cannot) instead of naming them in an error. ``cache_dir``: where decoded images are
    kept (None: nowhere); a change of source or size makes a new cache.
    """

    image_column: str | None = None
    label_column: str | bool | None = None
    lazy: bool | None = None
    channels: int | None = None
    skip_unreadable: bool = False
    cache_dir: str | os.PathLike[str] | None = "data/cache"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"channels is {self.channels}; it has to be 1 (grey), 3 (RGB) or None (as the images are)."
            )
        if self.label_column is True:
            raise ValueError("label_column is True; give the column's name, None to find it, or False for no labels.")


@dataclass(frozen=True)
class Part:
    """One part as the source stores it: ``items``, ``column`` as in EncodedImages; ``labels`` not numbered yet.

    ``classes``: the names behind integer labels, where the source has them.
    """

    items: Any
    column: str
    labels: Sequence[Any]
    classes: tuple[str, ...] | None = None


def find_parts(name: str, source: Source) -> tuple[dict[str, Part], str]:
    """The parts of data set ``name``: train, perhaps validation and test; and a fingerprint of them."""
    if name.startswith("hf:"):
        return _from_hub(name, source)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        tables = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
        return _from_parquet(folder, tables, source) if tables else _from_images(folder, source)
    if name and folder.exists():
        raise ValueError(f"{name} is a file; give the folder it lies in.")
    if re.search(r"[/\\]|^[.~]", name):
        raise FileNotFoundError(f"There is no folder {name}; see data/README.md for where each data set goes.")
    if name.lower() in HUB_NAMES:
        raise ValueError(f"Unknown data set '{name}'; it is on the Hugging Face hub, as '{HUB_NAMES[name.lower()]}'.")
    raise ValueError(
        f"Unknown data set '{name}'; give cluttered, digits, hf:<repository> or the path of an existing folder"
        f"{hint(name, [*BUILT_IN, *HUB_NAMES]) or '.'}"
    )


def number_labels(
    parts: dict[str, Part], name: str, labelled: bool
) -> tuple[dict[str, EncodedImages], tuple[str, ...]]:
    """Labels as 0…K−1, and the K class names.

    A part whose labels are all −1 is left out. Where that is the test (ImageNet's are not published), the source's
    validation part, on which such sets are reported, takes its place.
    """
    for split, part in parts.items():
        if not part.labels:
            raise ValueError(f"The {split} part of {name} is empty.")
    roles = {split: split for split, part in parts.items() if split == "train" or set(part.labels) != {-1}}
    if "test" in parts and "test" not in roles and "validation" in roles:
        roles["test"] = roles.pop("validation")
    values = parts["train"].labels
    classes = parts["train"].classes
    if not labelled:
        classes = ("unlabelled",)
    elif classes is None and all(type(value) is int for value in values):
        if min(values) != 0:
            raise ValueError(
                f"The labels of {name} run from {min(values)} to {max(values)}; number the classes from 0, "
                f"or store them as a ClassLabel or as text."
            )
        if max(values) >= 10 * (different := len(set(values))):
            raise ValueError(
                f"The labels of {name} run to {max(values)}, but only {different} different ones occur; number the "
                f"classes from 0 without large gaps, or store them as text."
            )
        classes = tuple(str(number) for number in range(max(values) + 1))
    elif classes is None:
        classes = tuple(str(value) for value in sorted(set(values)))
    if labelled and len(set(values)) < 2:
        raise ValueError(
            f"All {len(values):,} training images of {name} are of one class ('{values[0]}'); "
            f"a classifier needs two, and a diffusion model none: pass label_column=False."
        )
    numbered = {}
    for role, split in roles.items():
        part, origin = parts[split], f"{split} of {name}"
        labels = _number(part.labels, classes, origin) if labelled else torch.zeros(len(part.labels)).long()
        numbered[role] = EncodedImages(part.items, part.column, labels, torch.arange(len(labels)), origin)
    return numbered, classes


def _number(values: Sequence[Any], classes: tuple[str, ...], origin: str) -> Tensor:
    index = {label: number for number, label in enumerate(classes)}
    numbers = [value if type(value) is int else index.get(str(value), -1) for value in values]
    for row, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            few = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
            raise ValueError(
                f"Row {row} of {origin} has the label {values[row]!r}, "
                f"outside the {len(classes)} classes of train ({few})."
            )
    return torch.tensor(numbers, dtype=torch.int64)


def _split_of(name: str) -> str | None:
    """train, validation or test, from the name of a file, folder or hub split; None for any other."""
    match = _SPLIT.match(name)
    word = match.group(1).lower() if match else ""
    return {"train": "train", "test": "test", "": None}.get(word, "validation")


def _by_split(names: Iterable[str], where: str) -> dict[str, list[str]]:
    """The names that belong to each split; a ValueError for two words for one, such as val and valid."""
    found: dict[str, list[str]] = {}
    for name in names:
        if split := _split_of(name):
            found.setdefault(split, []).append(name)
    for split, several in found.items():
        words = {match.group().lower(): name for name in several if (match := _SPLIT.match(name))}
        if len(words) > 1:
            raise ValueError(f"{where} has several for {split}: {', '.join(words.values())}; keep one of them.")
    return found


def _only(names: list[str], split: str, where: str) -> str:
    if len(names) > 1:
        raise ValueError(f"{where} has several for {split}: {', '.join(names)}; keep one of them, or merge them.")
    return names[0]


def _from_hub(name: str, source: Source) -> tuple[dict[str, Part], str]:
    import datasets

    repository, _, configuration = name.removeprefix("hf:").partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the hub's client has many; the reader needs to know what was asked of it
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name} could not be loaded from the Hugging Face hub: {detail} "
            f"Check the spelling and the network; a configuration is named hf:<repository>:<configuration>."
        ) from error
    names = _by_split(map(str, found), name)
    # The split that has exactly the usual name is meant, whatever others a set on the hub has beside it.
    tables = {split: found[split if split in keys else _only(keys, split, name)] for split, keys in names.items()}
    if "train" not in tables:
        raise ValueError(f"{name} has no train split; it has {', '.join(str(key) for key in found)}.")
    parts = {split: _from_table(table, source, f"{split} of {name}") for split, table in tables.items()}
    return parts, fingerprint(*[(split, parts[split].column, tables[split]._fingerprint) for split in sorted(parts)])


def _stamp(path: Path, root: Path) -> tuple[object, ...]:
    """What tells a changed file. The inode's time is among it, since copies may keep the time of writing."""
    try:
        found = path.stat()
    except OSError:  # a link to nowhere, which decoding will name
        return (path.relative_to(root).as_posix(),)
    return path.relative_to(root).as_posix(), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _from_parquet(folder: Path, tables: list[Path], source: Source) -> tuple[dict[str, Part], str]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = _by_split([path.name for path in tables], str(folder))
    if "train" not in files:
        raise ValueError(
            f"{folder} has no train*.parquet (it has {', '.join(path.name for path in tables[:5])}); "
            f"name the files train…, test… and, where there is one, validation…"
        )
    parts = {}
    for split, names in files.items():
        paths, origin = [path for path in tables if path.name in names], f"{split} of {folder}"
        try:
            features = datasets.Features.from_arrow_schema(pq.read_schema(paths[0]))
            columns = [column for column in _columns(features, source, origin) if column]
            stamp = fingerprint([_stamp(path, folder) for path in paths], columns)
            table = _read_tables(paths, columns, stamp, source.cache_dir)
        except pa.ArrowException as error:
            raise ValueError(
                f"The {split} files of {folder} cannot be read as one parquet table ({error})."
            ) from error
        parts[split] = _from_table(table, source, origin)
    return parts, fingerprint([_stamp(path, folder) for path in tables], parts["train"].column)


def _read_tables(paths: list[Path], columns: list[str], stamp: str, cache_dir: str | os.PathLike[str] | None) -> Any:
    """A ``datasets.Dataset`` of these columns, in memory up to IN_MEMORY_BYTES, else in a memory-mapped file.

    It is unpacked in small batches and measured on the way: neither a file's size nor its metadata tell how much a
    dictionary-encoded column unpacks to. Without a cache to write to, all of it stays in memory.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        for path in paths:
            with pq.ParquetFile(path, memory_map=True) as file:
                yield from (batch.cast(schema) for batch in file.iter_batches(256, columns=columns))

    def write(file: Path) -> None:
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, schema) as writer:
            for batch in batches():
                writer.write_batch(batch)

    first = pq.read_schema(paths[0])
    schema = pa.schema([first.field(column) for column in columns], first.metadata)
    held, size = [], 0
    for batch in batches():
        held.append(batch)
        size += batch.nbytes
        if size > IN_MEMORY_BYTES and cache_dir is not None:
            held.clear()
            target = Path(cache_dir) / "arrow" / f"{stamp}.arrow"
            if target.exists() or write_file(target, write):
                return datasets.Dataset.from_file(str(target))
            return _read_tables(paths, columns, stamp, None)
    # With a fingerprint of its own, or `datasets` would hash a second copy of the table.
    empty = pa.RecordBatch.from_pylist([], schema)  # `datasets` cannot select from a table without any batch
    return datasets.Dataset(pa.Table.from_batches(held or [empty], schema), fingerprint=stamp)


def _columns(features: Any, source: Source, origin: str) -> tuple[str, str | None]:
    """The image and the label column (None without labels)."""
    import datasets

    kinds = {column: getattr(feature, "dtype", "") for column, feature in features.items()}
    encoded = [
        c for c, f in features.items() if isinstance(f, datasets.Image) or (isinstance(f, dict) and "bytes" in f)
    ]
    image = _column("image", source.image_column, encoded, IMAGE_NAMES, list(features), origin)
    if image not in encoded and kinds[image] not in ("binary", "large_binary", "string"):
        raise ValueError(f"Column '{image}' of {origin} holds no encoded images, but {kinds[image] or 'lists'}.")
    if source.label_column is False:
        return image, None
    named = [c for c in LABEL_NAMES if kinds.get(c, "").startswith(LABEL_TYPES)]
    others = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel) and c not in named]
    label = _column("label", source.label_column or None, [*named, *others], LABEL_NAMES, list(features), origin)
    if not kinds[label].startswith(LABEL_TYPES):
        raise ValueError(f"Column '{label}' of {origin} holds no labels, which are whole numbers or text.")
    return image, label


def _from_table(table: Any, source: Source, origin: str) -> Part:
    import datasets

    image, label = _columns(table.features, source, origin)
    labels: Sequence[Any] = [0] * len(table)
    classes = None
    if label is not None:
        if isinstance(table.features[label], datasets.ClassLabel):
            classes = tuple(table.features[label].names)
        labels = table.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
        for row, value in enumerate(labels):
            # pandas keeps a missing whole number as NaN, and the others of its column as floats
            if value is None or value != value:
                raise ValueError(f"Row {row} of {origin} has no label in column '{label}'; remove the row.")
            if isinstance(value, float) and not value.is_integer():
                raise ValueError(f"Row {row} of {origin} has the label {value}; labels are whole numbers or text.")
        labels = [int(value) if isinstance(value, float) else value for value in labels]
    table = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Part(table, image, labels, classes)


def _column(
    role: str,
    wanted: str | bool | None,
    candidates: list[str],
    preferred: Sequence[str],
    columns: list[str],
    origin: str,
) -> str:
    if isinstance(wanted, str):
        if wanted not in columns:
            raise ValueError(
                f"{origin} has no column '{wanted}'; it has {', '.join(columns)}{hint(wanted, columns) or '.'}"
            )
        return wanted
    ranked = [name for name in preferred if name in candidates] or candidates
    if len(ranked) == 1 or (ranked and ranked[0] in preferred):
        return ranked[0]
    found = (
        f"has several possible {role} columns ({', '.join(ranked)})"
        if ranked
        else f"has no {role} column that I know"
    )
    without = ", or label_column=False for images without labels" if role == "label" else ""
    raise ValueError(f"{origin} {found}; pass {role}_column= one of {', '.join(columns)}{without}.")


def _walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below, sorted, without what is hidden. Links are followed, but not back to where they lie in."""
    above |= {os.path.realpath(folder)}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from _walk(path, above)


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _roots(folder: Path, labelled: bool) -> dict[str, Path]:
    """The folder of each split: ``train`` and others, or the whole folder where its folders are the classes."""
    inside = _folders(folder)
    names = _by_split([path.name for path in inside], str(folder))
    others = [path for path in inside if not _split_of(path.name)]
    if names and "train" not in names and not others:
        raise ValueError(f"{folder} has no folder train (it has {', '.join(path.name for path in inside)}).")
    if "train" in names and len(names) == 1 and others:  # a split, or one more class?
        train = folder / names["train"][0]
        if not _folders(train):
            names = {}
        elif labelled and any(map(_folders, others)):
            raise ValueError(
                f"{folder} holds {train.name}, which may be a split or a class beside {others[0].name}; "
                f"move the other folders away, or rename it."
            )
    if "train" not in names:
        return {"train": folder}
    return {split: folder / _only(found, split, str(folder)) for split, found in names.items()}


def _from_images(folder: Path, source: Source) -> tuple[dict[str, Part], str]:
    from PIL import Image

    known = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in known if kind in Image.OPEN and kind not in NO_IMAGES}
    labelled = source.label_column is not False
    parts, stamps, skipped = {}, [], Counter[str]()
    for split, root in _roots(folder, labelled).items():
        found = [path for path in _walk(root) if not labelled or path.parent != root]
        files = [path for path in found if path.suffix.lower() in suffixes]
        skipped.update(path.suffix.lower() or path.name for path in found if path.suffix.lower() not in suffixes)
        if not files:
            raise ValueError(
                f"{root} holds no images; expected train*.parquet, <split>/<class>/*.png or <class>/*.png."
            )
        labels = [path.relative_to(root).parts[0] if labelled else "" for path in files]
        empty = sorted({path.name for path in _folders(root)} - set(labels))
        if labelled and split == "train" and empty:
            raise ValueError(f"The class folders {', '.join(empty)} of {root} hold no images; fill or remove them.")
        parts[split] = Part([str(path) for path in files], "", labels)
        stamps += [_stamp(path, folder) for path in files]
    if skipped:
        what = ", ".join(f"{suffix} ({count:,})" for suffix, count in skipped.most_common(5))
        warnings.warn(
            f"{skipped.total():,} files of {folder} are left out, being no images that Pillow reads: {what}.",
            stacklevel=2,
        )
    return parts, fingerprint(stamps)
