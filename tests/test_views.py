"""Answers of teachers that are kept: what they are, who makes them, when they are made again, and what they cost."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from trainings import Stop, digits, distill, equal, recipe_of, train, weights
from trainings import quick_looks as quick_looks

from benchmarks import kills
from redistill_lib.data import Views
from redistill_lib.diffusion import DiffusionProcess
from redistill_lib.distill import Distillation, LiveTeacher, Objective, Tap
from redistill_lib.distill.terms import Term
from redistill_lib.distill.views import BATCH, KeptTeacher, ViewStore, lock_of, make_room, summaries_of
from redistill_lib.methods import MSE, RED, Batch, Stage, Weighted
from redistill_lib.methods.base import Summary
from redistill_lib.network import MapRef, record_maps
from redistill_lib.runs import Run
from redistill_lib.train import trainer as trainer_module

Names = Sequence[tuple[int, int]]
MAP, ANSWER = MapRef("1", "output"), MapRef("", "output")
PLACES: dict[MapRef, Summary] = {MAP: "channel mean", ANSWER: "whole"}
ZEROS = torch.zeros(2, 1, 16, 16)
MIXED = "crop+flip+cutmix|mixup"
IMAGES = 150  # two whole batches and a part of one


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)


class Asked:
    """A network's answers to the augmented digits; it notes what it is asked, and after `most` batches is killed."""

    def __init__(self, places: Mapping[MapRef, Summary] = PLACES, most: int = -1, wait: float = 0) -> None:
        self.teacher, self.places = LiveTeacher(net()), places
        self.views = Views(digits(limit=IMAGES).train, MIXED, 10)
        self.most, self.wait, self.names = most, wait, list[tuple[int, int]]()

    def batch(self, names: Names) -> Batch:
        images, targets, _, index, view = self.views.__getitems__(names)
        return Batch((images,), targets, index, view)

    def __call__(self, batches: Sequence[Names]) -> Iterator[Mapping[MapRef, Tensor]]:
        for k, names in enumerate(batches):
            if k == self.most:
                raise KeyboardInterrupt
            time.sleep(self.wait)
            self.names += names
            yield self.teacher.maps(self.batch(names), list(self.places))

    def store(self, root: Path, **key: Any) -> ViewStore:
        example = self.teacher.maps(Batch((ZEROS,)), list(self.places))
        return ViewStore(root, key, self.places, example, IMAGES)

    def fill(self, root: Path, *views: int) -> KeptTeacher:
        return self.store(root).fill(views, self, lambda _: None)


def files(root: Path, ending: str = "npy") -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.glob(f"*/*/*.{ending}")}


# ---------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("methods", ["red", "red(distance='mse')", "stage", "red-loss", "kd", "red+kd", "dkd+mse"])
def test_losses_are_the_live_teachers_up_to_fp16(methods: str, tmp_path: Path) -> None:
    """In batches of several views in which nobody made the answers, with mixed images."""
    taps = [Tap("1", "output", "1", "output")] if methods[0] in "rs" else []
    live, kept = (Distillation(net(1), net(), taps, methods, example=ZEROS) for _ in range(2))
    kept.load_state_dict(live.state_dict())
    asked = Asked({ref: summary for (_, ref), summary in summaries_of(live.active).items()})
    kept.teachers[0] = asked.fill(tmp_path, 0, 3)
    draw = np.random.default_rng(0)
    for _ in range(3):
        rows = draw.permutation(IMAGES)[:24].tolist()
        batch = asked.batch([(row, int(draw.choice([0, 3]))) for row in rows])
        given = {"targets": batch.targets, "index": batch.index, "view": batch.view}
        ours, theirs = (d.train()(*batch.inputs, **given)[1] for d in (kept, live))
        for name in theirs:
            assert theirs[name] > 0
            torch.testing.assert_close(ours[name], theirs[name], rtol=2**-10, atol=2**-14, msg=name)
    ours["total"].backward()
    assert all(p.grad is not None for p in kept.student.parameters())


