"""SeReNe on real data: neurons go, accuracy stays, and as many taken at random cost more."""

from __future__ import annotations

from statistics import mean

import torch

import methods
from bench import data, networks
from bench.compaction import find_sites
from bench.data import load_test
from bench.data.batches import Normalise, ordered
from bench.measure.accuracy import score
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.seeds import stream
from methods.masks import Masks

SEEDS, STRENGTH = (0, 1, 2), 1.0
RECIPE = Recipe(epochs=24, batch_size=64, learning_rate=2e-3, weight_decay=1e-4)


def outcome(name: str, seed: int, strength: float, **config: object) -> tuple[float, list[int]]:
    """Test accuracy of the pruned 300-100 network, and the units left in its two sites."""
    dataset, test, cpu = data.load("digits", None), load_test("digits", None), torch.device("cpu")
    torch.manual_seed(stream(seed, "init"))
    network = networks.build("mlp-300-100", dataset.input_shape, dataset.classes)
    sites = find_sites(network, torch.zeros(1, *dataset.input_shape))
    method = methods.create(name, **config)
    loop = Loop(network, method, sites, dataset, RECIPE, seed, cpu, strength)
    loop.run(plan_phases(method.phases(RECIPE.epochs), RECIPE.epochs))
    method.detach()
    plan = method.plan(strength)
    masks = Masks(network, sites)
    masks.set(plan)
    masks.enforce()
    kept = [int(plan.kept[site.name].sum()) if site.name in plan.kept else site.size for site in sites]
    return score(network, ordered(test, 1024, Normalise.of(dataset, cpu))).accuracy, kept


def parameters(first: float, second: float) -> float:
    return 65 * first + (first + 1) * second + 10 * (second + 1)


def random_fraction_for(kept: list[int]) -> float:
    """The largest fraction of hundredths that leaves `random` at least the parameters of 64-kept-10."""
    fractions = [hundredths / 100 for hundredths in range(100)]
    return max(f for f in fractions if parameters(300 * (1 - f), 100 * (1 - f)) >= parameters(*kept))


def test_neurons_go_and_accuracy_stays() -> None:
    dense, pruned, at_random, left = [], [], [], []
    for seed in SEEDS:
        accuracy, kept = outcome("serene", seed, STRENGTH, sensitivity="lower-bound")
        pruned.append(accuracy)
        left.append(kept)
        dense.append(outcome("dense", seed, 0.0)[0])
        at_random.append(outcome("random", seed, random_fraction_for(kept))[0])
    print(f"\ndense {dense}, pruned {pruned} with {left} neurons, at random {at_random}")
    assert all(first + second <= 0.3 * 400 for first, second in left)
    assert mean(pruned) > mean(dense) - 0.08
    assert mean(pruned) - mean(at_random) > 0.05
