"""Points from what is on disk: comparisons, tables of sweeps, run stores, scores of images, published numbers."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from redistill_lib.checks import as_path
from redistill_lib.comparison import Budget, Comparison
from redistill_lib.data.sources import BUILT_IN
from redistill_lib.models import student_name
from redistill_lib.quality import compare_quality
from redistill_lib.results import interval, label, over_seeds, role_key
from redistill_lib.runs import Run, load_runs
from redistill_lib.shipped import measured, published
from redistill_lib.sweep.places import located
from redistill_lib.tradeoffs.result import ACCURACY, Tradeoffs, lesson
from redistill_lib.tradeoffs.teachers import network_kind, own_teachers, part_of, runs_of, teacher_of

Points = Iterator[tuple[dict[str, Any], pd.DataFrame]]  # each with its curves
_NONE = pd.DataFrame(columns=["data", "name", "seed", "seconds", "accuracy"])
_CURVES = ["run", "seconds", "accuracy"]  # those of `curves_of`
_USUAL: dict[str, Any] = {
    "metric": ACCURACY, "source": "measured", "init": "", "width": 1.0, "channels": math.nan, "image_size": math.nan,
    "half": math.nan, "multiply_adds": math.nan, "parameters": math.nan, "convention": "fused", "teacher": "",
    "factor": math.nan, "seed": 0, "run": "", "teacher_run": "", "budget": "",
}  # fmt: skip
#: Parameters of a notebook that change nothing in a network, or over which means are made.
_ASIDE = {"SEED", "SEEDS", "RUNS", "JOBS", "IMAGE"}
#: Of these a row says what came of them.
_EXPLAINED = {"FACTOR", "METHODS", "MODEL", "STUDENT", "INIT", "WIDTH", "IMAGE_SIZE"}
_WANTED = (
    "a sweep's folder (runs/sweeps/NAME, with its table.csv), a saved comparison (comparison.json), a run store "
    "(folders with run.json), a table of scores (fid, kid, peak_bytes), or a folder of such"
)


def read_tradeoffs(
    results: str | Path | None = None, *, runs: str | Path = "runs", published: bool = False
) -> Tradeoffs:
    """Networks with their peak and their score, from `results`.

    `results` is a sweep's folder, a saved comparison, a run store, a table of scores, or a folder of these; left out,
    all that comes with the package. A comparison's runs are looked for in the store `runs`, for their weights. With
    `published` the authors' points are there too. Raises FileNotFoundError for what is not there, ValueError for a
    folder or a file without results.

    >>> found = read_tradeoffs()
    >>> "cifar10" in found.panels, found.panel("cifar10").best("16KB")["name"]
    (True, 'small')
    """
    folder = measured() if results is None else as_path("results", results)
    if not folder.exists():
        raise FileNotFoundError(f"results={str(results)!r} is not there; give {_WANTED}")
    points = [*_read(folder, Path(as_path("runs", runs)))]
    if not points:
        raise ValueError(f"{folder} holds no results with a peak and a score; give {_WANTED}")
    if published:
        points += _published()
    return Tradeoffs.of([_USUAL | row for row, _ in points], [curves for _, curves in points])


def _read(path: Path, runs: Path) -> Points:
    if path.name == "comparison.json":
        path = path.parent
    if path.is_file():
        yield from _table(path, runs)
    elif (path / "comparison.json").exists():
        yield from of_comparison(Comparison.load(path), runs)
    elif (path / "table.csv").exists():
        yield from _table(path / "table.csv", runs)
    elif any(path.glob("*/run.json")):
        yield from _store(path)
    else:
        for inner in sorted(path.iterdir()):
            if inner.name[0] not in "._" and (inner.is_dir() or inner.suffix == ".csv"):
                yield from _read(inner, runs)


def of_comparison(found: Comparison, runs: Path = Path("runs")) -> Points:
    """A point for each arm and the teacher. Intervals are for other seeds and other test images."""
    firsts = found.runs.groupby("arm", sort=False).first()
    teacher = firsts.loc["teacher"] if "teacher" in firsts.index else None
    for arm, first in firsts.iterrows():
        mean, folder = found.accuracy(str(arm)), runs / str(first["run"] or "none")
        method = first["methods"] if isinstance(first["methods"], str) and first["methods"] else "student"
        yield {
            "name": arm, "data": found.name, "budget": str(found.budget),
            "model": first["model"], "width": first["width"],
            "method": "teacher" if arm == "teacher" else role_key(method), "seed": first["seed"],
            "init": "teacher" if first["init"] == "teacher" else "", "score": mean.value, "half": mean.half,
            "seeds": int((found.runs["arm"] == arm).sum()), "peak_bytes": first["peak_bytes"],
            "multiply_adds": first["multiply_adds"], "parameters": first["parameters"], **_images(first.get("image")),
            **_weights(folder, "" if teacher is None else f"{teacher['model']} ×{teacher['width']:g}"),
        }, found.curves[found.curves["arm"] == arm].assign(data=found.name)  # fmt: skip


def _table(file: Path, runs: Path) -> Points:
    """A sweep's table, or one of scores; nothing of a table without a peak."""
    table = _csv(file)
    if {"fid", "kid", "peak_bytes"} <= {*table.columns}:
        yield from _scores(table, file)
    elif {"peak (KiB)", "accuracy"} <= {*table.columns} or {"peak_bytes", "test_accuracy"} <= {*table.columns}:
        kept = file.with_name("curves.csv")
        curves = _csv(kept) if kept.exists() else pd.DataFrame()
        for column in {"TEACHER", "MODEL"} & {*table.columns}:
            table[column] = [_found_from(file.parent, name) for name in table[column]]
        yield from of_table(table, file.parent.name, runs, curves if {*_CURVES} <= {*curves.columns} else None)