def test_kept_is_the_mean_over_channels_of_each_view(tmp_path: Path) -> None:
    asked = Asked()
    teacher = asked.fill(tmp_path, 2)
    batch = asked.batch([(140, 2), (3, 2), (77, 2)])
    maps = teacher.maps(batch, [ANSWER, MAP, MAP])
    expected = record_maps(net(), [MAP, ANSWER], *batch.inputs)
    assert {ref: tuple(x.shape) for ref, x in maps.items()} == {ANSWER: (3, 10), MAP: (3, 1, 8, 8)}
    for ref, whole in ((ANSWER, expected[ANSWER]), (MAP, expected[MAP].mean(1, keepdim=True))):
        error = (maps[ref] - whole).abs().flatten(1).amax(1)
        assert (error <= 2**-11 * whole.abs().flatten(1).amax(1)).all() and error.any()
    with pytest.raises(ValueError, match="found by name; call the distillation with index= and view="):
        teacher.maps(Batch(batch.inputs), [MAP])


def test_maps_of_any_size_keep_their_precision(tmp_path: Path) -> None:
    """Above and below what fp16 holds, and zeros; NaN and infinity are refused by name."""
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    values *= torch.tensor([1e30, 1e-30, 0.0, 1.0])[:, None, None]

    def ask(batches: Sequence[Names]) -> Iterator[Mapping[MapRef, Tensor]]:
        return iter([{ANSWER: values}])

    teacher = ViewStore(tmp_path, {}, {ANSWER: "whole"}, {ANSWER: values}, 4).fill([0], ask, lambda _: None)
    found = teacher.maps(Batch((ZEROS,), None, torch.arange(4), torch.zeros(4).long()), [ANSWER])[ANSWER]
    assert ((found - values).abs().amax((1, 2)) <= 2**-11 * values.abs().amax((1, 2))).all()
    for wrong in (torch.nan, torch.inf):
        values[1, 2, 3] = wrong
        with pytest.raises(FloatingPointError, match=r"map network\.output holds NaN or infinity; train or load it"):
            ViewStore(tmp_path, {}, {ANSWER: "whole"}, {ANSWER: values}, 4).fill([1], ask, lambda _: None)


def test_of_a_teachers_tokens_the_mean_over_their_channels_is_kept(tmp_path: Path) -> None:
    tap = Tap("1", "output", "blocks.0", "output", teacher_grid=(2, 3))
    (summary,) = summaries_of([Term(tap, RED())]).values()
    tokens = torch.rand(4, 1 + 6, 5, generator=torch.Generator().manual_seed(0))  # a class token is no pixel

    def ask(batches: Sequence[Names]) -> Iterator[Mapping[MapRef, Tensor]]:
        return iter([{tap.source: tokens}])

    store = ViewStore(tmp_path, {}, {tap.source: summary}, {tap.source: tokens}, 4)
    teacher = store.fill([0], ask, lambda _: None)
    found = teacher.maps(Batch((ZEROS,), None, torch.arange(4), torch.zeros(4).long()), [tap.source])[tap.source]
    _, kept = tap.maps(torch.zeros(4, 8, 2, 3), found)
    torch.testing.assert_close(kept, tokens[:, 1:].mean(2).view(4, 1, 2, 3), rtol=2**-10, atol=0)
    with pytest.raises(ValueError, match=r"stage compares whole maps \(blocks\.0\.output\), and none are kept"):
        summaries_of([Term(tap, Stage())])


# ------------------------------------------------------------------------------------ who makes it, kills, full disks


def test_what_is_made_is_not_made_again_and_places_are_added(tmp_path: Path) -> None:
    first, second, third = Asked({MAP: "channel mean"}), Asked(), Asked({ANSWER: "whole"})
    first.fill(tmp_path, 0, 1)
    assert first.names == [(row, view) for view in (0, 1) for row in range(IMAGES)]
    before = files(tmp_path)
    second.fill(tmp_path, 0, 1, 2)
    assert len(second.names) == 3 * IMAGES  # the answers of 0 and 1, both places of 2
    third.fill(tmp_path, 2, 0)
    assert not third.names and len(files(tmp_path)) == 6 and before.items() < files(tmp_path).items()


@pytest.mark.parametrize(("most", "torn"), [(0, 0), (1, 0), (2, 0), (2, 37), (1, 20_000)])
def test_a_kill_while_filling_costs_a_batch(most: int, torn: int, tmp_path: Path) -> None:
    """The batch at work may be torn: written at one place and not at the other, or written in part."""
    Asked().fill(tmp_path / "whole", 0)
    with pytest.raises(KeyboardInterrupt):
        Asked(most=most).fill(tmp_path / "cut", 0)
    assert not files(tmp_path / "cut") and len(files(tmp_path / "cut", "part")) == 2
    with next((tmp_path / "cut").glob("*/1.output*/*.part")).open("ab") as part:
        part.write(b"\xff" * torn)
    again = Asked()
    again.fill(tmp_path / "cut", 0)
    assert again.names == [(row, 0) for row in range(most * BATCH, IMAGES)]
    assert files(tmp_path / "cut") == files(tmp_path / "whole") and not files(tmp_path / "cut", "part")


