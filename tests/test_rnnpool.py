"""RNNPool: what its cells compute, patch by patch; by rows as all at once; students that have one."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path

import lookalikes as look
import pytest
import torch
from torch import Tensor, nn

from redistill_lib.data import load_data
from redistill_lib.distill import Distillation, match_taps
from redistill_lib.export import export_model
from redistill_lib.memory import measure_memory, profile_memory
from redistill_lib.models import create_model
from redistill_lib.models.saved import load_model
from redistill_lib.network import find_resolutions
from redistill_lib.student import derive_student
from redistill_lib.student.rnnpool import FastGRNN, RNNPool
from redistill_lib.train import Recipe, RunOptions, train_classifier

IMAGE = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def derived(image: Tensor = IMAGE) -> tuple[nn.Module, nn.Module]:
    """A teacher, and its student with an RNNPool."""
    torch.manual_seed(0)
    teacher = create_model("resnet18-1-21222", width=0.125, in_channels=1).eval()
    return teacher, derive_student(teacher, 4, example=image, downsampler="rnnpool")[0].eval()


# -------------------------------------------------------------------------------------------------------- the module


def test_a_cell_mixes_its_state_and_an_update_by_a_gate() -> None:
    """By hand: a = 0.5·2 + 1·0.5 − 0.5 = 1, z = σ(1 + 2), u = tanh(1)."""
    cell = FastGRNN(1, 1)
    for part, values in ((cell.weight, [[0.5, 1.0]]), (cell.bias, [[-0.5]]), (cell.gate, [[2.0]])):
        part.data = torch.tensor(values)
    z, u = 1 / (1 + math.exp(-3)), math.tanh(1)
    made = cell(torch.tensor([[2.0]]), torch.tensor([[0.5]]))
    assert made.item() == pytest.approx((1 - z) * u + z * 0.5)


def last_state(cell: FastGRNN, sequence: list[Tensor]) -> Tensor:
    state = torch.zeros(cell.hidden, 1)
    for pixel in sequence:
        state = cell(pixel[:, None], state)
    return state[:, 0]


@pytest.mark.parametrize(("patch", "rows"), [(4, 1), (6, 2), (7, 1), (8, 3)])
def test_each_pixel_sums_up_its_patch(patch: int, rows: int) -> None:
    """Beside the definition, one patch after another; sides that 4 does not divide are rounded up."""
    torch.manual_seed(1)
    pool = RNNPool(2, 4, hidden=3, first=5, patch=patch, rows=rows)
    x = torch.randn(2, 2, 9, 14)
    before = (patch - 4) // 2
    framed = torch.zeros(2, 2, 40, 40)
    framed[:, :, before : before + 9, before : before + 14] = x
    wanted = torch.empty(2, 12, 3, 4)
    for n, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)).tolist():
        of = framed[n, :, 4 * i : 4 * i + patch, 4 * j : 4 * j + patch]
        lines = [
            [last_state(pool.along, list(line.unbind(1))) for line in side.unbind(1)]
            for side in (of, of.transpose(1, 2))
        ]
        ways = [lines[0], lines[1], lines[0][::-1], lines[1][::-1]]
        wanted[n, :, i, j] = torch.cat([last_state(pool.across, way) for way in ways])
    with torch.no_grad():
        assert torch.allclose(pool.train()(x), wanted, atol=1e-6)
        assert torch.allclose(pool.eval()(x), wanted, atol=1e-6)


def test_by_rows_it_holds_little_beside_its_two_maps() -> None:
    """Less than another image, of which all patches at once would take four."""
    x = torch.zeros(1, 3, 64, 64)
    image, maps = 4 * 3 * 64 * 64, 4 * (3 * 64 * 64 + 16 * 16 * 16)
    one, four = (profile_memory(RNNPool(3, 4, rows=rows), x, convention="eager").peak_bytes for rows in (1, 4))
    assert maps < one < maps + image and one < four
    assert measure_memory(RNNPool(3, 4), x).peak_bytes == one


def test_what_it_cannot_be_is_refused() -> None:
    for given in ({"factor": 0}, {"factor": 4, "patch": 3}, {"factor": 4, "hidden": 0}, {"factor": 4, "rows": 0}):
        with pytest.raises(ValueError, match="is not a whole number"):
            RNNPool(3, **given)


# ---------------------------------------------------------------------------------------------------------- students


def test_a_stem_reads_what_the_pool_makes() -> None:
    teacher = create_model("resnet18-1-21222", width=0.25)
    before = copy.deepcopy(teacher.state_dict())
    student, changes = derive_student(teacher, 4, example=torch.zeros(1, 3, 32, 32), downsampler="rnnpool")
    assert repr(changes[0]) == "conv1: inserted 1 → 4 (RNNPool 4, weights drawn anew)"
    assert student.name == "resnet18-4-11221-rnnpool"
    conv = student.conv1
    assert (conv.weight.shape, conv.in_channels, conv.stride) == ((16, 16, 7, 7), 16, (1, 1))
    kept = student.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in before.items() if name != "conv1.weight")
    new = {name for name in kept if name not in before}
    parts = [f"{cell}.{part}" for cell in ("along", "across") for part in ("weight", "bias", "gate")]
    assert new == {f"conv1.rnnpool.{part}" for part in parts}
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_its_resolutions_and_taps_are_those_of_other_stems() -> None:
    teacher, student = derived()
    plain, _ = derive_student(teacher, 4, example=IMAGE, downsampler="space_to_depth")
    assert [place.stride for place in find_resolutions(student, IMAGE).places] == [4, 2, 2]
    assert match_taps(student, teacher, IMAGE) == match_taps(plain, teacher, IMAGE)


def test_peaks_are_what_is_measured() -> None:
    _, student = derived()
    image = IMAGE[:1]
    eager, fused = (profile_memory(student, image, convention=kind) for kind in ("eager", "fused"))
    assert eager.peak_bytes == measure_memory(student, image).peak_bytes
    assert fused.peak_bytes <= eager.peak_bytes and not fused.uncounted


def test_every_weight_learns_from_a_teacher() -> None:
    teacher, student = derived()
    taps = match_taps(student, teacher, IMAGE)
    distillation = Distillation(student, teacher, taps, "red+kd", example=IMAGE)
    distillation.train()
    _, losses = distillation(IMAGE, targets=torch.tensor([1, 2]))
    losses["total"].backward()
    missing = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_copies_files_and_exports_answer_alike(tmp_path: Path) -> None:
    _, student = derived()
    image = IMAGE[:1]
    with torch.no_grad():
        wanted = student(image)
        for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
            assert torch.equal(twin(image), wanted)
        assert torch.allclose(torch.export.export(student, (image,)).module()(image), wanted, atol=1e-6)
    pytest.importorskip("onnxruntime")
    exported = export_model(student, tmp_path / "net.onnx", image, images=[(image,)])
    assert exported.file.exists()  # it refuses answers that differ


def test_a_run_gives_its_weights_back(tmp_path: Path) -> None:
    data = load_data("digits", limit=64)
    image = torch.zeros(1, data.in_channels, data.image_size, data.image_size)
    _, student = derived(image)
    options = RunOptions(runs_dir=tmp_path, progress=False, cpu=True)
    run = train_classifier(student, data, Recipe(epochs=1, batch_size=32), options=options)
    loaded = load_model(run, student)
    assert set(loaded.state_dict()) == set(student.state_dict())
    assert not torch.equal(loaded.conv1.rnnpool.along.weight, student.conv1.rnnpool.along.weight)


def test_elsewhere_it_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 4, 1))
    with pytest.raises(ValueError, match="1 gets stride 4 instead of 2 and does not read the image"):
        derive_student(net, plan="2-42", example=torch.zeros(1, 3, 64, 64), downsampler="rnnpool")
    with pytest.raises(ValueError, match="0 is a Conv2dSame, which convolves in its own way"):
        derive_student(look.tf_efficientnet(), 2, example=torch.zeros(1, 3, 64, 64), downsampler="rnnpool")


def test_of_no_images_there_is_nothing() -> None:
    assert RNNPool(3, 4).eval()(torch.zeros(0, 3, 16, 16)).shape == (0, 16, 4, 4)