def _found_from(sweep: Path, name: Any) -> Any:
    """A network's name; of one's own with the folder that it lies in, seen from the sweep's file, if it is there."""
    if ":" in str(name):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            file = json.loads((sweep / "manifest.json").read_bytes())["file"]
            return located("TEACHER", name, Path(file).parent) or name
    return name


def _measured(table: pd.DataFrame, score: str, peak: str) -> pd.DataFrame:
    """The rows that have numbers for both."""
    numbers = table[[score, peak]].apply(pd.to_numeric, errors="coerce")
    return table.assign(**numbers)[numbers[score].notna() & (numbers[peak] > 0)]


def _csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except ValueError as error:  # pandas' own are ValueErrors, as bytes that are no text are
        raise ValueError(f"{file} cannot be read as a table: {' '.join(str(error).split())}") from None


def of_table(table: pd.DataFrame, name: str, runs: Path = Path("runs"), curves: pd.DataFrame | None = None) -> Points:
    """The rows of a sweep, their means over `SEED`; its columns say which network each is.

    Needed are ``accuracy`` and ``peak (KiB)`` of a comparison's table, or ``test_accuracy`` and ``peak_bytes`` of a
    run's metrics; a row that lacks one of the two is no point. The network is ``model``, else the student of
    `TEACHER` at `FACTOR`; the method is ``methods``, else that of ``arm``, ``role`` or `METHODS`. A ``run`` that
    several points found counts once; those in the store `runs` have curves and weights. Intervals are over runs, and
    nowhere narrower than those of one run over test images, ``high``. `name` is the sweep's, for a table that names
    no data; `curves` are what `curves_of` found where the runs were, in a file ``curves.csv`` beside the table.
    """
    percent = {"accuracy", "peak (KiB)"} <= {*table.columns}
    score, peak = ("accuracy", "peak (KiB)") if percent else ("test_accuracy", "peak_bytes")
    named = {name: name.removesuffix("_recorded") for name in table}
    table = table.rename(columns={name: plain for name, plain in named.items() if plain not in table})
    table = _measured(table, score, peak)
    told = ["arm", "role", "model", "methods", "init", "width", "image", "image_size", "peak (KiB)", "parameters"]
    explained = _EXPLAINED if "model" in table else set[str]()
    groups = [column for column in table if column.isupper() and column not in _ASIDE | explained]
    groups += [column for column in told if column in table]
    if "run" in table:
        table = table[table["run"].isna() | ~table.duplicated("run")]
    for _, rows in table.groupby(_keys(table[groups]), sort=False):
        scores = (rows[score] if percent else 100 * rows[score]).tolist()
        row, found = _of_rows(rows, scores, name), _found(rows, runs)
        part = _history(found) if found else _NONE
        if curves is not None and "run" in rows and not found:
            part = curves.merge(rows[["run"]].assign(seed=_seeds(rows)), on="run")
        seed, run = next(iter(found.items()), (row["seed"], None))
        row |= _weights(run.path if run else Path("none"), row["teacher"]) | {"seed": seed}
        if run and "DATA" not in rows:
            row["data"] = _data_of(run)
        yield row, part.assign(data=row["data"])