def work(root: Path, seconds: float, *views: int) -> None:
    asked = Asked(wait=seconds)
    teacher = asked.fill(root, *views)
    answer = teacher.maps(asked.batch([(5, views[-1])]), [ANSWER])[ANSWER]
    np.savez(root / f"{os.getpid()}.npz", names=np.array(asked.names), answer=answer.numpy())


def start(*arguments: Any) -> Any:
    context = get_context("forkserver")
    context.set_forkserver_preload([*kills.PRELOADED, "pytest"])
    child = context.Process(target=work, args=arguments)
    child.start()
    return child


def test_processes_share_the_work_and_survive_each_other(tmp_path: Path) -> None:
    """Three at once, of which one is killed in the middle: each view is made once, but for the batch it was at."""
    Asked().fill(tmp_path / "alone", 0, 1, 2, 3)
    children = [start(tmp_path / "shared", 0.1, 0, 1, 2, 3) for _ in range(3)]
    while len(files(tmp_path / "shared", "part")) < 6:  # all three are at work
        time.sleep(0.01)
    children[0].kill()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [-9, 0, 0]
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    told = [dict(np.load(tmp_path / "shared" / f"{child.pid}.npz")) for child in children[1:]]
    names = [tuple(name) for each in told for name in each["names"].tolist()]
    assert len(names) == len(set(names)) and 3 * IMAGES <= len(names) <= 4 * IMAGES
    assert min(len(each["names"]) for each in told) >= IMAGES  # both had their share
    assert np.array_equal(told[0]["answer"], told[1]["answer"])


def test_a_full_disk_ends_in_a_sentence_and_loses_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))  # the system writes so far, and then no more
    try:
        with pytest.raises(OSError, match=r"cannot be made and kept in .*File too large; what was finished stays"):
            Asked().fill(tmp_path, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(map(len, files(tmp_path, "part").values())) == [128 + BATCH * 22, 12_000]
    again = Asked()
    again.fill(tmp_path, 0)
    assert again.names == [(row, 0) for row in range(BATCH, IMAGES)]


@pytest.mark.parametrize("left", [b"", b"\x93NUMPY", 500, 0.5])
def test_a_damaged_file_is_made_again(left: Any, tmp_path: Path) -> None:
    Asked().fill(tmp_path, 0)
    whole = files(tmp_path)
    path = next(tmp_path.glob("*/1.output*/*.npy"))
    path.write_bytes(left if isinstance(left, bytes) else path.read_bytes()[: int(left if left > 1 else left * 2e4)])
    again = Asked()
    again.fill(tmp_path, 0)
    assert len(again.names) == IMAGES and files(tmp_path) == whole


def test_a_folder_of_another_teacher_is_refused(tmp_path: Path) -> None:
    asked = Asked()
    asked.store(tmp_path, teacher="a").fill([0], asked, lambda _: None)
    folder = asked.store(tmp_path, teacher="a").folder
    assert asked.store(tmp_path, teacher="b").folder != folder
    (folder / "key.json").write_text('{"teacher": "c"}')
    with pytest.raises(ValueError, match=r"key\.json is of another teacher or of other images; delete .*teacher-"):
        asked.store(tmp_path, teacher="a")


def test_what_is_complete_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    Asked().fill(tmp_path, 0)
    for module, name in ((Path, "mkdir"), (Path, "unlink"), (os, "utime"), (Path, "touch")):
        monkeypatch.setattr(module, name, read_only)
    asked = Asked()
    make_room([asked.store(tmp_path)], [0], 1)
    assert isinstance(asked.fill(tmp_path, 0), KeptTeacher) and not asked.names
    with pytest.raises(OSError, match=r"cannot be made and kept in .*Read-only file system"):
        asked.fill(tmp_path, 1)


# --------------------------------------------------------------------------------------------------- what it may cost

ROW = 2 * (1 + 8 * 8) + 2 * (1 + 10)  # bytes: an exponent and the values, in two places
SIZE = IMAGES * ROW + 2 * 128  # of a view, with a header for each place


def test_size_is_said_and_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    store = asked.store(tmp_path / "cache")
    assert store.missing([0, 5]) == {0: IMAGES * ROW, 5: IMAGES * ROW}
    told = store.told([0, 5])
    assert "150 images × 2 views × 152 bytes = 0.04349 MiB, 0.04349 MiB of it to be made now" in told
    with pytest.raises(
        ValueError,
        match=r"answers to 2 views of 150 images are 0\.04349 MiB, but cache_limit allows 0\.03815 MiB; give fewer "
        r"by Recipe\(views=…\), or raise RunOptions\(cache_limit=…\)",
    ):
        make_room([store], [0, 5], 40_000)
    make_room([store], [0, 5], 46_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=40_000))
    with pytest.raises(
        ValueError, match=r"but the disk of .*cache has room for 0\.03815 MiB; give fewer .* or make some"
    ):
        make_room([store], [0, 5], 10**9)
    store.fill([0], asked, lambda _: None)
    assert sum(map(len, files(tmp_path / "cache").values())) == SIZE


