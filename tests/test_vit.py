"""Vision transformers: the published sizes and names, a plain derivation, patches, and all that works on them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.models import VisionTransformer
from redistill_lib.models.vit import LAYOUTS
from redistill_lib.network import output_of


def on_meta(*args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return rd.create_model(*args, **kwargs)


def noisy(name: str, **options: Any) -> VisionTransformer:
    """A small network in double precision whose every tensor is random, norms and tokens included."""
    torch.manual_seed(0)
    model = rd.create_model(name, **options).double()
    for tensor in model.state_dict().values():
        tensor.normal_(0, 0.3)
    return model


@pytest.mark.parametrize(
    ("name", "count", "tensors"),
    [  # what timm 1.0 counts of deit_{size}_patch16_224 and deit_{size}_distilled_patch16_224, 1000 classes
        ("vit_tiny-16", 5_717_416, 152),
        ("deit_tiny-16", 5_910_800, 155),
        ("vit_small-16", 22_050_664, 152),
        ("deit_small-16", 22_436_432, 155),
        ("vit_base-16", 86_567_656, 152),
        ("deit_base-16", 87_338_192, 155),
    ],
)
def test_published_sizes(name: str, count: int, tensors: int) -> None:
    model = on_meta(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == tensors


def test_sizes_for_devices() -> None:
    counts = {name: sum(p.numel() for p in on_meta(f"{name}-8", image_size=40).parameters()) for name in LAYOUTS}
    assert 0.3e6 < counts["vit_pico"] < 0.35e6 and 0.95e6 < counts["vit_nano"] < 1.1e6
    # one token, its position, and one more head
    assert counts["deit_pico"] - counts["vit_pico"] == 64 + 64 + 64 * 10 + 10


def test_official_names_and_shapes() -> None:
    """Those of the DeiT checkpoints, as its repository and timm list them."""
    shapes = {name: tuple(x.shape) for name, x in on_meta("deit_tiny-16", num_classes=1000).state_dict().items()}
    block = {
        "norm1.weight": (192,), "norm1.bias": (192,), "attn.qkv.weight": (576, 192), "attn.qkv.bias": (576,),
        "attn.proj.weight": (192, 192), "attn.proj.bias": (192,), "norm2.weight": (192,), "norm2.bias": (192,),
        "mlp.fc1.weight": (768, 192), "mlp.fc1.bias": (768,), "mlp.fc2.weight": (192, 768), "mlp.fc2.bias": (192,),
    }  # fmt: skip
    assert shapes == {
        "cls_token": (1, 1, 192), "dist_token": (1, 1, 192), "pos_embed": (1, 198, 192),
        "patch_embed.proj.weight": (192, 3, 16, 16), "patch_embed.proj.bias": (192,),
        **{f"blocks.{k}.{name}": shape for k in range(12) for name, shape in block.items()},
        "norm.weight": (192,), "norm.bias": (192,), "head.weight": (1000, 192), "head.bias": (1000,),
        "head_dist.weight": (1000, 192), "head_dist.bias": (1000,),
    }  # fmt: skip
    assert {"dist_token", "head_dist.weight"}.isdisjoint(on_meta("vit_tiny-16").state_dict())


def plain(state: dict[str, Tensor], image: Tensor, patch: int, heads: int) -> tuple[Tensor, Tensor]:
    """The class token and the distillation token of one image behind the last norm, patch by patch, head by head."""
    side = image.shape[-1] // patch
    weight, bias = state["patch_embed.proj.weight"].flatten(1), state["patch_embed.proj.bias"]
    corners = [(patch * y, patch * x) for y in range(side) for x in range(side)]
    cut = [image[:, top : top + patch, left : left + patch].flatten() for top, left in corners]
    tokens = torch.stack([weight @ piece + bias for piece in cut])
    tokens = torch.cat([state["cls_token"][0], state["dist_token"][0], tokens]) + state["pos_embed"][0]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    block = 0
    while (name := f"blocks.{block}") + ".attn.qkv.weight" in state:
        q, k, v = linear(norm(tokens, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, 1)
        seen = []
        for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            scores = (a @ b.T / math.sqrt(a.shape[1])).exp()
            seen.append(scores / scores.sum(1, keepdim=True) @ c)
        tokens = tokens + linear(torch.cat(seen, 1), f"{name}.attn.proj")
        hidden = linear(norm(tokens, f"{name}.norm2"), f"{name}.mlp.fc1")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        tokens, block = tokens + linear(hidden, f"{name}.mlp.fc2"), block + 1
    tokens = norm(tokens, "norm")
    return tokens[0], tokens[1]


@torch.no_grad()
def test_a_plain_derivation() -> None:
    model = noisy("deit_pico-4", in_channels=2, num_classes=3, image_size=12)
    images, state = torch.randn(2, 2, 12, 12).double(), dict(model.state_dict())
    both, mean = model.train()(images), model.eval()(images)
    for k, image in enumerate(images):
        class_token, dist_token = plain(state, image, 4, 2)
        logits = state["head.weight"] @ class_token + state["head.bias"]
        distillation = state["head_dist.weight"] @ dist_token + state["head_dist.bias"]
        torch.testing.assert_close(both["logits"][k], logits)
        torch.testing.assert_close(both["distillation"][k], distillation)
        torch.testing.assert_close(mean[k], (logits + distillation) / 2)
    assert output_of(both) is both["logits"]  # what the task loss is of


def test_initial_values() -> None:
    model = rd.create_model("deit_tiny-16")
    for layer, inputs, outputs in ((model.blocks[3].mlp.fc1, 192, 768), (model.blocks[0].attn.qkv, 192, 576)):
        assert layer.weight.std().item() == pytest.approx((2 / (inputs + outputs)) ** 0.5, rel=0.02)  # Xavier's
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02) and model.dist_token.std() > 0.015
    assert not model.blocks[0].attn.qkv.bias.any() and not model.head.bias.any()


# ------------------------------------------------------------------------------------------------- patches and sizes


@torch.no_grad()
def test_images_of_another_size_take_resized_positions() -> None:
    model = noisy("vit_pico-4", in_channels=1, image_size=32).eval()
    assert model.positions(8, 8) is model.pos_embed
    table = model.pos_embed[:, 1:].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    expected = F.interpolate(table, (4, 6), mode="bicubic", antialias=True)
    found = model.positions(4, 6)
    torch.testing.assert_close(found[:, 1:].unflatten(1, (4, 6)).permute(0, 3, 1, 2), expected)
    assert torch.equal(found[:, :1], model.pos_embed[:, :1])
    assert model(torch.zeros(2, 1, 16, 24).double()).shape == (2, 10)


def test_larger_patches_take_no_other_downsampler() -> None:
    vit = rd.create_model("vit_pico-4", image_size=16)
    with pytest.raises(ValueError, match="downsampler='max' cannot: leave it out"):
        rd.derive_student(vit, 2, example=torch.zeros(1, 3, 16, 16), downsampler="max")


def test_what_cannot_be_cut_into_patches_is_told() -> None:
    with pytest.raises(ValueError, match=r"images of 40×36 cannot be cut into patches of 8; choose a patch that"):
        rd.create_model("vit_pico-8", in_channels=1)(torch.zeros(1, 1, 40, 36))
    with pytest.raises(ValueError, match=r"images of 40×40 cannot be cut into patches of 16"):
        rd.create_model("vit_pico-16", image_size=40)
    with pytest.raises(ValueError, match=r"stride 99 at patch_embed.proj, which allows 1 to 64"):
        rd.create_model("vit_pico-99")
    with pytest.raises(ValueError, match=r"has 3 places where vit_pico has 1 \(patch_embed.proj\)"):
        rd.create_model("vit_pico-4-11")
    with pytest.raises(ValueError, match="resnet18 has no option image_size"):
        rd.create_model("resnet18", image_size=32)


def test_width_multiplies_heads() -> None:
    model = rd.create_model("vit_tiny-16", width=2 / 3)
    assert model.head.in_features == 128 and model.blocks[0].attn.heads == 2


# ------------------------------------------------------------------------------------ what the library does with them

IMAGES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


def test_the_student_has_a_patch_twice_as_large() -> None:
    assert rd.student_name("vit_tiny-8", 2) == "vit_tiny-16"
    teacher = rd.create_model("deit_pico-8", in_channels=1, image_size=64)
    student, changes = rd.derive_student(teacher, 2, example=IMAGES)
    assert [change.kind for change in changes] == ["patch embed", "positions"]
    assert (student.name, str(student.plan)) == ("deit_pico-16", "16")
    fresh = rd.create_model("deit_pico-16", in_channels=1, image_size=64)
    assert [x.shape for x in student.state_dict().values()] == [x.shape for x in fresh.state_dict().values()]
    assert student.positions(4, 4) is student.pos_embed
    assert output_of(student(IMAGES)).shape == (2, 10)


def test_a_cnn_is_matched_at_the_patches_and_teaches_them() -> None:
    student = rd.create_model("vit_pico-8", in_channels=1, image_size=64)
    teacher = rd.create_model("mobilenetv2", in_channels=1, width=0.125)
    [tap] = rd.match_taps(student, teacher, IMAGES)
    assert (tap.layer, tap.side, tap.channels) == ("patch_embed", "output", 64)
    distillation = rd.Distillation(student, teacher, [tap], "red+kd", example=IMAGES)
    _, losses = distillation(IMAGES, targets=torch.tensor([0, 1]))
    losses["total"].backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    graduate = distillation.graduate().eval()
    with torch.no_grad():
        assert torch.equal(graduate(IMAGES), student.eval()(IMAGES))


def test_the_peak_follows_the_patch() -> None:
    """In the first MLP are alive what the block keeps for its shortcut, the normed tokens, and four times as many."""
    for patch, tokens in ((8, 65), (16, 17)):
        model = on_meta(f"vit_pico-{patch}", in_channels=1, image_size=64)
        profile = rd.profile_memory(model, IMAGES[:1].to("meta"))
        assert profile.peak_bytes == 4 * tokens * 64 * (1 + 1 + 4)
        assert profile.peak_op.name.endswith("mlp.fc1")


@pytest.mark.parametrize("name", ["vit_pico-8", "deit_pico-16"])
def test_exports(name: str) -> None:
    model = rd.create_model(name, in_channels=1, image_size=64).eval()
    exported = torch.export.export(model, (IMAGES,)).module()
    torch.testing.assert_close(exported(IMAGES), model(IMAGES))
