"""Every way to fit a budget: what each needs is what its network needs, and none is beaten by another."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import redistill_lib as rd
from redistill_lib.cli import main
from redistill_lib.fitting import Choice, WaysToFit
from redistill_lib.memory.profile import Convention
from redistill_lib.streaming import row_ends, stream_rows

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGE = torch.zeros(1, 1, 28, 28)
WIDTH = 0.125


@pytest.fixture(scope="module")
def found() -> WaysToFit:
    return rd.ways_to_fit("resnet18-1-21222", "6KB", IMAGE, width=WIDTH)


def network(choice: Choice) -> nn.Module:
    model = rd.create_model(f"resnet18-{choice.way.plan}", width=choice.way.width, in_channels=1).eval()
    side = choice.way.image_size
    return rd.stream_rows(model, example=torch.zeros(1, 1, side, side), until=choice.until) if choice.until else model


def test_each_needs_what_its_network_needs(found: WaysToFit) -> None:
    assert {choice.dtype for choice in found.fits} == {"fp32", "int8"}
    assert any(choice.until for choice in found.fits) and any(choice.red for choice in found.fits)
    for choice in found.fits:
        assert choice.cost.needed_bytes <= 6 * 1024
        if not choice.red:
            image = torch.zeros(1, 1, choice.way.image_size, choice.way.image_size)
            profile = rd.profile_memory(network(choice), image, dtype=choice.dtype)
            assert (choice.cost.peak_bytes, choice.cost.flops) == (profile.peak_bytes, profile.flops), choice.name


def test_none_is_beaten(found: WaysToFit) -> None:
    def better(one: Choice, other: Choice) -> bool:
        most = found.ways.teacher.plain.flops
        keeps = min(one.way.plain.flops, most) >= min(other.way.plain.flops, most) and one.bits >= other.bits
        asks = (not one.until or other.until) and (not one.trained or other.trained) and one.red == other.red
        less = one.cost.needed_bytes < other.cost.needed_bytes or one.bits > other.bits
        return keeps and asks and less and one.cost.needed_bytes <= other.cost.needed_bytes

    assert not [(one.name, other.name) for one in found.fits for other in found.fits if better(one, other)]
    own = [choice for choice in found.fits if not choice.trained]
    assert own and all((c.way.plan, c.way.width) == ("1-21222", WIDTH) for c in own)
    asked = {(choice.dtype, bool(choice.until)): choice.asks for choice in own}
    assert asked.get(("int8", False), "calibration") == "calibration"
    assert "a runtime that holds int8 row by row" in asked["int8", True]


def test_tables_and_arms_have_them_all(found: WaysToFit) -> None:
    frame = found.to_frame()
    assert list(frame.index) == [choice.name for choice in found.fits] == found.table()["way"].tolist()
    assert frame["needs (KiB)"].max() <= 6 and str(found).startswith(f"{len(frame)} ways from resnet18-1-21222")
    both = "in int8, row by row"  # which no runtime does
    assert both in " ".join(frame.index) and both not in str(found)
    arms = found.arms()
    assert {(arm.model, arm.width) for arm in arms.values()} >= {
        (f"resnet18-{c.way.plan}", c.way.width) for c in found.fits if not c.red and c.way.image_size == 28
    }
    assert all("red" in name for name in found.arms("red"))


def test_a_network_of_ones_own() -> None:
    own = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    image = torch.zeros(1, 3, 32, 32)
    found = rd.ways_to_fit(own, "24KB", image)
    whole = rd.profile_memory(own, image).peak_bytes
    assert whole > 24 * 1024
    streamed = next(choice for choice in found.fits if choice.until and choice.dtype == "fp32")
    assert streamed.asks == "nothing" and streamed.way.plan == found.ways.teacher.plan
    made = rd.stream_rows(own.eval(), example=image, until=streamed.until)
    assert rd.profile_memory(made, image).peak_bytes == streamed.cost.peak_bytes <= 24 * 1024


@pytest.mark.parametrize("convention", ["fused", "executorch"])
@pytest.mark.parametrize(("name", "every"), [("resnet18-1-21222", 1), ("mobilenetv2-1-1222121", 4)])
def test_a_later_end_of_rows_holds_all_that_an_earlier_one_does_but_its_last_map(
    name: str, every: int, convention: Convention
) -> None:
    """By which a search that is beyond its budget is given up."""
    image = torch.zeros(1, 1, 24, 24)
    model = rd.create_model(name, width=WIDTH, in_channels=1).eval()
    rows = rd.profile_memory(model, image, convention=convention).rows
    before = seen = 0
    for end in row_ends(model, example=image)[: 12 * every : every]:
        inside = [k for k, row in enumerate(rows) if f"{row.module}.".startswith(f"{end}.")]
        if inside:
            streamed = stream_rows(model, example=image, until=end)
            peak = rd.profile_memory(streamed, image, convention=convention).peak_bytes
            assert peak >= before
            behind = max((row.live_bytes for row in rows[inside[-1] + 1 :]), default=0)
            if peak > behind:
                before, seen = max(before, peak - rows[inside[-1]].out_bytes), seen + 1
    assert seen > 2 and before


def test_nothing_fits() -> None:
    found = rd.ways_to_fit("resnet18-1-21222", 1, IMAGE, width=WIDTH, dtypes="int8")
    assert not found.fits and not found.arms() and not found.arms("red") and found.table().empty
    assert "row by row or whole" in str(found)


def test_what_is_not_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match="what executorch needs in int8 is not predicted"):
        rd.ways_to_fit("resnet18", "1MB", IMAGE, dtypes=["fp32", "int8"], convention="executorch")
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        rd.ways_to_fit("resnet18", "1MB", IMAGE, dtypes="int4")
    with pytest.raises(ValueError, match="use fused"):
        rd.ways_to_fit("resnet18", "1MB", IMAGE, convention="paper")
    with pytest.raises(ValueError, match="unet is no classifier"):
        rd.ways_to_fit("unet", "1MB", IMAGE)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", "resnet18-4-11221", "--image-size", "16", "--budget", "16KB", "--ways"]
    assert main([*words, "--dtype", "int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ways"][0]["way"] == "4-11221 ×1 in int8" and told["ways"][0]["asks for"] == "calibration"
    assert main([*words[:-3], "--ways"]) == 2
    assert "--ways says how to fit a budget: give --budget" in capsys.readouterr().err
    assert main(["memory", "unet", "--budget", "1MB", "--ways"]) == 2
    assert "which take images alone" in capsys.readouterr().err
