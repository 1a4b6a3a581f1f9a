"""What input gates cost and save, counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench import networks
from bench.compaction import find_sites
from bench.measure.cost import cost
from bench.measure.dynamic import dynamic_cost, with_gate_cost
from methods.input_gate import InputGate

EXAMPLE = torch.zeros(1, 1, 28, 28)


def test_expected_macs() -> None:
    """LeNet-5, papers file §4: 2,293,000 in all; half of conv1's units save half of conv2 and nothing else."""
    network = networks.build("lenet5", (1, 28, 28), 10).eval()
    sites = find_sites(network, EXAMPLE)
    gates = {site.name: InputGate(*(torch.ones(site.size) for _ in range(3))) for site in sites}
    full = {site.name: float(site.size) for site in sites}
    counted = dynamic_cost(network, sites, gates, full, EXAMPLE)
    assert counted.expected_macs == cost(network, EXAMPLE).macs == 2_293_000
    assert counted.gate_operations == 20 * (2 * 24 * 24 + 4) + 50 * (2 * 8 * 8 + 4) + 5 * 500
    assert counted.gate_parameters == 3 * 570
    half = dynamic_cost(network, sites, gates, {**full, "conv1": 10.0}, EXAMPLE)
    assert half.expected_macs == pytest.approx(2_293_000 - 0.5 * 50 * 20 * 25 * 64)
    none = dynamic_cost(network, sites, {}, {}, EXAMPLE)
    assert (none.expected_macs, none.gate_operations, none.gate_parameters) == (2_293_000, 0, 0)


class _SharedAndTransposed(nn.Module):
    """conv1 is gated, `shared` runs twice, and `up` is a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.shared = nn.Conv2d(1, 4, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.conv2, self.up = nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.fc = nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        x = self.up(self.shared(self.shared(x).relu()).relu()).relu()
        return self.fc(x.mean((2, 3)))


def test_every_call_of_every_layer_counts() -> None:
    """With all units open it is what the static network costs."""
    network = _SharedAndTransposed().eval()
    sites = [site for site in find_sites(network, EXAMPLE) if site.name == "conv1"]
    gates = {site.name: InputGate(*(torch.ones(site.size) for _ in range(3))) for site in sites}
    macs = cost(network, EXAMPLE).macs
    assert dynamic_cost(network, sites, gates, {"conv1": 4.0}, EXAMPLE).expected_macs == macs
    half = dynamic_cost(network, sites, gates, {"conv1": 2.0}, EXAMPLE)
    assert half.expected_macs == macs - 0.5 * 4 * 6 * 9 * 24 * 24


def test_the_numbers_of_the_gates_count() -> None:
    network = networks.build("lenet5", (1, 28, 28), 10).eval()
    plain = cost(network, EXAMPLE)
    whole = with_gate_cost(plain, {"conv1": InputGate(torch.ones(20), torch.ones(20), torch.zeros(20))})
    assert whole.parameters == plain.parameters + 60
    assert whole.nonzero == plain.nonzero + 40
    assert whole.weight_bytes == plain.weight_bytes + 240
    assert whole.peak_bytes == plain.peak_bytes + 240
    assert whole.macs == plain.macs
