"""Gates that depend on the image, in place, cut, and counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench import networks
from bench.compaction import compact, find_sites, masked_reference
from bench.execute.dynamic import cut_gates, expected_macs, with_gate_cost, with_gates
from bench.measure.cost import cost
from bench.measure.macs import count_macs
from methods.base import SparsityPlan

EXAMPLE = torch.zeros(1, 1, 28, 28)


class Step(nn.Module):
    """1 where a unit's mean is above its level."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.linspace(-0.2, 0.2, size))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, size))

    def forward(self, values: Tensor) -> Tensor:
        s = values.flatten(2).mean(2) if values.dim() > 2 else values
        scale: Tensor = self.scale  # type: ignore[assignment]
        return scale * (s > self.level)


def lenet() -> nn.Module:
    torch.manual_seed(0)
    return networks.build("lenet5", (1, 28, 28), 10).eval()


def test_cut_network_with_cut_gates_is_the_masked_one_with_all() -> None:
    network = lenet()
    sites = find_sites(network, EXAMPLE)
    gates = {site.name: Step(site.size) for site in sites}
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
    assert all(len(gates[name].level) == len(kept[name]) for name in kept)
    assert isinstance(cut["conv1"].level, nn.Parameter)
    plain = cost(compacted.network, EXAMPLE)
    whole = with_gate_cost(plain, cut)
    left = sum(len(units) for units in compacted.architecture.kept.values())
    assert whole.parameters == plain.parameters + 2 * left
    assert whole.weight_bytes == plain.weight_bytes + 8 * left
    assert whole.macs == plain.macs


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
    gate = Step(4)
    with torch.no_grad():
        first = network.stem(images)
        z = gate(first)[:, :, None, None]
        state = torch.relu(first * z)
        state = torch.relu(state + network.body(state) * z)
        expected = network.head(state.mean((2, 3)))
        torch.testing.assert_close(with_gates(network, sites, {stream.name: gate})(images), expected)


def test_expected_macs() -> None:
    """LeNet-5, papers file §4: 2,293,000 in all; half of conv1's units save half of conv2 and nothing else."""
    network = lenet()
    sites = find_sites(network, EXAMPLE)
    full = {site.name: float(site.size) for site in sites}
    macs, gates = expected_macs(network, sites, full, EXAMPLE)
    assert macs == count_macs(network, EXAMPLE) == 2_293_000
    assert gates == 20 * (2 * 24 * 24 + 4) + 50 * (2 * 8 * 8 + 4) + 5 * 500
    half, _ = expected_macs(network, sites, {**full, "conv1": 10.0}, EXAMPLE)
    assert half == pytest.approx(2_293_000 - 0.5 * 50 * 20 * 25 * 64)
    none, overhead = expected_macs(network, sites, {}, EXAMPLE)
    assert (none, overhead) == (2_293_000, 0)
