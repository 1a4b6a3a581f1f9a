"""Gates that sparsify for real: digits, LeNet-300-100, three seeds, beside random units at the same cost."""

from __future__ import annotations

import functools

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

SEEDS = (0, 1, 2)
RECIPE = Recipe(epochs=30, batch_size=64, learning_rate=2e-3)
CPU = torch.device("cpu")
STRENGTHS = {"hard-concrete": 0.2, "l0-arm": 0.1, "plasticity": 0.3}


def run(name: str, strength: float, seed: int) -> tuple[float, list[int]]:
    """Test accuracy of the compact network, and its units."""
    torch.set_num_threads(1)
    dataset = data.load("digits", None)
    torch.manual_seed(stream(seed, "init"))
    network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
    example = torch.zeros(1, *dataset.input_shape)
    sites = find_sites(network, example)
    method = methods.create(name)
    loop = Loop(network, method, sites, dataset, RECIPE, seed, CPU, strength)
    loop.run(plan_phases(method.phases(RECIPE.epochs), RECIPE.epochs))
    method.detach()
    compacted = compact(network, method.plan(strength), example, example)
    test = data.load_test("digits", None)
    kept = compacted.architecture.kept
    units = [len(kept[site.name]) if site.name in kept else site.size for site in sites]
    return score(compacted.network, ordered(test, 1024, loop.normalise)).accuracy, units


@functools.cache
def dense_accuracy() -> float:
    return sum(run("dense", 0.0, seed)[0] for seed in SEEDS) / len(SEEDS)


def parameters(first: float, second: float) -> float:
    return 65 * first + (first + 1) * second + (second + 1) * 10


def same_cost(units: list[int]) -> float:
    """The fraction to remove at random for as many parameters, by bisection; never fewer parameters."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        more = parameters(300 * (1 - middle), 100 * (1 - middle)) > parameters(*units)
        low, high = (middle, high) if more else (low, middle)
    return low


@pytest.mark.parametrize("name", STRENGTHS)
def test_sparsifies_digits_better_than_chance(name: str) -> None:
    ours, chance = [], []
    for seed in SEEDS:
        accuracy, units = run(name, STRENGTHS[name], seed)
        random_accuracy, _ = run("random", same_cost(units), seed)
        print(f"\n{name} {units}: {accuracy:.4f}; random at {same_cost(units):.3f}: {random_accuracy:.4f}")
        assert units[0] < 150
        assert units[1] < 75
        ours.append(accuracy)
        chance.append(random_accuracy)
    mean, mean_chance = sum(ours) / len(SEEDS), sum(chance) / len(SEEDS)
    print(f"{name}: {mean:.4f}, random {mean_chance:.4f}, dense {dense_accuracy():.4f}")
    assert mean > dense_accuracy() - 0.04
    assert mean > mean_chance