def test_what_was_used_least_recently_goes_first(tmp_path: Path) -> None:
    asked = Asked()
    old, used, new = (asked.store(tmp_path, teacher=name) for name in ("old", "used", "new"))
    for store in (used, old):
        store.fill([0, 1], asked, lambda _: None)
    past = time.time() - 1000
    for path in tmp_path.glob("*/*/*.npy"):
        os.utime(path, (past, past))
    used.fill([0], asked, lambda _: None)  # read again
    (left := next(old.folder.glob("1.output*")) / "000001.part").write_bytes(b"of a kill")
    os.utime(left, (past, past))

    def kept() -> list[list[str]]:
        return [sorted({path.name for path in store.folder.glob("*/*")}) for store in (old, used)]

    make_room([new], [0, 1], 6 * SIZE)
    assert kept() == [["000000.npy", "000001.npy", "000001.part"], ["000000.npy", "000001.npy"]]
    with FileLock(lock_of(next(old.folder.glob("*/000000.npy")))):  # another process is at work on this view
        make_room([new], [0, 1], 4 * SIZE)
        assert kept() == [["000000.npy"], ["000000.npy"]]  # view 1 of both is as old
    make_room([new], [0, 1], 3 * SIZE)
    assert kept() == [[], ["000000.npy"]]
    make_room([old, new], [0], 2 * SIZE)
    assert kept() == [[], []]


