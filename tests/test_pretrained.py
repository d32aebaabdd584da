"""Students of diffusers networks in diffusers' own format, inside its pipelines and out of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from redistill_lib.diffusion import DiffusionProcess, load_pretrained, sample, save_pretrained
from redistill_lib.diffusion.pretrained import as_student
from redistill_lib.network import output_of
from redistill_lib.red import RedBlock, insert_blocks, inserted_blocks, make_in_place
from redistill_lib.student import derive_student

DDPMPipeline: Any = diffusers.DDPMPipeline
UNet2DModel: Any = diffusers.UNet2DModel
X, T = torch.randn(2, 1, 8, 8, generator=torch.manual_seed(2)), torch.tensor([3, 700])


@pytest.fixture
def teacher() -> Any:
    """Attention, and borders padded in the downsampler's own forward, as in google/ddpm-cifar10-32."""
    torch.manual_seed(0)
    return UNet2DModel(
        8, 1, 1, downsample_padding=0, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture
def student(teacher: Any) -> Any:
    """Other strides, and a RED block whose statistics are its own."""
    model, changes = derive_student(teacher, 2, example=(X, T))
    assert changes
    block = RedBlock(8)
    block(torch.randn(4, 8, 4, 4) * 3)
    return insert_blocks(model, [("conv_in", "output", block)]).eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return output_of(model(X, T))


def pipeline(model: nn.Module) -> Any:
    made = DDPMPipeline(model, DiffusionProcess().scheduler())
    made.set_progress_bar_config(disable=True)
    return made


def test_a_student_comes_back(student: Any, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    save_pretrained(student, folder)
    assert "red_blocks" not in student.config and type(student) is UNet2DModel
    with pytest.raises(ValueError, match="folder=7 is not text or a path"):
        load_pretrained(7)  # type: ignore[arg-type]
    again = load_pretrained(folder)
    assert torch.equal(outputs(again), outputs(student)) and len(inserted_blocks(again)) == 1
    save_pretrained(again, tmp_path / "two")
    assert torch.equal(outputs(load_pretrained(tmp_path / "two")), outputs(student))
    with pytest.raises(OSError, match="no file named"):  # never the teacher's layers with the student's weights
        UNet2DModel.from_pretrained(folder)


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"variant": "fp16", "max_shard_size": "20KB"}], ids=str)
def test_a_pipeline_keeps_its_student(student: Any, tmp_path: Path, options: dict[str, str]) -> None:
    """By the pipeline's own saving and loading, which know only what is in model_index.json."""
    pipeline(as_student(student)).save_pretrained(tmp_path, **options)
    variant = options.get("variant")
    again = DDPMPipeline.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(outputs(again.unet.eval()), outputs(student))
    assert torch.equal(outputs(load_pretrained(tmp_path, variant)), outputs(student))
    pipeline(again.unet).save_pretrained(tmp_path / "twice")
    assert torch.equal(outputs(load_pretrained(tmp_path / "twice")), outputs(student))


def test_a_pipeline_is_loaded_by_a_process_that_never_heard_of_students(student: Any, tmp_path: Path) -> None:
    pipeline(as_student(student)).save_pretrained(tmp_path)
    code = (
        "import sys; from diffusers import DDPMPipeline; assert 'redistill_lib' not in sys.modules; "
        f"print(type(DDPMPipeline.from_pretrained({str(tmp_path)!r}).unet).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "StudentUNet2DModel"


def test_images_of_a_pipeline(student: Any, tmp_path: Path) -> None:
    process = DiffusionProcess("cosine", "v_prediction")
    DDPMPipeline(as_student(student), process.scheduler("ddim")).save_pretrained(tmp_path)
    again = DDPMPipeline.from_pretrained(tmp_path)
    drawn = sample(again, 2, steps=3, progress=False)
    assert torch.equal(drawn, sample(student, 2, process=process, steps=3, progress=False))
    assert not torch.allclose(drawn, sample(student, 2, steps=3, progress=False), atol=0.01)
    with pytest.raises(TypeError, match="a dict draws no images; give a denoiser, a run or a pipeline"):
        sample({"unet": student})


def test_other_networks_stay_as_they_are(teacher: Any, tmp_path: Path) -> None:
    assert as_student(teacher) is teacher
    save_pretrained(teacher, tmp_path)
    for again in (load_pretrained(tmp_path), UNet2DModel.from_pretrained(tmp_path)):
        assert type(again) is UNet2DModel and torch.equal(outputs(again.eval()), outputs(teacher))


def test_files_of_other_names(teacher: Any, tmp_path: Path) -> None:
    teacher.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert torch.equal(outputs(load_pretrained(tmp_path / "shards")), outputs(teacher))
    teacher.save_pretrained(tmp_path / "half", variant="fp16")
    assert torch.equal(outputs(load_pretrained(tmp_path / "half", "fp16")), outputs(teacher))
    with pytest.raises(FileNotFoundError, match=r"but diffusion_pytorch_model\.fp16\.safetensors; give the variant"):
        load_pretrained(tmp_path / "half")
    teacher.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(FileNotFoundError, match=r"but diffusion_pytorch_model\.bin; pickled weights are not read"):
        load_pretrained(tmp_path / "pickled")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_pretrained(tmp_path)


def test_weights_that_are_cut_short(student: Any, teacher: Any, tmp_path: Path) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        save_pretrained(model, tmp_path / name)
        (file,) = (tmp_path / name).glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(ValueError, match=rf"{file.name} is cut short or damaged \(.*\); save or fetch it again"):
            load_pretrained(tmp_path / name)


def test_weights_of_another_network(student: Any, tmp_path: Path) -> None:
    save_pretrained(student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "red_blocks": []}))
    with pytest.raises(ValueError, match=r"are not those of its config\.json: conv_in\."):
        load_pretrained(tmp_path)


def test_what_cannot_be_saved(student: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not a network of diffusers"):
        save_pretrained(nn.Linear(1, 1), tmp_path)
    in_place, _ = make_in_place(student, X, T)
    with pytest.raises(ValueError, match="save the network first"):
        save_pretrained(in_place, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_students_of_any_precision(teacher: Any, dtype: torch.dtype) -> None:
    expected = derive_student(teacher, 2, example=(X, T))[1]
    student, changes = derive_student(teacher.to(dtype), 2, example=(X, T))
    assert changes == expected and student.conv_in.weight.dtype == dtype