def curves_of(table: pd.DataFrame, runs: str | Path) -> pd.DataFrame:
    """The curves of a sweep's runs, to be kept as ``curves.csv`` beside its ``table.csv`` where the store is not.

    Columns are ``run``, ``seconds`` and ``accuracy`` (on validation, %), a row per epoch; runs that are not in the
    store `runs` are left out.
    """
    paths = {str(name): Path(runs) / str(name) for name in table["run"].dropna().unique()}
    parts = [
        _history({0: Run.load(path)}).assign(run=name) for name, path in paths.items() if (path / "run.json").exists()
    ]
    return pd.concat(parts, ignore_index=True)[_CURVES] if parts else pd.DataFrame(columns=_CURVES)


def _weights(folder: Path, teacher: str) -> dict[str, str]:
    """The folders of a run that is there and of its teacher's, and who that is, unless it is known already."""
    if not (folder / "run.json").exists():
        return {"run": "", "teacher_run": "", "teacher": teacher}
    run = Run.load(folder)
    return _of_teacher(run, teacher_of(run, lambda: own_teachers(runs_of(folder.parent))), teacher)


def _of_teacher(run: Run, theirs: Run | None, teacher: str) -> dict[str, str]:
    model = part_of(theirs, "model") if theirs else {}
    found = f"{model.get('name')} ×{model.get('width') or 1.0:g}" if model else ""
    return {"run": str(run.path), "teacher_run": str(theirs.path) if theirs else "", "teacher": teacher or found}


def _found(rows: pd.DataFrame, runs: Path) -> dict[Any, Run]:
    """The runs of a point that are in the store, by seed."""
    if "run" not in rows:
        return {}
    rows = rows.dropna(subset=["run"])
    paths = {seed: runs / name for seed, name in zip(_seeds(rows), rows["run"].map(str), strict=True)}
    return {seed: Run.load(path) for seed, path in paths.items() if (path / "run.json").exists()}


def _seeds(rows: pd.DataFrame) -> Any:
    return rows["SEED"] if "SEED" in rows else rows.get("seed", pd.Series(range(len(rows)), rows.index))


def _of_rows(rows: pd.DataFrame, scores: list[float], name: str) -> dict[str, Any]:
    images = (rows["high"] - rows["accuracy"]).tolist() if {"high", "accuracy"} <= {*rows.columns} else []
    row, mean = rows.iloc[0].dropna(), over_seeds(scores, images)
    arm = str(row.get("arm", row.get("role", row.get("METHODS", "naive"))))
    method = row.get("methods", "") if "methods" in rows else re.sub(r"\(.*?\)", "", arm).replace(" + ", "+")
    method = "teacher" if arm == "teacher" else role_key(str(method).replace(" ", "-") or "student")
    init = row.get("init", row.get("INIT")) if arm != "teacher" else ""
    wide = float(row.get("width", row.get("WIDTH", 1.0)))
    peak = row["peak_bytes"] if "peak_bytes" in row else _bytes(row["peak (KiB)"])
    adds = row.get("multiply_adds", 1e6 * row.get("mult-adds (M)", math.nan))
    teacher = f"{row['TEACHER']} ×{row.get('WIDTH', 1.0):g}" if "TEACHER" in row else ""
    plain = arm in ("naive", "teacher") or role_key(re.sub(r"\(.*?\)", "", arm)) != method  # a name of its own
    told = arm if plain else lesson({"method": method, "init": init})
    if "-" not in _model(row) and "FACTOR" in row and method != "teacher":  # a network of one's own, without a plan
        told += f" at ×{row['FACTOR']:g}"
    return {
        "name": told, "data": _data(str(row.get("DATA", name))), "model": _model(row), "width": wide,
        "method": method, "init": "teacher" if init == "teacher" else "", "score": mean.value,
        "image_size": pd.to_numeric(row.get("image_size", row.get("IMAGE_SIZE")), errors="coerce"),
        **_images(row.get("image")), "factor": row.get("FACTOR", math.nan), "seed": int(_seeds(rows).iloc[0]),
        "seeds": len(scores), "half": mean.half, "peak_bytes": peak,
        "multiply_adds": adds if math.isnan(adds) else round(adds),
        "parameters": row.get("parameters", math.nan), "teacher": teacher,
        "budget": str(Budget(seconds=float(row["SECONDS"]))) if "SECONDS" in row else "",
    }  # fmt: skip


