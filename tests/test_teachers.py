"""Teachers at work: how far they run, whose hooks fire, and networks that catch exceptions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.distill import Distillation, LiveTeacher, Tap
from redistill_lib.methods import Batch
from redistill_lib.network import MapRef

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TAP = Tap("0", "output", "1", "output")


class Counted(nn.Conv2d):
    """Notes each of its runs, and fires no hook to do so."""

    def __init__(self, name: str, ran: list[str], *args: int):
        super().__init__(*args)
        self.name, self.ran = name, ran

    def forward(self, input: Tensor) -> Tensor:
        self.ran.append(self.name)
        return super().forward(input)


def chain(ran: list[str]) -> nn.Module:
    torch.manual_seed(1)
    convs = (3, 8, 3, 2, 1), (8, 8, 3, 2, 1), (8, 5, 1), (5, 5, 1)
    layers = [Counted("abcd"[k], ran, *sizes) for k, sizes in enumerate(convs)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def student() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_teacher_runs_no_further_than_its_last_tap_from_its_second_pass_on() -> None:
    ran: list[str] = []
    d = Distillation(student(), chain(ran), [TAP], "red", example=X).eval()
    assert ran == [*"abcd"]  # the example's pass
    first, second = d(X)[1], d(X)[1]
    assert ran[4:] == [*"abab"] and torch.equal(first["total"], second["total"])
    untried = Distillation(student(), chain(ran := []), [Tap("0", "output", "1", "output", channels=8)]).eval()
    assert [untried(X)[1]["total"] for _ in range(2)] == [first["total"]] * 2 and ran == [*"abcd", *"ab"]


def test_a_teacher_whose_outputs_are_compared_runs_to_its_end() -> None:
    ran: list[str] = []
    d = Distillation(student(), chain(ran), [TAP], "red+kd", example=X)
    d(X), d(X)
    assert ran == [*"abcd"] * 3


def test_other_maps_than_before_are_looked_for_to_the_end() -> None:
    teacher, batch = LiveTeacher(chain(ran := [])), Batch((X,))
    teacher.maps(batch, [MapRef("0", "output")])
    teacher.maps(batch, [MapRef("1", "output"), MapRef("1", "output")])
    assert ran == [*"abcd"] * 2
    maps = teacher.maps(batch, [MapRef("1", "output")])
    assert (
        ran[8:] == [*"ab"] and list(maps) == [MapRef("1", "output")] and not maps[MapRef("1", "output")].requires_grad
    )


def test_hooks_of_a_teachers_owner_fire_in_every_pass() -> None:
    teacher, fired = chain([]), list[str]()
    teacher[0].register_forward_pre_hook(lambda *_: fired.append("first"))
    handle = teacher[3].register_forward_hook(lambda *_: fired.append("last"))
    d = Distillation(student(), teacher, [TAP], "red", example=X)
    for _ in range(3):
        d(X)
    assert fired == ["first", "last"] * 4
    handle.remove()
    d(X)
    assert fired[8:] == ["first"]


class Careful(nn.Module):
    """A teacher that answers something whatever happens inside; what it catches is given by `bare`."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.bare = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 5, 1), bare
        self.finished = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.bare:
            try:
                x = self.first(x)
            except:  # noqa: E722
                x = self.first(x)  # once more, which reads the map a second time
        else:
            try:
                x = self.first(x)
            except Exception:
                x = x.new_zeros(len(x), 8, 4, 4)
        self.finished += 1
        return self.second(x).mean((2, 3))


@pytest.mark.parametrize(("bare", "finished"), [(False, 1), (True, 4)])
def test_teachers_that_catch_exceptions(bare: bool, finished: int) -> None:
    """One that catches exceptions still stops early; one that catches everything runs on, to the same maps."""
    teacher = Careful(bare)
    d = Distillation(student(), teacher, [Tap("0", "output", "first", "output")], "red", example=X).eval()
    assert len({d(X)[1]["total"].item() for _ in range(3)}) == 1 and teacher.finished == finished


def test_a_teacher_that_works_in_place_leaves_the_batch_as_it_was() -> None:
    x = X - 0.5
    teacher = nn.Sequential(nn.ReLU(inplace=True), *student())
    Distillation(student(), teacher, methods="kd", example=x)(x)
    assert torch.equal(x, X - 0.5)


def test_errors_of_a_teacher_come_through() -> None:
    class Failing(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("of the teacher's own")

    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="of the teacher's own"):
            Distillation(student(), Failing(), methods="kd")(X)
