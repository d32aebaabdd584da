"""What a network says to inputs that it cannot take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.distill import Distillation, Tap
from redistill_lib.network import answer, asking, record_maps

CONV = nn.Conv2d(3, 8, 3)


class Timed(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        raise KeyError(f"no step {int(t)}\nand a second line")


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (CONV, (torch.zeros(1, 1, 8, 8),), r"the teacher does not take images of 1×8×8: Given groups=1, .*$"),
        (CONV, (torch.zeros(1, 3, 8, 8).double(),), r"does not take float64 images of 3×8×8: .*float"),
        (CONV, (torch.zeros(5),), r"does not take float32 values of 5: "),
        (CONV, ([1, 2],), r"does not take a list: "),
        (CONV, (torch.zeros(1, 3, 8, 8), torch.tensor(1)), r"3×8×8: .*it is called as \(images of 3×8×8, int64 val"),
        (Timed(), (torch.zeros(1, 3, 8, 8),), r"images of 3×8×8: .*missing 1 required positional argument: 't'"),
        (Timed(), (torch.zeros(1, 3, 8, 8), torch.tensor(7)), r"no step 7.*int64 values of no axis\)$"),
    ],
)
def test_a_network_that_cannot_answer(model: nn.Module, inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        answer(model, inputs, "teacher")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


def test_an_answer_leaves_the_mode_and_has_a_gradient_where_it_is_wanted() -> None:
    net = nn.Sequential(CONV, nn.Dropout()).train()
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(answer(net, (x,)), CONV(x)) and net[1].training
    assert not answer(net, (x,)).requires_grad and answer(net, (x,), gradient=True).requires_grad


def test_what_this_library_words_itself_passes() -> None:
    class Half(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[0](x)
            return y

    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match=r"never reached 1\.output"), asking((x,)):
        record_maps(Half(CONV, nn.ReLU()), [("1", "output")], x)


def test_an_example_that_student_or_teacher_cannot_take() -> None:
    tap = Tap("0", "output", "0", "output", channels=8)

    def net(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU())

    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="the student does not take images of 3×8×8: Given groups"):
        Distillation(net(1), net(3), [tap], example=x)
    with pytest.raises(ValueError, match="the teacher does not take images of 3×8×8: Given groups"):
        Distillation(net(3), net(1), [tap], example=x)
