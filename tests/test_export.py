"""Files for edge runtimes: the same answers there, no more memory than is alive, refusals that say what to do."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import redistill_lib as rd
from redistill_lib.cli import main
from redistill_lib.diffusion.noise import DiffusionProcess
from redistill_lib.export import FORMATS, RuntimePeak, export_model, load_exported, measure_runtime
from redistill_lib.export.executorch import _alive, _covered, _plan
from redistill_lib.export.heap import heap_peak
from redistill_lib.export.inputs import calls_on
from redistill_lib.export.red import RedBlockInParts, blocks_in_parts
from redistill_lib.red import InPlaceRedBlock, RedBlock, make_in_place
from redistill_lib.train import Recipe, RunOptions

# Some of what the exporters' own imports warn of.
pytestmark = pytest.mark.filterwarnings("ignore")
BOTH = pytest.mark.parametrize("suffix", [".onnx", ".pte"])


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def varied(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that change what they are given."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5), nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def images(count: int = 4, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def small() -> nn.Module:
    body = (conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), RedBlock(8), conv(8, 8, 1), nn.SiLU())
    return varied(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))


# -------------------------------------------------------------------------------------------------- the same answers


@BOTH
def test_a_file_computes_what_the_network_does(suffix: str, tmp_path: Path) -> None:
    model, x = small(), images()
    made = export_model(model, tmp_path / f"net{suffix}", x[:1], images=x)
    assert made.difference < 1e-5 and made.images == 4 and made.dtype == "fp32"
    assert made.file_bytes == made.file.stat().st_size < 40_000  # 1,500 weights, once
    exported = load_exported(made.file)
    assert exported(x).shape == (4, 5)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
    again = exported(x[:1])
    exported(x[1:2])
    torch.testing.assert_close(again, model(x[:1]), rtol=1e-4, atol=1e-4)  # later passes leave it alone
    assert [p.name for p in tmp_path.iterdir()] == [made.file.name]


@BOTH
def test_batches_time_steps_and_several_inputs(suffix: str, tmp_path: Path) -> None:
    model = varied(rd.create_model("unet-2-21", in_channels=1, ch=16, res_blocks=1, mult=(1, 2, 4)))
    calls = calls_on(torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8), DiffusionProcess())
    made = export_model(model, tmp_path / f"unet{suffix}", calls[0], images=calls)
    assert made.difference < 1e-5 and made.images == 3
    noisy, t = (torch.cat(each) for each in zip(*calls, strict=True))
    torch.testing.assert_close(load_exported(made.file)(noisy, t), model(noisy, t), rtol=1e-3, atol=1e-4)
    pairs = export_model(small(), tmp_path / f"two{suffix}", images(2), images=images(5))  # whole batches of 2
    assert pairs.images == 4 and load_exported(pairs.file)(images(4)).shape == (4, 5)


@BOTH
def test_int8_is_calibrated_and_near(suffix: str, tmp_path: Path) -> None:
    model, x = small(), images(16)
    plain = export_model(model, tmp_path / f"net{suffix}", x[:1], images=x)
    made = export_model(model, tmp_path / f"small{suffix}", x[:1], images=x, calibration=x, int8=True)
    assert made.dtype == "int8" and plain.difference < 1e-5 < made.difference < 0.2
    with pytest.raises(ValueError, match="int8 needs calibration=, images that the network was trained on"):
        export_model(model, tmp_path / f"net{suffix}", x[:1], int8=True)
    with pytest.raises(ValueError, match="calibration= is for int8=True alone"):
        export_model(model, tmp_path / f"net{suffix}", x[:1], calibration=x)


def test_an_exported_network_is_evaluated_as_any(tmp_path: Path) -> None:
    data = rd.load_data("digits", limit=20)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).eval()
    made = export_model(model, tmp_path / "net.onnx", torch.zeros(1, 1, 32, 32))
    exported = load_exported(made.file)
    there, here = rd.evaluate(exported, data.test), rd.evaluate(model, data.test)
    assert there["accuracy"] == here["accuracy"] and there["loss"] == pytest.approx(here["loss"], rel=1e-5)
    with pytest.raises(RuntimeError, match="for inference only"):
        exported.train()
    with pytest.raises(ValueError, match=r"was made for 1×1×32×32 and cannot take 1×3×32×32"):
        exported(torch.zeros(1, 3, 32, 32))


# ------------------------------------------------------------------------------------------------------------ memory


class Residual(nn.Module):
    """One map of 8 channels and a picture of 3, or two maps, are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.body = conv(3, 8), nn.BatchNorm2d(8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return F.relu(x + torch.sigmoid(self.body(x)))


def planned(model: nn.Module, tmp_path: Path, size: int = 16) -> tuple[int, int]:
    """What ExecuTorch has alive at once, and its arena."""
    plan = _plan(export_model(model, tmp_path / "net.pte", images(1, 3, size)).file)
    return _alive(plan), sum(plan.non_const_buffer_sizes[1:])


def test_executorch_holds_what_is_alive(tmp_path: Path) -> None:
    assert planned(varied(Residual()), tmp_path) == (4 * 256 * 16, 4 * 256 * 16)


def test_max_pooling_makes_its_index_map_in_parts(tmp_path: Path) -> None:
    # 32 channels of 16², of which one at a time is copied, and pooled to 8² values and indices of 8 bytes; when the
    # last one is pooled their map has gone.
    net = nn.Sequential(conv(3, 32), nn.MaxPool2d(2))
    assert planned(net, tmp_path)[0] == 4 * (32 * 256 + 31 * 64 + 256) + 8 * 64


@pytest.mark.parametrize("name", ["resnet18-8-11221", "mobilenetv2-8-1221111", "resnet18"])
def test_what_a_convention_says_is_what_executorch_plans(name: str, tmp_path: Path) -> None:
    model, x = rd.create_model(name).eval(), images(1, 3, 64)
    profile = rd.profile_memory(model, x, convention="executorch")
    assert planned(model, tmp_path, 64) == (profile.peak_bytes, profile.arena_bytes)
    assert profile.arena_bytes <= 1.02 * profile.peak_bytes
    fused = rd.profile_memory(model, x).peak_bytes
    assert fused == profile.peak_bytes if name != "resnet18" else fused < profile.peak_bytes < 1.04 * fused


class Crossing(nn.Module):
    """Reads what it splits by columns, and one part by rows."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return torch.cat([left.transpose(2, 3), right], 1).flatten(2).relu()


class Attention(nn.Module):
    """One block of two heads over tokens B×N×8, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        seen: Tensor = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(seen.transpose(1, 2).flatten(2))


def copying() -> dict[str, tuple[nn.Module, Tensor]]:
    strided = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 32, stride=2), nn.ReLU(), conv(32, 64, stride=2)).eval()
    return {
        "crossing": (Crossing(), images(1, 4)),
        "attention": (nn.Sequential(nn.Linear(8, 8), Attention()).eval(), torch.randn(1, 60, 8)),
        "rows": (rd.stream_rows(strided, example=images(1), until="4"), images(1)),
    }