# ---------------------------------------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("teachers")
    return {task: train(task, folder) for task in ("classifier", "denoiser")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images live teachers are asked about in training splits, batch by batch."""
    counts: list[int] = []
    original = LiveTeacher.maps

    def maps(self: LiveTeacher, batch: Batch, refs: Sequence[MapRef]) -> dict[MapRef, Tensor]:
        if batch.view is not None and len(batch.view) > 2:  # two zeros are the example
            counts.append(len(batch.view))
        return original(self, batch, refs)

    monkeypatch.setattr(LiveTeacher, "maps", maps)
    return counts


def test_students_share_what_the_first_one_made(
    teachers: dict[str, Run], asked: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, images = teachers["classifier"], len(digits().train)
    # At the usual rate so small a network's steps make much of what fp16 rounds.
    recipe = recipe_of("classifier", views=2, augmentation=MIXED, learning_rate=1e-3)
    given: dict[str, Any] = {"recipe": recipe, "cache": tmp_path / "cache"}
    first = distill("classifier", tmp_path, teacher, methods="red+kd", **given)
    assert sum(asked) == 2 * images and f"{images} images × 2 views × " in capsys.readouterr().out
    asked.clear()
    others = [distill("classifier", tmp_path, teacher, methods=m, **given, seed=1) for m in ("red", "kd", "kd+red")]
    distill("classifier", tmp_path, teacher, "resnet18-2-21221", methods="kd", **given)
    assert not asked and capsys.readouterr().out == ""
    assert len({run.id for run in (first, *others)}) == 4 and len(list((tmp_path / "cache").glob("teacher-*"))) == 1
    live = distill("classifier", tmp_path, teacher, methods="red+kd", recipe=recipe)
    assert first.params == {**live.params, "answers": "fp16"} and first.id != live.id and sum(asked)
    rows = [run.history().iloc[0] for run in (first, live)]
    for name in ("train_kd", "train_distill", "train_total"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-3)


def test_whoever_fills_and_whatever_stops_it_the_bits_are_the_same(
    teachers: dict[str, Run], asked: list[int], tmp_path: Path
) -> None:
    """Cold, warm, stopped and resumed without the cache's files, cleared while it trains."""
    teacher = teachers["classifier"]
    given: dict[str, Any] = {"methods": "red+kd", "recipe": recipe_of("classifier", views=2)}
    cold = distill("classifier", tmp_path / "cold", teacher, cache=tmp_path / "cache", **given)
    warm = distill("classifier", tmp_path / "warm", teacher, cache=tmp_path / "cache", **given)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        distill("classifier", tmp_path / "cut", teacher, cache=tmp_path / "cache", on_log=Stop(2), **given)
    shutil.rmtree(tmp_path / "cache")
    assert not asked
    cut = distill("classifier", tmp_path / "cut", teacher, cache=tmp_path / "cache", **given)
    assert sum(asked) == len(digits().train)  # its last epoch shows view 0 alone
    clear = lambda *_: shutil.rmtree(tmp_path / "other", ignore_errors=True)  # noqa: E731
    cleared = distill("classifier", tmp_path / "clear", teacher, cache=tmp_path / "other", on_log=clear, **given)
    assert equal(cold, warm) and equal(cold, cut) and equal(cold, cleared)


def test_workers_fill_the_same(teachers: dict[str, Run], tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": "red", "recipe": recipe_of("classifier", epochs=1, augmentation=MIXED)}
    for workers in (0, 2):
        root = tmp_path / str(workers)
        distill("classifier", root, teachers["classifier"], cache=root / "cache", workers=workers, **given)
    assert files(tmp_path / "0/cache") == files(tmp_path / "2/cache") != {}


def test_the_students_random_numbers_stay(teachers: dict[str, Run], tmp_path: Path) -> None:
    """A student with dropout that the teacher's answers do not touch is the same to the bit."""
    given: dict[str, Any] = {"methods": "kd", "objective": Objective(distill_weight=0.0)}
    student = "mobilenetv3_small-1-22121111211"
    runs = [
        distill("classifier", tmp_path, teachers["classifier"], student, cache=cache, **given)
        for cache in (None, tmp_path / "cache")
    ]
    ours, theirs = map(weights, runs)
    assert runs[0].id != runs[1].id and all(torch.equal(value, theirs[name]) for name, value in ours.items())


SEEN: list[tuple[int, ...]] = []


@dataclass(frozen=True)
class Watch(Weighted):
    """Notes which views it sees."""

    name, reads = "watch", "outputs"
    alpha: float = 1.0

    def loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        if self.alpha and batch.view is not None and student.requires_grad:
            SEEN.append(tuple(sorted(set(batch.view.tolist()))))
        return (student - teacher).square().mean()


@pytest.mark.parametrize("cached", [False, True])
def test_an_epoch_shows_the_view_of_its_number_modulo_views(
    cached: bool, teachers: dict[str, Run], tmp_path: Path
) -> None:
    SEEN.clear()
    recipe = recipe_of("classifier", epochs=5, views=2, batch_size=64)
    cache = tmp_path / "cache" if cached else None
    distill("classifier", tmp_path, teachers["classifier"], methods=Watch(), recipe=recipe, cache=cache)
    assert SEEN == [(0,), (1,), (0,), (1,), (0,)]


def test_views_are_of_a_run_where_one_comes_twice() -> None:
    told = [recipe_of("classifier", views=views).settings(96) for views in (None, 1, 2, 3, 100)]
    assert told[0] == told[3] == told[4] and [each.get("views") for each in told] == [None, 1, 2, None, None]
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"views=.* is not a whole number"):
            recipe_of("classifier", views=wrong)


def test_what_changes_the_answers_has_another_folder(
    teachers: dict[str, Run], asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = len(digits().train)

    def folders(teacher: Any = teachers["classifier"], data: Any = None, **changes: Any) -> int:
        asked.clear()
        recipe = recipe_of("classifier", epochs=1, **changes)
        given = {"methods": "kd", "recipe": recipe, "data": data or digits(), "cache": tmp_path / "cache"}
        distill("classifier", tmp_path, teacher, **given)
        found = len(list((tmp_path / "cache").glob("teacher-*")))
        assert sum(asked) in (0, images)
        return found if asked else 0

    assert folders() == 1 and folders(batch_size=16, learning_rate=0.01, label_smoothing=0.1) == 0
    assert folders(train("classifier", tmp_path, seed=1)) == 2  # another teacher
    assert folders(augmentation="crop+flip") == 3
    changed = digits()
    changed.train.images[0, 0, 3, 3] ^= 1
    assert folders(data=changed) == 4
    with pytest.warns(UserWarning, match="trained on other images"):
        assert folders(data=digits(seed=1)) == 5
    monkeypatch.setattr(trainer_module, "code_identity", lambda: "abcdefab")
    assert folders() == 6


def test_denoisers_answers_are_of_their_noise_and_time(
    teachers: dict[str, Run], asked: list[int], tmp_path: Path
) -> None:
    given: dict[str, Any] = {"methods": "red+mse", "recipe": recipe_of("denoiser", steps=3, views=2, batch_size=40)}
    images = len(digits("denoiser").train)
    runs = [
        distill("denoiser", tmp_path, teachers["denoiser"], cache=cache, **given)
        for cache in (None, tmp_path / "cache")
    ]
    assert sum(asked) == 3 * images + 2 * images and "answers" in runs[1].params
    ours, theirs = (run.history().train_total for run in runs)
    assert list(ours[:2]) == pytest.approx(list(theirs[:2]), rel=1e-3)
    other = {"recipe": recipe_of("denoiser", process=DiffusionProcess(beta_schedule="squaredcos_cap_v2"))}
    teacher = train("denoiser", tmp_path, **other)
    distill("denoiser", tmp_path, teacher, methods="mse", cache=tmp_path / "cache", **other)
    assert len(list((tmp_path / "cache").glob("teacher-*"))) == 2


def test_methods_that_compare_whole_maps_run_live_and_say_so(
    teachers: dict[str, Run], asked: list[int], tmp_path: Path
) -> None:
    teacher, cache = teachers["classifier"], tmp_path / "cache"
    given: dict[str, Any] = {"methods": "red+fitnet", "recipe": recipe_of("classifier", epochs=1, learning_rate=1e-3)}
    with pytest.warns(UserWarning, match=r"runs as without a cache: fitnet compares whole maps \(.*\), and none are"):
        run = distill("classifier", tmp_path, teacher, cache=cache, **given)
    assert asked and not cache.exists() and "answers" not in run.params
    assert distill("classifier", tmp_path, teacher, **given) == run
    control = distill("classifier", tmp_path, teacher, methods="red-blocks", cache=cache, recipe=given["recipe"])
    assert not cache.exists() and "answers" not in control.params  # without losses no teacher answers
    assert train("classifier", tmp_path / "plain", cache=cache).complete and not cache.exists()


def test_what_two_methods_read_of_one_map(tmp_path: Path) -> None:
    same = Distillation(net(1), net(), [Tap("1", "output", "1", "output")], "red+kd", example=ZEROS)
    assert summaries_of(same.active) == {(0, MAP): "channel mean", (0, ANSWER): "whole"}
    other = Distillation(net(1), net(), [Tap("1", "output", "1", "output")], "red+stage", example=ZEROS)
    with pytest.raises(ValueError, match=r"stage and another method read 1\.output in different ways"):
        summaries_of(other.active)
    at_a_map = Distillation(net(1), net(), [Tap("1", "output", "1", "output", method=MSE())], example=ZEROS)
    with pytest.raises(ValueError, match=r"mse compares whole maps \(1\.output\), and none are kept"):
        summaries_of(at_a_map.active)


def test_a_cache_that_is_too_small_is_refused_before_training(teachers: dict[str, Run], tmp_path: Path) -> None:
    given: dict[str, Any] = {"methods": "red", "cache": tmp_path / "cache"}
    with pytest.raises(
        ValueError, match=r"3 views of 96 images are .* but cache_limit allows 0\.001953 MiB; give fewer"
    ):
        distill("classifier", tmp_path, teachers["classifier"], cache_limit="2KB", **given)
    assert distill("classifier", tmp_path, teachers["classifier"], cache_limit="1MB", **given).complete
    with pytest.raises(ValueError, match="'8X' is not an amount of memory"):
        distill("classifier", tmp_path, teachers["classifier"], cache_limit="8X", **given)


def test_each_of_several_teachers_has_its_folder(teachers: dict[str, Run], asked: list[int], tmp_path: Path) -> None:
    both = [teachers["classifier"], train("classifier", tmp_path, seed=2)]
    given: dict[str, Any] = {"methods": "kd", "cache": tmp_path / "cache", "recipe": recipe_of("classifier", views=1)}
    distill("classifier", tmp_path, both, **given)
    distill("classifier", tmp_path, both[::-1], **given)
    assert sum(asked) == 2 * len(digits().train) and len(list((tmp_path / "cache").glob("teacher-*"))) == 2
