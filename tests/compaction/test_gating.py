"""Gates that depend on the image, cut and in place."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import random_gate
from torch import Tensor, nn

from bench import networks
from bench.compaction import compact, find_sites, masked_reference
from bench.compaction.gating import cut_gates, with_gates
from methods.base import SparsityPlan
from methods.input_gate import InputGate

EXAMPLE = torch.zeros(1, 1, 28, 28)


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return networks.build("lenet5", (1, 28, 28), 10).eval()


def test_a_gate_is_clipped_floored_and_cut() -> None:
    gate = InputGate(
        torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.0, 0.2, 0.6])
    )
    maps = torch.tensor([[0.25, -0.2, 0.0], [3.0, 0.0, -0.2]])[:, :, None, None] + torch.tensor([[-1.0, 1.0]])
    expected = torch.tensor([[0.25, 0.0, 0.0], [1.0, 0.5, 0.7]])
    torch.testing.assert_close(gate(maps), expected)
    torch.testing.assert_close(gate(maps.mean((2, 3))), expected)
    torch.testing.assert_close(gate.units([0, 2])(maps[:, [0, 2]]), expected[:, [0, 2]])
    with pytest.raises(ValueError, match=r"one number per unit, not \(3,\), \(2,\), \(3,\)"):
        InputGate(torch.ones(3), torch.ones(2), torch.ones(3))


def test_cut_network_with_cut_gates_is_the_masked_one_with_all() -> None:
    network = lenet()
    sites = find_sites(network, EXAMPLE)
    gates = {site.name: random_gate(site.size) for site in sites}
    generator = torch.Generator().manual_seed(0)
    kept = {site.name: torch.rand(site.size, generator=generator) < 0.5 for site in sites}
    plan = SparsityPlan(kept=kept)
    compacted = compact(network, plan, EXAMPLE)
    cut = cut_gates(gates, compacted.architecture.kept)
    reference = with_gates(masked_reference(network, plan, EXAMPLE), sites, gates)
    small = with_gates(compacted.network, find_sites(compacted.network, EXAMPLE), cut)
    images = torch.randn(32, 1, 28, 28, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(small(images), reference(images), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(small(images), compacted.network(images), atol=1e-3)
    assert all(gates[name].size == len(kept[name]) for name in kept)


def test_the_gates_belong_to_the_network_and_leave_the_given_one_alone() -> None:
    network = lenet().train()
    sites = find_sites(network, EXAMPLE)
    before = copy.deepcopy(network.state_dict())
    gate = random_gate(20)
    gated = with_gates(network, sites, {"conv1": gate}).double()
    assert gate.slope.dtype == torch.float32
    assert not gated.training
    assert sum(value.numel() for value in gated.buffers()) == 3 * 20
    assert gated(EXAMPLE.double()).dtype == torch.float64
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_multipliers_of_the_first_end_serve_all() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            stream = torch.relu(self.stem(images))
            stream = torch.relu(stream + self.body(stream))
            return self.head(stream.mean((2, 3)))

    network, images = Residual().eval(), torch.randn(5, 1, 6, 6)
    sites = find_sites(network, images[:1])
    (stream,) = sites
    assert len(stream.ends) == 2
    gate = random_gate(4)
    with torch.no_grad():
        first = network.stem(images)
        z = gate(first)[:, :, None, None]
        state = torch.relu(first * z)
        state = torch.relu(state + network.body(state) * z)
        expected = network.head(state.mean((2, 3)))
        torch.testing.assert_close(with_gates(network, sites, {stream.name: gate})(images), expected)


def test_gates_that_do_not_fit_are_refused() -> None:
    sites = find_sites(lenet(), EXAMPLE)
    with pytest.raises(ValueError, match=r"for the site 'conv9', which there is not \(did you mean 'conv"):
        with_gates(lenet(), sites, {"conv9": random_gate(20)})
    with pytest.raises(ValueError, match="gate of site 'conv1' has 5 units, the site has 20"):
        with_gates(lenet(), sites, {"conv1": random_gate(5)})