def _bytes(kib: float) -> int:
    """Whole bytes of a peak that a notebook has rounded to three decimals of a KiB, half a byte up or down.

    Two whole numbers may be as near as that: activations in fp32 are a multiple of four.

    >>> _bytes(23.438), _bytes(8.001)
    (24000, 8193)
    """
    fours = 4 * round(kib * 256)
    return fours if abs(fours - kib * 1024) < 0.52 else round(kib * 1024)


def _images(told: Any) -> dict[str, int]:
    """Channels and side of images that are recorded as ``3×32×32``."""
    channels, *_, side = [int(part) for part in re.findall(r"\d+", str(told))] or [0, 0]
    return {"channels": channels, "image_size": side} if channels else {}


def _data(name: str) -> str:
    """What data are called: a folder by its name, unless built-in data have that one."""
    last = Path(name).name
    return name if last in BUILT_IN else last


def _data_of(run: Run) -> str:
    return _data(part_of(run, "data").get("name") or f"own data {run.params.get('images', '')}".strip())


def _keys(frame: pd.DataFrame) -> pd.Series[str]:
    """One text per row, of whatever is in it: equal for rows that are alike."""
    return pd.Series([repr(row) for row in frame.to_numpy(object).tolist()], frame.index, dtype=str)


def _model(row: Mapping[str, Any]) -> str:
    for column in ("model", "MODEL", "STUDENT"):
        if column in row:
            return str(row[column])
    with contextlib.suppress(ValueError):
        return student_name(str(row.get("TEACHER", "")), int(row.get("FACTOR", 1)))
    return f"{row.get('TEACHER', 'network')}-×{row.get('FACTOR', 1)}"  # of one's own


def _scores(table: pd.DataFrame, file: Path) -> Points:
    """FID and KID of each role, as `compare_quality` has them; lower is better."""
    found, known = compare_quality(table), table.assign(role=table["role"].map(role_key)).groupby("role").first()
    teacher = known["model"].get("teacher") if "model" in known else None
    for metric, (_, row) in itertools.product(("FID", "KID"), found.table.iterrows()):
        first = known.loc[row["role"]].dropna()
        yield {
            "name": label(row["role"]), "data": first.get("data", file.stem), "metric": metric, "method": row["role"],
            "model": first.get("model", "unet"), **_images(found.settings.get("image")),
            "score": row[metric.lower()], "half": row[f"{metric.lower()}_error"], "seeds": row["n"],
            "peak_bytes": row["peak"], "multiply_adds": first.get("multiply_adds", math.nan),
            "parameters": row["parameters"], "teacher": f"{teacher} ×1" if teacher else "",
        }, _NONE.copy()  # fmt: skip


