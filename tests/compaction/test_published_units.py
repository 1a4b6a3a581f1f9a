"""Unit lists of the literature through the suite's own removal and counters: the prune rates and the costs that follow
from them (the papers file, §2c, §3c and §4).

The papers also gate what enters a fully connected layer: pixels, and single features of a flattened map. The suite
removes whole units, so the weights of those inputs are taken off its count.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench import networks
from bench.compaction import compact, find_sites
from bench.measure.macs import count_macs
from methods.base import SparsityPlan

EXAMPLE = torch.zeros(1, 1, 28, 28)


def compacted(name: str, units: dict[str, int]) -> nn.Module:
    """The last so many units of each site are kept."""
    network = networks.build(name, (1, 28, 28), 10).eval()
    sizes = {site.name: site.size for site in find_sites(network, EXAMPLE)}
    kept = {site: torch.arange(sizes[site]) >= sizes[site] - count for site, count in units.items()}
    result = compact(network, SparsityPlan(kept=kept), EXAMPLE)
    assert result.certificate.passed
    return result.network


def weights(network: nn.Module) -> int:
    """Biases apart, as the papers count."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)


@pytest.mark.parametrize(
    ("units", "pruned", "times"),
    [
        ((20, 25, 45, 462), "91.08", "2.06"),  # hard-concrete
        ((9, 18, 65, 25), "98.57", "5.87"),  # hard-concrete, a λ for each layer
        ((13, 25, 156, 54), "95.95", "3.20"),  # beta-Bernoulli dropout
        ((3, 3, 48, 3), "99.89", None),  # where plasticity networks begin to grow
        ((20, 16, 32, 257), "95.5", None),  # L0-ARM
        ((6, 10, 39, 11), "99.5", None),
    ],
)
def test_lenet5(units: tuple[int, int, int, int], pruned: str, times: str | None) -> None:
    first, second, features, hidden = units
    network = compacted("lenet5", {"conv1": first, "conv2": second, "fc1": hidden})
    without = (16 * second - features) * hidden
    rate = 100 * (1 - (weights(network) - without) / 430_500)
    assert f"{rate:.{len(pruned) - 3}f}" == pruned
    macs = count_macs(network, EXAMPLE) - without
    if times is not None:
        assert f"{2_293_000 / macs:.2f}" == times


@pytest.mark.parametrize(
    ("units", "pruned"),
    [((143, 153, 78), "87.0"), ((219, 214, 100), "74.0"), ((266, 88, 33), "90.0")],
)
def test_mlp_300_100(units: tuple[int, int, int], pruned: str) -> None:
    pixels, first, second = units
    network = compacted("mlp-300-100", {"fc1": first, "fc2": second})
    without = (784 - pixels) * first
    assert f"{100 * (1 - (weights(network) - without) / 266_200):.1f}" == pruned
    assert count_macs(network, EXAMPLE) == weights(network)
