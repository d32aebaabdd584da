"""Where images that are not built in come from: the Hugging Face hub, parquet files, a folder of images."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redistill_lib.data.images import EncodedImages, fingerprint, make_cache

__all__ = ["Source", "find_parts", "hint", "number_labels"]

BUILT_IN = ("cluttered", "digits")
IMAGE_NAMES = ("image", "img", "images", "image", "jpg", "png")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")
LABEL_TYPES = ("int", "uint", "bool", "string", "large_string")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
IN_MEMORY_BYTES = 2**30  # parquet files larger than this together are read through a memory map
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
    is greyscale, else 3.
    """

    image_column: str | None = None
    label_column: str | bool | None = None
    lazy: bool | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
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


def find_parts(name: str, source: Source, cache_dir: Path | None) -> tuple[dict[str, Part], str]:
    """The parts of data set ``name``: train, perhaps validation and test; and a fingerprint of them."""
    if name.startswith("hf:"):
        return _from_hub(name, source)
    folder = Path(name).expanduser()
    if folder.is_dir():
        tables = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
        return _from_parquet(folder, tables, source, cache_dir) if tables else _from_images(folder, source)
    if folder.exists():
        raise ValueError(f"{name} is a file; give the folder it lies in.")
    if re.search(r"[/\\]|^[.~]", name):
        raise FileNotFoundError(f"There is no folder {name}; see data/README.md for where each data set goes.")
    if name.lower() in HUB_NAMES:
        raise ValueError(f"Unknown data set '{name}'; it is on the Hugging Face hub, as '{HUB_NAMES[name.lower()]}'.")
    raise ValueError(
        f"Unknown data set '{name}'{hint(name, [*BUILT_IN, *HUB_NAMES])}; "
        f"give cluttered, digits, hf:<repository> or the path of an existing folder."
    )


def hint(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no known word is close.

    >>> hint("digit", ["digits", "cluttered"])
    " (did you mean 'digits'?)"
    """
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(match) for match in close)}?)" if close else ""


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
    tables = {split: found[key] for key in found if (split := _split_of(str(key)))}
    if "train" not in tables:
        raise ValueError(f"{name} has no train split; it has {', '.join(str(key) for key in found)}.")
    parts = {split: _from_table(table, source, f"{split} of {name}") for split, table in tables.items()}
    return parts, fingerprint(*[(split, parts[split].column, tables[split]._fingerprint) for split in sorted(parts)])


def _from_parquet(
    folder: Path, tables: list[Path], source: Source, cache_dir: Path | None
) -> tuple[dict[str, Part], str]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[str, list[Path]] = {}
    for table in tables:
        if split := _split_of(table.name):
            files.setdefault(split, []).append(table)
    if "train" not in files:
        raise ValueError(
            f"{folder} has no train*.parquet (it has {', '.join(path.name for path in tables[:5])}); "
            f"name the files train…, test… and, where there is one, validation…"
        )
    parts = {}
    for split, paths in files.items():
        if sum(path.stat().st_size for path in paths) <= IN_MEMORY_BYTES:
            try:
                table = datasets.Dataset(pa.concat_tables([pq.read_table(path) for path in paths]))
            except pa.ArrowInvalid as error:
                raise ValueError(
                    f"The {split} files of {folder} cannot be read as one parquet table ({error})."
                ) from error
        else:
            where = str(make_cache(cache_dir) / "arrow") if cache_dir else None
            table = datasets.Dataset.from_parquet([str(path) for path in paths], cache_dir=where)
        parts[split] = _from_table(table, source, f"{split} of {folder}")
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in tables]
    return parts, fingerprint(stamps, parts["train"].column)


def _from_table(table: Any, source: Source, origin: str) -> Part:
    import datasets

    features = table.features
    kinds = {column: getattr(feature, "dtype", "") for column, feature in features.items()}
    images = [
        c for c, f in features.items() if isinstance(f, datasets.Image) or (isinstance(f, dict) and "bytes" in f)
    ]
    image = _column("image", source.image_column, images, IMAGE_NAMES, list(features), origin)
    labels: Sequence[Any] = [0] * len(table)
    classes = None
    if source.label_column is not False:
        named = [c for c in LABEL_NAMES if kinds.get(c, "").startswith(LABEL_TYPES)]
        others = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel) and c not in named]
        wanted = source.label_column or None
        label = _column("label", wanted, [*named, *others], LABEL_NAMES, list(features), origin)
        if isinstance(features[label], datasets.ClassLabel):
            classes = tuple(features[label].names)
        labels = table.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
        if None in labels:
            raise ValueError(
                f"Row {labels.index(None)} of {origin} has no label in column '{label}'; remove the row."
            )
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
                f"{origin} has no column '{wanted}'{hint(wanted, columns)}; it has {', '.join(columns)}."
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


def _from_images(folder: Path, source: Source) -> tuple[dict[str, Part], str]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    roots = {split: path for path in inside if (split := _split_of(path.name))}
    if "train" not in roots:
        roots = {"train": folder}
    parts, stamps = {}, []
    for split, root in roots.items():
        files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if source.label_column is False:
            labels = [""] * len(files)
        else:
            files = [path for path in files if path.parent != root]
            labels = [path.relative_to(root).parts[0] for path in files]
        if not files:
            raise ValueError(
                f"{root} holds no images; expected train*.parquet, or images as "
                f"<split>/<class>/*.png or <class>/*.png ({', '.join(sorted(SUFFIXES))})."
            )
        parts[split] = Part([str(path) for path in files], "", labels)
        stamps += [
            (path.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for path in files for s in [path.stat()]
        ]
    return parts, fingerprint(stamps)