def _store(folder: Path) -> Points:
    """The complete classifiers of a run store: means over seeds of runs that are alike in all else but the weights of
    teachers. Of the same run by several versions of the library the newest counts."""
    frame = load_runs(folder)
    if "test_accuracy" not in frame or "peak_bytes" not in frame:
        return
    frame = _measured(frame[frame["status"].eq("complete")], "test_accuracy", "peak_bytes")
    # Weights of one's own network are others under each seed.
    alike = [c for c in frame if c.startswith(("data.", "model.", "recipe.")) and c != "model.weights"]
    if "teachers" in frame:
        told = [
            [each.get("structure") for each in them] if isinstance(them, list) else them for them in frame["teachers"]
        ]
        frame = frame.assign(teachers=told)
    others = ("images", "methods", "terms", "teachers", "distill_weight", "reduction", "mixed_precision")
    alike += [c for c in others if c in frame]
    keys = _keys(frame[alike])
    newest = frame["path"].map(lambda path: (Path(path) / "run.json").stat().st_mtime)
    order = newest.sort_values(ascending=False, kind="stable").index
    kept = frame.loc[order].assign(key=keys).drop_duplicates(["key", "seed"]).sort_values("id")
    records = {path: Run.load(path) for path in frame["path"]}
    known = functools.cache(lambda: own_teachers(records.values()))
    taught_by = {path: teacher_of(records[path], known) for path in kept["path"]}
    kinds = {network_kind(theirs) for theirs in taught_by.values() if theirs}
    for _, rows in kept.groupby("key", sort=False):
        run = records[rows["path"].iloc[0]]
        row = _of_runs(run, rows, network_kind(run) in kinds) | _of_teacher(run, taught_by[str(run.path)], "")
        yield row, _history({row.seed: records[row.path] for row in rows.itertuples()}).assign(data=row["data"])


def _of_runs(run: Run, rows: pd.DataFrame, teaches: bool) -> dict[str, Any]:
    params, model, recipe = run.params, part_of(run, "model"), part_of(run, "recipe")
    taught = bool(params.get("teachers"))
    mean = interval((100 * rows["test_accuracy"]).tolist())
    look: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        look = dict(json.loads((run.path / "look.json").read_bytes()))
    method = role_key(params.get("methods") or "student") if taught else "teacher" if teaches else "student"
    name = f"{label(method)} {run.plan or model.get('name')}"
    length = next((f", {recipe[unit]} {unit}" for unit in ("epochs", "steps") if recipe.get(unit)), "")
    return {
        "name": name + length, "data": _data_of(run),
        "model": str(model.get("name")), "method": method, "width": model.get("width") or 1.0,
        "init": "teacher" if recipe.get("init") == "teacher" else "", "channels": model.get("in_channels"),
        "image_size": part_of(run, "data").get("image_size"), "seed": rows["seed"].iloc[0],
        "score": mean.value, "half": mean.half, "seeds": len(rows), "peak_bytes": rows["peak_bytes"].iloc[0],
        "multiply_adds": look.get("multiply_adds", math.nan), "parameters": run.metrics.get("parameters", math.nan),
    }  # fmt: skip


def _history(runs: Mapping[Any, Run]) -> pd.DataFrame:
    parts = []
    for seed, run in runs.items():
        rows = run.history()
        took = next((column for column in ("processor_seconds", "seconds") if column in rows), None)
        if took and "validation_accuracy" in rows:
            accuracy = 100 * rows["validation_accuracy"]
            parts.append(pd.DataFrame({"seed": seed, "seconds": rows[took].cumsum(), "accuracy": accuracy}))
    return pd.concat(parts, ignore_index=True) if parts else _NONE.copy()


def _published() -> Points:
    """The authors' accuracies with the peaks of their own estimate, each of one training."""
    table = published("results").dropna(subset=["peak_mib_per_image"])
    for row in table.itertuples():
        model = str(row.teacher if row.method == "teacher" else row.student).replace(" ", "-", 1)
        arch, _, plan = model.partition("-")
        stem, *stages = plan.split(",")
        method, _, detail = str(row.method).partition(", ")
        yield {
            "name": f"{label(method)} {arch}{', ' * bool(detail)}{detail} (published)", "data": row.dataset,
            "source": "published", "model": f"{arch}-{stem}-{''.join(stages)}" if stages else model,
            "method": role_key(method), "channels": 3, "image_size": row.image_size, "score": row.top1, "seeds": 1,
            "peak_bytes": row.peak_mib_per_image * 2**20, "parameters": row.model_size_mb * 2**20 / 4,
            "convention": "paper", "teacher": f"{row.teacher} ×1",
        }, _NONE.copy()  # fmt: skip