@pytest.mark.parametrize("kind", ["crossing", "attention", "rows"])
def test_what_is_split_or_permuted_is_a_copy_in_a_file(kind: str, tmp_path: Path) -> None:
    model, x = copying()[kind]
    profile = rd.profile_memory(model, x, convention="executorch")
    assert _alive(_plan(export_model(model, tmp_path / "net.pte", x).file)) == profile.peak_bytes
    if kind == "crossing":  # the image and its halves, then these, one of them by columns, and what is made of them
        assert profile.peak_bytes == 4 * 256 * (4 + 4) and not profile.unfused
    if kind == "attention":  # the input, values, queries, keys by columns, and one map of weights for each head
        assert profile.peak_bytes == 4 * (4 * 60 * 8 + 2 * 60 * 60)


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        seen = F.scaled_dot_product_attention(x, x, x, torch.ones(6, 6, dtype=torch.bool).tril(1))
        return F.scaled_dot_product_attention(seen, x, x, is_causal=True)


def test_masks_that_say_what_counts(tmp_path: Path) -> None:
    assert export_model(Masked(), tmp_path / "net.pte", torch.randn(1, 2, 6, 4)).difference < 1e-5


class WritingInOrder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).transpose(2, 3).contiguous().relu_() * x


def test_what_is_written_to_behind_a_permutation_is_followed() -> None:
    profile = rd.profile_memory(WritingInOrder(), images(1, 4), convention="executorch")
    assert profile.peak_bytes == 4 * 256 * 4 * 3  # the image, its transposed copy, and that in order


