"""Torch-Pruning as oracle: for the same units both leave the same shapes and the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch_pruning
import torchvision
from small_networks import Residual, images, randomise, shapes
from torch import Tensor, nn

from bench.compaction import compact, find_sites, masked_reference
from bench.compaction.sites import switch_off
from methods.base import Site, SparsityPlan


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(8, 12, 3, stride=2, dilation=2, padding=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, 1),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(10 * 8 * 8, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 10),
    )


def model(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10)


def pruned_by_oracle(network: nn.Module, sites: list[Site], plan: SparsityPlan, example: Tensor) -> nn.Module:
    """Units switched off in the weights, then cut by index, site after site."""
    oracle = copy.deepcopy(network).eval()
    switch_off(oracle, sites, plan)
    for parameter in oracle.parameters():
        parameter.requires_grad_(True)
    dependencies = torch_pruning.DependencyGraph().build_dependency(oracle, example_inputs=example)
    for site in sites:
        layer = oracle.get_submodule(site.name)
        linear = isinstance(layer, nn.Linear)
        prune = torch_pruning.prune_linear_out_channels if linear else torch_pruning.prune_conv_out_channels
        gone = (~plan.kept[site.name]).nonzero().flatten().tolist()
        group = dependencies.get_pruning_group(layer, prune, idxs=gone)
        assert dependencies.check_pruning_group(group)
        group.prune()
    return oracle


@pytest.mark.parametrize(
    ("build", "share"),
    [
        (sequential, 0.3),
        (sequential, 0.7),
        (Residual, 0.3),
        (Residual, 0.7),
        (lambda: Residual(shortcut=True), 0.5),
        (model("resnet18"), 0.7),
        (model("mobilenet_v2"), 0.4),
    ],
)
def test_same_shapes_and_outputs(build: Callable[[], nn.Module], share: float) -> None:
    network = randomise(build(), seed=3)
    for (
        module
    ) in network.modules():  # deep networks of weights of that size would overflow float32's precision
        if isinstance(module, nn.Conv2d) and module.weight[0].numel() > 64:
            nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(1))
    example = images(2, 3, 32, 32)
    sites = find_sites(network, example)
    generator = torch.Generator().manual_seed(int(100 * share))
    kept = {}
    for site in sites:
        kept[site.name] = torch.rand(site.size, generator=generator) >= share
        kept[site.name][0] = True
    plan = SparsityPlan(kept)
    result = compact(network, plan, example)
    assert result.certificate.passed, result.certificate
    oracle = pruned_by_oracle(network, sites, plan, example)
    assert shapes(result.network) == shapes(oracle)
    for (name, ours), theirs in zip(
        result.network.state_dict().items(), oracle.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    with torch.no_grad():
        expected = masked_reference(network, plan, example)(example)
        assert torch.equal(result.network(example), oracle(example))
        torch.testing.assert_close(
            oracle(example), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
