"""Teachers at work: how far they run, whose hooks fire, networks that catch exceptions, and the copy that runs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from redistill_lib.distill import Distillation, LiveTeacher, Tap, teachers
from redistill_lib.distill.inference import Edits, edited, find_edits
from redistill_lib.methods import MSE, Batch
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


# ------------------------------------------------------------------------------------------------ the copy that runs


class Residual(nn.Module):
    """Batch norms behind convolutions, one that reads a sum, and a ReLU that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, groups=4), nn.BatchNorm2d(8)
        self.late, self.relu, self.fc = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.late(x + self.bn2(self.conv2(x)))
        return self.fc(self.relu(x).mean((2, 3)))


def trained(network: nn.Module) -> nn.Module:
    """In eval mode, with statistics and scales that a new network has not."""
    torch.manual_seed(4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 2)
    return network.eval()


LAYERS = "conv1", "bn1", "conv2", "bn2", "late", "relu", "fc"
ANSWER = MapRef("", "output")


def unfolded(network: nn.Module, x: Tensor, layer: str, side: str) -> Tensor:
    """The map, by a hook of PyTorch on the network itself."""
    found: list[Tensor] = []
    module = network.get_submodule(layer)
    if side == "input":
        handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].clone()))
    else:
        handle = module.register_forward_hook(lambda _, args, out: found.append(out.clone()))
    with torch.no_grad():
        network(x)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "relu"])
def test_folding_changes_no_map_beyond_rounding(layer: str, side: str) -> None:
    network = trained(Residual())
    ref = MapRef(layer, side)
    found = LiveTeacher(network).maps(Batch((X,)), [ref, ANSWER])
    torch.testing.assert_close(found[ref], unfolded(network, X, layer, side), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[ANSWER], network(X), rtol=1e-5, atol=1e-5)


def test_what_is_folded() -> None:
    network, places = trained(Residual()), [MapRef("bn2", "output")]
    edits, largest = find_edits(network, places, (X,))
    assert edits == Edits((("conv1", "bn1"), ("conv2", "bn2")), ("relu",)) and largest == 3 * 16 * 16
    for ref in (MapRef("conv2", "output"), MapRef("bn2", "input")):
        assert find_edits(network, [ref], (X,))[0].folded == (("conv1", "bn1"),)
    both = nn.Sequential(network.conv1, network.bn1, network.bn1)  # a norm that runs twice is no part of one layer
    assert find_edits(both, [], (X,))[0] == Edits((), ())
    twin = edited(network, edits)
    assert type(twin.bn1) is type(twin.bn2) is nn.Identity and twin.fc.weight is network.fc.weight


