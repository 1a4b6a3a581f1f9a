"""Units rounded up to a multiple: exact, and never more than there are."""

from __future__ import annotations

import pytest
import torch
import torchvision
from small_networks import images, plan_of, random_plan, randomise, shapes
from torch import nn

from bench.compaction import apply_architecture, compact, find_sites

EXAMPLE = images(2, 3, 8, 8)


def network() -> nn.Module:
    layers = [
        nn.Conv2d(3, 16, 3),
        nn.Sigmoid(),
        nn.Conv2d(16, 24, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(24, 6, 1),
    ]
    return randomise(
        nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 2))
    )


@pytest.mark.parametrize("multiple", [2, 4, 8, 16])
def test_every_site_has_a_multiple(multiple: int) -> None:
    net = network()
    sizes = {site.name: site.size for site in find_sites(net, EXAMPLE)}
    for seed in range(3):
        plan = random_plan(net, EXAMPLE, seed, share=0.6)
        least = compact(net, plan, EXAMPLE)
        result = compact(net, plan, EXAMPLE, multiple=multiple)
        assert result.certificate.passed, result.certificate
        for site, kept in result.architecture.kept.items():
            assert len(kept) % multiple == 0 or len(kept) == sizes[site]
            assert set(least.architecture.kept[site]) <= set(kept)
        assert result.architecture.multiple == multiple
        rebuilt = apply_architecture(net, result.architecture, EXAMPLE)
        assert shapes(rebuilt) == shapes(result.network)


def test_the_next_multiple_and_no_more() -> None:
    # Nothing of the first layer's second half stays, so the second group of the next goes.
    plan = plan_of(**{"0": torch.arange(16) < 5, "7": torch.arange(20) < 17})
    kept = compact(network(), plan, EXAMPLE, multiple=4).architecture.kept
    assert {site: len(units) for site, units in kept.items()} == {"0": 8, "2": 12, "4": 6, "7": 20}
    kept = compact(network(), plan_of(**{"7": torch.arange(20) < 9}), EXAMPLE, multiple=4).architecture.kept
    assert kept["7"] == list(range(12))
    with pytest.raises(ValueError, match="multiple is 0; 1 or more"):
        compact(network(), plan, EXAMPLE, multiple=0)


def test_a_residual_network() -> None:
    net = randomise(torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=10))
    example = images(1, 3, 32, 32)
    result = compact(net, random_plan(net, example, share=0.7), example, multiple=8)
    assert result.certificate.difference_float64 < 1e-9
    sizes = {site.name: site.size for site in find_sites(net, example)}
    assert all(len(kept) % 8 == 0 or len(kept) == sizes[s] for s, kept in result.architecture.kept.items())