def test_attention_in_onnx_runtime_is_near_what_is_predicted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = rd.create_model("vit_pico-4", image_size=16).eval(), images(1)
    needs = measure_runtime(export_model(model, tmp_path / "net.onnx", x).file).peak_bytes
    assert 0.9 < needs / rd.profile_memory(model, x, convention="onnxruntime").peak_bytes < 1.1


def test_bytes_that_several_tensors_share_are_counted_once() -> None:
    assert _covered({(0, 4), (2, 6), (2, 3), (10, 12)}) == 8


def test_measuring_a_file(tmp_path: Path) -> None:
    x = images(1, 3, 32)
    found = {
        s: measure_runtime(export_model(varied(Residual()), tmp_path / f"net{s}", x).file) for s in (".pte", ".onnx")
    }
    live = 4 * 1024 * 16
    assert found[".pte"].peak_bytes == found[".pte"].arena_bytes == live
    assert found[".onnx"].arena_bytes is None and found[".onnx"].peak_bytes >= live + x.nbytes  # the caller's picture
    assert all(each.seconds > 0 and each.needed_bytes >= live for each in found.values())
    assert "peak 64.0 KiB in an arena of 64.0 KiB" in str(found[".pte"])


def test_the_heap_is_counted_by_the_byte() -> None:
    assert 0 <= heap_peak(lambda: bytearray(3_000_000)) - 3_000_000 < 10_000


def test_what_to_provide() -> None:
    peak = RuntimePeak("a.pte", "ExecuTorch", 10, 12, 3, 100, 0.1)
    assert peak.needed_bytes == 15 and RuntimePeak("a.onnx", "ONNX Runtime", 10, None, 0, 100, 0.1).needed_bytes == 10


# --------------------------------------------------------------------------------------------------------- RED blocks