def test_the_network_itself_stays_as_it_is() -> None:
    network = trained(Residual())
    before, forms = copy.deepcopy(network.state_dict()), repr(network)
    teacher = LiveTeacher(network)
    for _ in range(2):
        teacher.maps(Batch((X,)), [ANSWER])
    assert repr(network) == forms and list(before) == list(network.state_dict()) == [
        name.removeprefix("network.") for name in teacher.state_dict()
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_loaded_later_are_seen() -> None:
    network, other = trained(Residual()), trained(Residual())
    teacher = LiveTeacher(network)
    first = teacher.maps(Batch((X,)), [ANSWER])[ANSWER]
    nn.init.normal_(other.conv1.weight), nn.init.normal_(other.bn2.running_mean)
    network.load_state_dict(other.state_dict())
    second = teacher.maps(Batch((X,)), [ANSWER])[ANSWER]
    torch.testing.assert_close(second, other(X).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, second)
    network.bn1.weight = nn.Parameter(2 * other.bn1.weight.detach(), requires_grad=False)
    teacher.double()
    third = teacher.maps(Batch((X.double(),)), [ANSWER])[ANSWER]
    torch.testing.assert_close(third, network(X.double()))
    assert third.dtype == torch.float64 and not torch.allclose(second.double(), third)
    twin = copy.deepcopy(teacher)
    network.fc.bias.add_(1)
    torch.testing.assert_close(teacher.maps(Batch((X.double(),)), [ANSWER])[ANSWER], third + 1)
    assert torch.equal(twin.maps(Batch((X.double(),)), [ANSWER])[ANSWER], third)


def test_hooks_fire_on_a_network_that_would_be_folded() -> None:
    network, fired = trained(Residual()), list[str]()
    teacher = LiveTeacher(network)
    teacher.maps(Batch((X,)), [MapRef("bn1", "output")])
    handle = network.fc.register_forward_hook(lambda *_: fired.append("fc"))
    maps = [teacher.maps(Batch((X,)), [MapRef("bn1", "output")])["bn1", "output"] for _ in range(2)]
    assert fired == ["fc"] * 2 and torch.equal(maps[0], unfolded(network, X, "bn1", "output"))
    handle.remove()


def test_inference_mode_ends_at_the_teacher() -> None:
    """Its maps are saved for gradients of the student, and none reaches the teacher."""
    seen: list[bool] = []

    class Seeing(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(torch.is_inference_mode_enabled())
            return super().forward(input)

    network = trained(nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), Seeing(8, 5, 1)))
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    d = Distillation(student(), network, [Tap("0", "output", "1", "output", method=MSE())], "mse+kd", example=X)
    d(X, targets=torch.tensor([0, 1]))[1]["total"].backward()
    assert seen[-1] and all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in d.student.parameters())
    maps = d.teacher_maps(Batch((X,))).values()
    assert not any(x.is_inference() or x.requires_grad for x in maps)


@pytest.mark.parametrize("images", [1, 3, 5])
def test_slices_of_a_batch_give_its_maps(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = trained(Residual()), torch.rand(5, 3, 16, 16)[:images]
    refs = [MapRef("bn2", "output"), MapRef("fc", "input"), ANSWER]
    whole = LiveTeacher(network).maps(Batch((x,)), refs)
    monkeypatch.setattr(teachers, "SLICE_BYTES", 2 * 4 * 3 * 16 * 16)  # of two images
    sliced = LiveTeacher(network)
    for _ in range(2):
        found = sliced.maps(Batch((x,)), refs)
        for ref in refs:
            torch.testing.assert_close(found[ref], whole[ref], rtol=1e-5, atol=1e-5)
    assert [plan.rows for plan in sliced._plans.values()] == [2]


class Mixing(Residual):
    """Each image's answer depends on the others of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Remembering(Residual):
    """Reads the map between convolution and norm where no trace of tensors sees it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + float(self.conv1(x).mean()) if hasattr(self, "late") else x


@pytest.mark.parametrize("kind", [Mixing, Remembering])
def test_a_network_that_the_copy_would_change_is_run_as_it_is(kind: type[Residual]) -> None:
    network = trained(kind())
    teacher = LiveTeacher(network)
    for x in (X, X.flip(0), torch.rand(4, 3, 16, 16)):
        assert torch.equal(teacher.maps(Batch((x,)), [ANSWER])[ANSWER], network(x))


class Batchwise(nn.Sequential):
    """Its norm takes the statistics of the batch in eval mode too, which images that are alike do not show."""

    def __init__(self) -> None:
        norm = nn.BatchNorm2d(8, track_running_stats=False)
        super().__init__(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), norm)


class Shifting(Residual):
    """Each image's answer depends a little on the others of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 3e-3 * x.detach().mean()


class Choosing(Residual):
    """Goes by a convolution's map only where the images are bright."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        z = self.bn1(y)
        return self.relu(z + y if x.mean() > 2 else z)


class Grouping(Residual):
    """Takes a map for one of more images, which it can look at so where its channels are first, or in one image."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        return self.relu(2 * x.view(len(x) * 4, -1, *x.shape[2:])).reshape(len(x), -1)


class Whole(Residual):
    """Takes batches of four alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(4, -1)


