"""Where images that are not made here come from: the hub, parquet files, a folder of images, an installed package."""

from __future__ import annotations

import importlib.util
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from PIL import Image

from redistill_lib.checks import check_fields, hint
from redistill_lib.data.images import LazyImages, fingerprint, kept_in

IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")
LABEL_TYPES = ("int", "uint", "bool", "string", "large_string", "halffloat", "float", "double")
NO_IMAGES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow knows, but hardly decodes
HUB_NAMES = {  # that people type, and where the hub keeps them
    "cifar10": "hf:uoft-cs/cifar10",
    "cifar100": "hf:uoft-cs/cifar100",
    "mnist": "hf:ylecun/mnist",
    "fashion_mnist": "hf:zalando-datasets/fashion_mnist",
    "stl10": "hf:tanganke/stl10",
    "celeba": "hf:flwrlabs/celeba",
    "imagenet": "hf:ILSVRC/imagenet-1k",
}
BUILT_IN = ("cluttered", "pairs", "digits", "elpv")  # names that are neither the hub's nor a folder's
_SPLIT = re.compile(r"(train|validation|validate|valid|val|dev|test)(?:ing|s)?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """How a data set that is not built in is read.

    ``image_column``, ``label_column``: found automatically when None; ``label_column=False`` reads images without
    labels (all get 0), as a diffusion model needs them. ``lazy``: decode on access, or at once; None: at once up to
    1 GiB decoded. ``channels``: None takes 1 if every image is greyscale, else 3. ``skip_unreadable`` leaves images
    out that cannot be read (of those decoded on access: whose header cannot), or else an error names them.
    ``cache_dir``: where decoded images are kept (None: nowhere).
    """

    image_column: str | None = None
    label_column: str | Literal[False] | None = None
    lazy: bool | None = None
    channels: Literal[1, 3] | None = None
    skip_unreadable: bool = False
    cache_dir: str | os.PathLike[str] | None = "data/cache"

    def __post_init__(self) -> None:
        check_fields(self)


def find_images(name: str, source: Source) -> tuple[LazyImages, tuple[str, ...]]:
    """All images of data set ``name`` in parts (train, perhaps validation and test), and the class names.

    Classes are numbered as their ClassLabel does, or else in sorted order; −1 is no class, and a part without any is
    left out. Where that is the test (as ImageNet's), the source's validation part takes its place.
    """
    import datasets
    import pandas as pd

    tables, stamp = _find_tables(name, source)
    ends = accumulate(map(len, tables.values()))
    parts = {s: (f"{s} of {name}", range(end - len(tables[s]), end)) for s, end in zip(tables, ends, strict=True)}
    columns = {split: _read_columns(table, source, parts[split][0]) for split, table in tables.items()}
    images, train, names = columns["train"]
    labels = pd.concat([its for _, its, _ in columns.values()], ignore_index=True)
    if source.label_column is not False and train.nunique() < 2:
        what = f"All {len(train):,} images of train of {name} are of one class ({train.unique().tolist()})"
        raise ValueError(f"{what}; a classifier needs two, and a diffusion model none: pass label_column=False.")
    known = range(len(names)) if names else sorted(set(train) - {-1})
    classes = tuple(names or map(str, known))
    numbers = pd.Index(known).get_indexer(labels)
    for split, (origin, rows) in [*parts.items()]:
        if split != "train" and (labels.iloc[rows] == -1).all():
            del parts[split]
        elif (wrong := numbers[rows] < 0).any():
            few = ", ".join(classes[:10]) + (" …" if len(classes) > 10 else "")
            what = f"Row {wrong.argmax()} of {origin} has the label {labels[rows[wrong.argmax()]]}"
            raise ValueError(f"{what}, outside the {len(classes)} classes of train ({few}).")
    if "test" in tables and "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    kept = [its.rename_columns({its.column_names[0]: images.column_names[0]}) for its, *_ in columns.values()]
    key = fingerprint(stamp, list(parts), [its.column_names for its, *_ in columns.values()])
    table = datasets.concatenate_datasets(kept)
    return LazyImages(table, torch.from_numpy(numbers), torch.arange(len(table)), name, key, parts), classes


def _find_tables(name: str, source: Source) -> tuple[dict[str, Any], str]:
    """The table of each split, with encoded images or their paths, and a fingerprint."""
    if name == "elpv":
        return _from_elpv()
    if name.startswith("hf:"):
        return _from_hub(name)
    folder = Path(os.path.expanduser(name))
    if name and os.path.isdir(folder):  # Path's own raises OSError for a name that is too long
        if files := sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
            return _from_parquet(folder, files, source)
        return _from_images(folder, source.label_column is not False)
    if name and os.path.exists(folder):
        raise ValueError(f"{name} is a file; give the folder it lies in.")
    if re.search(r"[/\\]|^[.~]", name):
        raise FileNotFoundError(f"There is no folder {name}; see data/README.md for where each data set goes.")
    if name.lower() in HUB_NAMES:
        raise ValueError(f"Unknown data set '{name}'; it is on the Hugging Face hub, as '{HUB_NAMES[name.lower()]}'.")
    known = f"{', '.join(BUILT_IN)}, hf:<repository> or the path of an existing folder"
    meant = hint(name, [*BUILT_IN, *HUB_NAMES]) or "."
    raise ValueError(f"Unknown data set '{name}'; give {known}{meant}")


def _by_split(names: list[str], where: str, shards: bool = False) -> dict[str, list[str]]:
    """Those of the names (of files, folders or hub splits) that belong to train, validation and test.

    ValueError for two words for one split (val, valid), and for several names, unless shards or one is the split's.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)  # split → name → its word for the split
    for name in names:
        if match := _SPLIT.match(name):
            split = match[1].lower()
            found[split if split in ("train", "test") else "validation"][name] = match[0].lower()
    if "train" not in found:
        raise ValueError(f"{where} has no train split; it has {', '.join(names)}.")
    for split, words in found.items():
        if len(set(words.values())) > 1 or (len(words) > 1 and not shards and split not in words):
            raise ValueError(f"{where} has several for {split}: {', '.join(words)}; keep one of them.")
    return {split: [split] if split in words and not shards else list(words) for split, words in found.items()}


def _from_hub(name: str) -> tuple[dict[str, Any], str]:
    import datasets

    repository, _, configuration = name.removeprefix("hf:").partition(":")
    try:
        found = datasets.load_dataset(repository, configuration or None)
    except Exception as error:  # the hub's client has many; the reader needs to know what was asked of it
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        advice = "Check the spelling and the network; a configuration is named hf:<repository>:<configuration>."
        raise ValueError(f"{name} could not be loaded from the Hugging Face hub: {detail} {advice}") from error
    tables = {split: found[key] for split, (key,) in _by_split([str(key) for key in found], name).items()}
    return tables, fingerprint([(split, table._fingerprint) for split, table in tables.items()])


def _from_elpv() -> tuple[dict[str, Any], str]:
    """The solar cells of the package elpv-dataset, which is not imported: its files are read.

    ``label`` is the more probable of functional and defective (probability 2/3 or 1); ``type`` is mono or poly.
    """
    import datasets
    import pandas as pd

    install = "pip install elpv-dataset (91 MB, CC BY-NC-SA 4.0: not for commercial use)"
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"The images of elpv come in a package of their own: {install}.")
    folder = Path(found.submodule_search_locations[0]) / "data"
    try:
        names = ["image", "probability", "type"]
        cells = pd.read_csv(folder / "labels.csv", sep=r"\s+", names=names)
        paths = [folder / path for path in cells["image"]]
        stamp = _stamp([folder / "labels.csv", *paths], folder)
    except OSError as error:
        missing = f"{error.filename} of the package elpv-dataset cannot be read ({error.strerror})"
        raise FileNotFoundError(f"{missing}; uninstall it, then {install}.") from error
    kinds = {"label": datasets.ClassLabel(names=["functional", "defective"]), "type": datasets.Value("string")}
    features = datasets.Features(image=datasets.Image(decode=False), **kinds)
    images = [{"path": str(path), "bytes": None} for path in paths]
    labels = (cells["probability"] >= 0.5).astype(int)
    columns = {"image": images, "label": labels.tolist(), "type": cells["type"].tolist()}
    return {"train": datasets.Dataset.from_dict(columns, features)}, stamp


def _stamp(paths: Iterable[Path], root: Path) -> str:
    """What tells changed files, with the inode's time, since copies may keep the time of writing."""
    stats = [(path, path.stat() if path.exists() else path.lstat()) for path in paths]  # a link may lead nowhere
    return fingerprint([(str(p.relative_to(root)), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in stats])


def _from_parquet(folder: Path, files: list[Path], source: Source) -> tuple[dict[str, Any], str]:
    """Tables in memory-mapped files of the cache; in memory where there is no cache to write to."""
    import datasets

    tables = {}
    for split, names in _by_split([path.name for path in files], str(folder), shards=True).items():
        paths = [path for path in files if path.name in names]
        # In small batches, since a small file may unpack to one image in a million rows.
        read = partial(datasets.Dataset.from_parquet, [str(path) for path in paths], batch_size=256)
        try:
            if source.cache_dir is not None:
                unpacked = str(Path(source.cache_dir) / "arrow" / _stamp(paths, folder))
                tables[split] = kept_in(Path(source.cache_dir), partial(read, cache_dir=unpacked))
            if tables.get(split) is None:
                with TemporaryDirectory() as scratch:
                    tables[split] = read(cache_dir=scratch, keep_in_memory=True)
        except Exception as error:  # `datasets` and pyarrow have many
            what = f"The {split} files of {folder} cannot be read as one parquet table"
            raise ValueError(f"{what} ({error.__cause__ or error}).") from error
    return tables, _stamp(files, folder)


def _read_columns(table: Any, source: Source, origin: str) -> tuple[Any, Any, list[str] | None]:
    """The table with encoded images alone, the labels as a Series, the classes' names if the table has them."""
    import datasets
    import pandas as pd

    kinds = {field.name: str(field.type) for field in table.features.arrow_schema}
    encoded = [name for name, kind in kinds.items() if kind.startswith("struct<") and "bytes: " in kind]
    allowed = [*encoded, *(name for name, kind in kinds.items() if kind in ("binary", "large_binary", "string"))]
    likely = [name for name in IMAGE_NAMES if name in encoded][:1] or encoded
    image = _column("image", source.image_column, likely, allowed, kinds, origin)
    images = table.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    if source.label_column is False:
        return images, pd.Series(0, range(len(table))), ["unlabelled"]
    classes = {name: feature.names for name, feature in table.features.items() if hasattr(feature, "names")}
    allowed = [name for name, kind in kinds.items() if kind.startswith(LABEL_TYPES)]
    likely = [name for name in LABEL_NAMES if name in allowed][:1] or list(classes)
    label = _column("label", source.label_column, likely, allowed, kinds, origin)
    labels = table.select_columns([label]).to_pandas()[label]
    wrong = labels.isna()
    if labels.dtype.kind == "f":  # pandas keeps a missing whole number as NaN, and the others of its column as floats
        wrong |= labels % 1 != 0
    if wrong.any():
        where = f"Row {wrong.argmax()} of {origin} has the label {labels[wrong.argmax()]} in column '{label}'"
        raise ValueError(f"{where}; labels are whole numbers or text. Mend or remove the row.")
    return images, labels.astype("int64") if labels.dtype.kind == "f" else labels, classes.get(label)


def _column(
    role: str, wanted: str | None, likely: list[str], allowed: list[str], columns: Iterable[str], origin: str
) -> str:
    wanted = likely[0] if wanted is None and len(likely) == 1 else wanted
    if wanted in allowed:
        return wanted
    if wanted is not None:
        known = f"{', '.join(allowed) or 'none'}{hint(wanted, allowed) or '.'}"
        raise ValueError(f"{origin} has no {role} column '{wanted}'; it has {known}")
    found = f"several possible {role} columns ({', '.join(likely)})" if likely else f"no {role} column that I know"
    without = ", or label_column=False for images without labels" if role == "label" else ""
    raise ValueError(f"{origin} has {found}; pass {role}_column= one of {', '.join(columns)}{without}.")


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _files(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The files below, sorted, without what is hidden. Links are followed, but not back to where they lie in."""
    above |= {os.path.realpath(folder)}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if not path.is_dir():
            yield path
        elif os.path.realpath(path) not in above:
            yield from _files(path, above)


def _roots(folder: Path, labelled: bool) -> dict[str, Path]:
    """The folder of each split: ``train`` and others, or the whole folder where its folders are the classes."""
    inside = _folders(folder)
    others = [path for path in inside if not _SPLIT.match(path.name)]
    only_images = labelled and not any(map(_folders, inside))
    if not inside or (others and (only_images or not any(path.name.lower().startswith("train") for path in inside))):
        return {"train": folder}
    splits = {split: folder / name for split, (name,) in _by_split([p.name for p in inside], str(folder)).items()}
    if len(splits) == 1 and others and (not labelled or any(map(_folders, others))):
        what = f"{folder} holds {splits['train'].name}, which may be a split or a class beside {others[0].name}"
        raise ValueError(f"{what}; move the other folders away, or rename it.")
    return splits


def _from_images(folder: Path, labelled: bool) -> tuple[dict[str, Any], str]:
    import datasets

    known = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in known if kind in Image.OPEN and kind not in NO_IMAGES}
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value("string"))
    tables, used, skipped = {}, list[Path](), Counter[str]()
    try:
        roots = _roots(folder, labelled)
        for split, root in roots.items():
            found = [path for path in _files(root) if not labelled or path.parent != root]
            files = [path for path in found if path.suffix.lower() in suffixes]
            skipped.update(path.suffix.lower() or path.name for path in found if path.suffix.lower() not in suffixes)
            if not files:
                raise ValueError(f"{root} holds no images; expected train*.parquet, <split>/<class>/* or <class>/*.")
            labels = [path.relative_to(root).parts[0] for path in files]
            empty = ", ".join(sorted({path.name for path in _folders(root)} - set(labels)))
            if labelled and split == "train" and empty:
                raise ValueError(f"The class folders {empty} of {root} hold no images; fill or remove them.")
            images = [{"path": os.path.abspath(path), "bytes": None} for path in files]  # for other processes, too
            tables[split] = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
            used += files
        stamp = _stamp(used, folder)
    except OSError as error:
        what = f"{folder} cannot be read as a folder of images: {error.strerror} (…{str(error.filename)[-80:]})"
        raise ValueError(f"{what}; rename it, move it elsewhere, or mend its permissions.") from error
    if skipped:
        kinds = ", ".join(f"{suffix} ({count:,})" for suffix, count in skipped.most_common(5))
        what = f"{skipped.total():,} files of {folder} are left out, being no images that Pillow reads: {kinds}."
        warnings.warn(what, stacklevel=2)
    return tables, stamp
