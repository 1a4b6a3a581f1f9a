"""Copies of networks: what `copy.deepcopy` gives, with tensors converted or shared."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from bench.compaction import compact, find_sites, masked_reference
from bench.compaction.copies import local_copy, plain_copy, sharing_copy
from bench.errors import BadInput
from methods.base import SparsityPlan


class Unusual(nn.Module):
    """Layers in a list of its own, one under two names, tied weights, a hook, a recurrent layer, a tensor that is no
    buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again = self.first
        self.second.weight = self.first.weight
        self.in_order = [self.first, self.second, self.again]
        self.table = {"scale": [2.0], "layer": self.second}
        self.offset = torch.ones(6)
        self.recurrent = nn.GRU(6, 6, batch_first=True)
        self.calls: list[int] = []
        self.second.register_forward_hook(self.note)

    def note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.calls.append(len(output))

    def forward(self, values: Tensor) -> Tensor:
        for layer in self.in_order:
            values = layer(values).relu() + self.offset
        values = self.table["layer"](values) * self.table["scale"][0]
        return self.recurrent(values[:, None])[0][:, 0]


class CountsItsCopies(nn.Linear):
    copied = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> CountsItsCopies:
        twin = CountsItsCopies(self.in_features, self.out_features)
        twin.load_state_dict(self.state_dict())
        twin.copied = self.copied + 1
        return twin


class HoldsALock(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.lock = threading.Lock()


def test_an_unusual_network_is_copied_whole() -> None:
    network = Unusual().train()
    twin = plain_copy(network)
    assert isinstance(twin, Unusual)
    assert twin.in_order == [twin.first, twin.second, twin.again]
    assert twin.again is twin.first
    assert twin.table["layer"] is twin.second
    assert twin.second.weight is twin.first.weight
    assert {id(t) for t in twin.state_dict(keep_vars=True).values()}.isdisjoint(
        id(t) for t in network.state_dict(keep_vars=True).values()
    )
    images = torch.randn(5, 6)
    expected = copy.deepcopy(network).eval()(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.offset.zero_()
    assert torch.equal(twin(images), expected)
    assert (twin.calls, network.calls) == ([5, 5], [])  # the hook is the copy's own
    assert network.training
    assert not any(module.training for module in twin.modules())


def test_a_recurrent_layer_reads_its_own_weights() -> None:
    twin = plain_copy(Unusual(), torch.float64)
    assert isinstance(twin, Unusual)
    twin.offset = twin.offset.double()
    before = twin(torch.ones(2, 6).double())
    with torch.no_grad():
        twin.recurrent.weight_ih_l0.mul_(2)
    assert not torch.equal(twin(torch.ones(2, 6).double()), before)


def test_a_module_that_copies_itself_does_so() -> None:
    network = nn.Sequential(CountsItsCopies(3, 3), nn.ReLU())
    twin = plain_copy(network)
    assert (twin[0].copied, network[0].copied) == (1, 0)


def test_hooks_on_a_copy_are_not_on_the_network() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    twin = sharing_copy(network)
    twin[0].register_forward_hook(lambda module, inputs, output: output * 0)
    twin.register_module("more", nn.ReLU())
    assert bool((network(torch.ones(2, 3)) == network[1](network[0](torch.ones(2, 3)))).all())
    assert len(network) == 2
    assert not network[0]._forward_hooks


def test_a_sharing_copy_has_the_parameters_of_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="circular"), nn.BatchNorm2d(4))
    twin = sharing_copy(network)
    shared = zip(twin.parameters(), network.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in shared)
    assert twin.get_buffer("1.running_mean").data_ptr() != network.get_buffer("1.running_mean").data_ptr()


class Remembers(nn.Module):
    """Counts its runs in a buffer and keeps what it made, of use to autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.made = nn.Conv2d(3, 6, 1), nn.Linear(6, 3), [torch.zeros(1)]
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)  # type: ignore[operator]
        self.last = torch.relu(self.conv(x)).mean((2, 3))
        self.made = [self.last]
        return self.fc(self.last)


def test_a_network_that_has_run_and_keeps_what_it_made() -> None:
    network, example = Remembers().eval(), torch.randn(2, 3, 8, 8)
    network(example)
    last = network.last
    (site,) = find_sites(network, example)
    result = compact(network, SparsityPlan(kept={site.name: torch.arange(6) > 1}), example)
    assert result.certificate.passed
    masked_reference(network, SparsityPlan(), example)
    assert network.last is last
    assert network.runs == 1


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (nn.Sequential(nn.LazyConv2d(4, 3)), "Sequential cannot be copied: 0.weight has no values yet"),
        (nn.Conv2d(3, 4, 3, device="meta"), "Conv2d cannot be copied: weight has no values yet"),
        (HoldsALock(), "HoldsALock cannot be copied: cannot pickle"),
    ],
)
@pytest.mark.parametrize("copied", [plain_copy, sharing_copy, local_copy])
def test_what_cannot_be_copied_is_named(
    network: nn.Module, complaint: str, copied: Callable[[nn.Module], nn.Module]
) -> None:
    with pytest.raises(BadInput, match=complaint):
        copied(network)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet", "swin_t"])
def test_networks_of_torchvision_as_deepcopy_copies_them(name: str) -> None:
    network = models.get_model(name, weights=None)
    twin, expected = plain_copy(network), copy.deepcopy(network).eval()
    assert repr(twin) == repr(expected)
    for (path, ours), (_, theirs) in zip(twin.named_modules(), expected.named_modules(), strict=True):
        assert ours.__dict__.keys() == theirs.__dict__.keys(), path
        for attribute, value in theirs.__dict__.items():
            if not isinstance(value, dict | Tensor):
                assert str(getattr(ours, attribute)) == str(value), f"{path}.{attribute}"
    assert all(
        torch.equal(one, other)
        for one, other in zip(twin.state_dict().values(), expected.state_dict().values(), strict=True)
    )
