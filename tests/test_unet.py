from __future__ import annotations

import json
import math
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from redistill_lib.distill import match_taps
from redistill_lib.models import ARCHITECTURES, create_model, load_checkpoint, student_name, usual_plan
from redistill_lib.plans import StridePlan
from redistill_lib.red import RedBlock, insert_blocks

OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (Path(__file__).parent / "reference" / "official_shapes.json").read_text()
)
TEACHER, STUDENT = "unet-1-222", "unet-2-221"


def on_meta(*args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(*args, **kwargs)


def batch(size: int = 32, count: int = 2, channels: int = 3) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(count) * 499 + 3


# --- layout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "official"), [(TEACHER, "unet 1,2,2,2"), (STUDENT, "unet 2,2,2,1")])
def test_official_names_and_shapes(name: str, official: str) -> None:
    model = on_meta(name)
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == OFFICIAL[official]
    assert len(OFFICIAL[official]) == 329


@pytest.mark.parametrize(("name", "millions"), [(TEACHER, 34.888), (STUDENT, 34.693)])
def test_parameter_counts_of_the_paper(name: str, millions: float) -> None:
    parameters = dict(on_meta(name).named_parameters())
    assert round(sum(p.numel() for p in parameters.values()) / 1e6, 3) == millions
    frozen = [key for key, p in parameters.items() if not p.requires_grad]
    assert frozen == ["time_embedding.timembedding.0.weight"]


def test_names_and_plans() -> None:
    by_strides = on_meta("unet", strides=[2, 2, 2, 1], ch=32, dropout=0.2)
    assert (by_strides.name, by_strides.plan) == (STUDENT, StridePlan(2, (2, 2, 1)))
    assert on_meta("unet").name == TEACHER
    assert on_meta("unet", mult=(1, 2), ch=8).name == "unet-1-2"
    assert str(usual_plan("unet")) == "1-222"
    assert student_name(TEACHER, 2) == STUDENT
    assert student_name("unet", 4) == "unet-4-211"
    assert student_name("unet-1-22", 2) == "unet-2-21"
    assert ARCHITECTURES["unet"].paths == ("head", "downblocks.2.main", "downblocks.5.main", "downblocks.8.main")


def test_dropout_is_in_every_residual_block() -> None:
    model = on_meta("unet", dropout=0.3)
    blocks = [m for key, m in model.named_modules() if key.endswith("block2")]
    assert len(blocks) == 8 + 2 + 12
    assert {(type(block[2]), block[2].p) for block in blocks} == {(nn.Dropout, 0.3)}


def test_time_table_is_the_sinusoid() -> None:
    table = create_model("unet", ch=16, T=300).time_embedding.timembedding[0].weight
    assert table.shape == (300, 16)
    for t, k in [(0, 0), (1, 0), (1, 7), (17, 3), (299, 0), (299, 5)]:
        angle = t / 10000 ** (2 * k / 16)
        expected = [math.sin(angle), math.cos(angle)]
        assert table[t, 2 * k : 2 * k + 2].tolist() == pytest.approx(expected, abs=1e-4)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = create_model("unet", ch=32)
    bound = math.sqrt(6 / (3 * 9 + 32 * 9))  # Xavier's, uniform
    assert 0.95 * bound < model.head.weight.abs().max().item() <= bound
    assert not any(p.any() for key, p in model.named_parameters() if key.endswith("bias"))
    small = {key for key, p in model.named_parameters() if p.ndim > 1 and p.abs().max() < 1e-4}
    ends = ("block2.3.weight", "attn.proj.weight", "tail.2.weight")
    assert small == {key for key, _ in model.named_parameters() if key.endswith(ends)}
    assert model(*batch()).abs().max() < 1e-3  # no noise predicted yet


def test_small_channel_counts_have_fewer_groups() -> None:
    groups = {m.num_channels: m.num_groups for m in on_meta("unet", ch=12).modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {12: 3, 24: 6, 36: 9, 48: 12}
    paper = {m.num_groups for m in on_meta("unet").modules() if isinstance(m, nn.GroupNorm)}
    assert paper == {32}


# --- numbers ----------------------------------------------------------------------------------------------


def randomised(name: str, **kwargs: Any) -> nn.Module:
    """A float64 model in eval mode, every tensor but the table random, scaled so that all of it shows."""
    generator = torch.Generator().manual_seed(0)
    model = create_model(name, **kwargs).double().eval()
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.dim() == 1:
            tensor.copy_(noise * 0.3 + ("weight" in key))
        elif "timembedding.0" not in key:
            tensor.copy_(noise * (2 * tensor.shape[0] / tensor.numel()) ** 0.5)
    return model


class PlainUNet:
    """The forward pass once more, from a state dict and the strides alone."""

    def __init__(self, state: dict[str, Tensor], strides: tuple[int, ...]) -> None:
        self.state, self.strides = state, strides

    def has(self, key: str) -> bool:
        return f"{key}.weight" in self.state

    def linear(self, key: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{key}.weight"].T + self.state[f"{key}.bias"]

    def conv(self, key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{key}.weight"]
        size, pad = weight.shape[-1], weight.shape[-1] // 2
        windows = nn.functional.pad(x, [pad] * 4).unfold(2, size, stride).unfold(3, size, stride)
        return torch.einsum("bchwij,ocij->bohw", windows, weight) + self.state[f"{key}.bias"][:, None, None]

    def spread(self, key: str, x: Tensor) -> Tensor:
        weight = self.state[f"{key}.weight"]  # every pixel becomes its own tile
        tiles = torch.einsum("bchw,coij->bohiwj", x, weight)
        side = x.shape[-1] * weight.shape[-1]
        return tiles.reshape(len(x), -1, side, side) + self.state[f"{key}.bias"][:, None, None]

    def norm(self, key: str, x: Tensor) -> Tensor:
        channels = x.shape[1]
        groups = next(g for g in range(32, 0, -1) if channels % g == 0 and channels // g >= min(4, channels))
        parts = x.reshape(len(x), groups, -1)
        parts = parts - parts.mean(2, keepdim=True)
        parts = parts / (parts.square().mean(2, keepdim=True) + 1e-5).sqrt()
        scale, shift = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return parts.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]

    @staticmethod
    def swish(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def attend(self, key: str, x: Tensor) -> Tensor:
        h = self.norm(f"{key}.group_norm", x)
        q, k, v = (self.conv(f"{key}.proj_{letter}", h) for letter in "qkv")
        scores = torch.einsum("bcij,bckl->bijkl", q, k) / math.sqrt(x.shape[1])
        scores = scores.exp() / scores.exp().sum((3, 4), keepdim=True)
        return x + self.conv(f"{key}.proj", torch.einsum("bijkl,bckl->bcij", scores, v))

    def residual(self, key: str, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv(f"{key}.block1.2", self.swish(self.norm(f"{key}.block1.0", x)))
        h = h + self.linear(f"{key}.temb_proj.1", self.swish(temb))[..., None, None]
        h = self.conv(f"{key}.block2.3", self.swish(self.norm(f"{key}.block2.0", h)))
        h = h + (self.conv(f"{key}.shortcut", x) if self.has(f"{key}.shortcut") else x)
        return self.attend(f"{key}.attn", h) if self.has(f"{key}.attn.proj") else h

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.state["time_embedding.timembedding.0.weight"][t]
        temb = self.swish(self.linear("time_embedding.timembedding.1", temb))
        temb = self.linear("time_embedding.timembedding.3", temb)
        down = iter(self.strides)
        x = self.conv("head", x, next(down))
        skips, index = [x], 0
        while True:
            if self.has(f"downblocks.{index}.main"):
                x = self.conv(f"downblocks.{index}.main", x, next(down))
            elif self.has(f"downblocks.{index}.block1.2"):
                x = self.residual(f"downblocks.{index}", x, temb)
            else:
                break
            skips.append(x)
            index += 1
        x = self.residual("middleblocks.1", self.residual("middleblocks.0", x, temb), temb)
        index = 0
        while skips:
            if self.has(f"upblocks.{index}.main"):
                x = self.spread(f"upblocks.{index}.main", x)
            else:
                x = self.residual(f"upblocks.{index}", torch.cat([x, skips.pop()], 1), temb)
            index += 1
        return self.spread("tail.2", self.swish(self.norm("tail.0", x)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (TEACHER, {"ch": 12}),
        (STUDENT, {"ch": 12}),
        ("unet-4-12", {"ch": 8, "mult": (2, 1, 3), "attention": (0, 2), "res_blocks": 1, "in_channels": 1, "T": 600}),
        ("unet-1-4", {"ch": 8, "mult": (1, 2), "attention": (), "res_blocks": 3}),
    ],
)
@torch.no_grad()
def test_equals_a_plain_derivation(name: str, options: dict[str, Any]) -> None:
    model = randomised(name, **options)
    x, t = batch(16, channels=options.get("in_channels", 3))
    expected = PlainUNet(dict(model.state_dict()), model.plan.places)(x.double(), t)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(x.double(), t), expected, rtol=1e-9, atol=1e-9)


def test_attention_is_where_it_was_asked_for() -> None:
    def attended(**options: Any) -> set[str]:
        names = (key for key, _ in on_meta("unet", ch=8, **options).named_parameters() if "attn.proj.weight" in key)
        return {name.removesuffix(".attn.proj.weight") for name in names}

    assert attended(attention=()) == {"middleblocks.0"}
    last = {f"downblocks.{k}" for k in (9, 10)} | {f"upblocks.{k}" for k in (0, 1, 2)}
    assert attended(attention=[3]) == {"middleblocks.0"} | last


# --- maps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TEACHER, STUDENT, "unet-8-111"])
def test_map_sizes_follow_the_plan(name: str) -> None:
    model, sizes = create_model(name, ch=8), {}
    for key in (*ARCHITECTURES["unet"].paths, "middleblocks.1", "upblocks.3", "upblocks.7", "upblocks.11"):
        hook = lambda _m, _x, out, key=key: sizes.update({key: out.shape[2]})  # noqa: E731
        model.get_submodule(key).register_forward_hook(hook)
    x, t = batch(32)
    assert model(x, t).shape == x.shape
    going_down = [32 // total for total in accumulate(model.plan.places, mul)]
    assert list(sizes.values()) == [*going_down, going_down[-1], *reversed(going_down[:-1])]


def test_taps_are_the_papers() -> None:
    student, teacher = create_model(STUDENT, ch=8), create_model(TEACHER, ch=8)
    taps = match_taps(student, teacher, batch(32))
    assert [(t.layer, t.side, t.teacher_layer, t.teacher_side) for t in taps] == [
        ("head", "output", "downblocks.2", "output"),
        ("downblocks.2", "input", "downblocks.5", "input"),
        ("downblocks.2", "output", "downblocks.5", "output"),
        ("downblocks.5", "input", "downblocks.8", "input"),
        ("downblocks.5", "output", "downblocks.8", "output"),
        ("upblocks.7", "input", "upblocks.3", "input"),
        ("upblocks.7", "output", "upblocks.3", "output"),
        ("upblocks.11", "input", "upblocks.7", "input"),
        ("upblocks.11", "output", "upblocks.7", "output"),
        ("tail", "input", "upblocks.11", "input"),
    ]


@pytest.mark.parametrize("name", [TEACHER, STUDENT])
def test_runs_without_data(name: str) -> None:
    with FakeTensorMode():
        x, t = torch.empty(2, 3, 64, 32), torch.empty(2, dtype=torch.int64)
        assert create_model(name)(x, t).shape == (2, 3, 64, 32)
    x, t = torch.empty(2, 3, 32, 32, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    assert on_meta(name)(x, t).device.type == "meta"


def test_weights_load_strictly() -> None:
    model, other = randomised(STUDENT, ch=8), create_model(STUDENT, ch=8).double()
    load_checkpoint(other, {f"net.{key}": tensor for key, tensor in model.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"upblocks\.3\.main\.weight \(16×16×1×1, here 16×16×2×2\)"):
        load_checkpoint(create_model(TEACHER, ch=8), model.state_dict())


def test_every_weight_but_the_table_learns() -> None:
    model = randomised(STUDENT, ch=8).train()
    x, t = batch(16)
    model(x.double(), t).square().mean().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys moves all scores of a query alike, which softmax does not see.
    assert [key for key in idle if not key.endswith("proj_k.bias")] == ["time_embedding.timembedding.0.weight"]


def test_the_time_step_reaches_narrow_networks() -> None:
    """A normalisation channel by channel would take the time step's shift away again."""
    torch.manual_seed(0)
    model = create_model("unet-1-2", ch=8, mult=(1, 1), attention=(), dropout=0.0)
    for block in (m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)):
        nn.init.normal_(block.weight, std=0.1)
    with torch.no_grad():
        near, far = model(torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1), torch.tensor([0, 900]))
    assert (near - far).abs().max() > 0.05 * near.std()


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("unet", {"num_classes": 0}, ["num_classes=0 is not a whole number of 1 or more"]),
        ("unet", {"width": 1.0}, ["unet has no option width", "strides, ch, mult, attention"]),
        ("unet", {"chs": 64}, ["unet has no option chs"]),
        ("unet", {"in_channels": 0}, ["in_channels=0 is not a whole number"]),
        ("unet", {"ch": 33}, ["ch=33 is odd", "34"]),
        ("unet", {"ch": 0}, ["ch=0 is not a whole number of 1 or more"]),
        ("unet", {"T": 1.5}, ["T=1.5 is not a whole number"]),
        ("unet", {"res_blocks": True}, ["res_blocks=True"]),
        ("unet", {"mult": 2}, ["mult=2 is not a sequence"]),
        ("unet", {"mult": (1, 0)}, ["mult[1]=0 is not a whole number of 1 or more"]),
        ("unet", {"mult": (1,)}, ["mult=(1,) has 1"]),
        ("unet", {"attention": (4,)}, ["attention=(4,) names a level beyond 3"]),
        ("unet", {"attention": (-1,)}, ["attention[0]=-1 is not a whole number of 0 or more"]),
        ("unet", {"dropout": 1.0}, ["dropout=1.0 is not a probability"]),
        ("unet", {"strides": ()}, ["Plan 1 has 1 place where", "mult=(1, 2, 2, 2) has 4"]),
        ("unet", {"strides": (2, 2, 1)}, ["Plan 2-21 has 3 places", "mult=(1, 2, 2, 2) has 4", "1-222"]),
        ("unet", {"strides": (2, 2, 2, 3)}, ["stride 3 at downblocks.8, which allows 1, 2 or 4"]),
        (TEACHER, {"strides": (2, 2, 2, 1)}, ["unet-1-222 has its plan in its name"]),
        ("unet-16-111", {}, ["stride 16 at head, which allows 1, 2, 4 or 8"]),
        ("unet-1-22", {}, ["Plan 1-22 has 3 places", "1-222"]),
        ("u-net", {}, ["Unknown architecture 'u'", "did you mean 'unet'"]),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\.|\?") as caught:
        create_model(name, **options)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize(
    ("x", "t", "parts"),
    [
        ((2, 3, 30, 32), torch.zeros(2, dtype=torch.int64), ["multiples of 8", "2×3×30×32", "32×32"]),
        ((2, 3, 4, 90), torch.zeros(2, dtype=torch.int64), ["multiples of 8", "8×88"]),
        ((2, 1, 32, 32), torch.zeros(2, dtype=torch.int64), ["B×3×H×W, not 2×1×32×32"]),
        ((3, 32, 32), torch.zeros(3, dtype=torch.int64), ["B×3×H×W, not 3×32×32"]),
        ((2, 3, 32, 32), torch.zeros(2), ["int64", "not float32 of shape (2,)"]),
        ((2, 3, 32, 32), torch.tensor(5), ["shape (2,), not int64 of shape ()"]),
        ((2, 3, 32, 32), torch.zeros(1, dtype=torch.int64), ["shape (2,), not int64 of shape (1,)"]),
    ],
)
def test_bad_inputs(x: tuple[int, ...], t: Tensor, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="unet-2-221 takes") as caught:
        create_model(STUDENT, ch=8)(torch.zeros(x), t)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_residual_block_may_carry_red_blocks() -> None:
    model, x, t = (
        create_model("unet", ch=8, mult=(1, 2)).eval(),
        torch.rand(1, 3, 8, 8),
        torch.zeros(1, dtype=torch.long),
    )
    insert_blocks(model, [("downblocks.1", "output", RedBlock(8)), ("upblocks.0", "output", RedBlock(16))])
    assert model.eval()(x, t).shape == x.shape