FIRST = torch.zeros(2, 3, 16, 16), torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("kind", [Batchwise, Shifting, Choosing, Grouping, Whole])
@pytest.mark.parametrize("first", FIRST, ids=["zeros", "one"])
def test_what_the_first_images_do_not_show(
    kind: type[nn.Module], first: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers, "SLICE_BYTES", 2 * 4 * 3 * 16 * 16)
    network, x = trained(kind()), torch.arange(1.0, 5).view(-1, 1, 1, 1) * torch.rand(4, 3, 16, 16) + 2
    teacher = LiveTeacher(network)
    teacher.maps(Batch((x if kind is Whole else first,)), [ANSWER])
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(teacher.maps(Batch((x,)), [ANSWER])[ANSWER], expected, rtol=1e-5, atol=1e-5)


def test_a_copy_that_does_in_half_precision_is_tried_again_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaning(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * x.mean(0, keepdim=True))

    monkeypatch.setattr(teachers, "SLICE_BYTES", 1)
    network = trained(Leaning())
    teacher, x = LiveTeacher(network), torch.rand(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        teacher.maps(Batch((x,)), [ANSWER])
    with torch.no_grad():
        assert torch.equal(teacher.maps(Batch((x,)), [ANSWER])[ANSWER], network(x))


@pytest.mark.parametrize("buffer", [True, False])
def test_a_network_that_a_pass_changes_has_one_pass_for_a_batch(buffer: bool) -> None:
    class Counting(Residual):
        passes: object = nn.Buffer(torch.zeros(())) if buffer else 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes = self.passes + 1  # type: ignore[operator]
            return super().forward(x) * (1 if self.passes < 3 else 2)  # type: ignore[operator]

    network = trained(Counting())
    teacher = LiveTeacher(network)
    norms = [teacher.maps(Batch((X,)), [ANSWER])[ANSWER].norm() for _ in range(4)]
    assert network.passes == 4 and [round((n / norms[0]).item(), 3) for n in norms] == [1, 1, 2, 2]


def by_data(network: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        ours.data.mul_(0.9).add_(theirs.data, alpha=0.1)


def by_fused_optimizer(network: nn.Module, other: nn.Module) -> None:
    weights = [weight.requires_grad_() for weight in network.parameters()]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(weights, 0.01, fused=True).step()
    network.requires_grad_(False)


@pytest.mark.parametrize("change", [by_data, by_fused_optimizer])
def test_changes_that_pytorch_does_not_count_are_seen(change: Callable[[nn.Module, nn.Module], None]) -> None:
    network, other = trained(Residual()), trained(Residual())
    nn.init.normal_(other.conv1.weight)
    teacher = LiveTeacher(network)
    for _ in range(3):
        found = teacher.maps(Batch((X,)), [ANSWER])[ANSWER]
        torch.testing.assert_close(found, network(X).detach(), rtol=1e-5, atol=1e-5)
        change(network, other)
        assert not torch.allclose(found, network(X))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_teacher_answers() -> None:
    network = trained(Residual())
    maps = LiveTeacher(torch.jit.script(network)).maps(Batch((X,)), [ANSWER])
    torch.testing.assert_close(maps[ANSWER], network(X))


def test_a_copy_repeats_its_bits() -> None:
    runs = [LiveTeacher(trained(Residual())) for _ in range(2)]
    runs[1].maps(Batch((X + 1,)), [ANSWER])  # one has run before, as after a restart of the other
    a, b = (run.maps(Batch((X,)), [ANSWER])[ANSWER] for run in runs)
    assert torch.equal(a, b)


def test_what_a_live_teacher_is_made_of() -> None:
    with pytest.raises(ValueError, match="the teacher's network='resnet18' is not"):
        LiveTeacher("resnet18")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype='bfloat16' is not"):
        LiveTeacher(Residual(), "bfloat16")  # type: ignore[arg-type]


def test_half_precision_on_request() -> None:
    network = trained(Residual())
    half = LiveTeacher(network, torch.bfloat16).maps(Batch((X,)), [ANSWER])[ANSWER]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), network(X), rtol=0.05, atol=0.05)
    d = Distillation(student(), LiveTeacher(trained(Residual()), torch.bfloat16), methods="kd", example=X)
    assert d.teachers[0].dtype == torch.bfloat16 and d(X)[1]["kd"].dtype == torch.float32
