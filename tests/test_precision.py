"""Networks in fewer bits: the same answers but for rounding, and their figure."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

import redistill_lib as rd
from redistill_lib import figures
from redistill_lib.export import bf16_model, int8_model, precisions

pytestmark = pytest.mark.filterwarnings("ignore")


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def test_int8_rounds_to_256_levels_and_takes_any_batch() -> None:
    model, x = net(), torch.rand(20, 1, 32, 32)
    rounded = int8_model(model, [(x,)])
    for count in (1, 3, 20):
        torch.testing.assert_close(rounded(x[:count]), model(x[:count]), rtol=0.1, atol=0.02)
    outputs = rounded(x)
    assert outputs.unique().numel() <= 256 < model(x).unique().numel() + 100
    scale = (outputs.max() - outputs.min()) / (outputs.unique().numel() - 1)
    steps = outputs.unique().diff() / outputs.unique().diff().min()
    assert scale > 0 and torch.allclose(steps, steps.round(), atol=1e-2)  # multiples of one step
    with pytest.raises(ValueError, match="int8 needs calls on some images"):
        int8_model(model, [])


def test_what_cannot_be_followed_is_said() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="this network cannot be followed"):
        int8_model(Branching(), [(torch.rand(2, 1, 8, 8),)])


def test_bfloat16_keeps_eight_bits() -> None:
    model, x = net(), torch.rand(4, 1, 32, 32)
    out = bf16_model(model)(x)
    assert out.dtype == torch.float32 and torch.equal(out, out.bfloat16().float())
    torch.testing.assert_close(out, model(x), rtol=0.05, atol=0.01)
    assert next(model.parameters()).dtype == torch.float32


def test_a_row_for_each_network_seed_and_dtype() -> None:
    data = rd.load_data("digits", limit=40)
    found = precisions({"teacher": [net(), net()]}, data, calibration=20)
    assert list(found["dtype"]) == ["fp32", "bf16", "int8"] * 2 and list(found["seed"]) == [0] * 3 + [1] * 3
    peaks = dict(zip(found["dtype"], found["peak_bytes"], strict=False))
    assert peaks["fp32"] == 2 * peaks["bf16"] == 4 * peaks["int8"] == 4 * (32 * 32 + 8 * 16 * 16)
    exact = rd.evaluate(net(), data.test)["accuracy"]
    assert found["accuracy"].iloc[0] == pytest.approx(100 * exact)


def table() -> pd.DataFrame:
    rows = []
    for name, peak, best in (("teacher", 128_000, 96.0), ("naive", 19_200, 86.0)):
        for seed in (0, 1, 2):
            for dtype, part, loss in (("fp32", 1, 0.0), ("int8", 4, 0.5)):
                rows.append((name, seed, dtype, peak // part, best + seed - 1 - loss))
    return pd.DataFrame(rows, columns=["network", "seed", "dtype", "peak_bytes", "accuracy"])


def test_the_figure_says_what_int8_saves_and_costs() -> None:
    figure = figures.precisions(table())
    first, _, second = figures.headline(figure).partition("; ")
    assert first == "Int8 needs 4.0 times less and costs at most 0.5 points"
    assert second == "the naive student needs 6.7 times less and costs 10.0"
    assert list(figure.data[0].x) == [128_000, 32_000] and list(figure.data[0].y) == [96.0, 95.5]
    assert [t.name for t in figure.data] == ["teacher", "naive student", "fp32", "int8"]
    best = table().assign(accuracy=100 - table()["accuracy"])
    assert figures.headline(figures.precisions(best)).endswith("needs 6.7 times less and gains 10.0")
    level = table().assign(accuracy=90.0)
    assert figures.headline(figures.precisions(level)).endswith("needs 6.7 times less and costs nothing")
    worse = table().rename(columns={"accuracy": "FID"})
    assert "costs at most −0.5 FID" in figures.headline(figures.precisions(worse, "FID", "FID"))
    with pytest.raises(ValueError, match=r"the table has no accuracy; export\.precisions makes it"):
        figures.precisions(worse)


def test_norms_that_no_convolution_takes_stay_as_they_are() -> None:
    torch.manual_seed(0)
    plain, norm = nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6)
    for each in (plain, norm):
        each.running_mean, each.running_var = torch.randn(6), torch.rand(6) + 0.5
    nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), plain, nn.Sigmoid(), norm).eval()
    x = torch.rand(8, 3, 9, 9)
    off = int8_model(network, [(x,)])(x) - network(x)
    assert 0 < off.abs().max() < 0.1
