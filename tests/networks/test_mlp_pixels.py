"""The network whose pixels are units: what it computes, and that its first layer only chooses."""

from __future__ import annotations

import torch

from bench import networks
from bench.compaction import Architecture, apply_architecture, compact, find_sites
from bench.execute.subject import initialise
from bench.training.optimizers import Optimizers
from bench.training.recipe import Recipe
from methods.base import SparsityPlan

SHAPE, CLASSES = (1, 8, 8), 10


def test_it_computes_what_the_network_without_the_first_layer_does() -> None:
    plain, pixels = (networks.build(name, SHAPE, CLASSES) for name in ("mlp-500-300", "mlp-500-300-pixels"))
    plain.load_state_dict({k: v for k, v in pixels.state_dict().items() if not k.startswith("pixels")})
    images = torch.rand(5, *SHAPE)
    assert torch.equal(plain(images), pixels(images))


def test_the_first_layer_does_not_learn() -> None:
    network = networks.build("mlp-500-300-pixels", SHAPE, CLASSES)
    for recipe in (Recipe(epochs=1, weight_decay=0.1), Recipe(epochs=1, optimizer="sgd", weight_decay=0.1)):
        optimizers = Optimizers(network, [], recipe, 1.0)
        network(torch.rand(5, *SHAPE)).square().sum().backward()
        optimizers.step()
    assert torch.equal(network.get_parameter("pixels.weight"), torch.eye(64))


def test_a_thin_one_begins_with_the_pixels_it_has() -> None:
    full, example = networks.build("mlp-500-300-pixels", SHAPE, CLASSES), torch.zeros(1, *SHAPE)
    thin = apply_architecture(full, Architecture(kept={"pixels": list(range(20))}), example)
    initialise(thin, full)
    assert torch.equal(thin.get_parameter("pixels.weight"), torch.eye(64)[:20])


def test_pixels_go_and_the_rest_is_the_same() -> None:
    network, example = networks.build("mlp-500-300-pixels", SHAPE, CLASSES), torch.zeros(1, *SHAPE)
    site = find_sites(network, example)[0]
    assert (site.name, site.size) == ("pixels", 64)
    result = compact(network, SparsityPlan(kept={"pixels": torch.arange(64) % 3 == 0}), example)
    assert result.certificate.passed
    assert tuple(result.network.get_parameter("pixels.weight").shape) == (22, 64)
    assert tuple(result.network.get_parameter("fc1.weight").shape) == (500, 22)
