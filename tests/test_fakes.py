"""Copies of networks, whatever they hold, and following them on tensors without contents."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from redistill_lib.models import create_model
from redistill_lib.network.fakes import copy_network, follow, outlines, tensors_in

X = torch.randn(2, 3, 8, 8)


class Keeping(nn.Module):
    """Keeps its last map, by itself and inside an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        self.seen["both"] = [self.last, self.last * 2]
        return self.last


def test_a_kept_activation_is_copied_without_its_history() -> None:
    net = Keeping()
    net(X)
    twin: Any = copy_network(net)
    assert torch.equal(twin.last, net.last) and twin.last is not net.last
    assert twin.last.is_leaf and net.last.grad_fn is not None
    assert twin.seen["both"][0] is twin.last
    torch.testing.assert_close(twin(X), net(X))
    assert twin.conv.weight is not net.conv.weight and twin.conv.weight.requires_grad


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute_are_copied(norm: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()
    for _ in range(2):  # before and after a pass
        twin = copy_network(net)
        torch.testing.assert_close(twin(X), net(X))
        with torch.no_grad():
            next(twin.parameters()).mul_(0)
        assert not torch.allclose(twin(X), net(X))


def test_modes_hooks_and_shared_parts_stay_as_they_are() -> None:
    layer, calls = nn.Conv2d(3, 3, 1), []
    net = nn.Sequential(layer, nn.Sequential(layer), nn.BatchNorm2d(3).eval())
    net[1].tied = layer.weight  # type: ignore[assignment]
    layer.register_forward_hook(lambda *_: calls.append(1))
    twin: Any = copy_network(net)
    assert twin[0] is twin[1][0] is not layer and twin.training and not twin[2].training
    assert twin[1].tied is twin[0].weight is not layer.weight
    twin(X)
    assert len(calls) == 2
    twin[2].register_forward_hook(lambda *_: calls.append(1))  # the twin's alone
    net(X)
    assert len(calls) == 4


def test_what_cannot_be_copied_is_shared() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 3, 1))
    net[0].lock = threading.Lock()
    assert copy_network(net)[0].lock is net[0].lock  # type: ignore[index]


def test_a_network_made_in_inference_mode_can_be_trained_as_a_copy() -> None:
    with torch.inference_mode():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    twin = copy_network(net)
    twin(X).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in twin.parameters())


class Asks(nn.Module):
    """Does something else where it believes that it is traced."""

    def __init__(self, asks: Any) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.asks(x) else x + 1


def by_name_at_import(x: Tensor) -> bool:
    return isinstance(x, FakeTensor)


class Knows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if by_name_at_import(x) else x + 1


def test_no_network_sees_that_its_tensors_have_no_contents() -> None:
    def look(model: nn.Module, values: Any, source: str) -> tuple[int, str]:
        return len(model(*values)), source

    asking = (
        lambda x: isinstance(x, torch._subclasses.FakeTensor),
        lambda x: torch.compiler.is_compiling() or torch.jit.is_tracing(),
    )
    for asks in asking:
        assert follow(Asks(asks), (X,), look) == (2, "fake")
    assert follow(Knows(), (X,), look) == (2, "real")
    assert follow(Knows(), (X.to("meta"),), look) == (4, "fake")  # it cannot be run
    assert torch._subclasses.FakeTensor is FakeTensor


def test_tensors_are_found_in_containers_and_objects() -> None:
    import dataclasses

    @dataclasses.dataclass(slots=True)
    class Result:
        logits: Tensor
        note: str = "x"

    a, b, c = X, X + 1, X + 2
    found = tensors_in([Result(a), {"b": (b, "text", None)}, torch.Size([1]), nn.Linear(1, 1), torch.max(c, 1)])
    assert [t is x for t, x in zip(found[:2], (a, b), strict=True)] == [True, True] and len(found) == 4


def test_outlines_have_no_contents() -> None:
    with outlines():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Embedding(10, 4), nn.LSTM(4, 4))
    assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert not nn.Linear(2, 2).weight.is_meta and nn.Linear(9, 9).weight.std() > 0


def test_a_built_in_network_is_followed_on_parts_of_its_own() -> None:
    with outlines():
        net = create_model("mobilenetv2-4-2112121").train()
    weights, parts = dict(net.named_parameters()), {id(module) for module in net.modules()}

    def watch(twin: nn.Module, values: Any, source: str) -> list[bool]:
        for module in twin.modules():
            module.register_forward_hook(lambda *_: None)
        shared = parts.isdisjoint(map(id, twin.modules())), type(twin) is type(net), twin.training
        return [*shared, any(p is weights[name] for name, p in twin.named_parameters()), twin(*values).is_meta]

    assert follow(net, (torch.zeros(1, 3, 64, 64),), watch) == [True, True, False, False, False]
    assert net.training and all(module.training and not module._forward_hooks for module in net.modules())
    assert all(p is weights[name] for name, p in net.named_parameters())
