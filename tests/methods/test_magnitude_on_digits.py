"""Magnitude pruning on real data: most units go, accuracy stays, and as many taken at random cost more."""

from __future__ import annotations

from functools import cache
from statistics import mean

import pytest
import torch

import methods
from bench import data, networks
from bench.compaction import compact, find_sites
from bench.data.batches import ordered
from bench.measure.accuracy import score
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.seeds import stream

SEEDS, STRENGTH = (0, 1, 2), 0.85
RECIPE = Recipe(epochs=30, batch_size=64, learning_rate=2e-3)


def outcome(name: str, seed: int, strength: float, **config: object) -> tuple[float, int]:
    """Test accuracy of the compact 300-100 network, and its units."""
    torch.set_num_threads(1)
    dataset, example = data.load("digits", None), torch.zeros(1, 1, 8, 8)
    torch.manual_seed(stream(seed, "init"))
    network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
    method = methods.create(name, **config)
    given = None if method.traits.trains_once else strength
    loop = Loop(
        network, method, find_sites(network, example), dataset, RECIPE, seed, torch.device("cpu"), given
    )
    loop.run(plan_phases(method.phases(RECIPE.epochs), RECIPE.epochs))
    method.detach()
    small = compact(network, method.plan(strength), example).network
    test = ordered(data.load_test("digits", None), 1024, loop.normalise)
    return score(small, test).accuracy, sum(site.size for site in find_sites(small, example))


@cache
def reference(name: str, strength: float) -> float:
    """Mean accuracy over the seeds."""
    return mean(outcome(name, seed, strength)[0] for seed in SEEDS)


@pytest.mark.parametrize(
    ("config", "lost"), [({}, 0.07), ({"scope": "global"}, 0.065), ({"schedule": "gradual"}, 0.04)], ids=str
)
def test_units_go_and_accuracy_stays(config: dict[str, str], lost: float) -> None:
    accuracies = []
    for seed in SEEDS:
        accuracy, units = outcome("magnitude", seed, STRENGTH, **config)
        assert units == 60
        accuracies.append(accuracy)
    dense, at_random = reference("dense", 0.0), reference("random", STRENGTH)
    print(f"\n{config}: {accuracies}, at random {at_random:.4f}, dense {dense:.4f}")
    assert mean(accuracies) > dense - lost
    assert mean(accuracies) > at_random + 0.01
