"""What diffusion trainings are built of: averaged weights, the validation loss, bytes of images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trainings import digits

from redistill_lib.diffusion import denoising_loss, to_uint8
from redistill_lib.diffusion.ema import average_of, decay_at
from redistill_lib.models import create_model


class Constant(nn.Module):
    """Predicts the same value everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x) + self.value


def test_validation_loss_has_its_own_noise() -> None:
    """Predicting nothing costs E[ε²] = 1, whatever the random state; a second reading gives the same bits."""
    split = digits("denoiser").validation
    first = denoising_loss(Constant(0.0), split)
    torch.manual_seed(7)
    assert denoising_loss(Constant(0.0), split) == pytest.approx(first) == pytest.approx(1, abs=0.02)
    assert denoising_loss(Constant(2.0), split) == pytest.approx(5, abs=0.1)  # E[(ε − 2)²]


def test_bytes() -> None:
    images = digits("denoiser").train.head(3)[0]
    assert torch.equal(to_uint8(images / 127.5 - 1), images)


def test_average_by_hand() -> None:
    network = nn.BatchNorm1d(1)
    average = average_of(network, decay=0.25)
    weight, mean = 1.0, 0.0  # batch norm's own start
    for step, (w, m, count) in enumerate([(3.0, 8.0, 5), (5.0, -4.0, 9), (0.0, 2.0, 11)], 1):
        with torch.no_grad():
            network.weight.fill_(w)
            network.running_mean.fill_(m)
            network.num_batches_tracked.fill_(count)
        average.update_parameters(network)
        decay = min(0.25, (1 + step) / (10 + step))
        weight, mean = decay * weight + (1 - decay) * w, decay * mean + (1 - decay) * m
        assert average.module.weight.item() == pytest.approx(weight)
        assert average.module.running_mean.item() == pytest.approx(mean)
        assert average.module.num_batches_tracked.item() == count
    assert decay_at(1, 0.25) == 2 / 11 and decay_at(3, 0.25) == 0.25  # both branches were taken


def test_average_goes_on_from_its_state() -> None:
    networks = [nn.Linear(2, 2) for _ in range(3)]
    whole = average_of(networks[0], 0.9)
    whole.update_parameters(networks[1])
    resumed = average_of(networks[2], 0.9)
    resumed.load_state_dict(whole.state_dict())
    for average in (whole, resumed):
        average.update_parameters(networks[2])
    assert torch.equal(whole.module.weight, resumed.module.weight)


def test_without_classes_the_official_names_stay() -> None:
    plain, conditional = (create_model("unet-1-2", ch=8, mult=(1, 2), num_classes=n).state_dict() for n in (None, 5))
    assert set(conditional) - set(plain) == {"label_embedding.weight"}
    assert conditional["label_embedding.weight"].shape == (6, 32)