@pytest.mark.parametrize("form", [{}, {"gate": False}, {"shortcut": False}, {"kernel_size": 5}])
def test_a_block_in_parts_is_the_block(form: dict[str, Any]) -> None:
    net, x = varied(nn.Sequential(conv(3, 6), RedBlock(6, **form))), images()
    parts = blocks_in_parts(net, 4)  # of 2, 2 and 2
    assert isinstance(parts[1], RedBlockInParts) and len(parts[1].encoders) == 3  # type: ignore[index]
    torch.testing.assert_close(parts(x), net(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(blocks_in_parts(make_in_place(net, x)[0])(x), net(x), rtol=1e-4, atol=1e-5)
    flops = {rd.profile_memory(each, x).flops for each in (net, parts)}
    assert len(flops) == 1


def test_a_block_in_parts_holds_two_maps() -> None:
    """And of one part what it adds: a quarter of the gate's map and of the copied input."""
    net = varied(nn.Sequential(conv(3, 8), RedBlock(8), conv(8, 1)))
    x, one = images(1), 4 * 256
    plain, parts = (rd.profile_memory(each, x, convention="executorch") for each in (net, blocks_in_parts(net, 4)))
    assert plain.peak_bytes == 24 * one and 16 * one < parts.peak_bytes <= 20 * one


def test_exporting_takes_the_form_that_needs_least(tmp_path: Path) -> None:
    net, x = varied(nn.Sequential(conv(3, 8), RedBlock(8), conv(8, 1))), images(1)
    in_place, _ = make_in_place(net, x)
    assert isinstance(in_place[1], InPlaceRedBlock)
    found = {planned(each, tmp_path) for each in (net, in_place)}
    assert len(found) == 1 and found.pop()[0] < 20 * 4 * 256
    deep = nn.Sequential(conv(3, 8), RedBlock(8, encoder="depthwise"), conv(8, 1))
    stays, _ = make_in_place(varied(deep), x)
    with pytest.raises(ValueError, match="the RED block 1 works in place, which no runtime has an operator for"):
        export_model(stays, tmp_path / "net.pte", x)


# ----------------------------------------------------------------------------------------------------------- refusals


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ExecuTorch has no kernel for aten::linalg_matrix_exp"):
        export_model(Unknown().eval(), tmp_path / "net.pte", images(1))
    with pytest.raises(ValueError, match=r"cannot be written as ONNX: .*linalg_matrix_exp"):
        export_model(Unknown().eval(), tmp_path / "net.onnx", images(1))
    assert not list(tmp_path.iterdir())


def test_a_wrong_answer_is_refused_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small(), images(1)
    made = export_model(model, tmp_path / "net.onnx", x)
    before = made.file.read_bytes()
    module = importlib.import_module("redistill_lib.export.onnx")
    load = module.load
    monkeypatch.setattr(module, "load", lambda file: (load(file)[0], lambda given: (model(*given) * 1.01,)))
    with pytest.raises(ValueError, match="ONNX Runtime computes something else than PyTorch"):
        export_model(model, made.file, x)
    assert made.file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("wrong", [lambda out: out * float("nan"), lambda out: out[:, :1]])
@pytest.mark.parametrize("int8", [False, True])
def test_what_is_no_number_or_of_another_shape_is_refused(
    wrong: Any, int8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = small(), images(2)
    module = importlib.import_module("redistill_lib.export.onnx")
    load = module.load
    monkeypatch.setattr(module, "load", lambda file: (load(file)[0], lambda given: (wrong(model(*given)),)))
    with pytest.raises(ValueError, match="ONNX Runtime computes something else than PyTorch: outputs differ by nan"):
        export_model(model, tmp_path / "net.onnx", x[:1], images=x, calibration=x if int8 else None, int8=int8)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_what_contradicts_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "fit"):
        words = [command, "resnet18", "--to", "onnx", "--output", str(tmp_path / "net.pte")]
        assert main([*words, *(["--budget", "9KB"] if command == "fit" else [])]) == 2
        assert "is for ExecuTorch, and --to says onnx: leave one of them out" in capsys.readouterr().err
    assert main(["export", "resnet18", "--images", "0"]) == 2
    assert "--images=0 is not a whole number of 1 or more" in capsys.readouterr().err


def test_bad_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(1)
    with pytest.raises(ValueError, match=r"it has to end in \.onnx \(ONNX Runtime\), \.pte .*did you mean '\.onnx'"):
        export_model(small(), tmp_path / "net.onxx", x)
    with pytest.raises(FileNotFoundError, match="export_model"):
        load_exported(tmp_path / "net.pte")
    for suffix in (".onnx", ".pte"):
        (tmp_path / f"bad{suffix}").write_bytes(b"no such thing")
        with pytest.raises(ValueError, match=rf"bad\{suffix}"):
            load_exported(tmp_path / f"bad{suffix}")
    with pytest.raises(ValueError, match=r"images are torch.uint8 .*: give what it takes, by rd.to_float"):
        export_model(small(), tmp_path / "net.onnx", x, images=torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    find = importlib.util.find_spec
    monkeypatch.setattr("redistill_lib.export.formats.find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(
        ImportError, match=r'\.onnx files need onnx, not installed: pip install "redistill-lab\[onnx\]"'
    ):
        export_model(small(), tmp_path / "net.onnx", x)
    assert not FORMATS["onnx"].installed


def test_the_network_itself_stays_as_it_is(tmp_path: Path) -> None:
    model = small().train()
    before = copy.deepcopy(model.state_dict())
    export_model(model, tmp_path / "net.pte", images(1))
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ command


@pytest.mark.parametrize("words", [["--to", "executorch"], ["--to", "onnx", "--int8"]])
def test_the_command(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = rd.load_data("digits", limit=40)
    run = rd.train_classifier(
        "resnet18-2-21122", data, Recipe(epochs=1), width=0.125, options=RunOptions(runs_dir=tmp_path)
    )
    file = tmp_path / f"out{FORMATS[words[1]].suffix}"
    assert main(["export", str(run.path), *words, "--images", "10", "--output", str(file)]) == 0
    told = capsys.readouterr().out
    assert file.exists() and "accuracy on 10 test images: " in told and "peak " in told
    assert "predicted from the network (convention" in told
