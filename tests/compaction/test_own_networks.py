"""What networks of users do that those of the suite do not."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import Coded, check, images, off, plan_of, randomise
from torch import Tensor, fx, nn

from bench.compaction import compact, find_branches, find_sites
from bench.errors import BadInput
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


def halves(network: nn.Module) -> SparsityPlan:
    return SparsityPlan(kept={s.name: torch.arange(s.size) % 2 > 0 for s in find_sites(network, EXAMPLE)})


def plain() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    network = nn.Sequential(*layers)
    randomise(network)
    return network


def test_compiled_in_place() -> None:
    """A copy would still call the original."""
    network = plain().eval()
    network.compile(backend="eager")
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 8
    assert torch.equal(result.network(EXAMPLE), result.network.forward(EXAMPLE))


def test_copies_do_not_depend_on_what_else_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
    monkeypatch.setattr(nn.Module, "__setstate__", lambda module, state: module.__dict__.update(state))
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["1"]


def grown(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.fc(torch.cat([x, m.a(F.relu(x, inplace=True))], 1).mean((2, 3)))


def preactivated(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.fc(torch.cat([x, x + m.b(F.gelu(m.a(m.relu(x))))], 1).mean((2, 3)))


def viewed(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x)
    return m.fc(torch.cat([x, m.a(x[:, :].relu_())], 1).mean((2, 3)))


@pytest.mark.parametrize("code", [grown, preactivated, viewed])
def test_what_is_written_in_place_stays_where_its_own_reader_goes(
    code: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    layers = {"conv": nn.Conv2d(3, 8, 1), "a": nn.Conv2d(8, 8, 3, padding=1), "fc": nn.Linear(16, 3)}
    network = Coded(code, **layers, b=nn.Conv2d(8, 8, 1), relu=nn.ReLU(inplace=True))
    randomise(network)
    check(network, plan_of(a=off(8, *range(8))), EXAMPLE)


def test_a_branch_that_begins_in_place_is_dropped() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        return m.fc((x + m.b(m.relu(x))).mean((2, 3)))

    network = Coded(
        code, conv=nn.Conv2d(3, 8, 1), relu=nn.ReLU(True), b=nn.Conv2d(8, 8, 1), fc=nn.Linear(8, 3)
    )
    randomise(network)
    check(network, plan_of([("drop", ("b",))]), EXAMPLE)


def accumulating(m: nn.Module, x: Tensor) -> Tensor:
    x = y = m.conv(x)
    y += m.a(y).relu()
    left, right = torch.cat([y, m.b(x)], 1).chunk(2, 1)
    return m.fc(torch.cat([right, left], 1).mean((2, 3)))


def scaling(m: nn.Module, x: Tensor) -> Tensor:
    x = y = m.conv(x)
    y *= m.a(x).sigmoid()
    left, right = torch.cat([y, m.b(x)], 1).chunk(2, 1)
    return m.fc(torch.cat([right, left], 1).mean((2, 3)))


@pytest.mark.parametrize("code", [accumulating, scaling])
def test_what_is_added_in_place_is_seen_by_all_who_read_it(
    code: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    layers = {name: nn.Conv2d(8, 8, 1) for name in "ab"}
    network = Coded(code, conv=nn.Conv2d(3, 8, 1), **layers, fc=nn.Linear(16, 3))
    randomise(network)
    result = check(network, halves(network), EXAMPLE)
    assert isinstance(result.network, fx.GraphModule)
    assert any("overwrites a tensor that is read again" in what for what in result.pinned)


def test_a_transposed_convolution_that_does_not_read_a_constant() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, 2))
    randomise(network)
    masks = {
        name: torch.ones_like(network.get_parameter(name)).bool()
        for name in ("0.weight", "0.bias", "3.weight")
    }
    for mask in masks.values():
        mask[2] = False
    result = check(network, SparsityPlan(weight_masks=masks), EXAMPLE)
    assert result.certificate.removed_units == 1


class Scored(nn.Conv2d):
    """With a parameter that is for the loss alone."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3)
        self.temperature = nn.Parameter(torch.ones(1))


def test_a_class_of_ones_own_with_one_more_parameter() -> None:
    network = plain()
    network[3] = Scored()
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 8
    assert result.network.get_parameter("3.temperature").item() == 1


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_a_layer_with_a_forward_of_its_own_is_named(name: str) -> None:
    network = plain()

    def standardised(layer: nn.Conv2d, x: Tensor, *given: Tensor) -> Tensor:
        weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, layer.bias)

    setattr(network[3], name, types.MethodType(standardised, network[3]))
    result = check(network, halves(network), EXAMPLE)
    assert result.pinned == ("3: Conv2d with a forward of its own",)


def test_hooks_of_the_network_itself_stay_with_it() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x).relu()
        n, c, h, w = x.shape
        return m.fc(x.view(n, c, h * w).mean(2))

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3))
    randomise(network)
    network.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0] - 1,))
    network.register_forward_hook(lambda module, inputs, output: output.sigmoid())
    assert isinstance(check(network, halves(network), EXAMPLE).network, fx.GraphModule)


def test_pooling_beside_what_it_pools_is_no_branch_to_drop() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        return m.fc((x + m.scale.weight.view(1, 8, 1, 1) * m.pool(x)).relu().mean((2, 3)))

    network = Coded(
        code, conv=nn.Conv2d(3, 8, 1), pool=nn.AvgPool2d(3, 1, 1), scale=nn.Linear(8, 1), fc=nn.Linear(8, 3)
    )
    assert find_branches(network, EXAMPLE) == []


def test_a_dead_branch_behind_another() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        x = x + m.b1(m.a1(x).relu())
        unread = x + m.b2(m.a2(x).relu())  # noqa: F841
        return m.fc(x.mean((2, 3)))

    layers = {name: nn.Conv2d(8, 8, 1, bias=name[0] == "b") for name in ("a1", "b1", "a2", "b2")}
    network = Coded(code, conv=nn.Conv2d(3, 8, 1), **layers, fc=nn.Linear(8, 3))
    randomise(network)
    check(network, plan_of(a1=off(8, *range(8)), a2=off(8, *range(8))), EXAMPLE)


def test_every_tensor_keeps_its_precision() -> None:
    network = plain().to(torch.bfloat16)
    network[1].float()
    network.register_buffer("table", torch.rand(3, dtype=torch.float64))
    kinds = {name: value.dtype for name, value in network.state_dict().items()}
    result = compact(network, halves(network), EXAMPLE)
    assert result.certificate.passed, result.certificate
    assert {name: value.dtype for name, value in result.network.state_dict().items()} == kinds


def single(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(m.conv(x.float()).relu().mean((2, 3)))


def rotated(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(m.conv(x @ torch.eye(8)).relu().mean((2, 3)))


def test_a_network_that_does_not_run_in_float64_is_told() -> None:
    network = Coded(single, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3))
    certificate = compact(network, halves(network), EXAMPLE).certificate
    assert not certificate.passed
    assert certificate.reason.startswith("the network does not run in float64: ")
    network = Coded(rotated, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3))
    with pytest.raises(BadInput, match=r"^in float64, in which units are removed and equality is proven: "):
        compact(network, halves(network), EXAMPLE)


def test_noise_of_the_network_does_not_move_the_generator() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc((m.conv(x) + torch.randn_like(m.conv(x))).mean((2, 3)))

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3))
    before = torch.get_rng_state()
    find_sites(network, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), before)
