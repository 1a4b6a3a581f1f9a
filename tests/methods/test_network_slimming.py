"""Network slimming: the penalty on the scales, one threshold for all layers, and who can be slimmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import methods
from methods.base import Phase, Site, StepContext
from methods.network_slimming import NetworkSlimming

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]


def attached(network: Network, context: StepContext, **config: Any) -> NetworkSlimming:
    method = methods.create("network-slimming", **config)
    assert isinstance(method, NetworkSlimming)
    context.phase = Phase("sparsify", 1.0)
    method.attach(*network, context)
    return method


def test_penalty_is_the_l1_norm_of_the_scales(convnet: Network, make_context: MakeContext) -> None:
    """Its subgradient is λ·sign(γ), 0 at 0; while fine-tuning there is none."""
    network, _ = convnet
    method = attached(convnet, make_context(0.5), sparsity=0.01)
    method.start_phase(method.context.phase)
    scales = [network.get_parameter("1.weight"), network.get_parameter("4.weight")]
    assert all((scale == 0.5).all() for scale in scales)
    with torch.no_grad():
        scales[0][:3] = torch.tensor([-2.0, 0.0, 1.0])
    penalty = method.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.01 * (3 + 5 * 0.5 + 12 * 0.5))
    penalty.backward()
    assert scales[0].grad is not None
    assert scales[0].grad[:4].tolist() == pytest.approx([-0.01, 0.0, 0.01, 0.01])
    assert [n for n, p in network.named_parameters() if p.grad is not None] == ["1.weight", "4.weight"]
    method.context.phase = Phase("finetune", 0.25)
    assert method.penalty() is None


def test_trained_scales_are_not_overwritten(convnet: Network, make_context: MakeContext) -> None:
    network, _ = convnet
    trained = torch.linspace(0.2, 1.0, 8)
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(trained)
    method = attached(convnet, make_context(0.5))
    method.start_phase(method.context.phase)
    assert torch.equal(network.get_parameter("1.weight"), trained)
    assert (network.get_parameter("4.weight") == 0.5).all()


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.6])
def test_one_threshold_over_all_layers(strength: float, convnet: Network, make_context: MakeContext) -> None:
    """floor(ratio · 20) of the smallest |γ| go, however they lie over the layers."""
    network, _ = convnet
    method = attached(convnet, make_context(), finetune=0)
    assert method.traits.trains_once
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.linspace(-0.91, -0.21, 8))
        network.get_parameter("4.weight").copy_(torch.linspace(0.05, 0.6, 12))
    kept = method.plan(strength).kept
    removed = int(strength * 20 + 1e-9)
    assert sum(int((~mask).sum()) for mask in kept.values()) == removed
    scales = torch.cat([network.get_parameter(f"{n}.weight").detach().abs() for n in "14"])
    mask = torch.cat([kept["0"], kept["3"]])
    if removed:
        assert scales[mask].min() > scales[~mask].max()


def test_no_layer_is_emptied(convnet: Network, make_context: MakeContext) -> None:
    network, _ = convnet
    method = attached(convnet, make_context(), finetune=0)
    with torch.no_grad():
        network.get_parameter("1.weight").mul_(1e-3)[5].mul_(2)
    kept = method.plan(0.5).kept
    assert kept["0"].nonzero().flatten().tolist() == [5]
    assert int(kept["3"].sum()) == 9


def test_a_stream_counts_by_its_largest_scale_and_sites_without_a_norm_stay(
    make_context: MakeContext,
) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1)
    )
    sites = [
        Site("0", 4, "stream", ("0", "2"), ("1", "3"), ("1", "3"), ("4",), 1.0, 1.0),
        Site("4", 5, "inner", ("4",), (), ("4",), (), 1.0, 1.0),
    ]
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([0.1, 0.2, -0.9, 0.3]))
        network.get_parameter("3.weight").copy_(torch.tensor([0.8, 0.1, 0.1, -0.2]))
    method = attached((network, sites), make_context(), finetune=0)
    kept = method.plan(0.5).kept
    assert {name: mask.tolist() for name, mask in kept.items()} == {"0": [True, False, True, False]}


def test_who_can_be_slimmed(mlp: Network, convnet: Network, make_context: MakeContext) -> None:
    method = methods.create("network-slimming")
    assert method.supports(*convnet) is None
    assert "no batch normalisation" in str(method.supports(*mlp))
    assert method.supports(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)), []) is not None
    assert "that could be removed" in str(method.supports(convnet[0], []))


def test_phases_are_not_shared_with_plain_training() -> None:
    for config in ({}, {"finetune": 0}):
        phases = methods.create("network-slimming", **config).phases(10)
        assert sum(phase.fraction for phase in phases) == 1
        assert not any(phase.shared for phase in phases)
